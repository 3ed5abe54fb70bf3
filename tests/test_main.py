"""main.py from the command line: it trains, goes on after a stop, and says what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import main
from models.checkpoints import save_checkpoint
from tests.commands import read_checkpoint
from tests.forks import Forks
from util.errors import run_cli

OPTIONS = ("--config", "configs/vdit_toy.yaml", "--device", "cpu", "--batch_size", "2", "--dim_feedforward", "64")


@pytest.fixture
def train(root: Path, small_stack: Path, toy_data: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The arguments of a run into ``tmp_path``; later ones override."""

    def arguments(*more: str) -> list[str]:
        return [
            *OPTIONS,
            *("--pretrained", str(small_stack), "--ytvos_path", str(toy_data), "--output_dir", str(tmp_path / "run")),
            *more,
        ]

    return arguments


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, root: Path, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Run main.py in this process: its exit status and what it wrote to stderr."""

    def run(arguments: list[str]) -> tuple[int, str]:
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            run_cli(main.main)
        error = "\n".join(line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
        return int(stop.value.code or 0), error

    return run


def _weights(folder: Path) -> dict[str, Tensor]:
    return read_checkpoint(folder / "checkpoint.pth", "vdit")["weights"]


def test_a_resumed_run_gives_the_same_weights(train: Callable, call: Callable, tmp_path: Path) -> None:
    once, twice = str(tmp_path / "once"), str(tmp_path / "twice")
    assert call(train("--max_steps", "4", "--output_dir", once))[0] == 0
    assert call(train("--max_steps", "2", "--output_dir", twice))[0] == 0
    half = _weights(tmp_path / "twice")
    checkpoint = str(tmp_path / "twice" / "checkpoint.pth")
    workers = ("--num_workers", "1")  # another number of workers gives the same clips
    assert call(train("--max_steps", "4", "--output_dir", twice, "--resume", checkpoint, *workers))[0] == 0
    whole, resumed = _weights(tmp_path / "once"), _weights(tmp_path / "twice")
    assert not torch.equal(half["language_queries.vectors"], resumed["language_queries.vectors"])
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_a_finished_run_says_so_and_stays_as_it_is(
    train: Callable, monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    checkpoint = tmp_path / "run" / "checkpoint.pth"
    for arguments in (
        ("--max_steps", "2"),
        ("--max_steps", "2", "--resume", str(checkpoint)),
        ("--max_steps", "1", "--resume", str(checkpoint), "--output_dir", str(tmp_path / "other")),
    ):
        monkeypatch.setattr(sys, "argv", ["main.py", *train(*arguments)])
        main.main()
    told = capsys.readouterr().out
    assert told.count("wrote ") == 1
    assert told.count("nothing is left to train") == 2 and "from step 2, and this run has 1 steps" in told
    assert not (tmp_path / "other").exists()


def test_the_log_has_every_term(train: Callable, call: Callable, tmp_path: Path) -> None:
    assert call(train("--max_steps", "2", "--log_every", "1"))[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"loss", "lr", "grad_norm", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"} <= lines[0].keys()
    assert {"loss_mask_low", "loss_dice_low", "loss_ce_0", "loss_dice_low_0"} <= lines[0].keys()
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["max_steps"] == 2


def test_a_loss_that_is_not_finite_stops_the_run(
    train: Callable, call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.criterion.paired_giou", lambda a, b: a[..., 0] * float("nan"))
    status, error = call(train("--max_steps", "2"))
    assert status == 1
    assert "not finite at step 1" in error
    assert "train_0" in error and "loss_giou nan" in error
    assert not (tmp_path / "run" / "checkpoint.pth").exists()


def _edit(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _break(kind: str, data: Path) -> None:
    """Spoil every video, so that whichever clip is drawn first meets the fault."""
    frames = sorted((data / "train" / "JPEGImages").glob("*/*.jpg"))
    masks = sorted((data / "train" / "Annotations").glob("*/*.png"))
    if kind == "missing frame":
        for frame in frames:
            frame.unlink()
    elif kind == "corrupt JPEG":
        for frame in frames:
            frame.write_bytes(frame.read_bytes()[:500])
    elif kind == "mask of another size":
        from PIL import Image

        for mask in masks:
            with Image.open(mask) as image:
                image.resize((20, 10)).save(mask)
    elif kind == "empty sentence":
        path = data / "meta_expressions" / "train" / "meta_expressions.json"

        def empty(content: dict) -> None:
            next(iter(content["videos"].values()))["expressions"]["0"]["exp"] = "  "

        _edit(path, empty)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("missing frame", ".jpg"),
        ("corrupt JPEG", ".jpg"),
        ("mask of another size", ".png"),
        ("empty sentence", "expression"),
    ],
)
def test_bad_data_is_one_sentence(
    train: Callable, call: Callable, toy_data: Path, tmp_path: Path, kind: str, named: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy_data, data)
    _break(kind, data)
    status, error = call(train("--ytvos_path", str(data), "--max_steps", "1"))
    assert status == 2
    assert error.count("\n") == 0 and named in error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--ytvos_path", "nowhere"), "nowhere"),
        (("--pretrained", "nowhere/stack"), "nowhere/stack"),
        (("--device", "cuda"), "cuda"),
        (("--num_frame", "1"), "--num_frames"),
        (("--resume", "nowhere.pth"), "nowhere.pth"),
        (("--output_dir", "README.md"), "README.md"),
        (("--eval_size", "1"), "--eval_size"),
    ],
)
def test_bad_arguments_are_one_sentence(
    train: Callable, call: Callable, arguments: tuple[str, ...], named: str
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    status, error = call(train(*arguments))
    assert status == 2
    assert error.count("\n") == 0 and named in error


def test_an_unknown_key_names_the_nearest(train: Callable, call: Callable, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("num_frame: 3\n")
    status, error = call(train("--config", str(config)))
    assert status == 2
    assert "num_frame" in error and "'num_frames'" in error


def test_a_checkpoint_of_another_model_is_refused(train: Callable, call: Callable, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.pth", torch.nn.Linear(1, 1), "hcd", {})
    status, error = call(train("--resume", str(tmp_path / "other.pth")))
    assert status == 2
    assert "'hcd'" in error


@pytest.mark.parametrize("lost", ["weights", "optimizer", "step"])
def test_a_checkpoint_without_its_parts_is_refused(train: Callable, call: Callable, tmp_path: Path, lost: str) -> None:
    assert call(train("--max_steps", "1"))[0] == 0
    path = tmp_path / "run" / "checkpoint.pth"
    content = torch.load(path, weights_only=True)
    del content[lost]
    torch.save(content, path)
    status, error = call(train("--max_steps", "2", "--resume", str(path)))
    assert status == 2
    assert error.count("\n") == 0 and "checkpoint.pth" in error


def test_a_run_of_another_shape_is_not_resumed(train: Callable, call: Callable, tmp_path: Path) -> None:
    assert call(train("--max_steps", "1"))[0] == 0
    checkpoint = str(tmp_path / "run" / "checkpoint.pth")
    status, error = call(train("--max_steps", "2", "--resume", checkpoint, "--batch_size", "3"))
    assert status == 2
    assert "steps per epoch" in error and "--batch_size" in error


def test_a_resumed_log_has_every_step_once(train: Callable, call: Callable, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call(train("--max_steps", "2", "--log_every", "1"))[0] == 0
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 3}\n{"step": 4, "lo')  # a run that was killed after its last checkpoint
    more = ("--max_steps", "3", "--log_every", "1", "--resume", str(run / "checkpoint.pth"))
    assert call(train(*more))[0] == 0
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert "loss" in lines[-1]


@pytest.mark.slow
def test_two_processes_train_together(forks: Forks, train: Callable, tmp_path: Path) -> None:
    told = forks.run(tmp_path / "said", 2, "run_main", *train("--max_steps", "2", "--batch_size", "1"))
    assert "on 2 × cpu" in told
    content = read_checkpoint(tmp_path / "run" / "checkpoint.pth", "vdit")
    assert content["step"] == 2
    assert all(weight.isfinite().all() for weight in content["weights"].values())


@pytest.mark.slow
def test_as_a_user_types_it(train: Callable, root: Path, tmp_path: Path) -> None:
    good = subprocess.run(
        [sys.executable, "main.py", *train("--max_steps", "1")], cwd=root, capture_output=True, text=True
    )
    assert good.returncode == 0, good.stderr
    assert "trained parameters" in good.stdout and (tmp_path / "run" / "checkpoint.pth").is_file()
    bad = subprocess.run(
        [sys.executable, "main.py", *train("--ytvos_path", "nowhere")], cwd=root, capture_output=True, text=True
    )
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1
