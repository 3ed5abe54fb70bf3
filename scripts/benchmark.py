"""Measure speed and peak memory of the model against the published way of computing it.

    python -m scripts.benchmark --device cpu --frames 2 --sentences 4 --json speed.json
    python -m scripts.benchmark --device cuda --frames 36 --sentences 4 --training

The model has its full size and random weights, so nothing is downloaded. Each path segments one video for several
sentences, from JPEG files to PNG files, in a process of its own. Stages are timed separately, and their operations are
compared with the rate that matrix products reach in the same run. Any option of ``main.py`` is accepted too.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import re
import resource
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from datasets.registry import DATASETS
from util.config import Config, config_dict, load_config
from util.errors import Parser, RunError, UserError, help_asked, run_cli

FULL_SIZE = Path(__file__).resolve().parents[1] / "configs" / "full_size"


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The benchmark's own options, and the remaining ones, which are those of the model.

    Raises:
        UserError: a number is out of range, or the stack does not exist.
    """
    parser = Parser(
        prog="python -m scripts.benchmark",
        description=__doc__.split("\n")[0],
        epilog="Any option of main.py is accepted too, such as --config or --compile.",
        allow_abbrev=False,
    )
    add: Any = parser.add_argument
    whole, several = {"type": int}, {"type": int, "nargs": "+", "default": ()}
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--frames", **whole, default=2, help="frames of the video, at least 2 (default: 2)")
    add("--sentences", **whole, default=4, help="sentences about the video (default: 4)")
    add("--height", **whole, default=360, help="height of the frames in the model (default: 360)")
    add("--width", **whole, default=640, help="width of the frames in the model (default: 640)")
    first = "precisions of this project's path; ratios are those of the first (default: bf16 fp32)"
    add("--dtype", nargs="+", default=["bf16", "fp32"], choices=("bf16", "fp32", "fp16"), help=first)
    add("--stack", type=Path, default=FULL_SIZE, help="configurations of the frozen parts (default: configs/full_size)")
    add("--repeats", **whole, default=1, help="repetitions, of which the fastest counts (default: 1)")
    add("--no-baseline", action="store_true", help="measure this project's path only")
    add("--training", action="store_true", help="also measure a training step")
    add("--train-frames", **whole, default=5, help="frames of a training clip (default: 5)")
    size = "height and width of its frames, multiples of 32 (default: 384 640)"
    add("--train-size", **whole, nargs=2, default=(384, 640), metavar=("HEIGHT", "WIDTH"), help=size)
    add("--sweep-frames", **several, help="further numbers of frames")
    add("--sweep-sentences", **several, help="further numbers of sentences")
    add("--processes", **several, help="also run so many processes at once")
    add("--matrix", **whole, help="side of the matrices that measure the peak rates (default: a large one)")
    add("--json", type=Path, help="write all numbers to this file")
    args, rest = parser.parse_known_args(argv)
    least = {"frames": 2, "train_frames": 2}
    for name, value in vars(args).items():
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if type(number) is int and number < least.get(name, 1):
                raise UserError(f"--{name.replace('_', '-')} must be at least {least.get(name, 1)}, not {number}")
    if any(side % 32 for side in args.train_size):
        raise UserError(f"--train-size must be multiples of 32, not {args.train_size[0]} {args.train_size[1]}")
    if not args.stack.is_dir():
        raise UserError(f"{args.stack} does not exist; --stack names a folder with a configuration of each frozen part")
    return args, rest


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    parse_args()

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet3DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torchvision.io import write_jpeg
from transformers import AutoTokenizer, CLIPTokenizer

import engine
from datasets.files import Video, load_clip
from datasets.predictions import InferenceRecord, write_mask
from models import Segmenter, build_model, inference, prepare_inference, prepare_training
from models.deformable_transformer import DecoderOutput
from models.diffusion.conditioning import CLIP_MEAN, CLIP_STD
from models.diffusion.encoder import TAP_PAIRS, VideoEncoder
from models.diffusion.stack import FrozenStack, empty_stack
from models.diffusion.tiny import random_weight, write_clip_tokenizer, write_roberta_tokenizer
from models.inference import MULTIPLE, InferenceOptions, mask_probabilities
from models.mask_heads import MASK_CHANNELS, DynamicMaskHead, shuffle_mask
from models.precision import PRECISIONS, autocast
from models.segmenter import LayerPrediction, SegmenterOutput, Selector, best_query, unpadded_size
from scripts.memory_estimate import random_step
from util.device import device_name, resolve_device
from util.files import library_versions, write_json
from util.parallel import available_cores
from util.preprocessing import pad_clips

