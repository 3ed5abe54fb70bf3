"""What the jobs of ``tests.kill_jobs`` read."""

from __future__ import annotations

from pathlib import Path

import torch

from datasets.davis import convert_davis
from datasets.toy import make_toy
from scripts.baselines import run_largest
from scripts.toy_formats_coco import write_toy_refcoco
from scripts.toy_formats_videos import write_toy_davis
from scripts.train_toy import PARTS
from tests.inference_tools import write_halves
from tests.media_tools import write_film
from tests.test_demo_run import SENTENCES, segment
from util.checkpoint import FORMAT, save_weights, write_pickle
from util.config import Config, config_dict
from util.demo_run import run_demo
from util.io import write_json
from util.media_reader import open_media

SMALL = {"frames": 4, "height": 48, "width": 64}


def write_source(source: Path, base: Path) -> None:
    """Write all of it below ``source``; what is beside it in ``base`` is the jobs'."""
    write_toy_davis(source / "davis_raw", num_train=1, num_valid=1, **SMALL)
    convert_davis(source / "davis_raw", source / "davis", copy=True)
    write_toy_refcoco(source / "refer", num_train=1, num_eval=1, height=48, width=64)
    write_halves(source / "halves")
    toy = source / "toy"
    make_toy(toy, num_train=2, num_valid=1, num_test=1, seed=3, negatives=1, **SMALL)
    expressions = toy / "meta_expressions" / "valid" / "meta_expressions.json"
    run_largest(toy / "valid" / "Annotations", expressions, source / "largest")
    run_demo(open_media(write_film(source / "film.mp4")), SENTENCES, segment, source / "demo", show=False)

    frozen = {"unet": {"source": "a stack", "sha256": "0" * 64}}
    weights = {"mask_head.a": torch.arange(4000.0), "mask_head.b": torch.zeros(3)}
    content = {"format": FORMAT, "model": "vdit", "config": config_dict(Config()), "frozen": frozen, "weights": weights}
    write_pickle(source / "checkpoint.pth", content)
    stack = source / "pretrained" / "stack"
    save_weights(stack / "unet" / "weights.safetensors", content)
    write_json(stack / "tiny_stack.json", {"parameters": {}})
    write_json(source / "pretrained" / "done.json", list(PARTS))
