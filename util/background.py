"""Work that goes on beside the main thread: reading ahead and writing behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


class BackgroundTasks:
    """A small thread pool whose errors are never lost and whose queue never grows without end.

    A task's exception is raised in the main thread by the next ``submit`` that has to wait for it, by ``wait``, or
    at the end of the ``with`` block. Leaving the block by an exception drops the tasks that have not begun.

    Args:
        workers: threads.
        pending: tasks that may wait or run at once; ``submit`` blocks beyond that, which bounds the memory they hold.
    """

    def __init__(self, workers: int, pending: int = 8) -> None:
        self._pool = ThreadPoolExecutor(workers)
        self._pending = pending
        self._futures: deque[Future[Any]] = deque()

    def submit(self, task: Callable[..., Any], *args: Any) -> None:
        """Run ``task(*args)`` in the pool."""
        while len(self._futures) >= self._pending:
            self._futures.popleft().result()
        self._futures.append(self._pool.submit(task, *args))

    def wait(self) -> None:
        """Return when every task is done; raise the first error."""
        while self._futures:
            self._futures.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._pool.shutdown(cancel_futures=True)


def read_ahead(items: Iterable[Item], load: Callable[[Item], Loaded]) -> Iterator[tuple[Item, Loaded]]:
    """Yield every item with ``load(item)``, while a thread loads the next one; an error of ``load`` is raised here."""
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[Item, Future[Loaded]] | None = None
        for item in items:
            following = item, pool.submit(load, item)
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting:
            yield waiting[0], waiting[1].result()
