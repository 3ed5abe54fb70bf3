"""Files that all datasets share: folders, frames, video files, object masks and COCO segmentations.

Every reader raises a ``UserError`` of one sentence that names the missing or broken file.

torchvision decodes frames: it is four times as fast as Pillow on 480p JPEG files and, unlike OpenCV, refuses a
truncated file instead of returning a half-grey image. Pillow decodes masks, since only Pillow returns the palette
indices of a PNG.

PyTorch, PyAV and pycocotools take seconds to import, so functions import them when they are called: commands that only
read names and folders start at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from datasets.predictions import read_index_mask
from util.errors import UserError
from util.files import BROKEN_IMAGE

if TYPE_CHECKING:
    from torch import Tensor

DATA_PAGE = "docs/data.md"
LONGEST_NAME = 120  # bytes; file systems take 255, and a file name may hold two of these and a suffix
MAX_SIDE = 1 << 14  # pixels; a larger image means that the annotations are damaged

# Names become parts of paths, including paths that are written: one plain component that cannot leave its folder.
_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]+")
_SHIFT = 48  # compressed run lengths use characters from "0" on: 5 bits each, and one bit for "continued"


def require_folder(path: Path, holds: str) -> Path:
    """Return ``path`` if it is a folder.

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


def folder_names(parent: Path) -> set[str]:
    """Return the names of the folders in ``parent``."""
    return {path.name for path in parent.iterdir() if path.is_dir()}


def require_video_folders(parent: Path, videos: Iterable[str]) -> None:
    """Raise a ``UserError`` that names the first of ``videos`` without a folder in ``parent`` and counts the others."""
    present = folder_names(parent)
    missing = [name for name in videos if name not in present]
    if missing:
        more = f" (and those of {len(missing) - 1} more videos)" if len(missing) > 1 else ""
        raise UserError(f"{parent / missing[0]} is missing{more}, but the expressions list it (see {DATA_PAGE})")


def require_files(paths: Sequence[Path], lister: Path) -> None:
    """Raise a ``UserError`` that names the first file or folder that does not exist and counts the others.

    Args:
        paths: the files and folders.
        lister: the file that lists them, for the message.
    """
    folders = {path.parent for path in paths}
    present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    missing = [path for path in dict.fromkeys(paths) if path not in present]
    if missing:
        raise UserError(f"{missing[0]} is missing{and_more(missing)}, but {lister} lists it (see {DATA_PAGE})")


def and_more(items: Sequence[Any]) -> str:
    """Return " (and N more)" for a message that names the first of ``items``; empty if there is one item."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def plain_name(name: Any, path: Path, what: str) -> str:
    """Return ``name`` if it can be one component of a path.

    Args:
        name: a value of the file ``path``.
        path: the file, for the message.
        what: what the name belongs to, for the message.

    Raises:
        UserError: it is not text, holds slashes or is too long.
    """
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

    if not path.is_file():
        raise UserError(f"frame {path} is missing; the annotations list it (see {DATA_PAGE})")
    try:
        with Image.open(path):  # only its header, which may declare more pixels than fit in memory
            pass
    except Image.DecompressionBombError as error:
        raise UserError(f"frame {path} is broken ({error}); fetch or extract this file again") from error
    except BROKEN_IMAGE:
        pass  # the decoder below reports the reason
    try:
        return decode_image(read_file(str(path)), mode=ImageReadMode.RGB)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"frame {path} is broken ({reason}); fetch or extract this file again") from error


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


@dataclass(frozen=True)
class Video:
    """A video on disk and the sentences to segment in it.

    Attributes:
        name: its folder's name.
        frame_paths: every frame, in temporal order; the stem is the frame's name.
        expressions: expression id → normalised sentence.
    """

    name: str
    frame_paths: list[Path]
    expressions: dict[str, str]


def load_clip(
    frame_paths: Sequence[Path], short_side: int = 360, long_side: int = 640
) -> tuple[Tensor, tuple[int, int]]:
    """Read some frames of a video at evaluation size.

    Each frame is resized as it is read, so that memory never holds all originals.

    Returns:
        frames float32 ``[T, 3, h, w]``, ImageNet-normalised, and the size on disk (H0, W0).

    Raises:
        UserError: a frame is missing or broken, or the frames differ in size.
    """
    import torch

    from util.preprocessing import normalise, resize_frames

    first = read_frame(frame_paths[0])
    frames = [resize_frames(first, short_side, long_side)]
    for path in frame_paths[1:]:
        frame = read_frame(path)
        require_same_size(path, frame, frame_paths[0], first)
        frames.append(resize_frames(frame, short_side, long_side))
    return normalise(torch.stack(frames)), (first.shape[1], first.shape[2])


def decode_segmentation(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Decode a segmentation of a COCO file: polygons, or compressed or uncompressed run lengths.

    pycocotools draws polygons, so that masks equal the benchmark's pixel by pixel. Run lengths are decoded here,
    because pycocotools returns uninitialised memory if they end too early.

    Args:
        segmentation: its JSON value: a list of polygons ``[x0, y0, x1, y1, …]`` in pixels, whose union counts, or
            ``{"size": [height, width], "counts": …}`` with the runs of a column-major mask, background first, as a
            list of numbers or compressed to text.
        height, width: of the image, in pixels.
        where: the file and the entry, for messages.

    Returns:
        bool ``[height, width]``.

    Raises:
        UserError: it has another form or size, or is damaged.
    """
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in (height, width)):
        raise UserError(f"{where} is of an image of {width!r}×{height!r}; its sides should be 1 to {MAX_SIDE} pixels")
    if isinstance(segmentation, list):
        segmentation = _draw(segmentation, height, width, where)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise UserError(f"{where} has no 'segmentation' of COCO's form: a list of polygons, or run lengths")
    if segmentation.get("size") != [height, width]:
        raise UserError(
            f"{where} has a mask of size {segmentation.get('size')!r} (height, width), and its image is of "
            f"{[height, width]}; take both from one release of the dataset"
        )
    runs = _runs(segmentation["counts"], where)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise UserError(f"{where} has run lengths that do not add up to its image's {height * width} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _draw(polygons: list[Any], height: int, width: int, where: str) -> dict[str, Any]:
    """Draw the union of polygons as compressed run lengths."""
    reach = 2 * max(height, width)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise UserError(f"{where} has a polygon that is no list of at least three x, y pairs")
        if not all(type(value) in (int, float) and abs(value) <= reach for value in polygon):
            raise UserError(f"{where} has a polygon with a corner that is no number, or far outside of its image")
    if not polygons:
        raise UserError(f"{where} has an empty list of polygons; its object has no outline")
    from pycocotools import mask as coco

    drawn = coco.merge(coco.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": drawn["counts"].decode("ascii")}


def _runs(counts: Any, where: str) -> list[int]:
    """Return run lengths of either form as a list."""
    if isinstance(counts, str):
        return _decompress(counts, where)
    if not isinstance(counts, list) or not all(type(run) is int for run in counts):
        raise UserError(f"{where} has run lengths that are neither a list of whole numbers nor text")
    return counts


def _decompress(text: str, where: str) -> list[int]:
    """Decompress COCO's run lengths: from the third on, each value is the difference from the value two before it."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - _SHIFT
        if not 0 <= bits < 64 or shift > 30:
            raise UserError(f"{where} has damaged run lengths: {text[:40]!r} is no text of compressed ones")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError(f"{where} has damaged run lengths: its text ends within a number")
    return runs
