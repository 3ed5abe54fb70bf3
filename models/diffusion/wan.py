"""Wan 2.1 (arXiv 2503.20314) as a source of the feature pyramid: a diffusion transformer, seen once at timestep 0.

Its VAE has stride 8 in space, and 4 in time after the first frame; the transformer makes one token of 2×2 latents, so
that its features have stride 16. Legend: ``t`` latent frames stand for ``T`` frames, ``N`` = B·T.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, RobertaModel, UMT5Config, UMT5EncoderModel

from models.diffusion.encoder import TemporalStem, vae_parts
from models.diffusion.stack import (
    NO_CODE,
    Source,
    check_tokenizer,
    empty_part,
    find_sources,
    load_network,
    load_part,
    part_sources,
    read_names,
    read_sentence_encoder,
)
from models.diffusion.text_cache import Encode, TextCache
from models.diffusion.unet import recomputed
from models.frozen import Frozen
from models.ops.build import cache_folder
from models.precision import in_own_precision, widened
from models.pyramid import PyramidEncoder
from util.config import Config
from util.device import upload
from util.errors import UserError
from util.files import file_sha256
from util.options import AUTO, shown
from util.preprocessing import IMAGENET_MEAN, IMAGENET_STD

TAPS = 4
TAP_PAIRS = ((0, 3), (1, 3), (2, 3))
"""Pairs of taps for strides 8, 16 and 32: each of the first three with the deepest one."""
PHASES = 4
"""Frames of a latent frame after the first, which stands for one."""
FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer")
TEXT_TOKENS = 512
"""Length of a text, as in diffusers' pipeline; features behind its end are 0."""


