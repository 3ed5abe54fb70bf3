"""A small Ref-YouTube-VOS for tests, and what its loader says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import build_dataset
from datasets.transforms import EvalTransform
from datasets.ytvos import YtvosClips
from util.config import Config
from util.errors import UserError

HEIGHT, WIDTH, FRAMES = 48, 80, 7
NAMES = [f"{5 * i:05d}" for i in range(FRAMES)]
PALETTE = [0, 0, 0, 236, 95, 103, 249, 145, 87, 250, 200, 99]
COLOURS = np.array([[40, 40, 40], [220, 30, 30], [30, 200, 30]], dtype=np.uint8)
SMALL_CLIPS: dict[str, Any] = {
    "train_scales": (24,),
    "crop_scales": (),
    "max_size": 32,
    "eval_size": 24,
    "num_frames": 2,
}
"""Options for frames of a few pixels."""


def object_ids(frame: int) -> np.ndarray:
    """Object 1 moves right; object 2 appears in the fourth frame."""
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    ids[8:24, 4 + 4 * frame : 24 + 4 * frame] = 1
    if frame >= 3:
        ids[30:40, 50:70] = 2
    return ids


def write_mask(path: Path, ids: np.ndarray) -> None:
    image = Image.fromarray(ids)
    image.putpalette(PALETTE)
    image.save(path)


def write_video(root: Path, split: str, name: str) -> None:
    for kind in ("JPEGImages", "Annotations"):
        (root / split / kind / name).mkdir(parents=True)
    for i, frame in enumerate(NAMES):
        Image.fromarray(COLOURS[object_ids(i)]).save(root / split / "JPEGImages" / name / f"{frame}.jpg", quality=95)
        write_mask(root / split / "Annotations" / name / f"{frame}.png", object_ids(i))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def entry(with_objects: bool = True) -> dict[str, Any]:
    """A video of an expressions file."""
    expressions: dict[str, Any] = {"0": {"exp": " The RED  box on the left"}, "1": {"exp": "a green box"}}
    if with_objects:
        expressions["0"]["obj_id"], expressions["1"]["obj_id"] = "1", "2"
    return {"frames": NAMES, "expressions": expressions}


def expressions_path(root: Path, split: str) -> Path:
    return root / "meta_expressions" / split / "meta_expressions.json"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file: ``change`` gets its videos."""
    content = json.loads(path.read_text())
    change(content["videos"])
    path.write_text(json.dumps(content))


def write_dataset(root: Path) -> Path:
    """Train: a, b. Valid: c, d; its file also lists the test video t, as the challenge's does."""
    for split, names in {"train": "ab", "valid": "cd", "test": "t"}.items():
        for name in names:
            write_video(root, split, name)
    write_json(expressions_path(root, "train"), {"videos": {"a": entry(), "b": entry()}})
    write_json(expressions_path(root, "valid"), {"videos": {name: entry(False) for name in "ctd"}})
    write_json(expressions_path(root, "test"), {"videos": {"t": entry(False)}})
    objects = {"objects": {"1": {"category": "box", "frames": NAMES}, "2": {"category": "box", "frames": NAMES[3:]}}}
    write_json(root / "train" / "meta.json", {"videos": {"a": objects, "b": objects}})
    return root


def config(root: Path | str, **options: Any) -> Config:
    small: dict[str, Any] = {
        "train_scales": (40, 48),
        "crop_scales": (48, 56),
        "crop_range": (40, 60),
        "max_size": 80,
        "eval_size": 48,
        "num_frames": 3,
    }
    return Config(ytvos_path=str(root), **{**small, **options})


def plain_clips(root: Path, num_frames: int | None = 3) -> YtvosClips:
    """Training clips that are not augmented."""
    return YtvosClips(root, "train", EvalTransform(HEIGHT, WIDTH), num_frames)


def train_error(root: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        build_dataset(config(root, **options), "train")
    return check_sentence(caught.value)


def check_sentence(error: UserError) -> str:
    sentence = str(error)
    assert sentence and "\n" not in sentence
    return sentence
