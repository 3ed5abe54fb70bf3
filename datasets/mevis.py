"""MeViS, versions 1 and 2, and ReVOS: files, training clips, videos, scores and checks (docs/data.md).

An expression refers to any number of instances (``anno_id``), and its target is their union. MeViS version 2 and ReVOS
also have sentences that refer to nothing: their ``anno_id`` is empty, and they are negatives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datasets.checks import SAMPLE_FRAMES, SAMPLE_VIDEOS, Findings, faults_of
from datasets.clip import ExpressionClips
from datasets.evaluators import Scorer
from datasets.expressions import Entry, make_videos, read_entries, read_sentence, require_mapping
from datasets.files import DATA_PAGE, IMAGES, PackedItems, Video, read_frame, require_files, require_folder
from datasets.predictions import ANNOTATIONS
from datasets.registry import Dataset, root_of
from datasets.scoring import MASK_FILE, REVOS_KINDS, ScoredVideo, score_unions, unite
from datasets.transforms import ClipTransform, build_transform
from util.errors import UserError
from util.files import read_json
from util.options import AUTO
from util.text import normalise_sentence

if TYPE_CHECKING:
    from util.config import Config

REVOS = "revos"  # instead of a version
TYPES = {0: REVOS_KINDS[0], 1: REVOS_KINDS[1], 2: "no target"}  # by the type_id of ReVOS
FOREGROUND_FILE = "mask_dict_foreground.json"
EXPRESSIONS_FILES = ("meta_expressions.json", "meta_expressions_v2.json", "meta_expressions_v2_release.json")


@dataclass(frozen=True)
class MevisExpression:
    """A sentence as it is written, the ids of its instances and its kind; None where the file has none."""

    sentence: str
    instances: tuple[str, ...] | None
    kind: str | None = None

    @property
    def caption(self) -> str:
        """The normalised sentence."""
        return normalise_sentence(self.sentence)

    @property
    def negative(self) -> bool:
        """Whether it refers to nothing."""
        return self.instances == ()


MevisEntry = Entry[MevisExpression]


class InstanceMasks:
    """The run lengths of a split's instances.

    Args:
        path: ``mask_dict.json``: {instance: [run lengths or null, for each frame]}.

    Raises:
        UserError: the file is missing or malformed; run lengths are checked when they are read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        what = (
            f"the masks of all instances, which train and valid_u of MeViS and both splits of ReVOS have; {DATA_PAGE}"
        )
        content = read_json(path, what)
        self._first: dict[str, tuple[int, int]] = {}
        masks: list[Any] = []
        for instance, frames in require_mapping(content, path, "the file").items():
            if not isinstance(frames, list):
                raise UserError(f"{path}: instance {instance!r} should have a list of one mask or null per frame")
            self._first[instance] = (len(masks), len(frames))
            masks += frames
        self._masks = PackedItems(masks)

    def require(self, instances: Iterable[str], length: int, where: str) -> None:
        """Raise a ``UserError`` if a video's instance is missing or has masks for a different number of frames."""
        for instance in instances:
            if instance not in self._first:
                raise UserError(f"{self.path} has no masks of instance {instance}, which {where} names")
            frames = self._first[instance][1]
            if frames != length:
                raise UserError(
                    f"{self.path} has masks of instance {instance} for {frames} frames, and {where} names it in a "
                    f"video of {length}; take both files from one release of the dataset"
                )

    def read(self, instance: str, frame: int) -> Any:
        """Return an instance's run lengths in one frame, as the file has them; None if it is not visible."""
        return self._masks[self._first[instance][0] + frame]


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split: the folder of ``<video>/<frame>.jpg``, the expressions, and the masks of instances."""

    images: Path
    expressions: Path
    masks: Path


def split_files(root: Path, split: str, version: str = AUTO) -> SplitFiles:
    """Return the files of a split. ReVOS has the images and masks of both splits in its root.

    Version 2 of MeViS is distributed under names of its own. Where a folder has the files of both versions, auto means
    version 1.
    """
    if is_revos(root):
        return SplitFiles(root / IMAGES, root / f"meta_expressions_{split}_.json", root / MASK_FILE)
    folder = root / split
    names = EXPRESSIONS_FILES if version != "v2" else (*EXPRESSIONS_FILES[1:], EXPRESSIONS_FILES[0])
    path = next((folder / name for name in names if (folder / name).is_file()), folder / EXPRESSIONS_FILES[0])
    return SplitFiles(folder / IMAGES, path, folder / MASK_FILE)


def is_revos(folder: Path) -> bool:
    """Return whether a folder is the root of ReVOS, and not that of MeViS or the folder of one of its splits."""
    return any((folder / f"meta_expressions_{split}_.json").is_file() for split in ("train", "valid"))


def list_split(root: Path, split: str, version: str = AUTO, images_needed: bool = True) -> dict[str, MevisEntry]:
    """Read the videos, frames and expressions of a split.

    Raises:
        UserError: a folder or file is missing, or a file is malformed.
    """
    require_folder(root, "the MeViS folders train, valid_u and valid, or the files of ReVOS")
    files = split_files(root, split, version)
    if not is_revos(root):
        content = "JPEGImages and meta_expressions.json; ReVOS has meta_expressions_train_.json and … beside it"
        require_folder(root / split, f"the {split} split of MeViS: {content}")
    if images_needed:
        require_folder(files.images, f"a folder of JPEG frames per video of the {split} split")
    videos = read_entries(files.expressions, split, _expression)
    if not videos:
        raise UserError(f"{files.expressions} lists no video; fetch it again (see {DATA_PAGE})")
    return videos


def open_masks(files: SplitFiles, videos: Mapping[str, MevisEntry]) -> InstanceMasks:
    """Read the masks of a split, and check that they include all instances of its expressions.

    Raises:
        UserError: the file is missing (as in ``valid`` of MeViS, whose ground truth is not public) or malformed, or an
            expression has no instances.
    """
    masks = InstanceMasks(files.masks)
    for name, video in videos.items():
        for exp_id, expression in video.expressions.items():
            where = f"expression {exp_id!r} of video {name!r}"
            if expression.instances is None:
                raise UserError(
                    f"{files.expressions}: {where} has no 'anno_id', so its masks are unknown; it should be the list "
                    "of the instances that it names"
                )
            masks.require(expression.instances, len(video.frames), where)
    return masks


def _expression(path: Path, where: str, expression: Mapping[str, Any]) -> MevisExpression:
    instances = expression.get("anno_id")
    if instances is not None and not (
        isinstance(instances, list) and all(isinstance(instance, (int, str)) for instance in instances)
    ):
        raise UserError(f"{path}: 'anno_id' of {where} is {instances!r}; it should be a list of instances")
    return MevisExpression(
        read_sentence(path, where, expression),
        None if instances is None else tuple(dict.fromkeys(map(str, instances))),
        next((kind for number, kind in TYPES.items() if expression.get("type_id") == number), None),
    )


class MevisClips(ExpressionClips):
    """Clips of MeViS or ReVOS with the union of an expression's instances as target; see ``ExpressionClips``.

    Args:
        split: one that has masks.
        version: chooses the expressions file, see ``split_files``.

    Raises:
        UserError: a folder or file is missing or malformed; images and run lengths are checked when they are read.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        transform: ClipTransform,
        num_frames: int | None,
        seed: int = 0,
        reverse_probability: float = 0.3,
        version: str = AUTO,
    ) -> None:
        videos = list_split(root, split, version)
        files = split_files(root, split, version)
        self.masks = open_masks(files, videos)
        require_files([files.images / name for name in videos], "the expressions file")
        super().__init__(videos, files.images, transform, num_frames, seed, reverse_probability)

    def read_mask(self, video: str, exp_id: str, index: int, size: tuple[int, int]) -> Tensor:
        instances = self.videos[video].expressions[exp_id].instances
        shown = {instance: self.masks.read(instance, index) for instance in instances}
        return torch.from_numpy(unite(shown, size, f"{self.masks.path}, frame {index} of video {video!r}"))


