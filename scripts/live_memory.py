"""Bytes of the tensors that are alive."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """While it is active, counts the bytes of tensors that are alive, and the most there were. Views share theirs.

    Works with real tensors and with fake ones (``FakeTensorMode``, entered before).

    Args:
        inputs: count from the beginning.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = 0
        self.peak = 0
        for tensor in inputs:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor):
                self._add(item)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._remove, key)
        self.peak = max(self.peak, self.now)

    def _remove(self, key: int) -> None:
        self.now -= self.alive.pop(key)
