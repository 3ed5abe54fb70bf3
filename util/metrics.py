"""J and F, exactly as the official DAVIS-2017 evaluation computes them, at a fraction of its cost.

J (region similarity) is the intersection over union of two masks, 1 if both are empty.
F (contour accuracy) is the harmonic mean of precision and recall of boundary pixels that lie
within a tolerance of the other mask's boundary; 1 if both boundaries are empty, 0 if one is.
The tolerance is ``ceil(0.008 · image diagonal)`` pixels, 8 at 854×480, and Euclidean.

Why it is fast and still exact: a mask is kept as the bytes of a window around it (``Shape``), so
that every count and the dilation, by far the dearest step, touch only that window. A dilated
boundary is computed at most once per mask, however many other masks it is compared with.

Two protocols over a sequence: ``fixed_scores`` (object k against prediction k, the
semi-supervised task) and ``matched_scores`` (proposals matched to objects by the Hungarian
method, the unsupervised task). ``expression_scores`` serves masks that are in memory anyway.
Folders of PNG files are read and scored by ``util.jf_davis`` and ``util.jf_expressions``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import cv2
import numpy as np

MAX_PROPOSALS = 20
VOID = 255
_TOLERANCE = 0.008  # of the image diagonal
_RECALL_THRESHOLD = 0.5
_DECAY_BINS = 4
_BLOCK = np.ones((2, 2), np.uint8)


def boundary_radius(height: int, width: int) -> int:
    """The tolerance of F in pixels for images of this size."""
    return int(np.ceil(_TOLERANCE * np.linalg.norm((height, width))))


@lru_cache
def _disk(radius: int) -> np.ndarray:
    """uint8 ``[2r+1, 2r+1]``, 1 where x² + y² ≤ r²."""
    axis = np.arange(-radius, radius + 1)
    return (axis[:, None] ** 2 + axis**2 <= radius**2).astype(np.uint8)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Boundary pixels of a whole image's mask.

    A pixel is boundary if it differs from its east, south or south-east neighbour; the last row
    looks east only, the last column south only, the corner is never boundary.

    Args:
        mask: bool or uint8 (0 and one other value) ``[H, W]``.

    Returns:
        uint8 ``[H, W]``, non-zero on the boundary.
    """
    # The largest less the smallest value of the 2×2 block that starts at the pixel. Repeating the
    # border makes the neighbours outside equal to those inside, which is just the edge rule.
    return cv2.morphologyEx(
        mask.view(np.uint8), cv2.MORPH_GRADIENT, _BLOCK, anchor=(0, 0), borderType=cv2.BORDER_REPLICATE
    )


@dataclass(frozen=True, eq=False)
class Shape:
    """One mask of one frame, cropped to a window that also holds everything F needs of it.

    The window reaches ``radius + 1`` pixels beyond the mask's bounding box, clipped to the image.
    Boundary and dilated boundary are therefore complete, and because the window's last row and
    column are either background or the image's own, the edge rule of ``boundary`` holds in it.

    Attributes:
        top, left: position of the window in the image.
        mask: bool ``[h, w]``, the window.
        radius: tolerance of F, from the size of the whole image.
    """

    top: int
    left: int
    mask: np.ndarray
    radius: int

    @classmethod
    def of(cls, mask: np.ndarray) -> Shape:
        """The shape of a mask, bool ``[H, W]``, of a whole image."""
        radius = boundary_radius(*mask.shape)
        rows, columns = _window(cv2.boundingRect(mask.view(np.uint8)), radius)
        return cls(rows.start, columns.start, mask[rows, columns], radius)

    @cached_property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return _count(self.mask)

    @cached_property
    def boundary(self) -> np.ndarray:
        """Boundary pixels, uint8 ``[h, w]``."""
        return boundary(self.mask)

    @cached_property
    def length(self) -> int:
        """Number of boundary pixels."""
        return _count(self.boundary)

    @cached_property
    def reach(self) -> np.ndarray:
        """Pixels within ``radius`` of the boundary, uint8 ``[h, w]``."""
        return cv2.dilate(self.boundary, _disk(self.radius))


def _window(box: Sequence[int], radius: int) -> tuple[slice, slice]:
    """Rows and columns of the window around a bounding box (x, y, width, height)."""
    x, y, width, height = box
    margin = radius + 1
    return slice(max(y - margin, 0), y + height + margin), slice(max(x - margin, 0), x + width + margin)


def _count(pixels: np.ndarray) -> int:
    return cv2.countNonZero(pixels.view(np.uint8))


def index_shapes(index: np.ndarray, count: int) -> list[Shape]:
    """The shapes of objects 1…``count`` of a mask of object ids, uint8 ``[H, W]``."""
    radius = boundary_radius(*index.shape)
    # Objects are looked for inside the box of all of them, and not above the highest id.
    x, y, width, height = cv2.boundingRect(index)
    inner = index[y : y + height, x : x + width]
    highest = min(count, int(inner.max(initial=0)))
    shapes = []
    for number in range(1, highest + 1):
        box_x, box_y, *extent = cv2.boundingRect((inner == number).view(np.uint8))
        rows, columns = _window((x + box_x, y + box_y, *extent), radius)
        shapes.append(Shape(rows.start, columns.start, index[rows, columns] == number, radius))
    absent = Shape(0, 0, np.zeros((1, 1), bool), radius)
    return shapes + [absent] * (count - highest)


