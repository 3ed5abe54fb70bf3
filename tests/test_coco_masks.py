"""COCO's segmentations: polygons and both forms of run lengths, to the pixel; damaged ones are one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from datasets.files import decode_segmentation
from tests.true_formats import compressed, uncompressed
from util.errors import UserError

L_SHAPE = np.array([[0, 1, 0], [0, 1, 1]], bool)


def decode(segmentation: Any, height: int = 2, width: int = 3) -> np.ndarray:
    return decode_segmentation(segmentation, height, width, "entry 7 of a.json")


def test_runs_go_down_the_columns() -> None:
    """Column by column: 0 0 | 1 1 | 0 1."""
    assert (decode({"size": [2, 3], "counts": [2, 2, 1, 1]}) == L_SHAPE).all()
    assert decode({"size": [2, 3], "counts": [0, 6]}).all()
    assert not decode({"size": [2, 3], "counts": [6]}).any()


def test_compressed_runs() -> None:
    """From the third on, a run is written as its difference from the one two before: 2, 2, 1, and 1 − 2."""
    assert compressed(L_SHAPE)["counts"] == "221O"
    assert (decode({"size": [2, 3], "counts": "221O"}) == L_SHAPE).all()


@pytest.mark.parametrize("seed", range(20))
def test_both_forms_of_any_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 300, 2).tolist()
    mask = rng.random((height, width)) < rng.choice([0, 0.001, 0.5, 0.999, 1])
    for form in (uncompressed, compressed):
        assert (decode(form(mask), height, width) == mask).all()


def test_polygons_are_a_union() -> None:
    left, right = [0, 0, 2, 0, 2, 4, 0, 4], [1, 1, 4, 1, 4, 3, 1, 3]
    expected = np.zeros((4, 6), bool)
    expected[:, :2] = True
    expected[1:3, 1:4] = True
    mask = decode([left, right], 4, 6)
    assert mask.dtype == bool and (mask == expected).all()


def test_polygons_are_drawn_as_pycocotools_draws_them() -> None:
    polygon = [3.2, 1.7, 17.9, 4.4, 12.1, 18.6, 5.5, 11.3]
    mask = decode([polygon], 20, 24)
    theirs = coco.merge(coco.frPyObjects([polygon], 20, 24))
    assert 50 < mask.sum() < 250 and coco.encode(np.asfortranarray(mask, np.uint8)) == theirs


POLYGONS = "lists of x, y pairs"
BAD: dict[str, tuple[Any, str]] = {
    "nothing": (None, "has no COCO 'segmentation'"),
    "no counts": ({"size": [2, 3]}, "has no COCO 'segmentation'"),
    "no polygon": ([], POLYGONS),
    "two corners": ([[0, 0, 1, 1]], "an outline of fewer than three corners"),
    "half a corner": ([[0, 0, 1, 1, 2, 2, 3]], POLYGONS),
    "no list": ([3, 4, 5, 6, 7, 8], POLYGONS),
    "text in a polygon": ([[0, 0, "a", 1, 2, 2]], POLYGONS),
    "not finite": ([[0, 0, float("nan"), 1, 2, 2]], POLYGONS),
    "far outside": ([[0, 0, 1e9, 1, 2, 2]], POLYGONS),
    "another size": ({"size": [3, 2], "counts": [6]}, r"of size \[3, 2\]"),
    "no size": ({"counts": [6]}, "of size None"),
    "runs end too early": ({"size": [2, 3], "counts": [2, 2]}, "end before the last pixel"),
    "runs go too far": ({"size": [2, 3], "counts": [2, 9]}, "damaged"),
    "a run below 0": ({"size": [2, 3], "counts": [-1, 7]}, "damaged"),
    "empty text": ({"size": [2, 3], "counts": ""}, "end before the last pixel"),
    "text that ends too early": ({"size": [2, 3], "counts": "22"}, "end before the last pixel"),
    "text of another kind": ({"size": [2, 3], "counts": "é"}, "damaged"),
    "text within a number": ({"size": [2, 3], "counts": "2P"}, "damaged"),
    "text without end": ({"size": [2, 3], "counts": "o" * 1000}, "damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_one_is_one_sentence(case: str) -> None:
    segmentation, message = BAD[case]
    with pytest.raises(UserError, match=f"^entry 7 of a.json .*{message}"):
        decode(segmentation)


@pytest.mark.parametrize("size", [(0, 3), (2, 10**9), (2, "3"), (None, None), (2.0, 3)])
def test_no_image_has_that_size(size: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="1 to 33554432 pixels"):
        decode({"size": list(size), "counts": [0]}, *size)
