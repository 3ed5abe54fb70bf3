"""Small sets in the true formats of RefCOCO, RefCOCO+ and RefCOCOg, made of toy videos.

``write_toy_refcoco`` writes what the sets are distributed as: JPEG images, COCO's ``instances.json`` with polygons and
run lengths, and a Python 2 pickle of references, whose texts are byte strings.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from datasets.refcoco_files import IMAGES, SPLITS
from datasets.refcoco_prepare import INSTANCES, REFERENCES
from datasets.toy import ToyParameters, ToyVideo, make_video
from datasets.toy.scene import SHAPES, render_frames, write_frame
from scripts.toy_formats import empty_folder
from util.io import atomic_path, write_json

KINDS = ("colour", "shape", "size", "relation")  # of sentences: an image shows no motion


def write_toy_refcoco(
    root: str | Path,
    *,
    num_train: int = 8,
    num_eval: int = 4,
    height: int = 64,
    width: int = 96,
    seed: int = 0,
    sets: Sequence[str] = tuple(SPLITS),
) -> Path:
    """Write the distributed form of the sets: ``train2014/``, and ``<set>/instances.json`` and ``<set>/refs(…).p``.

    An image is a toy video's middle frame. The first of its objects has its first sentence twice, as happens in the
    sets, and the outlines are polygons, uncompressed and compressed run lengths in turn.

    Args:
        root: a folder that is empty or does not exist.
        num_train: images of the train split.
        num_eval: images of each other split.
        height, width: in pixels.
        seed: of the videos.
        sets: which of refcoco, refcoco+ and refcocog.

    Returns:
        ``root``.

    Raises:
        UserError: a parameter is out of range, or there is something in ``root``.
    """
    root = empty_folder(root)
    numbers = count(1)  # of images, objects and sentences alike
    for order, name in enumerate(sets):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        references: list[dict[str, Any]] = []
        for split in SPLITS[name]:
            amount = num_train if split == "train" else num_eval
            parameters = ToyParameters(amount, 0, 0, 4, height, width, seed + order, KINDS)
            for index in range(amount):
                # other splits go on where the train split ends
                video = make_video(parameters, "train" if split == "train" else f"valid/{split}", index)
                image = next(numbers)
                file_name = f"COCO_train2014_{image:012d}.jpg"
                _write_image(root / IMAGES / file_name, video)
                images.append({"id": image, "file_name": file_name, "height": height, "width": width})
                for annotation, sentences in _objects(video, image, numbers):
                    annotations.append(annotation)
                    if sentences:
                        references.append(_reference(split, annotation, sentences, numbers))
        categories = [{"id": number, "name": shape, "supercategory": "shape"} for number, shape in enumerate(SHAPES, 1)]
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        write_json(root / name / INSTANCES, content)
        with atomic_path(root / name / REFERENCES[name]) as path:
            path.write_bytes(python2_pickle(references))
    return root


def _objects(video: ToyVideo, image: int, numbers: Any) -> list[tuple[dict[str, Any], list[str]]]:
    """The middle frame's objects: an annotation and the sentences of each. The first object's are one too many."""
    ids = video.masks[len(video.masks) // 2]
    found: list[tuple[dict[str, Any], list[str]]] = []
    for obj in sorted(video.scene.objects, key=lambda obj: obj.obj_id):
        mask = ids == obj.obj_id
        if not mask.any():
            continue
        sentences = [sentence.text for sentence in video.sentences if sentence.obj_id == obj.obj_id]
        if not any(said for _, said in found):
            sentences += sentences[:1]
        annotation = {
            "id": next(numbers),
            "image_id": image,
            "category_id": SHAPES.index(obj.shape) + 1,
            "segmentation": (polygons, uncompressed, compressed)[len(found) % 3](mask),
            "bbox": coco.toBbox(coco.encode(np.asfortranarray(mask, np.uint8))).tolist(),
            "area": int(mask.sum()),
            "iscrowd": 0,
        }
        found.append((annotation, sentences))
    return found


def _reference(split: str, annotation: dict[str, Any], sentences: list[str], numbers: Any) -> dict[str, Any]:
    spoken = [
        {"sent_id": next(numbers), "sent": text, "raw": text.capitalize(), "tokens": text.split()} for text in sentences
    ]
    return {
        "ref_id": next(numbers),
        "ann_id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "file_name": f"COCO_train2014_{annotation['image_id']:012d}_{annotation['id']}.jpg",
        "split": split,
        "sent_ids": [sentence["sent_id"] for sentence in spoken],
        "sentences": spoken,
    }


def polygons(mask: np.ndarray) -> list[list[float]] | dict[str, Any]:
    """A mask's outlines, bool ``[H, W]``, as COCO's polygons; run lengths where a part is too thin for a polygon."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if any(len(contour) < 3 for contour in contours):
        return uncompressed(mask)
    return [(contour.reshape(-1) + 0.5).tolist() for contour in contours]


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool ``[H, W]``, as COCO's run lengths in a list: column by column, background first."""
    values = mask.T.reshape(-1)
    ends = [*(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    runs = np.diff([0, *ends]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if values[0] else runs}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool ``[H, W]``, as COCO's run lengths in a text."""
    runs = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}


def python2_pickle(value: Any, encoding: str = "utf-8") -> bytes:
    """What Python 2 writes for lists and dictionaries of texts (``str``) and whole numbers, by protocol 2.

    Python 3's own pickles hold ``unicode`` in their place, and would not show whether byte strings are read.
    """
    return b"\x80\x02" + _pickled(value, encoding) + b"."


def _pickled(value: Any, encoding: str) -> bytes:
    if isinstance(value, list):
        return b"](" + b"".join(_pickled(item, encoding) for item in value) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(part, encoding) for pair in value.items() for part in pair) + b"u"
    if isinstance(value, str):
        text = value.encode(encoding)
        return (b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<i", len(text))) + text
    assert type(value) is int, value
    return b"J" + struct.pack("<i", value)


def _write_image(path: Path, video: ToyVideo) -> None:
    frames = render_frames(video.scene)
    write_frame(path, frames[len(frames) // 2])
