"""The training loss: matching, terms and weights over all decoder layers (training.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.losses import LOSSES
from models.matcher import Matcher
from models.segmenter import SegmenterOutput
from models.selection import LayerPrediction
from models.targets import Target, build_target
from util.distributed import average_over_processes


class Criterion:
    """Weighs the loss terms of every decoder layer.

    Args:
        matcher: chooses each clip's query.
        weights: weight of each term, by its name without the layer's suffix.
        focal_alpha: α of the focal losses.
    """

    def __init__(self, matcher: Matcher, weights: dict[str, float], focal_alpha: float = 0.25) -> None:
        self.matcher = matcher
        self.weights = weights
        self.focal_alpha = focal_alpha

    @staticmethod
    def prepare(targets: Sequence[Mapping[str, Any]], size: Sequence[int]) -> Target:
        """Stack the targets of a batch (already on its device), masks padded to its frames' ``size`` (H, W)."""
        return build_target(targets, size)

    def select(self, target: Target) -> MatchedQuery:
        """The selector that a training forward takes: the matched query of every layer."""
        return MatchedQuery(self.matcher, target)

    @staticmethod
    def count(targets: Sequence[Target]) -> Tensor:
        """What every term is divided by: the valid frames of all batches of a step, averaged over processes, ≥ 1."""
        valid = torch.stack([target.valid.sum() for target in targets]).sum()
        return average_over_processes(valid).clamp(min=1)

    def __call__(
        self, output: SegmenterOutput, target: Target, count: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms.

        Args:
            output: of the model.
            target: of the same batch.
            count: of the step, where this batch is one of several; the losses of all then add up to that of one
                batch that holds all their clips. None: the batch's own.

        Returns:
            the weighted sum, and every unweighted term: ``loss_ce`` … of the last layer, and
            ``loss_ce_0`` … of layer 0 and so on.
        """
        if count is None:
            count = self.count([target])
        terms: dict[str, Tensor] = {}
        last = len(output.layers) - 1
        total = torch.zeros((), device=target.valid.device)
        for i, layer in enumerate(output.layers):
            suffix = "" if i == last else f"_{i}"
            for loss in LOSSES.values():
                for name, value in loss(layer, target, count, self.focal_alpha).items():
                    terms[name + suffix] = value
                    total = total + self.weights[name] * value
        return total, terms


class MatchedQuery:
    """Selector of training: the query that the matcher prefers, given the targets."""

    def __init__(self, matcher: Matcher, target: Target) -> None:
        self.matcher = matcher
        self.target = target

    def __call__(self, prediction: LayerPrediction) -> Tensor:
        """The matched query of every clip, ``[B]``."""
        return self.matcher(prediction, self.target)
