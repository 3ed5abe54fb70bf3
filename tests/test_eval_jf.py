"""The scoring command: the official DAVIS-2017 numbers, expressions, and errors in one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.scoring import find_ground_truth, score_davis, score_expressions
from scripts import eval_jf
from tests.jf_tools import SIZE, blocks, edit_json, expression_scores, write_davis, write_mask, write_ytvos
from util.errors import UserError

CASES = [
    "semi_main",
    "semi_hard",
    "semi_void_ignored",
    "unsup_main",
    "unsup_void_hard",
    "unsup_rvos",
    "unsup_rvos_void",
]
METRICS = ["JM", "JR", "JD", "FM", "FR", "FD"]


# DAVIS tasks ---------------------------------------------------------------------------------


def check_case(case: dict[str, Any], scores: dict[str, Any]) -> None:
    """Compare with the official values; in them an object of a matched sequence is named by its proposal's rank."""
    assert set(scores["per_object"]) == set(case["per_object"])
    for video, official in case["per_frame"].items():
        columns = list(range(len(official["J"])))
        if "assignment" in case:
            columns = case["assignment"][video]["gt_cols"]
            by_object = dict(zip(columns, case["assignment"][video]["proposal_rows"], strict=True))
            assert scores["assignment"][video] == [by_object[number] + 1 for number in sorted(columns)]
        for row, column in enumerate(columns):
            ours, theirs = scores["per_object"][f"{video}_{column + 1}"], case["per_object"][f"{video}_{row + 1}"]
            assert [ours[key] for key in METRICS] == pytest.approx([theirs[key] for key in METRICS], abs=1e-9, rel=0)
            for letter in "JF":
                values = scores["per_frame"][video][letter][column]
                assert values == pytest.approx(official[letter][row], abs=1e-9, rel=0)
    for key in METRICS:
        mean = np.mean([row[key] for row in case["per_object"].values()])
        assert scores["global"][key] == pytest.approx(mean, abs=1e-9, rel=0)
    assert scores["global"]["J&F"] == pytest.approx((scores["global"]["JM"] + scores["global"]["FM"]) / 2)


