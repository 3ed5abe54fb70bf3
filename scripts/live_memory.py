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
        uncounted: never count.

    Attributes:
        now, peak: bytes that are alive, and the most there were.
        largest: bytes of the largest tensor that was made.
    """

    def __init__(self, inputs: Sequence[Tensor], uncounted: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.uncounted = {tensor.untyped_storage()._cdata for tensor in uncounted}
        self.alive: dict[int, int] = {}
        self.now = self.largest = 0
        self.peak = 0
        for tensor in inputs:
            self._add(tensor)
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor):
                self._add(item)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive or key in self.uncounted:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._remove, key)
        self.peak = max(self.peak, self.now)
        self.largest = max(self.largest, storage.nbytes())

    def _remove(self, key: int) -> None:
        self.now -= self.alive.pop(key)
