"""Errors that a user can fix, reported in one sentence with exit status 2, and the command lines that report them."""

from __future__ import annotations

import argparse
import difflib
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

USER_ERROR_STATUS = 2
REQUEUE_STATUS = 75  # stopped by a signal with its work saved: the same command with --resume auto continues


class UserError(ValueError):
    """A mistake that the user can fix; exit status 2.

    The message is one sentence: what is wrong, where, and what to do. Everything that only a bug can cause is an
    ``assert`` or another exception, and keeps its traceback.
    """


class RunError(RuntimeError):
    """A failure that no input of the user caused, described in one sentence; exit status 1."""


class Stopped(SystemExit):
    """Ends a run that a signal stopped, with its work saved; exit status ``REQUEUE_STATUS``.

    Args:
        signal: the signal's name.
        step: number of steps done; None where training had not begun.
    """

    def __init__(self, signal: str, step: int | None = None) -> None:
        super().__init__(REQUEUE_STATUS)
        self.signal, self.step = signal, step


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UserError``, names the nearest known flag, and allows no abbreviations."""

    def __init__(self, *args: Any, **options: Any) -> None:
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        named = {"prog": f"python -m {spec.name}"} if spec else {}
        super().__init__(*args, **{"allow_abbrev": False, **named, **options})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the command line.

        Raises:
            UserError: a flag is unknown (the message names the nearest known one), lacks its value or has a wrong one.
        """
        words = list(sys.argv[1:] if args is None else args)
        self._refuse(
            word for word in words if word.startswith("--")
        )  # first: an argument that it should set is missing too
        found, unknown = self.parse_known_args(words, namespace)
        self._refuse(unknown)
        if unknown:
            raise UserError(f"unexpected argument {unknown[0]!r}; see --help")
        return found

    def error(self, message: str) -> NoReturn:
        """Report a mistake.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message.removeprefix('argument ')}; see --help")

    def _refuse(self, words: Iterable[str]) -> None:
        """Raise ``UserError`` for the first flag that neither this parser nor one of its commands knows."""
        known = set(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known.update(*(command._option_string_actions for command in action.choices.values()))
        for word in words:
            flag = word.split("=")[0]
            if flag.startswith("-") and flag not in (*known, "--"):
                raise UserError(unknown_flag(flag, sorted(name.lstrip("-") for name in known)))


def unknown_flag(flag: str, names: Sequence[str]) -> str:
    """The message for a flag that is none of ``names`` (without dashes)."""
    near = nearest_flag(flag.lstrip("-").replace("-", "_"), names) or nearest(flag.lstrip("-"), names)
    return f"unknown flag {flag}" + (f"; did you mean --{near}?" if near else "; see --help")


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The known name closest to a mistyped one, or None."""
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.6)), None)


def nearest_flag(name: str, names: Sequence[str]) -> str | None:
    """The known flag closest to ``name``, else one that begins with it, as ``output_dir`` does with ``out``."""
    return nearest(name, names) or next((known for known in names if name.startswith(known)), None)


def help_asked() -> bool:
    """Whether the command line asks for help, which scripts print before their slow imports."""
    return not {"-h", "--help"}.isdisjoint(sys.argv[1:])


def run_cli(main: Callable[[], int | None] | Callable[[], None]) -> NoReturn:
    """Run ``main`` and exit with its status.

    ``UserError`` and ``RunError`` are printed as one line on stderr, without a traceback; the status is 2 or 1. It is
    130 after Ctrl-C, and 75 for a stopped run that can be resumed. Characters that the terminal cannot show are written
    as escapes.
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