@pytest.mark.parametrize("name", CASES)
def test_official_values(name: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / "jf"
    case = json.loads((folder / "golden.json").read_text())["cases"][name]
    out = tmp_path / "scores.json"
    options = ["--task", case["task"], "--workers", "1", "--json", str(out)]
    eval_jf.main(["--gt", str(folder / case["gt"]), "--pred", str(folder / case["pred"]), *options])
    check_case(case, json.loads(out.read_text()))


def test_every_official_case_is_tested(shared: Path) -> None:
    assert set(json.loads((shared / "golden" / "jf" / "golden.json").read_text())["cases"]) == set(CASES)


def test_official_values_through_the_command(shared: Path, root: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / "jf"
    case = json.loads((folder / "golden.json").read_text())["cases"]["semi_hard"]
    out = tmp_path / "new" / "scores.json"
    command = [sys.executable, "-m", "scripts.eval_jf", "--gt", folder / case["gt"], "--pred", folder / case["pred"]]
    run = subprocess.run(
        [*command, "--json", out, "--workers", "2"], cwd=root, capture_output=True, text=True, check=True
    )
    check_case(case, json.loads(out.read_text()))
    assert "task: semi-supervised (guessed" in run.stdout
    lines = {line.split()[0]: line.split() for line in run.stdout.splitlines() if line.strip()}
    mean = np.mean([row["JM"] for row in case["per_object"].values()])
    assert lines["lab-coat"][1] == "5"
    assert float(lines["mean"][3]) == pytest.approx(100 * mean, abs=0.051)


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    return write_davis(tmp_path)


def test_davis_object_without_prediction_is_an_empty_mask(davis: Path) -> None:
    scores = score_davis(davis / "gt", davis / "pred", "semi-supervised")
    assert len(scores["per_frame"]["cat"]["J"][0]) == 3  # of five frames
    for name in ("cat", "dog"):
        assert scores["per_object"][f"{name}_1"]["JM"] == 1
        assert scores["per_object"][f"{name}_3"]["FM"] == 0
    assert scores["global"]["J&F"] == pytest.approx(2 / 3)


def test_davis_few_proposals(davis: Path) -> None:
    scores = score_davis(davis / "gt", davis / "pred", "unsupervised")
    assert scores["assignment"]["cat"] == [1, 2, None]
    assert len(scores["per_frame"]["cat"]["J"][0]) == 5


def test_sequences_file_limits_the_videos(davis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (davis / "val.txt").write_text("dog\n\n")
    shutil.rmtree(davis / "pred" / "cat")
    options = ["--sequences", str(davis / "val.txt"), "--workers", "1"]
    eval_jf.main(["--gt", str(davis / "gt"), "--pred", str(davis / "pred"), *options])
    out = capsys.readouterr().out
    assert "dog" in out
    assert "cat" not in out


def test_task_is_guessed_from_the_folders(davis: Path) -> None:
    unsupervised = davis / "Annotations_unsupervised" / "480p"
    shutil.copytree(davis / "gt", unsupervised)
    assert eval_jf.guess_task(davis / "gt", davis / "pred") == "semi-supervised"
    assert eval_jf.guess_task(unsupervised, davis / "pred") == "unsupervised"
    write_mask(davis / "masks" / "cat" / "0" / "00000.png", np.ones(SIZE, bool))
    assert eval_jf.guess_task(davis / "gt", davis / "masks") == "expressions"


# Expressions -----------------------------------------------------------------------------------


@pytest.fixture
def ytvos(tmp_path: Path) -> Path:
    return write_ytvos(tmp_path)


def score(ytvos: Path, **options: Any) -> dict[str, Any]:
    truth = find_ground_truth(ytvos / "valid" / "Annotations")
    return score_expressions(truth, ytvos / "Annotations", **options)


def test_expressions(ytvos: Path) -> None:
    scores = score(ytvos)
    expected = {}
    for seed, name in enumerate(("cat", "dog")):
        for exp_id, number in (("0", 1), ("1", 2)):
            gt = np.stack([blocks(20 * seed + t, 2) == number for t in range(3)])
            pred = np.stack([blocks(20 * seed + t + 7, 2) == number for t in range(3)])
            j, f = expression_scores(gt, pred)
            kind = "colour" if number == 1 else "shape"
            both = [blocks(20 * seed + t, 2)[pred[t]] for t in range(3)]
            areas = [np.bincount(ids, minlength=3)[1:] for ids in both]
            switches = sum(a != b for a, b in pairwise(area.argmax() for area in areas if area.any()))
            scores_of = {"J": j, "F": f, "JF": (j + f) / 2, "IDSW": switches / 2}
            expected[f"{name}/{exp_id}"] = {**scores_of, "obj_id": number, "kind": kind}
    assert {key: pytest.approx(row) for key, row in expected.items()} == scores["per_expression"]

    def mean(*names: str) -> Any:
        return pytest.approx(
            {key: np.mean([expected[name][key] for name in names]) for key in ("J", "F", "JF", "IDSW")}
        )

    assert scores["global"] == mean(*expected)
    assert scores["per_video"]["dog"].pop("expressions") == 2
    assert scores["per_video"]["dog"] == mean("dog/0", "dog/1")
    assert scores["per_kind"]["shape"].pop("expressions") == 2
    assert scores["per_kind"]["shape"] == mean("cat/1", "dog/1")
    assert "1 of the 3 videos" in scores["notes"][0]
    assert len(scores["notes"]) == 1


def test_expressions_agree_with_the_official_values(shared: Path, tmp_path: Path) -> None:
    """Objects with matching ids over all frames: the unsupervised case's means, each as an expression."""
    folder = shared / "golden" / "jf"
    case = json.loads((folder / "golden.json").read_text())["cases"]["unsup_main"]
    files = sorted((folder / "pred" / "car-shadow").glob("*.png"))
    for file in files:
        write_mask(tmp_path / "car-shadow" / "a" / file.name, np.asarray(Image.open(file)) == 1)
    expressions = {"a": {"exp": "the car", "obj_id": "1"}}
    video = {"frames": [file.stem for file in files], "expressions": expressions}
    (tmp_path / "meta.json").write_text(json.dumps({"videos": {"car-shadow": video}}))
    scores = score_expressions(find_ground_truth(folder / "gt", tmp_path / "meta.json"), tmp_path)
    official = case["per_object"]["car-shadow_1"]
    assert scores["global"]["J"] == pytest.approx(official["JM"], abs=1e-9)
    assert scores["global"]["F"] == pytest.approx(official["FM"], abs=1e-9)
    assert scores["per_kind"] == {}
    assert "1 folders of" in scores["notes"][0]


def test_object_that_is_never_visible(ytvos: Path) -> None:
    path = ytvos / "meta_expressions" / "valid" / "meta_expressions.json"
    edit_json(path, lambda meta: meta["videos"]["cat"]["expressions"]["0"].update(obj_id=9))
    for file in (ytvos / "Annotations" / "cat" / "0").iterdir():
        write_mask(file, np.zeros(SIZE, bool))
    scores = score(ytvos)
    assert scores["per_expression"]["cat/0"]["JF"] == 1
    assert "cat/0" in scores["notes"][-1]


def test_tables_of_expressions(ytvos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eval_jf.main(["--gt", str(ytvos / "valid" / "Annotations"), "--pred", str(ytvos / "Annotations"), "--workers", "1"])
    out = capsys.readouterr().out
    scores = score(ytvos)
    assert "task: expressions (guessed" in out
    assert "note: 1 of the 3 videos" in out
    lines = [line.split() for line in out.splitlines()]
    for label, row in [*scores["per_kind"].items(), *scores["per_video"].items(), ("mean", scores["global"])]:
        numbers = [f"{100 * row[key]:.1f}" for key in ("JF", "J", "F", "IDSW")]
        assert [label, str(row.get("expressions", 4)), *numbers] in lines


# --- Errors


def spoil_truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def spoil_checksum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") - 5] ^= 1  # within the check sum of the pixels
    path.write_bytes(content)


def spoil_content(path: Path) -> None:
    path.write_bytes(b"no image at all")


def spoil_mode(path: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(path)


def spoil_size(path: Path) -> None:
    write_mask(path, np.zeros((SIZE[0], SIZE[1] + 1), bool))


def spoil_value(path: Path) -> None:
    write_mask(path, np.full(SIZE, 99, np.uint8))


SPOILS = [
    (Path.unlink, "is missing"),
    (spoil_truncated, "broken or not a PNG"),
    (spoil_checksum, "broken or not a PNG"),
    (spoil_content, "broken or not a PNG"),
    (spoil_mode, "mode RGB"),
    (spoil_size, "is 33×24 pixels"),
]


def refuse(match: str, *argv: object) -> None:
    with pytest.raises(UserError, match=match) as caught:
        eval_jf.main([*map(str, argv), "--workers", "1"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("spoil", "message"), [*SPOILS, (spoil_value, "holds the id 99, but the sequence has 3")])
def test_bad_davis_prediction(davis: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(davis / "pred" / "dog" / "00002.png")
    refuse(f"dog/00002.png.*{message}", "--gt", davis / "gt", "--pred", davis / "pred")


@pytest.mark.parametrize(("spoil", "message"), [*SPOILS, (spoil_value, "holds the value 99.*only 0 and 255")])
def test_bad_expression_prediction(ytvos: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(ytvos / "Annotations" / "dog" / "1" / "00005.png")
    refuse(f"dog/1/00005.png.*{message}", "--gt", ytvos / "valid/Annotations", "--pred", ytvos / "Annotations")


def test_missing_ground_truth_frame(ytvos: Path) -> None:
    gt = ytvos / "valid" / "Annotations"
    (gt / "cat" / "00010.png").unlink()
    refuse("cat/00010.png is missing", "--gt", gt, "--pred", ytvos / "Annotations")


def test_missing_masks_are_counted(davis: Path) -> None:
    shutil.rmtree(davis / "pred" / "dog")
    refuse(r"dog/00001.png is missing \(and 2 more\)", "--gt", davis / "gt", "--pred", davis / "pred")


def test_too_many_proposals(davis: Path) -> None:
    spoil_value(davis / "pred" / "dog" / "00000.png")
    folders = ("--gt", davis / "gt", "--pred", davis / "pred")
    refuse("holds the id 99, but the task allows 20", *folders, "--task", "unsupervised")


def test_ground_truth_that_cannot_be_scored(davis: Path) -> None:
    folders = ("--gt", davis / "gt", "--pred", davis / "pred")
    write_mask(davis / "gt" / "cat" / "00000.png", np.full(SIZE, 255, np.uint8))
    refuse("cat/00000.png shows no object", *folders)
    for number in (2, 3, 4):
        (davis / "gt" / "cat" / f"0000{number}.png").unlink()
    refuse("cat holds 2 PNG files.*at least 3", *folders)


def test_missing_folders(davis: Path) -> None:
    gt, pred, none, empty = davis / "gt", davis / "pred", davis / "none", davis / "empty"
    empty.mkdir()
    for task in (["--task", "semi-supervised"], ["--task", "unsupervised"], ["--task", "expressions"], []):
        refuse("none is missing", "--gt", none, "--pred", pred, *(task or ["--task", "semi-supervised"]))
        refuse("none is missing", "--gt", gt, "--pred", none, *task)
    refuse("empty holds neither", "--gt", gt, "--pred", empty)
    refuse("empty holds no folder", "--gt", empty, "--pred", pred)


def test_options_that_do_not_fit(davis: Path) -> None:
    folders = ("--gt", davis / "gt", "--pred", davis / "pred")
    names = davis / "names.txt"
    refuse("names.txt is missing", *folders, "--sequences", names)
    names.write_text("\n")
    refuse("names.txt is empty", *folders, "--sequences", names)
    names.write_text("bird\n")
    refuse("gt/bird is missing", *folders, "--sequences", names)
    refuse("--sequences belongs to", *folders, "--sequences", names, "--task", "expressions")
    refuse("--expressions_file belongs to", *folders, "--expressions", names)
    refuse("is a folder; name a file", *folders, "--json", davis)
    with pytest.raises(UserError, match="--workers must be at least 1"):
        eval_jf.main([*map(str, folders), "--workers", "0"])


def drop_obj_id(meta: dict[str, Any]) -> None:
    del meta["videos"]["cat"]["expressions"]["0"]["obj_id"]


def spoil_obj_id(meta: dict[str, Any]) -> None:
    meta["videos"]["cat"]["expressions"]["0"]["obj_id"] = "0"


def drop_frames(meta: dict[str, Any]) -> None:
    meta["videos"]["cat"]["frames"] = []


def keep_test_video(meta: dict[str, Any]) -> None:
    meta["videos"] = {"test": meta["videos"]["test"]}


def spoil_videos(meta: dict[str, Any]) -> None:
    meta["videos"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_obj_id, "expression '0' of video 'cat' has no 'obj_id'.*--expressions"),
        (spoil_obj_id, "'obj_id' of expression '0' of video 'cat' is '0'"),
        (drop_frames, "video 'cat' should have a list of frame names"),
        (keep_test_video, "none of the 1 videos"),
        (spoil_videos, "'videos' should be a JSON object"),
    ],
)
def test_bad_expressions_file(ytvos: Path, change: Callable[[Any], None], message: str) -> None:
    path = ytvos / "meta_expressions" / "valid" / "meta_expressions.json"
    edit_json(path, change)
    refuse(
        f"meta_expressions.json.*{message}|{message}.*meta_expressions.json",
        *("--gt", ytvos / "valid" / "Annotations", "--pred", ytvos / "Annotations"),
    )


def test_missing_expressions_file_ends_in_one_sentence(ytvos: Path, root: Path) -> None:
    path = ytvos / "meta_expressions" / "valid" / "meta_expressions.json"
    path.unlink()
    folders = ["--gt", ytvos / "valid" / "Annotations", "--pred", ytvos / "Annotations"]
    run = subprocess.run(
        [sys.executable, "-m", "scripts.eval_jf", *folders], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.splitlines() == [run.stderr.strip()]
    assert f"{path} is missing" in run.stderr
    assert "set --expressions_file" in run.stderr


def test_error_in_a_worker_process_ends_in_one_sentence(davis: Path, root: Path) -> None:
    spoil_truncated(davis / "pred" / "dog" / "00002.png")
    folders = ["--gt", davis / "gt", "--pred", davis / "pred", "--workers", "2"]
    run = subprocess.run(
        [sys.executable, "-m", "scripts.eval_jf", *folders], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "dog/00002.png" in run.stderr
