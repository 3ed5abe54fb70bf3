"""Inputs for the tests of multi-scale deformable attention, and its implementations one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.ops import backends, compiling

Shapes = Sequence[tuple[int, int]]
FOUR_LEVELS: Shapes = [(6, 4), (3, 2), (2, 1), (1, 1)]
BACKENDS = ("torch by matrix", "torch by grid", "cpp", "cuda")


def use_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Force one of ``BACKENDS`` for the rest of a test; skip the test where it cannot be had.

    Returns:
        The device that the tensors must be on.
    """
    if name == "cpp":
        needs(compiling.find_compiler)
    if name == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU is here to run the CUDA kernels")
        needs(compiling.find_nvcc)
    if name == "torch by grid":
        monkeypatch.setattr("models.ops.plain.DENSE_POSITIONS", 0)
    monkeypatch.setenv("MSDA_BACKEND", name.split()[0])
    device = torch.device("cuda" if name == "cuda" else "cpu")
    assert backends.backend_for(torch.empty(0, 0, 0, 8, device=device)).name == name.split()[0]
    return device


def needs(find: object) -> str:
    """What a function of ``compiling`` finds; the test is skipped with its sentence where it finds nothing."""
    assert callable(find)
    try:
        return find()
    except compiling.BuildError as error:
        pytest.skip(str(error))


def case(
    shapes: Shapes,
    seed: int = 0,
    *,
    batch: int = 2,
    queries: int = 3,
    heads: int = 2,
    width: int = 8,
    points: int = 3,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    """Random value, locations and weights; a third of the locations is outside or on the edge."""
    generator = torch.Generator().manual_seed(seed)
    positions = sum(h * w for h, w in shapes)
    levels = len(shapes)
    value = torch.randn(batch, positions, heads, width, dtype=torch.float64, generator=generator)
    locations = torch.rand(batch, queries, heads, levels, points, 2, dtype=torch.float64, generator=generator) * 1.6
    weights = torch.rand(batch, queries, heads, levels, points, dtype=torch.float64, generator=generator)
    value, locations, weights = (t.to(device, dtype) for t in (value, locations - 0.3, weights))
    return value, locations, weights


def gradients(result: Tensor, inputs: Sequence[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    """The gradients of a random projection of the result."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(result.shape, dtype=torch.float64, generator=generator).to(result)
    return torch.autograd.grad(result, inputs, direction)
