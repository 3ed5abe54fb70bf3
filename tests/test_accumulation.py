"""--accumulate N: the update of one batch that is N times larger."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datasets.clip import EpochBatches
from engine import Schedule, step_batches, training_step
from models import build_criterion, build_model
from tests.tiny_models import model_config, random_clips, square_targets

CLIPS, FRAMES = 2, 2


def _batch(first: int, last: int) -> Any:
    """Clips ``first`` … ``last`` − 1 of two; the second one's object is visible in one frame of two."""
    frames, padding, _ = random_clips(CLIPS, FRAMES)
    captions = ["the square", "the circle"]
    targets = square_targets(CLIPS, FRAMES)
    for name in ("boxes", "masks", "valid"):
        targets[1][name] = targets[1][name].clone()
        targets[1][name][1] = 0
    part = slice(first, last)
    return SimpleNamespace(
        frames=frames[part], padding=padding[part], captions=captions[part], targets=targets[part], annotated=None
    )


def test_two_batches_are_one_of_twice_the_size(small_stack: Path) -> None:
    cfg = model_config(small_stack, posterior="mode")
    results = []
    for batches in ([_batch(0, 2)], [_batch(0, 1), _batch(1, 2)]):
        torch.manual_seed(0)
        model = build_model(cfg).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        terms = training_step(model, build_criterion(cfg), batches, optimizer, 0.0)
        results.append((terms, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (whole, expected), (halves, found) = results
    assert whole.keys() == halves.keys() and expected.keys() == found.keys()
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name, value in expected.items():
        close = 1e-3 * float(value.abs().max()) + 1e-6
        torch.testing.assert_close(found[name], value, rtol=0, atol=close, msg=name)


def test_halves_normalised_by_themselves_would_be_seen(small_stack: Path) -> None:
    """Three valid frames: 2 and 1. A mean of two means is not the mean."""
    cfg = model_config(small_stack, posterior="mode")
    torch.manual_seed(0)
    model, criterion = build_model(cfg).train(), build_criterion(cfg)
    targets = [criterion.prepare(_batch(i, i + 1).targets, (64, 96)) for i in range(CLIPS)]
    assert criterion.count(targets) == 3 and criterion.count(targets[1:]) == 1
    with torch.no_grad():
        half = _batch(1, 2)
        output = model(half.frames, half.padding, half.captions, criterion.select(targets[1]))
        own, shared = criterion(output, targets[1])[0], criterion(output, targets[1], criterion.count(targets))[0]
    torch.testing.assert_close(own, 3 * shared)


class Model(torch.nn.Module):
    """A linear model that notes when processes would not exchange gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.alone = False
        self.seen: list[bool] = []

    def forward(self, frames: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.seen.append(self.alone)
        return self.weight * frames.sum()

    @contextmanager
    def no_sync(self):
        self.alone = True
        yield
        self.alone = False


class Loss:
    """The sum of outputs, over the number of batches."""

    def prepare(self, targets: Any, size: Any) -> Any:
        return targets

    def select(self, target: Any) -> None:
        return None

    def count(self, targets: list) -> torch.Tensor:
        return torch.tensor(float(len(targets)))

    def __call__(self, output: torch.Tensor, target: Any, count: torch.Tensor) -> tuple:
        return output / count, {"loss_x": output / count}


def test_processes_exchange_gradients_with_the_last_batch_alone() -> None:
    model = Model()
    batches = [
        SimpleNamespace(frames=torch.full((1, 1, 1, 2, 2), float(i)), padding=0, captions=0, targets=0, annotated=0)
        for i in range(3)
    ]
    terms = training_step(model, Loss(), batches, torch.optim.SGD(model.parameters(), lr=1.0), 0.0)
    assert model.seen == [True, True, False]
    assert float(terms["loss"]) == float(terms["loss_x"]) == 4.0  # (0 + 4 + 8) / 3
    assert float(terms["grad_norm"]) == 4.0 and model.weight.item() == -3.0


@pytest.mark.parametrize("first", [0, 2])
def test_a_step_has_the_clips_of_one_larger_batch(first: int) -> None:
    steps = []
    for size, accumulate, world in ((8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4)):
        ranks = [EpochBatches(67, size, 5, rank, world, accumulate) for rank in range(world)]
        clips: list[set[int]] = [set() for _ in range(8 - first)]
        for batches in ranks:
            batches.set_position(1, first)
            assert batches.steps_per_epoch == 8 and len(batches) == (8 - first) * accumulate
            assert len(list(batches)) == len(batches)
            for i, batch in enumerate(batches):
                clips[i // accumulate] |= set(batch)
        steps.append(clips)
    assert all(clips == steps[0] for clips in steps)
    assert all(len(clips) == 8 for clips in steps[0])


def test_the_loop_gives_each_step_its_batches_and_counts_steps() -> None:
    def loader(epoch: int, first: int) -> list[str]:
        return [f"{epoch}.{step}{half}" for step in range(first, 3) for half in "ab"]

    schedule = Schedule(1.0, steps_per_epoch=3, epochs=2, max_steps=5)
    assert list(step_batches(loader, schedule, 1, 2)) == [
        (0, ["0.1a", "0.1b"]),
        (0, ["0.2a", "0.2b"]),
        (1, ["1.0a", "1.0b"]),
        (1, ["1.1a", "1.1b"]),
    ]
