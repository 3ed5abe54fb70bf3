"""Find the ``--score_threshold`` below which a sentence refers to nothing.

    python inference_ytvos.py … --split train --output_dir runs/vdit/train_scores
    python -m scripts.calibrate_score runs/vdit/train_scores

Reads the scores that an inference run recorded and the run's own expressions (the layout of Ref-YouTube-VOS with
negatives, or MeViS version 2). Use videos on which no results are reported: a threshold that was chosen on the
validation set makes its scores too good.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.registry import DATASETS
from util.errors import Parser, UserError, run_cli
from util.files import read_json

STEP = 0.01  # of thresholds; scores are not more precise
KEEP = 0.99


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``argv`` without the program's name; None: that of the process)."""
    parser = Parser(description="Find the --score_threshold of a model.")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="output folder of inference_ytvos.py")
    parser.add_argument(
        "--keep",
        type=float,
        default=KEEP,
        help=f"share of the sentences that refer to something which must keep their masks (default: {KEEP})",
    )
    args = parser.parse_args(argv)
    if not 0 < args.keep <= 1:
        raise UserError(f"--keep must be above 0 and at most 1, not {args.keep:g}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Print the effect of several thresholds, and recommend one."""
    args = parse_args(argv)
    named, negative = read_scores(args.output)
    chosen = choose_threshold(named, args.keep)
    print(
        f"{len(named)} sentences that refer to something, {len(negative)} that refer to nothing; a sentence of the "
        f"first kind has the greater score in {100 * order(named, negative):.0f} % of all pairs (chance: 50)"
    )
    print("score_threshold   keep their masks      correctly empty")
    for threshold in sorted({0.0, *np.quantile(named, [0.001, 0.01, 0.05, 0.1, 0.25]).round(2), chosen}):
        kept, rejected = (named >= threshold).mean(), (negative < threshold).mean()
        mark = "   <- take this one" if threshold == chosen else ""
        print(f"{threshold:15.2f}   {100 * kept:14.1f} %   {100 * rejected:18.1f} %{mark}")
    print(f"--score_threshold {chosen:.2f}")


def choose_threshold(named: np.ndarray, keep: float) -> float:
    """Return the highest threshold, in steps of 0.01, at which enough sentences with an object keep their masks.

    Args:
        named: scores of the sentences that refer to something ``[N]``, 0…1.
        keep: the share that must keep its masks, 0…1.
    """
    steps = round(1 / STEP)
    return next(t / steps for t in range(steps, -1, -1) if (named >= t / steps).mean() >= keep)


def order(named: np.ndarray, negative: np.ndarray) -> float:
    """Return the share, 0…1, of pairs in which the sentence that refers to something scores higher; ties count half."""
    return float(((named[:, None] > negative) + 0.5 * (named[:, None] == negative)).mean())


def read_scores(output: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the scores of the sentences that refer to something, and of those that refer to nothing.

    Args:
        output: output folder of an inference run.

    Raises:
        UserError: the record is missing, belongs to another dataset, or lacks sentences of one of the two kinds.
    """
    record = read_json(output / "inference.json", "the record of an inference run; give its output folder")
    scores: dict[bool, list[float]] = {False: [], True: []}
    try:
        results, options = record["expressions"], record["identity"]
        row = DATASETS[options["dataset_file"]]
        list_expressions = row.function("list_expressions")
        listed = list_expressions(Path(options[row.root]), options["split"], options)
        for name, video in listed.items():
            for exp_id, expression in video.expressions.items():
                if exp_id in results.get(name, {}):
                    if "score" not in results[name][exp_id]:
                        raise UserError(
                            f"{output} holds masks of a model without scores; there is nothing to calibrate"
                        )
                    scores[expression.negative].append(float(results[name][exp_id]["score"]))
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{output / 'inference.json'} is not a record of inference on a dataset whose sentences may refer to "
            "nothing; give the output folder of inference_ytvos.py"
        ) from error
    for negative, what in ((False, "something"), (True, "nothing")):
        if not scores[negative]:
            raise UserError(
                f"{output} has no score of a sentence that refers to {what}; segment a set that has both kinds"
            )
    return np.array(scores[False]), np.array(scores[True])


if __name__ == "__main__":
    run_cli(main)
