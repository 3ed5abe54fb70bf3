"""Masks on disk: the folders and files of every benchmark, their PNGs, and submissions.

Masks are stored as one PNG per frame. A folder of masks comes from the predictions for one expression (Ref-YouTube-VOS,
MeViS), or merges one expression of every object (Ref-DAVIS17). ``LAYOUTS`` describes them by dataset.
"""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
from isal import isal_zlib
from PIL import Image

from datasets.files import ANNOTATIONS, DATA_PAGE, and_more
from util.errors import UserError
from util.files import (
    BROKEN_IMAGE,
    atomic_path,
    is_unfinished,
    library_versions,
    open_image,
    read_json,
    read_regular,
    reason_of,
    require_regular,
    write_json,
)

if TYPE_CHECKING:
    from datasets.files import Video

CLIP_FRAMES = 36
DAVIS_ANNOTATIONS = 4  # expressions per object of Ref-DAVIS17
BACKGROUND = 0.1  # probability that an object must exceed to be shown (Ref-DAVIS17)
MAX_MASK_BYTES = 1 << 26  # an uncompressed mask of 8192x8192 pixels
_BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, RuntimeError, ValueError, LookupError),
)  # what zipfile raises on damaged or hostile archives
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # a fixed date makes the zip reproducible
_PNG = b"\x89PNG\r\n\x1a\n"  # how a PNG file begins
_BIT_DEPTH, _COLOUR_TYPE = 24, 25  # offsets in a PNG file


# Mask files


