"""Masks of Ref-YouTube-VOS as its challenge takes them: PNG files, the zip, and a check of either.

``Annotations/<video>/<exp_id>/<frame>.png``, 8-bit greyscale, 0 or 255, at the original size; the zip has
``Annotations`` at its root.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image

from util.errors import UserError
from util.io import atomic_path
from util.mask_files import BROKEN_IMAGE

ROOT = "Annotations"

_BIT_DEPTH, _COLOUR_TYPE = 24, 25  # bytes of a PNG file
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # one date for all files: the same masks make the same zip


class SegmentedVideo(Protocol):
    """What is needed of a video; ``datasets.Video`` is one."""

    @property
    def name(self) -> str:
        """Its folder's name."""

    @property
    def frame_paths(self) -> Sequence[Path]:
        """Every frame, in order of time; the stem is the frame's name."""

    @property
    def expressions(self) -> Mapping[str, str]:
        """Expression id → sentence."""


def mask_path(folder: Path, video: str, exp_id: str, frame: str) -> Path:
    """Where the mask of one frame lies below an output folder."""
    return folder / ROOT / video / exp_id / f"{frame}.png"


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask, bool ``[H, W]``, as an 8-bit greyscale PNG of 0 and 255, beside and renamed.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            Image.fromarray(mask.astype(np.uint8) * 255).save(temporary)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another output folder") from error


def require_frames(videos: Iterable[SegmentedVideo]) -> None:
    """Refuse to begin when a frame is missing that would stop the run hours later.

    Raises:
        UserError: the first missing frame, and how many there are.
    """
    missing = [path for video in videos for path in video.frame_paths if not path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"frame {missing[0]} is missing{more}; the expressions file lists it (see docs/data.md)")


def frame_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image, from its header alone.

    Raises:
        UserError: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise UserError(f"frame {path} is missing; the annotations list it (see docs/data.md)") from error
    except BROKEN_IMAGE as error:
        raise UserError(f"frame {path} is broken ({error}); fetch or extract this file again") from error


def is_written(folder: Path, video: SegmentedVideo, exp_id: str) -> bool:
    """Whether every frame of an expression has a sound mask of the video's size below ``folder``."""
    size = frame_size(video.frame_paths[0])
    for frame in video.frame_paths:
        path = mask_path(folder, video.name, exp_id, frame.stem)
        if not path.is_file():
            return False
        with path.open("rb") as file:
            if mask_fault(file, size):
                return False
    return True


def mask_fault(file: BinaryIO, size: tuple[int, int]) -> str | None:
    """What is wrong with a submitted mask ("is 64×32, not 128×64"), or None.

    Args:
        file: the PNG, open at its start.
        size: (height, width) that it must have.
    """
    content = io.BytesIO(file.read())
    header = content.getvalue()[: _COLOUR_TYPE + 1]
    try:
        with Image.open(content, formats=["PNG"]) as image:
            image.verify()  # check sums, which the decoder alone does not look at
        with Image.open(content, formats=["PNG"]) as image:
            if header[_BIT_DEPTH] != 8 or header[_COLOUR_TYPE] != 0:
                return f"is not 8-bit greyscale (mode {image.mode})"
            if (image.height, image.width) != size:
                return f"is {image.width}×{image.height}, not {size[1]}×{size[0]}"
            counts = image.histogram()
    except BROKEN_IMAGE as error:
        return f"is not a readable PNG ({error})"
    other = next((value for value in range(1, 255) if counts[value]), None)
    return None if other is None else f"holds the value {other}, not only 0 and 255"


def write_submission(folder: Path, videos: Iterable[SegmentedVideo], archive: Path) -> None:
    """Zip the masks of all expressions below ``folder``, and no other file, with ``Annotations`` at the zip's root.

    Raises:
        UserError: a mask is missing, or the zip cannot be written.
    """
    try:
        # Stored: a PNG is compressed already.
        with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target:
            for name in _expected(videos):
                target.writestr(zipfile.ZipInfo(name, _LONG_AGO), (folder / name).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; run the inference again to write it") from error
    except OSError as error:
        raise UserError(f"cannot write {archive}: {error.strerror or error}") from error


def check_submission(path: Path, videos: Iterable[SegmentedVideo]) -> list[str]:
    """Check a submission zip, or the folder that holds ``Annotations``.

    Returns:
        One sentence for each fault: a mask that is missing, of another size than its frame, not 8-bit greyscale, or
        with other values than 0 and 255; a file that is not one of the masks; a name that is in the zip twice.

    Raises:
        UserError: there is no such folder or zip, it is damaged, or a frame is missing.
    """
    if path.is_dir():
        found = {p.relative_to(path).as_posix(): 1 for p in (path / ROOT).rglob("*") if p.is_file()}
        return list(_faults(found, lambda name: (path / name).open("rb"), videos))
    try:
        with zipfile.ZipFile(path) as archive:
            found = Counter(info.filename for info in archive.infolist() if not info.is_dir())
            return list(_faults(found, lambda name: io.BytesIO(archive.read(name)), videos))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; it should be a submission zip or the folder of {ROOT}") from error
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:
        raise UserError(f"{path} is not a sound zip ({error}); write it again") from error


def _faults(
    found: Mapping[str, int], read: Callable[[str], BinaryIO], videos: Iterable[SegmentedVideo]
) -> Iterator[str]:
    size_of = cache(frame_size)  # the expressions of a video share its frames
    expected = _expected(videos)
    for name, frame in expected.items():
        if name not in found:
            yield f"{name} is missing"
            continue
        with read(name) as file:
            fault = mask_fault(file, size_of(frame))
        if fault:
            yield f"{name} {fault}"
    for name, count in found.items():
        if name not in expected:
            yield f"{name} is not the mask of any expression's frame"
        elif count > 1:
            yield f"{name} is there {count} times"


def _expected(videos: Iterable[SegmentedVideo]) -> dict[str, Path]:
    """The name of every mask in the submission → the frame that it belongs to."""
    return {
        mask_path(Path(), video.name, exp_id, frame.stem).as_posix(): frame
        for video in videos
        for exp_id in video.expressions
        for frame in video.frame_paths
    }
