"""Check and measure everything on a GPU in one call.

    python -m scripts.gpu_check --json gpu.json [--golden FOLDER]
    python -m scripts.gpu_check --tiny                          small sizes, on any device

Each stage is a process with a time limit, and no stage ends the others. The JSON file is written after every stage, so
that a run that is cut off still reports. The limits add up to nine minutes without ``--golden``; they are meant for an
H200 with 16 cores. No stage needs a network. The machine needs this repository with its ``.venv`` (``bash
scripts/setup.sh --dev``), and a CUDA toolkit for the CUDA operator and ``compute-sanitizer``, which are left out
otherwise. ``--golden`` takes the folder of fixtures of ``tests.parity``, which may hold only some of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from util.errors import Parser, UserError, orderly_end, run_cli

CHECKED = ("vdit", "hcd")  # models
SLACK = 5  # times the limits that a CPU has
TAIL = 4000  # characters of a stage's output that are kept
TINY = ("--height", "32", "--width", "64", "--train-size", "32", "64", "--stack", "toy/stack")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--json", type=Path, help="write all results to this file after every stage")
    parser.add_argument("--tiny", action="store_true", help="small sizes, which show that every stage runs")
    parser.add_argument("--golden", type=Path, help="fixtures of tests.parity, which are compared on the device")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="run these stages only")
    parser.add_argument("--step", choices=sorted(STEPS), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Stage:
    """A process of the check.

    Attributes:
        name: in the JSON file.
        command: the arguments of Python, without ``--json``.
        seconds: its limit.
        writes: whether the command writes numbers to the file of ``--json``.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    writes: bool = True


