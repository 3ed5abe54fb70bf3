"""Two and four processes, and accumulated batches, train as one process with the same global batch does.

Frames are of equal size, nothing is dropped out, and latents are the posterior's mode: what is random in a step
depends on the process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.commands import read_checkpoint
from tests.forks import Forks

STEPS = 3
RUNS = {"one": (1, 4, 1), "two": (2, 2, 1), "four": (4, 1, 1), "accumulated": (1, 1, 4), "both": (2, 1, 2)}
"""Processes, batch size, batches per step: four clips per step in all."""
VALIDATED = ("one", "two")
"""Those that are scored after their last step."""
TOLERANCE = 1e-3
"""Of losses and gradients; and of the weights, as a share of how far they have moved."""


@pytest.fixture(scope="module")
def folder(forks: Forks, small_stack: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folders of all runs, and of one without a step in ``none``."""
    folder = tmp_path_factory.mktemp("runs")
    options = {
        **{"config": "configs/vdit_toy.yaml", "pretrained": small_stack, "ytvos_path": toy_data, "device": "cpu"},
        **{"dim_feedforward": 64, "posterior": "mode", "max_steps": STEPS, "log_every": 1, "warmup_steps": 0},
        **{"num_frames": 2, "train_scales": 48, "max_size": 72, "eval_size": 48},
    }
    for name, (processes, batch_size, accumulate) in RUNS.items():
        own = {"batch_size": batch_size, "accumulate": accumulate, "lr_processes": processes}
        if name in VALIDATED:
            own["eval_every"] = 1
        flags = {**options, **own, "output_dir": folder / name}
        words = (word for key, value in flags.items() for word in (f"--{key}", value))
        forks.run(folder / f"said of {name}", processes, "run_main", *words)
    return folder


@pytest.fixture(scope="module")
def weights(folder: Path) -> Callable[[str], dict[str, Tensor]]:
    return lambda name: read_checkpoint(folder / name / "checkpoint.pth", "vdit")["weights"]


def _log(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name != "one"])
def test_losses_and_weights_are_those_of_one_process(folder: Path, weights: Callable, name: str) -> None:
    expected, found = _log(folder / "one"), _log(folder / name)
    assert [line["step"] for line in found] == [line["step"] for line in expected] == list(range(1, STEPS + 1))
    for theirs, ours in zip(expected, found, strict=True):
        terms = [key for key in theirs if key.startswith("loss") or key in ("grad_norm", "lr")]
        assert len(terms) > 10
        for key in terms:
            assert ours[key] == pytest.approx(theirs[key], rel=TOLERANCE, abs=1e-5), (ours["step"], key)
    one, other = weights("one"), weights(name)
    assert one.keys() == other.keys()
    moved = expected[-1]["lr"] * STEPS  # AdamW moves every weight by about the rate
    distance = torch.cat([(one[key] - other[key]).flatten() for key in one])
    assert float(distance.square().mean().sqrt()) < TOLERANCE * moved


@pytest.mark.slow
def test_two_processes_validate_each_video_once(folder: Path) -> None:
    one, two = (json.loads((folder / name / "validation" / f"step_{STEPS:06d}.json").read_text()) for name in VALIDATED)
    assert (one["about"]["processes"], two["about"]["processes"]) == (1, 2)
    assert one["counts"] == two["counts"] and one["counts"]["videos"] > 1
    assert two["metrics"] == pytest.approx(one["metrics"], abs=0.5)  # a pixel's sign may differ with the last digits
