"""Reads untrusted pickle files without running code.

A pickle is a program that can call any function of any module. This reader only builds containers, strings and
numbers, and refuses a pickle that names a class or function.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from util.errors import UserError


class _Foreign(pickle.UnpicklingError):
    """The pickle refers to a class, a function or an object outside of the file."""


class _PlainUnpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Python's own reader: it is slower, but the one in C allocates as much memory as a file asks for."""

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch}  # type: ignore[attr-defined]

    def load_bytearray8(self) -> NoReturn:
        """Refuse a byte array, for which this reader would also allocate memory."""
        raise _Foreign("a byte array")

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _Foreign(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Foreign(f"the outside object {str(pid)[:40]!r}")


def read_plain_pickle(path: str | Path, what: str) -> Any:
    """Read a pickle of containers, strings and numbers, written with any protocol.

    Byte strings of Python 2 are decoded as UTF-8, or all as Latin-1 if one of them is not UTF-8.

    Args:
        path: the file.
        what: the expected content, for error messages ("the referring expressions of RefCOCO").

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
            f"{path} ({what}) is refused: it should hold only containers, strings and numbers, but names {error}; "
            "download the file from its publisher again"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} ({what}) is not a complete pickle file ({reason}); download it again") from error


def _load(content: bytes, encoding: str) -> Any:
    return _PlainUnpickler(io.BytesIO(content), encoding=encoding).load()
