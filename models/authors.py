"""Checkpoints in the authors' layout: ``{"model": weights, "epoch": …, "args": argparse.Namespace}``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.adapters import BACKBONE, LEVELS, authors_model, authors_names, convert_authors
from models.diffusion.stack import StockParts
from util.checkpoint import FORMAT, is_state
from util.errors import UserError

SIZES = (
    *("hidden_dim", "dim_feedforward", "enc_layers", "dec_layers", "nheads", "enc_n_points", "dec_n_points"),
    *("num_queries", "dropout", "dynamic_mask_channels"),
)
"""Options of the model that have the same name and meaning on both sides."""

KEPT = "sentence_proj."
"""Unused weights that no pretrained part has; a converted checkpoint keeps them for the way back."""


def is_authors(content: dict[str, Any]) -> bool:
    """Whether the content of a file has the authors' layout."""
    state = content.get("model")
    return bool(state) and is_state(state)


def read_authors(content: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """A checkpoint of the authors as one of this project: see ``models.loading.open_checkpoint``.

    Raises:
        UserError: it is of neither model, or a name is unknown.
    """
    state: dict[str, Tensor] = content["model"]
    try:
        model, weights = authors_model(state), convert_authors(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    args = content.get("args")
    given = vars(args) if isinstance(args, argparse.Namespace) else {}
    plain = {str(name): value for name, value in given.items() if _is_plain(value)}
    sizes = {name: plain[name] for name in SIZES if name in plain}
    return {
        "format": FORMAT,
        "layout": "authors",
        "model": model,
        "config": {"model": model, "lora_rank": 0, **sizes, **_pyramid(weights, model)},
        "weights": weights,
        "frozen": {},
        "unused": {name: value for name, value in state.items() if name.startswith(KEPT)},
        "args": plain,
        "epoch": content.get("epoch") if isinstance(content.get("epoch"), int) else 0,
    }


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold a value."""
    return (
        value is None
        or isinstance(value, (bool, int, float, str))
        or (isinstance(value, (list, tuple)) and all(_is_plain(item) for item in value))
    )


def _pyramid(weights: dict[str, Tensor], model: str) -> dict[str, list[int]]:
    """``pyramid_channels``, read off the last convolution of every level."""
    level0 = ["encoder.stride4.spatial.5"] if model == "hcd" else []
    found = [weights.get(f"{name}.weight") for name in (*level0, *(f"{level}.1" for level in LEVELS[model]))]
    return {"pyramid_channels": [len(weight) for weight in found if weight is not None]}


def authors_state(
    weights: Mapping[str, Tensor], model: str, stock: StockParts, kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights in the authors' layout, with everything that a released checkpoint holds.

    Args:
        weights: a whole model's, frozen parts included, by this project's names, LoRA merged.
        model: which one it is.
        stock: where the parts come from that this project never loads.
        kept: what an authors' checkpoint had beside them (``sentence_proj``); what it lacks is made up: zeros, and
            ones for a normalisation's weight. Nothing ever reads it.

    Returns:
        the state dict; the two names of one tensor are the same tensor.

    Raises:
        UserError: a weight has no place in that layout.
    """
    names = authors_names(model)
    state = {theirs: value for ours, value in weights.items() for theirs in names.theirs(ours)}
    whole = {
        **{f"{BACKBONE[model]}unet.{name}": value for name, value in stock.unet.items()},
        **{f"{BACKBONE[model]}vae.{name}": value for name, value in stock.vae.items()},
        **{f"text_encoder.text_backbone.{name}": value for name, value in stock.sentence_encoder.items()},
    }
    state.update({name: value for name, value in whole.items() if names.ours(name) is None})
    for name in ("fc.weight", "fc.bias", "layer_norm.weight", "layer_norm.bias"):
        like = state[f"text_proj.{name}"]
        neutral = torch.ones_like(like) if name == "layer_norm.weight" else torch.zeros_like(like)
        state[KEPT + name] = kept.get(KEPT + name, neutral)
    return state
