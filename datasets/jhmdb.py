"""JHMDB-Sentences: its layout on disk and items for evaluation, with weights of A2D-Sentences (docs/data.md).

An item's id is ``v_<video>_f_<frame>``. Frames are numbered from 1, masks from 0; some clips have fewer masks than
frames, and an item whose frame has none is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.io import loadmat, whosmat
from torch import Tensor

from datasets.annotated_frames import AnnotatedFrames, Item, clamp
from datasets.annotation_files import number_of, read_entries, require_files, sentence_of
from datasets.evaluators import A2dEvaluator
from datasets.mat_tags import has_array
from datasets.reading import DATA_PAGE, plain_name, read_frames, require_folder
from datasets.transforms import ClipTransform, build_transform
from util.errors import UserError

if TYPE_CHECKING:
    from util.config import Config

LIST_FILE = "jhmdb_sentences_samples_metadata.json"
COCO_FILE = "jhmdb_sentences_gt_annotations_in_coco_format.json"
FORM = ("video", "frame path", "mask path", "number of frames", "sentence")
MASK_KEY = "part_mask"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JhmdbItem(Item):
    """An item of JHMDB-Sentences.

    Attributes:
        frames: folder of the video's frames.
        masks: its MATLAB file of masks.
        length: number of its frames.
    """

    frames: Path
    masks: Path
    length: int


class JhmdbClips(AnnotatedFrames[JhmdbItem]):
    """Clips of JHMDB-Sentences: a window around each annotated frame, with one mask.

    Args:
        root: the dataset's folder.
        transform: applied to every clip.
        num_frames: frames per clip.
        seed: of the run.

    Raises:
        UserError: a missing folder or file, or a malformed one; frames are opened when they are read.
    """

    def __init__(self, root: Path, transform: ClipTransform, num_frames: int, seed: int = 0) -> None:
        require_folder(root, "the folders Rename_Images and puppet_mask of JHMDB, and its list of sentences")
        require_folder(root / "Rename_Images", "a folder of PNG frames per action and video")
        require_folder(root / "puppet_mask", "a folder per action and video with its puppet_mask.mat")
        listed_in = root / LIST_FILE
        items = _with_masks(read_items(root))
        super().__init__(items, transform, num_frames, False, seed, listed_in)
        require_files([item.frames for item in items], listed_in)

    def read_window(self, item: JhmdbItem) -> tuple[Tensor, list[int]]:
        numbers = [index + 1 for index in clamp(item.frame - 1, self.num_frames, item.length)]
        return torch.stack(read_frames([item.frames / f"{number:05d}.png" for number in numbers])), numbers

    def read_mask(self, item: JhmdbItem) -> Tensor:
        return read_puppet_mask(item.masks, item.frame)


def build_clips(cfg: Config, split: str) -> JhmdbClips:
    """Build the items for evaluation (``test``)."""
    if split != "test":
        raise UserError(
            f"JHMDB-Sentences has no {split!r} split: it is all for evaluation, with weights that were trained with "
            "--dataset_file a2d"
        )
    return JhmdbClips(Path(cfg.jhmdb_path), build_transform(cfg, False), cfg.num_frames, cfg.seed)


def build_evaluator(cfg: Config) -> A2dEvaluator:
    """Build the evaluator; the metrics are those of A2D-Sentences."""
    return A2dEvaluator(build_clips(cfg, cfg.split).truth(Path(cfg.jhmdb_path) / COCO_FILE))


def read_items(root: Path) -> list[JhmdbItem]:
    """Read the sentences and their annotated frames.

    Raises:
        UserError: the file is missing or malformed, names a path outside of ``root``, or a video that is missing.
    """
    path = root / LIST_FILE
    items = []
    for where, (video, frame_path, mask_path, frames, sentence) in read_entries(path, "the sentences", FORM):
        name, frame = plain_name(video, path, "a video"), _inside(root, frame_path, where)
        number, length = number_of(frame.stem, 1, "frame", where), number_of(frames, 1, "number of frames", where)
        if number > length:
            raise UserError(f"{where} names frame {number} of a video of {length} frames; fetch {path.name} again")
        masks = _inside(root, mask_path, where)
        caption = sentence_of(sentence, where)
        items.append(JhmdbItem(f"v_{name}_f_{number}", name, caption, number, frame.parent, masks, length))
    return items


def read_puppet_mask(path: Path, frame: int) -> Tensor:
    """Read the mask of one frame, numbered from 1, from a video's MATLAB file: bool ``[H, W]``.

    Raises:
        UserError: the file is missing or broken, or has no mask for the frame.
    """
    masks = _read_mat(path, lambda: _load(path))
    if not isinstance(masks, np.ndarray) or masks.ndim not in (2, 3) or masks.dtype.kind not in "biuf":
        raise UserError(f"{path} has no array {MASK_KEY!r} of height × width × frames; fetch or extract it again")
    masks = masks.reshape(*masks.shape[:2], -1)  # MATLAB drops the last axis of a single frame
    if frame > masks.shape[2]:
        raise UserError(f"{path} has {masks.shape[2]} masks, and none for frame {frame}; fetch or extract it again")
    return torch.from_numpy(np.ascontiguousarray(masks[:, :, frame - 1] != 0))


def count_puppet_masks(path: Path) -> int:
    """Number of masks in a MATLAB file, without reading them.

    Raises:
        UserError: the file is missing or broken.
    """
    shapes = {name: shape for name, shape, _ in _read_mat(path, lambda: whosmat(path))}
    if len(shapes.get(MASK_KEY, ())) not in (2, 3):
        raise UserError(f"{path} has no array {MASK_KEY!r} of height × width × frames; fetch or extract it again")
    return (*shapes[MASK_KEY], 1)[2]


def _with_masks(items: Sequence[JhmdbItem]) -> list[JhmdbItem]:
    """The items whose frame has a mask; a log line counts the others."""
    counts = {path: count_puppet_masks(path) for path in dict.fromkeys(item.masks for item in items)}
    kept = [item for item in items if item.frame <= counts[item.masks]]
    if len(kept) < len(items):
        shorter = {item.video for item in items if item.frame > counts[item.masks]}
        logger.warning(
            "%d of %d items are left out: their frame has no mask, because %s have fewer masks than frames",
            len(items) - len(kept),
            len(items),
            ", ".join(sorted(shorter)[:5]) + (", …" if len(shorter) > 5 else ""),
        )
    return kept


def _load(path: Path) -> Any:
    return loadmat(path, variable_names=[MASK_KEY]).get(MASK_KEY) if has_array(path, MASK_KEY) else None


def _read_mat(path: Path, read: Callable[[], Any]) -> Any:
    if not path.is_file():
        raise UserError(f"masks {path} are missing; the sentences name this file (see {DATA_PAGE})")
    try:
        return read()
    except Exception as error:  # scipy's reader meets a damaged file with many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"masks {path} are broken ({reason}); fetch or extract this file again") from error


def _inside(root: Path, value: Any, where: str) -> Path:
    """The path below ``root`` that an entry names."""
    parts = PurePosixPath(value).parts if isinstance(value, str) and "\0" not in value else ()
    if not parts or ".." in parts or PurePosixPath(*parts).is_absolute():
        raise UserError(f"{where} has the path {value!r}; it should be relative to {root}, and stay in it")
    return root.joinpath(*parts)
