"""Training, evaluation and inference over whole datasets: one loop each, in all processes together."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets import build_dataset, build_evaluator, build_scorer, list_videos
from datasets.clip import ClipLoader, EpochLoader, collate
from datasets.evaluators import Evaluator, Scorer, Scores
from datasets.files import Video, read_clips, require_outside_dataset
from datasets.predictions import MASK_OPTIONS, InferenceRecord, MaskLayout, frame_size, is_written, require_frames
from datasets.registry import DATASETS
from datasets.scoring import video_counts, video_metrics
from models import Criterion, SegmentationModel, prepare_sentences
from models.inference import InferenceOptions, Prediction, large_video_notes, query_predictions, segment
from models.rem import LatentCriterion
from models.segmenter import all_queries
from util.checkpoint import Keeper
from util.config import Config
from util.device import device_name
from util.distributed import balanced_share, gather_objects, is_main, print_notes, rank, wait_for_all, world_size
from util.drawing import OVERLAYS, movie_path, write_movie, write_overlay
from util.errors import RunError, UserError, printable
from util.files import file_sha256, read_json, write_json
from util.guard import Guard
from util.hub import main_name
from util.parallel import BackgroundTasks, bar_style
from util.run_log import GRADIENT, Meter, RunLog, write_results

# --- training


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run as functions of the step, so that a resumed run needs no state for them."""

    rate: float
    steps_per_epoch: int
    epochs: int
    drops: tuple[int, ...] = ()
    """Epochs after which the rate falls to a tenth."""
    warmup_steps: int = 0
    max_steps: int = 0
    """0: no limit."""
    cosine: bool = False
    """Fall to 0 along half a cosine over the whole run, instead of the drops."""

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps of the whole run."""
        steps = self.steps_per_epoch * self.epochs
        return min(steps, self.max_steps) if self.max_steps else steps

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.cosine:
            return self.rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
        return self.rate * warmup * 0.1 ** sum(step // self.steps_per_epoch >= drop for drop in self.drops)


def build_schedule(cfg: Config, steps_per_epoch: int) -> Schedule:
    """The schedule of a run; its rate is scaled with the number of processes."""
    return Schedule(
        rate=cfg.lr * world_size() / cfg.lr_processes,
        steps_per_epoch=steps_per_epoch,
        epochs=cfg.epochs,
        drops=cfg.lr_drop,
        warmup_steps=cfg.warmup_steps,
        max_steps=cfg.max_steps,
        cosine=cfg.lr_schedule == "cosine",
    )


@dataclass
class Run:
    """Everything that a training run consists of."""

    model: nn.Module
    """The model that is trained."""
    network: nn.Module
    """The same, wrapped where several processes exchange gradients."""
    criterion: Criterion | LatentCriterion
    loader: EpochLoader
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    log: RunLog
    keeper: Keeper
    """Writes the checkpoints."""
    device: torch.device
    guard: Guard = field(default_factory=Guard)
    """Handles signals, failing processes and non-finite losses."""
    scaler: torch.amp.GradScaler | None = None
    """Scales the loss for float16."""
    validation: Validation | None = None
    seed: int = 42
    first_step: int = 0
    """Number of steps done before this session."""
    max_norm: float = 0.1
    """Greatest norm of the gradient; 0: no clipping."""
    max_value: float = 0.0
    """Greatest absolute value of an element of the gradient; 0: no limit."""
    accumulate: int = 1
    """Batches per optimiser step."""
    log_every: int = 10
    """Steps between log lines."""
    save_every: int = 0
    """Steps between checkpoints; 0: at the ends of epochs only."""
    broken_clips: Callable[[], int] = lambda: 0
    """Number of broken clips that were replaced so far."""


def train(run: Run) -> int:
    """Run optimiser steps until the schedule ends.

    A checkpoint is written at the end of each epoch, every ``save_every`` steps, when the keeper says that one is due,
    before a validation, after a signal and at the end. What is random in a step depends on the seed, the step and the
    process only.

    Returns:
        the number of steps done in all.

    Raises:
        Stopped: by a signal; the step is saved.
        RunError: a loss is not finite, or another process has failed.
    """
    schedule, guard, validation = run.schedule, run.guard, run.validation
    run.model.train()
    meter = Meter()
    step = run.first_step
    if validation and step and is_due(step, validation.every) and validation.missed(step):
        validate(run, validation, step)
    for epoch, batches in run.log.speed.timed(step_batches(run.loader, schedule, step, run.accumulate)):
        guard.report_stage(f"computes step {step + 1}")
        torch.manual_seed((rank() << 32) + run.seed + step)
        rate = schedule.rate_at(step)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        moved = [batch.to(run.device, non_blocking=True) for batch in batches]
        terms = training_step(run.network, run.criterion, moved, run.optimizer, run.max_norm, run.scaler, run.max_value)
        step += 1
        clips = [f"{target['video']}/{target['exp_id']}" for batch in batches for target in batch.targets]
        meter.add(step, clips, terms, batches)
        run.log.advance(len(clips), sum(batch.frames.shape[0] * batch.frames.shape[1] for batch in batches))

        ends = step == schedule.total_steps
        validates = validation is not None and (ends or is_due(step, validation.every))
        saves = ends or validates or step % schedule.steps_per_epoch == 0 or is_due(step, run.save_every)
        logs = saves or is_due(step, run.log_every)
        due = not saves and run.keeper.due()  # by the clock of this process, which alone writes the checkpoint
        fault = meter.fault(wait=logs or due) is not None
        stops, faulty = guard.exchange_flags(fault, now=logs)
        if stops and not logs:
            fault = meter.fault(wait=True) is not None
            faulty = guard.exchange_flags(fault, now=True)[1]
        if faulty:
            guard.raise_fault(meter)
        if logs and not fault:
            broken = {"broken_clips": count} if (count := run.broken_clips()) else {}
            run.log.write(step, {**meter.flush(), "lr": rate, **broken}, epoch=epoch)
        if saves or stops or (due and not fault):
            guard.report_stage(f"saves step {step}")
            run.keeper.save(step, ends or stops)
        if stops:
            guard.raise_stop(step)
        if validation is not None and validates:
            validate(run, validation, step)
        guard.report_stage(f"waits for the data of step {step + 1}")
    return step


def training_step(
    model: nn.Module,
    criterion: Any,
    batches: Sequence[Any],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    scaler: torch.amp.GradScaler | None = None,
    max_value: float = 0.0,
) -> dict[str, Tensor]:
    """Run one optimiser step on the summed gradients of several batches.

    Args:
        model: where it is distributed, gradients are averaged over the processes once, after the last batch.
        criterion: its terms are sums over clips, divided by the count over all batches.
        batches: on the device of the model.
        optimizer: of the trained parameters.
        max_norm: greatest norm of the gradient; 0: no clipping.
        scaler: of the loss, for float16. A step whose scaled gradient overflows is skipped, and the scale halved.
        max_value: greatest absolute value of an element of the gradient; 0: no limit.

    Returns:
        ``loss`` (weighted sum), every term, and the norm of the gradient before clipping. With a scaler also its
        ``scale``, and ``skipped``, 1 for a skipped step, whose norm is given as 0.
    """
    targets = [criterion.prepare(batch.targets, batch.frames.shape[-2:]) for batch in batches]
    count = criterion.count(targets)
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for i, (batch, target) in enumerate(zip(batches, targets, strict=True)):
        context = nullcontext if i == len(batches) - 1 else getattr(model, "no_sync", nullcontext)
        with context():
            output = model(batch.frames, batch.padding, batch.captions, criterion.select(target), batch.annotated)
            loss, terms = criterion(output, target, count)
            (loss if scaler is None else scaler.scale(loss)).backward()
        for name, value in {"loss": loss, **terms}.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        del output, loss, terms
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if scaler is None:
        norm = clip_gradient(parameters, max_norm, max_value)
        optimizer.step()
        return {"loss": sums.pop("loss"), GRADIENT: norm, **sums}
    scale = scaler.scale(torch.ones_like(count))
    scaler.unscale_(optimizer)
    norm = clip_gradient(parameters, max_norm, max_value)
    scaler.step(optimizer)
    scaler.update()
    # Overflow does not explain a scale below 1: then the norm shows that the gradient itself is not finite.
    skipped = ~norm.isfinite() & (scale >= 1)
    about = {GRADIENT: norm.masked_fill(skipped, 0.0), "skipped": skipped.float(), "scale": scale}
    return {"loss": sums.pop("loss"), **about, **sums}


def clip_gradient(parameters: list[Tensor], max_norm: float, max_value: float = 0.0) -> Tensor:
    """Clip the gradient by its norm, then each of its elements (0: not); return its norm before clipping."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)
    if max_value > 0:
        torch.nn.utils.clip_grad_value_(parameters, max_value)
    return norm


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every ``every`` steps (0: never) happens after ``step``, counted from 1."""
    return every > 0 and step % every == 0


def step_batches(
    loader: Callable[[int, int], Iterable[Any]], schedule: Schedule, first_step: int, accumulate: int
) -> Iterator[tuple[int, list[Any]]]:
    """The epoch and the ``accumulate`` batches of each step, from ``first_step`` to the end of the schedule."""
    step = first_step
    while step < schedule.total_steps:
        epoch, first = divmod(step, schedule.steps_per_epoch)
        batches = iter(loader(epoch, first))
        while group := list(islice(batches, accumulate)):
            yield epoch, group
            step += 1
            if step == schedule.total_steps:
                return


def parameter_lines(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """A table of the parts of a model with their parameters in millions, and a line for each optimiser group.

    A part is a child of the model, or a grandchild where a child has both trained and frozen parameters.
    """

    def counts(part: nn.Module) -> tuple[int, int]:
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        return trained, sum(p.numel() for p in part.parameters()) - trained

    rows: list[tuple[str, tuple[int, int]]] = []
    for name, child in model.named_children():
        inner = [(f"{name}.{inner_name}", counts(part)) for inner_name, part in child.named_children()]
        rows += inner if all(counts(child)) and inner else [(name, counts(child))]
    rows = [*(row for row in rows if any(row[1])), ("total", counts(model))]
    width = max(len("parameters, millions"), *(len(name) for name, _ in rows))
    lines = [f"{'parameters, millions':<{width}}  {'trained':>8}  {'frozen':>8}"]
    lines += [f"{name:<{width}}  {trained / 1e6:8.2f}  {frozen / 1e6:8.2f}" for name, (trained, frozen) in rows]
    for number, group in enumerate(optimizer.param_groups):
        lines.append(
            f"group {number} of {type(optimizer).__name__}: {len(group['params'])} tensors, "
            f"{sum(tensor.numel() for tensor in group['params']) / 1e6:.2f} M, rate {group['lr']:g}, weight decay "
            f"{group['weight_decay']:g}"
        )
    return lines


# --- scoring a model on a dataset


def build_scoring(
    cfg: Config, device: torch.device, checkpoint: Path | None = None, on_clip: Callable[[], None] = lambda: None
) -> Scoring:
    """Prepare to score a model on ``cfg.dataset_file``: read the data and its ground truth.

    Args:
        cfg: names the dataset, its split and the output folder of masks.
        device: of the model.
        checkpoint: of the model, so that masks of the same checkpoint and options in the output folder are kept; None:
            the model is in training, and the folder is cleared before every use.
        on_clip: called for every clip.

    Raises:
        UserError: data or ground truth is missing or broken, or the folder holds masks of another run.
    """
    if not DATASETS[cfg.dataset_file].masks:
        dataset = build_dataset(cfg, cfg.split)
        loader = ClipLoader(
            dataset,
            sampler=range(rank(), len(dataset), world_size()),
            num_workers=cfg.num_workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
        )
        return ItemScoring(
            loader, partial(build_evaluator, cfg), cfg.threshold, cfg.seed, device, on_clip, dataset.captions
        )
    videos = [video for video in list_videos(cfg) if video.expressions]
    require_frames(videos)
    options = InferenceOptions.from_config(cfg)
    print_large_videos(videos, options)
    scoring = VideoScoring(
        videos,
        build_scorer(cfg) if is_main() else None,
        DATASETS[cfg.dataset_file].layout,
        options,
        partial(build_record, cfg, checkpoint, device),
        cfg.num_workers,
        cfg.visualize,
        on_clip,
    )
    if checkpoint:
        scoring.record = scoring.open_record()
    return scoring


@dataclass
class VideoScoring:
    """Segments whole videos, and scores the masks in the main process."""

    videos: list[Video]
    scorer: Scorer | None
    """Of the masks in the output folder; None in every process but the main one."""
    layout: MaskLayout
    options: InferenceOptions
    open_record: Callable[[], InferenceRecord]
    workers: int = 0
    visualize: bool = False
    on_clip: Callable[[], None] = lambda: None
    record: InferenceRecord | None = None
    """An opened record: masks that it lists are kept."""

    def captions(self) -> Iterable[str]:
        """The sentences of all videos."""
        return (sentence for video in self.videos for sentence in video.expressions.values())

    def score(self, model: SegmentationModel) -> Scores:
        """Segment this process's share of the videos, and score the masks of all."""
        record = self.record or self.open_record()
        share = share_of_videos(self.videos)
        segment_videos(
            model,
            share,
            record,
            self.layout,
            self.options,
            workers=self.workers,
            visualize=self.visualize,
            on_clip=self.on_clip,
        )
        wait_for_all()
        if self.scorer is None:
            return {}, {}
        scores = self.scorer(max(1, self.workers))
        write_json(record.path.parent / "scores.json", scores)
        print_notes(scores.get("notes", []))
        frames = sum(len(video.frame_paths) for video in self.videos)
        return video_metrics(scores), {**video_counts(scores), "frames": frames}


