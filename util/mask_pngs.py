"""Masks as they are written: PNG files of 0 and 255 or of object ids, and what can be wrong with one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from util.errors import UserError
from util.files import atomic_path
from util.mask_files import BROKEN_IMAGE, object_palette

_BIT_DEPTH, _COLOUR_TYPE = 24, 25  # bytes of a PNG file
_GREY, _PALETTE = 0, 3  # colour types


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask, bool ``[H, W]``, as an 8-bit greyscale PNG of 0 and 255, beside and renamed.

    Raises:
        UserError: the file cannot be written.
    """
    _write(path, Image.fromarray(mask.astype(np.uint8) * 255))


def write_grey(path: Path, plane: np.ndarray) -> None:
    """Write a plane, uint8 ``[H, W]``, as an 8-bit greyscale PNG, beside and renamed.

    Raises:
        UserError: the file cannot be written.
    """
    _write(path, Image.fromarray(plane))


def write_index_mask(path: Path, ids: np.ndarray) -> None:
    """Write object ids, uint8 ``[H, W]``, as an 8-bit palette PNG in the customary colours, beside and renamed.

    Raises:
        UserError: the file cannot be written.
    """
    image = Image.fromarray(ids)
    image.putpalette(object_palette())
    _write(path, image)


def mask_fault(file: BinaryIO, size: tuple[int, int]) -> str | None:
    """What is wrong with a mask of one object ("is 64×32, not 128×64"), or None.

    Args:
        file: the PNG, open at its start; it must be 8-bit greyscale and hold 0 and 255 only.
        size: (height, width) that it must have.
    """
    counts = _histogram(file, size, _GREY, "8-bit greyscale")
    if isinstance(counts, str):
        return counts
    other = next((value for value in range(1, 255) if counts[value]), None)
    return None if other is None else f"holds the value {other}, not only 0 and 255"


def index_fault(file: BinaryIO, size: tuple[int, int], highest: int) -> str | None:
    """What is wrong with a mask of object ids, or None.

    Args:
        file: the PNG, open at its start; it must have an 8-bit palette.
        size: (height, width) that it must have.
        highest: the highest id that it may hold.
    """
    counts = _histogram(file, size, _PALETTE, "an 8-bit palette image")
    if isinstance(counts, str):
        return counts
    other = next((value for value in range(highest + 1, 256) if counts[value]), None)
    return None if other is None else f"holds the id {other}, and the video's highest is {highest}"


def _histogram(file: BinaryIO, size: tuple[int, int], colour_type: int, kind: str) -> list[int] | str:
    """How often each value occurs, or what is wrong with the file."""
    content = io.BytesIO(file.read())
    header = content.getvalue()[: _COLOUR_TYPE + 1]
    try:
        with Image.open(content, formats=["PNG"]) as image:
            image.verify()  # check sums, which the decoder alone does not look at
        with Image.open(content, formats=["PNG"]) as image:
            if header[_BIT_DEPTH] != 8 or header[_COLOUR_TYPE] != colour_type:
                return f"is not {kind} (mode {image.mode})"
            if (image.height, image.width) != size:
                return f"is {image.width}×{image.height}, not {size[1]}×{size[0]}"
            return image.histogram()
    except BROKEN_IMAGE as error:
        return f"is not a readable PNG ({error})"


def _write(path: Path, image: Image.Image) -> None:
    try:
        with atomic_path(path) as temporary:
            image.save(temporary)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another output folder") from error
