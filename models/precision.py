"""Precision: float32, or half precision with islands that stay float32.

Autocast computes matrix products and convolutions in half precision. Code that needs float32 says so locally with
``in_float32``: positions in the frame, probabilities, noise, masks. Without autocast nothing here changes a number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVES = (torch.bfloat16, torch.float16)
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""CPU capabilities of x86 processors. Others have not been measured, so ``auto`` stays float32 there."""


def resolve_precision(name: str, device: torch.device, training: bool = True) -> torch.dtype:
    """The type that ``--precision`` names.

    Args:
        name: ``fp32``, ``bf16``, ``fp16`` or ``auto``.
        device: the device that computes.
        training: ``auto`` is bf16 for training on CUDA; for inference it is bf16 where the hardware computes in it.
            Otherwise it is float32.
    """
    if name == "auto":
        name = "bf16" if (device.type == "cuda" if training else computes_bf16(device)) else "fp32"
    return PRECISIONS[name]


def precision_name(dtype: torch.dtype) -> str:
    """The name of a type in ``--precision``."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def inference_precision(name: str, device: torch.device) -> str:
    """``name`` with the precision of inference on this device in place of "auto"."""
    return precision_name(resolve_precision(name, device, training=False))


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BF16_INSTRUCTIONS)


def widened(value: Any) -> Any:
    """Half-precision tensors as float32, alone or in a list, tuple or dict; everything else as it is."""
    return _cast(value, torch.float32) if _holds_halves(value) else value


def narrowed(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in ``dtype``, alone or in a list, tuple or dict; everything else as it is."""
    return _cast(value, dtype)


def call_in_float32(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """``function(*args, **kwargs)`` without autocast, half-precision arguments as float32."""
    device = next(_tensors((args, kwargs))).device.type
    if not torch.is_autocast_enabled(device):
        return function(*widened(args), **widened(kwargs))
    with torch.autocast(device, enabled=False):
        return function(*widened(args), **widened(kwargs))


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """A function or method that computes in float32 under autocast, too; one of its arguments is a tensor."""

    @functools.wraps(function)
    def island(*args: P.args, **kwargs: P.kwargs) -> R:
        return call_in_float32(function, *args, **kwargs)

    return island


def in_own_precision(method: Callable[P, R]) -> Callable[P, R]:
    """A method that computes under autocast to its module's ``precision``; without any, where that is float32."""

    @functools.wraps(method)
    def cast(*args: P.args, **kwargs: P.kwargs) -> R:
        module: Any = args[0]
        device, half = next(module.parameters()).device, module.precision in HALVES
        with torch.autocast(device.type, module.precision if half else None, enabled=half):
            return method(*args, **kwargs)

    return cast


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _holds_halves(value: Any) -> bool:
    return any(tensor.dtype in HALVES for tensor in _tensors(value))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and (dtype in HALVES or value.dtype in HALVES) else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return type(value)(_cast(item, dtype) for item in value) if isinstance(value, (list, tuple)) else value