class ItemScoring:
    """Scores all queries of single frames or images, of which each process takes a share.

    Args:
        loader: the items of this process.
        build_evaluator: makes an empty evaluator; called once here, so that broken ground truth is reported early.
        threshold: mask probability from which a pixel belongs to the object.
        seed: what is random for an item depends on it only.
        device: of the model.
        on_clip: called for every item.
        captions: lists the sentences of all items.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        build_evaluator: Callable[[], Evaluator],
        threshold: float,
        seed: int,
        device: torch.device,
        on_clip: Callable[[], None] = lambda: None,
        captions: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.captions = captions
        self.loader, self.build_evaluator = loader, build_evaluator
        self.threshold, self.seed, self.device, self.on_clip = threshold, seed, device, on_clip
        self.evaluator: Evaluator | None = build_evaluator()

    @torch.inference_mode()
    def score(self, model: nn.Module) -> Scores:
        """Evaluate this process's items, and merge the results of all processes."""
        evaluator, self.evaluator = self.evaluator or self.build_evaluator(), None
        model.eval()
        prepare_sentences(model, self.captions())
        for batch in tqdm(self.loader, unit="item", desc="evaluate", disable=not is_main(), **bar_style()):
            torch.manual_seed(self.seed)  # noise, where the model draws any, depends on no other item
            moved = batch.to(self.device, non_blocking=True)
            output = model(moved.frames, moved.padding, moved.captions, all_queries, moved.annotated)
            evaluator.update(query_predictions(output, batch.targets, self.threshold))
            self.on_clip()
        evaluator.merge(gather_objects(evaluator.state()))
        return (evaluator.results(), evaluator.counts()) if is_main() else ({}, {})


