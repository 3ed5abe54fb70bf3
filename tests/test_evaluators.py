"""Evaluators of A2D-Sentences, JHMDB-Sentences and RefCOCO, against values computed by hand."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.evaluators import A2dEvaluator, Evaluator, RefcocoEvaluator, ReferredObject, encode_masks
from util.errors import RunError, UserError
from util.metrics import QueryPredictions

# --- A2D-Sentences and JHMDB-Sentences


HEIGHT, WIDTH = 4, 10
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def pixels(count: int, row: int = 0) -> np.ndarray:
    """A mask of the first ``count`` pixels of a row."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[row, :count] = True
    return mask


def a2d_queries(item: str, *queries: tuple[float, np.ndarray]) -> QueryPredictions:
    scores = np.array([score for score, _ in queries], np.float32)
    masks = np.stack([mask for _, mask in queries]) if queries else np.zeros((0, HEIGHT, WIDTH), bool)
    return QueryPredictions(item, scores, masks, np.zeros((len(queries), 4), np.float32))


def a2d(predictions: Iterable[QueryPredictions] = (), **truth: np.ndarray) -> A2dEvaluator:
    made = A2dEvaluator({item: encode_masks(mask[None])[0] for item, mask in truth.items()})
    made.update(list(predictions))
    return made


# a: a hit before a miss. b: the better query scores less. c: nothing is predicted.
A2D_ROWS = {"a": pixels(10), "b": pixels(10), "c": pixels(10)}
FIRST = a2d_queries("a", (0.9, pixels(10)), (0.8, pixels(10, row=1)))
SECOND = a2d_queries("b", (0.6, pixels(10)), (0.7, pixels(5)))


def test_all_metrics_of_a_case_computed_by_hand():
    """By falling score: a hit (a), a miss (a), half (b), a hit (b); three objects to be found.

    At IoU 0.50, half is enough: hit, miss, hit, miss. Precision is 1 up to a recall of 1/3 (34 of the 101 recalls), 2/3
    up to 2/3 (33 of them), then 0. Above, it is hit, miss, miss, hit: 1 and 1/2. The best queries alone are hit and
    half: precision 1 up to 2/3 at IoU 0.50, and up to 1/3 above.
    """
    results = a2d([FIRST, SECOND], **A2D_ROWS).results()
    at_half, above = (34 + 33 * 2 / 3) / 101, (34 + 33 / 2) / 101
    assert results == pytest.approx(
        {
            "mAP": 10 * (at_half + 9 * above),
            "mAP_best_query": 10 * (67 / 101 + 9 * 34 / 101),
            "AP@0.5": 100 * at_half,
            "AP@0.75": 100 * above,
            **{f"P@{threshold}": 100 / 3 for threshold in THRESHOLDS},
            "oIoU": 100 * (10 + 5) / 30,
            "mIoU": 100 * (1 + 0.5) / 3,
        },
        abs=1e-9,
    )


@pytest.mark.parametrize("count", range(5, 11))
def test_precision_is_strict_and_average_precision_is_not(count: int):
    results = a2d([a2d_queries("a", (0.5, pixels(count)))], a=pixels(10)).results()
    for threshold in THRESHOLDS:
        assert results[f"P@{threshold}"] == (100 if count > round(10 * threshold) else 0)
    assert results["AP@0.5"] == pytest.approx(100)
    assert results["mAP"] == pytest.approx(100 if count == 10 else 10 * (1 + 2 * (count - 5)))  # 0.50 … IoU, 0.05 apart
    assert results["oIoU"] == results["mIoU"] == pytest.approx(10 * count)


def test_every_query_counts_in_map_and_only_the_best_elsewhere():
    worse = [(0.9 - 0.001 * i, pixels(10, row=1)) for i in range(119)]
    results = a2d([a2d_queries("a", *worse, (0.1, pixels(10)))], a=pixels(10)).results()
    assert results["mAP"] == pytest.approx(100 / 120)
    assert results["mAP_best_query"] == results["P@0.5"] == results["oIoU"] == results["mIoU"] == 0


