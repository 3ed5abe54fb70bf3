"""main.py --eval: what inference and the scoring command say, items, mixtures, processes, bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import inference_ytvos
import main
import models.inference
from datasets.scoring import video_metrics
from scripts import eval_jf
from tests.forks import Forks
from tests.true_formats import write_toy_a2d, write_toy_davis, write_toy_mevis
from util.errors import run_cli

SIZES = {"frames": 4, "height": 48, "width": 64}


@pytest.fixture(scope="module")
def mevis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MeViS, version 2; only to be read."""
    root = tmp_path_factory.mktemp("data") / "mevis"
    return write_toy_mevis(root, num_train=1, num_valid_u=2, num_valid=1, no_target=1, **SIZES)


@pytest.fixture
def flags(tiny_config: list[str], tiny_checkpoint: Path, toy_data: Path, mevis: Path, tmp_path: Path) -> list[str]:
    """Flags of a good run; a later flag overrides."""
    paths = {"resume": tiny_checkpoint, "ytvos_path": toy_data, "mevis_path": mevis, "output_dir": tmp_path / "eval"}
    return [*tiny_config, *(word for name, path in paths.items() for word in (f"--{name}", str(path)))]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """Run ``main.py --eval`` in this process: its exit status."""

    def run(arguments: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["main.py", "--eval", *arguments])
        with pytest.raises(SystemExit) as stop:
            run_cli(main.main)
        return int(stop.value.code or 0)

    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["ytvos", "mevis"])
def test_it_says_what_inference_and_the_command_say(
    name: str, flags: list[str], call: Callable, toy_data: Path, mevis: Path, tmp_path: Path
) -> None:
    flags = [*flags, "--dataset_file", name]
    assert call(flags) == 0
    inference_ytvos.main([*flags, "--output_dir", str(tmp_path / "masks")])
    gt = toy_data / "valid" / "Annotations" if name == "ytvos" else mevis / "valid_u"
    report, pred = tmp_path / "report.json", tmp_path / "masks" / "Annotations"
    eval_jf.main(["--gt", str(gt), "--pred", str(pred), "--workers", "1", "--json", str(report)])
    scores, results = read(report), read(tmp_path / "eval" / "results.json")
    assert read(tmp_path / "eval" / "scores.json") == scores
    assert results["metrics"] == video_metrics(scores)
    assert results["metrics"]["J&F"] == pytest.approx(100 * scores["global"]["JF"])
    assert results["counts"]["expressions"] == len(scores["per_expression"])
    assert results["counts"]["videos"] == 2
    assert results["seed"] == 42 and results["config"]["dataset_file"] == name and results["about"]["processes"] == 1
    if name == "mevis":
        assert set(scores["per_expression"]) >= {"v2/valid_u0000/0", "v2/valid_u0001/0"}
        assert results["metrics"]["N-acc"] in (0, 50, 100)


