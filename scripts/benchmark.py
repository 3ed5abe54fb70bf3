"""How fast the model is, and how much memory it takes: the project's path against what the published code does.

    python -m scripts.benchmark --device cpu --frames 2 --sentences 4 --json speed.json --chart speed.png
    python -m scripts.benchmark --device cuda --frames 36 --sentences 4 --training

The model has its full size and random weights; nothing is downloaded. One video is segmented for several sentences,
from JPEG files to PNG files, by each path in a process of its own: stage by stage, with the operations of each stage
and their share of what the device's matrix products reach in the same run. The baseline is ``benchmark_baseline``. Any
option of the model may be given, as ``--config configs/hcd_ytvos.yaml``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.registry import load_config
from scripts.benchmark_plan import BASELINE, FAST, SWEEP, TRAIN_BASELINE, TRAIN_FAST, Plan
from scripts.benchmark_report import draw_chart, text_report
from scripts.benchmark_summary import summarise
from util.config import Config, load_config
from util.errors import Parser, RunError, UserError, run_cli
from util.files import write_json
from util.run_log import library_versions

ROOT = Path(__file__).resolve().parents[1]
FULL_SIZE = ROOT / "configs" / "full_size"
DTYPES = ("bf16", "fp32", "fp16")
LARGEST = 640  # the longer side of a frame, unless a larger one is asked for


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write what is asked for (``argv`` without the program's name; None: the process's own)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = parse_args(argv)
    plan = make_plan(args, load_config(["--device", args.device, *rest], "Measure the speed of the model."))
    found: dict[str, Any] = {
        "command": " ".join(["python", "-m", "scripts.benchmark", *argv]),
        "settings": dataclasses.asdict(plan),
        "versions": library_versions(),
        "fast": [run_part(plan, FAST, dtype) for dtype in args.dtype],
    }
    if not args.no_baseline:
        found["baseline"] = run_part(plan, BASELINE)
    if args.training:
        found["training"] = {"fast": run_part(plan, TRAIN_FAST, args.dtype[0])}
        if not args.no_baseline:
            found["training"]["baseline"] = run_part(plan, TRAIN_BASELINE)
    if plan.sweep_frames or plan.sweep_sentences:
        found["sweep"] = run_part(plan, SWEEP, args.dtype[0])
    if args.processes:
        found["processes"] = [in_processes(plan, args.dtype[0], count) for count in args.processes]
    result = summarise(found)
    print(text_report(result))
    if args.json:
        write_json(args.json, result)
        print(f"written: {args.json}")
    if args.chart:
        draw_chart(result, args.chart)
        print(f"drawn: {args.chart}")


def run_part(plan: Plan, part: str, dtype: str = "fp32") -> dict[str, Any]:
    """What one part of the benchmark finds, in a process of its own."""
    return _run(plan, part, dtype, [{}])[0]


def in_processes(plan: Plan, dtype: str, count: int) -> dict[str, Any]:
    """The fast path in several processes at once, which share the processor's cores: each segments a video.

    Returns:
        ``processes``, ``threads`` of each, and ``rate``, the sum of their frames × sentences a second.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // count)
    runs = _run(plan, FAST, dtype, [{"OMP_NUM_THREADS": str(threads)}] * count)
    return {"processes": count, "threads": threads, "rate": sum(run["rate"] for run in runs)}


