"""MeViS: files in their true form, union targets, sentences without target, and every bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from datasets import build_dataset, build_scorer, list_videos
from datasets.clip import ClipDataset
from datasets.mevis import MevisClips, read_ground_truth
from datasets.registry import load_config, resolve
from datasets.transforms import EvalTransform
from util.config import Config
from util.errors import UserError

HEIGHT, WIDTH, FRAMES = 24, 40, 5
NAMES = [f"{i:05d}" for i in range(FRAMES)]
BOXES = {"0": (slice(2, 10), slice(2, 12)), "1": (slice(6, 16), slice(8, 20)), "2": (slice(16, 22), slice(30, 38))}
EXPRESSIONS: dict[str, dict[str, Any]] = {
    "0": {"exp": " The bird  FLYING away", "obj_id": [1], "anno_id": [0]},
    "1": {"exp": "the two birds", "obj_id": [1, 2], "anno_id": [0, 1]},
    "2": {"exp": "the two birds", "obj_id": [3], "anno_id": [2]},  # the same sentence, another object
    "3": {"exp": "the bird that sings", "obj_id": [], "anno_id": []},
}


def shown(instance: str, frame: int) -> bool:
    """Instance 1 appears in the third frame; instance 2 is gone in the last."""
    return not (instance == "1" and frame < 2) and not (instance == "2" and frame == FRAMES - 1)


def truth(instances: str, frame: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for instance in instances:
        mask[BOXES[instance]] |= shown(instance, frame)
    return mask


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    runs = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": runs["counts"].decode()}


@pytest.fixture
def mevis(tmp_path: Path) -> Path:
    """A version 2 with one video per split."""
    root = tmp_path / "mevis"
    masks = {i: [run_lengths(truth(i, t)) if shown(i, t) else None for t in range(FRAMES)] for i in BOXES}
    for split in ("train", "valid_u", "valid"):
        folder = root / split / "JPEGImages" / "bird"
        folder.mkdir(parents=True)
        for name in NAMES:
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(folder / f"{name}.jpg")
        answers = split != "valid"
        expressions = {i: e if answers else {"exp": e["exp"]} for i, e in EXPRESSIONS.items()}
        videos = {"bird": {"expressions": expressions, "vid_id": 7, "frames": NAMES}}
        (root / split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
        if answers:
            (root / split / "mask_dict.json").write_text(json.dumps(masks))
    return root


def config(root: Path, **options: Any) -> Config:
    small: dict[str, Any] = {"train_scales": (24,), "crop_scales": (), "max_size": 40, "eval_size": 24, "num_frames": 2}
    return resolve(Config(dataset_file="mevis", mevis_path=str(root), **{**small, **options}))


def whole_videos(root: Path) -> ClipDataset:
    return MevisClips(root, "valid_u", EvalTransform(HEIGHT, WIDTH), None)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_target_is_the_union_of_the_instances(mevis: Path) -> None:
    clips = whole_videos(mevis)
    assert len(clips) == 4
    for index, instances in enumerate(("0", "01", "2", "")):
        _, target = clips[index]
        assert target["exp_id"] == str(index) and target["frame_names"] == NAMES
        assert torch.equal(target["masks"], torch.from_numpy(np.stack([truth(instances, t) for t in range(FRAMES)])))


def test_null_is_an_empty_mask(mevis: Path) -> None:
    _, target = whole_videos(mevis)[2]
    assert target["valid"].tolist() == [1, 1, 1, 1, 0]
    assert target["boxes"][-1].tolist() == [0, 0, 0, 0]


def test_a_sentence_without_target_is_a_negative(mevis: Path) -> None:
    _, target = whole_videos(mevis)[3]
    assert target["negative"] and not target["masks"].any() and not target["valid"].any()
    assert not any(whole_videos(mevis)[i][1]["negative"] for i in range(3))


def test_training_clips(mevis: Path) -> None:
    clips = build_dataset(config(mevis), "train")
    assert len(clips) == 4 * 3, "per expression one for each start frame: 0, 2, 4"
    frames, target = clips[3]
    assert frames.shape[:2] == (2, 3) and target["masks"].shape == (2, *frames.shape[-2:])
    seen = {(clips[i][1]["exp_id"], clips[i][1]["caption"]) for i in range(len(clips))}
    assert ("0", "the bird flying away") in seen
    assert {exp_id for exp_id, caption in seen if caption == "the two birds"} == {"1", "2"}
    assert any(clips[i][1]["negative"] for i in range(len(clips)))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_clips_run_backwards_as_often_as_the_configuration_says(mevis: Path, share: float) -> None:
    clips = build_dataset(config(mevis, reverse_probability=share, num_frames=5), "train")
    names = [clips[i][1]["frame_names"] for i in range(len(clips))]
    assert names == [sorted(clip, reverse=bool(share)) for clip in names]


@pytest.mark.parametrize("name", ["vdit_ytvos", "hcd_ytvos", "vdit_mevis", "hcd_mevis"])
def test_recipes_reverse_three_clips_in_ten(root: Path, name: str) -> None:
    assert load_config(["--config", str(root / "configs" / f"{name}.yaml")], "").reverse_probability == 0.3


def test_a_frame_that_occurs_twice_has_its_mask_twice(mevis: Path) -> None:
    clips = MevisClips(mevis, "train", EvalTransform(HEIGHT, WIDTH), 7, reverse_probability=0)
    _, target = clips[1]
    frames = [int(name) for name in target["frame_names"]]
    assert len(frames) == 7 > FRAMES
    assert torch.equal(target["masks"], torch.from_numpy(np.stack([truth("01", t) for t in frames])))


@pytest.mark.parametrize("split", ["valid_u", "valid"])
def test_videos_for_inference(mevis: Path, split: str) -> None:
    (video,) = list_videos(config(mevis, split=split))
    assert [path.name for path in video.frame_paths] == [f"{name}.jpg" for name in NAMES]
    assert video.frame_paths[0].parent == mevis / split / "JPEGImages" / "bird"
    assert video.expressions == {
        "0": " The bird  FLYING away",  # as written, unlike in training
        "1": "the two birds",
        "2": "the two birds",
        "3": "the bird that sings",
    }


def test_the_split_that_is_scored_is_valid_u(mevis: Path) -> None:
    assert config(mevis).split == "valid_u"


def test_the_version(mevis: Path) -> None:
    assert read_ground_truth(mevis, "valid_u")[1] == "v2"
    assert read_ground_truth(mevis, "valid_u", "v1")[1] == "v1"
    path = mevis / "valid_u" / "meta_expressions.json"
    edit(path, lambda content: content["videos"]["bird"]["expressions"].pop("3"))
    assert read_ground_truth(mevis, "valid_u")[1] == "v1"


# --- bad input


def error_of(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def expression(change: dict[str, Any]) -> Callable[[Any], None]:
    return lambda content: content["videos"]["bird"]["expressions"]["1"].update(change)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("meta_expressions.json", expression({"anno_id": 3}), "'anno_id' of expression '1' of video 'bird' is 3"),
        ("meta_expressions.json", expression({"anno_id": None}), "has no 'anno_id', so its masks are unknown"),
        ("meta_expressions.json", expression({"anno_id": [9]}), "no masks of instance 9, which expression '1'"),
        ("meta_expressions.json", expression({"exp": " "}), "the sentence of expression '1' of video 'bird' is empty"),
        ("meta_expressions.json", lambda content: content["videos"]["bird"].pop("frames"), "a list of frame names"),
        ("meta_expressions.json", lambda content: content["videos"].clear(), "lists no video"),
        ("meta_expressions.json", lambda content: content["videos"].update(cat={}), "video 'cat'"),
        ("mask_dict.json", lambda content: content.pop("0"), "no masks of instance 0"),
        ("mask_dict.json", lambda content: content["0"].pop(), "instance 0 for 4 frames"),
        ("mask_dict.json", lambda content: content.update({"0": 5}), "instance '0' should have a list"),
    ],
)
def test_malformed_files(mevis: Path, file: str, change: Callable[[Any], object], words: str) -> None:
    edit(mevis / "train" / file, change)
    assert words in error_of(lambda: build_dataset(config(mevis), "train"))


def run_length(change: Any) -> Callable[[Any], None]:
    def apply(content: Any) -> None:
        content["0"][1] = {**content["0"][1], **change} if isinstance(change, dict) else change

    return apply


@pytest.mark.parametrize(
    "change",
    [{"size": [HEIGHT, WIDTH + 1]}, {"counts": "\x00"}, {"counts": "1"}, {"counts": 3}, 5, "text", {"size": None}],
)
def test_damaged_run_lengths(mevis: Path, change: Any) -> None:
    edit(mevis / "valid_u" / "mask_dict.json", run_length(change))
    message = error_of(lambda: whole_videos(mevis)[0])
    assert "mask_dict.json, frame 1 of video 'bird', instance 0" in message


def test_missing_files(mevis: Path) -> None:
    assert "no 'anno_id'" not in error_of(lambda: build_dataset(config(mevis), "valid"))
    message = error_of(lambda: build_scorer(config(mevis, split="valid")))
    assert "valid/mask_dict.json is missing" in message and "valid_u" in message
    assert "unknown split 'test'; mevis has train, valid_u, valid" in error_of(
        lambda: list_videos(config(mevis, split="test"))
    )
    (mevis / "train" / "meta_expressions.json").unlink()
    assert "train/meta_expressions.json is missing" in error_of(lambda: build_dataset(config(mevis), "train"))
    assert "nowhere is missing" in error_of(lambda: list_videos(config(mevis / "nowhere")))


def test_an_expressions_file_that_would_not_be_read(mevis: Path) -> None:
    cfg = config(mevis, expressions_file="other.json")
    assert "expressions_file has no effect with dataset_file mevis" in error_of(lambda: list_videos(cfg))
    assert len(build_dataset(cfg, "train")), "it is about the split that is segmented and scored"
    frame = mevis / "valid_u" / "JPEGImages" / "bird" / "00003.jpg"
    frame.unlink()
    assert f"frame {frame} is missing" in error_of(lambda: whole_videos(mevis)[0])
    frame.parent.rename(frame.parent.with_name("robin"))
    assert "bird is missing" in error_of(lambda: whole_videos(mevis))