def stages(device: str, tiny: bool, golden: Path | None) -> Iterator[Stage]:
    """The stages in their order: what is wrong shows first, what may take long comes last."""
    own = ("-m", "scripts.gpu_check", "--device", device, *(["--tiny"] if tiny else []), "--step")
    size = TINY if tiny else ("--frames", "36", "--sentences", "4", "--repeats", "2")
    if not tiny:
        tests = ("-m", "pytest", "-q", "tests/test_operator.py", "tests/test_operator_cuda.py")
        yield Stage("operator tests", tests, 100, writes=False)
    operator = ("--frames", "5", "36", "144", "--seconds", "0.4")
    if tiny:
        operator = ("--frames", "1", "--seconds", "0.01", "--layers", "decoder")
    yield Stage("operator", ("-m", "scripts.bench_operator", "--device", device, *operator), 40)
    yield Stage("agreement", (*own, "agreement"), 60)
    if golden is not None:
        yield Stage("fixtures", ("-m", "tests.parity", str(golden), "--device", device), 40, writes=False)
    for model in CHECKED[: 1 if tiny else None]:
        extra = ("--no-baseline", "--dtype", "fp32") if tiny else ("--training",)
        line = ("-m", "scripts.benchmark", "--device", device, "--model", model, *size, *extra)
        yield Stage(f"benchmark {model}", line, 90)
    if device == "cuda":
        memory = ("-m", "scripts.memory_estimate", "--config", "configs/vdit_ytvos.yaml", "--precision", "bf16")
        inference = ("--inference", "--num_frames", "36")
        for name, more in (("training", ()), ("inference", inference)):
            yield Stage(f"memory of {name}", (*memory, *more, "--measure"), 25, writes=False)
    yield Stage("levers", (*own, "levers"), 60)
    if device == "cuda":
        line = ("-m", "scripts.benchmark", "--device", device, *size, "--no-baseline", "--dtype", "bf16", "--compile")
        yield Stage("compiled", line, 50)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; the exit status is 1 if any of them failed."""
    args = parse_args(argv)
    from util.device import device_name, resolve_device
    from util.files import write_json

    device = resolve_device(args.device)
    if args.step:
        write_json(args.json, STEPS[args.step](device, args.tiny))
        return 0
    from scripts.benchmark import machine

    chosen = {stage.name: stage for stage in stages(device.type, args.tiny, args.golden)}
    if unknown := [name for name in args.only if name not in chosen]:
        raise UserError(f"--only {unknown[0]!r} is no stage of this check; its stages are {', '.join(chosen)}")
    result: dict[str, Any] = {"device": device_name(device), "machine": machine(device), "stages": {}}
    for name in args.only or chosen:
        with orderly_end():
            found = result["stages"][name] = run(chosen[name], SLACK if device.type == "cpu" else 1)
        print(f"{name:<32} {found['outcome']:<10} {found['seconds']:6.1f} s", flush=True)
        if args.json:
            write_json(args.json, result)
    failed = [name for name, found in result["stages"].items() if found["outcome"] != "passed"]
    if failed:
        print(f"not passed: {', '.join(failed)}" + ("" if args.json else "; --json FILE keeps the output"))
    return int(bool(failed))


def run(stage: Stage, slack: int = 1) -> dict[str, Any]:
    """Run a stage in a process of its own; its outcome, seconds, numbers and the end of its output.

    ``slack`` multiplies the limit of the stage.
    """
    sanitizer = shutil.which("compute-sanitizer") if stage.name == "operator tests" else None
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Path(folder, "output").open("w+b") as output:
        file = Path(folder, "result.json")
        line = [*([sanitizer] if sanitizer else []), sys.executable, *stage.command]
        line += ["--json", str(file)] if stage.writes else []
        process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            outcome = "passed" if process.wait(slack * stage.seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            outcome = "too slow"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # with the processes that it started
            process.wait()
        output.seek(0)
        return {
            "outcome": outcome,
            "seconds": round(time.monotonic() - started, 1),
            "command": " ".join(["python", *stage.command]),
            "sanitizer": bool(sanitizer),
            "numbers": json.loads(file.read_text()) if file.is_file() else None,
            "output": output.read().decode(errors="replace")[-TAIL:],
        }


# The steps that this command runs itself, each in a process of its own. Their imports take seconds.


def agreement(device: Any, tiny: bool) -> dict[str, Any]:
    """Compare toy models on the device, in each precision, with float32 on the CPU.

    A training step must not make the host wait for the device.

    Returns:
        model and precision → largest differences of logits, loss and gradients, relative to the largest value.
    """
    import torch

    from models.diffusion.tiny import make_tiny_stack

    cpu = torch.device("cpu")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_stack(Path(folder, "stack"))
        for name in CHECKED[: 1 if tiny else None]:
            cfg = _toy_config(name, Path(folder, "stack"))
            expected = _logits_and_gradients(cfg, cpu, "fp32")
            for precision in ("fp32", "bf16") if device == cpu else ("fp32", "tf32", "bf16", "fp16"):
                values = _logits_and_gradients(cfg, device, precision)
                found[f"{name} {precision}"] = {
                    key: float((values[key] - value).abs().max() / value.abs().max().clamp(min=1e-12))
                    for key, value in expected.items()
                }
    limits = {"fp32": 1e-3, "tf32": 5e-2, "bf16": 5e-1, "fp16": 5e-1}
    wrong = [name for name, values in found.items() if not values["logits"] < limits[name.split()[1]]]
    assert not wrong, f"{wrong} differ from the CPU: {found}"
    return found


def _toy_config(name: str, stack: Path) -> Any:
    from util.config import Config

    return Config(
        model=name,
        pretrained=str(stack),
        hidden_dim=64,
        dim_feedforward=96,
        enc_layers=2,
        dec_layers=2,
        pyramid_channels=(32, 64, 64, 64),
        dropout=0.0,
        posterior="mode",
        num_frames=2,
        lora_dropout=0.0,
    )


def _logits_and_gradients(cfg: Any, device: Any, precision: str) -> dict[str, Any]:
    """Logits of an inference, and loss and gradients of a second training step, on the CPU."""
    import torch

    from models import build_criterion, build_model, prepare_inference, prepare_training

    torch.manual_seed(0)
    frames = torch.randn(1, cfg.num_frames, 3, 32, 64).to(device)
    padding = torch.zeros(1, 32, 64, dtype=torch.bool, device=device)
    masks = torch.zeros(cfg.num_frames, 32, 64, dtype=torch.bool)
    masks[:, 8:24, 16:40] = True
    target = {
        "boxes": torch.tensor([[28 / 64, 16 / 32, 24 / 64, 16 / 32]]).repeat(cfg.num_frames, 1).to(device),
        "masks": masks.to(device),
        "valid": torch.ones(cfg.num_frames, dtype=torch.long, device=device),
    }

    def built() -> Any:
        torch.manual_seed(1)
        return build_model(cfg)

    model = prepare_inference(built(), precision, device)
    with torch.inference_mode():
        logits = model(frames, padding, ["the red thing"]).masks.float().cpu()
    model = built().train()
    scaler = prepare_training(model, precision, device)
    criterion = build_criterion(cfg)

    def step() -> Any:
        model.zero_grad()
        prepared = criterion.prepare([target], frames.shape[-2:])
        output = model(frames, padding, ["the red thing"], criterion.select(prepared))
        loss, _ = criterion(output, prepared)
        (scaler.scale(loss) if scaler else loss).backward()
        return loss.detach()

    if device.type == "cuda":
        step()  # what is built or compiled once may wait
    with without_waits(device):
        loss = step()
    scale = scaler.get_scale() if scaler else 1.0
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) / scale
    return {"logits": logits, "loss": loss.float().cpu(), "gradients": gradients.float().cpu()}


@contextmanager
def without_waits(device: Any) -> Iterator[None]:
    """Raise an error where the host waits for a CUDA device in the block."""
    import torch

    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def levers(device: Any, tiny: bool) -> dict[str, Any]:
    """Time one inference under each setting that may be faster than the default, one by one.

    Returns:
        setting → milliseconds, or what went wrong; and the share of the time in which the GPU computes.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from models import prepare_inference
    from models.diffusion import encoder
    from models.inference import InferenceOptions, sentence_outputs
    from models.ops.functional import BACKENDS
    from scripts.benchmark import random_model, wait
    from scripts.count_parameters import FULL_SIZE
    from util.config import Config

    frames, size, sentences = (2, (32, 64), 1) if tiny else (36, (368, 640), 4)
    cfg = Config(lora_rank=0, precision="fp32" if device.type == "cpu" else "bf16")
    model: Any = random_model(cfg, Path("toy/stack") if tiny else FULL_SIZE, device)
    model = prepare_inference(model, cfg.precision, device)
    clip, options = torch.randn(frames, 3, *size), InferenceOptions()

    @torch.inference_mode()
    def infer(videos: int = 1) -> None:
        for _ in range(videos):
            for _ in sentence_outputs(model, clip, ["the person on the left"] * sentences, options):
                pass
        wait(device)

    def milliseconds() -> float:
        infer()  # what is built or compiled once
        began = time.perf_counter()
        infer()
        return round(1e3 * (time.perf_counter() - began), 2)

    settings: dict[str, AbstractContextManager[Any]] = {
        "default": nullcontext(),
        **{f"operator {name}": patch.dict(os.environ, MSDA_BACKEND=name) for name in BACKENDS[device.type]},
        **{
            f"VAE {count} frames": patch.object(encoder, "_frames_at_once", lambda *_, count=count: count)
            for count in (2, 12, 36)[: 1 if tiny else 3]
        },
        **{f"attention {kind.name}": sdpa_kernel(kind) for kind in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)},
        "cudnn.benchmark": torch.backends.cudnn.flags(enabled=True, benchmark=True),
    }
    found: dict[str, Any] = {}
    for name, setting in settings.items():
        try:
            with setting:
                found[name] = milliseconds()
        except Exception as error:  # a setting that does not work here is a result
            found[name] = f"{type(error).__name__}: {str(error)[:200]}"
    found["busy"] = busy_share(partial(infer, 1 if tiny else 4), device)
    for part in (model.encoder.unet, model.encoder.vae):
        for weight in part.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    found["channels last"] = milliseconds()
    return found


def busy_share(call: Callable[[], Any], device: Any) -> float | None:
    """The share of the time of a call in which a CUDA device computes; None on other devices."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if device.type != "cuda":
        call()
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
    return round(sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 / seconds, 3)


STEPS: dict[str, Callable[[Any, bool], dict[str, Any]]] = {"agreement": agreement, "levers": levers}


if __name__ == "__main__":
    run_cli(main)
