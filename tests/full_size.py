"""Runs the models at full size from files in the published layouts, which hold random numbers.

    python -m tests.full_size FOLDER [--model vdit] [--stock] [--frames 2]

``FOLDER`` (33 GB are written) gets the frozen parts in the layout of the hub, and each model's authors' checkpoint.
Each step is a process of its own, of which the seconds and the peak memory are printed: the authors' checkpoint is
converted; ``demo.py`` segments a video with the converted file, and with the authors'. ``--stock`` compares the logits
with those of the libraries' own parts, called as the published code calls them; that takes 16 GB of memory and minutes.
It is not part of the suite.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModelWithProjection, RobertaModel

from models import build_model, frozen_sources
from models.authors import authors_state
from models.checkpoints import load_weights, open_checkpoint
from models.diffusion.stack import empty_part, load_stock_parts
from models.diffusion.tiny import make_tiny_stack, random_weight
from models.lora import merged_state
from models.segmenter import best_query
from scripts.benchmark import StockUNet, StockVAE, published_parts
from scripts.count_parameters import FULL_SIZE
from util.checkpoint import write_pickle
from util.config import Config
from util.errors import Parser
from util.files import atomic_folder
from util.preprocessing import normalise
from util.video import write_video

MODELS = ("vdit", "hcd")
SENTENCE = "the red thing"
SIZE = (360, 640)


def main() -> None:
    """Make what is missing, and run every step."""
    parser = Parser(description="Run the models at full size on random weights.")
    parser.add_argument("folder", type=Path, help="where the weights are made and kept")
    parser.add_argument("--model", choices=MODELS, action="append", help="only this model")
    parser.add_argument("--stock", action="store_true", help="compare with the libraries' own parts")
    parser.add_argument("--frames", type=int, default=2, help="number of frames")
    parser.add_argument("--step", nargs=2, help="run one step for one model in this process")
    args = parser.parse_args()
    if args.step:
        STEPS[args.step[0]](args.folder, args.step[1])
        return
    if not (args.folder / "stack").is_dir():
        timed("make the frozen parts", *command("tests.full_size", args.folder, "--step", "parts", MODELS[0]))
    write_video(args.folder / "video.mp4", frames(args.frames))
    for model in args.model or MODELS:
        authors, converted = args.folder / f"{model}.pth", args.folder / f"{model}.safetensors"
        if not authors.is_file():
            timed(f"make {authors}", *command("tests.full_size", args.folder, "--step", "authors", model))
        timed(f"convert {authors}", *command("scripts.convert_checkpoint", authors, converted))
        for name, file in (("the converted file", converted), ("the authors' file", authors)):
            shutil.rmtree(args.folder / "out", ignore_errors=True)
            out = ("--out", args.folder / "out", "--pretrained", args.folder / "stack", "--precision", "bf16")
            timed(f"demo with {name}", *command("demo", args.folder / "video.mp4", SENTENCE, "--resume", file, *out))
        if args.stock:
            timed("compare with stock parts", *command("tests.full_size", args.folder, "--step", "compare", model))


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def timed(what: str, *line: str) -> None:
    """Run a process, and print its seconds and the peak of its memory, which is at least that of this process."""
    started = time.monotonic()
    process = subprocess.Popen(line)
    _, status, usage = os.wait4(process.pid, 0)
    print(f"{what}: {time.monotonic() - started:.1f} s, {usage.ru_maxrss / 2**20:.2f} GiB", flush=True)
    if status:
        raise SystemExit(1)


def frames(count: int) -> np.ndarray:
    """Noise at several scales, uint8 ``[T, H, W, 3]``."""
    random = np.random.default_rng(0)
    sizes = ((SIZE[0] // step, SIZE[1] // step) for step in (40, 8, 2))
    layers = [random.integers(0, 256, (count, *size, 3)).repeat(SIZE[0] // size[0], 1) for size in sizes]
    layers = [layer.repeat(SIZE[1] // layer.shape[2], 2) for layer in layers]
    return np.mean(layers, axis=0).astype(np.uint8)


def make_parts(folder: Path, model: str) -> None:
    """Write the frozen parts, which are those of every model, with random weights in the layout of the hub."""
    classes = {
        "unet": UNet3DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "clip": CLIPVisionModelWithProjection,
        "roberta": RobertaModel,
    }
    with atomic_folder(folder / "stack") as target:
        shutil.copytree(FULL_SIZE, target, dirs_exist_ok=True)
        tiny = make_tiny_stack(target.with_name("tiny"))
        shutil.copytree(tiny / "tokenizer", target / "tokenizer")
        for file in (tiny / "roberta").iterdir():
            if not (target / "roberta" / file.name).exists() and file.suffix != ".safetensors":
                shutil.copy(file, target / "roberta")
        for part, cls in classes.items():
            model, name = (
                empty_part(cls, target / part),
                "diffusion_pytorch_model" if part in ("unet", "vae") else "model",
            )
            weights = {key: random_weight(part, key, value.shape, 0) for key, value in model.named_parameters()}
            save_file(weights, target / part / f"{name}.safetensors", {"format": "pt"})


def configuration(folder: Path, model: str) -> Config:
    return Config(model=model, pretrained=str(folder / "stack"))


@torch.no_grad()
def write_authors(folder: Path, name: str) -> None:
    """Write an authors' checkpoint: the trained parts as initialised, with adapters that change the UNet."""
    torch.manual_seed(0)
    cfg = configuration(folder, name)
    model = build_model(cfg)
    for key, value in model.named_parameters():
        if ".lora_B." in key:
            value.normal_(0, 0.01)
    stock = load_stock_parts(cfg.pretrained)
    write_pickle(folder / f"{name}.pth", {"model": authors_state(merged_state(model), name, stock, {}), "epoch": 0})


