"""Notices a run that no longer advances, says which process is the cause, and ends this one.

In every process a thread tells the others, through a key-value store, that it lives, where its main thread is and
whether it has failed. It needs neither the main thread nor a collective: those are what hangs.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from util.distributed import rank, world_size
from util.errors import REQUEUE_STATUS, RunError

ROOT = Path(__file__).resolve().parents[1]
PERIOD = 1.0  # seconds between two looks
FAREWELL = 10.0  # seconds that processes get to leave by themselves when one of them has failed
LOST = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "nccl", "gloo")
"""What errors of collectives have in them when another process is gone."""


@dataclass
class Sign:
    """What a process tells the others."""

    beat: int = 0
    """Counts the looks of its thread."""
    moves: int = 0
    """Counts the places that its main thread has come to."""
    place: str = "prepares the training"
    patience: float = 0.0
    """Seconds that it may stay there."""
    failed: str = ""
    """Why it ends."""
    left: bool = False
    """It has ended as it should."""
    stop: str = ""
    """The signal that asked it to end."""


class Watch:
    """The thread, and what it knows of all processes.

    Args:
        patience: seconds without any progress after which the run ends.
        asked: called with the name of a signal that another process has got.
        end: how this process is ended; it does not return.
    """

    def __init__(
        self, patience: float, asked: Callable[[str], None] = lambda name: None, end: Callable[[int], Any] = os._exit
    ) -> None:
        self.patience, self.asked, self.end = patience, asked, end
        self.period = min(PERIOD, patience / 5)
        self.own = Sign(patience=patience)
        self.signs = [Sign(patience=patience) for _ in range(world_size())]
        self._store = _open_store(max(self.period, min(10.0, patience / 3))) if world_size() > 1 else None
        self._deaf = False
        self._seen: list[float] = []
        self._moved = self._failed = self._deadline = 0.0  # times; 0: it has not happened
        self._lock = threading.Lock()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._tell()

    def start(self) -> None:
        """Begin to watch; every process must have made its own ``Watch`` before."""
        self._moved = time.monotonic()
        self._seen = [self._moved] * len(self.signs)
        self._thread.start()

    def at(self, place: str, patience: float = 0.0) -> None:
        """The main thread has come to a place ("computes step 7"), where it may stay for so many seconds (0: usual)."""
        self.own.place, self.own.patience = place, max(self.patience, patience)
        self.move()

    def move(self) -> None:
        """The main thread is at work where it was."""
        self.own.moves += 1

    def tell_stop(self, name: str) -> None:
        """Let the other processes know of a signal that this one has got."""
        self.own.stop = name

    def leave(self) -> None:
        """This process ends as it should."""
        self.own.left = True
        self._end_thread()
        self._tell()

    def _end_thread(self) -> None:
        self._leaving.set()
        self._thread.join()

    def fail(self, reason: str) -> None:
        """This process ends by an error: the others are told, and it is ended for good if a collective holds it.

        Args:
            reason: a sentence; empty: the cause is in another process, which has told it or is gone.
        """
        if len(self.signs) == 1:
            self.leave()
            return
        with self._lock:
            self.own.failed, self.own.left = reason, not reason
            self._deadline = time.monotonic() + 3 * FAREWELL
            self._tell()
        atexit.register(self._end_thread)  # a thread must not outlive the interpreter in the middle of a call
        if rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(3 * self.period)  # this process holds the store, in which the others look for the reason

    def explain(self, error: BaseException) -> RunError | None:
        """The sentence for an error that another process has caused; None where it is this process's own."""
        text = str(error).lower()
        known = isinstance(error, RuntimeError) and any(word in text for word in LOST)
        if len(self.signs) == 1 or not known or isinstance(error, RunError):
            return None
        begun = time.monotonic()
        with self._lock:  # the thread will not end the process meanwhile
            while True:
                self._look()
                cause = self._failure() or self._gone(5 * self.period)
                if cause or time.monotonic() - begun > 10 * self.period:
                    break
                time.sleep(self.period / 2)
        first = str(error).strip().splitlines()[0]
        return RunError(cause or f"the connection to another process is lost while this one {self.own.place}: {first}")

    def _run(self) -> None:
        before = time.monotonic()
        while not self._leaving.wait(self.period):
            with self._lock:
                halt = time.monotonic() - before
                if halt > 5 * self.period + 1:  # this whole process was halted; that is no fault of the others
                    self._moved += halt
                    self._seen = [seen + halt for seen in self._seen]
                if not self._deadline:
                    self._look()
                before = time.monotonic()
                verdict = self._verdict(before)
            if verdict:
                print(f"error: {verdict}", file=sys.stderr, flush=True)
                self.end(REQUEUE_STATUS if verdict == self._stopped() else 1)

    def _verdict(self, now: float) -> str:
        """Why the process must end now; empty: it need not."""
        if self._deadline:
            return "this process could not leave by itself" if now > self._deadline else ""
        failure = self._failure() or self._stopped()  # the latter in the midst of a validation
        if failure:  # the main thread will mostly notice by itself, and leave in order
            self._failed = self._failed or now
            return failure if now - self._failed > FAREWELL else ""
        return self._gone(self.patience) or self._stalled(now)

    def _failure(self) -> str:
        """What the first process says that has failed by itself."""
        for number, sign in enumerate(self.signs):
            if sign.failed and number != rank():
                return f"process {number} has failed: {sign.failed}"
        return ""

    def _stopped(self) -> str:
        """Whether another process has been stopped, and has left this one alone."""
        for number, sign in enumerate(self.signs):
            if sign.left and sign.stop and number != rank():
                return f"process {number} was stopped by {sign.stop}"
        return ""

    def _gone(self, silence: float) -> str:
        """Which processes have not been heard of for so many seconds."""
        now = time.monotonic()
        ages = {number: now - seen for number, seen in enumerate(self._seen) if number != rank()}
        gone = [number for number, age in ages.items() if age > silence and not self.signs[number].left]
        if not gone:
            return ""
        last = f"last heard of {ages[gone[0]]:.0f} s ago; this one, {rank()}, {self.own.place}"
        if self._deaf:
            return f"the processes can no longer be reached, as process 0 or its launcher is gone or hangs: {last}"
        names = " and ".join(map(str, gone))
        return f"process {names} of 0 to {len(self.signs) - 1} is gone or hangs: {last}"

    def _stalled(self, now: float) -> str:
        """Where all processes are, if none has come to another place for longer than it may."""
        patience = max(sign.patience for sign in (*self.signs, self.own) if not sign.left)
        if now - self._moved <= patience:
            return ""
        places: dict[str, list[str]] = {}
        for number, sign in enumerate(self.signs):
            places.setdefault(sign.place, []).append(str(number))
        where = "; ".join(
            f"{'process' if len(ids) == 1 else 'each of processes'} {', '.join(ids)} {place}"
            for place, ids in places.items()
        )
        return (
            f"nothing has moved for {now - self._moved:.0f} s (--patience_minutes): {where}; process {rank()} is at "
            f"{_position()}"
        )

    def _look(self) -> None:
        """Tell the others, and hear of them."""
        self.own.beat += 1
        self._tell()
        for number, sign in enumerate(self._hear()):
            known, now = self.signs[number], time.monotonic()
            if sign.beat != known.beat:
                self._seen[number] = now
            if sign.moves != known.moves:
                self._moved = now
            if sign.stop and number != rank():
                self.asked(sign.stop)
            self.signs[number] = sign

    def _tell(self) -> None:
        if self._store is None:
            return
        try:
            self._store.set(str(rank()), json.dumps(asdict(self.own)))
        except RuntimeError:
            self._deaf = True

    def _hear(self) -> list[Sign]:
        if self._store is None:
            return [Sign(**asdict(self.own))]
        try:
            texts = self._store.multi_get([str(number) for number in range(len(self.signs))])
        except RuntimeError:
            self._deaf = True
            return self.signs
        self._deaf = False
        return [Sign(**json.loads(text)) for text in texts]


def _open_store(seconds: float) -> dist.Store:
    """A connection of its own to the store by which the processes have met."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds))
    run, attempt = (os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
    return dist.PrefixStore(f"watch/{run}/{attempt}", store)


def _position() -> str:
    """Where the main thread is: the innermost line of this project."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}, line {frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "a line of a library"