Scoring = VideoScoring | ItemScoring
"""Scores a model on one dataset, in all processes together: ``score(model)`` → metrics (0…100) and counts."""

# --- validation during training

VALIDATION_FOLDER, VALIDATION_RECORD = "validation", "validation.json"


class Validation:
    """Scores the model during training, and keeps the best checkpoint.

    In the folder of the run, ``validation.json`` holds the score of every validated step and which was the best, and
    ``validation/step_000400.json`` all metrics of a step in the form of ``results.json``. Masks are not kept.

    Args:
        output: the folder of the run.
        scorings: dataset → its scoring; below ``output / "validation" / dataset`` it may write masks.
        metrics: dataset → the metric that chooses the best checkpoint; for several datasets it is averaged.
        options: all options as plain values, for the record.
        keep_best: called with a step whose checkpoint is the best so far.
        every: steps between validations; 0: after the last step only.
        first_step: number of steps done; scores of later steps belong to another run and are removed.

    Raises:
        UserError: the record is damaged, or cannot be written.
    """

    def __init__(
        self,
        output: Path,
        scorings: Mapping[str, Scoring],
        metrics: Mapping[str, str],
        options: Mapping[str, Any],
        keep_best: Callable[[int], None] = lambda step: None,
        every: int = 0,
        first_step: int = 0,
    ) -> None:
        self.output, self.scorings, self.metrics, self.options = output, scorings, metrics, options
        self.keep_best, self.every = keep_best, every
        if is_main() and (output / VALIDATION_RECORD).is_file():
            self._forget(first_step)

    def missed(self, step: int) -> bool:
        """Whether a step has no score, because the run was stopped meanwhile; all processes get the same answer."""
        own = is_main() and str(step) not in self._read()["scores"]
        return bool(gather_objects(own)[0])

    def score(self, model: Any, step: int) -> dict[str, float]:
        """Score a model, in all processes together.

        Args:
            model: it is left in evaluation mode.
            step: number of steps it was trained for.

        Returns:
            metrics, 0…100, for several datasets as ``dataset.metric``; empty in every process but the main one.

        Raises:
            UserError: a file cannot be read or written.
        """
        model.eval()
        self._clear()
        wait_for_all()
        found = {name: scoring.score(model) for name, scoring in self.scorings.items()}
        if not is_main():
            return {}
        self._clear()
        metrics = {name: scores[0] for name, scores in found.items()}
        counts = {name: scores[1] for name, scores in found.items()}
        several, first = len(found) > 1, next(iter(found))
        write_results(
            self.output / VALIDATION_FOLDER / f"step_{step:06d}.json",
            metrics if several else metrics[first],
            counts if several else counts[first],
            self.options,
            {"step": step, "processes": world_size()},
        )
        self._record(step, sum(metrics[name][key] for name, key in self.metrics.items()) / len(found))
        flat = {f"{name}.{key}": value for name, values in metrics.items() for key, value in values.items()}
        return flat if several else metrics[first]

    def _clear(self) -> None:
        """Remove masks, so that those of another step are never taken for this one's."""
        if is_main():
            for name in self.scorings:
                shutil.rmtree(self.output / VALIDATION_FOLDER / name, ignore_errors=True)

    def _record(self, step: int, value: float) -> None:
        """Record a score, after keeping the checkpoint if it is the best: a stopped run repeats this."""
        content = self._read()
        scores, best = content["scores"], content["best"]
        is_best = math.isfinite(value) and (best in (None, str(step)) or value > scores[best])
        if is_best:
            self.keep_best(step)
        scores[str(step)] = value if math.isfinite(value) else None
        self._write(scores, str(step) if is_best else best)

    def _forget(self, first_step: int) -> None:
        content = self._read()
        scores = {step: value for step, value in content["scores"].items() if int(step) <= first_step}
        if len(scores) < len(content["scores"]):
            self._write(scores, content["best"] if content["best"] in scores else None)

    def _write(self, scores: Mapping[str, float | None], best: str | None) -> None:
        metric = ", ".join(dict.fromkeys(self.metrics.values()))
        write_json(self.output / VALIDATION_RECORD, {"metric": metric, "best": best, "scores": scores})

    def _read(self) -> dict[str, Any]:
        path = self.output / VALIDATION_RECORD
        content = read_json(path, "the scores of the validations of a run") if path.is_file() else {}
        scores = content.get("scores", {}) if isinstance(content, dict) else None
        if not isinstance(scores, dict) or not all(step.isdecimal() for step in scores):
            raise UserError(f"{path} is damaged; remove it to begin a new record")
        best = content.get("best")
        return {"scores": scores, "best": best if scores.get(best) is not None else None}