@torch.inference_mode()
def compare(folder: Path, name: str) -> None:
    """Compare the logits of an authors' checkpoint with those of the libraries' own parts, in float32."""
    checkpoint = open_checkpoint(str(folder / f"{name}.pth"), "FOLDER", name)
    cfg = checkpoint.config(pretrained=str(folder / "stack"), lora_rank=0)
    model = build_model(cfg).eval()
    load_weights(model, checkpoint, frozen_sources(cfg))
    clip = normalise(torch.from_numpy(frames(2)).permute(0, 3, 1, 2))
    height = -(-SIZE[0] // 16) * 16
    batch = torch.zeros(1, 2, 3, height, SIZE[1])
    batch[..., : SIZE[0], :] = clip
    padding = torch.zeros(1, height, SIZE[1], dtype=torch.bool)
    padding[:, SIZE[0] :] = True

    def logits() -> Tensor:
        started = time.monotonic()
        masks = model(batch, padding, [SENTENCE], best_query).masks
        print(f"  {time.monotonic() - started:.1f} s", flush=True)
        assert masks is not None
        return masks[..., : SIZE[0], :]

    own = logits()
    encoder: Any = model.encoder
    stock = {"unet": StockUNet, "vae": StockVAE}
    state = torch.load(checkpoint.path, mmap=True, weights_only=True)["model"]
    for part, cls in stock.items():
        with torch.device("meta"):
            whole = cls.from_config(getattr(encoder, part).module.config)
        weights = {key.split(f".{part}.", 1)[1]: value for key, value in state.items() if f".{part}." in key}
        whole.load_state_dict(weights, assign=True)
        getattr(encoder, part).module = whole.eval()
    published_parts(model)
    theirs = logits()
    reach = float(theirs.max() - theirs.min())
    print(
        f"  {name}: logits differ by {float((own - theirs).abs().max()) / reach:.1e} of their range, "
        f"{int(((own > 0) != (theirs > 0)).sum())} of {own.numel()} pixels"
    )


STEPS: dict[str, Callable[[Path, str], None]] = {"parts": make_parts, "authors": write_authors, "compare": compare}


if __name__ == "__main__":
    main()
