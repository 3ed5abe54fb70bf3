"""One query per clip, chosen by cost (training.md, "Matching"; Wu et al., CVPR 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from models.losses import dice_share, paired_giou
from models.selection import LayerPrediction
from models.targets import Target


@dataclass(frozen=True)
class Matcher:
    """Chooses the query of least cost for a whole clip; the fields are the costs' weights.

    For a clip without target the choice means nothing, and no loss depends on it.
    """

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    cost_mask: float = 2.0
    cost_dice: float = 5.0
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(self, prediction: LayerPrediction, target: Target) -> Tensor:
        """The best query of every clip, ``[B]``."""
        return self.costs(prediction, target).argmin(dim=1)

    def costs(self, prediction: LayerPrediction, target: Target) -> Tensor:
        """Cost of every query, ``[B, Q]``."""
        p = prediction.logits[..., 0].sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * -torch.log(p + 1e-8)
        negative = (1 - self.alpha) * p**self.gamma * -torch.log(1 - p + 1e-8)
        valid = target.valid[..., None]
        # A clip without target has no class cost.
        by_class = ((positive - negative) * valid).sum(1) / valid.sum(1).clamp(min=1)

        boxes, truth = prediction.boxes, target.boxes[:, :, None]
        by_l1 = (boxes - truth).abs().sum(-1).mean(1)
        by_giou = -paired_giou(boxes, truth.expand_as(boxes)).mean(1)

        masks = prediction.low_masks.transpose(1, 2).flatten(2)  # [B, Q, T·h·w]
        truth_masks = target.low_masks.flatten(1)[:, None]
        by_focal = _focal_cost(masks, truth_masks, self.alpha, self.gamma)
        by_dice = -dice_share(masks, truth_masks)
        return (
            self.cost_class * by_class
            + self.cost_bbox * by_l1
            + self.cost_giou * by_giou
            + self.cost_mask * by_focal
            + self.cost_dice * by_dice
        )


def _focal_cost(logits: Tensor, truth: Tensor, alpha: float, gamma: float) -> Tensor:
    """Mean over pixels of the focal loss of ``[B, Q, P]`` logits against ``[B, 1, P]`` truth."""
    return sigmoid_focal_loss(logits, truth.expand_as(logits), alpha=alpha, gamma=gamma).mean(-1)
