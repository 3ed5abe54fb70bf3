"""Ref-YouTube-VOS: its layout on disk, training clips and videos for inference (docs/data.md)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datasets.evaluators import Scorer
from datasets.expression_clips import ExpressionClips
from datasets.expressions import VideoEntry, read_expressions, require_mapping, require_video_folders, video_folders
from datasets.predictions import ANNOTATIONS
from datasets.reading import DATA_PAGE, read_object_ids, require_folder
from datasets.scoring import require_ground_truth, score_expressions
from datasets.transforms import ClipTransform, build_transform
from datasets.video import Video
from util.errors import UserError
from util.io import read_json

if TYPE_CHECKING:
    from util.config import Config

SPLITS = ("train", "valid", "test")

logger = logging.getLogger(__name__)


class YtvosClips(ExpressionClips):
    """Clips of Ref-YouTube-VOS with masks; see ``ExpressionClips``.

    Args:
        root: the dataset's folder.
        split: which split; its folder must hold ``Annotations`` and its expressions an ``obj_id``, or be negatives.
        transform: applied to every clip.
        num_frames: frames per training clip; None: whole videos.
        seed: of the run.
        expressions_file: another expressions file for this split.
        reverse_probability: share of training clips that run backwards.
        challenge: whether the file of ``valid`` may list the test videos, too; see ``list_split``.

    Raises:
        UserError: a missing folder or file, or a malformed one; images are checked when they are read.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        transform: ClipTransform,
        num_frames: int | None,
        seed: int = 0,
        expressions_file: Path | None = None,
        reverse_probability: float = 0.3,
        challenge: bool = True,
    ) -> None:
        videos = read_split(root, split, expressions_file, challenge)
        self.annotations = require_folder(
            root / split / "Annotations", "a folder of palette PNG masks per video, value = object id"
        )
        require_video_folders(self.annotations, videos)
        _require_objects(root, split, videos)
        super().__init__(videos, root / split / "JPEGImages", transform, num_frames, seed, reverse_probability)
        self._entries = videos

    def read_masks(self, video: str, exp_id: str, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Read an object's masks; a frame that occurs again is read once.

        Raises:
            UserError: a mask is missing, broken or of another size.
        """
        obj_id, names = self._entries[video].expressions[exp_id].obj_id, self._entries[video].frames
        assert obj_id is not None, "the constructor has checked it"
        masks = {
            i: read_object_ids(self.annotations / video / f"{names[i]}.png", size).eq(obj_id)
            for i in dict.fromkeys(indices)
        }
        return torch.stack([masks[i] for i in indices])


def build_clips(cfg: Config, split: str, root: Path | None = None) -> YtvosClips:
    """Build the augmented training clips (``train``) or the whole videos of another split, with their truth.

    ``cfg.expressions_file`` stands in for the file of ``cfg.split``, and of no other split.

    Args:
        cfg: options; ``cfg.ytvos_path`` is the folder.
        split: train, valid or test.
        root: the folder of another dataset in the same layout.
    """
    train = split == "train"
    return YtvosClips(
        root or Path(cfg.ytvos_path),
        split,
        build_transform(cfg, train),
        cfg.num_frames if train else None,
        cfg.seed,
        _expressions_file(cfg, split),
        cfg.reverse_probability,
        challenge=root is None,
    )


def build_videos(cfg: Config, root: Path | None = None) -> list[Video]:
    """List the videos of ``cfg.split`` with all their frames and sentences.

    Args:
        cfg: options; ``cfg.ytvos_path`` is the folder.
        root: the folder of another dataset in the same layout.
    """
    challenge, root = root is None, root or Path(cfg.ytvos_path)
    images = root / cfg.split / "JPEGImages"
    return [
        Video(
            name,
            [images / name / f"{frame}.jpg" for frame in video.frames],
            {exp_id: expression.caption for exp_id, expression in video.expressions.items()},
        )
        for name, video in read_split(root, cfg.split, _expressions_file(cfg, cfg.split), challenge).items()
    ]


def build_scorer(cfg: Config, root: Path | None = None) -> Scorer:
    """Find the truth of ``cfg.split``; what is returned scores the masks below ``cfg.output_dir`` against it.

    ``cfg.expressions_file``, where it is given, holds the object ids. See ``datasets.scoring.score_expressions``.

    Args:
        cfg: options; ``cfg.ytvos_path`` is the folder.
        root: the folder of another dataset in the same layout.

    Raises:
        UserError: masks or object ids are missing; the sentence says what they must hold.
    """
    root = root or Path(cfg.ytvos_path)
    truth = root / cfg.split / "Annotations"
    expressions = _expressions_file(cfg, cfg.split) or _default_file(root, cfg.split)
    require_ground_truth(truth, expressions)
    return partial(score_expressions, truth, Path(cfg.output_dir) / ANNOTATIONS, expressions)


def in_this_layout(
    folder: Callable[[Config], str],
) -> tuple[Callable[..., YtvosClips], Callable[..., list[Video]], Callable[..., Scorer]]:
    """``build_clips``, ``build_videos`` and ``build_scorer`` of another dataset in this layout.

    Args:
        folder: its root, of the options, such as ``lambda cfg: cfg.davis_path``.
    """

    def of(build: Callable[..., Any]) -> Callable[..., Any]:
        return lambda cfg, *split: build(cfg, *split, root=Path(folder(cfg)))

    return of(build_clips), of(build_videos), of(build_scorer)


def read_split(
    root: Path, split: str, expressions_file: Path | None = None, challenge: bool = True
) -> dict[str, VideoEntry]:
    """Read a split as ``list_split`` does, and check that the videos' folders exist.

    Raises:
        UserError: as there, or a folder is missing.
    """
    videos = list_split(root, split, expressions_file, challenge)
    require_video_folders(root / split / "JPEGImages", videos)
    return videos


def list_split(
    root: Path, split: str, expressions_file: Path | None = None, challenge: bool = True
) -> dict[str, VideoEntry]:
    """Read which videos, frames and expressions a split has.

    The challenge's file of the valid split also lists the test videos: valid is what the test file does not list.
    Without a test file it is the videos that have a folder, and a log line says so. With ``challenge`` False, as in
    other datasets of this layout, it is all that the file lists.

    Raises:
        UserError: an unknown split, a missing folder or file, or a malformed file.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; Ref-YouTube-VOS has {', '.join(SPLITS)}")
    require_folder(root, "the Ref-YouTube-VOS folders meta_expressions, train and valid")
    images = require_folder(root / split / "JPEGImages", f"a folder of JPEG frames per video of the {split} split")
    videos = read_expressions(expressions_file or _default_file(root, split), split)
    if split == "valid" and challenge:
        videos = _without_test_videos(videos, _default_file(root, "test"), images)
    if not videos:
        raise UserError(f"the {split} split of {root} has no video left; see {DATA_PAGE} for which videos it has")
    return videos


def _without_test_videos(videos: dict[str, VideoEntry], test_file: Path, images: Path) -> dict[str, VideoEntry]:
    if test_file.is_file():
        test_videos = read_expressions(test_file, "test")
        return {name: video for name, video in videos.items() if name not in test_videos}
    present = video_folders(images)
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
    """Every expression needs an object, and one of those that ``meta.json`` lists, where there is such a file.

    Negatives need none.
    """
    meta_file = root / split / "meta.json"
    meta: Mapping[str, Any] | None = None
    if meta_file.is_file():
        content = read_json(meta_file, f"the objects of the {split} split, see {DATA_PAGE}")
        meta = require_mapping(require_mapping(content, meta_file, "the file").get("videos"), meta_file, "'videos'")
    for name, video in videos.items():
        listed: Mapping[str, Any] | None = None
        if meta is not None:
            entry = require_mapping(meta.get(name), meta_file, f"video {name!r}")
            listed = require_mapping(entry.get("objects"), meta_file, f"'objects' of video {name!r}")
        for exp_id, expression in video.expressions.items():
            if expression.negative:
                continue
            where = f"expression {exp_id!r} of video {name!r} ({split} split of {root})"
            if expression.obj_id is None:
                raise UserError(
                    f"{where} has no 'obj_id', so its mask is unknown; name a file with object ids by "
                    f"--expressions_file (see {DATA_PAGE})"
                )
            if listed is not None and str(expression.obj_id) not in listed:
                raise UserError(f"{where} refers to object {expression.obj_id}, which {meta_file} does not list")


def _expressions_file(cfg: Config, split: str) -> Path | None:
    return Path(cfg.expressions_file) if cfg.expressions_file and split == cfg.split else None


def _default_file(root: Path, split: str) -> Path:
    return root / "meta_expressions" / split / "meta_expressions.json"
