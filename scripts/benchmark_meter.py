"""Time and operations of stages, peak memory, and what a device can do at most."""

from __future__ import annotations

import os
import platform
import resource
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from models import Segmenter
from models.diffusion.encoder import VideoEncoder
from scripts.bench_operator import best_time
from util.device import device_name

GIB = 2**30
SIDE = {"cpu": 4096, "cuda": 8192}
COPIED = {"cpu": 2**26, "cuda": 2**28}
"""Numbers in the matrices' sides, and in the copy."""


class StageMeter:
    """Seconds and operations of named stages; any number of threads may be in one.

    Args:
        device: is waited for at both ends of a stage, where ``active``.

    Attributes:
        active: else stages cost nothing and count nothing.
        seconds: by stage; of stages inside others, those are part of both.
        operations: by stage, while ``counting``.
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
        """What is done in the block is part of a stage."""
        began = self._begin()
        yield
        self._end(name, began)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count operations in the block: multiplications and additions of matrix products, convolutions, attention."""
        formulas: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
        with FlopCounterMode(display=False, custom_mapping=formulas) as self._counter:
            yield
        self._counter = None

    def watch(self, model: Segmenter) -> None:
        """Let the model's modules report as stages."""
        for name, modules in _stages(model).items():
            for module in modules:
                began: list[tuple[float, int]] = []
                module.register_forward_pre_hook(lambda *_, began=began: began.append(self._begin()))
                module.register_forward_hook(lambda *_, began=began, name=name: self._end(name, began.pop()))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls are part of a stage."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return call

    def clear(self) -> None:
        """Forget all numbers."""
        self.seconds.clear()
        self.operations.clear()

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
        aside = threading.current_thread() is not threading.main_thread()  # the counter sees the main thread's
        return 0 if self._counter is None or aside else self._counter.get_total_flops()


def _stages(model: Segmenter) -> dict[str, list[nn.Module]]:
    """The modules that make up each stage."""
    encoder = model.encoder
    assert isinstance(encoder, VideoEncoder)
    parts: dict[str, list[Any]] = {
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
    return {name: [module for module in modules if module is not None] for name, modules in parts.items()}


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def wait(device: torch.device) -> None:
    """Return when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Let the peak memory of a GPU begin anew; a process's own does not."""
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors have had of the GPU, or else that this process has had of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def device_peaks(device: torch.device, side: int | None = None, seconds: float = 1.0) -> dict[str, float]:
    """What the device does of simple things: operations a second of a large matrix product, bytes a second of a copy.

    Args:
        device: measured.
        side: of the square matrices; None: a large one.
        seconds: how long each is tried.

    Returns:
        ``fp32`` and ``bf16`` in operations a second, ``copy`` in bytes read and written a second.
    """
    side = side or SIDE[device.type]
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        found[name] = 2e3 * side**3 / best_time(lambda a=a, b=b: a @ b, device, seconds)  # type: ignore[misc]
    source = torch.zeros(min(COPIED[device.type], 16 * side**2), device=device)
    target = torch.zeros_like(source)
    found["copy"] = 2e3 * source.nbytes / best_time(lambda: target.copy_(source), device, seconds)
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The machine in words and numbers."""
    cpu = platform.processor() or platform.machine()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        named = {name.strip(): value.strip() for name, value in lines.items()}
        cpu, flags = named.get("model name", cpu), set(named.get("flags", "").split())
    return {
        "device": device_name(device),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16_instructions": sorted(flags & {"avx512_bf16", "amx_bf16"}),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
    }
