"""Files that all datasets share: folders, names, frames and COCO files.

Every reader raises a ``UserError`` of one sentence that names the missing or broken file.

torchvision decodes frames: it is four times as fast as Pillow on 480p JPEG files and, unlike OpenCV, refuses a
truncated file instead of returning a half-grey image.

PyTorch and pycocotools take seconds to import, so functions import them when they are called: commands that only
read names and folders start at once.
"""

from __future__ import annotations

import codecs
import logging
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from util.errors import UserError
from util.files import BROKEN_IMAGE, MAX_PIXELS, atomic_path, open_image, read_json, read_regular, reason_of

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.evaluators import Rle

DATA_PAGE = "docs/data.md"
IMAGES, ANNOTATIONS = "JPEGImages", "Annotations"
LONGEST_NAME = 120  # bytes; file systems take 255, and a file name may hold two of these and a suffix
FRAMES_AHEAD = 36  # one clip of the benchmarks; a frame of 360×640 takes 0.7 MB
JPEG_QUALITY = 95
FRAME_FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow's names of those that torchvision decodes as one image

logger = logging.getLogger(__name__)

# Names become parts of paths, including paths that are written: one plain component that cannot leave its folder.
_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]+")

_DATASET_ENTRY = re.compile(
    r"JPEGImages|meta_expressions(_\w+\.json)?|mask_dict\.json|instances\.json|Annotations_unsupervised|ImageSets"
    r"|(davis_)?text_annotations|clips320H|Rename_Images|puppet_mask|train2014"
)
"""Files and folders that only a dataset or a split of one has."""


def require_folder(path: Path, holds: str) -> Path:
    """Return ``path`` if it is a folder.

    Args:
        holds: what it should hold, for the message.

    Raises:
        UserError: it is missing or not a folder.
    """
    if not path.is_dir():
        state = "is not a folder" if path.exists() else "is missing"
        raise UserError(f"{path} {state}; it should hold {holds} (see {DATA_PAGE})")
    return path


def require_outside_dataset(folder: Path, flag: str) -> None:
    """Raise a ``UserError`` if a folder for results is one of a dataset, whose own files they would mix with.

    That is the root of a dataset, a split, or a folder in their frames, masks or lists. ``flag`` names the option.
    """
    folder = folder.absolute()
    parts = (place for place in (folder, *folder.parents) if place.name == ANNOTATIONS or _is_of_dataset(place))
    for place in (folder, *(part.parent for part in parts)):
        if place.is_dir() and any(map(_is_of_dataset, place.iterdir())):
            raise UserError(f"{place} holds a dataset; choose another {flag} for the masks")


def _is_of_dataset(path: Path) -> bool:
    return _DATASET_ENTRY.fullmatch(path.name) is not None


def require_files(paths: Iterable[Path], lister: Path | str) -> None:
    """Raise a ``UserError`` that names the first file or folder that does not exist and counts the others.

    ``lister`` is the file that lists them, for the message.
    """
    listed = dict.fromkeys(paths)
    folders = {path.parent for path in listed}
    present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    missing = [path for path in listed if path not in present]
    if missing:
        raise UserError(f"{missing[0]} is missing{and_more(missing)}, but {lister} lists it (see {DATA_PAGE})")


def visible(paths: Iterable[Path]) -> list[Path]:
    """Return paths sorted by name, without hidden ones, such as the ``._00000.jpg`` that macOS leaves beside frames."""
    return sorted(path for path in paths if not path.name.startswith("."))


def video_folders(folder: Path) -> Path:
    """Return the folder of ``<video>/``: ``folder``, or ``folder/480p`` as in DAVIS, which some converters keep."""
    inner = folder / "480p"
    return inner if inner.is_dir() else folder


