"""Putting a checkpoint into a model: this project's files and the authors', from a path or from the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.adapters import authors_names
from models.authors import SIZES, is_authors, read_authors
from models.defaults import FUNCTION, OWN, resolved
from models.identity import Identity, check_identity, frozen_identity, held_parts
from util.checkpoint import TRAINING_KEYS, check_content, check_model, read_content
from util.command_line import nearest
from util.config import Config, config_dict
from util.errors import UserError
from util.hub import checkpoint_path
from util.state import LORA, load_state, trained_state

CLASS_HEADS = "class_heads."


@dataclass
class Loaded:
    """What loading a checkpoint found out."""

    frozen: Identity
    """The identity of the model's frozen parts, for its own checkpoints."""
    notes: list[str]
    """What the user should know."""


def open_checkpoint(source: str, flag: str, expected_model: str = "") -> dict[str, Any]:
    """Read a checkpoint of this project or of the authors, memory-mapped.

    Args:
        source: a file, a folder that holds one checkpoint, or ``hf://org/repo[@revision][/file]``.
        flag: the option that names it, for messages.
        expected_model: the model that the configuration builds; empty: any.

    Returns:
        ``path``, ``format``, ``model``, ``config``, ``weights`` (by this project's names) and ``frozen``; for a run
        that can go on also ``optimizer``, ``step`` and ``steps_per_epoch``; of the authors' layout (``layout``) also
        what it has beside the model: ``unused`` tensors, ``args`` and ``epoch``.

    Raises:
        UserError: it cannot be read or found, is of another kind or model, or holds an unknown name.
    """
    path = checkpoint_path(source, flag)
    content = read_content(path)
    if is_authors(content):
        content = read_authors(content, path)
        check_model(content["model"], path, expected_model)
    else:
        content = check_content(content, path, expected_model)
    if content["model"] not in OWN:
        raise UserError(f"{path} is a checkpoint of the model {content['model']!r}; known are {' and '.join(OWN)}")
    return {**content, "path": path}


def open_training(source: str, expected_model: str) -> dict[str, Any]:
    """Read the checkpoint of a training run that goes on, as ``open_checkpoint`` does.

    Raises:
        UserError: as there, or it holds weights alone.
    """
    state = open_checkpoint(source, "--resume", expected_model)
    if not state.keys() >= TRAINING_KEYS.keys():
        raise UserError(
            f"{state['path']} holds weights alone; --resume goes on with the checkpoint.pth of a training run, and "
            "--pretrained_weights begins a new run from weights"
        )
    return state


def config_of(checkpoint: dict[str, Any], **options: Any) -> Config:
    """The configuration that a checkpoint was made with, options that are not None or empty put in.

    Raises:
        UserError: its options make no configuration, or one is unknown, or ``model`` is another one.
    """
    check_model(checkpoint["model"], checkpoint.get("path", "the checkpoint"), options.get("model") or "")
    known = {field.name for field in dataclasses.fields(Config)}
    for name in options.keys() - known:
        near = nearest(name, sorted(known))
        raise UserError(f"unknown option {name!r}" + (f"; did you mean {near!r}?" if near else ""))
    values = {name: value for name, value in checkpoint["config"].items() if name in known}
    given = {name: value for name, value in options.items() if value is not None and value != ""}
    try:
        return Config(**{**values, **given, "model": checkpoint["model"]})
    except UserError as error:
        raise UserError(f"the options in {checkpoint['path']} make no configuration: {error}") from error


def load_weights(model: nn.Module, checkpoint: dict[str, Any], cfg: Config, fresh: bool = False) -> Loaded:
    """Put the weights of a checkpoint into a model, and verify that its frozen parts are those it was trained with.

    Args:
        model: on the CPU, with its frozen parts.
        checkpoint: from ``open_checkpoint``.
        cfg: reads ``keep_class_heads``, ``ignore_frozen_identity`` and where the frozen parts come from.
        fresh: the weights begin a new run: class heads are new unless ``keep_class_heads``, and adapters may be.

    Raises:
        UserError: the weights are not this model's, or a frozen part is another one.
    """
    path, weights, notes = checkpoint["path"], checkpoint["weights"], []
    check_options(checkpoint, cfg, fresh)
    dropped = fresh and not cfg.keep_class_heads
    if dropped:
        heads = {name for name in trained_state(model) if name.startswith(CLASS_HEADS)}
        weights = {name: value for name, value in weights.items() if name not in heads}
        notes.append(f"starting from {path} with new class heads (--keep_class_heads keeps its own)")
    elif fresh:
        notes.append(f"starting from {path} with its class heads")
    # New adapters change nothing, and a checkpoint with a UNet but no adapters has merged them into it.
    held = held_parts(weights)
    adapters = (fresh or "unet" in held) and not any(LORA in name for name in weights)

    def optional(name: str) -> bool:
        return (dropped and name.startswith(CLASS_HEADS)) or (adapters and LORA in name)

    load_state(model, weights, path, optional, file_name(checkpoint))
    frozen = frozen_identity(model, cfg)
    notes += check_identity(checkpoint["frozen"], frozen, path, held, cfg.ignore_frozen_identity)
    return Loaded(frozen, notes)


def file_name(checkpoint: dict[str, Any]) -> Callable[[str], str]:
    """What a checkpoint's file calls a parameter of this project."""

    def shown(name: str) -> str:
        try:
            return authors_names(checkpoint["model"]).theirs(name)[0]
        except UserError:  # it has no place there
            return name

    return shown if checkpoint.get("layout") == "authors" else str


def check_options(checkpoint: dict[str, Any], cfg: Config, fresh: bool = False) -> None:
    """Refuse a checkpoint of other sizes or of another function, by the option's name; its weights might fit.

    A new run (``fresh``) may change the function: what it takes over then has the same names and shapes. It needs no
    model, so that nobody waits for gigabytes of frozen parts to be told.

    Raises:
        UserError: an option differs.
    """
    model, given = checkpoint["model"], checkpoint["config"]
    names = {*SIZES, "pyramid_channels"} - {"dropout"}  # which has no weights, and may change
    if any(LORA in name for name in checkpoint["weights"]):
        names |= {"lora_rank", "lora_alpha"}
    theirs = {name: given[name] for name in names if name in given}
    if not fresh:  # a checkpoint from before an option was made with its default
        theirs.update({name: given.get(name, getattr(Config, name)) for name in FUNCTION})
    ours = config_dict(cfg)
    for name in sorted(theirs):
        their, our = resolved(model, name, theirs[name]), resolved(cfg.model, name, ours[name])
        if their != our:
            raise UserError(
                f"{checkpoint['path']} was made with another configuration: {name} {their}, and here it is {our}; "
                "give the configuration that it was made with"
            )
