"""Measure speed and peak memory of the model against the published way of computing it.

    python -m scripts.benchmark --device cpu --frames 2 --sentences 4 --json speed.json
    python -m scripts.benchmark --device cuda --frames 36 --sentences 4 --training
    python -m scripts.benchmark --files 20 --frames 36

The model has its full size and random weights, so nothing is downloaded. Each path segments one video for several
sentences, from JPEG files to PNG files, in a process of its own. Seconds are also listed by stage. ``--files`` measures
reading and writing alone. Any option of ``main.py`` is accepted too.
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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from datasets.registry import DATASETS
from scripts.count_parameters import FULL_SIZE, stack_of
from util.config import MODELS, Config, config_dict, load_config
from util.errors import Parser, RunError, UserError, help_asked, run_cli

LEAST = {"files": 0, "frames": 2, "sentences": 1, "height": 1, "width": 1, "repeats": 1, "train_frames": 2}


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The benchmark's own options, and the remaining ones, which are those of the model.

    Raises:
        UserError: a number is out of range.
    """
    parser = Parser(
        description=__doc__.split("\n")[0],
        epilog="Any option of main.py is accepted too, such as --config or --compile.",
    )
    add: Any = parser.add_argument
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--frames", type=int, default=2, help="frames of the video, at least 2 (default: 2)")
    add("--sentences", type=int, default=4, help="sentences about the video (default: 4)")
    add("--height", type=int, default=360, help="height of the frames in the model (default: 360)")
    add("--width", type=int, default=640, help="width of the frames in the model (default: 640)")
    first = "precisions of this project's path; ratios are those of the first (default: bf16 fp32)"
    add("--dtype", nargs="+", default=["bf16", "fp32"], choices=("bf16", "fp32", "fp16"), help=first)
    add("--stack", type=Path, default=FULL_SIZE, help="configurations of the frozen parts (default: configs/full_size)")
    add("--repeats", type=int, default=1, help="repetitions, of which the fastest counts (default: 1)")
    add("--no-baseline", action="store_true", help="measure this project's path only")
    add("--files", type=int, default=0, metavar="N", help="segment N videos by a stand-in that takes no time, instead")
    add("--training", action="store_true", help="also measure a training step")
    add("--train-frames", type=int, default=5, help="frames of a training clip (default: 5)")
    size = "height and width of its frames, multiples of 32 (default: 384 640)"
    add("--train-size", type=int, nargs=2, default=(384, 640), metavar=("HEIGHT", "WIDTH"), help=size)
    add("--json", type=Path, help="write all numbers to this file")
    args, rest = parser.parse_known_args(argv)
    for name, least in LEAST.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
    if any(side < 32 or side % 32 for side in args.train_size):
        raise UserError(f"--train-size must be multiples of 32, not {args.train_size[0]} {args.train_size[1]}")
    return args, rest


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(parse_args)

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet3DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torchvision.io import write_jpeg
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import engine
from datasets import files
from datasets.files import Video
from datasets.predictions import InferenceRecord
from models import Segmenter, build_segmenter, compile_frozen, inference, prepare_inference, prepare_training
from models.diffusion.conditioning import CLIPPixels
from models.diffusion.generators import GENERATORS, find_generator
from models.diffusion.stack import STRIDE4_BLOCK, FrozenStack, VAEEncoder
from models.diffusion.tiny import random_weight
from models.diffusion.unet import TapUNet3D
from models.inference import InferenceOptions, Prediction
from models.mask_heads import MASK_CHANNELS, DynamicMaskHead
from models.precision import BF16_INSTRUCTIONS, PRECISIONS, widened
from scripts.memory_estimate import empty_parts, random_step
from util.device import device_name, resolve_device
from util.files import library_versions, write_json
from util.parallel import available_cores

