"""The loss of clips without target."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from models import build_criterion
from models.criterion import Criterion
from models.segmenter import LayerPrediction
from util.config import Config

FRAMES, QUERIES, HEIGHT, WIDTH = 3, 4, 8, 12
Batch = tuple[LayerPrediction, list[dict[str, Any]]]


@pytest.fixture
def criterion() -> Criterion:
    return build_criterion(Config())


def batch_of(*present: bool, frames: int = FRAMES) -> Batch:
    """Predictions and targets of clips with (True) or without a target. A clip's numbers depend on its place alone."""
    clips = [torch.Generator().manual_seed(place) for place in range(len(present))]

    def numbers(*shape: int) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=clip) for clip in clips])

    leaves = [
        numbers(frames, QUERIES, 1),
        numbers(frames, QUERIES, 4),
        numbers(frames, QUERIES, HEIGHT // 2, WIDTH // 2),
        numbers(frames, HEIGHT, WIDTH),
    ]
    logits, boxes, low_masks, masks = (leaf.requires_grad_() for leaf in leaves)
    prediction = LayerPrediction(logits, boxes.sigmoid(), low_masks, masks=masks)
    truth = torch.zeros(frames, HEIGHT, WIDTH, dtype=torch.bool)
    truth[:2, 2:6, 3:9] = True  # invisible in the last frame
    targets = []
    for there in present:
        masks_there = truth & there
        valid = masks_there.flatten(1).any(1)
        box = torch.tensor([0.5, 0.5, 0.5, 0.5]) * valid[:, None]
        targets.append({"boxes": box, "masks": masks_there, "valid": valid.long()})
    return prediction, targets


def losses(criterion: Criterion, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    prediction, targets = batch
    target = criterion.prepare(targets, (HEIGHT, WIDTH))
    prediction.chosen = criterion.select(target)(prediction)
    return criterion(SimpleNamespace(layers=[prediction]), target)  # type: ignore[arg-type]


def test_a_clip_without_target_adds_its_class_loss_only(criterion: Criterion) -> None:
    alone, both = batch_of(True), batch_of(True, False)
    _, expected = losses(criterion, alone)
    _, terms = losses(criterion, both)
    for name in expected.keys() - {"loss_ce"}:
        torch.testing.assert_close(terms[name], expected[name])
    logits = both[0].logits[1]
    focal = sigmoid_focal_loss(logits, torch.zeros_like(logits), alpha=0.25, gamma=2.0).sum() / 2  # N: 2 valid frames
    torch.testing.assert_close(terms["loss_ce"], expected["loss_ce"] + focal)


def test_its_gradient_lowers_every_score_and_moves_nothing_else(criterion: Criterion) -> None:
    prediction, targets = batch_of(False, True)
    total, _ = losses(criterion, (prediction, targets))
    assert prediction.masks is not None
    leaves = (prediction.logits, prediction.boxes, prediction.low_masks, prediction.masks)
    logits, *others = torch.autograd.grad(total, leaves)
    assert (logits[0] > 0).all() and (logits[1] < 0).any()
    assert all(not gradient[0].any() and gradient[1].any() for gradient in others)


def test_a_batch_without_any_target(criterion: Criterion) -> None:
    total, terms = losses(criterion, batch_of(False, False))
    assert torch.isfinite(total) and terms["loss_ce"] > 0
    assert all(value == 0 for name, value in terms.items() if name != "loss_ce")


def test_with_a_target_everywhere_every_clip_counts_fully(criterion: Criterion) -> None:
    _, targets = batch_of(True, True)
    assert criterion.prepare(targets, (HEIGHT, WIDTH)).present.tolist() == [1.0, 1.0]
    _, mixed = batch_of(False, True)
    assert criterion.prepare(mixed, (HEIGHT, WIDTH)).present.tolist() == [0.0, 1.0]


def test_nothing_on_the_host_waits_for_values(criterion: Criterion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the meta device have no values: reading one would raise, as torchvision's GIoU does."""
    monkeypatch.setattr("models.criterion.paired_giou", lambda a, b: (a - b).sum(-1))
    prediction, targets = batch_of(True, False)
    targets = [{key: value.to("meta") for key, value in target.items()} for target in targets]
    fields = {name: value.detach().to("meta") for name, value in vars(prediction).items() if value is not None}
    total, _ = losses(criterion, (LayerPrediction(**fields), targets))
    assert total.is_meta


def test_generalised_iou_is_torchvisions() -> None:
    from torchvision.ops import box_convert, generalized_box_iou_loss

    from models.criterion import paired_giou

    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 50, 3, 4, generator=generator)
    b[0] = 0  # an invisible object's box
    corners = [box_convert(boxes, "cxcywh", "xyxy") for boxes in (a, b)]
    torch.testing.assert_close(paired_giou(a, b), 1 - generalized_box_iou_loss(*corners), rtol=1e-5, atol=1e-5)
    far = torch.tensor([0.1, 0.1, 0.1, 0.1]), torch.tensor([0.9, 0.9, 0.1, 0.1])
    assert float(paired_giou(*far)) == pytest.approx(0.02 / 0.81 - 1, abs=1e-4)
