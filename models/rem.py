"""REM: the whole text-to-video UNet predicts the latents of the mask, which the frozen VAE decodes (Bagchi et al.,
"ReferEverything: Towards Segmenting Everything We Can Speak of in Videos", ICCV 2025).

It has no queries, scores or boxes: a sentence that names nothing has an empty mask. Legend: ``B`` clips, ``T`` frames,
``S`` the side of the square frames, a multiple of 32, ``h`` = ``S``/8.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn

from models.criterion import BatchTargets, Criterion
from models.diffusion.conditioning import text_states
from models.diffusion.encoder import vae_parts
from models.diffusion.stack import WholeStack
from models.diffusion.unet import make_contiguous, recomputed
from models.frozen import FineTuned, Frozen
from models.precision import in_own_precision, widened
from models.segmenter import ClipMasks
from util.distributed import average_over_processes
from util.preprocessing import IMAGENET_MEAN, IMAGENET_STD

STAGES = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel)
"""The layers of the UNet that gradient checkpointing recomputes one by one."""
NO_DECAY = (".ln_", ".bn", ".bias", "norm")
"""Parts of the names of parameters without weight decay."""


FREEZABLE = {"temporal": ("temp",), "coarsest": ("down_blocks.3", "mid_block", "up_blocks.0")}
"""Option → parts of the names of the parameters of the UNet that it leaves frozen."""


def is_trained(name: str, frozen: Collection[str] = ()) -> bool:
    """Whether a parameter of the UNet is trained: never the embedding of the timestep, which is always 0.

    Args:
        name: of the parameter.
        frozen: groups of layers that are not trained, of ``FREEZABLE``.
    """
    return not any(part in name for part in ("time_embedding", *(p for group in frozen for p in FREEZABLE[group])))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters as groups for AdamW: biases and normalisations have no weight decay."""
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0.0 if any(part in name for part in NO_DECAY) else weight_decay].append(parameter)
    return [{"params": found, "weight_decay": decay} for decay, found in groups.items() if found]


@dataclass
class ClipLatents:
    """The latents of clips, shared by all sentences of a video."""

    latents: Tensor
    """``[B, T, 4, h, h]``, scaled and with noise."""
    copies: int = 1
    """Number of sentences per clip."""

    def repeat(self, count: int) -> ClipLatents:
        """The same clips ``count`` times, one after the other, for as many sentences."""
        return replace(self, copies=self.copies * count)


class LatentEncoder(nn.Module):
    """Frames and a sentence → the latents of the mask.

    Args:
        stack: the generator.
        noise: whether the latents get Gaussian noise at the level of timestep 0.
        trained: whether the UNet is trained; otherwise it is frozen, and adapters may be added.
        frozen: groups of layers of the UNet that are not trained, of ``FREEZABLE``.
        recompute: keep only the inputs of the layers of the UNet for the backward pass, and recompute the rest.

    Attributes:
        precision: of matrix products and convolutions (``models.precision``).
    """

    precision: torch.dtype = torch.float32

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        stack: WholeStack,
        noise: bool = True,
        trained: bool = True,
        frozen: Collection[str] = (),
        recompute: bool = False,
    ) -> None:
        super().__init__()
        make_contiguous(stack.unet)
        self.unet: Frozen = (
            FineTuned(stack.unet, lambda name: is_trained(name, frozen)) if trained else Frozen(stack.unet)
        )
        self.vae = Frozen(stack.vae)
        self.text_encoder = Frozen(stack.text_encoder)
        self.tokenizer = stack.tokenizer
        self.latent_scale = stack.vae.config.scaling_factor
        self.noise_rate = (1 - stack.signal_rate) if noise else 0.0
        self.signal_rate = 1 - self.noise_rate
        if recompute:
            recompute_stages(stack.unet)
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @property
    def denoiser(self) -> Frozen:
        """The UNet."""
        return self.unet

    @torch.no_grad()
    def encode_pixels(self, frames: Tensor) -> ClipLatents:
        """Encode frames ``[B, T, 3, S, S]``, ImageNet-normalised."""
        latents = self.encode_images(2 * (frames * self.pixel_std + self.pixel_mean) - 1)
        if self.noise_rate:
            latents = self.add_noise(latents, torch.randn_like(latents))
        return ClipLatents(latents)

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Add noise of the same shape at the level of timestep 0."""
        return self.signal_rate**0.5 * latents + self.noise_rate**0.5 * noise

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The scaled latents ``[B, T, 4, h, h]`` of images ``[B, T, 3, S, S]``."""
        parts = [widened(self.vae(part)) for part in vae_parts(self.vae, images.flatten(0, 1))]
        return self.latent_scale * torch.cat(parts).unflatten(0, images.shape[:2])

    @torch.no_grad()
    def encode_masks(self, masks: Tensor) -> Tensor:
        """The scaled latents ``[B, T, 4, h, h]`` of masks ``[B, T, S, S]`` of 0 and 1, as images of equal channels."""
        return self.encode_images(masks.float()[:, :, None].expand(-1, -1, 3, -1, -1))

    @torch.no_grad()
    def decode_masks(self, latents: Tensor) -> Tensor:
        """Masks ``[B, T, S, S]`` from scaled latents: the mean of the three channels, about 1 on the object."""
        parts = vae_parts(self.vae, latents.flatten(0, 1) / self.latent_scale, decode=True)
        masks = torch.cat([widened(self.vae(part, decode=True)).mean(1) for part in parts])
        return masks.unflatten(0, latents.shape[:2])

    @in_own_precision
    def forward(self, pixels: ClipLatents, captions: list[str]) -> Tensor:
        """The latents of the mask for B clips, counting copies, each with one sentence: ``[B, T, 4, h, h]``."""
        text = text_states(self.tokenizer, self.text_encoder, captions, self.pixel_mean.device)
        sample = pixels.latents.repeat(pixels.copies, 1, 1, 1, 1).transpose(1, 2)
        # Of a number, diffusers would make a tensor by a copy that the host waits for.
        step = torch.zeros((), dtype=torch.long, device=sample.device)
        return widened(self.unet(sample, step, text, return_dict=False)[0]).transpose(1, 2)


