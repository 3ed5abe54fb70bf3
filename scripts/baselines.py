"""What scores mean something against: masks without reading the sentence, and sentences about another object.

    python -m scripts.baselines largest --gt <root>/valid/Annotations --expressions <file> --output_dir <folder>
    python -m scripts.baselines swap --expressions <file> --output <file>

``largest`` gives every expression its video's largest object, taken from the ground truth. ``swap`` writes an
expressions file in which each sentence speaks of another object of the same video while ``obj_id`` stays: a model
that reads the sentences scores far lower on it. Negatives (sentences that name nothing) are left out of it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from datasets.expressions import VideoEntry, read_expressions
from datasets.predictions import mask_path, read_index_mask, write_mask
from util.command_line import Parser
from util.errors import UserError, run_cli
from util.io import read_json, write_json
from util.parallel import map_videos

VOID = 255  # in DAVIS masks: belongs to no object


def main(argv: Sequence[str] | None = None) -> None:
    """Make the baseline that the command line names."""
    args = parse_args(argv)
    if args.command == "largest":
        run_largest(args.gt, args.expressions, args.output_dir, args.workers)
    else:
        run_swap(args.expressions, args.output)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(prog="python -m scripts.baselines", description="Make baselines to score against.")
    commands = parser.add_subparsers(dest="command", required=True)
    largest = commands.add_parser("largest", help="masks: every expression gets its video's largest object")
    largest.add_argument("--gt", type=Path, required=True, help="masks <video>/<frame>.png, value = object id")
    largest.add_argument("--expressions", type=Path, required=True, help="meta_expressions.json")
    largest.add_argument("--output_dir", type=Path, required=True, help="gets Annotations/<video>/<exp_id>/<frame>.png")
    largest.add_argument("--workers", type=int, default=1, help="processes")
    swap = commands.add_parser("swap", help="expressions file: every sentence speaks of another object of its video")
    swap.add_argument("--expressions", type=Path, required=True, help="meta_expressions.json with obj_id")
    swap.add_argument("--output", type=Path, required=True, help="the new expressions file")
    return parser.parse_args(argv)


def run_largest(gt: Path, expressions: Path, output_dir: Path, workers: int = 1) -> None:
    """Write the largest object of every video as the answer to all its expressions, and report.

    Videos of the file without a folder in ``gt`` are left out: the valid file also lists test videos.

    Raises:
        UserError: a missing folder or file, a broken mask, or no video in common.
    """
    if not gt.is_dir():
        raise UserError(f"{gt} is not a folder; --gt must hold the ground truth, one folder of masks per video")
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
    """Write one video's masks below ``output_dir``: its largest object for every expression."""
    name, video = named_video
    masks = [read_index_mask(gt / name / f"{frame}.png") for frame in video.frames]
    largest = largest_object(masks)
    for frame, mask in zip(video.frames, masks, strict=True):
        for exp_id in video.expressions:
            write_mask(mask_path(output_dir, name, exp_id, frame), (mask == largest) & (mask != 0))


def largest_object(masks: Sequence[np.ndarray]) -> int:
    """The id with most pixels over all frames (the lowest of equals); 0 if the video has no object.

    Args:
        masks: uint8 [H, W] each, value = object id, 0 = background, 255 = void.
    """
    pixels = np.sum([np.bincount(mask.ravel(), minlength=256) for mask in masks], axis=0)
    pixels[[0, VOID]] = 0
    return int(pixels.argmax())


def run_swap(expressions: Path, output: Path) -> None:
    """Write the expressions file with swapped sentences, and report.

    Raises:
        UserError: the file is missing or malformed, or no sentence could be swapped.
    """
    if output.resolve() == expressions.resolve():
        raise UserError(f"--output is the expressions file itself ({output}); name another file")
    content = copy.deepcopy(read_json(expressions, "the expressions"))
    swapped = unknown = alone = negatives = 0
    for name, video in read_expressions(expressions, "valid").items():
        entries = content["videos"][name]["expressions"]
        sentences = swap_sentences(video, {exp_id: entry.get("kind") for exp_id, entry in entries.items()})
        named = sum(expression.obj_id is not None for expression in video.expressions.values())
        nameless = sum(expression.negative for expression in video.expressions.values())
        swapped += len(sentences)
        alone += named - len(sentences)
        negatives += nameless
        unknown += len(video.expressions) - named - nameless
        kept = {exp_id: {**entry, "exp": sentences[exp_id]} for exp_id, entry in entries.items() if exp_id in sentences}
        content["videos"][name]["expressions"] = kept
    if not swapped:
        raise UserError(
            f"{expressions} has no video with sentences of two objects (by obj_id); swapping needs such a file"
        )
    content["videos"] = {name: video for name, video in content["videos"].items() if video["expressions"]}
    write_json(output, content)
    print(f"{swapped} sentences swapped in {output}")
    if alone:
        print(f"left out: {alone} expressions whose video has no sentence about another object")
    if negatives:
        print(f"left out: {negatives} negatives, sentences that name nothing")
    if unknown:
        print(f"left out: {unknown} expressions without obj_id (test videos have none)")


def swap_sentences(video: VideoEntry, kinds: dict[str, str | None]) -> dict[str, str]:
    """For each expression with an ``obj_id`` a sentence of another object, where there is one.

    A sentence of the same kind is preferred, then the next one in the file's order, so that no sentence is used for
    everything. A sentence that reads the same is no other sentence.

    Args:
        kinds: expression id → kind, None where it has none.
    """
    order = list(video.expressions)
    swapped = {}
    for place, exp_id in enumerate(order):
        own = video.expressions[exp_id]
        others = [
            other_id
            for other_id in order[place + 1 :] + order[:place]
            if (other := video.expressions[other_id]).obj_id not in (None, own.obj_id) and other.caption != own.caption
        ]
        if own.obj_id is not None and others:
            # min() keeps the first of equals.
            choice = min(others, key=lambda other_id: kinds[other_id] != kinds[exp_id])
            swapped[exp_id] = video.expressions[choice].caption
    return swapped


if __name__ == "__main__":
    run_cli(main)