def object_palette() -> list[int]:
    """Return the colours of object ids in DAVIS and YouTube-VOS masks: 256 RGB values, flat.

    The bits of an id, three at a time from the lowest, are the high bits of red, green and blue.
    """
    return [
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for index in range(256)
        for channel in range(3)
    ]


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask, bool ``[H, W]``, as an 8-bit greyscale PNG of 0 and 255; raises ``UserError`` if that fails."""
    rows = _png_rows(mask.shape, filter_type=0)
    np.multiply(mask, 255, out=rows[:, 1:], dtype=np.uint8)
    _write_png(path, rows)


def write_grey(path: Path, plane: np.ndarray) -> None:
    """Write uint8 ``[H, W]`` as an 8-bit greyscale PNG; raises ``UserError`` if that fails."""
    rows = _png_rows(plane.shape, filter_type=1)  # differences to the left neighbour
    rows[:, 1:] = np.diff(plane, axis=1, prepend=np.uint8(0))
    _write_png(path, rows)


def write_index_mask(path: Path, ids: np.ndarray, palette: list[int] | None = None) -> None:
    """Write object ids, uint8 ``[H, W]``, as an 8-bit palette PNG; raises ``UserError`` if that fails.

    ``palette`` has 256 RGB values, flat; None: ``object_palette``.
    """
    rows = _png_rows(ids.shape, filter_type=0)
    np.copyto(rows[:, 1:], ids, casting="safe")
    _write_png(path, rows, palette or object_palette())


def _png_rows(shape: tuple[int, ...], filter_type: int) -> np.ndarray:
    """Rows of a PNG, uint8 ``[H, 1 + W]``, still empty: the type of the filter, then the values."""
    rows = np.empty((shape[0], 1 + shape[1]), np.uint8)
    rows[:, 0] = filter_type
    return rows


def _write_png(path: Path, rows: np.ndarray, palette: list[int] | None = None) -> None:
    """Write an 8-bit PNG, greyscale or with a palette.

    ISA-L compresses several times as fast as zlib, which Pillow and OpenCV use.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", isal_zlib.crc32(kind + content))

    height, width = rows.shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width - 1, height, 8, 3 if palette else 0, 0, 0, 0))
    colours = chunk(b"PLTE", bytes(palette)) if palette else b""
    content = _PNG + header + colours + chunk(b"IDAT", isal_zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_index_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask whose pixel value is the object id.

    Args:
        path: a palette or greyscale PNG of at most 8 bits.
        size: (height, width) that the mask must have; None accepts any.

    Returns:
        uint8 ``[H, W]``: 0 is background, 255 is void in the files of DAVIS.

    Raises:
        UserError: the file is missing or broken, or has another mode or size.
    """
    return _read_plane(path, size)[0]


def read_grey(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read what ``write_grey`` wrote, uint8 ``[H, W]``; arguments and errors are those of ``read_index_mask``."""
    return _read_plane(path, size)[0]


def read_binary_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask of one object.

    Args:
        path: an 8-bit PNG with the values 0 and 255 only, or a 1-bit PNG.
        size: (height, width) that the mask must have; None accepts any.

    Returns:
        bool ``[H, W]``.

    Raises:
        UserError: the file is missing or broken, or has another mode, size or value.
    """
    plane, bits = _read_plane(path, size)
    mask = plane == (1 if bits == 1 else 255)
    if cv2.countNonZero(plane) != cv2.countNonZero(mask.view(np.uint8)):
        other = int(plane[(plane != 0) & ~mask][0])
        raise UserError(f"{path} holds the value {other}; the mask of an expression must hold only 0 and 255")
    return mask


def _read_plane(path: Path, size: tuple[int, int] | None) -> tuple[np.ndarray, int]:
    """Read the values of a PNG, uint8 ``[H, W]``, and its bits per value."""
    with _readable(path):
        content = read_regular(path, MAX_MASK_BYTES)
        image = _open_png(content)
    if image.mode not in ("P", "L", "1"):
        raise UserError(f"{path} is an image of mode {image.mode}; a mask must be an 8-bit palette or greyscale PNG")
    if size is not None and (image.height, image.width) != size:  # before the pixels are decoded
        raise UserError(
            f"{path} is {image.width}×{image.height} pixels, but its frame is {size[1]}×{size[0]}; "
            "masks must have the original size of their video"
        )
    with _readable(path):
        return np.array(image, dtype=np.uint8), content[_BIT_DEPTH]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Report in one sentence why a mask cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; every frame needs a mask there") from error
    except BROKEN_IMAGE as error:
        reason = getattr(error, "strerror", None) or "it is broken or not a PNG"
        if isinstance(error, Image.DecompressionBombError):
            reason = str(error)
        raise UserError(f"cannot read the mask {path}: {reason_of(path, reason)}; write the file again") from error


def _open_png(content: bytes) -> Image.Image:
    """Open a PNG after verifying its checksums, which the decoder alone does not; raises ``BROKEN_IMAGE``."""
    open_image(io.BytesIO(content), ("PNG",)).verify()
    return open_image(io.BytesIO(content), ("PNG",))


def require_masks(paths: Iterable[Path]) -> None:
    """Check that mask files exist; raises a ``UserError`` with the first missing file and the number of others."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing{and_more(missing)}; every frame needs a mask there")


# Layouts


class MaskLayout:
    """``Annotations/<video>/<exp_id>/<frame>.png``, 8-bit greyscale, 0 or 255, for every set but Ref-DAVIS17.

    Attributes:
        roots: the folders below the output folder that contain masks and nothing else.
        soft: whether ``merge`` needs probabilities.
        clip_frames: length of the clips into which a video is cut, each with a query of its own; None: one clip.
        annotations_in_zip: whether ``Annotations`` is at the root of the submission zip, or the videos are.
    """

    roots: tuple[str, ...] = (ANNOTATIONS,)
    soft = False

    def __init__(self, clip_frames: int | None = None, annotations_in_zip: bool = True) -> None:
        self.clip_frames = clip_frames
        self.annotations_in_zip = annotations_in_zip

    def folders(self, video: Video) -> dict[str, list[str]]:
        """Map every folder of masks of a video to the ids of the expressions that it is made of, in their order."""
        return {f"{ANNOTATIONS}/{video.name}/{exp_id}": [exp_id] for exp_id in video.expressions}

    def merge(self, predictions: Iterable[tuple[str, Any]], shape: tuple[int, int, int]) -> np.ndarray:
        """Make the masks of one folder.

        Args:
            predictions: by expression id, in the order of ``folders``; all are consumed. Each has ``masks``, bool
                ``[T, H0, W0]``, and for layouts that are ``soft`` also ``probabilities``, float32 ``[T, H0, W0]``, 0
                outside of the masks.

        Returns:
            bool or uint8 ``[T, H0, W0]``, one plane per frame, as ``write`` takes them.
        """
        ((_, prediction),) = predictions
        assert prediction.masks.shape == shape
        return prediction.masks

    def write(self, path: Path, plane: np.ndarray) -> None:
        """Write the mask of one frame; raises ``UserError`` if that fails."""
        write_mask(path, plane)

    def fault(self, file: BinaryIO, video: Video, size: tuple[int, int]) -> str | None:
        """Describe what is wrong with a mask file of a video whose frame has this (height, width), or return None."""
        return mask_fault(file, size)

    def zip_name(self, name: str) -> str:
        """Return the name of a file, ``<folder>/<frame>.png``, in the submission."""
        return name if self.annotations_in_zip else name.removeprefix(f"{ANNOTATIONS}/")


