"""All parts learn together: a few clips are learned by heart."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from PIL import Image

from scripts import overfit
from tests.commands import run_command


def _overfit(stack: Path, data: Path, output: Path, *more: object) -> CompletedProcess[str]:
    arguments = ("--config", "configs/vdit_toy.yaml", "--pretrained", stack, "--ytvos_path", data)
    return run_command(overfit.main, *arguments, "--output_dir", output, *more)


@pytest.mark.slow
def test_two_toy_clips_are_learned(small_stack: Path, toy_data: Path, tmp_path: Path) -> None:
    result = _overfit(small_stack, toy_data, tmp_path, "--dropout", "0", "--max_steps", "500")
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-1000:]
    report = json.loads((tmp_path / "results.json").read_text())
    assert len(report["j"]) == 2
    assert min(report["j"]) >= 70
    assert report["curve"][-1][0] == report["steps"] <= 500
    for picture in ("curve.png", "overlays.png"):
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 200


@pytest.mark.slow
def test_a_target_that_is_not_reached_and_a_clip_that_is_not_there(
    small_stack: Path, toy_data: Path, tmp_path: Path
) -> None:
    once = ("--max_steps", "1", "--every", "50", "--target_j", "100")
    short = _overfit(small_stack, toy_data, tmp_path / "a", *once)
    assert short.returncode == 1
    assert "NOT reached" in short.stdout and "after 1 steps" in short.stdout
    absent = _overfit(small_stack, toy_data, tmp_path / "b", "--clips", "no_video/0")
    assert absent.returncode == 2
    assert "no_video/0" in absent.stderr and absent.stderr.count("\n") == 1
