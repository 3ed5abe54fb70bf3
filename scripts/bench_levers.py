"""What single levers are worth on this processor: layers of the full-size model in float32 and bfloat16, in GFLOP/s.

    python -m scripts.bench_levers [--threads 1] [--json FILE]

Each layer has the shape that it has in a frame of 360×640, padded to 368×640. Attention is PyTorch's fused one, and
that in blocks (``models.diffusion.attention``), which stands in its place on processors without AMX. Times are the
best of several.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from util.command_line import Parser
from util.errors import UserError, help_asked, run_cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(
        prog="python -m scripts.bench_levers",
        description="Time layers of the model in float32 and bfloat16 on the CPU.",
    )
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each layer is tried (default: 1)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="layers whose name has one of these words"
    )
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    args = parser.parse_args(argv)
    if args.threads < 1 or not 0 <= args.seconds < math.inf:
        raise UserError("--threads must be at least 1, and --seconds at least 0")
    return args


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    parse_args()

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.diffusion.attention import blocked_attention, fused_is_fast
from scripts.bench_operator import best_time
from scripts.benchmark_meter import machine
from util.io import write_json
from util.results import library_versions

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CONVOLUTIONS = {
    "UNet, 3×3, 320 channels": (nn.Conv2d, (320, 320, 3), (1, 320, 46, 80)),
    "UNet, 3×3, 640 channels": (nn.Conv2d, (640, 640, 3), (1, 640, 23, 40)),
    "UNet, 3×3, 1280 channels": (nn.Conv2d, (1280, 1280, 3), (1, 1280, 6, 10)),
    "UNet, over time, 320 channels": (nn.Conv3d, (320, 320, (3, 1, 1)), (1, 320, 4, 46, 80)),
    "VAE, 3×3, 128 channels": (nn.Conv2d, (128, 128, 3), (1, 128, 368, 640)),
}
"""Name → layer, its arguments, and the shape of its input."""
LINEAR = {"UNet, linear, 320 to 2560": (3680, 320, 2560), "UNet, linear, 1280 to 10240": (240, 1280, 10240)}
"""Name → rows, and channels of input and output."""
ATTENTION = {
    "UNet, attention, stride 8": (1, 5, 3680, 3680, 64),
    "UNet, attention, stride 16": (1, 10, 920, 920, 64),
    "UNet, attention to text": (1, 5, 3680, 77, 64),
    "VAE, attention": (1, 1, 3680, 3680, 512),
    "image encoder, attention": (2, 16, 257, 257, 80),
}
"""Name → batch, heads, queries, keys, width."""

Rates = dict[str, float]


@torch.inference_mode()
def measure(seconds: float, words: Sequence[str] = ()) -> dict[str, Rates]:
    """Name of a layer → kind of computation → operations a second.

    Args:
        seconds: how long each is tried.
        words: of the names that are wanted; none: all.
    """
    runs: dict[str, Callable[[float], Rates]] = {}
    runs |= {name: lambda s, row=row: _convolution(s, *row) for name, row in CONVOLUTIONS.items()}  # type: ignore[misc]
    runs |= {name: lambda s, row=row: _linear(s, *row) for name, row in LINEAR.items()}  # type: ignore[misc]
    runs |= {name: lambda s, row=row: _attention(s, *row) for name, row in ATTENTION.items()}  # type: ignore[misc]
    return {name: run(seconds) for name, run in runs.items() if not words or any(word in name for word in words)}


def _convolution(seconds: float, kind: type[nn.Module], arguments: tuple[Any, ...], shape: tuple[int, ...]) -> Rates:
    kernel = arguments[2]
    padding = tuple(side // 2 for side in kernel) if isinstance(kernel, tuple) else kernel // 2
    taps = math.prod(kernel) if isinstance(kernel, tuple) else kernel**2
    operations = 2 * taps * arguments[0] * arguments[1] * math.prod(shape[2:])
    found = {}
    for name, dtype in DTYPES.items():
        layer, x = kind(*arguments, padding=padding).to(dtype), torch.randn(shape).to(dtype)
        found[name] = _rate(operations, seconds, layer, x)
        if name == "bfloat16" and kind is nn.Conv2d:
            for weight in layer.parameters():
                weight.data = weight.data.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight
            turned = x.contiguous(memory_format=torch.channels_last)
            found["bfloat16, channels-last"] = _rate(operations, seconds, layer, turned)
    return found


def _linear(seconds: float, rows: int, inputs: int, outputs: int) -> Rates:
    return {
        name: _rate(2 * rows * inputs * outputs, seconds, nn.Linear(inputs, outputs).to(dtype), x.to(dtype))
        for x in [torch.randn(rows, inputs)]
        for name, dtype in DTYPES.items()
    }


def _attention(seconds: float, batch: int, heads: int, queries: int, keys: int, width: int) -> Rates:
    found = {}
    for name, dtype in DTYPES.items():
        q, k, v = (torch.randn(batch, heads, rows, width).to(dtype) for rows in (queries, keys, keys))
        for function, suffix in ((F.scaled_dot_product_attention, ""), (blocked_attention, ", in blocks")):
            found[name + suffix] = _rate(4 * batch * heads * queries * keys * width, seconds, function, q, k, v)
    return found


def _rate(operations: int, seconds: float, function: Callable[..., Tensor], *inputs: Tensor) -> float:
    return 1e3 * operations / best_time(lambda: function(*inputs), CPU, seconds)


def lines(found: dict[str, Rates]) -> list[str]:
    """A Markdown table: a row per layer, a column per kind of computation."""
    kinds = list(dict.fromkeys(kind for rates in found.values() for kind in rates))
    rows = [["layer", *kinds], ["---", *["---:"] * len(kinds)]]
    for name, rates in found.items():
        rows.append([name, *(f"{rates[kind] / 1e9:.0f}" if kind in rates else "" for kind in kinds)])
    return [f"| {' | '.join(row)} |" for row in rows]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, and print it."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    found = measure(args.seconds, args.only)
    if not found:
        raise UserError(f"no layer's name has {' or '.join(args.only)}; leave --only out for all")
    about = machine(CPU)
    way = "fused" if fused_is_fast() else "in blocks"
    print(f"{about['cpu']}, {', '.join(about['bf16_instructions'])}: {about['threads']} threads, GFLOP/s")
    print(f"attention in bfloat16 runs {way} here")
    print("\n".join(lines(found)))
    if args.json:
        write_json(args.json, {"machine": about, "versions": library_versions(), "operations_per_second": found})
        print(f"written: {args.json}")


if __name__ == "__main__":
    run_cli(main)
