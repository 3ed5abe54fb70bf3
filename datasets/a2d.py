"""A2D-Sentences: files, training clips, items for evaluation, conversion and checks (docs/data.md).

``AnnotatedFrames`` is shared with JHMDB-Sentences: videos in which single frames have masks. An item is a sentence and
one annotated frame. Its clip is a window of ``num_frames`` around that frame, which is always at ``num_frames // 2``:
at the ends of a video, the first or last frame is repeated. The target has T = 1, the annotated frame; ``annotated`` is
its index in the clip, ``exp_id`` the item's id in the COCO annotations, and ``orig_size`` the size of its mask.

In A2D-Sentences, an item's id is ``v_<video>_f_<frame>_i_<instance>``. The sentence of an instance is an item in every
annotated frame. The conversion makes the lists of items, and the COCO annotations, from the tables of the release.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from datasets.checks import SAMPLE_FRAMES, SAMPLE_VIDEOS, Findings, faults_of
from datasets.clip import ClipDataset, Sample, make_target
from datasets.evaluators import A2dEvaluator, Rle, encode_masks
from datasets.files import (
    DATA_PAGE,
    Conversion,
    plain_name,
    read_coco_masks,
    read_names,
    read_text,
    require_files,
    require_folder,
    visible,
)
from datasets.registry import Dataset, root_of
from datasets.transforms import ClipTransform, build_transform
from util.errors import UserError
from util.files import read_json, reason_of, write_json
from util.parallel import map_videos
from util.text import normalise_sentence
from util.video import read_video_frames

if TYPE_CHECKING:
    from util.config import Config

CLIPS = 3782  # MP4 files of the whole dataset
CLIP_FOLDERS = ("clips320H", "CLIPS320")  # of the two releases
BROKEN_H5 = (
    *(OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError),
    zlib.error,
)
MAX_IDS, MAX_MASKS = 1 << 20, 1 << 28  # bytes of the datasets in an h5 file
MAX_CHUNKS = 1 << 12  # of such a dataset
CHECKSUM = 4  # bytes, which may be compressed with a chunk
SLACK = 2  # pixels: a clip may be scaled and slightly wider or narrower than its masks, because MP4 sides are even

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """A sentence and the annotated frame of its object."""

    id: str  # in the COCO annotations
    video: str
    caption: str  # normalised
    frame: int  # number of the annotated frame, from 1


ItemT = TypeVar("ItemT", bound=Item)


class AnnotatedFrames(ClipDataset, Generic[ItemT]):
    """One clip per item. Subclasses read frames and masks.

    Args:
        num_frames: frames of a clip, at least 1.
        train: replace clips whose object was cropped away, and accept repeated ids.
        listed_in: the file that lists the items, for messages.

    Raises:
        UserError: there is no item, or two items for evaluation have the same id.
    """

    def __init__(
        self, items: Sequence[ItemT], transform: ClipTransform, num_frames: int, train: bool, seed: int, listed_in: Path
    ) -> None:
        super().__init__(seed, replace_invisible=train)
        if not items:
            raise UserError(f"{listed_in} lists no sentence that can be used; fetch it again (see {DATA_PAGE})")
        if not train:
            repeated = [name for name, count in Counter(item.id for item in items).items() if count > 1]
            if repeated:
                raise UserError(f"{listed_in} lists {repeated[0]} twice; a sentence is scored once in a frame")
        self.items = items
        self.transform = transform
        self.num_frames = num_frames

    def __len__(self) -> int:
        return len(self.items)

    def captions(self) -> Iterable[str]:
        """The sentences of all items."""
        return (item.caption for item in self.items)

    @abstractmethod
    def read_window(self, item: ItemT) -> tuple[Tensor, list[int]]:
        """Read an item's clip (see ``clamp``): uint8 ``[T, 3, H, W]``, and the frame numbers, from 1."""

    @abstractmethod
    def read_mask(self, item: ItemT) -> Tensor:
        """Read an item's mask: bool ``[H0, W0]``."""

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform clip ``index``.

        Raises:
            UserError: a file is missing or broken, or the mask does not fit the frames.
        """
        item = self.items[index]
        frames, numbers = self.read_window(item)
        mask = self.read_mask(item)
        masks = fit_mask(mask, (frames.shape[-2], frames.shape[-1]), item)[None]
        frames, masks, caption = self.transform(frames, masks, item.caption, rng)
        target = make_target(
            masks,
            caption=caption,
            orig_size=(mask.shape[0], mask.shape[1]),
            video=item.video,
            exp_id=item.id,
            frame_names=[f"{number:05d}" for number in numbers],
        )
        target["annotated"] = self.num_frames // 2
        return frames, target

    def ground_truth(self, coco_file: Path) -> dict[str, Rle]:
        """Return the ground truth: item id → mask at original size, as run lengths.

        Args:
            coco_file: the COCO annotations; if the file is missing, the masks are read one by one.

        Raises:
            UserError: the file is malformed or lacks an item, or a mask is missing or broken.
        """
        if coco_file.is_file():
            return read_coco_masks(coco_file, [item.id for item in self.items])
        logger.warning("%s is missing: the ground truth is read from the %d mask files", coco_file, len(self.items))
        return {item.id: encode_masks(self.read_mask(item)[None].numpy())[0] for item in self.items}


def clamp(annotated: int, num_frames: int, length: int | None) -> list[int]:
    """Return the frame indices of a clip whose annotated frame is at ``num_frames // 2``.

    Indices past an end of the video are replaced with the first or last frame.

    Args:
        annotated: index of the annotated frame, from 0.
        num_frames: frames of the clip.
        length: number of frames of the video; None if unknown, and then only the start is clamped.
    """
    first = annotated - num_frames // 2
    last = first + num_frames if length is None else length - 1
    return [min(max(index, 0), last) for index in range(first, first + num_frames)]


def fit_mask(mask: Tensor, size: tuple[int, int], item: Item) -> Tensor:
    """Resize a mask ``[H0, W0]`` to its frame's ``size`` (H, W).

    Raises:
        UserError: the aspect ratios differ.
    """
    if mask.shape == size:
        return mask
    height, width = size
    if abs(mask.shape[1] - width * mask.shape[0] / height) > SLACK:
        raise UserError(
            f"the mask of {item.id} is of {mask.shape[1]}×{mask.shape[0]} pixels, and frame {item.frame} of its video "
            f"{item.video} of {width}×{height}; take annotations and videos from one release of the dataset"
        )
    return F.interpolate(mask[None, None].to(torch.uint8), size, mode="nearest-exact")[0, 0].bool()


def read_items_of(path: Path, split: str, form: str, make: Callable[..., ItemT], origin: str = "") -> list[ItemT]:
    """Read a JSON list with one list of values per item.

    Args:
        form: the names of an entry's values, for messages.
        origin: where the file comes from, for messages.
        make: builds an item from the values; any of Python's errors about a wrong value refuses the entry.

    Raises:
        UserError: the file is missing, not JSON or has a different structure, or an entry is refused.
    """
    content = read_json(path, f"the sentences of the {split} split{origin} (see {DATA_PAGE})")
    if not isinstance(content, list):
        raise UserError(f"{path} should be a JSON list of [{form}] (see {DATA_PAGE})")
    items = []
    for number, entry in enumerate(content, start=1):
        try:
            items.append(make(*entry))
        except UserError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{path}, entry {number} is {entry!s:.200}; it should be [{form}] with a sentence and numbers from "
                f"1 on (see {DATA_PAGE})"
            ) from error
    return items


def sentence_of(text: str) -> str:
    """Return the normalised sentence; raise a ``ValueError`` if it is empty."""
    caption = normalise_sentence(text)
    if not caption:
        raise ValueError("no sentence")
    return caption


def number_of(value: int | str, least: int = 1) -> int:
    """Return a whole number, which some releases write as text; raise a ``ValueError`` if it is below ``least``."""
    number = int(value)
    if number < least:
        raise ValueError(f"{number} is below {least}")
    return number


@dataclass(frozen=True)
class A2dItem(Item):
    """An item of A2D-Sentences; ``instance`` is its object's id in the frame's h5 file."""

    instance: int


class A2dClips(AnnotatedFrames[A2dItem]):
    """Clips of A2D-Sentences: a window around each annotated frame, with one mask.

    Raises:
        UserError: a folder or file is missing or malformed; clips and masks are opened when they are read.
    """

    def __init__(self, root: Path, split: str, transform: ClipTransform, num_frames: int, seed: int = 0) -> None:
        require_folder(root, "the folders Release and text_annotations of A2D-Sentences, and its lists of sentences")
        listed_in = _list_file(root, split)
        items = read_items(root, split)
        super().__init__(items, transform, num_frames, split == "train", seed, listed_in)
        self.clips = clip_folder(root)
        self.masks = mask_folder(root)
        require_files([self._clip(item) for item in items], listed_in)
        require_files([self.masks / item.video for item in items], listed_in)

    def read_window(self, item: A2dItem) -> tuple[Tensor, list[int]]:
        path, annotated = self._clip(item), item.frame - 1
        frames, indices = read_video_frames(path, clamp(annotated, self.num_frames, None))
        if indices[self.num_frames // 2] != annotated:
            raise UserError(
                f"video {path} has {indices[-1] + 1} frames, and frame {item.frame} of it is annotated; fetch or "
                "extract this file again"
            )
        return torch.from_numpy(frames).permute(0, 3, 1, 2), [index + 1 for index in indices]

    def read_mask(self, item: A2dItem) -> Tensor:
        return read_instance_mask(self.masks / item.video / f"{item.frame:05d}.h5", item.instance)

    def _clip(self, item: A2dItem) -> Path:
        return self.clips / f"{item.video}.mp4"


def build_clips(cfg: Config, split: str) -> A2dClips:
    """Build the augmented training clips (``train``) or the items for evaluation (``test``)."""
    return A2dClips(root_of(cfg), split, build_transform(cfg, split == "train"), cfg.num_frames, cfg.seed)


def build_evaluator(cfg: Config) -> A2dEvaluator:
    """Build the evaluator with the ground truth of ``cfg.split``; ``train`` is refused because it is augmented."""
    if cfg.split == "train":
        raise UserError("A2D-Sentences is scored on its test split, not on 'train'; leave --split out")
    return A2dEvaluator(build_clips(cfg, cfg.split).ground_truth(_coco_file(root_of(cfg), cfg.split)))


def read_items(root: Path, split: str) -> list[A2dItem]:
    """Read the items of a split, without those of the videos in ``a2d_missed_videos.txt``.

    Raises:
        UserError: a file is missing or malformed.
    """
    path = _list_file(root, split)

    def make(sentence: Any, *rest: Any) -> A2dItem:
        # Some lists that are passed around have a short sentence after the sentence.
        video, frame, instance = rest[1:] if len(rest) == 4 else rest
        name, number, obj = plain_name(video, path, "a video"), number_of(frame), number_of(instance, 0)
        return _item(sentence, name, number, obj)

    origin = ", as `python -m scripts.prepare_data a2d` writes them"
    items = read_items_of(path, split, "sentence, video, frame, instance", make, origin)
    missed = _missed_videos(root)
    used = [item for item in items if item.video not in missed]
    if len(used) < len(items):
        logger.warning(
            "%d sentences of %s are left out: a2d_missed_videos.txt lists their videos", len(items) - len(used), path
        )
    return used


def read_instance_mask(path: Path, instance: int) -> Tensor:
    """Read the mask of one instance from an annotated frame's h5 file: bool ``[H, W]``.

    The file's ``reMask`` is (instances, W, H), as MATLAB writes it, without the first axis if there is one instance.

    Raises:
        UserError: the file is missing or broken, or lacks the instance.
    """
    if not path.is_file():
        raise UserError(f"mask {path} is missing; the sentences name it (see {DATA_PAGE})")
    try:
        with h5py.File(path, "r") as file:
            ids, masks = np.ravel(_h5_values(file, "instance", MAX_IDS)).tolist(), _h5_values(file, "reMask", MAX_MASKS)
    except BROKEN_H5 as error:
        raise UserError(
            f"mask {path} is broken ({reason_of(path, error)}); fetch or extract this file again"
        ) from error
    if masks.ndim == 2:
        masks = masks[None]
    if masks.ndim != 3 or len(masks) != len(ids):
        raise UserError(
            f"mask {path} has a 'reMask' of shape {masks.shape} for {len(ids)} instances; it should be (instances, "
            "width, height)"
        )
    if instance not in ids:
        raise UserError(f"mask {path} has no instance {instance}, which a sentence names; it has {ids}")
    return torch.from_numpy(np.ascontiguousarray(masks[ids.index(instance)].T != 0))


def _h5_values(file: h5py.File, name: str, limit: int) -> np.ndarray:
    """Read a dataset of numbers that the file itself holds; raises one of ``BROKEN_H5``.

    A link is not followed, and each chunk is decompressed to its declared size at most: HDF5 has no such limit.
    """
    if file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{name!r} is a link to other data")
    values = file[name]
    if not isinstance(values, h5py.Dataset) or values.dtype.kind not in "biuf":
        raise ValueError(f"{name!r} is not an array of numbers")
    if values.external or values.is_virtual:
        raise ValueError(f"the values of {name!r} are in another file")
    if values.nbytes > limit:
        raise ValueError(f"{name!r} has {values.nbytes} bytes, and at most {limit} are read")
    if values.chunks is not None:
        _require_small_chunks(values, limit)
    return np.asarray(values[()])


def _require_small_chunks(values: h5py.Dataset, limit: int) -> None:
    """Raise a ``ValueError`` if a chunk expands to more than it declares, or has another compression than gzip."""
    size = math.prod(values.chunks) * values.dtype.itemsize
    properties = values.id.get_create_plist()
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    gzip, others = h5py.h5z.FILTER_DEFLATE, {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
    count = values.id.get_num_chunks()
    if size > limit or count > MAX_CHUNKS or filters.count(gzip) > 1 or not set(filters) <= {gzip, *others}:
        raise ValueError(f"{values.name!r} has {count} chunks of {size} bytes with filters {filters}")
    for number in range(count if gzip in filters else 0):
        skipped, content = values.id.read_direct_chunk(values.id.get_chunk_info(number).chunk_offset)
        if skipped >> filters.index(gzip) & 1:  # as HDF5 stores what gzip would enlarge
            continue
        if len(zlib.decompressobj().decompress(content, size + CHECKSUM + 1)) > size + CHECKSUM:
            raise ValueError(f"a chunk of {values.name!r} expands to more than its {size} bytes")


def _item(sentence: str, video: str, frame: int, instance: int) -> A2dItem:
    return A2dItem(f"v_{video}_f_{frame}_i_{instance}", video, sentence_of(sentence), frame, instance)


def _missed_videos(root: Path) -> list[str]:
    """Read the names of the videos without items; the file may be missing."""
    listed = root / "text_annotations" / "a2d_missed_videos.txt"
    return read_names(listed) if listed.is_file() else []


def _list_file(root: Path, split: str) -> Path:
    return root / f"a2d_sentences_single_frame_{split}_annotations.json"


def _coco_file(root: Path, split: str) -> Path:
    return root / f"a2d_sentences_{split}_annotations_in_coco_format.json"


def clip_folder(root: Path) -> Path:
    """Return the folder of MP4 files, whose name depends on the release.

    Raises:
        UserError: it is missing.
    """
    folders = [root / "Release" / name for name in CLIP_FOLDERS]
    return next((folder for folder in folders if folder.is_dir()), None) or require_folder(
        folders[0], f"the clips as MP4 files (or {CLIP_FOLDERS[1]} in its place)"
    )


def mask_folder(root: Path) -> Path:
    """Return the folder of masks.

    Raises:
        UserError: it is missing.
    """
    return require_folder(root / "text_annotations" / "a2d_annotation_with_instances", "a folder of h5 masks per video")


def check(row: Dataset, root: Path, splits: Sequence[str], findings: Findings) -> None:
    """Check A2D-Sentences."""
    clips = findings.attempt(clip_folder, root)
    masks = findings.attempt(mask_folder, root)
    if clips is not None:
        findings.count("clips", len(visible(clips.glob("*.mp4"))), CLIPS)
    for split in splits:
        items = findings.attempt(read_items, root, split)
        if items is None:
            continue
        videos = group_by_video(items)
        findings.count(f"{split}: videos with sentences", len(videos), row.splits[split].videos)
        findings.count(f"{split}: items", len(items))
        if _coco_file(root, split).is_file():
            findings.attempt(read_coco_masks, _coco_file(root, split), [item.id for item in items])
        if clips is None or masks is None:
            continue
        lister = f"the list of the {split} split"
        there = set(findings.present(clips, [f"{name}.mp4" for name in videos], lister))
        for name, of_video in videos.items():
            there.update(findings.present(masks / name, [f"{item.frame:05d}.h5" for item in of_video], lister))
        findings.files += len(there)
        for name in findings.sample(list(videos), SAMPLE_VIDEOS):
            clip, folder = clips / f"{name}.mp4", masks / name
            chosen = [item for item in videos[name] if folder / f"{item.frame:05d}.h5" in there]
            chosen = list(findings.sample(chosen, SAMPLE_FRAMES))
            if clip in there:
                findings.open_later(1 + len({item.frame for item in chosen}), open_clip, clip, folder, chosen)


def group_by_video(items: Sequence[ItemT]) -> dict[str, list[ItemT]]:
    """Group items by the name of their video."""
    videos: dict[str, list[ItemT]] = {}
    for item in items:
        videos.setdefault(item.video, []).append(item)
    return videos


def open_clip(clip: Path, masks: Path, items: Sequence[A2dItem]) -> list[str]:
    """Decode a clip to its last annotated frame, and the items' masks; return a sentence for each that is broken."""
    numbers = sorted({item.frame for item in items}) or [1]
    try:
        frames, indices = read_video_frames(clip, [number - 1 for number in numbers])
    except UserError as error:
        return [str(error)]
    size, last = frames.shape[1:3], indices[-1] + 1
    faults = [f"video {clip} has {last} frames, and frame {numbers[-1]} is annotated"] if last < numbers[-1] else []

    def read(item: A2dItem) -> Tensor:
        return fit_mask(read_instance_mask(masks / f"{item.frame:05d}.h5", item.instance), size, item)

    return faults + faults_of(partial(read, item) for item in items)