FAST, BASELINE, TRAIN_FAST, TRAIN_BASELINE, SWEEP = "fast", "baseline", "train fast", "train baseline", "sweep"
READING, POST, WRITING, OTHER = "reading", "post-processing", "PNG writing", "other"
SHARED = (READING, "VAE", "image tokens", "noise and stride 4")  # run once per video by this project
STAGES = (*SHARED, "text", "fusion", "UNet", "pyramid", "transformer", "heads", POST, WRITING)
WORDS = ("red", "small", "large", "striped", "dark", "second", "left", "young", "spotted", "bright")  # one token each
FEATURE_BLOCK = 2  # of the VAE's encoder: the stride-4 feature
GIB = 2**30
Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the report and write the numbers."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = parse_args(argv)
    cfg = benchmark_config(args, load_config(["--device", args.device, *rest], __doc__))
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "device", "dtype")}
    settings["train_height"], settings["train_width"] = settings.pop("train_size")
    found: Result = {
        "command": " ".join(["python", "-m", "scripts.benchmark", *argv]),
        "settings": {**settings, "config": config_dict(cfg), "stack": str(args.stack)},
        "versions": library_versions(),
        "fast": [run_part(FAST, args, cfg, dtype)[0] for dtype in args.dtype],
    }
    if not args.no_baseline:
        found["baseline"] = run_part(BASELINE, args, cfg)[0]
    if args.training:
        found["training"] = {"fast": run_part(TRAIN_FAST, args, cfg, args.dtype[0])[0]}
        if not args.no_baseline:
            found["training"]["baseline"] = run_part(TRAIN_BASELINE, args, cfg)[0]
    if args.sweep_frames or args.sweep_sentences:
        found["sweep"] = run_part(SWEEP, args, cfg, args.dtype[0])[0]
    for count in args.processes:  # they share the cores
        threads = max(1, available_cores() // count)
        rates = [run["rate"] for run in run_part(FAST, args, cfg, args.dtype[0], count, threads)]
        found.setdefault("processes", []).append({"processes": count, "threads": threads, "rate": sum(rates)})
    result = summarise(found)
    print("\n".join(report(result)))
    if args.json:
        write_json(args.json, result)
        print(f"written: {args.json}")


def benchmark_config(args: argparse.Namespace, cfg: Config) -> Config:
    """The options of the measured model.

    Raises:
        UserError: the benchmark does not know this model.
    """
    if cfg.backbone != "t2v":
        raise UserError("the benchmark is of backbone t2v")
    if not args.no_baseline and (not cfg.image_tokens or not cfg.unet_text):
        raise UserError("the baseline has image tokens and text; leave them on, or add --no-baseline")
    return replace(
        cfg,
        eval_size=min(args.height, args.width),
        max_size=max(640, args.height, args.width),
        num_frames=args.train_frames,
        dataset_file="ytvos",
        lora_rank=0,  # merged, as at inference
        precision="fp32",  # --dtype decides
    )


def run_part(
    part: str, args: argparse.Namespace, cfg: Config, dtype: str = "fp32", processes: int = 1, threads: int = 0
) -> list[Result]:
    """Measure a part in new processes, so that peak memory is that of the part.

    Raises:
        RunError: a process was killed.
    """
    name = part if "baseline" in part else f"{part} {dtype}"
    print(f"measuring: {name}{f', {processes} processes' if processes > 1 else ''}", flush=True)
    environment = {"MSDA_BACKEND": "torch"} if "baseline" in part and cfg.device == "cpu" else {}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    spawn = multiprocessing.get_context("spawn")
    with patch.dict(os.environ, environment), ProcessPoolExecutor(processes, spawn) as pool:
        jobs = [pool.submit(measure, part, args, cfg, dtype) for _ in range(processes)]
        try:
            found = [job.result() for job in jobs]
        except BrokenProcessPool as error:
            raise RunError(
                f"the process that measures {name} was killed, most likely for lack of memory; use fewer --frames or a "
                "smaller size"
            ) from error
    for run in found:
        if "rate" in run:
            print(f"  {run['rate']:.3g} per second, {run['peak_memory'] / GIB:.2f} GiB peak memory", flush=True)
    return found


# Measuring a part, in its own process.


def measure(part: str, args: argparse.Namespace, cfg: Config, dtype: str) -> Result:
    """Measure one part.

    Returns:
        ``dtype``, ``seconds``, ``rate``, ``operations`` and ``peak_memory``; of inference also ``stages``, ``queries``
        and ``logits``; of a sweep ``rows``.
    """
    device = resolve_device(cfg.device)
    meter = StageMeter(device)
    if part == TRAIN_FAST:
        model = random_model(cfg, args.stack, device, PRECISIONS[dtype])
        scaler = prepare_training(model, dtype, device, cfg.compile)
        return {"dtype": dtype, **_train(args, replace(cfg, precision=dtype), model, scaler, meter)}
    if part in (BASELINE, TRAIN_BASELINE):
        baseline = Baseline(*random_stock(cfg, args.stack, device), meter)
        if part == TRAIN_BASELINE:
            return {"dtype": "fp32", **_train(args, cfg, baseline, None, meter)}
        run = partial(_segment_plainly, baseline.requires_grad_(False).eval(), cfg, meter)
        return {"dtype": "fp32", **_inference(args, run, 1, meter)}
    model = random_model(cfg, args.stack, device, PRECISIONS[dtype])
    prepare_inference(model, dtype, device, cfg.compile)
    run = partial(_segment, model.requires_grad_(False), cfg, meter)  # the operation counter needs frozen parameters
    if part == SWEEP:
        meter.active = False
        sizes = [(count, args.sentences) for count in args.sweep_frames]
        rows = []
        for frames, sentences in (*sizes, *((args.frames, count) for count in args.sweep_sentences)):
            with random_video(args, frames, sentences) as video:
                seconds, _, _ = run(video)
            row = {"frames": frames, "sentences": sentences, "seconds": seconds, "peak_memory": peak_memory(device)}
            rows.append(row)
        return {"dtype": dtype, "rows": rows}
    meter.watch(model)
    found = _inference(args, run, args.sentences, meter)
    return {"dtype": dtype, **found, "peaks": device_peaks(device, args.matrix), "machine": machine(device)}


def _inference(args: argparse.Namespace, run: Any, counted: int, meter: StageMeter) -> Result:
    """Segment a video: once to warm up and to count operations (of ``counted`` sentences), then timed."""
    with random_video(args, args.frames, counted) as video, meter.counting():
        run(video)
    operations = {name: count * args.sentences // counted for name, count in meter.operations.items() if count}
    best: Result = {}
    forget_peak(meter.device)
    for _ in range(args.repeats):
        with random_video(args, args.frames, args.sentences) as video:
            meter.active = meter.device.type == "cpu"  # waiting for a GPU at every stage would slow it down
            meter.seconds.clear()
            seconds, queries, logits = run(video)
            if not meter.active:
                meter.active = True
                _, queries, logits = run(video)
        if not best or seconds < best["seconds"]:
            best = {"seconds": seconds, "stages": dict(meter.seconds), "queries": queries}
    return {
        **best,
        "rate": args.frames * args.sentences / best["seconds"],
        "operations": operations,
        "peak_memory": peak_memory(meter.device),
        "logits": torch.stack(logits).numpy(),
    }


def _segment(model: Segmenter, cfg: Config, meter: StageMeter, video: Video) -> tuple[float, list[int], list[Tensor]]:
    """Segment a video as ``inference_ytvos.py`` does.

    Returns:
        seconds, the chosen query of each sentence, and the mask logits ``[H, W]`` of its first frame.
    """
    logits: list[Tensor] = []
    masks = meter.stage(POST)(inference.binary_masks)

    def kept(values: Tensor, *rest: Any) -> Tensor:
        if meter.active:
            logits.append(values[0].float().cpu())
        return masks(values, *rest)

    layout = DATASETS[cfg.dataset_file].layout
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(inference, "binary_masks", kept),
        patch.object(engine, "load_clip", meter.stage(READING)(engine.load_clip)),
        patch.object(layout, "write", meter.stage(WRITING)(layout.write)),
    ):
        record = InferenceRecord(Path(folder, "inference.json"), {}, {})
        began = time.perf_counter()
        options = InferenceOptions.from_config(cfg)
        engine.segment_videos(model, [video], record, layout, options, workers=cfg.num_workers, show=False)
        wait(meter.device)
        seconds = time.perf_counter() - began
        found = [record.find(video.name, exp_id) or {} for exp_id in video.expressions]
    return seconds, [result["query"] for result in found], logits


@torch.no_grad()
def _segment_plainly(
    model: Baseline, cfg: Config, meter: StageMeter, video: Video
) -> tuple[float, list[int], list[Tensor]]:
    """Segment a video sentence by sentence: read, segment, write. Returns what ``_segment`` returns."""
    queries, logits = [], []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for exp_id, sentence in video.expressions.items():
            with meter.stage(READING):
                frames, size = load_clip(video.frame_paths, cfg.eval_size, cfg.max_size)
            clip, padding = (tensor.to(meter.device) for tensor in pad_clips([frames], MULTIPLE))
            output = model(clip, padding, [sentence])
            queries.append(int(output.chosen[0]))
            logits.append(output.masks[0, 0].float().cpu())
            shown = (frames.shape[-2], frames.shape[-1])
            with meter.stage(POST):
                masks = (mask_probabilities(output.masks[0], shown, size) >= cfg.threshold).cpu().numpy()
            with meter.stage(WRITING):
                for path, mask in zip(video.frame_paths, masks, strict=True):
                    write_mask(Path(folder, exp_id, f"{path.stem}.png"), mask)
        seconds = time.perf_counter() - began
    return seconds, queries, logits


def _train(args: argparse.Namespace, cfg: Config, model: nn.Module, scaler: Any, meter: StageMeter) -> Result:
    """Time a training step after another one, in which operations are counted."""
    meter.active = False
    step = random_step(cfg, model, tuple(args.train_size), meter.device, scaler, torch.optim.AdamW)
    with meter.counting() as counter:
        step()
    forget_peak(meter.device)
    began = time.perf_counter()
    losses = step()
    wait(meter.device)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "rate": cfg.batch_size * cfg.accumulate / seconds,
        "operations": counter.get_total_flops(),
        "peak_memory": peak_memory(meter.device),
        "loss": float(losses["loss"]),
    }


