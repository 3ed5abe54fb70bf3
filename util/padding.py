"""Clips of different sizes as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_clips(clips: Sequence[Tensor], multiple: int) -> tuple[Tensor, Tensor]:
    """Stack clips of equal length, padded with zeros on the right and bottom.

    Args:
        clips: B × ``[T, 3, h, w]``.
        multiple: of pixels, to which the largest height and width are rounded up.

    Returns:
        frames ``[B, T, 3, H, W]`` and padding bool ``[B, H, W]``, True where there is no frame.
    """
    assert len({len(clip) for clip in clips}) == 1, "the clips of a batch have one number of frames"
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