def read_text(path: Path, what: str, encoding: str = "utf-8") -> str:
    """Read a text file; ``what`` says what it should hold, for messages. A byte order mark means UTF-8.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        content = read_regular(path)
        if content.startswith(codecs.BOM_UTF8):  # Windows editors write it
            encoding = "utf-8-sig"
        return content.decode(encoding)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; it should hold {what} (see {DATA_PAGE})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({what}): {getattr(error, 'strerror', None) or error}") from error


def read_names(path: Path) -> list[str]:
    """Read the names of videos, one per line; a repeated name counts once.

    Raises:
        UserError: the file is missing, unreadable or empty.
    """
    names = read_text(path, "names of videos, one per line").split()
    if not names:
        raise UserError(f"{path} is empty; it should hold names of videos, one per line")
    return [plain_name(name, path, "a video") for name in dict.fromkeys(names)]


def and_more(items: Sequence[Any]) -> str:
    """Return " (and N more)" for a message that names the first of ``items``; empty if there is one item."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def plain_name(name: Any, path: Path, what: str) -> str:
    """Return ``name`` if it can be one component of a path.

    Args:
        path: the file that holds the name, for the message.
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
        open_image(path, FRAME_FORMATS).close()  # torchvision would decode an image of any size
        return decode_image(read_file(str(path)), mode=ImageReadMode.RGB)
    except (RuntimeError, *BROKEN_IMAGE) as error:
        raise UserError(
            f"frame {path} is broken ({reason_of(path, error)}); fetch or extract this file again"
        ) from error


def write_frame(path: Path, frame: np.ndarray) -> None:
    """Write a frame, uint8 RGB ``[H, W, 3]``, as JPEG; raises ``UserError`` if that fails."""
    content = BytesIO()  # Pillow does not notice when a full disk cuts a file short
    # Without chroma subsampling, which would wash out small shapes at this size.
    Image.fromarray(frame).save(content, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())


def read_frames(paths: list[Path]) -> list[Tensor]:
    """Read frames of one video, each uint8 ``[3, H, W]``; a path that occurs again is read once.

    Raises:
        UserError: a frame is missing or broken, or the frames differ in size.
    """
    frames = {path: read_frame(path) for path in dict.fromkeys(paths)}
    first = paths[0]
    for path, frame in frames.items():
        require_same_size(path, frame.shape, first, frames[first].shape)
    return [frames[path] for path in paths]


def require_same_size(path: Path, shape: tuple[int, ...], other_path: Path, other: tuple[int, ...]) -> None:
    """Raise a ``UserError`` if two frames of one video, of which the shapes ``[3, H, W]`` are given, differ in size."""
    if shape != other:
        sizes = " and ".join(f"{width}×{height}" for _, height, width in (shape, other))
        raise UserError(f"frames {path} and {other_path} differ in size ({sizes}); a video has frames of one size")


class PackedItems(Sequence[Any]):
    """Plain values in one array of bytes, which data workers share; they would copy a list of Python objects."""

    def __init__(self, items: Iterable[Any]) -> None:
        packed = [pickle.dumps(item) for item in items]  # ten times faster than JSON
        self._bytes = np.frombuffer(b"".join(packed), np.uint8)
        self._ends = np.cumsum([0, *map(len, packed)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        return pickle.loads(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


@dataclass
class Conversion:
    """What a conversion wrote: numbers by split, and notes for the user."""

    videos: dict[str, int] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    expressions: dict[str, int] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Video:
    """A video on disk and the sentences to segment in it."""

    name: str
    frame_paths: list[Path]  # every frame, in temporal order; the stem is the frame's name
    expressions: dict[str, str]  # id → sentence, as it is written


def read_clips(
    clips: Sequence[Sequence[Path]], short_side: int = 360, long_side: int | None = None, workers: int = 1
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Read clips of frames at evaluation size, while threads read up to ``FRAMES_AHEAD`` frames of the next ones.

    Each frame is resized as it is read, so that memory never holds all originals.

    Args:
        clips: the files of each clip, frames of one video.
        short_side, long_side: see ``util.preprocessing.resized_size``.
        workers: number of threads.

    Yields:
        frames float32 ``[T, 3, h, w]``, ImageNet-normalised, and the size on disk (H0, W0).

    Raises:
        UserError: a frame is missing or broken, or the frames of a clip differ in size.
    """
    import torch

    from util.parallel import read_ahead
    from util.preprocessing import normalise, resize_frames

    def load(path: Path) -> tuple[Tensor, tuple[int, ...]]:
        frame = read_frame(path)
        return resize_frames(frame, short_side, long_side), frame.shape

    loaded = read_ahead(chain.from_iterable(clips), load, workers, FRAMES_AHEAD)
    for paths in clips:
        frames, shapes = zip(*islice(loaded, len(paths)), strict=True)
        for path, shape in zip(paths, shapes, strict=True):
            require_same_size(path, shape, paths[0], shapes[0])
        yield normalise(torch.stack(frames)), shapes[0][1:]


def coco_entries(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    """Return the list ``key`` ("images" or "annotations") of the COCO file ``path``, whose content was read.

    Raises:
        UserError: there is no such list of JSON objects.
    """
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} should hold a list of JSON objects under {key!r}, as in COCO (see {DATA_PAGE})")
    return entries


