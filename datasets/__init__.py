"""Datasets: one file per layout, and the registry that chooses one by ``cfg.dataset_file``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from datasets import a2d, davis, jhmdb, joint, mevis, refcoco, ytvos
from datasets.clip import ClipBatch, ClipDataset, ClipLoader, collate
from datasets.video import Video, load_clip, load_frames
from util.benchmarks import MIXTURES
from util.errors import UserError
from util.evaluation import Evaluator, Scorer

if TYPE_CHECKING:
    from util.config import Config

__all__ = [
    "ClipBatch",
    "ClipDataset",
    "ClipLoader",
    "Video",
    "build_dataset",
    "build_evaluator",
    "build_scorer",
    "collate",
    "is_video_set",
    "list_videos",
    "load_clip",
    "load_frames",
]

_CLIPS: dict[str, Callable[[Config, str], ClipDataset]] = {
    "ytvos": ytvos.build_clips,
    "a2d": a2d.build_clips,
    "jhmdb": jhmdb.build_clips,
    "davis": davis.build_clips,
    "mevis": mevis.build_clips,
    "refcoco": refcoco.build_clips,
    "refcoco+": refcoco.build_clips,
    "refcocog": refcoco.build_clips,
}
_CLIPS |= {name: partial(joint.build_clips, builders=_CLIPS) for name in MIXTURES}
# Sets whose videos are segmented from end to end, and scored by their masks.
_VIDEOS: dict[str, Callable[[Config], list[Video]]] = {
    "ytvos": ytvos.build_videos,
    "davis": davis.build_videos,
    "mevis": mevis.build_videos,
}
_SCORERS: dict[str, Callable[[Config], Scorer]] = {
    "ytvos": ytvos.build_scorer,
    "davis": davis.build_scorer,
    "mevis": mevis.build_scorer,
}
# Sets that are scored item by item, on one frame or image: the evaluator, with the truth of ``cfg.split``.
_EVALUATORS: dict[str, Callable[[Config], Evaluator]] = {
    "a2d": a2d.build_evaluator,
    "jhmdb": jhmdb.build_evaluator,
    "refcoco": refcoco.build_evaluator,
    "refcoco+": refcoco.build_evaluator,
    "refcocog": refcoco.build_evaluator,
}

Entry = TypeVar("Entry")


def build_dataset(cfg: Config, split: str) -> ClipDataset:
    """Build the dataset of ``cfg.dataset_file``: augmented clips for ``train``, else what is evaluated with its truth.

    Raises:
        UserError: the dataset has no clips of that kind, or a file is missing or malformed.
    """
    return _entry(_CLIPS, cfg, "clips")(cfg, split)


def list_videos(cfg: Config) -> list[Video]:
    """List the videos and expressions of ``cfg.split`` for inference.

    Raises:
        UserError: the dataset is no set of whole videos, or a file is missing or malformed.
    """
    return _entry(_VIDEOS, cfg, "videos to segment")(cfg)


def build_evaluator(cfg: Config) -> Evaluator:
    """Build the evaluator of a set that is scored item by item, with the truth of ``cfg.split``.

    Raises:
        UserError: the dataset is no such set, or a file is missing or malformed.
    """
    return _entry(_EVALUATORS, cfg, "evaluator of single frames")(cfg)


def build_scorer(cfg: Config) -> Scorer:
    """Find the truth of ``cfg.split``; what is returned scores the masks below ``cfg.output_dir`` against it.

    Raises:
        UserError: the dataset is no set of whole videos, or its truth is missing or malformed.
    """
    return _entry(_SCORERS, cfg, "scores of masks")(cfg)


def is_video_set(cfg: Config) -> bool:
    """Whether the masks of whole videos are scored, not items one by one."""
    return cfg.dataset_file in _VIDEOS


def _entry(registry: dict[str, Entry], cfg: Config, what: str) -> Entry:
    if cfg.dataset_file not in registry:
        raise UserError(
            f"dataset_file {cfg.dataset_file!r} has no {what}; those that have are {', '.join(sorted(registry))}"
        )
    return registry[cfg.dataset_file]
