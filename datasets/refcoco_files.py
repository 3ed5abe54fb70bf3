"""RefCOCO, RefCOCO+ and RefCOCOg on disk: ``train2014/`` and ``instances_<set>_<split>.json`` (docs/data.md).

The file is COCO's, with one image entry per expression (``caption``), and one annotation for each: its object.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from datasets.coco_masks import MAX_SIDE, decode_segmentation
from datasets.reading import DATA_PAGE, plain_name
from util.errors import UserError
from util.files import read_json
from util.preprocessing import normalise_sentence

SPLITS = {
    "refcoco": ("train", "val", "testA", "testB"),
    "refcoco+": ("train", "val", "testA", "testB"),
    "refcocog": ("train", "val", "test"),
}
IMAGES = "train2014"


class Item(TypedDict):
    """One expression and its object."""

    id: int  # of the image entry, unique in its file
    file_name: str
    height: int  # of the image, pixels
    width: int
    caption: str  # normalised
    segmentation: Any  # as COCO writes it
    bbox: list[float]  # x, y, width, height in pixels


class PackedItems(Sequence[Item]):
    """Items in one array of bytes, which worker processes share; they would copy a list of dictionaries."""

    def __init__(self, items: Iterable[Item]) -> None:
        packed = [pickle.dumps(item) for item in items]  # ten times faster than JSON
        self._bytes = np.frombuffer(b"".join(packed), np.uint8)
        self._ends = np.cumsum([0, *map(len, packed)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        return pickle.loads(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


def instances_path(root: Path, name: str, split: str) -> Path:
    """The file of a set's split, in ``root`` or in ``root/<set>``, and in ``root`` where it is in neither.

    Raises:
        UserError: the set has no such split.
    """
    file = instances_name(name, split)
    inner = root / name / file
    return inner if inner.is_file() and not (root / file).is_file() else root / file


def instances_name(name: str, split: str) -> str:
    """Name of the file of a set's split.

    Raises:
        UserError: the set has no such split.
    """
    if split not in SPLITS[name]:
        raise UserError(f"unknown split {split!r}; {name} has {', '.join(SPLITS[name])}")
    return f"instances_{name}_{split}.json"


def read_items(root: Path, name: str, split: str) -> list[Item]:
    """Read and check the expressions of a split, in the file's order.

    Segmentations are checked when they are drawn.

    Raises:
        UserError: an unknown split; the file is missing, not JSON or of another structure; an entry is wrong.
    """
    path = instances_path(root, name, split)
    what = f"the {split} expressions of {name}, as `python -m scripts.prepare_data {name}` writes them"
    content = read_json(path, f"{what}, see {DATA_PAGE}")
    images, annotations = (_entries(content, key, path) for key in ("images", "annotations"))
    objects: dict[int, dict[str, Any]] = {}
    for annotation in annotations:
        number = _integer(annotation, "image_id", path, "an annotation")
        if number in objects:
            raise UserError(f"{path}: image entry {number} has two annotations; an expression has one object")
        objects[number] = annotation
    items = [_item(image, objects, path) for image in images]
    if not items:
        raise UserError(f"{path} lists no image entry; it should hold {what}")
    if len({item["id"] for item in items}) < len(items):
        raise UserError(f"{path}: two image entries share an id; each expression has its own entry and id")
    return items


def item_id(item: Item, name: str, split: str) -> str:
    """An item's id in predictions and results: unique over all sets, and different for equal sentences."""
    return f"{name}_{split}_{item['id']}"


def draw_mask(item: Item, name: str, split: str) -> np.ndarray:
    """An item's object, bool ``[H, W]``.

    Raises:
        UserError: its outline is malformed.
    """
    where = f"image entry {item['id']} of {instances_name(name, split)}"
    return decode_segmentation(item["segmentation"], item["height"], item["width"], where)


def _item(image: dict[str, Any], objects: dict[int, dict[str, Any]], path: Path) -> Item:
    number = _integer(image, "id", path, "an image entry")
    where = f"image entry {number}"
    caption = image.get("caption")
    caption = normalise_sentence(caption) if isinstance(caption, str) else ""
    if not caption:
        raise UserError(f"{path}: {where} has no sentence; its 'caption' should say what it refers to")
    if number not in objects:
        raise UserError(f"{path}: {where} has no annotation; one with its id as 'image_id' should outline its object")
    height, width = (_integer(image, side, path, where) for side in ("height", "width"))
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise UserError(f"{path}: {where} is of {width}×{height} pixels; its sides should be 1 to {MAX_SIDE}")
    return Item(
        id=number,
        file_name=plain_name(image.get("file_name"), path, f"the file of {where}"),
        height=height,
        width=width,
        caption=caption,
        segmentation=objects[number].get("segmentation"),
        bbox=_box(objects[number].get("bbox"), path, where),
    )


def _entries(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} should hold a list of JSON objects under {key!r} (see {DATA_PAGE} for its form)")
    return entries


def _integer(entry: dict[str, Any], key: str, path: Path, where: str) -> int:
    value = entry.get(key)
    if type(value) is not int:
        raise UserError(f"{path}: {where} has {key!r} {value!r}; it should be a whole number")
    return value


def _box(box: Any, path: Path, where: str) -> list[float]:
    good = isinstance(box, list) and len(box) == 4
    good = good and all(type(value) in (int, float) and abs(value) <= MAX_SIDE for value in box)
    if not good or min(box[2:]) < 0:
        raise UserError(f"{path}: the annotation of {where} should have a 'bbox' of x, y, width and height in pixels")
    return box
