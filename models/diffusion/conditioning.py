"""The text condition with image tokens for the cross-attention of the UNet (VD-IT section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPPixels(nn.Module):
    """The image preprocessing of CLIP, batched and on the device of its input.

    As published, it works on 8-bit values, also after the resize.
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
            images: ``[N, 3, H, W]`` in 0…1.

        Returns:
            ``[N, 3, size, size]``, normalised for CLIP.
        """
        levels = (images.float() * 255).clamp(0, 255).to(torch.uint8)
        levels = resize(levels, [self.size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        top, left = ((side - self.size) // 2 for side in levels.shape[-2:])
        levels = levels[..., top : top + self.size, left : left + self.size]
        return (levels.to(self.mean.dtype) / 255 - self.mean) / self.std


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
