"""A tiny frozen stack with random weights, in the on-disk layout of the published one.

For the quickstart and for tests: what loads ``ali-vilab/text-to-video-ms-1.7b``, CLIP and RoBERTa loads this, a
few megabytes that no download is needed for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from safetensors import SafetensorError
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    RobertaConfig,
    RobertaModel,
)
from transformers.utils import logging as transformers_logging

from models.diffusion.tiny_tokenizers import CLIP_LENGTH, ROBERTA_LENGTH, write_clip_tokenizer, write_roberta_tokenizer
from models.diffusion.tiny_weights import randomise
from util.errors import UserError
from util.files import write_json

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "clip", "roberta")
STAMP = "tiny_stack.json"
VERSION = 1
"""Raised whenever the same parameters make other files."""


@dataclass(frozen=True)
class TinySizes:
    """Sizes of the tiny stack; every channel count is a multiple of the normalisations' groups."""

    channels: tuple[int, ...] = (32, 32, 64, 64)
    """UNet channels per block."""
    head_dim: int = 16
    layers_per_block: int = 2
    vae_channels: tuple[int, ...] = (32, 32, 32, 32)
    vae_layers_per_block: int = 2
    vae_norm_groups: int = 32
    latent_channels: int = 4
    """Of the VAE's latents, which the UNet takes and predicts."""
    text_width: int = 64
    """Width of the diffusion text encoder and of the UNet's cross-attention."""
    text_tokens: int = CLIP_LENGTH
    """Tokens of a text for the diffusion text encoder."""
    image_width: int = 64
    image_size: int = 224
    """Height and width of the image encoder's images."""
    image_patch: int = 32
    """Patch size of the image encoder."""
    sentence_width: int = 64
    encoder_layers: int = 2
    """Layers of the text, image and sentence encoders."""
    max_tokens: int = 4096
    """Upper limit of either vocabulary."""


def make_tiny_stack(
    folder: str | Path, sentences: Iterable[str] | None = None, seed: int = 0, *, force: bool = False, **sizes: Any
) -> Path:
    """Write a tiny random frozen stack in the Hugging Face layout.

    The subfolders are ``unet``, ``vae``, ``text_encoder``, ``tokenizer``, ``scheduler``, ``clip`` and ``roberta``.
    Weights depend only on the seed and on each parameter's name and shape; the global random state is left alone.
    A complete stack made with the same parameters is kept as it is. Nothing appears at ``folder`` before all is
    written.

    Args:
        folder: where the stack goes.
        sentences: text that the tokenizers should know, beside their built-in words; order does not matter.
        seed: of the weights.
        force: replace a stack made with other parameters (never a folder that holds anything else).
        sizes: fields of ``TinySizes``.

    Returns:
        ``folder``.

    Raises:
        UserError: ``folder`` holds something else, or cannot be written.
    """
    folder = Path(folder)
    texts = sorted({" ".join(text.split()) for text in sentences or ()} - {""})
    chosen = TinySizes(**sizes)
    parameters = json.loads(json.dumps({"version": VERSION, "seed": seed, **asdict(chosen)}))
    parameters["sentences"] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    if _is_kept(folder, parameters, force):
        return folder
    temporary = folder.with_name(f".{folder.name[:80]}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        _write_parts(temporary, texts, seed, chosen)
        write_json(temporary / STAMP, {"parameters": parameters, "files": _file_sizes(temporary)})
        _put_in_place(temporary, folder, parameters)
    except (OSError, SafetensorError) as error:  # a full disk is either, depending on the file
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write the stack to {folder}: {reason}; choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_parts(folder: Path, texts: list[str], seed: int, sizes: TinySizes) -> None:
    """Write every subfolder of the stack."""
    clip_tokens = write_clip_tokenizer(folder / "tokenizer", texts, sizes.max_tokens, sizes.text_tokens)
    sentence_tokens = write_roberta_tokenizer(folder / "roberta", texts, sizes.max_tokens)
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    CLIPImageProcessor().save_pretrained(folder / "clip")
    with torch.random.fork_rng(devices=[]), _no_progress_bars():  # building a model draws its initial weights
        models: dict[str, Any] = {
            "unet": _unet(sizes),
            "vae": _vae(sizes),
            "text_encoder": CLIPTextModel(_text_config(sizes, clip_tokens)),
            "clip": CLIPVisionModelWithProjection(_image_config(sizes)),
            "roberta": RobertaModel(_sentence_config(sizes, sentence_tokens)),
        }
        for part, model in models.items():
            randomise(model, part, seed)
            weights = model.state_dict()
            if part == "text_encoder":
                # transformers 5 drops this prefix from its names; with it, as published, version 4 reads them too.
                weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in weights.items()}
                model.save_pretrained(folder / part, state_dict=weights)
            else:
                model.save_pretrained(folder / part)


