"""The sampling operator against a direct implementation of its definition, with every backend that runs here."""

from __future__ import annotations

import math
import os
import random

import pytest
import torch
from torch import Tensor

from models.ops import MSDeformAttn, multi_scale_deformable_attention, plain
from tests.operator_tools import BACKENDS, FOUR_LEVELS, Shapes, case, gradients, use_backend

HALVES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Half precision → what it may be off: a few of its last places, at values of a few units."""


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Each backend in turn, and the device that its tensors are on."""
    return use_backend(request.param, monkeypatch)


def _direct(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """One bilinear sample at a time."""
    batch, _, heads, width = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = torch.zeros(batch, queries, heads, width, dtype=value.dtype)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                first = 0
                for level, (h, w) in enumerate(shapes):
                    grid = value[b, first : first + h * w, m].view(h, w, width)
                    first += h * w
                    for p in range(points):
                        x = float(locations[b, q, m, level, p, 0]) * w - 0.5
                        y = float(locations[b, q, m, level, p, 1]) * h - 0.5
                        x0, y0 = math.floor(x), math.floor(y)
                        for yy, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
                            for xx, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
                                if 0 <= yy < h and 0 <= xx < w:
                                    out[b, q, m] += weights[b, q, m, level, p] * wy * wx * grid[yy, xx]
    return out.flatten(2)


@pytest.mark.parametrize("shapes", [[(5, 7)], [(1, 1)], FOUR_LEVELS])
def test_it_samples_as_defined(device: torch.device, shapes: Shapes) -> None:
    value, locations, weights = case(shapes)
    ours = multi_scale_deformable_attention(value.to(device), shapes, locations.to(device), weights.to(device))
    torch.testing.assert_close(ours.cpu(), _direct(value, shapes, locations, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shapes", [[(3, 4)], [(3, 2), (1, 1)]])
def test_gradients(device: torch.device, shapes: Shapes) -> None:
    inputs = [tensor.requires_grad_() for tensor in case(shapes, batch=1, queries=2, points=2, device=device)]
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: multi_scale_deformable_attention(value, shapes, locations, weights),
        inputs,
        nondet_tol=1e-12 if device.type == "cuda" else 0.0,
    )


@pytest.mark.parametrize("seed", range(12))
def test_it_agrees_with_plain_pytorch(device: torch.device, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and all three gradients, over random shapes; differentiated by autograd on the other side."""
    draw = random.Random(seed)
    shapes = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(draw.choice([1, 4]))]
    width = 8 * draw.choice([1, 2, 3, 4, 5, 8])
    sizes = {"batch": draw.randint(1, 3), "queries": draw.randint(1, 20), "heads": draw.randint(1, 8)}
    inputs = case(shapes, seed, width=width, points=draw.randint(1, 5), **sizes, device=device)
    inputs[1][0, 0, 0, 0, 0] = 1e30  # far outside, where no integer reaches
    ours = multi_scale_deformable_attention(
        inputs[0].requires_grad_(), shapes, *(t.requires_grad_() for t in inputs[1:])
    )
    found = gradients(ours, inputs)
    monkeypatch.setattr("models.ops.plain.DENSE_POSITIONS", 0)
    inputs[1].data[0, 0, 0, 0, 0] = 10.0  # grid_sample wants an integer
    reference = plain.forward(inputs[0], shapes, *inputs[1:])
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-11)
    for one, other in zip(found, gradients(reference, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_adds_up_in_float32(device: torch.device, dtype: torch.dtype) -> None:
    value, locations, weights = case(FOUR_LEVELS, heads=4, dtype=torch.float32, device=device)
    inputs = [value.to(dtype).requires_grad_(), locations.requires_grad_(), weights.requires_grad_()]
    ours = multi_scale_deformable_attention(inputs[0], FOUR_LEVELS, *inputs[1:])
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = plain.forward(exact[0], FOUR_LEVELS, *exact[1:])
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=HALVES[dtype], atol=HALVES[dtype])
    for one, other in zip(gradients(ours, inputs), gradients(expected, exact), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=HALVES[dtype], atol=4 * HALVES[dtype])
    # Locations of half precision are read as they are, and get gradients of their own type.
    halves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    result = multi_scale_deformable_attention(halves[0], FOUR_LEVELS, *halves[1:])
    assert {gradient.dtype for gradient in gradients(result, halves)} == {dtype}


def test_layout_in_memory_does_not_matter(device: torch.device) -> None:
    dense = [tensor.requires_grad_() for tensor in case(FOUR_LEVELS, device=device, dtype=torch.float32)]
    flipped = [t.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for t in dense]
    shifted = [torch.cat([t.detach().new_zeros(1), t.detach().flatten()])[1:].view(t.shape) for t in dense]
    shifted = [tensor.requires_grad_() for tensor in shifted]
    assert not any(tensor.is_contiguous() for tensor in flipped)
    assert all(tensor.data_ptr() % 16 for tensor in shifted)
    first = multi_scale_deformable_attention(dense[0], FOUR_LEVELS, *dense[1:])
    expected = gradients(first, dense)
    for inputs in (flipped, shifted):
        other = multi_scale_deformable_attention(inputs[0], FOUR_LEVELS, *inputs[1:])
        torch.testing.assert_close(other, first, rtol=0, atol=0)
        for one, two in zip(gradients(other, inputs), expected, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_nothing_in_nothing_out(device: torch.device, batch: int, queries: int) -> None:
    inputs = [tensor.requires_grad_() for tensor in case(FOUR_LEVELS, batch=batch, queries=queries, device=device)]
    result = multi_scale_deformable_attention(inputs[0], FOUR_LEVELS, *inputs[1:])
    assert result.shape == (batch, queries, 16)
    found = gradients(result, inputs)
    assert [g.shape for g in found] == [t.shape for t in inputs]
    assert not any(g.any() for g in found)


def test_kernels_do_not_read_what_is_outside(device: torch.device) -> None:
    """Zero times infinity is not zero: a place outside, or beside the edge, must not borrow a value."""
    if os.environ["MSDA_BACKEND"] == "torch":
        pytest.skip("plain PyTorch multiplies what is outside by zero")
    value = torch.ones(1, 4, 1, 8, device=device)
    value[:, :3] = math.inf
    locations = torch.tensor([[3.0, 3.0], [math.nan, 0.5], [1.1, 1.1]], device=device).view(1, 1, 1, 1, 3, 2)
    weights = torch.ones(1, 1, 1, 1, 3, device=device)
    result = multi_scale_deformable_attention(value, [(2, 2)], locations, weights)
    torch.testing.assert_close(result, torch.full_like(result, 0.3 * 0.3))


def test_padded_values_do_not_matter(device: torch.device) -> None:
    torch.manual_seed(0)
    attention = MSDeformAttn(16, num_levels=1, num_heads=2, num_points=2).to(device)
    query, values = torch.randn(1, 3, 16, device=device), torch.randn(1, 12, 16, device=device)
    references = torch.rand(1, 3, 1, 4, device=device)
    padding = torch.zeros(1, 12, dtype=torch.bool, device=device)
    padding[:, 8:] = True
    first = attention(query, references, values, [(3, 4)], padding)
    values[:, 8:] = 100
    torch.testing.assert_close(attention(query, references, values, [(3, 4)], padding), first)


def test_offsets_start_as_a_star() -> None:
    attention = MSDeformAttn(32, num_levels=4, num_heads=8, num_points=4)
    offsets = attention.sampling_offsets.bias.view(8, 4, 4, 2)
    reach = offsets.abs().amax(-1)  # head, level, point
    expected = torch.arange(1.0, 5.0).expand(8, 4, 4)
    torch.testing.assert_close(reach, expected)
    directions = {tuple(d.round(decimals=3).tolist()) for d in offsets[:, 0, 0]}
    assert len(directions) == 8
