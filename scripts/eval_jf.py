"""Score a folder of masks with J and F.

    python -m scripts.eval_jf --gt <root>/valid/Annotations --pred <output>/Annotations
    python -m scripts.eval_jf --gt <masks> --pred <masks> --task semi-supervised --json scores.json

Tasks: ``expressions`` (Ref-YouTube-VOS: one folder per video and expression) and the two protocols
of DAVIS-2017, ``semi-supervised`` (fixed identities) and ``unsupervised`` (matched proposals).
The table shows 0–100, the JSON file 0…1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.errors import UserError, run_cli
from util.io import write_json
from util.jf_davis import SEMI_SUPERVISED, UNSUPERVISED, mean_over_objects, read_sequences, score_davis
from util.jf_expressions import score_expressions
from util.mask_files import require_folder
from util.negatives import NEGATIVE
from util.parallel import available_cores

EXPRESSIONS = "expressions"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.eval_jf", description="Score a folder of masks with J and F."
    )
    parser.add_argument("--gt", type=Path, required=True, help="masks <video>/<frame>.png, value = object id")
    parser.add_argument(
        "--pred",
        type=Path,
        required=True,
        help="<video>/<exp_id>/<frame>.png of 0 and 255 (expressions) or <video>/<frame>.png, value = id (DAVIS)",
    )
    parser.add_argument(
        "--task", choices=[EXPRESSIONS, SEMI_SUPERVISED, UNSUPERVISED], help="default: guessed from the folders"
    )
    parser.add_argument(
        "--expressions",
        type=Path,
        help="meta_expressions.json with an obj_id per expression "
        "(default: <gt>/../../meta_expressions/valid/meta_expressions.json)",
    )
    parser.add_argument("--sequences", type=Path, help="DAVIS tasks: file of sequence names, one a line (default: all)")
    parser.add_argument("--json", type=Path, help="write all scores to this file")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: the cores)")
    return parser.parse_args(argv)


def guess_task(gt: Path, pred: Path) -> str:
    """The task that the folders look like.

    Raises:
        UserError: ``pred`` is missing or holds no mask at either depth.
    """
    require_folder(pred, "the predictions, one folder per video")
    if any(pred.glob("*/*/*.png")):
        return EXPRESSIONS
    if any(pred.glob("*/*.png")):
        return UNSUPERVISED if "Annotations_unsupervised" in gt.absolute().parts else SEMI_SUPERVISED
    raise UserError(f"{pred} holds neither <video>/<exp_id>/<frame>.png nor <video>/<frame>.png; name another folder")


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot work, before any work.

    Raises:
        UserError: an option of another task, a bad number or output path.
    """
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}")
    if args.json is not None and args.json.is_dir():
        raise UserError(f"--json {args.json} is a folder; name a file")
    if args.expressions is not None and args.task in (SEMI_SUPERVISED, UNSUPERVISED):
        raise UserError(f"--expressions belongs to --task {EXPRESSIONS}, not to --task {args.task}; leave it out")
    if args.sequences is not None and args.task == EXPRESSIONS:
        raise UserError(f"--sequences belongs to the DAVIS tasks, not to --task {EXPRESSIONS}; leave it out")


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print the tables, write the JSON file."""
    args = parse_args(argv)
    if args.task is None:
        args.task = guess_task(args.gt, args.pred)
        print(f"task: {args.task} (guessed from the folders; --task chooses another)")
    check_args(args)
    if args.task == EXPRESSIONS:
        scores = score_expressions(args.gt, args.pred, args.expressions, args.workers)
        print_expressions(scores)
    else:
        sequences = None if args.sequences is None else read_sequences(args.sequences)
        scores = score_davis(args.gt, args.pred, args.task, sequences, args.workers)
        print_davis(scores)
    if args.json is not None:
        write_json(args.json, scores)
        print(f"all scores: {args.json}")


def print_expressions(scores: dict[str, Any]) -> None:
    """Tables per kind and per video, the mean over expressions that name an object last; the negatives' accuracy."""
    for note in scores["notes"]:
        print(f"note: {note}")
    negatives = sum(row["obj_id"] is None for row in scores["per_expression"].values())
    total = {**scores["global"], "expressions": len(scores["per_expression"]) - negatives}
    mean = f"mean without {NEGATIVE}" if negatives else "mean"
    for name, groups in (("kind", scores["per_kind"]), ("video", scores["per_video"])):
        if groups:
            print_table(
                [name, "expressions", "J&F", "J", "F"],
                [
                    [label, str(row["expressions"]), *(percent(row[key]) for key in ("JF", "J", "F"))]
                    for label, row in [*groups.items(), (mean, total)]
                ],
            )
    if negatives:
        share = percent(total["negative_accuracy"])
        print(f"\nnegatives with no mask in any frame: {share} % of {negatives}")


def print_davis(scores: dict[str, Any]) -> None:
    """A table per sequence (means over its objects), the mean over all objects last."""
    rows = []
    for name, frames in scores["per_frame"].items():
        objects = [scores["per_object"][f"{name}_{number}"] for number in range(1, len(frames["J"]) + 1)]
        rows.append((name, len(objects), mean_over_objects(objects)))
    rows.append(("mean", len(scores["per_object"]), scores["global"]))
    keys = ["J&F", "JM", "JR", "JD", "FM", "FR", "FD"]
    titles = ["J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay"]
    print_table(
        ["video", "objects", *titles],
        [[name, str(count), *(percent(means[key]) for key in keys)] for name, count, means in rows],
    )


def percent(value: float) -> str:
    """A score 0…1 as 0–100 with one decimal."""
    return f"{100 * value:.1f}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Aligned columns, the first to the left; a rule above the last row, which is the mean."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "  ".join("-" * width for width in widths)

    def line(cells: list[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])

    print("\n".join(["", line(header), rule, *map(line, rows[:-1]), rule, line(rows[-1])]))


if __name__ == "__main__":
    run_cli(main)
