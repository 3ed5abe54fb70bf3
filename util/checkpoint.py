"""Checkpoints of a run: what is trained, and what it takes to go on.

A file holds ``format``, ``model`` (its name), ``config`` (the options it was made with), ``weights`` (the
trained parameters alone: the frozen parts are loaded from where they come from), and for training
``optimizer``, ``step`` and ``epoch``. It is read with ``weights_only``, so it cannot run code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from util.errors import UserError
from util.io import atomic_path

FORMAT = "t2v-rvos-1"


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters of a model, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(path: str | Path, model: nn.Module, name: str, config: dict[str, Any], **state: Any) -> None:
    """Write a checkpoint beside ``path`` and rename it.

    Args:
        path: the file.
        model: its trained parameters are stored.
        name: which model it is ("vdit").
        config: the run's options.
        state: further entries, such as ``optimizer``, ``step`` and ``epoch``.

    Raises:
        UserError: the file cannot be written; an older one stays intact.
    """
    content = {"format": FORMAT, "model": name, "config": config, "weights": trained_state(model), **state}
    try:
        # An open file: given a path, torch writes its name into the file, and equal content has other bytes.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write the checkpoint {path}: {error}; an older one there is intact") from error


def read_checkpoint(path: str | Path, expected_model: str) -> dict[str, Any]:
    """Read a checkpoint's content onto the CPU.

    Raises:
        UserError: the file is missing, truncated, of another kind, or of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist; give the path of a checkpoint.pth with --resume")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise many kinds, which differ between versions
        raise UserError(f"{path} is not a readable checkpoint; it may be truncated or of another program") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project ({FORMAT})")
    if not isinstance(content.get("weights"), dict):
        raise UserError(f"{path} holds no weights; it is no checkpoint that main.py wrote")
    if content.get("model") != expected_model:
        raise UserError(
            f"{path} is a checkpoint of the model {content.get('model')!r}, and the configuration builds "
            f"{expected_model!r}; give a configuration with model: {content.get('model')}"
        )
    return content


def load_state(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Put trained parameters into a model.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    own = trained_state(model)
    strangers, missing = sorted(weights.keys() - own.keys()), sorted(own.keys() - weights.keys())
    if strangers or missing:
        what = f"holds {strangers[0]}, which this model lacks" if strangers else f"lacks {missing[0]}"
        raise UserError(f"{path} {what}; it was made with another configuration")
    for name, value in weights.items():
        if own[name].shape != value.shape:
            raise UserError(
                f"{path} holds {name} of shape {list(value.shape)}, and this model's is {list(own[name].shape)}; "
                "it was made with another configuration"
            )
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
