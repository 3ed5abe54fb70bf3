"""The sampling operator of Deformable DETR (Zhu et al., ICLR 2021), in plain PyTorch.

This is the one entry point: faster implementations take its place behind the same signature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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