SUBSETS = {"0": "train", "1": "test"}  # in the last column of videoset.csv
VIDEOSET = "video, label, start, end, height, width, frames, annotated frames, subset"  # its columns; it has no header
SENTENCES = ("video_id", "instance_id", "query")  # columns of a2d_annotation.txt; some copies have more

_FRAME_FILE = re.compile(r"(?!0+\.)[0-9]{5}\.h5")  # excludes macOS's ._00001.h5
_INSTANCE = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class _Row:
    """A line of a2d_annotation.txt."""

    line: int
    video: str
    instance: str  # a number, but for a "1 (copy)" in the release
    sentence: str  # in lower case


Frames = dict[int, dict[int, Rle | None]]  # annotated frame → instance → its mask, which is None if it is not needed


def convert_a2d(a2d_root: str | Path, output_dir: str | Path | None = None, workers: int = 1) -> Conversion:
    """Write the lists of sentences of both splits, and the COCO annotations of ``test``. The release is only read.

    A sentence is an item of each annotated frame whose h5 file has its instance. Items are in the order of the lines of
    ``a2d_annotation.txt``, and of the frames. Bounding boxes are those of the masks.

    Args:
        a2d_root: the folder of ``Release/videoset.csv``, and of ``text_annotations/`` with ``a2d_annotation.txt``, the
            h5 files and, optionally, ``a2d_missed_videos.txt``.
        output_dir: gets the three files; None means ``a2d_root``, where the loader reads them. The list of a split
            without items is not written.
        workers: processes that read the h5 files.

    Raises:
        UserError: a file or folder is missing, malformed or broken, or no sentence has a mask.
    """
    a2d_root = Path(a2d_root)
    output_dir = a2d_root if output_dir is None else Path(output_dir)
    require_folder(a2d_root, "the folders Release and text_annotations of A2D-Sentences")
    masks = mask_folder(a2d_root)
    subsets = _read_subsets(a2d_root / "Release" / "videoset.csv")
    listed = a2d_root / "text_annotations" / "a2d_annotation.txt"
    dropped: dict[str, list[_Row]] = {}
    rows = _usable(_read_sentences(listed), subsets, _missed_videos(a2d_root), dropped)
    jobs = list(dict.fromkeys((row.video, subsets[row.video] == "test") for row in rows))
    read = map_videos(partial(_read_video, masks), jobs, workers)
    videos = {video: frames for (video, _), frames in zip(jobs, read, strict=True)}
    placed = [(row, frames) for row in rows if (frames := _frames_of(row, videos[row.video], dropped))]
    summary = Conversion(
        notes=[
            f"sentences left out because {reason}: {len(left)} (first: line {left[0].line}, instance "
            f"{left[0].instance!r:.40} of {left[0].video})"
            for reason, left in dropped.items()
        ]
    )
    if not placed:
        raise UserError("; ".join([f"no sentence of {listed} can be used", *summary.notes]) + f" (see {DATA_PAGE})")
    documents: dict[Path, Any] = {}
    for split in SUBSETS.values():
        of_split = [(row, frames) for row, frames in placed if subsets[row.video] == split]
        entries = [(row.sentence, row.video, frame, int(row.instance)) for row, frames in of_split for frame in frames]
        items = [_item(*entry) for entry in entries]
        summary.videos[split] = len({item.video for item in items})
        summary.frames[split] = len({(item.video, item.frame) for item in items})
        summary.expressions[split] = len(of_split)
        summary.items[split] = len(items)
        path = _list_file(output_dir, split)
        if not items:
            summary.notes.append(f"no sentence of {split} can be used; its list is not written")
            continue
        if path.is_file() and not _lists(output_dir, split, items):
            summary.notes.append(f"{path} held other items, or could not be read, and is replaced")
        documents[path] = entries
        if split == "test":
            documents[_coco_file(output_dir, split)] = _coco_document(items, videos)
    for path, document in documents.items():
        write_json(path, document, indent=None)
    return summary


