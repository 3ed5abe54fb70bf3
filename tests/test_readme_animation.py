"""The README's animation: a frame for each of the videos', and the scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from models import pretrained
from scripts import readme_animation
from scripts.readme_animation import COLUMNS, GAP, VIDEOS
from tests.commands import run_command


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def segment(frames: np.ndarray, sentences: list[str]) -> SimpleNamespace:
        assert len(set(sentences)) in (2, 3)
        masks = np.zeros(frames.shape[:3], bool)
        return SimpleNamespace(sentences=[SimpleNamespace(masks=masks) for _ in sentences])

    small = replace(readme_animation.PARAMETERS, frames=4, height=64, width=96)
    monkeypatch.setattr(readme_animation, "PARAMETERS", small)
    monkeypatch.setattr(pretrained, "load_pretrained", lambda *of: SimpleNamespace(segment=segment))
    done = run_command(readme_animation.main, "--output", tmp_path / "a.webp")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.webp") as image:
        assert image.n_frames == 4
        assert image.size == (COLUMNS * (96 + GAP), VIDEOS // COLUMNS * (64 + GAP))
    assert "J&F 0" in done.stdout and [path.name for path in tmp_path.iterdir()] == ["a.webp"]


def test_a_missing_checkpoint() -> None:
    done = run_command(readme_animation.main, "--resume", "none.pth")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "none.pth does not exist" in done.stderr
