"""Overlap of masks, item by item, as the papers report it: P@K, oIoU and mIoU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def overlap_metrics(intersections: Sequence[int], unions: Sequence[int]) -> dict[str, float]:
    """Metrics over items with one true and one predicted mask each.

    ``P@K`` is the share of items whose IoU is above K (strictly), ``oIoU`` the sum of all intersections over the sum of
    all unions, ``mIoU`` the mean IoU. Two empty masks have an IoU of 1, and add nothing to ``oIoU``.

    Args:
        intersections, unions: pixels, for each item.

    Returns:
        ``P@0.5`` … ``P@0.9``, ``oIoU``, ``mIoU``, 0…100.
    """
    common, area = np.array(intersections, np.int64), np.array(unions, np.int64)
    iou = np.where(area == 0, 1.0, common / np.maximum(area, 1))
    overall = common.sum() / area.sum() if area.any() else 1.0
    precision = {f"P@{threshold}": 100 * float((iou > threshold).mean()) for threshold in THRESHOLDS}
    return {**precision, "oIoU": 100 * float(overall), "mIoU": 100 * float(iou.mean())}
