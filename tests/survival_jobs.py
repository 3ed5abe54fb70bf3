"""What tests run in processes of their own (``tests.forks``), and a training that is small enough for survival."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import inference_ytvos
import main
from datasets.registry import load_config
from engine import Run, Schedule, Validation, train
from models.checkpoints import save_checkpoint
from util.checkpoint import Keeper
from util.distributed import is_main, process_group, rank
from util.errors import UserError, run_cli
from util.guard import Guard
from util.run_log import RunLog

CPU = torch.device("cpu")
STEPS = 30


def warm(flags: Sequence[str]) -> None:
    """Import what a training needs; nothing is computed, as that starts threads."""
    importlib.import_module("datasets.ytvos")
    importlib.import_module("torch.utils.tensorboard")
    main.build_model(load_config(flags, ""))


def run_main(*arguments: str) -> None:
    """``main.py`` with these arguments."""
    sys.argv = ["main.py", *arguments]
    run_cli(main.main)


def run_inference(*arguments: str) -> None:
    """``inference_ytvos.py`` with these arguments."""
    sys.argv = ["inference_ytvos.py", *arguments]
    run_cli(inference_ytvos.main)


@dataclass(frozen=True)
class Batch:
    """What ``engine.train`` needs of a batch."""

    frames: Tensor
    padding: Tensor
    captions: list[str]
    targets: list[dict[str, Any]]
    annotated: None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The same."""
        return self


class Line(nn.Module):
    """A model with two parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(1, 1)

    def forward(self, frames: Tensor, *rest: Any) -> Tensor:
        return self.linear(frames.mean().view(1, 1)) + 0.1 * torch.randn(1, 1)


class Square:
    """The loss: the output's square."""

    @staticmethod
    def prepare(targets: Any, size: Any) -> Any:
        """The same."""
        return targets

    @staticmethod
    def select(target: Any) -> None:
        """Nothing is refined."""

    @staticmethod
    def count(targets: Any) -> Tensor:
        """One."""
        return torch.ones(())

    def __call__(self, output: Tensor, target: Any, count: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = output.square().sum()
        return loss, {"loss_square": loss}


def batches(epoch: int, first: int, seconds: float = 0.0, bad: int = 0) -> Iterator[Batch]:
    """Ten batches per epoch; that of step number ``bad`` holds infinity."""
    for position in range(first, 10):
        time.sleep(seconds)
        step = 10 * epoch + position + 1
        value = torch.inf if step == bad else step + 0.5 * rank()
        yield Batch(
            torch.full((1, 1, 3, 2, 2), value),
            torch.zeros(1, 2, 2, dtype=torch.bool),
            ["it"],
            [{"video": f"v{step}", "exp_id": str(rank()), "masks": torch.zeros(1, 2, 2, dtype=torch.bool)}],
        )


def train_line(
    folder: Path,
    loader: Any = batches,
    patience: float = 60.0,
    steps: int = STEPS,
    save_every: int = 0,
    guard: Guard | None = None,
    validation: Validation | None = None,
    log_every: int = 10,
) -> nn.Module:
    """Train a ``Line`` as ``main.train_from_config`` trains a model; the trained one."""
    model = Line()
    with guard or Guard(folder, patience, seed=1) as watched, RunLog(folder, steps, 0, active=False) as log:

        def write(path: Path, step: int) -> None:
            optimizer = torch.optim.AdamW(model.parameters()).state_dict()
            save_checkpoint(path, model, "vdit", {}, optimizer=optimizer, step=step, steps_per_epoch=10)

        watched.start(0)
        train(
            Run(
                model=model,
                network=DistributedDataParallel(model) if dist.is_initialized() else model,
                criterion=Square(),  # type: ignore[arg-type]
                loader=loader,
                optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
                schedule=Schedule(1e-3, 10, 100, max_steps=steps),
                log=log,
                keeper=Keeper(folder, write, 2, 0, active=is_main()),
                device=CPU,
                guard=watched,
                validation=validation,
                seed=1,
                log_every=log_every,
                save_every=save_every,
            )
        )
    return model


def train_together(folder: str, patience: float, bad_rank: int = -1, bad: int = 0, fault: str = "") -> None:
    """``train_line`` in one of several processes; one of them may meet something bad at a step."""

    def loader(epoch: int, first: int) -> Iterator[Batch]:
        for batch in batches(epoch, first, 0.02, bad if fault == "infinity" and rank() == bad_rank else 0):
            if rank() == bad_rank and batch.targets[0]["video"] == f"v{bad}":
                if fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif fault == "hang":
                    time.sleep(1000)
                elif fault == "halt":
                    os.kill(os.getpid(), signal.SIGSTOP)
                elif fault == "SIGTERM":
                    os.kill(os.getpid(), signal.SIGTERM)
                elif fault == "file":
                    raise UserError("frame v/00000.jpg is broken; fetch it again")
            yield batch

    def job() -> None:
        with process_group(CPU):
            train_line(Path(folder), loader, patience, save_every=5)
            print(f"process {rank()} has finished")

    run_cli(job)
