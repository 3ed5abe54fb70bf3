"""Pictures of a finished toy lab: what the UNet's features show with and without pre-training, and masks.

    python -m scripts.toy_lab_pictures [--lab runs/toy_lab] [--picture docs/toy_lab.png]

A row is a validation frame with its sentence. The colours of features are their first three principal components,
of each stack's over all frames shown; bright is where another sentence changes the features.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from util.errors import Parser, UserError, help_asked, run_cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(
        prog="python -m scripts.toy_lab_pictures", description="Draw features and masks of a finished toy lab."
    )
    parser.add_argument("--lab", type=Path, default=Path("runs/toy_lab"), help="the lab's --output_dir")
    parser.add_argument("--stack", type=Path, default=Path("toy/stack"), help="the pre-trained stack it had")
    parser.add_argument("--seed", type=int, default=0, help="of the runs that are shown")
    parser.add_argument("--rows", type=int, default=6, help="frames")
    parser.add_argument("--picture", type=Path, default=Path("runs/toy_lab/toy_lab.png"), help="the PNG")
    return parser.parse_args(argv)


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    parse_args()

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.clip import pad_clips
from datasets.expressions import read_expressions
from datasets.files import Video, load_clip
from datasets.predictions import mask_path, read_binary_mask, read_index_mask
from datasets.registry import load_config
from models import Segmenter, build_model
from models.checkpoints import load_weights, open_checkpoint
from models.diffusion.encoder import VideoEncoder
from scripts.steps import near
from scripts.toy_lab_claims import VARIANTS
from scripts.toy_lab_runs import Lab
from util.config import Config, load_config
from util.drawing import Picture, contact_sheet, draw_overlay, read_picture, text_bar

STACKS = {"base": "pre-trained", "random_stack": "random"}
"""Variants whose features are shown, and how their stacks are called."""
TAPS = {8: 5, 16: 4}
"""Stride → the UNet's last tap of that stride, of the six that ``TapUNet3D`` gives."""
MULTIPLE = 16  # pixels: frames are padded as in inference
HEADING = (
    "The UNet's features: their first three principal components as red, green, blue; change: bright where another "
    "sentence moves them"
)
TILE, LETTERS = 156, 12  # pixels: width of a picture, size of the columns' titles
CLIPPED = 2  # percent of the values at either end that all become black or full colour


@dataclass(frozen=True)
class Example:
    """A row of the picture."""

    video: Video
    """The validation clip, with one sentence."""
    exp_id: str
    obj_id: int
    other: str
    """A sentence of another object in it."""

    @property
    def sentence(self) -> str:
        """What is asked for."""
        return self.video.expressions[self.exp_id]


def choose_examples(lab: Lab, count: int) -> list[Example]:
    """Sentences of ``count`` different clips, evenly spread over those that have swapped sentences."""
    own, swapped = read_expressions(lab.sentences, "valid"), read_expressions(lab.swapped, "valid")
    names = list(swapped)
    examples = []
    for row, place in enumerate(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)):
        name = names[place]
        exp_id = list(swapped[name].expressions)[row % len(swapped[name].expressions)]
        expression = own[name].expressions[exp_id]
        assert expression.obj_id is not None, "the lab has no negatives"
        frames = [lab.data / "valid" / "JPEGImages" / name / f"{frame}.jpg" for frame in own[name].frames]
        video = Video(name, frames, {exp_id: expression.caption})
        examples.append(Example(video, exp_id, expression.obj_id, swapped[name].expressions[exp_id].caption))
    return examples


def load_model(lab: Lab, name: str, seed: int) -> tuple[Segmenter, Config]:
    """The trained model of a run, on the CPU, with its options.

    Raises:
        UserError: the run is not finished.
    """
    (variant,) = (variant for variant in VARIANTS if variant.name == name)
    folder = lab.folder(variant, seed)
    if not (folder / "score.json").is_file():
        raise UserError(
            f"{near(folder)} holds no finished run; bash scripts/toy_lab.sh makes it, or name another lab with --lab"
        )
    cfg = load_config(lab.options(variant, seed), "")
    model = build_model(cfg)
    load_weights(model, open_checkpoint(str(folder / "train" / "checkpoint.pth"), "--lab", cfg.model), cfg)
    return model.eval(), cfg


@torch.inference_mode()
def read_taps(model: Segmenter, cfg: Config, examples: Sequence[Example]) -> dict[int, tuple[Tensor, Tensor]]:
    """The UNet's features of the examples' first frames, as the decoder gets them.

    Returns:
        stride → features with the own and with the other sentence, each ``[V, C, h, w]``.
    """
    encoder = model.encoder
    assert isinstance(encoder, VideoEncoder)
    kept: list[list[Tensor]] = []  # own, other, own, other, …
    handle = encoder.unet.register_forward_hook(lambda module, inputs, taps: kept.append(taps))
    for example in examples:
        frames, _ = load_clip(example.video.frame_paths, cfg.eval_size, cfg.max_size)
        clip, _ = pad_clips([frames], MULTIPLE)
        pixels = encoder.encode_pixels(clip)
        for sentence in (example.sentence, example.other):
            torch.manual_seed(cfg.seed)  # the same noise for both, where any is drawn
            encoder(pixels, [sentence])
    handle.remove()
    stacked = {stride: torch.stack([taps[number][0] for taps in kept]) for stride, number in TAPS.items()}
    return {stride: (features[0::2], features[1::2]) for stride, features in stacked.items()}


