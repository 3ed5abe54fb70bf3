"""Ref-DAVIS17: conversion to the layout of Ref-YouTube-VOS, clips, videos, scores and checks (docs/data.md).

The conversion runs without PyTorch, so the functions that need ``datasets.ytvos`` import it when they are called.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.checks import Findings
from datasets.evaluators import Scorer
from datasets.expressions import read_expressions
from datasets.files import (
    DATA_PAGE,
    Conversion,
    Video,
    read_names,
    read_text,
    require_files,
    require_folder,
    video_folders,
    visible,
)
from datasets.predictions import davis_object, frame_size, read_index_mask
from datasets.registry import Dataset, root_of
from datasets.scoring import score_ref_davis
from util.errors import UserError
from util.files import bring_file, read_json, write_json
from util.parallel import map_videos

if TYPE_CHECKING:
    from datasets.ytvos import YtvosClips
    from util.config import Config

LISTS = {"train": "train.txt", "valid": "val.txt"}  # of DAVIS/ImageSets/2017, by split
# Files and encodings by annotation number a = 0…3; an expression's id is 4 · (object id − 1) + a.
ANNOTATIONS = (
    ("Davis17_annot1.txt", "utf-8"),
    ("Davis17_annot1_full_video.txt", "utf-8"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
VOID = 255

_NUMBER = re.compile("0|[1-9][0-9]*")
_LINE = re.compile(r'(?P<video>[^\s/\\]+)\s+(?P<obj_id>[0-9]+)\s+"(?P<exp>.*\S.*)"')


# video → object id → annotation number → sentence
Sentences = dict[str, dict[int, dict[int, str]]]


def build_clips(cfg: Config, split: str) -> YtvosClips:
    """Build training clips (``train``) or whole videos (``valid``) of the converted dataset."""
    from datasets import ytvos

    return ytvos.build_clips(cfg, split)


def build_videos(cfg: Config) -> list[Video]:
    """List the videos of ``cfg.split`` of the converted dataset.

    Raises:
        UserError: a file is missing or malformed, or expressions are not numbered 4 · (object id − 1) + a.
    """
    from datasets import ytvos

    videos = ytvos.build_videos(cfg)
    _require_numbers({video.name: video.expressions for video in videos}, root_of(cfg))
    return videos


def build_scorer(cfg: Config) -> Scorer:
    """Find the ground truth of ``cfg.split``; the returned function scores the masks in ``cfg.output_dir``.

    Raises:
        UserError: the ground truth is missing.
    """
    names = [video.name for video in build_videos(cfg) if video.expressions]
    annotations = root_of(cfg) / cfg.split / "Annotations"
    ground_truth = video_folders(require_folder(annotations, "a folder of palette PNG masks per video"))
    require_files([ground_truth / name for name in names], "the expressions file")
    return partial(score_ref_davis, ground_truth, Path(cfg.output_dir), names)


def _require_numbers(videos: Mapping[str, Iterable[str]], root: Path) -> None:
    """Raise a ``UserError`` if an expression id of a video is not 4 · (object id − 1) + a."""
    for name, expressions in videos.items():
        for exp_id in expressions:
            if not _NUMBER.fullmatch(exp_id) or davis_object(exp_id) >= VOID:
                raise UserError(
                    f"expression {exp_id!r} of video {name!r} in {root} is not numbered as in Ref-DAVIS17, "
                    f"4 · (object id − 1) + a; make the folder by scripts.prepare_data (see {DATA_PAGE})"
                )


def convert_davis(davis_root: str | Path, output_dir: str | Path, copy: bool = False, workers: int = 1) -> Conversion:
    """Convert Ref-DAVIS17 to the layout of Ref-YouTube-VOS. The source is only read; a second run completes the result.

    Args:
        davis_root: the folder that holds ``DAVIS/`` and ``davis_text_annotations/``.
        output_dir: gets ``{train,valid}/{JPEGImages,Annotations}/<video>/``, ``{train,valid}/meta.json`` and
            ``meta_expressions/{train,valid}/meta_expressions.json``, with ``obj_id`` in both.
        copy: copy the images. Otherwise they are symbolic links to the source, or copies on a file system without
            links.

    Raises:
        UserError: a file or folder is missing, malformed or broken.
    """
    davis_root, output_dir = Path(davis_root), Path(output_dir)
    if (davis_root / "JPEGImages").is_dir() and not (davis_root / "DAVIS").is_dir():
        raise UserError(f"{davis_root} is the folder DAVIS itself; give the one that holds it")
    require_folder(davis_root, "the folders DAVIS and davis_text_annotations")
    davis = require_folder(davis_root / "DAVIS", "the DAVIS-2017 folders JPEGImages, Annotations_unsupervised, …")
    splits = {split: read_names(davis / "ImageSets" / "2017" / name) for split, name in LISTS.items()}
    _require_own(output_dir, set().union(*splits.values()))
    categories = _read_categories(davis / "davis_semantics.json")
    sentences = read_davis_sentences(davis_root / "davis_text_annotations")
    summary = Conversion()
    for split, names in splits.items():
        write = partial(_convert_video, davis, output_dir / split, copy)
        videos = dict(zip(names, map_videos(write, names, workers), strict=True))
        meta = {
            name: {
                "objects": {
                    str(obj_id): {"category": categories.get(name, {}).get(str(obj_id), "unknown"), "frames": frames}
                    for obj_id, frames in video.objects.items()
                }
            }
            for name, video in videos.items()
        }
        write_json(output_dir / split / "meta.json", {"videos": meta})
        expressions = {
            name: {"frames": video.frames, "expressions": _number(name, video, sentences.get(name, {}), summary)}
            for name, video in videos.items()
        }
        # A video without expressions keeps its frames and masks but is not listed.
        expressions = {name: video for name, video in expressions.items() if video["expressions"]}
        write_json(output_dir / "meta_expressions" / split / "meta_expressions.json", {"videos": expressions})
        summary.videos[split] = len(videos)
        summary.expressions[split] = sum(len(video["expressions"]) for video in expressions.values())
        summary.frames[split] = sum(len(video.frames) for video in videos.values())
        silent = [name for name in names if name not in expressions]
        if silent:
            summary.notes.append(f"{split}: no expression for {len(silent)} videos ({', '.join(silent)})")
    foreign = sorted(set(sentences) - set().union(*splits.values()))
    if foreign:
        summary.notes.append(f"expressions of {len(foreign)} videos of neither split left out ({', '.join(foreign)})")
    return summary


def _require_own(folder: Path, names: Collection[str]) -> None:
    """Raise a ``UserError`` if a folder holds a different dataset, whose lists would be overwritten."""
    for split in ("train", "valid", "test"):
        listed = folder / "meta_expressions" / split / "meta_expressions.json"
        other = set(read_expressions(listed, split)) - set(names) if listed.is_file() else set()
        if other:
            raise UserError(f"{folder} holds another dataset, with the video {min(other)}; choose another --output_dir")


def read_davis_sentences(folder: Path) -> Sentences:
    """Read the four text files: video → object id → annotation number 0…3 → sentence. Misspelt videos are corrected.

    Raises:
        UserError: a file is missing or a line is malformed.
    """
    require_folder(folder, f"the expressions of Ref-DAVIS17 ({', '.join(name for name, _ in ANNOTATIONS)})")
    sentences: Sentences = {}
    for annotation, (name, encoding) in enumerate(ANNOTATIONS):
        path = folder / name
        for number, line in enumerate(read_text(path, "expressions", encoding).splitlines(), start=1):
            if not line.strip():
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None or not 1 <= int(match["obj_id"]) < VOID:
                raise UserError(
                    f'{path}, line {number} is {line.strip()[:80]!r}; it should be: <video> <object id> "<expression>"'
                )
            video = MISSPELT.get(match["video"], match["video"])
            objects = sentences.setdefault(video, {}).setdefault(int(match["obj_id"]), {})
            if annotation in objects:
                raise UserError(
                    f"{path}, line {number} is a second expression for object {match['obj_id']} of {video}; remove one"
                )
            objects[annotation] = " ".join(match["exp"].split())
    return sentences


@dataclass(frozen=True)
class _Video:
    frames: list[str]
    objects: dict[int, list[str]]  # id → frames in which it is visible


def _convert_video(davis: Path, target: Path, copy: bool, name: str) -> _Video:
    """Link a video's frames and masks into ``target``, and read the masks to find the objects and broken files."""
    images = require_folder(davis / "JPEGImages" / "480p" / name, f"the frames of {name} as JPEG files")
    masks = require_folder(davis / "Annotations_unsupervised" / "480p" / name, f"the masks of {name} as PNG files")
    frames = [path.stem for path in visible(images.glob("*.jpg"))]
    if not frames:
        raise UserError(f"{images} holds no JPEG file; it should hold the frames of {name} (see {DATA_PAGE})")
    objects: dict[int, list[str]] = {}
    for frame in frames:
        image, mask = images / f"{frame}.jpg", masks / f"{frame}.png"
        ids = read_index_mask(mask, frame_size(image))
        for obj_id in np.unique(ids).tolist():
            if obj_id not in (0, VOID):
                objects.setdefault(obj_id, []).append(frame)
        bring_file(image, target / "JPEGImages" / name / image.name, copy)
        bring_file(mask, target / "Annotations" / name / mask.name, copy)
    return _Video(frames, dict(sorted(objects.items())))


