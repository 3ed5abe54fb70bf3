"""Pre-train the tiny frozen stack on toy videos, as its big sister was on real ones.

    python -m scripts.pretrain_toy_stack --output_dir toy/stack --work_dir runs/toy_stack

In order: the VAE reconstructs frames; text and image encoder meet in a contrastive loss; the sentence encoder
fills in masked words; the UNet learns to denoise latents of videos given their text (ε-prediction,
classifier-free). Stops and goes on where it stopped. Half precision on disk.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    RobertaForMaskedLM,
)
from transformers import logging as transformers_logging

from datasets.toy import ToyParameters, make_video
from datasets.toy_captions import describe_scene
from datasets.toy_render import render_frames
from datasets.toy_scene import KINDS
from models.diffusion.conditioning import CLIPPixels
from models.diffusion.tiny import STAMP, make_tiny_stack
from scripts.fit import fit
from util.errors import UserError, run_cli
from util.io import read_json, write_json

SIZES: dict[str, Any] = {
    "layers_per_block": 1,
    "vae_channels": (16, 32, 32, 32),
    "vae_layers_per_block": 1,
    "vae_norm_groups": 16,
    "image_size": 64,
    "image_patch": 8,
}
SEED = 1  # not the benchmark's: its videos stay unseen
CAPTIONS = 4  # per video, beside its referring sentences
CROP = (32, 48)
"""Height and width of what the VAE learns on, in pixels: a quarter of the work of whole frames."""
STEPS = {"vae": 2000, "contrastive": 1000, "sentences": 1000, "unet": 3000}
RATES = {"vae": 2e-3, "contrastive": 1e-3, "sentences": 2e-3, "unet": 1e-3}


@dataclass
class Corpus:
    """Videos with their texts."""

    frames: Tensor
    """uint8 ``[V, T, 3, H, W]``."""
    captions: list[list[str]]
    """of the whole scene, per video."""
    sentences: list[list[str]]
    """that refer to one object, per video."""

    def pick(self, generator: torch.Generator, count: int) -> Tensor:
        """Indices of ``count`` random videos."""
        return torch.randint(len(self.frames), (count,), generator=generator)


def make_corpus(videos: int, frames: int, height: int, width: int) -> Corpus:
    """Toy videos in memory, of a seed of their own."""
    parameters = ToyParameters(videos, 0, 0, frames, height, width, SEED, KINDS)
    pixels, captions, sentences = [], [], []
    for index in tqdm(range(videos), desc="videos", unit="video", dynamic_ncols=True):
        video = make_video(parameters, "train", index)
        rng = random.Random(f"{SEED}/captions/{index}")
        pixels.append(torch.from_numpy(render_frames(video.scene)).permute(0, 3, 1, 2))
        captions.append([describe_scene(rng, video.scene) for _ in range(CAPTIONS)])
        sentences.append([sentence.text for sentence in video.sentences])
    return Corpus(torch.stack(pixels), captions, sentences)


def pretrain_vae(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """Reconstruct crops of single frames; the latents' scale is set so that they have deviation 1."""
    size = corpus.frames.shape[-2:]
    vae = AutoencoderKL.from_pretrained(stack / "vae", torch_dtype=torch.float32)
    nn.init.constant_(vae.quant_conv.bias[vae.config.latent_channels :], -6.0)

    def loss(generator: torch.Generator) -> Tensor:
        which = torch.randint(corpus.frames.shape[1], (16,), generator=generator)
        top, left = (
            int(torch.randint(side - crop + 1, (1,), generator=generator))
            for side, crop in zip(size, CROP, strict=True)
        )
        window = (slice(None), slice(None), slice(top, top + CROP[0]), slice(left, left + CROP[1]))
        pixels = corpus.frames[corpus.pick(generator, 16), which][window].float() / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(latents).sample
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + 1e-6 * posterior.kl().mean()

    fit("vae", [vae], loss, steps, RATES["vae"], work)
    with torch.no_grad():
        means = vae.encode(corpus.frames[:32, 0].float() / 127.5 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=round(float(1 / means.std()), 5))
    vae.half().save_pretrained(stack / "vae")


