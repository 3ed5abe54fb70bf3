"""Checks of the sets of single frames and images: A2D-Sentences, JHMDB-Sentences, RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from datasets import a2d, jhmdb
from datasets.a2d import A2dItem, read_instance_mask
from datasets.annotated_frames import Item as FrameItem
from datasets.annotated_frames import fit_mask
from datasets.annotation_files import read_coco_masks
from datasets.jhmdb import JhmdbItem, count_puppet_masks, read_puppet_mask
from datasets.reading import read_frame, require_folder
from datasets.refcoco_files import IMAGES, SPLITS, Item, draw_mask, instances_path, read_items
from scripts.data_findings import SAMPLE_FRAMES, SAMPLE_IMAGES, SAMPLE_VIDEOS, Check, Findings
from util.errors import UserError
from util.video import read_video_frames

# Of the whole datasets: videos, and by set and split expressions and images.
A2D_CLIPS = 3782
A2D_VIDEOS = {"train": 3017, "test": 737}  # that have sentences
JHMDB_VIDEOS = 928
REFCOCO = {
    "refcoco": {"train": (120624, 16994), "val": (10834, 1500), "testA": (5657, 750), "testB": (5095, 750)},
    "refcoco+": {"train": (120191, 16992), "val": (10758, 1500), "testA": (5726, 750), "testB": (4889, 750)},
    "refcocog": {"train": (80512, 21899), "val": (4896, 1300), "test": (9602, 2600)},
}
IMAGES_PER_JOB = 50

VideoItem = TypeVar("VideoItem", bound=FrameItem)


def check_a2d(root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check A2D-Sentences."""
    clips = findings.attempt(a2d.clip_folder, root)
    masks = root / "text_annotations" / "a2d_annotation_with_instances"
    findings.attempt(require_folder, masks, "a folder of h5 masks per video")
    if clips is not None:
        findings.count("clips", sum(1 for _ in clips.glob("*.mp4")), A2D_CLIPS)
    for split in splits:
        items = findings.attempt(a2d.read_items, root, split)
        if items is None:
            continue
        videos = _by_video(items)
        findings.count(f"{split}: videos with sentences", len(videos), A2D_VIDEOS[split])
        findings.count(f"{split}: items", len(items))
        truth = root / f"a2d_sentences_{split}_annotations_in_coco_format.json"
        if truth.is_file():
            findings.attempt(read_coco_masks, truth, [item.id for item in items])
        if clips is None or not masks.is_dir():
            continue
        lister = f"the list of the {split} split"
        there = set(findings.present(clips, [f"{name}.mp4" for name in videos], lister))
        for name, of_video in videos.items():
            files = [f"{item.frame:05d}.h5" for item in of_video]
            there.update(findings.present(masks / name, files, lister))
        findings.files += len(there)
        for name in findings.sample(list(videos), SAMPLE_VIDEOS):
            clip, folder = clips / f"{name}.mp4", masks / name
            chosen = [item for item in videos[name] if folder / f"{item.frame:05d}.h5" in there]
            chosen = list(findings.sample(chosen, SAMPLE_FRAMES))
            if clip in there:
                findings.open_later(1 + len({item.frame for item in chosen}), open_a2d, clip, folder, chosen)


def open_a2d(clip: Path, masks: Path, items: Sequence[A2dItem]) -> list[str]:
    """Decode a clip up to its last annotated frame, and the items' masks; a sentence for each that is broken."""
    numbers = sorted({item.frame for item in items}) or [1]
    try:
        frames, indices = read_video_frames(clip, [number - 1 for number in numbers])
    except UserError as error:
        return [str(error)]
    size, last = (frames.shape[1], frames.shape[2]), indices[-1] + 1
    faults = [f"video {clip} has {last} frames, and frame {numbers[-1]} is annotated"] if last < numbers[-1] else []
    for item in items:
        try:
            fit_mask(read_instance_mask(masks / f"{item.frame:05d}.h5", item.instance), size, item)
        except UserError as error:
            faults.append(str(error))
    return faults


