"""Time and memory of multi-scale deformable attention: each implementation against plain PyTorch, in one run.

    python -m scripts.bench_operator [--device cpu] [--frames 5 36] [--json FILE]

The shapes are those of the published models on 360 × 640 frames: an encoder layer (every position of four levels is a
query) and a decoder layer (5 queries per frame), 8 heads of width 32, 4 points. Plain PyTorch is ``plain.forward``
differentiated by autograd, as one would write it; the ``torch`` row is the fallback, which keeps nothing between
forward and backward. Times are the best of several, memory is the most that one call adds.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from util.command_line import Parser
from util.errors import UserError, help_asked, run_cli


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description="Time multi-scale deformable attention.")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the values")
    parser.add_argument("--frames", type=int, nargs="+", default=[5, 36], help="frames of a clip")
    parser.add_argument("--layers", nargs="+", default=["encoder", "decoder"], choices=["encoder", "decoder"])
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each time is taken, at least 3 calls")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    return parser.parse_args()


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    parse_args()

import torch
from torch import Tensor

from models.ops import multi_scale_deformable_attention, plain
from models.ops.functional import DEVICES, backend_for
from util.device import device_name, resolve_device
from util.io import write_json

LEVELS = [(45, 80), (23, 40), (12, 20), (6, 10)]
HEADS, WIDTH, POINTS, DECODER_QUERIES = 8, 32, 4, 5
REACH = 2.0
"""Standard deviation of the sampling offsets, in pixels of each level."""

Operator = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Row:
    """One implementation at one shape. Times in milliseconds, memory in MiB (None where it cannot be told)."""

    layer: str
    frames: int
    implementation: str
    forward: float
    forward_backward: float
    memory: float | None
    forward_speedup: float = 1.0
    forward_backward_speedup: float = 1.0
    forward_bandwidth: float = 0.0
    forward_backward_bandwidth: float = 0.0
    """GB/s: the bytes that the passes must at least move, over their time."""


def main() -> None:
    """Measure, print a table, and write it as JSON where asked."""
    args = parse_args()
    if min(args.frames) < 1:
        raise UserError("--frames takes numbers from 1 on")
    device = resolve_device(args.device)
    rows: list[Row] = []
    print(f"{device_name(device)}, {torch.get_num_threads()} threads, {args.dtype}, torch {torch.__version__}")
    if device.type == "cuda":
        print(f"copying reaches {_copy_bandwidth(device):.0f} GB/s")
    for layer in args.layers:
        for frames in args.frames:
            rows += measure(layer, frames, device, getattr(torch, args.dtype), args.seconds)
    if args.json:
        write_json(args.json, _summary(rows, device, args.dtype))
        print(f"written: {args.json}")


def measure(layer: str, frames: int, device: torch.device, dtype: torch.dtype, seconds: float) -> list[Row]:
    """Every implementation at one shape, each printed as soon as it is known; plain PyTorch is the first."""
    inputs = make_inputs(layer, frames, device, dtype)
    forward_bytes, backward_bytes = least_traffic(*inputs)
    print(f"\n{layer}, {frames} frames: {forward_bytes / 1e6:.1f} MB at least are moved forward, ", end="")
    print(f"{backward_bytes / 1e6:.1f} MB backward")
    print(f"{'':<16}{'forward':>12}{'':>8}{'bandwidth':>12}{'with backward':>16}{'':>8}{'bandwidth':>12}{'memory':>12}")
    rows: list[Row] = []
    expected: Tensor | None = None
    for name, operator in implementations(device):
        with torch.no_grad():
            result = operator(*inputs)
            expected = result if expected is None else expected
            difference = float((result - expected).abs().max())
            forward = best_time(lambda op=operator: op(*inputs), device, seconds)  # type: ignore[misc]
        step = _training_step(operator, inputs)
        both = best_time(step, device, seconds)
        row = Row(layer, frames, name, forward, both, peak_memory(step, device))
        first = rows[0] if rows else row
        row.forward_speedup = first.forward / forward
        row.forward_backward_speedup = first.forward_backward / both
        row.forward_bandwidth = forward_bytes / forward / 1e6
        row.forward_backward_bandwidth = (forward_bytes + backward_bytes) / both / 1e6
        rows.append(row)
        memory = "" if row.memory is None else f"{row.memory:.0f} MiB"
        print(
            f"{name:<16}{forward:>9.2f} ms{row.forward_speedup:>7.1f}×{row.forward_bandwidth:>7.1f} GB/s"
            f"{both:>13.2f} ms{row.forward_backward_speedup:>7.1f}×{row.forward_backward_bandwidth:>7.1f} GB/s"
            f"{memory:>12}   off by {difference:.0e}",
            flush=True,
        )
    return rows


def make_inputs(layer: str, frames: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations and weights as such a layer has them: places around each query's own, weights that sum to 1."""
    generator = torch.Generator().manual_seed(0)
    positions, levels = sum(h * w for h, w in LEVELS), len(LEVELS)
    value = torch.randn(frames, positions, HEADS, WIDTH, generator=generator)
    if layer == "encoder":
        centres = torch.cat([_centres(h, w) for h, w in LEVELS])
    else:
        centres = torch.rand(DECODER_QUERIES, 2, generator=generator)
    shape = (frames, len(centres), HEADS, levels, POINTS)
    offsets = REACH * torch.randn(*shape, 2, generator=generator)
    locations = centres[:, None, None, None] + offsets / torch.tensor([(w, h) for h, w in LEVELS])[:, None]
    weights = torch.randn(*shape, generator=generator).flatten(3).softmax(-1).view(shape)
    return value.to(device, dtype), locations.to(device), weights.to(device)


