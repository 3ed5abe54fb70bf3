"""The contract of a clip: what a dataset returns, how its frames are drawn, how clips become a batch.

Letters: B clips, T frames, H×W padded size, h×w size of one clip after its transforms.
"""

from __future__ import annotations

import atexit
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import box_convert, masks_to_boxes

from util.errors import UserError
from util.frames import IMAGENET_MEAN, IMAGENET_STD
from util.guard import WorkerSignals
from util.padding import pad_clips

LOCAL_REACH = 3  # frames: how far the two neighbours of the start frame may lie from it
MAX_REPLACEMENTS = 100


class Target(TypedDict):
    """The truth of a clip: one referred object, or none."""

    caption: str  # lower-cased, whitespace-normalised
    boxes: Tensor  # float32 [T, 4], (cx, cy, w, h) in 0…1 of the unpadded frame; 0, 0, 0, 0 where invisible
    masks: Tensor  # bool [T, h, w]
    valid: Tensor  # int64 [T], 1 where the object has a pixel
    size: Tensor  # int64 [2], (h, w) after the transforms
    orig_size: Tensor  # int64 [2], (height, width) on disk
    video: str
    exp_id: str
    frame_names: list[str]
    negative: bool  # the sentence names nothing in the video: no mask, no box, no valid frame
    annotated: NotRequired[int]  # the one annotated frame's index in the clip; boxes, masks and valid have T = 1 then


Sample = tuple[Tensor, Target]  # frames float32 [T, 3, h, w], ImageNet-normalised, and the truth


@dataclass(frozen=True)
class ClipBatch:
    """Clips padded with zeros (the mean colour) on the right and bottom to one size.

    Attributes:
        frames: float32 ``[B, T, 3, H, W]``.
        padding: bool ``[B, H, W]``, True where there is no frame.
        captions: B sentences.
        targets: B targets; their masks keep each clip's own size ``[T, h, w]``.
    """

    frames: Tensor
    padding: Tensor
    captions: list[str]
    targets: list[Target]

    @property
    def annotated(self) -> Tensor | None:
        """Index of each clip's one annotated frame ``[B]``, on the frames' device; None where all are annotated."""
        indices = [target.get("annotated") for target in self.targets]
        return None if None in indices else torch.tensor(indices, device=self.frames.device)

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


def collate(samples: Sequence[Sample], multiple: int = 32) -> ClipBatch:
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
    """Build the truth of a clip from its transformed masks, bool ``[T, h, w]``.

    Boxes are taken from the masks after the transforms: where a crop has cut an object, a transformed box would still
    claim what is no longer in it. They enclose the pixels' whole area, so that a single pixel has a box of 1×1.
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
    length: int, start: int, num_frames: int, rng: np.random.Generator, reverse_probability: float = 0.3
) -> list[int]:
    """Draw the frame indices of a training clip.

    The start frame, one 1–3 frames before it and one 1–3 after (clamped to the video, so an end frame can occur
    twice), the rest from the remaining frames; in order of time, or, with ``reverse_probability``, in reverse. Two
    frames are the start and one of its neighbours. A video with too few frames is filled up with repeated ones.

    Args:
        length: number of frames of the video, at least 1.
        start: index of the start frame.
        num_frames: number of indices to return, at least 1.
        rng: the source of randomness.
        reverse_probability: how often the clip runs backwards.
    """
    before = max(0, start - int(rng.integers(1, LOCAL_REACH, endpoint=True)))
    after = min(length - 1, start + int(rng.integers(1, LOCAL_REACH, endpoint=True)))
    neighbours = [before, after] if rng.random() < 0.5 else [after, before]
    indices = [start, *neighbours][:num_frames]
    remaining = rng.permutation([index for index in range(length) if index not in indices])
    indices += remaining[: num_frames - len(indices)].tolist()
    indices += np.resize(rng.permutation(length), num_frames - len(indices)).tolist()
    return sorted(indices, reverse=bool(rng.random() < reverse_probability))


class ClipDataset(Dataset[Sample], ABC):
    """Clips whose randomness is a function of (seed, epoch, index) alone.

    So a run gives the same clips with any number of workers, and a resumed one those of a run that never stopped.

    Args:
        seed: of the run, at least 0.
        replace_invisible: give another clip in place of one whose object has no pixel left in any frame. Negatives
            stay: they never had one.
    """

    def __init__(self, seed: int, replace_invisible: bool) -> None:
        self.seed = seed
        self.replace_invisible = replace_invisible
        # Shared memory: workers that outlive an epoch (persistent_workers) see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0; call it before the loader is iterated."""
        self._epoch.fill_(epoch)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform clip ``index``, drawing from ``rng`` only."""

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        for _ in range(MAX_REPLACEMENTS):
            frames, target = self.load(index, rng)
            if not self.replace_invisible or target["negative"] or target["valid"].any():
                return frames, target
            index = int(rng.integers(len(self)))
        raise UserError(
            f"{MAX_REPLACEMENTS} clips drawn one after another show no pixel of their object, the last one of "
            f"video {target['video']!r}, expression {target['exp_id']!r}; check that the masks hold the object ids"
        )


class ClipLoader(DataLoader[Sample]):
    """A ``DataLoader`` that hands a worker's ``UserError`` on as its one sentence, without the worker's traceback.

    Signals that reach its processes beside the run's own do not end them: the run may want to finish its step.
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


def denormalise(frames: Tensor) -> Tensor:
    """Undo the ImageNet normalisation: float ``[..., 3, H, W]`` → uint8, for pictures."""
    mean, std = (frames.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((frames * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
