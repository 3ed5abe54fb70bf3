"""scripts.bench_levers: every kind of layer, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts import bench_levers
from tests.commands import run_command


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of every kind, of next to no size."""
    from torch import nn

    layers = {"plane": (nn.Conv2d, (4, 6, 3), (1, 4, 8, 8)), "time": (nn.Conv3d, (4, 4, (3, 1, 1)), (1, 4, 3, 4, 4))}
    monkeypatch.setattr(bench_levers, "CONVOLUTIONS", layers)
    monkeypatch.setattr(bench_levers, "LINEAR", {"linear": (5, 4, 6)})
    monkeypatch.setattr(bench_levers, "ATTENTION", {"attention": (1, 2, 6, 5, 8)})


def test_every_kind(small: None, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        done = run_command(bench_levers.main, "--seconds", 0, "--json", tmp_path / "levers.json")
    finally:
        torch.set_num_threads(before)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "levers.json").read_text())["operations_per_second"]
    both = {"float32", "bfloat16"}
    assert set(found["plane"]) == {*both, "bfloat16, channels-last"} and set(found["time"]) == both == set(
        found["linear"]
    )
    assert set(found["attention"]) == {*both, "float32, in blocks", "bfloat16, in blocks"}
    assert all(rate > 0 for rates in found.values() for rate in rates.values())
    assert (
        "| layer | float32 | bfloat16 | bfloat16, channels-last | float32, in blocks | bfloat16, in blocks |"
        in done.stdout
    )


def test_operations_are_counted_by_hand(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_levers, "best_time", lambda *of: 1000.0)
    found = bench_levers.measure(0)
    assert found["plane"]["float32"] == 2 * 9 * 4 * 6 * 64 and found["time"]["float32"] == 2 * 3 * 16 * 3 * 16
    assert found["linear"]["float32"] == 2 * 5 * 4 * 6 and found["attention"]["float32"] == 4 * 2 * 6 * 5 * 8
    assert bench_levers.measure(0, ["lin"]).keys() == {"linear"}


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--threads", 0), "--threads must"), (("--seconds", -1), "--seconds"), (("--only", "x"), "no layer")],
)
def test_mistakes(small: None, words: tuple[object, ...], said: str) -> None:
    done = run_command(bench_levers.main, *words)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
