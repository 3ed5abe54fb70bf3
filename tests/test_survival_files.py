"""Checkpoints in a run's folder: which stay, from which one a run goes on, and a disk that is full."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from models.checkpoints import open_checkpoint, open_resumed, save_checkpoint
from tests.commands import read_checkpoint
from util.checkpoint import BEST, NEWEST, Keeper, begin_folder, newest_intact, numbered_checkpoints
from util.errors import UserError

MEGABYTE = 2**20


def _write(path: Path, step: int, numbers: int = 1000) -> None:
    model = nn.Linear(numbers, 1)
    nn.init.constant_(model.weight, step)
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    save_checkpoint(path, model, "vdit", {}, optimizer=optimizer, step=step, steps_per_epoch=10)


def _keeper(folder: Path, keep: int = 2, minutes: float = 0, numbers: int = 1000) -> Keeper:
    return Keeper(folder, lambda path, step: _write(path, step, numbers), keep, minutes)


def _step(path: Path) -> int:
    content = read_checkpoint(path)
    assert bool((content["weights"]["weight"] == content["step"]).all())
    return content["step"]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    keeper = _keeper(tmp_path)
    for step in (5, 10, 15, 20):
        keeper.save(step, False)
        if step == 10:
            keeper.keep_best(step)
    assert _names(tmp_path) == ["checkpoint.pth", "checkpoint_000015.pth", "checkpoint_000020.pth", BEST]
    assert (_step(tmp_path / NEWEST), _step(tmp_path / BEST)) == (20, 10)
    assert (tmp_path / NEWEST).samefile(tmp_path / "checkpoint_000020.pth"), "a second name, no second copy"
    before = (tmp_path / NEWEST).stat().st_mtime_ns
    keeper.save(20, True)
    assert (tmp_path / NEWEST).stat().st_mtime_ns == before, "what is saved is not saved again"
    keeper.keep_best(30)  # of a step that is not saved yet
    assert _step(tmp_path / BEST) == 30


def test_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    _keeper(tmp_path).save(5, False)
    assert _step(tmp_path / NEWEST) == 5 and not (tmp_path / NEWEST).samefile(tmp_path / "checkpoint_000005.pth")


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, _write, 2, 1e-9, active=False)
    keeper.save(5, True)
    assert not keeper.due() and _names(tmp_path) == []


def test_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    keeper = _keeper(tmp_path, minutes=2)
    assert not keeper.due()
    now[0] = 120
    assert keeper.due()
    keeper.save(5, False)
    assert not keeper.due()
    now[0] = 239
    assert not keeper.due()
    assert not _keeper(tmp_path, minutes=0).due()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "a byte": lambda path: path.write_bytes(path.read_bytes().replace(b"\0\0\xa0\x41" * 8, b"\0\0\xa1\x41" * 8, 1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_skipped(tmp_path: Path, damage: str) -> None:
    keeper = _keeper(tmp_path, keep=3)
    for step in (10, 20):
        keeper.save(step, False)
    content = (tmp_path / NEWEST).read_bytes()
    DAMAGES[damage](tmp_path / NEWEST)
    assert (tmp_path / NEWEST).read_bytes() != content
    path, notes = newest_intact(tmp_path)
    assert path == tmp_path / "checkpoint_000010.pth"
    assert len(notes) == 1 and notes[0].startswith(f"skipped {tmp_path}/checkpoint")
    resumed = open_resumed("auto", tmp_path, "vdit")
    assert resumed is not None and resumed.path == path
    assert len(resumed.notes) == 2 and resumed.notes[-1] == f"resuming from {path}"
    aside = begin_folder(tmp_path, 10)
    assert "beyond step 10" in aside[0] and set(_names(tmp_path)) == {"checkpoint_000010.pth", "earlier-1"}


def _moment(**values: object) -> Callable[[dict], None]:
    return lambda content: content["optimizer"]["state"][0].update(values)


def _group(**values: object) -> Callable[[dict], None]:
    return lambda content: content["optimizer"]["param_groups"][0].update(values)


STATES: dict[str, Callable[[dict], object]] = {
    "a negative step": lambda content: content.update(step=-1),
    "a step that is true": lambda content: content.update(step=True),
    "a step of half": lambda content: content.update(step=1.5),
    "epochs of no step": lambda content: content.update(steps_per_epoch=0),
    "an empty optimizer": lambda content: content.update(optimizer={}),
    "no groups": lambda content: content["optimizer"].update(param_groups=[]),
    "a group that is a number": lambda content: content["optimizer"].update(param_groups=[3]),
    "parameters that are text": _group(params="01"),
    "more parameters than weights": _group(params=[0, 1, 2]),
    "one beta": _group(betas=(0.9,)),
    "a rate that is text": _group(lr="fast"),
    "a rate that is infinite": _group(lr=float("inf")),
    "another algorithm": _group(amsgrad=True),
    "moments in a list": lambda content: content["optimizer"].update(state=[1]),
    "moments of an unknown parameter": lambda content: content["optimizer"]["state"].update({7: {}}),
    "a moment that is missing": lambda content: content["optimizer"]["state"][0].pop("exp_avg"),
    "a moment of another shape": _moment(exp_avg=torch.ones(3), exp_avg_sq=torch.ones(3)),
    "a moment that is text": _moment(exp_avg="x"),
    "a moment of whole numbers": _moment(exp_avg=torch.ones(1, 1000, dtype=torch.int64)),
    "a moment of one number": _moment(exp_avg=torch.ones(1).expand(1, 1000)),
    "a negative step of a parameter": _moment(step=torch.tensor(-1.0)),
    "a step of a parameter that is no number": _moment(step=torch.tensor(float("nan"))),
    "a scaler without its scale": lambda content: content.update(scaler={"growth_factor": 2.0}),
}


@pytest.mark.parametrize("fault", STATES)
def test_a_training_state_of_another_form_is_skipped(tmp_path: Path, fault: str) -> None:
    keeper = _keeper(tmp_path, keep=3)
    for step in (10, 20):
        keeper.save(step, False)
    newest = tmp_path / "checkpoint_000020.pth"
    (tmp_path / NEWEST).unlink()
    content = torch.load(newest, weights_only=True)
    ones = torch.ones(1, 1000)
    content["optimizer"]["state"][0] = {"step": torch.tensor(20.0), "exp_avg": ones, "exp_avg_sq": ones}
    torch.save(content, newest)
    sound = open_resumed("auto", tmp_path, "vdit")
    assert sound is not None and sound.step == 20
    STATES[fault](content)
    torch.save(content, newest)
    with pytest.raises(UserError, match=r"checkpoint_000020\.pth is damaged: its \w+ is ") as caught:
        open_resumed(str(newest), tmp_path, "vdit")
    assert "\n" not in str(caught.value)
    resumed = open_resumed("auto", tmp_path, "vdit")
    assert resumed is not None and resumed.step == 10


def test_the_state_of_other_parameters_is_one_sentence(tmp_path: Path) -> None:
    _write(tmp_path / NEWEST, 5)
    resumed = open_resumed(str(tmp_path / NEWEST), tmp_path, "vdit")
    assert resumed is not None
    ones = torch.ones(1, 1000)
    resumed.training["optimizer"]["state"][0] = {"step": torch.tensor(5.0), "exp_avg": ones, "exp_avg_sq": ones}
    resumed.load_optimizer(torch.optim.AdamW(nn.Linear(1000, 1).parameters()))
    for model in (nn.Linear(1000, 1, bias=False), nn.Linear(999, 1)):
        with pytest.raises(UserError, match=r"checkpoint\.pth has the state of other parameters"):
            resumed.load_optimizer(torch.optim.AdamW(model.parameters()))


def test_where_there_is_none_a_run_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert newest_intact(tmp_path / "nowhere") == (None, [])
    (tmp_path / NEWEST).write_text("no checkpoint")
    assert open_resumed("auto", tmp_path, "vdit") is None
    skipped, anew = capsys.readouterr().out.splitlines()
    assert "skipped" in skipped and "a new run begins" in anew
    assert open_resumed("", tmp_path, "vdit") is None


def test_weights_alone_are_no_run(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "weights.pth", nn.Linear(1, 1), "vdit", {})
    with pytest.raises(UserError, match=r"weights\.pth holds weights only.*--pretrained_weights"):
        open_resumed(str(tmp_path / "weights.pth"), tmp_path, "vdit")


def test_a_new_run_leaves_an_earlier_ones_checkpoints(tmp_path: Path) -> None:
    assert begin_folder(tmp_path / "new", 0) == []
    for number in (1, 2):
        _keeper(tmp_path).save(5, False)
        (tmp_path / ".checkpoint_000007.12-ab.pth").write_text("half")
        (note,) = begin_folder(tmp_path, 0)
        assert f"earlier-{number}" in note and numbered_checkpoints(tmp_path) == {}
        assert _names(tmp_path / f"earlier-{number}") == ["checkpoint.pth", "checkpoint_000005.pth"]
    assert _names(tmp_path) == ["earlier-1", "earlier-2"]


def test_epochs_of_another_length(tmp_path: Path) -> None:
    _write(tmp_path / NEWEST, 5)
    checkpoint = open_checkpoint(str(tmp_path / NEWEST), "--resume")
    checkpoint.require_steps_per_epoch(10)
    with pytest.raises(UserError, match=r"checkpoint\.pth was trained with 10 steps per epoch.*has 5.*--batch_size"):
        checkpoint.require_steps_per_epoch(5)


@pytest.fixture
def limited() -> Iterator[None]:
    """No file may be longer than a megabyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _fill(folder: Path, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose checkpoints become too large for the disk."""
    small, large = (_keeper(folder, keep=3, numbers=numbers) for numbers in (1000, MEGABYTE))
    for step in (5, 10, 15):
        small.save(step, False)
    large.save(20, False)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and reason in told
    assert told.startswith(f"warning: cannot write {folder}/checkpoint_000020.pth") and "an older file" in told
    assert _step(tmp := folder / NEWEST) == 15
    assert numbered_checkpoints(folder).keys() == {15}, "older ones have made room in vain"
    assert not large.due()
    with pytest.raises(UserError, match=reason):
        large.save(20, True)
    assert newest_intact(folder) == (tmp, [])
    assert _names(folder) == ["checkpoint.pth", "checkpoint_000015.pth"], "nothing is left half-written"


def test_a_file_that_may_not_grow(tmp_path: Path, limited: None, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path, "File too large", capsys)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no command mount")
    if mount.returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_full(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(disk, "No space left on device", capsys)


def test_older_ones_make_room(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keeper = _keeper(disk, keep=3, numbers=MEGABYTE // 5)  # 0.8 MB: three fit
    for step in (5, 10, 15, 20):
        keeper.save(step, True)
    assert _step(disk / NEWEST) == 20 and numbered_checkpoints(disk).keys() == {15, 20}
    assert capsys.readouterr().err == ""


def test_weights_are_what_was_saved(tmp_path: Path) -> None:
    _keeper(tmp_path).save(7, True)
    content = torch.load(tmp_path / NEWEST, weights_only=True)
    assert content["step"] == 7 and "scaler" not in content
