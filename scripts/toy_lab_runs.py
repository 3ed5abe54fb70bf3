"""One run of the toy lab: train a variant with a seed, segment the validation frames, score. Goes on after a stop."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets.toy import make_toy
from datasets.toy.scene import KINDS as ALL_KINDS
from scripts.baselines import run_swap
from scripts.make_tiny_stack import read_sentences
from scripts.steps import ROOT, near
from scripts.toy_lab_claims import Variant
from util.config import config_dict, load_config
from util.errors import RunError, UserError
from util.inference_record import file_sha256
from util.io import read_json, write_json
from util.jf_expressions import score_expressions
from util.mask_files import read_index_mask

CONFIG = ROOT / "configs" / "vdit_toy.yaml"
FRAMES = 1
"""Of a clip, in training and in validation alike: a single frame bypasses the UNet's temporal layers."""
KINDS = tuple(kind for kind in ALL_KINDS if kind != "motion")
"""Of sentences: those that a single frame can answer."""
STEPS = 400
BATCH = 32
RATE = 1e-3
WARMUP = 100
SAVE_EVERY = 100
TRAIN_VIDEOS, VALID_VIDEOS = 1500, 100
POLL_SECONDS = 0.2


class Stopped(Exception):
    """The lab was interrupted, or another run failed."""


