"""Measure time and memory of multi-scale deformable attention: each backend against plain PyTorch, in one run.

    python -m scripts.bench_operator [--device cpu] [--frames 5 36] [--others] [--json FILE]

The shapes are those of the published models on 360 × 640 frames: an encoder layer (every position of four levels is a
query) and a decoder layer (5 queries per frame), with 8 heads of width 32 and 4 points. "autograd" is plain PyTorch
differentiated by autograd; ``torch`` is the fallback, which saves only its inputs. Times are the best of several runs,
and memory is the peak that one call adds. ``--others`` adds operators of other projects where their packages are
installed: ``hub`` is kernels-community/deformable-detr, which the package ``kernels`` downloads from the Hugging Face
Hub and runs, and ``deformops`` is the package of this name.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import ctypes
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

from util.errors import Parser, UserError, help_asked, run_cli


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description="Measure multi-scale deformable attention.")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="type of the values"
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[5, 36], help="numbers of frames of a clip")
    layers = ["encoder", "decoder"]
    parser.add_argument("--layers", nargs="+", default=layers, choices=layers, help="layers whose shapes are measured")
    parser.add_argument("--others", action="store_true", help="also measure operators of other projects, if installed")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of each measurement")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser.parse_args()


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(parse_args)

import psutil
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from models.ops import multi_scale_deformable_attention, plain
from models.ops.functional import BACKENDS, backend_for
from util.device import device_name, resolve_device
from util.files import write_json

LEVELS = [(45, 80), (23, 40), (12, 20), (6, 10)]
HEADS, WIDTH, POINTS, DECODER_QUERIES = 8, 32, 4, 5
REACH = 2.0
"""Standard deviation of the sampling offsets, in pixels of each level."""

Operator = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Row:
    """One implementation at one shape: milliseconds, MiB (None where it cannot be measured)."""

    layer: str
    frames: int
    implementation: str
    forward: float
    forward_backward: float
    memory: float | None
    forward_speedup: float = 1.0
    forward_backward_speedup: float = 1.0


def main() -> None:
    """Measure, print a table, and write it as JSON with ``--json``."""
    args = parse_args()
    if min(args.frames) < 1:
        raise UserError("--frames must be 1 or more")
    device = resolve_device(args.device)
    machine = {"device": device_name(device), "threads": torch.get_num_threads(), "dtype": args.dtype}
    print(f"{machine['device']}, {machine['threads']} threads, {args.dtype}, torch {torch.__version__}")
    rows: list[Row] = []
    for layer in args.layers:
        for frames in args.frames:
            rows += measure(layer, frames, device, getattr(torch, args.dtype), args.seconds, args.others)
    if args.json:
        write_json(args.json, {**machine, "torch": str(torch.__version__), "rows": [asdict(row) for row in rows]})
        print(f"written: {args.json}")


def measure(
    layer: str, frames: int, device: torch.device, dtype: torch.dtype, seconds: float, others: bool = False
) -> list[Row]:
    """Measure and print every implementation at one shape; "autograd" is the first."""
    inputs = make_inputs(layer, frames, device, dtype)
    print(f"\n{layer}, {frames} frames\n{'':<10}{'forward':>12}{'':>8}{'with backward':>16}{'':>8}{'memory':>12}")
    rows: list[Row] = []
    expected: Tensor | None = None
    for name, operator in chain(_implementations(device), _other_projects(inputs) if others else ()):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]

        def step(run: Operator = operator, leaves: list[Tensor] = leaves) -> None:
            result = run(*leaves)
            torch.autograd.grad(result, leaves, torch.ones_like(result))

        with torch.no_grad():
            result = operator(*inputs)
            expected = result if expected is None else expected
            forward = best_time(partial(operator, *inputs), seconds)
        row = Row(layer, frames, name, forward, best_time(step, seconds), _peak_memory(step, device))
        first = rows[0] if rows else row
        row.forward_speedup = first.forward / forward
        row.forward_backward_speedup = first.forward_backward / row.forward_backward
        rows.append(row)
        memory = "" if row.memory is None else f"{row.memory:.0f} MiB"
        print(
            f"{name:<10}{forward:>9.2f} ms{row.forward_speedup:>7.1f}×{row.forward_backward:>13.2f} ms"
            f"{row.forward_backward_speedup:>7.1f}×{memory:>12}   difference {(result - expected).abs().max():.0e}",
            flush=True,
        )
    return rows


def make_inputs(layer: str, frames: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations and weights of a layer: locations around each query's own place, weights that sum to 1."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(frames, sum(h * w for h, w in LEVELS), HEADS, WIDTH, generator=generator)
    if layer == "encoder":
        grids = (
            torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij") for h, w in LEVELS
        )
        centres = torch.cat([torch.stack([x, y], dim=-1).flatten(0, 1) for y, x in grids])
    else:
        centres = torch.rand(DECODER_QUERIES, 2, generator=generator)
    shape = (frames, len(centres), HEADS, len(LEVELS), POINTS)
    offsets = REACH * torch.randn(*shape, 2, generator=generator)
    locations = centres[:, None, None, None] + offsets / torch.tensor([(w, h) for h, w in LEVELS])[:, None]
    weights = torch.randn(*shape, generator=generator).flatten(3).softmax(-1).view(shape)
    return value.to(device, dtype), locations.to(device), weights.to(device)


def best_time(call: Callable[[], Any], seconds: float) -> float:
    """The shortest time of a call in milliseconds, in blocks of calls that take about ``seconds`` together."""
    threads = torch.get_num_threads()  # Timer's default is one
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    return 1e3 * min(timer.blocked_autorange(min_run_time=seconds).times)


def _implementations(device: torch.device) -> Iterator[tuple[str, Operator]]:
    """ "autograd", then the backends that run on this device; each is forced while it is the current one."""
    yield "autograd", lambda value, *rest: plain.forward(value.to(rest[0].dtype), LEVELS, *rest)
    for name in reversed(BACKENDS.get(device.type, ("torch",))):
        with patch.dict(os.environ, MSDA_BACKEND=name):
            try:
                backend_for(torch.empty(0, 0, 0, WIDTH, device=device))
            except UserError as error:
                print(f"{name:<10}left out: {error}")
                continue
            yield name, lambda value, *rest: multi_scale_deformable_attention(value, LEVELS, *rest)


class _Hub(torch.autograd.Function):
    """The operator of a kernel from the Hugging Face Hub."""

    @staticmethod
    def forward(ctx: Any, kernel: Any, *inputs: Tensor) -> Tensor:
        """``inputs``: value, level shapes, level starts, locations and weights."""
        ctx.kernel = kernel
        ctx.save_for_backward(*inputs)
        return kernel.ms_deform_attn_forward(*inputs, len(inputs[0]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of value, locations and weights."""
        inputs = ctx.saved_tensors
        of_value, *others = ctx.kernel.ms_deform_attn_backward(*inputs, grad.contiguous(), len(inputs[0]))
        return None, of_value, None, None, *others


