"""The frozen text-to-video UNet and its features at six taps (VD-IT section 3.1; arXiv 2403.12042)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class TapUNet3D(UNet3DConditionModel):
    """The UNet of ModelScope text-to-video from diffusers, without the parts after the last tap.

    The last up block, the output norm and the output convolution are neither loaded nor computed. ``from_pretrained``
    reads weights in the stock layout.

    Three things differ from the stock forward: every frame has its own text, the timestep is always 0, and a single
    frame bypasses the temporal layers (see ``forward``).

    Attributes:
        recompute: keep only the input of every stage (a resnet with its attentions) for the backward pass, and
            recompute the rest: a third more operations for a fraction of the memory.
    """

    recompute: bool = False

    _keys_to_ignore_on_load_unexpected = (r"^up_blocks\.3\.", r"^conv_norm_out\.", r"^conv_out\.")

    @functools.wraps(UNet3DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.up_blocks[-1]
        del self.conv_norm_out, self.conv_act, self.conv_out
        make_contiguous(self)

    @property
    def tap_channels(self) -> tuple[int, ...]:
        """Channels of the six taps, in the order of ``forward``'s result."""
        c0, c1, c2, c3 = self.config.block_out_channels
        return (c0, c0, c1, c3, c2, c1)

    def forward(self, sample: Tensor, text: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Compute the features of latents at timestep 0.

        A single frame (T = 1) bypasses ``transformer_in``, the temporal attentions and all temporal convolutions
        except the first of the mid block, as in the published code.

        The layers before the first text, 7 % of the operations, run once for all S texts of a clip.

        Args:
            sample: latents ``[B, 4, T, h, w]``, h = H/8 and w = W/8.
            text: cross-attention input of every frame ``[S·B·T, L, D]``: for the first text of all clips, then for the
                second.

        Returns:
            six maps ``[S·B·T, C, h', w']``: ``transformer_in`` (stride 8 of the frame), down blocks 0
            and 1 (16, 32), up blocks 0, 1 and 2 (32, 16, 8).
        """
        batch, _, frames = sample.shape[:3]
        texts, left = divmod(text.shape[0], batch * frames)
        if left or not texts:
            raise ValueError(f"every frame needs its own text: {text.shape[0]} texts for {batch}×{frames} frames")

        step = torch.zeros(batch * frames, dtype=torch.long, device=sample.device)
        temb = self.time_embedding(self.time_proj(step).to(self.dtype))

        x = self.conv_in(sample.transpose(1, 2).flatten(0, 1))
        if frames > 1:
            x = self._run(_over_time, self.transformer_in, x, frames)
        taps = [_repeated(x, texts)]

        skips = [taps[0]]
        for i, block in enumerate(self.down_blocks):
            attentions = getattr(block, "attentions", None)
            for j, resnet in enumerate(block.resnets):
                x = self._run(_resnet, resnet, block.temp_convs[j], x, temb, frames)
                if attentions is not None:
                    if i == j == 0:
                        x, temb = _repeated(x, texts), _repeated(temb, texts)
                    x = self._run(_attend, attentions[j], block.temp_attentions[j], x, text, frames)
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
            if i < 2:
                taps.append(x)

        x = self._mid(x, temb, text, frames)

        for block in self.up_blocks:
            attentions = getattr(block, "attentions", None)
            for j, resnet in enumerate(block.resnets):
                x = self._run(_resnet, resnet, block.temp_convs[j], x, temb, frames, skips.pop())
                if attentions is not None:
                    x = self._run(_attend, attentions[j], block.temp_attentions[j], x, text, frames)
            for upsampler in block.upsamplers:
                # The size of the next skip: twice this one, except where a side was odd.
                x = upsampler(x, skips[-1].shape[-2:])
            taps.append(x)
        return taps

    def _mid(self, x: Tensor, temb: Tensor, text: Tensor, frames: int) -> Tensor:
        block = self.mid_block
        x = block.temp_convs[0](block.resnets[0](x, temb), num_frames=frames)  # also for a single frame
        layers = zip(block.attentions, block.temp_attentions, block.resnets[1:], block.temp_convs[1:], strict=True)
        for attention, temporal_attention, resnet, temporal_conv in layers:
            x = self._run(_attend, attention, temporal_attention, x, text, frames)
            x = self._run(_resnet, resnet, temporal_conv, x, temb, frames)
        return x

    def _run(self, stage: Callable[..., Tensor], *args: Any) -> Tensor:
        """Run a stage; with ``recompute``, its activations are recomputed in the backward pass."""
        return recomputed(stage, *args) if self.recompute else stage(*args)


def recomputed(stage: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a stage; for a backward pass, only its inputs are kept, and the rest is recomputed."""
    if torch.is_grad_enabled():
        return checkpoint(stage, *args, use_reentrant=False, **kwargs)
    return stage(*args, **kwargs)


def make_contiguous(unet: nn.Module) -> None:
    """Make the input of every temporal attention contiguous."""
    for module in unet.modules():
        if isinstance(module, TransformerTemporalModel):
            module.proj_in.register_forward_pre_hook(_in_one_piece)


def _in_one_piece(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Make the input of a temporal attention contiguous: for a view, PyTorch would copy the weight per pixel."""
    return (inputs[0].contiguous(), *inputs[1:])


def _repeated(x: Tensor, count: int) -> Tensor:
    """``[N, ...]`` → ``[count·N, ...]``."""
    return x if count == 1 else x.repeat(count, *(1 for _ in x.shape[1:]))


def _over_time(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
    """Temporal attention."""
    return layer(x, num_frames=frames, return_dict=False)[0]


def _resnet(
    resnet: nn.Module, temporal_conv: nn.Module, x: Tensor, temb: Tensor, frames: int, skip: Tensor | None = None
) -> Tensor:
    """A resnet, with the skip connection if there is one, and a temporal convolution if T > 1."""
    x = resnet(x if skip is None else torch.cat([x, skip], dim=1), temb)
    return temporal_conv(x, num_frames=frames) if frames > 1 else x


def _attend(attention: nn.Module, temporal_attention: nn.Module, x: Tensor, text: Tensor, frames: int) -> Tensor:
    """Spatial self- and cross-attention of each frame, then temporal attention if T > 1."""
    x = attention(x, encoder_hidden_states=text, return_dict=False)[0]
    if frames > 1:
        x = _over_time(temporal_attention, x, frames)
    return x
