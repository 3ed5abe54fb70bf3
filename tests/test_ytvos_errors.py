"""Ref-YouTube-VOS: every bad input is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import list_videos
from datasets.files import load_clip
from tests.ytvos_tools import (
    FRAMES,
    HEIGHT,
    NAMES,
    WIDTH,
    check_sentence,
    config,
    edit,
    entry,
    expressions_path,
    object_ids,
    plain_clips,
    train_error,
    write_dataset,
    write_mask,
)
from util.errors import UserError


@pytest.fixture
def dataset_root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "rvos")


# --- bad input: found at construction


def test_missing_root(tmp_path: Path) -> None:
    sentence = train_error(tmp_path / "nowhere")
    assert "nowhere is missing" in sentence and "docs/data.md" in sentence
    (tmp_path / "file").write_text("")
    assert "file is not a folder" in train_error(tmp_path / "file")


@pytest.mark.parametrize("folder", ["JPEGImages", "Annotations"])
def test_missing_folders(dataset_root: Path, folder: str) -> None:
    (dataset_root / "train" / folder / "b").rename(dataset_root / "gone")
    assert f"train/{folder}/b is missing" in train_error(dataset_root)
    (dataset_root / "train" / folder).rename(dataset_root / "gone too")
    sentence = train_error(dataset_root)
    assert f"train/{folder} is missing; it should hold" in sentence and "docs/data.md" in sentence


def test_missing_expressions_file(dataset_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json is missing; it should hold the expressions of the valid split"):
        list_videos(config(dataset_root, expressions_file=str(tmp_path / "none.json")))
    expressions_path(dataset_root, "train").unlink()
    assert "meta_expressions/train/meta_expressions.json is missing" in train_error(dataset_root)


def test_unknown_split(dataset_root: Path) -> None:
    with pytest.raises(UserError, match="unknown split 'val'"):
        list_videos(config(dataset_root, split="val"))


def test_no_video_left(dataset_root: Path) -> None:
    expressions_path(dataset_root, "test").write_text(expressions_path(dataset_root, "valid").read_text())
    with pytest.raises(UserError, match="no video left"):
        list_videos(config(dataset_root))


@pytest.mark.parametrize("sentence", ["", "  \t\n"])
def test_empty_sentence_names_video_and_expression(dataset_root: Path, sentence: str) -> None:
    edit(expressions_path(dataset_root, "train"), lambda v: v["b"]["expressions"]["1"].update(exp=sentence))
    message = train_error(dataset_root)
    assert "sentence of expression '1' of video 'b' is empty" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(a=[]), "video 'a' should be a JSON object"),
        (lambda v: v["a"].pop("frames"), "video 'a' should have a list of frame names"),
        (lambda v: v["a"].update(frames=[]), "video 'a' should have a list of frame names"),
        (lambda v: v["a"].update(frames=[0, 5]), "frame of video 'a' is named 0"),
        (lambda v: v["a"].pop("expressions"), "'expressions' of video 'a' should be a JSON object"),
        (lambda v: v["a"]["expressions"].update({"0": "red"}), "expression '0' of video 'a' should be a JSON object"),
        (lambda v: v["a"]["expressions"]["0"].pop("exp"), "should have its sentence under 'exp'"),
        (lambda v: v["a"]["expressions"]["0"].update(exp=5), "should have its sentence under 'exp'"),
        (lambda v: v["a"]["expressions"]["0"].pop("obj_id"), "expression '0' of video 'a'"),
        (lambda v: v["a"]["expressions"]["0"].update(obj_id="x"), "'obj_id' of expression '0' of video 'a' is 'x'"),
        (lambda v: v["a"]["expressions"]["0"].update(obj_id=0), "'obj_id' of expression '0' of video 'a' is 0"),
        (lambda v: v["a"]["expressions"]["0"].update(obj_id="9"), "object 9, which"),
        (lambda v: [v[name].update(expressions={}) for name in "ab"], "no expression"),
        (lambda v: v.update({"../c": entry()}), "named '../c'"),
        (lambda v: v.update({"..": entry()}), "named '..'"),
        (lambda v: v["a"].update(frames=["../00000"]), "named '../00000'"),
        (lambda v: v["a"]["expressions"].update({"a/b": {"exp": "x"}}), "named 'a/b'"),
        (lambda v: v.clear(), "no video left"),
    ],
)
def test_malformed_expressions(dataset_root: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(expressions_path(dataset_root, "train"), change)
    assert message in train_error(dataset_root)


@pytest.mark.parametrize("content", ["[]", "{}", '{"videos": []}', "{", "\x00"])
def test_malformed_files(dataset_root: Path, content: str) -> None:
    for path in (dataset_root / "train" / "meta.json", expressions_path(dataset_root, "train")):
        path.write_text(content)
        assert str(path) in train_error(dataset_root)


def test_video_that_meta_json_lacks(dataset_root: Path) -> None:
    edit(dataset_root / "train" / "meta.json", lambda v: v.pop("b"))
    sentence = train_error(dataset_root)
    assert "meta.json" in sentence and "'b'" in sentence


# --- bad input: found when read


def read_error(root: Path) -> str:
    clips = plain_clips(root, num_frames=None)
    with pytest.raises(UserError) as caught:
        clips[0]
    return check_sentence(caught.value)


def frame_file(root: Path, index: int = 2) -> Path:
    return root / "train" / "JPEGImages" / "a" / f"{NAMES[index]}.jpg"


def mask_file(root: Path) -> Path:
    return root / "train" / "Annotations" / "a" / f"{NAMES[2]}.png"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:50],
        lambda data: b"",
        lambda data: b"not an image",
        lambda data: data[:2] + bytes(len(data) - 2),
    ],
    ids=["half", "head only", "empty", "text", "zeros"],
)
def test_broken_images_are_named(dataset_root: Path, spoil: Callable[[bytes], bytes]) -> None:
    said = {mask_file: "cannot read the mask {}: it is broken", frame_file: "frame {} is broken"}
    for file_of, sentence in said.items():
        path = file_of(dataset_root)
        path.write_bytes(spoil(path.read_bytes()))
        assert sentence.format(path) in read_error(dataset_root)


def test_a_jpeg_without_its_end_is_broken(dataset_root: Path) -> None:
    path = frame_file(dataset_root)
    path.write_bytes(path.read_bytes()[:-2])
    assert f"frame {path} is broken" in read_error(dataset_root)


@pytest.mark.parametrize("index", [0, 2])
def test_broken_and_missing_frames_at_inference(dataset_root: Path, index: int) -> None:
    video = list_videos(config(dataset_root, split="train"))[0]
    path = frame_file(dataset_root, index)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=f"{NAMES[index]}.jpg is broken") as caught:
        load_clip(video.frame_paths)
    check_sentence(caught.value)
    path.unlink()
    with pytest.raises(UserError, match=f"frame .*{NAMES[index]}.jpg is missing"):
        load_clip(video.frame_paths)


def test_missing_frame_and_mask(dataset_root: Path) -> None:
    mask_file(dataset_root).unlink()
    assert f"{mask_file(dataset_root)} is missing" in read_error(dataset_root)
    frame_file(dataset_root).unlink()
    assert f"frame {frame_file(dataset_root)} is missing" in read_error(dataset_root)


def test_mask_of_another_size(dataset_root: Path) -> None:
    write_mask(mask_file(dataset_root), np.zeros((HEIGHT, WIDTH - 1), dtype=np.uint8))
    sentence = read_error(dataset_root)
    assert f"{mask_file(dataset_root)} is 79×48 pixels, but its frame is 80×48" in sentence


def test_colour_mask(dataset_root: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(mask_file(dataset_root))
    assert "is an image of mode RGB; a mask must be an 8-bit palette" in read_error(dataset_root)


def test_a_mask_that_is_no_png(dataset_root: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT)).save(mask_file(dataset_root), format="JPEG")
    assert f"cannot read the mask {mask_file(dataset_root)}" in read_error(dataset_root)


def test_grey_mask_is_read_like_a_palette_one(dataset_root: Path) -> None:
    Image.fromarray(object_ids(2)).save(mask_file(dataset_root))
    _, target = plain_clips(dataset_root, num_frames=None)[0]
    assert torch.equal(target["masks"][2], torch.from_numpy(object_ids(2)) == 1)


def test_frame_of_another_size(dataset_root: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 2)).save(frame_file(dataset_root))
    assert "differ in size (80×50 and 80×48)" in read_error(dataset_root)
    with pytest.raises(UserError, match="differ in size"):
        load_clip(list_videos(config(dataset_root, split="train"))[0].frame_paths)


def test_grey_frame_becomes_rgb(dataset_root: Path) -> None:
    Image.open(frame_file(dataset_root)).convert("L").save(frame_file(dataset_root))
    frames, _ = plain_clips(dataset_root, num_frames=None)[0]
    assert frames.shape == (FRAMES, 3, HEIGHT, WIDTH)
