"""Ref-YouTube-VOS: layout, split rules, clips, videos for inference, negatives, and every bad input."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_dataset, list_videos
from datasets.clip import ClipLoader, collate, denormalise
from datasets.files import read_clips
from tests.ytvos_tools import (
    COLOURS,
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
    write_json,
    write_mask,
)
from util.errors import UserError


@pytest.fixture
def dataset_root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "rvos")


# --- training clips


def test_one_clip_per_expression_and_start_frame(dataset_root: Path) -> None:
    assert len(build_dataset(config(dataset_root), "train")) == 2 * 2 * 3  # starts 0, 3, 6
    assert len(build_dataset(config(dataset_root, num_frames=1), "train")) == 2 * 2 * 7
    assert len(build_dataset(config(dataset_root, num_frames=20), "train")) == 2 * 2


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_clips_run_backwards_as_often_as_the_configuration_says(dataset_root: Path, share: float) -> None:
    clips = build_dataset(config(dataset_root, reverse_probability=share), "train")
    names = [clips[i][1]["frame_names"] for i in range(len(clips))]
    assert names == [sorted(clip, reverse=bool(share)) for clip in names]


def test_a_sample_keeps_the_contract(dataset_root: Path) -> None:
    frames, target = build_dataset(config(dataset_root), "train")[0]
    t, channels, h, w = frames.shape
    assert (t, channels) == (3, 3) and frames.dtype == torch.float32
    assert target["masks"].shape == (3, h, w) and target["masks"].dtype == torch.bool
    assert target["boxes"].shape == (3, 4) and target["boxes"].dtype == torch.float32
    assert target["valid"].shape == (3,) and target["valid"].dtype == torch.int64
    assert target["size"].tolist() == [h, w] and target["orig_size"].tolist() == [HEIGHT, WIDTH]
    assert target["video"] == "a" and target["exp_id"] == "0"
    assert target["caption"] in ("the red box on the left", "the red box on the right")
    assert len(target["frame_names"]) == 3 and set(target["frame_names"]) <= set(NAMES)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 12])
def test_masks_and_frames_belong_to_the_named_frames_and_object(dataset_root: Path, num_frames: int) -> None:
    clips = plain_clips(dataset_root, num_frames)
    for frames, target in (clips[i] for i in range(len(clips))):
        obj_id = int(target["exp_id"]) + 1
        indices = [NAMES.index(name) for name in target["frame_names"]]
        assert len(indices) == num_frames
        expected = torch.stack([torch.from_numpy(object_ids(i)) == obj_id for i in indices])
        assert torch.equal(target["masks"], expected)
        inside = denormalise(frames).permute(0, 2, 3, 1)[expected].float().mean(0)
        assert (inside - torch.from_numpy(COLOURS[obj_id]).float()).abs().max() < 15  # JPEG
        assert target["valid"].tolist() == [int(obj_id == 1 or i >= 3) for i in indices]


def test_a_clip_without_its_object_is_replaced(dataset_root: Path) -> None:
    clips = plain_clips(dataset_root, 1)
    invisible = [i for i, (number, start) in enumerate(clips._clips.tolist()) if number % 2 == 1 and start < 3]
    assert len(invisible) == 6
    for index in invisible:
        _, target = clips[index]
        assert target["valid"].any()
        assert (target["exp_id"], target["frame_names"][0]) not in [("1", name) for name in NAMES[:3]]
        assert target["frame_names"] == clips[index][1]["frame_names"]


def test_clips_depend_on_seed_epoch_and_index_only(dataset_root: Path) -> None:
    cfg = config(dataset_root)

    def epoch_of(workers: int, epoch: int, seed: int = 42) -> list[torch.Tensor]:
        clips = build_dataset(dataclasses.replace(cfg, seed=seed), "train")
        clips.set_epoch(epoch)
        loader = ClipLoader(clips, batch_size=2, num_workers=workers, collate_fn=partial(collate, multiple=32))
        return [batch.frames for batch in loader]

    first = epoch_of(0, 4)
    assert all(torch.equal(x, y) for x, y in zip(first, epoch_of(2, 4), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(first, epoch_of(0, 5), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(first, epoch_of(0, 4, seed=1), strict=True))


def test_meta_json_is_not_needed(dataset_root: Path) -> None:
    (dataset_root / "train" / "meta.json").unlink()
    assert len(build_dataset(config(dataset_root), "train")) == 12


# --- evaluation with truth


def test_valid_gives_whole_videos_with_truth(dataset_root: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    write_json(answers, {"videos": {"c": entry(), "d": entry()}})
    clips = build_dataset(config(dataset_root, expressions_file=str(answers)), "valid")
    assert len(clips) == 4
    assert list(clips.captions()) == [clips[index][1]["caption"] for index in range(4)]
    frames, target = clips[1]
    assert frames.shape == (FRAMES, 3, HEIGHT, WIDTH)
    assert target["frame_names"] == NAMES and target["caption"] == "a green box"
    assert target["valid"].tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_the_expressions_file_is_that_of_the_chosen_split_only(dataset_root: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    write_json(answers, {"videos": {"c": entry()}})
    assert len(build_dataset(config(dataset_root, expressions_file=str(answers)), "train")) == 12


def test_valid_without_object_ids_or_masks_says_what_is_needed(dataset_root: Path) -> None:
    with pytest.raises(UserError, match=r"'0' of video 'c'.*no 'obj_id'.*--expressions_file"):
        build_dataset(config(dataset_root), "valid")
    for folder in (dataset_root / "valid" / "Annotations").iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (dataset_root / "valid" / "Annotations").rmdir()
    with pytest.raises(UserError, match=r"valid/Annotations is missing; it should hold .*docs/data\.md"):
        build_dataset(config(dataset_root), "valid")


# --- videos for inference


def test_valid_videos_are_those_that_the_test_file_does_not_list(dataset_root: Path) -> None:
    videos = list_videos(config(dataset_root))
    assert [video.name for video in videos] == ["c", "d"]
    assert [path.stem for path in videos[0].frame_paths] == NAMES
    assert all(path.is_file() for path in videos[0].frame_paths)
    assert videos[0].expressions == {"0": " The RED  box on the left", "1": "a green box"}, "as written"


def test_without_the_test_file_folders_decide_and_one_line_says_so(
    dataset_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expressions_path(dataset_root, "test").unlink()
    with caplog.at_level(logging.INFO):
        videos = list_videos(config(dataset_root))
    assert [video.name for video in videos] == ["c", "d"]
    assert len(caplog.records) == 1
    assert "test/meta_expressions.json is missing" in caplog.text and "2 of 3 listed videos" in caplog.text


@pytest.mark.parametrize(("split", "names"), [("train", ["a", "b"]), ("test", ["t"])])
def test_other_splits_have_videos_too(dataset_root: Path, split: str, names: list[str]) -> None:
    assert [video.name for video in list_videos(config(dataset_root, split=split))] == names


def test_another_expressions_file_stands_in(dataset_root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    write_json(other, {"videos": {"d": {"frames": NAMES[:2], "expressions": {"x": {"exp": "Another  sentence"}}}}})
    (video,) = list_videos(config(dataset_root, expressions_file=str(other)))
    assert (video.name, video.expressions, len(video.frame_paths)) == ("d", {"x": "Another  sentence"}, 2)


def test_a_clip_has_all_frames_at_evaluation_size(dataset_root: Path) -> None:
    video = list_videos(config(dataset_root))[0]
    frames, size = next(read_clips([video.frame_paths], short_side=24, long_side=64))
    assert size == (HEIGHT, WIDTH)
    assert frames.shape == (FRAMES, 3, 24, 40) and frames.dtype == torch.float32
    assert next(read_clips([video.frame_paths]))[0].shape == (FRAMES, 3, 360, 600)
    assert next(read_clips([video.frame_paths], short_side=48, long_side=60))[0].shape == (FRAMES, 3, 36, 60)


def test_a_clip_has_the_pixels_of_the_training_path(dataset_root: Path) -> None:
    video = list_videos(config(dataset_root, split="train"))[0]
    frames, _ = next(read_clips([video.frame_paths], HEIGHT, WIDTH))
    assert torch.equal(frames, plain_clips(dataset_root, num_frames=None)[0][0])


# --- negatives

NEGATIVE = {"exp": "A blue box", "obj_id": None, "kind": "negative"}


@pytest.mark.parametrize("num_frames", [3, None])
def test_a_negative_has_empty_truth(dataset_root: Path, num_frames: int | None) -> None:
    edit(expressions_path(dataset_root, "train"), lambda v: v["a"]["expressions"].update({"0": NEGATIVE}))
    clips = plain_clips(dataset_root, num_frames)
    frames, target = clips[0]
    assert target["negative"] and (target["exp_id"], target["caption"]) == ("0", "a blue box")
    assert target["masks"].shape == (len(frames), HEIGHT, WIDTH) and target["masks"].dtype == torch.bool
    assert not target["masks"].any() and not target["boxes"].any() and not target["valid"].any()
    others = [clips[i][1] for i in range(len(clips)) if clips[i][1]["exp_id"] != "0"]
    assert others and not any(other["negative"] for other in others)


def test_a_negative_is_a_training_clip_like_others(dataset_root: Path) -> None:
    edit(expressions_path(dataset_root, "train"), lambda v: v["a"]["expressions"].update({"0": NEGATIVE}))
    frames, target = build_dataset(config(dataset_root), "train")[0]
    assert target["negative"] and target["masks"].shape == (3, *frames.shape[-2:]) and not target["masks"].any()
    (batch,) = ClipLoader([(frames, target)], batch_size=1, collate_fn=collate)  # type: ignore[arg-type]
    assert batch.targets[0]["negative"] is True


def test_a_negative_is_a_sentence_for_inference(dataset_root: Path) -> None:
    edit(expressions_path(dataset_root, "valid"), lambda v: v["c"]["expressions"].update({"0": NEGATIVE}))
    assert list_videos(config(dataset_root))[0].expressions == {"0": "A blue box", "1": "a green box"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obj_id": "1"}, "expression '0' of video 'a' is of the kind 'negative', which refers to nothing, but has"),
        ({"kind": "colour"}, "has no 'obj_id', so its mask is unknown"),
        ({"kind": None}, "has no 'obj_id', so its mask is unknown"),
        ({"kind": ["negative"]}, "has no 'obj_id', so its mask is unknown"),
        ({"exp": " "}, "the sentence of expression '0' of video 'a' is empty"),
    ],
)
def test_what_is_no_negative(dataset_root: Path, change: dict[str, Any], message: str) -> None:
    edit(expressions_path(dataset_root, "train"), lambda v: v["a"]["expressions"].update({"0": {**NEGATIVE, **change}}))
    assert message in train_error(dataset_root)


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
    said = {mask_file: "cannot read the mask {}: it is ", frame_file: "frame {} is broken"}
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
        next(read_clips([video.frame_paths]))
    check_sentence(caught.value)
    path.unlink()
    with pytest.raises(UserError, match=f"frame .*{NAMES[index]}.jpg is missing"):
        next(read_clips([video.frame_paths]))


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
        next(read_clips([list_videos(config(dataset_root, split="train"))[0].frame_paths]))


def test_grey_frame_becomes_rgb(dataset_root: Path) -> None:
    Image.open(frame_file(dataset_root)).convert("L").save(frame_file(dataset_root))
    frames, _ = plain_clips(dataset_root, num_frames=None)[0]
    assert frames.shape == (FRAMES, 3, HEIGHT, WIDTH)