def _number(
    name: str, video: _Video, sentences: dict[int, dict[int, str]], summary: Conversion
) -> dict[str, dict[str, str]]:
    """Number a video's expressions. Objects without a mask are left out, with a note."""
    expressions = {}
    for obj_id, by_number in sorted(sentences.items()):
        if obj_id not in video.objects:
            summary.notes.append(f"object {obj_id} of {name} has expressions but no mask; they are left out")
            continue
        if len(by_number) < len(ANNOTATIONS):
            missing = [ANNOTATIONS[number][0] for number in range(len(ANNOTATIONS)) if number not in by_number]
            summary.notes.append(f"object {obj_id} of {name} has no expression in {', '.join(missing)}")
        for number, sentence in sorted(by_number.items()):
            exp_id = len(ANNOTATIONS) * (obj_id - 1) + number
            expressions[str(exp_id)] = {"exp": sentence, "obj_id": str(obj_id)}
    return expressions


def _read_categories(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():  # it is distributed on its own, and nothing here needs it
        return {}
    categories = read_json(path, "the category of every object: {video: {object id: category}}")
    if not isinstance(categories, dict) or not all(isinstance(objects, dict) for objects in categories.values()):
        raise UserError(f"{path} has a different structure; it should hold {{video: {{object id: category}}}}")
    return categories


def check(row: Dataset, root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check Ref-DAVIS17 as it is distributed, if there is a folder ``DAVIS``, or as it is converted."""
    from datasets import ytvos

    if (root / "DAVIS").is_dir():
        _check_distributed(row, root, splits, findings)
    elif (root / "meta_expressions").is_dir():
        for split in splits:
            if ytvos.check_split(root, split, findings, row.splits[split]):
                videos = ytvos.list_split(root, split, challenge=False)
                findings.attempt(_require_numbers, {name: video.expressions for name, video in videos.items()}, root)
    else:
        findings.faults.append(
            f"{root} holds neither DAVIS/ (Ref-DAVIS17 as it is distributed) nor meta_expressions/ (as "
            "scripts.prepare_data converts it); name another folder"
        )


def _check_distributed(row: Dataset, root: Path, splits: Sequence[str], findings: Findings) -> None:
    folder = root / "DAVIS"
    sentences = findings.attempt(read_davis_sentences, root / "davis_text_annotations") or {}
    findings.attempt(_read_categories, folder / "davis_semantics.json")
    for split in splits:
        listed = folder / "ImageSets" / "2017" / LISTS[split]
        names = findings.attempt(read_names, listed) or []
        frames, masks = {}, {}
        for name in names:
            images = folder / "JPEGImages" / "480p" / name
            frames[name] = visible(images.glob("*.jpg"))
            if not frames[name]:
                findings.faults.append(f"{images} is missing or without JPEG files, and {listed} lists the video")
            files = [f"{path.stem}.png" for path in frames[name]]
            annotations = folder / "Annotations_unsupervised" / "480p" / name
            masks[name] = findings.present(annotations, files, str(listed if not files else images))
        expressions = sum(len(texts) for name in names for texts in sentences.get(name, {}).values())
        findings.count(f"{split}: videos", len(names), row.splits[split].videos)
        findings.count(f"{split}: expressions", expressions)
        findings.count(f"{split}: frames", sum(map(len, frames.values())), row.splits[split].frames)
        findings.open_videos(frames, masks)
