"""A2D-Sentences: its layout on disk, training clips and items for evaluation (docs/data.md).

An item's id is ``v_<video>_f_<frame>_i_<instance>``; the sentence of one instance is an item in every frame that is
annotated.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import torch
from torch import Tensor

from datasets.annotated_frames import AnnotatedFrames, Item, clamp
from datasets.annotation_files import number_of, read_entries, require_files, sentence_of
from datasets.evaluators import A2dEvaluator
from datasets.reading import DATA_PAGE, plain_name, require_folder
from datasets.transforms import ClipTransform, build_transform
from datasets.video_files import read_video_frames
from util.errors import UserError

if TYPE_CHECKING:
    from util.config import Config

SPLITS = ("train", "test")
CLIP_FOLDERS = ("clips320H", "CLIPS320")  # of the releases
FORM = ("sentence", "video", "frame", "instance")
MOST_BYTES = 1 << 28  # of a frame's masks; a file can declare any number in a few bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class A2dItem(Item):
    """An item of A2D-Sentences: ``instance`` is its object's id in the frame's h5 file."""

    instance: int


class A2dClips(AnnotatedFrames[A2dItem]):
    """Clips of A2D-Sentences: a window around each annotated frame, with one mask.

    Args:
        root: the dataset's folder.
        split: train or test.
        transform: applied to every clip.
        num_frames: frames per clip.
        seed: of the run.

    Raises:
        UserError: a missing folder or file, or a malformed one; clips and masks are opened when they are read.
    """

    def __init__(self, root: Path, split: str, transform: ClipTransform, num_frames: int, seed: int = 0) -> None:
        require_folder(root, "the folders Release and text_annotations of A2D-Sentences, and its lists of sentences")
        listed_in = _list_file(root, split)
        items = read_items(root, split)
        super().__init__(items, transform, num_frames, split == "train", seed, listed_in)
        self.clips = clip_folder(root)
        self.masks = require_folder(
            root / "text_annotations" / "a2d_annotation_with_instances", "a folder of h5 masks per video"
        )
        require_files([self._clip(item) for item in items], listed_in)
        require_files([self.masks / item.video for item in items], listed_in)

    def read_window(self, item: A2dItem) -> tuple[Tensor, list[int]]:
        path, annotated = self._clip(item), item.frame - 1
        frames, indices = read_video_frames(path, clamp(annotated, self.num_frames, None))
        if indices[self.num_frames // 2] != annotated:
            raise UserError(
                f"video {path} has {indices[-1] + 1} frames, and frame {item.frame} of it is annotated; fetch or "
                "extract this file again"
            )
        return frames, [index + 1 for index in indices]

    def read_mask(self, item: A2dItem) -> Tensor:
        return read_instance_mask(self.masks / item.video / f"{item.frame:05d}.h5", item.instance)

    def _clip(self, item: A2dItem) -> Path:
        return self.clips / f"{item.video}.mp4"


def build_clips(cfg: Config, split: str) -> A2dClips:
    """Build the augmented training clips (``train``) or the items for evaluation (``test``)."""
    return A2dClips(Path(cfg.a2d_path), split, build_transform(cfg, split == "train"), cfg.num_frames, cfg.seed)


def build_evaluator(cfg: Config) -> A2dEvaluator:
    """Build the evaluator with the truth of ``cfg.split``, which must not be ``train``: its clips are augmented."""
    if cfg.split == "train":
        raise UserError("A2D-Sentences is scored on its test split, not on 'train'; leave --split out")
    coco_file = Path(cfg.a2d_path) / f"a2d_sentences_{cfg.split}_annotations_in_coco_format.json"
    return A2dEvaluator(build_clips(cfg, cfg.split).truth(coco_file))


def read_items(root: Path, split: str) -> list[A2dItem]:
    """Read the sentences of a split, without those of the videos that the authors of the sentences left out.

    Raises:
        UserError: an unknown split, or a file is missing or malformed.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; A2D-Sentences has {', '.join(SPLITS)}")
    path = _list_file(root, split)
    items = []
    for where, (sentence, video, frame, instance) in read_entries(path, f"the sentences of the {split} split", FORM):
        number, obj = number_of(frame, 1, "frame", where), number_of(instance, 0, "instance", where)
        name = plain_name(video, path, "a video")
        items.append(A2dItem(f"v_{name}_f_{number}_i_{obj}", name, sentence_of(sentence, where), number, obj))
    missed = _missed_videos(root / "text_annotations" / "a2d_missed_videos.txt")
    used = [item for item in items if item.video not in missed]
    if len(used) < len(items):
        logger.warning(
            "%d sentences of %s are left out: a2d_missed_videos.txt has their videos", len(items) - len(used), path
        )
    return used


def read_instance_mask(path: Path, instance: int) -> Tensor:
    """Read the mask of one instance from an annotated frame's h5 file: bool ``[H, W]``.

    The file's ``reMask`` is (instances, W, H), as MATLAB writes it; with a single instance its first axis is missing.

    Raises:
        UserError: the file is missing, broken or without the instance.
    """
    if not path.is_file():
        raise UserError(f"mask {path} is missing; the sentences name it (see {DATA_PAGE})")
    try:
        with h5py.File(path, "r") as file:
            if max(file[name].nbytes for name in ("instance", "reMask")) > MOST_BYTES:
                raise ValueError("it declares more than a mask holds")
            ids, masks = np.ravel(file["instance"][()]).tolist(), np.asarray(file["reMask"][()])
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"mask {path} is broken ({reason}); fetch or extract this file again") from error
    if masks.ndim == 2:
        masks = masks[None]
    if masks.ndim != 3 or len(masks) != len(ids):
        raise UserError(
            f"mask {path} has a 'reMask' of shape {masks.shape} for {len(ids)} instances; it should be (instances, "
            "width, height)"
        )
    if instance not in ids:
        raise UserError(f"mask {path} has no instance {instance}, which a sentence names; it has {ids}")
    return torch.from_numpy(np.ascontiguousarray(masks[ids.index(instance)].T != 0))


def _list_file(root: Path, split: str) -> Path:
    return root / f"a2d_sentences_single_frame_{split}_annotations.json"


def clip_folder(root: Path) -> Path:
    """The folder of MP4 files, under the name that this release has for it.

    Raises:
        UserError: it is missing.
    """
    folders = [root / "Release" / name for name in CLIP_FOLDERS]
    return next((folder for folder in folders if folder.is_dir()), None) or require_folder(
        folders[0], f"the clips as MP4 files (or {CLIP_FOLDERS[1]} in its place)"
    )


def _missed_videos(path: Path) -> Sequence[str]:
    """Names of videos that are in A2D and not in A2D-Sentences; none where there is no such file."""
    if not path.is_file():
        return ()
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} (names of videos, one a line): {error}") from error