def component_colours(features: Tensor) -> np.ndarray:
    """The first three principal components as red, green and blue.

    Args:
        features: ``[V, C, h, w]``, C ≥ 3; the components are those of all V·h·w positions together.

    Returns:
        uint8 ``[V, h, w, 3]``; every component spans the whole range, but for a few per cent at either end.
    """
    count, channels, height, width = features.shape
    points = features.double().permute(0, 2, 3, 1).reshape(-1, channels).numpy()
    points = points - points.mean(axis=0)
    axes = np.linalg.svd(points, full_matrices=False)[2][:3]
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1))
    values = points @ (axes * signs).T  # a component's sign is free: its greatest weight is made positive
    low, high = np.percentile(values, (CLIPPED, 100 - CLIPPED), axis=0)
    colours = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (255 * colours).round().astype(np.uint8).reshape(count, height, width, 3)


def relative_change(own: Tensor, other: Tensor) -> np.ndarray:
    """How far another sentence moves the features: the norm of the change over the frame's mean norm.

    Args:
        own, other: ``[V, C, h, w]``.

    Returns:
        ``[V, h, w]``, 0 where nothing changes.
    """
    norm = own.norm(dim=1).mean(dim=(1, 2), keepdim=True)
    return ((other - own).norm(dim=1) / norm).numpy()


def heat(change: np.ndarray, greatest: float) -> np.ndarray:
    """Values 0…``greatest`` (``[V, h, w]``) as uint8 colours ``[V, h, w, 3]``, from black to yellow."""
    levels = (255 * np.clip(change / max(greatest, 1e-12), 0, 1)).round().astype(np.uint8)
    return np.stack([cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[..., ::-1] for level in levels])


def draw(lab: Lab, picture: Path, seed: int, count: int) -> float:
    """Write the picture of a lab's runs with one seed.

    Returns:
        The relative change that is shown brightest.

    Raises:
        UserError: a run is not finished, or the picture cannot be written.
    """
    models = {name: load_model(lab, name, seed) for name in STACKS}
    examples = choose_examples(lab, count)
    taps = {name: read_taps(model, cfg, examples) for name, (model, cfg) in models.items()}
    changes = {name: relative_change(*own[8]) for name, own in taps.items()}
    greatest = float(np.percentile(np.stack(list(changes.values())), 100 - CLIPPED))
    columns = {"frame": [read_picture(example.video.frame_paths[0]) for example in examples]}
    for name, words in STACKS.items():
        for stride in TAPS:
            columns[f"{words}, stride {stride}"] = _blocks(component_colours(taps[name][stride][0]))
        columns[f"{words}, change"] = _blocks(heat(changes[name], greatest))
    folder = lab.output / "base" / f"seed_{seed}" / "valid"
    columns["predicted"] = [_predicted(folder, example) for example in examples]
    columns["truth"] = [_true(lab, example) for example in examples]
    rows = [(HEADING, [text_bar(title, TILE, LETTERS) for title in columns])]
    for row, example in enumerate(examples):
        title = f"“{example.sentence}” · change: “{example.other}”"
        rows.append((title, [tiles[row] for tiles in columns.values()]))
    contact_sheet(rows, picture, tile_width=TILE)
    return greatest


def _blocks(maps: np.ndarray) -> list[Picture]:
    """Small maps uint8 ``[V, h, w, 3]`` as pictures in which every position is a block of one colour."""
    scale = -(-TILE // maps.shape[2])
    return [np.ascontiguousarray(values.repeat(scale, axis=0).repeat(scale, axis=1)) for values in maps]


def _predicted(folder: Path, example: Example) -> Picture:
    frame = example.video.frame_paths[0]
    mask = read_binary_mask(mask_path(folder, example.video.name, example.exp_id, frame.stem))
    return draw_overlay(read_picture(frame), mask)


def _true(lab: Lab, example: Example) -> Picture:
    frame = example.video.frame_paths[0]
    mask = read_index_mask(lab.truth / example.video.name / f"{frame.stem}.png") == example.obj_id
    return draw_overlay(read_picture(frame), mask)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line names."""
    args = parse_args(argv)
    if args.rows < 1:
        raise UserError(f"--rows must be at least 1, not {args.rows}")
    greatest = draw(Lab(args.stack.absolute(), args.lab.absolute()), args.picture, args.seed, args.rows)
    print(f"wrote {args.picture}; the brightest change is {100 * greatest:.1f} % of the features' mean norm")


if __name__ == "__main__":
    run_cli(main)
