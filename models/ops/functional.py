"""The sampling operator of Deformable DETR (Zhu et al., ICLR 2021, section 4.1) as a PyTorch operator.

``torch.ops.t2v_rvos.ms_deform_attn`` has a backward operator and shapes for tracing, and saves only its inputs for the
backward pass. It runs on one of four backends, chosen at the first use on each device and reported in one line:
``cuda`` and ``cpp`` are compiled kernels (``build.py``), ``triton`` (``triton_kernels.py``) replaces ``cuda`` where it
cannot be compiled, and ``torch`` (``plain.py``), plain PyTorch, replaces the other three. ``MSDA_BACKEND`` forces one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from models.ops import build, plain
from util.distributed import is_main
from util.errors import UserError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BACKENDS = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}
"""Type of device → its backends, the preferred one first. Other devices have plain PyTorch only."""

Gradients = tuple[Tensor, Tensor, Tensor]


def multi_scale_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sum over levels and points of weighted, bilinearly sampled values.

    A location (x, y) in 0…1 spans a level from edge to edge; values outside a level count as zero. Locations, weights
    and sums are float32, or float64 with float64 values.

    On the CPU, result and gradients are reproducible with any number of threads. On CUDA the result is; the gradient
    of the values adds up in no fixed order unless ``torch.use_deterministic_algorithms(True)`` selects a slower kernel.

    Args:
        value: ``[N, S, M, D]``: S = Σ h·w positions of all levels, M heads of width D; float64, float32, float16 or
            bfloat16.
        shapes: (h, w) of each of the L levels, as Python integers, so that the host never waits for the device.
        locations: ``[N, Q, M, L, P, 2]``, x then y.
        weights: ``[N, Q, M, L, P]``.

    Returns:
        ``[N, Q, M·D]``, of the value's type.

    Raises:
        ValueError: shapes, types or devices do not match.
        UserError: the backend that ``MSDA_BACKEND`` names is not available.
    """
    _check(value, shapes, locations, weights)
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    flat = [side for shape in shapes for side in shape]
    return torch.ops.t2v_rvos.ms_deform_attn(value, flat, locations.to(wide), weights.to(wide))


def _check(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    if value.ndim != 4 or locations.ndim != 6 or locations.shape[-1] != 2:
        raise ValueError(
            f"value {tuple(value.shape)} and locations {tuple(locations.shape)} should be [N, S, M, D] and "
            "[N, Q, M, L, P, 2]"
        )
    batch, positions, heads, _ = value.shape
    levels = locations.shape[3]
    if levels != len(shapes) or positions != sum(h * w for h, w in shapes):
        raise ValueError(f"{positions} values of {levels} levels do not fit the level shapes {list(shapes)}")
    if weights.shape != locations.shape[:-1] or locations.shape[0] != batch or locations.shape[2] != heads:
        raise ValueError(
            f"locations {tuple(locations.shape)} and weights {tuple(weights.shape)} do not match the value "
            f"{tuple(value.shape)}"
        )
    types = (value.dtype, locations.dtype, weights.dtype)
    if types.count(torch.float64) not in (0, 3) or any(dtype not in FLOATS for dtype in types):
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in types)
        raise ValueError(f"value, locations and weights have types {names}; use float32 or half, or all float64")
    devices = (value.device, locations.device, weights.device)
    if len(set(devices)) > 1:
        raise ValueError("value, locations and weights are on {}, {} and {}; put them on one device".format(*devices))


def forced_backend() -> str:
    """The backend that ``MSDA_BACKEND`` names, or an empty string.

    Raises:
        UserError: there is no backend of this name.
    """
    name = os.environ.get("MSDA_BACKEND", "")
    if name not in ("", "cuda", "triton", "cpp", "torch"):
        raise UserError(f"MSDA_BACKEND={name} is unknown; choose cuda, triton, cpp or torch, or unset it")
    return name


def backend_for(value: Tensor) -> str:
    """The backend that runs for a value: ``cuda``, ``triton``, ``cpp`` or ``torch``. It is compiled here if necessary.

    Raises:
        UserError: the forced backend cannot be compiled or does not take this value.
    """
    return _choose(value.device.type, forced_backend(), packs=value.shape[-1] % 8 == 0)


