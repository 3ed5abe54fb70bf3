"""The text condition with image tokens for the cross-attention of the UNet (VD-IT section 3.2)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from util.device import upload

FRACTION_BITS = 22  # of the fixed-point weights with which Pillow resizes 8-bit images
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPPixels(nn.Module):
    """The image preprocessing of CLIP, batched and on the device of its input.

    As published, it works on 8-bit values, also after the resize, which equals Pillow's bit by bit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Prepare images: shortest edge to ``size`` (bicubic, antialiased), centre crop, normalise.

        Args:
            images: ``[N, 3, H, W]`` in -1…1, as the VAE takes them. The published code computes 8-bit values from these
                and truncates them, so that the rounding errors of this order of operations change half of the values.

        Returns:
            ``[N, 3, size, size]``, normalised for CLIP.
        """
        levels = ((images.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8)
        short = min(levels.shape[-2:])
        height, width = (self.size * side // short for side in levels.shape[-2:])
        levels = resize_axis(resize_axis(levels, width, -1), height, -2)  # rows first, as in Pillow
        top, left = (height - self.size) // 2, (width - self.size) // 2
        levels = levels[..., top : top + self.size, left : left + self.size]
        return (levels.to(self.mean.dtype) / 255 - self.mean) / self.std


def resize_axis(levels: Tensor, length: int, axis: int) -> Tensor:
    """Resize one axis of 8-bit images by Pillow's antialiased bicubic filter; the result equals Pillow's bit by bit.

    Args:
        levels: uint8, of any shape.
        length: the new number of pixels along ``axis``.

    Returns:
        uint8, of the same shape but for ``axis``.
    """
    if levels.shape[axis] == length:
        return levels
    places, weights = bicubic_taps(levels.shape[axis], length, levels.device)
    shape = [1] * levels.ndim
    shape[axis] = length
    wide = levels.int()
    total: Tensor | int = 1 << (FRACTION_BITS - 1)  # rounds to nearest
    for place, weight in zip(places, weights, strict=True):
        total = wide.index_select(axis, place) * weight.view(shape) + total
    assert isinstance(total, Tensor)
    return (total >> FRACTION_BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def bicubic_taps(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The taps of a bicubic resize from ``before`` to ``after`` pixels, antialiased if the image shrinks.

    Returns:
        places int64 and fixed-point weights int32, both ``[taps, after]``.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    centre = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    first = (centre - 2 * stretch + 0.5).clamp(min=0).long()
    end = (centre + 2 * stretch + 0.5).clamp(max=before).long()
    taps = int((end - first).max())
    places = first + torch.arange(taps)[:, None]
    x = ((places - centre + 0.5) * (1 / stretch)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * (places < end)
    fixed = weights / weights.sum(0) * 2**FRACTION_BITS
    fixed = (fixed + fixed.sign() / 2).trunc().int()
    return upload(places.clamp(max=before - 1), device), upload(fixed, device)


@torch.no_grad()
def text_states(tokenizer: Any, encoder: nn.Module, captions: list[str], device: torch.device) -> Tensor:
    """The last hidden states of the text encoder of a diffusion model, ``[B, 77, D]``, padded and cut to 77 tokens."""
    tokens = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return encoder(upload(tokens.input_ids, device)).last_hidden_state


class ImageTokenProjection(nn.Module):
    """Projects image tokens to the width of the text: a = Linear(x); a + Linear(a)."""

    def __init__(self, image_dim: int, text_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(image_dim, text_dim)
        self.linear2 = nn.Linear(text_dim, text_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, L, image_dim]`` → ``[N, L, text_dim]``."""
        tokens = self.linear1(tokens)
        return tokens + self.linear2(tokens)


class TextImageFusion(nn.Module):
    """A post-norm transformer block with text as query and image tokens as key and value."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.linear1 = nn.Linear(dim, dim // 2)
        self.linear2 = nn.Linear(dim // 2, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Fuse the text of each frame with its image.

        Args:
            text: ``[N, L, D]``.
            image: ``[N, K, D]``.

        Returns:
            ``[N, L, D]``.
        """
        q, k, v = (
            rearrange(project(tokens), "n l (m d) -> n m l d", m=self.num_heads)
            for project, tokens in ((self.query, text), (self.key, image), (self.value, image))
        )
        attended = rearrange(F.scaled_dot_product_attention(q, k, v), "n m l d -> n l (m d)")
        text = self.norm1(text + self.output(attended))
        return self.norm2(text + self.linear2(F.relu(self.linear1(text))))
