"""A small training loop for the toy stack's parts: progress, and going on after a stop."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from util.checkpoint import write_pickle
from util.distributed import is_main, rank, world_size
from util.errors import RunError, UserError

SAVE_SECONDS = 60


def fit(
    name: str,
    modules: Sequence[nn.Module],
    loss: Callable[[torch.Generator, int], Tensor],
    steps: int,
    rate: float,
    folder: Path,
    seed: int = 0,
) -> float:
    """Train modules with AdamW and a cosine schedule after a short warm-up.

    Args:
        name: of the part; its state is kept in ``folder/<name>.pth`` and loaded from there.
        modules: what is trained.
        loss: draws the batch of a step with the generator it is given and returns its loss.
        steps: in all.
        rate: the greatest learning rate.
        folder: for the state.
        seed: a step's generator depends on it and on the step alone, so a resumed run is the same run.

    Returns:
        the mean loss of the last steps.

    Raises:
        RunError: the loss is not finite.
    """
    holder = nn.ModuleList(modules)
    parameters = [p for p in holder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-2)
    path = folder / f"{name}.pth"
    step, recent = 0, 0.0
    if path.is_file():
        state = _read_state(path)
        holder.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        step, recent = state["step"], state["loss"]

    def save() -> None:
        state = {"modules": holder.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "loss": recent}
        write_pickle(path, state)

    saved = time.monotonic()
    holder.train()
    with tqdm(total=steps, initial=step, desc=name, unit="step", dynamic_ncols=True, disable=not is_main()) as bar:
        while step < steps:
            warm = min(1.0, (step + 1) / 100)
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            generator = torch.Generator().manual_seed(((rank() << 20) + seed) * 1_000_003 + step)
            value = loss(generator, step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            _average(parameters)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            current = float(value.detach())
            if not math.isfinite(current):
                raise RunError(f"the loss of {name} is not finite at step {step}; its state of before is in {path}")
            recent = current if step == 1 else 0.98 * recent + 0.02 * current
            bar.update()
            bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
            if time.monotonic() - saved > SAVE_SECONDS or step == steps:
                if is_main():
                    save()
                saved = time.monotonic()
    holder.eval()
    return recent


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read; delete it, and this part begins anew") from error


def _average(parameters: Sequence[nn.Parameter]) -> None:
    """The mean over processes of the gradients, which all processes have for the same parameters."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
