"""Mixtures for training: the clips of several datasets, concatenated and shuffled together (docs/data.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from datasets.clip import ClipDataset, Sample
from util.benchmarks import MIXTURES
from util.errors import UserError

if TYPE_CHECKING:
    from util.config import Config

# Times that a mixture holds a part, where not once: Ref-DAVIS has 60 training videos, Ref-YouTube-VOS 3471.
REPEATS = {("ytvos_joint_davis", "davis"): 5}


class JointClips(ClipDataset):
    """The clips of several datasets, one dataset after the other; a dataset may be given several times.

    A clip is a function of seed, epoch and its index in the whole, so that a repeated part gives other clips each time.
    One without a visible object is replaced by any clip of the whole.

    Args:
        parts: the datasets, at least one.
        seed: of the run; the parts' own seeds and epochs have no effect.
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


def build_clips(cfg: Config, split: str, build: Callable[[Config, str], ClipDataset]) -> JointClips:
    """Build the training clips of the mixture ``cfg.dataset_file``.

    Args:
        cfg: options; each part is built with its own name as ``dataset_file``.
        split: train.
        build: builds the clips of a part.

    Raises:
        UserError: another split than train, or a part's file is missing or malformed.
    """
    name = cfg.dataset_file
    if split != "train":
        raise UserError(
            f"{name} is a mixture for training; name one of its parts ({', '.join(MIXTURES[name])}) by --dataset_file "
            f"for the split {split!r}"
        )
    parts: list[ClipDataset] = []
    for part in MIXTURES[name]:
        parts += [build(replace(cfg, dataset_file=part), split)] * REPEATS.get((name, part), 1)
    return JointClips(parts, cfg.seed)