def validate(run: Run, validation: Validation, step: int) -> None:
    """Score the model of a run after ``step`` steps, log the metrics, and return to training mode."""
    with run.guard.interruptible(f"validates step {step}"):
        metrics = validation.score(run.model, step)
        wait_for_all()  # the main process may score for longer than a step may take
    run.log.write(step, {f"valid.{name}": value for name, value in metrics.items()})
    run.model.train()


# --- inference over a dataset

VideoT = TypeVar("VideoT", bound=Video)
PENDING_MASKS = 256
"""Masks that wait to be written: those of a clip of 36 frames and seven sentences. One of 1280×720 takes 0.9 MB."""


@dataclass
class _Pending:
    """What remains to be segmented of a video, and the results so far."""

    video: Video
    folders: dict[str, list[str]]
    """Folder of masks that is not complete → the expressions it is made of."""
    size: tuple[int, int] | None = None
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def sentences(self) -> dict[str, str]:
        """Expression id → sentence, in the order in which the folders need them."""
        return {exp_id: self.video.expressions[exp_id] for ids in self.folders.values() for exp_id in ids}

    def clips(self, length: int | None) -> list[Sequence[Path]]:
        """The frames in pieces of at most ``length``; None: in one piece."""
        frames = self.video.frame_paths
        step = length or len(frames)
        return [frames[start : start + step] for start in range(0, len(frames), step)]


