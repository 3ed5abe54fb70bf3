"""Make the bundled toy weights from scratch: the frozen stack, and a model trained on it (``scripts/train_toy.sh``).

The stack is pre-trained part by part on toy videos: the VAE reconstructs frames, text and image encoder are trained
with a contrastive loss, the sentence encoder fills in masked words, and the UNet denoises latents given a text.

The model is then trained in phases, each from the weights of the one before: single frames, which are cheap, with
sentences that a single frame answers; then clips, which show motion, with all sentences; then clips at half the rate.
REM is trained on single frames only.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.toy.scene import FRAME_SIZE, KINDS, frame_side
from util.errors import Parser, RunError, UserError, help_asked, run_cli

PROCESSES = 2  # fixed, because the result depends on it


@dataclass(frozen=True)
class Phase:
    """A phase of the training of a model.

    Attributes:
        name, title: of the phase.
        data: folder of its videos; phases with the same kinds of sentences share one.
        frames: per clip.
        batch: clips per process.
        steps: optimiser steps.
        schedule: of the learning rate, as of ``main.py``.
        kinds: of the sentences.
        rate: learning rate.
        warmup: steps of the warm-up.
    """

    name: str
    title: str
    data: str
    frames: int
    batch: int
    steps: int
    schedule: str
    kinds: tuple[str, ...]
    rate: float = 1e-3
    warmup: int = 100


STILL = tuple(kind for kind in KINDS if kind != "motion")
FIRST = Phase("frames", "single frames", "data_frames", 1, 16, 0, "step", STILL)
CLIPS = Phase("clips", "clips of three frames", "data_clips", 3, 8, 0, "cosine", KINDS)
POLISH = replace(CLIPS, name="polish", title="clips at half the rate", rate=5e-4, warmup=50)
SINGLES = replace(FIRST, batch=8, steps=1400)
FALLING = replace(SINGLES, name="falling", title="single frames, with a falling rate", schedule="cosine", steps=2800)
PHASES = {
    "vdit": (replace(FIRST, steps=3200), replace(CLIPS, steps=1200), replace(POLISH, steps=700)),
    "hcd": (replace(FIRST, steps=1400), replace(CLIPS, steps=700), replace(POLISH, steps=400)),
    "rem": (
        SINGLES,
        replace(FALLING, steps=1200, warmup=50),
        replace(FALLING, name="again"),
        replace(FALLING, name="last"),
    ),
}
"""HCD needs fewer steps, because its adapters change the frozen features. REM would need more (docs/toy_lab.md)."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="python -m scripts.train_toy", description="Make the bundled toy weights from scratch.")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--stack-only", action="store_true", help="make only the frozen stack")
    part.add_argument("--model-only", action="store_true", help="train only the model, on the existing stack")
    parser.add_argument("--model", choices=tuple(PHASES), default="vdit", help="the model to train (default: vdit)")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("toy"), help="folder for stack/ and MODEL.safetensors (default: toy)"
    )
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=Path("runs/toy"),
        help="folder for data and checkpoints; a stopped run resumes from them (default: runs/toy)",
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="fraction of the steps to run (default: 1; less gives worse weights)"
    )
    parser.add_argument(
        "--size",
        type=frame_side,
        nargs=2,
        default=FRAME_SIZE,
        metavar=("HEIGHT", "WIDTH"),
        help="of the frames, in pixels; shapes grow with them (default: 64 96)",
    )
    args = parser.parse_args(argv)
    if args.share <= 0:
        raise UserError(f"--share must be above 0, not {args.share:g}")
    return args


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(parse_args)

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection, RobertaForMaskedLM
from transformers import logging as transformers_logging

from datasets.toy import ToyParameters, make_video
from datasets.toy.scene import free_scene, render_frames
from datasets.toy.sentences import describe_object, describe_scene
from engine import Schedule
from models.diffusion.conditioning import CLIPPixels
from models.diffusion.tiny import STAMP, make_tiny_stack
from scripts.quickstart import run
from util.checkpoint import write_pickle
from util.config import MODELS
from util.distributed import is_main, process_group, rank, wait_for_all, world_size
from util.files import atomic_folder, read_json, sole_run, write_json

