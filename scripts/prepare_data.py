"""Convert distributed datasets to the layouts that the loaders read.

python -m scripts.prepare_data davis --davis_root <folder> --output_dir <folder>
python -m scripts.prepare_data refcoco --refer_root <folder> --images <folder> --output_dir <folder>
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datasets.davis import convert_davis
from datasets.refcoco_prepare import REFERENCES, convert_refcoco
from util.errors import Parser, run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the dataset that the command line names."""
    args = parse_args(argv)
    args.run(args)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(
        prog="python -m scripts.prepare_data",
        description="Convert a distributed dataset to the layout that its loader reads. The source is only read, and "
        "a conversion can be repeated: it completes what is missing.",
    )
    datasets = parser.add_subparsers(dest="dataset", required=True)
    davis = datasets.add_parser("davis", help="Ref-DAVIS17 to the layout of Ref-YouTube-VOS")
    davis.add_argument("--davis_root", type=Path, required=True, help="holds DAVIS/ and davis_text_annotations/")
    davis.add_argument("--output_dir", type=Path, required=True, help="folder of the result")
    davis.add_argument("--copy", action="store_true", help="copy the images; without it they are linked")
    davis.add_argument("--workers", type=int, default=1, help="processes")
    davis.set_defaults(run=prepare_davis)
    for name, references in REFERENCES.items():
        refcoco = datasets.add_parser(name, help=f"{name} to one COCO file per split")
        refcoco.add_argument(
            "--refer_root",
            type=Path,
            required=True,
            help=f"holds {references} and instances.json, or a folder {name}",
        )
        refcoco.add_argument("--output_dir", type=Path, required=True, help="folder of the result")
        refcoco.add_argument(
            "--images", type=Path, help="COCO's train2014 images; without it they are in OUTPUT_DIR/train2014 already"
        )
        refcoco.add_argument("--copy", action="store_true", help="copy the images; without it they are linked")
        refcoco.set_defaults(run=prepare_refcoco)
    return parser.parse_args(argv)


def prepare_davis(args: argparse.Namespace) -> None:
    """Convert Ref-DAVIS17 and report what the result holds."""
    summary = convert_davis(args.davis_root, args.output_dir, args.copy, args.workers)
    print(f"Ref-DAVIS17 in the layout of Ref-YouTube-VOS: {args.output_dir}")
    for split, videos in summary.videos.items():
        print(f"  {split}: {videos} videos, {summary.frames[split]} frames, {summary.expressions[split]} expressions")
    for note in summary.notes:
        print(f"note: {note}")


def prepare_refcoco(args: argparse.Namespace) -> None:
    """Convert RefCOCO, RefCOCO+ or RefCOCOg and report what the result holds."""
    summary = convert_refcoco(args.dataset, args.refer_root, args.output_dir, args.images, args.copy)
    print(f"{args.dataset}: {args.output_dir}")
    for split, expressions in summary.expressions.items():
        print(f"  {split}: {summary.images[split]} images, {summary.objects[split]} objects, {expressions} expressions")
    for note in summary.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    run_cli(main)
