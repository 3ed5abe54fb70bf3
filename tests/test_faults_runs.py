"""Two runs in one output folder, memory that is not enough, clocks that jump, terminals without letters."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import demo
import inference_ytvos
import main
from models import pretrained, video_folder
from scripts import eval_all, make_toy_data, overfit, quickstart
from tests.commands import ROOT, run_command
from util import locking
from util.demo_results import new_folder
from util.errors import RunError, UserError, run_cli
from util.keeping import Keeper
from util.locking import sole_run
from util.memory import is_out_of_memory, memory_advice

COMMANDS: dict[str, tuple[Any, ...]] = {
    "training": (main.main, "--device", "cpu"),
    "evaluation": (main.main, "--device", "cpu", "--eval", "--resume", "a.pth"),
    "inference": (inference_ytvos.main, "--device", "cpu", "--resume", "a.pth"),
    "overfit": (overfit.main, "--device", "cpu"),
    "toy data": (make_toy_data.main,),
    "quickstart": (quickstart.main,),
    "every benchmark": (eval_all.main, "--toy"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_run_is_refused(tmp_path: Path, name: str) -> None:
    command, *words = COMMANDS[name]
    folder = tmp_path / "out"
    with sole_run(folder):
        done = run_command(command, *words, "--output_dir", folder)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"error: another run is writing to {folder}; wait until it has ended" in done.stderr
        assert list(folder.iterdir()) == []
    assert not folder.exists(), "nothing was written"


def test_a_second_demo_is_refused(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as first:
        with pytest.raises(UserError, match="another run is writing to"), new_folder(tmp_path / "out"):
            pytest.fail("two may not write")
        (first / "a.txt").write_text("mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a.txt"]


HOLDER = """
import os, sys, time
from util.locking import sole_run
with sole_run(sys.argv[1]):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(100)
"""


def test_a_killed_run_is_no_run_though_its_workers_live(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match="another run"), sole_run(tmp_path):
            pytest.fail("two may not write")
        holder.kill()
        holder.wait()
        os.kill(worker, 0)
        with sole_run(tmp_path):
            assert len(locking._held) == 1
    finally:
        os.kill(worker, signal.SIGKILL)
    assert not locking._held


def test_where_folders_cannot_be_locked_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with sole_run(tmp_path), sole_run(tmp_path), sole_run(tmp_path / "other", active=False):
        assert not (tmp_path / "other").exists()


CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB.\nSee documentation"


def fail(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


def test_training_without_enough_memory(
    tiny_config: list[str], toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "train", fail(torch.OutOfMemoryError(CUDA)))
    where = ("--ytvos_path", toy_data, "--output_dir", tmp_path, "--num_workers", 0)
    done = run_command(main.main, *tiny_config, *where)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith("error: there is not enough memory (CUDA out of memory. Tried to allocate 20.00 GiB")
    assert "what needs less: --batch_size 1 (with --accumulate for the same updates), --gradient_checkpointing" in last
    (session,) = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert session["state"] == "failed" and "not enough memory" in session["message"]


def test_inference_and_demo_without_enough_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_ytvos, "segment_split", fail(MemoryError()))
    done = run_command(inference_ytvos.main, "--device", "cpu", "--resume", "a.pth", "--output_dir", tmp_path / "out")
    assert done.returncode == 1
    assert "not enough memory (MemoryError); what needs less: --expressions_per_batch 1" in done.stderr
    for module, name in ((demo, "open_media"), (pretrained, "open_pretrained")):
        monkeypatch.setattr(module, name, lambda *_: type("Stub", (), {"notes": ()}))
    monkeypatch.setattr(video_folder, "segment_to_folder", fail(torch.OutOfMemoryError(CUDA)))
    done = run_command(demo.main, "a.mp4", "a dog", "--resume", "a.pth", "--out", tmp_path / "demo")
    assert done.returncode == 1 and "what needs less: a shorter --window" in done.stderr
    assert not any(tmp_path.iterdir())


def test_what_is_not_about_memory_stays(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not enough memory .*; what needs less: sleep"), memory_advice("sleep"):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RunError, match="not enough memory"), memory_advice("sleep"):
        np.empty(1 << 60, np.uint8)
    for error in (RuntimeError("shape mismatch"), OSError(28, "No space left on device"), UserError("x")):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error)), memory_advice("sleep"):
            raise error


def test_a_jump_of_the_clock_asks_for_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    keeper = Keeper(tmp_path, lambda path, step: written.append(step), keep=1, minutes=10)
    for now in (0.0, 1e12):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert not keeper.due()


def test_nothing_is_decided_by_the_clock_on_the_wall(root: Path) -> None:
    """Seconds are counted by ``time.monotonic`` and ``time.perf_counter``, which do not jump.

    But for the age of the web page's left-over uploads, which the disk tells: a jump costs an upload at most.
    """
    sources = [path for room in ("util", "models", "datasets", "scripts") for path in (root / room).rglob("*.py")]
    found = [path.name for path in (*sources, *root.glob("*.py")) if "time.time()" in path.read_text(encoding="utf-8")]
    assert len(sources) > 100 and set(found) <= {"web_sessions.py"}


def test_letters_that_the_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def command() -> None:
        print("1 “红色的车 🚗”")
        raise UserError("“红” is missing \udcff")

    with pytest.raises(SystemExit) as end:
        run_cli(command)
    assert end.value.code == 2
    for stream in streams.values():
        stream.flush()
    out, err = (stream.buffer.getvalue() for stream in streams.values())  # type: ignore[attr-defined]
    assert rb"\u7ea2" in out and rb"\U0001f697" in out and rb"\udcff" in err
