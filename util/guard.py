"""Signal handling, hang detection and finite-loss checks for a training loop."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

import torch
import torch.distributed as dist

from util.checkpoint import write_pickle
from util.distributed import LONG_WAIT, gather_objects, is_main, rank, world_size
from util.errors import RunError, Stopped, UserError, first_line
from util.files import ROOT
from util.run_log import Meter, Step

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Sent by schedulers and terminals. ``scripts/slurm_train.sbatch`` asks for SIGUSR1 before the time limit."""
SECOND_SIGINT_DELAY = 5.0  # seconds after which a second Ctrl-C ends the run; launchers forward the first one twice
TICK = 1.0  # seconds between two checks of the watchdog
SLOW_START = 3  # patience multiplier for the start: a slow disk may hold the frozen weights
EXIT_TIMEOUT = 30.0  # seconds that a process which fails beside others has to end by itself
PEER_REPORT_DELAY = 5.0  # seconds for which a process that lost its peers lets the one that failed report first
LOST_PEER = re.compile("connection (closed|reset|refused)|broken pipe|timed out|nccl|gloo", re.IGNORECASE)
"""Found in the messages that collectives fail with when another process is gone."""


class Guard:
    """Handles signals, hangs and non-finite losses of a training run: all processes stop after the same step.

    Used as a context manager around the run. Inside it,

    - SIGTERM, SIGINT and SIGUSR1 let the current step finish and be saved (``exchange_flags``, ``raise_stop``),
    - a process that makes no progress for ``patience`` seconds ends with its rank, step and line on stderr,
    - a loss that is not finite stops all processes and keeps its batch (``raise_fault``).

    A guard that is not entered does none of this.

    Args:
        folder: where batches of losses that are not finite are saved.
        patience: seconds without progress after which the process ends.
        about: further entries of a saved batch (``seed``).

    Attributes:
        received: name of the first signal; empty until there is one.
    """

    def __init__(self, folder: Path | None = None, patience: float = 600.0, **about: Any) -> None:
        self.folder, self.about = folder, about
        self.received = ""
        self.watchdog = Watchdog(patience)
        self._training = False
        self._received_at = 0.0
        self._handlers: dict[int, Any] = {}
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            self._handlers = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        self.report_stage("prepares the training", SLOW_START * self.watchdog.patience)
        self.watchdog.start()
        if world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=LONG_WAIT)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                try:
                    self.report_stage("waits for the others to finish", LONG_WAIT.total_seconds())
                    self._join()
                except RuntimeError as lost:
                    self._fail(lost)
                    raise
            elif not isinstance(error, Stopped):
                self._fail(error)
                return
            self.watchdog.stop()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def start(self, step: int) -> None:
        """Begin training after ``step`` steps: from now on a signal lets the current step finish.

        Before, there is nothing to save, and a signal ends the process at once.
        """
        self._training = True
        self.report_stage(f"waits for the data of step {step + 1}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        name = signal.Signals(number).name
        if not self._training:
            print(f"stopped by {name} before the first step", file=sys.stderr)
            raise Stopped(name)
        if number == signal.SIGINT and self.received and time.monotonic() - self._received_at > SECOND_SIGINT_DELAY:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._received_at = name, time.monotonic()

    def report_stage(self, stage: str, patience: float = 0.0) -> None:
        """Report progress.

        Args:
            stage: what the process does now, such as "computes step 7".
            patience: seconds that it may take; 0: the patience of the run.
        """
        self.watchdog.progress(stage, patience)

    def exchange_flags(self, fault: bool, now: bool) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether any met a fault. The answer is the same in all processes.

        It is about the previous step unless ``now``: the exchange of a step is collected after the next one, when it
        has long finished, so that nothing waits. It is 8 bytes between CPUs (gloo) and involves no GPU.

        Args:
            fault: whether this process met one.
            now: wait for the answer about this step.
        """
        stop = bool(self.received) and not fault
        if self._group is None:
            return stop, fault
        answer = self._answer()
        flags = torch.tensor([stop, fault], dtype=torch.int32)
        self._asked = dist.all_reduce(flags, dist.ReduceOp.MAX, self._group, async_op=True), flags
        if now:
            answer = answer | self._answer()
        return bool(answer[0]), bool(answer[1])

    def _answer(self) -> torch.Tensor:
        """Finish the exchange in progress and return its result; zeros if there is none."""
        if self._asked is None:
            return torch.zeros(2, dtype=torch.int32)
        work, flags = self._asked
        self._asked = None
        work.wait()
        return flags

    def _join(self) -> None:
        """Wait until all processes come here."""
        if self._group is not None:
            self._answer()
            dist.barrier(self._group)

    def raise_stop(self, step: int) -> NoReturn:
        """Leave after step ``step``, which is saved. All processes come here together.

        Raises:
            Stopped: always.
        """
        self.report_stage("waits for the others to stop", LONG_WAIT.total_seconds())
        self._join()
        name = self.received or "a signal to another process"
        if is_main():
            print(f"stopped by {name} after step {step}; --resume auto continues from there", file=sys.stderr)
        raise Stopped(name, step)

    def raise_fault(self, meter: Meter) -> NoReturn:
        """Name the first step with a term that is not finite, and save its batch. All processes come here together.

        Raises:
            RunError: always.
        """
        fault = meter.fault(wait=True)
        own = None if fault is None else (fault.number, fault.own_fault, fault.describe())
        found = {number: entry for number, entry in enumerate(gather_objects(own)) if entry is not None}
        first = min(step for step, _, _ in found.values())
        first_ones = {number: entry for number, entry in found.items() if entry[0] == first}
        guilty = [number for number, entry in first_ones.items() if entry[1]] or list(first_ones)
        if rank() not in guilty:
            raise RunError(f"process {guilty[0]} stops the run: {found[guilty[0]][2]}")
        assert fault is not None
        raise RunError(
            f"process {rank()}: {fault.describe()}; {self._keep(fault)}the last checkpoint is from before it"
        )

    def _keep(self, fault: Step) -> str:
        """Save the batches of a step for ``torch.load(weights_only=True)``, and say where they are."""
        if self.folder is None or not fault.batches:
            return ""
        path = self.folder / f"not_finite_step_{fault.number:06d}_process_{rank()}.pt"
        batches = [{entry.name: getattr(batch, entry.name) for entry in fields(batch)} for batch in fault.batches]
        content = {"step": fault.number, "clips": fault.clips, "terms": fault.terms, "batches": batches}
        try:
            write_pickle(path, {**content, "process": rank(), "processes": world_size(), **self.about})
        except UserError as error:
            return f"its batch is lost ({error}); "
        return f"its batch is in {path}; "

    @contextmanager
    def interruptible(self, stage: str) -> Iterator[None]:
        """Context manager for a stage, such as a validation, that a signal may interrupt at any point.

        Raises:
            Stopped: it was interrupted.
        """
        self.report_stage(stage, LONG_WAIT.total_seconds())
        try:
            yield
        except Exception as error:
            if self.received and not isinstance(error, UserError):  # other processes have left already
                raise Stopped(self.received) from error
            raise

    def report_progress(self) -> None:
        """Report progress within ``interruptible``, such as a clip that is done.

        Raises:
            Stopped: a signal has come.
        """
        self.watchdog.progress()
        if self.received:
            raise Stopped(self.received)

    def _fail(self, error: BaseException) -> None:
        """Stop or shorten the watchdog before the process ends with an error.

        Raises:
            RunError: a clearer one, if another process or a data worker caused it.
        """
        stage = self.watchdog.stage
        if world_size() == 1:
            self.watchdog.stop()
        else:  # leaving the process group may hang; the reason must be reported in any case
            self.watchdog.progress(f"fails ({first_line(error)})", EXIT_TIMEOUT)
        if not isinstance(error, RuntimeError) or isinstance(error, RunError):
            return
        if "DataLoader worker" in str(error):
            raise RunError(
                f"a process that loads data was killed ({first_line(error).rstrip('. ')}), most often for lack of "
                "memory; use fewer --num_workers or more shared memory (/dev/shm)"
            ) from error
        if world_size() > 1 and LOST_PEER.search(str(error)):
            end = time.monotonic() + PEER_REPORT_DELAY
            while not self.received and time.monotonic() < end:  # the launcher sends SIGTERM when it has seen the cause
                time.sleep(0.1)
            raise RunError(
                f"process {rank()} {stage} and has lost the connection to another process ({first_line(error)}); the "
                "cause is in the message of the process that failed first"
            ) from error


class Watchdog:
    """Thread that ends the process with a report when the main thread makes no progress.

    Args:
        patience: seconds without progress after which the process ends with status 1.
    """

    def __init__(self, patience: float) -> None:
        self.patience = self._allowed = patience
        self.stage = ""
        self._moves = 0
        self._stopped = threading.Event()
        self._reporting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching. While a report is printed this does not return, and no second error appears below it."""
        with self._reporting:
            self._stopped.set()

    def progress(self, stage: str = "", patience: float = 0.0) -> None:
        """Restart the clock.

        Args:
            stage: what the main thread does now; empty: the same as before.
            patience: seconds that it may take; 0: the usual ones. Of the same stage, as before.
        """
        with self._reporting:
            if stage:
                self.stage, self._allowed = stage, patience or self.patience
            self._moves += 1

    def _run(self) -> None:
        tick = min(TICK, self.patience / 5)
        seen, waited = self._moves, 0.0
        while not self._stopped.wait(tick):
            with self._reporting:
                # Ticks are counted, not time: a process that was suspended or starved has not hung.
                seen, waited = self._moves, waited + tick if seen == self._moves else 0.0
                if waited > self._allowed and not self._stopped.is_set():
                    print(
                        f"error: process {rank()} {self.stage} and has made no progress for {waited:.0f} s "
                        f"(--patience_minutes); it is at {_position()}",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)


class WorkerSignals:
    """Keeps data workers alive while the run finishes its step: signals often reach the whole process group.

    Passed as ``worker_init_fn``. Workers end when their loader or the run's process does.
    """

    def __init__(self) -> None:
        self._closing: torch.Tensor = torch.zeros((), dtype=torch.bool).share_memory_()

    def close(self) -> None:
        """Let SIGTERM end the workers again, which is how a loader ends one that hangs."""
        self._closing.fill_(True)

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._closing:
            os._exit(0)


def _position() -> str:
    """Where the main thread is: the innermost line of this project."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "a line of a library"
