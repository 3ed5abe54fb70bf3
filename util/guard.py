"""What stands between a training loop and the world: signals, processes that fail or hang, losses that explode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
import torch.distributed as dist

from util.distributed import gather_objects, is_main, rank, wait_for_all, world_size
from util.errors import RunError, Stopped, UserError
from util.run_log import Meter, Step, save_batches
from util.stopping import StopSignals
from util.watch import Watch

MARGIN = 60.0  # seconds by which a collective waits longer than the watch, whose message says more
UNHURRIED = 12 * 3600.0  # seconds that one process may score or save while the others wait
SLOW_START = 3  # times the patience, for frozen parts that are read from a slow disk
GO, STOP, FAULT = 0, 1, 2


class Guard:
    """Ends a run in order: in all processes after the same step, with one sentence that says why.

    A guard that is not entered guards nothing, for loops that need none.

    Args:
        folder: gets the batches of losses that are not finite.
        patience: seconds without progress after which the run ends.
        about: what a saved batch needs to be computed again (``seed``).
    """

    def __init__(self, folder: Path | None = None, patience: float = 600.0, **about: Any) -> None:
        self.folder, self.patience, self.about = folder, patience, about
        self.signals = StopSignals()
        self._watch: Watch | None = None
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> Self:
        self.signals.__enter__()
        if world_size() > 1:
            timeout = timedelta(seconds=UNHURRIED + MARGIN)  # others may save or score; the watch is faster
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._watch = Watch(self.patience, self.signals.request)
        wait_for_all()
        self._watch.start()
        self.at("prepares the training", SLOW_START * self.patience)
        return self

    def start(self, step: int) -> None:
        """The training begins, with step number ``step`` + 1: from now on a signal lets the step finish."""
        self.signals.begin()
        self.at(f"waits for the data of step {step + 1}")

    def at(self, place: str, patience: float = 0.0) -> None:
        """The loop has come to a place, where it may stay for so many seconds (0: the usual patience)."""
        if self._watch is not None:
            self._watch.at(place, patience)

    def agree(self, fault: bool, now: bool) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether any has met a fault: the same answer in all of them.

        The answer is about the step before, unless ``now``: each process hands in its word after every step and takes
        the answer after the next one, when it has long arrived. So nothing waits, and no GPU is asked: words are four
        bytes on the CPU (gloo).

        Args:
            fault: of this process.
            now: wait for the answer about this step.
        """
        stop = bool(self.signals.received)
        if stop and self._watch is not None:
            self._watch.tell_stop(self.signals.received)
        word = FAULT if fault else STOP if stop else GO
        if self._group is None:
            return word == STOP, word == FAULT
        answer = self._answer()
        flags = torch.tensor([word == STOP, word == FAULT], dtype=torch.int32)
        self._asked = dist.all_reduce(flags, dist.ReduceOp.MAX, self._group, async_op=True), flags
        if now:
            answer = answer | self._answer()
        return bool(answer[0]), bool(answer[1])

    def _answer(self) -> torch.Tensor:
        """The answer to the last word, once."""
        if self._asked is None:
            return torch.zeros(2, dtype=torch.int32)
        work, flags = self._asked
        self._asked = None
        work.wait()
        return flags

    def raise_stop(self, step: int) -> NoReturn:
        """Leave, with all work saved; all processes come here together, so that a launcher takes none for crashed.

        Raises:
            Stopped: always.
        """
        self.at("waits for the others to stop", UNHURRIED)
        self._join()
        name = self.signals.received or "a signal to another process"
        if is_main():
            print(f"stopped by {name} after step {step}; --resume auto goes on from there", file=sys.stderr)
        raise Stopped(name, step)

    def raise_fault(self, meter: Meter) -> NoReturn:
        """Name the first step that is not finite, and save what it was computed from; all processes come here together.

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
        """Save the batches of a step; where they are, for the message."""
        if self.folder is None or not fault.batches:
            return ""
        path = self.folder / f"not_finite_step_{fault.number:06d}_process_{rank()}.pt"
        try:
            save_batches(path, fault, process=rank(), processes=world_size(), **self.about)
        except UserError as error:
            return f"its batch is lost ({error}); "
        return f"its batch is in {path}; "

    @contextmanager
    def uncounted(self, place: str) -> Iterator[None]:
        """A part of the run that a signal may break off anywhere, as all is saved: a validation.

        Raises:
            Stopped: it was broken off.
        """
        self.at(place, UNHURRIED)
        try:
            yield
        except Exception as error:
            if self.signals.received and not isinstance(error, UserError):  # others have left already
                raise Stopped(self.signals.received) from error
            raise

    def pass_on(self) -> None:
        """A sign of life within ``uncounted``.

        Raises:
            Stopped: a signal has come, to this process or to another one.
        """
        if self._watch is None:
            return
        self._watch.move()
        if self.signals.received:
            self._watch.tell_stop(self.signals.received)
            raise Stopped(self.signals.received)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave(error)
        finally:
            self.signals.__exit__(kind, error, trace)

    def _leave(self, error: BaseException | None) -> None:
        if self._watch is None:
            return
        if error is None:
            try:
                self.at("waits for the others to finish", UNHURRIED)
                self._join()
            except RuntimeError as lost:
                self._leave_failing(lost)
                raise
        elif isinstance(error, Stopped):
            self._watch.tell_stop(error.signal)
        else:
            self._leave_failing(error)
            return
        self._watch.leave()

    def _leave_failing(self, error: BaseException) -> None:
        """Tell the others why this process ends; raise a clearer error where there is one."""
        assert self._watch is not None
        own = _lost_worker(error)
        told = own or self._watch.explain(error)
        reason = str(own or error).strip() or type(error).__name__
        self._watch.fail("" if told and not own else reason.splitlines()[0])
        if told:
            raise told from error

    def _join(self) -> None:
        """Wait for all processes, and for the words that are still on their way."""
        if self._group is not None:
            self._answer()
            dist.barrier(self._group)


def _lost_worker(error: BaseException) -> RunError | None:
    """The sentence for a process that loads data and was killed, which PyTorch reports at any place."""
    text = str(error)
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in text:
        return None
    return RunError(
        f"a process that loads data has ended ({text.splitlines()[0].rstrip('. ')}); most often memory was short: take "
        "fewer --num_workers, or more shared memory (/dev/shm)"
    )
