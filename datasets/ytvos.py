"""Ref-YouTube-VOS: its layout on disk, training clips and videos for inference (docs/data.md)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datasets.clip import ClipDataset, Sample, make_target, sample_frames
from datasets.expressions import VideoEntry, read_expressions, require_mapping
from datasets.reading import DATA_PAGE, read_frames, read_object_ids, require_folder
from datasets.transforms import ClipTransform, EvalTransform, TrainTransform
from datasets.video import Video
from util.errors import UserError
from util.io import read_json

if TYPE_CHECKING:
    from util.config import Config

SPLITS = ("train", "valid", "test")

logger = logging.getLogger(__name__)


class YtvosClips(ClipDataset):
    """Clips of Ref-YouTube-VOS with masks.

    For training: one clip per expression and start frame, every ``num_frames`` frames. With ``num_frames`` None: one
    clip per expression, all frames of its video in order, none replaced – the truth for evaluation.

    Args:
        root: the dataset's folder.
        split: which split; its folder must hold ``Annotations`` and its expressions an ``obj_id``, or be negatives.
        transform: applied to every clip.
        num_frames: frames per clip, or None.
        seed: of the run.
        expressions_file: another expressions file for this split.
        reverse_probability: share of training clips that run backwards.

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
    ) -> None:
        super().__init__(seed, replace_invisible=num_frames is not None)
        if num_frames is not None and num_frames < 1:
            raise UserError(f"num_frames is {num_frames}; a clip has at least 1 frame")
        self.videos = read_split(root, split, expressions_file)
        self.images = root / split / "JPEGImages"
        self.annotations = require_folder(
            root / split / "Annotations", "a folder of palette PNG masks per video, value = object id"
        )
        _require_video_folders(self.annotations, self.videos)
        _require_objects(root, split, self.videos)
        self.transform = transform
        self.num_frames = num_frames
        self.reverse_probability = reverse_probability
        self._expressions = [(name, exp_id) for name, video in self.videos.items() for exp_id in video.expressions]
        # An array, because workers would copy the reference counts of a list of a hundred thousand tuples.
        self._clips = np.array(
            [
                (number, start)
                for number, (name, _) in enumerate(self._expressions)
                for start in range(0, len(self.videos[name].frames), num_frames or len(self.videos[name].frames))
            ]
        )
        if not len(self._clips):
            raise UserError(f"the {split} split of {root} has no expression; its expressions file should list some")

    def __len__(self) -> int:
        return len(self._clips)

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform clip ``index``.

        Raises:
            UserError: a frame or mask is missing, broken or of another size.
        """
        number, start = self._clips[index].tolist()
        name, exp_id = self._expressions[number]
        video = self.videos[name]
        expression = video.expressions[exp_id]
        length = len(video.frames)
        indices = (
            range(length)
            if self.num_frames is None
            else sample_frames(length, start, self.num_frames, rng, self.reverse_probability)
        )
        names = [video.frames[i] for i in indices]

        frames = torch.stack(read_frames([self.images / name / f"{frame}.jpg" for frame in names]))
        height, width = frames.shape[-2:]
        if expression.negative:
            masks = torch.zeros(len(names), height, width, dtype=torch.bool)
        else:
            masks = self._read_masks(name, names, expression.obj_id, (height, width))

        frames, masks, caption = self.transform(frames, masks, expression.caption, rng)
        target = make_target(
            masks,
            caption=caption,
            orig_size=(height, width),
            video=name,
            exp_id=exp_id,
            frame_names=names,
            negative=expression.negative,
        )
        return frames, target

    def _read_masks(self, name: str, frames: list[str], obj_id: int | None, size: tuple[int, int]) -> Tensor:
        """An object's masks, bool ``[T, H, W]``; a frame that occurs again is read once."""
        assert obj_id is not None, "the constructor has checked it"
        masks = {
            frame: read_object_ids(self.annotations / name / f"{frame}.png", size).eq(obj_id)
            for frame in dict.fromkeys(frames)
        }
        return torch.stack([masks[frame] for frame in frames])


def build_clips(cfg: Config, split: str) -> YtvosClips:
    """Build the augmented training clips (``train``) or the whole videos of another split, with their truth.

    ``cfg.expressions_file`` stands in for the file of ``cfg.split``, and of no other split.
    """
    train = split == "train"
    transform: ClipTransform = (
        TrainTransform(cfg.train_scales, cfg.crop_scales, cfg.crop_range, cfg.max_size, cfg.colour_distortion)
        if train
        else EvalTransform(cfg.eval_size, cfg.max_size)
    )
    num_frames = cfg.num_frames if train else None
    return YtvosClips(
        _root(cfg), split, transform, num_frames, cfg.seed, _expressions_file(cfg, split), cfg.reverse_probability
    )


def build_videos(cfg: Config) -> list[Video]:
    """List the videos of ``cfg.split`` with all their frames and sentences."""
    root = _root(cfg)
    images = root / cfg.split / "JPEGImages"
    return [
        Video(
            name,
            [images / name / f"{frame}.jpg" for frame in video.frames],
            {exp_id: expression.caption for exp_id, expression in video.expressions.items()},
        )
        for name, video in read_split(root, cfg.split, _expressions_file(cfg, cfg.split)).items()
    ]


def read_split(root: Path, split: str, expressions_file: Path | None = None) -> dict[str, VideoEntry]:
    """Read which videos, frames and expressions a split has, and check that the videos' folders exist.

    The challenge's file of the valid split also lists the test videos: valid is what the test file does not list.
    Without a test file it is the videos that have a folder, and a log line says so.

    Raises:
        UserError: an unknown split, a missing folder or file, or a malformed file.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; Ref-YouTube-VOS has {', '.join(SPLITS)}")
    require_folder(root, "the Ref-YouTube-VOS folders meta_expressions, train and valid")
    images = require_folder(root / split / "JPEGImages", f"a folder of JPEG frames per video of the {split} split")
    videos = read_expressions(expressions_file or _default_file(root, split), split)
    if split == "valid":
        videos = _without_test_videos(videos, _default_file(root, "test"), images)
    if not videos:
        raise UserError(f"the {split} split of {root} has no video left; see {DATA_PAGE} for which videos it has")
    _require_video_folders(images, videos)
    return videos


def _without_test_videos(videos: dict[str, VideoEntry], test_file: Path, images: Path) -> dict[str, VideoEntry]:
    if test_file.is_file():
        test_videos = read_expressions(test_file, "test")
        return {name: video for name, video in videos.items() if name not in test_videos}
    present = _folders(images)
    kept = {name: video for name, video in videos.items() if name in present}
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


def _require_video_folders(parent: Path, videos: dict[str, VideoEntry]) -> None:
    present = _folders(parent)
    missing = [name for name in videos if name not in present]
    if missing:
        more = f" (and those of {len(missing) - 1} more videos)" if len(missing) > 1 else ""
        raise UserError(f"{parent / missing[0]} is missing{more}, but the expressions list it (see {DATA_PAGE})")


def _folders(parent: Path) -> set[str]:
    return {path.name for path in parent.iterdir() if path.is_dir()}


def _root(cfg: Config) -> Path:
    if not cfg.ytvos_path:
        raise UserError(f"no Ref-YouTube-VOS folder is given; name it by --ytvos_path (see {DATA_PAGE})")
    return Path(cfg.ytvos_path)


def _expressions_file(cfg: Config, split: str) -> Path | None:
    return Path(cfg.expressions_file) if cfg.expressions_file and split == cfg.split else None


def _default_file(root: Path, split: str) -> Path:
    return root / "meta_expressions" / split / "meta_expressions.json"
