"""Train on a few clips until the model knows them: the shortest proof that all parts learn together.

    python -m scripts.overfit --config configs/vdit_toy.yaml --ytvos_path DATA --output_dir runs/overfit \\
        --clips car-shadow/0 dog/1 --target_j 70

Takes every option of ``main.py``, and three of its own. Writes ``results.json``, ``curve.png`` and
``overlays.png`` (truth and prediction of every clip), and exits with 1 if the target is not reached.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.registry import load_config
from util.command_line import Parser
from util.config import Config
from util.errors import UserError, help_asked, run_cli


def own_options() -> argparse.ArgumentParser:
    """What this script takes beside the options of ``main.py``."""
    own = Parser(add_help=False, usage=argparse.SUPPRESS)
    own.add_argument("--clips", nargs="+", default=[], metavar="VIDEO/EXPRESSION")
    own.add_argument("--target_j", type=float, default=70.0, help="stop when J of every clip reaches it, 0–100")
    own.add_argument("--every", type=int, default=50, help="steps between two looks at J")
    return own


def about(own: argparse.ArgumentParser) -> str:
    """What the script does, for ``--help``."""
    return f"Train on a few clips until the model knows them. {own.format_help()} Options of main.py:"


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    load_config(["--help"], about(own_options()))

import numpy as np
import torch
from torch import Tensor

from datasets.clip import ClipBatch, Sample, collate, denormalise
from datasets.transforms import EvalTransform
from datasets.ytvos import YtvosClips
from engine import Schedule, train
from models import Segmenter, build_criterion, build_model
from models.postprocessors import mask_probabilities, pixel_boxes
from util.device import resolve_device
from util.io import write_json
from util.locking import sole_run
from util.logging import RunLog
from util.memory import TRAINING, memory_advice
from util.metrics import expression_scores
from util.visualisation import contact_sheet, draw_overlay, plot_curves

MULTIPLE = 32  # pixels: the padding of training, so that what is asked is what was learned


def choose_clips(cfg: Config, names: Sequence[str]) -> list[Sample]:
    """The named clips ("video/expression"), each ``num_frames`` frames evenly spread over the video.

    Raises:
        UserError: a clip is not in the dataset, or its object is in none of these frames.
    """
    dataset = YtvosClips(Path(cfg.ytvos_path), "train", EvalTransform(cfg.eval_size, cfg.max_size), None)
    known = [
        (f"{video}/{exp_id}", len(entry.frames))
        for video, entry in dataset.videos.items()
        for exp_id in entry.expressions
    ]
    index = {name: i for i, (name, _) in enumerate(known)}
    if not names:  # the first sentence of the first two videos
        names = [f"{video}/{next(iter(entry.expressions))}" for video, entry in list(dataset.videos.items())[:2]]
    clips = []
    for name in names:
        if name not in index:
            raise UserError(f"the clip {name} is not in {cfg.ytvos_path}; give video/expression, such as {known[0][0]}")
        frames, target = dataset[index[name]]
        chosen = np.linspace(0, len(frames) - 1, cfg.num_frames).round().astype(int).tolist()
        picked: dict[str, Any] = {key: target[key][chosen] for key in ("boxes", "masks", "valid")}  # type: ignore[literal-required]
        if not picked["valid"].any():
            raise UserError(f"the object of the clip {name} is in none of the frames chosen; give another with --clips")
        picked["frame_names"] = [target["frame_names"][i] for i in chosen]
        clips.append((frames[chosen], {**target, **picked}))
    return clips  # type: ignore[return-value]


@torch.inference_mode()
def predict(model: Segmenter, clip: Sample, device: torch.device) -> tuple[Tensor, Tensor, float]:
    """Masks bool ``[T, h, w]``, boxes in pixels ``[T, 4]`` and J of one clip, as inference would choose them."""
    frames, target = clip
    batch = collate([clip], MULTIPLE).to(device)
    output = model.eval()(batch.frames, batch.padding, batch.captions)
    size = (frames.shape[-2], frames.shape[-1])
    assert output.masks is not None and output.chosen is not None
    masks = mask_probabilities(output.masks[0], size, size).cpu() > 0.5
    boxes = pixel_boxes(output.boxes[0, :, int(output.chosen[0])], size).cpu()
    return masks, boxes, expression_scores(target["masks"].numpy(), masks.numpy())[0]


def overfit(cfg: Config, clips: list[Sample], target_j: float, every: int, device: torch.device) -> dict[str, Any]:
    """Train on the clips alone until every one's J reaches the target, or ``cfg.max_steps`` are done.

    Returns:
        ``j`` (0–100 per clip), ``reached``, ``steps``, ``seconds`` and ``curve`` (step, J of each clip).
    """
    torch.manual_seed(cfg.seed)
    model = build_model(cfg).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=cfg.weight_decay)
    batch: ClipBatch = collate(clips, MULTIPLE)
    output, started = Path(cfg.output_dir), time.monotonic()
    schedule = Schedule(
        rate=cfg.lr,
        steps_per_epoch=every,
        epochs=-(-cfg.max_steps // every),
        warmup_steps=cfg.warmup_steps,
        max_steps=cfg.max_steps,
    )
    curve: list[tuple[int, list[float]]] = []
    step = 0
    with RunLog(output, schedule.total_steps, 0) as log:
        while step < schedule.total_steps:
            step = train(
                model,
                build_criterion(cfg),
                lambda epoch, first: [batch] * every,
                optimizer,
                replace(schedule, max_steps=min(step + every, cfg.max_steps)),
                log,
                save=lambda step, last: None,
                seed=cfg.seed,
                device=device,
                first_step=step,
                max_norm=cfg.clip_max_norm,
                log_every=cfg.log_every,
            )
            scores = [100 * predict(model, clip, device)[2] for clip in clips]
            curve.append((step, scores))
            log.say(f"step {step}: J " + ", ".join(f"{score:.1f}" for score in scores))
            if min(scores) >= target_j:
                break
    draw(model, clips, curve, output, device)
    return {
        "j": curve[-1][1],
        "reached": min(curve[-1][1]) >= target_j,
        "steps": step,
        "seconds": round(time.monotonic() - started, 1),
        "curve": curve,
    }


def draw(model: Segmenter, clips: list[Sample], curve: list, output: Path, device: torch.device) -> None:
    """Write ``curve.png`` and ``overlays.png``."""
    names = [f"{target['video']}/{target['exp_id']}" for _, target in clips]
    plot_curves(
        output / "curve.png",
        {"J": {name: [(step, scores[i]) for step, scores in curve] for i, name in enumerate(names)}},
        "J on the clips trained on",
    )
    rows = []
    for name, clip in zip(names, clips, strict=True):
        frames, target = clip
        masks, boxes, j = predict(model, clip, device)
        pictures = denormalise(frames).permute(0, 2, 3, 1).numpy()
        rows.append(
            (
                f"{name} · {target['caption']} · truth",
                [draw_overlay(*pair) for pair in zip(pictures, target["masks"].numpy(), strict=True)],
            )
        )
        rows.append(
            (
                f"{name} · {target['caption']} · prediction, J {100 * j:.1f}",
                [
                    draw_overlay(picture, mask, box=box)
                    for picture, mask, box in zip(pictures, masks.numpy(), boxes.tolist(), strict=True)
                ],
            )
        )
    contact_sheet(rows, output / "overlays.png")


def main() -> int:
    """Overfit as the command line says; 1 where the target is not reached."""
    own = own_options()
    mine, rest = own.parse_known_args(sys.argv[1:])
    cfg = load_config(rest, about(own))
    cfg = replace(cfg, max_steps=cfg.max_steps or 1000)
    if mine.every < 1:
        raise UserError(f"--every must be at least 1, not {mine.every}")
    device = resolve_device(cfg.device)
    with sole_run(cfg.output_dir), memory_advice(TRAINING):
        result = overfit(cfg, choose_clips(cfg, mine.clips), mine.target_j, mine.every, device)
    output = Path(cfg.output_dir)
    write_json(output / "results.json", result)
    verdict = "reached" if result["reached"] else "NOT reached"
    print(
        f"J {', '.join(f'{j:.1f}' for j in result['j'])} after {result['steps']} steps and {result['seconds']:.0f} s: "
        f"{mine.target_j:g} {verdict}; {output / 'curve.png'}, {output / 'overlays.png'}"
    )
    return 0 if result["reached"] else 1


if __name__ == "__main__":
    run_cli(main)
