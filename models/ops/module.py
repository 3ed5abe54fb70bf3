"""The attention module around the operator (Deformable DETR, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.ops.functional import forced_backend, multi_scale_deformable_attention
from models.precision import in_float32


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention.

    Args:
        dim: width of queries and values.
        num_levels: number of feature levels.
        num_heads: must divide ``dim``.
        num_points: sampling points per head and level.

    Raises:
        UserError: ``MSDA_BACKEND`` is not a known backend.
    """

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the number of heads ({num_heads}) must divide the width ({dim})")
        forced_backend()  # reports a misspelt MSDA_BACKEND before anything large is loaded
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise offsets as a star: head m in direction 2π·m/M, point p at a distance of p + 1 pixels."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        star = torch.stack([angles.cos(), angles.sin()], dim=-1)
        star = star / star.abs().amax(dim=-1, keepdim=True)
        reach = torch.arange(1, self.num_points + 1, dtype=torch.float32).view(1, 1, -1, 1)
        star = star.view(self.num_heads, 1, 1, 2).expand(-1, self.num_levels, -1, -1) * reach
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(star.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        values: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attend to the values around each query's reference.

        Args:
            query: ``[N, Q, C]``.
            references: ``[N, Q, L, 2]`` points (x, y), or ``[N, Q, L, 4]`` boxes (cx, cy, w, h), in 0…1 of
                the padded frame.
            values: ``[N, S, C]``, all levels concatenated.
            shapes: (h, w) of each level.
            padding: ``[N, S]``, True where a value is padding.

        Returns:
            ``[N, Q, C]``.
        """
        value = self.value_proj(values)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        locations, weights = self._samples(query, references, shapes)
        value = value.unflatten(-1, (self.num_heads, -1))
        return self.output_proj(multi_scale_deformable_attention(value, shapes, locations, weights))

    @in_float32  # half precision is too coarse for positions in a frame
    def _samples(self, query: Tensor, references: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Sampling locations ``[N, Q, M, L, P, 2]`` and weights ``[N, Q, M, L, P]`` of each query."""
        grid = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*grid, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1).unflatten(-1, grid[1:])
        centres = references[:, :, None, :, None, :2]
        if references.shape[-1] == 2:
            # Filled on the device: the host would wait for the copy of a tensor made from a list.
            extent = torch.stack([offsets.new_full((), side) for h, w in shapes for side in (w, h)]).view(-1, 2)
            locations = centres + offsets / extent[:, None]
        elif references.shape[-1] == 4:
            locations = centres + offsets / self.num_points * references[:, :, None, :, None, 2:] * 0.5
        else:
            raise ValueError(f"references must be points or boxes, not {references.shape[-1]} wide")
        return locations, weights