@cache
def _choose(device: str, forced: str, packs: bool) -> str:
    """Choose the backend for a type of device, load its kernels, and report it once.

    ``packs``: the width of a head is a multiple of 8, as the CUDA kernels need it.
    """
    names = BACKENDS.get(device, ("torch",))
    if forced not in ("", "torch", *names):
        other = next(kind for kind, backends in BACKENDS.items() if forced in backends)
        raise UserError(f"MSDA_BACKEND={forced} runs on {other}, but the tensors are on {device}; unset it")
    reasons: list[str] = []
    for name in (forced,) if forced else names:
        try:
            if name == "cuda" and not packs:
                raise build.BuildError("the CUDA kernels need heads whose width is a multiple of 8")
            loaded = _load(name, device)
            break
        except build.BuildError as error:
            if forced:
                raise UserError(f"MSDA_BACKEND={name} is not available: {error}") from error
            reasons.append(str(error))
    report = name + loaded
    if reasons:
        report += (f", many times slower than {names[0]}: " if name == "torch" else ": ") + "; ".join(reasons)
    if is_main():
        print(f"multi-scale deformable attention on {device}: {report}", file=sys.stderr, flush=True)
    return name


def _load(name: str, device: str) -> str:
    """Load a backend's kernels; the result completes its name in the report.

    Raises:
        BuildError: they cannot be compiled.
    """
    if name == "triton":
        _try_triton(device)
    return f" ({build.load('cpu' if name == 'cpp' else 'cuda')})" if name in ("cpp", "cuda") else ""


def _try_triton(device: str) -> None:
    """Sample one value: beside Triton, its kernels need a supported GPU, a C compiler and Python's headers."""
    value, place = torch.zeros(1, 1, 1, 8, device=device), torch.zeros(1, 1, 1, 1, 1, 2, device=device)
    try:
        from models.ops import triton_kernels

        triton_kernels.forward(value, [1, 1], place, place[..., 0])
    except ImportError as error:
        raise build.BuildError("Triton is not installed") from error
    except Exception as error:  # of many types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise build.BuildError(f"Triton cannot compile a kernel here ({reason})") from error


@torch.library.custom_op(
    "t2v_rvos::ms_deform_attn",
    mutates_args=(),
    schema="(Tensor value, SymInt[] shapes, Tensor locations, Tensor weights) -> Tensor",
)
def _forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    if value.numel() == 0 or weights.numel() == 0:
        return _forward_shape(value, shapes, locations, weights).zero_()
    backend = backend_for(value)
    if backend == "cuda":
        return torch.ops.t2v_rvos_cuda.forward(value, shapes, locations, weights)
    if backend == "triton":
        from models.ops import triton_kernels

        return triton_kernels.forward(value, shapes, locations, weights)
    wide = value.to(weights.dtype)
    if backend == "cpp":
        return torch.ops.t2v_rvos_cpp.forward(wide, shapes, locations, weights).to(value.dtype)
    with torch.autocast(value.device.type, enabled=False):
        return plain.forward(wide, _pairs(shapes), locations, weights).to(value.dtype).contiguous()


@torch.library.custom_op(
    "t2v_rvos::ms_deform_attn_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor value, SymInt[] shapes, Tensor locations, Tensor weights) -> (Tensor, Tensor, Tensor)",
)
def _backward(grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Gradients:
    if value.numel() == 0 or weights.numel() == 0:
        of_value, of_locations, of_weights = _backward_shapes(grad, value, shapes, locations, weights)
        return of_value.zero_(), of_locations.zero_(), of_weights.zero_()
    backend = backend_for(value)
    ordered = torch.are_deterministic_algorithms_enabled()
    if backend == "cuda":
        return torch.ops.t2v_rvos_cuda.backward(grad, value, shapes, locations, weights, ordered)
    if backend == "triton":
        from models.ops import triton_kernels

        return triton_kernels.backward(grad, value, shapes, locations, weights, ordered)
    grad, wide = grad.to(weights.dtype), value.to(weights.dtype)
    if backend == "cpp":
        of_value, *others = torch.ops.t2v_rvos_cpp.backward(grad, wide, shapes, locations, weights)
    else:
        with torch.autocast(value.device.type, enabled=False):
            of_value, *others = plain.backward(grad, wide, _pairs(shapes), locations, weights)
    return of_value.to(value.dtype).contiguous(), others[0].contiguous(), others[1].contiguous()


def _pairs(shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(shapes[::2], shapes[1::2], strict=True))


@_forward.register_fake
def _forward_shape(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@_backward.register_fake
def _backward_shapes(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Gradients:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Sequence[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = torch.ops.t2v_rvos.ms_deform_attn_backward(
        grad, value, ctx.shapes, locations, weights
    )
    return of_value, None, of_locations, of_weights


_forward.register_autograd(_differentiate, setup_context=_save)
