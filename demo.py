"""Segment the objects that sentences name in a video: masks, an overlay with sound, and a contact sheet.

python demo.py video.mp4 "the dog chasing the ball" "the ball" [--resume runs/vdit/checkpoint.pth] [--out out]

VIDEO is a video, a GIF, an image or a folder of images, of any length. ``docs/demo.md`` lists what is written.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import av
import numpy as np
from tqdm import tqdm

from datasets.export import (
    FORMATS,
    MASKS,
    PROBABILITIES,
    MaskFiles,
    check_formats,
    export_masks,
    mask_area,
    mask_box,
    need_images,
    need_probabilities,
    run_lengths,
)
from datasets.files import require_outside_dataset
from datasets.predictions import read_binary_mask, read_grey, write_grey, write_mask
from util.config import WEIGHTS, Config
from util.device import DEMO, is_out_of_memory, memory_advice
from util.drawing import (
    SHEET_TILES,
    Colour,
    ObjectPainter,
    object_colours,
    object_sheet,
    sentence_labels,
    sheet_tile,
    spread,
    write_picture,
)
from util.errors import RunError, UserError, orderly_end, printable, run_cli
from util.files import atomic_folder, atomic_path, library_versions, project_version, sole_run
from util.lettering import lettering_notes
from util.options import home_expanded, option, read_flags, read_yaml, text_of
from util.parallel import BackgroundTasks, bar_style
from util.text import normalise_sentence
from util.video import (
    Excerpt,
    ImageFolder,
    Media,
    MediaFrame,
    VideoFile,
    VideoWriter,
    create_video,
    open_media,
    open_sound,
    parse_time,
)

if TYPE_CHECKING:  # PyTorch takes seconds to import; wrong options and videos are reported before that
    from models.inference import FrameResult
    from models.pretrained import Pretrained

MASKS_FILE, OVERLAY, STILL, SHEET = "masks.json", "overlay.mp4", "overlay.png", "contact_sheet.png"
MAKER = "demo.py"  # in masks.json, marks its folder as a result of this command
WINDOW = 36
WRITERS = 2  # threads that write masks
SLUG_LETTERS = 40

# Config's options of training and of datasets would have no effect here, so they are unknown flags.
WITHOUT_GROUPS = frozenset({"matching and losses", "data", "training"})
BUT_WITH = frozenset({"eval_size", "max_size", "seed", "precision", "compile"})
WITHOUT = frozenset({"output_dir", "eval", "visualize", "wandb", "pretrained_weights", "keep_class_heads"})

Own = TypeVar("Own")
FrameSegmenter = Callable[[Iterable[np.ndarray]], "Iterator[FrameResult]"]
"""Takes frames uint8 RGB ``[H0, W0, 3]`` and yields one result per frame, in order."""

_demo, _windows = partial(option, "demo"), partial(option, "windows")


@dataclass(frozen=True)
class WindowOptions:
    """The options of ``demo.py`` and the web page about the windows in which a video is segmented."""

    window: int = _windows(WINDOW, "number of frames that the model sees together", minimum=1)
    overlap: int | str = _windows(
        "auto",
        "number of frames that two windows share, by which an object is followed; auto is 6, or half of a short window",
        minimum=0,
        auto=True,
    )


@dataclass(frozen=True)
class DemoOptions(WindowOptions):
    """The options of ``demo.py``, in addition to those of ``Config``."""

    weights: str = _demo("vdit", "published weights to use where --resume names no checkpoint", choices=tuple(WEIGHTS))
    out: str = _demo("", "folder for everything that is written; empty is runs/demo/VIDEO", path=True, empty=True)
    force: bool = _demo(False, "replace what an earlier run of the demo wrote to --out")
    start: str = _demo("", "where to begin, in seconds or as hh:mm:ss", empty=True)
    end: str = _demo("", "where to stop, in seconds or as hh:mm:ss", empty=True)
    stride: int = _demo(1, "take every N-th frame", minimum=1)
    fps: float = _demo(24.0, "frames per second of a folder of images; a video has its own", minimum=0.01, maximum=1000)
    save_prob: bool = _demo(False, "also write the mask probabilities, as 8-bit PNGs (255 = 1)")
    export: tuple[str, ...] = _demo(
        ("png",),
        "formats of the masks: " + "; ".join(f"{name}: {kind.help}" for name, kind in FORMATS.items()),
        choices=tuple(FORMATS),
    )
    colors: tuple[str, ...] = _demo((), "colours of the objects, one for each sentence: CSS names or #rrggbb")

    def folder(self, video: Path) -> Path:
        """Return the output folder."""
        return Path(self.out or Path("runs") / "demo" / (video.stem.strip(".") or video.resolve().name))


def main(argv: Sequence[str] | None = None) -> None:
    """Segment a video as the command line says (``argv`` without the program's name; None: the process's own)."""
    path, sentences, options, given = read_command(sys.argv[1:] if argv is None else argv)
    folder = options.folder(path)
    require_free(folder, options.force)  # before minutes of work rather than after
    start = parse_time(options.start, "--start") if options.start else Fraction(0)
    end = parse_time(options.end, "--end") if options.end else None
    media = open_media(path, Excerpt(start, end, options.stride), Fraction(options.fps).limit_denominator(1001))
    if options.fps != DemoOptions.fps and not (media.still or path.is_dir()):
        raise UserError(
            f"--fps is for folders of images, and {path} has its own times; use --stride to take fewer frames"
        )
    from models.inference import large_video_notes, window_overlap
    from models.pretrained import open_pretrained

    window_overlap(options.window, options.overlap)  # before a download rather than after
    source = given.pop("resume", "") or WEIGHTS[options.weights].source
    pretrained = open_pretrained(source, "--resume", {"device": "auto", **given})
    early = [*pretrained.notes, *large_video_notes({str(path): media.size}, pretrained.options), *media.notes]
    for note in early:
        print(f"note: {printable(note)}")
    with orderly_end(), memory_advice(DEMO):
        result = segment_to_folder(
            pretrained,
            media,
            sentences,
            folder,
            window=options.window,
            overlap=options.overlap,
            save_prob=options.save_prob,
            force=options.force,
            formats=options.export,
            colours=object_colours(len(sentences), options.colors),
        )
    for note in media.notes:
        if note not in early:
            print(f"note: {printable(note)}")
    print("\n".join(map(printable, result.lines(pretrained.options.score_threshold))))


def read_command(argv: Sequence[str] | None = None) -> tuple[Path, list[str], DemoOptions, dict[str, Any]]:
    """Read the command line.

    Returns:
        The video, the sentences, the demo's options, and the options of ``Config`` that the file of ``--config`` and
        the flags set.

    Raises:
        UserError: a flag is unknown (the message names the nearest known one) or wrong, or a sentence is empty.
    """
    description = "Segment the objects that sentences name in a video, a GIF, a folder of images or an image."
    description += ' Example: python demo.py video.mp4 "the dog chasing the ball" "the ball"'
    arguments = {"VIDEO": None, "SENTENCE": "+"}
    options, given, (video, sentences) = read_options(DemoOptions, argv, description, arguments)
    video = Path(home_expanded(text_of(video, "the video's name")))
    for number, sentence in enumerate(sentences, start=1):
        text_of(sentence, f"sentence {number}")
        if not normalise_sentence(sentence):
            raise UserError(f"sentence {number} is empty; describe the object to segment")
        if normalise_sentence(sentence).strip("“”„«»'") in ("a", "an", "the"):
            raise UserError(f'sentence {number} is only {sentence}; put each sentence in straight quotes: "the dog"')
        if sentence.startswith(("–", "—")):
            raise UserError(f"sentence {number} is {sentence}; begin flags with two hyphens, and sentences with a word")
    object_colours(len(sentences), options.colors)
    check_formats(options.export, len(sentences))
    return video, [" ".join(sentence.split()) for sentence in sentences], options, given


def read_options(
    own: type[Own], argv: Sequence[str] | None, description: str, arguments: Mapping[str, str | None] | None = None
) -> tuple[Own, dict[str, Any], list[Any]]:
    """Read a command line with a command's own options and those of ``Config`` that affect masks.

    Args:
        own: the dataclass of the command's options.
        argv, description, arguments: as in ``read_flags``.

    Returns:
        The command's options, the options of ``Config`` that the file of ``--config`` and the flags set, and the
        positional arguments.

    Raises:
        UserError: a flag is unknown (the message names the nearest known one), or an option is wrong.
    """
    fields = list(dataclasses.fields(own))  # type: ignore[arg-type]
    names = {field.name for field in fields}
    for field in dataclasses.fields(Config):
        if field.name in BUT_WITH or (field.metadata["rule"].group not in WITHOUT_GROUPS and field.name not in WITHOUT):
            fields.append(field)
    fields.sort(key=lambda field: field.metadata["rule"].group in ("windows", "model"))  # in the help, these come last
    every = dataclasses.make_dataclass(
        "EveryOption",
        [(f.name, f.type, dataclasses.field(default=f.default, metadata=f.metadata)) for f in fields],
        namespace={"__module__": __name__},
    )
    flags = read_flags(every, argv, description, arguments)
    positional = [flags.pop(name) for name in arguments or ()]
    options = own(**{name: flags.pop(name) for name in names & flags.keys()})
    file = read_yaml(Config, flags["config"]) if flags.get("config") else {}
    return options, {**file, **flags}, positional


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        stage: "check", "segment", "export" or "draw", and "threshold" in ``rethreshold``.
        done: number of frames.
        total: number of frames, if it is known.
        rate: frames per second of this stage.
    """

    stage: str
    done: int
    total: int | None
    rate: float


