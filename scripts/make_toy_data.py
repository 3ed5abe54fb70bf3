"""Make the toy benchmark: generated videos of moving shapes with sentences, in the layout of Ref-YouTube-VOS."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datasets.toy import LOOKS, make_toy
from datasets.toy.scene import KINDS
from util.errors import Parser, run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """Write the set that the command line describes and print its counts."""
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder of the dataset")
    parser.add_argument("--train_videos", type=int, default=400, help="videos for training")
    parser.add_argument("--valid_videos", type=int, default=40, help="videos for validation")
    parser.add_argument(
        "--test_videos", type=int, default=4, help="videos without masks; the expressions file of valid lists them too"
    )
    parser.add_argument("--num_frames", type=int, default=8, help="frames per video")
    parser.add_argument("--height", type=int, default=64, help="height of a frame in pixels")
    parser.add_argument("--width", type=int, default=96, help="width of a frame in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the videos and sentences")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of sentences")
    parser.add_argument("--negatives", type=int, default=0, help="sentences per video that refer to nothing in it")
    parser.add_argument(
        "--look", choices=LOOKS, default=LOOKS[0], help="night: every third training video and all others are dark"
    )
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    parser.add_argument(
        "--force", action="store_true", help="replace a toy set with other parameters, or a damaged one"
    )
    options = vars(parser.parse_args(argv))
    root, frames = options.pop("output_dir"), options.pop("num_frames")
    counts = {f"num_{split}": options.pop(f"{split}_videos") for split in ("train", "valid", "test")}
    summary = make_toy(root, frames=frames, **counts, **options)
    print(f"toy data {'written to' if summary.created else 'already complete in'} {root}")
    for split, count in summary.videos.items():
        kinds = ", ".join(f"{kind} {number}" for kind, number in summary.kinds[split].items())
        print(f"  {split}: {count} videos, {summary.expressions[split]} expressions ({kinds})")


if __name__ == "__main__":
    run_cli(main)
