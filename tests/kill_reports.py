"""What ``tests.kill_jobs`` kills: pictures, pages and reports, of models and measurements that stand for true ones."""

from __future__ import annotations

import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np

from models import pretrained
from scripts import baselines, bench_msda, benchmark, readme_animation
from scripts import quickstart as quickstart_script
from scripts import toy_lab as lab_script
from tests.kill_tools import CLOCK, SPEED, call, step
from util.io import write_json


def animation(source: Path, out: Path) -> None:
    """The README's animation."""

    def find(frames: np.ndarray, sentences: list[str]) -> SimpleNamespace:
        masks = np.ones(frames.shape[:3], bool)
        return SimpleNamespace(sentences=[SimpleNamespace(masks=masks) for _ in sentences])

    small = replace(readme_animation.PARAMETERS, frames=4, height=64, width=96)
    with (
        patch.object(pretrained, "load_pretrained", lambda *of: SimpleNamespace(segment=find)),
        patch.object(readme_animation, "PARAMETERS", small),
    ):
        readme_animation.main(["--output", str(out / "animation.webp")])


def operator(source: Path, out: Path) -> None:
    """The operator's times."""
    rows = [bench_msda.Row("encoder", 5, "cpp", 1.0, 2.0, None)]
    with patch.object(bench_msda, "measure", lambda *of: rows):
        words = ("--device", "cpu", "--frames", 5, "--layers", "encoder")
        call(bench_msda.main, *words, "--json", out / "operator.json")


def speed(source: Path, out: Path) -> None:
    """The benchmark's numbers."""
    result = json.loads(SPEED.read_text(encoding="utf-8"))
    with patch.multiple(benchmark, run_part=lambda *of: [{}], summarise=lambda found: result):
        benchmark.main(["--no-baseline", "--device", "cpu", "--json", str(out / SPEED.name)])


def toy_lab(source: Path, out: Path) -> None:
    """A toy lab: data, records, scores and the report."""

    def command(words: list[object], log: Path, stop: threading.Event) -> None:
        flags = dict(itertools.pairwise(map(str, words)))
        if "swap" in words:
            baselines.run_swap(Path(flags["--expressions"]), Path(flags["--output"]))
        if "--json" in flags:
            write_json(flags["--json"], {"global": {"JF": 0.5}, "per_kind": {"colour": {"JF": 0.5}}})

    words = ("--seeds", 0, "--only", "base", "--train_videos", 1, "--valid_videos", 2, "--processes", 1)
    folders = ("--stack", source / "pretrained" / "stack", "--output_dir", out / "lab")
    with patch.multiple(lab_script, call=command, time=CLOCK):
        lab_script.main([str(word) for word in (*words, *folders)])


def quickstart(source: Path, out: Path) -> None:
    """The quickstart's results."""
    with patch.multiple(quickstart_script, run=step, show=lambda *of: None, time=CLOCK):
        call(quickstart_script.main, "--output_dir", out / "quickstart")