@dataclass(frozen=True)
class SentenceRecord:
    """The result of one sentence.

    Attributes:
        number: from 1.
        text: as typed.
        folder: name of its folder below ``masks`` and ``probabilities``.
        score: mean over the frames, 0…1; None from a model without scores.
        found: whether the score reaches the threshold, or without scores whether any mask has a pixel; otherwise all
            masks are empty.
    """

    number: int
    text: str
    folder: str
    score: float | None = None
    found: bool = True

    @property
    def verdict(self) -> str:
        """Return the score, or without one whether the sentence was found."""
        if self.score is None:
            return "found" if self.found else "not found"
        return f"score {self.score:.2f}"


@dataclass(frozen=True)
class DemoResult:
    """The result of a run.

    Attributes:
        folder: the output folder.
        sentences: with their scores.
        scores: ``[T, S]``, 0…1, of each frame and sentence; None from a model without scores.
        times: ``[T]``, when the overlay shows each frame, in seconds.
        seconds: how long segmentation took.
        run: for ``rethreshold`` and ``export_again``.
    """

    folder: Path
    sentences: list[SentenceRecord]
    scores: np.ndarray | None
    times: list[Fraction]
    seconds: float
    run: _Run = dataclasses.field(repr=False)

    def lines(self, score_threshold: float) -> list[str]:
        """Return the summary for the user."""
        lines = []
        for sentence in self.sentences:
            line = f"{sentence.number} “{sentence.text}”: {sentence.verdict}"
            if sentence.score is not None and not sentence.found:
                line += f", below the score threshold of {score_threshold:g}: not found"
            if not sentence.found or sentence.number not in self.run.shown:
                line += ", its masks are empty"
            lines.append(line)
        frames, sentences = len(self.times), len(self.sentences)
        lines.append(
            f"wrote {frames} frame{'s'[: frames > 1]} with {sentences} sentence{'s'[: sentences > 1]} "
            f"({frames / self.seconds:.2f} frames/s segmented): {self.folder}"
        )
        return lines


