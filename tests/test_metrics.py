"""J, F and their statistics against a slow, direct reading of their definitions."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from tests.jf_tools import LEFT, RIGHT, boxes, expression_scores
from util.metrics import (
    Shape,
    boundary,
    boundary_radius,
    box_overlaps,
    chosen_object,
    fixed_scores,
    index_shapes,
    matched_scores,
    motion,
    overlap_metrics,
    shape_scores,
    statistics,
    switch_rate,
    warped_j,
)

# (5, 1000) has a tolerance of 8 pixels and few enough pixels to walk one by one.
SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 11), (24, 31), (30, 200), (5, 1000)]


def direct_boundary(mask: np.ndarray) -> set[tuple[int, int]]:
    height, width = mask.shape
    pixels = mask.tolist()
    found = set()
    for y in range(height):
        for x in range(width):
            down, right = y + 1 < height, x + 1 < width
            neighbours = []
            if right:
                neighbours.append(pixels[y][x + 1])
            if down:
                neighbours.append(pixels[y + 1][x])
            if down and right:
                neighbours.append(pixels[y + 1][x + 1])
            if any(neighbour != pixels[y][x] for neighbour in neighbours):
                found.add((y, x))
    return found


def direct_scores(gt: np.ndarray, pred: np.ndarray) -> tuple[float, float]:
    union = int((gt | pred).sum())
    j = int((gt & pred).sum()) / union if union else 1.0
    edges = [direct_boundary(gt), direct_boundary(pred)]
    if not edges[0] or not edges[1]:
        return j, float(edges[0] == edges[1])
    radius = math.ceil(0.008 * math.hypot(*gt.shape))
    points = [np.array(sorted(edge)) for edge in edges]
    near = ((points[0][:, None] - points[1][None]) ** 2).sum(-1) <= radius**2  # [gt, pred]
    recall, precision = near.any(1).mean(), near.any(0).mean()
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def random_masks(seed: int, height: int, width: int) -> list[np.ndarray]:
    """Rectangles that touch every edge, scattered pixels, nothing, everything, single corners."""
    rng = np.random.default_rng(seed)
    masks = [np.zeros((height, width), bool), np.ones((height, width), bool)]
    for _ in range(5):
        mask = np.zeros((height, width), bool)
        (y0, y1), (x0, x1) = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        mask[y0:y1, x0:x1] = True
        masks += [mask, ~mask]
    masks += [rng.random((height, width)) < share for share in (0.01, 0.5, 0.99)]
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        mask = np.zeros((height, width), bool)
        mask[corner] = True
        masks.append(mask)
    return masks


@pytest.mark.parametrize("size", SIZES)
def test_boundary_is_the_defined_one(size: tuple[int, int]) -> None:
    for mask in random_masks(1, *size):
        assert set(zip(*np.nonzero(boundary(mask)), strict=True)) == direct_boundary(mask)


@pytest.mark.parametrize("size", SIZES)
def test_scores_are_the_defined_ones(size: tuple[int, int]) -> None:
    masks = random_masks(2, *size)
    rng = np.random.default_rng(3)
    for _ in range(60):
        gt, pred = (masks[number] for number in rng.integers(0, len(masks), 2))
        assert shape_scores(Shape.of(gt), Shape.of(pred)) == pytest.approx(direct_scores(gt, pred), abs=1e-12)


def test_scores_near_the_tolerance() -> None:
    """Two single pixels, 8 apart and a bit more: 8 is within the tolerance at 5×1000, √65 is not."""
    gt = np.zeros((5, 1000), bool)
    gt[2, 500] = True
    for dy, dx in ((0, 7), (0, 8), (0, 9), (1, 8), (2, 8), (2, 9), (0, 10), (0, 40)):
        pred = np.zeros_like(gt)
        pred[2 + dy, 500 + dx] = True
        scores = shape_scores(Shape.of(gt), Shape.of(pred))
        assert scores == pytest.approx(direct_scores(gt, pred), abs=1e-12)
        if dx == 40:
            assert scores == (0.0, 0.0)


def test_index_shapes_are_the_shapes_of_each_object() -> None:
    rng = np.random.default_rng(4)
    for size in SIZES:
        index = rng.integers(0, 5, size, dtype=np.uint8)
        index[rng.random(size) < 0.7] = 0
        index[: size[0] // 3] = 0
        for number, shape in enumerate(index_shapes(index, 6), start=1):
            other = Shape.of(index == number)
            assert shape.area == other.area == int((index == number).sum())
            assert shape.length == other.length
            assert shape_scores(shape, other) == (1.0, 1.0)
            direct = direct_scores(index == number, index == 1)
            assert shape_scores(shape, Shape.of(index == 1)) == pytest.approx(direct, abs=1e-12)


@pytest.mark.parametrize(
    ("gt", "pred", "expected"),
    [("empty", "empty", (1, 1)), ("empty", "box", (0, 0)), ("box", "empty", (0, 0)), ("full", "full", (1, 1)),
     ("full", "empty", (0, 1)), ("full", "box", (0.25, 0)), ("box", "box", (1, 1))],
)  # fmt: skip
def test_empty_and_full_masks(gt: str, pred: str, expected: tuple[float, float]) -> None:
    masks = {"empty": np.zeros((20, 30), bool), "full": np.ones((20, 30), bool), "box": np.zeros((20, 30), bool)}
    masks["box"][:10, :15] = True
    assert shape_scores(Shape.of(masks[gt]), Shape.of(masks[pred])) == expected


def test_tolerance_in_pixels() -> None:
    assert [boundary_radius(*size) for size in ((480, 854), (600, 800), (720, 1280), (3, 4))] == [8, 8, 12, 1]


def test_expression_scores_are_means_over_frames() -> None:
    masks = np.stack(random_masks(5, 24, 31))
    others = masks[::-1]
    expected = np.mean([direct_scores(gt, pred) for gt, pred in zip(masks, others, strict=True)], axis=0)
    assert expression_scores(masks, others) == pytest.approx(tuple(expected), abs=1e-12)


def test_statistics_by_hand() -> None:
    # Eight frames: limits 1, 2.75 → 3, 4.5 → 5 (half goes up), 6.25 → 6, 8; quarters share limits.
    values = np.array([0.9, 0.5, 0.4, 0.6, 0.7, 0.2, 0.1, 0.3])
    mean, recall, decay = statistics(values)
    assert mean == pytest.approx(3.7 / 8)
    assert recall == 3 / 8  # 0.5 itself does not count
    assert decay == pytest.approx((0.9 + 0.5 + 0.4) / 3 - (0.2 + 0.1 + 0.3) / 3)
    assert statistics(np.array([0.25])) == (0.25, 0.0, 0.0)


@pytest.mark.parametrize(
    ("length", "first", "last"), [(255, 65, 191), (256, 65, 191), (257, 65, 192), (1000, 251, 749)]
)
def test_decay_of_long_videos(length: int, first: int, last: int) -> None:
    """``first`` frames in the first quarter; the last starts at index ``last``."""
    values = np.random.default_rng(length).random(length)
    assert statistics(values)[2] == pytest.approx(values[:first].mean() - values[last:].mean(), abs=1e-12)


def sequence(seed: int, frames: int, highest: int, void: bool = False) -> list[np.ndarray]:
    """Masks of ids as blocks of 6×7 pixels, so that objects are neither dust nor whole."""
    rng = np.random.default_rng(seed)
    masks = [np.kron(rng.integers(0, highest + 1, (4, 4)), np.ones((6, 7))).astype(np.uint8) for _ in range(frames)]
    for mask in masks if void else []:
        mask[rng.random(mask.shape) < 0.1] = 255
    return masks


def test_fixed_scores_with_an_object_that_is_absent_from_the_prediction() -> None:
    gts, preds = sequence(6, 5, 3, void=True), sequence(7, 5, 2)
    j, f = fixed_scores(zip(gts, preds, strict=True), 3)
    assert j.shape == f.shape == (3, 5)
    for number in (1, 2, 3):
        for t, (gt, pred) in enumerate(zip(gts, preds, strict=True)):
            expected = direct_scores(gt == number, pred == number)
            assert (j[number - 1, t], f[number - 1, t]) == pytest.approx(expected, abs=1e-12)
    assert (j[2] == 0).all()


@pytest.mark.parametrize("proposals", [2, 3, 5])
def test_matched_scores_are_the_best_of_all_assignments(proposals: int) -> None:
    objects, frames = 3, 4
    gts, preds = sequence(8, frames, objects, void=True), sequence(9, frames, proposals)
    rows = max(proposals, objects)
    table = np.array(
        [
            [
                [direct_scores((gt == o) & (gt != 255), (pred == p) & (gt != 255)) for o in range(1, objects + 1)]
                for p in range(1, rows + 1)
            ]
            for gt, pred in zip(gts, preds, strict=True)
        ]
    )  # [T, proposals, objects, 2]
    quality = table.mean(axis=(0, 3))
    best = max(permutations(range(rows), objects), key=lambda chosen: quality[list(chosen), range(objects)].sum())

    j, f, ids = matched_scores(zip(gts, preds, strict=True), objects)
    assert ids == [row + 1 if row < proposals else None for row in best]
    for o, row in enumerate(best):
        assert j[o] == pytest.approx(table[:, row, o, 0], abs=1e-12)
        assert f[o] == pytest.approx(table[:, row, o, 1], abs=1e-12)


def test_pixels_are_followed_to_the_previous_frame() -> None:
    previous, current = np.zeros((9, 12), np.uint8), np.zeros((9, 12), np.uint8)
    previous[1:5, 1:5], current[3:7, 4:8] = 1, 1  # moves by 2 rows and 3 columns
    previous[4:8, 7:11] = current[4:8, 7:11] = 2  # at rest, in front
    source, visible = motion(previous, current)
    rows, columns = np.divmod(source, 12)
    assert (rows[3, 4], columns[3, 4], visible[3, 4]) == (1, 1, True)
    assert (rows[5, 9], columns[5, 9], visible[5, 9]) == (5, 9, True)
    uncovered = (previous == 1) & (current == 0)
    assert np.array_equal(visible, ~uncovered)
    assert warped_j(previous == 1, current == 1, source, visible) == 1
    assert warped_j(previous == 1, current == 2, source, visible) == 0


def test_switches_are_counted_from_the_last_chosen_object() -> None:
    left, right = Shape.of(boxes(LEFT)), Shape.of(boxes(RIGHT))
    objects = {3: boxes(RIGHT), 1: boxes(LEFT)}
    assert (chosen_object(left, objects), chosen_object(right, objects)) == (1, 3)
    assert chosen_object(left, {3: boxes(RIGHT)}) is None and chosen_object(left, {}) is None
    assert switch_rate([None, 1, None, 1, 3]) == 1 / 4
    assert switch_rate([1, None, 3]) == 1 / 2
    assert switch_rate([1]) == switch_rate([None, None]) == 0


def test_matched_scores_undo_swapped_ids() -> None:
    gts = sequence(10, 6, 4)
    swap = np.array([0, 3, 1, 4, 2], np.uint8)
    j, f, ids = matched_scores(((gt, swap[gt]) for gt in gts), 4)
    assert ids == [3, 1, 4, 2]
    assert (j == 1).all()
    assert (f == 1).all()


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
    found = box_overlaps(np.array(one), np.array(other))
    assert found[0] == expected and found == box_overlaps(np.array(other), np.array(one))


def test_overlap_of_many_pixels() -> None:
    """Sums of pixels exceed 32 bits in a set of ten thousand images."""
    metrics = overlap_metrics([300_000] * 20_000, [400_000] * 20_000)
    assert metrics["oIoU"] == metrics["mIoU"] == 75 and metrics["P@0.7"] == 100 and metrics["P@0.8"] == 0


def test_generalised_iou_of_boxes() -> None:
    from torchvision.ops import generalized_box_iou

    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 50, (40, 2, 2)), axis=1).reshape(40, 4)
    expected = generalized_box_iou(torch.from_numpy(corners[:20]), torch.from_numpy(corners[20:])).diagonal()
    found = [box_overlaps(one, other)[1] for one, other in zip(corners[:20], corners[20:], strict=True)]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)