def _run(plan: Plan, part: str, dtype: str, environments: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Run a part in as many processes at once as there are environments.

    Raises:
        RunError: one of them has failed.
    """
    name = f"{part} {dtype}".replace("_", " ") if "baseline" not in part else part.replace("_", " ")
    print(f"measuring: {name}{f', {len(environments)} processes' if len(environments) > 1 else ''}", flush=True)
    plain = {"MSDA_BACKEND": "torch"} if "baseline" in part and plan.config["device"] == "cpu" else {}
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, "plan.json"), dataclasses.asdict(plan))
        results = [Path(folder, f"result_{i}.json") for i in range(len(environments))]
        words = [sys.executable, "-m", "scripts.benchmark_runs", str(Path(folder, "plan.json")), part, dtype]
        processes = [
            subprocess.Popen([*words, str(result)], cwd=ROOT, env={**os.environ, **plain, **extra})
            for result, extra in zip(results, environments, strict=True)
        ]
        states = [process.wait() for process in processes]
        if any(states):
            status = next(filter(None, states))
            reason = "was killed, most likely for want of memory" if status == -9 else f"ended with status {status}"
            raise RunError(f"the process that measures {name} {reason}; fewer --frames or a smaller size take less")
        found = [json.loads(result.read_text(encoding="utf-8")) for result in results]
        for result, content in zip(results, found, strict=True):
            _take_logits(content, result)
            if "rate" in content:
                print(f"  {content['rate']:.3g} a second, {content['peak_memory'] / 2**30:.2f} GiB at most", flush=True)
    return found


def _take_logits(content: dict[str, Any], result: Path) -> None:
    """Put what is needed to compare two paths into the content: the mask logits of each sentence's first frame."""
    path = result.with_suffix(".logits.npy")
    if path.exists():
        import numpy as np

        content["logits"] = np.load(path)


def make_plan(args: argparse.Namespace, cfg: Config) -> Plan:
    """What to measure, as the command line says.

    Raises:
        UserError: options that do not fit together, or the stack is not there.
    """
    if not args.stack.is_dir():
        raise UserError(
            f"{args.stack} does not exist; --stack names a folder with a configuration of every frozen part"
        )
    if cfg.backbone != "t2v":
        raise UserError("the benchmark is of backbone t2v")
    if not args.no_baseline and (not cfg.image_tokens or not cfg.unet_text):
        raise UserError("the baseline has image tokens and text; leave them on, or it out by --no-baseline")
    options = {
        "eval_size": min(args.height, args.width),
        "max_size": max(LARGEST, args.height, args.width),
        "dataset_file": "ytvos",
        "lora_rank": 0,  # merged, as at inference
        "precision": "fp32",  # --dtype says which
    }
    config = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
    config.update({name: value for name, value in options.items() if name in config})
    train_height, train_width = args.train_size
    return Plan(
        config=config,
        stack=str(args.stack),
        frames=args.frames,
        sentences=args.sentences,
        height=args.height,
        width=args.width,
        repeats=args.repeats,
        train_frames=args.train_frames,
        train_height=train_height,
        train_width=train_width,
        train_steps=args.train_steps,
        sweep_frames=tuple(args.sweep_frames),
        sweep_sentences=tuple(args.sweep_sentences),
        matrix=args.matrix,
    )


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The benchmark's own options, and those of the model."""
    parser = Parser(
        prog="python -m scripts.benchmark",
        description="Measure the speed and the memory of the model against what the published code does.",
        epilog="Any option of main.py may be given too, as --config or --compile.",
        allow_abbrev=False,
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--frames", type=int, default=2, help="of the video, at least 2 (default: 2)")
    parser.add_argument("--sentences", type=int, default=4, help="of the video (default: 4)")
    parser.add_argument("--height", type=int, default=360, help="of the frames in the model (default: 360)")
    parser.add_argument("--width", type=int, default=640, help="of the frames in the model (default: 640)")
    parser.add_argument("--dtype", nargs="+", default=["bf16", "fp32"], choices=DTYPES, help="of the fast path; the "
                        "first makes the ratios (default: bf16 fp32)")  # fmt: skip
    parser.add_argument("--stack", type=Path, default=FULL_SIZE, help="configurations of the frozen parts (default: "
                        "configs/full_size)")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=1, help="the best of so many counts (default: 1)")
    parser.add_argument("--no-baseline", action="store_true", help="measure the fast path alone")
    parser.add_argument("--training", action="store_true", help="measure training, too")
    parser.add_argument("--train-frames", type=int, default=5, help="of a clip (default: 5)")
    parser.add_argument("--train-size", type=int, nargs=2, default=(384, 640), metavar=("HEIGHT", "WIDTH"),
                        help="of its frames, multiples of 32 (default: 384 640)")  # fmt: skip
    parser.add_argument("--train-steps", type=int, default=1, help="that are timed, after one (default: 1)")
    parser.add_argument("--sweep-frames", type=int, nargs="+", default=(), help="further lengths of the video")
    parser.add_argument("--sweep-sentences", type=int, nargs="+", default=(), help="further numbers of sentences")
    parser.add_argument("--processes", type=int, nargs="+", default=(), help="try so many processes at once, too")
    parser.add_argument("--matrix", type=int, help="side of the matrices that show what the device can do")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument("--chart", type=Path, help="a PNG file for a chart")
    args, rest = parser.parse_known_args(argv)
    least = {"frames": 2, "train_frames": 2}
    for name, value in vars(args).items():
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, int) and not isinstance(number, bool) and number < least.get(name, 1):
                raise UserError(f"--{name.replace('_', '-')} must be at least {least.get(name, 1)}, not {number}")
    if any(side % 32 for side in args.train_size):
        raise UserError(f"--train-size must be multiples of 32, not {args.train_size[0]} {args.train_size[1]}")
    return args, rest


if __name__ == "__main__":
    run_cli(main)
