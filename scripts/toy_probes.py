"""What can be read from the frozen features of a toy stack: an object's colour, shape and motion, by small probes.

python -m scripts.toy_probes [--stack toy/stack] [--videos 300]

A probe is a network of three convolutions, trained on toy videos to name each pixel's object; what it answers for
an object of other videos is its most probable name over the object's pixels. What no probe reads from the UNet's taps,
the decoder does not find there either.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from util.command_line import Parser
from util.errors import UserError, help_asked, run_cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(prog="python -m scripts.toy_probes", description=__doc__.split("\n")[0])
    parser.add_argument("--stack", type=Path, default=Path("toy/stack"))
    parser.add_argument("--videos", type=int, default=300, help="to train on; a fifth as many more to ask about")
    return parser.parse_args(argv)


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    parse_args()

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from datasets.toy import ToyParameters, make_video
from datasets.toy.scene import COLOURS, KINDS, MOTIONS, SHAPES, ToyObject, render_frames
from models.diffusion.stack import FrozenStack, load_stack

NAMES = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}
FRAMES, HEIGHT, WIDTH = 8, 64, 96
SEED = 11
TRAINING_STEPS, BATCH = 800, 24
STILL = 32  # sub-pixels: an object that travels less stands still
NOTHING = -1


def main(argv: Sequence[str] | None = None) -> None:
    """Train the probes and print what they read."""
    args = parse_args(argv)
    if args.videos < 5:
        raise UserError(f"--videos must be at least 5, not {args.videos}")
    stack = load_stack(str(args.stack), "", "")
    stack.unet.eval()
    videos = [_video(i) for i in tqdm(range(args.videos + args.videos // 5), desc="videos", unit="video")]
    pixels = torch.stack([frames for frames, _ in videos])
    truth = torch.stack([names for _, names in videos])
    print(f"{'read from':<34}" + "".join(f"{kind:>9}" for kind in NAMES))
    for title, features in _features(stack, pixels).items():
        shares = probe(features, truth, args.videos)
        print(f"{title:<34}" + "".join(f"{shares[kind]:>8.0%} " for kind in NAMES), flush=True)
    print(f"{'chance':<34}" + "".join(f"{1 / len(names):>8.0%} " for names in NAMES.values()))


def probe(features: Tensor, truth: Tensor, trained: int) -> dict[str, float]:
    """Train a probe on the first videos and ask it about the others.

    Args:
        features: ``[V, T, C, h, w]``.
        truth: ``[V, T, 1 + kinds, H, W]``: which object, and its name's number for each kind.
        trained: number of videos to train on.

    Returns:
        kind → share of objects in single frames that are named rightly, 0…1.
    """
    seen = features[:trained]
    mean, deviation = seen.mean((0, 1, 3, 4))[:, None, None], seen.std((0, 1, 3, 4))[:, None, None] + 1e-4
    counts = [len(names) for names in NAMES.values()]
    torch.manual_seed(SEED)
    network = nn.Sequential(
        *(nn.Conv2d(features.shape[2], 64, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()),
        nn.Conv2d(64, sum(counts), 1),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING_STEPS)

    def answers(frames: Tensor) -> list[Tensor]:
        logits = network((frames - mean) / deviation)
        return list(F.interpolate(logits, size=truth.shape[-2:], mode="bilinear").split(counts, dim=1))

    generator = torch.Generator().manual_seed(SEED)
    for _ in range(TRAINING_STEPS):
        video = torch.randint(trained, (BATCH,), generator=generator)
        time = torch.randint(features.shape[1], (BATCH,), generator=generator)
        names = truth[video, time]
        loss = sum(
            F.cross_entropy(logits, names[:, 1 + i], ignore_index=NOTHING)
            for i, logits in enumerate(answers(features[video, time]))
        )
        optimizer.zero_grad()
        torch.as_tensor(loss).backward()
        optimizer.step()
        schedule.step()
    right: list[list[bool]] = [[] for _ in counts]
    with torch.no_grad():
        for clip, names in zip(features[trained:], truth[trained:], strict=True):
            found = answers(clip)
            for t, frame in enumerate(names):
                for number in frame[0].unique().tolist():
                    inside = frame[0] == number
                    for i, logits in enumerate(found) if number else ():
                        best = logits[t][:, inside].mean(1).argmax()
                        right[i].append(bool(best == frame[1 + i][inside][0]))
    return {kind: float(np.mean(row)) for kind, row in zip(NAMES, right, strict=True)}


def _features(stack: FrozenStack, pixels: Tensor) -> dict[str, Tensor]:
    """Title → ``[V, T, C, h, w]``."""
    ids = stack.tokenizer(["a shape"], padding="max_length", truncation=True, return_tensors="pt").input_ids
    latents, taps = [], []
    with torch.no_grad():
        text = stack.text_encoder(ids).last_hidden_state.expand(FRAMES, -1, -1)
        for clip in tqdm(pixels, desc="features", unit="video"):
            mean = stack.vae(clip)[0].chunk(2, dim=1)[0] * stack.vae.config.scaling_factor
            maps = stack.unet(mean.transpose(0, 1)[None], text)
            latents.append(mean)
            taps.append(torch.cat([F.interpolate(tap, size=mean.shape[-2:], mode="bilinear") for tap in maps], dim=1))
    by_frame = torch.stack(latents)
    neighbours = [by_frame.roll(shift, dims=1) for shift in (0, 1, -1)]
    return {
        "pixels, mean of 4×4": F.avg_pool2d(pixels.flatten(0, 1), 4).unflatten(0, pixels.shape[:2]),
        "latents": by_frame,
        "latents of three frames together": torch.cat(neighbours, dim=2),
        "the UNet's taps": torch.stack(taps),
    }


def _video(index: int) -> tuple[Tensor, Tensor]:
    """Frames ``[T, 3, H, W]`` in −1…1, and the truth as ``probe`` takes it."""
    parameters = ToyParameters(index + 1, 0, 0, FRAMES, HEIGHT, WIDTH, SEED, KINDS)
    video = make_video(parameters, "train", index)
    frames = torch.from_numpy(render_frames(video.scene)).permute(0, 3, 1, 2).float() / 127.5 - 1
    which = torch.from_numpy(video.masks.astype(np.int64))
    truth = torch.full((FRAMES, 1 + len(NAMES), HEIGHT, WIDTH), NOTHING)
    truth[:, 0] = which
    for thing in video.scene.objects:
        named = (thing.colour, thing.shape, _motion(thing))
        for i, (name, names) in enumerate(zip(named, NAMES.values(), strict=True)):
            truth[:, 1 + i][which == thing.obj_id] = names.index(name)
    return frames, truth


def _motion(thing: ToyObject) -> str:
    x, y = (int(way) for way in thing.centres[-1] - thing.centres[0])
    if max(abs(x), abs(y)) < STILL:
        return "still"
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


if __name__ == "__main__":
    run_cli(main)
