"""The noise that is added to the latents before the UNet (VD-IT section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.precision import in_float32


class PredictedNoise(nn.Module):
    """Video-specific noise, predicted from the latents and standardised over each clip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.linear1 = nn.Linear(channels, channels, bias=False)
        self.linear2 = nn.Linear(channels, channels, bias=False)

    @in_float32
    def forward(self, latents: Tensor) -> Tensor:
        """``[B, T, C, h, w]`` → noise of the same shape, mean 0 and deviation 1 over each clip.

        The published code standardises over the whole batch, and trains with one clip per process, which is the same.
        Per clip, the result does not depend on the other clips of the batch.
        """
        n = self.conv(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        n = self.linear2(torch.relu(self.linear1(n.movedim(2, -1)))).sigmoid().movedim(-1, 2)
        mean = n.mean(dim=(1, 2, 3, 4), keepdim=True)
        std = n.std(dim=(1, 2, 3, 4), keepdim=True)
        return (n - mean) / (std + 1e-5)


class GaussianNoise(nn.Module):
    """Ablation: fresh standard normal noise."""

    def forward(self, latents: Tensor) -> Tensor:
        """``[B, T, C, h, w]`` → noise of the same shape."""
        return torch.randn_like(latents)


def build_noise(name: str, channels: int) -> nn.Module | None:
    """``predicted`` (VD-IT), ``gaussian`` (ablation) or ``none`` (HCD): the module, or None for no noise."""
    if name == "predicted":
        return PredictedNoise(channels)
    if name == "gaussian":
        return GaussianNoise()
    if name == "none":
        return None
    raise ValueError(f"unknown noise {name!r}: expected predicted, gaussian or none")
