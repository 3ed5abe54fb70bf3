"""The baseline: what the published code computes, in the order in which it computes it, from stock parts.

The function is that of ``models.Segmenter`` (a test compares the two); the cost is that of research code. For every
sentence again the VAE, the image encoder and the whole UNet run, the last up block and the output convolution with it,
in the checkpoint's float32; images are prepared for CLIP by Pillow on the CPU, one after the other; the mask heads copy
the features for every query. On CUDA the frozen networks run under autocast to float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet3DConditionModel
from PIL import Image
from torch import Tensor, nn

from models import Segmenter
from models.deformable_transformer import DecoderOutput
from models.diffusion.conditioning import CLIP_MEAN, CLIP_STD
from models.diffusion.encoder import TAP_PAIRS, VideoEncoder
from models.mask_heads import MASK_CHANNELS, DynamicMaskHead, shuffle_mask
from models.precision import autocast
from models.segmenter import LayerPrediction, SegmenterOutput, Selector, best_query, unpadded_size
from scripts.benchmark_meter import StageMeter

FEATURE_BLOCK = 2  # of the VAE's encoder: the stride-4 feature


class Baseline(nn.Module):
    """Frames and sentences in, masks out, as ``Segmenter.forward`` has it.

    Args:
        model: holds the trained parts and the text and image encoders; its own UNet and VAE are not used.
        unet: diffusers' UNet as it is.
        vae: diffusers' VAE as it is.
        meter: times the stages.
    """

    def __init__(self, model: Segmenter, unet: UNet3DConditionModel, vae: AutoencoderKL, meter: StageMeter) -> None:
        super().__init__()
        assert isinstance(model.encoder, VideoEncoder)
        self.model, self.encoder, self.meter = model, model.encoder, meter
        self.unet, self.vae = (part.requires_grad_(False).eval() for part in (unet, vae))
        self._f4: list[Tensor] = []
        block = vae.encoder.down_blocks[FEATURE_BLOCK]
        block.resnets[-1].register_forward_hook(lambda module, inputs, output: self._f4.append(output))

    def train(self, mode: bool = True) -> Baseline:
        """Training mode but for UNet and VAE."""
        self.training = mode
        self.model.train(mode)
        return self

    def forward(
        self,
        frames: Tensor,
        padding: Tensor,
        captions: list[str],
        select: Selector = best_query,
        annotated: Tensor | None = None,
    ) -> SegmenterOutput:
        """``Segmenter.forward``, for clips of at least two frames that are all decoded."""
        assert annotated is None and frames.shape[1] > 1
        with autocast(frames.device, torch.float16 if frames.is_cuda else torch.float32):
            pyramid = [level.float() for level in self._pyramid(frames, captions)]
        return self._decode(pyramid, padding, captions, select, frames.shape[1])

    def _pyramid(self, frames: Tensor, captions: list[str]) -> list[Tensor]:
        encoder, meter, count = self.encoder, self.meter, frames.shape[1]
        x01 = frames * encoder.pixel_std + encoder.pixel_mean
        with meter.stage("VAE"), torch.no_grad():
            posterior = self.vae.encode(2 * x01.flatten(0, 1) - 1).latent_dist
            drawn = encoder.posterior == "sample" or (encoder.posterior == "auto" and self.training)
            latents = posterior.sample() if drawn else posterior.mode()
            latents = (encoder.latent_scale * latents).unflatten(0, frames.shape[:2]).float()
            vae_f4 = self._f4.pop()
        with meter.stage("image tokens"):
            tokens = self._image_tokens(x01)
        with meter.stage("noise and stride 4"):
            if encoder.noise is not None:
                rate = encoder.signal_rate
                latents = rate**0.5 * latents + (1 - rate) ** 0.5 * encoder.noise(latents)
            f4 = encoder.stride4(x01, vae_f4)
        with meter.stage("text"):
            text = encoder.encode_text(captions).repeat_interleave(count, dim=0)
        with meter.stage("fusion"):
            text = encoder.fusion(text, tokens)
        with meter.stage("UNet"):
            taps = self._taps(latents.transpose(1, 2), text)
        with meter.stage("pyramid"):
            pairs = zip(encoder.levels, TAP_PAIRS, strict=True)
            return [f4, *(level(torch.cat([taps[a], taps[b]], dim=1)) for level, (a, b) in pairs)]

    def _image_tokens(self, x01: Tensor) -> Tensor:
        """Image tokens; every image takes the way over the host and Pillow."""
        encoder = self.encoder
        assert encoder.image_encoder is not None, "the baseline has image tokens"
        images = torch.stack([clip_image(image, encoder.clip_pixels.size) for image in x01.flatten(0, 1)])
        with torch.no_grad():
            tokens = encoder.image_encoder(images.to(x01.device)).last_hidden_state
        return encoder.image_projection(tokens)

    def _taps(self, sample: Tensor, text: Tensor) -> list[Tensor]:
        """The whole stock UNet, with a text for each frame; six features of it."""
        unet: Any = self.unet
        frames = sample.shape[2]
        steps = torch.zeros(sample.shape[0], dtype=torch.long, device=sample.device)
        temb = unet.time_embedding(unet.time_proj(steps).to(unet.dtype)).repeat_interleave(frames, dim=0)
        x = unet.conv_in(sample.transpose(1, 2).flatten(0, 1))
        x = unet.transformer_in(x, num_frames=frames, return_dict=False)[0]
        taps, skips = [x], (x,)
        common = {"temb": temb, "num_frames": frames}
        for i, block in enumerate(unet.down_blocks):
            x, made = block(hidden_states=x, **common, **_condition(block, text))
            skips += made
            if i < 2:
                taps.append(x)
        x = unet.mid_block(x, temb, encoder_hidden_states=text, num_frames=frames)
        for block in unet.up_blocks:
            own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            size = skips[-1].shape[2:] if skips else None
            x = block(
                hidden_states=x, res_hidden_states_tuple=own, upsample_size=size, **common, **_condition(block, text)
            )
            taps.append(x)
        unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))  # the noise, which is not needed
        return taps[:6]

    def _decode(
        self, pyramid: list[Tensor], padding: Tensor, captions: list[str], select: Selector, frames: int
    ) -> SegmenterOutput:
        model, meter = self.model, self.meter
        with meter.stage("text"):
            queries = model.language_queries(*model.sentence_encoder(captions))
        with meter.stage("transformer"):
            decoded = model.transformer(
                pyramid[1:], padding.repeat_interleave(frames, dim=0), queries.repeat_interleave(frames, dim=0)
            )
        with meter.stage("heads"):
            sizes = unpadded_size(padding).repeat_interleave(frames, dim=0)[:, None]
            count = len(decoded.states)
            layers = [
                self._head(decoded, i, sizes, pyramid, select, frames)
                for i in range(0 if self.training else count - 1, count)
            ]
        return SegmenterOutput(layers)

    def _head(
        self, decoded: DecoderOutput, i: int, sizes: Tensor, pyramid: list[Tensor], select: Selector, frames: int
    ) -> LayerPrediction:
        model, states = self.model, decoded.states[i]
        size = decoded.memory[0].shape[-2:]
        maps = [F.interpolate(m, size=size, mode="bicubic", align_corners=False) for m in decoded.memory[1:]]
        maps = [decoded.memory[0], *maps]
        low = self._dynamic_masks(maps[0] + maps[1] + maps[2], states, decoded.boxes[i][..., :2].detach() * sizes)
        if model.query_dot_head is not None:
            mixed = model.query_dot_head.mix(torch.stack(maps, dim=-1))  # [N, C, h, w, 16]
            low = low + torch.einsum("nqc,nchwk->nqkhw", states, mixed)
        shape = (-1, frames)
        low = low.unflatten(0, shape)
        layer = LayerPrediction(
            model.class_heads[i](states).unflatten(0, shape),
            decoded.boxes[i].unflatten(0, shape),
            shuffle_mask(low),
        )
        layer.chosen = select(layer)
        assert layer.chosen is not None, "the baseline refines one query"
        rows = torch.arange(len(low), device=low.device)
        picked = low[rows, :, layer.chosen].flatten(0, 1)
        layer.masks = model.refinement(picked, pyramid[0], pyramid[1]).unflatten(0, shape)
        return layer

    def _dynamic_masks(self, features: Tensor, states: Tensor, centres: Tensor) -> Tensor:
        """Two convolutions with each query's own weights, over a copy of features and places for each query.

        Args:
            features: ``[N, C, h, w]``.
            states: ``[N, Q, C]``.
            centres: ``[N, Q, 2]``, in pixels.

        Returns:
            ``[N, Q, 16, h, w]``.
        """
        head = self.model.mask_head
        assert isinstance(head, DynamicMaskHead)
        (batch, _, h, w), queries = features.shape, states.shape[1]
        y, x = (torch.arange(side, device=features.device) * 8.0 + 4 for side in (h, w))
        places = torch.stack([x.expand(h, w), y[:, None].expand(h, w)])
        offsets = centres[..., None, None] - places  # [N, Q, 2, h, w]
        copies = torch.cat([features[:, None].expand(-1, queries, -1, -1, -1), offsets], dim=2)
        weight1, weight2, bias1, bias2 = head.controller(states).split(head.sizes, dim=-1)
        groups = batch * queries
        masks = copies.reshape(1, -1, h, w)
        masks = F.conv2d(masks, weight1.reshape(groups * head.channels, -1, 1, 1), bias1.flatten(), groups=groups)
        weight2 = weight2.reshape(groups * MASK_CHANNELS, -1, 1, 1)
        masks = F.conv2d(F.relu(masks), weight2, bias2.flatten(), groups=groups)
        return masks.view(batch, queries, MASK_CHANNELS, h, w)


def clip_image(image: Tensor, size: int) -> Tensor:
    """CLIP's preprocessing of one image by Pillow: ``[3, H, W]`` in 0…1 → ``[3, size, size]``, on the CPU."""
    levels = (image.permute(1, 2, 0).float().cpu().numpy() * 255).clip(0, 255).astype(np.uint8)
    height, width = levels.shape[:2]
    short = min(height, width)
    target = (size * width // short, size * height // short)
    picture = Image.fromarray(levels).resize(target, Image.Resampling.BICUBIC)
    left, top = (side - size for side in target)
    picture = picture.crop((left // 2, top // 2, left // 2 + size, top // 2 + size))
    values = (np.asarray(picture, dtype=np.float32) / 255 - np.array(CLIP_MEAN, np.float32)) / np.array(
        CLIP_STD, np.float32
    )
    return torch.from_numpy(values).permute(2, 0, 1)


def _condition(block: Any, text: Tensor) -> dict[str, Tensor]:
    """The text, for a block that reads it."""
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
