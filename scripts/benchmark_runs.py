"""The parts of the benchmark, each of which ``scripts.benchmark`` runs in a process of its own.

python -m scripts.benchmark_runs PLAN.json PART DTYPE RESULT.json
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from models.placing import prepare_inference, prepare_training
from torch import Tensor
from torchvision.io import write_jpeg

from datasets.files import Video, load_clip
from datasets.predictions import InferenceRecord, write_mask
from datasets.registry import DATASETS
from models import Segmenter, prediction
from models.inference import MULTIPLE, mask_probabilities, segment
from models.precision import PRECISIONS
from scripts.benchmark_baseline import Baseline
from scripts.benchmark_meter import StageMeter, device_peaks, forget_peak, machine, peak_memory, wait
from scripts.benchmark_model import random_model, random_stock
from scripts.benchmark_plan import (
    BASELINE,
    FAST,
    POST,
    READING,
    SWEEP,
    TRAIN_BASELINE,
    TRAIN_FAST,
    WRITING,
    Plan,
)
from scripts.memory_estimate import random_step
from util import video_inference
from util.config import Config
from util.device import resolve_device
from util.errors import run_cli
from util.files import read_json, write_json
from util.preprocessing import pad_clips

WORDS = ("red", "small", "large", "striped", "dark", "second", "left", "young", "spotted", "bright")
"""Each makes a sentence of the same length."""


def main() -> None:
    """Measure the part that the command line names, and write what was found."""
    plan_path, part, dtype, result = sys.argv[1:]
    plan = Plan(**read_json(Path(plan_path), "the plan of a benchmark"))
    found = MEASURE[part](plan, dtype)
    for name, array in found.pop("arrays", {}).items():
        np.save(Path(result).with_suffix(f".{name}.npy"), array)
    write_json(Path(result), found)


def fast(plan: Plan, dtype: str) -> dict[str, Any]:
    """Inference of one video as ``inference_ytvos.py`` has it, and what the device can do at most."""
    cfg, device = _setting(plan)
    model = _fast_model(plan, cfg, device, dtype)
    meter = StageMeter(device)
    meter.watch(model)
    found = _measure(plan, device, meter, partial(_segment, model, cfg, device, meter), plan.sentences)
    found["peaks"] = device_peaks(device, plan.matrix)
    found["machine"] = machine(device)
    return {"dtype": dtype, **found}


def baseline(plan: Plan, dtype: str) -> dict[str, Any]:
    """The same by ``scripts.benchmark_baseline``, one sentence after the other."""
    cfg, device = _setting(plan)
    meter = StageMeter(device)
    model = _baseline_model(plan, cfg, device, meter).requires_grad_(False).eval()
    found = _measure(plan, device, meter, partial(_segment_plainly, model, cfg, device, meter), 1)
    return {"dtype": "fp32", **found}


def train_fast(plan: Plan, dtype: str) -> dict[str, Any]:
    """Training steps as ``main.py`` has them."""
    cfg, device = _setting(plan, precision=dtype)
    model = random_model(cfg, Path(plan.stack), device, PRECISIONS[dtype])
    scaler = prepare_training(model, cfg, device)
    return {"dtype": dtype, **_train(plan, cfg, device, model, scaler)}


def train_baseline(plan: Plan, dtype: str) -> dict[str, Any]:
    """Training steps of the baseline. Loss and optimiser are the same."""
    cfg, device = _setting(plan)
    meter = StageMeter(device)
    meter.active = False
    return {"dtype": "fp32", **_train(plan, cfg, device, _baseline_model(plan, cfg, device, meter), None)}


def sweep(plan: Plan, dtype: str) -> dict[str, Any]:
    """The fast path with other numbers of frames and of sentences."""
    cfg, device = _setting(plan)
    model = _fast_model(plan, cfg, device, dtype)
    meter = StageMeter(device)
    meter.active = False
    rows = []
    for frames, sentences in (
        *((count, plan.sentences) for count in plan.sweep_frames),
        *((plan.frames, count) for count in plan.sweep_sentences),
    ):
        with _video(plan, frames, sentences) as video:
            seconds, _, _ = _segment(model, cfg, device, meter, video)
        rows.append({"frames": frames, "sentences": sentences, "seconds": seconds, "peak_memory": peak_memory(device)})
    return {"dtype": dtype, "rows": rows}


MEASURE: dict[str, Callable[[Plan, str], dict[str, Any]]] = {
    FAST: fast,
    BASELINE: baseline,
    TRAIN_FAST: train_fast,
    TRAIN_BASELINE: train_baseline,
    SWEEP: sweep,
}
"""By the names of ``benchmark_plan.PARTS``; called with the plan and the precision of the fast path."""

Segmented = tuple[float, list[int], list[Tensor]]
"""Seconds, the chosen query of each sentence, and the mask logits ``[H, W]`` of its first frame."""


def _measure(
    plan: Plan, device: torch.device, meter: StageMeter, run: Callable[[Video], Segmented], counted: int
) -> dict[str, Any]:
    """Segment a video: once to warm up and to count operations, then timed.

    Args:
        plan: the sizes.
        device: where it runs.
        meter: times the stages.
        run: segments a video.
        counted: sentences of the first time; all, or as many of which each costs as much as the others.
    """
    with _video(plan, plan.frames, counted) as video, meter.counting():
        run(video)
    operations = {name: count * plan.sentences // counted for name, count in meter.operations.items() if count}
    best: dict[str, Any] = {}
    forget_peak(device)
    for _ in range(plan.repeats):
        with _video(plan, plan.frames, plan.sentences) as video:
            meter.active = device.type == "cpu"  # to wait for a GPU at every stage would slow it down
            meter.clear()
            seconds, queries, logits = run(video)
            if not meter.active:
                meter.active = True
                _, queries, logits = run(video)
        if not best or seconds < best["seconds"]:
            best = {"seconds": seconds, "stages": dict(meter.seconds), "queries": queries}
    return {
        **best,
        "rate": plan.frames * plan.sentences / best["seconds"],
        "operations": operations,
        "peak_memory": peak_memory(device),
        "arrays": {"logits": torch.stack(logits).numpy()},
    }


def _segment(model: Segmenter, cfg: Config, device: torch.device, meter: StageMeter, video: Video) -> Segmented:
    """Segment a video as a user does, into a folder that is removed."""
    logits: list[Tensor] = []
    masks = meter.timed(POST, prediction.binary_masks)

    def kept(values: Tensor, *rest: Any) -> Tensor:
        if meter.active:
            logits.append(values[0].float().cpu())
        return masks(values, *rest)

    layout = DATASETS[cfg.dataset_file].layout
    read = meter.timed(READING, partial(load_clip, short_side=cfg.eval_size, long_side=cfg.max_size))
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(prediction, "binary_masks", kept),
        patch.object(layout, "write", meter.timed(WRITING, layout.write)),
    ):
        record = InferenceRecord(Path(folder, "inference.json"), {}, {})
        options = {**_values(cfg), "output_dir": folder}
        began = time.perf_counter()
        video_inference.run_inference(
            [video],
            Config(**options),
            record,
            read,
            partial(segment, model, cfg=cfg, device=device),
            layout,
            show=False,
        )
        wait(device)
        seconds = time.perf_counter() - began
        found = [record.find(video.name, exp_id) or {} for exp_id in video.expressions]
    return seconds, [result["query"] for result in found], logits


@torch.no_grad()
def _segment_plainly(model: Baseline, cfg: Config, device: torch.device, meter: StageMeter, video: Video) -> Segmented:
    """Segment a video sentence by sentence: read, segment, write."""
    queries, logits = [], []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for exp_id, sentence in video.expressions.items():
            with meter.stage(READING):
                frames, size = load_clip(video.frame_paths, cfg.eval_size, cfg.max_size)
            clip, padding = (tensor.to(device) for tensor in pad_clips([frames], MULTIPLE))
            output = model(clip, padding, [sentence])
            assert output.masks is not None and output.chosen is not None
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


def _train(plan: Plan, cfg: Config, device: torch.device, model: Any, scaler: Any) -> dict[str, Any]:
    """Time training steps after one that warms up, in which operations are counted."""
    meter = StageMeter(device)
    size = (plan.train_height, plan.train_width)
    step = random_step(cfg, model, size, device, scaler, torch.optim.AdamW)
    with meter.counting(), meter.stage("step"):
        step()
    forget_peak(device)
    began = time.perf_counter()
    for _ in range(plan.train_steps):
        losses = step()
    wait(device)
    seconds = (time.perf_counter() - began) / plan.train_steps
    return {
        "seconds": seconds,
        "rate": cfg.batch_size * cfg.accumulate / seconds,
        "operations": meter.operations["step"],
        "peak_memory": peak_memory(device),
        "loss": float(losses["loss"]),
    }


def _setting(plan: Plan, **options: Any) -> tuple[Config, torch.device]:
    """The configuration, and the device that it names."""
    cfg = Config(**{**plan.config, "num_frames": plan.train_frames, **options})
    return cfg, resolve_device(cfg.device)


def _values(cfg: Config) -> Mapping[str, Any]:
    return {name: getattr(cfg, name) for name in cfg.__dataclass_fields__}


def _fast_model(plan: Plan, cfg: Config, device: torch.device, dtype: str) -> Segmenter:
    """The project's model in the form that inference gives it."""
    model = random_model(cfg, Path(plan.stack), device, PRECISIONS[dtype])
    prepare_inference(model, replace(cfg, precision=dtype), device)
    return model.requires_grad_(False)  # the counter of operations takes no other in inference mode


def _baseline_model(plan: Plan, cfg: Config, device: torch.device, meter: StageMeter) -> Baseline:
    return Baseline(*random_stock(cfg, Path(plan.stack), device), meter)


@contextmanager
def _video(plan: Plan, frames: int, sentences: int) -> Iterator[Video]:
    """A video of smooth colours that move, on disk as long as the block lasts."""
    height, width = 2 * plan.height, 2 * plan.width
    generator = torch.Generator().manual_seed(0)
    places = [torch.linspace(0, 1, side)[:, None] * torch.rand(3, generator=generator) for side in (height, width)]
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i in range(frames):
            wave = torch.sin(6 * (places[0][:, None] + places[1][None] + 0.1 * i)).movedim(-1, 0)
            paths.append(Path(folder, f"{i:05d}.jpg"))
            write_jpeg((127.5 * (wave + 1)).to(torch.uint8), str(paths[-1]))
        names = [f"the {WORDS[i % len(WORDS)]} {WORDS[i // len(WORDS) % len(WORDS)]} dog" for i in range(sentences)]
        yield Video("video", paths, {str(i): name for i, name in enumerate(names)})


if __name__ == "__main__":
    run_cli(main)
