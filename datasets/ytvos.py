"""Ref-YouTube-VOS, Long-RVOS and datasets in their layouts: clips, videos, scores and checks (docs/data.md)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datasets.checks import Findings
from datasets.clip import ExpressionClips
from datasets.evaluators import Scorer
from datasets.expressions import VideoEntry, expressions_path, make_videos, read_expressions
from datasets.files import DATA_PAGE, Video, and_more, require_files, require_folder, video_folders, visible
from datasets.predictions import ANNOTATIONS, require_masks
from datasets.registry import Dataset, Size, root_of
from datasets.scoring import (
    PALETTE,
    GroundTruth,
    UnknownObjects,
    find_ground_truth,
    find_layout,
    is_long_rvos,
    lists_objects,
    score_expressions,
)
from datasets.transforms import ClipTransform, EvalTransform, build_transform
from util.distributed import print_notes
from util.errors import UserError
from util.files import read_json

if TYPE_CHECKING:
    from util.config import Config

CHALLENGE = "ytvos"  # the dataset whose expressions file of the valid split also lists the test videos
CHALLENGE_VIDEOS = 507  # listed in that file

logger = logging.getLogger(__name__)


class YtvosClips(ExpressionClips):
    """Clips in the layout of Ref-YouTube-VOS with masks; see ``ExpressionClips``.

    Args:
        root: the dataset's folder.
        split: its folder must hold ``Annotations``; its expressions need an ``obj_id`` unless they are negatives.
        transform, num_frames, seed, reverse_probability: as for ``ExpressionClips``.
        expressions_file: a different expressions file for this split; empty: its own.
        challenge: whether the file of ``valid`` may also list the test videos; see ``list_split``.

    Raises:
        UserError: a folder or file is missing or malformed; images are checked when they are read.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        transform: ClipTransform,
        num_frames: int | None,
        seed: int = 0,
        expressions_file: str | Path = "",
        reverse_probability: float = 0.3,
        challenge: bool = True,
    ) -> None:
        videos = list_split(root, split, expressions_file, challenge)
        images = video_folders(root / split / "JPEGImages")
        annotations = video_folders(
            require_folder(root / split / "Annotations", "a folder of palette PNG masks per video, value = object id")
        )
        for folder in (images, annotations):
            require_files([folder / name for name in videos], "the expressions file")
        _require_objects(root, split, videos)
        self.ground_truth = GroundTruth(annotations, find_layout(videos, annotations), videos, "", [])
        super().__init__(videos, images, transform, num_frames, seed, reverse_probability)

    def read_mask(self, video: str, exp_id: str, index: int, size: tuple[int, int]) -> Tensor:
        key, frame = self.ground_truth.targets(video)[exp_id], self.videos[video].frames[index]
        return torch.from_numpy(self.ground_truth.read_mask(video, key, frame, size))


def build_clips(cfg: Config, split: str) -> YtvosClips:
    """Build the augmented training clips (``train``), or the whole videos of another split with their ground truth."""
    train = split == "train"
    return YtvosClips(
        root_of(cfg),
        split,
        build_transform(cfg, train, whole_videos=True),
        cfg.num_frames if train else None,
        cfg.seed,
        cfg.expressions_file if split == cfg.split else "",
        cfg.reverse_probability,
        cfg.dataset_file == CHALLENGE,
    )


def build_videos(cfg: Config) -> list[Video]:
    """List the videos of ``cfg.split`` with all their frames and sentences."""
    root = root_of(cfg)
    videos = list_split(root, cfg.split, cfg.expressions_file, cfg.dataset_file == CHALLENGE)
    return make_videos(video_folders(root / cfg.split / "JPEGImages"), videos)


def build_scorer(cfg: Config) -> Scorer:
    """Find the ground truth of ``cfg.split``; the returned function scores the masks in ``cfg.output_dir``.

    Raises:
        UserError: masks or object ids are missing.
    """
    expressions = Path(cfg.expressions_file) if cfg.expressions_file else None
    annotations = root_of(cfg) / cfg.split / "Annotations"
    ground_truth = read_ground_truth(annotations, [video.name for video in build_videos(cfg)], expressions)
    print_notes([str(ground_truth)])
    return partial(score_expressions, ground_truth, Path(cfg.output_dir) / ANNOTATIONS)


def read_ground_truth(annotations: Path, videos: Iterable[str], expressions: Path | None = None) -> GroundTruth:
    """Find the ground truth of all videos of a split; see ``find_ground_truth``.

    Raises:
        UserError: a video or, of palette masks, a frame has none.
    """
    ground_truth = find_ground_truth(annotations, expressions)
    absent = sorted(set(videos) - ground_truth.videos.keys())
    if absent:
        raise UserError(
            f"{ground_truth.masks / absent[0]} is missing{and_more(absent)}; it should hold the masks of a video"
        )
    if ground_truth.layout == PALETTE:
        require_masks(path for _, path in ground_truth.files())
    return ground_truth


def list_expressions(root: Path, split: str, options: Mapping[str, Any]) -> Mapping[str, VideoEntry]:
    """Read all expressions of a split, which may include negatives, for ``scripts.calibrate_score``."""
    return read_expressions(_expressions_path(root, split, options.get("expressions_file")), split)


