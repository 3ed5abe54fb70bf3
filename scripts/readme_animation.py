"""Draw the README's animation: generated videos that the carried model has never seen, with the masks it finds.

    python -m scripts.readme_animation [--resume toy/vdit.safetensors] [--output docs/animation.webp]

The videos are the first ones of a set in which two or three objects stay clear of each other, so that it can be seen
what is meant. How well the model does decides nothing; it is printed.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from util.command_line import Parser
from util.errors import UserError, help_asked, run_cli

HEIGHT, WIDTH, FRAMES, RATE = 280, 420, 16, 8  # pixels, frames, frames per second


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(prog="python -m scripts.readme_animation", description=__doc__.split("\n")[0])
    parser.add_argument("--resume", default="toy/vdit.safetensors", help="checkpoint (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/animation.webp"), help="default: %(default)s")
    parser.add_argument("--videos", type=int, default=4, help="how many, in rows of two (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each, at least 4 (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    parse_args()

import numpy as np
from PIL import Image

from datasets.toy import ToyParameters, ToyVideo, make_video
from datasets.toy.scene import KINDS, full_areas, render_frames
from models.pretrained import Pretrained, load_pretrained
from util.io import atomic_path
from util.metrics import expression_scores
from util.object_overlays import ObjectPainter
from util.visualisation import PAPER, Picture

SEED = 2026  # of a set that nothing was trained on or chosen by
SPLIT = "valid"
COLUMNS, GAP = 2, 6
CLEAR = 0.97  # share of each object that is in sight in every frame, at least
OBJECTS = (2, 3)
LETTERS = 1.35  # of labels, beside their usual size
QUALITY = 80  # of WebP
REST = 700  # ms at the end


@dataclass(frozen=True)
class Shown:
    """A video with what was found in it."""

    pictures: list[Picture]
    sentences: list[str]
    scores: list[float]
    """J&F of each sentence, 0…1."""


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the animation that the command line asks for (None: the process's own)."""
    args = parse_args(argv)
    if args.videos < 1:
        raise UserError(f"--videos must be at least 1, not {args.videos}")
    if args.output.suffix != ".webp":
        raise UserError(f"--output must end in .webp, not {args.output}")
    model = load_pretrained(args.resume, args.device)
    parameters = ToyParameters(0, 1, 0, args.frames, HEIGHT, WIDTH, SEED, KINDS)
    shown = [draw(model, video) for video in islice(readable_videos(parameters), args.videos)]
    write_animation(args.output, [grid(pictures) for pictures in zip(*(one.pictures for one in shown), strict=True)])
    every = [score for one in shown for score in one.scores]
    size = args.output.stat().st_size / 1e6
    print(f"wrote {args.output} ({size:.2f} MB); J&F {100 * np.mean(every):.1f} of {len(every)} sentences:")
    for one in shown:
        print(
            " ", ", ".join(f"{text}: {100 * score:.0f}" for text, score in zip(one.sentences, one.scores, strict=True))
        )


def readable_videos(parameters: ToyParameters) -> Iterator[ToyVideo]:
    """Videos of a set, in order, in which a few objects stay clear of each other and of the edges."""
    for index in count():
        video = make_video(parameters, SPLIT, index)
        areas = full_areas(video.scene)
        if len(areas) in OBJECTS and all(
            (np.count_nonzero(video.masks == number, axis=(1, 2)) >= CLEAR * area).all()
            for number, area in areas.items()
        ):
            yield video


def draw(model: Pretrained, video: ToyVideo) -> Shown:
    """Segment a video by one sentence for each of its objects, the first one made, and draw its overlays."""
    sentences: dict[int, str] = {}
    for sentence in video.sentences:
        if sentence.obj_id is not None:
            sentences.setdefault(sentence.obj_id, sentence.text)
    frames = render_frames(video.scene)
    result = model.segment(frames, list(sentences.values()))
    masks = np.stack([found.masks for found in result.sentences], axis=1)  # [T, S, H, W]
    painter = ObjectPainter(list(sentences.values()), frames.shape[1:3], LETTERS)
    scores = [
        float(np.mean(expression_scores(video.masks == number, masks[:, i]))) for i, number in enumerate(sentences)
    ]
    pictures = [painter.draw(frame, mask) for frame, mask in zip(frames, masks, strict=True)]
    return Shown(pictures, list(sentences.values()), scores)


def grid(pictures: Sequence[Picture]) -> Picture:
    """Pictures of one size side by side, in rows."""
    height, width = pictures[0].shape[:2]
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.empty((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), np.uint8)
    sheet[:] = PAPER
    for number, picture in enumerate(pictures):
        y, x = (GAP + i * (side + GAP) for i, side in zip(divmod(number, columns), (height, width), strict=True))
        sheet[y : y + height, x : x + width] = picture
    return sheet


def write_animation(path: Path, pictures: Sequence[Picture]) -> None:
    """Write pictures as an animated WebP that repeats and rests at its end.

    Raises:
        UserError: the file cannot be written.
    """
    first, *others = [Image.fromarray(picture) for picture in pictures]
    times = [1000 // RATE] * len(others) + [REST]
    with atomic_path(path) as temporary:
        first.save(temporary, save_all=True, append_images=others, duration=times, loop=0, quality=QUALITY, method=6)


if __name__ == "__main__":
    run_cli(main)
