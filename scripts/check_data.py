"""Check a dataset before training: count what it holds, and find what is missing or broken.

    python -m scripts.check_data ytvos data/ref-youtube-vos
    python -m scripts.check_data refcoco+ data/coco --all --split train

Counts videos, expressions and frames, compares them with the whole dataset, looks for every file, and opens a sample of
them (``--all`` opens every file). Nothing is written. The exit status is 2 if a file is missing or broken. A different
count is reported but is not an error, because part of a dataset is usable.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.registry import DATASETS
from util.errors import USER_ERROR_STATUS, Parser, UserError, printable, run_cli
from util.parallel import available_cores

if TYPE_CHECKING:
    from datasets.checks import Count

DATA_PAGE = "docs/data.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Check the dataset that the command line names, print a report, and return the exit status."""
    args = parse_args(argv)
    from datasets.checks import check  # the readers of all kinds of files take seconds to import

    findings = check(args.dataset, args.root, args.split, args.all, args.workers)
    print(f"{args.dataset}: {args.root}")
    print("\n".join(table(findings.counts)))
    opened = sum(job.files for job in findings.jobs)
    print(
        f"opened {opened} of {findings.files} files" + ("" if opened >= findings.files else "; --all opens every one")
    )
    for note in findings.notes:
        print(f"note: {printable(note)}")
    if not findings.faults:
        print("nothing is missing or broken")
        return 0
    print(f"missing or broken: {len(findings.faults)}")
    for fault in findings.faults[: args.limit]:
        print(f"  - {printable(fault)}")
    if len(findings.faults) > args.limit:
        print(f"  … and {len(findings.faults) - args.limit} more (--limit)")
    if findings.elsewhere:
        print(f"what to do: {findings.elsewhere} looks like the folder of {args.dataset}; name that one")
        return USER_ERROR_STATUS
    then = f"; then `python -m scripts.prepare_data {args.dataset}` completes the converted folder"
    again = then if DATASETS[args.dataset].converted else ""
    print(f"what to do: download or extract the files named above again{again} ({DATA_PAGE})")
    return USER_ERROR_STATUS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None means the process's own)."""
    parser = Parser(description="Count what a dataset holds, and find what is missing or broken. Nothing is written.")
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("root", type=Path, help="the dataset's folder; Ref-DAVIS17: as distributed, or converted")
    parser.add_argument("--all", action="store_true", help="open every file, not a sample")
    parser.add_argument("--split", nargs="+", default=[], help="check only these splits (default: all)")
    parser.add_argument("--limit", type=int, default=20, help="errors to list; the others are counted (default: 20)")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: the cores)")
    args = parser.parse_args(argv)
    for name in ("limit", "workers"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    return args


def table(counts: Sequence[Count]) -> list[str]:
    """Format the numbers that were found, with those of the whole dataset."""
    width = max((len(count.what) for count in counts), default=0)
    lines = []
    for count in counts:
        known = "" if count.known is None else f"  of {count.known} known"
        difference = f": a difference of {count.difference:+d}" if count.difference else ""
        lines.append(f"  {count.what.ljust(width)}  {count.found:>7}{known}{difference}")
    return lines


if __name__ == "__main__":
    run_cli(main)
