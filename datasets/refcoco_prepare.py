"""RefCOCO, RefCOCO+ and RefCOCOg: from the distributed files to those that the loader reads (docs/data.md).

Distributed is, per set, ``refs(unc).p`` or ``refs(umd).p``, a pickle of which object each expression refers to, and
``instances.json``, COCO's images and objects. The result has one image entry and one annotation per expression.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.annotation_files import require_files
from datasets.reading import DATA_PAGE, plain_name, require_folder
from datasets.refcoco_files import IMAGES, SPLITS, instances_name
from util.errors import UserError
from util.files import bring_file, read_json, write_json
from util.plain_pickle import read_plain_pickle
from util.preprocessing import normalise_sentence

REFERENCES = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
INSTANCES = "instances.json"


@dataclass
class RefcocoSummary:
    """What a conversion wrote, by split, and what a reader of the result should know."""

    images: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    expressions: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Reference:
    """An object and what is said of it."""

    id: int
    split: str
    image: dict[str, Any]  # its entries in instances.json
    annotation: dict[str, Any]
    sentences: list[tuple[int, str]]  # id and text


def convert_refcoco(
    name: str, refer_root: str | Path, output_dir: str | Path, images: str | Path | None = None, copy: bool = False
) -> RefcocoSummary:
    """Make ``train2014/`` and ``instances_<set>_<split>.json`` of a set. The source is only read; it can be run again.

    Args:
        name: refcoco, refcoco+ or refcocog.
        refer_root: holds ``refs(…).p`` and ``instances.json``, or a folder with the set's name that does.
        output_dir: gets the result; the three sets can share it.
        images: COCO's training images of 2014, of which those that the set needs are brought to
            ``output_dir/train2014``; None: they are there already.
        copy: copy the images. Otherwise they are symbolic links, or copies on a file system without links.

    Raises:
        UserError: something is missing, malformed or not to be trusted; the sentence names it.
    """
    refer_root, output_dir = Path(refer_root), Path(output_dir)
    require_folder(refer_root, f"{REFERENCES[name]} and {INSTANCES} of {name}, or a folder {name} with them")
    folder = refer_root / name if (refer_root / name).is_dir() else refer_root
    source = require_folder(Path(images) if images else output_dir / IMAGES, "the training images of COCO 2014")
    content = read_json(folder / INSTANCES, f"COCO's images and objects of {name} (see {DATA_PAGE})")
    summary = RefcocoSummary()
    references = _read_references(name, folder / REFERENCES[name], content, folder / INSTANCES, summary)
    _bring_images(source, output_dir / IMAGES, references, folder / INSTANCES, copy)
    for split in SPLITS[name]:
        chosen = [reference for reference in references if reference.split == split]
        document = _document(name, chosen, content.get("categories", []))
        write_json(output_dir / instances_name(name, split), document, indent=None)
        summary.images[split] = len({reference.image["id"] for reference in chosen})
        summary.objects[split] = len(chosen)
        summary.expressions[split] = len(document["images"])
    empty = [split for split, count in summary.expressions.items() if not count]
    if empty:
        summary.notes.append(f"no expression in {', '.join(empty)}")
    return summary


def _read_references(name: str, path: Path, content: Any, instances: Path, summary: RefcocoSummary) -> list[_Reference]:
    """Read the pickle, and find image and object of each reference."""
    images, annotations = (_by_id(content, key, instances) for key in ("images", "annotations"))
    values = read_plain_pickle(path, f"the referring expressions of {name}, see {DATA_PAGE}")
    if not isinstance(values, list) or not values or not all(isinstance(value, dict) for value in values):
        raise UserError(f"{path} should hold a list of dictionaries, one for each object that is referred to")
    references = []
    for number, value in enumerate(values):
        where = f"{path}, entry {number}"
        split = _get(value, "split", str, where)
        if split not in SPLITS[name]:
            raise UserError(f"{where} is of the split {split!r}; {name} has {', '.join(SPLITS[name])}")
        image_id, ann_id = (_get(value, key, int, where) for key in ("image_id", "ann_id"))
        if image_id not in images or ann_id not in annotations or annotations[ann_id].get("image_id") != image_id:
            raise UserError(
                f"{where} refers to object {ann_id} in image {image_id}, which {instances} does not hold; take both "
                f"files from one release of {name}"
            )
        sentences = [_sentence(sentence, where) for sentence in _get(value, "sentences", list, where)]
        spoken = [(sent_id, text) for sent_id, text in sentences if text]
        if len(spoken) < len(sentences):
            summary.notes.append(f"{split}: an empty sentence of object {ann_id} is left out")
        reference_id = _get(value, "ref_id", int, where)
        references.append(_Reference(reference_id, split, images[image_id], annotations[ann_id], spoken))
    return references


def _sentence(value: Any, where: str) -> tuple[int, str]:
    if not isinstance(value, dict):
        raise UserError(f"{where} has a sentence that is no dictionary with 'sent' and 'sent_id'")
    return _get(value, "sent_id", int, where), normalise_sentence(_get(value, "sent", str, where))


def _document(name: str, references: Iterable[_Reference], categories: Any) -> dict[str, Any]:
    """A split in COCO's form, with one image entry and one annotation per expression, both numbered from 0."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for reference in references:
        image, annotation = reference.image, reference.annotation
        for sent_id, sentence in reference.sentences:
            number = len(images)
            images.append(
                {
                    "id": number,
                    "file_name": image["file_name"],
                    "height": image.get("height"),
                    "width": image.get("width"),
                    "original_id": image["id"],
                    "caption": sentence,
                    "dataset_name": name,
                    "ref_id": reference.id,
                    "sent_id": sent_id,
                }
            )
            kept = {key: annotation.get(key) for key in ("segmentation", "bbox", "area", "iscrowd", "category_id")}
            annotations.append({"id": number, "image_id": number, "original_id": annotation["id"], **kept})
    info = {"description": f"{name}, one image entry per expression"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _bring_images(source: Path, target: Path, references: list[_Reference], instances: Path, copy: bool) -> None:
    """Link or copy the images that the references need, after a look at whether all are there."""
    names = [plain_name(reference.image.get("file_name"), instances, "an image") for reference in references]
    require_files([source / name for name in names], instances)
    for name in dict.fromkeys(names):
        bring_file(source / name, target / name, copy)


def _by_id(content: Any, key: str, path: Path) -> dict[int, dict[str, Any]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and type(entry.get("id")) is int for entry in entries
    ):
        raise UserError(f"{path} should hold a list of JSON objects with an 'id' under {key!r} (see {DATA_PAGE})")
    return {entry["id"]: entry for entry in entries}


def _get(value: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """A field of the pickle, of this very type."""
    found = value.get(key)
    if type(found) is not kind:
        raise UserError(f"{where} has {key!r} {str(found)[:40]!r}; it should be of the type {kind.__name__}")
    return found
