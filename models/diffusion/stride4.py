"""Level 0 of the pyramid, at stride 4: the fine detail of VD-IT and HCD.

Both modules take the same two inputs and use the one they need.
"""

from __future__ import annotations

from diffusers.models.resnet import TemporalConvLayer
from torch import Tensor, nn

from models.precision import call_in_float32


class VAETap(nn.Module):
    """VD-IT: two 1×1 convolutions on the stride-4 feature of the VAE encoder (section 3.3)."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = pointwise_pair(in_channels, mid_channels, out_channels)

    def forward(self, x01: Tensor, vae_f4: Tensor) -> Tensor:
        """Level 0.

        Args:
            x01: frames ``[B, T, 3, H, W]``; not used.
            vae_f4: feature of the VAE encoder, ``[B·T, in, H/4, W/4]``.

        Returns:
            ``[B·T, out, H/4, W/4]``.
        """
        return self.project(vae_f4)


class TemporalStem(nn.Module):
    """HCD: a small convolutional stem on the frames, with one temporal layer that also runs at T = 1.

    The core of its Temporal Context Mask Refinement (HCD section 3.4).
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.spatial = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 64, 3, stride=2, padding=1),
            nn.GroupNorm(32, 64),
            nn.GELU(),
            nn.Conv2d(64, out_channels, 1),
        )
        self.temporal = TemporalConvLayer(out_channels)

    def forward(self, x01: Tensor, vae_f4: Tensor) -> Tensor:
        """Level 0.

        Args:
            x01: frames ``[B, T, 3, H, W]`` in 0…1.
            vae_f4: not used.

        Returns:
            ``[B·T, out, H/4, W/4]``.
        """
        f4 = self.spatial(x01.flatten(0, 1))
        frames = x01.shape[1]
        # The layer of diffusers is itself residual; HCD adds its input once more.
        if f4.device.type == "cpu":  # oneDNN's bfloat16 gradient of a convolution over two frames is NaN
            return f4 + call_in_float32(self.temporal, f4, num_frames=frames)
        return f4 + self.temporal(f4, num_frames=frames)


def pointwise_pair(in_channels: int, mid_channels: int, out_channels: int) -> nn.Sequential:
    """Two 1×1 convolutions without an activation between them, as in every level of the published pyramids."""
    return nn.Sequential(nn.Conv2d(in_channels, mid_channels, 1), nn.Conv2d(mid_channels, out_channels, 1))
