"""RefCOCO, RefCOCO+ and RefCOCOg: clips made of images, single images for evaluation, and every bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from datasets import build_dataset, build_evaluator
from datasets.clip import denormalise
from datasets.evaluators import RefcocoEvaluator
from datasets.refcoco import PackedItems, read_items
from datasets.registry import load_config, resolve
from tests.true_formats import uncompressed
from util.config import Config
from util.errors import UserError
from util.metrics import QueryPredictions

HEIGHT, WIDTH = 48, 80
NAMES = ("COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg")
# A red box in the left half, as a polygon, and a green one at the right edge, as run lengths.
BOXES = ((8, 12, 40, 36), (60, 4, 76, 20))
COLOURS = ([220, 30, 30], [30, 200, 30])
CAPTIONS = (" The RED  box on the left", "the red box on the left", "a bright green box")


def rectangle(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def polygon(box: tuple[int, int, int, int]) -> list[list[int]]:
    left, top, right, bottom = box
    return [[left, top, right, top, right, bottom, left, bottom]]


def content(name: str = "refcoco") -> dict[str, Any]:
    """Three expressions, two of them alike and of the same object; both images show both boxes."""
    outlines = (polygon(BOXES[0]), polygon(BOXES[0]), uncompressed(rectangle(BOXES[1])))
    images, annotations = [], []
    for number, (caption, outline) in enumerate(zip(CAPTIONS, outlines, strict=True)):
        left, top, right, bottom = BOXES[number == 2]
        images.append(
            {
                "id": 10 + number,
                "file_name": NAMES[number == 2],
                "height": HEIGHT,
                "width": WIDTH,
                "original_id": 9,
                "caption": caption,
                "dataset_name": name,
            }
        )
        # the annotations stand in another order, and are numbered for themselves
        box = [left, top, right - left, bottom - top]
        annotations.insert(
            0, {"id": 70 + number, "image_id": 10 + number, "bbox": box, "segmentation": outline, "iscrowd": 0}
        )
    return {"images": images, "annotations": annotations, "categories": []}


def file_of(root: Path, split: str = "train", name: str = "refcoco") -> Path:
    return root / f"instances_{name}_{split}.json"


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    (root / "train2014").mkdir(parents=True)
    picture = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    for box, colour in zip(BOXES, COLOURS, strict=True):
        picture[rectangle(box)] = colour
    for name in NAMES:
        Image.fromarray(picture).save(root / "train2014" / name, quality=95, subsampling=0)
    for split in ("train", "val", "testA"):
        file_of(root, split).write_text(json.dumps(content()))
    return root


def config(root: Path, **options: Any) -> Config:
    small: dict[str, Any] = {
        "dataset_file": "refcoco",
        "train_scales": (40, 48),
        "crop_scales": (48, 56),
        "crop_range": (40, 60),
        "max_size": 80,
        "eval_size": 24,
        "num_frames": 4,
    }
    return resolve(Config(coco_path=str(root), **{**small, **options}))


def reddish(frames: Tensor) -> Tensor:
    """Normalised ``[T, 3, h, w]`` → bool ``[T, h, w]``."""
    red, green, blue = denormalise(frames).int().unbind(1)
    return red > green + blue


# --- training clips


def test_a_clip_per_expression_keeps_the_contract(coco_root: Path) -> None:
    clips = build_dataset(config(coco_root), "train")
    assert len(clips) == 3
    frames, target = clips[0]
    h, w = frames.shape[-2:]
    assert frames.shape == (4, 3, h, w) and frames.dtype == torch.float32 and max(h, w) <= 80
    assert target["masks"].shape == (4, h, w) and target["masks"].dtype == torch.bool
    assert target["boxes"].shape == (4, 4) and target["valid"].shape == (4,)
    assert target["size"].tolist() == [h, w] and target["orig_size"].tolist() == [HEIGHT, WIDTH]
    assert target["video"] == "COCO_train2014_000000000009" and target["exp_id"] == "refcoco_train_10"
    assert target["frame_names"] == ["COCO_train2014_000000000009"] * 4
    assert not target["negative"] and "annotated" not in target


def test_equal_sentences_are_two_clips(coco_root: Path) -> None:
    clips = build_dataset(config(coco_root, crop_scales=()), "train")
    assert [clips[index][1]["exp_id"] for index in (0, 1)] == ["refcoco_train_10", "refcoco_train_11"]


def test_masks_follow_the_moving_object_and_its_words_the_flip(coco_root: Path) -> None:
    clips = build_dataset(config(coco_root, colour_distortion=False, crop_scales=()), "train")
    moved = sides = 0
    for epoch in range(12):
        clips.set_epoch(epoch)
        frames, target = clips[0]
        masks, red = target["masks"], reddish(frames)
        assert (red & masks).sum() / (red | masks).sum() > 0.8
        moved += int((masks != masks[0]).any())
        centre = target["boxes"][target["valid"].bool(), 0].mean()
        assert target["caption"] == f"the red box on the {'left' if centre < 0.5 else 'right'}"
        sides += int(centre < 0.5)
    assert moved == 12 and 0 < sides < 12


def test_whole_words_are_swapped(coco_root: Path) -> None:
    clips = build_dataset(config(coco_root), "train")
    found = set()
    for epoch in range(8):
        clips.set_epoch(epoch)
        found.add(clips[2][1]["caption"])
    assert found <= {"a bright green box", "the red box on the left", "the red box on the right"}
    assert "a bright green box" in found


def test_a_clip_is_a_function_of_seed_epoch_and_index(coco_root: Path) -> None:
    clips, again = (build_dataset(config(coco_root), "train") for _ in range(2))
    first = clips[1]
    assert torch.equal(first[0], again[1][0]) and torch.equal(first[1]["masks"], again[1][1]["masks"])
    again.set_epoch(1)
    assert first[0].shape != again[1][0].shape or not torch.equal(first[0], again[1][0])


def test_an_object_out_of_sight_is_replaced(coco_root: Path) -> None:
    values = content()
    for number in (1, 2):  # the annotations of the first two entries
        values["annotations"][number]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    file_of(coco_root).write_text(json.dumps(values))
    clips = build_dataset(config(coco_root, crop_scales=()), "train")
    assert {clips[index][1]["exp_id"] for index in range(3)} == {"refcoco_train_12"}


# --- evaluation


@pytest.mark.parametrize("split", ["val", "testA"])
def test_evaluation_items_are_the_images_alone(coco_root: Path, split: str) -> None:
    items = build_dataset(config(coco_root, split=split), split)
    frames, target = items[2]
    assert frames.shape == (1, 3, 24, 40) and target["size"].tolist() == [24, 40]
    assert target["orig_size"].tolist() == [HEIGHT, WIDTH] and target["annotated"] == 0
    assert target["exp_id"] == f"refcoco_{split}_12" and target["caption"] == "a bright green box"
    assert list(items.captions()) == [items[index][1]["caption"] for index in range(len(items))]
    expected = torch.from_numpy(rectangle(BOXES[1]))[::2, ::2]
    assert torch.equal(target["masks"][0], expected) and torch.equal(frames, items[2][0])


def test_nothing_is_replaced_in_evaluation(coco_root: Path) -> None:
    values = content()
    values["annotations"][2]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    file_of(coco_root, "val").write_text(json.dumps(values))
    _, target = build_dataset(config(coco_root), "val")[0]
    assert target["exp_id"] == "refcoco_val_10" and target["valid"].tolist() == [0]


def test_truth_is_at_the_original_size(coco_root: Path) -> None:
    evaluator = build_evaluator(config(coco_root, split="testA"))
    assert isinstance(evaluator, RefcocoEvaluator)
    assert evaluator.items == ["refcoco_testA_10", "refcoco_testA_11", "refcoco_testA_12"]
    for item, box in zip(evaluator.items, (BOXES[0], BOXES[0], BOXES[1]), strict=True):
        truth = evaluator.ground_truth(item)
        assert (truth.mask == rectangle(box)).all() and truth.box.tolist() == list(box)


def test_perfect_predictions_are_perfect(coco_root: Path) -> None:
    cfg = config(coco_root, eval_size=HEIGHT)
    items, evaluator = build_dataset(cfg, cfg.split), build_evaluator(cfg)
    for _, target in (items[index] for index in range(3)):
        box = box_convert(target["boxes"], "cxcywh", "xyxy") * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
        score = np.ones(1, np.float32)
        evaluator.update([QueryPredictions(target["exp_id"], score, target["masks"].numpy(), box.numpy())])
    assert set(evaluator.results().values()) == {100.0}


def test_the_file_may_lie_in_a_folder_of_its_set(coco_root: Path) -> None:
    (coco_root / "refcoco+").mkdir()
    file_of(coco_root / "refcoco+", name="refcoco+").write_text(json.dumps(content("refcoco+")))
    assert build_dataset(config(coco_root, dataset_file="refcoco+"), "train")[0][1]["exp_id"] == "refcoco+_train_10"


def test_packed_items_are_the_items(coco_root: Path) -> None:
    items = read_items(coco_root, "refcoco", "train")
    packed = PackedItems(items)
    assert len(packed) == 3 and list(packed) == items and packed[-1] == items[2]
    with pytest.raises(IndexError):
        packed[3]


@pytest.mark.parametrize(("model", "per_process"), [("vdit", 1), ("hcd", 2)])
def test_recipe(root: Path, model: str, per_process: int) -> None:
    recipe = load_config(["--config", str(root / f"configs/{model}_refcoco.yaml")], "")
    assert (recipe.dataset_file, recipe.num_frames, recipe.batch_size) == ("joint_coco", 5, per_process)
    assert (recipe.epochs, recipe.lr_drop, recipe.lr, recipe.lr_processes) == (12, (8, 10), 1e-4, 4)


# --- bad input


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        values = content()
        change(values)
        file_of(root).write_text(json.dumps(values))

    return write


def image(**values: Any) -> Callable[[Path], object]:
    return edit(lambda content: content["images"][1].update(values))


def annotation(**values: Any) -> Callable[[Path], object]:
    return edit(lambda content: content["annotations"][0].update(values))


LARGE = Image.new("RGB", (WIDTH, HEIGHT + 1))
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda root: file_of(root).unlink(), "instances_refcoco_train.json is missing.* scripts.prepare_data"),
    "no JSON": (lambda root: file_of(root).write_text("["), "is not valid JSON"),
    "a list": (lambda root: file_of(root).write_text("[]"), "list of JSON objects under 'images'"),
    "no annotations": (edit(lambda content: content.pop("annotations")), "under 'annotations'"),
    "nothing": (edit(lambda content: content.update(images=[])), "lists no image entry"),
    "an id twice": (image(id=10), "two image entries share an id"),
    "two objects": (annotation(image_id=10), "image entry 10 has two annotations"),
    "no object": (image(id=99), "image entry 99 has no annotation"),
    "an id as text": (image(id="eleven"), "image entry eleven has no annotation"),
    "no sentence": (image(caption=" "), "image entry 11 is malformed"),
    "a way out": (image(file_name="../../a.jpg"), "the file of image entry 11 is named '../../a.jpg'"),
    "a height of 0": (image(height=0), "image entry 11 is malformed"),
    "no box": (annotation(bbox=None), "image entry 12 is malformed .* a 'bbox' of x, y"),
    "a box of text": (annotation(bbox=[1, 2, 3, "d"]), "image entry 12 is malformed"),
    "no images": (lambda root: (root / "train2014" / NAMES[1]).unlink(), f"{NAMES[1]} is missing, but .*json lists it"),
    "no image folder": (lambda root: (root / "train2014").rename(root / "x"), "train2014 is missing; it should hold"),
    "a broken image": (
        lambda root: (root / "train2014" / NAMES[1]).write_bytes(b"\xff\xd8\xff"),
        f"frame .*{NAMES[1]} is broken",
    ),
    "another image": (
        lambda root: LARGE.save(root / "train2014" / NAMES[1]),
        f"{NAMES[1]} is of 80×49 pixels, and .* say 80×48",
    ),
    "no outline": (annotation(segmentation=None), "entry 12 of instances_.* has no COCO"),
    "runs too short": (annotation(segmentation={"size": [48, 80], "counts": [7]}), "entry 12 .* end before"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(coco_root: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(coco_root)
    with pytest.raises(UserError, match=message) as caught:
        build_dataset(config(coco_root), "train")[2]
    assert "\n" not in str(caught.value)


def test_an_unknown_split_and_a_missing_root(coco_root: Path) -> None:
    with pytest.raises(UserError, match="unknown split 'valid'; refcoco has train, val, testA, testB"):
        build_dataset(config(coco_root), "valid")
    with pytest.raises(UserError, match="unknown split 'testA'; refcocog has train, val, test"):
        build_evaluator(config(coco_root, dataset_file="refcocog", split="testA"))
    with pytest.raises(UserError, match="nowhere is missing; name the folder of refcoco by --coco_path"):
        build_dataset(config(coco_root / "nowhere"), "train")
