"""Command lines whose mistakes are told in one sentence, with the nearest name that is known."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from util.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse that reports mistakes like the rest of the project, and knows no abbreviations of flags."""

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
        self._refuse(word for word in words if word.startswith("--"))  # first: what it was to give is missing, too
        found, unknown = self.parse_known_args(words, namespace)
        self._refuse(unknown)
        if unknown:
            raise UserError(f"unexpected argument {unknown[0]!r}; see --help")
        return found

    def error(self, message: str) -> NoReturn:
        """Tell a mistake.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message.removeprefix('argument ')}; see --help")

    def _refuse(self, words: Iterable[str]) -> None:
        """Raise a ``UserError`` for the first flag that neither this parser nor one of its commands knows."""
        known = set(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known.update(*(command._option_string_actions for command in action.choices.values()))
        for word in words:
            flag = word.split("=")[0]
            if flag.startswith("-") and flag not in (*known, "--"):
                raise UserError(unknown_flag(flag, sorted(name.lstrip("-") for name in known)))


def unknown_flag(flag: str, names: Sequence[str]) -> str:
    """What is said of a flag that is none of ``names``, which are without dashes."""
    near = nearest_flag(flag.lstrip("-").replace("-", "_"), names) or nearest(flag.lstrip("-"), names)
    return f"unknown flag {flag}" + (f"; did you mean --{near}?" if near else "; see --help")


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The known name that a mistyped one most resembles; None where none does."""
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.6)), None)


def nearest_flag(name: str, names: Sequence[str]) -> str | None:
    """The same for a flag; else one that is the first part of it, as ``out`` is of ``output_dir``."""
    return nearest(name, names) or next((known for known in names if name.startswith(known)), None)
