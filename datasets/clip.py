"""Clips: what a dataset returns, how frames are drawn, and how clips become batches.

Letters: B clips, T frames, H×W padded size, h×w size of one clip after its transforms.
"""

from __future__ import annotations

import atexit
import multiprocessing
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.ops import box_convert, masks_to_boxes

from datasets.expressions import Entry
from datasets.files import read_frames
from datasets.transforms import ClipTransform
from util.device import upload
from util.distributed import rank, world_size
from util.errors import UserError, printable
from util.guard import WorkerSignals
from util.preprocessing import IMAGENET_MEAN, IMAGENET_STD, pad_clips

BATCH_MULTIPLE = 32  # pixels: the padded size of training clips and evaluated items is a multiple of it
LOCAL_REACH = 3  # frames: greatest distance of the two neighbours from the start frame
MAX_REPLACEMENTS = 100


class Target(TypedDict):
    """The ground truth of a clip: one referred object, or none."""

    caption: str  # lower-cased, whitespace-normalised
    boxes: Tensor  # float32 [T, 4], (cx, cy, w, h) in 0…1 of the unpadded frame; 0, 0, 0, 0 where invisible
    masks: Tensor  # bool [T, h, w]
    valid: Tensor  # int64 [T], 1 where the object has a pixel
    size: Tensor  # int64 [2], (h, w) after the transforms
    orig_size: Tensor  # int64 [2], (height, width) on disk
    video: str
    exp_id: str
    frame_names: list[str]
    negative: bool  # the sentence refers to nothing in the video: no mask, box or valid frame
    annotated: NotRequired[int]  # index of the only annotated frame; boxes, masks and valid then have T = 1


Sample = tuple[Tensor, Target]  # frames float32 [T, 3, h, w], ImageNet-normalised, and the ground truth


@dataclass(frozen=True)
class ClipBatch:
    """Clips padded with zeros (the mean colour) on the right and bottom to one size."""

    frames: Tensor  # float32 [B, T, 3, H, W]
    padding: Tensor  # bool [B, H, W], True where there is no frame
    captions: list[str]
    targets: list[Target]  # their masks keep each clip's own size [T, h, w]

    @property
    def annotated(self) -> Tensor | None:
        """Index of each clip's only annotated frame ``[B]``, on the frames' device; None if all are annotated."""
        indices = [target.get("annotated") for target in self.targets]
        return None if None in indices else upload(torch.tensor(indices), self.frames.device)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClipBatch:
        """Return the batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ClipBatch:
        """Return the batch in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Any) -> ClipBatch:
        targets: list[Any] = [
            {key: change(value) if isinstance(value, Tensor) else value for key, value in target.items()}
            for target in self.targets
        ]
        return replace(self, frames=change(self.frames), padding=change(self.padding), targets=targets)


def collate(samples: Sequence[Sample], multiple: int = BATCH_MULTIPLE) -> ClipBatch:
    """Pad clips of equal length to the largest height and width, each rounded up to a multiple of ``multiple``."""
    frames, padding = pad_clips([frames for frames, _ in samples], multiple)
    targets = [target for _, target in samples]
    return ClipBatch(frames, padding, [target["caption"] for target in targets], targets)


def make_target(
    masks: Tensor,
    *,
    caption: str,
    orig_size: tuple[int, int],
    video: str,
    exp_id: str,
    frame_names: list[str],
    negative: bool = False,
) -> Target:
    """Build the ground truth of a clip from its transformed masks, bool ``[T, h, w]``.

    Boxes are computed from the transformed masks, because a transformed box would still cover what a crop has removed.
    They enclose the pixels' whole area, so a single pixel has a box of 1×1.
    """
    height, width = masks.shape[-2:]
    valid = masks.flatten(1).any(1)
    corners = masks_to_boxes(masks)
    corners[:, 2:] += 1  # from the last pixel's index to its far edge
    corners /= torch.tensor([width, height, width, height])
    return Target(
        caption=caption,
        boxes=box_convert(corners, "xyxy", "cxcywh") * valid[:, None],
        masks=masks,
        valid=valid.long(),
        size=torch.tensor([height, width]),
        orig_size=torch.tensor(orig_size),
        video=video,
        exp_id=exp_id,
        frame_names=frame_names,
        negative=negative,
    )


