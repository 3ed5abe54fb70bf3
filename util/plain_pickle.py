"""Pickles from strangers, read without running anything that they name.

A pickle is a program: it may name any function of any module and have it called. Here only its own containers, texts
and numbers are made; a pickle that names anything at all is refused.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from util.errors import UserError


class _Foreign(pickle.UnpicklingError):
    """The pickle names a class or function, or an object outside of itself."""


class _PlainUnpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """The reader in Python, three times slower: the one in C reserves memory for whatever number a file names."""

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch}  # type: ignore[attr-defined]

    def load_bytearray8(self) -> NoReturn:
        """It would reserve memory, too."""
        raise _Foreign("a byte array")

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _Foreign(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Foreign(f"the outside object {str(pid)[:40]!r}")


def read_plain_pickle(path: str | Path, what: str) -> Any:
    """Read a pickle of plain containers, texts and numbers, of any protocol, Python 2's too.

    Python 2's byte strings become texts: they are UTF-8, or, in a file where one is not, all of them latin-1.

    Args:
        path: the file.
        what: what it should hold, for the message ("the referring expressions of RefCOCO").

    Raises:
        UserError: the file is missing, unreadable, damaged, or names classes or functions.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; it should hold {what}") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({what}): {error.strerror or error}") from error
    try:
        try:
            return _load(content, "utf-8")
        except UnicodeDecodeError:
            return _load(content, "latin-1")
    except _Foreign as error:
        raise UserError(
            f"{path} ({what}) is refused: it should hold plain containers, texts and numbers, and names {error}; "
            "fetch the file from its publisher again"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} ({what}) is not a complete pickle file ({reason}); download it again") from error


def _load(content: bytes, encoding: str) -> Any:
    return _PlainUnpickler(io.BytesIO(content), encoding=encoding).load()
