"""The Triton kernels without a GPU: they run in Triton's interpreter, and compile for GPUs that are not there.

On a machine with a GPU, ``test_operator.py`` runs them there.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.ops import plain
from tests.test_operator import FOUR_LEVELS, Shapes, case

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")]

SIZES: dict[str, tuple[Shapes, int, int, int, int]] = {
    "as published": ([(3, 4)], 2, 32, 4, 3),
    "four levels": (FOUR_LEVELS, 1, 32, 1, 2),
    "two blocks, one not full": ([(2, 3)], 1, 128, 1, 7),
    "no power of two": ([(4, 4), (1, 1)], 1, 20, 1, 2),
    "one channel": ([(1, 1)], 1, 1, 1, 1),
}
"""Level shapes, heads, their width, points per level, queries."""
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# In a process of its own, because Triton's own functions depend on the variable, too, when they are imported.
RUN = """
import sys, torch
from models.ops import functional, multi_scale_deformable_attention
functional.BACKENDS["cpu"] = ("triton",)
def run(value, shapes, locations, weights, grad):
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    result = multi_scale_deformable_attention(inputs[0], shapes, *inputs[1:])
    backward = []
    for ordered in (False, True):
        torch.use_deterministic_algorithms(ordered)
        backward.append(torch.autograd.grad(result, inputs, grad, retain_graph=True))
    return result.detach(), *backward
torch.save({name: run(*inputs) for name, inputs in torch.load(sys.argv[1]).items()}, sys.argv[2])
"""

Inputs = tuple[Tensor, Shapes, Tensor, Tensor, Tensor]


def _run(code: str, root: Path, *arguments: str, **environment: str) -> str:
    """Run Python code in the project's folder; the result is what it prints."""
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, cwd=root, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


def _outside() -> Inputs:
    """Four samples of infinite values: only the last is near the level, and beside its edge."""
    value = torch.ones(1, 4, 1, 8)
    value[:, :3] = math.inf
    locations = torch.tensor([[3.0, 3.0], [math.nan, 0.5], [0.5, -math.inf], [1e30, 0.5], [1.1, 1.1]])
    weights = torch.ones(1, 1, 1, 1, 5)
    weights[..., 0] = math.nan
    return value, [(2, 2)], locations.view(1, 1, 1, 1, 5, 2), weights, torch.ones(1, 1, 8)


@pytest.fixture(scope="module")
def cases() -> dict[str, Inputs]:
    """Value, shapes, locations, weights and the gradient of the result."""
    found = {"outside": _outside()}
    for name, (shapes, heads, width, points, queries) in SIZES.items():
        for dtype in TYPES if name == "as published" else (torch.float32,):
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            value, locations, weights = case(shapes, batch=1, heads=heads, width=width, points=points, queries=queries)
            grad = torch.randn(1, queries, heads * width, generator=torch.Generator().manual_seed(2)).to(dtype)
            found[f"{name}, {dtype}"] = (value.to(dtype), shapes, locations.to(wide), weights.to(wide), grad)
    return found


@pytest.fixture(scope="module")
def results(
    cases: dict[str, Inputs], root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """The kernels' results of all cases, in the interpreter: forward, backward, backward in a fixed order."""
    folder = tmp_path_factory.mktemp("interpreter")
    torch.save(cases, folder / "cases.pt")
    _run(RUN, root, str(folder / "cases.pt"), str(folder / "results.pt"), TRITON_INTERPRET="1", MSDA_BACKEND="triton")
    return torch.load(folder / "results.pt")


def test_they_compute_the_operator(cases: dict[str, Inputs], results: dict[str, tuple]) -> None:
    for name, (value, shapes, locations, weights, grad) in cases.items():
        if name == "outside":
            continue
        exact = [tensor.double() for tensor in (value, locations, weights)]
        found, *backward = results[name]
        assert found.dtype == value.dtype
        # One rounding of sums in the type of the weights; to bfloat16, the interpreter cuts instead of rounding.
        tolerance = {"rtol": torch.finfo(value.dtype).eps, "atol": 8 * torch.finfo(weights.dtype).eps}
        torch.testing.assert_close(
            found.double(), plain.forward(exact[0], shapes, *exact[1:]), **tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
        expected = plain.backward(grad.double(), exact[0], shapes, *exact[1:])
        for gradients in backward:
            assert [tensor.dtype for tensor in gradients] == [value.dtype, weights.dtype, weights.dtype]
            torch.testing.assert_close(gradients[0].double(), expected[0], **tolerance)
            for one, other in zip(gradients[1:], expected[1:], strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=256 * torch.finfo(weights.dtype).eps)


def test_they_do_not_read_what_is_outside(results: dict[str, tuple]) -> None:
    """As the other kernels: what is far outside, infinite or not a number adds nothing."""
    found, *backward = results["outside"]
    torch.testing.assert_close(found, torch.full_like(found, 0.3 * 0.3))
    for of_value, of_locations, of_weights in backward:
        assert not of_value[:, :3].any() and of_value[:, 3].allclose(torch.tensor(0.09))
        assert not of_locations[..., :4, :].any() and not of_weights[..., :4].any()
        assert of_weights[..., 4].allclose(torch.tensor(8 * 0.09))


COMPILE = """
import json, sys
sys.path.insert(0, "models/ops")  # importing models.ops would import the whole model
import torch, triton, triton_kernels
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
names = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
def ptx(kernel, backward, dtype, width, capability):
    value, places = torch.empty(1, 1, 8, width, dtype=dtype), torch.empty(1, 1, 8, 4, 4, 2)
    constants = triton_kernels.constants(value, places, places if backward else value)
    kinds = dict.fromkeys(("value", "out", "grad"), names[dtype]) | dict.fromkeys(constants, "constexpr")
    kinds |= dict.fromkeys(("queries", "positions", "programs"), "i32") | {"sides": ("fp32",) * 8}
    types = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind[0] == "*"}
    options = {"num_warps": triton_kernels.WARPS, "maxnreg": triton_kernels.REGISTERS if backward else None}
    source = ASTSource(kernel, types, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
found = []
for capability in (80, 90, 100, 120):
    for dtype, width in ((torch.bfloat16, 32), (torch.float32, 24)):
        for kernel in (triton_kernels.forward_kernel, triton_kernels.backward_kernel):
            backward = kernel is triton_kernels.backward_kernel
            text = ptx(kernel, backward, dtype, width, capability)
            found.append([capability, backward, dtype.itemsize, get_ptxas(capability).path, text])
json.dump(found, sys.stdout)
"""


def test_they_compile_without_a_gpu(root: Path, tmp_path: Path) -> None:
    """Values are read 16 bytes at once, and nothing spills to local memory."""
    compiled = json.loads(_run(COMPILE, root, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0"))
    assert len(compiled) == 16
    for capability, backward, itemsize, ptxas, ptx in compiled:
        pack = "v2" if backward and itemsize == 2 else "v4"  # the float32 sums of 4 values fill 16 bytes, too
        assert ptx.count(f"ld.global.{pack}.b32") >= 16  # four levels, four corners
        assert ptx.count("add.v4.f32") == (16 if backward and capability >= 90 else 0)
        (tmp_path / "kernel.ptx").write_text(ptx)
        architecture = next(line.split()[1].rstrip(",") for line in ptx.splitlines() if line.startswith(".target"))
        command = [ptxas, "-v", "-arch", architecture, "kernel.ptx", "-o", "kernel.cubin"]
        log = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert log.returncode == 0 and "0 bytes stack frame, 0 bytes spill stores" in log.stderr, log.stderr
