"""Make baselines to compare scores with: masks that ignore the sentence, and sentences about another object.

    python -m scripts.baselines largest --gt <root>/valid/Annotations --expressions <file> --output_dir <folder>
    python -m scripts.baselines swap --expressions <file> --output <file>

``largest`` predicts the largest object of the video, taken from the ground truth, for every expression. ``swap`` writes
an expressions file in which each sentence describes another object of the same video while ``obj_id`` stays; a model
that reads its sentences scores far lower on it. Negatives (sentences that refer to nothing) are left out of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from datasets.expressions import VideoEntry, read_expressions
from datasets.files import require_folder, require_outside_dataset
from datasets.predictions import mask_path, read_index_mask, write_mask
from util.errors import Parser, UserError, run_cli
from util.files import read_json, write_json
from util.metrics import VOID
from util.parallel import map_videos


def main(argv: Sequence[str] | None = None) -> None:
    """Make the baseline that the command line names."""
    args = parse_args(argv)
    if args.command == "largest":
        run_largest(args.gt, args.expressions, args.output_dir, args.workers)
    else:
        run_swap(args.expressions, args.output)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``argv`` without the program's name; None: that of the process)."""
    parser = Parser(description="Make baselines to compare scores with.")
    commands = parser.add_subparsers(dest="command", required=True)
    largest = commands.add_parser("largest", help="masks: the largest object of its video for every expression")
    largest.add_argument("--gt", type=Path, required=True, help="masks <video>/<frame>.png, value = object id")
    largest.add_argument("--expressions", type=Path, required=True, help="meta_expressions.json")
    largest.add_argument("--output_dir", type=Path, required=True, help="gets Annotations/<video>/<exp_id>/<frame>.png")
    largest.add_argument("--workers", type=int, default=1, help="processes")
    swap = commands.add_parser("swap", help="expressions file: every sentence describes another object of its video")
    swap.add_argument("--expressions", type=Path, required=True, help="meta_expressions.json with obj_id")
    swap.add_argument("--output", type=Path, required=True, help="the new expressions file")
    return parser.parse_args(argv)


def run_largest(gt: Path, expressions: Path, output_dir: Path, workers: int = 1) -> None:
    """Write the largest object of every video for all its expressions, and print a report.

    Videos without a folder in ``gt`` are left out, because the valid file also lists the test videos.

    Raises:
        UserError: a folder or file is missing, a mask is broken, or no video has a folder in ``gt``.
    """
    require_folder(gt, "the ground truth, one folder of masks per video")
    require_outside_dataset(output_dir, "--output_dir")
    listed = read_expressions(expressions, "valid")
    videos = [(name, video) for name, video in listed.items() if (gt / name).is_dir()]
    if not videos:
        raise UserError(
            f"none of the {len(listed)} videos of {expressions} has a folder in {gt}; do they belong together?"
        )
    map_videos(partial(write_largest, gt, output_dir), videos, workers)
    count = sum(len(video.expressions) for _, video in videos)
    print(f"largest object of {len(videos)} videos written for {count} expressions below {output_dir}")
    if len(videos) < len(listed):
        print(f"left out: {len(listed) - len(videos)} listed videos that have no masks in {gt}")


def write_largest(gt: Path, output_dir: Path, named_video: tuple[str, VideoEntry]) -> None:
    """Write the masks of one video below ``output_dir``: its largest object for every expression."""
    name, video = named_video
    masks = [read_index_mask(gt / name / f"{frame}.png") for frame in video.frames]
    largest = largest_object(masks)
    for frame, mask in zip(video.frames, masks, strict=True):
        for exp_id in video.expressions:
            write_mask(mask_path(output_dir, name, exp_id, frame), (mask == largest) & (mask != 0))


def largest_object(masks: Sequence[np.ndarray]) -> int:
    """Return the id with most pixels over all frames (the lowest of equals); 0 if the video has no object.

    Args:
        masks: uint8 [H, W] each, value = object id, 0 = background, 255 = void.
    """
    pixels = np.sum([np.bincount(mask.ravel(), minlength=256) for mask in masks], axis=0)
    pixels[[0, VOID]] = 0
    return int(pixels.argmax())


def run_swap(expressions: Path, output: Path) -> None:
    """Write the expressions file with swapped sentences, and print a report.

    Raises:
        UserError: the file is missing or malformed, or no sentence could be swapped.
    """
    if output.resolve() == expressions.resolve():
        raise UserError(f"--output is the expressions file itself ({output}); name another file")
    content = read_json(expressions, "the expressions")
    videos = read_expressions(expressions, "valid")
    swapped = {name: swap_sentences(video) for name, video in videos.items()}
    if not any(swapped.values()):
        raise UserError(
            f"{expressions} has no video with sentences of two objects (by obj_id); swapping needs such a file"
        )
    content["videos"] = {name: content["videos"][name] for name, sentences in swapped.items() if sentences}
    for name, video in content["videos"].items():
        original = video["expressions"]
        video["expressions"] = {key: {**original[key], "exp": sentence} for key, sentence in swapped[name].items()}
    write_json(output, content)

    listed = [expression for video in videos.values() for expression in video.expressions.values()]
    count = sum(map(len, swapped.values()))
    alone = sum(expression.obj_id is not None for expression in listed) - count
    negatives = sum(expression.negative for expression in listed)
    unknown = len(listed) - count - alone - negatives
    print(f"{count} sentences swapped in {output}")
    for left_out, what in (
        (alone, "expressions whose video has no sentence about another object"),
        (negatives, "negatives, sentences that refer to nothing"),
        (unknown, "expressions without obj_id (test videos have none)"),
    ):
        if left_out:
            print(f"left out: {left_out} {what}")


def swap_sentences(video: VideoEntry) -> dict[str, str]:
    """Choose a sentence about another object for each expression with an ``obj_id``, where there is one.

    A sentence of the same kind is preferred, then the next one in the order of the file, so that sentences are reused
    evenly. The same text about another object does not count.

    Returns:
        expression id → sentence.
    """
    order = list(video.expressions)
    swapped = {}
    for place, exp_id in enumerate(order):
        own = video.expressions[exp_id]
        following = [video.expressions[other_id] for other_id in order[place + 1 :] + order[:place]]
        others = [
            other for other in following if other.obj_id not in (None, own.obj_id) and other.caption != own.caption
        ]
        if own.obj_id is not None and others:
            # min() keeps the first of equals.
            swapped[exp_id] = min(others, key=lambda other: other.kind != own.kind).caption
    return swapped


if __name__ == "__main__":
    run_cli(main)
