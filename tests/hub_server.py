"""A hub of toy-size repositories on this machine, for tests of downloads and uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from util.hub import HubFile, find_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 100_000  # bytes from which a file is stored as the hub stores large ones


def checkpoint_path(source: str, flag: str) -> Path:
    """Find the file of a checkpoint, and download it from the hub if necessary."""
    found = find_checkpoint(source, flag)
    return found.download() if isinstance(found, HubFile) else found


class HubServer(ThreadingHTTPServer):
    """The requests of the hub's API that listing, downloading and pushing need.

    Attributes:
        repositories: name → file → its path on this machine; names of data sets begin with ``datasets/``.
        licences: name → licence.
        moved: former name → name.
        commit: of every repository.
        requests: of files and listings, in order: method and path.
        cuts: number of downloads of large files that will break off in the middle.
        broken: transfers to and from paths with this part break off always, of small files too; empty: none.
        uploaded: repository/file → content that was pushed.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, Path]] = {}
        self.licences: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self.commit = COMMIT
        self.requests: list[str] = []
        self.cuts = 0
        self.broken = ""
        self.uploaded: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        """Its address, as HF_ENDPOINT takes it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, folder: Path, licence: str = "") -> None:
        """Serve the files of a folder.

        Args:
            name: of the repository.
            folder: its files, in any subfolders.
            licence: of the repository.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.repositories[name] = {path.relative_to(folder).as_posix(): path for path in files}
        if licence:
            self.licences[name] = licence

    def tags(self, name: str) -> list[str]:
        """The tags of a repository."""
        return [f"license:{self.licences[name]}"] if name in self.licences else []

    def downloaded(self) -> list[str]:
        """The files whose content was requested, as ``repository/file``, since the last call."""
        found = [request.removeprefix("GET ") for request in self.requests if request.startswith("GET /")]
        self.requests.clear()
        return [path[1:].replace("/resolve/main", "") for path in found if "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        """Answer with headers alone."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Answer a listing or a file."""
        self._answer(body=True)

    def do_POST(self) -> None:
        """Create a repository, or store a commit of files in it."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"POST {self.path}")
        if self.server.broken and self.server.broken in self.path:
            self.close_connection = True
            return
        reply: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            about = json.loads(body)
            reply["url"] = f"{self.server.address}/{about['organization']}/{about['name']}"
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            reply["files"] = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
        elif commit := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            entries = [json.loads(line) for line in body.splitlines()]
            for entry in (entry["value"] for entry in entries if entry["key"] == "file"):
                self.server.uploaded[f"{commit[1]}/{entry['path']}"] = base64.b64decode(entry["content"])
            reply["commitUrl"] = f"{self.server.address}/{commit[1]}/commit/{self.server.commit}"
            reply["commitOid"] = self.server.commit
        self._send(json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        listing = re.fullmatch(r"/api/(?:models/)?(.+)/(?:revision|tree)/([^/]+)", path)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        found = listing or file
        if not found:
            self._refuse("", 404)
            return
        name = self.server.moved.get(found[1], found[1])
        files = self.server.repositories.get(name)
        if files is None:
            self._refuse("RepoNotFound", 404)
            return
        if found[2] not in ("main", self.server.commit):
            self._refuse("RevisionNotFound", 404)
            return
        if listing:
            entries = _entries(files)
            about = {"id": name, "sha": self.server.commit, "siblings": entries, "tags": self.server.tags(name)}
            self._send(
                json.dumps(entries if "/tree/" in path else about).encode(), {"Content-Type": "application/json"}
            )
            return
        assert file
        if file[3] not in files:
            self._refuse("EntryNotFound", 404)
            return
        content = files[file[3]].read_bytes()
        headers = {"X-Repo-Commit": self.server.commit, "ETag": f'"{_key(content)}"', "Accept-Ranges": "bytes"}
        if not body:
            self._send(b"", {**headers, "Content-Length": str(len(content))})
            return
        begin = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        if begin:
            self.server.requests[-1] += f" from {begin}"
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        cut = bool(self.server.broken) and self.server.broken in path
        if len(content) >= LARGE and self.server.cuts > 0:
            self.server.cuts -= 1
            cut = True
        self._send(content[begin:], headers, 206 if begin else 200, cut)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    def _refuse(self, code: str, status: int) -> None:
        self._send(b"{}", {"X-Error-Code": code, "Content-Type": "application/json"} if code else {}, status)


def _entries(files: dict[str, Path]) -> list[dict[str, Any]]:
    """The files of a repository as listings and trees name them."""
    entries = []
    for file, path in files.items():
        content = path.read_bytes()
        entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": _key(content)}
        entry |= {"type": "file", "path": file, "oid": entry["blobId"]}
        if len(content) >= LARGE:
            lfs = {"sha256": _key(content), "oid": _key(content), "size": len(content)}
            entry["lfs"] = {**lfs, "pointerSize": 134}
        entries.append(entry)
    return entries


def _key(content: bytes) -> str:
    return (hashlib.sha256 if len(content) >= LARGE else hashlib.sha1)(content).hexdigest()
