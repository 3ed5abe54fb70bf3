"""The toy benchmark: its files and its pictures."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import toy
from datasets.toy import ToyParameters, make_toy, make_video
from datasets.toy.scene import KINDS, SHAPES, SUBPIXELS, Scene, ToyObject, full_areas, render_frames, render_masks
from scripts.make_toy_data import main
from util.errors import UserError, run_cli

SMALL_SET = {"num_train": 3, "num_valid": 2, "num_test": 1}
PARAMETERS = ToyParameters(0, 0, 0, frames=8, height=64, width=96, seed=0, kinds=KINDS)


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "set"
    make_toy(root, **SMALL_SET)
    return root


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def expressions_of(root: Path, split: str) -> dict:
    return read(root / "meta_expressions" / split / "meta_expressions.json")["videos"]


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def scene_of(*objects: ToyObject, height: int = 48, width: int = 64) -> Scene:
    return Scene(height, width, objects, background_seed=3)


def shape_at(obj_id: int, x: int, y: int, shape: str = "square", radius: int = 10, **changes) -> ToyObject:
    """An object that stays at a place; all lengths in pixels."""
    obj = ToyObject(obj_id, "red", shape, (215, 40, 40), radius * SUBPIXELS, np.full((4, 2), (x, y)) * SUBPIXELS)
    return replace(obj, **changes)


# The files


def test_layout(toy_root: Path) -> None:
    for split, count in (("train", 3), ("valid", 2)):
        videos = {name: v for name, v in expressions_of(toy_root, split).items() if name.startswith(split)}
        objects = read(toy_root / split / "meta.json")["videos"]
        assert len(videos) == count and objects.keys() == videos.keys()
        for name, video in videos.items():
            assert video["frames"] == [f"{5 * i:05d}" for i in range(8)]
            seen: dict[str, list[str]] = {}
            for frame in video["frames"]:
                with Image.open(toy_root / split / "JPEGImages" / name / f"{frame}.jpg") as image:
                    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 64))
                with Image.open(toy_root / split / "Annotations" / name / f"{frame}.png") as image:
                    assert (image.format, image.mode, image.size) == ("PNG", "P", (96, 64))
                    assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
                    for obj_id in np.unique(np.array(image)).tolist():
                        seen.setdefault(str(obj_id), []).append(frame)
            del seen["0"]
            assert seen == {key: looks["frames"] for key, looks in objects[name]["objects"].items()}
            assert all(looks["category"] in SHAPES for looks in objects[name]["objects"].values())
            for expression in video["expressions"].values():
                assert expression["obj_id"] in seen and expression["kind"] in KINDS
                assert re.fullmatch("[a-z ]+", expression["exp"]) and "  " not in expression["exp"]


def test_test_videos_are_listed_in_valid_and_keep_their_answers(toy_root: Path) -> None:
    test, valid = expressions_of(toy_root, "test"), expressions_of(toy_root, "valid")
    assert len(test) == 1 and len(valid) == 3 and test.items() <= valid.items()
    for name, video in test.items():
        assert all(expression.keys() == {"exp"} for expression in video["expressions"].values())
        assert len(list((toy_root / "test" / "JPEGImages" / name).iterdir())) == 8
        assert not (toy_root / "valid" / "JPEGImages" / name).exists()
    assert not (toy_root / "test" / "Annotations").exists()


def test_a_finished_set_is_left_alone(toy_root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy_root.rglob("*")}
    summary = make_toy(toy_root, **SMALL_SET)
    assert not summary.created and summary.videos == {"train": 3, "valid": 2, "test": 1}
    assert sum(summary.kinds["train"].values()) == summary.expressions["train"] > 0
    assert before == {path: path.stat().st_mtime_ns for path in toy_root.rglob("*")}


def test_a_larger_set_begins_with_the_smaller_one(toy_root: Path, tmp_path: Path) -> None:
    make_toy(tmp_path / "larger", num_train=5, num_valid=2, num_test=1)
    images = {name: value for name, value in digest(toy_root).items() if name.endswith(("jpg", "png"))}
    assert images.items() <= digest(tmp_path / "larger").items()
    assert expressions_of(toy_root, "train").items() <= expressions_of(tmp_path / "larger", "train").items()


@pytest.mark.slow
def test_workers_change_nothing(toy_root: Path, tmp_path: Path) -> None:
    make_toy(tmp_path / "set", **SMALL_SET, workers=2)
    assert digest(tmp_path / "set") == digest(toy_root)


def test_what_was_cut_off_is_completed(toy_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    write_video = toy._write_video

    def stop_at_third(root: Path, parameters: ToyParameters, job: tuple[str, int]) -> tuple[dict, dict]:
        if job == ("train", 2):
            raise KeyboardInterrupt
        return write_video(root, parameters, job)

    monkeypatch.setattr(toy, "_write_video", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        make_toy(root, **SMALL_SET)
    monkeypatch.undo()
    assert make_toy(root, **SMALL_SET).created
    assert digest(root) == digest(toy_root)


def test_another_set_is_replaced_only_by_force(tmp_path: Path) -> None:
    make_toy(tmp_path, num_train=1, num_valid=1, num_test=0)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"other parameters.*--force"):
        make_toy(tmp_path, num_train=1, num_valid=1, num_test=0, seed=1)
    assert make_toy(tmp_path, num_train=1, num_valid=0, num_test=0, seed=1, force=True).created
    assert (tmp_path / "notes.txt").is_file() and not (tmp_path / "valid" / "JPEGImages").exists()


def test_a_damaged_set_is_replaced_by_force(toy_root: Path, tmp_path: Path) -> None:
    make_toy(tmp_path, **SMALL_SET)
    frame = tmp_path / "valid" / "JPEGImages" / "valid_00001" / "00010.jpg"
    frame.write_bytes(frame.read_bytes()[:100])
    (tmp_path / "valid" / "Annotations" / "valid_00001" / "00010.png").unlink()
    assert not make_toy(tmp_path, **SMALL_SET).created  # it may be intended
    assert make_toy(tmp_path, **SMALL_SET, force=True).created
    assert digest(tmp_path) == digest(toy_root)
    assert not make_toy(tmp_path, **SMALL_SET, force=True).created


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--num_frames", "2"], "number of frames of the toy data is 2; choose 4"),
        (["--train_videos", "-1"], "number of train videos"),
        (["--height", "10"], "height of the toy data is 10"),
        (["--kinds", "size", "size"], "each once"),
    ],
)
def test_bad_arguments(arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: main(["--output_dir", str(tmp_path), *arguments]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in error and error.count("\n") == 1


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_foreign_folders_are_refused(force: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "file").touch()
    for folder, sentence in ((tmp_path, "holds no toy data"), (tmp_path / "file", "is a file")):
        with pytest.raises(SystemExit) as stop:
            run_cli(lambda folder=folder: main(["--output_dir", str(folder), *force]))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and sentence in error and error.count("\n") == 1
    assert (tmp_path / "train").is_dir()


# The pictures


def test_every_machine_makes_the_same_videos() -> None:
    """If this fails, other files come from the same parameters: raise GENERATOR_VERSION with the new digest."""
    content = hashlib.sha256()
    for index in range(8):
        video = make_video(PARAMETERS, "train", index)
        content.update(render_frames(video.scene).tobytes() + video.masks.tobytes())
        content.update(repr([(s.text, s.kind, s.obj_id) for s in video.sentences]).encode())
    assert (toy.GENERATOR_VERSION, content.hexdigest()) == (
        2,
        "2aea5a1b27677bd7b03872b798f14296447b9e2bb0cc336b47b7d73beef026ec",
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_where_and_as_large_as_they_should_be(shape: str) -> None:
    scene = scene_of(shape_at(7, 30, 24, shape))
    masks = render_masks(scene)
    assert masks.dtype == np.uint8 and masks.shape == (4, 48, 64) and set(np.unique(masks)) == {0, 7}
    y, x = np.nonzero(masks[0])
    assert abs(x.mean() + 0.5 - 30) < 0.5 and abs(y.mean() + 0.5 - 24) < 3  # a triangle's weight is lower down
    assert len(x) == pytest.approx(full_areas(scene)[7], rel=0.08)  # a pixel counts from half covered
    assert 1.7 * 10**2 < len(x) < 3.3 * 10**2  # a circle would have π · 10²


def test_square_has_exact_edges() -> None:
    mask = render_masks(scene_of(shape_at(1, 30, 24)))[0]
    expected = np.zeros((48, 64), np.uint8)
    expected[24 - 9 : 24 + 9, 30 - 9 : 30 + 9] = 1  # 0.87 radii: three quarters of the ninth pixel
    assert np.array_equal(mask, expected)


def test_masks_show_what_is_visible() -> None:
    back, front = shape_at(2, 20, 24), shape_at(1, 26, 24)
    alone, both = render_masks(scene_of(back))[0], render_masks(scene_of(back, front))[0]
    covered = (both == 1) & (alone == 2)
    assert covered.any() and np.array_equal(both == 2, (alone == 2) & ~covered)


def test_frames_show_the_colour_inside_and_smooth_edges() -> None:
    scene = scene_of(shape_at(1, 30, 24, "circle"))
    frame, mask = render_frames(scene)[0].astype(int), render_masks(scene)[0]
    nothing = render_frames(scene_of(shape_at(1, 1000, 24)))[0].astype(int)
    assert abs(frame[24, 30] - (215, 40, 40)).max() <= 5
    changed = (frame != nothing).any(-1)
    assert changed[mask == 1].all()
    edge = changed & (mask == 0)  # pixels that are covered by less than half
    assert 10 < edge.sum() < 80


def test_backgrounds_are_dull_and_differ() -> None:
    backgrounds = [toy.render_frames(Scene(64, 96, (shape_at(1, 1000, 24),), seed))[0] for seed in range(20)]
    assert len({frame.tobytes() for frame in backgrounds}) == 20
    for frame in backgrounds:
        assert 30 < frame.mean() < 190 and 1 < frame.std(axis=(0, 1)).max() < 60
