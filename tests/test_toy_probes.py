"""The probes of a toy stack's features: they read what is there, and not what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts import toy_lab as toy_probes
from tests.commands import run_command


def test_a_probe_reads_what_is_there(monkeypatch: pytest.MonkeyPatch):
    """Features that show the colour of each pixel's object, and nothing else."""
    monkeypatch.setattr(toy_probes, "TRAINING_STEPS", 40)
    truth = torch.stack([toy_probes._video(index)[1] for index in range(12)])[:, :2]
    colours = torch.nn.functional.one_hot(truth[:, :, 1] + 1).movedim(-1, 2).float()
    shares = toy_probes.probe(colours[..., ::4, ::4], truth, trained=10)
    assert shares["colour"] > 0.9
    assert shares["motion"] < 0.8 and shares["shape"] < 0.6


def test_the_table(tiny_stack: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(toy_probes, "TRAINING_STEPS", 1)
    done = run_command(toy_probes.main, "--stack", tiny_stack, "--videos", 5)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["read", "from", "colour", "shape", "motion"]
    assert [line[:7] for line in lines[1:]] == ["pixels,", "latents", "latents", "the UNe", "chance "]


def test_bad_input(tmp_path: Path):
    for words, sentence in ((("--stack", tmp_path / "none"), "none"), (("--videos", 1), "--videos must be at least 5")):
        done = run_command(toy_probes.main, *words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and sentence in done.stderr