def segment_videos(
    model: SegmentationModel,
    videos: Sequence[Video],
    record: InferenceRecord,
    layout: MaskLayout,
    options: InferenceOptions,
    *,
    workers: int = 0,
    visualize: bool = False,
    show: bool | None = None,
    on_clip: Callable[[], None] = lambda: None,
) -> None:
    """Write the masks of every expression that is not written yet, in the folder of the record.

    The model does not wait for files: threads read the next frames and write masks meanwhile, and a video is recorded
    when all its files are written, usually while the next one is being segmented. Memory is bounded, whatever the
    length or number of videos: it holds the clip being segmented, ``FRAMES_AHEAD`` frames and ``PENDING_MASKS`` masks.

    Args:
        model: in evaluation mode.
        videos: with their frames and expressions.
        record: lists what is done.
        layout: of the masks on disk.
        options: of the inference.
        workers: threads that read frames, and as many that write files.
        visualize: also draw overlays; the model then waits for those of each video.
        show: print what is skipped, and the progress; None: in the main process.
        on_clip: called for every clip.

    Raises:
        UserError: a frame cannot be read or a file not written.
        RunError: the predictions are not finite.
    """
    show = is_main() if show is None else show
    output = record.path.parent
    work = [
        _Pending(video, pending_folders(video, record, layout, options.expressions_per_batch, visualize))
        for video in videos
    ]
    skipped = sum(len(item.video.expressions) - len(item.sentences) for item in work)
    if skipped and show:
        print(f"skipped {skipped} of {count_expressions(videos)} expressions, which are written already")
    prepare_sentences(model, (sentence for item in work for sentence in item.sentences.values()))
    jobs = [
        (item, frames)
        for item in work
        if item.folders
        for frames in item.clips(layout.clip_frames or options.clip_frames)
    ]
    total = sum(len(frames) * len(item.sentences) for item, frames in jobs)
    threads = max(1, workers)
    clips = read_clips([frames for _, frames in jobs], options.eval_size, options.max_size, threads)
    with (
        BackgroundTasks(threads, PENDING_MASKS) as tasks,
        tqdm(total=total, unit="frame", desc="segment", disable=not show, **bar_style()) as bar,
    ):

        def predict(item: _Pending, frames: Sequence[Path], clip: Tensor, size: tuple[int, int]) -> Any:
            for exp_id, prediction in segment(model, clip, size, item.sentences, options, layout.soft):
                _note(item, exp_id, prediction, record)
                if visualize:
                    folder, sentence = output / OVERLAYS / item.video.name / exp_id, item.sentences[exp_id]
                    boxes, scores = (
                        [None] * len(frames) if values is None else values
                        for values in (prediction.boxes, prediction.scores)
                    )
                    drawn = zip(frames, prediction.masks, boxes, scores, strict=True)
                    for frame, mask, box, score in drawn:
                        tasks.submit(write_overlay, folder / f"{frame.stem}.png", sentence, frame, mask, box, score)
                bar.update(len(frames))
                yield exp_id, prediction

        for (item, frames), (clip, size) in zip(jobs, clips, strict=True):
            video = item.video
            bar.set_postfix(video=printable(video.name))
            _require_size(item, frames[0], size)
            on_clip()
            predictions = predict(item, frames, clip, size)
            for folder, exp_ids in item.folders.items():
                planes = layout.merge(islice(predictions, len(exp_ids)), (len(frames), *size))
                for frame, plane in zip(frames, planes, strict=True):
                    tasks.submit(layout.write, output / folder / f"{frame.stem}.png", plane)
            if frames[-1] != video.frame_paths[-1]:
                continue
            if visualize:
                tasks.wait()  # a movie is made of the overlays on disk
                for exp_id in item.sentences:
                    tasks.submit(write_movie, output / OVERLAYS / video.name / exp_id, video.frame_paths)
            results = {exp_id: _summary(result, layout) for exp_id, result in item.results.items()}
            tasks.then(partial(record.add, video.name, results))


