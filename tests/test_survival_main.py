"""main.py: validations change nothing, --resume auto, workers that meet a broken file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import main
from models.checkpoints import Checkpoint
from tests.commands import read_checkpoint, run_command
from tests.tiny_models import tiny_flags
from tests.true_formats import write_toy_a2d
from util.checkpoint import BEST, NEWEST
from util.errors import UserError

pytestmark = pytest.mark.slow
SMALL = ("--num_frames", "2", "--train_scales", "48", "--eval_size", "48", "--batch_size", "2")


@pytest.fixture
def flags(tiny_config: list[str], toy_data: Path, tmp_path: Path) -> list[str]:
    where = ("--ytvos_path", str(toy_data), "--output_dir", str(tmp_path / "run"), "--max_steps", "3")
    return [*tiny_config, *tiny_flags(), *SMALL, *where]


def _read(folder: Path) -> dict:
    return read_checkpoint(folder / NEWEST)


def test_validation_changes_nothing(flags: list[str], tmp_path: Path) -> None:
    """Videos after the first and the last step, A2D's items after the last one."""
    run, without = tmp_path / "run", tmp_path / "without"
    every = ("--eval_every", str(2 / 36))  # an epoch has 36 steps
    told = run_command(main.main, *flags, *every)
    assert told.returncode == 0, told.stderr
    assert run_command(main.main, *flags, "--output_dir", without).returncode == 0
    one, other = _read(run)["weights"], _read(without)["weights"]
    assert [name for name in one if not torch.equal(one[name], other[name])] == []

    record = json.loads((run / "validation.json").read_text())
    assert record["scores"].keys() == {"2", "3"} and record["metric"] == "J&F"
    assert read_checkpoint(run / BEST)["step"] == int(record["best"])
    assert record["scores"][record["best"]] == max(record["scores"].values())
    assert sorted(path.name for path in (run / "validation").iterdir()) == ["step_000002.json", "step_000003.json"]
    last = json.loads((run / "validation" / "step_000003.json").read_text())
    assert last["metrics"]["J&F"] == record["scores"]["3"] and last["counts"]["videos"] == 2
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "valid.J&F" in line] == [2, 3]

    alone = ("--eval", "--resume", run / NEWEST, "--precision", "fp32")  # as in training on the CPU; auto may be bf16
    scored = run_command(main.main, *flags, *alone, "--output_dir", tmp_path / "eval")
    assert scored.returncode == 0, scored.stderr
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["metrics"] == last["metrics"]


def test_another_set_is_validated(flags: list[str], tmp_path: Path) -> None:
    data = write_toy_a2d(tmp_path / "a2d", num_train=0, num_test=2, frames=4, height=48, width=64)
    more = ("--max_steps", 1, "--eval_every", 1, "--eval_dataset", "a2d", "--a2d_path", data, "--eval_metric", "mIoU")
    told = run_command(main.main, *flags, *more)
    assert told.returncode == 0, told.stderr
    record = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert record["metric"] == "mIoU" and record["best"] == "1"
    missing = run_command(main.main, *flags, *more, "--a2d_path", "nowhere", "--output_dir", tmp_path / "other")
    assert missing.returncode == 2 and "nowhere" in missing.stderr, "before anything is trained"
    wrong = run_command(main.main, *flags, "--eval_metric", "mAP")
    assert wrong.returncode == 2 and "eval_metric must be auto or one of those that ytvos has" in wrong.stderr


def test_resume_auto(flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = run_command(main.main, *flags, "--resume", "auto", "--max_steps", 2, "--save_every", 1)
    assert first.returncode == 0, first.stderr
    assert f"{run} holds no intact checkpoint; a new run begins" in first.stdout
    assert first.stdout.count("parameters, millions") == first.stdout.count("group 0 of AdamW") == 1
    newest = run / "checkpoint_000002.pth"
    newest.write_bytes(newest.read_bytes()[:-100])  # which is checkpoint.pth, too
    second = run_command(main.main, *flags, "--resume", "auto")
    assert second.returncode == 0, second.stderr
    assert f"skipped {run}/checkpoint" in second.stdout and "from step 1" in second.stdout
    assert f"resuming from {run / 'checkpoint_000001.pth'}" in second.stdout
    assert _read(run)["step"] == 3


def test_a_worker_that_meets_a_broken_file_says_which(flags: list[str], toy_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy_data, data)
    for frame in (data / "train" / "JPEGImages").glob("*/*.jpg"):
        frame.write_bytes(frame.read_bytes()[:300])
    told = run_command(main.main, *flags, "--ytvos_path", data, "--num_workers", 2)
    assert told.returncode == 2
    (error,) = [line for line in told.stderr.splitlines() if line.startswith("error")]
    assert f"frame {data}/train/JPEGImages/" in error and "is broken" in error and "Traceback" not in told.stderr


def test_the_scale_of_the_loss_survives(flags: list[str], tmp_path: Path) -> None:
    """Float16: a run that goes on has the scale, and the steps since it last changed, of one that was never stopped."""
    whole, rest = tmp_path / "run", tmp_path / "rest"
    half = (*flags, "--precision", "fp16")
    for more in (("--save_every", 2), ("--resume", whole / "checkpoint_000002.pth", "--output_dir", rest)):
        told = run_command(main.main, *half, *more)
        assert told.returncode == 0, told.stderr
    one, other = _read(whole), _read(rest)
    assert one["scaler"] == other["scaler"] != torch.amp.GradScaler("cpu").state_dict()
    assert [name for name, value in one["weights"].items() if not torch.equal(value, other["weights"][name])] == []


def test_a_resumed_run_has_the_options_of_its_command(flags: list[str], tmp_path: Path) -> None:
    run, rest = tmp_path / "run", tmp_path / "rest"
    assert run_command(main.main, *flags, "--max_steps", 1).returncode == 0
    weights = {}
    for decay in (5e-4, 50):
        more = ("--resume", run / NEWEST, "--output_dir", rest / str(decay), "--weight_decay", decay, "--max_steps", 2)
        told = run_command(main.main, *flags, *more)
        assert told.returncode == 0 and f"weight decay {decay:g}\n" in told.stdout, told.stderr
        content = _read(rest / str(decay))
        assert [group["weight_decay"] for group in content["optimizer"]["param_groups"]] == [decay]
        weights[decay] = content["weights"]
    assert any(not torch.equal(value, weights[50][name]) for name, value in weights[5e-4].items())


def test_the_moments_of_a_checkpoint_with_the_options_of_the_run() -> None:
    """So that a run may also move between the CPU and a GPU, whose optimiser is fused."""
    optimizers = []
    for options in ({"weight_decay": 0.1, "fused": True}, {"weight_decay": 0.5, "fused": None, "lr": 1e-2}):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(3))
        optimizers.append(torch.optim.AdamW([parameter], **options))
    earlier, later = optimizers
    earlier.param_groups[0]["params"][0].grad = torch.ones(3)
    earlier.step()
    before = earlier.state_dict()
    training = {"optimizer": before, "step": 1, "steps_per_epoch": 1}
    checkpoint = Checkpoint(Path("a.pth"), "vdit", {}, {}, {}, training)
    checkpoint.load_optimizer(later)
    state = later.state_dict()
    (group,) = state["param_groups"]
    assert (group["weight_decay"], group["fused"], group["lr"]) == (0.5, None, 1e-2)
    assert all(torch.equal(value, state["state"][0][name]) for name, value in before["state"][0].items())
    with pytest.raises(UserError, match="has the state of other parameters than this model trains"):
        checkpoint.load_optimizer(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1)) for _ in range(2)]))