def sample_frames(
    length: int,
    start: int,
    num_frames: int,
    rng: np.random.Generator,
    reverse_probability: float = 0.3,
    near: bool = True,
) -> list[int]:
    """Draw the frame indices of a training clip.

    The start frame, one 1–3 frames before it and one 1–3 after (clamped to the video, so an end frame can occur
    twice), the rest from the remaining frames; in temporal order or, with ``reverse_probability``, reversed. A clip
    of two frames has the start frame and one neighbour. Frames of a video that is too short are repeated.

    Args:
        length: number of frames of the video, at least 1.
        start: index of the start frame.
        num_frames: number of indices to return, at least 1.
        rng: the source of randomness.
        near: False draws all frames at random.
    """
    before = max(0, start - int(rng.integers(1, LOCAL_REACH, endpoint=True)))
    after = min(length - 1, start + int(rng.integers(1, LOCAL_REACH, endpoint=True)))
    neighbours = [before, after] if rng.random() < 0.5 else [after, before]
    indices = [start, *neighbours][:num_frames] if near else []
    remaining = rng.permutation([index for index in range(length) if index not in indices])
    indices += remaining[: num_frames - len(indices)].tolist()
    indices += np.resize(rng.permutation(length), num_frames - len(indices)).tolist()
    return sorted(indices, reverse=bool(rng.random() < reverse_probability))


class ClipDataset(Dataset[Sample], ABC):
    """A dataset of clips whose randomness depends on (seed, epoch, index) only.

    The clips of a run are therefore the same for any number of workers, and after a resume.

    Args:
        seed: the run's seed, at least 0.
        replace_invisible: replace a clip whose object has no pixel left in any frame. Negatives are kept, because they
            have none by definition.

    Attributes:
        skip_broken: also replace a clip whose files are broken, and report it on stderr.
        near: whether two frames of a training clip are close to its start frame (``sample_frames``).
    """

    skip_broken = False
    near = True

    def __init__(self, seed: int, replace_invisible: bool) -> None:
        self.seed = seed
        self.replace_invisible = replace_invisible
        # In shared memory, so that persistent workers see the new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._broken = multiprocessing.Value("q", 0)

    @property
    def broken(self) -> int:
        """Number of broken clips that this process and its data workers have replaced."""
        return self._broken.value

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, before the loader is iterated."""
        self._epoch.fill_(epoch)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def captions(self) -> Iterable[str]:
        """The sentences of all clips before any transform; some may occur twice."""

    @abstractmethod
    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform clip ``index``; ``rng`` is the only source of randomness."""

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        for _ in range(MAX_REPLACEMENTS):
            try:
                frames, target = self.load(index, rng)
            except UserError as error:
                if not self.replace_invisible:
                    raise
                if not self.skip_broken:
                    raise UserError(f"{error}; or use --skip_broken to train without such clips") from error
                self._report_broken(index, error)
                fault = f"are broken, the last one because {error}"
            else:
                if not self.replace_invisible or target["negative"] or target["valid"].any():
                    return frames, target
                fault = (
                    f"show no pixel of their object, the last one of video {target['video']!r}, expression "
                    f"{target['exp_id']!r}; check that the masks hold the object ids"
                )
            index = int(rng.integers(len(self)))
        raise UserError(f"{MAX_REPLACEMENTS} clips drawn one after another {fault}")

    def _report_broken(self, index: int, error: UserError) -> None:
        with self._broken.get_lock():
            self._broken.value += 1
        reason = printable(error)
        print(f"note: clip {index} is replaced with another one (--skip_broken): {reason}", file=sys.stderr, flush=True)


