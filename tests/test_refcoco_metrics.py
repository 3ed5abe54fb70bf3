"""RefCOCO's metrics, against values computed by hand."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from datasets.evaluators import Evaluator, GroundTruth, RefcocoEvaluator
from util.errors import RunError, UserError
from util.metrics import QueryPredictions, box_iou, overlap_metrics

SIZE = (10, 20)
FAR = [0, 0, 1, 1]


def mask(pixels: int, start: int = 0) -> np.ndarray:
    """``pixels`` pixels, from number ``start`` on."""
    flat = np.zeros(SIZE[0] * SIZE[1], bool)
    flat[start : start + pixels] = True
    return flat.reshape(SIZE)


def prediction(item: str, *queries: tuple[float, np.ndarray, list[float]]) -> QueryPredictions:
    """Queries of score, mask and box."""
    scores, masks, boxes = zip(*queries, strict=True)
    return QueryPredictions(item, np.array(scores, np.float32), np.stack(masks), np.array(boxes, np.float32))


# IoU of masks and boxes: a 9/10 and 1, b 1/2 and 1/2, c 0 and 0 (an empty mask), d 60/100 and 81/119. The second query
# scores best in a, the first of two equal ones in d.
TRUTH = {
    "a": GroundTruth(mask(10), np.array([0, 0, 10, 10.0])),
    "b": GroundTruth(mask(20), np.array([0, 0, 10, 10.0])),
    "c": GroundTruth(mask(30), np.array([2, 2, 8, 8.0])),
    "d": GroundTruth(mask(80), np.array([0, 0, 10, 10.0])),
}
PREDICTIONS = {
    "a": prediction("a", (0.2, mask(10), FAR), (0.9, mask(9), [0, 0, 10, 10]), (0.3, mask(0), FAR)),
    "b": prediction("b", (0.9, mask(10), [0, 0, 5, 10]), (0.1, mask(20), [0, 0, 10, 10])),
    "c": prediction("c", (0.5, mask(0), FAR)),
    "d": prediction("d", (0.5, mask(80, start=20), [1, 1, 11, 10]), (0.5, mask(80), [0, 0, 10, 10])),
}
RESULTS = {
    "oIoU": 100 * (9 + 10 + 0 + 60) / (10 + 20 + 30 + 100),
    "mIoU": 100 * (0.9 + 0.5 + 0 + 0.6) / 4,
    "P@0.5": 50.0,  # a, d; b's is not above 1/2
    "P@0.6": 25.0,  # a; d's is not above 6/10
    "P@0.7": 25.0,
    "P@0.8": 25.0,
    "P@0.9": 0.0,  # a's is not above 9/10
    "box_P@0.5": 50.0,  # a, d; b's is not above 1/2
}


def evaluator(items: str = "abcd") -> RefcocoEvaluator:
    return RefcocoEvaluator(list(items), TRUTH.__getitem__)


def test_by_hand() -> None:
    found: Evaluator = evaluator()
    found.update(list(PREDICTIONS.values()))
    assert found.results() == pytest.approx(RESULTS, abs=1e-12)


def test_a_missing_prediction_is_wrong_and_its_pixels_count() -> None:
    found = evaluator()
    found.update([PREDICTIONS["a"], PREDICTIONS["b"]])
    results = found.results()
    assert found.counts() == {"items": 4, "items_without_prediction": 2}
    assert results["oIoU"] == pytest.approx(100 * 19 / (10 + 20 + 30 + 80))
    assert results["mIoU"] == pytest.approx(100 * 1.4 / 4)
    assert (results["P@0.5"], results["box_P@0.5"]) == (25, 25)


def test_nothing_predicted() -> None:
    assert set(evaluator().results().values()) == {0.0}


def test_processes_are_joined_in_any_order_and_nothing_counts_twice() -> None:
    first, second, third = evaluator(), evaluator(), evaluator()
    first.update([PREDICTIONS["c"], PREDICTIONS["a"]])
    second.update([PREDICTIONS["a"], PREDICTIONS["d"], PREDICTIONS["a"]])  # a sampler has filled up with a
    third.update([PREDICTIONS["b"]])
    states = pickle.loads(pickle.dumps([second.state(), third.state()]))
    first.merge(states)
    assert first.results() == pytest.approx(RESULTS, abs=1e-12)
    assert first.counts() == {"items": 4, "items_without_prediction": 0}


def test_equal_sentences_are_two_items() -> None:
    """Items are told apart by id; were they by sentence, one of the two would vanish."""
    found = RefcocoEvaluator(["refcoco_val_1", "refcoco_val_2"], lambda item: TRUTH["a"])
    right, wrong = (0.5, mask(10), [0, 0, 10, 10]), (0.5, mask(10, start=100), FAR)
    found.update([prediction("refcoco_val_1", right), prediction("refcoco_val_2", wrong)])
    assert found.results()["mIoU"] == 50 and found.results()["oIoU"] == pytest.approx(100 * 10 / 30)


def test_two_empty_masks_agree() -> None:
    found = RefcocoEvaluator(["e"], lambda item: GroundTruth(mask(0), np.zeros(4)))
    found.update([prediction("e", (0.5, mask(0), FAR))])
    assert {found.results()[name] for name in ("oIoU", "mIoU", "P@0.9")} == {100.0}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([0, 0, 4, 4], [0, 0, 4, 4], 1),
        ([0, 0, 4, 4], [2, 0, 6, 4], 8 / 24),
        ([0, 0, 4, 4], [1, 1, 3, 3], 4 / 16),
        ([0, 0, 4, 4], [4, 0, 8, 4], 0),  # they touch
        ([0, 0, 1, 1], [3, 3, 4, 4], 0),  # apart on both axes
        ([2, 2, 2, 2], [2, 2, 2, 2], 0),
        ([3, 3, 1, 1], [0, 0, 4, 4], 0),  # upside down
    ],
)
def test_boxes(one: list[float], other: list[float], expected: float) -> None:
    assert box_iou(np.array(one), np.array(other)) == expected == box_iou(np.array(other), np.array(one))


def test_overlap_of_many_pixels() -> None:
    """Sums of pixels exceed 32 bits in a set of ten thousand images."""
    metrics = overlap_metrics([300_000] * 20_000, [400_000] * 20_000)
    assert metrics["oIoU"] == metrics["mIoU"] == 75 and metrics["P@0.7"] == 100 and metrics["P@0.8"] == 0


@pytest.mark.parametrize("bad", ["score", "box"])
def test_what_is_not_finite_stops(bad: str) -> None:
    wrong = prediction("a", (np.nan if bad == "score" else 0.5, mask(1), [0, 0, 1, np.inf if bad == "box" else 1]))
    with pytest.raises(RunError, match="the scores or boxes for a are not finite"):
        evaluator().update([wrong])


def test_masks_of_another_size_and_no_item() -> None:
    wrong = QueryPredictions("a", np.ones(1, np.float32), np.zeros((1, 5, 5), bool), np.zeros((1, 4), np.float32))
    with pytest.raises(UserError, match=r"the masks for a have size \(5, 5\) .* \(10, 20\)"):
        evaluator().update([wrong])
    with pytest.raises(UserError, match="there is no item to evaluate"):
        evaluator("")