def pretrain_contrastive(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """Text and image encoder: a frame and the caption of its video belong together, others do not."""
    text = _text_encoder(stack)
    image = CLIPVisionModelWithProjection.from_pretrained(stack / "clip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(stack / "tokenizer")
    prepare = CLIPPixels(image.config.image_size)
    project = nn.Linear(text.config.hidden_size, image.config.projection_dim, bias=False)
    scale = nn.Linear(1, 1, bias=False)  # its one weight is the log of the inverse temperature
    nn.init.constant_(scale.weight, 2.3)
    tokens = [tokenizer(c, padding="max_length", return_tensors="pt").input_ids for c in corpus.captions]
    table = torch.stack(tokens)  # [V, captions, 77]

    def loss(generator: torch.Generator) -> Tensor:
        videos = corpus.pick(generator, 64)
        which = torch.randint(table.shape[1], (len(videos),), generator=generator)
        frame = torch.randint(corpus.frames.shape[1], (len(videos),), generator=generator)
        seen = image(prepare(corpus.frames[videos, frame].float() / 255)).image_embeds
        read = project(text(table[videos, which]).pooler_output)
        logits = F.normalize(read, dim=-1) @ F.normalize(seen, dim=-1).T * scale.weight.exp()
        truth = torch.arange(len(videos))
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2

    fit("contrastive", [text, image, project, scale], loss, steps, RATES["contrastive"], work)
    weights = {f"text_model.{name}": value.half() for name, value in text.state_dict().items()}
    text.half().save_pretrained(stack / "text_encoder", state_dict=weights)
    image.half().save_pretrained(stack / "clip")


def pretrain_sentences(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """The sentence encoder: fill in masked words."""
    tokenizer = AutoTokenizer.from_pretrained(stack / "roberta")
    model = RobertaForMaskedLM.from_pretrained(stack / "roberta", dtype=torch.float32)
    texts = [text for video in corpus.sentences for text in video] + [c for video in corpus.captions for c in video]

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(texts), (64,), generator=generator).tolist()
        batch = tokenizer([texts[i] for i in chosen], padding=True, return_tensors="pt")
        ids = batch.input_ids
        masked = torch.rand(ids.shape, generator=generator) < 0.2
        masked &= (ids != tokenizer.pad_token_id) & (ids != tokenizer.bos_token_id) & (ids != tokenizer.eos_token_id)
        masked[0, 1] = True  # at least one, or the mean has no terms
        given = ids.masked_fill(masked, tokenizer.mask_token_id)
        return model(input_ids=given, attention_mask=batch.attention_mask, labels=ids.masked_fill(~masked, -100)).loss

    fit("sentences", [model], loss, steps, RATES["sentences"], work)
    model.roberta.half().save_pretrained(stack / "roberta")


def pretrain_unet(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """Denoise latents of clips of four frames, given a text of the video, which a tenth of the time is empty."""
    vae = AutoencoderKL.from_pretrained(stack / "vae", torch_dtype=torch.float32)
    text, tokenizer = _text_encoder(stack), CLIPTokenizer.from_pretrained(stack / "tokenizer")
    unet = UNet3DConditionModel.from_pretrained(stack / "unet", torch_dtype=torch.float32)
    scheduler = DDIMScheduler.from_pretrained(stack / "scheduler")
    with torch.no_grad():
        latents = torch.stack(
            [vae.encode(video.float() / 127.5 - 1).latent_dist.mean for video in corpus.frames]
        ).transpose(1, 2)  # [V, 4, T, h, w]
        latents = latents * vae.config.scaling_factor
        texts = [c + s for c, s in zip(corpus.captions, corpus.sentences, strict=True)]
        states = [_encode(text, tokenizer, t) for t in texts]
        empty = _encode(text, tokenizer, [""])[0]

    def loss(generator: torch.Generator) -> Tensor:
        videos = corpus.pick(generator, 8)
        start = int(torch.randint(latents.shape[2] - 3, (1,), generator=generator))
        clean = latents[videos, :, start : start + 4]
        condition = torch.stack(
            [
                empty
                if torch.rand((), generator=generator) < 0.1
                else states[v][int(torch.randint(len(states[v]), (1,), generator=generator))]
                for v in videos.tolist()
            ]
        )
        noise = torch.randn(clean.shape, generator=generator)
        step = torch.randint(scheduler.config.num_train_timesteps, (len(videos),), generator=generator)
        noised = scheduler.add_noise(clean, noise, step)
        return F.mse_loss(unet(noised, step, condition).sample, noise)

    fit("unet", [unet], loss, steps, RATES["unet"], work)
    unet.half().save_pretrained(stack / "unet")


def _text_encoder(stack: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(stack / "text_encoder", dtype=torch.float32)


def _encode(text: CLIPTextModel, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return text(ids).last_hidden_state


PARTS = {
    "vae": pretrain_vae,
    "contrastive": pretrain_contrastive,
    "sentences": pretrain_sentences,
    "unet": pretrain_unet,
}


def pretrain(output: Path, work: Path, videos: int, share: float) -> None:
    """Pre-train all parts in ``work`` and copy the finished stack to ``output``.

    Raises:
        UserError: a number is out of range, or ``output`` holds something else than a toy stack.
    """
    if videos < 1 or share <= 0:
        raise UserError(f"--videos must be at least 1 and --share above 0, not {videos} and {share:g}")
    if output.exists() and not (output / STAMP).is_file():
        raise UserError(f"{output} is there already and is no toy stack; choose another --output_dir")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(SEED)
    corpus = make_corpus(videos, frames=8, height=64, width=96)
    every = sorted({text for video in corpus.sentences + corpus.captions for text in video})
    stack, record = work / "stack", work / "done.json"
    done: list[str] = read_json(record, "the parts that are pre-trained") if record.is_file() else []
    if not done:
        make_tiny_stack(stack, every, SEED, force=True, **SIZES)
    for name, train in PARTS.items():
        if name not in done:
            train(corpus, stack, work, max(1, round(share * STEPS[name])))
            done.append(name)
            write_json(record, done)
    copy = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.copytree(stack, copy)
    if output.exists():
        shutil.rmtree(output)
    copy.rename(output)
    print(f"wrote {output}")


def main() -> None:
    """Pre-train as the command line says."""
    parser = argparse.ArgumentParser(description="Pre-train the tiny frozen stack on toy videos.")
    parser.add_argument("--output_dir", type=Path, default=Path("toy/stack"))
    parser.add_argument("--work_dir", type=Path, default=Path("runs/toy_stack"))
    parser.add_argument("--videos", type=int, default=1500)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of every part")
    args = parser.parse_args()
    pretrain(args.output_dir, args.work_dir, args.videos, args.share)


if __name__ == "__main__":
    run_cli(main)