def pending_folders(
    video: Video, record: InferenceRecord, layout: MaskLayout, batch_size: int, visualize: bool = False
) -> dict[str, list[str]]:
    """The folders of masks of a video that are not complete, with the expressions they are made of.

    Folders that share a batch of sentences with them are repeated, so that the masks equal those of a run that was
    never stopped, bit for bit.
    """
    output = record.path.parent

    def done(exp_id: str) -> bool:
        sentence = (record.find(video.name, exp_id) or {}).get("sentence")
        drawn = not visualize or movie_path(output / OVERLAYS / video.name / exp_id).is_file()
        return sentence == video.expressions[exp_id] and drawn

    folders = layout.folders(video)
    missing = {
        folder
        for folder, exp_ids in folders.items()
        if not all(map(done, exp_ids)) or not is_written(output, video, folder, layout)
    }
    order = [exp_id for exp_ids in folders.values() for exp_id in exp_ids]
    batch = {exp_id: i // batch_size for i, exp_id in enumerate(order)}
    while True:
        batches = {batch[exp_id] for folder in missing for exp_id in folders[folder]}
        grown = {folder for folder, exp_ids in folders.items() if any(batch[exp_id] in batches for exp_id in exp_ids)}
        if grown == missing:
            return {folder: exp_ids for folder, exp_ids in folders.items() if folder in missing}
        missing = grown


def build_record(cfg: Config, checkpoint: Path | None, device: torch.device) -> InferenceRecord:
    """Open the inference record of ``cfg.output_dir`` for this process.

    Args:
        cfg: its options that masks depend on become part of the identity.
        checkpoint: of the model; None: the model is in training, and the folder is cleared before every use.
        device: of the model.

    Raises:
        UserError: the folder holds masks of another run or a dataset, or cannot be written.
    """
    output = Path(cfg.output_dir)
    require_outside_dataset(output, "--output_dir")
    layout = DATASETS[cfg.dataset_file].layout
    foreign = [root for root in layout.roots if any((output / root).glob("*"))]
    if foreign and not any(output.glob("inference*.json")):
        raise UserError(
            f"{output / foreign[0]} holds masks that no inference run has recorded; choose another --output_dir"
        )
    return InferenceRecord(
        output / (f"inference-{rank()}.json" if rank() else "inference.json"),
        {"checkpoint_sha256": file_sha256(checkpoint) if checkpoint else "", **build_mask_identity(cfg)},
        {"checkpoint": str(checkpoint.resolve()) if checkpoint else "", "device": device_name(device)},
    )


def build_mask_identity(cfg: Config) -> dict[str, Any]:
    """The options that masks depend on, as plain values; existing paths are made absolute."""
    identity: dict[str, Any] = {}
    for option in fields(cfg):
        rule, value = option.metadata["rule"], getattr(cfg, option.name)
        if rule.group == "model" or option.name in (*MASK_OPTIONS, DATASETS[cfg.dataset_file].root):
            if rule.path and value:
                value = str(Path(value).resolve()) if Path(value).exists() else main_name(value)
            identity[option.name] = list(value) if isinstance(value, tuple) else value
    return identity


def print_large_videos(videos: Sequence[Video], options: InferenceOptions) -> None:
    """Print a note, in the main process, about videos of which the model sees very large frames."""
    if is_main():
        print_notes(large_video_notes({video.name: frame_size(video.frame_paths[0]) for video in videos}, options))


def share_of_videos(videos: Sequence[VideoT]) -> list[VideoT]:
    """The videos of this process; all processes get about the same number of frames times expressions."""
    costs = [len(video.frame_paths) * len(video.expressions) for video in videos]
    return [videos[i] for i in balanced_share(costs, rank(), world_size())]


def count_expressions(videos: Iterable[Video]) -> int:
    """Number of expressions."""
    return sum(len(video.expressions) for video in videos)


def _note(item: _Pending, exp_id: str, prediction: Prediction, record: InferenceRecord) -> None:
    """Add a prediction of one clip to the results of its video."""
    if not prediction.finite:
        raise RunError(
            f"the predictions for video {item.video.name!r}, expression {exp_id!r} are not finite; "
            f"{record.about.get('checkpoint') or 'the checkpoint'} may come from a run that diverged"
        )
    result = item.results.setdefault(
        exp_id, {"sentence": item.video.expressions[exp_id], "scores": [], "queries": [], "frames": 0, "seconds": 0.0}
    )
    if prediction.scores is not None:
        result["scores"] += prediction.scores.tolist()
        result["queries"].append(prediction.query)
    result["frames"] += len(prediction.masks)
    result["seconds"] += prediction.seconds


def _summary(result: dict[str, Any], layout: MaskLayout) -> dict[str, Any]:
    """The entry of an expression in the record; a model without scores has none there."""
    about: dict[str, Any] = {}
    if result["scores"]:
        about["score"] = round(float(np.mean(result["scores"])), 5)
        about |= {"query": result["queries"][0]} if layout.clip_frames is None else {"queries": result["queries"]}
    return {"sentence": result["sentence"], **about, "frames": result["frames"], "seconds": round(result["seconds"], 3)}


def _require_size(item: _Pending, frame: Path, size: tuple[int, int]) -> None:
    """Refuse a video whose frames change their size between two clips."""
    item.size = item.size or size
    if size != item.size:
        sizes = " and ".join(f"{width}×{height}" for height, width in (size, item.size))
        raise UserError(
            f"frames {frame} and {item.video.frame_paths[0]} differ in size ({sizes}); a video has frames of one size"
        )