def shape_scores(gt: Shape, pred: Shape) -> tuple[float, float]:
    """J and F, each 0…1, of a prediction against the ground truth in one frame of the same image size."""
    top, left = max(gt.top, pred.top), max(gt.left, pred.left)
    bottom = min(gt.top + gt.mask.shape[0], pred.top + pred.mask.shape[0])
    right = min(gt.left + gt.mask.shape[1], pred.left + pred.mask.shape[1])
    apart = bottom <= top or right <= left or not gt.area or not pred.area

    def overlap(gt_pixels: np.ndarray, pred_pixels: np.ndarray) -> int:
        in_gt = gt_pixels[top - gt.top : bottom - gt.top, left - gt.left : right - gt.left]
        in_pred = pred_pixels[top - pred.top : bottom - pred.top, left - pred.left : right - pred.left]
        return cv2.countNonZero(cv2.bitwise_and(in_gt.view(np.uint8), in_pred.view(np.uint8)))

    intersection = 0 if apart else overlap(gt.mask, pred.mask)
    union = gt.area + pred.area - intersection
    j = intersection / union if union else 1.0
    if not gt.length or not pred.length:
        return j, float(gt.length == pred.length)
    if apart:
        return j, 0.0
    precision = overlap(gt.reach, pred.boundary) / pred.length
    recall = overlap(gt.boundary, pred.reach) / gt.length
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def expression_scores(gt_masks: np.ndarray, pred: np.ndarray) -> tuple[float, float]:
    """J and F of one expression: the means over all its frames.

    Args:
        gt_masks: bool ``[T, H, W]``, the mask of the referred object in every frame (empty where
            it is not visible).
        pred: bool ``[T, H, W]``, the predicted masks.

    Returns:
        (J, F), each 0…1.

    Raises:
        ValueError: the shapes differ, are not ``[T, H, W]`` or hold no frame.
    """
    if gt_masks.shape != pred.shape or gt_masks.ndim != 3 or not len(gt_masks):
        raise ValueError(f"expected two arrays [T, H, W] of one shape, got {gt_masks.shape} and {pred.shape}")
    pairs = zip(gt_masks.astype(bool, copy=False), pred.astype(bool, copy=False), strict=True)
    j, f = np.mean([shape_scores(Shape.of(truth), Shape.of(guess)) for truth, guess in pairs], axis=0)
    return float(j), float(f)


class Statistics(NamedTuple):
    """What DAVIS reports of one object's J or F over the frames."""

    mean: float
    recall: float
    decay: float


def statistics(values: np.ndarray) -> Statistics:
    """Mean, recall and decay of one object's scores over the frames.

    Recall is the share of frames strictly above 0.5; decay is the mean of the first quarter less
    the mean of the last, where neighbouring quarters share their limiting frame.

    Args:
        values: ``[T]``, T ≥ 1, any length (the official code breaks from 256 frames on).
    """
    limits = np.round(np.linspace(1, len(values), _DECAY_BINS + 1) + 1e-10).astype(int) - 1
    first, last = values[: limits[1] + 1], values[limits[-2] :]
    return Statistics(
        float(np.mean(values)), float(np.mean(values > _RECALL_THRESHOLD)), float(np.mean(first) - np.mean(last))
    )


def fixed_scores(frames: Iterable[tuple[np.ndarray, np.ndarray]], objects: int) -> tuple[np.ndarray, np.ndarray]:
    """J and F with fixed identities: object k of the ground truth against id k of the prediction.

    An id that is absent from the prediction is an empty mask; 255 is background.

    Args:
        frames: (ground truth, prediction) per frame, masks of object ids, uint8 ``[H, W]``.
        objects: number of objects, ids 1…objects.

    Returns:
        J and F, float64 ``[objects, T]``.
    """
    pairs = (zip(index_shapes(gt, objects), index_shapes(pred, objects), strict=True) for gt, pred in frames)
    scores = np.array([[shape_scores(*pair) for pair in frame] for frame in pairs])
    return scores[..., 0].T, scores[..., 1].T


def matched_scores(
    frames: Iterable[tuple[np.ndarray, np.ndarray]], objects: int
) -> tuple[np.ndarray, np.ndarray, list[int | None]]:
    """J and F after matching proposals to objects over the whole sequence.

    Every object gets one proposal, so that the sum of (mean J + mean F) / 2 is greatest. Void
    pixels of the ground truth (255) are removed from both masks before anything.

    Args:
        frames: (ground truth, prediction) per frame, masks of object and proposal ids, uint8
            ``[H, W]``; proposals 1…20.
        objects: number of objects, ids 1…objects.

    Returns:
        J and F, float64 ``[objects, T]``, and per object the id of its proposal (None where there
        are fewer proposals than objects and the object got an empty mask).
    """
    # Imported here: it costs more time than scoring a short video, and only this task needs it.
    from scipy.optimize import linear_sum_assignment

    rows = max(MAX_PROPOSALS, objects)
    proposals = 0
    table = []  # [T][rows][objects] of (J, F)
    for gt, pred in frames:
        proposals = max(proposals, int(pred.max()))
        assert proposals <= MAX_PROPOSALS, "the reader of the files checks the number of proposals"
        void = gt == VOID
        if void.any():
            gt, pred = np.where(void, 0, gt), np.where(void, 0, pred)
        truths, guesses = index_shapes(gt, objects), index_shapes(pred, rows)
        table.append([[shape_scores(truth, guess) for truth in truths] for guess in guesses])
    # Ids between the used ones are empty proposals that may be matched; those above are not,
    # but for as many as give every object one. Both as in the official code.
    scores = np.ascontiguousarray(np.array(table)[:, : max(proposals, objects)].transpose(3, 1, 2, 0))
    quality = scores.mean(axis=3).sum(axis=0) / 2  # [proposals, objects]
    chosen, matched = linear_sum_assignment(quality, maximize=True)
    by_object = chosen[np.argsort(matched)]
    j, f = scores[:, by_object, np.arange(objects)]  # each [objects, T]
    ids = [int(row) + 1 if row < proposals else None for row in by_object]
    return j, f, ids
