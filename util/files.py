"""Files: written so that a killed run never leaves half of one, JSON, pickles, images, links, locks, and versions."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import platform
import re
import shutil
import struct
import tomllib
import uuid
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

from PIL import Image, UnidentifiedImageError

from util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
"""The root of the project."""
LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "numpy")
"""Libraries that results depend on."""
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""The errors that Pillow raises for broken or hostile image files, depending on the damaged part."""
MAX_PIXELS = 1 << 25
"""The limit of the pixels of an image or of a video's frame (8K); a larger one is refused before it is decoded."""
TOO_MANY_PIXELS = f"more than {MAX_PIXELS // 10**6} million pixels"
"""For messages about such images."""

_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}(\.\w+)?")
"""The temporary names of ``atomic_path``."""
_START = 4096  # bytes of a file that tell what an unfinished download left
_UNFINISHED = (".part", ".partial", ".crdownload", ".aria2", ".incomplete", ".download")
_held: set[int] = set()
"""Open handles of locked folders."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # ``open_image`` refuses such images


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it onto ``path`` when the block succeeds.

    A missing folder is made. If the block raises, the temporary file is removed and an older file at ``path`` stays as
    it was. The suffix of ``path`` is kept, because encoders choose their format by it.

    Raises:
        UserError: ``path`` cannot be written, or is a folder. Every ``OSError`` of the block counts as such, but for a
            ``FileNotFoundError``, which is about a file that the block reads.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:80]}.{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
    with _reported(path):
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder; remove it, or choose another output folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, which replaces ``path`` when the block succeeds.

    If the block raises, the folder is removed and ``path`` stays as it was; where renaming fails, it is copied back.

    Raises:
        UserError: something cannot be written there.
    """
    path = Path(path)
    staging = path.with_name(f".{path.name[:80]}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    old = staging.with_name(f"{staging.name}.old")
    with _reported(path):
        try:
            staging.mkdir(parents=True)
            yield staging
            if path.exists():
                path.rename(old)  # rather than removed: half a folder may be mistaken for a whole one
            staging.rename(path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if old.exists() and not path.exists():  # interrupted between the two renames
                _bring_back(old, path)
            shutil.rmtree(old, ignore_errors=True)


def _bring_back(old: Path, path: Path) -> None:
    """Move a folder back to its name, by copying where renaming fails."""
    try:
        shutil.move(old, path)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise UserError(
            f"cannot write {path}: {_reason(error)}; its earlier content is in {old}, so give that folder its name back"
        ) from error


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Report in one sentence that ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.parent.is_dir():  # about a file that the block reads
            raise
        reason = _reason(error)
        if isinstance(error, (NotADirectoryError, FileExistsError)):
            reason = "a part of its folder is a file"
        raise UserError(f"cannot write {path}: {reason}; choose another output folder") from error


def _reason(error: OSError) -> str:
    """Return why something cannot be written; of many reasons, as for a copied tree, the first."""
    first = error.args[0][0][-1] if isinstance(error, shutil.Error) and isinstance(error.args[0], list) else error
    return str(getattr(first, "strerror", None) or first)


def is_unfinished(path: Path) -> bool:
    """Whether a file has a temporary name, because the process that wrote it was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write ``content`` as JSON, beside ``path`` and renamed; in one line where ``indent`` is None.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        # The name of a folder may hold bytes that are not text; a record of it must not fail.
        temporary.write_text(text, encoding="utf-8", errors="replace")


def reason_of(path: str | Path, reason: BaseException | str) -> str:
    """Return why a file cannot be read: a pointer, web page or unfinished download, or the first line of ``reason``."""
    path = Path(path)
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError:
        start = b"unknown"
    unfinished = next((name for end in _UNFINISHED if (name := path.with_name(path.name + end)).exists()), None)
    if unfinished is not None:
        return f"its download is not finished, as {unfinished.name} beside it shows; continue it"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if start.startswith((b"/annex/", b"../.git/annex/")):
        return "it is a git-annex pointer, not the file itself; run `git annex get`"
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page, which a failed download leaves"
    if not start.strip(b"\0"):
        return "it is empty or begins with zeros, as an unfinished download does"
    return next((line.strip() for line in str(reason).splitlines() if line.strip()), type(reason).__name__)


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what the file should hold, for the message ("the expressions of the valid split").

    Raises:
        UserError: the file is missing, unreadable or not JSON.
    """
    content = _read_bytes(path, what)  # outside of the block: a UserError is a ValueError
    try:
        text = content.decode("utf-8-sig")  # without the mark that Windows editors write
        value = json.loads(text)
        if "\\ud" in text.lower():  # maybe half of a surrogate pair, which no file name or tokenizer accepts
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} ({what}) is not valid JSON: {reason_of(path, error)}") from error


def require_regular(path: Path, limit: int | None = None) -> None:
    """Raise an ``OSError`` if a path is a device or a pipe, which may have no end, or has more than ``limit`` bytes.

    A missing file and a folder pass: opening them reports what is wrong.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file")
    if limit is not None and path.is_file() and path.stat().st_size > limit:
        raise OSError(errno.EFBIG, f"it has {path.stat().st_size} bytes, and at most {limit} are read")


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """Read a file; raises an ``OSError`` as ``require_regular`` does."""
    require_regular(path, limit)
    return path.read_bytes()


def open_image(source: Path | BinaryIO, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Read the header of an image; Pillow decodes the pixels when they are first needed.

    Args:
        source: the file.
        formats: the formats that are accepted, by Pillow's names; None: all.

    Raises:
        BROKEN_IMAGE: it cannot be read, is a device or a pipe, or has more than ``MAX_PIXELS`` pixels.
    """
    if isinstance(source, Path):
        require_regular(source)
    try:
        image = Image.open(source, formats=formats)
        if image.width * image.height > MAX_PIXELS:
            image.close()
            raise Image.DecompressionBombError
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError("it is damaged or not an image") from error
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(f"it has {TOO_MANY_PIXELS}") from error
    return image


def _read_bytes(path: str | Path, what: str) -> bytes:
    try:
        return read_regular(Path(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; it should hold {what}") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({what}): {error.strerror or error}") from error


def bring_file(source: Path, target: Path, copy: bool) -> None:
    """Link or copy a file, unless the target exists already.

    Args:
        source: the file, which is only read.
        target: the new path; its folder is made.
        copy: copy instead of making a symbolic link. A file system without links always gets a copy.

    Raises:
        UserError: it cannot be copied, or the target cannot be written.
    """
    if target.is_file():
        same = target.samefile(source)
        linked = target.is_symlink()
        if (same and not (copy and linked)) or (not same and target.stat().st_size == source.stat().st_size):
            return
    with atomic_path(target) as temporary:
        if not copy:
            try:
                temporary.symlink_to(source.resolve())
                return
            except OSError:  # a file system without links
                pass
        try:
            shutil.copyfile(source, temporary)
        except OSError as error:
            raise UserError(f"cannot copy {source} to {target}: {error.strerror or error}") from error


@contextmanager
def sole_run(folder: str | Path, active: bool = True) -> Iterator[None]:
    """Refuse a second run in the same folder while the block runs.

    The lock is on the folder itself (``flock``): it leaves no file, and ends with the process, even a killed one. Where
    folders cannot be locked, as on some network disks, nothing is refused.

    Args:
        folder: made if it is missing, and removed again if nothing was written.
        active: False locks nothing, in processes that share the main one's folder.

    Raises:
        UserError: another run holds the lock.
    """
    folder = Path(folder)
    if not active:
        yield
        return
    made = False
    with suppress(OSError):  # the first write reports why it fails
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
    """Lock a folder; None where folders cannot be locked.

    Raises:
        UserError: another process holds the lock.
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
            f"another run is writing to {folder}; wait for it to end, stop it, or choose another output folder"
        ) from error
    except OSError:
        os.close(handle)
        return None
    _held.add(handle)
    return handle


def _let_go() -> None:
    """Close the lock in a forked process, so that it ends with the process that took it."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def project_version() -> str:
    """The version of this project in ``pyproject.toml``; "unknown" where the file is missing."""
    file = ROOT / "pyproject.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"] if file.is_file() else "unknown"


# Untrusted pickles. A pickle is a program that can call any function of any module. This reader only builds containers,
# strings and numbers, and refuses a pickle that names a class or function.


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
    content = _read_bytes(path, what)
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
        reason = reason_of(path, error)
        raise UserError(f"{path} ({what}) is not a complete pickle file ({reason}); download it again") from error


def _load(content: bytes, encoding: str) -> Any:
    return _PlainUnpickler(io.BytesIO(content), encoding=encoding).load()
