"""Convert a checkpoint to a safetensors file of weights or to the authors' layout (docs/checkpoints.md).

python -m scripts.convert_checkpoint IN OUT.safetensors [--dtype float16]
python -m scripts.convert_checkpoint IN OUT.pth --to authors [--pretrained FOLDER]

IN is a file or folder of this project or of the authors, or [hf://]org/repo.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.count_parameters import FULL_SIZE, empty_model
from util.errors import Parser, UserError, help_asked, run_cli

DTYPES = ("float16", "bfloat16", "float32")
FROZEN = ("unet", "transformer", "vae", "text_encoder", "image_encoder", "backbone", "sentence_encoder")
IN = "the first argument"
OPTIONS = {
    "project": ("dtype", "carry", "stack"),
    "authors": ("pretrained", "image_encoder", "text_encoder", "ignore_frozen_identity"),
}
"""The options that only one direction uses."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``argv`` without the program's name; None: the process's own).

    Raises:
        UserError: the suffix of OUT is wrong, or an option has no effect.
    """
    parser = Parser(
        description="Convert a checkpoint of this project or of the authors to a file of weights (.safetensors), or to "
        "the authors' layout (.pth)."
    )
    parser.add_argument("input", metavar="IN", help="a file, a folder that holds one, or [hf://]org/repo")
    parser.add_argument("output", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument("--to", choices=("project", "authors"), default="project", help="layout of OUT")
    project = parser.add_argument_group("to this project's format")
    project.add_argument("--dtype", choices=DTYPES, help="precision of the weights; default: unchanged")
    project.add_argument(
        "--carry",
        nargs="+",
        choices=FROZEN,
        default=[],
        help="frozen parts of an authors' checkpoint to keep in OUT; the UNet of REM, and one with LoRA merged into it "
        "(HCD), always is",
    )
    project.add_argument(
        "--stack",
        type=Path,
        default=FULL_SIZE,
        help="folder with the configurations of the frozen parts of an authors' checkpoint; default: published sizes",
    )
    authors = parser.add_argument_group("to the authors' layout: the frozen parts, as in main.py")
    for name in ("pretrained", "image_encoder", "text_encoder"):
        authors.add_argument(f"--{name}", help="a folder or hub id; default: the one of the checkpoint")
    authors.add_argument("--ignore_frozen_identity", action="store_true", help="accept different frozen parts")
    args = parser.parse_args(argv)
    suffix = ".pth" if args.to == "authors" else ".safetensors"
    if args.output.suffix != suffix:
        raise UserError(f"{args.output} should end in {suffix}, the format that --to {args.to} writes")
    for to, names in OPTIONS.items():
        for name in names:
            if to != args.to and getattr(args, name) != parser.get_default(name):
                raise UserError(f"--{name} has no effect with --to {args.to}; leave it out")
    return args


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(parse_args)

import torch

from models import build_model, frozen_sources, resolved
from models.authors import authors_state, unet_state
from models.checkpoints import (
    PARTS,
    Checkpoint,
    check_state,
    held_parts,
    load_weights,
    open_checkpoint,
    portable,
    weights_identity,
    without_frozen,
)
from models.diffusion.generators import GENERATORS, find_generator
from models.diffusion.stack import load_stock_parts
from models.lora import merged_state
from util.checkpoint import save_weights, write_pickle
from util.config import MODELS, Config


def main(argv: Sequence[str] | None = None) -> None:
    """Convert as the command line says (``argv`` without the program's name; None: the process's own)."""
    args = parse_args(argv)
    checkpoint = open_checkpoint(args.input, IN, original=True)
    if args.output.exists() and args.output.samefile(checkpoint.path):
        raise UserError(f"OUT and IN are the same file, {args.output}; give a different OUT")
    convert = to_authors if args.to == "authors" else to_project
    print("\n".join(convert(checkpoint, args)))


def to_project(checkpoint: Checkpoint, args: argparse.Namespace) -> list[str]:
    """Write the trained weights as a safetensors file, with the parts of ``--carry`` and a UNet of its own (REM, HCD).

    Returns:
        Messages for the user.

    Raises:
        UserError: a weight of an authors' checkpoint is missing, unknown or has a different shape, or the file cannot
            be written.
    """
    path, weights, frozen = checkpoint.path, dict(checkpoint.weights), dict(checkpoint.frozen)
    dropped: set[str] = set()
    if args.carry and not set(args.carry) <= held_parts(weights):
        lost = min(set(args.carry) - held_parts(weights))
        raise UserError(f"{path} does not hold the {PARTS[lost][1]}; leave out --carry {lost}")
    if checkpoint.authors_layout:
        model = empty_model(checkpoint.config(), args.stack)
        try:
            check_state(model, weights, path, shown=checkpoint.name_in_file)
        except UserError as error:
            raise UserError(f"{error}; --stack {args.stack} should have the sizes of its frozen parts") from error
        own = without_frozen(checkpoint, args.carry)
        dropped = held_parts(weights) - held_parts(own.weights)
        weights, frozen = own.weights, own.frozen
    if args.dtype:
        kind = getattr(torch, args.dtype)
        weights = {name: value.to(kind) if value.is_floating_point() else value for name, value in weights.items()}
        for part, entry in weights_identity(weights).items():  # of what the file holds now
            if not (checkpoint.fine_tunes and part == "unet"):
                frozen[part] = {**frozen.get(part, {}), **entry}
    save_weights(args.output, portable(replace(checkpoint, weights=weights, frozen=frozen), args.output))
    held = held_parts(weights)
    count = sum(value.numel() for value in weights.values()) / 1e6
    return [
        f"{checkpoint.model}: {count:.2f} M parameters" + (f", with the {', '.join(sorted(held))}" if held else ""),
        *([f"not stored, but verified by hash when loading: {', '.join(sorted(dropped))}"] if dropped else []),
        f"wrote {args.output}",
    ]


def to_authors(checkpoint: Checkpoint, args: argparse.Namespace) -> list[str]:
    """Write the whole model in the authors' layout, with its adapters merged.

    Returns:
        Messages for the user.

    Raises:
        UserError: the weights do not fit, a frozen part is not the one used in training, the layout cannot store an
            option, or the file cannot be written.
    """
    given = {name: getattr(args, name) for name in ("pretrained", "image_encoder", "text_encoder")}
    cfg = checkpoint.config(ignore_frozen_identity=args.ignore_frozen_identity, **given)
    for name in MODELS[cfg.model].architecture:
        value = resolved(cfg.model, name, getattr(cfg, name))
        if value != resolved(cfg.model, name, getattr(Config, name)):
            raise UserError(
                f"{checkpoint.path} was made with {name} {value}, which the authors' layout cannot store; keep it in "
                "this project's format"
            )
    generator = find_generator(cfg.pretrained)
    if generator != GENERATORS[0]:
        raise UserError(
            f"{checkpoint.path} was made with {generator.name}, which the authors' layout cannot store; keep it in "
            "this project's format"
        )
    model = build_model(cfg)
    _, notes = load_weights(model, checkpoint, frozen_sources(cfg), ignore_identity=cfg.ignore_frozen_identity)
    extras = checkpoint.extras
    options = argparse.Namespace(**(extras.get("args") or checkpoint.options))
    if MODELS[cfg.model].fine_tuned:
        key, state = "unet", unet_state(merged_state(model))
    else:
        stock = load_stock_parts(cfg.pretrained, cfg.text_encoder)
        key, state = "model", authors_state(merged_state(model), cfg.model, stock, extras.get("unused", {}))
    write_pickle(args.output, {key: state, "epoch": extras.get("epoch", 0), "args": options})
    return [*(f"note: {note}" for note in notes), f"wrote {args.output}: {len(state)} weights of {cfg.model}"]


if __name__ == "__main__":
    run_cli(main)
