"""The baseline of scripts.benchmark agrees with the model: outputs, losses and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import training_step
from models import Segmenter, build_criterion
from models.diffusion.conditioning import CLIPPixels
from models.segmenter import SegmenterOutput
from scripts.benchmark import PillowPixels, random_baseline, random_model
from tests.tiny_models import model_config, random_clips, square_targets

CPU = torch.device("cpu")


class Pair:
    """The project's model and the baseline, of the same random weights."""

    def __init__(self, name: str, stack: Path) -> None:
        self.cfg = model_config(stack, model=name, lora_rank=0, posterior="mode")
        self.fast = random_model(self.cfg, stack, CPU).eval()
        self.slow = random_baseline(self.cfg, stack, CPU).eval()
        for model in (self.fast, self.slow):
            scatter(model)


def scatter(model: Segmenter) -> None:
    """Move every trained parameter: many begin at zero, and would hide a difference."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module", params=["vdit", "hcd"])
def pair(request: pytest.FixtureRequest, tiny_stack: Path) -> Pair:
    return Pair(request.param, tiny_stack)


def test_the_baseline_computes_the_same_function(pair: Pair) -> None:
    clips, padding, captions = random_clips(2, 3, 80, 96)
    clips = (0.5 * clips).clamp(-1.5, 1.5)
    clips[1, :, :, :, 80:], padding[1, :, 80:] = 0, True
    with torch.no_grad():
        fast = pair.fast(clips, padding, captions)
        slow = pair.slow(clips, padding, captions)
    assert_same(fast, slow)
    assert fast.masks is not None and float(fast.masks.std()) > 0.1  # else anything would agree


def assert_same(fast: SegmenterOutput, slow: SegmenterOutput) -> None:
    """All outputs agree, but for what rounding makes of float32, and Pillow's of an image."""
    for name in ("logits", "boxes", "masks"):
        own, other = getattr(fast, name), getattr(slow, name)
        assert own.shape == other.shape
        assert float((own - other).abs().max()) < 1e-3 * float(np.ptp(other.detach().numpy())), name
    assert fast.chosen is not None and slow.chosen is not None
    assert fast.chosen.tolist() == slow.chosen.tolist()


def test_the_same_training_step(pair: Pair) -> None:
    clips, padding, captions = random_clips(1, 2)
    found = []
    for model in (pair.fast, pair.slow):
        model.train()
        criterion = build_criterion(pair.cfg)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(trained.values(), lr=0.0)
        batch = _Batch(clips.clamp(-1.5, 1.5), padding, captions, square_targets(1, 2))
        terms = training_step(model, criterion, [batch], optimizer, 0.0)
        found.append((terms, {name: p.grad for name, p in trained.items() if p.grad is not None}))
        model.eval()
    (fast, fast_gradients), (slow, slow_gradients) = found
    assert {name: float(value) for name, value in fast.items()} == pytest.approx(
        {name: float(value) for name, value in slow.items()}, rel=2e-3
    )
    assert fast_gradients.keys() == slow_gradients.keys()
    noise = [name for name in fast_gradients if name.startswith("encoder.noise")]
    assert len(noise) == (4 if pair.cfg.model == "vdit" else 0)  # through the whole UNet
    for name, gradient in fast_gradients.items():
        difference = float((gradient - slow_gradients[name]).norm())
        assert difference <= 2e-2 * float(gradient.norm()) + 1e-4, name


class _Batch:
    """A batch as the engine takes it."""

    annotated = None

    def __init__(self, frames: Tensor, padding: Tensor, captions: list[str], targets: list[dict[str, Tensor]]) -> None:
        self.frames, self.padding, self.captions, self.targets = frames, padding, captions, targets


def test_pillow_and_the_device_prepare_the_same_image() -> None:
    image = 2 * torch.rand(1, 3, 50, 81, generator=torch.Generator().manual_seed(0)) - 1
    assert torch.equal(PillowPixels(32)(image), CLIPPixels(32)(image))


def test_the_stock_parts_have_the_projects_weights(pair: Pair) -> None:
    for name in ("unet", "vae"):
        own, stock = (getattr(model.encoder, name).module.state_dict() for model in (pair.fast, pair.slow))
        assert len(stock) > len(own) > 10  # the last up block, the decoder
        assert all(torch.equal(value, stock[key]) for key, value in own.items())
    for parameter in (
        *pair.slow.encoder.get_submodule("unet").parameters(),
        *pair.slow.encoder.get_submodule("vae").parameters(),
    ):
        assert not parameter.requires_grad
