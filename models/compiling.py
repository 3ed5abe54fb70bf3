"""``--compile``: the large frozen networks by ``torch.compile``, and as they are where that fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from models.diffusion.encoder import VideoEncoder
from models.segmenter import Segmenter
from util.distributed import is_main


def compile_frozen(model: Segmenter) -> None:
    """Have UNet and VAE compiled at their first call, each for sizes that change from clip to clip.

    They are most of a step's operations. The trained parts stay as they are: many small steps, and a custom operator.
    """
    assert isinstance(model.encoder, VideoEncoder), "other backbones refuse the option"
    for part, name in ((model.encoder.unet, "UNet"), (model.encoder.vae, "VAE")):
        part.compiled = with_fallback(torch.compile(part.module), part.module, name)


def with_fallback(compiled: Callable[..., Any], module: nn.Module, name: str) -> Callable[..., Any]:
    """``compiled``, until a call of it fails: from then on the module itself, which is told in one sentence.

    A failure that is not the compiler's comes again from the module.
    """
    chosen = compiled

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal chosen
        try:
            return chosen(*args, **kwargs)
        except Exception as error:  # compilers raise many kinds
            if chosen is module:
                raise
            problem = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:160]}"
        chosen = module
        result = module(*args, **kwargs)
        if is_main():
            print(f"note: the {name} cannot be compiled ({problem}) and runs as it is", file=sys.stderr, flush=True)
        return result

    return run