def test_of_equal_scores_the_first_query_is_the_best():
    assert a2d([a2d_queries("a", (0.5, pixels(10)), (0.5, pixels(5)))], a=pixels(10)).results()["mIoU"] == 100
    assert a2d([a2d_queries("a", (0.5, pixels(5)), (0.5, pixels(10)))], a=pixels(10)).results()["mIoU"] == 50


def test_overall_iou_weighs_by_area_and_mean_iou_does_not():
    found = [a2d_queries("a", (0.5, pixels(10))), a2d_queries("b", (0.5, pixels(1)))]
    results = a2d(found, a=pixels(10), b=pixels(2)).results()
    assert (results["oIoU"], results["mIoU"]) == (pytest.approx(100 * 11 / 12), pytest.approx(75))


# --- empty masks, missing predictions


def test_two_empty_masks_overlap_wholly_and_add_nothing_to_the_overall_iou():
    found = [a2d_queries("a", (0.5, pixels(5))), a2d_queries("e", (0.9, pixels(0)))]
    results = a2d(found, a=pixels(10), e=pixels(0)).results()
    assert (results["mIoU"], results["oIoU"], results["P@0.9"]) == (75, 50, 50)
    assert results["AP@0.5"] == pytest.approx(100 * 51 / 101 / 2)  # COCO: e is missed, and its empty mask a miss


def test_an_empty_prediction_of_an_object_and_an_object_where_is_none():
    results = a2d([a2d_queries("a", (0.5, pixels(0)))], a=pixels(10)).results()
    assert set(results.values()) == {0}
    results = a2d([a2d_queries("e", (0.5, pixels(10)))], e=pixels(0)).results()
    assert set(results.values()) == {0}


def test_a_missing_prediction_is_an_empty_mask():
    only_a = a2d([FIRST], a=pixels(10), b=pixels(10), e=pixels(0))
    results = only_a.results()
    assert results["mIoU"] == pytest.approx(100 * (1 + 0 + 1) / 3)
    assert results["oIoU"] == 50
    assert results["mAP_best_query"] == pytest.approx(100 * 34 / 101)  # one of three, e counts among them
    assert only_a.counts() == {"items": 3, "items_without_prediction": 2}


def test_no_prediction_at_all_and_no_query():
    assert set(a2d(a=pixels(10)).results().values()) == {0}
    assert set(a2d([a2d_queries("a")], a=pixels(10)).results().values()) == {0}
    results = a2d(e=pixels(0)).results()
    assert (results["mIoU"], results["oIoU"], results["mAP"]) == (100, 100, 0)


# --- processes, memory, output


def test_processes_are_joined_and_an_item_that_two_have_seen_counts_once():
    together = a2d([FIRST, SECOND], **A2D_ROWS)
    one, other = a2d([SECOND], **A2D_ROWS), a2d([FIRST, SECOND], **A2D_ROWS)
    one.merge([pickle.loads(pickle.dumps(other.state()))])
    assert one.results() == together.results()
    assert one.counts() == {"items": 3, "items_without_prediction": 1}


def test_the_order_of_the_items_does_not_matter():
    tied = a2d_queries("a", (0.7, pixels(10, row=1)), (0.8, pixels(10)))  # a miss of the score of b's best
    assert a2d([tied, SECOND], **A2D_ROWS).results() == a2d([SECOND, tied], **A2D_ROWS).results()


def test_memory_is_that_of_run_lengths():
    masks = np.zeros((5, 320, 640), bool)
    masks[:, 40:200, 50:600] = True
    full = a2d(a=masks[0])
    full.update([QueryPredictions("a", np.ones(5, np.float32), masks, np.zeros((5, 4), np.float32))])
    assert len(pickle.dumps(full.state())) < masks.nbytes / 50


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]):
    a2d([FIRST, SECOND], **A2D_ROWS).results()
    assert capfd.readouterr() == ("", "")


