"""Datasets: one file per layout, and the builders that choose one by ``cfg.dataset_file`` (``datasets.registry``)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from datasets.registry import DATASETS, MIXTURES, resolve, root_of, scored_parts
from util.errors import UserError

if TYPE_CHECKING:
    from datasets.clip import ClipDataset, EpochLoader
    from datasets.evaluators import Evaluator, Scorer
    from datasets.files import Video
    from util.config import Config

READ_EXPRESSIONS_FILE = ("ytvos", "davis")
"""The modules of this package that read the option ``expressions_file``."""

__all__ = ["build_dataset", "build_evaluator", "build_loader", "build_scorer", "list_videos"]


def build_dataset(cfg: Config, split: str) -> ClipDataset:
    """Build the dataset of ``cfg.dataset_file``: augmented clips for ``train``, otherwise clips with ground truth.

    Raises:
        UserError: the dataset has no such clips, or a file is missing or malformed.
    """
    if cfg.dataset_file not in MIXTURES:
        clips = _build("build_clips", cfg, "clips", split)
        clips.near = cfg.frame_sampling == "near"
        return clips
    if split != "train":
        raise UserError(
            f"{cfg.dataset_file} is a mixture for training; name one of its parts "
            f"({', '.join(scored_parts(cfg.dataset_file))}) by --dataset_file for the split {split!r}"
        )
    from datasets.clip import JointClips

    parts = MIXTURES[cfg.dataset_file].items()
    return JointClips(
        [clips for name, times in parts for clips in [build_dataset(replace(cfg, dataset_file=name), split)] * times],
        cfg.seed,
    )


def build_loader(cfg: Config, pin_memory: bool) -> EpochLoader:
    """Build the loader of this process's share of the training clips.

    Args:
        cfg: the options.
        pin_memory: put batches in page-locked memory, so that copies to a GPU overlap with its work.

    Raises:
        UserError: a file of the dataset is missing or malformed.
    """
    from datasets.clip import EpochLoader

    dataset = build_dataset(cfg, "train")
    dataset.skip_broken = cfg.skip_broken
    return EpochLoader(dataset, cfg.batch_size, cfg.seed, cfg.accumulate, cfg.num_workers, pin_memory)


def list_videos(cfg: Config) -> list[Video]:
    """List the videos and expressions of ``cfg.split`` for inference.

    Raises:
        UserError: the dataset does not consist of whole videos, or a file is missing or malformed.
    """
    return _build("build_videos", cfg, "videos to segment")


def build_evaluator(cfg: Config) -> Evaluator:
    """Build the evaluator of a dataset of single frames, with the ground truth of ``cfg.split``.

    Raises:
        UserError: the dataset is not scored frame by frame, or a file is missing or malformed.
    """
    return _build("build_evaluator", cfg, "evaluator of single frames")


def build_scorer(cfg: Config) -> Scorer:
    """Find the ground truth of ``cfg.split``; the returned function scores the masks in ``cfg.output_dir``.

    Raises:
        UserError: the dataset does not consist of whole videos, or its ground truth is missing or malformed.
    """
    return _build("build_scorer", cfg, "scores of masks")


def _build(name: str, cfg: Config, what: str, *args: str) -> Any:
    """Call the function ``name`` of the dataset's module, after a check that the dataset's folder exists."""
    row = DATASETS.get(cfg.dataset_file)
    build = row.function(name) if row else None
    if row is None or build is None:
        known = ", ".join(sorted(other.name for other in DATASETS.values() if other.function(name)))
        raise UserError(f"dataset_file {cfg.dataset_file!r} has no {what}; those that have are {known}")
    folder = root_of(cfg)
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "is missing"
        raise UserError(f"{folder} {state}; name the folder of {row.name} by --{row.root} (docs/data.md)")
    cfg = resolve(cfg)
    split = args[0] if args else cfg.split
    if split not in row.splits:
        if split == "train":
            raise UserError(f"{row.name} has no 'train' split: it only evaluates weights trained on another dataset")
        raise UserError(f"unknown split {split!r}; {row.name} has {', '.join(row.splits)}")
    if cfg.expressions_file and split == cfg.split and row.module not in READ_EXPRESSIONS_FILE:
        raise UserError(f"expressions_file has no effect with dataset_file {row.name}; leave it out")
    return build(cfg, *args)
