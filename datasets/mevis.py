"""MeViS, versions 1 and 2: its layout on disk, training clips, videos for inference and scores (docs/data.md).

The target of an expression is the union of the instances that it names; one that names nothing is a negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datasets.evaluators import Scorer
from datasets.expression_clips import ExpressionClips
from datasets.mevis_files import open_masks, read_split, unite
from datasets.predictions import ANNOTATIONS
from datasets.scoring import score_unions
from datasets.transforms import ClipTransform, build_transform
from datasets.video import Video

if TYPE_CHECKING:
    from util.config import Config

AUTO_VERSION = "auto"


class MevisClips(ExpressionClips):
    """Clips of MeViS with the union of the named instances as target; see ``ExpressionClips``.

    Args:
        root: the dataset's folder.
        split: train or valid_u, which have masks.
        transform: applied to every clip.
        num_frames: frames per training clip; None: whole videos.
        seed: of the run.
        reverse_probability: share of training clips that run backwards.

    Raises:
        UserError: a missing folder or file, or a malformed one; images and run lengths are checked when they are read.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        transform: ClipTransform,
        num_frames: int | None,
        seed: int = 0,
        reverse_probability: float = 0.3,
    ) -> None:
        self._entries = read_split(root, split)
        self.masks = open_masks(root / split, self._entries)
        images = root / split / "JPEGImages"
        super().__init__(self._entries, images, transform, num_frames, seed, reverse_probability)

    def read_masks(self, video: str, exp_id: str, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Read the union of what an expression names; a frame that occurs again is read once.

        Raises:
            UserError: run lengths are damaged, or of another size than the frame.
        """
        instances = self._entries[video].expressions[exp_id].instances
        assert instances is not None, "the constructor has checked it"
        masks = {i: torch.from_numpy(self.masks.union(instances, i, size)) for i in dict.fromkeys(indices)}
        return torch.stack([masks[i] for i in indices])


def build_clips(cfg: Config, split: str) -> MevisClips:
    """Build the augmented training clips (``train``) or the whole videos of another split, with their truth."""
    train = split == "train"
    num_frames = cfg.num_frames if train else None
    transform = build_transform(cfg, train)
    return MevisClips(Path(cfg.mevis_path), split, transform, num_frames, cfg.seed, cfg.reverse_probability)


def build_videos(cfg: Config) -> list[Video]:
    """List the videos of ``cfg.split`` with all their frames and sentences."""
    root = Path(cfg.mevis_path)
    images = root / cfg.split / "JPEGImages"
    return [
        Video(
            name,
            [images / name / f"{frame}.jpg" for frame in video.frames],
            {exp_id: expression.caption for exp_id, expression in video.expressions.items()},
        )
        for name, video in read_split(root, cfg.split).items()
    ]


@dataclass(frozen=True)
class ScoredVideo:
    """A video and its truth, as ``datasets.scoring`` scores it. It can be sent to another process.

    Attributes:
        name: of its folder.
        frames: frame names.
        targets: expression id → the instances that it names, in the order of their ids.
        masks: instance → run lengths or None for each frame.
        where: the file of the masks, for messages.
    """

    name: str
    frames: list[str]
    targets: dict[str, tuple[str, ...]]
    masks: dict[str, list[Any]]
    where: Path

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W), as the first mask says; None where there is none, or it is damaged."""
        first = next((mask for frames in self.masks.values() for mask in frames if isinstance(mask, dict)), {})
        match first.get("size"):
            case [int(height), int(width)]:
                return height, width
        return None

    def truths(self, frame: int, size: tuple[int, int]) -> dict[tuple[str, ...], np.ndarray]:
        """The union, bool ``[H, W]``, of every distinct target in a frame.

        Raises:
            UserError: run lengths are damaged, or of another size.
        """
        where = f"{self.where}, frame {frame} of video {self.name!r}"
        return {
            target: unite({instance: self.masks[instance][frame] for instance in target}, size, where)
            for target in set(self.targets.values())
        }


def build_scorer(cfg: Config) -> Scorer:
    """Read the truth of ``cfg.split``; what is returned scores the masks below ``cfg.output_dir`` against it.

    See ``datasets.scoring.score_unions``.

    Raises:
        UserError: the truth is missing or malformed.
    """
    videos, version = read_truth(Path(cfg.mevis_path) / cfg.split, cfg.mevis_version)
    return partial(score_unions, videos, Path(cfg.output_dir) / ANNOTATIONS, version)


def read_truth(folder: Path, version: str = AUTO_VERSION) -> tuple[list[ScoredVideo], str]:
    """Read the videos that have expressions, and their truth.

    Args:
        folder: of a split with masks, ``<root>/valid_u``.
        version: v1, v2, or auto: v2 where a sentence names nothing, as only there.

    Returns:
        the videos, and v1 or v2, by which results are keyed.

    Raises:
        UserError: a file is missing, broken or malformed.
    """
    videos = read_split(folder.parent, folder.name)
    masks = open_masks(folder, videos)
    scored = []
    for name, video in videos.items():
        targets = {
            exp_id: tuple(sorted(expression.instances or ())) for exp_id, expression in video.expressions.items()
        }
        instances = {instance for target in targets.values() for instance in target}
        runs = {instance: masks.segmentations(instance) for instance in sorted(instances)}
        if targets:
            scored.append(ScoredVideo(name, video.frames, targets, runs, masks.path))
    if version == AUTO_VERSION:
        version = "v2" if any(not target for video in scored for target in video.targets.values()) else "v1"
    return scored, version
