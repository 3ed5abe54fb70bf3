"""Multi-scale deformable attention in plain PyTorch: what the kernels are compared with, and what runs without them.

``forward`` can be differentiated by autograd; ``backward`` gives the same gradients from the inputs alone, so that
nothing has to be kept between the two. Shapes are those of ``functional.multi_scale_deformable_attention``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

DENSE_POSITIONS = 512
"""Up to so many positions, the CPU samples all levels at once by a matrix product, in a third of the time."""

Shapes = Sequence[tuple[int, int]]


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of samples, ``[N, Q, M·D]``; all tensors are of one floating type."""
    if _is_small(value):
        corners = _corners(value, shapes, locations)
        return (corners.matrix(weights) @ value.transpose(1, 2)).transpose(1, 2).flatten(2)
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    total = value.new_zeros(batch * heads, width, queries)
    for maps, grid, scale in _levels(value, shapes, locations, weights):
        total = total + (_sample(maps, grid) * scale).sum(-1)
    return total.view(batch, heads * width, queries).transpose(1, 2)


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights, given that of the result."""
    heads = value.shape[2]
    if _is_small(value):
        corners = _corners(value, shapes, locations)
        up = grad.unflatten(-1, (heads, -1)).transpose(1, 2)  # [N, M, Q, D]
        grad_value = (corners.matrix(weights).transpose(2, 3) @ up).transpose(1, 2)
        return grad_value, *corners.backward(up @ value.permute(0, 2, 3, 1), weights, shapes)
    up = grad.transpose(1, 2).unflatten(1, (heads, -1)).flatten(0, 1)[..., None]  # [N·M, D, Q, 1]
    of_value, of_locations, of_weights = [], [], []
    for maps, grid, scale in _levels(value, shapes, locations, weights):
        of_weights.append((_sample(maps, grid) * up).sum(1))  # [N·M, Q, P]
        of_maps, of_grid = torch.ops.aten.grid_sampler_2d_backward(up * scale, maps, grid, 0, 0, False, [True, True])
        of_value.append(of_maps.flatten(2))  # [N·M, D, h·w]
        of_locations.append(2 * of_grid)
    grad_value = torch.cat(of_value, dim=2).unflatten(0, (-1, heads)).permute(0, 3, 1, 2)
    grad_locations, grad_weights = (
        torch.stack(parts, dim=2).unflatten(0, (-1, heads)).transpose(1, 2) for parts in (of_locations, of_weights)
    )
    return grad_value, grad_locations, grad_weights


def _is_small(value: Tensor) -> bool:
    return value.device.type == "cpu" and value.shape[1] <= DENSE_POSITIONS


# By sampling one level after the other.


def _levels(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each level's maps ``[N·M, D, h, w]``, sampling grid ``[N·M, Q, P, 2]`` and weights ``[N·M, 1, Q, P]``."""
    grids = 2 * locations - 1
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, tuple(shapes[level]))
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        yield maps, grid, weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


# By a matrix of every query's weight at every position.


@dataclass
class _Corners:
    """The four positions around every sampled place; the last axis goes over them: up or down, then left or right."""

    positions: int
    index: Tensor
    """``[N, M, Q, L, P, 4]``: of all S positions; S stands for what is outside."""
    right: Tensor
    down: Tensor
    """``[N, M, Q, L, P]``: offsets from the first corner, 0…1."""

    def shares(self) -> Tensor:
        """Each corner's share of its sample, ``[N, M, Q, L, P, 4]``."""
        across, along = (torch.stack([1 - part, part], dim=-1) for part in (self.right, self.down))
        return (along[..., :, None] * across[..., None, :]).flatten(-2)

    def matrix(self, weights: Tensor) -> Tensor:
        """``[N, M, Q, S]``."""
        parts = (self.shares() * weights.transpose(1, 2)[..., None]).flatten(3)
        wide = parts.new_zeros(*parts.shape[:3], self.positions + 1)
        return wide.scatter_add(-1, self.index.flatten(3), parts)[..., :-1]

    def backward(self, grad: Tensor, weights: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Gradients of locations and weights, given that of the matrix."""
        along = F.pad(grad, (0, 1)).gather(-1, self.index.flatten(3)).view(self.index.shape)
        grad_weights = (along * self.shares()).sum(-1).transpose(1, 2)
        d0, d1, d2, d3 = along.unbind(-1)
        across = (1 - self.down) * (d1 - d0) + self.down * (d3 - d2)
        along_y = (1 - self.right) * (d2 - d0) + self.right * (d3 - d1)
        moved = torch.stack([across, along_y], dim=-1) * _extents(shapes, grad)
        return moved.transpose(1, 2) * weights[..., None], grad_weights


def _corners(value: Tensor, shapes: Shapes, locations: Tensor) -> _Corners:
    positions = value.shape[1]
    sizes = _extents(shapes, locations)
    starts = torch.tensor([0, *accumulate(h * w for h, w in shapes)][:-1], device=value.device)[:, None, None]
    place = locations.transpose(1, 2) * sizes - 0.5  # [N, M, Q, L, P, 2], in pixels of the level
    first = place.detach().floor()
    right, down = (place - first).unbind(-1)
    # What is far outside needs no exact place, and must fit into an integer.
    x, y = torch.minimum(first.clamp(min=-2), sizes).long()[..., None].unbind(-2)  # [N, M, Q, L, P, 1]
    x, y = x + x.new_tensor([0, 1, 0, 1]), y + y.new_tensor([0, 0, 1, 1])
    widths, heights = sizes.long().unbind(-1)  # [L, 1]
    inside = (x >= 0) & (x < widths[..., None]) & (y >= 0) & (y < heights[..., None])
    return _Corners(positions, torch.where(inside, starts + y * widths[..., None] + x, positions), right, down)


def _extents(shapes: Shapes, like: Tensor) -> Tensor:
    """(w, h) of each level, ``[L, 1, 2]``."""
    return torch.tensor([(w, h) for h, w in shapes], device=like.device, dtype=like.dtype)[:, None]