@contextmanager
def random_video(args: argparse.Namespace, frames: int, sentences: int) -> Iterator[Video]:
    """A video of moving colour waves, twice as large as in the model, in a temporary folder."""
    generator = torch.Generator().manual_seed(0)
    sides = (2 * args.height, 2 * args.width)
    y, x = (torch.linspace(0, 1, side)[:, None] * torch.rand(3, generator=generator) for side in sides)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i:05d}.jpg") for i in range(frames)]
        for i, path in enumerate(paths):
            wave = torch.sin(6 * (y[:, None] + x[None] + 0.1 * i)).movedim(-1, 0)
            write_jpeg((127.5 * (wave + 1)).to(torch.uint8), str(path))
        names = [f"the {WORDS[i % len(WORDS)]} {WORDS[i // len(WORDS) % len(WORDS)]} dog" for i in range(sentences)]
        yield Video("video", paths, {str(i): name for i, name in enumerate(names)})


class StageMeter:
    """Measures seconds and operations of named stages; several threads may use it at once.

    Args:
        device: synchronised at both ends of a stage.

    Attributes:
        active: whether stages are measured.
        seconds: by stage.
        operations: by stage, counted inside ``counting``.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.active = True
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.operations: Counter[str] = Counter()
        self._counter: FlopCounterMode | None = None
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block, or the calls of a decorated function, as part of a stage."""
        began = self._begin()
        yield
        self._end(name, began)

    @contextmanager
    def counting(self) -> Iterator[FlopCounterMode]:
        """Count operations in the block: multiplications and additions of matrix products, convolutions, attention."""

        def attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
            return sdpa_flop_count(query, key, value)

        formulas: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
        with FlopCounterMode(display=False, custom_mapping=formulas) as self._counter:
            yield self._counter
        self._counter = None

    def watch(self, model: Segmenter) -> None:
        """Measure the modules of a model as stages."""
        encoder: Any = model.encoder
        parts = {
            "VAE": [encoder.vae],
            "image tokens": [encoder.clip_pixels, encoder.image_encoder, encoder.image_projection],
            "noise and stride 4": [encoder.noise, encoder.stride4],
            "text": [encoder.text_encoder, model.sentence_encoder, model.language_queries],
            "fusion": [encoder.fusion],
            "UNet": [encoder.unet],
            "pyramid": [*encoder.levels],
            "transformer": [model.transformer],
            "heads": [*model.class_heads, model.mask_head, model.query_dot_head, model.refinement],
        }
        for name, modules in parts.items():
            for module in filter(None, modules):
                began: list[tuple[float, int]] = []
                module.register_forward_pre_hook(lambda *_, began=began: began.append(self._begin()))
                module.register_forward_hook(lambda *_, began=began, name=name: self._end(name, began.pop()))

    def _begin(self) -> tuple[float, int]:
        if not self.active:
            return 0.0, 0
        wait(self.device)
        return time.perf_counter(), self._count()

    def _end(self, name: str, began: tuple[float, int]) -> None:
        if not self.active:
            return
        wait(self.device)
        with self._lock:
            self.seconds[name] += time.perf_counter() - began[0]
            self.operations[name] += self._count() - began[1]

    def _count(self) -> int:
        in_thread = threading.current_thread() is not threading.main_thread()  # the counter only sees the main thread
        return 0 if self._counter is None or in_thread else self._counter.get_total_flops()


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Reset the peak memory of a GPU; that of a process cannot be reset."""
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the tensors on a GPU, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def device_peaks(device: torch.device, side: int | None = None, seconds: float = 1.0) -> dict[str, float]:
    """Peak rates: ``fp32`` and ``bf16`` in operations per second of a matrix product, ``copy`` in bytes per second.

    Args:
        device: measured.
        side: of the square matrices; None: large ones.
        seconds: how long each is repeated.
    """
    side = side or (8192 if device.type == "cuda" else 4096)

    def best(statement: str, **names: Tensor) -> float:
        timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
        return min(timer.blocked_autorange(min_run_time=seconds).times)

    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        found[name] = 2 * side**3 / best("a @ b", a=a, b=b)
    source = torch.zeros(4 * side**2, device=device)
    found["copy"] = 2 * source.nbytes / best("b.copy_(a)", a=source, b=torch.zeros_like(source))
    return found


def machine(device: torch.device) -> Result:
    """Names and sizes of the machine."""
    cpu, flags, info = platform.processor() or platform.machine(), set[str](), Path("/proc/cpuinfo")
    if info.exists():
        named = dict(re.findall(r"^([^\t:]+)\s*: (.*)$", info.read_text(), re.MULTILINE))
        cpu, flags = named.get("model name", cpu), set(named.get("flags", "").split())
    return {
        "device": device_name(device),
        "cpu": cpu,
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "bf16_instructions": sorted(flags & {"avx512_bf16", "amx_bf16"}),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
    }


# Models with random weights. A weight depends only on its part, name and shape, so both paths have the same ones.


def random_model(cfg: Config, stack: Path, device: torch.device, dtype: torch.dtype) -> Segmenter:
    """The project's model: frozen parts in ``dtype``, trained parts as initialised."""
    frozen = _empty_stack(stack)
    parts: dict[str, nn.Module] = {**_shared_parts(frozen), "unet": frozen.unet, "vae": frozen.vae}
    for part, module in parts.items():
        _fill(module, part, device, dtype)
    torch.manual_seed(0)
    return build_model(cfg, frozen).to(device)


