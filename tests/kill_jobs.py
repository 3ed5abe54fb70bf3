"""The jobs that ``tests.kill`` kills, each a function of the folder of its input and of its output folder.

``write_source`` writes their input. Slow parts, such as models, are replaced by stubs.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

import inference_davis
import inference_ytvos
import main
from datasets import list_videos
from datasets.davis import convert_davis
from datasets.predictions import InferenceRecord
from datasets.refcoco import REFERENCES
from datasets.toy import make_toy
from demo import run_demo
from engine import Validation, build_mask_identity
from models import pretrained
from models.authors import SIZES
from models.diffusion import tiny
from scripts import (
    baselines,
    bench_operator,
    benchmark,
    convert_checkpoint,
    eval_jf,
    prepare_data,
    push_to_hub,
    readme_animation,
    train_toy,
    web_demo,
)
from scripts import quickstart as quickstart_script
from scripts import toy_lab as lab_script
from tests.inference_tools import StubModel, finish, run_inference, write_halves
from tests.media_tools import write_film
from tests.test_demo import SENTENCES, segment
from tests.true_formats import write_toy_davis, write_toy_refcoco
from util.checkpoint import FORMAT, NEWEST, Keeper, save_weights, write_pickle
from util.config import Config, config_dict
from util.files import write_json
from util.run_log import write_results
from util.video import open_media

"""Results of ``scripts.benchmark``."""
CLOCK = SimpleNamespace(monotonic=lambda: 0.0)
"""Replaces ``time``, so that durations in files do not differ between runs."""


def call(main: Callable[[], int | None], *words: object) -> None:
    """Run a command that reads ``sys.argv``; its status must be 0."""
    with patch.object(sys, "argv", [main.__module__, *map(str, words)]):
        assert not main()


def step(title: str, *command: str | int | Path) -> None:
    """Replaces ``scripts.quickstart.run``: writes the scores that the command would write."""
    words = [str(word) for word in command]
    flags = dict(itertools.pairwise(words))
    if "--eval" in words:
        write_results(Path(flags["--output_dir"]) / "results.json", {"J": 50.0}, {"items": 1}, {"seed": 0})
    if "--json" in words:
        write_json(flags["--json"], {"global": {"JF": 0.5}, "per_kind": {"colour": {"JF": 0.5}}})


# -------- Input -----------------------------------------------------------------


VIDEO_SIZES = {"frames": 4, "height": 48, "width": 64}


def write_source(source: Path, base: Path) -> None:
    """Write the input of all jobs below ``source``; ``base`` holds their output."""
    write_toy_davis(source / "davis_raw", num_train=1, num_valid=1, **VIDEO_SIZES)
    convert_davis(source / "davis_raw", source / "davis", copy=True)
    write_toy_refcoco(source / "refer", num_train=1, num_eval=1, height=48, width=64)
    write_halves(source / "halves")
    toy = source / "toy"
    make_toy(toy, num_train=2, num_valid=1, num_test=1, seed=3, negatives=1, **VIDEO_SIZES)
    expressions = toy / "meta_expressions" / "valid" / "meta_expressions.json"
    baselines.run_largest(toy / "valid" / "Annotations", expressions, source / "largest")
    run_demo(open_media(write_film(source / "film.mp4")), SENTENCES, segment, source / "demo", show=False)

    frozen = {"unet": {"source": "a stack", "sha256": "0" * 64}}
    weights = {"mask_head.a": torch.arange(4000.0), "mask_head.b": torch.zeros(3)}
    options = {name: value for name, value in config_dict(Config()).items() if name not in (*SIZES, "pyramid_channels")}
    content = {"format": FORMAT, "model": "vdit", "config": options, "frozen": frozen, "weights": weights}
    write_pickle(source / "checkpoint.pth", content)
    stack = source / "pretrained" / "stack"
    save_weights(stack / "unet" / "weights.safetensors", content)
    write_json(stack / "tiny_stack.json", {"parameters": {}})
    write_json(source / "pretrained" / "done.json", list(train_toy.PARTS))


# -------- Data and scores -------------------------------------------------------


def toy(source: Path, out: Path) -> None:
    """Toy data."""
    make_toy(out / "toy", num_train=2, num_valid=1, num_test=1, frames=4, height=48, width=48, seed=3, negatives=1)


def davis(source: Path, out: Path) -> None:
    """Ref-DAVIS17 to its layout."""
    convert_davis(source / "davis_raw", out / "davis")


def refcoco(source: Path, out: Path) -> None:
    """RefCOCO, RefCOCO+ and RefCOCOg to their layout, with copies of the images."""
    folders = ("--refer_root", source / "refer", "--images", source / "refer" / "train2014", "--output_dir", out)
    for name in REFERENCES:
        prepare_data.main([name, *map(str, folders), "--copy"])


def largest(source: Path, out: Path) -> None:
    """The baseline that chooses the largest object."""
    valid = source / "toy" / "meta_expressions" / "valid" / "meta_expressions.json"
    baselines.run_largest(source / "toy" / "valid" / "Annotations", valid, out / "largest")


def swap(source: Path, out: Path) -> None:
    """The baseline with swapped sentences."""
    baselines.run_swap(source / "toy" / "meta_expressions" / "valid" / "meta_expressions.json", out / "swapped.json")


def scores(source: Path, out: Path) -> None:
    """Scores as JSON."""
    folders = ("--gt", source / "toy" / "valid" / "Annotations", "--pred", source / "largest")
    eval_jf.main([*map(str, folders), "--json", str(out / "scores.json"), "--workers", "1"])


# -------- Masks, evaluation, demo and page --------------------------------------


CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"eval_size": 36, "train_scales": (64,), "num_workers": 1, "expressions_per_batch": 1}


def inference(source: Path, out: Path) -> None:
    """Masks, overlays, record, contact sheet and submission."""
    folders = {"ytvos_path": str(source / "halves"), "output_dir": str(out / "masks")}
    cfg = Config(**SMALL, **folders, visualize=True)
    videos = list_videos(cfg)
    identity = {"checkpoint_sha256": "abc", **build_mask_identity(cfg)}
    record = InferenceRecord(out / "masks" / "inference.json", identity, {"device": "cpu"})
    run_inference(StubModel(), videos, cfg, record)  # type: ignore[arg-type]
    finish(videos, cfg, record)


def inference_davis_masks(source: Path, out: Path) -> None:
    """The four annotations' masks of Ref-DAVIS17."""
    words = ("--davis_path", source / "davis", "--output_dir", out / "masks", "--resume", source / "checkpoint.pth")
    small = ("--eval_size", 36, "--num_workers", 1, "--expressions_per_batch", 1, "--device", "cpu")
    with (
        patch.object(inference_ytvos, "open_checkpoint", lambda *of: SimpleNamespace(path=source / "checkpoint.pth")),
        patch.object(inference_ytvos, "build_for_inference", lambda *of: (StubModel(), [])),
    ):
        call(inference_davis.main, *words, *small)