def recompute_stages(unet: nn.Module) -> None:
    """Let the layers of a UNet recompute their activations in the backward pass."""
    for module in unet.modules():
        if isinstance(module, STAGES):
            module.forward = partial(recomputed, module.forward)  # type: ignore[method-assign]


@dataclass
class RemOutput:
    """The prediction for a batch of clips."""

    latents: Tensor
    """``[B, T, 4, h, h]``, scaled."""
    encoder: LatentEncoder

    @cached_property
    def masks(self) -> Tensor:
        """``[B, T, S, S]``, decoded at the first use: about 1 on the object, 0 elsewhere."""
        return self.encoder.decode_masks(self.latents)

    def best(self) -> ClipMasks:
        """The mask of each clip."""
        return ClipMasks(self.masks)

    def first_clip(self) -> Callable[[], Tensor]:
        """A function that decodes the mask of the first clip, ``[T, S, S]``; it keeps no graph."""
        encoder, latents = self.encoder, self.latents[:1].detach()
        return lambda: RemOutput.probabilities(encoder.decode_masks(latents)[0])

    @staticmethod
    def probabilities(masks: Tensor) -> Tensor:
        """Resized masks as probabilities: values outside of 0…1 are cut off."""
        return masks.clamp(0, 1)


class Rem(nn.Module):
    """Segments the object that a sentence names by predicting the latents of its mask.

    Attributes:
        precision: of matrix products and convolutions (``models.precision``); predictions are float32.
    """

    precision: torch.dtype = torch.float32

    def __init__(self, encoder: LatentEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, frames: Tensor, padding: Tensor, captions: list[str], select: Any = None, annotated: Tensor | None = None
    ) -> RemOutput:
        """Predict the latents of the masks.

        Args:
            frames: ``[B, T, 3, S, S]``, ImageNet-normalised, without padding.
            padding: not used.
            captions: B sentences.
            select: not used: there are no queries.
            annotated: ``[B]``, the only frame of each clip that is returned; None: all.
        """
        return self.segment_pixels(self.encoder.encode_pixels(frames), padding, captions, select, annotated)

    def segment_pixels(
        self,
        pixels: ClipLatents,
        padding: Tensor,
        captions: list[str],
        select: Any = None,
        annotated: Tensor | None = None,
    ) -> RemOutput:
        """``forward`` from the output of ``encoder.encode_pixels``, which serves every sentence of a video."""
        latents = self.encoder(pixels, captions)
        if annotated is not None:
            latents = latents[torch.arange(len(latents), device=latents.device), annotated][:, None]
        return RemOutput(latents, self.encoder)


@dataclass(frozen=True)
class NoQuery:
    """Selects nothing; it holds the ground truth, as ``models.criterion.MatchedQuery`` does."""

    target: BatchTargets


class LatentCriterion:
    """The mean squared error between the predicted latents and those of the ground truth.

    The target of a sentence that names nothing is the empty mask.
    """

    prepare = staticmethod(Criterion.prepare)

    @staticmethod
    def select(target: BatchTargets) -> NoQuery:
        """There are no queries to select."""
        return NoQuery(target)

    @staticmethod
    def count(targets: Sequence[BatchTargets]) -> Tensor:
        """The divisor of the loss: the clips of all batches of a step, averaged over processes."""
        clips = sum(len(target.masks) for target in targets)
        return average_over_processes(targets[0].masks.new_full((), float(clips)))

    def __call__(
        self, output: RemOutput, target: BatchTargets, count: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss; arguments as for ``models.criterion.Criterion``."""
        if count is None:
            count = self.count([target])
        wanted = output.encoder.encode_masks(target.masks)
        loss = (output.latents - wanted).square().flatten(1).mean(1).sum() / count
        return loss, {"loss_latents": loss}
