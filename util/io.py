"""Reading and writing files so that a killed run never leaves half of one."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from util.errors import UserError

# What Pillow raises for broken or hostile image files, depending on the chunk that is broken.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}(\.\w+)?")
"""The names that ``atomic_path`` gives."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape of a half of a character, of which JSON needs two for one beyond 16 bits."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` when the block succeeds.

    The folder is made if it is missing. If the block raises, the temporary file is removed and
    an older file at ``path`` stays as it was. The suffix of ``path`` is kept, because encoders
    choose their format by it.

    Raises:
        UserError: the folder cannot be made or written, or ``path`` is a folder itself.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder; remove it, or choose another output folder")
        path.parent.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError) as error:
        raise UserError(f"cannot write {path}: a part of its folder is a file; choose another output folder") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another output folder") from error
    temporary = path.with_name(f".{path.stem[:80]}.{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except PermissionError as error:
        raise UserError(f"cannot write {path}: permission denied; choose another output folder") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; it takes its name, and the place of what is there, if the block succeeds.

    If the block raises, nothing is left of it, and ``path`` stays as it was.

    Raises:
        UserError: something cannot be written there.
    """
    path = Path(path)
    staging = path.with_name(f".{path.name[:80]}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    old = staging.with_name(f"{staging.name}.old")
    try:
        try:
            staging.mkdir(parents=True)
        except (NotADirectoryError, FileExistsError) as error:
            raise UserError(
                f"cannot write {path}: a part of its folder is a file; choose another output folder"
            ) from error
        yield staging
        if path.exists():
            path.rename(old)  # not removed first: half of a folder may be taken for something else
        staging.rename(path)
    except OSError as error:
        first = error.args[0][0][-1] if isinstance(error, shutil.Error) else error  # that of many, of a copied tree
        reason = getattr(first, "strerror", None) or first
        raise UserError(f"cannot write {path}: {reason}; choose another output folder") from error
    finally:
        if old.exists() and not path.exists():  # broken off between the two renamings
            old.rename(path)
        for left in (staging, old):
            shutil.rmtree(left, ignore_errors=True)


def is_unfinished(path: Path) -> bool:
    """Whether a file has a temporary name: a process was killed while it wrote it."""
    return _TEMPORARY.fullmatch(path.name) is not None


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write ``content`` as JSON, indented or, with ``indent`` None, in one line; beside and renamed.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    try:
        with atomic_path(path) as temporary:
            # A folder's name may be bytes that are no text; a record of it is no reason to fail.
            temporary.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another output folder") from error


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what it should hold, for the message ("the expressions of the valid split").

    Raises:
        UserError: the file is missing, unreadable or not JSON, or holds a half of a character.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if _HALF.search(text):  # can be part of a pair, and of other text
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; it should hold {what}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({what}): {error}") from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path} ({what}) holds half of a character, such as \\ud83d without the other half; write it in UTF-8"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path} ({what}) is nested too deeply; it is damaged or another file") from error
    except ValueError as error:  # a number of thousands of digits, too
        raise UserError(f"{path} ({what}) is not valid JSON: {error}") from error
