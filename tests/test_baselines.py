"""Baselines: the largest object, and sentences about another object."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.expressions import NEGATIVE, Expression, VideoEntry
from datasets.scoring import find_ground_truth, score_expressions
from datasets.toy import make_toy
from scripts.baselines import largest_object, main, swap_sentences
from util.errors import run_cli

FRAMES = ["00000", "00005"]


def write_expressions(path: Path, videos: dict[str, dict[str, dict[str, Any]]]) -> Path:
    content = {"videos": {name: {"frames": FRAMES, "expressions": entries} for name, entries in videos.items()}}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_ids(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8)).convert("P")
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def read_sentences(path: Path) -> dict[str, dict[str, str]]:
    videos = json.loads(path.read_text(encoding="utf-8"))["videos"]
    return {name: {key: entry["exp"] for key, entry in video["expressions"].items()} for name, video in videos.items()}


def fails_with(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run the script, which must end in status 2 with one line on stderr; return that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: main([str(argument) for argument in arguments]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.fixture
def ground_truth(tmp_path: Path) -> tuple[Path, Path]:
    """Masks of one video and an expressions file that also lists a test video.

    Object 1 is larger in the first frame, object 2 over the whole video.
    """
    gt = tmp_path / "valid" / "Annotations"
    first, second = np.zeros((4, 6)), np.zeros((4, 6))
    first[0, :4], first[1, :3], first[3] = 1, 2, 255
    second[0, :1], second[1, :5] = 1, 2
    write_ids(gt / "park" / "00000.png", first)
    write_ids(gt / "park" / "00005.png", second)
    expressions = write_expressions(
        tmp_path / "expressions.json",
        {
            "park": {"0": {"exp": "a dog", "obj_id": "1"}, "1": {"exp": "a cat", "obj_id": "2"}},
            "hidden": {"0": {"exp": "a bird"}},
        },
    )
    return gt, expressions


def test_largest(ground_truth: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    gt, expressions = ground_truth
    out = tmp_path / "out"
    for _ in range(2):
        main(["largest", "--gt", str(gt), "--expressions", str(expressions), "--output_dir", str(out)])
    assert "left out: 1 listed videos" in capsys.readouterr().out
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    assert written == [f"Annotations/park/{exp_id}/{frame}.png" for exp_id in "01" for frame in FRAMES]
    for exp_id in "01":
        for frame, pixels in zip(FRAMES, (3, 5), strict=True):
            with Image.open(out / "Annotations" / "park" / exp_id / f"{frame}.png") as image:
                assert image.mode == "L" and image.size == (6, 4)
                mask = np.array(image)
            assert (
                (mask[1, :pixels] == 255).all() and (mask == 255).sum() == pixels and (mask == 0).sum() == 24 - pixels
            )


def test_largest_is_right_about_the_largest(tmp_path: Path) -> None:
    root, out = tmp_path / "toy", tmp_path / "out"
    make_toy(root, num_train=0, num_valid=3, num_test=1)
    gt, expressions = root / "valid" / "Annotations", root / "meta_expressions" / "valid" / "meta_expressions.json"
    main(["largest", "--gt", str(gt), "--expressions", str(expressions), "--output_dir", str(out)])
    scores = score_expressions(find_ground_truth(gt, expressions), out / "Annotations")["per_expression"]
    objects = json.loads((root / "valid" / "meta.json").read_text(encoding="utf-8"))["videos"]
    ones = 0
    for name, score in scores.items():
        video = name.split("/")[0]
        masks = [np.array(Image.open(path)) for path in sorted((gt / video).iterdir())]
        areas = {int(obj): sum((mask == int(obj)).sum() for mask in masks) for obj in objects[video]["objects"]}
        is_largest = areas[score["obj_id"]] == max(areas.values())
        assert score["J"] == 1 if is_largest else score["J"] < 0.2
        ones += is_largest
    assert 0 < ones < len(scores)


def test_largest_object_of_equals_and_of_nothing() -> None:
    assert largest_object([np.array([[0, 3, 3, 2, 2, 255, 255, 255]], np.uint8)]) == 2
    assert largest_object([np.array([[0, 255]], np.uint8)]) == 0


def test_a_video_without_objects_gets_empty_masks(tmp_path: Path) -> None:
    for frame in FRAMES:
        write_ids(tmp_path / "gt" / "empty" / f"{frame}.png", np.array([[0, 0, 255]]))
    expressions = write_expressions(tmp_path / "e.json", {"empty": {"0": {"exp": "a dog", "obj_id": "1"}}})
    arguments = ["--gt", tmp_path / "gt", "--expressions", expressions, "--output_dir", tmp_path / "out"]
    main(["largest", *map(str, arguments)])
    assert not any(np.array(Image.open(path)).any() for path in (tmp_path / "out").rglob("*.png"))
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


def test_largest_bad_input(ground_truth: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    gt, expressions = ground_truth

    def error(gt: Path, expressions: Path) -> str:
        return fails_with(capsys, "largest", "--gt", gt, "--expressions", expressions, "--output_dir", tmp_path / "o")

    assert "nowhere is missing" in error(tmp_path / "nowhere", expressions)
    assert "nothing.json is missing" in error(gt, tmp_path / "nothing.json")
    foreign = write_expressions(tmp_path / "foreign.json", {"lake": {"0": {"exp": "a duck"}}})
    assert "none of the 1 videos" in error(gt, foreign)
    (gt / "park" / "00005.png").write_bytes(b"no image")
    assert "park/00005.png" in error(gt, expressions)
    (gt / "park" / "00005.png").unlink()
    assert "park/00005.png is missing" in error(gt, expressions)


def video_of(*expressions: tuple[str, int | None], kinds: str = "") -> VideoEntry:
    """A video whose expressions have these captions and objects, and kinds of one letter."""
    listed = [Expression(*each, kind=kind) for each, kind in zip_longest(expressions, kinds)]
    return VideoEntry(FRAMES, {str(number): expression for number, expression in enumerate(listed)})


def test_swap_takes_the_next_sentence_of_another_object() -> None:
    video = video_of(("a dog", 1), ("the dog", 1), ("a cat", 2), ("a bird", 3))
    assert swap_sentences(video) == {"0": "a cat", "1": "a cat", "2": "a bird", "3": "a dog"}


def test_swap_prefers_the_kind() -> None:
    video = video_of(("red", 1), ("left", 1), ("blue", 2), ("right", 2), kinds="cmcm")
    assert swap_sentences(video) == {"0": "blue", "1": "right", "2": "red", "3": "left"}


def test_swap_never_gives_the_same_sentence_or_object() -> None:
    assert swap_sentences(video_of(("a man", 1), ("a man", 2), ("a boy", 2))) == {"0": "a boy", "2": "a man"}
    assert swap_sentences(video_of(("a man", 1), ("the man", 1))) == {}
    assert swap_sentences(video_of(("a man", 1), ("a boy", None))) == {}


def test_swap_writes_a_file_to_score_against(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_expressions(
        tmp_path / "in.json",
        {
            "park": {
                "0": {"exp": "A  Dog", "obj_id": "1", "kind": "shape"},
                "1": {"exp": "a cat", "obj_id": "2", "kind": "shape"},
            },
            "alone": {"0": {"exp": "a bird", "obj_id": "1"}},
            "hidden": {"0": {"exp": "a fish"}},
        },
    )
    before, target = source.read_bytes(), tmp_path / "out.json"
    main(["swap", "--expressions", str(source), "--output", str(target)])
    output = capsys.readouterr().out
    assert "2 sentences swapped" in output
    assert "left out: 1 expressions whose video has no sentence about another object" in output
    assert "left out: 1 expressions without obj_id" in output
    assert source.read_bytes() == before
    assert json.loads(target.read_text(encoding="utf-8")) == {
        "videos": {
            "park": {
                "frames": FRAMES,
                "expressions": {
                    "0": {"exp": "a cat", "obj_id": "1", "kind": "shape"},
                    "1": {"exp": "a dog", "obj_id": "2", "kind": "shape"},
                },
            }
        }
    }


def test_swap_on_toy_data_swaps_every_sentence(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", num_train=0, num_valid=5, num_test=1)
    source = tmp_path / "toy" / "meta_expressions" / "valid" / "meta_expressions.json"
    for name in ("a.json", "b.json"):
        main(["swap", "--expressions", str(source), "--output", str(tmp_path / name)])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    old, new = read_sentences(source), read_sentences(tmp_path / "a.json")
    assert new.keys() == {name for name in old if name.startswith("valid")}
    for name, sentences in new.items():
        assert sentences.keys() == old[name].keys()
        assert all(sentence != old[name][exp_id] for exp_id, sentence in sentences.items())


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_text("{"), "is not valid JSON"),
        (lambda path: path.write_text('{"videos": []}'), "should be a JSON object"),
        (lambda path: write_expressions(path, {"v": {"0": {"exp": "a dog"}, "1": {"exp": "a cat"}}}), "two objects"),
        (lambda path: write_expressions(path, {"v": {"0": {"exp": " ", "obj_id": "1"}}}), "is empty"),
        (lambda path: write_expressions(path, {"../v": {"0": {"exp": "a dog", "obj_id": "1"}}}), "without slashes"),
    ],
)
def test_swap_bad_input(
    spoil: Callable[[Path], Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "in.json"
    source.touch()
    spoil(source)
    assert sentence in fails_with(capsys, "swap", "--expressions", source, "--output", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_swap_does_not_overwrite_its_input(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_expressions(tmp_path / "in.json", {"v": {"0": {"exp": "a dog", "obj_id": "1"}}})
    assert "name another file" in fails_with(capsys, "swap", "--expressions", source, "--output", source)


def test_swap_leaves_out_negatives(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    nothing = {"exp": "the blue circle", "obj_id": None, "kind": NEGATIVE}
    source = write_expressions(
        tmp_path / "in.json",
        {
            "cat": {
                "0": {"exp": "the red square", "obj_id": "1", "kind": "colour"},
                **{"1": nothing, "2": nothing},
                "4": {"exp": "the green star", "obj_id": 2, "kind": "colour"},
                "5": {"exp": "the thing"},
            },
            "dog": {"0": nothing},
        },
    )
    main(["swap", "--expressions", str(source), "--output", str(tmp_path / "out.json")])
    out = capsys.readouterr().out
    assert "2 sentences swapped" in out and "left out: 3 negatives" in out
    assert "left out: 1 expressions without obj_id" in out and "no sentence about another object" not in out
    assert read_sentences(tmp_path / "out.json") == {"cat": {"0": "the green star", "4": "the red square"}}


def test_largest_answers_negatives(tmp_path: Path) -> None:
    root, out = tmp_path / "toy", tmp_path / "out"
    make_toy(root, num_train=0, num_valid=2, num_test=1, frames=4, negatives=2)
    gt, expressions = root / "valid" / "Annotations", root / "meta_expressions" / "valid" / "meta_expressions.json"
    main(["largest", "--gt", str(gt), "--expressions", str(expressions), "--output_dir", str(out)])
    scores = score_expressions(find_ground_truth(gt), out / "Annotations")
    assert scores["per_kind"][NEGATIVE] == {"J": 0, "F": 0, "JF": 0, "TC": 1, "IDSW": 0, "expressions": 4}
    assert scores["global"]["negative_accuracy"] == 0 and 0 < scores["global"]["JF"] < 1
