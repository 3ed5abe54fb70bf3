"""From videos to files of masks: what is left to do, clip by clip, with a record that lets a stopped run go on.

How a clip is read and segmented is handed in, so that the inference script and the evaluation share this loop. Memory
holds two clips, whatever the length of a video: one that is segmented and one that is read ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor
from tqdm import tqdm

from datasets.predictions import LAYOUTS, ClipMasks, MaskLayout, is_written
from datasets.video import Video
from util.background import BackgroundTasks, read_ahead
from util.config import Config
from util.distributed import balanced_share, rank, world_size
from util.errors import RunError, UserError
from util.inference_record import InferenceRecord
from util.overlays import movie_path, write_movie, write_overlays
from util.parallel import bar_style

VideoT = TypeVar("VideoT", bound=Video)


class ClipPrediction(ClipMasks, Protocol):
    """What is needed of a prediction; ``models.prediction.Prediction`` is one."""

    @property
    def boxes(self) -> np.ndarray:
        """``[T, 4]``: corners in pixels."""

    @property
    def scores(self) -> np.ndarray:
        """``[T]``, 0…1."""

    @property
    def query(self) -> int:
        """The chosen one."""

    @property
    def seconds(self) -> float:
        """What it took."""


ClipReader = Callable[[Sequence[Path]], tuple[Tensor, tuple[int, int]]]
"""Files of frames → frames ``[T, 3, h, w]`` and the original size (H0, W0)."""
ClipSegmenter = Callable[[Tensor, tuple[int, int], Mapping[str, str]], Iterator[tuple[str, ClipPrediction]]]
"""Frames, original size and sentences by id → ids and predictions in the same order."""


@dataclass
class _Work:
    """What is left to do of a video, and what came of it."""

    video: Video
    folders: dict[str, list[str]]
    size: tuple[int, int] | None = None
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def sentences(self) -> dict[str, str]:
        """Expression id → sentence, in the order in which the folders need them."""
        return {exp_id: self.video.expressions[exp_id] for ids in self.folders.values() for exp_id in ids}

    def clips(self, length: int | None) -> list[Sequence[Path]]:
        """The frames in pieces of at most ``length``; None: in one."""
        frames = self.video.frame_paths
        step = length or len(frames)
        return [frames[start : start + step] for start in range(0, len(frames), step)]


def run_inference(
    videos: Sequence[Video],
    cfg: Config,
    record: InferenceRecord,
    read: ClipReader,
    segment: ClipSegmenter,
    show: bool = True,
) -> None:
    """Write the masks of every expression, and with ``cfg.visualize`` its overlays; skip those that are written.

    Args:
        videos: what to segment.
        cfg: reads ``dataset_file``, ``output_dir``, ``num_workers`` and ``visualize``.
        record: which expressions are done; those of a video are added when all their files are written.
        read, segment: of a clip; ``segment`` gives probabilities where the dataset's layout is soft.
        show: print what is skipped, and the progress.

    Raises:
        UserError: a frame cannot be read or a file not written.
        RunError: the predictions are not finite numbers.
    """
    layout, output = LAYOUTS[cfg.dataset_file], Path(cfg.output_dir)
    work = [_Work(video, pending(video, cfg, record)) for video in videos]
    skipped = sum(len(item.video.expressions) - len(item.sentences) for item in work)
    if skipped and show:
        print(f"skipped {skipped} of {count_expressions(videos)} expressions, which are written already")
    jobs = [(item, frames) for item in work if item.folders for frames in item.clips(layout.clip_frames)]
    total = sum(len(frames) * len(item.sentences) for item, frames in jobs)
    with (
        BackgroundTasks(max(1, cfg.num_workers)) as tasks,
        tqdm(total=total, unit="frame", desc="segment", disable=not show, **bar_style()) as bar,
    ):
        for (item, frames), (clip, size) in read_ahead(jobs, lambda job: read(job[1])):
            video = item.video
            bar.set_postfix(video=video.name)
            _require_size(item, frames[0], size)
            predictions = _watched(segment(clip, size, item.sentences), item, frames, cfg, tasks, bar)
            for folder, exp_ids in item.folders.items():
                planes = layout.merge(islice(predictions, len(exp_ids)), (len(frames), *size))
                tasks.submit(_write_planes, layout, output / folder, frames, planes)
            if frames[-1] != video.frame_paths[-1]:
                continue
            tasks.wait()  # what is recorded is on the disk
            for exp_id in item.sentences if cfg.visualize else ():
                tasks.submit(write_movie, output, video, exp_id)
            tasks.wait()
            record.add(video.name, {exp_id: _summary(result, layout) for exp_id, result in item.results.items()})


def pending(video: Video, cfg: Config, record: InferenceRecord) -> dict[str, list[str]]:
    """The folders of a video that are not wholly written yet, with the expressions that they are made of.

    Those that share a batch with them are made again: masks are then those of a run that was never stopped, bit for
    bit.
    """
    layout, output = LAYOUTS[cfg.dataset_file], Path(cfg.output_dir)

    def done(exp_id: str) -> bool:
        sentence = (record.find(video.name, exp_id) or {}).get("sentence")
        drawn = not cfg.visualize or movie_path(output, video, exp_id).is_file()
        return sentence == video.expressions[exp_id] and drawn

    folders = layout.folders(video)
    missing = {
        folder
        for folder, exp_ids in folders.items()
        if not all(map(done, exp_ids)) or not is_written(output, video, folder, layout)
    }
    order = [exp_id for exp_ids in folders.values() for exp_id in exp_ids]
    batch = {exp_id: i // cfg.expressions_per_batch for i, exp_id in enumerate(order)}
    while True:
        batches = {batch[exp_id] for folder in missing for exp_id in folders[folder]}
        grown = {folder for folder, exp_ids in folders.items() if any(batch[exp_id] in batches for exp_id in exp_ids)}
        if grown == missing:
            return {folder: exp_ids for folder, exp_ids in folders.items() if folder in missing}
        missing = grown


def share_of_videos(videos: Sequence[VideoT]) -> list[VideoT]:
    """The videos that this process works on, of about the same length in all processes together."""
    costs = [len(video.frame_paths) * len(video.expressions) for video in videos]
    return [videos[i] for i in balanced_share(costs, rank(), world_size())]


def count_expressions(videos: Sequence[Video]) -> int:
    """Number of expressions."""
    return sum(len(video.expressions) for video in videos)


def _watched(
    predictions: Iterator[tuple[str, ClipPrediction]],
    item: _Work,
    frames: Sequence[Path],
    cfg: Config,
    tasks: BackgroundTasks,
    bar: tqdm,
) -> Iterator[tuple[str, ClipPrediction]]:
    """Hand the predictions on; check and note them, and draw them where that is wanted."""
    for exp_id, prediction in predictions:
        if not np.isfinite(prediction.scores).all():
            raise RunError(
                f"the predictions for video {item.video.name!r}, expression {exp_id!r} are not finite numbers; "
                f"{cfg.resume} may come from a run that diverged"
            )
        result = item.results.setdefault(
            exp_id, {"sentence": item.video.expressions[exp_id], "scores": [], "queries": [], "seconds": 0.0}
        )
        result["scores"] += prediction.scores.tolist()
        result["queries"].append(prediction.query)
        result["seconds"] += prediction.seconds
        if cfg.visualize:
            drawn = (prediction.masks, prediction.boxes, prediction.scores)
            tasks.submit(write_overlays, Path(cfg.output_dir), item.video, exp_id, frames, *drawn)
        bar.update(len(frames))
        yield exp_id, prediction


def _summary(result: dict[str, Any], layout: MaskLayout) -> dict[str, Any]:
    """What is recorded of an expression."""
    queries = {"query": result["queries"][0]} if layout.clip_frames is None else {"queries": result["queries"]}
    return {
        "sentence": result["sentence"],
        "score": round(float(np.mean(result["scores"])), 5),
        **queries,
        "frames": len(result["scores"]),
        "seconds": round(result["seconds"], 3),
    }


def _require_size(item: _Work, frame: Path, size: tuple[int, int]) -> None:
    """Refuse a video whose frames change their size between two clips."""
    item.size = item.size or size
    if size != item.size:
        sizes = " and ".join(f"{width}×{height}" for height, width in (size, item.size))
        raise UserError(
            f"frames {frame} and {item.video.frame_paths[0]} differ in size ({sizes}); a video has frames of one size"
        )


def _write_planes(layout: MaskLayout, folder: Path, frames: Sequence[Path], planes: np.ndarray) -> None:
    """Write the masks of a clip."""
    for frame, plane in zip(frames, planes, strict=True):
        layout.write(folder / f"{frame.stem}.png", plane)
