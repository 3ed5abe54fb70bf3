"""The encoder of the frozen image autoencoder, with its stride-4 feature (VD-IT section 3.3)."""

from __future__ import annotations

import functools
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor

STRIDE4_BLOCK = 2


class VAEEncoder(AutoencoderKL):
    """``AutoencoderKL`` of diffusers without its decoder, which is not loaded."""

    _keys_to_ignore_on_load_unexpected = (r"^decoder\.", r"^post_quant_conv\.")

    @functools.wraps(AutoencoderKL.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.decoder, self.post_quant_conv

    @property
    def stride4_channels(self) -> int:
        """Channels of the stride-4 feature."""
        return self.config.block_out_channels[STRIDE4_BLOCK]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Encode images.

        Args:
            images: ``[N, 3, H, W]`` in -1…1, H and W multiples of 8.

        Returns:
            the moments of the posterior ``[N, 2·4, H/8, W/8]`` (mean, log variance), and the output of the
            third down block before its downsampler ``[N, C, H/4, W/4]``.
        """
        encoder = self.encoder
        x = encoder.conv_in(images)
        for i, block in enumerate(encoder.down_blocks):
            for resnet in block.resnets:
                x = resnet(x, None)
            if i == STRIDE4_BLOCK:
                f4 = x
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
        x = encoder.mid_block(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(x)))
        if self.quant_conv is not None:
            x = self.quant_conv(x)
        return x, f4
