"""Tiny models and authors' checkpoints of them, for the tests of checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import Segmenter, build_model
from models.authors import SIZES, authors_state
from models.diffusion.stack import load_stock_parts
from models.lora import merged_state
from tests.tiny_models import model_config
from util.config import Config

TRAINING: dict[str, Any] = {
    **{"num_frames": 3, "train_scales": (64,), "crop_scales": (), "max_size": 96, "eval_size": 64, "num_workers": 0},
    **{"batch_size": 2, "lora_rank": 0, "device": "cpu"},
}


def tiny_config(stack: Path, **options: Any) -> Config:
    """A configuration of tiny sizes that can be trained; HCD as released, its adapters merged."""
    return model_config(stack, **{**TRAINING, **options})


def tiny_model(cfg: Config, seed: int) -> Segmenter:
    """A model whose every trained parameter is random, adapters' included."""
    torch.manual_seed(seed)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    return model


def write_authors(path: Path, model: Segmenter, cfg: Config) -> dict[str, Tensor]:
    """Write a model as the authors would have released it; its state dict."""
    stock = load_stock_parts(cfg.pretrained)
    state = authors_state(merged_state(model), cfg.model, stock, _sentence_projection(model))
    sizes = {name: getattr(cfg, name) for name in SIZES}
    torch.save({"model": state, "epoch": 5, "args": argparse.Namespace(lr_drop=[6, 8], **sizes)}, path)
    return state


def _sentence_projection(model: Segmenter) -> dict[str, Tensor]:
    """The unused weights that released checkpoints have beside the model's."""
    generator = torch.Generator().manual_seed(3)
    like = {f"fc.{key}": value for key, value in model.sentence_encoder.linear.named_parameters()}
    like.update({f"layer_norm.{key}": value for key, value in model.sentence_encoder.norm.named_parameters()})
    return {f"sentence_proj.{key}": torch.randn(value.shape, generator=generator) for key, value in like.items()}


def change_unet(model: Segmenter, factor: float = 1.5) -> None:
    """Give the frozen UNet other weights, as merged adapters do."""
    with torch.no_grad():
        for name, parameter in model.encoder.unet.named_parameters():
            if ("to_q" in name or "to_v" in name) and not parameter.requires_grad:
                parameter.mul_(factor)


def differences(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names that only one of two state dicts has, or that differ in it."""
    both = first.keys() & second.keys()
    return sorted(
        (first.keys() ^ second.keys()) | {name for name in both if not torch.equal(first[name], second[name])}
    )
