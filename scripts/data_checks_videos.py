"""Checks of the sets of whole videos: Ref-YouTube-VOS, Ref-DAVIS17 (distributed and converted), MeViS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import davis, mevis_files, ytvos
from datasets.expressions import Entry, read_expressions
from datasets.mevis_files import InstanceMasks, MevisEntry, unite
from datasets.reading import read_frame, require_folder
from datasets.scoring import MASK_FILE, default_expressions, read_sequences
from datasets.transforms import EvalTransform
from scripts.data_findings import SAMPLE_FRAMES, SAMPLE_VIDEOS, Check, Findings
from util.config import Config
from util.errors import UserError
from util.io import read_json


@dataclass(frozen=True)
class Known:
    """What a split of the whole dataset has, where it is published."""

    videos: int
    expressions: int | None = None
    frames: int | None = None


YTVOS = {"train": Known(3471, expressions=12913), "valid": Known(202), "test": Known(305)}
YTVOS_LISTED = 507  # videos in the challenge's file of the valid split
DAVIS = {"train": Known(60, frames=4209), "valid": Known(30, frames=1999)}
MEVIS = {"train": Known(1662), "valid_u": Known(50), "valid": Known(140)}


def check_ytvos(root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check Ref-YouTube-VOS. It can be used without the masks of ``valid`` and the file of ``test``; a note says so."""
    for split in splits:
        listed = default_expressions(root / split / "Annotations")
        if split == "test":
            if listed.is_file():
                videos = findings.attempt(read_expressions, listed, split)
                findings.count("test: videos", len(videos or ()), YTVOS[split].videos)
            else:
                findings.notes.append(f"{listed} is missing: valid is then taken to be the videos that have a folder")
            continue
        if split == "valid" and listed.is_file():
            everything = findings.attempt(read_expressions, listed, split)
            if everything is None:
                continue
            findings.count("valid: videos in its file", len(everything), YTVOS_LISTED)
        _check_layout(root, split, findings, YTVOS[split], challenge=True)