# --- the same as pycocotools used as it comes


def test_agrees_with_pycocotools_summary(capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    truth, found, detections = {}, [], []
    for i in range(20):
        item, mask = f"v_x_f_{i}", np.zeros((32, 48), bool)
        top, left = rng.integers(0, 16, 2)
        mask[top : top + 14, left : left + 20] = True
        truth[item] = mask
        shifts = rng.integers(-5, 6, (5, 2))
        masks = np.stack([np.roll(mask, shift, (0, 1)) for shift in shifts.tolist()])
        scores = rng.random(5).astype(np.float32)
        found.append(QueryPredictions(item, scores, masks, np.zeros((5, 4), np.float32)))
        for score, runs in zip(scores.tolist(), encode_masks(masks), strict=True):
            detections.append({"image_id": i, "category_id": 1, "segmentation": runs, "score": score})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": 32, "width": 48} for i in range(20)],
        "categories": [{"id": 1}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "segmentation": coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))),
            }
            for i, mask in enumerate(truth.values())
        ],
    }
    coco.createIndex()
    official = COCOeval(coco, coco.loadRes(detections), "segm")
    official.params.useCats = 0
    official.evaluate()
    official.accumulate()
    official.summarize()
    results = a2d(found, **truth).results()
    assert [results["mAP"], results["AP@0.5"], results["AP@0.75"]] == pytest.approx(100 * official.stats[:3])
    assert 5 < results["mAP"] < 95


# --- what cannot be scored


def test_what_cannot_be_scored():
    with pytest.raises(UserError, match="there is no item to evaluate"):
        A2dEvaluator({})
    with pytest.raises(UserError, match=r"masks for a have size \(4, 10\).*ground truth has size \(10, 4\)"):
        a2d([a2d_queries("a", (0.5, pixels(3)))], a=pixels(3).T)
    with pytest.raises(RunError, match="the prediction for a is not finite"):
        a2d([a2d_queries("a", (float("nan"), pixels(3)))], a=pixels(3))


# --- RefCOCO


SIZE = (10, 20)
FAR = [0, 0, 1, 1]


def flat_mask(pixels: int, start: int = 0) -> np.ndarray:
    """``pixels`` pixels, from number ``start`` on."""
    flat = np.zeros(SIZE[0] * SIZE[1], bool)
    flat[start : start + pixels] = True
    return flat.reshape(SIZE)


def refcoco_queries(item: str, *queries: tuple[float, np.ndarray, list[float]]) -> QueryPredictions:
    """Queries of score, flat_mask and box."""
    scores, masks, boxes = zip(*queries, strict=True)
    return QueryPredictions(item, np.array(scores, np.float32), np.stack(masks), np.array(boxes, np.float32))


# IoU of masks and boxes: a 9/10 and 1, b 1/2 and 1/2, c 0 and 0 (an empty mask), d 60/100 and 81/119. The second query
# scores best in a, the first of two equal ones in d.
GROUND_TRUTH = {
    "a": ReferredObject(flat_mask(10), np.array([0, 0, 10, 10.0])),
    "b": ReferredObject(flat_mask(20), np.array([0, 0, 10, 10.0])),
    "c": ReferredObject(flat_mask(30), np.array([2, 2, 8, 8.0])),
    "d": ReferredObject(flat_mask(80), np.array([0, 0, 10, 10.0])),
}
PREDICTIONS = {
    "a": refcoco_queries("a", (0.2, flat_mask(10), FAR), (0.9, flat_mask(9), [0, 0, 10, 10]), (0.3, flat_mask(0), FAR)),
    "b": refcoco_queries("b", (0.9, flat_mask(10), [0, 0, 5, 10]), (0.1, flat_mask(20), [0, 0, 10, 10])),
    "c": refcoco_queries("c", (0.5, flat_mask(0), FAR)),
    "d": refcoco_queries("d", (0.5, flat_mask(80, start=20), [1, 1, 11, 10]), (0.5, flat_mask(80), [0, 0, 10, 10])),
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
    "box_P@0.5_GIoU": 75.0,  # ReferFormer counts 1/2 itself
}