READING, POST, WRITING = "reading", "post-processing", "PNG writing"
GIB = 2**30
Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the report and write the numbers."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = parse_args(argv)
    cfg = benchmark_config(args, load_config(["--device", args.device, *rest], __doc__))
    own = {name: value for name, value in vars(args).items() if name not in ("json", "device", "dtype", "stack")}
    if args.files:
        print(measure_files(args, cfg))
        return
    base = None if args.no_baseline else run_part("baseline", args, cfg)
    result: Result = {
        "command": " ".join(["python", "-m", "scripts.benchmark", *argv]),
        "settings": {**own, "config": config_dict(cfg), "stack": str(args.stack)},
        "versions": library_versions(),
        "machine": machine(resolve_device(cfg.device)),
        "fast": [compare(run_part("fast", args, cfg, dtype), base) for dtype in args.dtype],
        "baseline": base and compare(base, None),
    }
    if args.training:
        slow = None if args.no_baseline else run_part("train baseline", args, cfg)
        result["training"] = {"fast": compare(run_part("train fast", args, cfg, args.dtype[0]), slow), "baseline": slow}
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
        raise UserError("the benchmark supports --backbone t2v only")
    if stack_of(cfg) != FULL_SIZE and find_generator(str(stack_of(cfg))) != GENERATORS[0]:
        raise UserError(f"the benchmark supports ModelScope's generator only, and {cfg.pretrained} is another one")
    if not MODELS[cfg.model].scored:
        raise UserError(f"the benchmark does not support model {cfg.model}; scripts.memory_estimate counts its memory")
    if not args.no_baseline and (not cfg.image_tokens or not cfg.unet_text):
        raise UserError("the baseline has image tokens and text; leave them on, or add --no-baseline")
    return replace(
        cfg,
        eval_size=min(args.height, args.width),
        max_size=0,
        num_frames=args.train_frames,
        dataset_file="ytvos",
        lora_rank=0,  # merged, as at inference
        precision="fp32",  # --dtype decides
    )


def run_part(part: str, args: argparse.Namespace, cfg: Config, dtype: str = "fp32") -> Result:
    """Measure a part in a new process, so that peak memory is that of the part.

    Raises:
        RunError: the process was killed.
    """
    name = part if "baseline" in part else f"{part} {dtype}"
    print(f"measuring: {name}", flush=True)
    plain = "baseline" in part and resolve_device(cfg.device).type == "cpu"
    environment = {"MSDA_BACKEND": "torch"} if plain else {}
    spawn = multiprocessing.get_context("spawn")
    with patch.dict(os.environ, environment), ProcessPoolExecutor(1, spawn) as pool:
        try:
            return pool.submit(measure, part, args, cfg, dtype).result()
        except BrokenProcessPool as error:
            raise RunError(
                f"the process that measures {name} was killed, most likely for lack of memory; use fewer --frames or a "
                "smaller size"
            ) from error


# Measuring a part, in its own process.


def measure(part: str, args: argparse.Namespace, cfg: Config, dtype: str) -> Result:
    """Measure one part.

    Args:
        part: ``fast`` or ``baseline``, or ``train fast`` or ``train baseline`` for a training step.
        args, cfg: the options of the benchmark and of the model.
        dtype: precision of the fast path.

    Returns:
        ``dtype``, ``seconds``, ``rate``, ``operations`` and ``peak_memory``; of training also ``loss``; of inference
        also ``stages``, ``queries`` and ``logits``.
    """
    device = resolve_device(cfg.device)
    training, fast = part.startswith("train"), part.endswith("fast")
    cfg = replace(cfg, compile=cfg.compile and fast)
    model = (random_model if fast else random_baseline)(cfg, args.stack, device, PRECISIONS[dtype])
    if training:
        scaler = prepare_training(model, dtype, device) if fast else None
        return {"dtype": dtype, **_train(args, replace(cfg, precision=dtype), model, scaler, device)}
    if fast:
        prepare_inference(model, dtype, device)
    model.requires_grad_(False).eval()  # the operation counter needs frozen parameters
    return {"dtype": dtype, **_inference(args, cfg, model, fast, StageMeter(device))}


