"""Clip transforms on torchvision.transforms.v2: resize, crop, flip, colour distortion, normalisation.

Every random number comes from the generator that the caller passes, never from a global one, so that a clip depends on
its seed alone, whichever worker makes it. Geometric parameters are drawn once per clip; colours once per frame, as the
released code does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from util.config import AUTO_MAX_SIZE, Config, long_side
from util.errors import UserError
from util.preprocessing import normalise, resize_frames

# Factors of the usual SSD distortion (torchvision's RandomPhotometricDistort) without its hue: sentences name colours.
BRIGHTNESS = (0.875, 1.125)
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)

_SIDES = re.compile(r"\b(left|right)\b")


ClipTransform = Callable[[Tensor, Tensor, str, np.random.Generator], tuple[Tensor, Tensor, str]]
"""Transforms a clip: frames uint8 ``[T, 3, H, W]``, the referred object's masks bool ``[T, H, W]``, the normalised
sentence, and the only source of randomness → frames float32 ``[T, 3, h, w]`` with ImageNet normalisation, masks bool
``[T, h, w]``, sentence."""


@dataclass(frozen=True)
class TrainTransform:
    """The published video augmentation.

    Half of the time the shorter side becomes one of ``train_scales``; otherwise it first becomes one of
    ``crop_scales`` and a random rectangle is cut, whose sides lie in ``crop_range`` (or are the whole side where that
    is shorter), before the same resize. Then a horizontal flip, half of the time, and, with ``colour_distortion``,
    brightness, contrast and saturation distortion. All lengths are in pixels; without ``crop_scales`` nothing is cut,
    and ``max_size`` bounds the longer side (None: no limit).
    """

    train_scales: Sequence[int] = (288, 320, 352, 392, 416, 448, 480, 512)
    crop_scales: Sequence[int] = (400, 500, 600)
    crop_range: Sequence[int] = (384, 600)
    max_size: int | None = AUTO_MAX_SIZE
    colour_distortion: bool = True

    def __call__(
        self, frames: Tensor, masks: Tensor, caption: str, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, str]:
        if self.crop_scales and rng.random() < 0.5:
            frames, masks = resize(frames, masks, int(rng.choice(self.crop_scales)))
            frames, masks = self._crop(frames, masks, rng)
        frames, masks = resize(frames, masks, int(rng.choice(self.train_scales)), self.max_size)
        if rng.random() < 0.5:
            frames, masks, caption = flip(frames, masks, caption)
        frames = distort_colours(frames, rng) if self.colour_distortion else frames
        return normalise(frames), masks, caption

    def _crop(self, frames: Tensor, masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        low, high = self.crop_range
        sides = frames.shape[-2:]
        height, width = (int(rng.integers(min(low, side), min(high, side), endpoint=True)) for side in sides)
        top, left = (
            int(rng.integers(0, side - cut, endpoint=True)) for side, cut in zip(sides, (height, width), strict=True)
        )
        return F.crop(frames, top, left, height, width), F.crop(masks, top, left, height, width)


@dataclass(frozen=True)
class EvalTransform:
    """Resize to the evaluation size and normalise; nothing is random. ``max_size`` None is no limit."""

    eval_size: int = 360
    max_size: int | None = AUTO_MAX_SIZE

    def __call__(
        self, frames: Tensor, masks: Tensor, caption: str, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, str]:
        frames, masks = resize(frames, masks, self.eval_size, self.max_size)
        return normalise(frames), masks, caption


def build_transform(cfg: Config, train: bool, whole_videos: bool = False) -> ClipTransform:
    """The published augmentation, or the resize of an evaluation, in the sizes of ``cfg``.

    Args:
        cfg: the options.
        train: whether to augment.
        whole_videos: whether clips for evaluation are whole videos, for which ``max_size`` "auto" sets no limit.

    Raises:
        UserError: ``max_size`` is below one of ``train_scales``.
    """
    if train:
        limit = long_side(cfg, AUTO_MAX_SIZE)
        if limit and max(cfg.train_scales) > limit:
            raise UserError(
                f"max_size ({cfg.max_size}) limits the longer side in training to {limit} pixels, and must be at least "
                f"every shorter side in train_scales ({max(cfg.train_scales)}); --max_size 0 sets no limit"
            )
        return TrainTransform(cfg.train_scales, cfg.crop_scales, cfg.crop_range, limit, cfg.colour_distortion)
    auto = None if whole_videos else max(AUTO_MAX_SIZE, cfg.eval_size)
    return EvalTransform(cfg.eval_size, long_side(cfg, auto))


def resize(frames: Tensor, masks: Tensor, short_side: int, long_side: int | None = None) -> tuple[Tensor, Tensor]:
    """Resize frames ``[T, 3, H, W]`` (bilinear, antialiased) and bool masks ``[T, H, W]`` (nearest)."""
    frames = resize_frames(frames, short_side, long_side)
    # uint8, because torchvision resizes bool masks by way of float32.
    return frames, F.resize_mask(masks.to(torch.uint8), list(frames.shape[-2:])).bool()


def flip(frames: Tensor, masks: Tensor, caption: str) -> tuple[Tensor, Tensor, str]:
    """Mirror frames ``[T, 3, H, W]`` and masks ``[T, H, W]``, and the sides that a sentence names."""
    return F.horizontal_flip(frames), F.horizontal_flip(masks), swap_sides(caption)


def swap_sides(caption: str) -> str:
    """Exchange the whole words "left" and "right"; "bright" stays."""
    return _SIDES.sub(lambda word: "right" if word[0] == "left" else "left", caption)


def distort_colours(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast and saturation of each frame of uint8 ``[T, 3, H, W]``, each half of the time.

    Contrast comes before or after saturation with equal chance. Hue is never changed.
    """
    return torch.stack([_distort_frame(frame, rng) for frame in frames])


def _distort_frame(frame: Tensor, rng: np.random.Generator) -> Tensor:
    steps = [(F.adjust_contrast, CONTRAST), (F.adjust_saturation, SATURATION)]
    if rng.random() < 0.5:
        steps.reverse()
    for adjust, factors in [(F.adjust_brightness, BRIGHTNESS), *steps]:
        if rng.random() < 0.5:
            frame = adjust(frame, float(rng.uniform(*factors)))
    return frame
