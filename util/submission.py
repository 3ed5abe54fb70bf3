"""The masks of a benchmark as its server takes them: what an output folder must hold, the zip, and a check of either.

Which files there are and what they hold is said by the layout (``util.mask_layouts``).
"""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from util.errors import UserError
from util.files import atomic_path, is_unfinished
from util.mask_files import BROKEN_IMAGE
from util.mask_layouts import ANNOTATIONS, LAYOUTS, MaskLayout, SegmentedVideo

MOST_BYTES = 1 << 26  # of a mask's file: a whole one of 8192×8192 pixels without any compression
BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, RuntimeError, ValueError, LookupError),
)
"""What the library raises on damaged or hostile zips."""
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # one date for all files: the same masks make the same zip


def mask_path(folder: Path, video: str, exp_id: str, frame: str) -> Path:
    """Where the mask of one frame for one expression lies below an output folder (not of Ref-DAVIS17)."""
    return folder / ANNOTATIONS / video / exp_id / f"{frame}.png"


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


def is_written(output: Path, video: SegmentedVideo, folder: str, layout: MaskLayout = LAYOUTS["ytvos"]) -> bool:
    """Whether every frame of a video has a sound mask of its size in one of the layout's folders below ``output``."""
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
    folder: Path, videos: Iterable[SegmentedVideo], archive: Path, layout: MaskLayout = LAYOUTS["ytvos"]
) -> None:
    """Zip the masks of all videos below ``folder``, and no other file, under the names that the layout has in a zip.

    Raises:
        UserError: a mask is missing, or the zip cannot be written.
    """
    try:
        # Stored: a PNG is compressed already.
        with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target:
            for name in _expected(videos, layout):
                target.writestr(zipfile.ZipInfo(layout.zip_name(name), _LONG_AGO), (folder / name).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; run the inference again to write it") from error
    except OSError as error:
        raise UserError(f"cannot write {archive}: {error.strerror or error}") from error


def check_submission(path: Path, videos: Iterable[SegmentedVideo], layout: MaskLayout = LAYOUTS["ytvos"]) -> list[str]:
    """Check a submission zip, or the output folder that it was made of.

    Returns:
        One sentence for each fault: a mask that is missing, of another size than its frame, not of the layout's 8-bit
        kind, or with other values; a file that is not one of the masks; a name that is in the zip twice.

    Raises:
        UserError: there is no such folder or zip, it is damaged, or a frame is missing.
    """
    expected = _expected(videos, layout)
    if path.is_dir():
        files = [file for root in layout.roots for file in (path / root).rglob("*") if file.is_file()]
        found = {file.relative_to(path).as_posix(): 1 for file in files if not is_unfinished(file)}
        return list(_faults(found, lambda name: (path / name).open("rb"), expected, layout))
    expected = {layout.zip_name(name): mask for name, mask in expected.items()}
    try:
        with zipfile.ZipFile(path) as archive:
            found = Counter(info.filename for info in archive.infolist() if not info.is_dir())
            return list(_faults(found, lambda name: _member(archive, name), expected, layout))
    except FileNotFoundError as error:
        roots = ", ".join(layout.roots)
        raise UserError(f"{path} is missing; it should be a submission zip or the folder of {roots}") from error
    except UserError:
        raise
    except BROKEN_ZIP as error:
        raise UserError(f"{path} is not a sound zip ({error}); write it again") from error


def _member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """A file of a zip, and of one that unpacks to more than a mask can take no more than that."""
    with archive.open(name) as file:
        return io.BytesIO(file.read(MOST_BYTES))


class _Mask(NamedTuple):
    video: SegmentedVideo
    frame: Path


def _faults(
    found: Mapping[str, int], read: Callable[[str], BinaryIO], expected: Mapping[str, _Mask], layout: MaskLayout
) -> Iterator[str]:
    size_of = cache(frame_size)  # the folders of a video share its frames
    for name, mask in expected.items():
        if name not in found:
            yield f"{name} is missing"
            continue
        with read(name) as file:
            fault = layout.fault(file, mask.video, size_of(mask.frame))
        if fault:
            yield f"{name} {fault}"
    for name, count in found.items():
        if name not in expected:
            yield f"{name} is not the mask of any expression's frame"
        elif count > 1:
            yield f"{name} is there {count} times"


def _expected(videos: Iterable[SegmentedVideo], layout: MaskLayout) -> dict[str, _Mask]:
    """The name of every mask below the output folder → the video and frame that it belongs to."""
    return {
        f"{folder}/{frame.stem}.png": _Mask(video, frame)
        for video in videos
        for folder in layout.folders(video)
        for frame in video.frame_paths
    }
