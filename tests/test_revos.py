"""ReVOS: training clips, scores by hand, bad input and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_dataset, build_scorer, list_videos
from datasets.mevis import MevisClips
from datasets.predictions import mask_path, write_mask
from datasets.registry import resolve
from datasets.scoring import video_counts, video_metrics
from datasets.transforms import EvalTransform
from scripts import eval_jf
from tests.true_formats import compressed
from tests.ytvos_tools import SMALL_CLIPS
from util.config import Config
from util.errors import UserError

SIZE = HEIGHT, WIDTH = 24, 32
NAMES = ["00000", "00001"]
EXPRESSIONS: dict[str, dict[str, Any]] = {
    "0": {"exp": "the large box", "obj_id": [0], "anno_id": [7], "type_id": 0},
    "1": {"exp": "What is made of wood?", "obj_id": [0, 1], "anno_id": [7, 8], "type_id": 1},
    "2": {"exp": "the elephant", "obj_id": [], "anno_id": [], "type_id": 2},
    "3": {"exp": "the small box", "obj_id": [1], "anno_id": [8], "type_id": 0},
}


def mask(rows: slice, columns: slice) -> np.ndarray:
    found = np.zeros(SIZE, bool)
    found[rows, columns] = True
    return found


LARGE, SMALL = mask(slice(4, 14), slice(6, 20)), mask(slice(16, 20), slice(2, 12))  # 140 and 40 pixels
EMPTY, FULL = np.zeros(SIZE, bool), np.ones(SIZE, bool)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set with a video in train and one in valid, and predictions for the latter in ``Annotations``."""
    for split, video in (("train", "attic"), ("valid", "cellar")):
        folder = tmp_path / "JPEGImages" / video
        folder.mkdir(parents=True)
        for name in NAMES:
            Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(folder / f"{name}.jpg")
        entry = {"vid_id": 0, "height": HEIGHT, "width": WIDTH, "frames": NAMES, "expressions": EXPRESSIONS}
        (tmp_path / f"meta_expressions_{split}_.json").write_text(json.dumps({"videos": {video: entry}}))
    masks = {"7": [compressed(LARGE)] * 2, "8": [compressed(SMALL)] * 2}
    (tmp_path / "mask_dict.json").write_text(json.dumps(masks))
    foreground = {"masks_rle": [compressed(LARGE | SMALL)] * 2, "foreground_ratio": [180 / 768] * 2}
    (tmp_path / "mask_dict_foreground.json").write_text(json.dumps({"attic": foreground, "cellar": foreground}))
    predictions = {"0": (LARGE, LARGE | SMALL), "1": (LARGE, LARGE), "2": (FULL, EMPTY), "3": (EMPTY, EMPTY)}
    for exp_id, pair in predictions.items():
        for name, found in zip(NAMES, pair, strict=True):
            write_mask(mask_path(tmp_path, "cellar", exp_id, name), found)
    return tmp_path


def config(root: Path, **options: Any) -> Config:
    return resolve(
        Config(dataset_file="revos", revos_path=str(root), output_dir=str(root), **{**SMALL_CLIPS, **options})
    )


def test_scores_by_hand(root: Path) -> None:
    scores = build_scorer(config(root))(1)
    rows = scores["per_expression"]
    assert [rows[f"revos/cellar/{i}"]["J"] for i in range(4)] == pytest.approx([(1 + 7 / 9) / 2, 7 / 9, 0.5, 0])
    # 40 of the 180 pixels of all objects are wrong in one frame; the full frame is wrong in 768 of 180.
    robust = [(1 + 7 / 9) / 2, 1, 0.5, 1]
    assert [rows[f"revos/cellar/{i}"]["R"] for i in range(4)] == pytest.approx(robust, abs=1e-8)
    kinds = scores["per_kind"]
    assert {kind: row["expressions"] for kind, row in kinds.items()} == {"no target": 1, "reasoning": 1, "referring": 2}
    assert kinds["referring"]["J"] == pytest.approx(4 / 9) and kinds["reasoning"]["J"] == pytest.approx(7 / 9)
    assert scores["global"]["J"] == pytest.approx((4 / 9 + 7 / 9) / 2), "both kinds have equal weight"
    assert scores["global"]["R"] == pytest.approx(((robust[0] + 1) / 2 + 1) / 2, abs=1e-8)
    metrics = video_metrics(scores)
    assert metrics["without_target.R"] == pytest.approx(50) and metrics["kind.reasoning.J"] == pytest.approx(700 / 9)
    assert metrics["J&F"] == pytest.approx(100 * scores["global"]["JF"]) and "Final" not in metrics
    assert video_counts(scores) == {"videos": 1, "expressions": 4}


def test_the_table_of_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eval_jf.main(["--gt", str(root), "--pred", str(root / "Annotations"), "--workers", "1"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "ReVOS" in lines and "kind expressions J&F J F R" in lines
    assert any(line.startswith("no target 1 ") and line.endswith(" 50.0") for line in lines)


def test_the_target_is_the_union_of_the_instances(root: Path) -> None:
    clips = MevisClips(root, "train", EvalTransform(HEIGHT, WIDTH), None)
    for index, expected in enumerate((LARGE, LARGE | SMALL, EMPTY, SMALL)):
        _, target = clips[index]
        assert target["video"] == "attic" and target["negative"] == (index == 2)
        assert torch.equal(target["masks"], torch.from_numpy(np.stack([expected] * 2)))
    assert len(build_dataset(config(root), "train")) == 4


def test_videos_for_inference(root: Path) -> None:
    (video,) = list_videos(config(root))
    assert video.frame_paths == [root / "JPEGImages" / "cellar" / f"{name}.jpg" for name in NAMES]
    assert video.expressions["1"] == "What is made of wood?"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_bad_input(root: Path) -> None:
    path = root / "mask_dict_foreground.json"
    change(path, cellar={"masks_rle": [None]})
    with pytest.raises(UserError, match="video 'cellar' should have 2 run lengths under 'masks_rle'"):
        build_scorer(config(root))
    change(path, cellar={"masks_rle": [compressed(np.ones((3, 4), bool))] * 2})
    with pytest.raises(UserError, match=r"foreground of video 'cellar'.*mask of size \[3, 4\]"):
        build_scorer(config(root))(1)
    path.unlink()
    with pytest.raises(UserError, match=r"mask_dict_foreground\.json is missing; it should hold"):
        build_scorer(config(root))
    (root / "meta_expressions_valid_.json").unlink()
    with pytest.raises(UserError, match=r"meta_expressions_valid_\.json is missing"):
        list_videos(config(root))
    (root / "mask_dict.json").unlink()
    with pytest.raises(UserError, match=r"mask_dict\.json is missing"):
        build_dataset(config(root), "train")
    (root / "meta_expressions_train_.json").unlink()
    with pytest.raises(UserError, match=r"train is missing; it should hold .*ReVOS has meta_expressions_train_\.json"):
        build_dataset(config(root), "train")
