"""Reading masks from PNG files: object ids (palette) and single masks (0 and 255)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from util.errors import UserError

# What Pillow raises on broken or hostile image files, by the chunk that is broken.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def object_palette() -> list[int]:
    """The customary colours of object ids in DAVIS and YouTube-VOS masks: 256 × RGB, flat.

    The bits of an id, three at a time from the lowest, are the high bits of red, green and blue.
    """
    return [
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for index in range(256)
        for channel in range(3)
    ]


def _missing(path: Path, others: int = 0) -> UserError:
    count = f" (and {others} more)" if others else ""
    return UserError(f"{path} is missing{count}; every frame needs a mask there")


def require_folder(folder: Path, holds: str) -> None:
    """Refuse a folder that does not exist; ``holds`` says what it must hold."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; it must hold {holds}")


def require_masks(paths: Iterable[Path]) -> None:
    """Find out before the work starts, not after minutes of it, that mask files are missing.

    Raises:
        UserError: names the first missing file and says how many more are missing.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise _missing(missing[0], len(missing) - 1)


def _read_plane(path: Path) -> np.ndarray:
    """One 8-bit plane ``[H, W]``, uint8; palette files give their indices, 1-bit files 0 and 1."""
    try:
        content = BytesIO(path.read_bytes())
        # Decoding alone overlooks many a flipped bit, which would be scored as a mask; the check
        # sums do not, at 5 % of the decoder's time.
        with Image.open(content, formats=["PNG"]) as image:
            image.verify()
        with Image.open(content, formats=["PNG"]) as image:
            if image.mode not in ("P", "L", "1"):
                raise UserError(
                    f"{path} is an image of mode {image.mode}; a mask must be an 8-bit palette or greyscale PNG"
                )
            return np.array(image, dtype=np.uint8)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise _missing(path) from error
    except BROKEN_IMAGE as error:
        reason = getattr(error, "strerror", None) or "it is broken or no PNG"
        raise UserError(f"cannot read the mask {path}: {reason}; write the file again") from error


def _require_size(path: Path, mask: np.ndarray, size: tuple[int, int] | None) -> None:
    if size is not None and mask.shape != size:
        raise UserError(
            f"{path} is {mask.shape[1]}×{mask.shape[0]} pixels, but its frame is {size[1]}×{size[0]}; "
            "masks must have the original size of their video"
        )


def read_index_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask whose pixel value is the object id.

    Args:
        path: a palette or 8-bit greyscale PNG.
        size: (height, width) that the mask must have, if it matters.

    Returns:
        uint8 ``[H, W]``: 0 is background, 255 is void in the DAVIS files.

    Raises:
        UserError: the file is missing, broken, of another mode or of another size.
    """
    mask = _read_plane(path)
    _require_size(path, mask, size)
    return mask


def read_binary_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask of one object: 0 is background, 255 is the object.

    Args:
        path: an 8-bit PNG that holds nothing but 0 and 255 (or a 1-bit PNG).
        size: (height, width) that the mask must have, if it matters.

    Returns:
        bool ``[H, W]``.

    Raises:
        UserError: the file is missing, broken, of another mode or size, or holds other values.
    """
    plane = _read_plane(path)
    _require_size(path, plane, size)
    mask = plane == 255
    if cv2.countNonZero(plane) != cv2.countNonZero(mask.view(np.uint8)):
        other = int(plane[(plane != 0) & ~mask][0])
        raise UserError(f"{path} holds the value {other}; the mask of an expression must hold only 0 and 255")
    return mask
