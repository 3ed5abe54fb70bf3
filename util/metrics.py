"""Arithmetic of the metrics: J and F of masks, and IoU of masks and boxes.

J (region similarity) is the IoU of two masks, 1 if both are empty. F (contour accuracy) is the harmonic mean of the
precision and recall of boundary pixels that lie within a tolerance of the other mask's boundary; it is 1 if both
boundaries are empty and 0 if only one is. The tolerance is ``ceil(0.008 * image diagonal)`` pixels (8 at 854x480),
measured as Euclidean distance. The values equal those of the official DAVIS-2017 evaluation.

Masks are cropped to a window (``Shape``), so that counting and dilation, the slowest step, touch only that window. The
boundary of a mask is dilated at most once, however many masks it is compared with.

``datasets.scoring`` computes J and F over folders of PNG files, ``datasets.evaluators`` the scores of single frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_PROPOSALS = 20
VOID = 255
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of P@K
_TOLERANCE = 0.008  # of the image diagonal
_RECALL_THRESHOLD = 0.5
_DECAY_BINS = 4
_BLOCK = np.ones((2, 2), np.uint8)


# J and F of one frame


def boundary_radius(height: int, width: int) -> int:
    """Return the tolerance of F in pixels for an image size."""
    return int(np.ceil(_TOLERANCE * np.linalg.norm((height, width))))


@lru_cache
def _disk(radius: int) -> np.ndarray:
    """Return uint8 ``[2r+1, 2r+1]``, 1 where x² + y² ≤ r²."""
    axis = np.arange(-radius, radius + 1)
    return (axis[:, None] ** 2 + axis**2 <= radius**2).astype(np.uint8)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Find the boundary pixels of a mask.

    A pixel is on the boundary if it differs from its east, south or south-east neighbour. The last row compares with
    the east only, the last column with the south only, and the last corner is never on the boundary.

    Args:
        mask: bool or uint8 (0 and one other value) ``[H, W]``.

    Returns:
        uint8 ``[H, W]``, non-zero on the boundary.
    """
    # Maximum minus minimum of the 2x2 block that starts at the pixel. A replicated border implements the edge rule.
    return cv2.morphologyEx(
        mask.view(np.uint8), cv2.MORPH_GRADIENT, _BLOCK, anchor=(0, 0), borderType=cv2.BORDER_REPLICATE
    )


@dataclass(frozen=True, eq=False)
class Shape:
    """A mask of one frame, cropped to the window that J and F need.

    The window reaches ``radius + 1`` pixels beyond the bounding box of the mask, clipped to the image. It contains the
    dilated boundary. Its last row and column are background or the image's own, so the edge rule of ``boundary`` holds.

    Attributes:
        top, left: position of the window in the image.
        mask: bool ``[h, w]``, the window.
        radius: tolerance of F in pixels, from the size of the whole image.
    """

    top: int
    left: int
    mask: np.ndarray
    radius: int

    @classmethod
    def of(cls, mask: np.ndarray) -> Shape:
        """Crop a mask, bool ``[H, W]``, of a whole image."""
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
    """Return the rows and columns of the window around a bounding box (x, y, width, height)."""
    x, y, width, height = box
    margin = radius + 1
    return slice(max(y - margin, 0), y + height + margin), slice(max(x - margin, 0), x + width + margin)


def _count(pixels: np.ndarray) -> int:
    return cv2.countNonZero(pixels.view(np.uint8))


def index_shapes(index: np.ndarray, count: int) -> list[Shape]:
    """Return the shapes of objects 1…``count`` of a mask of object ids, uint8 ``[H, W]``."""
    radius = boundary_radius(*index.shape)
    # Searching only the bounding box of all objects, and only ids that occur, saves most of the time.
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
    """Compute J and F, each 0…1, of a prediction against the ground truth in one frame of the same image size."""
    top, left = max(gt.top, pred.top), max(gt.left, pred.left)
    bottom = min(gt.top + gt.mask.shape[0], pred.top + pred.mask.shape[0])
    right = min(gt.left + gt.mask.shape[1], pred.left + pred.mask.shape[1])
    disjoint = bottom <= top or right <= left or not gt.area or not pred.area

    def overlap(gt_pixels: np.ndarray, pred_pixels: np.ndarray) -> int:
        in_gt = gt_pixels[top - gt.top : bottom - gt.top, left - gt.left : right - gt.left]
        in_pred = pred_pixels[top - pred.top : bottom - pred.top, left - pred.left : right - pred.left]
        return cv2.countNonZero(cv2.bitwise_and(in_gt.view(np.uint8), in_pred.view(np.uint8)))

    intersection = 0 if disjoint else overlap(gt.mask, pred.mask)
    union = gt.area + pred.area - intersection
    j = intersection / union if union else 1.0
    if not gt.length or not pred.length:
        return j, float(gt.length == pred.length)
    if disjoint:
        return j, 0.0
    precision = overlap(gt.reach, pred.boundary) / pred.length
    recall = overlap(gt.boundary, pred.reach) / gt.length
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# J and F of a sequence