VIDEOS, VALID_VIDEOS = 2500, 60  # of the model's data
STACK_VIDEOS = 3000
SIZES: dict[str, Any] = {
    "channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "vae_channels": (16, 32, 32, 32),
    "vae_layers_per_block": 1,
    "vae_norm_groups": 4,
    "latent_channels": 8,
    "image_size": 64,
    "image_patch": 8,
    "text_tokens": 48,
    "max_tokens": 1200,
}
SEED = 1  # not that of the benchmark, whose videos stay unseen
OBJECTS = (1, 1, 1, 2, 2, 2, 0, 0, 0, 0)
"""Objects of the videos in turn; 0: a video like those of the benchmark. Words are easier to learn with few objects."""
CROP = (32, 48)  # height and width in pixels of what the VAE is trained on: a quarter of the work of whole frames
FRAMES = 4  # of a clip that the UNet denoises; every other step uses single frames
STEPS = {"vae": 3000, "contrastive": 1200, "sentences": 800, "unet": 2200}
RATES = {"vae": 2e-3, "contrastive": 1e-3, "sentences": 2e-3, "unet": 1e-3}
SAVE_SECONDS = 60


def main(argv: Sequence[str] | None = None) -> None:
    """Make what the command line asks for."""
    args = parse_args(argv)
    output, work = args.output_dir.absolute(), args.work_dir.absolute() / "{}x{}".format(*args.size)
    if args.stack_only and "LOCAL_RANK" in os.environ:  # one of the processes that are started below
        pretrain(output / "stack", work / "stack", STACK_VIDEOS, args.share, args.size)
        return
    if not args.model_only:
        run(
            "The frozen stack: VAE, text and image encoder, sentence encoder, UNet",
            *launched("-m", "scripts.train_toy", "--stack-only"),
            *("--output_dir", output, "--work_dir", args.work_dir.absolute()),
            *("--share", str(args.share), "--size", *args.size),
        )
    if not args.stack_only:
        make_model(args.model, output, work, args.share, args.size)


def launched(*command: str) -> tuple[str, ...]:
    """The arguments that run a command in ``PROCESSES`` processes."""
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES), *command)


# The model.


def make_model(model: str, output: Path, work: Path, share: float, size: Sequence[int] = FRAME_SIZE) -> None:
    """Train a model in its phases and write its weights in half precision.

    Raises:
        UserError: there is no stack.
    """
    stack = output / "stack"
    if not stack.is_dir():
        raise UserError(f"{stack} is missing; make it with --stack-only first")
    weights: Path | None = None
    square = MODELS[model].square
    side, longest = (max(size), ()) if square else (min(size), ("--max_size", max(size)))
    for phase in PHASES[model]:
        folder, data = work / model / phase.name, work / phase.data
        run(
            f"Toy data: {', '.join(phase.kinds)}",
            *("-m", "scripts.make_toy_data", "--output_dir", data, "--negatives", 1, "--kinds"),
            *phase.kinds,
            *("--train_videos", VIDEOS, "--valid_videos", VALID_VIDEOS, "--height", size[0], "--width", size[1]),
        )
        checkpoint = folder / "checkpoint.pth"
        heads: tuple[str, ...] = ("--keep_class_heads",) if MODELS[model].scored else ()
        begin: tuple[str | Path, ...] = ("--pretrained_weights", weights, *heads) if weights else ()
        steps = max(2, round(share * phase.steps))
        run(
            f"Training on {phase.title}",
            *launched("main.py", "--config", f"configs/{model}_toy.yaml"),
            *("--pretrained", stack, "--ytvos_path", data, "--output_dir", folder),
            *("--train_scales", side, "--eval_size", side, *longest),
            *("--num_frames", phase.frames, "--batch_size", phase.batch, "--max_steps", steps, "--save_every", 100),
            *("--lr", str(phase.rate), "--lr_processes", PROCESSES, "--lr_schedule", phase.schedule),
            *("--warmup_steps", phase.warmup),
            *(("--resume", checkpoint) if checkpoint.is_file() else begin),
        )
        weights = checkpoint
    assert weights is not None
    run(
        "The weights only, in half precision",
        *("-m", "scripts.convert_checkpoint", weights, output / f"{model}.safetensors", "--dtype", "float16"),
    )


