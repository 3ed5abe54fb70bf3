"""Where a run's numbers and pictures go: JSON lines, TensorBoard, and wandb where it is asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from util.config import Config, config_dict
from util.distributed import is_main
from util.drawing import Picture
from util.errors import UserError
from util.io import atomic_path


class LogWriter(Protocol):
    """A place that a run is logged to."""

    def numbers(self, step: int, labels: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Write the numbers of a step."""

    def picture(self, step: int, name: str, picture: Picture) -> None:
        """Write a picture, uint8 RGB ``[H, W, 3]``."""

    def close(self) -> None:
        """Write what is still to be written."""


class JsonLines:
    """``log.jsonl``: one line per log line; what an earlier run wrote after ``first_step`` is cut off.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        _cut(path, first_step)
        self.file = path.open("a", encoding="utf-8")
        self.started = time.monotonic()

    def numbers(self, step: int, labels: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Write a line, with the seconds since this session began; it is on its way to the disk when this returns."""
        record = {"step": step, **labels, **values, "seconds": round(time.monotonic() - self.started, 2)}
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def picture(self, step: int, name: str, picture: Picture) -> None:
        """Pictures do not go into lines."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TensorBoard:
    """``tensorboard/``: every number as a curve, and the pictures.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training writes one

        self.board = SummaryWriter(str(folder), purge_step=first_step + 1)

    def numbers(self, step: int, labels: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Add a point to every curve."""
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        """Add a picture."""
        self.board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still in memory."""
        self.board.close()


class Wandb:
    """A run at Weights & Biases; a resumed one goes on under the same id. WANDB_PROJECT, WANDB_MODE, … are the user's.

    Args:
        folder: of the run; wandb keeps its files in it.
        run_id: the same for all sessions of a run.
        config: all options.

    Raises:
        UserError: the library is missing, or does not start.
    """

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "--wandb needs the library wandb, which is not installed; pip install wandb into "
                ".venv, or leave the flag out"
            ) from error
        self.wandb = wandb
        try:
            self.run = wandb.init(
                dir=str(folder), id=run_id, name=folder.resolve().name, config=dict(config), resume="allow"
            )
        except Exception as error:  # the library's own kinds, of the network, the key or the disk
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise UserError(
                f"wandb does not start: {reason}; log in, set WANDB_MODE=offline, or leave --wandb out"
            ) from error

    def numbers(self, step: int, labels: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        self.run.log({**labels, **values}, step=step)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        """Log a picture."""
        self.run.log({name: self.wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Wait until everything is sent, or offline: written."""
        self.run.finish()


def further_writers(cfg: Config, run_id: str) -> list[LogWriter]:
    """What the options ask for beside the files of the output folder; none in other processes than the main one.

    Args:
        cfg: reads ``wandb`` and ``output_dir``.
        run_id: the same for all sessions of a run.

    Raises:
        UserError: wandb is missing, or does not start.
    """
    return [Wandb(Path(cfg.output_dir), run_id, config_dict(cfg))] if cfg.wandb and is_main() else []


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
