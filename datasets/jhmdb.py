"""JHMDB-Sentences: files, items for evaluation with weights of A2D-Sentences, and checks (docs/data.md).

An item's id is ``v_<video>_f_<frame>``. Frames are numbered from 1, masks from 0. Some clips have fewer masks than
frames; an item whose frame has no mask is left out.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.io import loadmat, whosmat
from torch import Tensor

from datasets.a2d import AnnotatedFrames, Item, clamp, fit_mask, group_by_video, number_of, read_items_of, sentence_of
from datasets.checks import SAMPLE_VIDEOS, Findings, faults_of
from datasets.evaluators import A2dEvaluator
from datasets.files import (
    DATA_PAGE,
    plain_name,
    read_coco_masks,
    read_frame,
    read_frames,
    require_files,
    require_folder,
    visible,
)
from datasets.registry import Dataset, root_of
from datasets.transforms import ClipTransform, build_transform
from util.errors import UserError
from util.files import read_regular, reason_of

if TYPE_CHECKING:
    from util.config import Config

LIST_FILE = "jhmdb_sentences_samples_metadata.json"
MAT_HEADER = 128  # bytes
MAX_MAT_BYTES = 1 << 28  # of a file, and of an array that is decompressed
MAT_ARRAY, MAT_COMPRESSED = 14, 15  # types of elements
MAT_NUMERIC_TYPES = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13)
MAT_NUMERIC_CLASSES = range(6, 16)  # of arrays, from double to uint64
COCO_FILE = "jhmdb_sentences_gt_annotations_in_coco_format.json"
MASK_KEY = "part_mask"
FRAMES, MASKS = "Rename_Images", "puppet_mask"  # folders

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JhmdbItem(Item):
    """An item of JHMDB-Sentences.

    Attributes:
        frames: the folder of the video's frames.
        masks: the MATLAB file of its masks.
        length: the number of its frames.
    """

    frames: Path
    masks: Path
    length: int


class JhmdbClips(AnnotatedFrames[JhmdbItem]):
    """Clips of JHMDB-Sentences: a window around each annotated frame, with one mask.

    Args:
        root: the dataset's folder.
        transform, num_frames, seed: as for ``AnnotatedFrames``.

    Raises:
        UserError: a folder or file is missing or malformed; frames are opened when they are read.
    """

    def __init__(self, root: Path, transform: ClipTransform, num_frames: int, seed: int = 0) -> None:
        require_folder(root, "the folders Rename_Images and puppet_mask of JHMDB, and its list of sentences")
        require_folder(root / FRAMES, "a folder of PNG frames per action and video")
        require_folder(root / MASKS, "a folder per action and video with its puppet_mask.mat")
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
    """Build the items for evaluation; ``test`` is the only split."""
    return JhmdbClips(find_root(root_of(cfg)), build_transform(cfg, False), cfg.num_frames, cfg.seed)


def build_evaluator(cfg: Config) -> A2dEvaluator:
    """Build the evaluator, whose metrics are those of A2D-Sentences."""
    return A2dEvaluator(build_clips(cfg, cfg.split).ground_truth(find_root(root_of(cfg)) / COCO_FILE))


def find_root(folder: Path) -> Path:
    """Return the dataset's folder: ``folder``, or the one inside it that holds the list of sentences."""
    inside = () if (folder / LIST_FILE).is_file() else visible(folder.glob(f"*/{LIST_FILE}"))
    return inside[0].parent if inside else folder


def read_items(root: Path) -> list[JhmdbItem]:
    """Read the items.

    Raises:
        UserError: the file is missing or malformed, or names a path outside of ``root``.
    """
    path = root / LIST_FILE

    def make(video: Any, frame_path: Any, mask_path: Any, frames: Any, sentence: Any) -> JhmdbItem:
        name = plain_name(video, path, "a video")
        frame, masks = _inside(root, FRAMES, frame_path), _inside(root, MASKS, mask_path)
        number, length = number_of(frame.stem), number_of(frames)
        if number > length:
            raise UserError(f"{path} lists frame {number} of video {name}, which has {length}; fetch the file again")
        return JhmdbItem(f"v_{name}_f_{number}", name, sentence_of(sentence), number, frame.parent, masks, length)

    return read_items_of(path, "test", "video, frame path, mask path, number of frames, sentence", make)


def read_puppet_mask(path: Path, frame: int) -> Tensor:
    """Read the mask of one frame, numbered from 1, from a video's MATLAB file: bool ``[H, W]``.

    Raises:
        UserError: the file is missing or broken, or has no mask for the frame.
    """
    masks = _read_mat(path, lambda: loadmat(path, variable_names=[MASK_KEY]).get(MASK_KEY))
    if not isinstance(masks, np.ndarray) or masks.ndim not in (2, 3) or masks.dtype.kind not in "biuf":
        raise UserError(f"{path} has no array {MASK_KEY!r} of height × width × frames; fetch or extract it again")
    masks = masks.reshape(*masks.shape[:2], -1)  # MATLAB drops the last axis of a single frame
    if frame > masks.shape[2]:
        raise UserError(f"{path} has {masks.shape[2]} masks, and none for frame {frame}; fetch or extract it again")
    return torch.from_numpy(np.ascontiguousarray(masks[:, :, frame - 1] != 0))


def count_puppet_masks(path: Path) -> int:
    """Count the masks of a MATLAB file without reading them.

    Raises:
        UserError: the file is missing or broken.
    """
    shapes = {name: shape for name, shape, _ in _read_mat(path, lambda: whosmat(path))}
    if len(shapes.get(MASK_KEY, ())) not in (2, 3):
        raise UserError(f"{path} has no array {MASK_KEY!r} of height × width × frames; fetch or extract it again")
    return (*shapes[MASK_KEY], 1)[2]


