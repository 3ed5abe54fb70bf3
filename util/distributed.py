"""torch.distributed, or the same calls in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from util.errors import UserError


@contextmanager
def process_group(device: torch.device, patience: timedelta | None = None) -> Iterator[torch.device]:
    """Join the process group that ``torchrun`` announces, and leave it at the end; a plain run stays alone.

    Args:
        device: the kind of device.
        patience: how long processes wait for each other; None: PyTorch's minutes.

    Yields:
        this process's own device of the given kind.

    Raises:
        UserError: there are more processes than CUDA devices.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise UserError(f"process {local} of this machine has no GPU of its own: {count} are visible; start fewer")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes logs and checkpoints."""
    return rank() == 0


def tell(notes: Iterable[str]) -> None:
    """Print what the user should know, once."""
    if is_main():
        for note in notes:
            print(f"note: {note}", flush=True)


def average_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes, on its device; the tensor itself in a single process."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def mean_over_processes(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Means over all processes, which call this together with the same names.

    Args:
        values: of this process.
        device: of the kind that processes exchange tensors on.
    """
    if world_size() == 1:
        return values
    means = average_over_processes(torch.tensor(list(values.values()), dtype=torch.float64, device=device))
    return dict(zip(values, means.tolist(), strict=True))


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if world_size() > 1:
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """Every process's picklable value, in the order of their numbers, in each process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def balanced_share(costs: Sequence[float], process: int, processes: int) -> list[int]:
    """Indices of the items that a process works on: the dearest first, each to who has least to do, all in order."""
    loads, owners = [0.0] * processes, {}
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return sorted(index for index, owner in owners.items() if owner == process)
