"""What evaluators of single-frame sets are given, and what they answer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Scorer = Callable[[int], dict[str, Any]]
"""Scores the masks of whole videos, with a number of processes; ``util.video_scores`` reads what it returns."""

Scores = tuple[dict[str, float], dict[str, int]]
"""Metrics and counts of a dataset; empty in all processes but the main one."""
Score = Callable[[Any], Scores]
"""Scores a model on a dataset, in all processes together."""


@dataclass(frozen=True)
class QueryPredictions:
    """What a model says about one item (one frame or image with one expression).

    Attributes
    ----------
    item : str
        The id of the dataset's item, for example ``v_<video>_f_<frame>_i_<instance>``.
    scores : NDArray[np.float32]
        Shape [Q], 0 to 1: how far each query is the referred object.
    masks : NDArray[np.bool_]
        Shape [Q, H, W] at the frame's original size.
    boxes : NDArray[np.float32]
        Shape [Q, 4]: xyxy pixels at the frame's original size.
    """

    item: str
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_]
    boxes: NDArray[np.float32]


class Evaluator(Protocol):
    """Collects predictions and answers with metrics; can be joined over processes."""

    def update(self, predictions: Sequence[QueryPredictions]) -> None:
        """Take in the predictions of some items, one for each item."""
        ...

    def state(self) -> Any:
        """What this process has collected: something that can be pickled."""
        ...

    def merge(self, states: Iterable[Any]) -> None:
        """Take in what other processes have collected (``state()`` of each)."""
        ...

    def counts(self) -> dict[str, int]:
        """Number of items, and of those without a prediction, under the names of ``results.json``."""
        ...

    def results(self) -> dict[str, float]:
        """Metrics under the names of ``results.json``; percentages are 0 to 100."""
        ...
