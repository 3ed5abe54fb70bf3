"""Tiny models and authors' checkpoints of them, for the tests of checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import Segmenter, build_model
from models.authors import SIZES, authors_state
from models.diffusion.stack import load_stock_parts
from models.lora import merged_state
from util.config import Config, load_config

ROOT = Path(__file__).resolve().parents[1]


def tiny_config(stack: Path, **options: Any) -> Config:
    """The sizes of the toy configuration, a little smaller."""
    cfg = load_config(["--config", str(ROOT / "configs" / "vdit_toy.yaml")], "")
    sizes: dict[str, Any] = {"dim_feedforward": 64, "lora_rank": 0}
    return dataclasses.replace(cfg, pretrained=str(stack), device="cpu", **{**sizes, **options})


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
    state = authors_state(merged_state(model), cfg.model, stock, _sentence_projection(cfg))
    sizes = {name: getattr(cfg, name) for name in SIZES}
    torch.save({"model": state, "epoch": 5, "args": argparse.Namespace(lr_drop=[6, 8], **sizes)}, path)
    return state


def _sentence_projection(cfg: Config) -> dict[str, Tensor]:
    """The unused weights that released checkpoints have beside the model's."""
    generator = torch.Generator().manual_seed(3)
    width = cfg.hidden_dim
    shapes = {"fc.weight": (width, 64), "fc.bias": (width,), "layer_norm.weight": (width,), "layer_norm.bias": (width,)}
    return {f"sentence_proj.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def change_unet(model: Segmenter) -> None:
    """Give the frozen UNet other weights, as merged adapters do."""
    with torch.no_grad():
        for name, parameter in model.encoder.unet.named_parameters():
            if "to_q" in name or "to_v" in name:
                parameter.mul_(1.5)


def differences(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names that only one of two state dicts has, or that differ in it."""
    both = first.keys() & second.keys()
    return sorted(
        (first.keys() ^ second.keys()) | {name for name in both if not torch.equal(first[name], second[name])}
    )
