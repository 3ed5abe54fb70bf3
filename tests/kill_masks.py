"""What ``tests.kill_jobs`` kills: masks of a stub model, their pictures and scores, the demo's folder, the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import inference_davis
import inference_ytvos
import main
from datasets import list_videos
from inference_ytvos import finish, run_inference
from scripts.web_demo import write_example, zip_masks
from tests.inference_tools import StubModel
from tests.kill_tools import call
from tests.test_demo_run import SENTENCES, segment
from util.checkpoint import write_pickle
from util.config import Config
from util.demo_run import DemoResult, run_demo
from util.inference_record import InferenceRecord, mask_options
from util.keeping import NEWEST, Keeper
from util.media_reader import open_media
from util.validation import Validation

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"eval_size": 36, "train_scales": (64,), "num_workers": 1, "expressions_per_batch": 1}


def inference(source: Path, out: Path) -> None:
    """Masks, overlays, record, contact sheet and submission."""
    folders = {"ytvos_path": str(source / "halves"), "output_dir": str(out / "masks")}
    cfg = Config(**SMALL, **folders, visualize=True)
    videos = list_videos(cfg)
    identity = {"checkpoint_sha256": "abc", **mask_options(cfg)}
    record = InferenceRecord(out / "masks" / "inference.json", identity, {"device": "cpu"})
    run_inference(StubModel(), videos, cfg, record, CPU)  # type: ignore[arg-type]
    finish(videos, cfg, record)


def inference_davis_masks(source: Path, out: Path) -> None:
    """The four annotations' masks of Ref-DAVIS17."""
    words = ("--davis_path", source / "davis", "--output_dir", out / "masks", "--resume", source / "checkpoint.pth")
    small = ("--eval_size", 36, "--num_workers", 1, "--expressions_per_batch", 1, "--device", "cpu")
    with (
        patch.object(inference_ytvos, "open_checkpoint", lambda *of: {"path": source / "checkpoint.pth"}),
        patch.object(inference_ytvos, "load_for_inference", lambda *of: (StubModel(), [])),
    ):
        call(inference_davis.main, *words, *small)


def evaluation(source: Path, out: Path) -> None:
    """``main.py --eval``: masks, scores and results."""
    folders = {"ytvos_path": str(source / "toy"), "output_dir": str(out / "eval")}
    with (
        patch.object(main, "open_checkpoint", lambda *of: {"path": source / "checkpoint.pth"}),
        patch.object(main, "load_for_inference", lambda *of: (StubModel(), [])),
    ):
        main.evaluate(Config(**SMALL, **folders, resume=str(source / "checkpoint.pth")), CPU)


def validation(source: Path, out: Path) -> None:
    """The scores of a step in training, their record, and the best checkpoint."""
    keeper = Keeper(out, lambda path, step: write_pickle(path, {"step": step}), 2, 0.0)
    keeper.save(8)
    parts = {"ytvos": lambda model: ({"J&F": 50.0}, {"expressions": 3})}
    Validation(out, parts, "auto", {"seed": 1}, keeper.keep_best).score(nn.Linear(1, 1), 8)
    assert (out / NEWEST).is_file()


def demo(source: Path, out: Path) -> None:
    """The demo's folder."""
    run_demo(open_media(source / "film.mp4"), SENTENCES, segment, out / "demo", show=False)


def page(source: Path, out: Path) -> None:
    """The page's example, and a result's masks to download."""
    write_example(out)
    result = out / "result"
    if not result.exists():
        result.symlink_to(source / "demo")
    zip_masks(DemoResult(result, [], torch.zeros(0).numpy(), [], 1.0))
