"""Padding cut off before the resize, original size, probabilities, thresholds, boxes in pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import inference as postprocessors
from models.inference import binary_masks, mask_probabilities, pixel_boxes


def test_padding_has_no_influence():
    """Cut before the resize, or else the padding's logits bleed into the last rows and columns."""
    logits = torch.full((2, 32, 48), 1000.0)
    logits[:, :20, :40] = -3.0
    probabilities = mask_probabilities(logits, (20, 40), (45, 90))
    assert probabilities.shape == (2, 45, 90)
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, -3.0).sigmoid())


def test_the_logits_are_resized_not_the_probabilities():
    logits = torch.tensor([[[-8.0, 4.0]]])
    probabilities = mask_probabilities(logits, (1, 2), (1, 4))
    torch.testing.assert_close(probabilities, torch.tensor([[[-8.0, -5.0, 1.0, 4.0]]]).sigmoid())


def test_same_size_is_the_sigmoid():
    logits = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mask_probabilities(logits, (16, 16), (16, 16)), logits.sigmoid())


def test_half_precision_is_resized_in_float32():
    probabilities = mask_probabilities(torch.zeros(1, 16, 16, dtype=torch.bfloat16), (16, 16), (20, 20))
    assert probabilities.dtype == torch.float32


@pytest.mark.parametrize(("threshold", "share"), [(0.0, 1.0), (0.5, 0.5), (0.6, 0.25), (1.0, 0.0)])
def test_threshold_is_inclusive(threshold: float, share: float):
    logits = torch.tensor([-4.0, -1.0, 0.0, 3.0]).expand(1, 4, 4)
    masks = binary_masks(logits, (4, 4), (4, 4), threshold)
    assert masks.dtype == torch.bool
    assert masks.float().mean() == share


def test_long_clips_are_the_same_in_parts():
    frames = 2 * postprocessors.FRAMES_AT_ONCE + 3
    logits = torch.randn(frames, 16, 32, generator=torch.Generator().manual_seed(0))
    masks = binary_masks(logits, (12, 30), (50, 70), 0.5)
    assert torch.equal(masks, mask_probabilities(logits, (12, 30), (50, 70)) >= 0.5)


def test_a_size_beyond_the_logits_is_a_bug():
    with pytest.raises(AssertionError):
        mask_probabilities(torch.zeros(1, 16, 16), (17, 16), (20, 20))


def test_pixel_boxes():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.2], [0.0, 1.0, 0.5, 0.5]])
    corners = pixel_boxes(boxes, (100, 200))
    np.testing.assert_allclose(corners, [[50, 40, 150, 60], [0, 75, 50, 100]])
