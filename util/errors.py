"""What a user can get wrong, and how it is told: one clear sentence and exit status 2."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import NoReturn

USER_ERROR_STATUS = 2
REQUEUE_STATUS = 75  # stopped by a signal, with its work saved: the same command with --resume auto goes on


class UserError(ValueError):
    """A mistake that the user can mend.

    The message is one sentence: what is wrong, where, and how to mend it. Everything that only a
    bug can cause is an ``assert`` or another exception, and keeps its traceback.
    """


class RunError(RuntimeError):
    """A run that must stop for a reason that is not the user's input, told in one sentence; status 1."""


class Stopped(SystemExit):
    """A run that a signal has ended, with its work saved: it leaves the process with ``REQUEUE_STATUS``.

    Args:
        signal: the signal's name.
        step: steps done; None where training had not begun.
    """

    def __init__(self, signal: str, step: int | None = None) -> None:
        super().__init__(REQUEUE_STATUS)
        self.signal, self.step = signal, step


def help_asked() -> bool:
    """Whether the command line asks for help, which scripts give before they import what takes seconds."""
    return not {"-h", "--help"}.isdisjoint(sys.argv[1:])


def run_cli(main: Callable[[], int | None] | Callable[[], None]) -> NoReturn:
    """Run a script's ``main`` and leave the process with its status.

    ``UserError`` and ``RunError`` are printed as one line on stderr, without a traceback, and end in
    status 2 and 1; Ctrl-C ends in status 130, and a run that was stopped and can go on in 75. Characters that the
    terminal's encoding lacks are written as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)
