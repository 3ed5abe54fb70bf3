"""User errors, exit statuses, and how a command ends: by its result, an error or a signal."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

USER_ERROR_STATUS = 2
REQUEUE_STATUS = 75  # stopped by a signal with its work saved; the same command with --resume auto continues
SIGNAL_STATUS = 128  # shells report 128 + the number of the signal that ended a process
CLOSED_PIPE_STATUS = 141  # as of a program that SIGPIPE ends
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
        # Unknown flags first: an argument that one of them should set is missing too.
        self._refuse(word for word in words if word.startswith("--"))
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

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Find no abbreviations: "-house" is not ``-h`` with a value."""
        return []

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


_OTHER_NAMES = {"checkpoint": "resume", "ckpt": "resume", "gpu": "device", "cpu": "device"}
"""What other programs call some options."""


def unknown_flag(flag: str, names: Sequence[str]) -> str:
    """The message for a flag that is none of ``names`` (without dashes)."""
    plain = flag.lstrip("-")
    name = plain.replace("-", "_")
    begins = next((known for known in names if name.startswith(known)), None)  # as ``output_dir`` begins with ``out``
    other = _OTHER_NAMES.get(name)
    near = other if other in names else nearest(name, names) or begins or nearest(plain, names)
    return f"unknown flag {flag}" + (f"; did you mean --{near}?" if near else "; see --help")


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The known name closest to a mistyped one, or None."""
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.6)), None)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, line separators, and marks that reverse the direction of text."""


def printable(text: object, kept: str = "") -> str:
    """Return text with control characters escaped: names of files may hold commands for the terminal.

    Args:
        text: that is printed.
        kept: control characters that stay; without any, the result is one line.
    """
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in kept else found[0].encode("unicode_escape").decode(), str(text)
    )


def help_asked() -> bool:
    """Whether the command line asks for help. Scripts print it before imports that take seconds."""
    return not {"-h", "--help"}.isdisjoint(sys.argv[1:])


def run_cli(main: Callable[[], Any]) -> NoReturn:
    """Run a script's ``main`` and exit with the status that it returns, or 0.

    ``UserError`` (status 2), a path without permission (2) and ``RunError`` (1) are printed as one line on stderr,
    without a traceback. Ctrl-C ends with status 130. Characters that the terminal's encoding lacks are escaped, as are
    control characters on stdout: names in files may hold commands for the terminal. Output that cannot be written does
    not end the work, but the status is then 141 if its reader has gone (``| head``), and 1 on a full disk.
    """
    with _lasting_stream("stdout") as output, _lasting_stream("stderr"):
        try:
            result = main()
            status = result if isinstance(result, int) else 0
        except (UserError, RunError) as error:
            print(f"error: {printable(error)}", file=sys.stderr)
            status = USER_ERROR_STATUS if isinstance(error, UserError) else 1
        except PermissionError as error:
            if error.filename is None:
                raise
            print(f"error: no permission to use {printable(error.filename)}; give another path", file=sys.stderr)
            status = USER_ERROR_STATUS
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            status = SIGNAL_STATUS + signal.SIGINT
        except SystemExit as end:
            if end.code:
                raise
            status = 0
        sys.stdout.flush()
        if not status and output is not None and output.lost is not None:
            if isinstance(output.lost, BrokenPipeError):
                sys.exit(CLOSED_PIPE_STATUS)
            print(f"error: cannot write to the standard output: {output.lost.strerror}", file=sys.stderr)
            sys.exit(1)
        sys.exit(status)


_BAR = re.compile(r"\r|(\x1b\[A)+\Z")
"""How a progress bar replaces its line, and returns to the bar above it."""


class _PlainText(io.TextIOWrapper):
    """The standard output: text, line ends and progress bars, but no other commands for the terminal."""

    def write(self, text: str) -> int:
        """Write text with control characters escaped; return its length."""
        start = found[0] if (found := _BAR.match(text)) else ""
        super().write(start + printable(text.removeprefix(start), kept="\n\t"))
        return len(text)


class _LastingFile(io.FileIO):
    """The file of a standard stream. What cannot be written is dropped.

    Attributes:
        lost: the first error, or None.
    """

    lost: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes, or drop them."""
        try:
            return super().write(content)
        except OSError as error:
            self.lost = self.lost or error
            return memoryview(content).nbytes


@contextmanager
def _lasting_stream(name: str) -> Iterator[_LastingFile | None]:
    """Make ``sys.stdout`` or ``sys.stderr`` a stream whose errors end nothing; yield its file, if it is one."""
    earlier, file = getattr(sys, name), None
    with ExitStack() as stack:
        if earlier is None:  # closed by the shell (``>&-``)
            stream: Any = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        elif isinstance(earlier, io.TextIOWrapper):
            earlier.flush()
            earlier.reconfigure(errors="backslashreplace")
            stream = earlier
            with suppress(io.UnsupportedOperation):  # a stream in memory
                file = _LastingFile(earlier.fileno(), "w", closefd=False)
                buffer: Any = file if earlier.write_through else io.BufferedWriter(file)
                # Progress bars on stderr move the cursor.
                stream = (_PlainText if name == "stdout" else io.TextIOWrapper)(
                    buffer,
                    earlier.encoding,
                    "backslashreplace",
                    line_buffering=earlier.line_buffering,
                    write_through=earlier.write_through,
                )
        else:
            stream = earlier
        setattr(sys, name, stream)
        try:
            yield file
        finally:
            stream.flush()
            setattr(sys, name, earlier)


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
