"""RefCOCO, RefCOCO+ and RefCOCOg: files, clips made of images, evaluation, conversion and checks (docs/data.md).

The loader reads ``train2014/`` and, per set and split, ``instances_<set>_<split>.json``: a COCO file with one image
entry per expression (``caption``) and one annotation for each, its object. The conversion makes these files from the
distributed ones: ``refs(unc).p`` or ``refs(umd).p``, a pickle of the object of each expression, and ``instances.json``,
COCO's images and objects.

An item's id, ``target["exp_id"]``, is ``<set>_<split>_<id of its image entry>``: unique over all sets, and different
for equal sentences. ``target["video"]`` is the image's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from datasets.checks import SAMPLE_IMAGES, Findings, Remark, faults_of
from datasets.clip import ClipDataset, Sample, make_target
from datasets.evaluators import RefcocoEvaluator, ReferredObject
from datasets.files import (
    DATA_PAGE,
    Conversion,
    PackedItems,
    and_more,
    coco_entries,
    decode_segmentation,
    is_area,
    plain_name,
    read_frame,
    require_files,
    require_folder,
)
from datasets.image_motion import ImageMotion
from datasets.registry import DATASETS, Dataset, root_of
from datasets.transforms import ClipTransform, build_transform
from util.errors import UserError
from util.files import bring_file, read_json, read_plain_pickle, write_json
from util.text import normalise_sentence

if TYPE_CHECKING:
    from util.config import Config

SPLITS = {name: tuple(row.splits) for name, row in DATASETS.items() if row.module == "refcoco"}
IMAGES = "train2014"
REFERENCES = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
INSTANCES = "instances.json"
IMAGES_PER_JOB = 50


class Item(TypedDict):
    """An expression and its object."""

    id: int  # of the image entry, unique in its file
    file_name: str
    height: int  # of the image, pixels
    width: int
    caption: str  # normalised
    segmentation: Any  # as COCO writes it
    bbox: list[float]  # x, y, width, height in pixels


def instances_path(root: Path, name: str, split: str) -> Path:
    """Return the path of a split's file: in ``root``, or in ``root/<set>`` if it exists only there."""
    file = instances_name(name, split)
    inner = root / name / file
    return inner if inner.is_file() and not (root / file).is_file() else root / file


def instances_name(name: str, split: str) -> str:
    """Return the name of a split's file."""
    return f"instances_{name}_{split}.json"


def read_items(root: Path, name: str, split: str) -> list[Item]:
    """Read the items of a split in the order of its file; segmentations are checked when they are drawn.

    Raises:
        UserError: the file is missing, not JSON or has a different structure, or an entry is malformed.
    """
    path = instances_path(root, name, split)
    what = f"the {split} expressions of {name}, as `python -m scripts.prepare_data {name}` writes them"
    content = read_json(path, f"{what}, see {DATA_PAGE}")
    images, annotations = (coco_entries(content, key, path) for key in ("images", "annotations"))
    objects: dict[str, dict[str, Any]] = {}
    for annotation in annotations:
        number = annotation.get("image_id")
        if str(number) in objects:
            raise UserError(f"{path}: image entry {number} has two annotations; an expression has one object")
        objects[str(number)] = annotation
    items = []
    for image in images:
        where = f"image entry {image.get('id')}"
        annotation = objects.get(str(image.get("id")), {})
        if not annotation:
            raise UserError(
                f"{path}: {where} has no annotation; one with its id as 'image_id' should outline its object"
            )
        try:
            items.append(_item(image, annotation, plain_name(image.get("file_name"), path, f"the file of {where}")))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{path}: {where} is malformed ({error}); it should have a 'caption' that is not empty, whole numbers "
                "'id', 'height' and 'width', and an annotation with a 'bbox' of x, y, width and height in pixels"
            ) from error
    if not items:
        raise UserError(f"{path} lists no image entry; it should hold {what}")
    if len({item["id"] for item in items}) < len(items):
        raise UserError(f"{path}: two image entries share an id; each expression has its own entry and id")
    return items


