"""The training clips, batch by batch, from any position in a run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from datasets import build_dataset
from datasets.clip import ClipBatch, ClipLoader, collate
from datasets.sampler import EpochBatches
from util.distributed import rank, world_size

if TYPE_CHECKING:
    from util.config import Config

MULTIPLE = 32  # pixels: sides are padded to it


class EpochLoader:
    """Batches of an epoch from any position in it; this process's share of them.

    Args:
        cfg: reads ``batch_size``, ``accumulate``, ``num_workers``, ``seed`` and what the dataset is made of.
        pin_memory: for copies to a GPU that overlap with its work.

    Raises:
        UserError: a file of the dataset is missing or malformed.
    """

    def __init__(self, cfg: Config, pin_memory: bool) -> None:
        self.dataset = build_dataset(cfg, "train")
        self.batches = EpochBatches(len(self.dataset), cfg.batch_size, cfg.seed, rank(), world_size(), cfg.accumulate)
        self.loader = ClipLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=cfg.num_workers,
            collate_fn=partial(collate, multiple=MULTIPLE),
            pin_memory=pin_memory,
            persistent_workers=cfg.num_workers > 0,
        )

    def __call__(self, epoch: int, first: int) -> Iterator[ClipBatch]:
        """Batches of an epoch, from step ``first`` on."""
        self.dataset.set_epoch(epoch)
        self.batches.set_position(epoch, first)
        return iter(self.loader)
