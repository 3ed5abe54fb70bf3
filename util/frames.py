"""Frames as the models take them: resized, and normalised as ImageNet's images are."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resized_size(height: int, width: int, short_side: int, long_side: int | None = None) -> tuple[int, int]:
    """Return (h, w) with the shorter side ``short_side``, or, if the longer would exceed ``long_side``, that one."""
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
    frames = F.to_dtype(frames.as_subclass(Tensor), torch.float32, scale=True)
    return F.normalize(frames, list(IMAGENET_MEAN), list(IMAGENET_STD), inplace=True)