def segment_to_folder(
    pretrained: Pretrained,
    media: Media,
    sentences: Sequence[str],
    folder: Path,
    *,
    window: int = WINDOW,
    overlap: int | str = "auto",
    threshold: float | None = None,
    score_threshold: float | None = None,
    **output: Any,
) -> DemoResult:
    """Segment a video with a model and write everything that ``docs/demo.md`` lists.

    Args:
        media, sentences, folder: as in ``run_demo``.
        window: number of frames that the model sees together.
        overlap: number of frames that two windows share; "auto": 6, or half of a short window.
        threshold: mask probability from which a pixel belongs to the object; None: as in
            ``pretrained.options``.
        score_threshold: mean score below which a sentence counts as not found; None: as in ``pretrained.options``.
        **output: ``save_prob``, ``force``, ``formats``, ``colours``, ``report`` and ``show`` of ``run_demo``.

    Raises:
        UserError: as in ``run_demo``, or window and overlap do not fit together.
        RunError: as in ``run_demo``, or the predictions are not finite.
    """
    from models.inference import VideoSegmenter, window_overlap
    from util.device import device_name

    options = pretrained.options
    named = [normalise_sentence(sentence) for sentence in sentences]
    segmenter = VideoSegmenter(pretrained.model, options, named, window, window_overlap(window, overlap))
    return run_demo(
        media,
        sentences,
        segmenter.run,
        folder,
        threshold=options.threshold if threshold is None else threshold,
        score_threshold=options.score_threshold if score_threshold is None else score_threshold,
        about={
            "checkpoint": str(pretrained.checkpoint),
            "model": pretrained.name,
            "device": device_name(pretrained.device),
            "window": window,
            "overlap": segmenter.overlap,
            "stride": media.excerpt.stride,
            "eval_size": options.eval_size,
            "seed": options.seed,
        },
        **output,
    )


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
    formats: Sequence[str] = (),
    colours: Sequence[Colour] | None = None,
) -> DemoResult:
    """Segment a video with any segmenter: write masks and ``masks.json``, then the overlay and the contact sheet.

    The video is read twice, because only all scores together decide whether a sentence is found; a folder of images is
    also checked first. Masks are kept on disk; memory holds a few numbers per frame.

    The folder appears once everything is written, or when anything fails after the masks are complete: an error then
    says what is missing, and also an interrupted run keeps its masks. A run that ends earlier leaves nothing.

    Args:
        sentences: S of them, in the order of the segmenter's results.
        folder: the output folder.
        threshold: mask probability from which a pixel belongs to the object.
        score_threshold: mean score below which a sentence counts as not found.
        save_prob: also write the probabilities, from which ``rethreshold`` makes other masks.
        about: further facts for ``masks.json``, as plain values.
        report: called after every frame.
        formats: further formats of the masks, of ``datasets.export.FORMATS``; a note reports one that fails.
        colours: one for each sentence; None: the palette's.

    Raises:
        UserError: the video cannot be read, a file cannot be written, or the folder is taken.
        RunError: the video was changed while it was read.
    """
    for note in lettering_notes(sentences):
        media.note(note)
    colours = colours or object_colours(len(sentences))
    run = _Run(media, sentence_records(sentences), about or {}, report, show, tuple(formats), colours)
    segmented = partial(run.segment, segment, save_prob or need_probabilities(formats))
    return run.write(folder, force, segmented, threshold, score_threshold)


