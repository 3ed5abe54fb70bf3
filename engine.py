"""The loops of training and of evaluation item by item. Model, criterion, loader and evaluator are handed in."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.evaluators import Evaluator
from util.config import Config
from util.distributed import gather_objects, is_main, mean_over_processes, rank, world_size
from util.guard import Guard
from util.logging import RunLog
from util.meter import GRADIENT, Meter
from util.metrics import QueryPredictions


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run, as functions of the step, so that a resumed run needs no state of them."""

    rate: float
    steps_per_epoch: int
    epochs: int
    drops: tuple[int, ...] = ()
    """Epochs after which the rate falls to a tenth."""
    warmup_steps: int = 0
    max_steps: int = 0
    """0: no limit."""
    cosine: bool = False
    """Fall to 0 along half a cosine over the whole run, in place of the drops."""

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        steps = self.steps_per_epoch * self.epochs
        return min(steps, self.max_steps) if self.max_steps else steps

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.cosine:
            return self.rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
        return self.rate * warmup * 0.1 ** sum(step // self.steps_per_epoch >= drop for drop in self.drops)


def build_schedule(cfg: Config, steps_per_epoch: int) -> Schedule:
    """Length and learning rate of a run; the rate is scaled with the number of processes."""
    return Schedule(
        rate=cfg.lr * world_size() / cfg.lr_processes,
        steps_per_epoch=steps_per_epoch,
        epochs=cfg.epochs,
        drops=cfg.lr_drop,
        warmup_steps=cfg.warmup_steps,
        max_steps=cfg.max_steps,
        cosine=cfg.lr_schedule == "cosine",
    )


def training_step(
    model: nn.Module,
    criterion: Any,
    batches: Sequence[Any],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Tensor]:
    """One optimiser step: the update of one batch that holds the clips of all these batches.

    Args:
        model: processes exchange its gradients once, with the last batch.
        criterion: its terms are sums over clips, divided by what it counts in all batches.
        batches: on the model's device.
        optimizer: of the trained parameters.
        max_norm: greatest norm of the gradient; 0: no clipping.
        scaler: of the loss, for float16. A step whose scaled gradient overflows is left out, and the scale halved.

    Returns:
        ``loss`` (weighted sum), every term, and the gradient's norm before clipping. With a scaler also its ``scale``,
        and ``skipped``, 1 for a step left out, whose norm is given as 0.
    """
    targets = [criterion.prepare(batch.targets, batch.frames.shape[-2:]) for batch in batches]
    count = criterion.count(targets)
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for i, (batch, target) in enumerate(zip(batches, targets, strict=True)):
        alone = nullcontext if i == len(batches) - 1 else getattr(model, "no_sync", nullcontext)
        with alone():
            output = model(batch.frames, batch.padding, batch.captions, criterion.select(target), batch.annotated)
            loss, terms = criterion(output, target, count)
            (loss if scaler is None else scaler.scale(loss)).backward()
        for name, value in {"loss": loss, **terms}.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        del output, loss, terms
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if scaler is None:
        norm = _clip(parameters, max_norm)
        optimizer.step()
        return {"loss": sums.pop("loss"), GRADIENT: norm, **sums}
    scale = scaler.scale(torch.ones_like(count))
    scaler.unscale_(optimizer)
    norm = _clip(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    # A scale below 1 is beyond what overflow explains: then the norm shows that the gradient is not finite.
    skipped = ~norm.isfinite() & (scale >= 1)
    about = {GRADIENT: norm.masked_fill(skipped, 0.0), "skipped": skipped.float(), "scale": scale}
    return {"loss": sums.pop("loss"), **about, **sums}


def _clip(parameters: list[Tensor], max_norm: float) -> Tensor:
    """Clip the gradient; its norm before that."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)


def train(
    model: nn.Module,
    criterion: Any,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    log: RunLog,
    save: Callable[[int, bool], None],
    *,
    seed: int,
    device: torch.device,
    first_step: int = 0,
    max_norm: float = 0.1,
    log_every: int = 10,
    save_every: int = 0,
    save_due: Callable[[], bool] = lambda: False,
    validate: Callable[[int], None] | None = None,
    validate_every: int = 0,
    guard: Guard | None = None,
    accumulate: int = 1,
    scaler: torch.amp.GradScaler | None = None,
) -> int:
    """Run optimiser steps until the schedule ends.

    Args:
        model: its forward takes frames, padding, captions, selector and annotated frames.
        criterion: has ``prepare``, ``select`` and is called with output and target.
        loader: called with (epoch, first step of it), gives that epoch's batches.
        optimizer: of the trained parameters.
        schedule: length and rate.
        log: gets the means of every ``log_every`` steps.
        save: writes a checkpoint; called with the number of steps done, and whether the run ends with it: at each
            epoch's end, every ``save_every`` steps, when ``save_due`` says so, before a validation, at a signal and at
            the end.
        seed: what is random in a step depends on it, the step and the process alone.
        device: where batches go.
        first_step: steps already done.
        max_norm: greatest norm of the gradient; 0: no clipping.
        log_every: steps between log lines.
        save_every: steps between checkpoints; 0: at ends of epochs only.
        save_due: of this process alone; a checkpoint must need no other one.
        validate: called with the number of steps done, in all processes; may leave the model in evaluation mode.
        validate_every: steps between validations, beside that of the last step.
        guard: of signals, other processes and losses that are not finite; None: they end the run as they come.
        accumulate: batches per step.
        scaler: of the loss, for float16.

    Returns:
        the number of steps done in all.

    Raises:
        Stopped: by a signal; the step is saved.
        RunError: a loss is not finite, or another process is gone.
    """
    model.train()
    guard = guard or Guard()
    meter = Meter()
    step = first_step
    for epoch, batches in log.timed(_batches(loader, schedule, first_step, accumulate)):
        guard.at(f"computes step {step + 1}")
        torch.manual_seed((rank() << 32) + seed + step)
        rate = schedule.rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        moved = [batch.to(device, non_blocking=True) for batch in batches]
        terms = training_step(model, criterion, moved, optimizer, max_norm, scaler)
        step += 1
        meter.add(step, [f"{t['video']}/{t['exp_id']}" for b in batches for t in b.targets], terms, batches)
        log.advance(sum(len(b.captions) for b in batches), sum(b.frames.shape[0] * b.frames.shape[1] for b in batches))

        ends = step == schedule.total_steps
        validates = validate is not None and (ends or is_due(step, validate_every))
        saves = ends or validates or step % schedule.steps_per_epoch == 0 or is_due(step, save_every)
        logs = saves or is_due(step, log_every)
        alone = not saves and save_due()
        fault = meter.fault(wait=logs or alone) is not None
        stops, faulty = guard.agree(fault, now=logs)
        if stops and not logs:
            fault = meter.fault(wait=True) is not None
            faulty = guard.agree(fault, now=True)[1]
        if faulty:
            guard.raise_fault(meter)
        if logs and not fault:
            log.write(step, {**mean_over_processes(meter.flush(), device), "lr": rate}, epoch=epoch)
        if saves or stops or (alone and not fault):
            guard.at(f"saves step {step}")
            save(step, ends or stops)
        if stops:
            guard.raise_stop(step)
        if validate is not None and validates:
            validate(step)
            model.train()
        guard.at(f"waits for the data of step {step + 1}")
    return step


def is_due(step: int, every: int) -> bool:
    """Whether what happens every so many steps (0: never) happens after a step, counted from 1."""
    return every > 0 and step % every == 0


def _batches(loader: Any, schedule: Schedule, first_step: int, accumulate: int) -> Iterator[tuple[int, list[Any]]]:
    """Each step's batches with their epoch, from the position after ``first_step`` on to the end of the schedule."""
    step = first_step
    while step < schedule.total_steps:
        epoch, first = divmod(step, schedule.steps_per_epoch)
        for batches in _groups(loader(epoch, first), accumulate):
            yield epoch, batches
            step += 1
            if step == schedule.total_steps:
                return


def _groups(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Batches in lists of so many."""
    rest = iter(batches)
    while group := list(islice(rest, size)):
        yield group


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    evaluator: Evaluator,
    select: Any,
    predictions: Callable[[Any, Any], Sequence[QueryPredictions]],
    *,
    seed: int,
    device: torch.device,
) -> None:
    """Hand the predictions for this process's items to the evaluator, and then what all processes have collected.

    Args:
        model: its forward takes frames, padding, captions, selector and annotated frames.
        loader: batches of this process's items, in no particular order.
        evaluator: of the dataset.
        select: which queries are refined.
        predictions: called with the model's output and the batch's targets.
        seed: what is random for an item depends on it alone.
        device: where batches go.
    """
    model.eval()
    for batch in tqdm(loader, unit="item", desc="evaluate", dynamic_ncols=True, file=sys.stdout, disable=not is_main()):
        torch.manual_seed(seed)  # noise, where the model draws any, depends on no other item
        batch = batch.to(device, non_blocking=True)
        output = model(batch.frames, batch.padding, batch.captions, select, batch.annotated)
        evaluator.update(predictions(output, batch.targets))
    evaluator.merge(gather_objects(evaluator.state()))
