"""Scores of folders of masks, computed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.expressions import NEGATIVE
from datasets.mevis import read_ground_truth
from datasets.predictions import mask_path, write_index_mask, write_mask
from datasets.scoring import find_ground_truth, score_expressions, score_unions, video_counts, video_metrics
from datasets.toy import STAMP
from scripts import eval_jf
from tests.jf_tools import BOX_HEIGHT, BOX_WIDTH, LEFT, RIGHT, boxes
from tests.true_formats import compressed
from util.errors import UserError, run_cli

# --- Ref-YouTube-VOS: empty masks, a late object, equal sentences, a missing prediction


YTVOS_FRAMES = ["00000", "00005"]
FRAMES = [*YTVOS_FRAMES, "00010"]

# Expression → (object, masks predicted in the two frames). Object 1 is LEFT in both, 2 is RIGHT in the second alone: it
# appears late. All sentences are the same text.
CAT: dict[str, tuple[int, list[np.ndarray]]] = {
    "0": (1, [boxes(LEFT), boxes(LEFT)]),  # right
    "1": (1, [boxes(LEFT, RIGHT), boxes(LEFT, RIGHT)]),  # the same sentence, another prediction: J 400/800
    "2": (2, [boxes(), boxes(RIGHT)]),  # both empty in the first frame: 1
    "3": (2, [boxes(RIGHT), boxes(RIGHT)]),  # not empty in the first frame: 0
    "4": (2, [boxes(), boxes()]),  # missed in the second frame: 0
}
YTVOS_J = {"0": 1.0, "1": 0.5, "2": 1.0, "3": 0.5, "4": 0.5}
YTVOS_F = {**YTVOS_J, "1": 2 / 3}  # two outlines of which one is wrong: precision 1/2, recall 1
DOG = {"0": (1, [boxes(LEFT), boxes(LEFT)])}


@pytest.fixture
def ytvos(tmp_path: Path) -> Path:
    for name, cases in (("cat", CAT), ("dog", DOG)):
        for number, frame in enumerate(YTVOS_FRAMES):
            ids = boxes(LEFT).astype(np.uint8) + 2 * boxes(*[RIGHT] * number)
            write_index_mask(tmp_path / "valid" / "Annotations" / name / f"{frame}.png", ids.astype(np.uint8))
            for exp_id, (_, guesses) in cases.items():
                write_mask(mask_path(tmp_path, name, exp_id, frame), guesses[number])
    videos = {
        name: {
            "frames": YTVOS_FRAMES,
            "expressions": {i: {"exp": "the cat", "obj_id": str(o)} for i, (o, _) in cases.items()},
        }
        for name, cases in (("cat", CAT), ("dog", DOG))
    }
    path = tmp_path / "meta_expressions" / "valid" / "meta_expressions.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"videos": videos}))
    return tmp_path


def score_ytvos(ytvos: Path) -> dict[str, Any]:
    return score_expressions(find_ground_truth(ytvos / "valid" / "Annotations"), ytvos / "Annotations")


def test_every_expression_by_its_id(ytvos: Path) -> None:
    rows = score_ytvos(ytvos)["per_expression"]
    assert list(rows) == [*(f"cat/{exp_id}" for exp_id in CAT), "dog/0"]
    for exp_id, (obj_id, _) in CAT.items():
        row = rows[f"cat/{exp_id}"]
        assert (row["J"], row["obj_id"]) == (YTVOS_J[exp_id], obj_id)
        assert row["F"] == pytest.approx(YTVOS_F[exp_id], abs=1e-12)
        assert row["JF"] == pytest.approx((YTVOS_J[exp_id] + YTVOS_F[exp_id]) / 2, abs=1e-12)


def test_means_are_over_expressions_not_over_videos(ytvos: Path) -> None:
    scores = score_ytvos(ytvos)
    assert scores["global"]["J"] == pytest.approx((3.5 + 1) / 6, abs=1e-12)
    assert scores["global"]["F"] == pytest.approx((3 + 2 / 3 + 1) / 6, abs=1e-12)
    assert scores["per_video"]["cat"]["J"] == pytest.approx(3.5 / 5, abs=1e-12)
    assert video_metrics(scores)["J&F"] == pytest.approx(100 * (4.5 + 4 + 2 / 3) / 12)
    assert video_counts(scores) == {"videos": 2, "expressions": 6} and scores["notes"] == []


def test_a_missing_prediction_is_no_empty_one(ytvos: Path) -> None:
    mask_path(ytvos, "cat", "4", YTVOS_FRAMES[0]).unlink()
    with pytest.raises(UserError, match=r"cat/4/00000\.png is missing; every frame needs a mask there"):
        score_ytvos(ytvos)


# --- Temporal consistency


def at(column: int) -> tuple[slice, slice]:
    return slice(10, 30), slice(column, column + 20)


@pytest.fixture
def moving(tmp_path: Path) -> Path:
    """Object 1 moves right by 5 pixels per frame, object 2 is at rest on the right."""
    guesses = {
        "follows": [boxes(at(10)), boxes(at(15)), boxes(at(20))],
        "switches": [boxes(at(10)), boxes(RIGHT), boxes(at(20))],
        "pauses": [boxes(at(10)), boxes(), boxes(at(20))],
        "stays": [boxes(at(10))] * 3,
    }
    for number, frame in enumerate(FRAMES):
        ids = boxes(at(10 + 5 * number)) + 2 * boxes(RIGHT).astype(np.uint8)
        write_index_mask(tmp_path / "valid" / "Annotations" / "cat" / f"{frame}.png", ids)
        for exp_id, masks in guesses.items():
            write_mask(mask_path(tmp_path, "cat", exp_id, frame), masks[number])
    write_expressions(tmp_path, {"cat": {exp_id: {"exp": "the cat", "obj_id": "1"} for exp_id in guesses}})
    (tmp_path / STAMP).write_text("{}")  # marks the toy benchmark, where motion is known
    return tmp_path


def test_temporal_consistency(moving: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = score_ytvos(moving)
    rows = {name.removeprefix("cat/"): (row["TC"], row["IDSW"]) for name, row in scores["per_expression"].items()}
    # In the second frame of "stays", the 20 columns of the first mask have moved on with the object, and 15 of them are
    # still predicted. In the third, 15 have moved, 5 are left on the background, and 15 of these 20 are predicted.
    assert rows == {"follows": (1, 0), "switches": (0, 1), "pauses": (0, 0), "stays": (0.75, 0)}
    assert scores["global"]["TC"] == 1.75 / 4 and scores["global"]["IDSW"] == 1 / 4
    assert (video_metrics(scores)["TC"], video_metrics(scores)["IDSW"]) == (43.75, 25)
    eval_jf.main(
        ["--gt", str(moving / "valid" / "Annotations"), "--pred", str(moving / "Annotations"), "--workers", "1"]
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "video expressions J&F J F TC IDSW" in lines
    assert any(line.startswith("mean 4 ") and line.endswith(" 43.8 25.0") for line in lines)


def test_other_sets_have_no_known_motion(moving: Path) -> None:
    (moving / STAMP).unlink()
    scores = score_ytvos(moving)["global"]
    assert "TC" not in scores and scores["IDSW"] == 1 / 4


def test_an_object_without_a_sentence_can_be_chosen(moving: Path) -> None:
    write_mask(mask_path(moving, "cat", "stays", FRAMES[2]), boxes((slice(10, 30), slice(35, 70))))
    assert score_ytvos(moving)["per_expression"]["cat/stays"]["IDSW"] == 1 / 2


# --- MeViS: unions, both empty, no target, duplicated sentences, keys


# Expression → (instances, masks predicted in frames 0 and 1). Instance 4 is the left box in both frames, 5 the right
# one in the second frame only: it appears late.
MEVIS_CASES: dict[str, tuple[list[int], list[np.ndarray]]] = {
    "0": ([4, 5], [boxes(LEFT), boxes(LEFT, RIGHT)]),  # the union: right
    "1": ([4, 5], [boxes(LEFT), boxes(LEFT)]),  # the second object is missed: J 1, 400/800; F 1, 2·1·½/1½
    "2": ([5], [boxes(), boxes(RIGHT)]),  # both empty in the first frame: 1
    "3": ([5], [boxes(LEFT), boxes(RIGHT)]),  # not empty in the first frame: 0
    "4": ([], [boxes(), boxes()]),  # no target, nothing said
    "5": ([], [boxes(), boxes(LEFT)]),  # no target, something said in the second frame
}
MEVIS_J = {"0": 1.0, "1": 0.75, "2": 1.0, "3": 0.5, "4": 1.0, "5": 0.5}
MEVIS_F = {"0": 1.0, "1": (1 + 2 / 3) / 2, "2": 1.0, "3": 0.5, "4": 1.0, "5": 0.5}


@pytest.fixture
def mevis(tmp_path: Path) -> Path:
    """A split, and predictions in ``pred``. All sentences are the same text: results must not be keyed by it."""
    split = tmp_path / "valid_u"
    (split / "JPEGImages" / "cat").mkdir(parents=True)
    expressions = {i: {"exp": "the cat", "obj_id": [0], "anno_id": ids} for i, (ids, _) in MEVIS_CASES.items()}
    videos = {"cat": {"expressions": expressions, "vid_id": 0, "frames": ["00000", "00001"]}}
    (split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    masks = {"4": [compressed(boxes(LEFT))] * 2, "5": [None, compressed(boxes(RIGHT))]}
    (split / "mask_dict.json").write_text(json.dumps(masks))
    for exp_id, (_, guesses) in MEVIS_CASES.items():
        for name, guess in zip(("00000", "00001"), guesses, strict=True):
            write_mask(tmp_path / "pred" / "cat" / exp_id / f"{name}.png", guess)
    return tmp_path


def score_mevis(mevis: Path, workers: int = 1) -> dict[str, Any]:
    videos, version = read_ground_truth(mevis, "valid_u")
    return score_unions(videos, mevis / "pred", version, workers)


def test_every_mevis_expression(mevis: Path) -> None:
    rows = score_mevis(mevis)["per_expression"]
    assert list(rows) == [f"v2/cat/{i}" for i in MEVIS_CASES]
    for i, (instances, _) in MEVIS_CASES.items():
        row = rows[f"v2/cat/{i}"]
        assert (row["J"], row["target"]) == (MEVIS_J[i], bool(instances))
        assert row["F"] == pytest.approx(MEVIS_F[i], abs=1e-12)
        assert row["JF"] == pytest.approx((MEVIS_J[i] + MEVIS_F[i]) / 2, abs=1e-12)


def test_mevis_means(mevis: Path) -> None:
    scores = score_mevis(mevis)
    assert scores["global"]["J"] == pytest.approx(4.75 / 6, abs=1e-12)
    assert scores["global"]["F"] == pytest.approx((4 + 5 / 6) / 6, abs=1e-12)
    assert scores["with_target"]["J"] == pytest.approx(3.25 / 4) and scores["with_target"]["expressions"] == 4
    without = scores["without_target"]
    assert without == {"J": 0.75, "F": 0.75, "JF": 0.75, "expressions": 2, "accuracy": 0.5}
    metrics = video_metrics(scores)
    assert metrics["J"] == pytest.approx(475 / 6) and metrics["N-acc"] == 50 and metrics["T-acc"] == 100
    assert metrics["with_target.J"] == pytest.approx(325 / 4)
    assert video_counts(scores) == {"videos": 1, "expressions": 6}


def test_version_one_has_no_row_without_target(mevis: Path) -> None:
    path = mevis / "valid_u" / "meta_expressions.json"
    content = json.loads(path.read_text())
    for exp_id in "45":
        del content["videos"]["cat"]["expressions"][exp_id]
    path.write_text(json.dumps(content))
    scores = score_mevis(mevis)
    assert list(scores["per_expression"]) == [f"v1/cat/{i}" for i in "0123"]
    assert "without_target" not in scores and "N-acc" not in video_metrics(scores)
    assert scores["global"]["J"] == pytest.approx(3.25 / 4)


def test_mevis_by_the_command(mevis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = mevis / "scores.json"
    options = ["--gt", str(mevis / "valid_u"), "--pred", str(mevis / "pred"), "--workers", "1", "--json", str(report)]
    eval_jf.main(options)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "task: mevis (guessed from the folders; --task chooses another)" in lines and "MeViS v2" in lines
    assert "with target 4 82.3 81.2 83.3" in lines and "without target 2 75.0 75.0 75.0" in lines
    assert lines.count("mean 6 79.9 79.2 80.6") == 2
    assert "N-acc (no target, no mask in any frame) 50.0, T-acc (a target, a mask in some frame) 100.0" in lines
    assert "Final (mean of J&F, N-acc and T-acc) 76.6" in lines
    assert json.loads(report.read_text()) == score_mevis(mevis)
    eval_jf.main([*options, "--version", "v1"])
    assert "v1/cat/0" in json.loads(report.read_text())["per_expression"]


def test_mevis_missing_prediction(mevis: Path) -> None:
    (mevis / "pred" / "cat" / "4" / "00001.png").unlink()
    with pytest.raises(UserError, match=r"cat/4/00001\.png is missing; every frame needs a mask there"):
        score_mevis(mevis)


def test_a_prediction_of_another_size(mevis: Path) -> None:
    write_mask(mevis / "pred" / "cat" / "0" / "00000.png", np.zeros((BOX_HEIGHT, BOX_WIDTH + 1), bool))
    with pytest.raises(UserError, match=r"cat/0/00000\.png is 81×60 pixels, but its frame is 80×60"):
        score_mevis(mevis)


@pytest.mark.parametrize("mask", ["text", 5, [[1, 2]], {"counts": "1"}, {"size": ["a", 5]}, {"size": [1 << 40, 9]}])
def test_damaged_truth(mevis: Path, mask: Any) -> None:
    """Of the first frame, too, whose mask states the size of a video."""
    path = mevis / "valid_u" / "mask_dict.json"
    content = json.loads(path.read_text())
    content["4"][0] = mask
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="frame 0 of video 'cat', instance 4"):
        score_mevis(mevis)


def test_damaged_truth_in_another_process(mevis: Path) -> None:
    path = mevis / "valid_u" / "mask_dict.json"
    content = json.loads(path.read_text())
    content["4"][1]["counts"] = "1"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="frame 1 of video 'cat', instance 4"):
        score_mevis(mevis, workers=2)


# --- Negatives of Ref-YouTube-VOS


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
def negatives(tmp_path: Path) -> Path:
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


def expressions_file(negatives: Path) -> Path:
    return negatives / "meta_expressions" / "valid" / "meta_expressions.json"


def write_expressions(negatives: Path, expressions: dict[str, Any]) -> None:
    videos = {name: {"frames": FRAMES, "expressions": entries} for name, entries in expressions.items()}
    expressions_file(negatives).parent.mkdir(parents=True, exist_ok=True)
    expressions_file(negatives).write_text(json.dumps({"videos": videos}))


def folders(negatives: Path) -> tuple[Path, Path]:
    return negatives / "valid" / "Annotations", negatives / "Annotations"


def fails_with(capsys: pytest.CaptureFixture, main: Callable, *arguments: object) -> str:
    """Run a script, which must end in status 2 with one line on stderr; return that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: main([str(argument) for argument in arguments]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


# Scores


def score_negatives(root: Path) -> dict[str, Any]:
    gt, pred = folders(root)
    return score_expressions(find_ground_truth(gt), pred)


def test_a_negative_scores_by_its_empty_frames(negatives: Path) -> None:
    rows = score_negatives(negatives)["per_expression"]
    for name, share in (("cat/1", 1), ("cat/2", 2 / 3), ("cat/3", 0), ("dog/0", 1)):
        expected = {"J": pytest.approx(share), "F": pytest.approx(share), "JF": pytest.approx(share), "IDSW": 0}
        assert rows[name] == {**expected, "obj_id": None, "kind": NEGATIVE}


def test_negatives_have_their_own_row_and_count_nowhere_else(negatives: Path) -> None:
    scores = score_negatives(negatives)
    assert scores["per_kind"][NEGATIVE] == pytest.approx(
        {"J": 2 / 3, "F": 2 / 3, "JF": 2 / 3, "IDSW": 0, "expressions": 4}
    )
    target = {"J": 2 / 3, "F": 2 / 3, "JF": 2 / 3, "IDSW": 0}
    assert scores["global"] == pytest.approx({**target, "negative_accuracy": 0.5})
    assert scores["per_kind"]["colour"] == pytest.approx({**target, "expressions": 1})
    assert scores["per_video"] == {"cat": pytest.approx({**target, "expressions": 1})}
    assert scores["notes"] == [], "a negative is not an object that is never visible"


def test_negatives_change_no_other_score(negatives: Path) -> None:
    with_negatives = score_negatives(negatives)
    write_expressions(negatives, {"cat": {"0": EXPRESSIONS["cat"]["0"]}})
    without = score_negatives(negatives)
    assert without["global"] == {key: with_negatives["global"][key] for key in ("J", "F", "JF", "IDSW")}
    assert without["per_video"] == with_negatives["per_video"]
    assert without["per_expression"]["cat/0"] == with_negatives["per_expression"]["cat/0"]


def test_tables_of_negatives(negatives: Path, capsys: pytest.CaptureFixture) -> None:
    gt, pred = folders(negatives)
    eval_jf.main(["--gt", str(gt), "--pred", str(pred), "--workers", "1", "--json", str(negatives / "scores.json")])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "negative 4 66.7 66.7 66.7 0.0" in lines
    assert lines.count("mean without negative 1 66.7 66.7 66.7 0.0") == 2
    assert "negatives with no mask in any frame: 50.0 % of 4" in lines
    assert json.loads((negatives / "scores.json").read_text())["global"]["negative_accuracy"] == 0.5


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
def test_what_is_no_negative(negatives: Path, entry: dict, message: str, capsys: pytest.CaptureFixture) -> None:
    write_expressions(negatives, {**EXPRESSIONS, "cat": {**EXPRESSIONS["cat"], "1": entry}})
    gt, pred = folders(negatives)
    assert message in fails_with(capsys, eval_jf.main, "--gt", gt, "--pred", pred, "--workers", 1)


def test_negatives_alone_have_no_score(negatives: Path, capsys: pytest.CaptureFixture) -> None:
    write_expressions(negatives, {"cat": {"1": BLUE}, "dog": {"0": BLUE}})
    gt, pred = folders(negatives)
    assert "no expression refers to an object" in fails_with(capsys, eval_jf.main, "--gt", gt, "--pred", pred)


def test_a_missing_mask_of_a_negative(negatives: Path, capsys: pytest.CaptureFixture) -> None:
    gt, pred = folders(negatives)
    (pred / "dog" / "0" / "00005.png").unlink()
    assert "dog/0/00005.png is missing" in fails_with(capsys, eval_jf.main, "--gt", gt, "--pred", pred)


# Baselines
