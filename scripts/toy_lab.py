"""Test the papers' claims at toy size (docs/toy_lab.md).

    python -m scripts.toy_lab [--seeds 0 1 2] [--only base no_noise] [--output_dir runs/toy_lab]
    python -m scripts.toy_lab --probes

Every variant is trained from scratch with every seed on the frozen toy stack. A stopped lab resumes where it stopped.
``--probes`` instead measures what small networks read from the frozen features of the stack.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

from util.errors import Parser, RunError, UserError, help_asked, run_cli

PROBE_VIDEOS = 300


@dataclass(frozen=True)
class Variant:
    """VD-IT with one change, given as options of ``main.py`` and ``inference_ytvos.py``."""

    name: str
    title: str
    flags: tuple[str, ...] = ()
    random_stack: bool = False
    """Whether UNet, VAE and their text encoder have random weights, different ones for every seed."""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper: one variant scores higher than another."""

    text: str
    paper: str
    better: str
    worse: str


VARIANTS = (
    Variant("base", "VD-IT: pre-trained features, predicted noise, image tokens, sentence in the UNet"),
    Variant("random_stack", "random text-to-video features", random_stack=True),
    Variant("gaussian_noise", "Gaussian noise", ("--noise", "gaussian")),
    Variant("no_noise", "no noise", ("--noise", "none")),
    Variant("no_image_tokens", "no image tokens", ("--no-image_tokens",)),
    Variant("empty_sentence", "the empty sentence in the UNet", ("--no-unet_text",)),
)
# VD-IT is arXiv 2403.12042, HCD arXiv 2508.13584.
CLAIMS = (
    Claim("Pre-trained text-to-video features beat random ones", "VD-IT, abstract", "base", "random_stack"),
    Claim("Predicted noise beats Gaussian noise", "VD-IT, abstract and section 3.3", "base", "gaussian_noise"),
    Claim("Predicted noise beats none", "VD-IT, section 3.3", "base", "no_noise"),
    Claim("No noise beats predicted noise (the opposite)", "HCD, title and abstract", "no_noise", "base"),
    Claim("No noise beats Gaussian noise", "HCD, title and abstract", "no_noise", "gaussian_noise"),
    Claim("Image tokens beside the text help", "VD-IT, abstract and section 3.2", "base", "no_image_tokens"),
    Claim("The sentence in the UNet helps", "VD-IT, abstract", "base", "empty_sentence"),
)
CERTAIN = 2.0  # standard errors: the least difference that decides a claim
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "undecided"


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
    parser.add_argument("--steps", type=int, default=400, help="steps of every training")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, each with one thread")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME", help="variants to run")
    parser.add_argument("--train_videos", type=int, default=1500)
    parser.add_argument("--valid_videos", type=int, default=100)
    parser.add_argument("--probes", type=int, nargs="?", const=PROBE_VIDEOS, metavar="VIDEOS",
                        help="instead, train probes of the stack's features on this number of videos")  # fmt: skip
    args = parser.parse_args(argv)
    for name, least in {"steps": 1, "processes": 1, "train_videos": 1, "valid_videos": 1, "probes": 5}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds must be different whole numbers of at least 0, not {args.seeds}")
    if not args.stack.is_dir():
        raise UserError(f"{args.stack} is missing; bash scripts/train_toy.sh --stack-only makes toy/stack")
    return args


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(parse_args)

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from datasets.toy import ToyParameters, make_toy, make_video
from datasets.toy.scene import COLOURS, KINDS, MOTIONS, SHAPES, render_frames
from datasets.toy.sentences import Facts
from models.diffusion.stack import FrozenStack, load_stack
from models.diffusion.tiny import make_tiny_stack
from scripts.quickstart import near
from scripts.train_toy import SIZES
from util.config import config_dict, load_config
from util.files import ROOT, atomic_path, read_json, sole_run, write_json