def item_id(item: Item, name: str, split: str) -> str:
    """Return an item's id in predictions and results."""
    return f"{name}_{split}_{item['id']}"


def read_image(path: Path, item: Item, name: str) -> Tensor:
    """Read an item's image, uint8 ``[3, H, W]``.

    Raises:
        UserError: it is missing or broken, or its size is not that of the annotations.
    """
    image = read_frame(path)
    height, width = image.shape[-2:]
    if (height, width) != (item["height"], item["width"]):
        raise UserError(
            f"image {path} is of {width}×{height} pixels, and the annotations of {name} say "
            f"{item['width']}×{item['height']}; take both from one release of the dataset"
        )
    return image


def draw_mask(item: Item, name: str, split: str) -> np.ndarray:
    """Draw an item's object, bool ``[H, W]``.

    Raises:
        UserError: its segmentation is malformed.
    """
    where = f"image entry {item['id']} of {instances_name(name, split)}"
    return decode_segmentation(item["segmentation"], item["height"], item["width"], where)


def outline_remark(segmentation: Any, mask: np.ndarray, where: str) -> str:
    """Return a sentence for an outline that covers no pixel or has parts of fewer than three corners; else empty."""
    if not mask.any():
        return f"{where} has an outline that covers no pixel"
    if isinstance(segmentation, list) and not all(map(is_area, segmentation)):
        return f"{where} has a part of fewer than three corners in its outline, which draws nothing"
    return ""


def _item(image: dict[str, Any], annotation: dict[str, Any], file_name: str) -> Item:
    """Build an item; wrong values raise any of Python's errors about them."""
    x, y, width, height = map(float, annotation["bbox"])
    item = Item(
        id=int(image["id"]),
        file_name=file_name,
        height=int(image["height"]),
        width=int(image["width"]),
        caption=normalise_sentence(image["caption"]),
        segmentation=annotation.get("segmentation"),
        bbox=[x, y, width, height],
    )
    if not item["caption"] or min(width, height) < 0 or min(item["height"], item["width"]) < 1:
        raise ValueError("an empty caption or size")
    return item


class RefcocoImages(ClipDataset):
    """Images with one referred object each, as clips of ``num_frames`` with a motion or as single frames.

    Args:
        root: the folder of ``train2014/`` and ``instances_<set>_<split>.json``.
        name: refcoco, refcoco+ or refcocog.
        split: train, val, testA, testB or test.
        motion: makes a clip of an image. If None, an item is the image alone, and none is replaced.

    Raises:
        UserError: a folder, file or image is missing, or a file is malformed; images are checked when they are read.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        split: str,
        transform: ClipTransform,
        motion: ImageMotion | None = None,
        num_frames: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed, replace_invisible=motion is not None)
        assert motion is not None or num_frames == 1
        self.name, self.split = name, split
        self.transform, self.motion, self.num_frames = transform, motion, num_frames
        items = read_items(root, name, split)
        self.images = require_folder(root / IMAGES, "the training images of COCO 2014")
        require_files([self.images / item["file_name"] for item in items], instances_path(root, name, split))
        self._items = PackedItems(items)

    def __len__(self) -> int:
        return len(self._items)

    def captions(self) -> Iterable[str]:
        """The sentences of all items."""
        return (self._items[index]["caption"] for index in range(len(self)))

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform item ``index``.

        Raises:
            UserError: the image is missing, broken or has a different size, or its segmentation is malformed.
        """
        item: Item = self._items[index]
        path = self.images / item["file_name"]
        image = read_image(path, item, self.name)
        height, width = image.shape[-2:]
        mask = torch.from_numpy(draw_mask(item, self.name, self.split))
        frames, masks = (
            (image[None], mask[None]) if self.motion is None else self.motion(image, mask, self.num_frames, rng)
        )
        frames, masks, caption = self.transform(frames, masks, item["caption"], rng)
        target = make_target(
            masks,
            caption=caption,
            orig_size=(height, width),
            video=path.stem,
            exp_id=item_id(item, self.name, self.split),
            frame_names=[path.stem] * len(frames),
        )
        if self.motion is None:
            target["annotated"] = 0
        return frames, target