def list_split(
    root: Path, split: str, expressions_file: str | Path = "", challenge: bool = True
) -> dict[str, VideoEntry]:
    """Read the videos, frames and expressions of a split.

    The challenge's file of the valid split also lists the test videos. The valid videos are those that the test file
    does not list; without a test file, they are those that have a folder, and a warning says so. Without ``challenge``,
    as in other datasets of this layout, all listed videos are used.

    Raises:
        UserError: a folder or file is missing, or a file is malformed.
    """
    require_folder(root, "the Ref-YouTube-VOS folders meta_expressions, train and valid")
    images = require_folder(root / split / "JPEGImages", f"a folder of JPEG frames per video of the {split} split")
    videos = read_expressions(_expressions_path(root, split, expressions_file), split)
    if split == "valid" and challenge:
        videos = _without_test_videos(videos, expressions_path(root, "test"), video_folders(images))
    if not videos:
        raise UserError(f"the {split} split of {root} has no video left; see {DATA_PAGE} for which videos it has")
    return videos


def _without_test_videos(videos: dict[str, VideoEntry], test_file: Path, images: Path) -> dict[str, VideoEntry]:
    if test_file.is_file():
        test_videos = read_expressions(test_file, "test")
        return {name: video for name, video in videos.items() if name not in test_videos}
    present = {path.name for path in visible(images.iterdir()) if path.is_dir()}
    kept = {name: video for name, video in videos.items() if name in present}
    if len(kept) == len(videos):
        return kept
    logger.warning(
        "%s is missing: the valid split is taken to be the %d of %d listed videos that have a folder under %s",
        test_file,
        len(kept),
        len(videos),
        images,
    )
    return kept


def _require_objects(root: Path, split: str, videos: dict[str, VideoEntry]) -> None:
    """Check that every expression but negatives has an object, and that ``meta.json``, if it exists, lists it."""
    meta_file = root / split / "meta.json"
    objects: dict[str, Any] = {}
    if meta_file.is_file():
        content = read_json(meta_file, f"the objects of the {split} split, see {DATA_PAGE}")
        try:
            objects = {name: content["videos"][name]["objects"].keys() for name in videos}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{meta_file} should have 'objects' of every video under 'videos' ({error}); see {DATA_PAGE}"
            ) from error
    for name, video in videos.items():
        for exp_id, expression in video.expressions.items():
            if expression.negative:
                continue
            where = f"expression {exp_id!r} of video {name!r} ({split} split of {root})"
            if expression.obj_id is None:
                raise UserError(
                    f"{where} has no 'obj_id', so its mask is unknown; name a file with object ids by "
                    f"--expressions_file (see {DATA_PAGE})"
                )
            if objects and str(expression.obj_id) not in objects[name]:
                raise UserError(f"{where} refers to object {expression.obj_id}, which {meta_file} does not list")


def _expressions_path(root: Path, split: str, given: str | Path | None) -> Path:
    """Return the path of the expressions file to read, where ``given`` may also name a file of object ids only."""
    path = Path(given) if given else None
    return expressions_path(root, split) if path is None or lists_objects(path) else path


def check(row: Dataset, root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check a dataset in this layout.

    Ref-YouTube-VOS is usable without the masks of ``valid`` and without the file of ``test``; notes say so.
    """
    challenge = row.name == CHALLENGE
    for split in splits:
        listed = expressions_path(root, split)
        if challenge and split == "test":
            if listed.is_file():
                videos = findings.attempt(read_expressions, listed, split)
                findings.count("test: videos", len(videos or ()), row.splits[split].videos)
            else:
                findings.notes.append(f"{listed} is missing: valid is then taken to be the videos that have a folder")
            continue
        if challenge and split == "valid" and listed.is_file():
            everything = findings.attempt(read_expressions, listed, split)
            if everything is None:
                continue
            findings.count("valid: videos in its file", len(everything), CHALLENGE_VIDEOS)
        check_split(root, split, findings, row.splits[split], challenge)


def check_split(root: Path, split: str, findings: Findings, size: Size, challenge: bool = False) -> bool:
    """Check a split in this layout; masks of the challenge's ``valid`` are optional. Return whether it is sound."""
    before, masks_needed = len(findings.faults), split == "train" or not challenge
    videos = findings.attempt(list_split, root, split, None, challenge)
    if videos is None:
        return False
    findings.count_split(split, videos, size)
    frames = findings.present_frames(video_folders(root / split / "JPEGImages"), videos, ".jpg")
    annotations = root / split / "Annotations"
    masks: dict[str, list[Path]] = {}
    if annotations.is_dir() and is_long_rvos(videos):
        masks = _check_ground_truth(annotations, videos, findings)
    elif masks_needed:
        masks = findings.present_frames(video_folders(annotations), videos, ".png")
        if len(findings.faults) == before:  # everything else that the loader needs
            findings.attempt(partial(YtvosClips, root, split, EvalTransform(), None, challenge=challenge))
    elif not annotations.is_dir():
        findings.notes.append(f"{annotations} is missing: the {split} split cannot be scored without its masks")
    else:
        masks = _check_ground_truth(annotations, videos, findings)
    findings.open_videos(frames, masks)
    return len(findings.faults) == before


def _check_ground_truth(
    annotations: Path, videos: Mapping[str, VideoEntry], findings: Findings
) -> dict[str, list[Path]]:
    """Return the existing mask files of the challenge's ``valid``, by video. Unknown object ids are no fault."""
    try:
        ground_truth = read_ground_truth(annotations, videos)
    except UnknownObjects as error:
        findings.notes.append(f"the masks cannot be used for scores: {error}")
        return findings.present_frames(video_folders(annotations), videos, ".png")
    except UserError as error:
        findings.faults.append(str(error))
        return {}
    findings.notes.append(str(ground_truth))
    masks: dict[str, list[Path]] = {name: [] for name in ground_truth.videos}
    for name, file in ground_truth.files():
        if file.is_file():  # where each expression has a folder, a missing file is an empty mask
            masks[name].append(file)
    return masks
