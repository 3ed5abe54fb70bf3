"""Work in the background: processes for many videos, threads that read ahead and write behind."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import cv2
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def bar_style() -> dict[str, Any]:
    """Return tqdm options for a progress bar on stdout: updated often on a terminal, twice a minute in a file."""
    return {"dynamic_ncols": True, "file": sys.stdout, "mininterval": 0.1 if sys.stdout.isatty() else 30.0}


def available_cores() -> int:
    """Return the number of cores this process may use; in a container often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_videos(
    function: Callable[[Item], Result], videos: Sequence[Item], workers: int, unit: str = "video"
) -> list[Result]:
    """Return ``function(video)`` for every video, in their order.

    Args:
        function: must be picklable if ``workers`` > 1, as must its argument and result. An exception it raises is
            raised here, and calls that have not started are dropped.
        videos: the items.
        workers: number of processes, at most one per video; 1 runs in this process.
        unit: name of an item in the progress bar.
    """
    workers = min(workers, len(videos))
    if workers <= 1:
        return list(_progress(map(function, videos), len(videos), unit))
    with ProcessPoolExecutor(workers, mp_context=_context(), initializer=_start_worker) as pool:
        return list(_progress(pool.map(function, videos), len(videos), unit))


def _context() -> multiprocessing.context.BaseContext:
    # Not forked from this process, which may hold threads or a GPU. A fork server imports the modules once for all.
    clean = "forkserver" in multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if clean else "spawn")


def _start_worker() -> None:
    cv2.setNumThreads(1)  # there is one process per core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C


def _progress(results: Iterable[Result], total: int, unit: str) -> tqdm:
    return tqdm(results, total=total, unit=unit, leave=False, disable=None)


class BackgroundTasks:
    """Thread pool with a bounded queue that raises the errors of its tasks in the main thread.

    A task's exception is raised by the first call that finds it, in the order of the tasks, or at the end of the
    ``with`` block. Leaving the block by an exception still does what ``then`` has planned, and cancels the other tasks.

    Args:
        workers: number of threads.
        pending: number of unfinished tasks beyond which ``submit`` blocks; bounds the memory they hold.
    """

    def __init__(self, workers: int, pending: int = 8) -> None:
        self._pool = ThreadPoolExecutor(workers)
        self._pending = pending
        self._futures: deque[Future[Any]] = deque()
        self._actions: deque[tuple[Future[Any], Callable[[], None]]] = deque()

    def submit(self, task: Callable[..., Any], *args: Any) -> None:
        """Run ``task(*args)`` in the pool."""
        while self._futures and (len(self._futures) >= self._pending or self._futures[0].done()):
            self._finish_oldest()
        self._futures.append(self._pool.submit(task, *args))

    def then(self, action: Callable[[], None]) -> None:
        """Call ``action`` when all tasks submitted so far have succeeded: now, or in a later call that finds it so."""
        if self._futures:
            self._actions.append((self._futures[-1], action))
        else:
            action()

    def wait(self) -> None:
        """Return when every task is done; raise the first error."""
        while self._futures:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        future = self._futures.popleft()
        try:
            future.result()
        except BaseException:
            self._actions.clear()  # they depend on this task
            raise
        while self._actions and self._actions[0][0] is future:
            self._actions.popleft()[1]()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
            with suppress(Exception):  # the error of the block comes first
                while self._actions:
                    self._finish_oldest()
        finally:
            self._pool.shutdown(cancel_futures=True)


def read_ahead(items: Iterable[Item], load: Callable[[Item], Result], workers: int, ahead: int) -> Iterator[Result]:
    """Yield ``load(item)`` for every item, in their order, while threads load the following ones.

    Args:
        items: the items.
        load: called in the threads. An exception it raises is raised here, when it is the item's turn.
        workers: number of threads.
        ahead: number of items that are loaded, or being loaded, beyond the last one yielded.
    """
    pool = ThreadPoolExecutor(workers)
    loading: deque[Future[Result]] = deque()
    try:
        for item in items:
            loading.append(pool.submit(load, item))
            if len(loading) > ahead:
                yield loading.popleft().result()
        while loading:
            yield loading.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