def build_clips(cfg: Config, split: str) -> RefcocoImages:
    """Build the clips (``train``) or the single images (another split) of the set ``cfg.dataset_file``."""
    root, train = root_of(cfg), split == "train"
    transform = build_transform(cfg, train)
    if not train:
        return RefcocoImages(root, cfg.dataset_file, split, transform)
    motion = ImageMotion() if cfg.colour_distortion else ImageMotion(light=0)
    return RefcocoImages(root, cfg.dataset_file, split, transform, motion, cfg.num_frames, cfg.seed)


def build_evaluator(cfg: Config) -> RefcocoEvaluator:
    """Build the evaluator with the ground truth of ``cfg.split``, drawn at the images' original size when needed."""
    name, split = cfg.dataset_file, cfg.split
    items = PackedItems(read_items(root_of(cfg), name, split))
    positions = {item_id(item, name, split): position for position, item in enumerate(items)}

    def ground_truth(wanted: str) -> ReferredObject:
        item: Item = items[positions[wanted]]
        x, y, width, height = item["bbox"]
        return ReferredObject(draw_mask(item, name, split), np.array([x, y, x + width, y + height]))

    return RefcocoEvaluator(list(positions), ground_truth)


@dataclass(frozen=True)
class _Reference:
    """An object and its sentences."""

    id: int
    split: str
    image: dict[str, Any]  # its entries in instances.json
    annotation: dict[str, Any]
    sentences: list[tuple[int, str]]  # id and text


def convert_refcoco(
    name: str, refer_root: str | Path, output_dir: str | Path, images: str | Path | None = None, copy: bool = False
) -> Conversion:
    """Write ``train2014/`` and ``instances_<set>_<split>.json`` of a set. The source is only read.

    Args:
        name: refcoco, refcoco+ or refcocog.
        refer_root: has ``refs(…).p`` and ``instances.json``, or a folder with the set's name that has them.
        output_dir: the folder of the result, which the three sets can share.
        images: COCO's training images of 2014; those that the set needs are linked in ``output_dir/train2014``. If
            None, they are already there.
        copy: copy the images. Otherwise they are symbolic links, or copies on a file system without links.

    Raises:
        UserError: a file is missing, malformed or an unsafe pickle.
    """
    refer_root, output_dir = Path(refer_root), Path(output_dir)
    require_folder(refer_root, f"{REFERENCES[name]} and {INSTANCES} of {name}, or a folder {name} with them")
    folder = refer_root / name if (refer_root / name).is_dir() else refer_root
    source = require_folder(Path(images) if images else output_dir / IMAGES, "the training images of COCO 2014")
    content = read_json(folder / INSTANCES, f"COCO's images and objects of {name} (see {DATA_PAGE})")
    summary = Conversion()
    references = _read_references(name, folder / REFERENCES[name], content, folder / INSTANCES, summary)
    names = {plain_name(reference.image.get("file_name"), folder / INSTANCES, "an image") for reference in references}
    require_files([source / file for file in sorted(names)], folder / INSTANCES)
    for file in sorted(names):
        bring_file(source / file, output_dir / IMAGES / file, copy)
    summary.notes += _outline_notes(references, folder / INSTANCES)
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


