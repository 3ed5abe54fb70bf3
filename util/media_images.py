"""A folder of frames, a single picture, and an animated one, as a video."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from util.errors import UserError
from util.io import BROKEN_IMAGE
from util.media_frames import WHOLE, Excerpt, Media, RawFrame
from util.media_pixels import image_pixels

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".avif"})
DEFAULT_FPS = Fraction(24)
_MILLISECOND = Fraction(1, 1000)
_SHORTEST, _USUAL = 20, 100  # ms: a shorter display time means none, and players take 100


class ImageFolder(Media):
    """Frames that lie in a folder, one picture each, in the order of the numbers in their names.

    Args:
        path: the folder.
        excerpt: which frames are wanted.
        fps: frames per second, which pictures do not tell.

    Raises:
        UserError: the folder holds no picture, or two of one name; the first picture is broken.
    """

    def __init__(self, path: Path, excerpt: Excerpt = WHOLE, fps: Fraction = DEFAULT_FPS) -> None:
        files = sorted((file for file in path.iterdir() if _is_picture(file)), key=natural_order)
        if not files:
            kinds = ", ".join(sorted(SUFFIXES))
            inner = next((folder.name for folder in sorted(path.iterdir()) if folder.is_dir()), None)
            mend = (
                f"give a folder in it, such as {inner}" if inner else f"a folder of frames holds files such as {kinds}"
            )
            raise UserError(f"{path} is a folder without a picture; {mend}")
        stems: dict[str, Path] = {}
        for file in files:
            if stems.setdefault(file.stem, file) is not file:
                raise UserError(
                    f"{path} holds both {stems[file.stem].name} and {file.name}; leave one picture for each frame"
                )
        self.files, self.fps = files, fps
        wanted = [i for i in range(len(files)) if excerpt.holds(i / fps)]
        if not wanted:
            raise UserError(
                f"{path} has {float(len(files) / fps):.1f} s at {float(fps):g} frames/s, all before --start"
            )
        super().__init__(
            path,
            excerpt,
            size=_read(files[wanted[0]]).shape[:2],  # type: ignore[arg-type]
            rate=fps / excerpt.stride,
            count=-(-len(wanted) // excerpt.stride),
            time_base=1 / fps,
        )

    def raw_frames(self) -> Generator[RawFrame]:
        for number, file in enumerate(self.files):
            yield RawFrame(number / self.fps, 1 / self.fps, file.stem, partial(self._load, file))

    def _load(self, file: Path) -> np.ndarray:
        picture = _read(file)
        if picture.shape[:2] != self.size:
            (h, w), (height, width) = picture.shape[:2], self.size
            raise UserError(f"{file} is {w}×{h} and frames before it {width}×{height}; a video has frames of one size")
        return picture


class ImageFile(Media):
    """A picture as a video of one frame; an animated PNG or WebP as what it shows.

    Args:
        path: the file.
        excerpt: which frames are wanted.
        fps: of a still picture.

    Raises:
        UserError: it is no picture, or ends before the excerpt.
    """

    def __init__(self, path: Path, excerpt: Excerpt = WHOLE, fps: Fraction = DEFAULT_FPS) -> None:
        try:
            with Image.open(path) as image:
                number = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP", "AVIF") else 1
        except BROKEN_IMAGE as error:
            raise UserError(f"{path} is no picture that can be read; it is damaged or another kind of file") from error
        still = number == 1
        super().__init__(path, excerpt, still=still, time_base=1 / fps if still else _MILLISECOND)
        self.rate = fps
        times = [(frame.time, frame.duration) for frame in self.raw_frames()] if not still else [(Fraction(0), 1 / fps)]
        kept = [time for time, _ in times if excerpt.holds(time)]
        if not kept:
            raise UserError(f"{path} lasts {float(times[-1][0] + times[-1][1]):.2f} s and ends before --start")
        self.rate = fps if still else len(times) / (times[-1][0] + times[-1][1]) / excerpt.stride
        self.count = -(-len(kept) // excerpt.stride)
        with closing(self.raw_frames()) as frames:  # the file is open as long as they are read
            self.size = next(frames).load().shape[:2]  # type: ignore[assignment]

    def raw_frames(self) -> Generator[RawFrame]:
        try:
            with Image.open(self.path) as image:
                if self.still:
                    yield RawFrame(Fraction(0), 1 / self.rate, "", partial(self._pixels, image))
                    return
                time = Fraction(0)
                for frame in ImageSequence.Iterator(image):
                    frame.load()
                    shown = round(frame.info.get("duration") or 0)
                    duration = (shown if shown >= _SHORTEST else _USUAL) * _MILLISECOND
                    yield RawFrame(time, duration, "", partial(self._pixels, frame))
                    time += duration
        except BROKEN_IMAGE as error:
            raise self._broken(error) from error

    def _pixels(self, image: Image.Image) -> np.ndarray:
        try:
            return image_pixels(image)
        except BROKEN_IMAGE as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> UserError:
        return UserError(f"the picture {self.path} is broken ({error}); fetch or make this file again")


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorts frame2.png before frame10.png: numbers by their value, the rest by its letters."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)] + [(-1, path.name)]


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _read(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return image_pixels(image)
    except BROKEN_IMAGE as error:
        raise UserError(f"the picture {file} is broken or none; fetch or make this file again") from error
