"""``run.json`` in a run's output folder: how each of its sessions was started, and how it ended."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from util.device import device_name
from util.distributed import gather_objects
from util.errors import REQUEUE_STATUS, RunError, UserError
from util.io import write_json
from util.results import ROOT, library_versions, project_version

FILE = "run.json"
GIT_SECONDS = 20  # on a slow disk git may take long; a run does not wait for it
MOST_FILES = 100  # changed files that are listed
ENVIRONMENT = (
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NNODES", "RDZV_ENDPOINT"),
    *("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
)


class RunSummary:
    """The record of an output folder. Every session is added to it; one that resumes a run keeps the run's id.

    A session whose ``state`` is "running" is at work, or was killed. Otherwise ``state`` is "finished", "stopped" (by a
    signal; it can go on) or "failed", ``step`` is the last step done, and ``message`` says why it ended. Nothing is
    written before ``begin``.

    Args:
        folder: gets ``run.json``, and the options as ``config.json``.
        active: False writes nothing.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self.folder = folder
        self.active = active
        self.content = _read(folder / FILE) if active else {}
        self.session: dict[str, Any] = {}
        self.last_step: Callable[[], int] = lambda: 0
        """Gives the last step done; set when there is something that counts them."""

    @property
    def run_id(self) -> str:
        """The same for all sessions of the run; only the active record has it."""
        return self.content.get("id", "")

    def begin(self, config: Mapping[str, Any], device: torch.device, first_step: int, **facts: Any) -> None:
        """Write that a session has begun; all processes come here together.

        Args:
            config: all options, as plain values.
            device: of this process.
            first_step: steps done before; 0: it is a new run, with an id of its own.
            facts: further plain values worth knowing.

        Raises:
            UserError: a file cannot be written.
        """
        devices = gather_objects(f"{socket.gethostname()}: {device_name(device)}")
        if not self.active:
            return
        write_json(self.folder / "config.json", config)
        if not first_step:
            self.content["id"] = _new_id()
        self.last_step = lambda: first_step
        self.session = {"state": "running", "started": _now(), "processes": len(devices), "devices": Counter(devices)}
        self.session |= {**session_facts(), "first_step": first_step, **facts, "config": config}
        self.content["sessions"].append(self.session)
        self._write()

    def _write(self) -> None:
        write_json(self.folder / FILE, self.content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.session:
            return
        self.session |= {**how_it_ended(error), "ended": _now(), "step": self.last_step()}
        try:
            self._write()
        except UserError as full:  # what ended the run is more important
            print(f"note: {full}", file=sys.stderr)


def how_it_ended(error: BaseException | None) -> dict[str, str]:
    """``state`` and ``message`` of a session, by the exception that has ended it, if any."""
    if error is None:
        return {"state": "finished", "message": ""}
    if isinstance(error, SystemExit) and error.code == REQUEUE_STATUS:
        return {"state": "stopped", "message": f"by {getattr(error, 'signal', '') or 'a signal'}"}
    if isinstance(error, KeyboardInterrupt):
        return {"state": "stopped", "message": "by SIGINT, before a step could be saved"}
    if isinstance(error, (UserError, RunError)):
        return {"state": "failed", "message": str(error)}
    return {"state": "failed", "message": f"{type(error).__name__}: {error}"}


def session_facts() -> dict[str, Any]:
    """Command line, machine, versions, and the state of the code."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "versions": {"project": project_version(), **library_versions(), "cuda": torch.version.cuda},
        "git": git_state(ROOT),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and changed files of a checkout; None where the folder is none, or git is not there."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL
        ).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != folder.resolve():
            return None  # a copy of the code inside another project
        changed = [line.strip() for line in git("status", "--porcelain").splitlines()]
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD").strip(),
            "changed": len(changed),
            "changed_files": changed[:MOST_FILES],
        }
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _read(path: Path) -> dict[str, Any]:
    """The content of an earlier session's file; a new one where there is none, or another file of that name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content["id"], str) and isinstance(content["sessions"], list):
            return content
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return {"id": _new_id(), "sessions": []}


def _new_id() -> str:
    return uuid.uuid4().hex[:12]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