def _inference(args: argparse.Namespace, cfg: Config, model: Segmenter, fast: bool, meter: StageMeter) -> Result:
    """Segment a video: once to warm up and to count operations, then timed. The baseline gets it anew per sentence."""
    meter.watch(model)
    best: Result = {"seconds": math.inf}
    with random_video(args) as video:
        videos = [video] if fast else [replace(video, expressions={i: text}) for i, text in video.expressions.items()]
        with operation_counter() as counter:
            _segment(model, cfg, meter, videos[:1])
        if cfg.compile:  # not before: what first runs under the operation counter is never compiled
            compile_frozen(model)
            _segment(model, cfg, meter, videos[:1])
        forget_peak(meter.device)
        for _ in range(args.repeats):
            meter.active = meter.device.type == "cpu"  # waiting for a GPU at every stage would slow it down
            meter.seconds.clear()
            seconds, queries, logits = _segment(model, cfg, meter, videos)
            if not meter.active:
                meter.active = True
                _, queries, logits = _segment(model, cfg, meter, videos)
            if seconds < best["seconds"]:
                best = {"seconds": seconds, "stages": dict(meter.seconds), "queries": queries}
    seconds, stages = best["seconds"], best["stages"]
    best["stages"] = {**stages, "other": max(0.0, seconds - sum(stages.values())), "all": seconds}
    return {
        **best,
        "rate": args.frames * args.sentences / seconds,
        "operations": counter.get_total_flops() * len(videos),
        "peak_memory": peak_memory(meter.device),
        "logits": torch.stack(logits).numpy(),
    }


def _segment(
    model: Segmenter, cfg: Config, meter: StageMeter, videos: Sequence[Video]
) -> tuple[float, list[int], list[Tensor]]:
    """Segment videos by the same call as ``inference_ytvos.py``.

    Returns:
        seconds, the chosen query of each sentence, and the mask logits ``[H, W]`` of its first frame.
    """
    logits: list[Tensor] = []
    masks = meter.stage(POST)(inference.binary_masks)

    def kept(values: Tensor, *rest: Any) -> Tensor:
        if meter.active:
            logits.append(values[0].float().cpu())
        return masks(values, *rest)

    layout, options = DATASETS[cfg.dataset_file].layout, InferenceOptions.from_config(cfg)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(inference, "binary_masks", kept),
        patch.object(files, "read_frame", meter.stage(READING)(files.read_frame)),
        patch.object(layout, "write", meter.stage(WRITING)(layout.write)),
    ):
        record = InferenceRecord(Path(folder, "inference.json"), {}, {})
        began = time.perf_counter()
        engine.segment_videos(model, videos, record, layout, options, workers=cfg.num_workers, show=False)
        wait(meter.device)
        seconds = time.perf_counter() - began
        found = [record.find(video.name, exp_id) or {} for video in videos for exp_id in video.expressions]
    return seconds, [result["query"] for result in found], logits


def measure_files(args: argparse.Namespace, cfg: Config) -> str:
    """Segment videos by a stand-in for the model that takes no time, and report the speed of reading and writing."""
    noise = torch.rand(args.frames, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    masks = F.interpolate(noise, size=(2 * args.height, 2 * args.width), mode="bilinear")[:, 0].numpy() > 0.6
    boxes, scores = np.zeros((args.frames, 4)), np.ones(args.frames)

    def found(model: Any, clip: Any, size: Any, sentences: Mapping[str, str], *rest: Any) -> Iterator[Any]:
        return ((exp_id, Prediction(masks, boxes, scores, query=0, finite=True, seconds=0.0)) for exp_id in sentences)

    meter = StageMeter(torch.device("cpu"))
    with random_video(args) as video, patch.object(engine, "segment", found):
        videos = [replace(video, name=str(i)) for i in range(args.files)]
        began = time.process_time()
        seconds, *_ = _segment(nn.Identity(), cfg, meter, videos)  # type: ignore[arg-type]
        busy = time.process_time() - began
    frames = args.frames * args.files
    return (
        f"{frames} frames, {args.sentences} sentences, {cfg.num_workers} threads, {available_cores()} cores: "
        f"{frames / seconds:.1f} frames per second, {1000 * busy / frames:.1f} ms of CPU time per frame"
    )


def _train(args: argparse.Namespace, cfg: Config, model: Segmenter, scaler: Any, device: torch.device) -> Result:
    """Time a training step after another one, in which operations are counted."""
    step = random_step(cfg, model, tuple(args.train_size), device, scaler, torch.optim.AdamW)
    with operation_counter() as counter:
        step()
    if cfg.compile:  # not before: what first runs under the operation counter is never compiled
        compile_frozen(model)
        step()
    forget_peak(device)
    began = time.perf_counter()
    losses = step()
    wait(device)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "rate": cfg.batch_size * cfg.accumulate / seconds,
        "operations": counter.get_total_flops(),
        "peak_memory": peak_memory(device),
        "loss": float(losses["loss"]),
    }


