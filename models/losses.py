"""The loss terms (training.md, "Losses"): small functions of one decoder layer's prediction.

A clip without target has a class loss only. In the other terms it has the weight 0, and the others 1, so that nothing
on the host depends on the targets' values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, sigmoid_focal_loss

from models.selection import LayerPrediction
from models.targets import Target

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


def loss_labels(prediction: LayerPrediction, target: Target, count: Tensor, alpha: float) -> dict[str, Tensor]:
    """Focal loss over all logits; the matched query is positive on valid frames, so none is without a target."""
    logits = prediction.logits[..., 0]
    _, frames, queries = logits.shape
    assert prediction.chosen is not None
    matched = F.one_hot(prediction.chosen, queries).to(logits.dtype)
    truth = matched[:, None] * target.valid[..., None]
    loss = sigmoid_focal_loss(logits, truth, alpha=alpha, gamma=2.0)
    # As published: mean over T·Q, sum over clips, / N, × T·Q.
    return {"loss_ce": loss.mean(dim=(1, 2)).sum() / count * (frames * queries)}


def loss_boxes(prediction: LayerPrediction, target: Target, count: Tensor, alpha: float) -> dict[str, Tensor]:
    """L1 and generalised IoU of the matched query on all frames."""
    boxes, present = _of_chosen(prediction.boxes, prediction.chosen), target.present[:, None]
    return {
        "loss_bbox": ((boxes - target.boxes).abs() * present[..., None]).sum() / count,
        "loss_giou": ((1 - paired_giou(boxes, target.boxes)) * present).sum() / count,
    }


def loss_masks(prediction: LayerPrediction, target: Target, count: Tensor, alpha: float) -> dict[str, Tensor]:
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


LOSSES: dict[str, Callable[[LayerPrediction, Target, Tensor, float], dict[str, Tensor]]] = {
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
