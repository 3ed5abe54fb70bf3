"""Which implementation of the operator runs: ``cuda``, ``cpp`` or ``torch``; chosen at its first use, told in one line.

``MSDA_BACKEND`` forces one. Otherwise tensors on a CUDA device take ``cuda`` and tensors on the CPU ``cpp``; ``torch``
takes their place where they cannot be built, and everywhere else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from models.ops import libraries, plain
from models.ops.compiling import BuildError, Kind
from util.distributed import is_main
from util.errors import UserError

DEVICES: dict[str, Kind] = {"cpp": "cpu", "cuda": "cuda"}
"""Compiled backend → the kind of device whose tensors it takes."""

Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Backend:
    """An implementation. Level shapes are flat (h, w, h, w, …); locations and weights are float32, or float64."""

    name: str
    forward: Callable[[Tensor, Sequence[int], Tensor, Tensor], Tensor]
    """(value, shapes, locations, weights) → ``[N, Q, M·D]``, contiguous."""
    backward: Callable[[Tensor, Tensor, Sequence[int], Tensor, Tensor], Gradients]
    """(grad, value, shapes, locations, weights) → the gradients of value, locations and weights, contiguous."""


def forced_backend() -> str:
    """The backend that ``MSDA_BACKEND`` names, or the empty string where it names none.

    Raises:
        UserError: there is no such backend.
    """
    name = os.environ.get("MSDA_BACKEND", "")
    if name not in ("", "torch", *DEVICES):
        raise UserError(f"MSDA_BACKEND={name} is unknown; choose cuda, cpp or torch, or unset it")
    return name


def backend_for(value: Tensor) -> Backend:
    """The implementation that a value's device gets.

    Raises:
        UserError: the forced one does not exist, cannot be built, or does not take this value.
    """
    forced = forced_backend()
    backend = _choose(value.device.type, forced)
    if backend.name == "cuda" and value.shape[-1] % 8:
        if forced:
            raise UserError(f"MSDA_BACKEND=cuda takes heads whose width is a multiple of 8, not {value.shape[-1]}")
        return PLAIN
    return backend


@cache
def _choose(device: str, forced: str) -> Backend:
    name = forced or next((name for name, kind in DEVICES.items() if kind == device), "torch")
    if name == "torch":
        _tell(device, "torch")
        return PLAIN
    if DEVICES[name] != device:
        raise UserError(f"MSDA_BACKEND={name} takes tensors on {DEVICES[name]}, and these are on {device}; unset it")
    try:
        library = libraries.load(DEVICES[name])
    except BuildError as error:
        if forced:
            raise UserError(f"MSDA_BACKEND={name} is not to be had: {error}") from error
        _tell(device, f"torch, many times slower than {name}: {error}")
        return PLAIN
    _tell(device, f"{name} ({library})")
    return CPP if name == "cpp" else CUDA


def _tell(device: str, choice: str) -> None:
    if is_main():
        print(f"multi-scale deformable attention on {device}: {choice}", file=sys.stderr, flush=True)


def _plain_forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    with torch.autocast(value.device.type, enabled=False):
        out = plain.forward(value.to(weights.dtype), _pairs(shapes), locations, weights)
        return out.to(value.dtype).contiguous()


def _plain_backward(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Gradients:
    with torch.autocast(value.device.type, enabled=False):
        wide = weights.dtype
        of_value, of_locations, of_weights = plain.backward(
            grad.to(wide), value.to(wide), _pairs(shapes), locations, weights
        )
        return of_value.to(value.dtype).contiguous(), of_locations.contiguous(), of_weights.contiguous()


def _cpp_forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.t2v_rvos_cpp.forward(value.to(weights.dtype), shapes, locations, weights).to(value.dtype)


def _cpp_backward(grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Gradients:
    wide = weights.dtype
    of_value, of_locations, of_weights = torch.ops.t2v_rvos_cpp.backward(
        grad.to(wide), value.to(wide), shapes, locations, weights
    )
    return of_value.to(value.dtype), of_locations, of_weights


def _cuda_forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.t2v_rvos_cuda.forward(value, shapes, locations, weights)


def _cuda_backward(grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Gradients:
    ordered = torch.are_deterministic_algorithms_enabled()
    return torch.ops.t2v_rvos_cuda.backward(grad, value, shapes, locations, weights, ordered)


def _pairs(shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(shapes[::2], shapes[1::2], strict=True))


PLAIN = Backend("torch", _plain_forward, _plain_backward)
CPP = Backend("cpp", _cpp_forward, _cpp_backward)
CUDA = Backend("cuda", _cuda_forward, _cuda_backward)
