"""The papers' claims, asked again at toy size (called by ``scripts/toy_lab.sh``; docs/toy_lab.md).

    python -m scripts.toy_lab [--seeds 0 1 2] [--only base no_noise] [--output_dir runs/toy_lab]

Every variant is trained from scratch with every seed on the frozen toy stack. A stopped lab goes on where it stopped.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from scripts.steps import near
from scripts.toy_lab_claims import VARIANTS, Scores, Variant, answer, render, report
from scripts.toy_lab_runs import STEPS, TRAIN_VIDEOS, VALID_VIDEOS, Lab, find_score, prepare, run_variant
from util.errors import Parser, UserError, nearest, run_cli
from util.files import atomic_path, sole_run, write_json

Results = dict[tuple[str, int], dict[str, Any]]
"""(variant's name, seed) → what ``run_variant`` returns."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(
        prog="python -m scripts.toy_lab",
        description="Ask the papers' claims again at toy size.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--stack", type=Path, default=Path("toy/stack"), help="the pre-trained toy stack")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/toy_lab"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help="of every training")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, of one thread each")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--only", nargs="+", default=names, metavar="NAME", help="variants")
    parser.add_argument("--train_videos", type=int, default=TRAIN_VIDEOS)
    parser.add_argument("--valid_videos", type=int, default=VALID_VIDEOS)
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot work, before any work.

    Raises:
        UserError: a number is out of range or given twice, or there is no stack.
    """
    for name in ("steps", "processes", "train_videos", "valid_videos"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds must be different whole numbers of at least 0, not {args.seeds}")
    if not args.stack.is_dir():
        raise UserError(f"{args.stack} is missing; bash scripts/train_toy.sh --stack-only makes toy/stack")


def choose_variants(names: Sequence[str]) -> list[Variant]:
    """The named variants, in the lab's order.

    Raises:
        UserError: a name is unknown; the message has the nearest one.
    """
    known = {variant.name: variant for variant in VARIANTS}
    for name in names:
        if name not in known:
            near_one = nearest(name, list(known))
            hint = f"did you mean {near_one}?" if near_one else f"known are {', '.join(known)}"
            raise UserError(f"the lab has no variant {name!r}, which --only names; {hint}")
    return [variant for variant in VARIANTS if variant.name in names]


def run_all(lab: Lab, variants: Sequence[Variant], seeds: Sequence[int], processes: int) -> Results:
    """Do all runs that are not done, ``processes`` of them at a time.

    Raises:
        UserError: a finished run was one of other parameters.
        RunError: a run failed; the others are stopped, and go on with the next start.
    """
    results: Results = {}
    waiting = []
    for seed in seeds:  # all variants with a seed before the next one, so that a stopped lab has whole seeds
        for variant in variants:
            if (score := find_score(lab, variant, seed)) is None:
                waiting.append((variant, seed))
            else:
                results[variant.name, seed] = score
    total = len(results) + len(waiting)
    if results:
        print(f"{len(results)} of {total} runs are done already")
    prepare(lab, [seed for variant, seed in waiting if variant.random_stack])
    stop = threading.Event()
    with ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(run_variant, lab, *job, stop): job for job in waiting}
        try:
            for future in as_completed(futures):
                done, own_seed = futures[future]
                score = results[done.name, own_seed] = future.result()
                print(
                    f"[{len(results)}/{total}] {done.name}, seed {own_seed}: J&F {score['jf']:.1f}, "
                    f"with swapped sentences {score['swapped_jf']:.1f} ({score['seconds']:.0f} s)",
                    flush=True,
                )
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


def gather(results: Results, variants: Sequence[Variant], seeds: Sequence[int]) -> dict[str, Scores]:
    """The runs of each variant, by its name, in the order of variants and seeds."""
    keys = ("jf", "swapped_jf", "seconds")
    return {
        variant.name: Scores(*(tuple(results[variant.name, seed][key] for seed in seeds) for key in keys))
        for variant in variants
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the lab, print its report and write it."""
    args = parse_args(argv)
    check_args(args)
    variants = choose_variants(args.only)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is ended, too
    lab = Lab(args.stack.absolute(), args.output_dir.absolute(), args.steps, args.train_videos, args.valid_videos)
    with sole_run(lab.output):
        scores = gather(run_all(lab, variants, args.seeds, args.processes), variants, args.seeds)
    answers = answer(scores)
    text = render(scores, answers)
    settings = {"seeds": args.seeds, **lab.settings()}
    write_json(lab.output / "lab.json", {"settings": settings, **report(scores, answers)})
    with atomic_path(lab.output / "lab.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}\nwrote {near(lab.output / 'lab.json')} and {near(lab.output / 'lab.md')}")


if __name__ == "__main__":
    run_cli(main)
