"""Scores of MeViS, computed by hand: unions, both empty, no target, duplicated sentences, keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.mevis import read_truth
from datasets.predictions import write_mask
from datasets.scoring import score_unions, video_counts, video_metrics
from scripts import eval_jf
from scripts.toy_formats_coco import compressed
from tests.jf_tools import BOX_HEIGHT, BOX_WIDTH, LEFT, RIGHT, boxes
from util.errors import UserError

# Expression → (instances, masks predicted in frames 0 and 1). Instance 4 is the left box in both frames, 5 the right
# one in the second frame only: it appears late.
CASES: dict[str, tuple[list[int], list[np.ndarray]]] = {
    "0": ([4, 5], [boxes(LEFT), boxes(LEFT, RIGHT)]),  # the union: right
    "1": ([4, 5], [boxes(LEFT), boxes(LEFT)]),  # the second object is missed: J 1, 400/800; F 1, 2·1·½/1½
    "2": ([5], [boxes(), boxes(RIGHT)]),  # both empty in the first frame: 1
    "3": ([5], [boxes(LEFT), boxes(RIGHT)]),  # not empty in the first frame: 0
    "4": ([], [boxes(), boxes()]),  # no target, nothing said
    "5": ([], [boxes(), boxes(LEFT)]),  # no target, something said in the second frame
}
J = {"0": 1.0, "1": 0.75, "2": 1.0, "3": 0.5, "4": 1.0, "5": 0.5}
F = {"0": 1.0, "1": (1 + 2 / 3) / 2, "2": 1.0, "3": 0.5, "4": 1.0, "5": 0.5}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A split, and predictions in ``pred``. All sentences are the same text: results must not be keyed by it."""
    split = tmp_path / "valid_u"
    (split / "JPEGImages" / "cat").mkdir(parents=True)
    expressions = {i: {"exp": "the cat", "obj_id": [0], "anno_id": ids} for i, (ids, _) in CASES.items()}
    videos = {"cat": {"expressions": expressions, "vid_id": 0, "frames": ["00000", "00001"]}}
    (split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    masks = {"4": [compressed(boxes(LEFT))] * 2, "5": [None, compressed(boxes(RIGHT))]}
    (split / "mask_dict.json").write_text(json.dumps(masks))
    for exp_id, (_, guesses) in CASES.items():
        for name, guess in zip(("00000", "00001"), guesses, strict=True):
            write_mask(tmp_path / "pred" / "cat" / exp_id / f"{name}.png", guess)
    return tmp_path


def score(root: Path, workers: int = 1) -> dict[str, Any]:
    videos, version = read_truth(root / "valid_u")
    return score_unions(videos, root / "pred", version, workers)


def test_every_expression(root: Path) -> None:
    rows = score(root)["per_expression"]
    assert list(rows) == [f"v2/cat/{i}" for i in CASES]
    for i, (instances, _) in CASES.items():
        row = rows[f"v2/cat/{i}"]
        assert (row["J"], row["target"]) == (J[i], bool(instances))
        assert row["F"] == pytest.approx(F[i], abs=1e-12) and row["JF"] == pytest.approx((J[i] + F[i]) / 2, abs=1e-12)


def test_means(root: Path) -> None:
    scores = score(root)
    assert scores["global"]["J"] == pytest.approx(4.75 / 6, abs=1e-12)
    assert scores["global"]["F"] == pytest.approx((4 + 5 / 6) / 6, abs=1e-12)
    assert scores["with_target"]["J"] == pytest.approx(3.25 / 4) and scores["with_target"]["expressions"] == 4
    without = scores["without_target"]
    assert without == {"J": 0.75, "F": 0.75, "JF": 0.75, "expressions": 2, "accuracy": 0.5}
    metrics = video_metrics(scores)
    assert metrics["J"] == pytest.approx(475 / 6) and metrics["no_target_accuracy"] == 50
    assert metrics["with_target.J"] == pytest.approx(325 / 4)
    assert video_counts(scores) == {"videos": 1, "expressions": 6}


def test_version_one_has_no_row_without_target(root: Path) -> None:
    path = root / "valid_u" / "meta_expressions.json"
    content = json.loads(path.read_text())
    for exp_id in "45":
        del content["videos"]["cat"]["expressions"][exp_id]
    path.write_text(json.dumps(content))
    scores = score(root)
    assert list(scores["per_expression"]) == [f"v1/cat/{i}" for i in "0123"]
    assert "without_target" not in scores and "no_target_accuracy" not in video_metrics(scores)
    assert scores["global"]["J"] == pytest.approx(3.25 / 4)


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = root / "scores.json"
    options = ["--gt", str(root / "valid_u"), "--pred", str(root / "pred"), "--workers", "1", "--json", str(report)]
    eval_jf.main(options)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "task: mevis (guessed from the folders; --task chooses another)" in lines and "MeViS v2" in lines
    assert "with target 4 82.3 81.2 83.3" in lines and "without target 2 75.0 75.0 75.0" in lines
    assert lines.count("mean 6 79.9 79.2 80.6") == 2
    assert "without target and without any mask: 50.0 %" in lines
    assert json.loads(report.read_text()) == score(root)
    eval_jf.main([*options, "--version", "v1"])
    assert "v1/cat/0" in json.loads(report.read_text())["per_expression"]


def test_a_missing_prediction_is_one_sentence(root: Path) -> None:
    (root / "pred" / "cat" / "4" / "00001.png").unlink()
    with pytest.raises(UserError, match=r"cat/4/00001\.png is missing; every frame needs a mask there"):
        score(root)


def test_a_prediction_of_another_size(root: Path) -> None:
    write_mask(root / "pred" / "cat" / "0" / "00000.png", np.zeros((BOX_HEIGHT, BOX_WIDTH + 1), bool))
    with pytest.raises(UserError, match=r"cat/0/00000\.png is 81×60 pixels, but its frame is 80×60"):
        score(root)


def test_damaged_truth_in_another_process(root: Path) -> None:
    path = root / "valid_u" / "mask_dict.json"
    content = json.loads(path.read_text())
    content["4"][1]["counts"] = "1"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="frame 1 of video 'cat', instance 4"):
        score(root, workers=2)
