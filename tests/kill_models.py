"""What ``tests.kill_jobs`` kills: checkpoints, what they are converted to and passed on as, frozen stacks."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from models.diffusion import tiny
from scripts import convert_checkpoint, push_to_hub, train_toy
from scripts.train_toy import Corpus
from util.checkpoint import save_weights, write_pickle

TINY = {"channels": (32, 32, 32, 32), "layers_per_block": 1, "image_size": 32, "image_patch": 16, "max_tokens": 400}
TRAINED = "sentences"
"""The part that is trained here; the others would take longer, and write the same kinds of files."""


def checkpoints(source: Path, out: Path) -> None:
    """A checkpoint of either kind."""
    weights = {"a": torch.arange(4000.0)}
    write_pickle(out / "checkpoint.pth", {"model": "vdit", "weights": weights})
    save_weights(out / "weights.safetensors", {"model": "vdit", "weights": weights})


def convert(source: Path, out: Path) -> None:
    """The file that is passed on, and the authors' layout."""
    given = str(source / "checkpoint.pth")
    convert_checkpoint.main([given, str(out / "weights.safetensors"), "--dtype", "float16"])
    state = {"a": torch.arange(8000.0)}
    stubs = {
        **{"build_model": lambda cfg: None, "load_weights": lambda *of: SimpleNamespace(notes=[])},
        **{"load_stock_parts": lambda *of: {}, "merged_state": lambda model: {}, "authors_state": lambda *of: state},
    }
    with patch.multiple(convert_checkpoint, **stubs):
        convert_checkpoint.main([given, str(out / "authors.pth"), "--to", "authors"])


def hub(source: Path, out: Path) -> None:
    """What would be pushed to the hub."""
    push_to_hub.main([str(source / "checkpoint.pth"), "me/model", "--folder", str(out / "hub")])


def stack(source: Path, out: Path) -> None:
    """A tiny frozen stack."""
    tiny.make_tiny_stack(out / "stack", ["a red circle"], **TINY)


def pretraining(source: Path, out: Path) -> None:
    """The toy stack from the beginning, with a step of a part; a VAE is written as its UNet, too, which takes less."""
    with (
        patch.object(tiny, "_unet", tiny._vae),
        patch.object(train_toy, "make_corpus", lambda *of, **sizes: Corpus(torch.zeros(0), [["a red disc"]])),
        patch.object(train_toy, "PARTS", {TRAINED: train_toy.PARTS[TRAINED]}),
        patch.object(train_toy, "SIZES", {**train_toy.SIZES, **TINY}),
    ):
        train_toy.pretrain(out / "stack", out / "work", videos=2, share=1e-6)


def pretrained_stack(source: Path, out: Path) -> None:
    """The copy of a toy stack whose parts are all trained; a killed process of the same number has begun one, too."""
    (out / f".stack.{os.getpid()}").mkdir(parents=True, exist_ok=True)
    with patch.object(train_toy, "make_corpus", lambda *of, **sizes: Corpus(torch.zeros(0), [])):
        train_toy.pretrain(out / "stack", source / "pretrained", videos=1, share=1)