class DavisLayout(MaskLayout):
    """``anno_<a>/<video>/<frame>.png``, palette PNGs, value = object id: all objects, by their expressions number a.

    The background has a probability of 0.1. A pixel belongs to the object with the highest probability, or to the
    background if no object exceeds it. The id of an expression is 4 · (object id − 1) + a.
    """

    roots = tuple(f"anno_{number}" for number in range(DAVIS_ANNOTATIONS))
    soft = True

    def folders(self, video: Video) -> dict[str, list[str]]:
        ids = sorted(map(int, video.expressions))
        return {
            f"{root}/{video.name}": [str(exp_id) for exp_id in ids if exp_id % DAVIS_ANNOTATIONS == number]
            for number, root in enumerate(self.roots)
        }

    def merge(self, predictions: Iterable[tuple[str, Any]], shape: tuple[int, int, int]) -> np.ndarray:
        ids = np.zeros(shape, np.uint8)
        highest = np.full(shape, BACKGROUND, np.float32)
        for exp_id, prediction in predictions:
            probabilities = prediction.probabilities
            assert probabilities.shape == shape
            winning = probabilities > highest  # on a tie the first object wins, as in argmax
            np.copyto(highest, probabilities, where=winning)
            ids[winning] = davis_object(exp_id)
        return ids

    def write(self, path: Path, plane: np.ndarray) -> None:
        write_index_mask(path, plane)

    def fault(self, file: BinaryIO, video: Video, size: tuple[int, int]) -> str | None:
        return mask_fault(file, size, max(map(davis_object, video.expressions), default=0))


LAYOUTS: dict[str, MaskLayout] = {
    "ytvos": MaskLayout(),
    "davis": DavisLayout(CLIP_FRAMES),
    "mevis": MaskLayout(CLIP_FRAMES, annotations_in_zip=False),
    "clips": MaskLayout(CLIP_FRAMES),
}
"""By the ``masks`` of the dataset's row."""


def davis_object(exp_id: str) -> int:
    """Return the id, from 1, of the object that an expression of Ref-DAVIS17 refers to."""
    return int(exp_id) // DAVIS_ANNOTATIONS + 1


def mask_path(folder: Path, video: str, exp_id: str, frame: str) -> Path:
    """Return the path of a mask below an output folder (Ref-YouTube-VOS, MeViS)."""
    return folder / ANNOTATIONS / video / exp_id / f"{frame}.png"


def mask_fault(file: BinaryIO, size: tuple[int, int], highest: int | None = None) -> str | None:
    """Describe what is wrong with a mask file, or return None.

    Args:
        file: the PNG, open at its start.
        size: (height, width) that it must have.
        highest: the highest object id of an 8-bit palette PNG; None: the PNG must be 8-bit greyscale, 0 and 255.
    """
    content = file.read()
    colour_type, kind = (0, "8-bit greyscale") if highest is None else (3, "an 8-bit palette image")
    try:
        image = _open_png(content)
        if content[_BIT_DEPTH] != 8 or content[_COLOUR_TYPE] != colour_type:
            return f"is not {kind} (mode {image.mode})"
        if (image.height, image.width) != size:
            return f"is {image.width}×{image.height}, not {size[1]}×{size[0]}"
        counts = image.histogram()
    except BROKEN_IMAGE as error:
        return f"is not a readable PNG ({error})"
    forbidden = range(1, 255) if highest is None else range(highest + 1, 256)
    value = next((value for value in forbidden if counts[value]), None)
    if value is None:
        return None
    if highest is None:
        return f"holds the value {value}, not only 0 and 255"
    return f"holds the id {value}, and the video's highest is {highest}"


