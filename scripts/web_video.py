"""The page's videos: what it takes, and what it gives back."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from demo import MASKS, MASKS_FILE, OVERLAY, SHEET, DemoResult
from util.errors import RunError, UserError
from util.files import atomic_path
from util.preprocessing import normalise_sentence
from util.video import WHOLE, Excerpt, Media, open_media


@dataclass(frozen=True)
class Limits:
    """What the page takes at most."""

    megabytes: float = 200
    """Of a file."""
    seconds: float = 60
    """Of the part that is segmented."""
    frames: int = 900
    """That are segmented."""
    side: int = 4096
    """Pixels of the longer side."""
    sentences: int = 8
    letters: int = 300
    """Of a sentence."""


@dataclass(frozen=True)
class Example:
    """A video to try, and what to find in it."""

    path: Path
    sentences: tuple[str, ...]


def read_sentences(text: str, limits: Limits) -> list[str]:
    """The sentences that were typed, one per line; empty lines are none.

    Raises:
        UserError: there is none, there are too many, or one is too long.
    """
    sentences = [" ".join(line.split()) for line in text.splitlines() if normalise_sentence(line)]
    if not sentences:
        raise UserError("there is no sentence yet; say in words what to segment, one object per line")
    if len(sentences) > limits.sentences:
        raise UserError(f"these are {len(sentences)} sentences, and this page takes {limits.sentences}; leave some out")
    for number, sentence in enumerate(sentences, start=1):
        if len(sentence) > limits.letters:
            raise UserError(f"sentence {number} has {len(sentence)} letters; say it in {limits.letters}")
    return sentences


def open_upload(path: Path, limits: Limits, excerpt: Excerpt = WHOLE) -> Media:
    """Open an uploaded video.

    Raises:
        UserError: it is none, or the file or its pictures are too large.
    """
    with without_folder(path):
        megabytes = path.stat().st_size / 2**20
        if megabytes > limits.megabytes:
            raise UserError(
                f"{path} has {megabytes:.1f} MB, and this page takes {limits.megabytes:g} MB; give a shorter video"
            )
        media = open_media(path, excerpt)
        height, width = media.size
        if max(media.size) > limits.side:
            raise UserError(
                f"{path} is {width}×{height}, and this page takes {limits.side} pixels a side; give a smaller video"
            )
        return media


def require_short(media: Media, limits: Limits) -> None:
    """Refuse a video that is too long, by what its header tells.

    Raises:
        UserError: it is.
    """
    seconds = seconds_of(media)
    if seconds > limits.seconds + 0.5:
        raise UserError(
            f"this takes {seconds:.0f} s of the video, and the page takes {limits.seconds:g} s at most; choose a part "
            "of it by From and To"
        )
    require_few(media.count or 0, limits)


def require_few(frames: int, limits: Limits) -> None:
    """Refuse more frames than the limit; headers are not always right, so they are counted, too.

    Raises:
        UserError: they are.
    """
    if frames > limits.frames:
        raise UserError(
            f"these are {frames} frames or more, and this page takes {limits.frames}; choose a part of the video by "
            "From and To, or fewer of its frames"
        )


def seconds_of(media: Media) -> float:
    """How long the excerpt is, by what the file's header tells; 0 of a picture."""
    return 0.0 if media.still else float((media.count or 0) / media.rate)


@contextmanager
def without_folder(path: Path) -> Iterator[None]:
    """Tell mistakes by the file's name alone: its folder says nothing to a visitor.

    Raises:
        UserError, RunError: the block has raised it.
    """
    try:
        yield
    except (UserError, RunError) as error:
        raise type(error)(str(error).replace(str(path), path.name)) from error


def zip_masks(result: DemoResult) -> Path:
    """Pack masks, ``masks.json`` and the contact sheet of a run; PNGs do not become smaller, so they are stored.

    Returns:
        The file, beside the run's folder.
    """
    target = result.folder.with_name(f"{result.folder.name}-masks.zip")
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted((result.folder / MASKS).rglob("*.png")):
            archive.write(path, path.relative_to(result.folder))
        archive.write(result.folder / MASKS_FILE, MASKS_FILE, zipfile.ZIP_DEFLATED)
        archive.write(result.folder / SHEET, SHEET)
    return target


def overlay_frame(result: DemoResult, number: int) -> np.ndarray:
    """A frame of the overlay, uint8 RGB ``[H, W, 3]``.

    Args:
        result: of a run.
        number: of the frame, from 0.
    """
    times = result.times
    # from halfway to the frame before, so that rounding does not decide
    start = (times[number] + times[number - 1]) / 2 if number else Fraction(0)
    return next(open_media(result.folder / OVERLAY, Excerpt(start)).frames()).image
