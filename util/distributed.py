"""Wrappers of torch.distributed that also work in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from util.errors import UserError, printable

LONG_WAIT = timedelta(hours=12)  # for the slowest process: one may save or validate while the others wait


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the process group of ``torchrun``, and leave it at the end; without torchrun, do nothing.

    Args:
        device: the kind of device.

    Yields:
        the device of this process.

    Raises:
        UserError: there are more processes than CUDA devices, or several on MPS.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise UserError(
                f"process {local} of this machine has no GPU: only {count} are visible; start fewer processes"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if device.type == "mps":
        raise UserError("PyTorch trains with one process on MPS; start one process, or use --device cpu")
    # Barriers and objects use gloo on GPUs too: it notices that a process has left, for which NCCL may wait for hours.
    # With a device_id they would use NCCL.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=LONG_WAIT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes logs and checkpoints."""
    return rank() == 0


def print_notes(notes: Iterable[str]) -> None:
    """Print notes for the user, in the main process only."""
    if is_main():
        for note in notes:
            print(f"note: {printable(note)}", flush=True)


def average_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes, on its device; the tensor itself in a single process."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def wait_for_all() -> None:
    """Wait until every process calls this."""
    if world_size() > 1:
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """The picklable values of all processes, in the order of their numbers."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def balanced_share(costs: Sequence[float], process: int, processes: int) -> list[int]:
    """Indices of the items that a process works on, in order.

    Items are assigned from the most expensive to the cheapest, each to the process with the lowest load so far.
    """
    loads, owners = [0.0] * processes, {}
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return sorted(index for index, owner in owners.items() if owner == process)
