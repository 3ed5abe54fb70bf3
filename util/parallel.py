"""The same work for many videos, in processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import cv2
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def bar_style() -> dict[str, Any]:
    """How a progress bar on stdout looks: drawn often on a terminal, and twice a minute in a file."""
    return {"dynamic_ncols": True, "file": sys.stdout, "mininterval": 0.1 if sys.stdout.isatty() else 30.0}


def available_cores() -> int:
    """Number of cores this process may use, which containers often make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context() -> multiprocessing.context.BaseContext:
    """How workers start: not forked from this process, which may hold threads or a GPU; neither survives a fork.

    Where the system can, they are forked from a clean process, which imports a script such as main.py once for all.
    """
    clean = "forkserver" in multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if clean else "spawn")


def _start_worker() -> None:
    cv2.setNumThreads(1)  # one process per core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


def map_videos(
    function: Callable[[Item], Result], videos: Sequence[Item], workers: int, unit: str = "video"
) -> list[Result]:
    """Results of ``function(video)`` in the order of ``videos``.

    Args:
        function: picklable when ``workers`` > 1, as are its argument and result. An exception it
            raises is raised here, and what has not started is dropped.
        videos: the items.
        workers: processes; 1 works in this one. No more are started than there are videos.
        unit: what the progress bar calls an item.
    """
    workers = min(workers, len(videos))
    if workers <= 1:
        return list(_progress(map(function, videos), len(videos), unit))
    context = _context()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        return list(_progress(pool.map(function, videos), len(videos), unit))


def _progress(results: Iterable[Result], total: int, unit: str) -> tqdm:
    return tqdm(results, total=total, unit=unit, leave=False, disable=None)
