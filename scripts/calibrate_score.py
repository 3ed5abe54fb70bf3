"""Find the ``--score_threshold`` below which a sentence names nothing, on sentences that are known to name nothing.

    python inference_ytvos.py … --split train --output_dir runs/vdit/train_scores
    python -m scripts.calibrate_score runs/vdit/train_scores

Reads the scores that an inference run has recorded, and the run's own expressions (Ref-YouTube-VOS's layout with
negatives, MeViS version 2). Take videos that nothing is reported on: one chosen on a validation set flatters it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.command_line import Parser
from util.errors import UserError, run_cli
from util.io import read_json

STEP = 0.01
"""Of thresholds; a score has as much noise."""
KEEP = 0.99


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(prog="python -m scripts.calibrate_score", description="Find the --score_threshold of a model.")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="output folder of inference_ytvos.py")
    parser.add_argument(
        "--keep",
        type=float,
        default=KEEP,
        help=f"share of the sentences that name something which must keep their masks (default: {KEEP})",
    )
    args = parser.parse_args(argv)
    if not 0 < args.keep <= 1:
        raise UserError(f"--keep must be above 0 and at most 1, not {args.keep:g}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Print what thresholds do, and which one to take."""
    args = parse_args(argv)
    named, negative = read_scores(args.output)
    chosen = choose_threshold(named, args.keep)
    print(
        f"{len(named)} sentences that name something, {len(negative)} that name nothing; a sentence of the first kind "
        f"has the greater score in {100 * order(named, negative):.0f} % of all pairs (chance: 50)"
    )
    print("score_threshold   keep their masks   told to name nothing")
    for threshold in sorted({0.0, *np.quantile(named, [0.001, 0.01, 0.05, 0.1, 0.25]).round(2), chosen}):
        kept, told = (named >= threshold).mean(), (negative < threshold).mean()
        mark = "   <- take this one" if threshold == chosen else ""
        print(f"{threshold:15.2f}   {100 * kept:14.1f} %   {100 * told:18.1f} %{mark}")
    print(f"--score_threshold {chosen:.2f}")


def choose_threshold(named: np.ndarray, keep: float) -> float:
    """The greatest threshold, in steps of 0.01, that leaves a share of the sentences that name something their masks.

    Args:
        named: their scores ``[N]``, 0…1.
        keep: the share, 0…1.
    """
    steps = round(1 / STEP)
    return next(t / steps for t in range(steps, -1, -1) if (named >= t / steps).mean() >= keep)


def order(named: np.ndarray, negative: np.ndarray) -> float:
    """The share of pairs whose named sentence has the greater score; ties count half. 0…1."""
    return float(((named[:, None] > negative) + 0.5 * (named[:, None] == negative)).mean())


def read_scores(output: Path) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the sentences that name something, and of those that name nothing.

    Args:
        output: of an inference run.

    Raises:
        UserError: there is no record, it is of another dataset, or has no sentence of one of both kinds.
    """
    record = read_json(output / "inference.json", "the record of an inference run; give its output folder")
    try:
        options, results = record["identity"], record["expressions"]
        entries = EXPRESSIONS[options["dataset_file"]](options)
        scores: dict[bool, list[float]] = {False: [], True: []}
        for name, video in entries.items():
            for exp_id, expression in video.expressions.items():
                if exp_id in results.get(name, {}):
                    scores[expression.negative].append(float(results[name][exp_id]["score"]))
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{output / 'inference.json'} is no record of inference on {' or '.join(EXPRESSIONS)}; give the output "
            "folder of inference_ytvos.py"
        ) from error
    for negative, what in ((False, "something"), (True, "nothing")):
        if not scores[negative]:
            raise UserError(f"{output} has no score of a sentence that names {what}; segment a set that has both kinds")
    return np.array(scores[False]), np.array(scores[True])


def _of_ytvos(options: Mapping[str, Any]) -> Mapping[str, Any]:
    from datasets.expressions import read_expressions
    from datasets.scoring import default_expressions

    split = options["split"]
    file = options["expressions_file"] or default_expressions(Path(options["ytvos_path"]) / split / "Annotations")
    return read_expressions(Path(file), split)


def _of_mevis(options: Mapping[str, Any]) -> Mapping[str, Any]:
    from datasets.mevis_files import list_split

    return list_split(Path(options["mevis_path"]), options["split"])


EXPRESSIONS: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {"ytvos": _of_ytvos, "mevis": _of_mevis}
"""Name of a dataset that may have such sentences → its videos' expressions, by the options of an inference run."""


if __name__ == "__main__":
    run_cli(main)
