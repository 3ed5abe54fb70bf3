"""The wrapper of every part that is never trained: in which mode, precision and form it runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from models.diffusion.attention import BlockedAttention, fused_is_fast
from util.memory import give_back
from util.precision import HALVES, narrowed


class Frozen(nn.Module):
    """Holds a module that is never trained: no gradients for its weights, evaluation mode always.

    Attributes:
        carried: its weights came with a checkpoint and are not the pretrained ones, so that checkpoints of this
            model hold them too (``util.state``).
        awake: layers of adapters inside it (``models.lora``), which follow the parent's mode.
        held: the half precision that its weights are held in and that it computes in, or None.
        compiled: what is called in the module's place (``models.compiling``), or None.
    """

    carried: bool = False
    awake: tuple[nn.Module, ...] = ()
    held: torch.dtype | None = None
    compiled: Callable[..., Any] | None = None

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode whatever the parent is told, but for what is ``awake``."""
        super().train(False)
        for layer in self.awake:
            layer.train(mode)
        return self

    def hold(self, dtype: torch.dtype) -> None:
        """Hold the weights in a half precision from now on, but for those of adapters, which are trained.

        It then computes in that precision throughout. Autocast would widen every normalisation, and with it what is
        kept for the backward pass.
        """
        assert dtype in HALVES, dtype
        self.held = dtype
        for value in (*self.module.parameters(), *self.module.buffers()):
            if value.is_floating_point() and not value.requires_grad:
                value.data = value.data.to(dtype)

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
