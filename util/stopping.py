"""Signals that ask a run to end: it finishes the step, saves and leaves with a status that says it can go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from util.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Of schedulers and terminals; Slurm's ``--signal=USR1@120`` comes before its SIGTERM."""
TWICE = 5.0  # seconds after which a second Ctrl-C ends the run at once; launchers pass the first one on twice


class StopSignals:
    """Notes signals that ask for an end, and puts the earlier handlers back when the block is left.

    Until ``begin`` there is nothing to save, and a signal ends the process at once.

    Attributes:
        received: the name of the first signal; empty until there is one.
    """

    def __init__(self) -> None:
        self.received = ""
        self._begun = False
        self._at = 0.0
        self._earlier: dict[int, Any] = {}

    def begin(self) -> None:
        """From now on signals are only noted: the loop looks at ``received`` between two steps."""
        self._begun = True

    def request(self, name: str) -> None:
        """Note a stop that was asked of another process."""
        if not self.received:
            self.received, self._at = name, time.monotonic()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._begun:
            print(f"stopped by {name} before the first step", file=sys.stderr)
            raise Stopped(name)
        if number == signal.SIGINT and self.received and time.monotonic() - self._at > TWICE:
            raise KeyboardInterrupt
        self.request(name)


class WorkerSignals:
    """Keeps the processes that load data alive while the run finishes its step: signals often reach the whole group.

    Called in each of them (``worker_init_fn``). They end when their loader or the run's process does.
    """

    def __init__(self) -> None:
        self._closing: Tensor = torch.zeros((), dtype=torch.bool).share_memory_()

    def close(self) -> None:
        """Let SIGTERM end the workers again, in which way a loader ends one that hangs."""
        self._closing.fill_(True)

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._closing:
            os._exit(0)