def check_davis(root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check Ref-DAVIS17 as it is distributed, where there is a folder ``DAVIS``, or as it is converted."""
    if (root / "DAVIS").is_dir():
        _check_distributed_davis(root, splits, findings)
    elif (root / "meta_expressions").is_dir():
        for split in splits:
            if _check_layout(root, split, findings, DAVIS[split], challenge=False):
                cfg = Config(dataset_file="davis", davis_path=str(root), split=split)
                findings.attempt(davis.build_videos, cfg)
    else:
        findings.faults.append(
            f"{root} holds neither DAVIS/ (Ref-DAVIS17 as it is distributed) nor meta_expressions/ (as "
            "scripts.prepare_data converts it); name another folder"
        )


def check_mevis(root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check MeViS, version 1 or 2; ``valid`` has no masks."""
    for split in splits:
        videos = findings.attempt(mevis_files.list_split, root, split)
        if videos is None:
            continue
        _count(findings, split, videos, MEVIS[split])
        frames = _present(root / split / "JPEGImages", videos, ".jpg", findings)
        findings.files += sum(map(len, frames.values()))
        masks = None if split == "valid" else findings.attempt(InstanceMasks, root / split / MASK_FILE)
        if masks is not None and not _has_all(masks, videos, root / split, findings):
            masks = None
        for name in findings.sample(list(videos), SAMPLE_VIDEOS):
            chosen = findings.sample(frames[name], SAMPLE_FRAMES)
            shown = _segmentations(masks, videos[name], chosen)
            where = f"{root / split / MASK_FILE}, video {name!r}"
            findings.open_later(len(chosen), open_instances, chosen, shown, where)


def open_instances(frames: Sequence[Path], shown: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Decode frames and, for each, the run lengths of its instances; a sentence for each that is broken."""
    faults = []
    for path, instances in zip(frames, shown, strict=True):
        try:
            height, width = read_frame(path).shape[-2:]
            unite(instances, (height, width), f"{where}, frame {path.stem}")
        except UserError as error:
            faults.append(str(error))
    return faults


def _check_layout(root: Path, split: str, findings: Findings, known: Known, challenge: bool) -> bool:
    """Check a split in the layout of Ref-YouTube-VOS, whose own ``valid`` may lack masks; whether all is there."""
    before, masks_needed = len(findings.faults), split == "train" or not challenge
    videos = findings.attempt(ytvos.list_split, root, split, None, challenge)
    if videos is None:
        return False
    _count(findings, split, videos, known)
    annotations = root / split / "Annotations"
    frames = _present(root / split / "JPEGImages", videos, ".jpg", findings)
    masks: dict[str, list[Path]] = {}
    if masks_needed or annotations.is_dir():
        masks = _present(annotations, videos, ".png", findings)
    else:
        findings.notes.append(f"{annotations} is missing: the {split} split cannot be scored without its masks")
    answers = [e.negative or e.obj_id is not None for video in videos.values() for e in video.expressions.values()]
    if not (masks_needed or all(answers)):
        findings.notes.append(
            f"{answers.count(False)} expressions of the {split} split have no 'obj_id': scores need a file that has it"
        )
    elif masks and len(findings.faults) == before:
        # all else that the loader demands
        findings.attempt(partial(ytvos.YtvosClips, root, split, EvalTransform(), None, challenge=challenge))
    findings.open_videos(frames, masks)
    return len(findings.faults) == before


def _check_distributed_davis(root: Path, splits: Sequence[str], findings: Findings) -> None:
    folder = root / "DAVIS"
    sentences = findings.attempt(davis.read_davis_sentences, root / "davis_text_annotations") or {}
    findings.attempt(read_json, folder / "davis_semantics.json", "the category of every object")
    for split in splits:
        listed = folder / "ImageSets" / "2017" / davis.SPLITS[split]
        names = findings.attempt(read_sequences, listed) or []
        frames, masks = {}, {}
        for name in names:
            images = folder / "JPEGImages" / "480p" / name
            frames[name] = sorted(images.glob("*.jpg"))
            if not frames[name]:
                findings.faults.append(f"{images} is missing or without JPEG files, and {listed} lists the video")
            files = [f"{path.stem}.png" for path in frames[name]]
            annotations = folder / "Annotations_unsupervised" / "480p" / name
            masks[name] = findings.present(annotations, files, str(listed if not files else images))
        expressions = sum(len(texts) for name in names for texts in sentences.get(name, {}).values())
        findings.count(f"{split}: videos", len(names), DAVIS[split].videos)
        findings.count(f"{split}: expressions", expressions)
        findings.count(f"{split}: frames", sum(map(len, frames.values())), DAVIS[split].frames)
        findings.open_videos(frames, masks)


def _count(findings: Findings, split: str, videos: Mapping[str, Entry[Any]], known: Known) -> None:
    findings.count(f"{split}: videos", len(videos), known.videos)
    findings.count(f"{split}: expressions", sum(len(v.expressions) for v in videos.values()), known.expressions)
    findings.count(f"{split}: frames", sum(len(v.frames) for v in videos.values()), known.frames)


def _present(folder: Path, videos: Mapping[str, Entry[Any]], suffix: str, findings: Findings) -> dict[str, list[Path]]:
    """The files ``<folder>/<video>/<frame><suffix>`` that are there, by video."""
    if findings.attempt(require_folder, folder, f"<video>/<frame>{suffix}") is None:
        return {name: [] for name in videos}
    lister = "the expressions file"
    return {
        name: findings.present(folder / name, [f"{frame}{suffix}" for frame in video.frames], lister)
        for name, video in videos.items()
    }


def _has_all(masks: InstanceMasks, videos: Mapping[str, MevisEntry], folder: Path, findings: Findings) -> bool:
    """Whether the masks of all that the expressions name are there; a fault for each expression that lacks some."""
    before = len(findings.faults)
    for name, video in videos.items():
        for exp_id, expression in video.expressions.items():
            where = f"expression {exp_id!r} of video {name!r}"
            if expression.instances is None:
                findings.faults.append(f"{folder / 'meta_expressions.json'}: {where} has no 'anno_id'")
            else:
                findings.attempt(masks.require, expression.instances, len(video.frames), where)
    return len(findings.faults) == before


def _segmentations(masks: InstanceMasks | None, video: MevisEntry, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """For each of some frames: the run lengths of all instances that are named, None where one is not visible."""
    if masks is None:
        return [{} for _ in paths]
    named = dict.fromkeys(i for expression in video.expressions.values() for i in expression.instances or ())
    runs = {instance: masks.segmentations(instance) for instance in named}
    numbers = [video.frames.index(path.stem) for path in paths]
    return [{instance: runs[instance][number] for instance in named} for number in numbers]


CHECKS = {
    "ytvos": Check(check_ytvos, ytvos.SPLITS),
    "davis": Check(check_davis, tuple(davis.SPLITS)),
    "mevis": Check(check_mevis, mevis_files.SPLITS),
}
