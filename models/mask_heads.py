"""Mask heads: dynamic (Tian et al., "CondInst", ECCV 2020), query-dot (HCD), and mask refinement.

A low mask is held as 16 channels at stride 8; pixel shuffle by 4 makes it one channel at stride 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.deformable_transformer import MLP
from models.precision import in_float32

SHUFFLE = 4
MASK_CHANNELS = SHUFFLE * SHUFFLE
FEATURE_STRIDE = 8


def shuffle_mask(mask: Tensor) -> Tensor:
    """``[..., 16, h, w]`` → ``[..., 4h, 4w]``."""
    return F.pixel_shuffle(mask, SHUFFLE)[..., 0, :, :]


@in_float32
def sum_memories(memory: Sequence[Tensor]) -> Tensor:
    """Mask features: the encoder memories, resized to stride 8 and summed, ``[N, C, h, w]``."""
    features = memory[0]
    for m in memory[1:]:
        features = features + F.interpolate(m, size=features.shape[-2:], mode="bicubic", align_corners=False)
    return features


class MaskHead(nn.Module):
    """Predicts the low masks of all queries, ``[N, Q, 16, h, w]``, by ``forward(features, states, centres)``.

    Args of ``forward``:
        features: mask features ``[N, C, h, w]`` at stride 8.
        states: decoder queries ``[N, Q, C]``.
        centres: each query's reference (x, y) in pixels of the frame ``[N, Q, 2]``.
    """


class DynamicMaskHead(MaskHead):
    """Every query predicts the weights of its own two 1×1 convolutions over the mask features.

    The features are never copied per query: the first convolution is one matrix product over the features for all
    queries, plus a term that is linear in the position. At most two maps of 16 channels per query exist at a time,
    including the output.

    Args:
        dim: width of queries and mask features.
        channels: hidden channels of the dynamic convolutions.
    """

    def __init__(self, dim: int, channels: int = 16) -> None:
        super().__init__()
        self.channels = channels
        self.sizes = [(dim + 2) * channels, channels * MASK_CHANNELS, channels, MASK_CHANNELS]
        self.controller = MLP(dim, dim, sum(self.sizes), 3)
        for layer in self.controller.linears:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @in_float32  # positions in pixels and their differences need the range
    def forward(self, features: Tensor, states: Tensor, centres: Tensor) -> Tensor:
        """Masks of all queries; see ``MaskHead``."""
        batch, channels, h, w = features.shape
        queries = states.shape[1]
        weight1, weight2, bias1, bias2 = self.controller(states).split(self.sizes, dim=-1)
        by_feature, by_place = weight1.unflatten(-1, (self.channels, -1)).split([channels, 2], dim=-1)
        weight2 = weight2.unflatten(-1, (MASK_CHANNELS, self.channels)).flatten(0, 1)  # [N·Q, 16, c]

        # weight · (centre − pixel) = weight · centre − weight · pixel
        constant = (bias1[..., None] + by_place @ centres[..., None]).flatten(1, 2)  # [N, Q·c, 1]
        pixels = -pixel_centres(h, w, features).expand(batch, -1, -1)
        x = torch.baddbmm(constant, by_place.flatten(1, 2), pixels)  # [N, Q·c, h·w]
        x = torch.baddbmm(x, by_feature.flatten(1, 2), features.flatten(2))
        x = F.relu(x, inplace=True).view(batch * queries, self.channels, h * w)
        x = torch.baddbmm(bias2.reshape(-1, MASK_CHANNELS, 1), weight2, x)
        return x.view(batch, queries, MASK_CHANNELS, h, w)


class QueryDotHead(nn.Module):
    """HCD: the dot product of each query with the memories mixed to 16 channels, added to the dynamic head.

    Each memory is multiplied with the query at its own size, and the products are resized and mixed. All three steps
    are linear, so this computes the same without a copy of the features per query.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, MASK_CHANNELS)

    @in_float32
    def forward(self, memory: Sequence[Tensor], states: Tensor) -> Tensor:
        """Masks of all queries.

        Args:
            memory: three encoder memories ``[N, C, h, w]`` (strides 8, 16, 32).
            states: decoder queries ``[N, Q, C]``.

        Returns:
            ``[N, Q, 16, h, w]`` at stride 8.
        """
        size = memory[0].shape[-2:]
        products = [(states @ m.flatten(2)).unflatten(-1, m.shape[-2:]) for m in memory]
        resized = [F.interpolate(p, size=size, mode="bicubic", align_corners=False) for p in products[1:]]
        stacked = torch.stack([products[0], *resized], dim=2)  # [N, Q, 3, h, w]
        constant = states.sum(-1)[..., None] * self.mix.bias  # [N, Q, 16]
        count = constant.shape[0] * constant.shape[1]
        mixed = torch.baddbmm(
            constant.reshape(count, MASK_CHANNELS, 1),
            self.mix.weight.expand(count, -1, -1),
            stacked.view(count, len(memory), -1),
        )
        return mixed.view(*constant.shape, *size)


def pixel_centres(h: int, w: int, like: Tensor) -> Tensor:
    """The positions of a stride-8 map in the frame: (x; y) in pixels, ``[2, h·w]``."""
    y = torch.arange(h, dtype=like.dtype, device=like.device) * FEATURE_STRIDE + FEATURE_STRIDE // 2
    x = torch.arange(w, dtype=like.dtype, device=like.device) * FEATURE_STRIDE + FEATURE_STRIDE // 2
    return torch.stack([x.repeat(h), y.repeat_interleave(w)])


class MaskRefinement(nn.Module):
    """Refines a low mask with pyramid level 1 and then with level 0 (both models).

    Args:
        channels4: channels of level 0 (stride 4).
        channels8: channels of level 1 (stride 8).
    """

    def __init__(self, channels4: int, channels8: int) -> None:
        super().__init__()
        self.refine8 = self._step(channels8)
        self.refine4 = self._step(channels4)

    @staticmethod
    def _step(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(MASK_CHANNELS + channels, MASK_CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(MASK_CHANNELS, MASK_CHANNELS, 3, padding=1),
        )

    def forward(self, mask: Tensor, f4: Tensor, f8: Tensor) -> Tensor:
        """Refine one mask per frame.

        Args:
            mask: ``[N, 16, H/8, W/8]``.
            f4: pyramid level 0 ``[N, C, H/4, W/4]``.
            f8: pyramid level 1 ``[N, C, H/8, W/8]``.

        Returns:
            mask logits at full resolution ``[N, H, W]``.
        """
        mask = mask + self.refine8(torch.cat([mask, f8], dim=1))
        mask = F.interpolate(mask, size=f4.shape[-2:], mode="bilinear", align_corners=False)
        mask = mask + self.refine4(torch.cat([mask, f4], dim=1))
        return shuffle_mask(mask)
