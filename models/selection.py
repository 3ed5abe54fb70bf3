"""Which of a clip's queries is refined to a full-resolution mask: an argument of the model's forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass
class LayerPrediction:
    """One decoder layer's predictions for a batch of clips. ``T`` is 1 where one frame was picked."""

    logits: Tensor
    """``[B, T, Q, 1]``: whether the query is the referred object."""
    boxes: Tensor
    """``[B, T, Q, 4]``: (cx, cy, w, h) in 0…1 of the unpadded frame."""
    low_masks: Tensor
    """``[B, T, Q, H/2, W/2]``: mask logits before refinement."""
    chosen: Tensor | None = None
    """``[B]``: the query refined; None where all were."""
    masks: Tensor | None = None
    """``[B, T, H, W]`` logits of the chosen query, or ``[B, T, Q, H, W]`` of all; None where not refined."""


class Selector(Protocol):
    """Chooses one query per clip, ``[B]``, or None for all."""

    def __call__(self, prediction: LayerPrediction) -> Tensor | None:
        """Choose from one decoder layer's predictions (``masks`` not yet set)."""


def best_query(prediction: LayerPrediction) -> Tensor:
    """The query of the highest class probability in the mean over the clip's frames, ``[B]``."""
    return prediction.logits[..., 0].sigmoid().mean(dim=1).argmax(dim=1)


def all_queries(prediction: LayerPrediction) -> None:
    """Every query (A2D, JHMDB and RefCOCO score them all)."""
    return
