"""What a training run tells: the log and where it goes, its speed, its pictures, and the record of its sessions."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets.clip import denormalise
from util import run_log as throughput
from util.drawing import GAP, LastClip, Picture
from util.errors import REQUEUE_STATUS, RunError, Stopped, UserError
from util.run_log import RunLog, RunSummary, Throughput, Wandb, git_state, progress_line

TERMS = {"loss": 3.5, "grad_norm": 2.0, "loss_ce": 0.5, "loss_dice_low": 0.25, "loss_ce_0": 0.75, "lr": 1e-4}


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for name in ("monotonic", "perf_counter"):
            monkeypatch.setattr(throughput.time, name, lambda: self.now)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_speed_waiting_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    speed = Throughput(total_steps=100, first_step=10, processes=4)
    assert speed.flush() == {}

    def batches():
        for _ in range(2):
            clock.now += 3  # the loader takes three seconds,
            yield "batch"

    for _ in speed.timed(batches()):
        clock.now += 1  # and the step one
        speed.add(clips=2, frames=10)
    # 2 steps in 8 s, 16 clips of all processes, 6 s of waiting; 88 steps to go
    assert speed.flush() == {"clips_per_second": 2, "frames_per_second": 10, "waiting": 0.75, "eta_seconds": 352}
    clock.now += 2
    speed.add(2, 10)
    # of the whole time, 3 steps in 10 s
    assert speed.flush() == {
        "clips_per_second": 4,
        "frames_per_second": 20,
        "waiting": 0,
        "eta_seconds": pytest.approx(87 * 10 / 3, rel=1e-3),
    }
    clock.now += 100  # a validation
    assert speed.flush() == {}
    clock.now += 2
    speed.add(2, 10)
    assert speed.flush()["clips_per_second"] == 4


def test_a_log_line_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, total_steps=4, first_step=0, processes=2) as log:
        for _ in log.speed.timed(range(2)):
            log.advance(clips=1, frames=5)
        log.write(2, dict(TERMS), epoch=0)
        assert log.speed.step == 2
        log.write(2, {"valid.J&F": 61.25, "valid.kind.colour.J&F": 50.0})
    first, second = lines_of(tmp_path)
    assert first | TERMS == first and first["step"] == 2 and first["epoch"] == 0
    speed = {"clips_per_second", "frames_per_second", "waiting", "eta_seconds", "memory_gib", "seconds"}
    assert speed <= first.keys()
    assert first["frames_per_second"] == pytest.approx(5 * first["clips_per_second"], rel=2e-3)
    assert 0 < first["memory_gib"] < 1000
    assert second.keys() == {
        "step",
        "valid.J&F",
        "valid.kind.colour.J&F",
        "seconds",
    }  # no step was done between the two
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("step 2/4 · epoch 0 · loss 3.5 (ce 0.5, dice_low 0.25) · gradient 2 · lr 0.0001 · ")
    assert "clips/s" in told[0] and "waiting" in told[0] and " GiB · " in told[0] and told[0].endswith(" left")
    assert told[1] == "step 2/4 · valid.J&F 61.25"


def test_an_inactive_log_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "run", 4, 0, active=False) as log:
        for _ in log.speed.timed(range(1)):
            log.advance(1, 5)
        log.write(1, dict(TERMS))
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


class Notes:
    """A writer that remembers, or whose disk is full."""

    def __init__(self, full: bool = False) -> None:
        self.full, self.seen, self.pictures, self.closed = full, [], [], False

    def numbers(self, step: int, labels: dict, values: dict) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.seen.append(step)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        self.pictures.append(step)

    def close(self) -> None:
        self.closed = True


def test_pictures_come_when_they_are_due(tmp_path: Path) -> None:
    notes, drawn = Notes(), []

    def sample() -> Picture | None:
        drawn.append(1)
        return np.zeros((4, 4, 3), np.uint8) if len(drawn) > 1 else None

    with RunLog(tmp_path, 100, 5, writers=[notes], sample=sample, sample_every=10) as log:
        for step in (8, 12, 18, 25, 29, 30):
            log.write(step, {"loss": 1.0})
    assert notes.seen == [8, 12, 18, 25, 29, 30] and notes.closed
    assert len(drawn) == 3 and notes.pictures == [25, 30]  # at 12 there was none to draw


def test_a_full_disk_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full, notes = Notes(full=True), Notes()
    with RunLog(tmp_path, 100, 0, writers=[full, notes]) as log:
        log.write(1, {"loss": 1.0})
        log.write(2, {"loss": 1.0})
    assert notes.seen == [1, 2]
    assert (
        capsys.readouterr().out.count("cannot be written (No space left on device); the run continues without them")
        == 1
    )


FULL = """
import resource, sys
from pathlib import Path
from util.errors import run_cli
from util.run_log import RunLog
def main():
    limit = int(sys.argv[2])
    if not limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with RunLog(Path(sys.argv[1]), 100, 0) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for step in range(1, 100):
            log.write(step, {"loss": 1.0})
