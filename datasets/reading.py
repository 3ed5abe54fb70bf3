"""Reading images and masks from disk, so that a bad file is one clear sentence that names it.

Frames are decoded by torchvision: four times faster than Pillow on 480p JPEG, and, unlike OpenCV, it refuses a
truncated file instead of returning a half-grey picture. Masks are decoded by Pillow, the only one of the three that
hands out the palette indices of a PNG. torchvision takes seconds to import, so it is imported where a frame is read:
the commands that only check names and folders do without.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from datasets.predictions import read_index_mask
from util.errors import UserError
from util.io import BROKEN_IMAGE

if TYPE_CHECKING:
    from torch import Tensor

DATA_PAGE = "docs/data.md"

LONGEST_NAME = 120  # bytes; file systems take 255, and a name may hold two of these and a suffix

# Names become parts of paths, also of files that are written: one plain component, no way out of the folder.
_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]+")


def require_folder(path: Path, holds: str) -> Path:
    """Return ``path``.

    Args:
        path: a folder of a dataset.
        holds: what it should hold, for the message.

    Raises:
        UserError: it is missing or not a folder.
    """
    if not path.is_dir():
        state = "is not a folder" if path.exists() else "is missing"
        raise UserError(f"{path} {state}; it should hold {holds} (see {DATA_PAGE})")
    return path


def plain_name(name: Any, path: Path, what: str) -> str:
    """Return ``name``, which the file ``path`` gives to ``what``; raise a ``UserError`` if it is no part of a path."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(
            f"{path}: {what} is named {name!r:.80}; a name is text without slashes, of at most {LONGEST_NAME} bytes"
        )
    return name


def read_frame(path: Path) -> Tensor:
    """Read an RGB frame as uint8 ``[3, H, W]``.

    Raises:
        UserError: the file is missing, truncated or not an image.
    """
    from torchvision.io import ImageReadMode, decode_image, read_file

    _require_file(path, "frame")
    try:
        with Image.open(path):  # its header alone, which may promise more pixels than memory holds
            pass
    except Image.DecompressionBombError as error:
        raise UserError(f"frame {path} is broken ({error}); fetch or extract this file again") from error
    except BROKEN_IMAGE:
        pass  # the decoder says why
    try:
        return decode_image(read_file(str(path)), mode=ImageReadMode.RGB)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"frame {path} is broken ({reason}); fetch or extract this file again") from error


def read_object_ids(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Read a mask whose value is the object id (palette or 8-bit grey PNG) as uint8 ``[H, W]``, 0 = background.

    Args:
        path: the file.
        size: (H, W) of the frame it belongs to; not checked if None.

    Raises:
        UserError: the file is missing, broken, of another kind (colour, 16 bits) or of another size than its frame.
    """
    import torch

    return torch.from_numpy(read_index_mask(path, size))


def read_frames(paths: list[Path]) -> list[Tensor]:
    """Read frames of one video, each uint8 ``[3, H, W]``; a path that occurs again is read once.

    Raises:
        UserError: a frame is missing or broken, or the frames differ in size.
    """
    frames = {path: read_frame(path) for path in dict.fromkeys(paths)}
    first = paths[0]
    for path, frame in frames.items():
        require_same_size(path, frame, first, frames[first])
    return [frames[path] for path in paths]


def require_same_size(path: Path, frame: Tensor, other_path: Path, other: Tensor) -> None:
    """Raise a ``UserError`` if two frames ``[3, H, W]`` of one video differ in size."""
    if frame.shape != other.shape:
        sizes = " and ".join(f"{image.shape[2]}×{image.shape[1]}" for image in (frame, other))
        raise UserError(f"frames {path} and {other_path} differ in size ({sizes}); a video has frames of one size")


def _require_file(path: Path, kind: str) -> None:
    if not path.is_file():
        raise UserError(f"{kind} {path} is missing; the annotations list it (see {DATA_PAGE})")
