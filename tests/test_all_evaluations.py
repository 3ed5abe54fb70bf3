"""tests.all_evaluations: it covers every dataset and recipe, notices scores that differ, and runs (slow)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets.registry import DATASETS, MIXTURES, scored_parts
from tests.all_evaluations import CHECKS, EVALUATIONS, INFERENCES, TRAININGS, Inference, compare, main
from tests.commands import run_command
from util.errors import RunError


def test_every_dataset_is_evaluated_and_every_recipe_trained() -> None:
    parts = {part for evaluation in EVALUATIONS.values() for part in scored_parts(evaluation.dataset_file)}
    assert parts == set(DATASETS)
    assert set(TRAININGS) >= {*MIXTURES, "ytvos", "a2d", "mevis"}
    assert {evaluation.weights for evaluation in EVALUATIONS.values()} == set(TRAININGS)
    assert {inference.part for inference in INFERENCES} == {name for name, row in DATASETS.items() if row.masks}


def test_scores_that_differ_are_an_error(tmp_path: Path) -> None:
    inference = Inference("i", "e", "ytvos", lambda: None, "valid")
    for folder in ("eval/e", "inference/i"):
        (tmp_path / folder).mkdir(parents=True)
    row = {"J": 0.5, "F": 0.7, "JF": 0.6}
    (tmp_path / "inference/i/scores.json").write_text(json.dumps({"task": "expressions", "global": row}))
    found = {"J": 50.0, "F": 70.0, "J&F": 60.0}
    (tmp_path / "eval/e/results.json").write_text(json.dumps({"metrics": found}))
    compare(tmp_path, inference)
    (tmp_path / "eval/e/results.json").write_text(json.dumps({"metrics": {**found, "F": 70.001}}))
    with pytest.raises(RunError, match=r"i: main.py --eval gives F 70\.001, .* must agree"):
        compare(tmp_path, inference)


@pytest.mark.slow
def test_the_short_run(tmp_path: Path) -> None:
    done = run_command(main, "--short", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert done.stdout.count("nothing is missing or broken") == len(CHECKS)
    assert "agree on ytvos, davis, mevis_v1, mevis_v2, long_rvos, revos" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == sum(len(scored_parts(evaluation.dataset_file)) for evaluation in EVALUATIONS.values())
    metrics = {label: result["metrics"] for label, result in results.items()}
    for label in ("ytvos, trained on ytvos", "davis, trained on ytvos", "mevis v1, trained on mevis"):
        assert 0 < metrics[label]["J&F"] <= 100
    for label in ("a2d, trained on a2d", "jhmdb, trained on a2d"):
        assert {"mAP", "mAP_best_query", "P@0.5", "P@0.9", "oIoU", "mIoU"} <= metrics[label].keys()
    for name in ("refcoco", "refcoco+", "refcocog"):
        row = metrics[f"{name}, trained on joint_coco"]
        assert row["oIoU"] > 0 and {"mIoU", "P@0.5", "box_P@0.5"} <= row.keys()
    assert {f"matched.anno_{number}.J&F" for number in range(4)} <= metrics["davis, trained on ytvos"].keys()
    assert "Final" in metrics["mevis v2, trained on mevis"]
    assert {"tIoU", "vIoU"} <= metrics["long_rvos, trained on long_rvos"].keys()
    assert "R" in metrics["revos, trained on revos"]


@pytest.mark.slow
def test_the_short_run_of_a_model_without_scores(tmp_path: Path) -> None:
    done = run_command(main, "--short", "--model", "rem", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert "agree on ytvos, davis, mevis_v1, mevis_v2" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    overlaps = {"oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"}
    for label in ("a2d, trained on a2d", "jhmdb, trained on a2d", "refcoco, trained on joint_coco"):
        assert results[label]["metrics"].keys() == overlaps
    record = json.loads((tmp_path / "inference" / "ytvos" / "inference.json").read_text())
    entries = [entry for video in record["expressions"].values() for entry in video.values()]
    assert all(entry.keys() == {"sentence", "frames", "seconds"} for entry in entries) and entries