def random_stock(
    cfg: Config, stack: Path, device: torch.device
) -> tuple[Segmenter, UNet3DConditionModel, AutoencoderKL]:
    """A float32 model without UNet and VAE, and these two as diffusers has them: with the last up block and decoder."""
    frozen = _empty_stack(stack)
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(UNet3DConditionModel.load_config(stack / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(stack / "vae"))
    for part, module in {**_shared_parts(frozen), "unet": unet, "vae": vae}.items():
        _fill(module, part, device, torch.float32)
    torch.manual_seed(0)
    model = build_model(cfg, frozen)
    assert isinstance(model.encoder, VideoEncoder)
    model.encoder.unet = model.encoder.vae = nn.Identity()  # type: ignore[assignment]
    return model.to(device), unet, vae


def _shared_parts(frozen: FrozenStack) -> dict[str, nn.Module]:
    return {"text_encoder": frozen.text_encoder, "clip": frozen.image_encoder, "roberta": frozen.sentence_encoder}


def _empty_stack(folder: Path) -> FrozenStack:
    """The frozen parts without weights, and small tokenizers.

    Raises:
        UserError: a configuration file is missing.
    """
    try:
        frozen = empty_stack(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} should hold a configuration file for every frozen part: {reason}") from error
    text = frozen.text_encoder.config
    with tempfile.TemporaryDirectory() as place:
        clip, roberta = Path(place, "clip"), Path(place, "roberta")
        write_clip_tokenizer(clip, (), min(4096, text.vocab_size), text.max_position_embeddings)
        write_roberta_tokenizer(roberta, (), min(4096, frozen.sentence_encoder.config.vocab_size))
        frozen.tokenizer = CLIPTokenizer.from_pretrained(clip)
        frozen.sentence_tokenizer = AutoTokenizer.from_pretrained(roberta)
    return frozen


@torch.no_grad()
def _fill(module: nn.Module, part: str, device: torch.device, dtype: torch.dtype) -> None:
    """Move a module from the meta device to ``device`` and give it random weights."""
    module.to(dtype).to_empty(device=device)
    for name, parameter in module.named_parameters():
        parameter.copy_(random_weight(part, name, parameter.shape, 0))
    for name, buffer in module.named_buffers():
        buffer.copy_(torch.arange(buffer.shape[-1]) if name.endswith("position_ids") else torch.zeros_like(buffer))


# The baseline.


class Baseline(nn.Module):
    """``Segmenter`` computed in the order of the published code, from the stock parts of diffusers and transformers.

    The function is the same; the cost is that of research code. VAE, image encoder and the whole UNet run again for
    every sentence, in float32 (on CUDA under autocast to float16), Pillow prepares images for CLIP one by one on the
    CPU, and the mask heads copy the features for every query.

    Args:
        model: has the trained parts and the text and image encoders.
        unet, vae: of diffusers.
        meter: measures the stages.
    """

    def __init__(self, model: Segmenter, unet: UNet3DConditionModel, vae: AutoencoderKL, meter: StageMeter) -> None:
        super().__init__()
        assert isinstance(model.encoder, VideoEncoder)
        self.model, self.encoder, self.meter = model, model.encoder, meter
        self.unet, self.vae = (part.requires_grad_(False).eval() for part in (unet, vae))
        self._f4: list[Tensor] = []
        block = vae.encoder.down_blocks[FEATURE_BLOCK]
        block.resnets[-1].register_forward_hook(lambda module, inputs, output: self._f4.append(output))

    def train(self, mode: bool = True) -> Baseline:
        """Set the training mode of everything except UNet and VAE."""
        self.training = mode
        self.model.train(mode)
        return self

    def forward(
        self,
        frames: Tensor,
        padding: Tensor,
        captions: list[str],
        select: Selector = best_query,
        annotated: Tensor | None = None,
    ) -> SegmenterOutput:
        """``Segmenter.forward`` for clips of at least two frames, all of which are decoded."""
        assert annotated is None and frames.shape[1] > 1
        with autocast(frames.device, torch.float16 if frames.is_cuda else torch.float32):
            pyramid = [level.float() for level in self._pyramid(frames, captions)]
        return self._decode(pyramid, padding, captions, select, frames.shape[1])

    def _pyramid(self, frames: Tensor, captions: list[str]) -> list[Tensor]:
        encoder, meter, count = self.encoder, self.meter, frames.shape[1]
        x01 = frames * encoder.pixel_std + encoder.pixel_mean
        with meter.stage("VAE"), torch.no_grad():
            posterior = self.vae.encode(2 * x01.flatten(0, 1) - 1).latent_dist
            drawn = encoder.posterior == "sample" or (encoder.posterior == "auto" and self.training)
            latents = posterior.sample() if drawn else posterior.mode()
            latents = (encoder.latent_scale * latents).unflatten(0, frames.shape[:2]).float()
            vae_f4 = self._f4.pop()
        with meter.stage("image tokens"):
            assert encoder.image_encoder is not None
            images = torch.stack([clip_image(image, encoder.clip_pixels.size) for image in x01.flatten(0, 1)])
            with torch.no_grad():
                tokens = encoder.image_encoder(images.to(x01.device)).last_hidden_state
            tokens = encoder.image_projection(tokens)
        with meter.stage("noise and stride 4"):
            if encoder.noise is not None:
                rate = encoder.signal_rate
                latents = rate**0.5 * latents + (1 - rate) ** 0.5 * encoder.noise(latents)
            f4 = encoder.stride4(x01, vae_f4)
        with meter.stage("text"):
            text = encoder.encode_text(captions).repeat_interleave(count, dim=0)
        with meter.stage("fusion"):
            text = encoder.fusion(text, tokens)
        with meter.stage("UNet"):
            taps = self._taps(latents.transpose(1, 2), text)
        with meter.stage("pyramid"):
            pairs = zip(encoder.levels, TAP_PAIRS, strict=True)
            return [f4, *(level(torch.cat([taps[a], taps[b]], dim=1)) for level, (a, b) in pairs)]

    def _taps(self, sample: Tensor, text: Tensor) -> list[Tensor]:
        """Six features of the whole stock UNet, with a text for each frame."""
        unet: Any = self.unet
        frames = sample.shape[2]
        steps = torch.zeros(sample.shape[0], dtype=torch.long, device=sample.device)
        temb = unet.time_embedding(unet.time_proj(steps).to(unet.dtype)).repeat_interleave(frames, dim=0)
        x = unet.conv_in(sample.transpose(1, 2).flatten(0, 1))
        x = unet.transformer_in(x, num_frames=frames, return_dict=False)[0]
        taps, skips = [x], (x,)

        def common(block: Any) -> dict[str, Any]:
            words = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            return {"temb": temb, "num_frames": frames, **words}

        for i, block in enumerate(unet.down_blocks):
            x, made = block(hidden_states=x, **common(block))
            skips += made
            if i < 2:
                taps.append(x)
        x = unet.mid_block(x, temb, encoder_hidden_states=text, num_frames=frames)
        for block in unet.up_blocks:
            own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            size = skips[-1].shape[2:] if skips else None
            x = block(hidden_states=x, res_hidden_states_tuple=own, upsample_size=size, **common(block))
            taps.append(x)
        unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))  # the noise prediction, which is not used
        return taps[:6]

    def _decode(
        self, pyramid: list[Tensor], padding: Tensor, captions: list[str], select: Selector, frames: int
    ) -> SegmenterOutput:
        model, meter = self.model, self.meter
        with meter.stage("text"):
            queries = model.language_queries(*model.sentence_encoder(captions))
        with meter.stage("transformer"):
            repeated = (padding.repeat_interleave(frames, dim=0), queries.repeat_interleave(frames, dim=0))
            decoded = model.transformer(pyramid[1:], *repeated)
        with meter.stage("heads"):
            sizes = unpadded_size(padding).repeat_interleave(frames, dim=0)[:, None]
            count = len(decoded.states)
            wanted = range(0 if self.training else count - 1, count)
            return SegmenterOutput([self._head(decoded, i, sizes, pyramid, select, frames) for i in wanted])

    def _head(
        self, decoded: DecoderOutput, i: int, sizes: Tensor, pyramid: list[Tensor], select: Selector, frames: int
    ) -> LayerPrediction:
        model, states = self.model, decoded.states[i]
        size = decoded.memory[0].shape[-2:]
        maps = [F.interpolate(m, size=size, mode="bicubic", align_corners=False) for m in decoded.memory[1:]]
        maps = [decoded.memory[0], *maps]
        low = self._dynamic_masks(maps[0] + maps[1] + maps[2], states, decoded.boxes[i][..., :2].detach() * sizes)
        if model.query_dot_head is not None:
            mixed = model.query_dot_head.mix(torch.stack(maps, dim=-1))  # [N, C, h, w, 16]
            low = low + torch.einsum("nqc,nchwk->nqkhw", states, mixed)
        shape = (-1, frames)
        low = low.unflatten(0, shape)
        logits, boxes = model.class_heads[i](states).unflatten(0, shape), decoded.boxes[i].unflatten(0, shape)
        layer = LayerPrediction(logits, boxes, shuffle_mask(low))
        layer.chosen = select(layer)
        assert layer.chosen is not None, "the baseline refines one query"
        picked = low[torch.arange(len(low), device=low.device), :, layer.chosen].flatten(0, 1)
        layer.masks = model.refinement(picked, pyramid[0], pyramid[1]).unflatten(0, shape)
        return layer

    def _dynamic_masks(self, features: Tensor, states: Tensor, centres: Tensor) -> Tensor:
        """Masks ``[N, Q, 16, h, w]``: convolutions with each query's weights over its own copy of the features.

        Args:
            features: ``[N, C, h, w]``.
            states: ``[N, Q, C]``.
            centres: ``[N, Q, 2]``, in pixels.
        """
        head = self.model.mask_head
        assert isinstance(head, DynamicMaskHead)
        (batch, _, h, w), queries = features.shape, states.shape[1]
        y, x = (torch.arange(side, device=features.device) * 8.0 + 4 for side in (h, w))
        offsets = centres[..., None, None] - torch.stack([x.expand(h, w), y[:, None].expand(h, w)])  # [N, Q, 2, h, w]
        copies = torch.cat([features[:, None].expand(-1, queries, -1, -1, -1), offsets], dim=2)
        weight1, weight2, bias1, bias2 = head.controller(states).split(head.sizes, dim=-1)
        groups = batch * queries
        weight1 = weight1.reshape(groups * head.channels, -1, 1, 1)
        masks = F.relu(F.conv2d(copies.reshape(1, -1, h, w), weight1, bias1.flatten(), groups=groups))
        masks = F.conv2d(masks, weight2.reshape(groups * MASK_CHANNELS, -1, 1, 1), bias2.flatten(), groups=groups)
        return masks.view(batch, queries, MASK_CHANNELS, h, w)