# The stack.


def pretrain(output: Path, work: Path, videos: int, share: float, size: Sequence[int] = FRAME_SIZE) -> None:
    """Pre-train all parts of the stack in ``work`` and copy the finished stack to ``output``.

    Args:
        output: the stack's folder.
        work: keeps the parts; those of an earlier run that are finished are not trained again.
        videos: number of toy videos.
        share: of the steps of every part.
        size: height and width of the frames.

    Raises:
        UserError: ``output`` holds something else than a toy stack.
    """
    if output.exists() and not (output / STAMP).is_file():
        raise UserError(f"{output} exists and is no toy stack; choose another --output_dir")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with process_group(torch.device("cpu")), sole_run(work, is_main()):
        torch.manual_seed(SEED)
        corpus = make_corpus(videos, 8, *size)
        stack, record = work / "stack", work / "done.json"
        done: list[str] = read_json(record, "the finished parts") if record.is_file() else []
        if not done and is_main():
            words = sorted({text for texts in corpus.texts for text in texts})
            make_tiny_stack(stack, words, SEED, force=True, **SIZES)
        for name, train in PARTS.items():
            wait_for_all()
            if name not in done:
                train(corpus, stack, work, max(1, round(share * STEPS[name])))
                done.append(name)
                if is_main():
                    write_json(record, done)
        if is_main():
            with atomic_folder(output) as copy:
                shutil.copytree(stack, copy, dirs_exist_ok=True)
            print(f"wrote {output}")


@dataclass
class Corpus:
    """Videos with their texts.

    Attributes:
        frames: uint8 ``[V, T, 3, H, W]``.
        texts: per video captions of the scene, captions of single objects, and sentences as in the benchmark.
    """

    frames: Tensor
    texts: list[list[str]]

    def pick(self, generator: torch.Generator, count: int) -> Tensor:
        """Indices of ``count`` random videos."""
        return torch.randint(len(self.frames), (count,), generator=generator)


def make_corpus(videos: int, frames: int, height: int, width: int) -> Corpus:
    """Make toy videos in memory."""
    parameters = ToyParameters(videos, 0, 0, frames, height, width, SEED, KINDS)
    pixels, texts = [], []
    for index in tqdm(range(videos), desc="videos", unit="video", dynamic_ncols=True, disable=not is_main()):
        rng = random.Random(f"{SEED}/captions/{index}")
        count = OBJECTS[index % len(OBJECTS)]
        if count:
            scene, sentences = free_scene(rng, frames, height, width, count), []
        else:
            video = make_video(parameters, "train", index)
            scene, sentences = video.scene, [sentence.text for sentence in video.sentences]
        pixels.append(torch.from_numpy(render_frames(scene)).permute(0, 3, 1, 2))
        captions = [describe_scene(rng, scene) for _ in range(4)]
        texts.append(captions + [describe_object(rng, scene) for _ in range(4)] + sentences)
    return Corpus(torch.stack(pixels), texts)


