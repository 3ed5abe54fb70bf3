"""Test the papers' claims at toy size (docs/toy_lab.md).

    python -m scripts.toy_lab [--seeds 0 1 2] [--only vdit hcd] [--output_dir runs/toy_lab]
    python -m scripts.toy_lab --probes

Every variant is trained from scratch with every seed on the frozen toy stack. A stopped lab resumes where it stopped.
``--probes`` instead measures what small networks read from the frozen features of the stack.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import hashlib
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

from datasets.toy.scene import FRAME_SIZE, frame_side
from util.errors import Parser, RunError, UserError, help_asked, run_cli

PROBE_VIDEOS = 300


@dataclass(frozen=True)
class Variant:
    """A model at toy size with options of ``main.py`` and ``inference_ytvos.py``."""

    name: str
    title: str
    model: str = "vdit"
    flags: tuple[str, ...] = ()
    random_stack: bool = False
    """Whether UNet, VAE and their text encoder have random weights, different ones for every seed."""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, or our own: one score, named by variant and key of ``SCORES``, is higher than another."""

    text: str
    paper: str
    better: tuple[str, str]
    worse: tuple[str, str]


VARIANTS = (
    Variant("vdit", "VD-IT: pre-trained features, sentence in the UNet"),
    Variant("random_stack", "VD-IT with random text-to-video features", random_stack=True),
    Variant("empty_sentence", "VD-IT with the empty sentence in the UNet", flags=("--no-unet_text",)),
    Variant("hcd", "HCD", "hcd"),
    Variant("rem", "REM", "rem"),
)
SCORES = {
    "jf": "J&F",
    "swapped_jf": "J&F, swapped sentences",
    "shuffled_jf": "J&F, shuffled frames",
    "tc": "TC",
    "idsw": "IDSW (lower is better)",
}
"""What a run is scored by, 0–100, and the titles of the columns."""
# VD-IT is arXiv 2403.12042, HCD arXiv 2508.13584, REM arXiv 2410.23287.
CLAIMS = (
    Claim("Pre-trained features beat random ones", "VD-IT, abstract", ("vdit", "jf"), ("random_stack", "jf")),
    Claim("Pre-trained features make masks more consistent", "VD-IT, abstract", ("vdit", "tc"), ("random_stack", "tc")),
    Claim("The sentence in the UNet helps", "VD-IT, abstract", ("vdit", "jf"), ("empty_sentence", "jf")),
    Claim("HCD beats VD-IT", "HCD, abstract", ("hcd", "jf"), ("vdit", "jf")),
    Claim("Frames in order beat shuffled ones", "–", ("vdit", "jf"), ("vdit", "shuffled_jf")),
)
CERTAIN = 2.0  # standard errors: the least difference that decides a claim
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read and check the command line (None: the process's own).

    Raises:
        UserError: a value is out of range, a variant is unknown, or there is no stack.
    """
    parser = Parser(
        prog="python -m scripts.toy_lab",
        description="Test the papers' claims at toy size.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--stack", type=Path, default=Path("toy/stack"), help="the pre-trained toy stack")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/toy_lab"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="steps on single frames; a fifth as many on clips")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, each with one thread")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME", help="variants to run")
    parser.add_argument("--train_videos", type=int, default=1500)
    parser.add_argument("--valid_videos", type=int, default=40)
    parser.add_argument("--probes", type=int, nargs="?", const=PROBE_VIDEOS, metavar="VIDEOS",
                        help="instead, train probes of the stack's features on this number of videos")  # fmt: skip
    parser.add_argument("--probe_size", type=frame_side, nargs=2, default=FRAME_SIZE, metavar=("HEIGHT", "WIDTH"),
                        help="of the probes' frames, in pixels; shapes grow with them")  # fmt: skip
    args = parser.parse_args(argv)
    for name, least in {"steps": 1, "processes": 1, "train_videos": 1, "valid_videos": 1, "probes": 5}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds must be different whole numbers of at least 0, not {args.seeds}")
    if args.probe_size is not FRAME_SIZE and not args.probes:
        raise UserError("--probe_size belongs to --probes; leave it out")
    if not args.stack.is_dir():
        raise UserError(f"{args.stack} is missing; bash scripts/train_toy.sh --stack-only makes toy/stack")
    return args


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(parse_args)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from datasets.toy import ToyParameters, make_toy, make_video
from datasets.toy.scene import COLOURS, KINDS, MOTIONS, SHAPES, render_frames
from datasets.toy.sentences import Facts
from models.diffusion.stack import FrozenStack, load_stack
from models.diffusion.tiny import make_tiny_stack
from scripts.quickstart import near
from scripts.train_toy import SIZES, STILL, Phase
from util.config import MODELS, config_dict, load_config
from util.files import ROOT, atomic_folder, atomic_path, read_json, sole_run, write_json

SAVE_EVERY = 100
POLL_SECONDS = 0.2
EXPRESSIONS = "meta_expressions/{}/meta_expressions.json"  # of a split
Scores = Mapping[str, Sequence[Mapping[str, Any]]]
"""Variant → what ``run_variant`` returns, for every seed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the lab or the probes, and print the results."""
    args = parse_args(argv)
    if args.probes:
        run_probes(args.stack, args.probes, args.probe_size)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, which also ends the child processes
    variants = [variant for variant in VARIANTS if variant.name in args.only]
    lab = Lab(args.stack.absolute(), args.output_dir.absolute(), args.steps, args.train_videos, args.valid_videos)
    with sole_run(lab.output):
        results = run_all(lab, variants, args.seeds, args.processes)
    scores = {variant.name: [results[variant.name, seed] for seed in args.seeds] for variant in variants}
    content = {"settings": {"seeds": args.seeds, **lab.settings()}, **report(scores)}
    text = render(content)
    write_json(lab.output / "lab.json", content)
    with atomic_path(lab.output / "lab.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}\nwrote {near(lab.output / 'lab.json')} and {near(lab.output / 'lab.md')}")


# Runs.


@dataclass(frozen=True)
class Lab:
    """What all runs share. Paths are absolute."""

    stack: Path
    output: Path
    steps: int = 400
    train_videos: int = 1500
    valid_videos: int = 40

    @cached_property
    def stack_hash(self) -> str:
        """SHA-256 over the names and contents of the stack's files."""
        files = sorted(path for path in self.stack.rglob("*") if path.is_file())
        hashes = [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
        lines = [f"{path.relative_to(self.stack).as_posix()} {digest}" for path, digest in hashes]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def expressions(self) -> Path:
        """The sentences of the validation."""
        return self.output / "data" / EXPRESSIONS.format("valid")

    def folder(self, variant: Variant, seed: int) -> Path:
        """The folder of a run."""
        return self.output / variant.name / f"seed_{seed}"

    def pretrained(self, variant: Variant, seed: int) -> Path:
        """The stack of a run."""
        return self.output / "random_stacks" / f"seed_{seed}" if variant.random_stack else self.stack

    def options(self, variant: Variant, seed: int) -> list[str]:
        """Flags of training and inference. Image and sentence encoder are pre-trained in every variant."""
        config, stack = ROOT / "configs" / f"{variant.model}_toy.yaml", self.pretrained(variant, seed)
        encoders = ("--image_encoder", self.stack / "clip", "--text_encoder", self.stack / "roberta")
        words = (
            *("--config", config, "--pretrained", stack, "--seed", seed),
            *(*variant.flags, *(encoders if variant.random_stack else ())),
        )
        return [str(word) for word in words]

    @cached_property
    def phases(self) -> tuple[Phase, Phase]:
        """Of every training: single frames, which are cheap, and then clips."""
        frames = Phase("frames", "single frames", "data_frames", 1, 32, self.steps, "cosine", STILL)
        clips = Phase("clips", "clips of two frames", "data", 2, 16, max(1, self.steps // 5), "cosine", KINDS, 5e-4, 20)
        return frames, clips

    def training(self, variant: Variant, seed: int, phase: Phase) -> list[str]:
        """All flags of a phase of a training but those of its start."""
        words = (
            *(*self.options(variant, seed), "--ytvos_path", self.output / phase.data),
            *("--num_frames", phase.frames, "--batch_size", phase.batch, "--max_steps", phase.steps),
            *("--epochs", phase.steps, "--lr", phase.rate, "--lr_schedule", phase.schedule),
            *("--warmup_steps", phase.warmup, "--save_every", SAVE_EVERY),
        )
        return [str(word) for word in words]

    def settings(self) -> dict[str, Any]:
        """The settings in ``lab.json``."""
        names = ("frames", "batch", "steps", "rate", "warmup", "schedule")
        phases = [{name: getattr(phase, name) for name in names} for phase in self.phases]
        counts = {"train_videos": self.train_videos, "valid_videos": self.valid_videos}
        return {"steps": self.steps, **counts, "stack": self.stack_hash, "phases": phases}

    def parameters(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Everything that determines the result of a run: options except paths, the stack, the data."""
        cfg = load_config(self.training(variant, seed, self.phases[0]), "")
        paths = {field.name for field in fields(cfg) if field.metadata["rule"].path}
        options = {name: value for name, value in config_dict(cfg).items() if name not in paths}
        return {**self.settings(), "random_stack": variant.random_stack, **options}


Results = dict[tuple[str, int], dict[str, Any]]
"""(variant, seed) → what ``run_variant`` returns."""


def run_all(lab: Lab, variants: Sequence[Variant], seeds: Sequence[int], processes: int) -> Results:
    """Do all unfinished runs, several at a time.

    Raises:
        UserError: a finished run has other parameters.
        RunError: a run failed; the others are stopped and resume with the next start.
    """
    jobs = [(variant, seed) for seed in seeds for variant in variants]  # a stopped lab has whole seeds
    results: Results = {(job[0].name, job[1]): score for job in jobs if (score := find_score(lab, *job))}
    waiting = [job for job in jobs if (job[0].name, job[1]) not in results]
    if waiting:
        prepare(lab, waiting)
    stop = threading.Event()
    with ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(run_variant, lab, *job, stop): job for job in waiting}
        try:
            for future in as_completed(futures):
                variant, seed = futures[future]
                score = results[variant.name, seed] = future.result()
                print(
                    f"[{len(results)}/{len(jobs)}] {variant.name}, seed {seed}: J&F {score['jf']:.1f}, with swapped "
                    f"sentences {score['swapped_jf']:.1f} ({score['seconds']:.0f} s)",
                    flush=True,
                )
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return results


def find_score(lab: Lab, variant: Variant, seed: int) -> dict[str, Any] | None:
    """The scores of a finished run; None if it is unfinished.

    Raises:
        UserError: the folder has a run with other parameters.
    """
    folder = lab.folder(variant, seed)
    if not (folder / "run.json").is_file():
        return None
    theirs, settings = read_json(folder / "run.json", "the parameters of a run"), lab.settings()
    for key, value in lab.parameters(variant, seed).items():
        # an option that is newer than the run had no effect on it
        found = theirs.get(key, None if key in settings else value)
        if found != value:
            raise UserError(
                f"{near(folder)} holds a run with {key} {found!r}, and this one has {value!r}; "
                "remove that folder, or choose another --output_dir"
            )
    score = folder / "score.json"
    return read_json(score, "the scores of a run") if score.is_file() else None


def prepare(lab: Lab, jobs: Sequence[tuple[Variant, int]]) -> None:
    """Write the data, the swapped sentences, the shuffled frames, and the random stacks of these runs."""
    # force: replace data of other parameters; finished runs on these are refused, here or when they are asked for
    make = partial(make_toy, num_train=lab.train_videos, num_valid=lab.valid_videos, num_test=0, force=True)
    for phase in lab.phases:
        make(lab.output / phase.data, kinds=phase.kinds)
    swap = ("-m", "scripts.baselines", "swap", "--expressions", lab.expressions)
    call([*swap, "--output", lab.output / "swapped.json"], lab.output / "log.txt", threading.Event())
    with atomic_folder(lab.output / "shuffled") as folder:
        shuffle_frames(lab.output / "data" / "valid", folder / "valid")
    videos = read_json(lab.output / "data" / EXPRESSIONS.format("train"), "the expressions")["videos"].values()
    known = [entry["exp"] for video in videos for entry in video["expressions"].values()]
    for variant, seed in jobs:
        if variant.random_stack:
            make_tiny_stack(lab.pretrained(variant, seed), known, seed, **SIZES)


def shuffle_frames(source: Path, target: Path) -> None:
    """Copy the frames and masks of a split; those of each video exchange their names at random."""
    order = random.Random(0)
    for images in sorted((source / "JPEGImages").iterdir()):
        names = sorted(path.stem for path in images.iterdir())
        for name, other in zip(names, order.sample(names, len(names)), strict=True):
            for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
                copy = target / kind / images.name / f"{other}.{ending}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / kind / images.name / f"{name}.{ending}", copy)


def run_variant(lab: Lab, variant: Variant, seed: int, stop: threading.Event) -> dict[str, Any]:
    """Train, segment and score, and resume what an earlier start left unfinished.

    Args:
        lab: prepared.
        variant: what is trained.
        seed: of its weights, batches and noise.
        stop: ends the run when it is set.

    Returns:
        the content of ``score.json``: those of ``SCORES``, ``kinds`` (``jf`` by kind of sentence) and ``seconds``
        since this start.

    Raises:
        RunError: a command failed.
    """
    started = time.monotonic()
    folder, options = lab.folder(variant, seed), lab.options(variant, seed)
    write_json(folder / "run.json", lab.parameters(variant, seed))
    log = folder / "log.txt"
    begin: tuple[str | Path, ...] = ()
    for phase in lab.phases:
        checkpoint = folder / phase.name / "checkpoint.pth"
        resume = ("--resume", checkpoint)
        train = ["main.py", *lab.training(variant, seed, phase), "--output_dir", checkpoint.parent]
        call([*train, *(resume if checkpoint.is_file() else begin)], log, stop)
        begin = ("--pretrained_weights", checkpoint, *(("--keep_class_heads",) if MODELS[variant.model].scored else ()))
    scores = {}
    data, shuffled, swapped = lab.output / "data", lab.output / "shuffled", lab.output / "swapped.json"
    for name, root, file in (
        ("valid", data, lab.expressions),
        ("swapped", data, swapped),
        ("shuffled", shuffled, lab.expressions),
    ):
        output, sentences = folder / name, ("--expressions_file", file)
        infer = ["inference_ytvos.py", *options, *resume, "--ytvos_path", root, *sentences]
        call([*infer, "--output_dir", output], log, stop)
        gt = ("--task", "expressions", "--gt", root / "valid" / "Annotations")
        score = ["-m", "scripts.eval_jf", *gt, "--pred", output / "Annotations", *sentences]
        call([*score, "--json", output / "scores.json"], log, stop)
        scores[name] = read_json(output / "scores.json", "the scores")
    means = scores["valid"]["global"]
    result = {
        "jf": 100 * means["JF"],
        "swapped_jf": 100 * scores["swapped"]["global"]["JF"],
        "shuffled_jf": 100 * scores["shuffled"]["global"]["JF"],
        "tc": 100 * means["TC"],
        "idsw": 100 * means["IDSW"],
        "kinds": {kind: 100 * row["JF"] for kind, row in scores["valid"]["per_kind"].items()},
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(folder / "score.json", result)
    return result


def call(words: Sequence[object], log: Path, stop: threading.Event) -> None:
    """Run a command of the project with one thread, and append its output to ``log``.

    Raises:
        RunError: it failed, and the message has its last line; or ``stop`` was set.
    """
    command = [sys.executable, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        log.open("ab") as output,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            if stop.wait(POLL_SECONDS):
                process.terminate()
                raise RunError("the lab was stopped")
    if process.returncode:
        printed = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(printed) if line.strip()), "nothing").removeprefix("error: ")
        name = words[1] if words[0] == "-m" else words[0]
        raise RunError(f"{name} failed: {last}; its output is in {near(log)}")


# Statistics.


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation over seeds, pooled over variants because a few seeds of one variant say little about it.

    Returns:
        √(Σ (nᵢ − 1) sᵢ² / Σ (nᵢ − 1)), or None if every group has one run.
    """
    freedom = sum(len(group) - 1 for group in groups)
    if freedom == 0:
        return None
    squares = sum((len(group) - 1) * variance(group) for group in groups if len(group) > 1)
    return math.sqrt(squares / freedom)


def verdict(difference: float, error: float | None) -> str:
    """Whether a claim holds, given its difference and the standard error of the difference."""
    if error is None or difference == 0 or abs(difference) < CERTAIN * error:
        return UNDECIDED
    return HOLDS if difference > 0 else FAILS


def compare(scores: Scores, claim: Claim) -> tuple[float, float | None]:
    """The difference of a claim's two means, and its standard error (None if every variant has one seed).

    Two scores of one variant are compared seed by seed, and those of two variants as independent samples.
    """
    (better, high), (worse, low) = claim.better, claim.worse
    difference = fmean(run[high] for run in scores[better]) - fmean(run[low] for run in scores[worse])
    if better == worse:
        deviation = pooled_deviation([[run[high] - run[low] for run in runs] for runs in scores.values()])
        shares = 1 / len(scores[better])
    else:
        deviation = pooled_deviation([[run[high] for run in runs] for runs in scores.values()])
        shares = 1 / len(scores[better]) + 1 / len(scores[worse])
    return difference, None if deviation is None else deviation * math.sqrt(shares)


def report(scores: Scores) -> dict[str, Any]:
    """All numbers, and the answer to every claim whose variants were run, as plain values."""
    variants = {name: {key: [run[key] for run in runs] for key in SCORES} for name, runs in scores.items()}
    answers = []
    for claim in CLAIMS:
        if claim.better[0] in scores and claim.worse[0] in scores:
            difference, error = compare(scores, claim)
            answer = {"difference": difference, "standard_error": error, "verdict": verdict(difference, error)}
            answers.append({**asdict(claim), **answer})
    return {"variants": variants, "claims": answers}


def render(numbers: Mapping[str, Any]) -> str:
    """The numbers of ``report`` as Markdown: the variants, and the claims that are decided."""

    def spread(values: Sequence[float]) -> str:
        return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

    titles = {variant.name: variant.title for variant in VARIANTS}
    lines = [f"| variant | {' | '.join(SCORES.values())} | seeds |"]
    lines.append("|---|" + "---:|" * (len(SCORES) + 1))
    for name, own in numbers["variants"].items():
        cells = [titles[name], *(spread(own[key]) for key in SCORES)]
        lines.append(f"| {' | '.join(cells)} | {len(own['jf'])} |")
    lines += ["", "Mean ± sample standard deviation over seeds.", ""]
    decided = [own for own in numbers["claims"] if own["verdict"] != UNDECIDED]
    if not decided:
        return "\n".join([*lines, "These runs decide no claim."]) + "\n"
    lines += ["| claim | paper | compared | difference | standard error | here |", "|---|---|---|---:|---:|---:|"]
    for own in decided:
        compared = " − ".join(f"{SCORES[score]} of {name}" for name, score in (own["better"], own["worse"]))
        numbers_of = f"{own['difference']:+.1f} | {own['standard_error']:.1f}"
        lines.append(f"| {own['text']} | {own['paper']} | {compared} | {numbers_of} | **{own['verdict']}** |")
    return "\n".join(lines) + "\n"


# Probes.

PROBED: dict[str, Sequence[str]] = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}
PROBE_FRAMES, PROBE_SEED, PROBE_STEPS, PROBE_BATCH = 8, 11, 800, 24
NOTHING = -1


def run_probes(stack_folder: Path, videos: int, size: Sequence[int]) -> None:
    """Train a probe on each kind of features and print the share of objects that it names correctly.

    A probe is a network of three convolutions that names the object of every pixel; its answer for an object is the
    most probable name over the object's pixels. A fifth as many videos as it is trained on are used for testing.
    """
    stack = load_stack(str(stack_folder), "", "")
    stack.unet.eval()
    made = [probe_video(i, size) for i in tqdm(range(videos + videos // 5), desc="videos", unit="video")]
    pixels, names = (torch.stack(part) for part in zip(*made, strict=True))
    print(f"{'read from':<34}" + "".join(f"{kind:>9}" for kind in PROBED))
    for title, features in probed_features(stack, pixels).items():
        shares = probe(features, names, videos)
        print(f"{title:<34}" + "".join(f"{shares[kind]:>8.0%} " for kind in PROBED), flush=True)
    print(f"{'chance':<34}" + "".join(f"{1 / len(words):>8.0%} " for words in PROBED.values()))


def probe_video(index: int, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Frames ``[T, 3, H, W]`` in −1…1; object ids and the numbers of their names ``[T, 1 + kinds, H, W]``."""
    parameters = ToyParameters(index + 1, 0, 0, PROBE_FRAMES, size[0], size[1], PROBE_SEED, KINDS)
    video = make_video(parameters, "train", index)
    frames = torch.from_numpy(render_frames(video.scene)).permute(0, 3, 1, 2).float() / 127.5 - 1
    ids = torch.from_numpy(video.masks.astype(np.int8))
    names = torch.full((PROBE_FRAMES, 1 + len(PROBED), *size), NOTHING, dtype=torch.int8)
    names[:, 0] = ids
    for thing, motion in zip(video.scene.objects, Facts(video.scene).motions, strict=True):
        for i, (name, words) in enumerate(zip((thing.colour, thing.shape, motion), PROBED.values(), strict=True), 1):
            names[:, i][ids == thing.obj_id] = words.index(name) if name else NOTHING
    return frames, names


def probed_features(stack: FrozenStack, pixels: Tensor) -> dict[str, Tensor]:
    """Title → features ``[V, T, C, h, w]`` of videos ``[V, T, 3, H, W]``."""
    ids = stack.tokenizer(["a shape"], padding="max_length", truncation=True, return_tensors="pt").input_ids
    latents, taps = [], []
    with torch.no_grad():
        text = stack.text_encoder(ids).last_hidden_state.expand(PROBE_FRAMES, -1, -1)
        for clip in tqdm(pixels, desc="features", unit="video"):
            mean = stack.vae(clip)[0].chunk(2, dim=1)[0] * stack.vae.config.scaling_factor
            maps = stack.unet(mean.transpose(0, 1)[None], text)
            latents.append(mean)
            taps.append(torch.cat([F.interpolate(tap, size=mean.shape[-2:], mode="bilinear") for tap in maps], dim=1))
    by_frame = torch.stack(latents)
    return {
        "pixels, mean of 4×4": F.avg_pool2d(pixels.flatten(0, 1), 4).unflatten(0, pixels.shape[:2]),
        "latents": by_frame,
        "latents of three frames together": torch.cat([by_frame.roll(shift, dims=1) for shift in (0, 1, -1)], dim=2),
        "the UNet's taps": torch.stack(taps),
    }


def probe(features: Tensor, names: Tensor, trained: int) -> dict[str, float]:
    """Train a probe on the first videos and test it on the others.

    Args:
        features: ``[V, T, C, h, w]``.
        names: ``[V, T, 1 + kinds, H, W]``, as of ``probe_video``.
        trained: number of training videos.

    Returns:
        kind → share of objects in single frames that are named correctly, 0…1.
    """
    seen = features[:trained]
    mean, deviation = seen.mean((0, 1, 3, 4))[:, None, None], seen.std((0, 1, 3, 4))[:, None, None] + 1e-4
    counts = [len(words) for words in PROBED.values()]
    torch.manual_seed(PROBE_SEED)
    network = nn.Sequential(
        *(nn.Conv2d(features.shape[2], 64, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()),
        nn.Conv2d(64, sum(counts), 1),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PROBE_STEPS)

    def answers(frames: Tensor) -> list[Tensor]:
        logits = network((frames - mean) / deviation)
        return list(F.interpolate(logits, size=names.shape[-2:], mode="bilinear").split(counts, dim=1))

    generator = torch.Generator().manual_seed(PROBE_SEED)
    for _ in range(PROBE_STEPS):
        video = torch.randint(trained, (PROBE_BATCH,), generator=generator)
        frame = torch.randint(features.shape[1], (PROBE_BATCH,), generator=generator)
        wanted = names[video, frame].long()
        loss = torch.zeros(())
        for i, logits in enumerate(answers(features[video, frame])):
            loss = loss + F.cross_entropy(logits, wanted[:, 1 + i], ignore_index=NOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    right: list[list[bool]] = [[] for _ in counts]
    with torch.no_grad():
        for clip, wanted in zip(features[trained:], names[trained:], strict=True):
            found = answers(clip)
            for t, frame in enumerate(wanted):
                for number in set(frame[0].unique().tolist()) - {0}:
                    inside = frame[0] == number
                    for i, logits in enumerate(found):
                        best = logits[t][:, inside].mean(1).argmax()
                        right[i].append(bool(best == frame[1 + i][inside][0]))
    return {kind: float(np.mean(row)) for kind, row in zip(PROBED, right, strict=True)}


if __name__ == "__main__":
    run_cli(main)