@dataclass(frozen=True)
class Lab:
    """What all runs share. Paths are absolute."""

    stack: Path
    output: Path
    steps: int = STEPS
    train_videos: int = TRAIN_VIDEOS
    valid_videos: int = VALID_VIDEOS

    @property
    def data(self) -> Path:
        """The toy data."""
        return self.output / "data"

    @property
    def truth(self) -> Path:
        """Masks of the validation videos."""
        return self.data / "valid" / "Annotations"

    @property
    def sentences(self) -> Path:
        """Expressions file of the validation clips."""
        return self.output / "valid.json"

    @property
    def swapped(self) -> Path:
        """The same with every sentence another object's of the same clip."""
        return self.output / "swapped.json"

    @cached_property
    def stack_hash(self) -> str:
        """SHA-256 over all files of the pre-trained stack and their names, in hexadecimal."""
        files = sorted(path for path in self.stack.rglob("*") if path.is_file())
        lines = [f"{path.relative_to(self.stack).as_posix()} {file_sha256(path)}" for path in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def folder(self, variant: Variant, seed: int) -> Path:
        """Where a run is."""
        return self.output / variant.name / f"seed_{seed}"

    def random_stack(self, seed: int) -> Path:
        """Where the random stack of a seed is."""
        return self.output / "random_stacks" / f"seed_{seed}"

    def options(self, variant: Variant, seed: int) -> list[str]:
        """Flags that training and inference share. Image and sentence encoder are pre-trained in every variant."""
        stack = self.random_stack(seed) if variant.random_stack else self.stack
        words = (
            *("--config", CONFIG, "--pretrained", stack, "--ytvos_path", self.data, "--seed", seed),
            *("--image_encoder", self.stack / "clip", "--text_encoder", self.stack / "roberta", *variant.flags),
        )
        return [str(word) for word in words]

    def training(self, variant: Variant, seed: int) -> list[str]:
        """All flags of a training. It has as many epochs as its steps could need."""
        words = (
            *("--num_frames", FRAMES, "--batch_size", BATCH, "--epochs", self.steps, "--max_steps", self.steps),
            *("--lr", RATE, "--lr_schedule", "cosine", "--warmup_steps", WARMUP, "--save_every", SAVE_EVERY),
        )
        return [*self.options(variant, seed), *map(str, words)]

    def settings(self) -> dict[str, Any]:
        """What ``lab.json`` says of the runs in common."""
        return {
            **{"steps": self.steps, "frames": FRAMES, "batch_size": BATCH, "lr": RATE, "warmup_steps": WARMUP},
            **{"train_videos": self.train_videos, "valid_videos": self.valid_videos, "kinds": list(KINDS)},
            "stack": self.stack_hash,
        }

    def parameters(self, variant: Variant, seed: int) -> dict[str, Any]:
        """All that decides a run's result: options but for paths, the stack, the data."""
        cfg = load_config(self.training(variant, seed), "")
        paths = {field.name for field in dataclasses.fields(cfg) if field.metadata["rule"].path}
        options = {name: value for name, value in config_dict(cfg).items() if name not in paths}
        return {**self.settings(), "random_stack": variant.random_stack, **options}


def prepare(lab: Lab, random_seeds: list[int]) -> None:
    """Write the data, the validation's sentences, and a random stack for each of the seeds.

    Raises:
        UserError: there is no pre-trained stack, or something else is where these should be.
    """
    make_toy(lab.data, num_train=lab.train_videos, num_valid=lab.valid_videos, num_test=0, kinds=KINDS)
    write_clips(lab.data / "meta_expressions" / "valid" / "meta_expressions.json", lab.truth, lab.sentences)
    run_swap(lab.sentences, lab.swapped)
    if not random_seeds:
        return
    from models.diffusion.tiny import make_tiny_stack  # only here: it takes seconds

    known = read_sentences(lab.data / "meta_expressions" / "train" / "meta_expressions.json")
    sizes = stack_sizes(lab.stack)
    for seed in random_seeds:
        make_tiny_stack(lab.random_stack(seed), known, seed, **sizes)


def stack_sizes(stack: Path) -> dict[str, Any]:
    """The sizes of a stack that this project has made, so that a random one can have the same.

    Raises:
        UserError: its stamp is missing or of another layout.
    """
    from models.diffusion.tiny import STAMP, TinySizes  # only here: it takes seconds

    holds = "the sizes of a toy stack that bash scripts/train_toy.sh made"
    try:
        parameters = read_json(stack / STAMP, holds)["parameters"]
        return {
            field.name: tuple(value) if isinstance(value := parameters[field.name], list) else value
            for field in dataclasses.fields(TinySizes)
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{stack / STAMP} does not hold {holds}; name such a stack with --stack") from error


def write_clips(expressions: Path, truth: Path, output: Path) -> None:
    """Write an expressions file of the middle ``FRAMES`` frames of every video, without objects not seen there."""
    content = read_json(expressions, "the validation's expressions")
    videos = {}
    for name, video in content["videos"].items():
        first = max(0, (len(video["frames"]) - FRAMES) // 2)
        frames = video["frames"][first : first + FRAMES]
        seen = set(np.unique([read_index_mask(truth / name / f"{frame}.png") for frame in frames]).tolist())
        kept = {key: entry for key, entry in video["expressions"].items() if int(entry["obj_id"]) in seen}
        if kept:
            videos[name] = {**video, "frames": frames, "expressions": kept}
    write_json(output, {**content, "videos": videos})


def find_score(lab: Lab, variant: Variant, seed: int) -> dict[str, Any] | None:
    """The scores of a finished run, or None of one that is still to be done.

    Raises:
        UserError: the run's folder has one of other parameters.
    """
    folder = lab.folder(variant, seed)
    if not (folder / "run.json").is_file():
        return None
    theirs = read_json(folder / "run.json", "the parameters of a run")
    for key, value in lab.parameters(variant, seed).items():
        if key in theirs and theirs[key] != value:  # an option that is newer than the run had no effect on it
            raise UserError(
                f"{near(folder)} holds a run with {key} {theirs[key]!r}, and this one has {value!r}; "
                "remove that folder, or choose another --output_dir"
            )
    score = folder / "score.json"
    return read_json(score, "the scores of a run") if score.is_file() else None


def run_variant(lab: Lab, variant: Variant, seed: int, stop: threading.Event) -> dict[str, Any]:
    """Train, segment and score, each from where an earlier run was stopped.

    Args:
        lab: prepared.
        variant: what is trained.
        seed: of its weights, batches and noise.
        stop: ends the run as soon as it is set.

    Returns:
        what ``score.json`` holds: ``jf`` and ``swapped_jf`` (0–100), ``kinds`` (``jf`` by kind of sentence) and
        ``seconds`` since this start.

    Raises:
        RunError: a step failed.
        Stopped: ``stop`` was set.
    """
    started = time.monotonic()
    folder, options = lab.folder(variant, seed), lab.options(variant, seed)
    write_json(folder / "run.json", lab.parameters(variant, seed))
    checkpoint = folder / "train" / "checkpoint.pth"
    resume = ["--resume", str(checkpoint)]
    log = folder / "log.txt"
    begin = resume if checkpoint.is_file() else []
    _call(["main.py", *lab.training(variant, seed), "--output_dir", str(folder / "train"), *begin], log, stop)
    scores = {}
    for name, sentences in (("valid", lab.sentences), ("swapped", lab.swapped)):
        more = ["--expressions_file", str(sentences), "--output_dir", str(folder / name)]
        _call(["inference_ytvos.py", *options, *resume, *more], log, stop)
        scores[name] = score_expressions(lab.truth, folder / name / "Annotations", sentences)
    result = {
        "jf": 100 * scores["valid"]["global"]["JF"],
        "swapped_jf": 100 * scores["swapped"]["global"]["JF"],
        "kinds": {kind: 100 * row["JF"] for kind, row in scores["valid"]["per_kind"].items()},
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(folder / "score.json", result)
    return result


def _call(words: list[str], log: Path, stop: threading.Event) -> None:
    """Run one of the project's commands with a single thread, its output added to ``log``.

    Raises:
        RunError: it failed; the message has its last line.
        Stopped: ``stop`` was set.
    """
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=one_thread, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        while process.poll() is None:
            if stop.wait(POLL_SECONDS):
                process.terminate()
                raise Stopped
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(said) if line.strip()), "nothing").removeprefix("error: ")
        raise RunError(f"{words[0]} failed: {last}; its whole output is in {near(log)}")
