"""Loss terms between two log lines, kept without waiting for the device, and the batch of one that is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from util.checkpoint import write_pickle
from util.distributed import average_over_processes
from util.errors import RunError

GRADIENT = "grad_norm"


@dataclass
class Step:
    """The terms of one optimiser step, on their way to the CPU.

    Attributes:
        number: of the step, from 1.
        clips: "video/expression" of each.
        names: of the terms.
        values: float32 ``[2, terms]``, on the CPU: this process's, and the means over all processes; to be read when
            ``ready``.
        copied: on CUDA, the event after the copy.
        batches: what the step was computed from, until it is known to be finite.
    """

    number: int
    clips: list[str]
    names: list[str]
    values: Tensor
    copied: torch.cuda.Event | None
    batches: Sequence[Any]

    def ready(self, wait: bool) -> bool:
        """Whether the values have arrived."""
        if self.copied is not None and wait:
            self.copied.synchronize()
        return self.copied is None or self.copied.query()

    @property
    def terms(self) -> dict[str, float]:
        """By name."""
        return dict(zip(self.names, self.values[0].tolist(), strict=True))

    @property
    def own_fault(self) -> bool:
        """Whether a loss is not finite; a gradient alone may have become so through another process."""
        return not all(math.isfinite(value) for name, value in self.terms.items() if name != GRADIENT)

    def describe(self) -> str:
        """What is not finite, where, and all terms."""
        what = "loss" if self.own_fault else "gradient"
        terms = ", ".join(f"{name} {value:g}" for name, value in self.terms.items())
        return f"the {what} is not finite at step {self.number}, clips {'; '.join(self.clips)}: {terms}"


@dataclass
class Meter:
    """Loss terms of the steps since the last log line.

    They are copied to the CPU beside the computation, so that no step waits for them.
    """

    steps: list[Step] = field(default_factory=list)
    checked: int = 0
    """How many of them are known to be finite."""

    def add(self, step: int, clips: list[str], terms: dict[str, Tensor], batches: Sequence[Any] = ()) -> None:
        """Keep one step's terms."""
        own = torch.stack([value.detach().float() for value in terms.values()])
        values = torch.stack([own, average_over_processes(own)])
        copied = None
        if values.device.type == "cuda":
            host = torch.empty_like(values, device="cpu", pin_memory=True)
            host.copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            values = host
        self.steps.append(Step(step, clips, list(terms), values, copied, batches))

    def fault(self, wait: bool = False) -> Step | None:
        """The first step that is known to have a term that is not finite.

        Args:
            wait: until the values of all steps have arrived; otherwise those are looked at that have.
        """
        while self.checked < len(self.steps):
            step = self.steps[self.checked]
            if not step.ready(wait):
                return None
            if not step.values[0].isfinite().all():
                return step
            step.batches = ()
            self.checked += 1
        return None

    def flush(self) -> dict[str, float]:
        """Means of all terms over steps since the last flush, and over processes.

        Raises:
            RunError: a term is not finite; the message names step, clips and terms.
        """
        if not self.steps:
            return {}
        fault = self.fault(wait=True)
        if fault:
            raise RunError(fault.describe())
        means = torch.stack([step.values[1] for step in self.steps]).mean(0).tolist()
        names = self.steps[-1].names
        self.steps.clear()
        self.checked = 0
        return dict(zip(names, means, strict=True))


def save_batches(path: Path, step: Step, **about: Any) -> None:
    """Write what a step was computed from: a dict of plain values and tensors, for ``torch.load(weights_only=True)``.

    Args:
        path: the file.
        step: with its batches, which are dataclasses.
        about: further entries.

    Raises:
        UserError: it cannot be written.
    """
    batches = [{entry.name: getattr(batch, entry.name) for entry in fields(batch)} for batch in step.batches]
    write_pickle(path, {"step": step.number, "clips": step.clips, "terms": step.terms, **about, "batches": batches})
