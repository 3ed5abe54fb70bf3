"""Score a folder of masks with J and F.

    python -m scripts.eval_jf --gt <root>/valid/Annotations --pred <output>/Annotations
    python -m scripts.eval_jf --gt <ref-davis>/valid/Annotations --pred <output>
    python -m scripts.eval_jf --gt <mevis>/valid_u --pred <output>/Annotations
    python -m scripts.eval_jf --gt <revos> --pred <output>/Annotations
    python -m scripts.eval_jf --gt <masks> --pred <masks> --task semi-supervised --json scores.json

Tasks: ``expressions`` (Ref-YouTube-VOS, Long-RVOS: one folder per video and expression), ``mevis`` (MeViS, ReVOS: the
same, but an expression refers to any number of instances), ``ref-davis`` (one folder per annotation; prints the four
annotations and their mean, with matched and with fixed identities) and the two protocols of DAVIS-2017,
``semi-supervised`` (fixed identities) and ``unsupervised`` (matched proposals). The tables show 0–100, the JSON file
0…1.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.expressions import NEGATIVE, expressions_path, read_expressions
from datasets.files import read_names, require_folder
from datasets.predictions import ANNOTATIONS, LAYOUTS
from datasets.scoring import (
    CONSISTENCY,
    MASK_FILE,
    SEMI_SUPERVISED,
    TASKS,
    TEMPORAL,
    UNSUPERVISED,
    find_ground_truth,
    mean_over_objects,
    score_davis,
    score_expressions,
    score_ref_davis,
    score_unions,
    split_of,
)
from util.errors import Parser, UserError, printable, run_cli
from util.files import write_json
from util.options import AUTO
from util.parallel import available_cores

EXPRESSIONS, MEVIS, REF_DAVIS = "expressions", "mevis", "ref-davis"
DAVIS_COLUMNS = ["J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay"]
DAVIS_KEYS = ["J&F", "JM", "JR", "JD", "FM", "FR", "FD"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``argv`` without the program's name; None: that of the process)."""
    parser = Parser(description="Score a folder of masks with J and F.")
    parser.add_argument(
        "--gt",
        type=Path,
        required=True,
        help="<video>/<exp_id>/<frame>.png of 0 and 255, or <video>/<frame>.png, value = object id; MeViS: a "
        "split's folder; ReVOS: its root",
    )
    parser.add_argument(
        "--pred",
        type=Path,
        required=True,
        help="<video>/<exp_id>/<frame>.png of 0 and 255 (expressions, mevis), anno_<a>/<video>/<frame>.png (ref-davis) "
        "or <video>/<frame>.png, value = id (DAVIS); or an output folder of inference, whose Annotations are used",
    )
    parser.add_argument(
        "--task",
        choices=[EXPRESSIONS, MEVIS, REF_DAVIS, SEMI_SUPERVISED, UNSUPERVISED],
        help="default: guessed from the folders",
    )
    parser.add_argument(
        "--expressions_file",
        "--expressions",
        dest="expressions",
        type=Path,
        help="expressions file (palette masks: with an obj_id per expression), or the authors' file of objects and "
        "their sentences (default: found from --gt, see docs/data.md)",
    )
    parser.add_argument(
        "--sequences",
        type=Path,
        help="DAVIS tasks: file of sequence names, one per line (default: all; ref-davis: those with expressions)",
    )
    parser.add_argument(
        "--version",
        choices=["v1", "v2"],
        help="version of MeViS to read and to score (default: the list that exists, v1 if both do; scored as v2 if a "
        "sentence refers to nothing)",
    )
    parser.add_argument("--json", type=Path, help="write all scores to this file")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: number of cores)")
    return parser.parse_args(argv)


def guess_task(gt: Path, pred: Path) -> str:
    """Guess the task from the layout of the folders.

    Raises:
        UserError: ``pred`` is missing or contains no mask at either depth.
    """
    require_folder(pred, "the predictions, one folder per video")
    if (gt / MASK_FILE).is_file():
        return MEVIS
    if any((pred / root).is_dir() for root in LAYOUTS["davis"].roots):
        return REF_DAVIS
    if any(pred.glob("*/*/*.png")):
        return EXPRESSIONS
    if any(pred.glob("*/*.png")):
        return UNSUPERVISED if "Annotations_unsupervised" in gt.absolute().parts else SEMI_SUPERVISED
    raise UserError(f"{pred} holds neither <video>/<exp_id>/<frame>.png nor <video>/<frame>.png; name another folder")


