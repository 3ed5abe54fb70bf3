"""RefCOCO, RefCOCO+ and RefCOCOg: how well the best-scoring query's mask and box agree with the truth.

An item is an image with one expression. Of equal scores, the first query is the best. An item without a prediction
counts as one with an empty mask and a wrong box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from util.errors import RunError, UserError
from util.evaluation import QueryPredictions
from util.overlap import overlap_metrics

BOX_THRESHOLD = 0.5


class Truth(NamedTuple):
    """What an expression refers to, at the image's original size."""

    mask: NDArray[np.bool_]  # [H, W]
    box: NDArray[np.float64]  # [4], xyxy pixels


class Overlap(NamedTuple):
    """How a prediction agrees with the truth."""

    intersection: int  # of the masks, pixels
    union: int
    box_iou: float  # 0…1


class RefcocoEvaluator:
    """Evaluator (``util.evaluation``) of items with one true mask and box each. Three numbers are kept of an item.

    Args:
        items: ids of all items, those without a prediction too. Equal sentences have different ids.
        truth: an item's truth, which is asked for when the item is scored.

    Raises:
        UserError: there is no item.
    """

    def __init__(self, items: Sequence[str], truth: Callable[[str], Truth]) -> None:
        if not items:
            raise UserError("there is no item to evaluate; the dataset's list of expressions is empty")
        self.items = list(items)
        self.truth = truth
        self._overlaps: dict[str, Overlap] = {}

    def update(self, predictions: Sequence[QueryPredictions]) -> None:
        """Compare predictions with the truth; an item that comes again replaces what was there.

        Raises:
            UserError: masks are of another size than the item's true mask.
            RunError: a score or a corner of a box is not a finite number.
        """
        for prediction in predictions:
            item, truth = prediction.item, self.truth(prediction.item)
            assert len(prediction.scores) == len(prediction.masks) == len(prediction.boxes), "one of each per query"
            if prediction.masks.shape[1:] != truth.mask.shape:
                raise UserError(
                    f"the masks for {item} are of {prediction.masks.shape[1:]} (height, width), and the true one is of "
                    f"{truth.mask.shape}; take annotations and images from one release of the dataset"
                )
            if not (np.isfinite(prediction.scores).all() and np.isfinite(prediction.boxes).all()):
                raise RunError(f"the scores or boxes for {item} are not finite; the weights may be of a diverged run")
            best = int(prediction.scores.argmax())
            mask = prediction.masks[best]
            self._overlaps[item] = Overlap(
                int(np.count_nonzero(mask & truth.mask)),
                int(np.count_nonzero(mask | truth.mask)),
                box_iou(prediction.boxes[best], truth.box),
            )

    def state(self) -> dict[str, Overlap]:
        """What this process has collected, by item."""
        return self._overlaps

    def merge(self, states: Iterable[Mapping[str, Overlap]]) -> None:
        """Take in what other processes have collected. An item that several have seen counts once."""
        for state in states:
            self._overlaps.update(state)

    def counts(self) -> dict[str, int]:
        """Number of items, and of those without a prediction."""
        return {"items": len(self.items), "items_without_prediction": len(self.items) - len(self._overlaps)}

    def results(self) -> dict[str, float]:
        """``oIoU``, ``mIoU`` and ``P@0.5`` … ``P@0.9`` of masks, and ``box_P@0.5`` (strictly above), 0 to 100."""
        overlaps = [self._overlaps.get(item) or self._missed(item) for item in self.items]
        right_boxes = [overlap.box_iou > BOX_THRESHOLD for overlap in overlaps]
        return {
            **overlap_metrics([overlap.intersection for overlap in overlaps], [overlap.union for overlap in overlaps]),
            f"box_P@{BOX_THRESHOLD}": 100 * float(np.mean(right_boxes)),
        }

    def _missed(self, item: str) -> Overlap:
        return Overlap(0, int(np.count_nonzero(self.truth(item).mask)), 0.0)


def box_iou(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Intersection over union of two boxes ``[4]``, xyxy, 0…1; 0 where neither has an area."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    intersection = float(np.prod(sides.clip(0)))
    areas = (float(np.prod((box[2:] - box[:2]).clip(0))) for box in (one, other))
    union = sum(areas) - intersection
    return intersection / union if union > 0 else 0.0
