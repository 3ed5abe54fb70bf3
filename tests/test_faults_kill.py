"""Killed at any phase: no half-written file has its final name, and the same command again gives the same files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.kill_jobs import JOBS
from util.errors import USER_ERROR_STATUS

pytestmark = pytest.mark.slow
BY_ANOTHER = ("release",)
"""Jobs whose greatest file another process writes, which is what a limit of size kills; they say so then."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What came of every job (see ``tests.kill_jobs.kill_each``)."""
    base = tmp_path_factory.mktemp("kills")
    words = [sys.executable, "-m", "tests.kill_jobs", str(base)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    print(done.stderr[-10000:])  # shown where a test fails
    assert done.returncode == 0
    return json.loads((base / "found.json").read_text())


@pytest.mark.parametrize("job", [job for jobs in JOBS.values() for job in jobs])
def test_killed_and_repeated(found: dict[str, list[dict[str, Any]]], job: str) -> None:
    if job == "release" and not shutil.which("git"):
        pytest.skip("there is no git, which makes releases")
    never, *killed = found[job]
    assert never == {"point": "never", "status": 0, "broken": []}
    by_size = USER_ERROR_STATUS if job in BY_ANOTHER else -signal.SIGXFSZ
    assert {next(iter(end["point"])) for end in killed} == {"rename", "size"}
    for end in killed:
        status = -signal.SIGKILL if "rename" in end["point"] else by_size
        assert end == {**end, "status": status, "broken": [], "again": 0, "other": []}
