"""Evaluators of sets that are scored item by item: A2D-Sentences, JHMDB-Sentences and RefCOCO.

An item is a frame or image with one expression. The *best query* is the one with the highest score; of equal scores,
the first. An item without a prediction counts as an empty mask and a wrong box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from util.errors import RunError, UserError
from util.metrics import QueryPredictions, box_overlaps, overlap_metrics

if TYPE_CHECKING:
    from pycocotools.coco import COCO

MAX_DETECTIONS = 100  # per item, as in COCO; more only where an item has more queries
BOX_THRESHOLD = 0.5

Scorer = Callable[[int], dict[str, Any]]
"""Scores the masks of whole videos with a number of processes; ``datasets.scoring.video_metrics`` reads its result."""
Scores = tuple[dict[str, float], dict[str, int]]
"""Metrics and counts of a dataset; empty in all processes but the main one."""

Rle = dict[str, Any]  # run lengths of pycocotools: {"size": [H, W], "counts": bytes}
KeptT = TypeVar("KeptT")


class Evaluator(Generic[KeptT]):
    """Collects predictions and computes metrics. The states of several processes can be merged.

    A subclass keeps something small (``KeptT``) of every item.

    Args:
        items: ids of all items, including those without a prediction.

    Raises:
        UserError: there is no item.
    """

    def __init__(self, items: Iterable[str]) -> None:
        self.items = list(items)
        if not self.items:
            raise UserError("there is no item to evaluate; the dataset's list of expressions is empty")
        self._kept: dict[str, KeptT] = {}

    def update(self, predictions: Sequence[QueryPredictions]) -> None:
        """Add the predictions for some items; a repeated item replaces the earlier one.

        Raises:
            UserError: the masks do not have the size of the item's ground truth.
            RunError: a score or a box is not finite.
        """
        for prediction in predictions:
            given = [value for value in (prediction.scores, prediction.boxes) if value is not None]
            assert all(len(value) == len(prediction.masks) for value in given), "one of each per query"
            if not prediction.finite or not all(np.isfinite(value).all() for value in given):
                raise RunError(
                    f"the prediction for {prediction.item} is not finite; the weights may come from a run that diverged"
                )
            self._kept[prediction.item] = self._keep(prediction)

    def state(self) -> dict[str, KeptT]:
        """Return what this process has collected, by item; it can be pickled."""
        return self._kept

    def merge(self, states: Iterable[Mapping[str, KeptT]]) -> None:
        """Add the states of other processes. An item that several have seen counts once."""
        for state in states:
            self._kept.update(state)

    def counts(self) -> dict[str, int]:
        """Return the number of items, and of those without a prediction."""
        return {"items": len(self.items), "items_without_prediction": len(self.items) - len(self._kept)}

    def results(self) -> dict[str, float]:
        """Compute the metrics, 0…100, under their names in ``results.json``."""
        raise NotImplementedError

    def _keep(self, prediction: QueryPredictions) -> KeptT:
        raise NotImplementedError


def _require_size(prediction: QueryPredictions, size: tuple[int, int]) -> None:
    if prediction.masks.shape[1:] != size:
        raise UserError(
            f"the masks for {prediction.item} have size {prediction.masks.shape[1:]} (height, width), but its ground "
            f"truth has size {size}; take annotations and images from one release of the dataset"
        )


class Queries(NamedTuple):
    """What ``A2dEvaluator`` keeps of an item: ``scores [Q]`` and Q masks as run lengths."""

    scores: NDArray[np.float32] | None
    masks: list[Rle]


class A2dEvaluator(Evaluator[Queries]):
    """Metrics of A2D-Sentences and JHMDB-Sentences.

    - ``mAP``, ``AP@0.5``, ``AP@0.75``: COCO's average precision of the masks of **all** queries, ignoring categories.
      ``mAP`` is the mean over IoU 0.50, 0.55, … 0.95. ``mAP_best_query`` uses only the best query of each item.
    - ``P@0.5`` … ``P@0.9``, ``mIoU``, ``oIoU``: see ``overlap_metrics``, for the best query.

    Two empty masks have an IoU of 1, as in the published evaluation, except in mAP, where pycocotools counts an empty
    ground truth as missed whatever is predicted.

    Args:
        ground_truth: item → its mask as run lengths, at the original size (``encode_masks``).

    Raises:
        UserError: there is no item.
    """

    def __init__(self, ground_truth: Mapping[str, Rle]) -> None:
        super().__init__(ground_truth)
        self.ground_truth = ground_truth

    def results(self) -> dict[str, float]:
        best = {item: _best(queries) for item, queries in self._kept.items()}
        if any(queries.scores is None for queries in best.values()):  # then nothing can be ranked
            return self._overlap(best)
        all_queries = self._average_precision(self._kept)
        return {
            "mAP": 100 * float(all_queries.mean()),
            "mAP_best_query": 100 * float(self._average_precision(best).mean()),
            "AP@0.5": 100 * float(all_queries[0]),
            "AP@0.75": 100 * float(all_queries[5]),
            **self._overlap(best),
        }

    def _keep(self, prediction: QueryPredictions) -> Queries:
        height, width = self.ground_truth[prediction.item]["size"]
        _require_size(prediction, (height, width))
        scores = None if prediction.scores is None else prediction.scores.astype(np.float32)
        return Queries(scores, encode_masks(prediction.masks))

    def _overlap(self, best: Mapping[str, Queries]) -> dict[str, float]:
        """Compute P@K, oIoU and mIoU of one query per item."""
        intersections, unions = [], []
        for item, gt in self.ground_truth.items():
            masks = [*(best[item].masks if item in best else []), gt]
            intersection = int(coco_mask.area(coco_mask.merge(masks, intersect=True))) if len(masks) == 2 else 0
            intersections.append(intersection)
            unions.append(sum(int(coco_mask.area(mask)) for mask in masks) - intersection)
        return overlap_metrics(intersections, unions)

    def _average_precision(self, found: Mapping[str, Queries]) -> NDArray[np.float64]:
        """Compute COCO's average precision of masks, ``[10]``, 0…1, at IoU 0.50, 0.55, … 0.95."""
        from pycocotools.cocoeval import COCOeval

        numbers = {item: number for number, item in enumerate(self.items, start=1)}  # pycocotools counts from 1
        ground_truth = [_annotation(numbers[item], mask) for item, mask in self.ground_truth.items()]
        predicted = [
            {**_annotation(numbers[item], mask), "score": float(score)}
            for item in self.items
            if item in found
            for score, mask in zip(np.asarray(found[item].scores), found[item].masks, strict=True)
        ]
        most = max((len(queries.masks) for queries in found.values()), default=0)
        with redirect_stdout(StringIO()):  # pycocotools prints its progress
            evaluation = COCOeval(self._coco(ground_truth), self._coco(predicted), iouType="segm")
            evaluation.params.useCats = 0
            evaluation.params.maxDets = [max(MAX_DETECTIONS, most)]
            evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"]  # [10, 101 recalls, 1 category, 1 area, 1 limit]
        return precision.mean(axis=(1, 2, 3, 4))

    def _coco(self, annotations: list[dict[str, Any]]) -> COCO:
        """Build a COCO dataset in memory whose images are the items, numbered from 1."""
        from pycocotools.coco import COCO

        coco = COCO()
        sizes = (mask["size"] for mask in self.ground_truth.values())
        coco.dataset = {
            "images": [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes, start=1)],
            "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
            "categories": [{"id": 1}],
        }
        coco.createIndex()
        return coco


