"""How many clips a second one worker of each loader gives, at the datasets' real frame sizes.

    python -m scripts.benchmark_data
    python -m scripts.benchmark_data a2d refcoco --seconds 20 --workers 2

A few videos and images are generated in a temporary folder in the true formats, and read with the published
augmentation, or, in the splits that are scored frame by frame, the resize of an evaluation. The rate is that of the
loader with its collation; a clip's time on the processor is measured without it, in one thread, and does not change
when others use the machine.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from util.benchmarks import EVAL_SPLITS
from util.errors import Parser, UserError, help_asked, run_cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(prog="python -m scripts.benchmark_data", description="Measure how fast the loaders give clips.")
    parser.add_argument(
        "datasets", nargs="*", metavar="DATASET", help=f"some of {', '.join(EVAL_SPLITS)} (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=10, help="least time of each measurement (default: 10)")
    parser.add_argument("--workers", type=int, default=1, help="processes that load (default: 1)")
    parser.add_argument("--num_frames", type=int, default=5, help="frames of a clip (default: 5)")
    parser.add_argument("--length", type=int, help="frames of a video (default: the dataset's usual number)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of frames (default: usual)")
    args = parser.parse_args(argv)
    unknown = [name for name in args.datasets if name not in EVAL_SPLITS]
    if unknown:
        raise UserError(f"unknown dataset {unknown[0]!r}; choose some of {', '.join(EVAL_SPLITS)}")
    for name in ("seconds", "workers", "num_frames", "length"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} must be above 0, not {value}")
    return args


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    parse_args()

import cv2
import torch

from datasets import build_dataset
from datasets.clip import ClipDataset, ClipLoader, collate
from datasets.davis import convert_davis
from datasets.refcoco_prepare import convert_refcoco
from datasets.toy import make_toy
from tests.true_formats import write_toy_a2d, write_toy_davis, write_toy_jhmdb, write_toy_mevis, write_toy_refcoco
from util.config import Config

MULTIPLE = 32  # to which batches are padded


@dataclass(frozen=True)
class Source:
    """A dataset's size on disk, and how some of it is generated.

    Attributes:
        option: of the configuration, that names its folder.
        frames: of a video; 1 for images.
        height, width: the usual size of its frames.
        splits: that are read.
        write: called with the folder, frames, height and width.
    """

    option: str
    frames: int
    height: int
    width: int
    splits: tuple[str, ...]
    write: Callable[[Path, int, int, int], object]


def _ytvos(root: Path, frames: int, height: int, width: int) -> None:
    make_toy(root, num_train=2, num_valid=0, num_test=0, frames=frames, height=height, width=width)


def _davis(root: Path, frames: int, height: int, width: int) -> None:
    raw = root.with_name("davis_distributed")
    write_toy_davis(raw, num_train=2, num_valid=1, frames=frames, height=height, width=width)
    convert_davis(raw, root)


def _mevis(root: Path, frames: int, height: int, width: int) -> None:
    write_toy_mevis(root, num_train=2, num_valid_u=0, num_valid=0, frames=frames, height=height, width=width)


def _a2d(root: Path, frames: int, height: int, width: int) -> None:
    write_toy_a2d(root, num_train=2, num_test=2, frames=frames, height=height, width=width)


def _jhmdb(root: Path, frames: int, height: int, width: int) -> None:
    write_toy_jhmdb(root, num_videos=2, frames=frames, height=height, width=width)


def _refcoco(name: str, root: Path, frames: int, height: int, width: int) -> None:
    raw = root.with_name(f"refer_{name}")
    write_toy_refcoco(raw, num_train=6, num_eval=3, height=height, width=width, sets=(name,))
    convert_refcoco(name, raw, root, raw / "train2014")


SOURCES = {
    "ytvos": Source("ytvos_path", 27, 720, 1280, ("train",), _ytvos),
    "davis": Source("davis_path", 66, 480, 854, ("train",), _davis),
    "mevis": Source("mevis_path", 79, 720, 1280, ("train",), _mevis),
    "a2d": Source("a2d_path", 136, 320, 568, ("train", "test"), _a2d),
    "jhmdb": Source("jhmdb_path", 34, 240, 320, ("test",), _jhmdb),
    **{
        name: Source("coco_path", 1, 480, 640, ("train", "val"), partial(_refcoco, name))
        for name in ("refcoco", "refcoco+", "refcocog")
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Generate, measure and print."""
    args = parse_args(argv)
    names = list(dict.fromkeys(args.datasets)) or list(SOURCES)
    print(f"{args.workers} worker(s), clips of {args.num_frames} frames, at least {args.seconds:g} s each")
    print(
        f"{'dataset':<10} {'split':<6} {'on disk':>10} {'clips/s per worker':>19} {'processor ms/clip':>18}", flush=True
    )
    for name in names:
        source = SOURCES[name]
        height, width = args.size or (source.height, source.width)
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, name)
            source.write(root, args.length or source.frames, height, width)
            for split in source.splits:
                paths: dict[str, Any] = {source.option: str(root)}
                dataset = build_dataset(Config(dataset_file=name, num_frames=args.num_frames, **paths), split)
                alone = processor_time(dataset, args.seconds / 2)
                rate = clips_per_second(dataset, args.workers, args.seconds) / args.workers
                on_disk = f"{width}×{height}"
                print(f"{name:<10} {split:<6} {on_disk:>10} {rate:>19.2f} {1000 * alone:>18.0f}", flush=True)


def processor_time(dataset: ClipDataset, seconds: float) -> float:
    """Seconds of the processor that a clip takes, the mean over at least so many of them, in this process."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    dataset[0]  # what is loaded at first use
    started, count = time.process_time(), 0
    while time.process_time() - started < seconds:
        dataset[count % len(dataset)]
        count += 1
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])
    return (time.process_time() - started) / count


def clips_per_second(dataset: ClipDataset, workers: int, seconds: float) -> float:
    """Clips a second of a loader with so many workers, over at least so many seconds after each has given its first."""
    loader = ClipLoader(
        dataset,
        batch_size=1,
        shuffle=True,
        num_workers=workers,
        collate_fn=partial(collate, multiple=MULTIPLE),
        persistent_workers=True,
    )
    clips: Iterator[object] = chain.from_iterable(iter(lambda: loader, None))
    for _ in range(2 * workers + 1):  # what the workers have begun with is ready before the clock starts
        next(clips)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(clips)
        count += 1
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    run_cli(main)