def operation_counter() -> FlopCounterMode:
    """Counts the multiplications and additions of matrix products, convolutions and attention inside its block."""

    def attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    formulas: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    return FlopCounterMode(display=False, custom_mapping=formulas)


@contextmanager
def random_video(args: argparse.Namespace) -> Iterator[Video]:
    """A video of random colour gradients, twice as large as in the model, in a temporary folder."""
    small = torch.rand(args.frames, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    frames = F.interpolate(small, size=(2 * args.height, 2 * args.width), mode="bilinear")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i:05d}.jpg") for i in range(args.frames)]
        for path, frame in zip(paths, (255 * frames).to(torch.uint8), strict=True):
            write_jpeg(frame, str(path))
        yield Video("video", paths, {str(i): f"the dog number {i}" for i in range(args.sentences)})


class StageMeter:
    """Measures the seconds of named stages; several threads may use it at once.

    Args:
        device: synchronised at both ends of a stage.

    Attributes:
        active: whether stages are measured.
        seconds: by stage.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.active = True
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block, or the calls of a decorated function, as part of a stage."""
        if not self.active:
            yield
            return
        wait(self.device)
        began = time.perf_counter()
        yield
        wait(self.device)
        with self._lock:
            self.seconds[name] += time.perf_counter() - began

    def watch(self, model: Segmenter) -> None:
        """Measure the modules of a model as stages."""
        encoder: Any = model.encoder
        tokens = encoder.image_encoder is not None
        parts = {
            "VAE": [encoder.vae],
            "image tokens": [encoder.clip_pixels, encoder.image_encoder, encoder.image_projection] if tokens else [],
            "noise and stride 4": [encoder.noise, encoder.stride4],
            "text": [encoder.text_encoder, model.sentence_encoder, model.language_queries],
            "fusion": [encoder.fusion] if tokens else [],
            "UNet": [encoder.unet],
            "pyramid": [*encoder.levels],
            "transformer": [model.transformer],
            "heads": [*model.class_heads, model.mask_head, model.query_dot_head, model.refinement],
        }
        for name, modules in parts.items():
            for module in filter(None, modules):
                module.forward = self.stage(name)(module.forward)


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Wait until the device has finished its work, and measure the peak memory of a GPU from here on."""
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the tensors on a GPU since ``forget_peak``, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(device: torch.device) -> Result:
    """Names and sizes of the machine."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return {
        "device": device_name(device),
        "cpu": name[1] if name else platform.machine(),
        "threads": torch.get_num_threads(),
        "bf16_instructions": [name for name in BF16_INSTRUCTIONS if torch.cpu.get_capabilities().get(name)],
    }


# Models with random weights. A weight depends only on its part, name and shape, so both paths have the same ones.