def build_clips(cfg: Config, split: str) -> MevisClips:
    """Build the augmented training clips (``train``), or the whole videos of another split with their ground truth."""
    train = split == "train"
    return MevisClips(
        root_of(cfg),
        split,
        build_transform(cfg, train, whole_videos=True),
        cfg.num_frames if train else None,
        cfg.seed,
        cfg.reverse_probability,
        cfg.mevis_version,
    )


def build_videos(cfg: Config) -> list[Video]:
    """List the videos of ``cfg.split`` with all their frames and sentences."""
    root = root_of(cfg)
    return make_videos(split_files(root, cfg.split).images, list_split(root, cfg.split, cfg.mevis_version))


def build_scorer(cfg: Config) -> Scorer:
    """Read the ground truth of ``cfg.split``; the returned function scores the masks in ``cfg.output_dir``.

    Raises:
        UserError: the ground truth is missing or malformed.
    """
    videos, version = read_ground_truth(root_of(cfg), cfg.split, cfg.mevis_version)
    return partial(score_unions, videos, Path(cfg.output_dir) / ANNOTATIONS, version)


def list_expressions(root: Path, split: str, options: Mapping[str, Any]) -> Mapping[str, MevisEntry]:
    """Read all expressions of a split, which may include negatives, for ``scripts.calibrate_score``."""
    return list_split(root, split, options.get("mevis_version", AUTO))