def _read_table(path: Path, what: str) -> list[tuple[int, list[str]]]:
    """Read a CSV file: the number and the values of each line that is not empty.

    Raises:
        UserError: it is missing, empty or not a CSV file.
    """
    reader = csv.reader(io.StringIO(read_text(path, what, "utf-8-sig"), newline=""))
    table, line = [], 1
    try:
        for values in reader:
            if any("\n" in value or "\r" in value for value in values):
                raise csv.Error("a quotation mark is not closed")
            if any(value.strip() for value in values):
                table.append((line, values))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line} is not a line of a CSV file ({error}); correct it") from error
    if not table:
        raise UserError(f"{path} is empty; it should hold {what} (see {DATA_PAGE})")
    return table


def _read_subsets(path: Path) -> dict[str, str]:
    """Read the split of each video."""
    subsets: dict[str, str] = {}
    for line, values in _read_table(path, f"the columns {VIDEOSET}"):
        if len(values) != len(VIDEOSET.split(", ")) or values[-1].strip() not in SUBSETS:
            raise UserError(
                f"{path}, line {line} is {','.join(values)!r:.160}; it should be: {VIDEOSET} (0 is train, 1 is test)"
            )
        name, split = plain_name(values[0].strip(), path, "a video"), SUBSETS[values[-1].strip()]
        if subsets.setdefault(name, split) != split:
            raise UserError(f"{path}, line {line} lists {name} as {split}, and an earlier line in the other split")
    return subsets


