"""RefCOCO, RefCOCO+ and RefCOCOg: from refs(…).p and instances.json to one COCO file per split."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.refcoco import REFERENCES, SPLITS, convert_refcoco, draw_mask, read_items
from scripts.prepare_data import main
from tests.true_formats import python2_pickle, write_toy_refcoco
from util.errors import run_cli

HEIGHT, WIDTH = 6, 8
NAMES = {11: "COCO_train2014_000000000011.jpg", 12: "COCO_train2014_000000000012.jpg"}
POLYGON = [[1.0, 1.0, 4.0, 1.0, 4.0, 5.0, 1.0, 5.0]]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [0, 12, 36]}  # the two columns on the left
TEXT = {"size": [HEIGHT, WIDTH], "counts": "Z16"}  # the last column: 42 = 10 + 32 · 1 pixels without, then 6
CATEGORIES = [{"id": 18, "name": "dog", "supercategory": "animal"}]


def annotation(number: int, image: int, outline: Any, crowd: int = 0) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "segmentation": outline,
        "bbox": [1.0, 1.0, 3.0, 4.0],
        "area": 12.5,
        "iscrowd": crowd,
        "category_id": 18,
    }


def reference(ref_id: int, split: str, image: int, obj: int, sentences: list[tuple[int, str]]) -> dict[str, Any]:
    return {
        "ref_id": ref_id,
        "ann_id": obj,
        "image_id": image,
        "category_id": 18,
        "file_name": NAMES[image].replace(".jpg", f"_{obj}.jpg"),  # as distributed: no file has this name
        "split": split,
        "sent_ids": [number for number, _ in sentences],
        "sentences": [
            {"sent_id": number, "sent": text, "raw": text.upper(), "tokens": text.split()} for number, text in sentences
        ],
    }


def references() -> list[dict[str, Any]]:
    return [
        reference(0, "train", 11, 901, [(0, "the left dog"), (1, "the left dog"), (2, "café dog ")]),
        reference(1, "testA", 11, 902, [(3, "crowd")]),
        reference(2, "val", 12, 903, [(4, "dog in front")]),
        reference(3, "train", 12, 903, [(5, "dog")]),
    ]


def instances() -> dict[str, Any]:
    images = [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH, "license": 1} for i, name in NAMES.items()]
    objects = [annotation(901, 11, POLYGON), annotation(902, 11, RUNS, crowd=1), annotation(903, 12, TEXT)]
    return {"info": {}, "licenses": [], "images": images, "annotations": objects, "categories": CATEGORIES}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """RefCOCO as it is distributed, and its images beside it."""
    root = tmp_path / "refer"
    (root / "refcoco").mkdir(parents=True)
    (root / "images").mkdir()
    for value, name in enumerate([*NAMES.values(), "COCO_train2014_000000000099.jpg"]):  # one that nothing refers to
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 50 * value, np.uint8)).save(root / "images" / name)
    (root / "refcoco" / "refs(unc).p").write_bytes(python2_pickle(references()))
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances()))
    return root


def convert(source: Path, output: Path, **options: Any) -> Any:
    return convert_refcoco("refcoco", source, output, source / "images", **options)


def read(output: Path, split: str) -> dict[str, Any]:
    return json.loads((output / f"instances_refcoco_{split}.json").read_text(encoding="utf-8"))


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_one_entry_and_one_annotation_per_expression(source: Path, tmp_path: Path) -> None:
    before = state(source)
    summary = convert(source, tmp_path / "out")
    assert summary.expressions == {"train": 4, "val": 1, "testA": 1, "testB": 0}
    assert summary.objects == {"train": 2, "val": 1, "testA": 1, "testB": 0}
    assert summary.images == {"train": 2, "val": 1, "testA": 1, "testB": 0}
    assert summary.notes == ["no expression in testB"]
    train = read(tmp_path / "out", "train")
    assert train["images"][1] == {
        "id": 1,
        "file_name": NAMES[11],
        "height": HEIGHT,
        "width": WIDTH,
        "original_id": 11,
        "caption": "the left dog",
        "dataset_name": "refcoco",
        "ref_id": 0,
        "sent_id": 1,
    }
    kept = {**annotation(901, 11, POLYGON), "id": 1, "image_id": 1, "original_id": 901}
    assert train["annotations"][1] == kept and train["categories"] == CATEGORIES
    captions = ["the left dog", "the left dog", "café dog", "dog"]
    assert [image["caption"] for image in train["images"]] == captions  # a duplicate stays an expression of its own
    for key in ("images", "annotations"):
        assert [entry["id"] for entry in train[key]] == [0, 1, 2, 3]
    assert read(tmp_path / "out", "testB")["images"] == []
    assert state(source) == before


def test_outlines_are_read_by_the_loader(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    polygon = np.zeros((HEIGHT, WIDTH), bool)
    polygon[1:5, 1:4] = True
    columns, last = np.zeros_like(polygon), np.zeros_like(polygon)
    columns[:, :2] = True
    last[:, -1] = True
    found = {split: read_items(tmp_path / "out", "refcoco", split) for split in ("train", "val", "testA")}
    assert (draw_mask(found["train"][0], "refcoco", "train") == polygon).all()
    assert (draw_mask(found["testA"][0], "refcoco", "testA") == columns).all()
    assert (draw_mask(found["val"][0], "refcoco", "val") == last).all()


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_linked_or_copied_and_only_those_needed(source: Path, tmp_path: Path, copy: bool) -> None:
    convert(source, tmp_path / "out", copy=copy)
    brought = tmp_path / "out" / "train2014"
    assert sorted(path.name for path in brought.iterdir()) == sorted(NAMES.values())
    for name in NAMES.values():
        assert (brought / name).is_symlink() != copy
        assert (brought / name).read_bytes() == (source / "images" / name).read_bytes()


def test_it_can_be_repeated_and_completes(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", copy=True)
    first = state(tmp_path / "out")
    kept = tmp_path / "out" / "train2014" / NAMES[11]
    changed = kept.stat().st_mtime_ns
    (tmp_path / "out" / "train2014" / NAMES[12]).write_bytes(b"half")
    (tmp_path / "out" / "instances_refcoco_val.json").unlink()
    convert(source, tmp_path / "out", copy=True)
    assert state(tmp_path / "out") == first and kept.stat().st_mtime_ns == changed
    convert(source, tmp_path / "out")  # what is copied already is not linked
    assert state(tmp_path / "out") == first and not kept.is_symlink()


def test_images_may_be_in_place_already(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (source / "images").rename(out / "train2014")
    before = state(out / "train2014")
    convert_refcoco("refcoco", source, out, copy=True)
    assert state(out / "train2014") == before and len(read(out, "train")["images"]) == 4


def test_an_empty_sentence_is_left_out_and_told(source: Path, tmp_path: Path) -> None:
    values = references()
    values[0]["sentences"][1]["sent"] = "  "
    (source / "refcoco" / "refs(unc).p").write_bytes(python2_pickle(values))
    summary = convert(source, tmp_path / "out")
    assert summary.expressions["train"] == 3 and "empty sentence of object 901" in summary.notes[0]


def test_the_command_says_what_it_wrote(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--refer_root", str(source), "--images", str(source / "images"), "--output_dir", str(tmp_path / "out")]
    main(["refcoco", *arguments])
    out = capsys.readouterr().out
    assert "train: 2 images, 2 objects, 4 expressions" in out and "testA: 1 images, 1 objects, 1 expressions" in out


def test_toy_sets_of_all_three_kinds(tmp_path: Path) -> None:
    write_toy_refcoco(tmp_path / "refer", num_train=2, num_eval=1)
    for name, splits in SPLITS.items():
        summary = convert_refcoco(name, tmp_path / "refer", tmp_path / "out", tmp_path / "refer" / "train2014")
        assert summary.notes == [] and tuple(summary.expressions) == splits
        assert all(count > 0 for count in summary.expressions.values())
        train = read_items(tmp_path / "out", name, "train")
        assert all(draw_mask(item, name, "train").any() for item in train)
        spoken = [(item["file_name"], item["caption"], str(item["segmentation"])) for item in train]
        assert len(set(spoken)) < len(spoken)  # a sentence is given twice


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def set_field(position: int, key: str, value: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        values = references()
        values[position][key] = value
        (folder / "refs(unc).p").write_bytes(pickle.dumps(values, 2))

    return change


def set_instances(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        content = instances()
        change(content)
        (folder / "instances.json").write_text(json.dumps(content))

    return write


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no pickle": (lambda at: (at / "refs(unc).p").unlink(), "refs(unc).p is missing"),
    "half a pickle": (lambda at: os.truncate(at / "refs(unc).p", 90), "is not a complete pickle file"),
    "code": (lambda at: (at / "refs(unc).p").write_bytes(pickle.dumps([Code()])), "is refused"),
    "no list": (lambda at: (at / "refs(unc).p").write_bytes(pickle.dumps({})), "should hold a list of dictionaries"),
    "an empty list": (lambda at: (at / "refs(unc).p").write_bytes(pickle.dumps([])), "should hold a list"),
    "another split": (set_field(2, "split", "test"), "refs(unc).p, entry 2 is of the split 'test'"),
    "no split": (set_field(2, "split", None), "entry 2 is of the split None"),
    "an id as text": (set_field(0, "ann_id", "901"), "entry 0 refers to object 901 in image 11"),
    "an unknown object": (set_field(0, "ann_id", 77), "entry 0 refers to object 77 in image 11"),
    "another image's object": (set_field(0, "ann_id", 903), "refers to object 903 in image 11"),
    "no sentences": (set_field(1, "sentences", None), "entry 1 is malformed"),
    "a sentence as text": (set_field(1, "sentences", ["a dog"]), "entry 1 is malformed"),
    "a number as sentence": (set_field(1, "sentences", [{"sent": 3, "sent_id": 3}]), "entry 1 is malformed"),
    "no instances": (lambda at: (at / "instances.json").unlink(), "instances.json is missing"),
    "no JSON": (lambda at: (at / "instances.json").write_text("{"), "is not valid JSON"),
    "no images": (set_instances(lambda content: content.pop("images")), "under 'images'"),
    "a way out": (set_instances(lambda content: content["images"][0].update(file_name="../a.jpg")), "without slashes"),
    "no name": (set_instances(lambda content: content["images"][0].pop("file_name")), "is named None"),
    "no image": (lambda at: (at.parent / "images" / NAMES[12]).unlink(), f"{NAMES[12]} is missing"),
    "no image folder": (lambda at: (at.parent / "images").rename(at.parent / "x"), "images is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture, case: str) -> None:
    spoil, message = BAD[case]
    spoil(source / "refcoco")
    arguments = ["--refer_root", str(source), "--images", str(source / "images"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: main(["refcoco", *arguments]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.glob("out/*.json"))


def test_each_set_has_its_file_of_references() -> None:
    assert REFERENCES == {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
