"""Level 0 of the pyramid, at stride 4."""

from __future__ import annotations

from torch import Tensor, nn


class VAETap(nn.Module):
    """VD-IT: the VAE encoder's stride-4 feature through two 1×1 convolutions."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = pointwise_pair(in_channels, mid_channels, out_channels)

    def forward(self, vae_feature: Tensor) -> Tensor:
        """``[N, in, H/4, W/4]`` → ``[N, out, H/4, W/4]``."""
        return self.project(vae_feature)


def pointwise_pair(in_channels: int, mid_channels: int, out_channels: int) -> nn.Sequential:
    """Two 1×1 convolutions with nothing between, as every pyramid level has them (models.md section 6)."""
    return nn.Sequential(nn.Conv2d(in_channels, mid_channels, 1), nn.Conv2d(mid_channels, out_channels, 1))
