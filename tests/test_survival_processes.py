"""Several processes: one is stopped, fails, is killed or hangs; all of them end, and say why."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.commands import read_checkpoint
from tests.forks import Forks
from util.checkpoint import NEWEST
from util.errors import REQUEUE_STATUS, USER_ERROR_STATUS

pytestmark = pytest.mark.slow
PATIENCE = 60.0
SHORT = 4.0  # seconds


def _together(forks: Forks, folder: Path, processes: int, *arguments: object) -> tuple[list[int], list[str]]:
    """Run ``train_together`` in several processes: how each has ended, and what it said."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"said_{number}.txt" for number in range(processes)]
    pids = forks.start_together(files, "train_together", str(folder), *arguments)
    status: dict[int, int] = {}
    end = time.monotonic() + 600
    while len(status) < processes and time.monotonic() < end:
        for number, pid in enumerate(pids):
            if number not in status and (found := forks.poll(pid)) is not None:
                status[number] = found
        if len(status) == processes - 1 and "halt" in arguments:
            (halted,) = set(range(processes)) - status.keys()
            os.kill(pids[halted], signal.SIGKILL)
        time.sleep(0.05)
    said = [file.read_text() for file in files]
    assert len(status) == processes, said
    return [status[number] for number in range(processes)], said


def _errors(said: str) -> list[str]:
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("error")]


STAGE = r"error: process {} (computes|waits for the data of|saves) step \d+ and has "
LOST = STAGE + r"lost the connection to another process \(.+\); the cause is in the message of .+ that failed first"
STUCK = STAGE + r"made no progress for \d+ s \(--patience_minutes\); it is at .+:\d+ \(\w+\)"


def test_one_is_killed(forks: Forks, tmp_path: Path) -> None:
    status, said = _together(forks, tmp_path, 4, PATIENCE, 2, 13, "kill")
    assert status == [1, 1, -signal.SIGKILL, 1]
    for number in (0, 1, 3):
        (error,) = _errors(said[number])
        assert re.fullmatch(LOST.format(number), error)
    assert read_checkpoint(tmp_path / NEWEST)["step"] == 10


@pytest.mark.parametrize("fault", ["hang", "halt"])
def test_one_hangs(forks: Forks, tmp_path: Path, fault: str) -> None:
    """All end. Each says where it is: a process that waits for the one that hangs may lose it before its patience."""
    status, said = _together(forks, tmp_path, 4, SHORT, 1, 13, fault)
    assert [status[number] for number in (0, 2, 3)] == [1, 1, 1]
    errors = [_errors(text) for text in said]
    for number in (0, 2, 3):
        (error,) = errors[number]
        assert re.fullmatch(STUCK.format(number), error) or re.fullmatch(LOST.format(number), error)
    assert any(re.fullmatch(STUCK.format(number), error) for number in range(4) for error in errors[number])
    if fault == "hang":
        (error,) = errors[1]
        assert status[1] == 1 and error.startswith("error: process 1 waits for the data of step 13 and has made no")
        assert "it is at tests/survival_jobs.py:" in error and error.endswith(" (loader)")
    else:
        assert status[1] == -signal.SIGKILL and errors[1] == []


def test_one_has_a_loss_that_is_not_finite(forks: Forks, tmp_path: Path) -> None:
    status, said = _together(forks, tmp_path, 4, PATIENCE, 3, 13, "infinity")
    assert status == [1, 1, 1, 1]
    (error,) = _errors(said[3])
    assert error.startswith("error: process 3: the loss is not finite at step 13, clips v13/3: loss inf")
    for number in range(3):
        (error,) = _errors(said[number])
        assert error.startswith("error: process 3 stops the run: the loss is not finite at step 13, clips v13/3: loss")
    names = [path.name for path in tmp_path.glob("not_finite*")]
    assert names == ["not_finite_step_000013_process_3.pt"]
    assert torch.load(tmp_path / names[0], weights_only=True)["process"] == 3
    assert read_checkpoint(tmp_path / NEWEST)["step"] == 10


def test_one_meets_a_broken_file(forks: Forks, tmp_path: Path) -> None:
    status, said = _together(forks, tmp_path, 3, PATIENCE, 1, 13, "file")
    assert status == [1, USER_ERROR_STATUS, 1]
    assert _errors(said[1]) == ["error: frame v/00000.jpg is broken; fetch it again"]
    for number in (0, 2):
        (error,) = _errors(said[number])
        assert re.fullmatch(LOST.format(number), error)


def test_a_signal_to_one_stops_all_after_the_same_step(forks: Forks, tmp_path: Path) -> None:
    status, said = _together(forks, tmp_path / "stopped", 3, PATIENCE, 1, 13, "SIGTERM")
    assert status == [REQUEUE_STATUS] * 3
    stopped = read_checkpoint(tmp_path / "stopped" / NEWEST)
    assert stopped["step"] in (13, 14)
    assert f"after step {stopped['step']}; --resume auto continues from there" in said[0]
    assert "finished" not in "".join(said) and [_errors(text) for text in said] == [[], [], []]


def test_all_finish(forks: Forks, tmp_path: Path) -> None:
    status, said = _together(forks, tmp_path, 2, PATIENCE)
    assert status == [0, 0], said
    assert [f"process {number} has finished" in text for number, text in enumerate(said)] == [True, True]
    assert read_checkpoint(tmp_path / NEWEST)["step"] == 30
