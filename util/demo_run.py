"""From a video to masks and pictures, in two passes: the first segments, the second draws.

Whether a sentence names anything in a video is known when all its scores are, at the end of the first pass. Masks wait
on the disk; memory does not grow with the video, but for a few numbers per frame. How to segment is handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from datasets.predictions import read_binary_mask, write_grey, write_mask
from util.background import BackgroundTasks
from util.demo_results import MASKS_FILE, CocoWriter, FrameRecord, SentenceRecord, new_folder, sentence_records
from util.demo_sheet import Sheet
from util.errors import RunError
from util.media_frames import Media, MediaFrame
from util.media_reader import VideoFile
from util.media_sound import open_sound
from util.media_writer import open_video
from util.object_overlays import ObjectPainter, numbered
from util.parallel import bar_style
from util.visualisation import write_picture

MASKS, PROBABILITIES = "masks", "probabilities"
OVERLAY, STILL, SHEET = "overlay.mp4", "overlay.png", "contact_sheet.png"
WRITERS = 2  # threads that write masks


class FrameMasks(Protocol):
    """What is needed of a frame's result; ``models.windows.FrameResult`` is one."""

    @property
    def probabilities(self) -> np.ndarray:
        """float32 ``[S, H0, W0]``, 0…1."""

    @property
    def boxes(self) -> np.ndarray:
        """``[S, 4]``: (x0, y0, x1, y1) in pixels."""

    @property
    def scores(self) -> np.ndarray:
        """``[S]``, 0…1."""


FrameSegmenter = Callable[[Iterable[np.ndarray]], Iterator[FrameMasks]]
"""Frames uint8 RGB ``[H0, W0, 3]`` → one result per frame, in order."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        stage: "segment" or "draw".
        done: frames.
        total: frames, as far as it is known.
        rate: frames per second of this stage.
    """

    stage: str
    done: int
    total: int | None
    rate: float


@dataclass(frozen=True)
class DemoResult:
    """What a run has written.

    Attributes:
        folder: where everything is.
        sentences: with their scores.
        scores: ``[T, S]``, 0…1, of each frame and sentence.
        times: ``[T]``, when the overlay shows each frame, in seconds.
        seconds: of the first pass.
    """

    folder: Path
    sentences: list[SentenceRecord]
    scores: np.ndarray
    times: list[Fraction]
    seconds: float

    @property
    def frames(self) -> int:
        """How many there are."""
        return len(self.times)

    def lines(self, score_threshold: float) -> list[str]:
        """What a user should be told."""
        lines = []
        for sentence in self.sentences:
            line = f"{sentence.number} “{sentence.text}”: score {sentence.score:.2f}"
            if not sentence.found:
                line += (
                    f", below the score threshold of {score_threshold:g}: it names nothing here, its masks are empty"
                )
            lines.append(line)
        rate = self.frames / self.seconds if self.seconds else 0.0
        lines.append(
            f"wrote {self.frames} frames with {len(self.sentences)} sentence{'s'[: len(self.sentences) > 1]} "
            f"({rate:.2f} frames/s segmented): {self.folder}"
        )
        return lines


def run_demo(
    media: Media,
    sentences: Sequence[str],
    segment: FrameSegmenter,
    folder: Path,
    threshold: float = 0.5,
    score_threshold: float = 0.0,
    save_prob: bool = False,
    force: bool = False,
    about: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] | None = None,
    show: bool = True,
) -> DemoResult:
    """Segment a video and write masks, overlay, contact sheet and ``masks.json``.

    Args:
        media: the video.
        sentences: as typed; the order is that of the segmenter's results.
        segment: of the frames.
        folder: it appears when all is written.
        threshold: mask probability from which a pixel belongs to the object.
        score_threshold: mean score below which a sentence names nothing.
        save_prob: also write the probabilities.
        force: replace an earlier result.
        about: further facts for ``masks.json``, as plain values.
        report: is told after every frame.
        show: print a progress bar.

    Raises:
        UserError: the video cannot be read or a file not written, or the folder is taken.
        RunError: the predictions are not finite numbers.
    """
    with new_folder(folder, force) as target:
        run = _Run(media, sentence_records(sentences), target, report, show)
        started = time.perf_counter()
        run.segment(segment, threshold, save_prob)
        seconds = time.perf_counter() - started
        run.decide(score_threshold)
        facts = {
            "video": str(media.path.name or media.path),
            "frames_per_second": round(float(media.rate), 4),
            "threshold": threshold,
            "score_threshold": score_threshold,
            **(about or {}),
        }
        run.draw({**facts, "notes": media.notes})
        times = [frame.time - run.begin for frame in run.frames]
        return DemoResult(folder, run.sentences, np.stack(run.scores), times, seconds)


