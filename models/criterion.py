"""The training loss: ground truth, matching and loss terms over all decoder layers.

One query per clip is matched to the referred object by its cost over the whole clip (Wu et al., "Language as Queries
for Referring Video Object Segmentation", CVPR 2022, section 3.4). A clip whose sentence names nothing has a class loss
only: its other terms have weight 0, so that nothing on the host depends on the values of the targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        """``[B]``: 0 for a clip without a referred object, else 1."""
        return self.valid.amax(1)

    @property
    def low_masks(self) -> Tensor:
        """The masks at every second pixel, from pixel 1 on: ``[B, T, H/2, W/2]``."""
        return self.masks[..., 1::LOW_STRIDE, 1::LOW_STRIDE]


BOX_EPS = 1e-7


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of corresponding boxes ``[..., 4]`` (cx, cy, w, h) → ``[...]``.

    torchvision's paired form uses a boolean mask, which makes the host wait for a GPU.
    """
    a, b = box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy")

    def area(corners: Tensor) -> Tensor:
        size = (corners[..., 2:] - corners[..., :2]).clamp(min=0)
        return size[..., 0] * size[..., 1]

    inner = area(torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], dim=-1))
    outer = area(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], dim=-1))
    union = area(a) + area(b) - inner
    return inner / (union + BOX_EPS) - (outer - union) / (outer + BOX_EPS)


def dice_share(logits: Tensor, labels: Tensor) -> Tensor:
    """The dice coefficient (2·Σpt + 1) / (Σp + Σt + 1) over the last axis; the other axes broadcast."""
    p = logits.sigmoid()
    return (2 * (p * labels).sum(-1) + 1) / (p.sum(-1) + labels.sum(-1) + 1)


def loss_labels(prediction: LayerPrediction, target: BatchTargets, count: Tensor, alpha: float) -> dict[str, Tensor]:
    """Focal loss over all logits. The matched query is positive on valid frames; without an object, no query is."""
    logits = prediction.logits[..., 0]
    _, frames, queries = logits.shape
    assert prediction.chosen is not None
    matched = F.one_hot(prediction.chosen, queries).to(logits.dtype)
    labels = matched[:, None] * target.valid[..., None]
    loss = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=2.0)
    # As published: mean over T·Q, sum over clips, divided by the count, times T·Q.
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
    return {"loss_mask": refined[0], "loss_dice": refined[1], "loss_mask_low": coarse[0], "loss_dice_low": coarse[1]}


LOSSES = (loss_labels, loss_boxes, loss_masks)


def _of_chosen(per_query: Tensor, chosen: Tensor | None) -> Tensor:
    """``[B, T, Q, ...]`` → the chosen query's ``[B, T, ...]``."""
    return per_query[torch.arange(per_query.shape[0], device=per_query.device), :, chosen]


def _mask_terms(logits: Tensor, labels: Tensor, present: Tensor, count: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Focal and dice loss over all frames of a clip, summed over clips with an object and divided by ``count``."""
    logits, labels = logits.flatten(1), labels.flatten(1)
    focal = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=2.0).mean(1)
    dice = 1 - dice_share(logits, labels)
    return (focal * present).sum() / count, (dice * present).sum() / count


@dataclass(frozen=True)
class Matcher:
    """Chooses the query with the lowest cost over a whole clip; the fields are the weights of the costs.

    For a clip without an object the choice has no effect on the loss.
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
        """The query with the lowest cost, ``[B]``."""
        return self.costs(prediction, target).argmin(dim=1)

    def costs(self, prediction: LayerPrediction, target: BatchTargets) -> Tensor:
        """Cost of every query, ``[B, Q]``."""
        p = prediction.logits[..., 0].sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * -torch.log(p + 1e-8)
        negative = (1 - self.alpha) * p**self.gamma * -torch.log(1 - p + 1e-8)
        valid = target.valid[..., None]
        # A clip without an object has no class cost.
        by_class = ((positive - negative) * valid).sum(1) / valid.sum(1).clamp(min=1)

        boxes, target_boxes = prediction.boxes, target.boxes[:, :, None]
        by_l1 = (boxes - target_boxes).abs().sum(-1).mean(1)
        by_giou = -paired_giou(boxes, target_boxes.expand_as(boxes)).mean(1)

        masks = prediction.low_masks.transpose(1, 2).flatten(2)  # [B, Q, T·h·w]
        target_masks = target.low_masks.flatten(1)[:, None]
        labels = target_masks.expand_as(masks)
        by_focal = sigmoid_focal_loss(masks, labels, alpha=self.alpha, gamma=self.gamma).mean(-1)
        by_dice = -dice_share(masks, target_masks)
        return (
            self.cost_class * by_class
            + self.cost_bbox * by_l1
            + self.cost_giou * by_giou
            + self.cost_mask * by_focal
            + self.cost_dice * by_dice
        )


class Criterion:
    """The weighted sum of the loss terms of all decoder layers.

    Args:
        matcher: chooses the query of each clip.
        weights: name of a term, without the suffix of its layer → weight.
        focal_alpha: α of the focal losses.
    """

    def __init__(self, matcher: Matcher, weights: dict[str, float], focal_alpha: float = 0.25) -> None:
        self.matcher = matcher
        self.weights = weights
        self.focal_alpha = focal_alpha

    @staticmethod
    def prepare(targets: Sequence[Mapping[str, Any]], size: Sequence[int]) -> BatchTargets:
        """Stack the targets of a batch and pad their masks on the right and bottom.

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

    def select(self, target: BatchTargets) -> MatchedQuery:
        """The selector of a training forward: the matched query of every layer."""
        return MatchedQuery(self.matcher, target)

    @staticmethod
    def count(targets: Sequence[BatchTargets]) -> Tensor:
        """The divisor of every term: the valid frames of all batches of a step, averaged over processes, ≥ 1."""
        valid = torch.stack([target.valid.sum() for target in targets]).sum()
        return average_over_processes(valid).clamp(min=1)

    def __call__(
        self, output: SegmenterOutput, target: BatchTargets, count: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and its terms.

        Args:
            output: of the model.
            target: ground truth of the same batch.
            count: of a step with several batches, whose losses then add up to that of one batch with all their
                clips. None: the count of this batch.

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
            for loss in LOSSES:
                for name, value in loss(layer, target, count, self.focal_alpha).items():
                    terms[name + suffix] = value
                    total = total + self.weights[name] * value
        return total, terms


class MatchedQuery:
    """Selects the query that the matcher chooses for the ground truth."""

    def __init__(self, matcher: Matcher, target: BatchTargets) -> None:
        self.matcher = matcher
        self.target = target

    def __call__(self, prediction: LayerPrediction) -> Tensor:
        """The matched query of every clip, ``[B]``."""
        return self.matcher(prediction, self.target)
