"""Pre-train the tiny frozen stack on toy videos, as its big sister was on real ones.

    python -m scripts.pretrain_toy_stack --output_dir toy/stack --work_dir runs/toy_stack

In order: the VAE reconstructs frames; text and image encoder meet in a contrastive loss; the sentence encoder
fills in masked words; the UNet learns to denoise latents of videos given their text (ε-prediction,
classifier-free). Stops and goes on where it stopped. Half precision on disk.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from util.errors import Parser, UserError, help_asked, run_cli


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description="Pre-train the tiny frozen stack on toy videos.")
    parser.add_argument("--output_dir", type=Path, default=Path("toy/stack"))
    parser.add_argument("--work_dir", type=Path, default=Path("runs/toy_stack"))
    parser.add_argument("--videos", type=int, default=3000)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of every part")
    return parser.parse_args()


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    parse_args()

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    RobertaForMaskedLM,
)
from transformers import logging as transformers_logging

from models.diffusion.conditioning import CLIPPixels
from models.diffusion.tiny import STAMP, make_tiny_stack
from scripts.fit import fit
from scripts.toy_corpus import SEED, Corpus, make_corpus
from util.distributed import is_main, process_group, wait_for_all
from util.files import atomic_folder, read_json, sole_run, write_json

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
CROP = (32, 48)
"""Height and width of what the VAE learns on, in pixels: a quarter of the work of whole frames."""
FRAMES = 4
"""Of a clip that the UNet denoises; every other step is on single frames, as image data joins video data."""
STEPS = {"vae": 3000, "contrastive": 1200, "sentences": 800, "unet": 2200}
RATES = {"vae": 2e-3, "contrastive": 1e-3, "sentences": 2e-3, "unet": 1e-3}


def pretrain_vae(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """Reconstruct crops of single frames; the latents' scale is set so that they have deviation 1."""
    size = corpus.frames.shape[-2:]
    vae = AutoencoderKL.from_pretrained(stack / "vae", torch_dtype=torch.float32)
    nn.init.constant_(vae.quant_conv.bias[vae.config.latent_channels :], -6.0)

    def loss(generator: torch.Generator, step: int) -> Tensor:
        which = torch.randint(corpus.frames.shape[1], (8,), generator=generator)
        top, left = (
            int(torch.randint(side - crop + 1, (1,), generator=generator))
            for side, crop in zip(size, CROP, strict=True)
        )
        window = (slice(None), slice(None), slice(top, top + CROP[0]), slice(left, left + CROP[1]))
        pixels = corpus.frames[corpus.pick(generator, 8), which][window].float() / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(latents).sample
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + 1e-6 * posterior.kl().mean()

    fit("vae", [vae], loss, steps, RATES["vae"], work)
    with torch.no_grad():
        means = vae.encode(corpus.frames[:32, 0].float() / 127.5 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=round(float(1 / means.std()), 5))
    if is_main():
        _save(vae, stack / "vae")


def pretrain_contrastive(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """Text and image encoder: a frame and the caption of its video belong together, others do not."""
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
        seen = image(prepare(corpus.frames[videos, frame].float() / 255)).image_embeds
        read = project(text(ids).pooler_output)
        logits = F.normalize(read, dim=-1) @ F.normalize(seen, dim=-1).T * scale.weight.exp()
        truth = torch.arange(len(videos))
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2

    fit("contrastive", [text, image, project, scale], loss, steps, RATES["contrastive"], work)
    weights = {f"text_model.{name}": value.half() for name, value in text.state_dict().items()}
    if is_main():
        _save(text, stack / "text_encoder", state_dict=weights)
        _save(image, stack / "clip")


def pretrain_sentences(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """The sentence encoder: fill in masked words."""
    tokenizer = AutoTokenizer.from_pretrained(stack / "roberta")
    model = RobertaForMaskedLM.from_pretrained(stack / "roberta", dtype=torch.float32)
    texts = [text for video in corpus.texts for text in video]

    def loss(generator: torch.Generator, step: int) -> Tensor:
        chosen = torch.randint(len(texts), (64,), generator=generator).tolist()
        batch = tokenizer([texts[i] for i in chosen], padding=True, return_tensors="pt")
        ids = batch.input_ids
        masked = torch.rand(ids.shape, generator=generator) < 0.2
        masked &= (ids != tokenizer.pad_token_id) & (ids != tokenizer.bos_token_id) & (ids != tokenizer.eos_token_id)
        masked[0, 1] = True  # at least one, or the mean has no terms
        given = ids.masked_fill(masked, tokenizer.mask_token_id)
        return model(input_ids=given, attention_mask=batch.attention_mask, labels=ids.masked_fill(~masked, -100)).loss

    fit("sentences", [model], loss, steps, RATES["sentences"], work)
    if is_main():
        _save(model.roberta, stack / "roberta")


def pretrain_unet(corpus: Corpus, stack: Path, work: Path, steps: int) -> None:
    """Denoise latents of single frames and of clips, given a text of the video, which a tenth of the time is empty.

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
        # Single frames: more of the small noise at which the features are used, and which teaches details. Clips: any
        # noise, since only where much of a frame is lost the others and their motion say more.
        share = torch.rand(len(videos), generator=generator) ** (2 if still else 1)
        level = (share * scheduler.config.num_train_timesteps).long()
        noised = scheduler.add_noise(clean, noise, level)
        with without_time(unet) if still else nullcontext():
            return F.mse_loss(unet(noised, level, condition).sample, noise)

    fit("unet", [unet], loss, steps, RATES["unet"], work)
    if is_main():
        _save(unet, stack / "unet")


@contextmanager
def without_time(unet: UNet3DConditionModel) -> Iterator[None]:
    """The temporal layers pass on what they get, but for the mid block's first convolution (see ``TapUNet3D``)."""
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
    """Write a finished part in half precision, file by file beside the old one, so that a kill leaves whole files."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parents[1]) as temporary:
        model.half().save_pretrained(temporary, **options)
        config = Path(temporary) / "config.json"
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)  # a folder of this machine
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
    with process_group(torch.device("cpu")), sole_run(work, is_main()):
        _pretrain_parts(work, videos, share)
        if is_main():
            with atomic_folder(output) as copy:
                shutil.copytree(work / "stack", copy, dirs_exist_ok=True)
            print(f"wrote {output}")


def _pretrain_parts(work: Path, videos: int, share: float) -> None:
    """All parts that are not done yet, in ``work``."""
    torch.manual_seed(SEED)
    corpus = make_corpus(videos, frames=8, height=64, width=96)
    every = sorted({text for texts in corpus.texts for text in texts})
    stack, record = work / "stack", work / "done.json"
    done: list[str] = read_json(record, "the parts that are pre-trained") if record.is_file() else []
    if not done and is_main():
        make_tiny_stack(stack, every, SEED, force=True, **SIZES)
    for name, train in PARTS.items():
        wait_for_all()
        if name not in done:
            train(corpus, stack, work, max(1, round(share * STEPS[name])))
            done.append(name)
            if is_main():
                write_json(record, done)


def main() -> None:
    """Pre-train as the command line says."""
    args = parse_args()
    pretrain(args.output_dir, args.work_dir, args.videos, args.share)


if __name__ == "__main__":
    run_cli(main)
