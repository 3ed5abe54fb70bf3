"""Training that is killed at any moment, with any number of workers, ends in the weights of one that never was."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.commands import read_checkpoint
from tests.forks import Forks
from tests.tiny_models import tiny_flags
from util.checkpoint import NEWEST, newest_intact, numbered_checkpoints
from util.errors import REQUEUE_STATUS

pytestmark = pytest.mark.slow
KILLS = 10


def _newest(folder: Path) -> int:
    return max(numbered_checkpoints(folder), default=0)


@pytest.fixture
def flags(tiny_config: list[str], toy_data: Path) -> list[str]:
    more = ("--ytvos_path", str(toy_data), "--batch_size", "1", "--resume", "auto")
    return [*tiny_config, *tiny_flags(), *more, "--num_frames", "2", "--train_scales", "48", "--eval_size", "48"]


def test_killed_ten_times(forks: Forks, flags: list[str], tmp_path: Path) -> None:
    never, often = tmp_path / "never", tmp_path / "often"
    said = [tmp_path / "never.txt", tmp_path / "often.txt"]

    draw = random.Random(7)
    run = [*flags, "--output_dir", str(often), "--save_every", "1", "--keep_checkpoints", "2"]
    for number in range(KILLS + 1):
        pid = forks.start(said[1], "run_main", *run, "--num_workers", str(number % 3))
        steps = 0 if number % 5 == 2 else draw.randint(1, 2)  # 0: it is killed on its way to the first step
        reached = _newest(often) + steps
        while _newest(often) < reached:
            assert forks.poll(pid) is None, said[1].read_text()
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        last = number == KILLS
        os.kill(pid, signal.SIGTERM if last else signal.SIGKILL)
        assert forks.wait(pid) == (REQUEUE_STATUS if last else -signal.SIGKILL), said[1].read_text()
    path, notes = newest_intact(often)
    assert path is not None and notes == []
    steps = _newest(often) + 2  # however many steps the machine has done between the kills
    whole = [*flags, "--output_dir", str(never)]
    for log, words in zip(said, (whole, run), strict=True):
        pid = forks.start(log, "run_main", *words, "--max_steps", str(steps))
        assert forks.wait(pid) == 0, log.read_text()

    told = said[1].read_text()
    assert told.count("resuming from") > KILLS / 2
    assert "Traceback" not in told.rpartition("resuming from")[2]  # workers of killed processes may have told theirs
    assert told.count("stopped by SIGTERM after step") == 1
    one, other = (read_checkpoint(folder / NEWEST) for folder in (never, often))
    assert one["step"] == other["step"] == steps
    assert [key for key, value in one["weights"].items() if not torch.equal(value, other["weights"][key])] == []
    moments = [content["optimizer"]["state"] for content in (one, other)]
    assert all(
        torch.equal(value, moments[1][number][key])
        for number, entry in moments[0].items()
        for key, value in entry.items()
    )
