"""Masks and predictions for the tests of the scoring command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from util.metrics import fixed_scores

SIZE = (24, 32)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Object ids become a palette PNG, a bool mask a greyscale PNG of 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mask.dtype == bool:
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
        return
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([channel for value in range(256) for channel in (value, 255 - value, value // 2)])
    image.save(path)


def blocks(seed: int, highest: int) -> np.ndarray:
    """Ids 0…highest as blocks of 6×8 pixels, the highest present."""
    index = np.random.default_rng(seed).integers(0, highest + 1, (4, 4))
    index[0, 0] = highest
    return np.kron(index, np.ones((6, 8))).astype(np.uint8)


def expression_scores(gt_masks: np.ndarray, pred: np.ndarray) -> tuple[float, float]:
    """Mean J and F over the frames of one object, bool ``[T, H, W]`` each."""
    j, f = fixed_scores(zip(gt_masks.astype(np.uint8), pred.astype(np.uint8), strict=True), 1)
    return float(j.mean()), float(f.mean())


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def write_davis(root: Path) -> Path:
    """Two sequences of five frames with a prediction that is right but for one object."""
    for seed, name in enumerate(("cat", "dog")):
        for t in range(5):
            index = blocks(10 * seed + t, 3)
            write_mask(root / "gt" / name / f"{t:05d}.png", index)
            write_mask(root / "pred" / name / f"{t:05d}.png", np.where(index == 3, 0, index))
    return root


def write_ytvos(root: Path) -> Path:
    """Three videos, one of them without masks; four expressions on two objects of two videos."""
    expressions = {
        "0": {"exp": "the red square", "obj_id": "1", "kind": "colour"},
        "1": {"exp": "the circle", "obj_id": 2, "kind": "shape"},
    }
    frames = ["00000", "00005", "00010"]
    videos = {name: {"frames": frames, "expressions": expressions} for name in ("cat", "dog", "test")}
    path = root / "meta_expressions" / "valid" / "meta_expressions.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"videos": videos}))
    for seed, name in enumerate(("cat", "dog")):
        for t, frame in enumerate(frames):
            index = blocks(20 * seed + t, 2)
            write_mask(root / "valid" / "Annotations" / name / f"{frame}.png", index)
            for exp_id in ("0", "1"):
                guess = blocks(20 * seed + t + 7, 2) == int(exp_id) + 1
                write_mask(root / "Annotations" / name / exp_id / f"{frame}.png", guess)
    return root


BOX_HEIGHT, BOX_WIDTH = 60, 80  # pixels: the tolerance of F is 1
LEFT, RIGHT = (slice(10, 30), slice(10, 30)), (slice(10, 30), slice(50, 70))  # 20×20 each


def boxes(*places: tuple[slice, slice]) -> np.ndarray:
    """A mask of boxes."""
    picture = np.zeros((BOX_HEIGHT, BOX_WIDTH), bool)
    for place in places:
        picture[place] = True
    return picture
