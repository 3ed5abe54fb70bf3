"""How fast a training run goes, what it waits for, and what it occupies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import psutil

Item = TypeVar("Item")

LINES = 20  # log lines over which the time left is judged
GIB = 2**30


class Throughput:
    """Clips and frames per second since the last log line, the share of that time spent waiting, and the time left.

    Args:
        total_steps: length of the whole run.
        first_step: where it begins or goes on.
        processes: that each do as many clips as this one.
    """

    def __init__(self, total_steps: int, first_step: int, processes: int = 1) -> None:
        self.total_steps = total_steps
        self.step = first_step
        self.processes = processes
        self.marks = deque([(time.monotonic(), first_step)], maxlen=LINES)  # time and step of the last lines
        self._clear()

    def _clear(self) -> None:
        self.clips = self.frames = 0
        self.waited = 0.0

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time that each takes to come counts as waiting."""
        iterator = iter(items)
        while True:
            began = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - began
            yield item

    def add(self, clips: int, frames: int) -> None:
        """One step of this process is done."""
        self.step += 1
        self.clips += clips
        self.frames += frames

    def flush(self) -> dict[str, float]:
        """What the steps since the last flush have taken; empty where there was none.

        Returns:
            ``clips_per_second`` and ``frames_per_second`` of all processes, ``waiting`` (0…1: the share of the time in
            which the next batch was not there yet) and ``eta_seconds``.
        """
        now = time.monotonic()
        last_time, last_step = self.marks[-1]
        seconds = now - last_time
        if self.step == last_step or seconds <= 0:
            return {}
        first_time, first_step = self.marks[0]
        pace = (now - first_time) / (self.step - first_step)
        speeds = {
            "clips_per_second": self.processes * self.clips / seconds,
            "frames_per_second": self.processes * self.frames / seconds,
            "waiting": min(1.0, self.waited / seconds),
            "eta_seconds": pace * (self.total_steps - self.step),
        }
        self.marks.append((now, self.step))
        self._clear()
        return {name: float(f"{value:.4g}") for name, value in speeds.items()}


def memory_gib() -> dict[str, float]:
    """``memory_gib``: the most that PyTorch has had of this process's GPU, or else what the process has of the RAM."""
    import torch

    on_gpu = torch.cuda.is_initialized()  # the allocator keeps the number: asking waits for nothing
    taken = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    return {"memory_gib": round(taken / GIB, 3)}


def duration(seconds: float) -> str:
    """Seconds in words of a clock: ``0:42``, ``1:02:03``, ``2 d 03:04:05``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
