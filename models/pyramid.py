"""The interface of every source of the feature pyramid: text-to-video generators and discriminative backbones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from models.frozen import Frozen
from models.precision import HALVES, widened


class ClipFeatures(Protocol):
    """What depends on the frames only, shared by all sentences of a video."""

    @property
    def batch_shape(self) -> tuple[int, int]:
        """(B, T), with B counting the copies."""

    def repeat(self, count: int) -> Self:
        """The same clips ``count`` times, one after the other, for as many sentences."""


class PyramidEncoder(nn.Module):
    """Frames and a sentence → four maps at strides 4, 8, 16 and 32.

    Attributes:
        precision: of matrix products and convolutions of the trained parts (``models.precision``).
        vae: of a generator; a backbone has none.
    """

    precision: torch.dtype = torch.float32
    vae: Frozen

    @property
    def denoiser(self) -> Frozen:
        """The part of a generator that takes LoRA adapters and is compiled; a backbone has none."""
        raise AttributeError(f"{type(self).__name__} has no denoiser")

    @abstractmethod
    def encode_pixels(self, frames: Tensor) -> Any:
        """Compute everything that does not depend on the sentence (``ClipFeatures``).

        Args:
            frames: ``[B, T, 3, H, W]``, ImageNet-normalised, zero-padded; H and W multiples of 16.
        """

    @abstractmethod
    def forward(self, pixels: Any, captions: list[str]) -> list[Tensor]:
        """The pyramid of a batch of clips, each with one sentence.

        Args:
            pixels: from ``encode_pixels``, of B clips, counting copies.
            captions: B sentences.

        Returns:
            four maps ``[B·T, C, H/s, W/s]`` for s = 4, 8, 16, 32; the first one, which does not depend on the sentence,
            without copies.
        """

    def _own(self, value: Tensor) -> Tensor:
        """The output of a frozen part for the trained parts: float32, unless they compute in half precision."""
        return value if self.precision in HALVES else widened(value)

    def prepare_sentences(self, sentences: Iterable[str]) -> None:
        """Encode sentences ahead of their use, where a text encoder is too large to stay in memory."""


def prepare_sentences(model: nn.Module, sentences: Iterable[str]) -> None:
    """Encode sentences before a model trains or segments with them, if its encoder asks for that."""
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, PyramidEncoder):
        encoder.prepare_sentences(sentences)
