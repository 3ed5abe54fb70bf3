"""What the jobs of ``tests.kill_jobs`` have in common: command lines, and what stands in the place of slow parts."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from tests.conftest import ROOT
from util.io import write_json
from util.results import write_results

SPEED = ROOT / "docs" / "performance_cpu_processes.json"
"""What ``scripts.benchmark`` has once found."""
CLOCK = SimpleNamespace(monotonic=lambda: 0.0)
"""In the place of ``time``: how long something took is in no file."""


def call(main: Callable[[], int | None], *words: object) -> None:
    """Run a command that reads ``sys.argv``; its status must be 0."""
    with patch.object(sys, "argv", [main.__module__, *map(str, words)]):
        assert not main()


def step(title: str, *command: str | int | Path) -> None:
    """In the place of ``scripts.quickstart.run``: writes the scores that the command would."""
    words = [str(word) for word in command]
    flags = dict(itertools.pairwise(words))
    if "--eval" in words:
        write_results(Path(flags["--output_dir"]) / "results.json", {"J": 50.0}, {"items": 1}, {"seed": 0})
    if "--json" in words:
        write_json(flags["--json"], {"global": {"JF": 0.5}, "per_kind": {"colour": {"JF": 0.5}}})