def test_masks_that_are_there_are_not_made_again(
    flags: list[str], call: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(flags) == 0
    results = read(tmp_path / "eval" / "results.json")
    capsys.readouterr()
    assert call(flags) == 0
    told = capsys.readouterr().out
    assert "expressions, which are written already" in told and "ytvos, valid split: J&F" in told
    assert "ytvos, valid split, kind.colour: J&F" in told
    assert read(tmp_path / "eval" / "results.json") == results
    assert call([*flags, "--threshold", "0.4"]) == 2
    assert "made with threshold 0.5, and this run has 0.4" in capsys.readouterr().err


def test_very_large_frames_are_noted_once(
    flags: list[str], call: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models.inference, "LARGE_SIDE", 90)
    assert call(flags) == 0
    assert capsys.readouterr().out.count("note: the model sees 'valid_00000' at 96×64 pixels, and 1 more") == 1


def test_items(flags: list[str], call: Callable, tmp_path: Path) -> None:
    """Each annotated frame is an item, and all its queries are scored."""
    root = write_toy_a2d(tmp_path / "a2d", num_train=0, num_test=2, **SIZES)
    items = len(read(root / "a2d_sentences_single_frame_test_annotations.json"))
    assert call([*flags, "--dataset_file", "a2d", "--a2d_path", str(root)]) == 0
    results = read(tmp_path / "eval" / "results.json")
    assert results["counts"] == {"items": items, "items_without_prediction": 0}
    assert {"mAP", "mAP_best_query", "P@0.5", "P@0.9", "oIoU", "mIoU"} <= results["metrics"].keys()
    assert results["metrics"]["mAP"] == pytest.approx(results["metrics"]["mAP_best_query"]), "there is one query"
    assert results["config"]["split"] == "test"


def test_the_parts_of_a_mixture(flags: list[str], call: Callable, tmp_path: Path) -> None:
    write_toy_davis(tmp_path / "raw", num_train=0, num_valid=1, **SIZES)
    from datasets.davis import convert_davis

    (tmp_path / "raw" / "DAVIS" / "ImageSets" / "2017" / "train.txt").write_text("classic-car\n")
    convert_davis(tmp_path / "raw", tmp_path / "davis")
    more = ["--dataset_file", "ytvos_joint_davis", "--davis_path", str(tmp_path / "davis")]
    assert call([*flags, *more]) == 0
    results = read(tmp_path / "eval" / "results.json")
    assert results["metrics"].keys() == results["counts"].keys() == {"ytvos", "davis"}
    assert results["counts"]["davis"]["annotations"] == 4
    for part in ("ytvos", "davis"):
        assert results["metrics"][part] == video_metrics(read(tmp_path / "eval" / part / "scores.json"))


BAD = {
    "no checkpoint": (["--resume", ""], "no checkpoint is given; name the one to score with --resume"),
    "no truth": (["--dataset_file", "mevis", "--split", "valid"], "valid/mask_dict.json is missing; it should hold"),
    "no masks": (["--ytvos_path", "{tmp}/bare"], "bare/valid/Annotations is missing; it should hold the ground truth"),
    "no object ids": (["--expressions_file", "{tmp}/plain.json"], "has no 'obj_id'; set --expressions_file to"),
    "unknown split": (["--split", "val"], "unknown split 'val'"),
    "missing data": (["--dataset_file", "davis", "--davis_path", "{tmp}/nowhere"], "nowhere is missing"),
    "missing items": (["--dataset_file", "a2d", "--a2d_path", "{tmp}/nowhere"], "nowhere is missing"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence(
    kind: str, flags: list[str], call: Callable, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(toy_data, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "valid" / "Annotations")
    content = read(toy_data / "meta_expressions" / "valid" / "meta_expressions.json")
    for video in content["videos"].values():
        for expression in video["expressions"].values():
            expression.pop("obj_id", None)
    (tmp_path / "plain.json").write_text(json.dumps(content))
    arguments, words = BAD[kind]
    assert call([*flags, *(word.format(tmp=tmp_path) for word in arguments)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (tmp_path / "eval" / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mevis", "a2d"])
def test_two_processes_find_the_same(name: str, forks: Forks, flags: list[str], call: Callable, tmp_path: Path) -> None:
    flags = [*flags, "--dataset_file", name, "--a2d_path", str(tmp_path / "a2d")]
    write_toy_a2d(tmp_path / "a2d", num_train=0, num_test=2, **SIZES)
    assert call(flags) == 0
    forks.run(tmp_path / "said", 2, "run_main", "--eval", *flags, "--output_dir", tmp_path / "two")
    one, both = read(tmp_path / "eval" / "results.json"), read(tmp_path / "two" / "results.json")
    # Sums of other threads differ in their last bits, and may tip a pixel.
    assert both["metrics"] == pytest.approx(one["metrics"], abs=0.1)
    assert both["counts"] == one["counts"]
    assert both["about"]["processes"] == 2
