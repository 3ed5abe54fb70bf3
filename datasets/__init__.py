"""Datasets: one file per layout, and the registry that chooses one by ``cfg.dataset_file``.

A dataset's module is imported when it is chosen: PyTorch, h5py, SciPy and pycocotools take seconds, and the commands
that make, convert or score files do without some or all of them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.benchmarks import EVAL_SPLITS, MIXTURES, VIDEO_SETS, folder_option
from util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from datasets.clip import ClipDataset
    from datasets.evaluators import Evaluator, Scorer
    from datasets.video import Video
    from util.config import Config

__all__ = ["build_dataset", "build_evaluator", "build_scorer", "is_video_set", "list_videos"]

# dataset → the module, in this folder, of its layout.
_MODULES = {
    "ytvos": "ytvos",
    "davis": "davis",
    "mevis": "mevis",
    "a2d": "a2d",
    "jhmdb": "jhmdb",
    "refcoco": "refcoco",
    "refcoco+": "refcoco",
    "refcocog": "refcoco",
}


def build_dataset(cfg: Config, split: str) -> ClipDataset:
    """Build the dataset of ``cfg.dataset_file``: augmented clips for ``train``, else what is evaluated with its truth.

    Raises:
        UserError: the dataset has no clips of that kind, or a file is missing or malformed.
    """
    if cfg.dataset_file in MIXTURES:
        from datasets import joint

        return joint.build_clips(cfg, split, build_dataset)
    return _function("build_clips", cfg, {*_MODULES, *MIXTURES}, "clips")(cfg, split)


def list_videos(cfg: Config) -> list[Video]:
    """List the videos and expressions of ``cfg.split`` for inference.

    Raises:
        UserError: the dataset is no set of whole videos, or a file is missing or malformed.
    """
    return _function("build_videos", cfg, VIDEO_SETS, "videos to segment")(cfg)


def build_evaluator(cfg: Config) -> Evaluator:
    """Build the evaluator of a set that is scored item by item, with the truth of ``cfg.split``.

    Raises:
        UserError: the dataset is no such set, or a file is missing or malformed.
    """
    return _function("build_evaluator", cfg, set(EVAL_SPLITS) - set(VIDEO_SETS), "evaluator of single frames")(cfg)


def build_scorer(cfg: Config) -> Scorer:
    """Find the truth of ``cfg.split``; what is returned scores the masks below ``cfg.output_dir`` against it.

    Raises:
        UserError: the dataset is no set of whole videos, or its truth is missing or malformed.
    """
    return _function("build_scorer", cfg, VIDEO_SETS, "scores of masks")(cfg)


def is_video_set(cfg: Config) -> bool:
    """Whether the masks of whole videos are scored, not items one by one."""
    return cfg.dataset_file in VIDEO_SETS


def _function(name: str, cfg: Config, known: Iterable[str], what: str) -> Callable[..., Any]:
    """The function ``name`` of the module of ``cfg.dataset_file``, which must be one of ``known`` and have a folder."""
    if cfg.dataset_file not in known:
        raise UserError(
            f"dataset_file {cfg.dataset_file!r} has no {what}; those that have are {', '.join(sorted(known))}"
        )
    option = folder_option(cfg.dataset_file)
    folder = Path(getattr(cfg, option))
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "is missing"
        raise UserError(f"{folder} {state}; name the folder of {cfg.dataset_file} by --{option} (docs/data.md)")
    return getattr(import_module(f"datasets.{_MODULES[cfg.dataset_file]}"), name)
