"""Scores of Ref-YouTube-VOS, computed by hand: empty masks, a late object, equal sentences, a missing prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.predictions import mask_path, write_index_mask, write_mask
from datasets.scoring import score_expressions, video_counts, video_metrics
from tests.jf_tools import LEFT, RIGHT, boxes
from util.errors import UserError

FRAMES = ["00000", "00005"]

# Expression → (object, masks predicted in the two frames). Object 1 is LEFT in both, 2 is RIGHT in the second alone: it
# appears late. All sentences are the same text.
CAT: dict[str, tuple[int, list[np.ndarray]]] = {
    "0": (1, [boxes(LEFT), boxes(LEFT)]),  # right
    "1": (1, [boxes(LEFT, RIGHT), boxes(LEFT, RIGHT)]),  # the same sentence again, by another prediction: J 400/800
    "2": (2, [boxes(), boxes(RIGHT)]),  # both empty in the first frame: 1
    "3": (2, [boxes(RIGHT), boxes(RIGHT)]),  # not empty in the first frame: 0
    "4": (2, [boxes(), boxes()]),  # missed in the second frame: 0
}
J = {"0": 1.0, "1": 0.5, "2": 1.0, "3": 0.5, "4": 0.5}
F = {**J, "1": 2 / 3}  # two outlines of which one is wrong: precision 1/2, recall 1
DOG = {"0": (1, [boxes(LEFT), boxes(LEFT)])}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, cases in (("cat", CAT), ("dog", DOG)):
        for number, frame in enumerate(FRAMES):
            ids = boxes(LEFT).astype(np.uint8) + 2 * boxes(*[RIGHT] * number)
            write_index_mask(tmp_path / "valid" / "Annotations" / name / f"{frame}.png", ids.astype(np.uint8))
            for exp_id, (_, guesses) in cases.items():
                write_mask(mask_path(tmp_path, name, exp_id, frame), guesses[number])
    videos = {
        name: {
            "frames": FRAMES,
            "expressions": {i: {"exp": "the cat", "obj_id": str(o)} for i, (o, _) in cases.items()},
        }
        for name, cases in (("cat", CAT), ("dog", DOG))
    }
    path = tmp_path / "meta_expressions" / "valid" / "meta_expressions.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"videos": videos}))
    return tmp_path


def score(root: Path) -> dict[str, Any]:
    return score_expressions(root / "valid" / "Annotations", root / "Annotations")


def test_every_expression_by_its_id(root: Path) -> None:
    rows = score(root)["per_expression"]
    assert list(rows) == [*(f"cat/{exp_id}" for exp_id in CAT), "dog/0"]
    for exp_id, (obj_id, _) in CAT.items():
        row = rows[f"cat/{exp_id}"]
        assert (row["J"], row["obj_id"]) == (J[exp_id], obj_id)
        assert row["F"] == pytest.approx(F[exp_id], abs=1e-12)
        assert row["JF"] == pytest.approx((J[exp_id] + F[exp_id]) / 2, abs=1e-12)


def test_means_are_over_expressions_not_over_videos(root: Path) -> None:
    scores = score(root)
    assert scores["global"]["J"] == pytest.approx((3.5 + 1) / 6, abs=1e-12)
    assert scores["global"]["F"] == pytest.approx((3 + 2 / 3 + 1) / 6, abs=1e-12)
    assert scores["per_video"]["cat"]["J"] == pytest.approx(3.5 / 5, abs=1e-12)
    assert video_metrics(scores)["J&F"] == pytest.approx(100 * (4.5 + 4 + 2 / 3) / 12)
    assert video_counts(scores) == {"videos": 2, "expressions": 6} and scores["notes"] == []


def test_a_missing_prediction_is_no_empty_one(root: Path) -> None:
    mask_path(root, "cat", "4", FRAMES[0]).unlink()
    with pytest.raises(UserError, match=r"cat/4/00000\.png is missing; every frame needs a mask there"):
        score(root)