def evaluation(source: Path, out: Path) -> None:
    """``main.py --eval``: masks, scores and results."""
    folders = {"ytvos_path": str(source / "toy"), "output_dir": str(out / "eval")}
    with (
        patch.object(main, "open_checkpoint", lambda *of: SimpleNamespace(path=source / "checkpoint.pth")),
        patch.object(main, "build_for_inference", lambda *of: (StubModel(), [])),
    ):
        main.evaluate(Config(**SMALL, **folders, resume=str(source / "checkpoint.pth")), CPU)


def validation(source: Path, out: Path) -> None:
    """Validation during training: scores, record and best checkpoint."""
    keeper = Keeper(out, lambda path, step: write_pickle(path, {"step": step}), 2, 0.0)
    keeper.save(8)
    parts = {"ytvos": SimpleNamespace(score=lambda model: ({"J&F": 50.0}, {"expressions": 3}))}
    Validation(out, parts, {"ytvos": "J&F"}, {"seed": 1}, keeper.keep_best).score(nn.Linear(1, 1), 8)
    assert (out / NEWEST).is_file()


def demo(source: Path, out: Path) -> None:
    """The demo's folder."""
    run_demo(open_media(source / "film.mp4"), SENTENCES, segment, out / "demo", show=False)


def page(source: Path, out: Path) -> None:
    """The web page's example and the download of masks."""
    web_demo.write_example(out)
    result = out / "result"
    if not result.exists():
        result.symlink_to(source / "demo")
    web_demo.zip_masks(result)


# -------- Checkpoints and frozen stacks -----------------------------------------


TINY = {"channels": (32, 32, 32, 32), "layers_per_block": 1, "image_size": 32, "image_patch": 16, "max_tokens": 400}
TRAINED = "sentences"
"""The only part trained here; the others take longer and write the same kinds of files."""


def checkpoints(source: Path, out: Path) -> None:
    """A checkpoint of either kind."""
    weights = {"a": torch.arange(4000.0)}
    write_pickle(out / "checkpoint.pth", {"model": "vdit", "weights": weights})
    save_weights(out / "weights.safetensors", {"model": "vdit", "weights": weights})


