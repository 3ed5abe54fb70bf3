"""The wrapper of every part that is never trained: its mode, its precision, and whether it is compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from models.diffusion.attention import BlockedAttention, fused_is_fast
from models.precision import HALVES, narrowed
from util.device import give_back, is_out_of_memory, passing
from util.distributed import is_main


class Frozen(nn.Module):
    """Holds a module that is never trained: no gradients for its weights, evaluation mode always.

    Attributes:
        from_checkpoint: its weights came with a checkpoint and differ from the pretrained ones, so that checkpoints
            of this model hold them too (``models.checkpoints``).
        adapter_dropouts: dropout layers of adapters inside it (``models.lora``), which follow the mode of the parent.
        held: the half precision in which its weights are held and its outputs computed, or None.
        compiled: the compiled form of the module, or None.
    """

    from_checkpoint: bool = False
    adapter_dropouts: tuple[nn.Module, ...] = ()
    held: torch.dtype | None = None
    compiled: Callable[..., Any] | None = None

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode, whatever the mode of the parent; only ``adapter_dropouts`` follow it."""
        super().train(False)
        for layer in self.adapter_dropouts:
            layer.train(mode)
        return self

    def hold(self, dtype: torch.dtype) -> None:
        """Hold the weights in half precision from now on, except those of adapters, which are trained.

        The module then computes in that precision throughout: autocast would widen every normalisation, and with it
        the activations kept for the backward pass. Weights that the library wants in float32 stay so.
        """
        assert dtype in HALVES, dtype
        self.held = dtype
        wide = set(getattr(self.module, "_keep_in_fp32_modules", None) or ())
        named = (*self.module.named_parameters(), *self.module.named_buffers())
        for value in passing(value for name, value in named if wide.isdisjoint(name.split("."))):
            if value.is_floating_point() and not value.requires_grad:
                value.data = value.data.to(dtype)

    def compile_with_fallback(self, name: str) -> None:
        """Compile the module at its first call; if that fails, run it as it is and say so in one line.

        Args:
            name: what the message calls the module.
        """
        self.compiled = _with_fallback(torch.compile(self.module), self.module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the held module."""
        run = self.compiled or self.module
        if self.held is None:
            return run(*args, **kwargs)
        device = next(self.module.parameters()).device.type
        blocked = device == "cpu" and self.compiled is None and not fused_is_fast()
        with torch.autocast(device, enabled=False), BlockedAttention() if blocked else nullcontext():
            result = run(*narrowed(args, self.held), **narrowed(kwargs, self.held))
        if device == "cpu" and not torch.is_grad_enabled():
            give_back()
        return result


class FineTuned(Frozen):
    """A part whose own weights are trained, in evaluation mode: its dropout stays off.

    Attributes:
        changed: names of its weights that are not trained, but came with a checkpoint and differ from the pretrained
            ones (``models.checkpoints``).
        identity: hash of the pretrained weights, computed before they change.

    Args:
        module: with the pretrained weights.
        trained: whether a parameter of this name is trained.
    """

    def __init__(self, module: nn.Module, trained: Callable[[str], bool]) -> None:
        super().__init__(module)
        self.changed: set[str] = set()
        self.identity = ""
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(trained(name))

    def hold(self, dtype: torch.dtype) -> None:
        """As for ``Frozen``, but only for inference: trained weights stay float32, and compute under autocast."""
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            super().hold(dtype)


def _with_fallback(compiled: Callable[..., Any], module: nn.Module, name: str) -> Callable[..., Any]:
    """``compiled`` until a call fails, then ``module``; an error of the module itself is raised again by it.

    A shortage of memory is not the compiler's failure, and is raised.
    """
    chosen = compiled

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal chosen
        try:
            return chosen(*args, **kwargs)
        except Exception as error:  # compilers raise many kinds
            if chosen is module or is_out_of_memory(error):
                raise
            problem = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:160]}"
        chosen = module
        result = module(*args, **kwargs)
        if is_main():
            print(f"note: {name} could not be compiled ({problem}); it runs uncompiled", file=sys.stderr, flush=True)
        return result

    return run
