"""A small A2D-Sentences of one video, whose frames tell their number and whose masks tell how they lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from datasets.a2d import A2dClips
from datasets.registry import resolve
from datasets.transforms import EvalTransform
from tests.true_formats import write_instances
from util.config import Config
from util.video import write_video

HEIGHT, WIDTH, FRAMES = 48, 80, 9
LEVEL = 25  # of grey, between two frames


def mask_of(instance: int) -> np.ndarray:
    """A mask that no transposition and no mirror leaves as it is."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[4 : 10 + 8 * instance, 6:30] = True
    return mask


def write_set(
    root: Path, entries: list[list[Any]], clips: str = "clips320H", size: tuple[int, int] | None = None
) -> Path:
    """A set of one video ``v``, whose frame t (from 0) is of the grey t · LEVEL. Instances 1 and 3 are annotated."""
    height, width = size or (HEIGHT, WIDTH)
    grey = (np.full((height, width, 3), LEVEL * t, np.uint8) for t in range(FRAMES))
    write_video(root / "Release" / clips / "v.mp4", grey)
    for frame in sorted({frame for _, _, frame, _ in entries}):
        masks = np.stack([mask_of(3), mask_of(1)])
        write_instances(h5_file(root, frame), [3, 1], masks)
    for split in ("train", "test"):
        list_file(root, split).write_text(json.dumps(entries))
    return root


def h5_file(root: Path, frame: int) -> Path:
    return root / "text_annotations" / "a2d_annotation_with_instances" / "v" / f"{frame:05d}.h5"


def list_file(root: Path, split: str) -> Path:
    return root / f"a2d_sentences_single_frame_{split}_annotations.json"


def plain(root: Path, split: str = "test", num_frames: int = 5) -> A2dClips:
    """Clips that are not augmented."""
    return A2dClips(root, split, EvalTransform(HEIGHT, WIDTH), num_frames)


def config(root: Path, **options: Any) -> Config:
    small = {"train_scales": (64,), "crop_scales": (), "max_size": 96, "eval_size": 64}
    return resolve(Config(dataset_file="a2d", a2d_path=str(root), **{**small, **options}))