def _read_references(name: str, path: Path, content: Any, instances: Path, summary: Conversion) -> list[_Reference]:
    """Read the pickle, and find the image and the object of each reference."""
    images, annotations = (
        {entry.get("id"): entry for entry in coco_entries(content, key, instances)} for key in ("images", "annotations")
    )
    values = read_plain_pickle(path, f"the referring expressions of {name}, see {DATA_PAGE}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{path} should hold a list of dictionaries, one for each object that is referred to")
    references = []
    for number, value in enumerate(values):
        where = f"{path}, entry {number}"
        try:
            split, image_id, ann_id, ref_id = (value[key] for key in ("split", "image_id", "ann_id", "ref_id"))
            sentences = [(entry["sent_id"], normalise_sentence(entry["sent"])) for entry in value["sentences"]]
            unknown = image_id not in images or annotations.get(ann_id, {}).get("image_id") != image_id
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where} is malformed ({error}); it should have 'split', 'image_id', 'ann_id', 'ref_id' and "
                "'sentences', each with 'sent_id' and 'sent'"
            ) from error
        if split not in SPLITS[name]:
            raise UserError(f"{where} is of the split {split!r}; {name} has {', '.join(SPLITS[name])}")
        if unknown:
            raise UserError(
                f"{where} refers to object {ann_id} in image {image_id}, which {instances} does not hold; take both "
                f"files from one release of {name}"
            )
        spoken = [(sent_id, text) for sent_id, text in sentences if text]
        if len(spoken) < len(sentences):
            summary.notes.append(f"{split}: an empty sentence of object {ann_id} is left out")
        references.append(_Reference(ref_id, split, images[image_id], annotations[ann_id], spoken))
    return references


def _outline_notes(references: Sequence[_Reference], instances: Path) -> list[str]:
    """Return a note if the outlines of objects cannot be drawn, or draw less than they list."""
    found = []
    for reference in references:
        outline, image = reference.annotation.get("segmentation"), reference.image
        where = f"{instances}: object {reference.annotation['id']} in image {image['id']}"
        try:
            mask = decode_segmentation(outline, image.get("height", 0), image.get("width", 0), where)
            remark = outline_remark(outline, mask, where)
        except UserError as error:
            remark = str(error)
        found += [remark] if remark else []
    return [f"{found[0]}{and_more(found)}"] if found else []


def _document(name: str, references: Iterable[_Reference], categories: Any) -> dict[str, Any]:
    """Return a split as COCO file, with one image entry and one annotation per expression, both numbered from 0."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for reference in references:
        image, annotation = reference.image, reference.annotation
        for sent_id, sentence in reference.sentences:
            number = len(images)
            size = {key: image.get(key) for key in ("file_name", "height", "width")}
            origin = {"dataset_name": name, "ref_id": reference.id, "sent_id": sent_id}
            images.append({"id": number, **size, "original_id": image["id"], "caption": sentence, **origin})
            kept = {key: annotation.get(key) for key in ("segmentation", "bbox", "area", "iscrowd", "category_id")}
            annotations.append({"id": number, "image_id": number, "original_id": annotation["id"], **kept})
    info = {"description": f"{name}, one image entry per expression"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def check(row: Dataset, root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check RefCOCO, RefCOCO+ or RefCOCOg."""
    folder = findings.attempt(require_folder, root / IMAGES, "the training images of COCO 2014")
    for split in splits:
        items = findings.attempt(read_items, root, row.name, split)
        if items is None:
            continue
        of_image: dict[str, list[Item]] = {}
        for item in items:
            of_image.setdefault(item["file_name"], []).append(item)
        findings.count(f"{split}: expressions", len(items), row.splits[split].expressions)
        findings.count(f"{split}: images", len(of_image), row.splits[split].videos)
        if folder is None:
            continue
        present = findings.present(folder, of_image, instances_path(root, row.name, split).name)
        findings.files += len(present)
        chosen = findings.sample(present, SAMPLE_IMAGES)
        for start in range(0, len(chosen), IMAGES_PER_JOB):
            part = chosen[start : start + IMAGES_PER_JOB]
            reads: list[Callable[[], object]] = []
            for path in part:
                reads.append(partial(read_image, path, of_image[path.name][0], row.name))
                reads += [partial(check_outline, item, row.name, split) for item in of_image[path.name]]
            findings.open_later(len(part), faults_of, reads)


def check_outline(item: Item, name: str, split: str) -> None:
    """Draw an item's object.

    Raises:
        UserError: it cannot be drawn.
        Remark: less is drawn than its outline lists.
    """
    where = f"image entry {item['id']} of {instances_name(name, split)}"
    if remark := outline_remark(item["segmentation"], draw_mask(item, name, split), where):
        raise Remark(remark)
