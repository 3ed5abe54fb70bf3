"""How long J and F take, beside a plain form of their definition on the same masks.

    python -m scripts.benchmark_jf                                # the size of DAVIS-2017 val
    python -m scripts.benchmark_jf --sequences 3 --frames 60 --objects 6
    python -m scripts.benchmark_jf --files                        # and with the reading of PNG files

The masks are drawn: objects with an uneven outline that move over one another, whose boxes are as large as DAVIS's are,
and predictions that are shifted and bent a little. Each way of scoring runs by itself in a fresh process, on one core;
seconds are those of the processor, without the drawing. The plain form computes every object's boundary, dilation and
counts on whole frames, by OpenCV and NumPy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from datasets.predictions import write_index_mask
from datasets.scoring import SEMI_SUPERVISED, score_davis
from util.errors import Parser, RunError, UserError, run_cli
from util.metrics import boundary_radius, fixed_scores

AGREEMENT = 1e-9
LEAST_RATIO = 2
BOX_SHARE = (0.03, 0.4)  # of the frame; in DAVIS-2017 the mean is 0.19

Pair = tuple[np.ndarray, np.ndarray]  # truth and prediction, object ids, uint8 [H, W]
Score = Callable[[Iterable[Pair], int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Workload:
    """What is scored. The defaults are the sizes of DAVIS-2017 val."""

    sequences: int = 30
    frames: int = 1999
    objects: int = 61
    height: int = 480
    width: int = 854
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("sequences", 1), ("frames", self.sequences), ("objects", self.sequences), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        if min(self.height, self.width) < 32 or self.objects > 254 * self.sequences:
            raise UserError("frames must have sides of at least 32 pixels, and a sequence at most 254 objects")

    def share(self, total: int, number: int) -> int:
        """The part of a total that falls to a sequence."""
        return total * (number + 1) // self.sequences - total * number // self.sequences

    def objects_of(self, number: int) -> int:
        """Number of objects of a sequence."""
        return self.share(self.objects, number)


@dataclass(frozen=True)
class Measured:
    """Seconds of the processor, peak of memory in MB, and J and F of all objects and frames in one row."""

    seconds: float
    megabytes: float
    scores: np.ndarray


def draw_sequence(workload: Workload, number: int) -> Iterator[Pair]:
    """Truth and prediction of every frame of a sequence."""
    rng = np.random.default_rng([workload.seed, number])
    objects, size = workload.objects_of(number), np.array([workload.width, workload.height])
    areas, stretch = rng.uniform(*BOX_SHARE, objects), np.exp(rng.uniform(-0.5, 0.5, objects))
    radii = np.stack([np.sqrt(areas * stretch), np.sqrt(areas / stretch)], axis=1) * size / 2
    centres, steps = rng.uniform(0.2, 0.8, (objects, 2)) * size, rng.uniform(-0.005, 0.005, (objects, 2)) * size
    bends, shifts = rng.normal(0, 0.04, (2, objects, 8)), rng.normal(0, 0.01, (objects, 2)) * size
    for frame in range(workload.share(workload.frames, number)):
        middles = centres + steps * frame
        truth = _draw(workload, middles, radii, bends[0])
        yield truth, _draw(workload, middles + shifts, radii, bends[0] + bends[1] / 4)


def _draw(workload: Workload, centres: np.ndarray, radii: np.ndarray, bends: np.ndarray) -> np.ndarray:
    """Object ids, uint8 ``[H, W]``: outlines about the centres, bent by waves of 1, 2, … about the circle."""
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    waves = np.cos(np.arange(1, bends.shape[1] + 1)[:, None] * angles)
    ids = np.zeros((workload.height, workload.width), np.uint8)
    for number, (centre, radius, bend) in enumerate(zip(centres, radii, bends, strict=True), start=1):
        outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (1 + bend @ waves)[:, None] * radius + centre
        cv2.fillPoly(ids, [outline.round().astype(np.int32)], number)
    return ids


def plain_scores(frames: Iterable[Pair], objects: int) -> tuple[np.ndarray, np.ndarray]:
    """J and F ``[objects, T]`` straight from their definition, on whole frames."""
    scores = np.array([[_plain_pair(truth == k, guess == k) for k in range(1, objects + 1)] for truth, guess in frames])
    return scores[..., 0].T, scores[..., 1].T


def _plain_pair(truth: np.ndarray, guess: np.ndarray) -> tuple[float, float]:
    union = np.sum(truth | guess)
    j = np.sum(truth & guess) / union if union else 1.0
    edges = _plain_boundary(truth), _plain_boundary(guess)
    lengths = np.sum(edges[0]), np.sum(edges[1])
    if not lengths[0] or not lengths[1]:
        return j, float(lengths[0] == lengths[1])
    radius = boundary_radius(*truth.shape)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    reach = [cv2.dilate(edge.astype(np.uint8), disk).astype(bool) for edge in edges]
    precision, recall = np.sum(edges[1] & reach[0]) / lengths[1], np.sum(edges[0] & reach[1]) / lengths[0]
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _plain_boundary(mask: np.ndarray) -> np.ndarray:
    east, south, corner = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1], south[:-1], corner[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = (mask ^ east) | (mask ^ south) | (mask ^ corner)
    edge[-1], edge[:, -1] = (mask ^ east)[-1], (mask ^ south)[:, -1]
    edge[-1, -1] = False
    return edge


def measure(score: Score, workload: Workload) -> Measured:
    """Score all sequences by one way, in this process."""
    cv2.setNumThreads(1)
    seconds, scores = 0.0, []
    for number in range(workload.sequences):
        drawing = _Clocked(draw_sequence(workload, number))
        started = time.process_time()
        j, f = score(drawing, workload.objects_of(number))
        seconds += time.process_time() - started - drawing.seconds
        scores += [j.ravel(), f.ravel()]
    return Measured(seconds, _peak_megabytes(), np.concatenate(scores))


def measure_files(truth: Path, guess: Path) -> Measured:
    """Score a folder of PNG files, in this process; the first and the last frame of a sequence are left out."""
    cv2.setNumThreads(1)
    started = time.process_time()
    report = score_davis(truth, guess, SEMI_SUPERVISED)
    seconds = time.process_time() - started
    return Measured(seconds, _peak_megabytes(), np.array([report["global"]["JM"], report["global"]["FM"]]))


class _Clocked:
    """Hands on what an iterator gives, and adds up the seconds that it takes."""

    def __init__(self, frames: Iterator[Pair]) -> None:
        self.frames = frames
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Pair]:
        return self

    def __next__(self) -> Pair:
        started = time.process_time()
        try:
            return next(self.frames)
        finally:
            self.seconds += time.process_time() - started


def _peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def apart(function: Callable[..., Measured], *args: object) -> Measured:
    """Run a measurement in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(partial(function, *args)).result()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, compare and print.

    Raises:
        RunError: the two ways do not agree.
    """
    args = parse_args(argv)
    values = {name: getattr(args, name) for name in Workload.__dataclass_fields__}
    workload = Workload(**values)
    print(
        f"J and F of {workload.objects} objects in {workload.sequences} sequences, {workload.frames} frames of "
        f"{workload.width}×{workload.height}, on one core",
        flush=True,
    )
    ours = apart(measure, fixed_scores, workload)
    _tell("this project", ours)
    plain = apart(measure, plain_scores, workload)
    _tell("plain OpenCV form", plain)
    difference = float(np.abs(ours.scores - plain.scores).max())
    print(f"ratio {plain.seconds / ours.seconds:.1f} (at least {LEAST_RATIO}), greatest difference {difference:.1e}")
    if difference > AGREEMENT:
        raise RunError(f"the two ways differ by {difference:.1e}, and must agree to {AGREEMENT}")
    if args.files:
        with tempfile.TemporaryDirectory() as folder:
            truth, guess = Path(folder, "truth"), Path(folder, "guess")
            for number in range(workload.sequences):
                for frame, pair in enumerate(draw_sequence(workload, number)):
                    for root, ids in zip((truth, guess), pair, strict=True):
                        write_index_mask(root / f"{number:03d}" / f"{frame:05d}.png", ids)
            _tell("with the PNG files", apart(measure_files, truth, guess))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(prog="python -m scripts.benchmark_jf", description="Measure J and F.")
    whole = Workload()
    for name in Workload.__dataclass_fields__:
        default = getattr(whole, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--files", action="store_true", help="also score PNG files, in a temporary folder")
    return parser.parse_args(argv)


def _tell(name: str, measured: Measured) -> None:
    print(f"  {name:<20}{measured.seconds:8.2f} s {measured.megabytes:8.0f} MB", flush=True)


if __name__ == "__main__":
    run_cli(main)