def encode_masks(masks: NDArray[np.bool_]) -> list[Rle]:
    """Encode masks, bool ``[N, H, W]``, as N run lengths."""
    return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))


def _best(queries: Queries) -> Queries:
    """Return the best query alone, or none if there is none."""
    if queries.scores is None:
        return queries
    first = int(queries.scores.argmax()) if len(queries.scores) else 0
    return Queries(queries.scores[first : first + 1], queries.masks[first : first + 1])


def _annotation(image: int, mask: Rle) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "segmentation": mask, "area": int(coco_mask.area(mask)), "iscrowd": 0}


class ReferredObject(NamedTuple):
    """The referred object of an image expression, at the image's original size."""

    mask: NDArray[np.bool_]  # [H, W]
    box: NDArray[np.float64]  # [4], xyxy pixels


class Overlap(NamedTuple):
    """What ``RefcocoEvaluator`` keeps of an item: how the best query overlaps with the ground truth."""

    intersection: int  # of the masks, pixels
    union: int
    box: tuple[float, float] | None  # IoU, 0…1, and generalised IoU, −1…1; None without boxes


class RefcocoEvaluator(Evaluator[Overlap]):
    """Metrics of RefCOCO, RefCOCO+ and RefCOCOg for the best query.

    ``oIoU``, ``mIoU`` and ``P@0.5`` … ``P@0.9`` of masks (see ``overlap_metrics``), ``box_P@0.5``, the share of boxes
    with an IoU strictly above 0.5, and ``box_P@0.5_GIoU``, the share with a generalised IoU of at least 0.5, which
    ReferFormer's code reports.

    Args:
        items: ids of all items. Equal sentences have different ids.
        ground_truth: reads an item's ground truth; called when the item is scored.

    Raises:
        UserError: there is no item.
    """

    def __init__(self, items: Sequence[str], ground_truth: Callable[[str], ReferredObject]) -> None:
        super().__init__(items)
        self.ground_truth = ground_truth

    def results(self) -> dict[str, float]:
        overlaps = [
            self._kept.get(item) or Overlap(0, int(np.count_nonzero(self.ground_truth(item).mask)), (0.0, -1.0))
            for item in self.items
        ]
        masks = overlap_metrics([overlap.intersection for overlap in overlaps], [overlap.union for overlap in overlaps])
        pairs = [overlap.box for overlap in overlaps if overlap.box is not None]
        if len(pairs) < len(overlaps):  # from a model without boxes
            return masks
        return {
            **masks,
            f"box_P@{BOX_THRESHOLD}": 100 * float(np.mean([iou > BOX_THRESHOLD for iou, _ in pairs])),
            f"box_P@{BOX_THRESHOLD}_GIoU": 100 * float(np.mean([giou >= BOX_THRESHOLD for _, giou in pairs])),
        }

    def _keep(self, prediction: QueryPredictions) -> Overlap:
        gt = self.ground_truth(prediction.item)
        _require_size(prediction, (gt.mask.shape[0], gt.mask.shape[1]))
        best = 0 if prediction.scores is None else int(prediction.scores.argmax())
        mask, boxes = prediction.masks[best], prediction.boxes
        return Overlap(
            int(np.count_nonzero(mask & gt.mask)),
            int(np.count_nonzero(mask | gt.mask)),
            None if boxes is None else box_overlaps(boxes[best], gt.box),
        )