def _read_sentences(path: Path) -> list[_Row]:
    """Read the lines of ``a2d_annotation.txt``, whose columns are found by their names."""
    (_, header), *table = _read_table(path, f"the columns {', '.join(SENTENCES)}")
    header = [name.strip() for name in header]
    absent = [name for name in SENTENCES if name not in header]
    if absent:
        raise UserError(f"{path} has no column {absent[0]!r}; its first line should be {','.join(SENTENCES)}")
    places = [header.index(name) for name in SENTENCES]
    rows = []
    for line, values in table:
        if not max(places) < len(values) <= len(header):
            raise UserError(
                f"{path}, line {line} has {len(values)} values for {len(header)} columns; it should be "
                f"{','.join(header)}, with quotation marks around a sentence that has commas"
            )
        video, instance, sentence = (values[place] for place in places)
        rows.append(_Row(line, plain_name(video.strip(), path, "a video"), instance.strip(), sentence.lower()))
    return rows


def _usable(
    rows: Sequence[_Row], subsets: dict[str, str], missed: Sequence[str], dropped: dict[str, list[_Row]]
) -> list[_Row]:
    """Return the sentences that can be used; add the others to ``dropped``, by the reason."""
    used: list[_Row] = []
    seen: set[tuple[str, int]] = set()
    for row in rows:
        if row.video not in subsets:
            reason = "videoset.csv does not list their video"
        elif row.video in missed:
            reason = "a2d_missed_videos.txt lists their video"
        elif not _INSTANCE.fullmatch(row.instance):
            reason = "their instance is not a number"
        elif not normalise_sentence(row.sentence):
            reason = "they are empty"
        elif subsets[row.video] == "test" and (row.video, int(row.instance)) in seen:
            reason = "an earlier line of the test split has the same instance"
        else:
            seen.add((row.video, int(row.instance)))
            used.append(row)
            continue
        dropped.setdefault(reason, []).append(row)
    return used