def _other_projects(inputs: tuple[Tensor, Tensor, Tensor]) -> Iterator[tuple[str, Operator]]:
    """The operators of other projects that are installed and take these inputs."""
    shapes = torch.tensor(LEVELS, device=inputs[0].device)
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)

    def hub() -> Operator:
        kernel = importlib.import_module("kernels").get_kernel("kernels-community/deformable-detr", version=1)
        return lambda value, *rest: _Hub.apply(kernel, value, shapes, starts, *(t.to(value.dtype) for t in rest))

    def deformops() -> Operator:
        msda = importlib.import_module("deformops.registry").msda
        return lambda value, locations, weights: msda(value, shapes, starts, locations, weights.to(value.dtype))

    for load in (hub, deformops):
        try:
            operator = load()
            operator(*inputs)
        except Exception as error:  # whatever another project raises where it does not run
            print(f"{load.__name__:<10}left out: {next(iter(str(error).splitlines()), type(error).__name__)}")
        else:
            yield load.__name__, operator


def _peak_memory(call: Callable[[], Any], device: torch.device) -> float | None:
    """The peak memory that a call adds, in MiB; on the CPU only Linux measures it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # returns freed memory, which the call would reuse
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return None
    before = psutil.Process().memory_info().rss
    call()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return peak / 2**10 - before / 2**20


if __name__ == "__main__":
    run_cli(main)
