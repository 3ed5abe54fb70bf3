"""Signals that end a command: it leaves by an exception, so that what it has begun to write is removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STATUS = 128  # to which shells add the signal's number


@contextmanager
def orderly_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does: by an exception, once; signals that follow do nothing.

    A signal that is ignored, as ``nohup`` ignores SIGHUP, stays so. Threads other than the main one have no say.

    Raises:
        KeyboardInterrupt: SIGINT has come.
        SystemExit: another one has.
    """
    ended = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ended
        if ended:  # what was begun is being removed
            return
        ended = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(STATUS + number)

    earlier = {}
    if threading.current_thread() is threading.main_thread():
        earlier = {number: signal.getsignal(number) for number in SIGNALS}
        earlier = {number: handler for number, handler in earlier.items() if handler is not signal.SIG_IGN}
    for number in earlier:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
