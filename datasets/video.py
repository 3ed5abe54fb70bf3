"""Videos for inference: all frames of one video and the expressions to segment in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datasets.reading import read_frame, require_same_size
from util.preprocessing import normalise, resize_frames


@dataclass(frozen=True)
class Video:
    """A video on disk.

    Attributes:
        name: its folder's name.
        frame_paths: every frame, in order of time; the stem is the frame's name.
        expressions: expression id → normalised sentence.
    """

    name: str
    frame_paths: list[Path]
    expressions: dict[str, str]


def load_frames(video: Video, short_side: int = 360, long_side: int = 640) -> tuple[Tensor, tuple[int, int]]:
    """Read all frames of a video at evaluation size; see ``load_clip``."""
    return load_clip(video.frame_paths, short_side, long_side)


def load_clip(
    frame_paths: Sequence[Path], short_side: int = 360, long_side: int = 640
) -> tuple[Tensor, tuple[int, int]]:
    """Read some frames of a video at evaluation size.

    Each frame is resized as it is read, so that the originals are never held together.

    Returns:
        frames float32 ``[T, 3, h, w]``, ImageNet-normalised, and the size on disk (H0, W0).

    Raises:
        UserError: a frame is missing or broken, or the frames differ in size.
    """
    first = read_frame(frame_paths[0])
    frames = [resize_frames(first, short_side, long_side)]
    for path in frame_paths[1:]:
        frame = read_frame(path)
        require_same_size(path, frame, frame_paths[0], first)
        frames.append(resize_frames(frame, short_side, long_side))
    return normalise(torch.stack(frames)), (first.shape[1], first.shape[2])
