"""The page's visitors: a temporary folder for each, and runs in threads of their own.

A visitor's folder goes when the visitor leaves, when nothing has happened in it for a while, and at the latest with the
program.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo import DemoResult, Progress

PREFIX = "rvos-page-"  # of the temporary folder
SESSIONS = "sessions"  # below it; beside it lies what is uploaded
SWEEP = 30.0  # seconds between two looks for what nobody needs any more
ORPHAN = 120.0  # seconds after which an upload that does not go on, or was not taken, is removed
PATIENCE = 10.0  # seconds that runs have to end when the program does
NEWS = 0.2  # seconds between two reports of a run


class StopRun(Exception):
    """A run was told to end."""


class Job:
    """A run in a thread of its own, which can be told to end.

    Args:
        work: is given a function that it calls after every frame.
    """

    def __init__(self, work: Callable[[Callable[[Progress], None]], DemoResult]) -> None:
        self._stop = threading.Event()
        self._news: Progress | None = None
        pool = ThreadPoolExecutor(1)
        self.future: Future[DemoResult] = pool.submit(work, self._note)
        pool.shutdown(wait=False)

    def updates(self) -> Iterator[Progress]:
        """How far the run is, from time to time until it ends."""
        told = None
        while not self.future.done():
            wait([self.future], NEWS)
            news = self._news
            if news is not None and news is not told:
                told = news
                yield news

    def result(self) -> DemoResult:
        """What the run has written.

        Raises:
            StopRun: it was told to end.
            UserError, RunError: as ``segment_to_folder`` does.
        """
        return self.future.result()

    def stop(self) -> None:
        """Tell it to end after this frame."""
        self._stop.set()

    def _note(self, progress: Progress) -> None:
        if self._stop.is_set():
            raise StopRun
        self._news = progress


@dataclass
class Session:
    """A visitor's folder and what is in it."""

    folder: Path
    video: Path | None = None
    job: Job | None = None
    result: DemoResult | None = None
    notes: list[str] = field(default_factory=list)
    used: float = field(default_factory=time.monotonic)

    def touch(self) -> None:
        """Something happens here: the folder stays."""
        self.used = time.monotonic()

    def take(self, upload: Path) -> Path:
        """Move an uploaded file here, in place of an earlier one and its result."""
        self.forget()
        target = self.folder / "video"
        target.mkdir()
        self.video = upload.rename(target / upload.name)
        with suppress(OSError):  # its own folder, unless there is something else
            upload.parent.rmdir()
        return self.video

    def forget(self) -> None:
        """Remove the video and its result, and end the run that reads it."""
        if self.job is not None:
            self.job.stop()
        self.forget_result()
        self.video = None
        shutil.rmtree(self.folder / "video", ignore_errors=True)

    def forget_result(self) -> None:
        """Remove what an earlier run has written."""
        self.result = None
        for path in self.folder.glob("result*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def new_result(self) -> Path:
        """Where the next run writes; each has another name, so that no browser shows an earlier one's."""
        self.forget_result()
        return self.folder / f"result-{uuid.uuid4().hex[:8]}"


class Workspace:
    """The page's temporary folder; it is removed when the block is left, however that happens.

    Args:
        keep: seconds after which a folder in which nothing happens is removed.
    """

    def __init__(self, keep: float) -> None:
        self.keep = keep
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def session(self, name: str) -> Session:
        """A visitor's folder, by the name of the visitor; it is made if it is missing."""
        with self._lock:
            if name not in self._sessions:
                folder = self.folder / SESSIONS / uuid.uuid4().hex
                folder.mkdir(parents=True)
                self._sessions[name] = Session(folder)
            self._sessions[name].touch()
            return self._sessions[name]

    def leave(self, name: str) -> Job | None:
        """The visitor has gone: the run ends and the folder is removed.

        Returns:
            The run, which may need a moment to end.
        """
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is None:
            return None

        def remove(_: Any = None) -> None:
            shutil.rmtree(session.folder, ignore_errors=True)

        if session.job is None:
            remove()
        else:
            session.job.stop()
            session.job.future.add_done_callback(remove)
        return session.job

    def sweep(self) -> None:
        """Remove what nobody has used for too long, and uploads that never became a visitor's."""
        with self._lock:
            old = [name for name, session in self._sessions.items() if time.monotonic() - session.used > self.keep]
        for name in old:
            self.leave(name)
        for path in self.folder.iterdir():
            if path.name != SESSIONS and time.time() - path.stat().st_mtime > ORPHAN:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        threading.Thread(target=self._keep_sweeping, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        jobs = [self.leave(name) for name in list(self._sessions)]
        wait([job.future for job in jobs if job is not None], PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep_sweeping(self) -> None:
        while not self._closed.wait(SWEEP):
            self.sweep()