def convert(source: Path, out: Path) -> None:
    """Converted weights, and a checkpoint in the authors' layout."""
    given = str(source / "checkpoint.pth")
    convert_checkpoint.main([given, str(out / "weights.safetensors"), "--dtype", "float16"])
    state = {"a": torch.arange(8000.0)}
    stubs = {
        **{"build_model": lambda cfg: None, "load_weights": lambda *of, **options: ({}, [])},
        "find_generator": lambda name: convert_checkpoint.GENERATORS[0],
        **{"load_stock_parts": lambda *of: {}, "merged_state": lambda model: {}, "authors_state": lambda *of: state},
    }
    with patch.multiple(convert_checkpoint, **stubs):
        convert_checkpoint.main([given, str(out / "authors.pth"), "--to", "authors"])


def hub(source: Path, out: Path) -> None:
    """The folder that is pushed to the hub."""
    push_to_hub.main([str(source / "checkpoint.pth"), "me/model", "--folder", str(out / "hub")])


def stack(source: Path, out: Path) -> None:
    """A tiny frozen stack."""
    tiny.make_tiny_stack(out / "stack", ["a red circle"], **TINY)


def pretraining(source: Path, out: Path) -> None:
    """The toy stack, with one training step of one part. A VAE stands for the UNet, which takes longer."""
    with (
        patch.object(tiny, "UNet3DConditionModel", lambda **options: AutoencoderKL()),
        patch.object(train_toy, "make_corpus", lambda *of: train_toy.Corpus(torch.zeros(0), [["a red disc"]])),
        patch.object(train_toy, "PARTS", {TRAINED: train_toy.PARTS[TRAINED]}),
        patch.object(train_toy, "SIZES", {**train_toy.SIZES, **TINY}),
    ):
        train_toy.pretrain(out / "stack", out / "work", videos=2, share=1e-6)


def pretrained_stack(source: Path, out: Path) -> None:
    """The copy of a finished toy stack, beside what a killed process with the same id left."""
    (out / f".stack.{os.getpid()}").mkdir(parents=True, exist_ok=True)
    with patch.object(train_toy, "make_corpus", lambda *of: train_toy.Corpus(torch.zeros(0), [])):
        train_toy.pretrain(out / "stack", source / "pretrained", videos=1, share=1)


# -------- Reports and sequences of commands -------------------------------------


def animation(source: Path, out: Path) -> None:
    """The README's animation."""

    def find(frames: np.ndarray, sentences: list[str]) -> SimpleNamespace:
        masks = np.ones(frames.shape[:3], bool)
        return SimpleNamespace(sentences=[SimpleNamespace(masks=masks) for _ in sentences])

    small = replace(readme_animation.PARAMETERS, frames=4, height=64, width=96)
    with (
        patch.object(pretrained, "load_pretrained", lambda *of: SimpleNamespace(segment=find)),
        patch.multiple(readme_animation, PARAMETERS=small, VIDEOS=1),
    ):
        readme_animation.main(["--output", str(out / "animation.webp")])


def operator(source: Path, out: Path) -> None:
    """The operator's times."""
    rows = [bench_operator.Row("encoder", 5, "cpp", 1.0, 2.0, None)]
    with patch.object(bench_operator, "measure", lambda *of: rows):
        words = ("--device", "cpu", "--frames", 5, "--layers", "encoder")
        call(bench_operator.main, *words, "--json", out / "operator.json")


def speed(source: Path, out: Path) -> None:
    """The benchmark's numbers."""
    with patch.multiple(benchmark, run_part=lambda *of: {}, report=lambda result: []):
        benchmark.main(["--no-baseline", "--device", "cpu", "--json", str(out / "speed.json")])


def toy_lab(source: Path, out: Path) -> None:
    """A toy lab: data, records, scores and the report."""

    def command(command: Sequence[object], log: Path, stop: threading.Event) -> None:
        words = [str(word) for word in command]
        flags = dict(itertools.pairwise(words))
        if words[0] == "inference_ytvos.py":
            gt = Path(flags["--ytvos_path"]) / "valid" / "Annotations"
            baselines.run_largest(gt, Path(flags["--expressions_file"]), Path(flags["--output_dir"]))
        elif words[0] == "-m":
            alone = ("--workers", "1") if words[1] == "scripts.eval_jf" else ()
            importlib.import_module(words[1]).main([*words[2:], *alone])

    words = ("--seeds", 0, "--only", "vdit", "--train_videos", 1, "--valid_videos", 2, "--processes", 1)
    folders = ("--stack", source / "pretrained" / "stack", "--output_dir", out / "lab")
    with patch.multiple(lab_script, call=command, time=CLOCK):
        lab_script.main([str(word) for word in (*words, *folders)])


def quickstart(source: Path, out: Path) -> None:
    """The quickstart's results."""
    with patch.multiple(quickstart_script, run=step, show=lambda *of: None, time=CLOCK):
        call(quickstart_script.main, "--output_dir", out / "quickstart")