def _unet(sizes: TinySizes) -> UNet3DConditionModel:
    return UNet3DConditionModel(
        sample_size=32,
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers_per_block,
        attention_head_dim=sizes.head_dim,
        cross_attention_dim=sizes.text_width,
    )


def _vae(sizes: TinySizes) -> AutoencoderKL:
    levels = len(sizes.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.vae_channels,
        layers_per_block=sizes.vae_layers_per_block,
        norm_num_groups=sizes.vae_norm_groups,
        latent_channels=sizes.latent_channels,
        sample_size=64,
    )


def _text_config(sizes: TinySizes, tokens: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        num_hidden_layers=sizes.encoder_layers,
        num_attention_heads=4,
        max_position_embeddings=sizes.text_tokens,
        projection_dim=sizes.text_width // 2,
        hidden_act="gelu",
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=0,
    )


def _image_config(sizes: TinySizes) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=sizes.image_width,
        intermediate_size=2 * sizes.image_width,
        num_hidden_layers=sizes.encoder_layers,
        num_attention_heads=4,
        image_size=sizes.image_size,
        patch_size=sizes.image_patch,
        projection_dim=sizes.image_width // 2,
        hidden_act="gelu",
    )


def _sentence_config(sizes: TinySizes, tokens: int) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=tokens,
        hidden_size=sizes.sentence_width,
        intermediate_size=2 * sizes.sentence_width,
        num_hidden_layers=sizes.encoder_layers,
        num_attention_heads=4,
        max_position_embeddings=ROBERTA_LENGTH + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _file_sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of every file below a folder, by its path in the folder."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _is_complete(folder: Path, parameters: dict[str, Any]) -> bool:
    """Whether the folder holds all of a stack made with these parameters."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        return stamp["parameters"] == parameters and stamp["files"].items() <= _file_sizes(folder).items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_kept(folder: Path, parameters: dict[str, Any], force: bool) -> bool:
    """Whether the stack is there already.

    Raises:
        UserError: something else is there that must not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder for the tiny stack")
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not present or _is_complete(folder, parameters):
        return bool(present)
    foreign = sorted(present - {*PARTS, STAMP})
    if foreign or STAMP not in present:
        example = foreign[0] if foreign else sorted(present)[0]
        raise UserError(f"{folder} holds something else than a tiny stack ({example}); choose a new or empty folder")
    if not force:
        raise UserError(
            f"{folder} holds a tiny stack that is incomplete or was made with another seed, sizes or sentences; "
            "choose another folder, or replace it with --force"
        )
    return False


def _put_in_place(temporary: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Rename the finished stack to its place, an older one moved aside and removed."""
    if _is_complete(folder, parameters):  # another process was faster
        return
    aside = temporary.with_name(temporary.name + ".old")
    if folder.is_dir() and any(folder.iterdir()):
        folder.replace(aside)
    temporary.replace(folder)
    shutil.rmtree(aside, ignore_errors=True)
