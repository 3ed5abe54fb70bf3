"""Segmentations as COCO's files write them (polygons, compressed and uncompressed run lengths), as masks.

Polygons are drawn by pycocotools, so that a mask is the benchmark's to the pixel. Run lengths are counted before they
are laid out: pycocotools does not, and hands out uninitialised memory for a mask whose runs end too early.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

from util.errors import UserError

MAX_SIDE = 1 << 14  # pixels: a greater image is a damaged file
_SHIFT = 48  # a compressed run is written in characters from "0" on, 5 bits each, with a sign and a bit for "goes on"


def decode_segmentation(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """The mask that a COCO annotation describes.

    Args:
        segmentation: its JSON value: a list of polygons ``[x0, y0, x1, y1, …]`` in pixels, whose union counts, or
            ``{"size": [height, width], "counts": …}`` with the runs of a column-major mask, background first, as a
            list of numbers or compressed to text.
        height, width: of the image, in pixels.
        where: file and entry, for messages.

    Returns:
        bool ``[height, width]``.

    Raises:
        UserError: it is of another form, of another size, or damaged.
    """
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in (height, width)):
        raise UserError(f"{where} is of an image of {width!r}×{height!r}; its sides should be 1 to {MAX_SIDE} pixels")
    if isinstance(segmentation, list):
        segmentation = _draw(segmentation, height, width, where)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise UserError(f"{where} has no 'segmentation' of COCO's form: a list of polygons, or run lengths")
    if segmentation.get("size") != [height, width]:
        raise UserError(
            f"{where} has a mask of size {segmentation.get('size')!r} (height, width), and its image is of "
            f"{[height, width]}; take both from one release of the dataset"
        )
    runs = _runs(segmentation["counts"], where)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise UserError(f"{where} has run lengths that do not add up to its image's {height * width} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _draw(polygons: list[Any], height: int, width: int, where: str) -> dict[str, Any]:
    """The union of polygons, in compressed run lengths."""
    reach = 2 * max(height, width)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise UserError(f"{where} has a polygon that is no list of at least three x, y pairs")
        if not all(type(value) in (int, float) and abs(value) <= reach for value in polygon):
            raise UserError(f"{where} has a polygon with a corner that is no number, or far outside of its image")
    if not polygons:
        raise UserError(f"{where} has an empty list of polygons; its object has no outline")
    drawn = coco.merge(coco.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": drawn["counts"].decode("ascii")}


def _runs(counts: Any, where: str) -> list[int]:
    """Run lengths from either of their forms."""
    if isinstance(counts, str):
        return _decompress(counts, where)
    if not isinstance(counts, list) or not all(type(run) is int for run in counts):
        raise UserError(f"{where} has run lengths that are neither a list of whole numbers nor text")
    return counts


def _decompress(text: str, where: str) -> list[int]:
    """Run lengths from COCO's text: from the third on, each is the difference from the one two before it."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - _SHIFT
        if not 0 <= bits < 64 or shift > 30:
            raise UserError(f"{where} has damaged run lengths: {text[:40]!r} is no text of compressed ones")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError(f"{where} has damaged run lengths: its text ends within a number")
    return runs
