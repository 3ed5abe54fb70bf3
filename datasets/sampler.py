"""Which clips make which batch: a function of seed, epoch and position, so that a run can go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochBatches(Sampler[list[int]]):
    """Shuffled batches of one process; an incomplete last batch of the whole run's processes is left out.

    Args:
        length: number of clips.
        batch_size: clips per process and step.
        seed: of the run.
        rank: this process, from 0.
        world_size: number of processes. All processes together see each clip at most once per epoch.

    A dataset smaller than one batch of all processes is repeated until it fills one.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first = 0, 0

    def set_position(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch, from 0, and the batch within it to begin with."""
        self.epoch, self.first = epoch, first

    @property
    def batches_per_epoch(self) -> int:
        """Steps of a whole epoch, wherever this one begins."""
        return max(1, self.length // (self.batch_size * self.world_size))

    def __len__(self) -> int:
        return self.batches_per_epoch - self.first

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        size = self.batch_size * self.world_size
        order = np.resize(order, self.batches_per_epoch * size).reshape(-1, self.world_size, self.batch_size)
        for batch in order[self.first :, self.rank]:
            yield batch.tolist()