run_cli(main)
"""


@pytest.mark.parametrize("limit", [0, 200, 4000])
def test_a_disk_that_is_full_for_tensorboard(limit: int, tmp_path: Path, root: Path) -> None:
    """Its thread neither prints a traceback nor makes the run wait."""
    words = [sys.executable, "-c", FULL, str(tmp_path), str(limit)]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=100)
    if limit:
        assert (done.returncode, done.stderr) == (0, "") and "step 99/100" in done.stdout
        assert done.stdout.count("cannot be written (File too large); the run continues without them") == 1
    else:
        said = f"error: cannot write the logs of {tmp_path}: File too large (tensorboard); choose another output folder"
        assert (done.returncode, done.stderr) == (2, f"{said}\n")


def test_wandb_is_asked_for_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list = []
    run = SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end"))
    stub = ModuleType("wandb")
    stub.init = lambda **options: calls.append(options) or run  # type: ignore[attr-defined]
    stub.Image = lambda picture: picture.shape  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stub)
    writer = Wandb(tmp_path, "abc", {"lr": 1})
    writer.numbers(3, {"epoch": 0}, {"loss": 1.0})
    writer.picture(3, "sample", np.zeros((2, 3, 3), np.uint8))
    writer.close()
    begun, *rest = calls
    assert begun == {"dir": str(tmp_path), "id": "abc", "name": tmp_path.name, "config": {"lr": 1}, "resume": "allow"}
    assert rest == [(3, {"epoch": 0, "loss": 1.0}), (3, {"sample": (2, 3, 3)}), "end"]

    stub.init = lambda **options: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"wandb cannot start: division by zero; .*WANDB_MODE=offline"):
        Wandb(tmp_path, "abc", {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb needs the library wandb, which is not installed"):
        Wandb(tmp_path, "abc", {})


class Model(nn.Module):
    """Predicts the left half of every frame."""

    def forward(self, frames: Tensor, padding: Tensor, captions: list, select: object, annotated: Tensor | None):
        count = frames.shape[1] if annotated is None else 1
        masks = torch.full((len(frames), count, *frames.shape[-2:]), -9.0)
        masks[..., : frames.shape[-1] // 2] = 9
        masks.requires_grad_()
        return SimpleNamespace(masks=masks, first_clip=lambda: masks[0].detach().sigmoid)


@pytest.mark.parametrize("annotated", [None, 2])
def test_the_picture_of_a_clip(annotated: int | None) -> None:
    model = Model().train()
    clip = LastClip(model, denormalise)
    assert clip.draw() is None
    frames = torch.zeros(2, 3, 3, 256, 512)  # the mean colour,
    frames[:, 1 if annotated is None else annotated] = 3.0  # but bright where it will be looked at
    padding = torch.zeros(2, 256, 512, dtype=torch.bool)
    padding[:, 240:] = padding[:, :, 480:] = True
    truth = torch.zeros(2, 3 if annotated is None else 1, 256, 512)
    truth[..., 200:] = 1
    select = SimpleNamespace(target=SimpleNamespace(masks=truth))
    index = None if annotated is None else torch.tensor([annotated, annotated])
    model(frames, padding, ["a red kite", "b"], select, index)
    model.eval()(frames * 0, padding, ["other", "b"], select, index)  # what is evaluated is not shown
    picture = clip.draw()
    assert picture is not None and picture.shape[1] == 480 + GAP + 480 and picture.shape[0] > 240
    left, right = picture[:240, :480].astype(int), picture[:240, 480 + GAP :].astype(int)
    assert left[120, 60].sum() > left[120, 400].sum() + 60  # outside is darker
    assert right[120, 400].sum() > right[120, 60].sum() + 60
    assert left[120, 400].min() > 100  # the bright frame


CPU = torch.device("cpu")


def sessions(folder: Path) -> list[dict]:
    return json.loads((folder / "run.json").read_text())["sessions"]


def test_the_record_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--config", "a b.yaml"])
    with RunSummary(tmp_path) as summary:
        assert not (tmp_path / "run.json").exists()
        summary.begin({"lr": 0.1}, CPU, 0, clips=12)
        (running,) = sessions(tmp_path)
        assert running["state"] == "running" and "ended" not in running
        summary.last_step = lambda: 7
    (first,) = sessions(tmp_path)
    assert (first["state"], first["step"], first["message"]) == ("finished", 7, "")
    assert first["config"] == {"lr": 0.1} == json.loads((tmp_path / "config.json").read_text())
    assert first["command"].endswith("main.py --config 'a b.yaml'") and first["clips"] == 12
    assert first["processes"] == 1 and list(first["devices"].values()) == [1]
    assert {"torch", "cuda"} <= first["versions"].keys()

    ends = {
        Stopped("SIGTERM", 3): ("stopped", "by SIGTERM"),
        SystemExit(REQUEUE_STATUS): ("stopped", "by a signal"),
        RunError("the loss is not finite"): ("failed", "the loss is not finite"),
        ZeroDivisionError("x"): ("failed", "ZeroDivisionError: x"),
    }
    for error, (state, message) in ends.items():
        with pytest.raises(type(error)), RunSummary(tmp_path) as later:
            assert later.run_id == summary.run_id
            later.begin({}, CPU, 4)
            raise error
        assert (sessions(tmp_path)[-1]["state"], sessions(tmp_path)[-1]["message"]) == (state, message)
    assert len(sessions(tmp_path)) == 5 and sessions(tmp_path)[-1]["step"] == 4
    with RunSummary(tmp_path) as other:  # a run that begins anew in the folder is another one
        other.begin({}, CPU, 0)
    assert len(sessions(tmp_path)) == 6 and other.run_id != summary.run_id


def test_a_damaged_record_begins_anew_and_an_idle_one_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"sessions": 3}')
    with RunSummary(tmp_path) as summary:
        summary.begin({}, CPU, 0)
    assert len(sessions(tmp_path)) == 1 and len(summary.run_id) == 12
    with RunSummary(tmp_path / "other", active=False) as idle:
        idle.begin({}, CPU, 0)
    with RunSummary(tmp_path / "other"):
        pass
    assert not (tmp_path / "other").exists()


def test_the_state_of_the_code(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None

    def git(*words: str) -> None:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *name, *words], check=True, capture_output=True)

    git("init", "--initial-branch", "trunk")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "--message", "first")
    (tmp_path / "b.py").write_text("2")
    state = git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40
    assert state["branch"] == "trunk" and state["changed_files"] == ["?? b.py"]
    (tmp_path / "inner").mkdir()
    assert git_state(tmp_path / "inner") is None


def test_a_progress_line_of_what_is_not_a_number() -> None:
    line = progress_line(1, 2, {"loss": math.nan, "lr": 0.5}, {})
    assert line == "step 1/2 · loss nan · lr 0.5"