def rethreshold(
    result: DemoResult,
    threshold: float,
    score_threshold: float,
    folder: Path | None = None,
    report: Callable[[Progress], None] | None = None,
    show: bool = True,
    colours: Sequence[Colour] | None = None,
) -> DemoResult:
    """Write a result with other thresholds, without segmenting again; the video must still exist.

    Probabilities are stored in steps of 1/255, so ``threshold`` is rounded to such a step. At 0.5, the masks are those
    of the segmentation.

    Args:
        result: of a run with ``save_prob``, or of this function.
        folder: a new folder for the complete result; None: it replaces the earlier one.
        threshold, score_threshold, report: as in ``run_demo``.
        colours: one for each sentence; None: as before.

    Raises:
        UserError, RunError: as in ``run_demo``. Until the new masks are complete, the earlier result stays as it is.
    """
    if not (result.folder / PROBABILITIES).is_dir():
        raise UserError(f"{result.folder} has no {PROBABILITIES}; segment the video again, with --save_prob")
    run = replace(result.run, report=report, show=show, colours=colours or result.run.colours)
    masks = partial(run.threshold_again, result.folder / PROBABILITIES)
    return run.write(folder or result.folder, folder is None, masks, threshold, score_threshold)


def export_again(
    result: DemoResult, formats: Sequence[str], report: Callable[[Progress], None] | None = None, show: bool = True
) -> dict[str, str]:
    """Write the masks of a result in further formats into its folder; the video must still exist.

    Args:
        result: of a run with ``save_prob`` if a format needs the probabilities.
        formats, report: as in ``run_demo``.

    Returns:
        The names of the formats that failed, and why, in one sentence.
    """
    return replace(result.run, target=result.folder, formats=formats, report=report, show=show).export()


