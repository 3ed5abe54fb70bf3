"""Convert distributed datasets to the layouts that the loaders read.

python -m scripts.prepare_data davis --davis_root <folder> --output_dir <folder>
python -m scripts.prepare_data refcoco --refer_root <folder> --images <folder> --output_dir <folder>
python -m scripts.prepare_data a2d --a2d_root <folder>
python -m scripts.prepare_data import --format coco --videos <folder> --annotations <files> --output_dir <folder>
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datasets.registry import DATASETS
from util.errors import Parser, printable, run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the dataset that the command line names, and report what the result holds."""
    args = parse_args(argv)
    if args.dataset == "davis":
        from datasets.davis import convert_davis

        summary = convert_davis(args.davis_root, args.output_dir, args.copy, args.workers)
        print(f"Ref-DAVIS17 in the layout of Ref-YouTube-VOS: {args.output_dir}")
    elif args.dataset == "a2d":
        from datasets.a2d import convert_a2d

        summary = convert_a2d(args.a2d_root, args.output_dir, args.workers)
        print(f"A2D-Sentences, lists of sentences and ground truth: {args.output_dir or args.a2d_root}")
    elif args.dataset == "import":
        from datasets.imports import import_annotations

        summary = import_annotations(
            args.format, args.videos, args.annotations, args.sentences, args.output_dir, args.valid
        )
        print(f"your videos in the layout of Ref-YouTube-VOS: {args.output_dir}")
    else:
        from datasets.refcoco import convert_refcoco

        summary = convert_refcoco(args.dataset, args.refer_root, args.output_dir, args.images, args.copy)
        print(f"{args.dataset}: {args.output_dir}")
    names = [
        name for name in ("videos", "frames", "images", "objects", "expressions", "items") if getattr(summary, name)
    ]
    for split in summary.expressions:
        print(f"  {split}: " + ", ".join(f"{getattr(summary, name)[split]} {name}" for name in names))
    for note in summary.notes:
        print(f"note: {printable(note)}")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None means the process's own)."""
    parser = Parser(
        description="Convert a distributed dataset or your own annotations to the layout that a loader reads, or make "
        "the lists that it needs. Ref-YouTube-VOS, MeViS, Long-RVOS, ReVOS and JHMDB-Sentences need no preparation "
        "(docs/data.md). Images, masks and tables of the source are only read."
    )
    datasets = parser.add_subparsers(dest="dataset", required=True)
    davis = datasets.add_parser("davis", help="convert Ref-DAVIS17 to the layout of Ref-YouTube-VOS")
    davis.add_argument("--davis_root", type=Path, required=True, help="holds DAVIS/ and davis_text_annotations/")
    davis.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parsers = [davis]
    for name in (row.name for row in DATASETS.values() if row.module == "refcoco"):
        refcoco = datasets.add_parser(name, help=f"convert {name} to one COCO file per split")
        refcoco.add_argument(
            "--refer_root",
            type=Path,
            required=True,
            help=f"holds refs(…).p and instances.json, or a folder {name} with them",
        )
        refcoco.add_argument(
            "--images", type=Path, help="COCO's train2014 images; without it they are in OUTPUT_DIR/train2014 already"
        )
        parsers.append(refcoco)
    for dataset in parsers:
        dataset.add_argument("--output_dir", type=Path, required=True, help="folder of the result")
        dataset.add_argument("--copy", action="store_true", help="copy the images; without it they are linked")
    a2d = datasets.add_parser("a2d", help="make the lists of sentences and the ground truth of A2D-Sentences")
    a2d.add_argument("--a2d_root", type=Path, required=True, help="holds Release/ and text_annotations/")
    a2d.add_argument(
        "--output_dir",
        type=Path,
        help="folder for the lists and the ground truth (default: A2D_ROOT, where the loader reads them)",
    )
    a2d.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    own = datasets.add_parser("import", help="convert your own videos and annotations to the layout of Ref-YouTube-VOS")
    own.add_argument("--format", choices=("coco", "ytvis", "masks"), required=True, help="format of the annotations")
    own.add_argument("--videos", type=Path, required=True, help="holds a video or a folder of frames for each video")
    own.add_argument(
        "--annotations",
        type=Path,
        required=True,
        help="a JSON file, or a folder of one for each video; masks: holds <video>/<frame>.png, value = object, or "
        "<video>/<object>/<frame>.png",
    )
    own.add_argument(
        "--sentences",
        default="category",
        help="where the sentences are: category, attribute:NAME, or a CSV file with the columns video, object and "
        "sentence (default: category)",
    )
    own.add_argument("--output_dir", type=Path, required=True, help="new folder of the result")
    own.add_argument("--valid", type=int, default=0, help="number of videos, the last by name, to validate on")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_cli(main)
