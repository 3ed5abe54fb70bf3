"""Check a dataset before anyone waits for a GPU: what it holds, what is missing, what is broken.

    python -m scripts.check_data ytvos data/ref-youtube-vos
    python -m scripts.check_data refcoco+ data/coco --all --split train

Counts videos, expressions and frames against those of the whole dataset, looks for every file, and opens a sample of
them, or with --all every one. Nothing is written. The status is 2 where something is missing or broken; a count that
differs is told and is no fault, since a part of a dataset can be used, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from util.benchmarks import EVAL_SPLITS, VIDEO_SETS
from util.errors import USER_ERROR_STATUS, Parser, UserError, run_cli
from util.parallel import available_cores, map_videos

if TYPE_CHECKING:
    from scripts.data_findings import Check, Count, Findings

DATA_PAGE = "docs/data.md"
CHILDREN = 20  # folders in a wrong one that are looked at
CONVERTED = ("davis", "refcoco", "refcoco+", "refcocog")


def main(argv: Sequence[str] | None = None) -> int:
    """Check the dataset that the command line names; the process's exit status."""
    args = parse_args(argv)
    findings = check(args.dataset, args.root, args.split, args.all, args.workers)
    print(f"{args.dataset}: {args.root}")
    print("\n".join(table(findings.counts)))
    opened = sum(job.files for job in findings.jobs)
    print(
        f"opened {opened} of {findings.files} files" + ("" if opened >= findings.files else "; --all opens every one")
    )
    for note in findings.notes:
        print(f"note: {note}")
    if not findings.faults:
        print("nothing is missing or broken")
        return 0
    print(f"missing or broken: {len(findings.faults)}")
    for fault in findings.faults[: args.limit]:
        print(f"  - {fault}")
    if len(findings.faults) > args.limit:
        print(f"  … and {len(findings.faults) - args.limit} more (--limit)")
    if findings.elsewhere:
        print(f"what to do: {findings.elsewhere} looks like the folder of {args.dataset}; name that one")
        return USER_ERROR_STATUS
    then = f"; then `python -m scripts.prepare_data {args.dataset}` completes the converted folder"
    again = then if args.dataset in CONVERTED else ""
    print(f"what to do: fetch or extract again what is named above{again} ({DATA_PAGE})")
    return USER_ERROR_STATUS


def check(name: str, root: Path, splits: Sequence[str] = (), every: bool = False, workers: int = 1) -> Findings:
    """Check a dataset.

    Args:
        name: of ``--dataset_file``.
        root: the dataset's folder, which is only read.
        splits: some of the dataset's; none for all.
        every: open every file, not a sample.
        workers: processes.

    Raises:
        UserError: an unknown split, or ``root`` is no folder.
    """
    # Imported here: the readers of all kinds of files take seconds.
    from scripts.data_findings import Findings, run_job

    dataset = import_module(f"scripts.data_checks_{'videos' if name in VIDEO_SETS else 'items'}").CHECKS[name]
    unknown = [split for split in splits if split not in dataset.splits]
    if unknown:
        raise UserError(f"unknown split {unknown[0]!r}; {name} has {', '.join(dataset.splits)}")
    if not root.is_dir():
        raise UserError(f"{root} is no folder; name the one that holds {name} as {DATA_PAGE} says")
    findings = Findings(every)
    dataset.run(root, list(splits) or dataset.splits, findings)
    if not findings.files:
        findings.elsewhere = _near(dataset, root, list(splits) or dataset.splits)
    for faults in map_videos(run_job, findings.jobs, workers, unit="part"):
        findings.faults += faults
    findings.faults = list(dict.fromkeys(findings.faults))
    return findings


def _near(dataset: Check, root: Path, splits: Sequence[str]) -> Path | None:
    """The folder above ``root``, or one in it, that holds files of the dataset; None where none does."""
    from scripts.data_findings import Findings

    above = root / ".." if root.name in ("", "..") else root.parent
    for folder in (above, *islice((path for path in sorted(root.iterdir()) if path.is_dir()), CHILDREN)):
        found = Findings(every=False)
        dataset.run(folder, splits, found)
        if found.files:
            return folder
    return None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(
        prog="python -m scripts.check_data",
        description="Count what a dataset holds, and find what is missing or broken. Nothing is written.",
    )
    parser.add_argument("dataset", choices=EVAL_SPLITS)
    parser.add_argument("root", type=Path, help="the dataset's folder; Ref-DAVIS17: as distributed, or converted")
    parser.add_argument("--all", action="store_true", help="open every file, not a sample")
    parser.add_argument("--split", nargs="+", default=[], help="check these splits alone (default: all)")
    parser.add_argument("--limit", type=int, default=20, help="faults to list; the others are counted (default: 20)")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: the cores)")
    args = parser.parse_args(argv)
    for name in ("limit", "workers"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    return args


def table(counts: Sequence[Count]) -> list[str]:
    """Lines of what was found and of what the whole dataset has."""
    width = max((len(count.what) for count in counts), default=0)
    lines = []
    for count in counts:
        known = "" if count.known is None else f"  of {count.known} known"
        difference = f": a difference of {count.difference:+d}" if count.difference else ""
        lines.append(f"  {count.what.ljust(width)}  {count.found:>7}{known}{difference}")
    return lines


if __name__ == "__main__":
    run_cli(main)
