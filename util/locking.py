"""One run at a time in an output folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from util.errors import UserError

_held: set[int] = set()


@contextmanager
def sole_run(folder: str | Path, active: bool = True) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs.

    The lock is on the folder itself (``flock``): no file remains, and that of a killed process is free at once. Where
    folders cannot be locked, as on some network disks, nothing is kept out.

    Args:
        folder: made if it is missing, and removed again if nothing was written.
        active: False locks nothing, in processes that share the main one's folder.

    Raises:
        UserError: another run has it.
    """
    folder = Path(folder)
    if not active:
        yield
        return
    made = False
    with suppress(OSError):  # who writes there says why not
        folder.mkdir(parents=True)
        made = True
    handle = _lock(folder)
    try:
        yield
    finally:
        if handle is not None:
            _held.discard(handle)
            os.close(handle)
        if made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _lock(folder: Path) -> int | None:
    """Lock a folder; None where that cannot be.

    Raises:
        UserError: another process has it.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(
            f"another run is writing to {folder}; wait until it has ended, stop it, or choose another output folder"
        ) from error
    except OSError:
        os.close(handle)
        return None
    _held.add(handle)
    return handle


def _let_go() -> None:
    """In a forked process: the lock is the other's alone, lest it outlive it."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