class ExpressionClips(ClipDataset):
    """Clips of videos with expressions, as in Ref-YouTube-VOS and MeViS. Subclasses read the masks.

    For training, there is one clip per expression and start frame, every ``num_frames`` frames. For evaluation
    (``num_frames`` None), there is one clip per expression with all frames of its video, and none is replaced.

    Args:
        videos: name → frames and expressions. An expression has a ``caption`` and says whether it is ``negative``.
        images: the folder of ``<video>/<frame>.jpg``.
        num_frames: frames per clip, at least 1, or None.
        reverse_probability: share of reversed training clips.

    Raises:
        UserError: there is no expression.
    """

    def __init__(
        self,
        videos: Mapping[str, Entry[Any]],
        images: Path,
        transform: ClipTransform,
        num_frames: int | None,
        seed: int = 0,
        reverse_probability: float = 0.3,
    ) -> None:
        super().__init__(seed, replace_invisible=num_frames is not None)
        self.videos = videos
        self.images = images
        self.transform = transform
        self.num_frames = num_frames
        self.reverse_probability = reverse_probability
        self._expressions = [(name, exp_id) for name, video in videos.items() for exp_id in video.expressions]
        # An array, because workers would copy the reference counts of a list of a hundred thousand tuples.
        self._clips = np.array(
            [
                (number, start)
                for number, (name, _) in enumerate(self._expressions)
                for start in range(0, len(videos[name].frames), num_frames or len(videos[name].frames))
            ]
        )
        if not len(self._clips):
            raise UserError(f"the videos of {images} have no expression; their expressions file should list some")

    def __len__(self) -> int:
        return len(self._clips)

    def captions(self) -> Iterable[str]:
        """The sentences of all clips."""
        return (self.videos[name].expressions[exp_id].caption for name, exp_id in self._expressions)

    @abstractmethod
    def read_mask(self, video: str, exp_id: str, index: int, size: tuple[int, int]) -> Tensor:
        """Read the mask of an expression's object in frame ``index``: bool ``[H, W]``. Not called for negatives."""

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform clip ``index``.

        Raises:
            UserError: a frame or mask is missing, broken or of a different size.
        """
        number, start = self._clips[index].tolist()
        name, exp_id = self._expressions[number]
        video = self.videos[name]
        expression = video.expressions[exp_id]
        length = len(video.frames)
        indices = (
            list(range(length))
            if self.num_frames is None
            else sample_frames(length, start, self.num_frames, rng, self.reverse_probability, self.near)
        )
        names = [video.frames[i] for i in indices]

        frames = torch.stack(read_frames([self.images / name / f"{frame}.jpg" for frame in names]))
        height, width = frames.shape[-2:]
        if expression.negative:
            masks = torch.zeros(len(names), height, width, dtype=torch.bool)
        else:
            read = {i: self.read_mask(name, exp_id, i, (height, width)) for i in dict.fromkeys(indices)}
            masks = torch.stack([read[i] for i in indices])

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


class ClipLoader(DataLoader[Sample]):
    """A ``DataLoader`` that raises a worker's ``UserError`` without the worker's traceback.

    Signals to the process group do not end the workers, so that the run can finish its step.
    """

    def __init__(self, dataset: Dataset[Sample], **options: Any) -> None:
        signals = WorkerSignals()
        super().__init__(dataset, worker_init_fn=signals, **options)
        atexit.register(signals.close)

    def __iter__(self) -> Iterator[ClipBatch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except UserError as error:
            raise UserError(str(error).rstrip().rpartition("UserError: ")[2]) from None


class EpochBatches(Sampler[list[int]]):
    """Shuffled batches of one process, without an incomplete last step.

    Batches depend on seed, epoch and position only, so that a run can resume at any step.

    Args:
        length: number of clips.
        batch_size: clips per process and step.
        rank: this process, from 0.
        world_size: number of processes. Together they see each clip at most once per epoch.
        accumulate: batches per step. A step has the clips of one batch that is that many times larger.

    A dataset smaller than one step of all processes is repeated to fill it.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.epoch, self.first = 0, 0

    def set_position(self, epoch: int, first: int = 0) -> None:
        """Set the epoch, from 0, and its first step."""
        self.epoch, self.first = epoch, first

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of a whole epoch."""
        return max(1, self.length // (self.batch_size * self.world_size * self.accumulate))

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        shape = (self.steps_per_epoch, self.accumulate, self.world_size, self.batch_size)
        order = np.resize(order, shape)[self.first :, :, self.rank]
        for batch in order.reshape(-1, self.batch_size):
            yield batch.tolist()


class JointClips(ClipDataset):
    """The clips of several datasets, one dataset after the other; a dataset may occur several times.

    A clip depends on seed, epoch and its index in the whole, so a repeated part gives different clips each time. A clip
    without a visible object is replaced by any clip of the whole.

    Args:
        parts: the datasets, at least one.
        seed: the run's seed; the parts' own seeds and epochs have no effect.
    """

    def __init__(self, parts: Sequence[ClipDataset], seed: int) -> None:
        super().__init__(seed, replace_invisible=True)
        assert parts
        self.parts = list(parts)
        self._ends = np.array(list(accumulate(len(part) for part in parts)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def captions(self) -> Iterable[str]:
        """The sentences of all parts."""
        return chain.from_iterable(part.captions() for part in self.parts)

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform clip ``index`` of the whole.

        Raises:
            UserError: one of its files is missing or broken.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[number]
        return part.load(index - (int(self._ends[number]) - len(part)), rng)


class EpochLoader:
    """Training batches of this process, from any position in a run.

    Args:
        batch_size: clips per process and batch.
        accumulate: batches per step.
        num_workers: processes that load clips; 0 loads them in this process.
    """

    def __init__(
        self, dataset: ClipDataset, batch_size: int, seed: int, accumulate: int, num_workers: int, pin_memory: bool
    ) -> None:
        self.dataset = dataset
        self.batches = EpochBatches(len(dataset), batch_size, seed, rank(), world_size(), accumulate)
        self.loader = ClipLoader(
            dataset,
            batch_sampler=self.batches,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
        )

    def __call__(self, epoch: int, first: int) -> Iterator[ClipBatch]:
        """Iterate over the batches of an epoch, from step ``first`` on."""
        self.dataset.set_epoch(epoch)
        self.batches.set_position(epoch, first)
        return iter(self.loader)


def denormalise(frames: Tensor) -> Tensor:
    """Undo the ImageNet normalisation: float ``[..., 3, H, W]`` to uint8 images."""
    mean, std = (frames.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((frames * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