def _with_masks(items: Sequence[JhmdbItem]) -> list[JhmdbItem]:
    """Return the items whose frame has a mask; a warning counts the others."""
    counts = {path: count_puppet_masks(path) for path in dict.fromkeys(item.masks for item in items)}
    kept = [item for item in items if item.frame <= counts[item.masks]]
    if len(kept) < len(items):
        logger.warning("%d of %d items are left out: their frame has no mask", len(items) - len(kept), len(items))
    return kept


def _read_mat(path: Path, read: Callable[[], Any]) -> Any:
    if not path.is_file():
        raise UserError(f"masks {path} are missing; the sentences name this file (see {DATA_PAGE})")
    try:
        check_mat_tags(read_regular(path, MAX_MAT_BYTES))
        return read()
    except Exception as error:  # scipy raises many kinds of exceptions for a damaged file
        raise UserError(
            f"masks {path} are broken ({reason_of(path, error)}); fetch or extract this file again"
        ) from error


def check_mat_tags(content: bytes) -> None:
    """Check the tags of a MATLAB file of version 5 (-v6 and -v7): scipy crashes the process on a damaged one.

    After a header come elements: a tag (type and size) and the content, padded to 8 bytes. An array is an element whose
    content is elements: flags, dimensions, name, values. A compressed element holds another element.

    Raises:
        ValueError: it is a different kind of file, is truncated, or a tag is not valid, or an array is too large.
        zlib.error: it cannot be decompressed.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[MAT_HEADER - 2 : MAT_HEADER])
    if order is None:
        raise ValueError("it is not a MATLAB file of version 5")
    for kind, element in _mat_elements(content[MAT_HEADER:], order):
        if kind == MAT_COMPRESSED:
            inflated = zlib.decompressobj().decompress(element, MAX_MAT_BYTES)
            if len(inflated) == MAX_MAT_BYTES:
                raise ValueError(f"an array has at least {MAX_MAT_BYTES} bytes")
            kind, element = next(_mat_elements(inflated, order), (0, b""))
        if kind != MAT_ARRAY:
            continue
        parts = list(_mat_elements(element, order))
        if len(parts) < 3 or len(parts[0][1]) != 8:
            raise ValueError("an array lacks its flags, dimensions or name")
        (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
        numeric = flags & 0xFF in MAT_NUMERIC_CLASSES
        if numeric and (len(parts) != 4 or parts[3][0] not in MAT_NUMERIC_TYPES):
            raise ValueError("the values of an array are not numbers")


def _mat_elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each element."""
    place = 0
    while place + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        start, room = place + 8, len(content) - place - 8
        if kind >> 16:  # the tag itself holds up to four bytes of content
            kind, size, start, room = kind & 0xFFFF, kind >> 16, place + 4, 4
        if size > room:
            raise ValueError("it is truncated, or a size in it is wrong")
        yield kind, content[start : start + size]
        place = start + size + (0 if kind == MAT_COMPRESSED else -(start + size) % 8)


def _inside(root: Path, folder: str, path: str) -> Path:
    """Return the path in ``root`` of an entry. Lists differ in what is before ``folder``, such as ./jhmdb_sentences/.

    Raises:
        UserError: the path does not contain the folder, or leaves it.
    """
    parts = PurePosixPath(path).parts
    inner = parts[parts.index(folder) :] if folder in parts else ()
    if not inner or ".." in inner:
        raise UserError(f"{root / LIST_FILE} lists the path {path!r}; it should be of the form {folder}/…")
    return root.joinpath(*inner)


def check(row: Dataset, root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check JHMDB-Sentences."""
    root = find_root(root)
    items = findings.attempt(read_items, root)
    if items is None:
        return
    videos = group_by_video(items)
    findings.count("videos", len(videos), row.splits["test"].videos)
    findings.count("items", len(items))
    scored = []
    for name, of_video in videos.items():
        first = of_video[0]
        frames = findings.present(first.frames, [f"{n:05d}.png" for n in range(1, first.length + 1)], LIST_FILE)
        masks = findings.attempt(count_puppet_masks, first.masks)
        findings.files += len(frames) + (masks is not None)
        videos[name] = [item for item in of_video if masks is not None and item.frame <= masks]
        scored += videos[name]
    if len(scored) < len(items):
        findings.notes.append(f"{len(items) - len(scored)} of {len(items)} items are left out: their frame has no mask")
    if (root / COCO_FILE).is_file() and not findings.faults:
        findings.attempt(read_coco_masks, root / COCO_FILE, [item.id for item in scored])
    for name in findings.sample([name for name in videos if videos[name]], SAMPLE_VIDEOS):
        annotated = {item.frame: item for item in videos[name]}
        first, numbers = videos[name][0], list(annotated)
        if findings.every:
            numbers = list(range(1, first.length + 1))
        paths = {number: first.frames / f"{number:05d}.png" for number in numbers}
        reads = [partial(check_frame, path, annotated.get(n)) for n, path in paths.items() if path.is_file()]
        findings.open_later(len(numbers) + 1, faults_of, reads)


def check_frame(path: Path, item: JhmdbItem | None) -> None:
    """Decode a frame and the mask of its item, if it has one; raise a ``UserError`` if they are broken."""
    height, width = read_frame(path).shape[-2:]
    if item is not None:
        fit_mask(read_puppet_mask(item.masks, item.frame), (height, width), item)