def read_ground_truth(root: Path, split: str, version: str = AUTO) -> tuple[list[ScoredVideo], str]:
    """Read the videos that have expressions, and their ground truth.

    Args:
        root: the dataset's folder.
        split: one with masks.
        version: v1, v2 or auto; auto is v2 if a sentence refers to nothing, which v1 does not have.

    Returns:
        the videos, and the version (v1, v2 or revos) that keys the results.

    Raises:
        UserError: a file is missing, broken or malformed.
    """
    videos = list_split(root, split, version, images_needed=False)
    masks = open_masks(split_files(root, split, version), videos)
    foreground = _read_foreground(root / FOREGROUND_FILE, videos) if is_revos(root) else {}
    scored = []
    for name, video in videos.items():
        targets = {
            exp_id: tuple(sorted(expression.instances or ())) for exp_id, expression in video.expressions.items()
        }
        instances = {instance for target in targets.values() for instance in target}
        frames = range(len(video.frames))
        runs = {instance: [masks.read(instance, frame) for frame in frames] for instance in sorted(instances)}
        kinds = {exp_id: expression.kind for exp_id, expression in video.expressions.items()}
        if targets:
            scored.append(ScoredVideo(name, video.frames, targets, runs, masks.path, kinds, foreground.get(name)))
    if is_revos(root):
        version = REVOS
    elif version == AUTO:
        version = "v2" if any(not target for video in scored for target in video.targets.values()) else "v1"
    return scored, version


def _read_foreground(path: Path, videos: Mapping[str, MevisEntry]) -> dict[str, list[Any]]:
    """Read the run lengths of all objects of a video together, for each frame."""
    content = require_mapping(read_json(path, f"the masks of all objects, for the score R; {DATA_PAGE}"), path, "it")
    runs = {}
    for name, video in videos.items():
        masks = require_mapping(content.get(name), path, f"the entry of video {name!r}").get("masks_rle")
        if not isinstance(masks, list) or len(masks) != len(video.frames):
            raise UserError(f"{path}: video {name!r} should have {len(video.frames)} run lengths under 'masks_rle'")
        runs[name] = masks
    return runs


def check(row: Dataset, root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check MeViS, version 1 or 2, whose ``valid`` has no masks, or ReVOS."""
    for split in splits:
        videos = findings.attempt(list_split, root, split)
        if videos is None:
            continue
        files = split_files(root, split)
        findings.count_split(split, videos, row.splits[split])
        frames = findings.present_frames(files.images, videos, ".jpg")
        findings.files += sum(map(len, frames.values()))
        hidden = split == "valid" and row.name != REVOS
        masks = None if hidden else findings.attempt(open_masks, files, videos)
        scored = row.name == REVOS and split == row.evaluated
        union = findings.attempt(_read_foreground, root / FOREGROUND_FILE, videos) if scored else None
        for name in findings.sample(list(videos), SAMPLE_VIDEOS):
            video, chosen = videos[name], findings.sample(frames[name], SAMPLE_FRAMES)
            numbers = [video.frames.index(path.stem) for path in chosen]
            named = {instance for expression in video.expressions.values() for instance in expression.instances or ()}
            shown = [{i: masks.read(i, number) for i in sorted(named)} if masks else {} for number in numbers]
            for number, runs in zip(numbers, shown, strict=True):
                runs |= {FOREGROUND_FILE: union[name][number]} if union else {}
            where = f"{files.masks}, video {name!r}"
            reads = [partial(check_frame, path, runs, where) for path, runs in zip(chosen, shown, strict=True)]
            findings.open_later(len(chosen), faults_of, reads)


def check_frame(path: Path, instances: Mapping[str, Any], where: str) -> None:
    """Decode a frame and the run lengths of its instances; raise a ``UserError`` if they are broken or do not fit."""
    height, width = read_frame(path).shape[-2:]
    unite(instances, (height, width), f"{where}, frame {path.stem}")