def random_model(cfg: Config, stack: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Segmenter:
    """The project's model: frozen parts in ``dtype``, trained parts as initialised."""
    return _with_weights(cfg, empty_parts(stack, cfg.model), device, dtype)


def random_baseline(cfg: Config, stack: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Segmenter:
    """The model as the published code computes it: in float32, and on CUDA with float16 autocast in the encoder.

    The function is the same; the cost is that of research code. The UNet runs to its end, Pillow prepares images for
    CLIP one by one on the CPU, and the dynamic mask head copies the features for every query.
    """
    frozen: Any = empty_parts(stack, cfg.model)
    with torch.device("meta"):
        frozen.unet = StockUNet.from_config(frozen.unet.config)
        frozen.vae = StockVAE.from_config(frozen.vae.config)
    model = published_parts(_with_weights(cfg, frozen, device, dtype))
    if device.type == "cuda":
        model.encoder.precision = torch.float16
        model.encoder.register_forward_hook(lambda module, inputs, pyramid: widened(pyramid))
    return model


def published_parts(model: Any) -> Segmenter:
    """Put the published way of computing CLIP's pixels and the masks into a model, in place."""
    model.encoder.clip_pixels = PillowPixels(model.encoder.clip_pixels.size)
    model.mask_head.__class__ = CopyingMaskHead
    return model


@torch.no_grad()
def _with_weights(cfg: Config, frozen: FrozenStack, device: torch.device, dtype: torch.dtype) -> Segmenter:
    """Build a model from frozen parts on the meta device, which get random weights on ``device``."""
    parts = {
        "unet": frozen.unet,
        "vae": frozen.vae,
        "text_encoder": frozen.text_encoder,
        "clip": frozen.image_encoder,
        "roberta": frozen.sentence_encoder,
    }
    for part, module in parts.items():
        nn.Module.to(module, dtype).to_empty(device=device)  # the one of diffusers warns
        for name, parameter in module.named_parameters():
            parameter.copy_(random_weight(part, name, parameter.shape, 0))
        for name, buffer in module.named_buffers():
            buffer.copy_(torch.arange(buffer.shape[-1]) if name.endswith("position_ids") else torch.zeros_like(buffer))
    torch.manual_seed(0)
    return build_segmenter(cfg, frozen).to(device)


# The parts of the baseline that differ from those of the project's model.


class StockVAE(AutoencoderKL):
    """The VAE of diffusers with its decoder, called like ``VAEEncoder``."""

    maps = 4  # in float32, with float16 autocast
    stride4_channels = VAEEncoder.stride4_channels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Moments and stride-4 feature of images, as ``VAEEncoder.forward`` returns them."""
        kept: list[Tensor] = []
        layer = self.encoder.down_blocks[STRIDE4_BLOCK].resnets[-1]
        with layer.register_forward_hook(lambda module, inputs, output: kept.append(output)):
            return self.encode(images).latent_dist.parameters, kept[0]


class StockUNet(UNet3DConditionModel):
    """The whole UNet of diffusers with a text for each frame, called like ``TapUNet3D``."""

    tap_channels = TapUNet3D.tap_channels

    def forward(self, sample: Tensor, text: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Six features of clips of at least two frames, as ``TapUNet3D.forward`` returns them."""
        frames = sample.shape[2]
        steps = torch.zeros(sample.shape[0], dtype=torch.long, device=sample.device)
        temb = self.time_embedding(self.time_proj(steps).to(self.dtype)).repeat_interleave(frames, dim=0)
        x = self.conv_in(sample.transpose(1, 2).flatten(0, 1))
        x = self.transformer_in(x, num_frames=frames, return_dict=False)[0]
        taps, skips = [x], (x,)

        def common(block: Any) -> dict[str, Any]:
            words = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            return {"temb": temb, "num_frames": frames, **words}

        for block in self.down_blocks:
            x, made = block(hidden_states=x, **common(block))
            skips += made
            taps.append(x)
        del taps[3:]
        x = self.mid_block(x, temb, encoder_hidden_states=text, num_frames=frames)
        for block in self.up_blocks:
            own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            size = skips[-1].shape[2:] if skips else None
            x = block(hidden_states=x, res_hidden_states_tuple=own, upsample_size=size, **common(block))
            taps.append(x)
        self.conv_out(self.conv_act(self.conv_norm_out(x)))  # the noise prediction, which is not used
        return taps[:6]


class PillowPixels(CLIPPixels):
    """CLIP's preprocessing by Pillow on the CPU, one image after the other."""

    def resized(self, levels: Tensor, height: int, width: int) -> Tensor:
        """Resize uint8 ``[N, 3, H, W]``."""
        pictures = [to_pil_image(image).resize((width, height), Image.Resampling.BICUBIC) for image in levels.cpu()]
        return torch.stack([pil_to_tensor(picture) for picture in pictures]).to(levels.device)


class CopyingMaskHead(DynamicMaskHead):
    """The dynamic mask head as convolutions with each query's weights over its own copy of the features."""

    def forward(self, features: Tensor, states: Tensor, centres: Tensor) -> Tensor:
        """Masks of all queries, as ``DynamicMaskHead.forward`` returns them."""
        (batch, _, h, w), queries = features.shape, states.shape[1]
        y, x = (torch.arange(side, device=features.device) * 8.0 + 4 for side in (h, w))
        offsets = centres[..., None, None] - torch.stack([x.expand(h, w), y[:, None].expand(h, w)])  # [N, Q, 2, h, w]
        copies = torch.cat([features[:, None].expand(-1, queries, -1, -1, -1), offsets], dim=2)
        weight1, weight2, bias1, bias2 = self.controller(states).split(self.sizes, dim=-1)
        groups = batch * queries
        weight1 = weight1.reshape(groups * self.channels, -1, 1, 1)
        masks = F.relu(F.conv2d(copies.reshape(1, -1, h, w), weight1, bias1.flatten(), groups=groups))
        masks = F.conv2d(masks, weight2.reshape(groups * MASK_CHANNELS, -1, 1, 1), bias2.flatten(), groups=groups)
        return masks.view(batch, queries, MASK_CHANNELS, h, w)


# Comparison and report.


def compare(run: Mapping[str, Any], base: Mapping[str, Any] | None) -> Result:
    """A run of this project's path as plain values, with its comparison to the baseline, if there is one.

    Returns:
        the run without its mask logits, and ``speedup``, ``operations_ratio``, ``peak_memory_ratio``; of inference
        also for how many sentences the same query is chosen (``same_query``), and the greatest difference of the mask
        logits of these in the first frame, relative to their range (``greatest_difference``; 1 if there are none).
    """
    plain = {name: value for name, value in run.items() if name != "logits"}
    if base is None:
        return plain
    plain["speedup"] = run["rate"] / base["rate"]
    plain["operations_ratio"] = base["operations"] / run["operations"]
    plain["peak_memory_ratio"] = run["peak_memory"] / base["peak_memory"]
    if "logits" in run:
        same = [i for i, query in enumerate(run["queries"]) if query == base["queries"][i]]
        own, other = run["logits"][same], base["logits"][same]
        plain["same_query"] = len(same)
        plain["greatest_difference"] = float(np.abs(own - other).max() / np.ptp(other)) if same else 1.0
    return plain


def report(result: Result) -> list[str]:
    """The result in lines of text."""
    about, sizes, base = result["machine"], result["settings"], result["baseline"]
    size = f"{sizes['frames']} frames of {sizes['height']}×{sizes['width']}, {sizes['sentences']} sentences"
    lines = [f"{sizes['config']['model']}, {size}, {about['cpu']} ({about['device']}), {about['threads']} threads"]
    for run in result["fast"]:
        lines += ["", f"{run['dtype']:<20}{'seconds':>10}" + (f"{'baseline':>10}{'ratio':>10}" if base else "")]
        for name, seconds in run["stages"].items():
            line = f"{name:<20}{seconds:>10.2f}"
            if base:
                slow = base["stages"].get(name, 0.0)
                line += f"{slow:>10.2f}{slow / max(seconds, 1e-9):>9.2f}×"
            lines.append(line)
        lines += _summary(run["dtype"], run, base)
        if base:
            lines.append(
                f"the same query for {run['same_query']} of {sizes['sentences']} sentences, mask logits differ by at "
                f"most {run['greatest_difference']:.2g} of their range"
            )
    if "training" in result:
        lines += ["", *_summary("training", result["training"]["fast"], result["training"]["baseline"])]
    return lines


def _summary(name: str, run: Mapping[str, Any], base: Mapping[str, Any] | None) -> list[str]:
    lines = []
    for title, one in ((name, run), ("baseline", base)):
        if one:
            speed = f"{one['rate']:.3g} {'clips' if 'loss' in run else 'frames × sentences'} per second"
            lines.append(f"{title}: {one['seconds']:.2f} s, {speed}, {one['peak_memory'] / GIB:.2f} GiB peak memory")
    if base:
        lines.append(
            f"{run['speedup']:.2f}× the baseline's throughput (operations alone: {run['operations_ratio']:.2f}×) at "
            f"{run['peak_memory_ratio']:.2f} of its peak memory"
        )
    return lines


if __name__ == "__main__":
    run_cli(main)
