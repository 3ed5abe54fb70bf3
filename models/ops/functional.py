"""The sampling operator of Deformable DETR (Zhu et al., ICLR 2021, section 4.1), as one operator of PyTorch.

``torch.ops.t2v_rvos.ms_deform_attn`` has a backward operator, shapes for tracing, and the implementations of
``backends.py``. It keeps its inputs for the backward pass and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.ops.backends import Gradients, backend_for

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def multi_scale_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sum over levels and points of weighted, bilinearly sampled values.

    A location (x, y) of 0…1 spans a level from edge to edge; what lies outside counts as zero. Sums are float32 for
    values of half precision, and locations and weights are read as float32 too (float64 with float64 values).

    On the CPU, results and gradients are the same in every run, with any number of threads. On CUDA the result is;
    the values' gradient adds up in no fixed order, unless ``torch.use_deterministic_algorithms(True)`` asks for a
    slower kernel.

    Args:
        value: ``[N, S, M, D]``: S = Σ h·w positions of all levels, M heads of width D; float64, float32, float16 or
            bfloat16.
        shapes: (h, w) of each of the L levels, as Python integers, so that nothing waits for a device.
        locations: ``[N, Q, M, L, P, 2]``, x then y.
        weights: ``[N, Q, M, L, P]``.

    Returns:
        ``[N, Q, M·D]``, of the value's type.

    Raises:
        ValueError: shapes, types or devices do not fit together.
        UserError: ``MSDA_BACKEND`` names a backend that is not to be had.
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
    if locations.shape[3] != len(shapes) or positions != sum(h * w for h, w in shapes):
        raise ValueError(
            f"{positions} values of {locations.shape[3]} levels do not fit the level shapes {list(shapes)}"
        )
    if weights.shape != locations.shape[:-1] or locations.shape[0] != batch or locations.shape[2] != heads:
        raise ValueError(
            f"locations {tuple(locations.shape)} and weights {tuple(weights.shape)} do not match the value "
            f"{tuple(value.shape)}"
        )
    types = (value.dtype, locations.dtype, weights.dtype)
    doubles = sum(dtype == torch.float64 for dtype in types)
    if doubles not in (0, 3) or any(dtype not in FLOATS for dtype in types):
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in types)
        raise ValueError(
            f"value, locations and weights are of types {names}; they should be float32 or half, or all float64"
        )
    if not value.device == locations.device == weights.device:
        raise ValueError(
            f"value, locations and weights are on {value.device}, {locations.device} and {weights.device}; "
            "they should be on one device"
        )


@torch.library.custom_op(
    "t2v_rvos::ms_deform_attn",
    mutates_args=(),
    schema="(Tensor value, SymInt[] shapes, Tensor locations, Tensor weights) -> Tensor",
)
def _forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    if value.numel() == 0 or weights.numel() == 0:
        return _forward_shape(value, shapes, locations, weights).zero_()
    return backend_for(value).forward(value, shapes, locations, weights)


@torch.library.custom_op(
    "t2v_rvos::ms_deform_attn_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor value, SymInt[] shapes, Tensor locations, Tensor weights) -> (Tensor, Tensor, Tensor)",
)
def _backward(grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Gradients:
    if value.numel() == 0 or weights.numel() == 0:
        of_value, of_locations, of_weights = _backward_shapes(grad, value, shapes, locations, weights)
        return of_value.zero_(), of_locations.zero_(), of_weights.zero_()
    return backend_for(value).backward(grad, value, shapes, locations, weights)


@_forward.register_fake
def _forward_shape(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@_backward.register_fake
def _backward_shapes(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Gradients:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Sequence[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = torch.ops.t2v_rvos.ms_deform_attn_backward(
        grad, value, ctx.shapes, locations, weights
    )
    return of_value, None, of_locations, of_weights


_forward.register_autograd(_differentiate, setup_context=_keep)
