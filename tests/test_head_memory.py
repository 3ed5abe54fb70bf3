"""The mask heads' memory: no copy of the features per query, and five queries cost hardly more than one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.mask_heads import MASK_CHANNELS, DynamicMaskHead, QueryDotHead, sum_memories
from scripts.memory_estimate import LiveMemory

N, C, H, W = 2, 256, 48, 80  # two frames of 384×640
QUERIES = 5
MOST = 1.5
"""Memory of five queries against that of one."""

Heads = Callable[[DynamicMaskHead, QueryDotHead, list[Tensor], Tensor, Tensor], Tensor]


def _dynamic(dynamic: DynamicMaskHead, dot: QueryDotHead, memory: list[Tensor], states: Tensor, xy: Tensor) -> Tensor:
    return dynamic(memory[0], states, xy)


def _query_dot(dynamic: DynamicMaskHead, dot: QueryDotHead, memory: list[Tensor], states: Tensor, xy: Tensor) -> Tensor:
    return dot(memory, states)


def _both(dynamic: DynamicMaskHead, dot: QueryDotHead, memory: list[Tensor], states: Tensor, xy: Tensor) -> Tensor:
    return dynamic(sum_memories(memory), states, xy) + dot(memory, states)


class HeadMemory(LiveMemory):
    """Does not count some tensors, and knows the ``largest`` of those that were not there from the beginning."""

    def __init__(self, inputs: list[Tensor], uncounted: list[Tensor]) -> None:
        self.uncounted, self.largest = {tensor.untyped_storage()._cdata for tensor in uncounted}, 0
        super().__init__(inputs)
        self.largest = 0

    def add(self, tensor: Tensor) -> None:
        if tensor.untyped_storage()._cdata not in self.uncounted:
            super().add(tensor)
            self.largest = max(self.largest, tensor.untyped_storage().nbytes())


def _measure(heads: Heads, queries: int, train: bool) -> HeadMemory:
    """Run heads on encoder memories, which count as well as they are what a copy would be of."""
    torch.manual_seed(0)
    both = nn.ModuleDict({"dynamic": DynamicMaskHead(C), "dot": QueryDotHead()}).requires_grad_(False)
    memory = [torch.randn(N, C, H // s, W // s, requires_grad=train) for s in (1, 2, 4)]
    states = torch.randn(N, queries, C, requires_grad=train)
    inputs = memory[:1] if heads is _dynamic else memory
    with torch.set_grad_enabled(train), HeadMemory(inputs, list(both.parameters())) as used:
        low = heads(both["dynamic"], both["dot"], memory, states, torch.rand(N, queries, 2) * 8 * W)
        if train:
            low.square().mean().backward()
    assert low.shape == (N, queries, MASK_CHANNELS, H, W)
    assert used.peak > sum(tensor.nbytes for tensor in inputs) + low.nbytes
    return used


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("heads", [_dynamic, _query_dot, _both])
def test_five_queries_take_at_most_half_as_much_again_as_one(heads: Heads, train: bool) -> None:
    one, five = _measure(heads, 1, train), _measure(heads, QUERIES, train)
    print(f"{heads.__name__}: {one.peak / 2**20:.1f} → {five.peak / 2**20:.1f} MiB, {five.peak / one.peak:.2f}")
    assert five.peak <= MOST * one.peak


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("heads", [_dynamic, _query_dot, _both])
def test_nothing_is_larger_than_the_features_once(heads: Heads, train: bool) -> None:
    """Neither features per query (Q·C·h·w) nor features per mask channel (16·C·h·w)."""
    assert _measure(heads, QUERIES, train).largest <= 4 * N * C * H * W


def test_a_copy_per_query_would_be_seen() -> None:
    def wasteful(d: DynamicMaskHead, dot: QueryDotHead, memory: list[Tensor], states: Tensor, xy: Tensor) -> Tensor:
        copies = memory[0][:, None].expand(-1, states.shape[1], -1, -1, -1).contiguous()
        return d(memory[0], states, xy) + copies.mean(2, keepdim=True)

    one, five = _measure(wasteful, 1, False), _measure(wasteful, QUERIES, False)
    assert five.peak > MOST * one.peak
    assert five.largest > 4 * N * C * H * W
