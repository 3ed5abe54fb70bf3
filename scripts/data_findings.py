"""What a check of a dataset finds: counts, faults, notes, and the files that are still to be opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from datasets.reading import read_frame, read_object_ids, require_same_size
from util.errors import UserError

SAMPLE_VIDEOS, SAMPLE_FRAMES, SAMPLE_IMAGES = 40, 3, 200  # of a split, of a video, of a split of images

Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Count:
    """How many there are of something, and in the whole dataset (None: not known)."""

    what: str
    found: int
    known: int | None = None

    @property
    def difference(self) -> int:
        """Found beyond what is known; negative where some are lacking."""
        return 0 if self.known is None else self.found - self.known


@dataclass(frozen=True)
class Job:
    """Files to open, in any process: ``open`` returns a sentence for each that is broken. It must be picklable."""

    open: Callable[[], list[str]]
    files: int


@dataclass
class Findings:
    """What is found of a dataset.

    Attributes:
        every: open every file, not a sample.
        counts: in the order in which they are told.
        faults: a sentence for each thing that is missing or broken.
        notes: what is no fault, and worth knowing.
        jobs: what is to be opened.
        files: number of all files that could be opened.
        elsewhere: another folder that looks like the dataset's, where this one has none of its files.
    """

    every: bool
    counts: list[Count] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    files: int = 0
    elsewhere: Path | None = None

    def attempt(self, read: Callable[..., Result], *args: object) -> Result | None:
        """What ``read`` returns; None, and a fault, where it raises a ``UserError``."""
        try:
            return read(*args)
        except UserError as error:
            self.faults.append(str(error))
            return None

    def count(self, what: str, found: int, known: int | None = None) -> None:
        """Tell a number."""
        self.counts.append(Count(what, found, known))

    def present(self, folder: Path, names: Iterable[str], lister: str) -> list[Path]:
        """Those files of a folder that are there. Each other one is a fault, or the folder where it is missing."""
        if not folder.is_dir():
            self.faults.append(f"folder {folder} is missing, and {lister} lists it")
            return []
        with os.scandir(folder) as entries:
            there = {entry.name for entry in entries if entry.is_file()}  # no link to what is gone
        wanted = list(dict.fromkeys(names))
        self.faults += [f"{folder / name} is missing, and {lister} lists it" for name in wanted if name not in there]
        return [folder / name for name in wanted if name in there]

    def sample(self, items: Sequence[Item], number: int) -> Sequence[Item]:
        """All items, or so many of them, evenly spread."""
        return items if self.every or len(items) <= number else spread(items, number)

    def open_later(self, files: int, function: Callable[..., list[str]], *args: object) -> None:
        """Have ``function(*args)`` called, which opens so many files and returns a sentence for each broken one."""
        self.jobs.append(Job(partial(function, *args), files))

    def open_videos(self, frames: Mapping[str, Sequence[Path]], masks: Mapping[str, Sequence[Path]]) -> None:
        """Have the frames, and the masks of object ids, of videos by name decoded; see ``open_frames``."""
        self.files += sum(map(len, frames.values())) + sum(map(len, masks.values()))
        for name in self.sample(list(frames), SAMPLE_VIDEOS):
            pictures, outlines = (self.sample(part.get(name, ()), SAMPLE_FRAMES) for part in (frames, masks))
            self.open_later(len(pictures) + len(outlines), open_frames, pictures, outlines)


@dataclass(frozen=True)
class Check:
    """How a dataset is checked: ``run`` is called with its folder, some of its splits, and the findings to add to."""

    run: Callable[[Path, Sequence[str], Findings], None]
    splits: tuple[str, ...]


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """So many items, evenly spread from the first to the last."""
    step = (len(items) - 1) / max(1, number - 1)
    return [items[round(step * place)] for place in range(number)]


def run_job(job: Job) -> list[str]:
    """Open a job's files: a sentence for each that is broken."""
    return job.open()


def fault_of(read: Callable[..., object], *args: object) -> list[str]:
    """The sentence of the ``UserError`` that ``read`` raises, or nothing."""
    try:
        read(*args)
    except UserError as error:
        return [str(error)]
    return []


def open_frames(frames: Sequence[Path], masks: Sequence[Path] = ()) -> list[str]:
    """Decode frames of a video, and masks of object ids of the same size; a sentence for each that is broken."""
    first, faults = None, []
    for path in frames:
        try:
            frame = read_frame(path)
            first = first or (path, frame)
            require_same_size(path, frame, *first)
        except UserError as error:
            faults.append(str(error))
    size = (first[1].shape[1], first[1].shape[2]) if first else None
    for path in masks:
        faults += fault_of(read_object_ids, path, size)
    return faults