def read_coco_masks(path: Path, ids: Sequence[str]) -> dict[str, Rle]:
    """Read one mask per image from COCO annotations.

    Returns:
        image id → mask as run lengths, in the order of ``ids``.

    Raises:
        UserError: the file is malformed, or an id has no mask or several.
    """
    from datasets.evaluators import encode_masks

    content = read_json(path, f"masks in COCO's format, see {DATA_PAGE}")
    images = {str(image.get("id")): image for image in coco_entries(content, "images", path)}
    annotations: dict[str, dict[str, Any]] = {}
    for annotation in coco_entries(content, "annotations", path):
        image = str(annotation.get("image_id"))
        if image in annotations:
            raise UserError(f"{path} has two masks for {image}; it should have one for each image")
        annotations[image] = annotation
    absent = [item for item in ids if item not in annotations or item not in images]
    if absent:
        raise UserError(
            f"{path} has no mask for {absent[0]}{and_more(absent)}; take it and the list of sentences from one release "
            f"of the dataset, or remove it and the masks are read one by one (see {DATA_PAGE})"
        )
    if len(annotations) > len(ids):
        logger.warning("%s has masks of %d images that are not evaluated", path, len(annotations) - len(ids))
    masks = {}
    for item in ids:
        height, width = (images[item].get(side, 0) for side in ("height", "width"))
        segmentation = annotations[item].get("segmentation")
        mask = decode_segmentation(segmentation, height, width, f"{path}: the mask for {item}")
        masks[item] = encode_masks(mask[None])[0]
    return masks


def decode_segmentation(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Decode a segmentation of a COCO file: polygons, or compressed or uncompressed run lengths.

    Args:
        segmentation: its JSON value: a list of polygons ``[x0, y0, x1, y1, …]`` in pixels, whose union counts, or
            ``{"size": [height, width], "counts": …}`` with the runs of a column-major mask, background first, as a
            list of numbers or compressed to text.
        height, width: of the image, in pixels.
        where: the file and the entry, for messages.

    Returns:
        bool ``[height, width]``.

    Raises:
        UserError: it is not a segmentation, has a different size, or is damaged.
    """
    from pycocotools import mask as coco

    if not all(type(side) is int and side >= 1 for side in (height, width)) or height * width > MAX_PIXELS:
        size = f"{width!r:.20}×{height!r:.20}"
        raise UserError(f"{where} has an image of {size}; it should have 1 to {MAX_PIXELS} pixels")
    if isinstance(segmentation, list):
        polygons = [part for part in _polygons(segmentation, 2 * max(height, width), where) if is_area(part)]
        if not polygons:
            raise UserError(f"{where} has an outline of fewer than three corners; remove it, or correct the file")
        return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), (str, list)):
        raise UserError(f"{where} has no COCO 'segmentation': a list of polygons, or run lengths")
    if segmentation.get("size") != [height, width]:
        raise UserError(
            f"{where} has a mask of size {segmentation.get('size')!r} (height, width), and its image has the size "
            f"{[height, width]}; take both from one release of the dataset"
        )
    try:
        rle = segmentation
        if isinstance(segmentation["counts"], list):
            rle = coco.frPyObjects(segmentation, height, width)
        mask = coco.decode(rle).astype(bool)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where} has damaged run lengths ({error}); fetch the file again") from error
    try:
        # pycocotools leaves pixels undefined after run lengths that end too early; those also fit a smaller mask.
        coco.decode({"size": [1, height * width - 1], "counts": rle["counts"]})
    except ValueError:
        return mask
    raise UserError(f"{where} has damaged run lengths (they end before the last pixel); fetch the file again")


def is_area(polygon: Sequence[float] | np.ndarray) -> bool:
    """Return whether a polygon ``[x0, y0, …]`` has three corners. COCO has some with fewer, which draw nothing."""
    return len(polygon) >= 6


def _polygons(polygons: list[Any], reach: int, where: str) -> list[np.ndarray]:
    """Check polygons, whose coordinates may be outside of the image, up to ``reach``; return each as ``[2 · corners]``.

    pycocotools takes an outline of four numbers for a box where it comes first, and draws outlines of any length.
    """
    try:
        corners = [np.array(polygon, dtype=float) for polygon in polygons]
    except (TypeError, ValueError, OverflowError):
        corners = []
    if not corners or any(c.ndim != 1 or c.size < 2 or c.size % 2 or not (abs(c) <= reach).all() for c in corners):
        raise UserError(f"{where} has polygons that are not lists of x, y pairs in pixels of its image")
    return corners