def check_args(args: argparse.Namespace) -> None:
    """Check the options before any work.

    Raises:
        UserError: an option belongs to another task, or a number or an output path is invalid.
    """
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}")
    if args.json is not None and args.json.is_dir():
        raise UserError(f"--json {args.json} is a folder; name a file")
    for flag, value, tasks, owner in (
        ("--expressions_file", args.expressions, (EXPRESSIONS,), f"--task {EXPRESSIONS}"),
        ("--sequences", args.sequences, (REF_DAVIS, SEMI_SUPERVISED, UNSUPERVISED), "the DAVIS tasks"),
        ("--version", args.version, (MEVIS,), f"--task {MEVIS}"),
    ):
        if value is not None and args.task not in tasks:
            raise UserError(f"{flag} belongs to {owner}, not to --task {args.task}; leave it out")


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print the tables and write the JSON file."""
    args = parse_args(argv)
    if (args.gt / ANNOTATIONS).is_dir() and not (args.gt / MASK_FILE).is_file():  # a split's folder
        args.gt /= ANNOTATIONS
        print(f"ground truth: {args.gt}")
    if (args.pred / ANNOTATIONS).is_dir():
        args.pred /= ANNOTATIONS
        print(f"predictions: {args.pred}")
    if args.task is None:
        args.task = guess_task(args.gt, args.pred)
        print(f"task: {args.task} (guessed from the folders; --task chooses another)")
    check_args(args)
    scores = score(args)
    {EXPRESSIONS: print_expressions, MEVIS: print_mevis, REF_DAVIS: print_ref_davis}.get(args.task, print_davis)(scores)
    if args.json is not None:
        write_json(args.json, scores)
        print(f"all scores: {args.json}")


def score(args: argparse.Namespace) -> dict[str, Any]:
    """Compute the scores of ``args.task``; see ``datasets.scoring``."""
    if args.task == EXPRESSIONS:
        require_folder(args.pred, "the predictions, <video>/<exp_id>/<frame>.png")
        ground_truth = find_ground_truth(args.gt, args.expressions)
        print(ground_truth)
        return score_expressions(ground_truth, args.pred, args.workers)
    if args.task == MEVIS:
        # Imported here because it imports PyTorch, which every process of the other tasks would load.
        from datasets.mevis import is_revos, read_ground_truth

        root, split = (args.gt, "valid") if is_revos(args.gt) else (args.gt.parent, args.gt.name)
        videos, version = read_ground_truth(root, split, args.version or AUTO)
        return score_unions(videos, args.pred, version, args.workers)
    sequences = None if args.sequences is None else read_names(args.sequences)
    if args.task == REF_DAVIS:
        listed = expressions_path(*split_of(args.gt))
        if sequences is None and listed.is_file():
            sequences = [name for name, video in read_expressions(listed, "valid").items() if video.expressions]
        return score_ref_davis(args.gt, args.pred, sequences, args.workers)
    return score_davis(args.gt, args.pred, args.task, sequences, args.workers)


def print_expressions(scores: dict[str, Any]) -> None:
    """Print tables per kind and per video, with the mean over expressions, and the accuracy on negatives."""
    for note in scores["notes"]:
        print(f"note: {printable(note)}")
    negatives = sum(row.get("kind") == NEGATIVE for row in scores["per_expression"].values())
    mean = {**scores["global"], "expressions": len(scores["per_expression"]) - negatives}
    label = f"mean without {NEGATIVE}" if negatives else "mean"
    print_groups("kind", scores["per_kind"], label, mean)
    print_groups("video", scores["per_video"], label, mean)
    if negatives:
        share = percent(mean["negative_accuracy"])
        print(f"\nnegatives with no mask in any frame: {share} % of {negatives}")


def print_mevis(scores: dict[str, Any]) -> None:
    """Print tables per video and with and without target, with the mean over all expressions."""
    mean = {**scores["global"], "expressions": len(scores["per_expression"])}
    parts = {key.replace("_", " "): scores[key] for key in ("with_target", "without_target") if key in scores}
    print("ReVOS" if scores["version"] == "revos" else f"MeViS {scores['version']}")
    print_groups("kind", scores["per_kind"], "mean", mean)
    print_groups("video", scores["per_video"], "mean", mean)
    print_groups("sentences", parts, "mean", mean)
    if "final" in mean:
        none, some = (percent(scores[key]["accuracy"]) for key in ("without_target", "with_target"))
        print(f"\nN-acc (no target, no mask in any frame) {none}, T-acc (a target, a mask in some frame) {some}")
        print(f"Final (mean of J&F, N-acc and T-acc) {percent(mean['final'])}")


def print_ref_davis(scores: dict[str, Any]) -> None:
    """Print a table for matched and one for fixed identities, with a row per annotation and their mean."""
    for name, task in TASKS.items():
        rows = {f"annotation {number}": row for number, row in enumerate(scores[name]["annotations"])}
        print_table([f"{name} ({task})", *DAVIS_COLUMNS], davis_rows({**rows, "mean": scores[name]["mean"]}))


def print_davis(scores: dict[str, Any]) -> None:
    """Print a table with a row per sequence (means over its objects) and the mean over all objects."""
    counts = {name: len(frames["J"]) for name, frames in scores["per_frame"].items()}
    rows = {
        name: mean_over_objects([scores["per_object"][f"{name}_{k}"] for k in range(1, count + 1)])
        for name, count in counts.items()
    }
    objects = [*counts.values(), len(scores["per_object"])]
    cells = davis_rows({**rows, "mean": scores["global"]})
    print_table(
        ["video", "objects", *DAVIS_COLUMNS],
        [[label, str(count), *row] for (label, *row), count in zip(cells, objects, strict=True)],
    )


def davis_rows(rows: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return table rows of the scores that DAVIS reports."""
    return [[label, *(percent(row[key]) for key in DAVIS_KEYS)] for label, row in rows.items()]


def print_groups(title: str, groups: Mapping[str, Mapping[str, Any]], label: str, mean: Mapping[str, Any]) -> None:
    """Print the scores of groups of expressions; the last row is the mean. Nothing is printed without groups."""
    if groups:
        rows = [*groups.items(), (label, mean)]
        keys = [key for key in ("JF", "J", "F", *TEMPORAL, "R", *CONSISTENCY) if key in mean]
        print_table(
            [title, "expressions", "J&F", *keys[1:]],
            [[name, str(row["expressions"]), *(percent(row[key]) for key in keys)] for name, row in rows],
        )


def percent(value: float) -> str:
    """Format a score 0…1 as 0–100 with one decimal."""
    return f"{100 * value:.1f}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns, the first to the left, with a rule above the last row."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "  ".join("-" * width for width in widths)

    def line(cells: list[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])

    print("\n".join(["", line(header), rule, *map(line, rows[:-1]), rule, line(rows[-1])]))


if __name__ == "__main__":
    run_cli(main)