def clip_image(image: Tensor, size: int) -> Tensor:
    """CLIP's preprocessing of one image by Pillow: ``[3, H, W]`` in 0…1 → ``[3, size, size]``, on the CPU."""
    levels = (image.permute(1, 2, 0).float().cpu().numpy() * 255).clip(0, 255).astype(np.uint8)
    height, width = levels.shape[:2]
    target = (size * width // min(height, width), size * height // min(height, width))
    left, top = ((side - size) // 2 for side in target)
    picture = Image.fromarray(levels).resize(target, Image.Resampling.BICUBIC)
    values = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    values = (values - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)


# What the measurements say.


def summarise(found: Mapping[str, Any]) -> Result:
    """Add ratios, shares of the peak rates and the agreement of both paths to the measurements.

    Args:
        found: ``command``, ``settings``, ``versions``, ``fast`` (a list) and optionally ``baseline``, ``training``,
            ``sweep`` and ``processes``.

    Returns:
        the same as plain values. ``speedup``, ``peak_memory_ratio`` and ``stages`` are those of the first fast run.
    """
    first, base = found["fast"][0], found.get("baseline")
    result: Result = {**found, "machine": first["machine"], "peaks": first["peaks"], "fast": []}
    for run in found["fast"]:
        own = {name: value for name, value in run.items() if name not in ("machine", "peaks", "logits")}
        own["stage_table"] = _stage_table(run, base, first["peaks"])
        sentence = sum(seconds for name, seconds in run["stages"].items() if name not in SHARED)
        own["sentence_seconds"] = sentence / found["settings"]["sentences"]
        own["unet_share_of_sentence"] = run["stages"]["UNet"] / sentence
        operations = sum(run["operations"].values())
        own["share_of_peak"] = share_of_peak(operations, run["seconds"], first["peaks"], run["dtype"])
        if base:
            own |= _ratios(run, base)
            own["operations_ratio"] = sum(base["operations"].values()) / operations
            own["agreement"] = agreement(run, base)
        result["fast"].append(own)
    result["stages"] = result["fast"][0]["stage_table"]
    if base:
        result["baseline"] = {name: value for name, value in base.items() if name != "logits"}
        result |= _ratios(first, base)
    if "baseline" in found.get("training", {}):
        training = found["training"]
        result["training"] = {**_ratios(training["fast"], training["baseline"]), **training}
    return result


def _ratios(fast: Mapping[str, Any], slow: Mapping[str, Any]) -> dict[str, float]:
    memory = fast["peak_memory"] / slow["peak_memory"]
    return {"speedup": fast["rate"] / slow["rate"], "peak_memory_ratio": memory}


def _stage_table(run: Mapping[str, Any], base: Mapping[str, Any] | None, peaks: Mapping[str, float]) -> Result:
    """Seconds, operations and share of the peak rate by stage, with those of the baseline and the ratio of times."""
    rows: Result = {}
    for name in (*STAGES, OTHER):
        row = rows[name] = {}
        for prefix, one in (("", run), *([("baseline_", base)] if base else [])):
            rest = max(0.0, one["seconds"] - sum(one["stages"].values()))
            seconds = rest if name == OTHER else one["stages"].get(name, 0.0)
            operations = one["operations"].get(name, 0)
            row |= {f"{prefix}seconds": seconds, f"{prefix}operations": operations}
            row[f"{prefix}share_of_peak"] = share_of_peak(operations, seconds, peaks, one["dtype"])
        if base:
            row["ratio"] = row["baseline_seconds"] / row["seconds"] if row["seconds"] else None
    return rows


def agreement(run: Mapping[str, Any], base: Mapping[str, Any]) -> Result:
    """How many sentences get the same query, and the greatest difference of their mask logits relative to their range.

    Only the first frame is compared.
    """
    same = [i for i, pair in enumerate(zip(run["queries"], base["queries"], strict=True)) if pair[0] == pair[1]]
    found: Result = {"sentences": len(base["queries"]), "same_query": len(same), "greatest_difference": None}
    if same:
        own, other = run["logits"][same], base["logits"][same]
        found["greatest_difference"] = float(np.abs(own - other).max() / np.ptp(other))
    return found


def share_of_peak(operations: float, seconds: float, peaks: Mapping[str, float], dtype: str) -> float | None:
    """The rate of operations relative to the peak rate; None without operations or time."""
    if not operations or not seconds:
        return None
    return operations / seconds / peaks["fp32" if dtype == "fp32" else "bf16"]


def report(result: Result) -> list[str]:
    """The result in lines of text."""
    about, sizes, base = result["machine"], result["settings"], result.get("baseline")
    size = f"{sizes['frames']} frames of {sizes['height']}×{sizes['width']}, {sizes['sentences']} sentences"
    lines = [f"{sizes['config']['model']}, {size}, {about['cpu']} ({about['device']}), {about['threads']} threads"]
    for run in result["fast"]:
        columns = ["seconds", "operations", "share_of_peak"]
        if base:
            columns += [*(f"baseline_{name}" for name in columns), "ratio"]
        lines += ["", f"{run['dtype']:<20}" + "".join(f"{name.replace('baseline_', 'base_'):>20}" for name in columns)]
        for name, row in run["stage_table"].items():
            lines.append(f"{name:<20}" + "".join(f"{row[column] or 0:>20.3g}" for column in columns))
        lines.append(_one_line(run["dtype"], run))
        lines.append(
            f"each further sentence takes {run['sentence_seconds']:.3g} s, {run['unet_share_of_sentence']:.0%} of it "
            "in the UNet"
        )
        if base:
            same, difference = run["agreement"], run["agreement"]["greatest_difference"]
            lines += [
                _one_line("baseline, fp32", base),
                f"{run['speedup']:.2f}× the baseline's throughput (operations alone: {run['operations_ratio']:.2f}×) "
                f"at {run['peak_memory_ratio']:.2f} of its peak memory",
                f"the same query for {same['same_query']} of {same['sentences']} sentences, mask logits differ by at "
                f"most {math.nan if difference is None else difference:.2g} of their range",
            ]
    training = result.get("training", {})
    lines += [_one_line(f"training, {name}", training[name]) for name in ("fast", "baseline") if name in training]
    for row in result.get("sweep", {}).get("rows", ()):
        each = row["seconds"] / row["frames"] / row["sentences"]
        lines.append(
            f"frames {row['frames']}, sentences {row['sentences']}: {row['seconds']:.2f} s, {each:.3g} s per frame and "
            "sentence"
        )
    for row in result.get("processes", ()):
        lines.append(f"{row['processes']} processes × {row['threads']} threads: {row['rate']:.3g} per second together")
    return lines


def _one_line(name: str, run: Mapping[str, Any]) -> str:
    unit = "clips" if "loss" in run else "frames × sentences"
    memory = f"{run['peak_memory'] / GIB:.2f} GiB peak memory"
    return f"{name}: {run['seconds']:.2f} s, {run['rate']:.3g} {unit} per second, {memory}"


if __name__ == "__main__":
    run_cli(main)
