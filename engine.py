"""The loops of training and of evaluation item by item. Model, criterion, loader and evaluator are handed in."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from util.distributed import gather_objects, is_main, rank
from util.errors import RunError
from util.evaluation import Evaluator, QueryPredictions
from util.logging import RunLog


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


@dataclass
class Meter:
    """Loss terms of the steps since the last log line, kept on the device so that no step waits for it."""

    names: list[str] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    steps: list[tuple[int, list[str]]] = field(default_factory=list)

    def add(self, step: int, clips: list[str], terms: dict[str, Tensor]) -> None:
        """Keep one step's terms."""
        self.names = list(terms)
        self.values.append(torch.stack([value.detach().float() for value in terms.values()]))
        self.steps.append((step, clips))

    def flush(self) -> dict[str, float]:
        """Means of all terms since the last flush.

        Raises:
            RunError: a term is not finite; the message names step, clips and terms.
        """
        if not self.values:
            return {}
        values = torch.stack(self.values).cpu()
        bad = (~values.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            step, clips = self.steps[bad[0]]
            terms = ", ".join(f"{name} {value:g}" for name, value in zip(self.names, values[bad[0]], strict=True))
            raise RunError(
                f"the loss is not finite at step {step}, clips {'; '.join(clips)}: {terms}; "
                "the last checkpoint is from before it"
            )
        self.values.clear()
        self.steps.clear()
        return dict(zip(self.names, values.mean(0).tolist(), strict=True))


def training_step(
    model: nn.Module, criterion: Any, batch: Any, optimizer: torch.optim.Optimizer, max_norm: float
) -> dict[str, Tensor]:
    """One optimiser step.

    Returns:
        ``loss`` (weighted sum), every term, and the gradient's norm before clipping.
    """
    target = criterion.prepare(batch.targets, batch.frames.shape[-2:])
    output = model(batch.frames, batch.padding, batch.captions, criterion.select(target), batch.annotated)
    loss, terms = criterion(output, target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)
    optimizer.step()
    return {"loss": loss, "grad_norm": norm, **terms}


def train(
    model: nn.Module,
    criterion: Any,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    log: RunLog,
    save: Callable[[int], None],
    *,
    seed: int,
    device: torch.device,
    first_step: int = 0,
    max_norm: float = 0.1,
    log_every: int = 10,
    save_every: int = 0,
) -> int:
    """Run optimiser steps until the schedule ends.

    Args:
        model: its forward takes frames, padding, captions, selector and annotated frames.
        criterion: has ``prepare``, ``select`` and is called with output and target.
        loader: called with (epoch, first batch of it), gives that epoch's batches.
        optimizer: of the trained parameters.
        schedule: length and rate.
        log: gets the means of every ``log_every`` steps.
        save: writes a checkpoint; called with the number of steps done, at each epoch's end, every
            ``save_every`` steps and at the end.
        seed: what is random in a step depends on it, the step and the process alone.
        device: where batches go.
        first_step: steps already done.
        max_norm: greatest norm of the gradient; 0: no clipping.
        log_every: steps between log lines.
        save_every: steps between checkpoints; 0: at ends of epochs only.

    Returns:
        the number of steps done in all.
    """
    model.train()
    meter = Meter()
    step = first_step
    for epoch, batch in _batches(loader, schedule, first_step):
        torch.manual_seed((rank() << 32) + seed + step)
        rate = schedule.rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batch.to(device, non_blocking=True)
        terms = training_step(model, criterion, batch, optimizer, max_norm)
        step += 1
        meter.add(step, [f"{t['video']}/{t['exp_id']}" for t in batch.targets], terms)
        log.advance()
        epoch_ends = step % schedule.steps_per_epoch == 0 or step == schedule.total_steps
        must_save = epoch_ends or (save_every > 0 and step % save_every == 0)
        if must_save or step % log_every == 0:
            log.write(step, {**meter.flush(), "lr": rate}, epoch=epoch)
        if must_save:
            save(step)
    return step


def _batches(loader: Any, schedule: Schedule, first_step: int) -> Iterator[tuple[int, Any]]:
    """Batches with their epoch, from the position after ``first_step`` on to the end of the schedule."""
    step = first_step
    while step < schedule.total_steps:
        epoch, first = divmod(step, schedule.steps_per_epoch)
        for batch in loader(epoch, first):
            yield epoch, batch
            step += 1
            if step == schedule.total_steps:
                return


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
