"""Metrics of A2D-Sentences and JHMDB-Sentences: COCO's mAP of masks, and overlap of the best-scoring query.

An item (a sentence and one annotated frame) has one true mask. What each metric looks at:

- ``mAP``, ``AP@0.5``, ``AP@0.75``: masks of **all** queries, by pycocotools without categories; ``mAP`` is the mean
  over IoU 0.50, 0.55, … 0.95. ``mAP_best_query`` is the same with each item's best-scoring query alone: papers differ.
- ``P@0.5`` … ``P@0.9``: share of the items whose best-scoring query has an IoU strictly above it; ``mIoU``: its mean
  IoU; ``oIoU``: the sum of its intersections over the sum of its unions. Of equal scores, the first query is the best.

Empty masks: an item without a prediction counts as one with an empty mask, and as no detection in mAP. Two empty masks
have an IoU of 1 (and add nothing to oIoU), as in the published evaluation; pycocotools gives them 0, so that mAP counts
an empty truth as missed whatever is predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from util.errors import RunError, UserError
from util.evaluation import QueryPredictions
from util.overlap import overlap_metrics

MAX_DETECTIONS = 100  # per item, as in COCO; more only where an item has more queries

Rle = dict[str, Any]  # pycocotools' run lengths: {"size": [H, W], "counts": bytes}


class Queries(NamedTuple):
    """What is kept of an item's predictions: ``scores [Q]`` and Q masks as run lengths."""

    scores: NDArray[np.float32]
    masks: list[Rle]


class A2dEvaluator:
    """Evaluator (``util.evaluation``) of items with one true mask each. Masks are kept as run lengths only.

    Args:
        truth: item → its mask as run lengths, at original size (``encode_masks``).

    Raises:
        UserError: there is no item.
    """

    def __init__(self, truth: Mapping[str, Rle]) -> None:
        if not truth:
            raise UserError("there is no item to evaluate; the dataset's list of sentences is empty")
        self.truth = truth
        self._found: dict[str, Queries] = {}

    def update(self, predictions: Sequence[QueryPredictions]) -> None:
        """Take in the predictions of some items; an item that comes again replaces what was there.

        Raises:
            UserError: masks are of another size than the item's true mask.
            RunError: a score is not a finite number.
        """
        for prediction in predictions:
            item, size = prediction.item, tuple(self.truth[prediction.item]["size"])
            assert len(prediction.scores) == len(prediction.masks), "one score for each query"
            if prediction.masks.shape[1:] != size:
                raise UserError(
                    f"the masks for {item} are of {prediction.masks.shape[1:]} (height, width), and the true one is of "
                    f"{size}; take annotations and videos from one release of the dataset"
                )
            if not np.isfinite(prediction.scores).all():
                raise RunError(f"the scores for {item} are not finite numbers; the weights may be of a diverged run")
            self._found[item] = Queries(prediction.scores.astype(np.float32), encode_masks(prediction.masks))

    def state(self) -> dict[str, Queries]:
        """What this process has collected, by item."""
        return self._found

    def merge(self, states: Iterable[dict[str, Queries]]) -> None:
        """Take in what other processes have collected. An item that several have seen counts once."""
        for state in states:
            self._found.update(state)

    def counts(self) -> dict[str, int]:
        """Number of items, and of those without a prediction."""
        return {"items": len(self.truth), "items_without_prediction": len(self.truth) - len(self._found)}

    def results(self) -> dict[str, float]:
        """All metrics, 0 to 100, under the names of the module's docstring."""
        everything = self._average_precision(self._found)
        best = {item: _best(queries) for item, queries in self._found.items()}
        return {
            "mAP": 100 * float(everything.mean()),
            "mAP_best_query": 100 * float(self._average_precision(best).mean()),
            "AP@0.5": 100 * float(everything[0]),
            "AP@0.75": 100 * float(everything[5]),
            **self._overlap(best),
        }

    def _overlap(self, best: Mapping[str, Queries]) -> dict[str, float]:
        """P@…, oIoU and mIoU of one query per item."""
        intersections, unions = [], []
        for item, truth in self.truth.items():
            masks = best[item].masks if item in best else []
            areas = [int(coco_mask.area(mask)) for mask in (*masks, truth)]
            common = int(coco_mask.area(coco_mask.merge([*masks, truth], intersect=True))) if masks else 0
            intersections.append(common)
            unions.append(sum(areas) - common)
        return overlap_metrics(intersections, unions)

    def _average_precision(self, found: Mapping[str, Queries]) -> NDArray[np.float64]:
        """COCO's average precision of masks, ``[10]``, 0 to 1: at IoU 0.50, 0.55, … 0.95."""
        numbers = {item: number for number, item in enumerate(self.truth, start=1)}  # ids count from 1 in pycocotools
        truth = [_annotation(numbers[item], mask) for item, mask in self.truth.items()]
        predicted = [
            {**_annotation(numbers[item], mask), "score": float(score)}
            for item in self.truth
            if item in found
            for score, mask in zip(found[item].scores, found[item].masks, strict=True)
        ]
        most = max((len(queries.scores) for queries in found.values()), default=0)
        with redirect_stdout(StringIO()):  # pycocotools prints its progress
            evaluation = COCOeval(self._coco(truth), self._coco(predicted), iouType="segm")
            evaluation.params.useCats = 0
            evaluation.params.maxDets = [max(MAX_DETECTIONS, most)]
            evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"]  # [10, 101 recalls, 1 category, 1 area, 1 limit]
        return precision.mean(axis=(1, 2, 3, 4))

    def _coco(self, annotations: list[dict[str, Any]]) -> COCO:
        """A COCO dataset in memory: the items are its images, numbered from 1."""
        coco = COCO()
        sizes = (mask["size"] for mask in self.truth.values())
        coco.dataset = {
            "images": [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes, start=1)],
            "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
            "categories": [{"id": 1}],
        }
        coco.createIndex()
        return coco


def encode_masks(masks: NDArray[np.bool_]) -> list[Rle]:
    """bool ``[N, H, W]`` → N masks as run lengths."""
    return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))


def _best(queries: Queries) -> Queries:
    """The best-scoring query alone; none where there is none."""
    first = int(queries.scores.argmax()) if len(queries.scores) else 0
    return Queries(queries.scores[first : first + 1], queries.masks[first : first + 1])


def _annotation(image: int, mask: Rle) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "segmentation": mask, "area": int(coco_mask.area(mask)), "iscrowd": 0}