def score_entry(score: float | None) -> dict[str, Any]:
    """Return the entry of a score in ``masks.json``: none from a model without scores."""
    return {} if score is None else {"score": round(score, 5)}


@dataclass
class _Run:
    """The stages of ``run_demo`` and ``rethreshold``, and the data that they share."""

    media: Media
    sentences: list[SentenceRecord]
    about: Mapping[str, Any]
    report: Callable[[Progress], None] | None
    show: bool
    formats: Sequence[str]
    colours: Sequence[Colour]
    target: Path = Path()  # where files are written; it becomes the output folder
    frames: list[MediaFrame] = dataclasses.field(default_factory=list)  # without their images
    scores: list[np.ndarray] = dataclasses.field(default_factory=list)  # [S] each; empty from a model without scores
    boxes: list[np.ndarray] = dataclasses.field(default_factory=list)  # [S, 4] each
    shown: set[int] = dataclasses.field(default_factory=set)  # numbers of the sentences whose masks have a pixel
    seconds: float = 0.0

    def write(
        self, folder: Path, force: bool, masks: Callable[[float], None], threshold: float, score_threshold: float
    ) -> DemoResult:
        """Write a result; ``masks`` writes the masks at a threshold."""
        failure: BaseException | None = None
        with new_folder(folder, force) as self.target:
            masks(threshold)
            self.decide(score_threshold)
            try:
                self.write_json({"threshold": threshold, "score_threshold": score_threshold})
                for name, reason in self.export().items():
                    reason = reason.replace(str(self.target), str(folder))
                    self.media.note(f"--export {name} is not written: {reason}")
                self.draw()
            except BaseException as error:  # even Ctrl-C: the masks stay
                failure = error
        if failure is not None:
            raise self._explained(failure, folder)
        times = [frame.time - self.begin for frame in self.frames]
        scores = np.stack(self.scores) if self.scores else None
        return DemoResult(folder, self.sentences, scores, times, self.seconds, self)

    def _explained(self, error: BaseException, folder: Path) -> BaseException:
        """Return the error that is raised for one after which the masks stay."""
        missing = ", ".join(name for name in (MASKS_FILE, OVERLAY, SHEET) if not (folder / name).exists())
        kept = f"the masks are complete in {folder}, without {missing}"
        if isinstance(error, UserError | RunError):
            explained: BaseException = type(error)(f"{kept}: {error}".replace(str(self.target), str(folder)))
        elif is_out_of_memory(error):
            explained = RunError(f"{kept}: memory ran out")
        else:
            error.add_note(kept)
            if self.show and not isinstance(error, Exception):
                print(f"note: {printable(kept)}")
            return error
        explained.__cause__ = error
        return explained

    @property
    def begin(self) -> Fraction:
        """When the overlay begins, in seconds of the video."""
        return self.frames[0].time if self.media.excerpt.start else Fraction(0)

    def check(self) -> None:
        """Find what would otherwise fail after the segmentation: images of a folder, and the overlay's encoder."""
        if isinstance(self.media, ImageFolder):
            for _ in self._watched("check", self.media.frames(), self.media.count):
                pass
        try:
            with self._movie(self.media.excerpt.start, Fraction(0)) as movie:
                movie.write(np.zeros((*self.media.size, 3), np.uint8), Fraction(0), Fraction(1))
        except UserError as error:
            if not isinstance(error.__cause__, av.FFmpegError):
                raise
            raise UserError(
                f"an overlay of {self.media.path} cannot be encoded ({error.__cause__.strerror}); convert it first"
            ) from error
        (self.target / OVERLAY).unlink()

    def segment(self, segment: FrameSegmenter, save_prob: bool, threshold: float) -> None:
        """Write all masks, and keep scores and boxes."""
        self.check()
        started = time.perf_counter()
        with BackgroundTasks(WRITERS) as tasks:
            results = segment(self._images())
            for number, result in enumerate(self._watched("segment", results, self.media.count)):
                for kept, values in ((self.scores, result.scores), (self.boxes, result.boxes)):
                    if values is not None:
                        kept.append(np.asarray(values, np.float32))
                for sentence, probability in zip(self.sentences, result.probabilities, strict=True):
                    self._write_mask(tasks, sentence, number, probability >= threshold)
                    if save_prob:
                        tasks.submit(write_grey, self._png(PROBABILITIES, sentence, number), _levels(probability))
        self.seconds = time.perf_counter() - started

    def threshold_again(self, probabilities: Path, threshold: float) -> None:
        """Write all masks from the probabilities of an earlier result, and copy these."""
        level, self.shown = _levels(np.float32(threshold)), set()
        shutil.copytree(probabilities, self.target / PROBABILITIES)
        with BackgroundTasks(WRITERS) as tasks:
            for number in self._watched("threshold", range(len(self.frames)), len(self.frames)):
                for sentence in self.sentences:
                    levels = read_grey(self._png(PROBABILITIES, sentence, number), self.media.size)
                    self._write_mask(tasks, sentence, number, levels >= level)

    def decide(self, score_threshold: float) -> None:
        """Decide by their mean scores which sentences are found, and empty the masks of the others.

        Without scores, those whose masks have a pixel are found.
        """
        if not self.scores:
            self.sentences = [replace(sentence, found=sentence.number in self.shown) for sentence in self.sentences]
            return
        means = np.stack(self.scores).mean(axis=0, dtype=np.float64).tolist()
        self.sentences = [
            replace(sentence, score=mean, found=mean >= score_threshold)
            for sentence, mean in zip(self.sentences, means, strict=True)
        ]
        empty = np.zeros(self.media.size, bool)
        for sentence in self.sentences:
            for number in range(0 if sentence.found else len(self.frames)):
                write_mask(self._png(MASKS, sentence, number), empty)

    def write_json(self, thresholds: Mapping[str, float]) -> None:
        """Write all masks as one file in COCO's format; images are frames, categories are sentences."""
        info = {
            "maker": MAKER,
            "video": str(self.media.path.name or self.media.path),
            "frames_per_second": round(float(self.media.rate), 4),
            "pixel_aspect_ratio": round(float(self.media.pixel_aspect), 4),
            **thresholds,
            **self.about,
            "notes": self.media.notes,
            "versions": {"project": project_version(), **library_versions()},
        }
        height, width = self.media.size
        with (
            atomic_path(self.target / MASKS_FILE) as temporary,
            temporary.open("w", encoding="utf-8", errors="replace") as file,
        ):
            file.write('{"info": ' + json.dumps(info, ensure_ascii=False))
            categories = (
                {"id": s.number, "name": s.text, "folder": s.folder, **score_entry(s.score), "found": s.found}
                for s in self.sentences
            )
            _write_rows(file, "categories", categories)
            shared = {"width": width, "height": height}
            images = (
                {
                    "id": i,
                    "file_name": f"{frame.name}.png",
                    **shared,
                    "source_index": frame.index,
                    "time": round(float(frame.time), 6),
                    "duration": round(float(frame.duration), 6),
                }
                for i, frame in enumerate(self.frames)
            )
            _write_rows(file, "images", images)
            _write_rows(file, "annotations", self._annotations())
            file.write("}\n")

    def export(self) -> dict[str, str]:
        """Write the masks in further formats; return those that failed, and why."""
        sentences = {sentence.folder: sentence.text for sentence in self.sentences}
        files = MaskFiles(self.target, self.media, self.frames, self.begin, sentences, self.colours)
        frames = self._again() if need_images(self.formats) else self.frames
        return export_masks(self.formats, files, self._watched("export", frames, len(self.frames)))

    def draw(self) -> None:
        """Write the overlay and the contact sheet."""
        media = self.media
        entries = [(s.text, s.verdict + ("" if s.found or s.score is None else ", not found")) for s in self.sentences]
        wanted, tiles = spread(range(len(self.frames)), SHEET_TILES), []
        painter = ObjectPainter(sentence_labels([s.text for s in self.sentences]), media.size, colours=self.colours)
        end = self.frames[-1].time + self.frames[-1].duration - self.begin if media.excerpt.end is not None else None
        with self._movie(self.begin, end) as movie:
            for number, frame in enumerate(self._watched("draw", self._again(), len(self.frames))):
                masks = np.stack([self._mask(sentence, number) for sentence in self.sentences])
                picture = painter.draw(frame.image, masks)
                movie.write(picture, frame.time - self.begin, frame.duration)
                if number in wanted:
                    tiles.append(sheet_tile(frame.image, masks, float(frame.time), self.colours))
                if media.still:
                    write_picture(self.target / STILL, picture)
        object_sheet(self.target / SHEET, media.path.name or str(media.path), entries, tiles, self.colours)

    @contextmanager
    def _movie(self, begin: Fraction, end: Fraction | None) -> Iterator[VideoWriter]:
        """Write the overlay, with the sound of the video from ``begin`` on, for ``end`` seconds (None: all)."""
        with ExitStack() as stack:
            sound = None
            if isinstance(self.media, VideoFile):
                cut = bool(self.media.excerpt.start)
                sound = stack.enter_context(open_sound(self.media.path, begin, end, cut, self.media.shifts))
            yield stack.enter_context(
                create_video(self.target / OVERLAY, self.media.rate, sound, self.media.pixel_aspect)
            )

    def _images(self) -> Iterator[np.ndarray]:
        """Yield the frames for the segmenter, and record their names and times."""
        for frame in self.media.frames():
            self.frames.append(replace(frame, load=partial(np.empty, 0)))
            yield frame.image

    def _again(self) -> Iterator[MediaFrame]:
        """Yield the same frames a second time."""
        for frame, before in zip_longest(self.media.frames(), self.frames):
            if frame is None or before is None or (frame.name, frame.time) != (before.name, before.time):
                raise RunError(f"{self.media.path} was changed while it was read; start again")
            yield frame

    def _annotations(self) -> Iterator[dict[str, Any]]:
        """Yield the annotation of each frame and sentence, empty masks included."""
        for number in tqdm(range(len(self.frames)), "masks.json", unit="frame", disable=not self.show, **bar_style()):
            for i, sentence in enumerate(self.sentences):
                rle = run_lengths(self._mask(sentence, number))
                about = score_entry(float(self.scores[number][i]) if self.scores else None)
                if self.boxes:
                    x0, y0, x1, y1 = (float(side) for side in self.boxes[number][i])
                    about["predicted_box"] = [round(side, 2) for side in (x0, y0, x1 - x0, y1 - y0)]
                yield {
                    "id": number * len(self.sentences) + i + 1,
                    "image_id": number,
                    "category_id": sentence.number,
                    **about,
                    "bbox": mask_box(rle),
                    "area": mask_area(rle),
                    "iscrowd": 0,
                    "segmentation": rle,
                }

    def _write_mask(self, tasks: BackgroundTasks, sentence: SentenceRecord, number: int, mask: np.ndarray) -> None:
        if mask.any():
            self.shown.add(sentence.number)
        tasks.submit(write_mask, self._png(MASKS, sentence, number), mask)

    def _mask(self, sentence: SentenceRecord, number: int) -> np.ndarray:
        return read_binary_mask(self._png(MASKS, sentence, number), self.media.size)

    def _png(self, kind: str, sentence: SentenceRecord, number: int) -> Path:
        return self.target / kind / sentence.folder / f"{self.frames[number].name}.png"

    def _watched(self, stage: str, items: Iterable[Any], total: int | None) -> Iterator[Any]:
        """Yield items, and report the progress."""
        started = time.perf_counter()
        with tqdm(total=total, unit="frame", desc=stage, disable=not self.show, **bar_style()) as bar:
            for done, item in enumerate(items, start=1):
                yield item
                if bar.total is not None and done > bar.total:  # the count of a header may be wrong
                    bar.total = done
                bar.update()
                if self.report is not None:
                    self.report(Progress(stage, done, total, done / (time.perf_counter() - started)))


