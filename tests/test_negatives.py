"""Negatives (sentences that name nothing) in scores and baselines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.expressions import NEGATIVE
from datasets.predictions import mask_path, write_mask
from datasets.scoring import score_expressions
from datasets.toy import make_toy
from scripts import baselines, eval_jf
from util.errors import run_cli

FRAMES = ["00000", "00005", "00010"]
SIZE = (24, 32)
BLUE = {"exp": "the blue circle", "obj_id": None, "kind": NEGATIVE}
EXPRESSIONS = {
    "cat": {"0": {"exp": "the red square", "obj_id": "1", "kind": "colour"}, "1": BLUE, "2": BLUE, "3": BLUE},
    "dog": {"0": BLUE},
}


def square() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[4:14, 6:20] = True
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two videos with one object; one expression that names it, predicted half the time, and four negatives.

    Of these, cat/1 and dog/0 are left empty, cat/2 is not in one frame, cat/3 is wholly filled in all.
    """
    guesses = {"cat": {"0": [1, 0, 1], "1": [0, 0, 0], "2": [0, 1, 0], "3": [2, 2, 2]}, "dog": {"0": [0, 0, 0]}}
    pictures = (np.zeros(SIZE, bool), square(), np.ones(SIZE, bool))
    for name, by_id in guesses.items():
        for exp_id, choices in by_id.items():
            for frame, choice in zip(FRAMES, choices, strict=True):
                write_mask(mask_path(tmp_path, name, exp_id, frame), pictures[choice])
        for frame in FRAMES:  # 8-bit grey: the value is the object id
            path = tmp_path / "valid" / "Annotations" / name / f"{frame}.png"
            write_index(path, square().astype(np.uint8))
    write_expressions(tmp_path, EXPRESSIONS)
    return tmp_path


