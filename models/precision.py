"""Precision: float32, TF32, or half precision with islands that stay float32.

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

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVES = (torch.bfloat16, torch.float16)
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""CPU capabilities of x86 processors. Others have not been measured, so ``auto`` stays float32 there."""


def resolve_precision(name: str, device: torch.device, training: bool = True) -> str:
    """The precision that ``--precision`` names, with the device's own in place of "auto".

    On CUDA that is bf16 where the hardware computes in it (PyTorch emulates it elsewhere, slowly), else fp16; at
    inference on the CPU bf16 where the hardware computes in it; otherwise fp32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" and not training else {}
    return "bf16" if any(capabilities.get(instruction, False) for instruction in BF16_INSTRUCTIONS) else "fp32"


def apply_precision(name: str) -> torch.dtype:
    """Turn TF32 on CUDA on for ``tf32`` and off for all others, in this process; return the type of the precision.

    PyTorch's default lets cuDNN round float32 convolutions to TF32's 10 bits, also those of ``in_float32``.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    return PRECISIONS[name]


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
