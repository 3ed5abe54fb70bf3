"""Checks of whole datasets: counts, missing files, and broken files.

Each dataset's module has a function ``check(row, root, splits, findings)`` that calls the loader's own readers and
records the sentences of their errors here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from datasets.expressions import Entry
from datasets.files import DATA_PAGE, and_more, read_frame, require_folder, require_same_size
from datasets.predictions import read_index_mask
from datasets.registry import DATASETS, Dataset, Size
from util.errors import UserError
from util.parallel import map_videos

SAMPLE_VIDEOS, SAMPLE_FRAMES, SAMPLE_IMAGES = 40, 3, 200  # per split, per video, per split of images
NOTE = "note: "  # marks what is no fault among the sentences of a job
CHILDREN = 20  # folders inside a wrong root that are searched for the dataset

Result = TypeVar("Result")
Item = TypeVar("Item")


class Remark(UserError):
    """What a check reports as a note: the loaders accept it."""


@dataclass(frozen=True)
class Count:
    """How many there are of something, and how many in the whole dataset (None: unknown)."""

    what: str
    found: int
    known: int | None = None

    @property
    def difference(self) -> int:
        """How many more are found than known; negative if some are missing."""
        return 0 if self.known is None else self.found - self.known


@dataclass(frozen=True)
class Job:
    """Files to open, in any process. ``open`` can be pickled and returns a sentence for each broken file."""

    open: Callable[[], list[str]]
    files: int


@dataclass
class Findings:
    """The result of a check.

    Attributes:
        every: open every file, not a sample.
        counts: in the order of the report.
        faults: a sentence for everything that is missing or broken.
        notes: what is worth knowing and no fault.
        jobs: files that remain to be opened.
        files: number of all files that could be opened.
        elsewhere: another folder that looks like the dataset's, if this one has none of its files.
    """

    every: bool
    counts: list[Count] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    files: int = 0
    elsewhere: Path | None = None

    def attempt(self, read: Callable[..., Result], *args: object) -> Result | None:
        """Return what ``read`` returns; if it raises a ``UserError``, record a fault and return None."""
        try:
            return read(*args)
        except UserError as error:
            self.faults.append(str(error))
            return None

    def count(self, what: str, found: int, known: int | None = None) -> None:
        """Record a number."""
        self.counts.append(Count(what, found, known))

    def count_split(self, split: str, videos: Mapping[str, Entry[Any]], size: Size) -> None:
        """Record the videos, expressions and frames of a split."""
        self.count(f"{split}: videos", len(videos), size.videos)
        self.count(f"{split}: expressions", sum(len(v.expressions) for v in videos.values()), size.expressions)
        self.count(f"{split}: frames", sum(len(v.frames) for v in videos.values()), size.frames)

    def present(self, folder: Path, names: Iterable[str], lister: str) -> list[Path]:
        """Return the files of a folder that exist; every other one, or a missing folder, is a fault."""
        if not folder.is_dir():
            self.faults.append(f"folder {folder} is missing, and {lister} lists it")
            return []
        with os.scandir(folder) as entries:
            there = {entry.name for entry in entries if entry.is_file()}  # excludes broken links
        wanted = list(dict.fromkeys(names))
        self.faults += [f"{folder / name} is missing, and {lister} lists it" for name in wanted if name not in there]
        return [folder / name for name in wanted if name in there]

    def present_frames(self, folder: Path, videos: Mapping[str, Entry[Any]], suffix: str) -> dict[str, list[Path]]:
        """Return, by video, the files ``<folder>/<video>/<frame><suffix>`` that exist; the others are faults."""
        if self.attempt(require_folder, folder, f"<video>/<frame>{suffix}") is None:
            return {name: [] for name in videos}
        return {
            name: self.present(folder / name, [f"{frame}{suffix}" for frame in video.frames], "the expressions file")
            for name, video in videos.items()
        }

    def sample(self, items: Sequence[Item], number: int) -> Sequence[Item]:
        """Return all items if every file is opened, otherwise at most ``number`` of them, evenly spread."""
        return items if self.every or len(items) <= number else spread(items, number)

    def open_later(self, files: int, function: Callable[..., list[str]], *args: object) -> None:
        """Add a job that opens ``files`` files and returns a sentence for each broken one."""
        self.jobs.append(Job(partial(function, *args), files))

    def open_videos(self, frames: Mapping[str, Sequence[Path]], masks: Mapping[str, Sequence[Path]]) -> None:
        """Add jobs that decode the frames and masks of videos by name; see ``open_frames``."""
        self.files += sum(map(len, frames.values())) + sum(map(len, masks.values()))
        for name in self.sample(list(frames), SAMPLE_VIDEOS):
            pictures, outlines = (self.sample(part.get(name, ()), SAMPLE_FRAMES) for part in (frames, masks))
            self.open_later(len(pictures) + len(outlines), open_frames, pictures, outlines)


def check(name: str, root: Path, splits: Sequence[str] = (), every: bool = False, workers: int = 1) -> Findings:
    """Check a dataset.

    Args:
        name: the dataset's name.
        root: its folder, which is only read.
        splits: the splits to check; empty means all.
        every: open every file, not a sample.
        workers: processes.

    Raises:
        UserError: an unknown split, or ``root`` is not a folder.
    """
    row = DATASETS[name]
    unknown = [split for split in splits if split not in row.splits]
    if unknown:
        raise UserError(f"unknown split {unknown[0]!r}; {name} has {', '.join(row.splits)}")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; name the folder of {name} (see {DATA_PAGE})")
    findings = _run(row, root, splits, every)
    if not findings.files:
        above = root / ".." if root.name in ("", "..") else root.parent
        folders = (above, *islice((path for path in sorted(root.iterdir()) if path.is_dir()), CHILDREN))
        findings.elsewhere = next((folder for folder in folders if _run(row, folder, splits, False).files), None)
    sentences = [sentence for found in map_videos(run_job, findings.jobs, workers, unit="part") for sentence in found]
    remarks = [sentence.removeprefix(NOTE) for sentence in sentences if sentence.startswith(NOTE)]
    findings.notes += [f"{remarks[0]}{and_more(remarks)}"] if remarks else []
    findings.faults += [sentence for sentence in sentences if not sentence.startswith(NOTE)]
    findings.faults = list(dict.fromkeys(findings.faults))
    return findings


def _run(row: Dataset, root: Path, splits: Sequence[str], every: bool) -> Findings:
    findings = Findings(every)
    row.function("check")(row, root, list(splits) or list(row.splits), findings)
    return findings


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """Return ``number`` items, evenly spread from the first to the last."""
    step = (len(items) - 1) / max(1, number - 1)
    return [items[round(step * place)] for place in range(number)]


def run_job(job: Job) -> list[str]:
    """Open a job's files and return a sentence for each broken one."""
    return job.open()


def faults_of(reads: Iterable[Callable[[], object]]) -> list[str]:
    """Call functions that read files; return the sentence of each ``UserError``."""
    faults = []
    for read in reads:
        try:
            read()
        except Remark as error:
            faults.append(f"{NOTE}{error}")
        except UserError as error:
            faults.append(str(error))
    return faults


def open_frames(frames: Sequence[Path], masks: Sequence[Path] = ()) -> list[str]:
    """Decode frames of a video and masks of the same size; return a sentence for each broken file."""
    first, faults = None, []
    for path in frames:
        try:
            frame = read_frame(path)
            first = first or (path, frame.shape)
            require_same_size(path, frame.shape, *first)
        except UserError as error:
            faults.append(str(error))
    size = (first[1][1], first[1][2]) if first else None
    return faults + faults_of(partial(read_index_mask, path, size) for path in masks)
