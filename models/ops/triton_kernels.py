"""Multi-scale deformable attention in Triton, which is part of PyTorch's CUDA wheels on Linux: no nvcc is needed.

A program works on one head of BLOCK queries. Each of its threads has 16 bytes of channels: of values in the forward
pass, of sums in the backward pass. Shapes are those of ``functional.multi_scale_deformable_attention``.
With ``TRITON_INTERPRET=1``, set before this module is imported, the kernels run on the CPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4
REGISTERS = 80
"""Limit of the backward kernel: without one, ptxas aims at 64 and spills a few."""


@triton.jit
def _place(locations, weights, sample, live, height, width):
    """Column and row of a sample's upper left corner, the offset from it in 0…1, its weight, whether it is near."""
    x = tl.load(locations + 2 * sample, mask=live, other=-1.0) * width - 0.5
    y = tl.load(locations + 2 * sample + 1, mask=live, other=-1.0) * height - 0.5
    near = live & (x > -1) & (y > -1) & (x < width) & (y < height)  # False for NaN
    x, y = tl.where(near, x, 0.0), tl.where(near, y, 0.0)  # so that the conversions below are defined
    left, top = tl.floor(x), tl.floor(y)
    weight = tl.load(weights + sample, mask=near, other=0.0)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top, weight, near


