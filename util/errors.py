"""User errors, exit statuses, and how a command ends: by its result, an error or a signal."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

USER_ERROR_STATUS = 2
REQUEUE_STATUS = 75  # stopped by a signal with its work saved; the same command with --resume auto continues
SIGNAL_STATUS = 128  # shells report 128 + the number of the signal that ended a process
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class UserError(ValueError):
    """A mistake that the user can fix.

    The message is one sentence: what is wrong, where, and what to do. Everything that only a bug can cause is an
    ``assert`` or another exception, and keeps its traceback.
    """


class RunError(RuntimeError):
    """A failure of a run that is not the user's mistake. The message is one sentence; the exit status is 1."""


class Stopped(SystemExit):
    """A run that a signal has stopped, with its work saved. The exit status is ``REQUEUE_STATUS``.

    Args:
        signal: the signal's name.
        step: number of steps done; None if training had not started.
    """

    def __init__(self, signal: str, step: int | None = None) -> None:
        super().__init__(REQUEUE_STATUS)
        self.signal, self.step = signal, step


def help_asked() -> bool:
    """Whether the command line asks for help. Scripts print it before imports that take seconds."""
    return not {"-h", "--help"}.isdisjoint(sys.argv[1:])


def run_cli(main: Callable[[], int | None] | Callable[[], None]) -> NoReturn:
    """Run a script's ``main`` and exit with its status.

    ``UserError`` (status 2) and ``RunError`` (status 1) are printed as one line on stderr, without a traceback. Ctrl-C
    ends with status 130. Characters that the terminal's encoding lacks are escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(SIGNAL_STATUS + signal.SIGINT)
    sys.exit(status or 0)


@contextmanager
def orderly_end() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the block by an exception, as Ctrl-C does, so that unfinished output is removed.

    Only the first signal counts: while the block cleans up, further ones do nothing. Signals that are ignored, as
    ``nohup`` ignores SIGHUP, stay ignored. Outside the main thread this does nothing.

    Raises:
        KeyboardInterrupt: on SIGINT.
        SystemExit: on SIGTERM or SIGHUP.
    """
    ended = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ended
        if not ended:
            ended = True
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(SIGNAL_STATUS + number)

    earlier = {}
    if threading.current_thread() is threading.main_thread():
        earlier = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) is not signal.SIG_IGN}
    for number in earlier:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