def least_traffic(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[int, int]:
    """The bytes that a forward and a backward pass cannot do without: each number read or written once.

    Few queries read few values; the values' gradient is written as a whole.
    """
    batch, queries, heads = weights.shape[:3]
    row = value.shape[-1] * value.element_size()
    read = min(value.nbytes, weights.numel() * 4 * row)
    coordinates = locations.nbytes + weights.nbytes
    result = batch * queries * heads * row
    return read + coordinates + result, read + 2 * coordinates + result + value.nbytes


def _centres(h: int, w: int) -> Tensor:
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def implementations(device: torch.device) -> Iterator[tuple[str, Operator]]:
    """Plain PyTorch, then what this device can run; each is forced while it is the current one."""
    yield "plain PyTorch", lambda value, *rest: plain.forward(value.to(rest[0].dtype), LEVELS, *rest)
    before = os.environ.get("MSDA_BACKEND")
    try:
        for name in ("torch", *(name for name, kind in DEVICES.items() if kind == device.type)):
            os.environ["MSDA_BACKEND"] = name
            try:
                backend_for(torch.empty(0, 0, 0, WIDTH, device=device))
            except UserError as error:
                print(f"{name:<16}left out: {error}")
                continue
            yield name, lambda value, *rest: multi_scale_deformable_attention(value, LEVELS, *rest)
    finally:
        os.environ.pop("MSDA_BACKEND")
        if before is not None:
            os.environ["MSDA_BACKEND"] = before


def _training_step(operator: Operator, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    direction: list[Tensor] = []

    def step() -> None:
        result = operator(*leaves)
        if not direction:
            direction.append(torch.randn_like(result))
        torch.autograd.grad(result, leaves, direction[0])

    return step


def best_time(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """The shortest of the times of a call, in milliseconds."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 1000):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - started))
    return min(times)


def peak_memory(call: Callable[[], Any], device: torch.device) -> float | None:
    """The most memory that a call takes beyond what is there before, in MiB."""
    gc.collect()
    if device.type == "cuda":
        _wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = _status("VmRSS")
        call()
        return (_status("VmHWM") - before) / 2**10
    except OSError:
        return None


def _status(field: str) -> int:
    """A line of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _copy_bandwidth(device: torch.device) -> float:
    source = torch.empty(2**28, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_time(lambda: target.copy_(source), device, 0.5) / 1e6


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _summary(rows: list[Row], device: torch.device, dtype: str) -> dict[str, Any]:
    """All rows; of the device's own implementation with the fewest encoder frames, the two speed-ups by name."""
    summary: dict[str, Any] = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "torch": str(torch.__version__),
        "rows": [asdict(row) for row in rows],
    }
    compiled = [row for row in rows if row.layer == "encoder" and row.implementation in DEVICES]
    if compiled:
        row = min(compiled, key=lambda row: row.frames)
        summary["encoder_forward_speedup"] = row.forward_speedup
        summary["encoder_forward_backward_speedup"] = row.forward_backward_speedup
    return summary


if __name__ == "__main__":
    run_cli(main)
