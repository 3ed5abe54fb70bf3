"""The training loss: ground truth, matching and loss terms over all decoder layers.

One query per clip is matched to the referred object by its cost over the whole clip (Wu et al., "Language as Queries
for Referring Video Object Segmentation", CVPR 2022, section 3.4). A clip whose sentence names nothing has a class loss
only: its other terms have weight 0, so that nothing on the host depends on the values of the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, sigmoid_focal_loss

from models.segmenter import LayerPrediction, SegmenterOutput
from util.distributed import average_over_processes

LOW_STRIDE = 2


@dataclass
class BatchTargets:
    """The ground truth of a batch of clips, padded like its frames."""

    boxes: Tensor
    """``[B, T, 4]``: (cx, cy, w, h) in 0…1 of the unpadded frame; zeros where invisible."""
    masks: Tensor
    """``[B, T, H, W]``, 0 or 1 as floats."""
    valid: Tensor
    """``[B, T]``: 1 where the object is visible."""

    @property
    def present(self) -> Tensor:
        """``[B]``: 0 for a clip without target (its sentence names nothing in it), else 1."""
        return self.valid.amax(1)

    @property
    def low_masks(self) -> Tensor:
        """The masks at every second pixel, starting at 1: ``[B, T, H/2, W/2]``."""
        return self.masks[..., 1::LOW_STRIDE, 1::LOW_STRIDE]


def stack_targets(targets: Sequence[Mapping[str, Any]], size: Sequence[int]) -> BatchTargets:
    """Stack the clips' targets and pad their masks on the right and bottom.

    Args:
        targets: per clip ``boxes [T, 4]``, ``masks [T, h, w]``, ``valid [T]``, on one device.
        size: (H, W) of the padded frames.
    """
    masks = []
    for target in targets:
        h, w = target["masks"].shape[-2:]
        masks.append(F.pad(target["masks"].float(), (0, size[1] - w, 0, size[0] - h)))
    return BatchTargets(
        boxes=torch.stack([target["boxes"] for target in targets]),
        masks=torch.stack(masks),
        valid=torch.stack([target["valid"].float() for target in targets]),
    )


BOX_EPS = 1e-7


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of corresponding boxes ``[..., 4]`` (cx, cy, w, h) → ``[...]``.

    torchvision's paired form selects by a boolean mask, for which a GPU would make the host wait.
    """
    a, b = box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy")

    def area(corners: Tensor) -> Tensor:
        size = (corners[..., 2:] - corners[..., :2]).clamp(min=0)
        return size[..., 0] * size[..., 1]

    inner = area(torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], dim=-1))
    outer = area(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], dim=-1))
    union = area(a) + area(b) - inner
    return inner / (union + BOX_EPS) - (outer - union) / (outer + BOX_EPS)


def dice_share(logits: Tensor, truth: Tensor) -> Tensor:
    """(2·Σpt + 1) / (Σp + Σt + 1) over the last axis, which may be broadcast."""
    p = logits.sigmoid()
    return (2 * (p * truth).sum(-1) + 1) / (p.sum(-1) + truth.sum(-1) + 1)


def loss_labels(prediction: LayerPrediction, target: BatchTargets, count: Tensor, alpha: float) -> dict[str, Tensor]:
    """Focal loss over all logits; the matched query is positive on valid frames, so none is without a target."""
    logits = prediction.logits[..., 0]
    _, frames, queries = logits.shape
    assert prediction.chosen is not None
    matched = F.one_hot(prediction.chosen, queries).to(logits.dtype)
    truth = matched[:, None] * target.valid[..., None]
    loss = sigmoid_focal_loss(logits, truth, alpha=alpha, gamma=2.0)
    # As published: mean over T·Q, sum over clips, / N, × T·Q.
    return {"loss_ce": loss.mean(dim=(1, 2)).sum() / count * (frames * queries)}


def loss_boxes(prediction: LayerPrediction, target: BatchTargets, count: Tensor, alpha: float) -> dict[str, Tensor]:
    """L1 and generalised IoU of the matched query on all frames."""
    boxes, present = _of_chosen(prediction.boxes, prediction.chosen), target.present[:, None]
    return {
        "loss_bbox": ((boxes - target.boxes).abs() * present[..., None]).sum() / count,
        "loss_giou": ((1 - paired_giou(boxes, target.boxes)) * present).sum() / count,
    }


def loss_masks(prediction: LayerPrediction, target: BatchTargets, count: Tensor, alpha: float) -> dict[str, Tensor]:
    """Focal and dice loss of the refined mask and of the low mask before refinement."""
    assert prediction.masks is not None
    low = _of_chosen(prediction.low_masks, prediction.chosen)
    refined = _mask_terms(prediction.masks, target.masks, target.present, count, alpha)
    coarse = _mask_terms(low, target.low_masks, target.present, count, alpha)
    return {
        "loss_mask": refined[0],
        "loss_dice": refined[1],
        "loss_mask_low": coarse[0],
        "loss_dice_low": coarse[1],
    }


LOSSES: dict[str, Callable[[LayerPrediction, BatchTargets, Tensor, float], dict[str, Tensor]]] = {
    "labels": loss_labels,
    "boxes": loss_boxes,
    "masks": loss_masks,
}


def _of_chosen(per_query: Tensor, chosen: Tensor | None) -> Tensor:
    """``[B, T, Q, ...]`` → the chosen query's ``[B, T, ...]``."""
    return per_query[torch.arange(per_query.shape[0], device=per_query.device), :, chosen]


def _mask_terms(logits: Tensor, truth: Tensor, present: Tensor, count: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Focal and dice loss, each clip's frames as one vector, summed over clips with a target / N."""
    logits, truth = logits.flatten(1), truth.flatten(1)
    focal = sigmoid_focal_loss(logits, truth, alpha=alpha, gamma=2.0).mean(1)
    dice = 1 - dice_share(logits, truth)
    return (focal * present).sum() / count, (dice * present).sum() / count


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
    def __call__(self, prediction: LayerPrediction, target: BatchTargets) -> Tensor:
        """The best query of every clip, ``[B]``."""
        return self.costs(prediction, target).argmin(dim=1)

    def costs(self, prediction: LayerPrediction, target: BatchTargets) -> Tensor:
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
    def prepare(targets: Sequence[Mapping[str, Any]], size: Sequence[int]) -> BatchTargets:
        """Stack the targets of a batch (already on its device), masks padded to its frames' ``size`` (H, W)."""
        return stack_targets(targets, size)

    def select(self, target: BatchTargets) -> MatchedQuery:
        """The selector that a training forward takes: the matched query of every layer."""
        return MatchedQuery(self.matcher, target)

    @staticmethod
    def count(targets: Sequence[BatchTargets]) -> Tensor:
        """What every term is divided by: the valid frames of all batches of a step, averaged over processes, ≥ 1."""
        valid = torch.stack([target.valid.sum() for target in targets]).sum()
        return average_over_processes(valid).clamp(min=1)

    def __call__(
        self, output: SegmenterOutput, target: BatchTargets, count: Tensor | None = None
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

    def __init__(self, matcher: Matcher, target: BatchTargets) -> None:
        self.matcher = matcher
        self.target = target

    def __call__(self, prediction: LayerPrediction) -> Tensor:
        """The matched query of every clip, ``[B]``."""
        return self.matcher(prediction, self.target)
