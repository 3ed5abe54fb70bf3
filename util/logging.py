"""What a training run tells: a progress line, JSON lines and TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from util.errors import UserError
from util.io import atomic_path


class RunLog:
    """Logs of a run; only the main process writes. What an earlier run logged after ``first_step`` is cut off.

    Args:
        folder: gets ``log.jsonl`` and ``tensorboard/``.
        total_steps: length of the whole run, for the time left.
        first_step: where a resumed run goes on.
        active: False writes and shows nothing.

    Raises:
        UserError: the logs cannot be written.
    """

    def __init__(self, folder: Path, total_steps: int, first_step: int, active: bool = True) -> None:
        self.active = active
        self.started = time.monotonic()
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training writes one

        try:
            folder.mkdir(parents=True, exist_ok=True)
            _cut(folder / "log.jsonl", first_step)
            self.file = (folder / "log.jsonl").open("a", encoding="utf-8")
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        except OSError as error:
            raise UserError(
                f"cannot write the logs of {folder}: {error.strerror or error} ({error.filename}); choose another "
                "output folder"
            ) from error
        self.bar = tqdm(
            total=total_steps, initial=first_step, unit="step", desc="train", dynamic_ncols=True, file=sys.stdout
        )

    def advance(self) -> None:
        """One step is done."""
        if self.active:
            self.bar.update()

    def write(self, step: int, values: dict[str, float], **labels: Any) -> None:
        """Log numbers of a step: all of them to the files, the loss and the rate to the progress line."""
        if not self.active:
            return
        record = {"step": step, **labels, **values, "seconds": round(time.monotonic() - self.started, 2)}
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        shown = {name: f"{values[name]:.3g}" for name in ("loss", "lr") if name in values}
        self.bar.set_postfix(shown)

    def say(self, sentence: str) -> None:
        """Print a line above the progress bar."""
        if self.active:
            self.bar.write(sentence)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self.bar.close()
            self.board.close()
            self.file.close()


def _cut(path: Path, last_step: int) -> None:
    """Keep the lines of steps up to ``last_step``; a line that a killed run left unfinished goes too."""
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