def fixed_scores(frames: Iterable[tuple[np.ndarray, np.ndarray]], objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute J and F with fixed identities: object k of the ground truth against id k of the prediction.

    This is the semi-supervised task of DAVIS. An id that is absent from the prediction is an empty mask; 255 is
    background.

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
    """Compute J and F after matching proposals to objects over the whole sequence.

    This is the unsupervised task of DAVIS. The Hungarian method gives every object one proposal, maximising the sum of
    (mean J + mean F) / 2. Void pixels of the ground truth (255) are first removed from both masks.

    Args:
        frames: (ground truth, prediction) per frame, masks of object and proposal ids, uint8 ``[H, W]``; proposals
            1…20.
        objects: number of objects, ids 1…objects.

    Returns:
        J and F, float64 ``[objects, T]``, and the proposal id of each object (None if there are fewer proposals than
        objects and the object was matched to an empty mask).
    """
    from scipy.optimize import linear_sum_assignment  # importing SciPy takes longer than scoring a short video

    rows = max(MAX_PROPOSALS, objects)
    proposals = 0
    table = []  # [T][rows][objects] of (J, F)
    for gt, pred in frames:
        proposals = max(proposals, int(pred.max()))
        assert proposals <= MAX_PROPOSALS, "datasets.scoring checks the number of proposals"
        void = gt == VOID
        if void.any():
            gt, pred = np.where(void, 0, gt), np.where(void, 0, pred)
        gt_shapes, pred_shapes = index_shapes(gt, objects), index_shapes(pred, rows)
        table.append([[shape_scores(gt_shape, pred_shape) for gt_shape in gt_shapes] for pred_shape in pred_shapes])
    # As in the official code, an unused id below the highest one is an empty proposal that can be matched. Ids above
    # it are only added where there are fewer proposals than objects.
    scores = np.ascontiguousarray(np.array(table)[:, : max(proposals, objects)].transpose(3, 1, 2, 0))
    quality = scores.mean(axis=3).sum(axis=0) / 2  # [proposals, objects]
    chosen, matched = linear_sum_assignment(quality, maximize=True)
    by_object = chosen[np.argsort(matched)]
    j, f = scores[:, by_object, np.arange(objects)]  # each [objects, T]
    ids = [int(row) + 1 if row < proposals else None for row in by_object]
    return j, f, ids


def statistics(values: np.ndarray) -> tuple[float, float, float]:
    """Compute mean, recall and decay of one object's J or F over the frames, as DAVIS reports them.

    Recall is the share of frames strictly above 0.5. Decay is the mean of the first quarter minus the mean of the last,
    where neighbouring quarters share a frame.

    Args:
        values: ``[T]``, T ≥ 1.
    """
    # The official code stores these indices in 8 bits and is therefore wrong from 256 frames on.
    limits = np.round(np.linspace(1, len(values), _DECAY_BINS + 1) + 1e-10).astype(int) - 1
    first, last = values[: limits[1] + 1], values[limits[-2] :]
    recall, decay = np.mean(values > _RECALL_THRESHOLD), np.mean(first) - np.mean(last)
    return float(np.mean(values)), float(recall), float(decay)


# Temporal consistency


def chosen_object(pred: Shape, objects: Mapping[Any, np.ndarray]) -> Any:
    """Return the key of the object, bool ``[H, W]``, that a mask overlaps most; None if it overlaps none."""
    height, width = pred.mask.shape
    window = slice(pred.top, pred.top + height), slice(pred.left, pred.left + width)
    areas = {key: _count(mask[window] & pred.mask) for key, mask in objects.items()}
    best = max(areas, key=areas.__getitem__, default=None)
    return best if areas.get(best) else None


def switch_rate(chosen: Sequence[Any]) -> float:
    """Compute the share of a video's frames after the first, 0…1, in which the chosen object changes.

    Args:
        chosen: the key of each frame's object, see ``chosen_object``. A frame without one (None) keeps the last one.
    """
    keys = [key for key in chosen if key is not None]
    return sum(one != other for one, other in pairwise(keys)) / max(len(chosen) - 1, 1)


def motion(previous: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find out where the pixels of a frame were in the previous frame.

    The background is at rest. An object moves by the whole number of pixels at which its masks overlap most, so this
    suits objects that keep their shape.

    Args:
        previous, current: object id of every pixel, 0 for the background: uint8 ``[H, W]``.

    Returns:
        The index of each pixel's source in the flattened previous frame, int ``[H, W]``, and whether the source is
        visible there, which is to say belongs to the same object or also to the background: bool ``[H, W]``.
    """
    places = np.arange(current.size).reshape(current.shape)
    source = places
    for obj_id in np.intersect1d(previous, current):
        if obj_id:
            now = current == obj_id
            source = np.where(now, np.roll(places, _displacement(previous == obj_id, now), (0, 1)), source)
    return source, previous.ravel()[source] == current


def _displacement(previous: np.ndarray, current: np.ndarray) -> tuple[int, int]:
    """Return the rows and columns by which one mask must move to overlap another most; both show something."""
    x, y, width, height = cv2.boundingRect(previous.view(np.uint8))
    padded = np.pad(current.view(np.uint8), ((height, height), (width, width)))
    overlaps = cv2.matchTemplate(padded, previous[y : y + height, x : x + width].view(np.uint8), cv2.TM_CCORR)
    row, column = np.unravel_index(np.rint(overlaps).argmax(), overlaps.shape)
    return int(row) - height - y, int(column) - width - x


def warped_j(previous: np.ndarray, current: np.ndarray, source: np.ndarray, visible: np.ndarray) -> float:
    """Compute J, 0…1, of a mask against the one of the previous frame, warped by ``motion``, where that is known.

    Args:
        previous, current: predicted masks, bool ``[H, W]``.
        source, visible: what ``motion`` returned.
    """
    warped = previous.ravel()[source] & visible
    union = _count(warped | (current & visible))
    return _count(warped & current) / union if union else 1.0


# Single frames


@dataclass(frozen=True)
class QueryPredictions:
    """Predictions of a model for one item, which is a frame or image with one expression.

    Attributes:
        item: id of the item, for example ``v_<video>_f_<frame>_i_<instance>``.
        scores: float32 ``[Q]``, 0…1, how likely each query is the referred object; None: there is one mask (Q = 1)
            without a score.
        masks: bool ``[Q, H, W]`` at the frame's original size.
        boxes: float32 ``[Q, 4]``, xyxy pixels at the frame's original size; None without boxes.
        finite: whether the masks were finite before they were compared with the threshold.
    """

    item: str
    scores: NDArray[np.float32] | None
    masks: NDArray[np.bool_]
    boxes: NDArray[np.float32] | None
    finite: bool = True


def overlap_metrics(intersections: Sequence[int], unions: Sequence[int]) -> dict[str, float]:
    """Compute P@K, oIoU and mIoU over items with one ground-truth and one predicted mask each.

    ``P@K`` is the share of items whose IoU is strictly above K, ``oIoU`` the sum of all intersections divided by the
    sum of all unions, ``mIoU`` the mean IoU. Two empty masks have an IoU of 1 and add nothing to ``oIoU``.

    Args:
        intersections, unions: pixels of each item.

    Returns:
        ``P@0.5`` … ``P@0.9``, ``oIoU``, ``mIoU``, 0…100.
    """
    intersection, union = np.array(intersections, np.int64), np.array(unions, np.int64)
    iou = np.where(union == 0, 1.0, intersection / np.maximum(union, 1))
    overall = intersection.sum() / union.sum() if union.any() else 1.0
    precision = {f"P@{threshold}": 100 * float((iou > threshold).mean()) for threshold in THRESHOLDS}
    return {**precision, "oIoU": 100 * float(overall), "mIoU": 100 * float(iou.mean())}


def box_overlaps(one: NDArray[Any], other: NDArray[Any]) -> tuple[float, float]:
    """Compute the IoU, 0…1, and the generalised IoU, −1…1 (Rezatofighi et al., CVPR 2019), of two boxes ``[4]``, xyxy.

    Both are 0 if neither box has an area.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    intersection = float(np.prod(sides.clip(0)))
    areas = (float(np.prod((box[2:] - box[:2]).clip(0))) for box in (one, other))
    union = sum(areas) - intersection
    if union <= 0:
        return 0.0, 0.0
    hull = float(np.prod(np.maximum(one[2:], other[2:]) - np.minimum(one[:2], other[:2])))
    return intersection / union, intersection / union - (hull - union) / hull