@triton.jit
def _corner(i: tl.constexpr, column, row, right, down, near, height, width):
    """Position in its level, share of the sample, and whether it is inside, of corner i: 00, 01, 10, 11 in (y, x)."""
    x, y = column + i % 2, row + i // 2
    inside = near & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    share = (down if i // 2 else 1 - down) * (right if i % 2 else 1 - right)
    return y * tl.cast(width, tl.int32) + x, share, inside


@triton.jit(do_not_specialize=["queries", "positions"])
def forward_kernel(
    value, locations, weights, out, queries, positions, sides, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write the weighted sums of BLOCK queries of one head."""
    blocks = (queries + BLOCK - 1) // BLOCK
    head = tl.program_id(0) // blocks % HEADS
    n = (tl.program_id(0) // blocks // HEADS).to(tl.int64)
    query = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, PADDED)[None, :]
    live = query < queries
    item = (n * queries + query) * HEADS + head
    maps = value + (n * positions * HEADS + head) * WIDTH + channel
    total = tl.full((BLOCK, PADDED), 0.0, weights.dtype.element_ty)
    first = 0
    for level in tl.static_range(LEVELS):
        height, width = sides[2 * level], sides[2 * level + 1]
        for point in range(POINTS):
            sample = (item * LEVELS + level) * POINTS + point
            column, row, right, down, weight, near = _place(locations, weights, sample, live, height, width)
            for i in tl.static_range(4):
                position, share, inside = _corner(i, column, row, right, down, near, height, width)
                at = (first + position).to(tl.int64)[:, None] * (HEADS * WIDTH)
                read = tl.load(maps + at, mask=inside[:, None] & (channel < WIDTH), other=0.0)
                total += (weight * share)[:, None] * read.to(total.dtype)
        first += tl.cast(height, tl.int32) * tl.cast(width, tl.int32)
    written = live[:, None] & (channel < WIDTH)
    tl.store(out + item[:, None] * WIDTH + channel, total.to(out.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["queries", "positions", "programs"])
def backward_kernel(
    grad, value, locations, weights, grad_value, grad_locations, grad_weights, queries, positions, programs, sides,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """Gradients of one head, whose queries ``programs`` programs share; those of the values by atomic additions."""
    head = tl.program_id(0) // programs % HEADS
    n = (tl.program_id(0) // programs // HEADS).to(tl.int64)
    channel = tl.arange(0, PADDED)[None, :]
    maps = (n * positions * HEADS + head) * WIDTH + channel
    start = tl.program_id(0) % programs * BLOCK
    while start < queries:  # once, unless one program has all queries
        query = start + tl.arange(0, BLOCK)
        live = query < queries
        item = (n * queries + query) * HEADS + head
        up = tl.load(grad + item[:, None] * WIDTH + channel, mask=live[:, None] & (channel < WIDTH), other=0.0)
        up = up.to(weights.dtype.element_ty)
        first = 0
        for level in tl.static_range(LEVELS):
            height, width = sides[2 * level], sides[2 * level + 1]
            for point in range(POINTS):
                sample = (item * LEVELS + level) * POINTS + point
                column, row, right, down, weight, near = _place(locations, weights, sample, live, height, width)
                of_weight, of_x, of_y = right * 0, right * 0, right * 0
                for i in tl.static_range(4):
                    position, share, inside = _corner(i, column, row, right, down, near, height, width)
                    at = maps + (first + position).to(tl.int64)[:, None] * (HEADS * WIDTH)
                    mask = inside[:, None] & (channel < WIDTH)
                    read = tl.load(value + at, mask=mask, other=0.0).to(up.dtype)
                    along = tl.sum(up * read, 1)  # the gradient along the corner's value
                    of_weight += share * along
                    of_x += (2 * (i % 2) - 1) * (down if i // 2 else 1 - down) * along
                    of_y += (2 * (i // 2) - 1) * (right if i % 2 else 1 - right) * along
                    tl.atomic_add(grad_value + at, (weight * share)[:, None] * up, mask=mask, sem="relaxed")
                # An infinite gradient of the result times nothing read is not zero.
                tl.store(grad_weights + sample, tl.where(near, of_weight, 0.0), mask=live)
                tl.store(grad_locations + 2 * sample, tl.where(near, weight * width * of_x, 0.0), mask=live)
                tl.store(grad_locations + 2 * sample + 1, tl.where(near, weight * height * of_y, 0.0), mask=live)
            first += tl.cast(height, tl.int32) * tl.cast(width, tl.int32)
        start += programs * BLOCK


def constants(value: Tensor, locations: Tensor, packed: Tensor) -> dict[str, int]:
    """What a kernel is compiled for: sizes, and a block whose threads have 16 bytes each of the type of ``packed``."""
    heads, width = value.shape[2:]
    levels, points = locations.shape[3:5]
    padded = triton.next_power_of_2(width)
    block = max(1, 32 * WARPS * 16 // (padded * packed.element_size()))
    return {"LEVELS": levels, "POINTS": points, "HEADS": heads, "WIDTH": width, "BLOCK": block, "PADDED": padded}


def forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of samples, ``[N, Q, M·D]``; ``shapes`` is h, w of each level, one after the other."""
    batch, positions, heads, width = value.shape
    queries = locations.shape[1]
    sizes = constants(value, locations, value)
    out = value.new_empty(batch, queries, heads * width)
    programs = triton.cdiv(queries, sizes["BLOCK"])
    arguments = (value.contiguous(), locations.contiguous(), weights.contiguous(), out, queries, positions)
    with torch.cuda.device_of(value):
        forward_kernel[(programs * heads * batch,)](*arguments, _sides(shapes), **sizes, num_warps=WARPS)
    return out


def backward(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, ordered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights; ``ordered`` is slower and gives the same result in every run."""
    batch, positions, heads, _ = value.shape
    queries = locations.shape[1]
    sizes = constants(value, locations, weights)
    # In order, one program goes through all queries of a head, one by one: each sum is made by a single thread.
    sizes["BLOCK"] = 1 if ordered else sizes["BLOCK"]
    programs = 1 if ordered else triton.cdiv(queries, sizes["BLOCK"])
    grad, value, locations, weights = (tensor.contiguous() for tensor in (grad, value, locations, weights))
    found = value.new_zeros(value.shape, dtype=weights.dtype), torch.empty_like(locations), torch.empty_like(weights)
    arguments: tuple[Any, ...] = (grad, value, locations, weights, *found, queries, positions, programs)
    with torch.cuda.device_of(value):
        backward_kernel[(programs * heads * batch,)](
            *arguments, _sides(shapes), **sizes, num_warps=WARPS, maxnreg=REGISTERS
        )
    return found[0].to(value.dtype), found[1], found[2]


def _sides(shapes: Sequence[int]) -> tuple[float, ...]:
    """The level shapes as Triton takes them: a kernel is compiled anew for integers divisible by 16, not for floats."""
    return tuple(float(side) for side in shapes)
