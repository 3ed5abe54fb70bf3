"""The records of a run: its log (a line, JSON lines, TensorBoard, wandb), ``run.json`` and ``results.json``."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from util.device import device_name
from util.distributed import average_over_processes, gather_objects
from util.drawing import Picture
from util.errors import REQUEUE_STATUS, RunError, UserError, first_line, printable
from util.files import ROOT, atomic_path, library_versions, project_version, write_json

Item = TypeVar("Item")

GRADIENT = "grad_norm"
PART_OF_SET = re.compile(r"\.(kind|anno_\d)\.")
"""Found in the names of validation metrics of a kind of sentences, or of an annotation, which the files alone have."""
RUN_FILE = "run.json"
GIT_SECONDS = 20  # git may be slow on a network disk; a run does not wait for it
MOST_FILES = 100  # changed files that run.json lists
ETA_LINES = 20  # log lines over which the remaining time is estimated
ENVIRONMENT = (
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NNODES", "RDZV_ENDPOINT"),
    *("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
)


class RunLog:
    """The log of a run. Lines that an earlier session logged after ``first_step`` are removed.

    Logging never ends a run: if its files cannot be written, it says so once, and training continues.

    Args:
        folder: gets ``log.jsonl`` and ``tensorboard/``.
        total_steps: length of the whole run, for the remaining time.
        first_step: number of steps done before this session.
        active: False writes and shows nothing (in every process but the main one).
        processes: number of processes that train together.
        writers: further places to log to; they are closed with the log.
        sample: draws a clip of the last step, or returns None.
        sample_every: steps between two such pictures; 0: none.

    Attributes:
        speed: counts the steps and the time spent waiting for batches.

    Raises:
        UserError: the logs cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        first_step: int,
        active: bool = True,
        *,
        processes: int = 1,
        writers: Sequence[LogWriter] = (),
        sample: Callable[[], Picture | None] = lambda: None,
        sample_every: int = 0,
    ) -> None:
        self.active = active
        self.speed = Throughput(total_steps, first_step, processes)
        if not active:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.writers: list[LogWriter] = [
                JsonLines(folder / "log.jsonl", first_step),
                TensorBoard(folder / "tensorboard", first_step),
                *writers,
            ]
        except OSError as error:
            raise UserError(
                f"cannot write the logs of {folder}: {error.strerror or error} ({error.filename or 'tensorboard'}); "
                "choose another output folder"
            ) from error
        self.folder = folder
        self.sample, self.sample_every = sample, sample_every
        self.last_sample = first_step
        self.unwritable = False
        self.bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            desc="train",
            dynamic_ncols=True,
            file=sys.stdout,
            disable=not sys.stdout.isatty(),  # in a file, the lines alone
        )

    def advance(self, clips: int = 0, frames: int = 0) -> None:
        """Count one step of this process."""
        self.speed.add(clips, frames)
        if self.active:
            self.bar.update()

    def write(self, step: int, values: dict[str, float], **labels: Any) -> None:
        """Log the values of a step with the speed and memory of the run: all of them to files, the main ones as a line.

        A picture is drawn when one is due. That waits for the device, as reading the loss has already done.
        """
        if not self.active:
            return
        speed = self.speed.flush()
        values = {**values, **speed, **(memory_gib() if speed else {})}
        self.say(progress_line(step, self.speed.total_steps, values, labels))
        picture = None
        if self.sample_every and step // self.sample_every > self.last_sample // self.sample_every:
            self.last_sample = step
            picture = self.sample()
        for writer in self.writers:
            with self._surviving():
                writer.numbers(step, labels, values)
                if picture is not None:
                    writer.picture(step, "sample", picture)

    def say(self, sentence: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self.active:
            self.bar.write(printable(sentence))
            sys.stdout.flush()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Keep the run alive if its log cannot be written."""
        try:
            yield
        except OSError as error:
            if not self.unwritable:
                self.unwritable = True
                reason = error.strerror or error
                self.say(
                    f"note: the logs in {self.folder} cannot be written ({reason}); the run continues without them"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.bar.close()
            for writer in self.writers:
                with self._surviving():
                    writer.close()


def progress_line(step: int, total_steps: int, values: Mapping[str, float], labels: Mapping[str, Any]) -> str:
    """Format a log line; of the loss terms, it shows those of the last decoder layer.

    Args:
        step: number of steps done.
        total_steps: length of the run.
        values: as ``RunLog.write`` takes them; missing ones are left out.
        labels: further values, shown as they are.
    """
    parts = [f"step {step}/{total_steps}", *(f"{name} {value}" for name, value in labels.items())]
    if "loss" in values:
        terms = {name.removeprefix("loss_"): value for name, value in values.items() if name.startswith("loss_")}
        last = ", ".join(f"{name} {value:.3g}" for name, value in terms.items() if not name[-1].isdigit())
        parts.append(f"loss {values['loss']:.4g}" + (f" ({last})" if last else ""))
    known = {"loss", "lr", "grad_norm", "clips_per_second", "frames_per_second", "waiting", "eta_seconds", "memory_gib"}
    parts += [
        f"{name} {value:.4g}"
        for name, value in values.items()
        if name not in known and name[:5] != "loss_" and not PART_OF_SET.search(name)
    ]
    parts += [f"{word} {values[key]:.3g}" for key, word in (("grad_norm", "gradient"), ("lr", "lr")) if key in values]
    if "clips_per_second" in values:
        parts.append(f"{values['clips_per_second']:.3g} clips/s, {values['frames_per_second']:.3g} frames/s")
        parts.append(f"waiting {100 * values['waiting']:.0f} %")
    if "memory_gib" in values:
        parts.append(f"{values['memory_gib']:.2f} GiB")
    if "eta_seconds" in values:
        parts.append(f"{tqdm.format_interval(values['eta_seconds'])} left")
    return " · ".join(parts)


class LogWriter:
    """A place that a run is logged to."""

    def numbers(self, step: int, labels: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Write the numbers of a step."""

    def picture(self, step: int, name: str, picture: Picture) -> None:
        """Write a picture, uint8 RGB ``[H, W, 3]``."""

    def close(self) -> None:
        """Flush and close."""


class JsonLines(LogWriter):
    """``log.jsonl``: one JSON object per log line.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        _cut(path, first_step)
        self.file = path.open("a", encoding="utf-8")
        self.started = time.monotonic()

    def numbers(self, step: int, labels: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Write a line, with the seconds since this session began."""
        record = {"step": step, **labels, **values, "seconds": round(time.monotonic() - self.started, 2)}
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoard(LogWriter):
    """``tensorboard/``: every number as a curve, and the pictures.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        threading.excepthook = _report_thread
        self.board = SummaryWriter(str(folder), purge_step=first_step + 1)

    def numbers(self, step: int, labels: Mapping[str, Any], values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        self.board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self.board.close()


_report_any_thread = threading.excepthook


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Report the error of a thread, but for TensorBoard's, which raises it again at the next call."""
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        _report_any_thread(failure)


class Wandb(LogWriter):
    """A run at Weights & Biases; a resumed run keeps its id. WANDB_PROJECT, WANDB_MODE, … are read by the library.

    Args:
        folder: of the run; the library writes its files there.
        run_id: the same for all sessions of a run.
        config: all options.

    Raises:
        UserError: the library is missing, or cannot start.
    """

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "--wandb needs the library wandb, which is not installed; install it into .venv with pip, or leave out "
                "the flag"
            ) from error
        self.wandb = wandb
        try:
            self.run = wandb.init(
                dir=str(folder), id=run_id, name=folder.resolve().name, config=dict(config), resume="allow"
            )
        except Exception as error:  # the library raises many kinds
            raise UserError(
                f"wandb cannot start: {first_line(error)}; log in, set WANDB_MODE=offline, or leave out --wandb"
            ) from error

    def numbers(self, step: int, labels: Mapping[str, Any], values: Mapping[str, float]) -> None:
        self.run.log({**labels, **values}, step=step)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        self.run.log({name: self.wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Wait until everything is sent, or written when offline."""
        self.run.finish()


def _cut(path: Path, last_step: int) -> None:
    """Keep the lines of steps up to ``last_step``, without a line that a killed run left unfinished."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] > last_step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


class Throughput:
    """Clips and frames per second since the last log line, the share of the time spent waiting, and the remaining time.

    Args:
        total_steps: length of the whole run.
        first_step: number of steps done before this session.
        processes: number of processes that train together.
    """

    def __init__(self, total_steps: int, first_step: int, processes: int = 1) -> None:
        self.total_steps = total_steps
        self.step = first_step
        self.processes = processes
        self.marks = deque([(time.monotonic(), first_step)], maxlen=ETA_LINES)  # time and step of the last lines
        self._clear()

    def _clear(self) -> None:
        self.since = time.monotonic()
        self.clips = self.frames = 0
        self.waited = 0.0

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the same items, and count the time until each arrives as waiting."""
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
        """Count one step of this process."""
        self.step += 1
        self.clips += clips
        self.frames += frames

    def flush(self) -> dict[str, float]:
        """The speed of the steps since the last flush; empty where there was none, as after a validation.

        Returns:
            ``clips_per_second`` and ``frames_per_second`` of all processes, ``waiting`` (0…1: the share of the time
            spent waiting for a batch) and ``eta_seconds``.
        """
        now = time.monotonic()
        seconds = now - self.since
        steps = self.step - self.marks[-1][1]
        if not steps:
            self._clear()  # the time of a validation is not that of steps
        if not steps or seconds <= 0:
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
    """``memory_gib``: the peak of PyTorch's GPU memory, or without a GPU the resident memory of the process."""
    on_gpu = torch.cuda.is_initialized()  # the allocator knows the number: no synchronisation
    taken = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    return {"memory_gib": round(taken / 2**30, 3)}


@dataclass
class Step:
    """The loss terms of one optimiser step, copied to the CPU beside the computation.

    Attributes:
        number: of the step, from 1.
        clips: "video/expression" of each.
        names: of the terms.
        values: float32 ``[2, terms]``, on the CPU: of this process, and means over all processes; valid when
            ``ready``.
        copied: on CUDA, the event that follows the copy.
        batches: of the step, as dataclasses, kept until it is known to be finite.
    """

    number: int
    clips: list[str]
    names: list[str]
    values: Tensor
    copied: torch.cuda.Event | None
    batches: Sequence[Any]

    def ready(self, wait: bool) -> bool:
        """Whether the values have arrived."""
        if self.copied is not None and wait:
            self.copied.synchronize()
        return self.copied is None or self.copied.query()

    @property
    def terms(self) -> dict[str, float]:
        """By name."""
        return dict(zip(self.names, self.values[0].tolist(), strict=True))

    @property
    def own_fault(self) -> bool:
        """Whether a loss is not finite; the gradient alone may be so because of another process."""
        return not all(math.isfinite(value) for name, value in self.terms.items() if name != GRADIENT)

    def describe(self) -> str:
        """Name what is not finite, where, and all terms."""
        what = "loss" if self.own_fault else "gradient"
        terms = ", ".join(f"{name} {value:g}" for name, value in self.terms.items())
        return f"the {what} is not finite at step {self.number}, clips {'; '.join(self.clips)}: {terms}"


@dataclass
class Meter:
    """Loss terms of the steps since the last log line; no step waits for them."""

    steps: list[Step] = field(default_factory=list)
    checked: int = 0
    """Number of steps known to be finite."""

    def add(self, step: int, clips: list[str], terms: dict[str, Tensor], batches: Sequence[Any] = ()) -> None:
        """Add the terms of a step."""
        own = torch.stack([value.detach().float() for value in terms.values()])
        values = torch.stack([own, average_over_processes(own)])
        copied = None
        if values.device.type == "cuda":
            host = torch.empty_like(values, device="cpu", pin_memory=True)
            host.copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            values = host
        self.steps.append(Step(step, clips, list(terms), values, copied, batches))

    def fault(self, wait: bool = False) -> Step | None:
        """The first step known to have a non-finite term, or None.

        Args:
            wait: for the values of all steps; otherwise only those that have arrived are checked.
        """
        while self.checked < len(self.steps):
            step = self.steps[self.checked]
            if not step.ready(wait):
                return None
            if not step.values[0].isfinite().all():
                return step
            step.batches = ()
            self.checked += 1
        return None

    def flush(self) -> dict[str, float]:
        """Means of all terms over the steps since the last flush, and over processes.

        Raises:
            RunError: a term is not finite; the message names step, clips and terms.
        """
        if not self.steps:
            return {}
        fault = self.fault(wait=True)
        if fault:
            raise RunError(fault.describe())
        means = torch.stack([step.values[1] for step in self.steps]).mean(0).tolist()
        names = self.steps[-1].names
        self.steps.clear()
        self.checked = 0
        return dict(zip(names, means, strict=True))


class RunSummary:
    """``run.json``: how each session of a run was started, and how it ended. A resumed run keeps its id.

    A session whose ``state`` is "running" is at work, or was killed. Otherwise ``state`` is "finished", "stopped" (by a
    signal; it can be resumed) or "failed", ``step`` is the number of steps done, and ``message`` says why it ended.
    Nothing is written before ``begin``.

    Args:
        folder: for ``run.json``, and the options as ``config.json``.
        active: False writes nothing.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self.folder = folder
        self.active = active
        self.content = _read(folder / RUN_FILE) if active else {}
        self.session: dict[str, Any] = {}
        self.last_step: Callable[[], int] = lambda: 0
        """Returns the number of steps done."""

    @property
    def run_id(self) -> str:
        """The same in all sessions of the run; empty where not active."""
        return self.content.get("id", "")

    def begin(self, config: Mapping[str, Any], device: torch.device, first_step: int, **facts: Any) -> None:
        """Record that a session has begun; all processes call this together.

        Args:
            config: all options, as plain values.
            device: of this process.
            first_step: number of steps done before; 0: a new run, which gets a new id.
            facts: further plain values.

        Raises:
            UserError: a file cannot be written.
        """
        devices = gather_objects(f"{socket.gethostname()}: {device_name(device)}")
        if not self.active:
            return
        write_json(self.folder / "config.json", config)
        if not first_step:
            self.content["id"] = _new_id()
        self.last_step = lambda: first_step
        self.session = {"state": "running", "started": _now(), "processes": len(devices), "devices": Counter(devices)}
        self.session |= {**session_facts(), "first_step": first_step, **facts, "config": config}
        self.content["sessions"].append(self.session)
        write_json(self.folder / RUN_FILE, self.content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self.session:
            return
        self.session |= {**how_it_ended(error), "ended": _now(), "step": self.last_step()}
        try:
            write_json(self.folder / RUN_FILE, self.content)
        except UserError as unwritable:  # the reason why the run ended matters more
            print(f"note: {printable(unwritable)}", file=sys.stderr)


def how_it_ended(error: BaseException | None) -> dict[str, str]:
    """``state`` and ``message`` of a session that ended with ``error`` (None: normally)."""
    if error is None:
        return {"state": "finished", "message": ""}
    if isinstance(error, SystemExit) and error.code == REQUEUE_STATUS:
        return {"state": "stopped", "message": f"by {getattr(error, 'signal', '') or 'a signal'}"}
    if isinstance(error, KeyboardInterrupt):
        return {"state": "stopped", "message": "by SIGINT, before a step could be saved"}
    if isinstance(error, (UserError, RunError)):
        return {"state": "failed", "message": str(error)}
    return {"state": "failed", "message": f"{type(error).__name__}: {error}"}


def session_facts() -> dict[str, Any]:
    """Command line, machine, versions, and the state of the code."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "versions": {"project": project_version(), **library_versions(), "cuda": torch.version.cuda},
        "git": git_state(ROOT),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and changed files of a checkout; None where the folder is not one, or git is missing."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL
        ).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != folder.resolve():
            return None  # the code was copied into another project
        changed = [line.strip() for line in git("status", "--porcelain").splitlines()]
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD").strip(),
            "changed": len(changed),
            "changed_files": changed[:MOST_FILES],
        }
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _read(path: Path) -> dict[str, Any]:
    """The record of earlier sessions; a new one where the file is missing or not a record."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content["id"], str) and isinstance(content["sessions"], list):
            return content
    return {"id": _new_id(), "sessions": []}


def _new_id() -> str:
    return uuid.uuid4().hex[:12]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_results(
    path: str | Path,
    metrics: Mapping[str, Any],
    counts: Mapping[str, Any],
    cfg: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write ``results.json``: what an evaluation found, and everything that it depends on.

    Args:
        path: the file.
        metrics: name → value, percentages 0…100; for a mixture, dataset → metrics. Non-finite values become null.
        counts: name → number of items scored; for a mixture, dataset → counts.
        cfg: all options, as plain values; ``seed`` among them.
        about: further facts (checkpoint, device).

    Raises:
        UserError: the file cannot be written.
    """
    content = {
        "metrics": _finite(metrics),
        "counts": counts,
        "seed": cfg["seed"],
        "about": about or {},
        "versions": {"project": project_version(), **library_versions()},
        "config": cfg,
    }
    write_json(path, content)


def _finite(value: Any) -> Any:
    """``value`` with None in place of numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return value if math.isfinite(value) else None
