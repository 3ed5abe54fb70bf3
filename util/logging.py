"""What a training run tells: a progress line, JSON lines, TensorBoard and, where it is asked for, wandb."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

from util.config import Config
from util.distributed import is_main, world_size
from util.drawing import Picture
from util.errors import UserError
from util.log_writers import JsonLines, LogWriter, TensorBoard
from util.throughput import Throughput, duration, memory_gib

Item = TypeVar("Item")

SAMPLE = "sample"  # name of the pictures


class RunLog:
    """Logs of a run; only the main process writes. What an earlier run logged after ``first_step`` is cut off.

    Logging never ends a run: where the disk is full, it says so once, and training goes on to its next checkpoint.

    Args:
        folder: gets ``log.jsonl`` and ``tensorboard/``.
        total_steps: length of the whole run, for the time left.
        first_step: where a resumed run goes on.
        active: False writes and shows nothing.
        processes: that train together, each on as many clips.
        writers: further places to log to; they are closed with this one.
        sample: draws a clip that was just trained on, or gives None where there is none.
        sample_every: steps between two such pictures; 0: none.

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
                f"cannot write the logs of {folder}: {error.strerror or error} ({error.filename}); choose another "
                "output folder"
            ) from error
        self.folder = folder
        self.sample, self.sample_every = sample, sample_every
        self.last_sample = first_step
        self.full = False
        self.bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            desc="train",
            dynamic_ncols=True,
            file=sys.stdout,
            disable=not sys.stdout.isatty(),  # in a file, the lines alone
        )

    @property
    def step(self) -> int:
        """The last step that is done."""
        return self.speed.step

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; the time that each takes to come is logged as waiting."""
        return self.speed.timed(batches)

    def advance(self, clips: int = 0, frames: int = 0) -> None:
        """One step is done, of so many clips and frames in this process."""
        self.speed.add(clips, frames)
        if self.active:
            self.bar.update()

    def write(self, step: int, values: dict[str, float], **labels: Any) -> None:
        """Log numbers of a step, with the run's speed and memory; all of them to the files, the main ones as a line.

        A picture is drawn where one is due; that waits for the device, which reading the loss has done already.
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
            with _NoRoom(self):
                writer.numbers(step, labels, values)
                if picture is not None:
                    writer.picture(step, SAMPLE, picture)

    def say(self, sentence: str) -> None:
        """Print a line, above the progress bar where there is one."""
        if self.active:
            self.bar.write(sentence)
            sys.stdout.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self.bar.close()
            for writer in self.writers:
                with _NoRoom(self):
                    writer.close()


def open_log(
    cfg: Config, total_steps: int, first_step: int, writers: Sequence[LogWriter], sample: Callable[[], Picture | None]
) -> RunLog:
    """The log of a run with these options, which only the main process writes.

    Args:
        cfg: reads ``output_dir`` and ``sample_every``.
        total_steps, first_step, writers, sample: as ``RunLog`` takes them.

    Raises:
        UserError: the logs cannot be written.
    """
    return RunLog(
        Path(cfg.output_dir),
        total_steps,
        first_step,
        is_main(),
        processes=world_size(),
        writers=writers,
        sample=sample,
        sample_every=cfg.sample_every,
    )


class _NoRoom:
    """Keeps a run from ending because its log cannot be written."""

    def __init__(self, log: RunLog) -> None:
        self.log = log

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, OSError):
            return False
        if not self.log.full:
            self.log.full = True
            reason = error.strerror or error
            self.log.say(f"note: the logs in {self.log.folder} cannot be written ({reason}); the run goes on without")
        return True


def progress_line(step: int, total_steps: int, values: Mapping[str, float], labels: Mapping[str, Any]) -> str:
    """What a log line shows: of the losses, those of the last layer.

    Args:
        values: as ``RunLog.write`` gives them; what is missing is left out.
    """
    parts = [f"step {step}/{total_steps}", *(f"{name} {value}" for name, value in labels.items())]
    if "loss" in values:
        terms = {name.removeprefix("loss_"): value for name, value in values.items() if name.startswith("loss_")}
        last = ", ".join(f"{name} {value:.3g}" for name, value in terms.items() if not name[-1].isdigit())
        parts.append(f"loss {values['loss']:.4g}" + (f" ({last})" if last else ""))
    known = {"loss", "lr", "grad_norm", "clips_per_second", "frames_per_second", "waiting", "eta_seconds", "memory_gib"}
    parts += [
        f"{name} {value:.4g}" for name, value in values.items() if name not in known and not name.startswith("loss_")
    ]
    if "grad_norm" in values:
        parts.append(f"gradient {values['grad_norm']:.3g}")
    if "lr" in values:
        parts.append(f"lr {values['lr']:.3g}")
    if "clips_per_second" in values:
        parts.append(f"{values['clips_per_second']:.3g} clips/s, {values['frames_per_second']:.3g} frames/s")
        parts.append(f"waiting {100 * values['waiting']:.0f} %")
    if "memory_gib" in values:
        parts.append(f"{values['memory_gib']:.2f} GiB")
    if "eta_seconds" in values:
        parts.append(f"{duration(values['eta_seconds'])} left")
    return " · ".join(parts)
