"""Training as the launch scripts start it, on the CPU: two processes, and two nodes that meet on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from tests.commands import run_command

STEPS = 3
TERMS = ("loss", "grad_norm", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice", "loss_dice_low_0", "lr")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flags(root: Path, small_stack: Path, toy_data: Path) -> list[str]:
    """A tiny VD-IT in place of the published one; nothing in it is random but the order of the clips."""
    return [
        *("--config", str(root / "configs/vdit_toy.yaml"), "--device", "cpu", "--dim_feedforward", "64"),
        *("--pretrained", str(small_stack), "--ytvos_path", str(toy_data), "--posterior", "mode"),
        *("--max_steps", str(STEPS), "--log_every", "1", "--sample_every", "2"),
    ]


@pytest.fixture(scope="module")
def curve(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The log of one process with two clips per step."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    result = run_command(main.main, *flags, "--batch_size", 2, "--lr_processes", 1, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return read_log(folder)


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def start(*words: object, folder: Path, **env: str) -> subprocess.Popen[str]:
    """Run a script from a folder, with some more environment variables."""
    return subprocess.Popen(
        ["sh", *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_same_run(folder: Path, curve: list[dict]) -> None:
    """Two processes with one clip each have trained as one with two, and the main one has written the logs."""
    lines = read_log(folder)
    assert [line["step"] for line in lines] == [line["step"] for line in curve] == list(range(1, STEPS + 1))
    for line, expected in zip(lines, curve, strict=True):
        assert {name: line[name] for name in TERMS} == pytest.approx(
            {name: expected[name] for name in TERMS}, rel=2e-3, abs=1e-5
        )
    assert lines[0]["loss"] != pytest.approx(lines[-1]["loss"], rel=1e-2)  # it is a curve
    (session,) = json.loads((folder / "run.json").read_text())["sessions"]
    assert (session["state"], session["step"], session["processes"]) == ("finished", STEPS, 2)
    assert (folder / "checkpoint.pth").is_file()
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    assert [point.step for point in board.Scalars("loss")] == list(range(1, STEPS + 1))
    (picture,) = board.Images("sample")
    assert picture.step == 2 and picture.width > 2 * 480


def test_two_processes_follow_the_curve_of_one(root: Path, flags: list[str], curve: list[dict], tmp_path: Path) -> None:
    script = root / "scripts/dist_train_ytvos_vdit.sh"
    rate = ("--lr_processes", 2, "--batch_size", 1)
    run = start(script, "run", *flags, *rate, folder=tmp_path, NPROC="2")  # the caller's folder, not the project's
    out, error = run.communicate(timeout=1800)
    assert run.returncode == 0, error[-3000:]
    assert "on 2 × cpu" in out and out.count("trained parameters") == 1
    assert_same_run(tmp_path / "run", curve)


def test_two_nodes_meet_and_train(root: Path, flags: list[str], curve: list[dict], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    command = (root / "scripts/launch.sh", "train", "vdit_toy", tmp_path / "run", *flags)
    env = {"NNODES": "2", "RDZV_ENDPOINT": endpoint, "RDZV_ID": "test", "LOCAL_ADDR": "127.0.0.1", "NPROC": "1"}
    rate = ("--lr_processes", 2, "--batch_size", 1)
    nodes = [start(*command, *rate, folder=tmp_path, **env) for _ in range(2)]
    try:
        ends = [node.communicate(timeout=1800) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], [error[-2000:] for _, error in ends]
    assert sum("on 2 × cpu" in out for out, _ in ends) == 1  # one of the two is the main process
    assert_same_run(tmp_path / "run", curve)
