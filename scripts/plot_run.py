"""Draw the curves of one or several training runs from their ``log.jsonl``, while they run or later.

python -m scripts.plot_run runs/vdit runs/hcd --keys loss loss_dice --out runs/curves.png
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.drawing import Curve, plot_curves
from util.errors import Parser, UserError, nearest, run_cli
from util.files import atomic_path

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
Curve = Sequence[tuple[float, float]]  # (x, y) points in order of x


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


def plot_curves(
    path: Path,
    panels: Mapping[str, Mapping[str, Curve]],
    title: str,
    x_label: str = "step",
    window: int | None = None,
) -> None:
    """Write training curves as a PNG, one panel above the other on one x axis.

    A curve that is averaged is drawn pale, under its moving average. A curve has one colour in all panels.

    Args:
        path: the picture.
        panels: label of the y axis → name of the curve → points; at least one panel.
        title: above all.
        x_label: below all.
        window: points over which a curve is averaged; None: a 25th of them, 1: not at all.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and few commands plot
    from matplotlib.figure import Figure

    assert panels, "a plot needs a panel"
    figure = Figure(figsize=(8, 1 + 2.6 * len(panels)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(n for c in panels.values() for n in c))}
    for axis, (y_label, curves) in zip(axes, panels.items(), strict=True):
        for name, points in curves.items():
            x, y = np.array(points, dtype=float).reshape(-1, 2).T
            width = min(len(x), len(x) // 25 if window is None else window)
            if width > 1:
                axis.plot(x, y, color=colours[name], alpha=0.25, linewidth=0.8)
                kernel = np.full(width, 1 / width)
                x, y = np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid")
            axis.plot(x, y, color=colours[name], label=name, marker="o" if len(x) < 15 else None, markersize=3)
        axis.set_ylabel(y_label)
        axis.grid(alpha=0.3)
        if len(colours) > 1:
            axis.legend(fontsize=8)
    axes[-1].set_xlabel(x_label)
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another output folder") from error


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
