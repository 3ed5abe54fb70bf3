"""Preprocessing shared by training and inference: frames are resized, normalised and padded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from util.config import SQUARE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resized_size(height: int, width: int, short_side: int, long_side: int | None = None) -> tuple[int, int]:
    """Return (h, w) with the shorter side ``short_side``, or, if the longer would exceed ``long_side``, that one.

    ``SQUARE`` as ``long_side`` gives a square of ``short_side``.
    """
    if long_side == SQUARE:
        return short_side, short_side
    shortest, longest = min(height, width), max(height, width)
    new_short, new_long = short_side, short_side * longest // shortest
    if long_side is not None and new_long > long_side:
        new_short, new_long = max(1, round(long_side * shortest / longest)), long_side
    return (new_short, new_long) if height <= width else (new_long, new_short)


def resize_frames(frames: Tensor, short_side: int, long_side: int | None = None) -> Tensor:
    """Resize ``[..., H, W]`` images by the rule of ``resized_size``, bilinear with antialiasing."""
    height, width = frames.shape[-2:]
    size = list(resized_size(height, width, short_side, long_side))
    return F.resize(frames, size, interpolation=F.InterpolationMode.BILINEAR, antialias=True)


def normalise(frames: Tensor) -> Tensor:
    """uint8 ``[..., 3, H, W]`` → float32 with ImageNet mean 0 and deviation 1 per channel."""
    frames = frames.as_subclass(Tensor).float().div_(255)  # not times 1/255: the last bit matters (``CLIPPixels``)
    return F.normalize(frames, list(IMAGENET_MEAN), list(IMAGENET_STD), inplace=True)


def pad_clips(clips: Sequence[Tensor], multiple: int) -> tuple[Tensor, Tensor]:
    """Stack clips of equal length, padded with zeros on the right and bottom.

    Args:
        clips: B × ``[T, 3, h, w]``.
        multiple: of pixels, to which the largest height and width are rounded up.

    Returns:
        frames ``[B, T, 3, H, W]`` and padding bool ``[B, H, W]``, True where there is no frame.
    """
    assert len({len(clip) for clip in clips}) == 1, "the clips of a batch must have the same number of frames"
    height, width = (
        -(-max(clip.shape[axis] for clip in clips) // multiple) * multiple  # rounded up
        for axis in (2, 3)
    )
    frames = clips[0].new_zeros(len(clips), len(clips[0]), 3, height, width)
    padding = torch.ones(len(clips), height, width, dtype=torch.bool)
    for i, clip in enumerate(clips):
        h, w = clip.shape[-2:]
        frames[i, :, :, :h, :w] = clip
        padding[i, :h, :w] = False
    return frames, padding