# Submissions


def require_frames(videos: Iterable[Video]) -> None:
    """Check that all frames exist; raises a ``UserError`` with the first missing frame and the number of others."""
    missing = [path for video in videos for path in video.frame_paths if not path.is_file()]
    if missing:
        raise UserError(f"frame {missing[0]} is missing{and_more(missing)}; the expressions list it (see {DATA_PAGE})")


def frame_size(path: Path) -> tuple[int, int]:
    """Read the (height, width) of an image from its header; raises ``UserError`` if it is missing or not an image."""
    try:
        with open_image(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise UserError(f"frame {path} is missing; the annotations list it (see {DATA_PAGE})") from error
    except BROKEN_IMAGE as error:
        raise UserError(
            f"frame {path} is broken ({reason_of(path, error)}); fetch or extract this file again"
        ) from error


def is_written(output: Path, video: Video, folder: str, layout: MaskLayout = LAYOUTS["ytvos"]) -> bool:
    """Return whether every frame of a video has a correct mask in one of the layout's folders below ``output``."""
    size = frame_size(video.frame_paths[0])
    for frame in video.frame_paths:
        path = output / folder / f"{frame.stem}.png"
        if not path.is_file():
            return False
        with path.open("rb") as file:
            if layout.fault(file, video, size):
                return False
    return True


def write_submission(
    folder: Path, videos: Iterable[Video], archive: Path, layout: MaskLayout = LAYOUTS["ytvos"]
) -> None:
    """Zip the masks of all videos below ``folder``; raises ``UserError`` if one is missing or the zip not writable."""
    try:
        # Not compressed, because PNGs already are.
        with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target:
            for name in _expected(videos, layout):
                target.writestr(zipfile.ZipInfo(layout.zip_name(name), _ZIP_DATE), (folder / name).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; run the inference again to write it") from error


def check_submission(path: Path, videos: Iterable[Video], layout: MaskLayout = LAYOUTS["ytvos"]) -> list[str]:
    """Check a submission zip, or the output folder from which it was made.

    Returns:
        One sentence per fault: a mask that is missing, has another size than its frame, another kind of pixels or other
        values; a file that is not an expected mask; a name that occurs twice in the zip.

    Raises:
        UserError: the folder or zip does not exist or is damaged, or a frame is missing.
    """
    expected = _expected(videos, layout)
    if path.is_dir():
        files = [file for root in layout.roots for file in (path / root).rglob("*") if file.is_file()]
        found = {file.relative_to(path).as_posix(): 1 for file in files if not is_unfinished(file)}
        return list(_faults(found, lambda name: (path / name).open("rb"), expected, layout))
    expected = {layout.zip_name(name): mask for name, mask in expected.items()}
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            found = Counter(info.filename for info in archive.infolist() if not info.is_dir())
            return list(_faults(found, lambda name: _read_member(archive, name), expected, layout))
    except FileNotFoundError as error:
        roots = ", ".join(layout.roots)
        raise UserError(f"{path} is missing; it should be a submission zip or the folder of {roots}") from error
    except UserError:
        raise
    except _BROKEN_ZIP as error:
        raise UserError(f"{path} is not a sound zip ({error}); write it again") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """Read a file of a zip, at most ``MAX_MASK_BYTES``, so that a zip bomb cannot fill the memory."""
    with archive.open(name) as file:
        return io.BytesIO(file.read(MAX_MASK_BYTES))


def _faults(
    found: Mapping[str, int],
    read: Callable[[str], BinaryIO],
    expected: Mapping[str, tuple[Video, Path]],
    layout: MaskLayout,
) -> Iterator[str]:
    size_of = cache(frame_size)  # the folders of a video share its frames
    for name, (video, frame) in expected.items():
        if name not in found:
            yield f"{name} is missing"
            continue
        with read(name) as file:
            fault = layout.fault(file, video, size_of(frame))
        if fault:
            yield f"{name} {fault}"
    for name, count in found.items():
        if name not in expected:
            yield f"{name} is not the mask of any expression's frame"
        elif count > 1:
            yield f"{name} is there {count} times"


def _expected(videos: Iterable[Video], layout: MaskLayout) -> dict[str, tuple[Video, Path]]:
    """Map the name of every mask below the output folder to its video and frame."""
    return {
        f"{folder}/{frame.stem}.png": (video, frame)
        for video in videos
        for folder in layout.folders(video)
        for frame in video.frame_paths
    }


# The record of an output folder


MASK_OPTIONS = (
    *("dataset_file", "expressions_file", "split", "mevis_version", "eval_size", "max_size", "seed"),
    *("precision", "threshold", "score_threshold"),
)
"""Options that masks depend on, beside those of the model and the folder of the dataset."""

Results = dict[str, dict[str, dict[str, Any]]]  # video → expression id → result


class InferenceRecord:
    """The record of an output folder, on disk whenever a method returns.

    Several processes may share a folder, each with a record of its own: an expression that any of them lists is done.

    Args:
        path: the JSON file. An existing one is continued, and the records of other processes beside it are read.
        identity: everything that the masks depend on, as plain values, with the ``checkpoint_sha256``.
        about: further facts (paths, device).

    Raises:
        UserError: the file has results of another identity, is not such a record, or cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = dict(identity)
        self.about = {**about, "versions": library_versions()}
        self.expressions: Results = self._read(path) if path.exists() else {}
        others = sorted(set(path.parent.glob("inference*.json")) - {path})
        self._others = [self._read(other) for other in others]
        self._write()

    def find(self, video: str, exp_id: str) -> dict[str, Any] | None:
        """The result of an expression, or None."""
        found = (results.get(video, {}).get(exp_id) for results in (self.expressions, *self._others))
        return next((result for result in found if result is not None), None)

    def add(self, video: str, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Record expressions of a video whose files are all written.

        Args:
            video: its name.
            results: expression id → ``sentence``, ``score`` (0…1), ``query`` (for several clips ``queries``),
                ``frames`` and ``seconds``.
        """
        self.expressions.setdefault(video, {}).update({exp_id: dict(result) for exp_id, result in results.items()})
        self._write()

    def absorb(self) -> None:
        """Take over the records of the other processes, when all are done, and remove their files."""
        for path in sorted(set(self.path.parent.glob("inference*.json")) - {self.path}):
            for video, results in self._read(path).items():
                self.expressions.setdefault(video, {}).update(results)
            self._write()
            path.unlink()

    def timing(self) -> dict[str, float]:
        """Frames (counted for each expression), seconds from frames to masks, and frames per second."""
        results = [result for video in self.expressions.values() for result in video.values()]
        frames, seconds = (sum(result[key] for result in results) for key in ("frames", "seconds"))
        rate = frames / seconds if seconds else 0.0
        return {"frames": frames, "seconds": round(seconds, 3), "frames_per_second": round(rate, 3)}

    def _read(self, path: Path) -> Results:
        content = read_json(path, "the record of an inference run")
        expressions = content.get("expressions") if isinstance(content, dict) else None
        if not isinstance(expressions, dict) or not isinstance(content.get("identity"), dict):
            raise UserError(f"{path} is not the record of an inference run; choose another --output_dir")
        for key, value in self.identity.items() if expressions else ():
            other = content["identity"].get(key)
            if other != value:
                made = f"with {key} {other!r}, and this run has {value!r}"
                if key == "checkpoint_sha256":
                    made = "with a different checkpoint"
                raise UserError(
                    f"{path.parent} holds masks made {made}; choose another --output_dir, or remove that folder"
                )
        return expressions

    def _write(self) -> None:
        write_json(
            self.path,
            {"identity": self.identity, "about": self.about, "timing": self.timing(), "expressions": self.expressions},
        )