def _levels(probability: Any) -> Any:
    """Return float32 probabilities as uint8 (255 is 1); the rounding changes no mask at the threshold 0.5."""
    return (np.clip(probability, 0, 1) * 255 + 0.5).astype(np.uint8)


def _write_rows(file: TextIO, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one list of a JSON object, a row per line, without holding it in memory."""
    file.write(f',\n"{name}": [')
    for i, row in enumerate(rows):
        file.write((",\n" if i else "\n") + json.dumps(row, ensure_ascii=False))
    file.write("\n]")


@contextmanager
def new_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a folder to write into; it becomes ``path`` when the block succeeds, and is removed otherwise.

    With ``force``, an earlier result stays until it is replaced.

    Raises:
        UserError: the folder is taken or cannot be written.
    """
    path = path.resolve()  # a link stays, and the folder that it names is replaced
    require_free(path, force)
    with sole_run(path), atomic_folder(path) as staging:
        yield staging


def require_free(path: Path, force: bool) -> None:
    """Raise ``UserError`` if a path is a file or a folder that holds anything but a result that may be replaced."""
    if path.exists() and not path.is_dir():
        raise UserError(f"cannot write {path}: it is a file; choose another --out")
    require_outside_dataset(path, "--out")
    place = next(folder for folder in path.resolve().parents if folder.exists())
    if not os.access(place, os.W_OK):
        raise UserError(f"cannot write {path}: permission denied in {place}; choose another --out")
    if not path.exists() or not any(path.iterdir()):
        return
    try:
        with (path / MASKS_FILE).open(encoding="utf-8") as file:
            is_result = f'"maker": "{MAKER}"' in file.read(200)
    except (OSError, UnicodeDecodeError):
        is_result = False
    if not is_result:
        raise UserError(f"{path} is not empty and holds no result of the demo; choose another --out")
    if not force:
        raise UserError(f"{path} holds an earlier result; choose another --out, or replace it with --force")


def sentence_records(sentences: Sequence[str]) -> list[SentenceRecord]:
    """Number the sentences and name their folders, such as ``1_the-dog-chasing-the-ball``."""
    digits = len(str(len(sentences)))
    named = enumerate(sentences, start=1)
    return [SentenceRecord(i, text, f"{i:0{digits}d}_{slug(text)}".rstrip("_")) for i, text in named]


def slug(text: str) -> str:
    """Turn a sentence into a part of a file name: letters and digits of any script, and hyphens; it may be empty."""
    text = unicodedata.normalize("NFC", text.casefold())
    kept = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text)
    return "-".join(kept.split())[:SLUG_LETTERS].rstrip("-")


if __name__ == "__main__":
    run_cli(main)