def refcoco(items: str = "abcd") -> RefcocoEvaluator:
    return RefcocoEvaluator(list(items), GROUND_TRUTH.__getitem__)


def test_by_hand() -> None:
    found: Evaluator = refcoco()
    found.update(list(PREDICTIONS.values()))
    assert found.results() == pytest.approx(RESULTS, abs=1e-12)


def test_a_missing_prediction_is_wrong_and_its_pixels_count() -> None:
    found = refcoco()
    found.update([PREDICTIONS["a"], PREDICTIONS["b"]])
    results = found.results()
    assert found.counts() == {"items": 4, "items_without_prediction": 2}
    assert results["oIoU"] == pytest.approx(100 * 19 / (10 + 20 + 30 + 80))
    assert results["mIoU"] == pytest.approx(100 * 1.4 / 4)
    assert (results["P@0.5"], results["box_P@0.5"]) == (25, 25)


def test_nothing_predicted() -> None:
    assert set(refcoco().results().values()) == {0.0}


def test_processes_are_joined_in_any_order_and_nothing_counts_twice() -> None:
    first, second, third = refcoco(), refcoco(), refcoco()
    first.update([PREDICTIONS["c"], PREDICTIONS["a"]])
    second.update([PREDICTIONS["a"], PREDICTIONS["d"], PREDICTIONS["a"]])  # a sampler has filled up with a
    third.update([PREDICTIONS["b"]])
    states = pickle.loads(pickle.dumps([second.state(), third.state()]))
    first.merge(states)
    assert first.results() == pytest.approx(RESULTS, abs=1e-12)
    assert first.counts() == {"items": 4, "items_without_prediction": 0}


def test_equal_sentences_are_two_items() -> None:
    """Items are identified by id, so two items with the same sentence both count."""
    found = RefcocoEvaluator(["refcoco_val_1", "refcoco_val_2"], lambda item: GROUND_TRUTH["a"])
    right, wrong = (0.5, flat_mask(10), [0, 0, 10, 10]), (0.5, flat_mask(10, start=100), FAR)
    found.update([refcoco_queries("refcoco_val_1", right), refcoco_queries("refcoco_val_2", wrong)])
    assert found.results()["mIoU"] == 50 and found.results()["oIoU"] == pytest.approx(100 * 10 / 30)


def test_two_empty_masks_agree() -> None:
    found = RefcocoEvaluator(["e"], lambda item: ReferredObject(flat_mask(0), np.zeros(4)))
    found.update([refcoco_queries("e", (0.5, flat_mask(0), FAR))])
    assert {found.results()[name] for name in ("oIoU", "mIoU", "P@0.9")} == {100.0}


@pytest.mark.parametrize("bad", ["score", "box"])
def test_what_is_not_finite_stops(bad: str) -> None:
    wrong = refcoco_queries(
        "a", (np.nan if bad == "score" else 0.5, flat_mask(1), [0, 0, 1, np.inf if bad == "box" else 1])
    )
    with pytest.raises(RunError, match="the prediction for a is not finite"):
        refcoco().update([wrong])


def test_masks_of_another_size_and_no_item() -> None:
    wrong = QueryPredictions("a", np.ones(1, np.float32), np.zeros((1, 5, 5), bool), np.zeros((1, 4), np.float32))
    with pytest.raises(UserError, match=r"the masks for a have size \(5, 5\) .* \(10, 20\)"):
        refcoco().update([wrong])
    with pytest.raises(UserError, match="there is no item to evaluate"):
        refcoco("")
