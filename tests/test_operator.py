"""The sampling operator against a direct implementation of its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.ops import MSDeformAttn, multi_scale_deformable_attention


def _direct(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
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


def _case(shapes: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch, queries, heads, width, points = 2, 3, 2, 4, 3
    positions = sum(h * w for h, w in shapes)
    value = torch.randn(batch, positions, heads, width, dtype=torch.float64, generator=generator)
    locations = (
        torch.rand(batch, queries, heads, len(shapes), points, 2, dtype=torch.float64, generator=generator) * 1.6 - 0.3
    )
    weights = torch.rand(batch, queries, heads, len(shapes), points, dtype=torch.float64, generator=generator)
    return value, locations, weights


@pytest.fixture(autouse=True, params=["by matrix", "by grid"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to sample."""
    if request.param == "by grid":
        monkeypatch.setattr("models.ops.functional.DENSE_POSITIONS", 0)


@pytest.mark.parametrize("shapes", [[(5, 7)], [(1, 1)], [(6, 4), (3, 2), (2, 1), (1, 1)]])
def test_it_samples_as_defined(shapes: list[tuple[int, int]]) -> None:
    value, locations, weights = _case(shapes)
    ours = multi_scale_deformable_attention(value, shapes, locations, weights)
    torch.testing.assert_close(ours, _direct(value, shapes, locations, weights), rtol=0, atol=1e-12)


def test_gradients() -> None:
    shapes = [(3, 4), (2, 2)]
    inputs = [tensor.requires_grad_() for tensor in _case(shapes)]
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: multi_scale_deformable_attention(value, shapes, locations, weights), inputs
    )


def test_shapes_that_do_not_fit_are_refused() -> None:
    value, locations, weights = _case([(3, 4)])
    with pytest.raises(ValueError, match="do not fit"):
        multi_scale_deformable_attention(value, [(3, 5)], locations, weights)
    with pytest.raises(ValueError, match="do not match"):
        multi_scale_deformable_attention(value, [(3, 4)], locations, weights[:, :1])


def test_offsets_start_as_a_star() -> None:
    attention = MSDeformAttn(32, num_levels=4, num_heads=8, num_points=4)
    offsets = attention.sampling_offsets.bias.view(8, 4, 4, 2)
    reach = offsets.abs().amax(-1)  # head, level, point
    expected = torch.arange(1.0, 5.0).expand(8, 4, 4)
    torch.testing.assert_close(reach, expected)
    directions = {tuple(d.round(decimals=3).tolist()) for d in offsets[:, 0, 0]}
    assert len(directions) == 8


def test_padded_values_do_not_matter() -> None:
    torch.manual_seed(0)
    attention = MSDeformAttn(16, num_levels=1, num_heads=2, num_points=2)
    query, values = torch.randn(1, 3, 16), torch.randn(1, 12, 16)
    references = torch.rand(1, 3, 1, 4)
    padding = torch.zeros(1, 12, dtype=torch.bool)
    padding[:, 8:] = True
    first = attention(query, references, values, [(3, 4)], padding)
    values[:, 8:] = 100
    torch.testing.assert_close(attention(query, references, values, [(3, 4)], padding), first)
