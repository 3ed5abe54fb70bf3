"""The checkpoints in a run's folder: which are kept, under which names, and from which one a run goes on.

``checkpoint_000400.pth`` is the state after step 400. The newest of them is also called ``checkpoint.pth``, and the
best one ``checkpoint_best.pth``; a second name is a hard link, and takes no space.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from util.checkpoint import BESIDE, check_content, read_content
from util.distributed import gather_objects, is_main
from util.errors import UserError
from util.io import atomic_path

AUTO = "auto"
NEWEST, BEST = "checkpoint.pth", "checkpoint_best.pth"
EARLIER = "earlier"
"""How folders begin that hold the checkpoints of an earlier run."""
RETRY = 60.0  # seconds after which a checkpoint that could not be written is tried again
_NUMBERED = re.compile(r"checkpoint_(\d+)\.pth")


def numbered(folder: Path) -> dict[int, Path]:
    """Step → its checkpoint, in rising order."""
    found = ((_NUMBERED.fullmatch(path.name), path) for path in folder.glob("checkpoint_*.pth"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


class Keeper:
    """Writes checkpoints and keeps the last ones. Only the main process writes.

    A checkpoint that cannot be written costs no older one, and does not end the run: the disk may be full for an hour
    only, and a run that goes on loses nothing by it. Only the last one of a run must be written.

    Args:
        folder: the run's.
        write: makes the checkpoint of a step at a path, beside it and renamed; raises ``UserError`` where it cannot.
        keep: how many of the last ones stay, at least 1.
        minutes: after so many without a checkpoint one is due; 0: never.
        active: False writes nothing.
    """

    def __init__(
        self, folder: Path, write: Callable[[Path, int], None], keep: int, minutes: float, active: bool = True
    ) -> None:
        self.folder, self.write, self.keep, self.seconds = folder, write, keep, 60 * minutes
        self.active = active
        self._saved = -1
        self._next = self._after(self.seconds)

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.active and time.monotonic() >= self._next

    def save(self, step: int, must: bool = False) -> None:
        """Write the checkpoint of a step, unless it is there, and remove those that are no longer kept.

        Args:
            step: number of steps done.
            must: the run ends with it.

        Raises:
            UserError: ``must``, and it cannot be written.
        """
        if step == self._saved or not self.active:
            return
        try:
            self._write(step)
        except UserError as error:
            if must:
                raise
            self._next = self._after(RETRY)
            print(f"warning: {error}; training goes on and tries again", file=sys.stderr, flush=True)
            return
        self._saved = step
        self._next = self._after(self.seconds)

    def keep_best(self, step: int) -> None:
        """Keep the checkpoint of a step, the present one, as the best.

        Raises:
            UserError: it cannot be written.
        """
        self.save(step)
        if step == self._saved:
            _link(self._path(step), self.folder / BEST)
        else:
            self.write(self.folder / BEST, step)

    @staticmethod
    def _after(seconds: float) -> float:
        return time.monotonic() + seconds if seconds else math.inf

    def _path(self, step: int) -> Path:
        return self.folder / f"checkpoint_{step:06d}.pth"

    def _write(self, step: int) -> None:
        path = self._path(step)
        try:
            self.write(path, step)
        except UserError:
            if not self._make_room():
                raise
            self.write(path, step)
        _link(path, self.folder / NEWEST)
        for old in list(numbered(self.folder).values())[: -self.keep]:
            old.unlink(missing_ok=True)

    def _make_room(self) -> bool:
        """Give up all checkpoints but the newest; whether there were any."""
        old = list(numbered(self.folder).values())[:-1]
        for path in old:
            path.unlink(missing_ok=True)
        return bool(old)


def begin_folder(folder: Path, first_step: int) -> list[str]:
    """Make a run's folder ready: checkpoints of steps that are still to come are another run's, and are put aside.

    What a killed process left half-written is removed.

    Args:
        folder: the run's; it need not exist.
        first_step: steps done.

    Returns:
        What the user should know.

    Raises:
        UserError: a file cannot be moved.
    """
    later = [path for step, path in numbered(folder).items() if step > first_step]
    later += [path for path in (folder / NEWEST, folder / BEST) if path.is_file() and _step(path) > first_step]
    try:
        for half in folder.glob(".checkpoint*.pth"):
            half.unlink(missing_ok=True)
        if not later:
            return []
        number = 1 + max((int(path.name.rpartition("-")[2]) for path in folder.glob(f"{EARLIER}-[0-9]*")), default=0)
        aside = folder / f"{EARLIER}-{number}"
        aside.mkdir()
        for path in folder.glob(f"{BESIDE}*"):
            _link(path, aside / path.name)
        for path in later:
            path.rename(aside / path.name)
    except OSError as error:
        raise UserError(f"cannot put aside the checkpoints in {folder}: {error.strerror or error}") from error
    return [f"{folder} holds checkpoints of an earlier run, beyond step {first_step}; they are in {aside} now"]


def check_epoch(state: Mapping[str, Any], steps_per_epoch: int) -> None:
    """Refuse to go on with epochs of another length: the position within one would mean other clips.

    Raises:
        UserError: the lengths differ.
    """
    if state["steps_per_epoch"] != steps_per_epoch:
        raise UserError(
            f"{state['path']} was trained with {state['steps_per_epoch']} steps per epoch, and this run has "
            f"{steps_per_epoch}; resume with the same data, --batch_size, --accumulate and number of processes"
        )


def resume_path(resume: str, folder: Path) -> tuple[str, list[str]]:
    """The checkpoint that ``--resume`` means: itself, or with "auto" the newest intact one in a run's folder.

    Returns:
        its path, or "" where a new run begins, the same in all processes, and what the user should know.
    """
    if resume != AUTO:
        return resume, []
    own = newest_intact(folder) if is_main() else None
    path, notes = gather_objects(own)[0]  # one process decides, as a file may come and go
    if path is None:
        return "", [*notes, f"{folder} holds no intact checkpoint to go on from; the run begins anew"]
    return str(path), [*notes, f"going on from {path}"]


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint from which a run in a folder goes on.

    Returns:
        the newest one that can be read to its end, or None, and what the user should know: which were skipped, and why.
    """
    notes = []
    paths = [path for path in (*reversed(numbered(folder).values()), folder / NEWEST) if path.is_file()]
    files = {(path.stat().st_dev, path.stat().st_ino): path for path in paths}  # each once, by whatever name
    found: list[tuple[int, Path]] = []
    for path in files.values():
        try:
            found.append((_read_step(path), path))
        except UserError as error:
            notes.append(f"skipped {path}: {error}")
    for _, path in sorted(found, reverse=True):
        fault = _fault(path)
        if not fault:
            return path, notes
        notes.append(f"skipped {path}: {fault}")
    return None, notes


def _read_step(path: Path) -> int:
    """The step of a checkpoint that a run can go on from.

    Raises:
        UserError: it is none.
    """
    content = check_content(read_content(path), path)
    if not isinstance(content.get("step"), int) or "optimizer" not in content:
        raise UserError("it holds weights alone")
    return content["step"]


def _step(path: Path) -> int:
    """The step of a checkpoint; that of one which cannot be read is beyond all."""
    try:
        return _read_step(path)
    except UserError:
        return sys.maxsize


def _fault(path: Path) -> str:
    """What is wrong with the bytes of a checkpoint, all of which are read; empty: nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
        return f"it cannot be read ({error})"
    return f"its part {broken} is damaged" if broken else ""


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of what has it; where the file system has no links, copy it.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic_path(target) as temporary:
            try:
                os.link(source, temporary)
            except OSError:
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}; {source} is intact") from error
