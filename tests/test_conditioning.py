"""CLIP's preprocessing and the text condition with image tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from models.diffusion.conditioning import CLIP_MEAN, CLIP_STD, CLIPPixels, resize_axis


def test_a_resize_equals_pillows() -> None:
    """Bit by bit, for 200 pairs of sizes, up and down; every other image has the steepest edges."""
    random = np.random.default_rng(0)
    for number in range(200):
        height, width = random.integers(1, 400, 2)
        new_height, new_width = random.integers(1, 300, 2)
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = np.where(image > 127, 255, 0).astype(np.uint8) if number % 2 else image
        expected = Image.fromarray(image).resize((int(new_width), int(new_height)), Image.Resampling.BICUBIC)
        levels = torch.from_numpy(image).permute(2, 0, 1)[None]
        levels = resize_axis(resize_axis(levels, int(new_width), -1), int(new_height), -2)
        assert torch.equal(levels[0].permute(1, 2, 0), torch.from_numpy(np.array(expected))), (height, width)


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (32, 32), (90, 33)])
def test_a_frame_is_prepared_as_by_pillow(size: tuple[int, int]) -> None:
    """Shortest edge, centre crop, mean and deviation; levels are those of (x + 1)·127.5, truncated."""
    image = 2 * torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) - 1
    levels = ((image + 1) * 127.5).to(torch.uint8)
    short = min(size)
    height, width = 32 * size[0] // short, 32 * size[1] // short
    picture = Image.fromarray(levels.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 32) // 2, (height - 32) // 2
    cropped = np.asarray(picture.crop((left, top, left + 32, top + 32)), np.float64) / 255
    expected = torch.from_numpy((cropped - CLIP_MEAN) / CLIP_STD).permute(2, 0, 1)
    torch.testing.assert_close(CLIPPixels(32)(image[None])[0].double(), expected, rtol=0, atol=1e-6)
