"""Score a folder of masks with J and F.

    python -m scripts.eval_jf --gt <root>/valid/Annotations --pred <output>/Annotations
    python -m scripts.eval_jf --gt <ref-davis>/valid/Annotations --pred <output>
    python -m scripts.eval_jf --gt <mevis>/valid_u --pred <output>/Annotations
    python -m scripts.eval_jf --gt <masks> --pred <masks> --task semi-supervised --json scores.json

Tasks: ``expressions`` (Ref-YouTube-VOS: one folder per video and expression), ``mevis`` (the same, and an expression
names any number of instances), ``ref-davis`` (a folder per annotation: four rows, and their mean, with matched and with
fixed identities) and the two protocols of DAVIS-2017 alone, ``semi-supervised`` (fixed identities) and
``unsupervised`` (matched proposals). The table shows 0–100, the JSON file 0…1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets.expressions import NEGATIVE
from datasets.predictions import ANNOTATIONS, LAYOUTS, require_folder
from datasets.scoring import (
    MASK_FILE,
    SEMI_SUPERVISED,
    TASKS,
    UNSUPERVISED,
    default_expressions,
    described_videos,
    mean_over_objects,
    read_sequences,
    score_davis,
    score_expressions,
    score_ref_davis,
    score_unions,
)
from util.command_line import Parser
from util.errors import UserError, run_cli
from util.io import write_json
from util.parallel import available_cores

EXPRESSIONS, MEVIS, REF_DAVIS = "expressions", "mevis", "ref-davis"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(prog="python -m scripts.eval_jf", description="Score a folder of masks with J and F.")
    parser.add_argument(
        "--gt", type=Path, required=True, help="masks <video>/<frame>.png, value = object id; MeViS: a split's folder"
    )
    parser.add_argument(
        "--pred",
        type=Path,
        required=True,
        help="<video>/<exp_id>/<frame>.png of 0 and 255 (expressions, mevis), anno_<a>/<video>/<frame>.png (ref-davis) "
        "or <video>/<frame>.png, value = id (DAVIS); an output folder of inference stands for the Annotations in it",
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
        help="meta_expressions.json with an obj_id per expression "
        "(default: <gt>/../../meta_expressions/<split>/meta_expressions.json)",
    )
    parser.add_argument(
        "--sequences",
        type=Path,
        help="DAVIS tasks: file of sequence names, one a line (default: all; ref-davis: those with expressions)",
    )
    parser.add_argument("--version", choices=["v1", "v2"], help="of MeViS (default: v2 where a sentence names nothing)")
    parser.add_argument("--json", type=Path, help="write all scores to this file")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: the cores)")
    return parser.parse_args(argv)


def guess_task(gt: Path, pred: Path) -> str:
    """The task that the folders look like.

    Raises:
        UserError: ``pred`` is missing or holds no mask at either depth.
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
    """Refuse what cannot work, before any work.

    Raises:
        UserError: an option of another task, a bad number or output path.
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
    """Score, print the tables, write the JSON file."""
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
    scores, show = SCORES[args.task](args)
    show(scores)
    if args.json is not None:
        write_json(args.json, scores)
        print(f"all scores: {args.json}")


Scored = tuple[dict[str, Any], Callable[[dict[str, Any]], None]]  # the scores, and what prints them


def _score_expressions(args: argparse.Namespace) -> Scored:
    return score_expressions(args.gt, args.pred, args.expressions, args.workers), print_expressions


def _score_mevis(args: argparse.Namespace) -> Scored:
    # Imported here: the other tasks need no PyTorch, and each of their processes would load it.
    from datasets.mevis import AUTO_VERSION, read_truth

    videos, version = read_truth(args.gt, args.version or AUTO_VERSION)
    return score_unions(videos, args.pred, version, args.workers), print_mevis


def _score_ref_davis(args: argparse.Namespace) -> Scored:
    listed = default_expressions(args.gt)
    sequences = _sequences(args) or (described_videos(listed) if listed.is_file() else None)
    return score_ref_davis(args.gt, args.pred, sequences, args.workers), print_ref_davis


def _score_davis(args: argparse.Namespace) -> Scored:
    return score_davis(args.gt, args.pred, args.task, _sequences(args), args.workers), print_davis


SCORES: dict[str, Callable[[argparse.Namespace], Scored]] = {
    EXPRESSIONS: _score_expressions,
    MEVIS: _score_mevis,
    REF_DAVIS: _score_ref_davis,
    SEMI_SUPERVISED: _score_davis,
    UNSUPERVISED: _score_davis,
}


def _sequences(args: argparse.Namespace) -> list[str] | None:
    return None if args.sequences is None else read_sequences(args.sequences)


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


def print_mevis(scores: dict[str, Any]) -> None:
    """Tables per kind of sentence and per video, the mean over all expressions last; the accuracy without target."""
    parts = {"with target": scores.get("with_target"), "without target": scores.get("without_target")}
    total = {**scores["global"], "expressions": len(scores["per_expression"])}
    print(f"MeViS {scores['version']}")
    for name, groups in (("video", scores["per_video"]), ("sentences", parts)):
        rows = [(label, row) for label, row in [*groups.items(), ("mean", total)] if row]
        print_table(
            [name, "expressions", "J&F", "J", "F"],
            [[label, str(row["expressions"]), *(percent(row[key]) for key in ("JF", "J", "F"))] for label, row in rows],
        )
    if parts["without target"]:
        print(f"\nwithout target and without any mask: {percent(parts['without target']['accuracy'])} %")


def print_ref_davis(scores: dict[str, Any]) -> None:
    """A table for matched and one for fixed identities: a row per annotation, their mean last."""
    for name, task in TASKS.items():
        rows = {f"annotation {number}": row for number, row in enumerate(scores[name]["annotations"])}
        print_davis_table(f"{name} ({task})", {**rows, "mean": scores[name]["mean"]})


def print_davis(scores: dict[str, Any]) -> None:
    """A table per sequence (means over its objects), the mean over all objects last."""
    rows = {}
    for name, frames in scores["per_frame"].items():
        rows[name] = mean_over_objects([scores["per_object"][f"{name}_{k}"] for k in range(1, len(frames["J"]) + 1)])
    objects = {name: len(frames["J"]) for name, frames in scores["per_frame"].items()}
    print_davis_table("video", {**rows, "mean": scores["global"]}, {**objects, "mean": len(scores["per_object"])})


def print_davis_table(title: str, rows: dict[str, dict[str, float]], objects: dict[str, int] | None = None) -> None:
    """One row of DAVIS's numbers per label, the mean last; with the number of objects where it is given."""
    keys = ["J&F", "JM", "JR", "JD", "FM", "FR", "FD"]
    titles = ["J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay"]
    print_table(
        [title, *(["objects"] if objects else []), *titles],
        [
            [label, *([str(objects[label])] if objects else []), *(percent(row[key]) for key in keys)]
            for label, row in rows.items()
        ],
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
