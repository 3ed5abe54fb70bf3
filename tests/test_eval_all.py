"""scripts.eval_all: its table, what it refuses, what it makes again, and, slow, the whole of it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import inference_davis
import inference_ytvos
import main as main_script
from scripts import eval_all
from scripts.eval_all import EVALUATIONS, INFERENCES, TRAININGS, Evaluation, Inference, main
from scripts.eval_all_sets import CHECKS
from scripts.eval_all_table import COLUMNS, print_table
from tests.commands import run_command
from util.benchmarks import EVAL_SPLITS, MIXTURES, scored_parts
from util.errors import RunError, UserError


def test_every_benchmark_is_evaluated_and_every_recipe_trained() -> None:
    parts = {part for evaluation in EVALUATIONS for part in scored_parts(evaluation.dataset_file)}
    assert parts == set(EVAL_SPLITS)
    assert set(TRAININGS) >= set(MIXTURES) and {"ytvos", "a2d", "mevis"} <= set(TRAININGS)
    assert {evaluation.weights for evaluation in EVALUATIONS} == set(TRAININGS)
    assert {inference.part for inference in INFERENCES} == {"ytvos", "davis", "mevis"}


def test_the_table() -> None:
    text = io.StringIO()
    videos = {"J&F": 43.21, "J": 40.0, "F": 46.42, "no_target_accuracy": None, "with_target.J": 1.0}
    items = {
        "oIoU": 51.04,
        "mIoU": 50.0,
        **{f"P@0.{digit}": 100.0 - digit for digit in range(5, 10)},
        "box_P@0.5": 99.9,
    }
    rows: list[Any] = [
        ("mevis v2", "mevis", videos, {"videos": 2, "expressions": 17}),
        ("refcoco", "joint_coco", items, {"items": 5, "items_without_prediction": 0}),
    ]
    print_table(rows, text)
    lines = [line.split() for line in text.getvalue().splitlines() if line.strip()]
    header = " ".join(lines[1])
    assert all(title in header for title in COLUMNS)
    assert lines[-2] == ["mevis", "v2", "mevis", "17", "43.2", "40.0", "46.4", "–"]
    precisions = ["95.0", "94.0", "93.0", "92.0", "91.0"]
    assert lines[-1] == ["refcoco", "joint_coco", "5", *precisions, "51.0", "50.0", "99.9"]


def test_nothing_of_the_table_is_cut_off_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    metrics: dict[str, float | None] = {key: 100.0 for keys in COLUMNS.values() for key in keys}
    print_table([("a set with a name", "the weights of a long mixture", metrics, {"items": 123456})])
    text = " ".join(capsys.readouterr().out.split())
    assert "…" not in text and all(title in text for title in COLUMNS)
    assert "a set with a name the weights of a long mixture 123456" in text and text.count("100.0") == len(metrics)


def test_without_toy_it_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"add --toy; real sets .* main\.py --eval"):
        main([])


def test_without_the_carried_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_all, "TOY", tmp_path)
    with pytest.raises(UserError, match=r"vdit\.safetensors or .* is missing"):
        main(["--toy", "--output_dir", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("stamp", "force", "kept"), [({"a": 1}, False, True), ({"a": 2}, False, False), ({"a": 1}, True, False)]
)
def test_what_is_of_another_plan_is_made_again(stamp: dict[str, int], force: bool, kept: bool, tmp_path: Path) -> None:
    eval_all._begin(tmp_path, {"a": 1}, False)
    (tmp_path / "train").mkdir()
    (tmp_path / "mine.txt").touch()
    eval_all._begin(tmp_path, stamp, force)
    assert (tmp_path / "train").exists() == kept and (tmp_path / "mine.txt").exists()
    assert json.loads((tmp_path / "plan.json").read_text()) == stamp


def test_two_ways_that_differ_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_all, "EVALUATIONS", (Evaluation("e", "w", "ytvos"),))
    inference = Inference("i", "e", "ytvos", "inference_ytvos.py", "truth", "Annotations")
    for folder in ("eval/e", "inference/i"):
        (tmp_path / folder).mkdir(parents=True)
    row = {"J": 0.5, "F": 0.7, "JF": 0.6}
    (tmp_path / "inference/i/scores.json").write_text(json.dumps({"task": "expressions", "global": row}))
    found = {"J": 50.0, "F": 70.0, "J&F": 60.0}
    (tmp_path / "eval/e/results.json").write_text(json.dumps({"metrics": found}))
    eval_all._infer("vdit", tmp_path, inference)
    (tmp_path / "eval/e/results.json").write_text(json.dumps({"metrics": {**found, "F": 70.001}}))
    with pytest.raises(RunError, match=r"i: main.py --eval says F 70\.001, .* must agree"):
        eval_all._infer("vdit", tmp_path, inference)


PROGRAMS = {
    "main.py": main_script.main,
    "inference_ytvos.py": inference_ytvos.main,
    "inference_davis.py": inference_davis.main,
}


def _in_process(title: str, program: str, *words: object) -> None:
    """In place of ``scripts.quickstart.run``: as many processes take minutes to import PyTorch."""
    done = run_command(PROGRAMS[program], *words)
    assert done.returncode == 0, done.stderr
    print(title, done.stdout)


@pytest.mark.slow
def test_all_of_it(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything, its programs in this process; then, as a user types it, what is missing, in processes of its own."""
    options = ("--toy", "--short", "--output_dir", str(tmp_path / "run"))
    monkeypatch.setattr(eval_all, "run", _in_process)
    done = run_command(main, *options)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    told, first = done.stdout, (tmp_path / "run" / "results.json").read_bytes()
    assert told.count("Training on") == len(TRAININGS) and told.count("Evaluation: ") == len(EVALUATIONS)
    assert told.count("nothing is missing or broken") == len(CHECKS)
    results = json.loads(first)
    metrics, counts = results["metrics"], results["counts"]
    rows = sum(len(scored_parts(evaluation.dataset_file)) for evaluation in EVALUATIONS)
    assert metrics.keys() == counts.keys() and len(metrics) == rows
    for label in ("ytvos, weights of ytvos", "davis, weights of ytvos", "mevis v1, weights of mevis"):
        assert 0 < metrics[label]["J&F"] <= 100
    for label in ("a2d, weights of a2d", "jhmdb, weights of a2d"):
        assert {"mAP", "mAP_best_query", "P@0.5", "P@0.9", "oIoU", "mIoU"} <= metrics[label].keys()
    for name in ("refcoco", "refcoco+", "refcocog"):
        row = metrics[f"{name}, weights of joint_coco"]
        assert row["oIoU"] > 0 and {"mIoU", "P@0.5", "box_P@0.5"} <= row.keys()
        assert counts[f"{name}, weights of joint_coco"]["items"] > 0
    assert {f"matched.anno_{number}.J&F" for number in range(4)} <= metrics["davis, weights of ytvos"].keys()
    assert "no_target_accuracy" in metrics["mevis v2, weights of mevis"]

    masks = tmp_path / "run" / "inference" / "davis"
    scores = (masks / "scores.json").read_bytes()
    shutil.rmtree(masks)
    command = [sys.executable, "-m", "scripts.eval_all", *options]
    again = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout[-1000:] + again.stderr[-2000:]
    assert (masks / "scores.json").read_bytes() == scores and "$ python inference_davis.py " in again.stdout
    assert (tmp_path / "run" / "results.json").read_bytes() == first
    assert "Training on" not in again.stdout and "all benchmarks, toy sets" in again.stdout
