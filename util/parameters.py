"""How many parameters a model has, trained and frozen, and how the optimiser treats them."""

from __future__ import annotations

import torch
from torch import nn

TITLE = "parameters, millions"


def parameter_lines(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """A table of the model's parts, in millions, and a line for each of the optimiser's groups.

    A part is a child of the model, or a grandchild where a child has both trained and frozen ones.
    """
    rows = [(name, *_counts(part)) for name, part in _parts(model) if any(_counts(part))]
    rows.append(("in all", *_counts(model)))
    width = max(len(TITLE), *(len(name) for name, _, _ in rows))
    lines = [f"{TITLE:<{width}}  {'trained':>8}  {'frozen':>8}"]
    lines += [f"{name:<{width}}  {trained / 1e6:8.2f}  {frozen / 1e6:8.2f}" for name, trained, frozen in rows]
    for number, group in enumerate(optimizer.param_groups):
        tensors = group["params"]
        lines.append(
            f"group {number} of {type(optimizer).__name__}: {len(tensors)} tensors, "
            f"{sum(tensor.numel() for tensor in tensors) / 1e6:.2f} M, rate {group['lr']:g}, weight decay "
            f"{group['weight_decay']:g}"
        )
    return lines


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    parts = []
    for name, child in model.named_children():
        inner = [(f"{name}.{inner_name}", part) for inner_name, part in child.named_children()]
        parts += inner if all(_counts(child)) and inner else [(name, child)]
    return parts


def _counts(part: nn.Module) -> tuple[int, int]:
    """Numbers of trained and of frozen elements."""
    trained = sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
    return trained, sum(parameter.numel() for parameter in part.parameters()) - trained
