"""What a video is to the demo: frames with their times, of which an excerpt is taken."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from util.errors import UserError

_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)")


@dataclass(frozen=True)
class Excerpt:
    """Which frames are wanted: those of ``start`` ≤ time < ``end`` (seconds), and of them every ``stride``-th."""

    start: Fraction = Fraction(0)
    end: Fraction | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        assert self.start >= 0 and self.stride >= 1, self
        if self.end is not None and self.end <= self.start:
            raise UserError(f"--end ({float(self.end):g} s) must be after --start ({float(self.start):g} s)")

    def holds(self, time: Fraction) -> bool:
        """Whether a time lies between start and end."""
        return time >= self.start and not self.is_over(time)

    def is_over(self, time: Fraction) -> bool:
        """Whether a time lies behind the end."""
        return self.end is not None and time >= self.end


WHOLE = Excerpt()


@dataclass(frozen=True)
class MediaFrame:
    """One frame.

    Attributes:
        image: uint8 RGB ``[H, W, 3]``, upright, without transparency.
        time: seconds since the beginning of the file.
        duration: seconds until the next frame of the excerpt.
        name: for files: the name of the frame's own file, or its number in the excerpt.
    """

    image: np.ndarray
    time: Fraction
    duration: Fraction
    name: str


class RawFrame(NamedTuple):
    """A frame that is not converted yet; ``load`` gives its image, and its name is empty where it has none."""

    time: Fraction
    duration: Fraction
    name: str
    load: Callable[[], np.ndarray]


@dataclass
class Media(ABC):
    """A video, folder or picture. Its frames can be read any number of times, one by one.

    Attributes:
        path: the file or folder.
        excerpt: which frames are read.
        size: (H0, W0) of the frames, upright.
        rate: frames per second of the excerpt, on average.
        count: number of frames of the excerpt as far as the file tells without being read, for a progress bar.
        time_base: all times are multiples of it, in seconds.
        still: it is one picture, not a video.
        notes: what the user should know, complete when the frames have been read.
    """

    path: Path
    excerpt: Excerpt = WHOLE
    size: tuple[int, int] = (0, 0)
    rate: Fraction = Fraction(24)
    count: int | None = None
    time_base: Fraction = Fraction(1, 90000)
    still: bool = False
    notes: list[str] = field(default_factory=list)

    @abstractmethod
    def raw_frames(self) -> Generator[RawFrame]:
        """All frames from the excerpt's start or before, in order of time.

        Raises:
            UserError: nothing can be read.
        """

    def frames(self) -> Generator[MediaFrame]:
        """The frames of the excerpt, in order of time; memory holds two of them.

        Raises:
            UserError: nothing can be read, or a picture of a folder is broken.
        """
        return take(self.raw_frames(), self.excerpt)

    def note(self, text: str) -> None:
        """Add something that the user should know, once."""
        if text not in self.notes:
            self.notes.append(text)


def take(frames: Iterable[RawFrame], excerpt: Excerpt) -> Generator[MediaFrame]:
    """The frames of an excerpt; each lasts until the next one, and the last one as long as what it stands for."""
    kept: RawFrame | None = None
    image = np.empty(0, np.uint8)
    end = Fraction(0)
    seen = given = 0
    for frame in frames:
        if frame.time < excerpt.start:
            continue
        if excerpt.is_over(frame.time):
            break
        end = frame.time + frame.duration
        if seen % excerpt.stride == 0:
            if kept is not None:
                yield MediaFrame(image, kept.time, frame.time - kept.time, kept.name or f"{given:05d}")
                given += 1
            kept, image = frame, frame.load()
        seen += 1
    if kept is not None:
        yield MediaFrame(image, kept.time, end - kept.time, kept.name or f"{given:05d}")


def parse_time(text: str, where: str) -> Fraction:
    """Seconds of a time that a user typed: ``12.5``, ``1:02.5`` or ``1:00:02.5``.

    Args:
        text: what was typed.
        where: how the message calls its place ("--start").

    Raises:
        UserError: it is no time.
    """
    match = _CLOCK.fullmatch(text.strip())
    if not match or (match[2] and Fraction(match[3]) >= 60) or (match[1] and int(match[2]) >= 60):
        raise UserError(f"{where} must be a time in seconds or as hh:mm:ss, such as 12.5 or 1:02, not {text!r}")
    hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds
