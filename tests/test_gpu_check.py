"""The one call that checks a GPU, at toy size on the CPU."""

from __future__ import annotations

import json
import subprocess
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu_check
from scripts.gpu_check import Stage
from tests.commands import run_command


@pytest.mark.slow
def test_every_stage_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the benchmark as a process of its own, as all are in the check."""
    start = gpu_check.run

    def run(stage: Stage, slack: int) -> dict[str, Any]:
        if stage.name.startswith("benchmark"):
            return start(stage, slack)
        file, (_, module, *words) = tmp_path / f"{stage.name}.json", stage.command
        started = time.monotonic()
        done = run_command(import_module(module).main, *words, "--json", file)
        assert done.returncode == 0, done.stderr
        numbers = json.loads(file.read_text())
        return {"outcome": "passed", "seconds": time.monotonic() - started, "numbers": numbers, "output": done.stderr}

    monkeypatch.setattr(gpu_check, "run", run)
    done = run_command(gpu_check.main, "--tiny", "--device", "cpu", "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stdout
    stages = json.loads((tmp_path / "found.json").read_text())["stages"]
    assert list(stages) == ["operator", "agreement", "benchmark vdit", "levers"]
    assert all(found["outcome"] == "passed" and found["seconds"] > 0 for found in stages.values()), stages
    assert stages["agreement"]["numbers"]["vdit fp32"]["logits"] == 0
    assert 0 < stages["agreement"]["numbers"]["vdit bf16"]["logits"] < 0.5
    assert stages["levers"]["numbers"]["operator torch"] > 0


def test_a_stage_that_fails_or_hangs_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of results is complete after every stage."""
    file = tmp_path / "found.json"
    wait = ("-c", "import time; print('waiting', flush=True); time.sleep(60)")
    crash = ("-c", f"import json; assert list(json.load(open({str(file)!r}))['stages']) == ['hangs']; 1 / 0")
    write = ("-c", "import sys; open(sys.argv[2], 'w').write('{\"a\": 1}')")
    made = [Stage("hangs", wait, 1, writes=False), Stage("fails", crash, 60, writes=False), Stage("passes", write, 60)]
    monkeypatch.setattr(gpu_check, "stages", lambda *options: made)
    done = run_command(gpu_check.main, "--device", "cpu", "--json", file)
    assert done.returncode == 1 and "not passed: hangs, fails" in done.stdout
    found = json.loads(file.read_text())["stages"]
    assert [stage["outcome"] for stage in found.values()] == ["too slow", "failed", "passed"]
    assert "waiting" in found["hangs"]["output"] and "ZeroDivisionError" in found["fails"]["output"]
    assert found["passes"]["numbers"] == {"a": 1}


def test_an_unknown_stage_is_refused() -> None:
    done = run_command(gpu_check.main, "--device", "cpu", "--only", "operater")
    assert done.returncode == 2 and "'operater' is no stage" in done.stderr and "agreement" in done.stderr


def test_a_stage_ends_with_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C does not reach a stage by itself, which has a process group of its own."""
    file = tmp_path / "pid"
    waits = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"

    def interrupted(process: subprocess.Popen, limit: float | None = None) -> int:
        if limit is None:
            return wait(process)
        while not (file.is_file() and file.read_text()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run(Stage("waits", ("-c", waits), 60, writes=False))
    assert not Path("/proc", file.read_text()).exists()


def test_the_full_check_fits_into_its_time() -> None:
    every = list(gpu_check.stages("cuda", False, None))
    assert sum(stage.seconds for stage in every) <= 9 * 60
    assert {"operator tests", "benchmark hcd", "memory of inference"} <= {stage.name for stage in every}
    assert "fixtures" in [stage.name for stage in gpu_check.stages("cuda", False, Path("golden"))]
    assert every[-1].name == "compiled"
