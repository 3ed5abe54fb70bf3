"""scripts.calibrate_score: the threshold that keeps what is named, from an inference run's own record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts import calibrate_score
from scripts.calibrate_score import choose_threshold, order, read_scores
from tests.commands import run_command
from tests.true_formats import write_toy_mevis
from util.files import write_json

NAMED, NOTHING = [0.9, 0.8, 0.7, 0.6, 0.5], [0.55, 0.2]


def test_the_greatest_threshold_that_keeps_enough() -> None:
    named = np.array(NAMED)
    assert choose_threshold(named, 1.0) == 0.5 and choose_threshold(named, 0.8) == 0.6
    assert choose_threshold(np.array([0.999]), 1.0) == 0.99 and choose_threshold(np.zeros(3), 0.99) == 0.0
    assert order(named, np.array(NOTHING)) == 0.9 and order(np.ones(2), np.ones(3)) == 0.5


def write_run(root: Path, identity: dict[str, Any] | None = None) -> Path:
    """A record of inference, and the expressions it is about; a sentence without a score is left out."""
    named = {str(i): {"exp": "a dog", "obj_id": "1"} for i in range(len(NAMED) + 1)}
    nothing = {f"n{i}": {"exp": "a cat", "obj_id": None, "kind": "negative"} for i in range(len(NOTHING))}
    scores = dict(zip([*list(named)[:-1], *nothing], [*NAMED, *NOTHING], strict=True))
    videos = {"videos": {"v": {"frames": ["0"], "expressions": {**named, **nothing}}}}
    write_json(root / "data" / "meta_expressions" / "train" / "meta_expressions.json", videos)
    options = {"dataset_file": "ytvos", "ytvos_path": str(root / "data"), "split": "train", "expressions_file": ""}
    record = {
        "identity": options if identity is None else identity,
        "expressions": {"v": {k: {"score": s} for k, s in scores.items()}},
    }
    write_json(root / "run" / "inference.json", record)
    return root / "run"


def test_what_is_printed(tmp_path: Path) -> None:
    done = run_command(calibrate_score.main, write_run(tmp_path), "--keep", 0.8)
    assert done.returncode == 0, done.stderr
    assert (
        "5 sentences that refer to something, 2 that refer to nothing; " in done.stdout
        and "in 90 % of all pairs" in done.stdout
    )
    assert "           0.60             80.0 %                100.0 %   <- take this one\n" in done.stdout
    assert done.stdout.endswith("--score_threshold 0.60\n")


def test_mevis(tmp_path: Path) -> None:
    root = write_toy_mevis(
        tmp_path / "mevis", num_train=1, num_valid_u=2, num_valid=0, no_target=1, frames=4, height=48, width=64
    )
    root = root or tmp_path / "mevis"
    listed = json.loads((tmp_path / "mevis" / "valid_u" / "meta_expressions.json").read_text())["videos"]
    results = {name: {exp_id: {"score": 0.5} for exp_id in video["expressions"]} for name, video in listed.items()}
    options = {"dataset_file": "mevis", "mevis_path": str(tmp_path / "mevis"), "split": "valid_u"}
    write_json(tmp_path / "run" / "inference.json", {"identity": options, "expressions": results})
    named, nothing = read_scores(tmp_path / "run")
    answers = [bool(e["anno_id"]) for video in listed.values() for e in video["expressions"].values()]
    assert (len(named), len(nothing)) == (sum(answers), len(answers) - sum(answers)) and len(nothing) > 0


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ({"dataset_file": "davis"}, "is not a record of inference on a dataset whose sentences may refer to nothing"),
        ({}, "is not a record of inference"),
        ({"dataset_file": "ytvos", "ytvos_path": "/nowhere", "split": "train", "expressions_file": ""}, "is missing"),
    ],
)
def test_other_records(tmp_path: Path, identity: dict[str, Any], said: str) -> None:
    done = run_command(calibrate_score.main, write_run(tmp_path, identity))
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_mistakes(tmp_path: Path) -> None:
    for words, said in (
        ((tmp_path,), "inference.json is missing"),
        ((tmp_path, "--keep", 0), "--keep must be above 0"),
    ):
        done = run_command(calibrate_score.main, *words)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    run = write_run(tmp_path)
    record = json.loads((run / "inference.json").read_text())
    record["expressions"]["v"] = {"0": {"score": 0.5}}
    write_json(run / "inference.json", record)
    done = run_command(calibrate_score.main, run)
    assert done.returncode == 2 and "no score of a sentence that refers to nothing" in done.stderr
