"""Datasets: one file per layout, and the registry that chooses one by ``cfg.dataset_file``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets import ytvos
from datasets.clip import ClipBatch, ClipDataset, ClipLoader, collate
from datasets.video import Video, load_frames
from util.errors import UserError

if TYPE_CHECKING:
    from util.config import Config

__all__ = ["ClipBatch", "ClipDataset", "ClipLoader", "Video", "build_dataset", "collate", "list_videos", "load_frames"]

_CLIPS = {"ytvos": ytvos.build_clips}
_VIDEOS = {"ytvos": ytvos.build_videos}


def build_dataset(cfg: Config, split: str) -> ClipDataset:
    """Build the dataset of ``cfg.dataset_file``: augmented clips for ``train``, else whole videos with their truth.

    Raises:
        UserError: an unknown dataset, or a file that is missing or malformed.
    """
    return _CLIPS[_known(cfg)](cfg, split)


def list_videos(cfg: Config) -> list[Video]:
    """List the videos and expressions of ``cfg.split`` for inference.

    Raises:
        UserError: an unknown dataset, or a file that is missing or malformed.
    """
    return _VIDEOS[_known(cfg)](cfg)


def _known(cfg: Config) -> str:
    if cfg.dataset_file not in _CLIPS:
        raise UserError(f"unknown dataset_file {cfg.dataset_file!r}; known are {', '.join(sorted(_CLIPS))}")
    return cfg.dataset_file
