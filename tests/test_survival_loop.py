"""The training loop: signals, losses that are not finite, validations in between."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from datasets.evaluators import Scores
from engine import Validation, parameter_lines
from tests.survival_jobs import Batch, Line, batches, train_line
from util.checkpoint import NEWEST, numbered_checkpoints
from util.errors import REQUEUE_STATUS, RunError, Stopped
from util.guard import Guard
from util.run_log import Meter


def _equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def _saved(folder: Path) -> dict:
    return torch.load(folder / NEWEST, weights_only=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_ends_the_run_after_the_step(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def loader(epoch: int, first: int) -> Iterator[Batch]:
        for batch in batches(epoch, first):
            if batch.targets[0]["video"] == "v14":
                os.kill(os.getpid(), number)  # while step 14 waits for its data
            yield batch

    with pytest.raises(Stopped) as stop:
        train_line(tmp_path, loader)
    assert (stop.value.code, stop.value.signal, stop.value.step) == (REQUEUE_STATUS, name, 14)
    assert _saved(tmp_path)["step"] == 14 and numbered_checkpoints(tmp_path).keys() == {10, 14}
    assert capsys.readouterr().err == f"stopped by {name} after step 14; --resume auto continues from there\n"
    assert signal.getsignal(number) == before
    weights = _saved(tmp_path)["weights"]
    assert all(torch.equal(weights[key], value) for key, value in train_line(tmp_path, steps=14).state_dict().items())


def test_before_the_first_step_a_signal_ends_it_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped) as stop, Guard():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.value.code == REQUEUE_STATUS and stop.value.step is None
    assert capsys.readouterr().err == "stopped by SIGUSR1 before the first step\n"


def test_ctrl_c_again_after_a_while_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("util.guard.time.monotonic", lambda: now[0])
    with pytest.raises(KeyboardInterrupt), Guard() as guard:
        guard.start(0)
        os.kill(os.getpid(), signal.SIGINT)
        now[0] = 1.0  # launchers pass a signal on to processes that have got it already
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.exchange_flags(False, now=True) == (True, False)
        now[0] = 6.0
        os.kill(os.getpid(), signal.SIGINT)


def test_a_loss_that_is_not_finite_leaves_its_batch(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        train_line(tmp_path, lambda epoch, first: batches(epoch, first, bad=13), log_every=100)
    path = tmp_path / "not_finite_step_000013_process_0.pt"
    assert str(error.value) == (
        "process 0: the loss is not finite at step 13, clips v13/0: loss inf, grad_norm inf, loss_square inf; its "
        f"batch is in {path}; the last checkpoint is from before it"
    )
    content = torch.load(path, weights_only=True)
    assert (content["step"], content["process"], content["seed"]) == (13, 0, 1)
    assert content["terms"]["loss"] == torch.inf and content["clips"] == ["v13/0"]
    (batch,) = content["batches"]
    assert batch["frames"].isinf().all() and batch["captions"] == ["it"] and batch["targets"][0]["video"] == "v13"
    assert _saved(tmp_path)["step"] == 10


def test_a_gradient_alone_that_is_not_finite() -> None:
    meter = Meter()
    meter.add(3, ["a/0"], {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(torch.inf)})
    fault = meter.fault()
    assert fault is not None and not fault.own_fault
    assert fault.describe() == "the gradient is not finite at step 3, clips a/0: loss 1, grad_norm inf"


def test_batches_are_let_go_of_when_they_were_finite() -> None:
    meter = Meter()
    for step in (1, 2):
        meter.add(step, ["a/0"], {"loss": torch.tensor(1.0 * step)}, [object()])
        assert meter.fault() is None
    assert [step.batches for step in meter.steps] == [(), ()]
    assert meter.flush() == {"loss": 1.5} and meter.flush() == {}


def test_a_run_with_validations_is_the_run_without(tmp_path: Path) -> None:
    seen = []

    def score(model: nn.Module) -> Scores:
        assert not model.training
        torch.manual_seed(0)
        seen.append(model(torch.randn(3)).item())  # draws random numbers
        return {"J&F": 10.0 * (len(seen) % 3)}, {"videos": 1}

    best: list[int] = []
    parts = {"ytvos": SimpleNamespace(score=score)}
    validation = Validation(tmp_path, parts, {"ytvos": "J&F"}, {"seed": 1}, best.append, every=8)
    without = train_line(tmp_path / "without")
    with_them = train_line(tmp_path, validation=validation)
    assert _equal(without, with_them)
    record = validation._read()
    assert record["scores"] == {"8": 10.0, "16": 20.0, "24": 0.0, "30": 10.0}, "every 8 steps and at the end"
    assert best == [8, 16] and record["best"] == "16"
    assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == [
        f"step_0000{step}.json" for step in ("08", "16", "24", "30")
    ]
    assert numbered_checkpoints(tmp_path).keys() == {24, 30}, "what is validated was saved before"


def test_the_record_of_validations_goes_on_and_back(tmp_path: Path) -> None:
    metrics = {"ytvos": "J&F", "a2d": "mAP"}
    values = iter((30.0, 40.0, float("nan"), 35.0))
    parts = {
        "ytvos": SimpleNamespace(score=lambda model: ({"J&F": next(values)}, {})),
        "a2d": SimpleNamespace(score=lambda model: ({"mAP": 0.0}, {})),
    }
    best: list[int] = []
    validation = Validation(tmp_path, parts, metrics, {"seed": 1}, best.append)
    assert validation.missed(5)
    assert validation.score(nn.Linear(1, 1), 5) == {"ytvos.J&F": 30.0, "a2d.mAP": 0.0}
    assert not validation.missed(5)
    for step in (10, 15):
        validation.score(nn.Linear(1, 1), step)
    assert validation._read() == {"scores": {"5": 15.0, "10": 20.0, "15": None}, "best": "10"}
    Validation(tmp_path, parts, metrics, {}, best.append, first_step=15)
    assert best == [5, 10] and validation._read()["best"] == "10"
    back = Validation(tmp_path, parts, metrics, {"seed": 1}, best.append, first_step=5)
    assert back._read() == {"scores": {"5": 15.0}, "best": None}, "the best file is that of step 10, and put aside"
    assert back.missed(10)
    back.score(nn.Linear(1, 1), 10)
    assert best == [5, 10, 10]


def test_a_signal_breaks_a_validation_off(tmp_path: Path) -> None:
    guard = Guard(tmp_path)

    def score(model: nn.Module) -> Scores:
        os.kill(os.getpid(), signal.SIGTERM)
        guard.report_progress()
        pytest.fail("a clip after the signal")

    validation = Validation(tmp_path, {"ytvos": SimpleNamespace(score=score)}, {"ytvos": "J&F"}, {}, every=4)
    with pytest.raises(Stopped) as stop:
        train_line(tmp_path, guard=guard, validation=validation)
    assert stop.value.code == REQUEUE_STATUS and _saved(tmp_path)["step"] == 4


def test_a_hang_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends: list[int] = []
    monkeypatch.setattr("os._exit", ends.append)

    def loader(epoch: int, first: int) -> Iterator[Batch]:
        while not ends:
            time.sleep(0.02)
        yield from batches(epoch, first)

    train_line(tmp_path, loader, patience=0.5, steps=1)
    assert ends[0] == 1
    report = capsys.readouterr().err.splitlines()[0]
    assert report.startswith("error: process 0 waits for the data of step 1 and has made no progress for ")
    assert "it is at tests/test_survival_loop.py:" in report and report.endswith(" (loader)")


def test_what_is_trained_is_told() -> None:
    model = nn.ModuleDict({"body": nn.ModuleDict({"a": nn.Linear(999, 1000), "b": nn.Linear(1, 1)}), "head": Line()})
    model["body"]["a"].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.5)
    assert parameter_lines(model, optimizer) == [
        "parameters, millions   trained    frozen",
        "body.a                    0.00      1.00",
        "body.b                    0.00      0.00",
        "head                      0.00      0.00",
        "total                     0.00      1.00",
        "group 0 of AdamW: 4 tensors, 0.00 M, rate 0.0001, weight decay 0.5",
    ]
