"""What the tests of models share: a configuration of tiny sizes, random clips, targets, one step's gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import build_criterion, frozen_sources
from models.checkpoints import Identity, load_weights, open_checkpoint
from models.segmenter import Segmenter
from util.config import Config, config_dict

TINY: dict[str, Any] = {
    **{"pyramid_channels": (32, 64, 128, 256), "hidden_dim": 64, "dim_feedforward": 96, "enc_layers": 1},
    **{"dec_layers": 2, "nheads": 4, "dropout": 0.0},
}
"""The sizes of the trained parts."""


def model_config(stack: Path, **options: Any) -> Config:
    """A configuration of tiny sizes on a frozen stack."""
    return Config(**{**TINY, "pretrained": str(stack), **options})


def tiny_flags() -> list[str]:
    """The same sizes as flags."""
    lists = {name: value if isinstance(value, tuple) else (value,) for name, value in TINY.items()}
    return [str(word) for name, values in lists.items() for word in (f"--{name}", *values)]


def random_clips(batch: int, frames: int, height: int = 64, width: int = 96) -> tuple[Tensor, Tensor, list[str]]:
    """Frames, padding and sentences of at most two clips."""
    clips = torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))
    padding = torch.zeros(batch, height, width, dtype=torch.bool)
    return clips, padding, ["the red circle moving left", "the small blue square"][:batch]


def square_targets(batch: int, frames: int, height: int = 64, width: int = 96) -> list[dict[str, Tensor]]:
    """One and the same rectangle in every frame of every clip."""
    masks = torch.zeros(frames, height, width, dtype=torch.bool)
    masks[:, 8:24, 16:40] = True
    boxes = torch.tensor([[28 / width, 16 / height, 24 / width, 16 / height]]).repeat(frames, 1)
    return [{"boxes": boxes, "masks": masks, "valid": torch.ones(frames, dtype=torch.long)} for _ in range(batch)]


def backward(model: Segmenter, cfg: Config, batch: int, frames: int) -> tuple[Any, dict[str, Tensor]]:
    """Gradients of one training step; the model's output and the terms of the loss."""
    clips, padding, captions = random_clips(batch, frames)
    criterion = build_criterion(cfg)
    target = criterion.prepare(square_targets(batch, frames), clips.shape[-2:])
    model.train()
    model.zero_grad()
    output = model(clips, padding, captions, criterion.select(target))
    loss, terms = criterion(output, target)
    loss.backward()
    return output, terms


def restore(model: Segmenter, path: Path, cfg: Config, new_run: bool = False) -> tuple[Identity, list[str]]:
    """Load a checkpoint into a model as a run does; the identity of its frozen parts, and notes."""
    checkpoint = open_checkpoint(str(path), "--resume", cfg.model)
    checkpoint.require_options(config_dict(cfg), new_run)
    return load_weights(
        model,
        checkpoint,
        frozen_sources(cfg),
        new_run=new_run,
        keep_class_heads=cfg.keep_class_heads,
        ignore_identity=cfg.ignore_frozen_identity,
    )
