"""Which clips make which batch: a function of seed, epoch and position, so that a run can go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochBatches(Sampler[list[int]]):
    """Shuffled batches of one process; an incomplete last step of the whole run's processes is left out.

    Args:
        length: number of clips.
        batch_size: clips per process and step.
        seed: of the run.
        rank: this process, from 0.
        world_size: number of processes. All processes together see each clip at most once per epoch.
        accumulate: batches per step. A step's clips are those of one batch that is as many times larger.

    A dataset smaller than one step of all processes is repeated until it fills one.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.epoch, self.first = 0, 0

    def set_position(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch, from 0, and the step within it to begin with."""
        self.epoch, self.first = epoch, first

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch, wherever this one begins."""
        return max(1, self.length // (self.batch_size * self.world_size * self.accumulate))

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        shape = (self.steps_per_epoch, self.accumulate, self.world_size, self.batch_size)
        order = np.resize(order, shape)[self.first :, :, self.rank]
        for batch in order.reshape(-1, self.batch_size):
            yield batch.tolist()
