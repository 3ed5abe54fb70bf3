"""Sine position encodings of maps and of words (Carion et al., "DETR", ECCV 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0
EPS = 1e-6


def _sine(position: Tensor, width: int) -> Tensor:
    """``[...]`` → ``[..., width]``: sine and cosine in turn, over geometric wavelengths."""
    i = torch.arange(width, dtype=torch.float32, device=position.device)
    phase = position[..., None] / TEMPERATURE ** (2 * (i // 2) / width)
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)


def sine_position_2d(padding: Tensor, dim: int) -> Tensor:
    """Position encoding of a map: rows in the first half of the channels, columns in the second.

    Args:
        padding: ``[N, h, w]``, True where a position is padding.
        dim: channels of the result, a multiple of 4.

    Returns:
        ``[N, dim, h, w]``.
    """
    real = (~padding).float()
    y, x = real.cumsum(1), real.cumsum(2)
    y = (y - 0.5) / (y[:, -1:] + EPS) * (2 * math.pi)
    x = (x - 0.5) / (x[:, :, -1:] + EPS) * (2 * math.pi)
    return torch.cat([_sine(y, dim // 2), _sine(x, dim // 2)], dim=-1).permute(0, 3, 1, 2)


def sine_position_1d(padding: Tensor, dim: int) -> Tensor:
    """Position encoding of words: ``[N, L]`` (True where padded) → ``[N, L, dim]``."""
    x = (~padding).float().cumsum(1)
    return _sine(x / (x[:, -1:] + EPS) * (2 * math.pi), dim)