class TapWan(WanTransformer3DModel):
    """The transformer of Wan from diffusers, without the blocks and the output layers behind the last tap.

    ``from_pretrained`` reads weights in the stock layout.

    Attributes:
        recompute: keep only the input of every block for the backward pass, and recompute the rest.
    """

    recompute: bool = False

    _keys_to_ignore_on_load_unexpected = (r"^blocks\.", r"^proj_out\.", r"^scale_shift_table$", r"norm_added_q")

    @wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tap_blocks = tap_blocks(len(self.blocks))
        del self.blocks[self.tap_blocks[-1] :]
        del self.norm_out, self.proj_out, self.scale_shift_table

    @property
    def width(self) -> int:
        """Channels of every tap."""
        return self.config.num_attention_heads * self.config.attention_head_dim

    def forward(self, sample: Tensor, text: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Compute the features of latents at timestep 0.

        Args:
            sample: normalised latents ``[B, 16, t, h, w]``, h = H/8 and w = W/8.
            text: ``[S·B, L, D]``: the first text of all clips, then the second.

        Returns:
            four maps ``[S·B, C, t, h/2, w/2]``, in order of depth.
        """
        texts, left = divmod(len(text), len(sample))
        if left or not texts:
            raise ValueError(f"every clip needs its own text: {len(text)} texts for {len(sample)} clips")
        positions = self.rope(sample)
        grid = self.patch_embedding(sample)
        x = grid.flatten(2).mT.contiguous().repeat(texts, 1, 1)
        step = torch.zeros(len(text), dtype=torch.long, device=sample.device)
        _, modulation, text, _ = self.condition_embedder(step, text, None)
        modulation = modulation.unflatten(1, (6, -1))
        found = {}
        for number, block in enumerate(self.blocks, 1):
            run = partial(recomputed, block) if self.recompute else block
            x = run(x, text, modulation, positions)
            if number in self.tap_blocks:
                found[number] = x.mT.unflatten(2, grid.shape[2:])
        return [found[number] for number in self.tap_blocks]


def tap_blocks(blocks: int) -> tuple[int, ...]:
    """The numbers, from 1, of the blocks that are tapped: after 1/5, 2/5, 3/5 and 4/5 of the depth, rounded up."""
    return tuple(-(-blocks * fifth // (TAPS + 1)) for fifth in range(1, TAPS + 1))


class WanVAEEncoder(AutoencoderKLWan):
    """``AutoencoderKLWan`` of diffusers without its decoder.

    Attributes:
        maps: as in ``VAEEncoder``, for single frames.
    """

    maps = 11
    _keys_to_ignore_on_load_unexpected = (r"^decoder\.", r"^post_quant_conv\.")

    @wraps(AutoencoderKLWan.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.decoder, self.post_quant_conv

    def forward(self, videos: Tensor) -> Tensor:  # type: ignore[override]
        """Encode videos ``[B, 3, 1 + 4k, H, W]`` in -1…1: the mode of the posterior, ``[B, 16, 1 + k, H/8, W/8]``."""
        return self.encode(videos).latent_dist.mode()


@dataclass
class WanStack:
    """The frozen parts."""

    transformer: TapWan
    vae: WanVAEEncoder
    text_cache: TextCache
    sentence_encoder: RobertaModel
    sentence_tokenizer: Any
    text_sha256: str = ""
    """Of the files of the text encoder and its tokenizer."""


@dataclass
class WanPixels:
    """Features that depend on the frames only, shared by all sentences of a video."""

    latents: Tensor
    """``[B, 16, t, H/8, W/8]``, normalised."""
    f4: Tensor
    """Level 0 of the pyramid ``[N, C, H/4, W/4]``."""
    frames: int
    """T."""
    copies: int = 1
    """Number of sentences per clip."""

    @property
    def batch_shape(self) -> tuple[int, int]:
        """(B, T), with B counting the copies."""
        return self.copies * len(self.latents), self.frames

    def repeat(self, count: int) -> WanPixels:
        """The same clips ``count`` times, one after the other, for as many sentences."""
        return replace(self, copies=self.copies * count)


class WanEncoder(PyramidEncoder):
    """VAE, text features from a cache, taps of the transformer, pyramid.

    Args:
        stack: the frozen parts.
        pyramid_channels: channels of the four levels. Level 0 is computed by HCD's temporal stem.
        compressed: encode a clip as Wan was trained, 4 frames per latent frame after the first; else every frame as a
            first frame, which costs four times as much and suits frames that are far apart.
        text: whether the transformer is conditioned on the sentence; False: on the empty sentence (ablation).
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self, stack: WanStack, pyramid_channels: tuple[int, int, int, int], compressed: bool = True, text: bool = True
    ) -> None:
        super().__init__()
        self.compressed, self.use_text = compressed, text
        self.positions = stack.transformer.config.rope_max_seq_len
        self.vae = Frozen(stack.vae)
        self.transformer = Frozen(stack.transformer)
        self.text_cache = stack.text_cache
        self.unloaded_parts = {"text_encoder": stack.text_sha256}
        c4, c8, c16, c32 = pyramid_channels
        self.stride4 = TemporalStem(c4)
        width, phases = 2 * stack.transformer.width, PHASES if compressed else 1
        self.levels = nn.ModuleList(
            (
                PhaseLevel(width, phases, nn.ConvTranspose2d(c16, c8, 2, stride=2)),
                PhaseLevel(width, phases, nn.Conv2d(c32, c16, 1)),
                PhaseLevel(width, phases, nn.Conv2d(c32, c32, 3, stride=2, padding=1)),
            )
        )
        statistics = {
            "pixel_mean": IMAGENET_MEAN,
            "pixel_std": IMAGENET_STD,
            "latent_mean": stack.vae.config.latents_mean,
            "latent_std": stack.vae.config.latents_std,
        }
        for name, values in statistics.items():
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @property
    def denoiser(self) -> Frozen:
        """The transformer."""
        return self.transformer

    @in_own_precision
    def encode_pixels(self, frames: Tensor) -> WanPixels:
        """Compute everything that does not depend on the sentence. The frozen parts run without a graph.

        Args:
            frames: ``[B, T, 3, H, W]``, ImageNet-normalised, zero-padded; H and W multiples of 16.

        Raises:
            UserError: the clip is longer than the transformer's positions reach.
        """
        count = frames.shape[1]
        pad = (1 - count) % PHASES if self.compressed else 0
        length = 1 + (count + pad - 1) // PHASES if self.compressed else count
        if length > self.positions:
            raise UserError(
                f"a clip of {count} frames has {length} latent frames, and the transformer has positions for "
                f"{self.positions}; segment shorter windows"
            )
        with torch.no_grad():
            x01 = frames * self.pixel_std + self.pixel_mean
            videos = (2 * x01 - 1).transpose(1, 2)
            if self.compressed:
                videos = torch.cat([videos, videos[:, :, -1:].expand(-1, -1, pad, -1, -1)], dim=2)
                latents = torch.cat([self._own(self.vae(video)) for video in videos.split(1)])
            else:
                parts = vae_parts(self.vae, videos.transpose(1, 2).flatten(0, 1)[:, :, None])
                single = torch.cat([self._own(self.vae(part)) for part in parts])[:, :, 0]
                latents = single.unflatten(0, frames.shape[:2]).transpose(1, 2)
            mean, std = self.latent_mean[:, None], self.latent_std[:, None]
            latents = (widened(latents) - mean) / std
        return WanPixels(latents, self.stride4(x01, x01), count)

    def prepare_sentences(self, sentences: Iterable[str]) -> None:
        """Encode the sentences that are not in the cache; the text encoder is loaded for it, and then dropped."""
        texts = (cleaned(sentence) for sentence in self._conditions(sentences))
        self.text_cache.prepare(texts, self.pixel_mean.device)

    def encode_text(self, captions: list[str]) -> Tensor:
        """Features of sentences as diffusers' pipeline prepares them, ``[B, 512, D]``."""
        texts = [cleaned(caption) for caption in self._conditions(captions)]
        features = self.text_cache(texts, self.pixel_mean.device)
        padded = [nn.functional.pad(value.float(), (0, 0, 0, TEXT_TOKENS - len(value))) for value in features]
        return upload(torch.stack(padded), self.pixel_mean.device)

    def _conditions(self, captions: Iterable[str]) -> Iterable[str]:
        return captions if self.use_text else ("" for _ in captions)

    @in_own_precision
    def forward(self, pixels: WanPixels, captions: list[str]) -> list[Tensor]:
        """The pyramid of a batch of clips, each with one sentence; see ``PyramidEncoder``."""
        taps = self.transformer(pixels.latents, self.encode_text(captions))
        pairs = (self._own(torch.cat([taps[first], taps[last]], dim=1)) for first, last in TAP_PAIRS)
        return [pixels.f4, *(level(pair, pixels.frames) for level, pair in zip(self.levels, pairs, strict=True))]


