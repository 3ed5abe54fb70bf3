"""Which device computes."""

from __future__ import annotations

import torch

from util.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Args:
        name: ``auto`` (CUDA where there is one, else the CPU), ``cpu`` or ``cuda``.

    Raises:
        UserError: ``cuda`` on a machine where PyTorch finds none, or another name.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {name!r}; choose auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda, but PyTorch finds no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """The device in words, for records."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
