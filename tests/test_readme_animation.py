"""The README's animation: which videos are shown, and what is written."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.toy import ToyParameters
from datasets.toy.scene import KINDS, full_areas
from scripts import readme_animation
from scripts.readme_animation import GAP, HEIGHT, WIDTH, grid, readable_videos
from tests.commands import run_command


def test_videos_are_chosen_by_what_is_in_them():
    parameters = ToyParameters(0, 1, 0, frames=4, height=64, width=96, seed=5, kinds=KINDS)
    first, again = (list(islice(readable_videos(parameters), 2)) for _ in range(2))
    for video, same in zip(first, again, strict=True):
        assert (video.masks == same.masks).all()
        areas = full_areas(video.scene)
        assert len(areas) in (2, 3)
        for number, area in areas.items():
            assert (video.masks == number).sum(axis=(1, 2)).min() >= 0.97 * area


def test_grid():
    tiles = [np.full((4, 6, 3), 100 + i, np.uint8) for i in range(3)]
    picture = grid(tiles)
    assert picture.shape == (2 * (4 + GAP) + GAP, 2 * (6 + GAP) + GAP, 3)
    assert picture[4 + 2 * GAP, GAP].tolist() == [102, 102, 102]


@pytest.mark.slow
def test_what_is_written(tmp_path: Path):
    words = ["--output", tmp_path / "a.webp", "--videos", 1, "--frames", 4, "--device", "cpu"]
    done = run_command(readme_animation.main, *words)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.n_frames, image.size) == (4, (WIDTH + 2 * GAP, HEIGHT + 2 * GAP))
    assert "J&F" in done.stdout and [path.name for path in tmp_path.iterdir()] == ["a.webp"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--output", "a.gif"], "--output must end in .webp, not a.gif"),
        (["--videos", "0"], "--videos must be at least 1"),
        (["--resume", "none.pth"], "none.pth does not exist"),
    ],
)
def test_mistakes(words: list[str], sentence: str):
    done = run_command(readme_animation.main, *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and sentence in done.stderr
