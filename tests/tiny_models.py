"""Tiny models for tests: configurations, random clips and targets, gradients of a step, and authors' checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from main import load_start
from models import Segmenter, build_criterion, build_model
from models.authors import SIZES, authors_state
from models.checkpoints import Identity, open_checkpoint
from models.diffusion.stack import load_stock_parts
from models.lora import merged_state
from util.config import Config, config_dict

TINY: dict[str, Any] = {
    **{"pyramid_channels": (32, 64, 128, 256), "hidden_dim": 64, "dim_feedforward": 96, "enc_layers": 1},
    **{"dec_layers": 2, "nheads": 4, "dropout": 0.0},
}
"""Sizes of the trained parts."""


def model_config(stack: Path, **options: Any) -> Config:
    """A configuration of tiny sizes on a frozen stack."""
    return Config(**{**TINY, "pretrained": str(stack), **options})


def tiny_flags() -> list[str]:
    """The same sizes as command-line flags."""
    lists = {name: value if isinstance(value, tuple) else (value,) for name, value in TINY.items()}
    return [str(word) for name, values in lists.items() for word in (f"--{name}", *values)]


def random_clips(batch: int, frames: int, height: int = 64, width: int = 96) -> tuple[Tensor, Tensor, list[str]]:
    """Frames, padding and sentences of at most two clips."""
    clips = torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))
    padding = torch.zeros(batch, height, width, dtype=torch.bool)
    return clips, padding, ["the red circle moving left", "the small blue square"][:batch]


def square_targets(batch: int, frames: int, height: int = 64, width: int = 96) -> list[dict[str, Tensor]]:
    """Targets: the same rectangle in every frame of every clip."""
    masks = torch.zeros(frames, height, width, dtype=torch.bool)
    masks[:, 8:24, 16:40] = True
    boxes = torch.tensor([[28 / width, 16 / height, 24 / width, 16 / height]]).repeat(frames, 1)
    return [{"boxes": boxes, "masks": masks, "valid": torch.ones(frames, dtype=torch.long)} for _ in range(batch)]


def backward(model: Segmenter, cfg: Config, batch: int, frames: int) -> tuple[Any, dict[str, Tensor]]:
    """Compute the gradients of one training step; returns the model's output and the terms of the loss."""
    clips, padding, captions = random_clips(batch, frames)
    criterion = build_criterion(cfg)
    target = criterion.prepare(square_targets(batch, frames), clips.shape[-2:])
    model.train()
    model.zero_grad()
    output = model(clips, padding, captions, criterion.select(target))
    loss, terms = criterion(output, target)
    loss.backward()
    return output, terms


TRAINING: dict[str, Any] = {
    **{"num_frames": 3, "train_scales": (64,), "crop_scales": (), "max_size": 96, "eval_size": 64, "num_workers": 0},
    **{"batch_size": 2, "lora_rank": 0, "device": "cpu"},
}


def tiny_config(stack: Path, **options: Any) -> Config:
    """A tiny configuration for training. HCD's adapters are merged, as in the released checkpoint."""
    return model_config(stack, **{**TRAINING, **options})


def tiny_model(cfg: Config, seed: int) -> Segmenter:
    """A model with random trained parameters, including those of adapters."""
    torch.manual_seed(seed)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    return model


def write_authors(path: Path, model: Segmenter, cfg: Config) -> dict[str, Tensor]:
    """Write a checkpoint in the authors' layout; returns its state dict."""
    stock = load_stock_parts(cfg.pretrained)
    state = authors_state(merged_state(model), cfg.model, stock, _sentence_projection(model))
    sizes = {name: getattr(cfg, name) for name in SIZES}
    torch.save({"model": state, "epoch": 5, "args": argparse.Namespace(lr_drop=[6, 8], **sizes)}, path)
    return state


def _sentence_projection(model: Segmenter) -> dict[str, Tensor]:
    """Weights that are unused but present in released checkpoints."""
    generator = torch.Generator().manual_seed(3)
    like = {f"fc.{key}": value for key, value in model.sentence_encoder.linear.named_parameters()}
    like.update({f"layer_norm.{key}": value for key, value in model.sentence_encoder.norm.named_parameters()})
    return {f"sentence_proj.{key}": torch.randn(value.shape, generator=generator) for key, value in like.items()}


def change_unet(model: Segmenter, factor: float = 1.5) -> None:
    """Scale some weights of the frozen UNet, as merging adapters would change them."""
    with torch.no_grad():
        for name, parameter in model.encoder.unet.named_parameters():
            if ("to_q" in name or "to_v" in name) and not parameter.requires_grad:
                parameter.mul_(factor)


def differences(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names that differ between two state dicts or are in only one of them."""
    both = first.keys() & second.keys()
    return sorted(
        (first.keys() ^ second.keys()) | {name for name in both if not torch.equal(first[name], second[name])}
    )


def restore(model: Segmenter, path: Path, cfg: Config, new_run: bool = False) -> tuple[Identity, list[str]]:
    """Load a checkpoint into a model as a run does; the identity of its frozen parts, and notes."""
    checkpoint = open_checkpoint(str(path), "--resume", cfg.model)
    checkpoint.require_options(config_dict(cfg), new_run)
    return load_start(cfg, model, checkpoint, new_run)