class PhaseLevel(nn.Module):
    """A level of the pyramid: a 1×1 convolution gives every frame of a latent frame its own features.

    As in the published pyramids, there is no activation between the two convolutions.

    Args:
        width: channels of a pair of taps.
        phases: frames of a latent frame.
        scale: a convolution from stride 16 to the level's stride; its input channels are those between the two.
    """

    def __init__(self, width: int, phases: int, scale: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.phases = nn.Conv2d(width, phases * scale.in_channels, 1)
        self.scale = scale

    def forward(self, pair: Tensor, frames: int) -> Tensor:
        """``[B, C, t, h, w]`` at stride 16 → ``[B·T, out, h', w']``. The first latent frame has its last phase only."""
        batch, _, latent_frames = pair.shape[:3]
        x = self.phases(pair.transpose(1, 2).flatten(0, 1))
        x = x.unflatten(1, (-1, self.scale.in_channels)).unflatten(0, (batch, latent_frames)).flatten(1, 2)
        start = x.shape[1] // latent_frames - 1
        return self.scale(x[:, start : start + frames].flatten(0, 1))


# Loading.


def build_encoder(cfg: Config, stack: WanStack | None, auto: Mapping[str, Any]) -> tuple[WanEncoder, WanStack]:
    """The encoder of a configuration, and its frozen parts.

    Args:
        cfg: the options.
        stack: frozen parts already loaded, or None.
        auto: what "auto" stands for; not used, because the options that have it accept one value here.

    Raises:
        UserError: an option has no meaning for Wan, or a frozen part cannot be loaded.
    """
    rules = (
        ("image_tokens", cfg.image_tokens in (AUTO, False), "a clip has one text for all frames; leave it at auto"),
        ("image_encoder", not cfg.image_encoder, "a clip has no image tokens; leave it empty"),
        ("noise", cfg.noise in (AUTO, "none"), "the latents are clean; leave it at auto"),
        ("stride4", cfg.stride4 in (AUTO, "stem"), "the stem gives level 0; leave it at auto"),
        ("posterior", cfg.posterior in (AUTO, "mode"), "the mode gives the latents; leave it at auto"),
        ("lora_targets", all(name.startswith("to_") for name in cfg.lora_targets), "name layers of attentions: to_…"),
    )
    for name, good, advice in rules:
        if not good:
            raise UserError(f"{name} {shown(getattr(cfg, name))} has no meaning for Wan ({cfg.pretrained}): {advice}")
    stack = stack or load_stack(cfg.pretrained, cfg.text_encoder, cfg.text_cache)
    stack.transformer.recompute = cfg.gradient_checkpointing
    c4, c8, c16, c32 = cfg.pyramid_channels
    return WanEncoder(stack, (c4, c8, c16, c32), cfg.time_mode != "frame", cfg.unet_text), stack


def load_stack(pretrained: str, text_encoder: str = "", text_cache: str = "") -> WanStack:
    """Load the frozen parts from local directories or hub ids, but for UMT5, which ``TextCache`` loads when it must.

    Args:
        pretrained: the folder of Wan, with subfolders ``transformer``, ``vae``, ``text_encoder`` and ``tokenizer``.
        text_encoder: RoBERTa, as ``models.diffusion.stack.load_stack`` takes it.
        text_cache: folder for the features of sentences; empty: in the user's cache.

    Raises:
        UserError: a part is missing, incomplete, of a different kind, or cannot be read.
    """
    names = part_sources(pretrained, "", text_encoder)
    source, sentences = find_sources(
        (names["transformer"], "--pretrained", FOLDERS), (names["sentence_encoder"], "--text_encoder", ("",))
    )
    # Before the large parts, so that a mistake shows early.
    sentence_encoder, sentence_tokenizer = read_sentence_encoder(sentences)
    tokenizer = load_part("tokenizer", source, AutoTokenizer.from_pretrained, subfolder="tokenizer", **NO_CODE)
    config = load_part("UMT5 configuration", source, AutoConfig.from_pretrained, subfolder="text_encoder", **NO_CODE)
    check_tokenizer(tokenizer, config, f"{source.name}/tokenizer", source.flag)
    wide = {"dtype": torch.float32}
    transformer = load_network("transformer", source, TapWan.from_pretrained, subfolder="transformer", **wide)
    vae = load_network("VAE of Wan", source, WanVAEEncoder.from_pretrained, subfolder="vae", **wide)
    _check_kind(transformer, vae, config, source)
    digest = _text_sha256(source)
    folder = Path(text_cache) if text_cache else cache_folder() / "text"
    load = partial(_load_umt5, source, tokenizer)
    cache = TextCache(folder / digest[:32], load, config.d_model, TEXT_TOKENS)
    return WanStack(transformer, vae, cache, sentence_encoder, sentence_tokenizer, digest)


def empty_stack(folder: Path) -> WanStack:
    """Build the frozen parts on the meta device, without weights, tokenizers or UMT5, from configuration files.

    Args:
        folder: holds ``transformer``, ``vae`` and ``roberta`` (``configs/full_size_wan`` has the published sizes).
    """
    return WanStack(
        transformer=empty_part(TapWan, folder / "transformer"),
        vae=empty_part(WanVAEEncoder, folder / "vae"),
        text_cache=TextCache(folder, _no_text_encoder, 0, TEXT_TOKENS),
        sentence_encoder=empty_part(RobertaModel, folder / "roberta", add_pooling_layer=False),
        sentence_tokenizer=None,
    )


def cleaned(sentence: str) -> str:
    """A sentence as diffusers' pipeline cleans it: HTML entities as characters, single spaces."""
    return " ".join(html.unescape(html.unescape(sentence)).split())


def _load_umt5(source: Source, tokenizer: Any, device: torch.device) -> Encode:
    """Load UMT5 in the precision of its files, and return the function that encodes with it."""
    load, options = UMT5EncoderModel.from_pretrained, {"dtype": "auto", **NO_CODE}
    encoder = load_network("UMT5 text encoder", source, load, subfolder="text_encoder", **options).to(device).eval()

    def encode(sentences: Sequence[str]) -> list[Tensor]:
        tokens = tokenizer(
            list(sentences), padding="longest", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).to(device)
        features = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state.cpu()
        lengths = tokens.attention_mask.sum(1).tolist()
        return [row[:length].contiguous() for row, length in zip(features, lengths, strict=True)]

    return encode


def _no_text_encoder(device: torch.device) -> Encode:
    raise UserError("a model of configuration files has no text encoder; name a complete folder with --pretrained")


def _text_sha256(source: Source) -> str:
    """The SHA-256 of the files of the text encoder and its tokenizer, which decide what a sentence is encoded to."""
    lines = []
    for folder in (source.folder / "text_encoder", source.folder / "tokenizer"):
        names = sorted(read_names([path.name for path in folder.iterdir()]))
        lines += [f"{folder.name}/{name} {_sha256(folder / name)}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """The SHA-256 of a file; the hub's cache names large files by it, so that 11 GB need not be read at every start."""
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and len(blob.name) == 64 else file_sha256(path)


def _check_kind(transformer: TapWan, vae: WanVAEEncoder, text: Any, source: Source) -> None:
    """Refuse relatives of Wan 2.1 text-to-video, such as image-to-video models and Wan 2.2."""
    own, latents = transformer.config, vae.config
    facts = (
        own.image_dim is None and own.added_kv_proj_dim is None and own.in_channels == latents.z_dim,
        tuple(own.patch_size) == (1, 2, 2) and isinstance(text, UMT5Config) and own.text_dim == text.d_model,
        latents.patch_size is None and not latents.is_residual and sum(latents.temperal_downsample) == 2,
        len(latents.dim_mult) == 4 and len(latents.latents_mean) == len(latents.latents_std) == latents.z_dim,
    )
    if not all(facts):
        raise UserError(
            f"{source.name} is not a text-to-video model of Wan 2.1, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers; give "
            f"one with {source.flag}"
        )