def write_index(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def expressions_file(root: Path) -> Path:
    return root / "meta_expressions" / "valid" / "meta_expressions.json"


def write_expressions(root: Path, expressions: dict[str, Any]) -> None:
    videos = {name: {"frames": FRAMES, "expressions": entries} for name, entries in expressions.items()}
    expressions_file(root).parent.mkdir(parents=True, exist_ok=True)
    expressions_file(root).write_text(json.dumps({"videos": videos}))


def folders(root: Path) -> tuple[Path, Path]:
    return root / "valid" / "Annotations", root / "Annotations"


def fails_with(capsys: pytest.CaptureFixture, main: Callable, *arguments: object) -> str:
    """Run a script, which must end in status 2 with one line on stderr; return that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: main([str(argument) for argument in arguments]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


# Scores


def test_a_negative_scores_by_its_empty_frames(root: Path) -> None:
    rows = score_expressions(*folders(root))["per_expression"]
    for name, share in (("cat/1", 1), ("cat/2", 2 / 3), ("cat/3", 0), ("dog/0", 1)):
        expected = {"J": pytest.approx(share), "F": pytest.approx(share), "JF": pytest.approx(share)}
        assert rows[name] == {**expected, "obj_id": None, "kind": NEGATIVE}


def test_negatives_have_their_own_row_and_count_nowhere_else(root: Path) -> None:
    scores = score_expressions(*folders(root))
    assert scores["per_kind"][NEGATIVE] == pytest.approx({"J": 2 / 3, "F": 2 / 3, "JF": 2 / 3, "expressions": 4})
    target = {"J": 2 / 3, "F": 2 / 3, "JF": 2 / 3}
    assert scores["global"] == pytest.approx({**target, "negative_accuracy": 0.5})
    assert scores["per_kind"]["colour"] == pytest.approx({**target, "expressions": 1})
    assert scores["per_video"] == {"cat": pytest.approx({**target, "expressions": 1})}
    assert scores["notes"] == [], "a negative is not an object that is never visible"


def test_negatives_change_no_other_score(root: Path) -> None:
    with_negatives = score_expressions(*folders(root))
    write_expressions(root, {"cat": {"0": EXPRESSIONS["cat"]["0"]}})
    without = score_expressions(*folders(root))
    assert without["global"] == {key: with_negatives["global"][key] for key in ("J", "F", "JF")}
    assert without["per_video"] == with_negatives["per_video"]
    assert without["per_expression"]["cat/0"] == with_negatives["per_expression"]["cat/0"]


def test_tables(root: Path, capsys: pytest.CaptureFixture) -> None:
    gt, pred = folders(root)
    eval_jf.main(["--gt", str(gt), "--pred", str(pred), "--workers", "1", "--json", str(root / "scores.json")])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "negative 4 66.7 66.7 66.7" in lines
    assert lines.count("mean without negative 1 66.7 66.7 66.7") == 2
    assert "negatives with no mask in any frame: 50.0 % of 4" in lines
    assert json.loads((root / "scores.json").read_text())["global"]["negative_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {**BLUE, "obj_id": "1"},
            "expression '1' of video 'cat' is of the kind 'negative', which refers to nothing, but has the",
        ),
        ({**BLUE, "kind": "colour"}, "expression '1' of video 'cat' has no 'obj_id'"),
        ({"exp": "the blue circle", "obj_id": None}, "expression '1' of video 'cat' has no 'obj_id'"),
        ({"exp": "the blue circle"}, "expression '1' of video 'cat' has no 'obj_id'"),
    ],
)
def test_what_is_no_negative(root: Path, entry: dict, message: str, capsys: pytest.CaptureFixture) -> None:
    write_expressions(root, {**EXPRESSIONS, "cat": {**EXPRESSIONS["cat"], "1": entry}})
    gt, pred = folders(root)
    assert message in fails_with(capsys, eval_jf.main, "--gt", gt, "--pred", pred, "--workers", 1)


def test_negatives_alone_have_no_score(root: Path, capsys: pytest.CaptureFixture) -> None:
    write_expressions(root, {"cat": {"1": BLUE}, "dog": {"0": BLUE}})
    gt, pred = folders(root)
    assert "no expression refers to an object" in fails_with(capsys, eval_jf.main, "--gt", gt, "--pred", pred)


def test_a_missing_mask_of_a_negative(root: Path, capsys: pytest.CaptureFixture) -> None:
    gt, pred = folders(root)
    (pred / "dog" / "0" / "00005.png").unlink()
    assert "dog/0/00005.png is missing" in fails_with(capsys, eval_jf.main, "--gt", gt, "--pred", pred)


# Baselines


def test_swap_leaves_them_out(root: Path, capsys: pytest.CaptureFixture) -> None:
    other = {"exp": "the green star", "obj_id": 2, "kind": "colour"}
    unknown = {"exp": "the thing"}
    write_expressions(root, {"cat": {**EXPRESSIONS["cat"], "4": other, "5": unknown}, "dog": EXPRESSIONS["dog"]})
    baselines.main(["swap", "--expressions", str(expressions_file(root)), "--output", str(root / "swapped.json")])
    out = capsys.readouterr().out
    assert "2 sentences swapped" in out and "left out: 4 negatives" in out
    assert "left out: 1 expressions without obj_id" in out and "no sentence about another object" not in out
    videos = json.loads((root / "swapped.json").read_text())["videos"]
    assert videos.keys() == {"cat"}
    sentences = {exp_id: entry["exp"] for exp_id, entry in videos["cat"]["expressions"].items()}
    assert sentences == {"0": "the green star", "4": "the red square"}, "no sentence of a negative either"


def test_largest_answers_them_too(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", num_train=0, num_valid=2, num_test=1, frames=4, negatives=2)
    gt, expressions = tmp_path / "toy" / "valid" / "Annotations", expressions_file(tmp_path / "toy")
    arguments = ["--gt", gt, "--expressions", expressions, "--output_dir", tmp_path / "out"]
    baselines.main(["largest", *map(str, arguments)])
    scores = score_expressions(gt, tmp_path / "out" / "Annotations")
    assert scores["per_kind"][NEGATIVE] == {"J": 0, "F": 0, "JF": 0, "expressions": 4}
    assert scores["global"]["negative_accuracy"] == 0 and 0 < scores["global"]["JF"] < 1