def fit(
    name: str, modules: Sequence[nn.Module], loss: Callable[[torch.Generator, int], Tensor], steps: int, folder: Path
) -> None:
    """Train modules with AdamW and a cosine schedule, and resume a stopped training.

    ``engine.train`` trains one model on clips with targets; the parts of the stack have other inputs and losses.

    Args:
        name: of the part, whose state is kept in ``folder/<name>.pth``.
        modules: what is trained.
        loss: draws the batch of a step with the generator and returns its loss.
        steps: in all.
        folder: for the state.

    Raises:
        UserError: the saved state cannot be used.
        RunError: the loss is not finite.
    """
    holder = nn.ModuleList(modules).train()
    parameters = [p for p in holder.parameters() if p.requires_grad]
    schedule = Schedule(RATES[name], steps_per_epoch=steps, epochs=1, warmup_steps=100, cosine=True)
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-2)
    path, first, saved = folder / f"{name}.pth", 0, time.monotonic()
    if path.is_file():
        try:
            state = torch.load(path, weights_only=True)
            holder.load_state_dict(state["modules"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["step"]
        except Exception as error:  # a damaged file may raise anything
            raise UserError(f"{path} is damaged; delete it to train {name} from the beginning") from error
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, unit="step", disable=not is_main())
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        # A step's batch depends on the step and the process only, so a resumed run is the same run.
        value = loss(torch.Generator().manual_seed((rank() << 20) * 1_000_003 + step), step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        for gradient in [p.grad for p in parameters if p.grad is not None] if world_size() > 1 else ():
            torch.distributed.all_reduce(gradient)
            gradient /= world_size()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if not torch.isfinite(value):
            raise RunError(
                f"the loss of {name} is not finite at step {step + 1}; run the command again to resume from the last "
                f"state, or delete {path} first to train {name} from the beginning"
            )
        bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)
        if is_main() and (time.monotonic() - saved > SAVE_SECONDS or step + 1 == steps):
            state = {"modules": holder.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            write_pickle(path, state)
            saved = time.monotonic()
    holder.eval()


def pretrain_vae(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """Train the VAE to reconstruct crops of single frames, and scale its latents to standard deviation 1."""
    height, width = corpus.frames.shape[-2:]
    vae = AutoencoderKL.from_pretrained(stack / "vae", torch_dtype=torch.float32)
    nn.init.constant_(vae.quant_conv.bias[vae.config.latent_channels :], -6.0)

    def loss(generator: torch.Generator, step: int) -> Tensor:
        which = torch.randint(corpus.frames.shape[1], (8,), generator=generator)
        top = int(torch.randint(height - CROP[0] + 1, (1,), generator=generator))
        left = int(torch.randint(width - CROP[1] + 1, (1,), generator=generator))
        crops = corpus.frames[corpus.pick(generator, 8), which, :, top : top + CROP[0], left : left + CROP[1]]
        pixels = crops.float() / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(latents).sample
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + 1e-6 * posterior.kl().mean()

    fit("vae", [vae], loss, steps, work)
    with torch.no_grad():
        means = vae.encode(corpus.frames[:32, 0].float() / 127.5 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=round(float(1 / means.std()), 5))
    if is_main():
        _save(vae, stack / "vae")


def pretrain_contrastive(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """Train text and image encoder to match frames with the captions of their videos."""
    text = _text_encoder(stack)
    image = CLIPVisionModelWithProjection.from_pretrained(stack / "clip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(stack / "tokenizer")
    prepare = CLIPPixels(image.config.image_size)
    project = nn.Linear(text.config.hidden_size, image.config.projection_dim, bias=False)
    scale = nn.Linear(1, 1, bias=False)  # its one weight is the log of the inverse temperature
    nn.init.constant_(scale.weight, 2.3)
    table = [_tokens(tokenizer, texts) for texts in corpus.texts]

    def loss(generator: torch.Generator, step: int) -> Tensor:
        videos = corpus.pick(generator, 64)
        ids = torch.stack([_one_of(table[v], generator) for v in videos.tolist()])
        frame = torch.randint(corpus.frames.shape[1], (len(videos),), generator=generator)
        seen = image(prepare(corpus.frames[videos, frame].float() / 127.5 - 1)).image_embeds
        read = project(text(ids).pooler_output)
        logits = F.normalize(read, dim=-1) @ F.normalize(seen, dim=-1).T * scale.weight.exp()
        pairs = torch.arange(len(videos))
        return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2

    fit("contrastive", [text, image, project, scale], loss, steps, work)
    weights = {f"text_model.{name}": value.half() for name, value in text.state_dict().items()}
    if is_main():
        _save(text, stack / "text_encoder", state_dict=weights)
        _save(image, stack / "clip")


def pretrain_sentences(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """Train the sentence encoder to fill in masked words."""
    tokenizer = AutoTokenizer.from_pretrained(stack / "roberta", trust_remote_code=False)
    model = RobertaForMaskedLM.from_pretrained(stack / "roberta", dtype=torch.float32)
    texts = [text for video in corpus.texts for text in video]

    def loss(generator: torch.Generator, step: int) -> Tensor:
        chosen = torch.randint(len(texts), (64,), generator=generator).tolist()
        batch = tokenizer([texts[i] for i in chosen], padding=True, return_tensors="pt")
        ids = batch.input_ids
        masked = torch.rand(ids.shape, generator=generator) < 0.2
        masked &= (ids != tokenizer.pad_token_id) & (ids != tokenizer.bos_token_id) & (ids != tokenizer.eos_token_id)
        masked[0, 1] = True  # at least one, because the mean of none is not a number
        given = ids.masked_fill(masked, tokenizer.mask_token_id)
        return model(input_ids=given, attention_mask=batch.attention_mask, labels=ids.masked_fill(~masked, -100)).loss

    fit("sentences", [model], loss, steps, work)
    if is_main():
        _save(model.roberta, stack / "roberta")


def pretrain_unet(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """Train the UNet to denoise latents of single frames and clips, given a text, which is empty in a tenth of cases.

    Single frames bypass the temporal layers as they do in ``TapUNet3D``.
    """
    vae = AutoencoderKL.from_pretrained(stack / "vae", torch_dtype=torch.float32)
    text, tokenizer = _text_encoder(stack), CLIPTokenizer.from_pretrained(stack / "tokenizer")
    unet = UNet3DConditionModel.from_pretrained(stack / "unet", torch_dtype=torch.float32)
    scheduler = DDIMScheduler.from_pretrained(stack / "scheduler")
    with torch.no_grad():
        latents = torch.stack(
            [vae.encode(video.float() / 127.5 - 1).latent_dist.mean for video in corpus.frames]
        ).transpose(1, 2)  # [V, 4, T, h, w]
        latents = latents * vae.config.scaling_factor
        states = [text(_tokens(tokenizer, texts)).last_hidden_state for texts in corpus.texts]
        empty = text(_tokens(tokenizer, [""])).last_hidden_state[0]

    def loss(generator: torch.Generator, step: int) -> Tensor:
        still = step % 2 > 0
        frames = 1 if still else FRAMES
        videos = corpus.pick(generator, 32 // frames)
        start = int(torch.randint(latents.shape[2] - frames + 1, (1,), generator=generator))
        clean = latents[videos, :, start : start + frames]
        condition = torch.stack(
            [
                empty if torch.rand((), generator=generator) < 0.1 else _one_of(states[v], generator)
                for v in videos.tolist()
            ]
        )
        noise = torch.randn(clean.shape, generator=generator)
        # Single frames get more of the low noise levels, at which the features are used and which teach details. Clips
        # get all levels, because other frames only help where much of a frame is lost.
        share = torch.rand(len(videos), generator=generator) ** (2 if still else 1)
        level = (share * scheduler.config.num_train_timesteps).long()
        noised = scheduler.add_noise(clean, noise, level)
        with without_time(unet) if still else nullcontext():
            return F.mse_loss(unet(noised, level, condition).sample, noise)

    fit("unet", [unet], loss, steps, work)
    if is_main():
        _save(unet, stack / "unet")


@contextmanager
def without_time(unet: UNet3DConditionModel) -> Iterator[None]:
    """Bypass the temporal layers except the first temporal convolution of the mid block, as ``TapUNet3D`` does."""
    layers = [m for m in unet.modules() if isinstance(m, (TransformerTemporalModel, TemporalConvLayer))]
    layers = [layer for layer in layers if layer is not unet.mid_block.temp_convs[0]]
    for layer in layers:
        attention = isinstance(layer, TransformerTemporalModel)
        layer.forward = (lambda x, **_: (x,)) if attention else (lambda x, **_: x)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _save(model: Any, folder: Path, **options: Any) -> None:
    """Write a finished part in half precision and replace its files one by one."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parents[1]) as temporary:
        model.half().save_pretrained(temporary, **options)
        config = Path(temporary) / "config.json"
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)  # a path on this machine
        config.write_text(json.dumps(content, indent=2) + "\n")
        for file in sorted(Path(temporary).iterdir()):
            file.replace(folder / file.name)


def _text_encoder(stack: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(stack / "text_encoder", dtype=torch.float32)


def _tokens(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids


def _one_of(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows[int(torch.randint(len(rows), (1,), generator=generator))]


PARTS = {
    "vae": pretrain_vae,
    "contrastive": pretrain_contrastive,
    "sentences": pretrain_sentences,
    "unet": pretrain_unet,
}


if __name__ == "__main__":
    run_cli(main)
