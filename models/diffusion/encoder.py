"""Frames and a sentence → a four-level pyramid of frozen text-to-video features.

Legend: the suffix of a feature is its stride (``f4``, ``f8``, …); ``N`` = B·T frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.resnet import TemporalConvLayer
from torch import Tensor, nn

from models.diffusion.conditioning import CLIPPixels, ImageTokenProjection, TextImageFusion, text_states
from models.diffusion.stack import FrozenStack, load_stack
from models.frozen import Frozen
from models.precision import call_in_float32, in_float32, in_own_precision, widened
from models.pyramid import PyramidEncoder
from util.config import Config
from util.device import free_memory
from util.errors import UserError
from util.options import AUTO
from util.preprocessing import IMAGENET_MEAN, IMAGENET_STD

VAE_FRAMES = 2
"""Frames that a VAE takes at once on the CPU: a map of its first block takes 118 MB each (360×640, float32)."""
VAE_BYTES = 4 << 30
"""Memory that a VAE may take on a GPU, where at least twice as much is free: 23 frames of 368×640 in bf16 for VD-IT."""

TAP_PAIRS = ((0, 5), (1, 4), (2, 3))
"""Pairs of taps of equal stride (8, 16, 32), concatenated as in the published models."""


@dataclass
class PixelFeatures:
    """Features that depend on the frames only, shared by all sentences of a video."""

    latents: Tensor
    """``[B, T, 4, H/8, W/8]``, scaled and with noise: the input of the UNet."""
    f4: Tensor
    """Level 0 of the pyramid ``[N, C, H/4, W/4]``."""
    image_tokens: Tensor | None
    """``[N, K, D]`` in the width of the text, or None without image tokens."""
    copies: int = 1
    """Number of sentences per clip; the features of the clip are stored once."""

    @property
    def batch_shape(self) -> tuple[int, int]:
        """(B, T), with B counting the copies."""
        return self.copies * self.latents.shape[0], self.latents.shape[1]

    def repeat(self, count: int) -> PixelFeatures:
        """The same clips ``count`` times, one after the other, for as many sentences."""
        return replace(self, copies=self.copies * count)


def vae_parts(vae: Frozen, frames: Tensor, decode: bool = False) -> tuple[Tensor, ...]:
    """Split a batch ``[N, C, ...]`` into parts that a VAE encodes or decodes at once.

    Args:
        vae: the VAE, whose ``maps`` (``decode_maps`` for decoding) tell its memory.
        frames: the frames, or their latents.
        decode: whether the VAE decodes: ``frames`` are latents, each position of 64 pixels.
    """
    at_once = _frames_at_once(vae, frames[0, 0].numel() * (64 if decode else 1), decode, frames.device)
    return frames.chunk(-(-len(frames) // at_once))


def _frames_at_once(vae: Frozen, pixels: int, decode: bool, device: torch.device) -> int:
    """Most frames that a VAE takes at once: few kernels, but bounded memory."""
    if device.type != "cuda":
        return VAE_FRAMES
    module: Any = vae.module
    channels = module.config.get("base_dim") or module.config["block_out_channels"][0]  # of Wan's VAE, or the others
    maps = module.decode_maps if decode else module.maps
    frame = maps * channels * pixels * (vae.held or torch.float32).itemsize
    return max(1, min(VAE_BYTES, free_memory(device) // 2) // frame)


class VideoEncoder(PyramidEncoder):
    """The visual backbone: VAE, image and text tokens, noise, UNet taps, pyramid.

    Args:
        stack: the frozen parts.
        stride4: computes level 0 of the pyramid (``VAETap`` or ``TemporalStem``).
        pyramid_channels: channels of the four levels.
        noise: ``predicted``, ``gaussian`` or ``none``.
        image_tokens: whether image tokens are part of the text condition.
        posterior: how a latent is drawn from the posterior of the VAE: its ``mode``, a ``sample``, or ``auto`` (a
            sample in training, the mode in evaluation, so that results are reproducible).
        text: whether the UNet is conditioned on the sentence; False: on the empty sentence (ablation).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        stack: FrozenStack,
        stride4: nn.Module,
        pyramid_channels: tuple[int, int, int, int],
        noise: str = "predicted",
        image_tokens: bool = True,
        posterior: str = "auto",
        text: bool = True,
    ) -> None:
        super().__init__()
        unet, vae = stack.unet, stack.vae
        text_dim = unet.config.cross_attention_dim
        self.posterior = posterior
        self.use_text = text
        self.signal_rate = stack.signal_rate
        self.latent_scale = vae.config.scaling_factor

        self.vae = Frozen(vae)
        self.unet = Frozen(unet)
        self.text_encoder = Frozen(stack.text_encoder)
        self.tokenizer = stack.tokenizer
        self.image_encoder: nn.Module | None = None
        if image_tokens:
            vision = stack.image_encoder.config
            self.image_encoder = Frozen(stack.image_encoder)
            self.clip_pixels = CLIPPixels(vision.image_size)
            self.image_projection = ImageTokenProjection(vision.hidden_size, text_dim)
            self.fusion = TextImageFusion(text_dim, text_dim // unet.config.attention_head_dim)

        self.noise = build_noise(noise, unet.config.in_channels)
        _, c8, c16, c32 = pyramid_channels
        self.stride4 = stride4
        taps = unet.tap_channels
        sums = [taps[first] + taps[last] for first, last in TAP_PAIRS]
        self.levels = nn.ModuleList(
            pointwise_pair(total, mid, out)
            for total, mid, out in zip(sums, (c16, c32, c32), (c8, c16, c32), strict=True)
        )
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @property
    def denoiser(self) -> Frozen:
        """The UNet."""
        return self.unet

    @in_own_precision
    def encode_pixels(self, frames: Tensor) -> PixelFeatures:
        """Compute everything that does not depend on the sentence, without a graph in the frozen parts."""
        with torch.no_grad():
            x01 = frames * self.pixel_std + self.pixel_mean
            batch = 2 * x01.flatten(0, 1) - 1
            parts = vae_parts(self.vae, batch)
            moments, vae_f4 = (self._own(torch.cat(found)) for found in zip(*map(self.vae, parts), strict=True))
            mean, log_variance = widened(moments).chunk(2, dim=1)
            if self.posterior == "sample" or (self.posterior == "auto" and self.training):
                std = torch.exp(0.5 * log_variance.clamp(-30, 20))
                mean = mean + std * torch.randn_like(mean)
            latents = (self.latent_scale * mean).unflatten(0, frames.shape[:2])
            tokens = None
            if self.image_encoder is not None:
                pixels = torch.cat([self.clip_pixels(part) for part in parts])
                tokens = self._own(self.image_encoder(pixels).last_hidden_state)
        if tokens is not None:
            tokens = self.image_projection(tokens)
        if self.noise is not None:
            latents = self.signal_rate**0.5 * latents + (1 - self.signal_rate) ** 0.5 * self.noise(latents)
        return PixelFeatures(latents, self.stride4(x01, vae_f4), tokens)

    def encode_text(self, captions: list[str]) -> Tensor:
        """Token features of the text encoder of the diffusion model, ``[B, 77, D]``."""
        texts = captions if self.use_text else [""] * len(captions)
        return self._own(text_states(self.tokenizer, self.text_encoder, texts, self.pixel_mean.device))

    @in_own_precision
    def forward(self, pixels: PixelFeatures, captions: list[str]) -> list[Tensor]:
        """The pyramid of a batch of clips, each with one sentence; see ``PyramidEncoder``."""
        frames = pixels.latents.shape[1]
        condition = self.encode_text(captions).repeat_interleave(frames, dim=0)
        if pixels.image_tokens is not None:
            condition = self.fusion(condition, pixels.image_tokens.repeat(pixels.copies, 1, 1))
        taps = self.unet(pixels.latents.transpose(1, 2), condition)

        pyramid = [pixels.f4]
        for level, (first, last) in zip(self.levels, TAP_PAIRS, strict=True):
            pyramid.append(level(self._own(torch.cat([taps[first], taps[last]], dim=1))))
        return pyramid


# The noise that is added to the latents before the UNet.


class PredictedNoise(nn.Module):
    """Video-specific noise, predicted from the latents and standardised over each clip (VD-IT section 3.3)."""

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


# Level 0 of the pyramid, at stride 4. Both modules take the same two inputs and use the one they need.


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
        # The layer of diffusers is itself residual; HCD adds its input once more. In float32, because oneDNN's
        # bfloat16 gradient of a convolution over two frames is NaN.
        return f4 + call_in_float32(self.temporal, f4, num_frames=frames)


def pointwise_pair(in_channels: int, mid_channels: int, out_channels: int) -> nn.Sequential:
    """Two 1×1 convolutions without an activation between them, as in every level of the published pyramids."""
    return nn.Sequential(nn.Conv2d(in_channels, mid_channels, 1), nn.Conv2d(mid_channels, out_channels, 1))


def build_encoder(cfg: Config, stack: FrozenStack | None, auto: Mapping[str, Any]) -> tuple[VideoEncoder, FrozenStack]:
    """The encoder of a configuration, and its frozen parts.

    Args:
        cfg: the options.
        stack: frozen parts already loaded, or None.
        auto: what "auto" stands for in ``noise`` and ``stride4``.

    Raises:
        UserError: an option has no meaning for this generator, or a frozen part cannot be loaded.
    """
    if cfg.time_mode != AUTO:
        raise UserError(
            f"time_mode {cfg.time_mode} has no meaning for a UNet, which sees every frame; leave it at auto"
        )
    stack = stack or load_stack(cfg.pretrained, cfg.image_encoder, cfg.text_encoder)
    c4, c8, c16, c32 = cfg.pyramid_channels
    stack.unet.recompute = cfg.gradient_checkpointing
    stride4 = auto["stride4"] if cfg.stride4 == AUTO else cfg.stride4
    encoder = VideoEncoder(
        stack,
        TemporalStem(c4) if stride4 == "stem" else VAETap(stack.vae.stride4_channels, c8, c4),
        (c4, c8, c16, c32),
        auto["noise"] if cfg.noise == AUTO else cfg.noise,
        cfg.image_tokens is not False,
        cfg.posterior,
        cfg.unet_text,
    )
    return encoder, stack
