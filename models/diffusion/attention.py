"""Attention in bfloat16 on CPUs without AMX, where PyTorch's own is two to four times slower than its matrix products.

PyTorch's fused kernel multiplies in bfloat16 only on processors with AMX; on others with bfloat16 instructions it falls
back to slow products (docs/performance.md has the numbers). Two matrix products and a softmax over a block of queries
at a time use the instructions, and hold few scores at once.
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
"""Scores held at once: 2 MB of bfloat16, which stay in the cache. Eight times more are half as fast."""


@cache
def fused_is_fast() -> bool:
    """Whether PyTorch's fused attention multiplies bfloat16 by instructions for it: with AMX."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


class BlockedAttention(TorchFunctionMode):
    """In this context, attention of bfloat16 tensors on the CPU runs in blocks, whichever library asks for it.

    That is attention without mask or dropout, of which no gradient is wanted; all other is PyTorch's own.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of PyTorch, or what stands in its place."""
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
    """``scaled_dot_product_attention``, by the faster of both ways."""
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
    """Attention, a block of its queries at a time.

    Args:
        query: ``[..., L, E]``.
        key: ``[..., S, E]``.
        value: ``[..., S, V]``.
        scale: of the products; None: 1 / √E.
        scores: how many may be held at once (at least one query's).

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
