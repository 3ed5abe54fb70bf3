"""The clips of several datasets in one, for training on a mixture (docs/data.md)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from datasets.clip import ClipDataset, Sample


class JointClips(ClipDataset):
    """The clips of several datasets, one dataset after the other; a dataset may occur several times.

    A clip depends on seed, epoch and its index in the whole, so a repeated part gives different clips each time. A clip
    without a visible object is replaced by any clip of the whole.

    Args:
        parts: the datasets, at least one.
        seed: the run's seed; the parts' own seeds and epochs have no effect.
    """

    def __init__(self, parts: Sequence[ClipDataset], seed: int) -> None:
        super().__init__(seed, replace_invisible=True)
        assert parts
        self.parts = list(parts)
        self._ends = np.array(list(accumulate(len(part) for part in parts)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform clip ``index`` of the whole.

        Raises:
            UserError: one of its files is missing or broken.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[number]
        return part.load(index - (int(self._ends[number]) - len(part)), rng)
