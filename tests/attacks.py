"""Attacks on the web page: requests as an attacker sends them, and how the page must answer."""

from __future__ import annotations

import json
import math
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from scripts import web_demo
from tests.media_tools import write_film
from tests.page_tools import Visitor, find_values, serve
from util.files import MAX_PIXELS

INPUTS = ("file", "text", "start", "end", "stride", "threshold", "score_threshold", "colours")
SECRET = "known to the server only"
MARKUP = "<img src=x onerror=alert(1)>"
GONE = "there is no such file"
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
MANY = 20  # uploads at once


def _png(width: int, height: int) -> bytes:
    """The header of a PNG, which is all that a reader should look at."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


HEAVY = {
    "picture of many pixels": _png(60_000, 60_000),
    "picture a little above the limit": _png(math.isqrt(MAX_PIXELS) + 1, math.isqrt(MAX_PIXELS) + 1),
    "animation of many pixels": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0),
}
"""Files of a few bytes that would take gigabytes."""

Attack = tuple[str, str, Callable[[], Any]]
"""Its name, a pattern of the answer, and a function that sends it and returns the answer."""


def forged(path: Path | str) -> dict[str, Any]:
    """A file in Gradio's form that the visitor has not uploaded."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def send(visitor: Visitor, body: dict[str, Any]) -> dict[str, Any]:
    """Call a function with a body that ``httpx`` would not write, and return the last message's output."""
    answer = visitor.http.post(
        "gradio_api/queue/join", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    answer.raise_for_status()
    return list(visitor.messages())[-1]["output"]


def check(visitor: Visitor, folder: Path, attack: Attack) -> None:
    """Send an attack.

    Args:
        folder: that no message may name.

    Raises:
        AssertionError: the answer is another one, or shows a secret or a path of the server.
    """
    name, expected, function = attack
    answer = function()
    if isinstance(answer, dict):  # the output of a function
        text = answer.get("error") or "accepted"
        assert "\n" not in text and str(folder) not in text and "<" not in text, f"{name}: the message is {text!r}"
    else:
        text = answer if isinstance(answer, str) else f"{answer.status_code} {answer.text}"
    assert re.search(expected, text), f"{name}: the answer is {text[:300]!r}"
    assert SECRET not in text and "root:" not in text, f"{name}: the answer shows a file of the server"


def contents(folder: Path) -> set[bytes]:
    """The contents of all files below a folder."""
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def film_and_secret(visitor: Visitor, folder: Path) -> tuple[dict[str, Any], Path]:
    """Upload a video, and write a file that no visitor may read."""
    (folder / "secret.txt").write_text(SECRET)
    return visitor.upload(write_film(folder / "a.mp4")), folder / "secret.txt"


def wrong_values(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Files of the server, and values of other types, in place of each value."""
    film, secret = film_and_secret(visitor, folder)
    for i, name in enumerate(INPUTS):
        for bad in (forged(secret), [forged(secret)], {"a": forged(secret)}, True):
            values = find_values(film, "a\nb")
            values[i] = bad
            said = GONE if name == "file" else "must be a (text|number)"
            yield f"{name} is {bad}", said, partial(visitor.result, "run", *values)
    others = {"run_preview": [film, "a\nb", "", 0.5, 0.0, ""], "apply": [0.5, 0.0, "", 1, None], "export": [[], None]}
    for function, good in others.items():
        for i in range(len(good) - (good[-1] is None)):
            for bad in (forged(secret), [forged(secret)], {"a": forged(secret)}, True):
                values = [*good[:i], bad, *good[i + 1 :]]
                said = f"{GONE}|must be (a text|a number|some of)"
                yield f"{function}, value {i} is {bad}", said, partial(visitor.result, function, *values)
    for bad in ("coco", ["../coco"], ["png"], ["coco"] * 99, [[]], 1, None):
        yield f"formats are {bad}", "Further formats must be some of", partial(visitor.result, "export", bad, None)
    for bad in (
        *(forged(secret), forged("/etc/passwd"), forged(f"{film['path']}/../../../../../secret.txt"), "a", 7, [film]),
        *(forged("http://127.0.0.1:1/a.mp4"), forged("a\0b"), forged("a" * 5000), {"path": str(secret)}),
        json.loads("[" * 900 + "]" * 900),
    ):
        body = {"fn_index": visitor.functions["inspect"], "data": [bad], "session_hash": visitor.session}
        yield f"inspect {str(bad)[:80]}", GONE, partial(send, visitor, body)
    for name in ("stride", "threshold", "score_threshold"):
        for bad in (float("nan"), 1e300, -1, "1", None, [1]):
            values = find_values(film, "a\nb")
            values[INPUTS.index(name)] = bad
            body = {"fn_index": visitor.functions["run"], "data": values, "session_hash": visitor.session}
            yield f"{name} is {bad}", "must be a number from", partial(send, visitor, body)
    body = {"fn_index": visitor.functions["run"], "session_hash": visitor.session}
    for sentence in ("half \ud800", None, 5):
        values = find_values(film, sentence)  # type: ignore[arg-type]
        yield f"the sentence {sentence!r}", "must be a text", partial(send, visitor, {**body, "data": values})
    own = [*find_values(film, "a\nb")[:-1], forged(secret)]
    yield (
        "an earlier result, which the page does not take from visitors",
        "^accepted$",
        partial(visitor.result, "run", *own),
    )
    yield "too few values", "incomplete", partial(send, visitor, {**body, "data": []})
    yield "a frame that is a file", "Frame must be a number", partial(visitor.result, "look", forged(secret), None)


def paths_of_others(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Reads of files outside the cache."""
    film, secret = film_and_secret(visitor, folder)
    path = film["path"]
    for bad in (
        *("/etc/passwd", str(secret), f"{path}/../../../../../secret.txt", web_demo.__file__),
        *("../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc/passwd", "file:///etc/passwd"),
        *(str(Path(path).parents[2]), str(Path(path).parents[1]), "http://127.0.0.1:1/x", "//127.0.0.1:1/x"),
    ):
        for way in ("gradio_api/file=", "gradio_api/file/", "static/", "assets/"):
            yield f"GET {way}{bad}", "^(400|403|404|405) ", partial(visitor.http.get, way + bad)


def names_of_uploads(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Names that would write elsewhere; the page chooses the folder itself."""
    for name in ("../../../evil.mp4", "/etc/evil.mp4", "..\\..\\evil.mp4", "..", "a\0b", "x" * 1000):
        file = [("files", (name, b"evil"))]
        cached = r'^(200 \["[^"]*/cache/[0-9a-f]{64}/[^/"]+"\]|400 )'
        yield f"upload {name[:80]!r}", cached, partial(visitor.http.post, "gradio_api/upload", files=file)


def unused_functions(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Functions of Gradio that take uploads and calls without this page's limits."""
    for path in ("run/run", "api/run", "call/run", "component_server", "process_recording", "vibe-edit/", "stream/1"):
        yield f"POST {path}", "^404 ", partial(visitor.http.post, f"gradio_api/{path}", json={"data": []})
    for path in ("dev/reload", "deep_link?session_hash=a"):
        yield f"GET {path}", "^404 ", partial(visitor.http.get, f"gradio_api/{path}")
    yield "GET monitoring", "^403 ", partial(visitor.http.get, "monitoring/summary")


def malformed_requests(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Requests on which Gradio fails."""
    post = visitor.http.post
    part = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nabc\r\n--x--\r\n'
    said = "^400 the page does not understand this request$"
    for query in ("", "?upload_id=a"):
        yield f"no file{query}", said, partial(post, f"gradio_api/upload{query}", content=part, headers=FORM)
    for message in ({"fn_index": -1, "data": [], "session_hash": "a"}, {"fn_index": 0, "data": []}, [], 7):
        yield f"join {message}", "^(400|422) ", partial(post, "gradio_api/queue/join", json=message)
    yield "deep lists", "^(400|422) ", partial(post, "gradio_api/queue/join", content=b"[" * 500_000)
    yield "a proxy", "^400 ", partial(visitor.http.get, "gradio_api/proxy=%00")


def large_requests(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Many files in one upload, a body without a length, and a message of many megabytes."""
    post, chunk = visitor.http.post, bytes(2**17)
    many = [("files", (f"{i}.mp4", bytes(900_000))) for i in range(4)]
    yield "four large files", "^413 ", partial(post, "gradio_api/upload", files=many)
    endless = (PART, *40 * [chunk])
    yield "no length", "^413 ", lambda: post("gradio_api/upload", content=iter(endless), headers=FORM)
    body = {"fn_index": 0, "data": ["a" * 2_000_000], "session_hash": "s"}
    yield "a message of 2 MB", "^413 ", partial(post, "gradio_api/queue/join", json=body)


def results_of_others(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Another visitor's result, by all that the page shows of it."""
    film, _ = film_and_secret(visitor, folder)
    path = Path(visitor.find(film)["overlay"]["path"])
    assert len(path.parents[1].name) == 32, "the folder's name can be guessed"
    other = Visitor(str(visitor.http.base_url))
    for value in (None, {"folder": str(path.parent)}, forged(path)):
        yield f"look at {value}", "there is no result", partial(other.result, "look", 1, value)
        yield f"change {value}", "there is no result", partial(other.result, "apply", 0.5, 0.0, "", 1, value)
        yield f"export {value}", "there is no result", partial(other.result, "export", ["coco"], value)


def foreign_names(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """A web site whose name leads to 127.0.0.1 (DNS rebinding)."""
    said = "^(400|421) (?!.*Objects)"
    for host in ("evil.example", "evil.example:7860", "localhost.evil.example", "10.1.2.3", "", "[::"):
        headers, file = {"Host": host}, [("files", ("a.mp4", b"evil"))]
        for path in ("", "config", "gradio_api/info"):
            yield f"{host!r}, GET /{path}", said, partial(visitor.http.get, path, headers=headers)
        yield f"{host!r}, upload", said, partial(visitor.http.post, "gradio_api/upload", files=file, headers=headers)


def foreign_sites(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Another web site in the same browser changes something, or reads."""
    post, file = visitor.http.post, [("files", ("a.mp4", b"evil"))]
    body = {"fn_index": visitor.functions["leave"], "data": [], "session_hash": "s"}
    for name, value in (
        *(("Origin", "http://evil.example"), ("Origin", "null"), ("Origin", "http://127.0.0.1:1")),
        *(("Origin", "http://127.0.0.1.evil.example"), ("Sec-Fetch-Site", "cross-site")),
    ):
        headers = {name: value}
        yield f"{value}, upload", "^403 ", partial(post, "gradio_api/upload", files=file, headers=headers)
        for path in ("queue/join", "cancel", "reset"):
            yield f"{value}, {path}", "^403 ", partial(post, f"gradio_api/{path}", json=body, headers=headers)
        reads = "^403 " if name == "Origin" else "^200 "  # a link on another site may lead to the page
        yield f"{value}, read", reads, partial(visitor.http.get, "config", headers=headers)


def markup(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Markup in sentences and names, which Gradio would show; uploads are never shown as a page."""
    film, _ = film_and_secret(visitor, folder)
    (folder / "<svg onload=alert(1)>.mp4").write_bytes(b"no video" * 99)
    named = visitor.upload(folder / "<svg onload=alert(1)>.mp4")
    yield "the name of a file", r"\.mp4", partial(visitor.result, "inspect", named)
    yield "the name of a file, run", r"\.mp4", partial(visitor.find, named)
    yield "a sentence without a video", "there is no video", partial(visitor.find, None, text=MARKUP)
    yield "a time", "&lt;b&gt;", partial(visitor.find, film, start="<b>")
    for name in ("page.html", "image.svg", "page.xhtml", "script.js"):
        (folder / name).write_text(f"<html>{MARKUP}</html>")
        answer = visitor.http.get(f"gradio_api/file={visitor.upload(folder / name)['path']}")
        yield f"open {name}", "^attachment", partial(answer.headers.get, "content-disposition", "")


def heavy_files(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Uploads that would take gigabytes, also under the name of a video."""
    said = "too many pixels|at most 4096 pixels|cannot read|more than 33 million pixels"
    for name, content in HEAVY.items():
        for suffix in (".png", ".gif", ".mp4"):
            (folder / f"{name}{suffix}").write_bytes(content)
            file = visitor.upload(folder / f"{name}{suffix}")
            yield f"{name}{suffix}, preview", said, partial(visitor.result, "inspect", file)
            yield f"{name}{suffix}, run", said, partial(visitor.find, file)


def slow_requests(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """Connections that stay silent or send a byte now and then, on a page that waits for a second only."""
    with mock.patch.object(web_demo, "PATIENCE", 1.0), serve() as address:
        place, start = partial_upload(address)
        for name, said, sent in (
            ("silent", "^closed$", b""),
            ("half a header", "^closed$", start[:50]),
            ("slow body", " 408 ", start),
        ):
            yield name, said, partial(trickle, place, sent)


def partial_upload(address: str) -> tuple[tuple[str, int], bytes]:
    """The host and port of a page, and the start of a long upload."""
    port = int(address.rstrip("/").rpartition(":")[2])
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 1000000\r\n"
    return ("127.0.0.1", port), f"{head}Content-Type: {FORM['Content-Type']}\r\n\r\n".encode() + PART


def trickle(place: tuple[str, int], start: bytes) -> str:
    """Send the start of a request, and then a byte at a time; return what comes back once the page has hung up."""
    begin, answer, ended = time.monotonic(), b"", threading.Event()
    with socket.create_connection(place, timeout=20) as connection:

        def drip() -> None:
            try:
                while start and not ended.wait(0.2):
                    connection.sendall(b"a")
            except OSError:
                pass

        connection.sendall(start)
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            while received := connection.recv(1000):
                answer += received
        except ConnectionError:
            pass
        finally:
            ended.set()
            dripping.join()
    assert time.monotonic() - begin < 15, "the page waits too long"
    return answer.decode() or "closed"


def many_uploads(visitor: Visitor, folder: Path) -> Iterator[Attack]:
    """More uploads at once than a page holds."""
    with serve(max_megabytes=1.0, max_total_megabytes=2.5) as address:
        post = Visitor(address).http.post

        def upload(number: int) -> Any:
            return post("gradio_api/upload", files=[("files", (f"{number}.mp4", bytes([number]) * 1_000_000))])

        with ThreadPoolExecutor(MANY) as pool:
            answers = list(pool.map(upload, range(MANY)))
        accepted = [answer for answer in answers if answer.status_code == 200]
        assert 1 <= len(accepted) <= 2, f"{len(accepted)} of {MANY} uploads are accepted"
        for i, answer in enumerate(answers):
            if answer not in accepted:
                yield f"upload {i}", "^507 ", partial(lambda answer: answer, answer)
        yield "one more upload", f"^507 {web_demo.FULL}$", partial(upload, MANY)


ATTACKS: dict[str, Callable[[Visitor, Path], Iterator[Attack]]] = {
    function.__name__.replace("_", " "): function
    for function in (
        *(wrong_values, paths_of_others, names_of_uploads, unused_functions, malformed_requests, large_requests),
        *(results_of_others, foreign_names, foreign_sites, markup, heavy_files, slow_requests, many_uploads),
    )
}
"""Attacks on a page that takes three sentences and uploads of one megabyte. Their folder holds what they send."""
