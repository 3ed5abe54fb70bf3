"""Check a dataset before anyone waits for a GPU: what it holds, what is missing, what is broken.

    python -m scripts.check_data ytvos data/ref-youtube-vos
    python -m scripts.check_data refcoco+ data/coco --all --split train

Counts videos, expressions and frames against those of the whole dataset, looks for every file, and opens a sample of
them, or with --all every one. Nothing is written. The status is 2 where something is missing or broken; a count that
differs is told and is no fault, since a part of a dataset can be used, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import davis, mevis_files, ytvos
from datasets.a2d import SPLITS as A2D_SPLITS
from datasets.reading import DATA_PAGE
from datasets.refcoco_files import SPLITS as REFCOCO_SPLITS
from scripts.data_checks_items import check_a2d, check_jhmdb, check_refcoco
from scripts.data_checks_videos import check_davis, check_mevis, check_ytvos
from scripts.data_findings import Count, Findings, run_job
from util.errors import USER_ERROR_STATUS, UserError, run_cli
from util.parallel import available_cores, map_videos

FETCH = "fetch or extract again what is named above"


@dataclass(frozen=True)
class Dataset:
    """How a dataset is checked."""

    check: Callable[[Path, Sequence[str], Findings], None]
    splits: tuple[str, ...]
    advice: str = FETCH


def _refcoco(name: str) -> Dataset:
    advice = f"{FETCH}; then `python -m scripts.prepare_data {name}` completes the converted folder"
    return Dataset(partial(check_refcoco, name), REFCOCO_SPLITS[name], advice)


DATASETS = {
    "ytvos": Dataset(check_ytvos, ytvos.SPLITS),
    "davis": Dataset(
        check_davis,
        tuple(davis.SPLITS),
        f"{FETCH}; then `python -m scripts.prepare_data davis` completes the converted folder",
    ),
    "mevis": Dataset(check_mevis, mevis_files.SPLITS),
    "a2d": Dataset(check_a2d, A2D_SPLITS),
    "jhmdb": Dataset(check_jhmdb, ("test",)),
    **{name: _refcoco(name) for name in REFCOCO_SPLITS},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Check the dataset that the command line names; the process's exit status."""
    args = parse_args(argv)
    dataset = DATASETS[args.dataset]
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
    print(f"what to do: {dataset.advice} ({DATA_PAGE})")
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
    dataset = DATASETS[name]
    unknown = [split for split in splits if split not in dataset.splits]
    if unknown:
        raise UserError(f"unknown split {unknown[0]!r}; {name} has {', '.join(dataset.splits)}")
    if not root.is_dir():
        raise UserError(f"{root} is no folder; name the one that holds {name} as {DATA_PAGE} says")
    findings = Findings(every)
    dataset.check(root, list(splits) or dataset.splits, findings)
    for faults in map_videos(run_job, findings.jobs, workers, unit="part"):
        findings.faults += faults
    findings.faults = list(dict.fromkeys(findings.faults))
    return findings


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.check_data",
        description="Count what a dataset holds, and find what is missing or broken. Nothing is written.",
    )
    parser.add_argument("dataset", choices=DATASETS)
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