class _Run:
    """The two passes, and what the second one needs of the first."""

    def __init__(
        self,
        media: Media,
        sentences: list[SentenceRecord],
        target: Path,
        report: Callable[[Progress], None] | None,
        show: bool,
    ) -> None:
        self.media, self.sentences, self.target = media, sentences, target
        self.report, self.show = report, show
        self.frames: list[FrameRecord] = []
        self.scores: list[np.ndarray] = []  # [S] each
        self.boxes: list[np.ndarray] = []  # [S, 4] each

    def segment(self, segment: FrameSegmenter, threshold: float, save_prob: bool) -> None:
        """The first pass: masks to the disk, scores and boxes into memory."""
        with BackgroundTasks(WRITERS) as tasks:
            results = segment(self._images())
            for number, result in enumerate(self._watched("segment", results, self.media.count)):
                if not np.isfinite(result.scores).all():
                    raise RunError(
                        f"the predictions for frame {self.frames[number].name} are not finite numbers; the checkpoint "
                        "may come from a run that diverged"
                    )
                self.scores.append(np.asarray(result.scores, np.float32))
                self.boxes.append(np.asarray(result.boxes, np.float32))
                for sentence, probability in zip(self.sentences, result.probabilities, strict=True):
                    tasks.submit(write_mask, self._png(MASKS, sentence, number), probability >= threshold)
                    if save_prob:
                        tasks.submit(write_grey, self._png(PROBABILITIES, sentence, number), _as_bytes(probability))

    def decide(self, score_threshold: float) -> None:
        """Which sentences name something, by the mean of their scores."""
        means = np.stack(self.scores).mean(axis=0, dtype=np.float64).tolist()
        self.sentences = [
            replace(sentence, score=mean, found=mean >= score_threshold)
            for sentence, mean in zip(self.sentences, means, strict=True)
        ]

    def draw(self, about: Mapping[str, Any]) -> None:
        """The second pass: overlay, contact sheet and ``masks.json``; empty masks where a sentence names nothing."""
        media, sheet = self.media, Sheet(self.sentences, self.media.size, len(self.frames))
        painter = ObjectPainter(numbered([s.text for s in self.sentences]), media.size)
        begin = self.begin
        last = self.frames[-1].time + self.frames[-1].duration
        with ExitStack() as stack:
            sound = None
            if isinstance(media, VideoFile):
                end = last - begin if media.excerpt.end is not None else None
                sound = stack.enter_context(open_sound(media.path, begin, end, cut=bool(media.excerpt.start)))
            movie = stack.enter_context(open_video(self.target / OVERLAY, media.rate, media.time_base, sound))
            file = stack.enter_context((self.target / MASKS_FILE).open("w", encoding="utf-8", errors="replace"))
            coco = CocoWriter(file, about, media.size, self.frames, self.sentences)
            for number, frame in enumerate(self._watched("draw", self._again(), len(self.frames))):
                masks = np.stack([self._mask(sentence, number) for sentence in self.sentences])
                for i, (sentence, mask) in enumerate(zip(self.sentences, masks, strict=True)):
                    coco.add(number, sentence.number, mask, self.boxes[number][i], float(self.scores[number][i]))
                picture = painter.draw(frame.image, masks)
                movie.write(picture, frame.time - begin, frame.duration)
                sheet.add(number, frame, masks)
                if media.still:
                    write_picture(self.target / STILL, picture)
            coco.finish()
        sheet.write(self.target / SHEET, media.path.name or str(media.path))

    @property
    def begin(self) -> Fraction:
        """When the overlay begins, in seconds of the video."""
        return self.frames[0].time if self.media.excerpt.start else Fraction(0)

    def _images(self) -> Iterator[np.ndarray]:
        """The frames for the segmenter; what is to be known of them is noted as they pass."""
        for frame in self.media.frames():
            self.frames.append(FrameRecord(frame.name, frame.time, frame.duration))
            yield frame.image

    def _again(self) -> Iterator[MediaFrame]:
        """The same frames a second time."""
        for frame, before in zip_longest(self.media.frames(), self.frames):
            if frame is None or before is None or (frame.name, frame.time) != (before.name, before.time):
                raise RunError(f"{self.media.path} was changed while it was read; start again")
            yield frame

    def _mask(self, sentence: SentenceRecord, number: int) -> np.ndarray:
        path = self._png(MASKS, sentence, number)
        if sentence.found:
            return read_binary_mask(path, self.media.size)
        empty = np.zeros(self.media.size, bool)
        write_mask(path, empty)
        return empty

    def _png(self, kind: str, sentence: SentenceRecord, number: int) -> Path:
        return self.target / kind / sentence.folder / f"{self.frames[number].name}.png"

    def _watched(self, stage: str, items: Iterable[Any], total: int | None) -> Iterator[Any]:
        """Hand items on, and say how far they are."""
        started = time.perf_counter()
        with tqdm(total=total, unit="frame", desc=stage, disable=not self.show, **bar_style()) as bar:
            for done, item in enumerate(items, start=1):
                yield item
                if bar.total is not None and done > bar.total:  # headers are not always right
                    bar.total = done
                bar.update()
                if self.report is not None:
                    self.report(Progress(stage, done, total, done / (time.perf_counter() - started)))


def _as_bytes(probability: np.ndarray) -> np.ndarray:
    """0…1 → 0…255, rounded."""
    return (np.clip(probability, 0, 1) * 255 + 0.5).astype(np.uint8)
