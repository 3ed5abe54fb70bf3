"""Multi-scale deformable attention in plain PyTorch: the reference for the kernels, and their replacement.

``forward`` can be differentiated by autograd. ``backward`` computes the same gradients from the inputs alone, so that
nothing has to be saved between the two. Shapes are those of ``functional.multi_scale_deformable_attention``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = Sequence[tuple[int, int]]


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of samples, ``[N, Q, M·D]``; all tensors have the same floating-point type."""
    batch, _, heads, width = value.shape
    total = value.new_zeros(batch * heads, width, locations.shape[1])
    for maps, grid, scale in _levels(value, shapes, locations, weights):
        total = total + (_sample(maps, grid) * scale).sum(-1)
    return total.view(batch, heads * width, -1).transpose(1, 2)


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights, given the gradient of the result."""
    heads = value.shape[2]
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