def check_jhmdb(root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check JHMDB-Sentences."""
    items = findings.attempt(jhmdb.read_items, root)
    if items is None:
        return
    videos = _by_video(items)
    findings.count("videos", len(videos), JHMDB_VIDEOS)
    findings.count("items", len(items))
    scored = []
    for name, of_video in videos.items():
        first = of_video[0]
        numbers = range(1, first.length + 1)
        frames = findings.present(first.frames, [f"{number:05d}.png" for number in numbers], jhmdb.LIST_FILE)
        masks = findings.attempt(count_puppet_masks, first.masks)
        findings.files += len(frames) + (masks is not None)
        videos[name] = [item for item in of_video if masks is not None and item.frame <= masks]
        scored += videos[name]
    if len(scored) < len(items):
        findings.notes.append(f"{len(items) - len(scored)} of {len(items)} items are left out: their frame has no mask")
    truth = root / jhmdb.COCO_FILE
    if truth.is_file() and not findings.faults:
        findings.attempt(read_coco_masks, truth, [item.id for item in scored])
    for name in findings.sample(list(videos), SAMPLE_VIDEOS):
        if videos[name]:
            number = videos[name][0].length if findings.every else len({item.frame for item in videos[name]})
            findings.open_later(number + 1, open_jhmdb, videos[name], findings.every)


def open_jhmdb(items: Sequence[JhmdbItem], every: bool) -> list[str]:
    """Decode a video's annotated frames, or all of them, and the items' masks; a sentence for each that is broken."""
    faults, annotated = [], {item.frame: item for item in items}
    for number in range(1, items[0].length + 1) if every else annotated:
        path = items[0].frames / f"{number:05d}.png"
        if not path.is_file():
            continue  # it is a fault already
        try:
            height, width = read_frame(path).shape[-2:]
            if number in annotated:
                item = annotated[number]
                fit_mask(read_puppet_mask(item.masks, number), (height, width), item)
        except UserError as error:
            faults.append(str(error))
    return faults


def check_refcoco(name: str, root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check RefCOCO, RefCOCO+ or RefCOCOg."""
    folder = findings.attempt(require_folder, root / IMAGES, "the training images of COCO 2014")
    for split in splits:
        items = findings.attempt(read_items, root, name, split)
        if items is None:
            continue
        of_image: dict[str, list[Item]] = {}
        for item in items:
            of_image.setdefault(item["file_name"], []).append(item)
        expressions, images = REFCOCO[name][split]
        findings.count(f"{split}: expressions", len(items), expressions)
        findings.count(f"{split}: images", len(of_image), images)
        if folder is None:
            continue
        present = findings.present(folder, of_image, instances_path(root, name, split).name)
        findings.files += len(present)
        chosen = findings.sample(present, SAMPLE_IMAGES)
        for start in range(0, len(chosen), IMAGES_PER_JOB):
            part = {path: of_image[path.name] for path in chosen[start : start + IMAGES_PER_JOB]}
            findings.open_later(len(part), open_images, part, name, split)


def open_images(images: dict[Path, list[Item]], name: str, split: str) -> list[str]:
    """Decode images, and draw the objects of their expressions; a sentence for each that is broken."""
    faults = []
    for path, items in images.items():
        try:
            size = tuple(read_frame(path).shape[-2:])
        except UserError as error:
            faults.append(str(error))
            continue
        for item in items:
            try:
                mask = draw_mask(item, name, split)
            except UserError as error:
                faults.append(str(error))
                continue
            if mask.shape != size:
                faults.append(f"image {path} is of {size} pixels, and image entry {item['id']} says {mask.shape}")
                break
    return faults


def _by_video(items: Sequence[VideoItem]) -> dict[str, list[VideoItem]]:
    videos: dict[str, list[VideoItem]] = {}
    for item in items:
        videos.setdefault(item.video, []).append(item)
    return videos


CHECKS = {
    "a2d": Check(check_a2d, a2d.SPLITS),
    "jhmdb": Check(check_jhmdb, ("test",)),
    **{name: Check(partial(check_refcoco, name), splits) for name, splits in SPLITS.items()},
}