def _read_video(masks: Path, job: tuple[str, bool]) -> Frames:
    """Read the instances in each annotated frame of a video, and their masks if the second value of ``job`` is True.

    A video without a folder has no annotated frame.
    """
    video, with_masks = job
    folder = masks / video
    paths = sorted(path for path in folder.iterdir() if _FRAME_FILE.fullmatch(path.name)) if folder.is_dir() else []
    frames: Frames = {}
    for path in paths:
        try:
            with h5py.File(path, "r") as file:
                ids = [int(instance) for instance in np.ravel(_h5_values(file, "instance", MAX_IDS))]
        except BROKEN_H5 as error:
            reason = reason_of(path, error)
            raise UserError(f"mask {path} is broken ({reason}); fetch or extract this file again") from error
        frames[int(path.stem)] = {
            instance: encode_masks(read_instance_mask(path, instance)[None].numpy())[0] if with_masks else None
            for instance in ids
        }
    return frames


def _frames_of(row: _Row, frames: Frames, dropped: dict[str, list[_Row]]) -> list[int]:
    """Return the frames with a sentence's instance; if there is none, add the sentence to ``dropped``."""
    present = [frame for frame, masks in frames.items() if int(row.instance) in masks]
    if not present:
        reason = "no h5 file has their instance" if frames else "their video has no folder of h5 files"
        dropped.setdefault(reason, []).append(row)
    return present


def _coco_document(items: Sequence[A2dItem], videos: dict[str, Frames]) -> dict[str, Any]:
    """Return COCO annotations with one image and one annotation for each item."""
    images, annotations = [], []
    for number, item in enumerate(items, start=1):
        mask = videos[item.video][item.frame][item.instance]
        assert mask is not None
        height, width = mask["size"]
        images.append({"id": item.id, "height": height, "width": width})
        annotations.append(
            {
                "id": number,
                "image_id": item.id,
                "category_id": 1,
                "iscrowd": 0,
                "area": int(coco_mask.area(mask)),
                "bbox": coco_mask.toBbox(mask).tolist(),
                "segmentation": {"size": [height, width], "counts": mask["counts"].decode("ascii")},
            }
        )
    return {"categories": [{"id": 1, "name": "dummy_class"}], "images": images, "annotations": annotations}


def _lists(root: Path, split: str, items: Sequence[A2dItem]) -> bool:
    """Whether the list of a split can be read and holds these items."""
    try:
        return read_items(root, split) == items
    except UserError:
        return False
