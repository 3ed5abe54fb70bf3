"""MeViS, versions 1 and 2: files, training clips, videos for inference, scores and checks (docs/data.md).

An expression refers to any number of instances (``anno_id``), and its target is their union. Version 2 also has
sentences that refer to nothing: their ``anno_id`` is empty, and they are negatives.
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
from datasets.files import DATA_PAGE, PackedItems, Video, read_frame, require_files, require_folder
from datasets.predictions import ANNOTATIONS
from datasets.registry import Dataset, root_of
from datasets.scoring import MASK_FILE, ScoredVideo, score_unions, unite
from datasets.transforms import ClipTransform, build_transform
from util.errors import UserError
from util.files import read_json
from util.text import normalise_sentence

if TYPE_CHECKING:
    from util.config import Config

AUTO_VERSION = "auto"
EXPRESSIONS_FILES = ("meta_expressions.json", "meta_expressions_v2.json", "meta_expressions_v2_release.json")


@dataclass(frozen=True)
class MevisExpression:
    """A sentence as it is written, and the ids of the instances it refers to; None if the file has none."""

    sentence: str
    instances: tuple[str, ...] | None

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
        content = read_json(path, f"the masks of all instances, which train and valid_u have, see {DATA_PAGE}")
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


def expressions_path(folder: Path, version: str = AUTO_VERSION) -> Path:
    """Return the expressions file of a split's folder. Version 2 is distributed under names of its own.

    Where a folder has the files of both versions, auto means version 1.
    """
    names = EXPRESSIONS_FILES if version != "v2" else (*EXPRESSIONS_FILES[1:], EXPRESSIONS_FILES[0])
    return next((folder / name for name in names if (folder / name).is_file()), folder / EXPRESSIONS_FILES[0])


def list_split(
    root: Path, split: str, version: str = AUTO_VERSION, images_needed: bool = True
) -> dict[str, MevisEntry]:
    """Read the videos, frames and expressions of a split.

    Raises:
        UserError: a folder or file is missing, or a file is malformed.
    """
    require_folder(root, "the MeViS folders train, valid_u and valid")
    require_folder(root / split, f"the {split} split of MeViS: JPEGImages and meta_expressions.json")
    if images_needed:
        require_folder(root / split / "JPEGImages", f"a folder of JPEG frames per video of the {split} split")
    path = expressions_path(root / split, version)
    videos = read_entries(path, split, _expression)
    if not videos:
        raise UserError(f"{path} lists no video; fetch it again (see {DATA_PAGE})")
    return videos


def open_masks(folder: Path, videos: Mapping[str, MevisEntry]) -> InstanceMasks:
    """Read the masks of a split's folder, and check that they include all instances of its expressions.

    Raises:
        UserError: the file is missing (as in ``valid``, whose ground truth is not public) or malformed, or an
            expression has no instances.
    """
    masks = InstanceMasks(folder / MASK_FILE)
    for name, video in videos.items():
        for exp_id, expression in video.expressions.items():
            where = f"expression {exp_id!r} of video {name!r}"
            if expression.instances is None:
                raise UserError(
                    f"the expressions file of {folder}: {where} has no 'anno_id', so its masks are unknown; it "
                    "should be the list of the instances that it names"
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
        read_sentence(path, where, expression), None if instances is None else tuple(dict.fromkeys(map(str, instances)))
    )


class MevisClips(ExpressionClips):
    """Clips of MeViS with the union of an expression's instances as target; see ``ExpressionClips``.

    Args:
        split: train or valid_u, which have masks.
        version: chooses the expressions file, see ``expressions_path``.

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
        version: str = AUTO_VERSION,
    ) -> None:
        videos = list_split(root, split, version)
        self.masks = open_masks(root / split, videos)
        images = root / split / "JPEGImages"
        require_files([images / name for name in videos], "the expressions file")
        super().__init__(videos, images, transform, num_frames, seed, reverse_probability)

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
    return make_videos(root / cfg.split / "JPEGImages", list_split(root, cfg.split, cfg.mevis_version))


def build_scorer(cfg: Config) -> Scorer:
    """Read the ground truth of ``cfg.split``; the returned function scores the masks in ``cfg.output_dir``.

    Raises:
        UserError: the ground truth is missing or malformed.
    """
    videos, version = read_ground_truth(root_of(cfg) / cfg.split, cfg.mevis_version)
    return partial(score_unions, videos, Path(cfg.output_dir) / ANNOTATIONS, version)


def list_expressions(root: Path, split: str, options: Mapping[str, Any]) -> Mapping[str, MevisEntry]:
    """Read all expressions of a split, which may include negatives, for ``scripts.calibrate_score``."""
    return list_split(root, split, options.get("mevis_version", AUTO_VERSION))


def read_ground_truth(folder: Path, version: str = AUTO_VERSION) -> tuple[list[ScoredVideo], str]:
    """Read the videos that have expressions, and their ground truth.

    Args:
        folder: a split with masks, ``<root>/valid_u``.
        version: v1, v2 or auto; auto is v2 if a sentence refers to nothing, which v1 does not have.

    Returns:
        the videos, and the version (v1 or v2) that keys the results.

    Raises:
        UserError: a file is missing, broken or malformed.
    """
    videos = list_split(folder.parent, folder.name, version, images_needed=False)
    masks = open_masks(folder, videos)
    scored = []
    for name, video in videos.items():
        targets = {
            exp_id: tuple(sorted(expression.instances or ())) for exp_id, expression in video.expressions.items()
        }
        instances = {instance for target in targets.values() for instance in target}
        frames = range(len(video.frames))
        runs = {instance: [masks.read(instance, frame) for frame in frames] for instance in sorted(instances)}
        if targets:
            scored.append(ScoredVideo(name, video.frames, targets, runs, masks.path))
    if version == AUTO_VERSION:
        version = "v2" if any(not target for video in scored for target in video.targets.values()) else "v1"
    return scored, version


def check(row: Dataset, root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check MeViS, version 1 or 2; ``valid`` has no masks."""
    for split in splits:
        videos = findings.attempt(list_split, root, split)
        if videos is None:
            continue
        findings.count_split(split, videos, row.splits[split])
        frames = findings.present_frames(root / split / "JPEGImages", videos, ".jpg")
        findings.files += sum(map(len, frames.values()))
        masks = None if split == "valid" else findings.attempt(open_masks, root / split, videos)
        for name in findings.sample(list(videos), SAMPLE_VIDEOS):
            video, chosen = videos[name], findings.sample(frames[name], SAMPLE_FRAMES)
            numbers = [video.frames.index(path.stem) for path in chosen]
            named = {instance for expression in video.expressions.values() for instance in expression.instances or ()}
            shown = [{i: masks.read(i, number) for i in sorted(named)} if masks else {} for number in numbers]
            where = f"{root / split / MASK_FILE}, video {name!r}"
            reads = [partial(check_frame, path, runs, where) for path, runs in zip(chosen, shown, strict=True)]
            findings.open_later(len(chosen), faults_of, reads)


def check_frame(path: Path, instances: Mapping[str, Any], where: str) -> None:
    """Decode a frame and the run lengths of its instances; raise a ``UserError`` if they are broken or do not fit."""
    height, width = read_frame(path).shape[-2:]
    unite(instances, (height, width), f"{where}, frame {path.stem}")
