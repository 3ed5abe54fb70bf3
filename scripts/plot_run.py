"""Draw the curves of one or several training runs from their ``log.jsonl``, while they run or later.

python -m scripts.plot_run runs/vdit runs/hcd --keys loss loss_dice --out runs/curves.png
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.errors import Parser, UserError, nearest, run_cli
from util.visualisation import Curve, plot_curves

LOG = "log.jsonl"
KEYS = ("loss", "loss_dice", "loss_mask", "loss_ce", "loss_giou", "lr")
LABELS = {
    "loss": "loss (weighted sum)",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient",
    "clips_per_second": "clips per second",
    "frames_per_second": "frames per second",
    "waiting": "share of time waiting for data",
    "memory_gib": "memory (GiB)",
    "eta_seconds": "time left (s)",
    "seconds": "time since the start (s)",
}

Lines = list[dict[str, Any]]


def read_log(run: Path) -> Lines:
    """The lines of a run's log; the last one is left out if it is still being written.

    Args:
        run: the output folder, or the log itself.

    Raises:
        UserError: there is no log, it is empty, or a line in it is none of a log.
    """
    path = run / LOG if run.is_dir() else run
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; give the output folder of a training run") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    lines: Lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            line["step"] + 0
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(texts):
                break
            raise UserError(
                f"line {number} of {path} is no line of a training log; the file is damaged or another one"
            ) from error
        lines.append(line)
    if not lines:
        raise UserError(f"{path} has no whole line yet; a run writes the first after --log_every steps")
    return lines


def curve_of(lines: Lines, key: str) -> Curve:
    """The points (step, value) of a key; values that are no finite number are left out."""
    values = [(line["step"], line.get(key)) for line in lines]
    return [(step, value) for step, value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def run_names(runs: Sequence[Path]) -> list[str]:
    """Short names that differ: as many of the last parts of each path as it takes."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(run) for run in runs]


def main() -> None:
    """Draw what the command line asks for."""
    parser = Parser(description="Draw the curves of training runs from their log.jsonl.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a training run")
    parser.add_argument("--out", type=Path, help="the picture (default: curves.png in the folder of the first run)")
    parser.add_argument(
        "--keys",
        nargs="+",
        metavar="KEY",
        help=f"what to draw, one panel each (default: {' '.join(KEYS)}); a key that no run has names those there are",
    )
    parser.add_argument(
        "--smooth", type=int, metavar="N", help="lines over which a curve is averaged; 1: not at all (default: a 25th)"
    )
    arguments = parser.parse_args()
    if arguments.smooth is not None and arguments.smooth < 1:
        raise UserError(f"--smooth must be a whole number of at least 1, not {arguments.smooth}")
    runs = list(dict.fromkeys(arguments.runs))
    logs = dict(zip(run_names(runs), map(read_log, runs), strict=True))

    panels: dict[str, dict[str, Curve]] = {}
    for key in arguments.keys or KEYS:
        curves = {name: curve for name, lines in logs.items() if (curve := curve_of(lines, key))}
        if curves:
            panels[LABELS.get(key, key)] = curves
        elif arguments.keys:
            known = sorted({name for lines in logs.values() for line in lines for name in line} - {"step"})
            near = nearest(key, known)
            raise UserError(
                f"no run has {key!r}" + (f"; did you mean {near!r}?" if near else f"; there is {', '.join(known)}")
            )
    if not panels:
        raise UserError(f"no run has any of {', '.join(KEYS)}; name what to draw by --keys")
    out = arguments.out or (runs[0] if runs[0].is_dir() else runs[0].parent) / "curves.png"
    plot_curves(out, panels, ", ".join(logs), window=arguments.smooth)
    steps = ", ".join(f"{name} to step {lines[-1]['step']}" for name, lines in logs.items())
    print(f"wrote {out}: {steps}")


if __name__ == "__main__":
    run_cli(main)