FRAMES = 1  # per clip, in training and validation: a single frame bypasses the UNet's temporal layers
STILL_KINDS = tuple(kind for kind in KINDS if kind != "motion")  # of sentences that a single frame answers
BATCH, RATE, WARMUP, SAVE_EVERY = 32, 1e-3, 100, 100
POLL_SECONDS = 0.2
Scores = Mapping[str, Sequence[Mapping[str, Any]]]
"""Variant → what ``run_variant`` returns, for every seed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the lab or the probes, and print the results."""
    args = parse_args(argv)
    if args.probes:
        run_probes(args.stack, args.probes)
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
    valid_videos: int = 100

    @cached_property
    def stack_hash(self) -> str:
        """SHA-256 over the names and contents of the stack's files."""
        files = sorted(path for path in self.stack.rglob("*") if path.is_file())
        hashes = [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
        lines = [f"{path.relative_to(self.stack).as_posix()} {digest}" for path, digest in hashes]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def folder(self, variant: Variant, seed: int) -> Path:
        """The folder of a run."""
        return self.output / variant.name / f"seed_{seed}"

    def pretrained(self, variant: Variant, seed: int) -> Path:
        """The stack of a run."""
        return self.output / "random_stacks" / f"seed_{seed}" if variant.random_stack else self.stack

    def options(self, variant: Variant, seed: int) -> list[str]:
        """Flags of training and inference. Image and sentence encoder are pre-trained in every variant."""
        words = (
            *("--config", ROOT / "configs" / "vdit_toy.yaml", "--pretrained", self.pretrained(variant, seed)),
            *("--ytvos_path", self.output / "data", "--image_encoder", self.stack / "clip", "--seed", seed),
            *("--text_encoder", self.stack / "roberta", *variant.flags),
        )
        return [str(word) for word in words]

    def training(self, variant: Variant, seed: int) -> list[str]:
        """All flags of a training."""
        words = (
            *self.options(variant, seed),
            *("--num_frames", FRAMES, "--batch_size", BATCH, "--epochs", self.steps, "--max_steps", self.steps),
            *("--lr", RATE, "--lr_schedule", "cosine", "--warmup_steps", WARMUP, "--save_every", SAVE_EVERY),
        )
        return [str(word) for word in words]

    def settings(self) -> dict[str, Any]:
        """The settings in ``lab.json``."""
        return {
            **{"steps": self.steps, "frames": FRAMES, "batch_size": BATCH, "lr": RATE, "warmup_steps": WARMUP},
            **{"train_videos": self.train_videos, "valid_videos": self.valid_videos, "kinds": list(STILL_KINDS)},
            "stack": self.stack_hash,
        }

    def parameters(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Everything that determines the result of a run: options except paths, the stack, the data."""
        cfg = load_config(self.training(variant, seed), "")
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
    theirs = read_json(folder / "run.json", "the parameters of a run")
    for key, value in lab.parameters(variant, seed).items():
        if key in theirs and theirs[key] != value:  # options that are newer than the run had no effect on it
            raise UserError(
                f"{near(folder)} holds a run with {key} {theirs[key]!r}, and this one has {value!r}; "
                "remove that folder, or choose another --output_dir"
            )
    score = folder / "score.json"
    return read_json(score, "the scores of a run") if score.is_file() else None


def prepare(lab: Lab, jobs: Sequence[tuple[Variant, int]]) -> None:
    """Write the data, the sentences of the validation, and the random stacks of these runs."""
    data = lab.output / "data"
    make_toy(data, num_train=lab.train_videos, num_valid=lab.valid_videos, num_test=0, kinds=STILL_KINDS)
    expressions = data / "meta_expressions"
    write_clips(expressions / "valid" / "meta_expressions.json", data / "valid" / "Annotations", lab.output)
    swap = ("-m", "scripts.baselines", "swap", "--expressions", lab.output / "valid.json")
    call([*swap, "--output", lab.output / "swapped.json"], lab.output / "log.txt", threading.Event())
    videos = read_json(expressions / "train" / "meta_expressions.json", "the expressions")["videos"].values()
    known = [entry["exp"] for video in videos for entry in video["expressions"].values()]
    for variant, seed in jobs:
        if variant.random_stack:
            make_tiny_stack(lab.pretrained(variant, seed), known, seed, **SIZES)


def write_clips(expressions: Path, masks: Path, output: Path) -> None:
    """Write ``valid.json``: expressions of the middle frame of every video, without objects that it does not show."""
    content = read_json(expressions, "the validation's expressions")
    videos = {}
    for name, video in content["videos"].items():
        frame = video["frames"][(len(video["frames"]) - 1) // 2]
        seen = np.unique(np.asarray(Image.open(masks / name / f"{frame}.png"))).tolist()
        kept = {key: entry for key, entry in video["expressions"].items() if int(entry["obj_id"]) in seen}
        if kept:
            videos[name] = {**video, "frames": [frame], "expressions": kept}
    write_json(output / "valid.json", {**content, "videos": videos})


def run_variant(lab: Lab, variant: Variant, seed: int, stop: threading.Event) -> dict[str, Any]:
    """Train, segment and score, and resume what an earlier start left unfinished.

    Args:
        lab: prepared.
        variant: what is trained.
        seed: of its weights, batches and noise.
        stop: ends the run when it is set.

    Returns:
        the content of ``score.json``: ``jf`` and ``swapped_jf`` (0–100), ``kinds`` (``jf`` by kind of sentence) and
        ``seconds`` since this start.

    Raises:
        RunError: a command failed.
    """
    started = time.monotonic()
    folder, options = lab.folder(variant, seed), lab.options(variant, seed)
    write_json(folder / "run.json", lab.parameters(variant, seed))
    checkpoint, log = folder / "train" / "checkpoint.pth", folder / "log.txt"
    resume = ["--resume", checkpoint]
    begin = resume if checkpoint.is_file() else []
    call(["main.py", *lab.training(variant, seed), "--output_dir", folder / "train", *begin], log, stop)
    scores = {}
    for name in ("valid", "swapped"):
        sentences, output = lab.output / f"{name}.json", folder / name
        infer = ["inference_ytvos.py", *options, *resume, "--expressions_file", sentences, "--output_dir", output]
        call(infer, log, stop)
        gt = lab.output / "data" / "valid" / "Annotations"
        score = ["-m", "scripts.eval_jf", "--task", "expressions", "--gt", gt, "--pred", output / "Annotations"]
        call([*score, "--expressions", sentences, "--json", output / "scores.json"], log, stop)
        scores[name] = json.loads((output / "scores.json").read_text(encoding="utf-8"))
    result = {
        "jf": 100 * scores["valid"]["global"]["JF"],
        "swapped_jf": 100 * scores["swapped"]["global"]["JF"],
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


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """Standard deviation over seeds, pooled over variants because a few seeds of one variant say little about it.

    Returns:
        √(Σ (nᵢ − 1) sᵢ² / Σ (nᵢ − 1)), or None if every group has one run; and Σ (nᵢ − 1).
    """
    freedom = sum(len(group) - 1 for group in groups)
    if freedom == 0:
        return None, 0
    squares = sum((len(group) - 1) * variance(group) for group in groups if len(group) > 1)
    return math.sqrt(squares / freedom), freedom


def verdict(difference: float, error: float | None) -> str:
    """Whether a claim holds, given its difference and the standard error of the difference."""
    if error is None or difference == 0 or abs(difference) < CERTAIN * error:
        return UNKNOWN
    return HOLDS if difference > 0 else FAILS


def report(scores: Scores, claims: Sequence[Claim] = CLAIMS) -> dict[str, Any]:
    """All numbers, and the answer to every claim whose two variants were run, as plain values."""
    variants: dict[str, dict[str, Any]] = {}
    for name, runs in scores.items():
        jf, swapped, seconds = ([run[key] for run in runs] for key in ("jf", "swapped_jf", "seconds"))
        first = {"jf": jf, "jf_mean": fmean(jf), "jf_deviation": stdev(jf) if len(jf) > 1 else None}
        variants[name] = {**first, "swapped_jf": swapped, "swapped_jf_mean": fmean(swapped), "seconds": seconds}
    deviation, freedom = pooled_deviation([own["jf"] for own in variants.values()])
    answers = []
    for claim in claims:
        if claim.better in variants and claim.worse in variants:
            better, worse = variants[claim.better], variants[claim.worse]
            difference = better["jf_mean"] - worse["jf_mean"]
            shares = 1 / len(better["jf"]) + 1 / len(worse["jf"])
            error = None if deviation is None else deviation * math.sqrt(shares)
            names = {"claim": claim.text, "paper": claim.paper, "better": claim.better, "worse": claim.worse}
            answer = {"difference": difference, "standard_error": error, "verdict": verdict(difference, error)}
            answers.append({**names, **answer})
    return {"variants": variants, "pooled_deviation": deviation, "degrees_of_freedom": freedom, "claims": answers}


def render(numbers: Mapping[str, Any]) -> str:
    """The numbers of ``report`` as Markdown: variants, claims, and which claims hold."""

    def spread(mean: float, values: Sequence[float]) -> str:
        return f"{mean:.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

    titles = {variant.name: variant.title for variant in VARIANTS}
    lines = ["| variant | what it is | J&F | J&F, swapped sentences | seeds | seconds per run |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for name, own in numbers["variants"].items():
        jf, swapped = spread(own["jf_mean"], own["jf"]), spread(own["swapped_jf_mean"], own["swapped_jf"])
        seconds = fmean(own["seconds"])
        lines.append(f"| {name} | {titles[name]} | {jf} | {swapped} | {len(own['jf'])} | {seconds:.0f} |")
    deviation = numbers["pooled_deviation"]
    lines += [
        "",
        "Mean J&F. One seed has no spread, so no claim can be decided."
        if deviation is None
        else "Mean J&F ± sample standard deviation over seeds. The deviation pooled over all variants is "
        f"{deviation:.2f} ({numbers['degrees_of_freedom']} degrees of freedom); the standard errors below are computed "
        "from it.",
        "",
        "| claim | paper | compared | difference | standard error | here |",
        "|---|---|---|---:|---:|---:|",
    ]
    for own in numbers["claims"]:
        error = "–" if own["standard_error"] is None else f"{own['standard_error']:.2f}"
        compared = f"{own['better']} − {own['worse']} | {own['difference']:+.2f} | {error}"
        lines.append(f"| {own['claim']} | {own['paper']} | {compared} | **{own['verdict']}** |")
    lines.append("")
    for kind, title in ((HOLDS, "Holds here"), (FAILS, "Does not hold here"), (UNKNOWN, "Undecided here")):
        found = [own["claim"] for own in numbers["claims"] if own["verdict"] == kind]
        lines.append(f"- **{title}:** {'; '.join(found) or 'none'}.")
    return "\n".join(lines) + "\n"


# Probes.

PROBED: dict[str, Sequence[str]] = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}
PROBE_FRAMES, PROBE_SIZE, PROBE_SEED, PROBE_STEPS, PROBE_BATCH = 8, (64, 96), 11, 800, 24
NOTHING = -1


def run_probes(stack_folder: Path, videos: int) -> None:
    """Train a probe on each kind of features and print the share of objects that it names correctly.

    A probe is a network of three convolutions that names the object of every pixel; its answer for an object is the
    most probable name over the object's pixels. A fifth as many videos as it is trained on are used for testing.
    """
    stack = load_stack(str(stack_folder), "", "")
    stack.unet.eval()
    made = [probe_video(i) for i in tqdm(range(videos + videos // 5), desc="videos", unit="video")]
    pixels, names = (torch.stack(part) for part in zip(*made, strict=True))
    print(f"{'read from':<34}" + "".join(f"{kind:>9}" for kind in PROBED))
    for title, features in probed_features(stack, pixels).items():
        shares = probe(features, names, videos)
        print(f"{title:<34}" + "".join(f"{shares[kind]:>8.0%} " for kind in PROBED), flush=True)
    print(f"{'chance':<34}" + "".join(f"{1 / len(words):>8.0%} " for words in PROBED.values()))


def probe_video(index: int) -> tuple[Tensor, Tensor]:
    """Frames ``[T, 3, H, W]`` in −1…1; object ids and the numbers of their names ``[T, 1 + kinds, H, W]``."""
    parameters = ToyParameters(index + 1, 0, 0, PROBE_FRAMES, *PROBE_SIZE, PROBE_SEED, KINDS)
    video = make_video(parameters, "train", index)
    frames = torch.from_numpy(render_frames(video.scene)).permute(0, 3, 1, 2).float() / 127.5 - 1
    ids = torch.from_numpy(video.masks.astype(np.int64))
    names = torch.full((PROBE_FRAMES, 1 + len(PROBED), *PROBE_SIZE), NOTHING)
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
        wanted = names[video, frame]
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
