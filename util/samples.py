"""A picture of a clip that was just trained on: what the model predicted beside the truth.

The network's forward is listened to; what a training step has computed anyway is kept by reference until the next one,
so that a picture costs nothing in the steps where none is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from util.visualisation import Picture, draw_overlay, text_bar

GAP = 6  # pixels between prediction and truth
TRUTH_COLOUR = (60, 220, 90)


@dataclass(frozen=True)
class _Clip:
    """The first clip of a batch, on the model's device; T frames of H×W, padded."""

    frames: Tensor  # [T, 3, H, W]
    padding: Tensor  # [H, W], True where padded
    caption: str
    masks: Tensor  # logits [T, H, W], or [1, H, W] where one frame is annotated
    truth: Tensor  # 0 or 1, of the masks' shape
    annotated: Tensor | None  # index of that frame, [1]


class LastClip:
    """The first clip of the last training step of a model.

    Args:
        model: the segmenter itself, not what wraps it; its forward takes frames, padding, captions, the selector bound
            to the truth, and annotated frames.
        to_pixels: float frames ``[3, H, W]`` as the model gets them → uint8.
        threshold: mask probability from which a pixel belongs to the object.
    """

    def __init__(self, model: nn.Module, to_pixels: Callable[[Tensor], Tensor], threshold: float = 0.5) -> None:
        self.to_pixels = to_pixels
        self.threshold = threshold
        self.clip: _Clip | None = None
        model.register_forward_hook(self._keep)

    def _keep(self, model: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not model.training:
            return
        frames, padding, captions, select, annotated = inputs
        self.clip = _Clip(
            frames=frames[0].detach(),
            padding=padding[0],
            caption=captions[0],
            masks=output.masks[0].detach(),
            truth=select.target.masks[0],
            annotated=None if annotated is None else annotated[:1],
        )

    def draw(self) -> Picture | None:
        """The clip's middle frame, or the annotated one: prediction, truth, and the sentence below.

        This copies from the device, and waits for it.

        Returns:
            uint8 RGB ``[H, W, 3]``; None before the first step.
        """
        if self.clip is None:
            return None
        clip, middle = self.clip, len(self.clip.masks) // 2
        number = middle if clip.annotated is None else int(clip.annotated)
        real = ~clip.padding.cpu()
        height, width = int(real[:, 0].sum()), int(real[0].sum())
        frame = self.to_pixels(clip.frames[number].float().cpu())[:, :height, :width].permute(1, 2, 0).numpy()
        predicted = clip.masks[middle].float().sigmoid().cpu()[:height, :width].numpy() >= self.threshold
        truth = clip.truth[middle].cpu()[:height, :width].numpy() > 0
        left, right = draw_overlay(frame, predicted), draw_overlay(frame, truth, colour=TRUTH_COLOUR)
        picture = np.concatenate([left, np.zeros((len(left), GAP, 3), np.uint8), right], axis=1)
        return np.concatenate([picture, text_bar(f"predicted · truth: {clip.caption}", picture.shape[1])])
