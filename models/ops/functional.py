"""The sampling operator of Deformable DETR (Zhu et al., ICLR 2021), in plain PyTorch.

This is the one entry point: faster implementations take its place behind the same signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

DENSE_POSITIONS = 512
"""Up to so many positions, the CPU samples all levels at once by a matrix product, in a third of the time."""


def multi_scale_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sum over levels and points of weighted, bilinearly sampled values.

    A location (x, y) of 0…1 spans a level from edge to edge; what lies outside counts as zero.

    Args:
        value: ``[N, S, M, D]``: S = Σ h·w positions of all levels, M heads of width D.
        shapes: (h, w) of each of the L levels, as Python integers, so that nothing waits for a device.
        locations: ``[N, Q, M, L, P, 2]``, x then y.
        weights: ``[N, Q, M, L, P]``.

    Returns:
        ``[N, Q, M·D]``.

    Raises:
        ValueError: the shapes do not fit together.
    """
    batch, positions, heads, width = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    if levels != len(shapes) or positions != sum(h * w for h, w in shapes):
        raise ValueError(f"{positions} values of {levels} levels do not fit the level shapes {list(shapes)}")
    if weights.shape != locations.shape[:-1] or locations.shape[:3:2] != (batch, heads):
        raise ValueError(
            f"locations {tuple(locations.shape)} and weights {tuple(weights.shape)} do not match the value"
        )

    if value.device.type == "cpu" and positions <= DENSE_POSITIONS:
        return _by_matrix(value, shapes, locations, weights)
    grids = 2 * locations - 1
    sampled = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        h, w = shapes[level]
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, width, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    stacked = torch.stack(sampled, dim=-2).flatten(-2)  # [N·M, D, Q, L·P]
    scale = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    return (stacked * scale).sum(-1).view(batch, heads * width, queries).transpose(1, 2)


def _by_matrix(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """The same by a matrix of every query's weight at every position, ``[N, M, Q, S]``."""
    positions = value.shape[1]
    sizes = torch.tensor([(w, h) for h, w in shapes], device=value.device)[:, None]  # [L, 1, 2]
    starts = torch.tensor([0, *accumulate(h * w for h, w in shapes)][:-1], device=value.device)[:, None]
    place = locations.transpose(1, 2) * sizes - 0.5  # [N, M, Q, L, P, 2], in pixels of the level
    corner = place.detach().floor()
    share = place - corner
    # What is far outside needs no exact place, and must fit into an integer.
    corner = torch.minimum(corner.clamp(min=-2), sizes).long()
    weights = weights.transpose(1, 2)
    indices, parts = [], []
    for down in (0, 1):
        for right in (0, 1):
            x, y = (corner + corner.new_tensor((right, down))).unbind(-1)
            inside = (x >= 0) & (x < sizes[..., 0]) & (y >= 0) & (y < sizes[..., 1])
            # What is outside goes to one more position, which is then left out.
            indices.append(torch.where(inside, starts + y * sizes[..., 0] + x, positions))
            across, along = (
                part if far else 1 - part for part, far in zip(share.unbind(-1), (right, down), strict=True)
            )
            parts.append(across * along * weights)
    index, part = (torch.stack(tensors, dim=-1).flatten(3) for tensors in (indices, parts))
    matrix = part.new_zeros(*index.shape[:3], positions + 1).scatter_add(-1, index, part)[..., :positions]
    return (matrix @ value.transpose(1, 2)).transpose(1, 2).flatten(2)
