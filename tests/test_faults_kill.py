"""Killed at any phase: no half-written file has its final name, and the same command again gives the same files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.toy_formats_coco import write_toy_refcoco
from scripts.toy_formats_videos import write_toy_davis
from tests.commands import ROOT
from tests.inference_tools import write_halves
from tests.kill_jobs import JOBS, shown_files

pytestmark = pytest.mark.slow
RENAMES, SIZES = (1, 4), (64, 700)
"""When a process is killed: before it names this so manieth file, and where a file grows beyond so many bytes."""
POINTS = [{"rename": number} for number in RENAMES] + [{"size": size} for size in SIZES]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """Every job run without a fault (``never``), and killed at each point and repeated: status and broken files."""
    base = tmp_path_factory.mktemp("kills")
    source = base / "source"
    write_toy_davis(source / "davis_raw", num_train=1, num_valid=1, frames=4, height=48, width=64)
    write_toy_refcoco(source / "refer", sets=("refcoco",), num_train=1, num_eval=1, height=48, width=64)
    write_halves(source / "halves")
    first = [{"job": "toy", "source": str(source), "out": str(source)}]
    steps: list[dict[str, Any]] = []
    for job in JOBS:
        place = {"job": job, "source": str(source)}
        steps.append({**place, "out": str(base / job / "never")})
        for number, point in enumerate(POINTS):
            steps += [{**place, "out": str(base / job / str(number)), **more} for more in (point, {})]
    (base / "plan.json").write_text(json.dumps([*first, *steps]))
    words = [sys.executable, "-m", "tests.kill_jobs", str(base / "plan.json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads(done.stdout.splitlines()[-1])[1:]
    each = len(steps) // len(JOBS)
    return base, {job: ends[i * each : (i + 1) * each] for i, job in enumerate(JOBS)}


@pytest.mark.parametrize("job", JOBS)
def test_killed_and_repeated(outcome: tuple[Path, dict[str, list[Any]]], job: str) -> None:
    base, ends = outcome
    assert [broken for _, broken in ends[job] if broken] == []
    statuses = [status for status, _ in ends[job]]
    first, killed, repeated = statuses[0], statuses[1::2], statuses[2::2]
    assert first == 0 and repeated == [0] * len(POINTS)
    by_rename, by_size = killed[: len(RENAMES)], killed[len(RENAMES) :]
    assert by_rename[0] == -signal.SIGKILL and set(by_rename) <= {0, -signal.SIGKILL}
    assert by_size[0] == -signal.SIGXFSZ and set(by_size) <= {0, -signal.SIGXFSZ}
    wanted = shown_files(base / job / "never")
    assert wanted
    for number, point in enumerate(POINTS):
        found = shown_files(base / job / str(number))
        assert found.keys() == wanted.keys(), point
        for name, path in found.items():
            if not name.endswith(("inference.json", ".mp4", ".safetensors")):  # times; entries in any order
                assert path.read_bytes() == wanted[name].read_bytes(), (point, name)
