"""Blocked attention in bfloat16 for CPUs without AMX, two to four times faster than PyTorch's own there.

PyTorch's fused kernel uses bfloat16 instructions only on processors with AMX; on others it falls back to slow products
(docs/performance.md has the numbers). Two matrix products and a softmax over one block of queries at a time use the
instructions, and hold few scores at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SCORES = 1 << 20
"""Scores held at once: 2 MB of bfloat16, which fit into the cache. Eight times as many are half as fast."""


@cache
def fused_is_fast() -> bool:
    """Whether PyTorch's fused attention uses bfloat16 instructions (AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


class BlockedAttention(TorchFunctionMode):
    """In this context, attention of bfloat16 tensors on the CPU runs in blocks, whichever library calls it.

    Attention with a mask, with dropout or with a gradient remains PyTorch's own.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a PyTorch function or its replacement."""
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention``, in blocks where that is possible."""
    inputs = query, key, value
    blocked = (
        all(x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[:-2] == key.shape[:-2] for x in inputs)
        and attn_mask is None
        and not (dropout_p or is_causal or enable_gqa)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))
    )
    if blocked:
        return blocked_attention(query, key, value, scale)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def blocked_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, scores: int = SCORES
) -> Tensor:
    """Compute attention for one block of queries at a time.

    Args:
        query: ``[..., L, E]``.
        key: ``[..., S, E]``.
        value: ``[..., S, V]``.
        scale: factor of the products; None: 1 / √E.
        scores: number of scores that may be held at once (at least those of one query).

    Returns:
        ``[..., L, V]``.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    queries, keys, values = (x.flatten(0, -3) for x in (query * scale, key, value))
    items, rows = len(queries), queries.shape[1]
    out = queries.new_empty(items, rows, values.shape[-1])
    height = max(1, min(rows, scores // keys.shape[1]))
    depth = max(1, scores // (height * keys.shape[1]))
    for first in range(0, items, depth):
        some = slice(first, first + depth)
        turned, own = keys[some].transpose(1, 2), values[some]
        for top in range(0, rows, height):
            block = slice(top, top + height)
            torch.bmm((queries[some, block] @ turned).softmax(-1), own, out=out[some, block])
    return out.view(*query.shape[:-1], values.shape[-1])
