"""The table of ``scripts.eval_all``: a row for each set and weights, a column for each metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Row = tuple[str, str, dict[str, float | None], dict[str, int]]  # set, weights, metrics 0…100, counts

PRECISIONS = tuple(f"P@0.{digit}" for digit in range(5, 10))
COLUMNS = {
    "J&F": ("J&F",),
    "J": ("J",),
    "F": ("F",),
    "fixed": ("fixed.J&F",),
    "J&F per annotation": tuple(f"matched.anno_{number}.J&F" for number in range(4)),
    "no target": ("no_target_accuracy",),
    "negatives": ("negative_accuracy",),
    "mAP": ("mAP",),
    "best": ("mAP_best_query",),
    "AP@.5 .75": ("AP@0.5", "AP@0.75"),
    "P@.5 .6 .7 .8 .9": PRECISIONS,
    "oIoU": ("oIoU",),
    "mIoU": ("mIoU",),
    "box P@.5": ("box_P@0.5",),
}
"""Title → the metrics of a cell."""
WIDEST = 1000  # columns of text: more than any table needs


def print_table(rows: Sequence[Row], file: TextIO | None = None) -> None:
    """Print the metrics of all rows to a file (None: standard output); one that a set does not have is left empty.

    The table is as wide as its cells need: a narrower terminal breaks lines, and nothing is cut off.
    """
    console = Console(file=file, width=WIDEST)
    table = Table(box=SIMPLE_HEAD, title="all benchmarks, toy sets", padding=(0, 1, 0, 0))
    for title in ("set", "weights"):
        table.add_column(title, no_wrap=True)
    for title in ("scored", *COLUMNS):
        table.add_column(title, justify="right", no_wrap=True)
    for name, weights, metrics, counts in rows:
        cells = [" ".join(_shown(metrics[key]) for key in keys if key in metrics) for keys in COLUMNS.values()]
        scored = next(counts[key] for key in ("expressions", "objects", "items") if key in counts)
        table.add_row(name, weights, str(scored), *cells)
    console.print(table)


def _shown(value: float | None) -> str:
    """A metric with one decimal; a dash for one that is no number."""
    return "–" if value is None else f"{value:.1f}"
