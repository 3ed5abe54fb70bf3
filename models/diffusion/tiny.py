"""A tiny frozen stack with random weights, in the on-disk layout of the published one.

It loads wherever ``ali-vilab/text-to-video-ms-1.7b``, CLIP and RoBERTa load, takes a few megabytes and needs no
download. The bundled toy stack starts from it, and the tests use it. A frozen random network is only useful while its
features keep pixels apart and stay in range, so the weights are not the libraries' initial ones:

- diffusers initialises the last layer of temporal convolutions with zeros; here it is random, so that time matters;
- residual branches are weak, temporal ones most of all, so that colours and positions survive the depth;
- spatial kernels fade from their centre, so that the features of an object stay at its place;
- the scaled latents of the VAE have standard deviation 1, as those of the published VAE, and a posterior with almost no
  variance; with the libraries' weights they would drown in the noise that VD-IT adds at step 0.

The tokenizers are trained on words of referring expressions. They are written as the files that the published stack
distributes (``vocab.json``, ``merges.txt``, ``tokenizer_config.json``) instead of ``tokenizer.json``, because
transformers 4 and 5 load these alike. Both work on bytes, so every text has tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    RobertaConfig,
    RobertaModel,
)
from transformers.utils import logging as transformers_logging

from util.errors import UserError
from util.files import atomic_folder, read_json, write_json

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "clip", "roberta")
STAMP = "tiny_stack.json"
VERSION = 1
"""Raised whenever the same parameters make other files."""

ROBERTA_LENGTH = 512

_WORDS = (
    "a an the this that these those and or of to in on at by with from into onto for as its it his her their he she "
    "they him them who which while when then there is are was be being has have not no other another each both one "
    "two three four five six seven eight nine ten first second third last all only same someone red green blue "
    "yellow orange purple pink brown black white grey gray cyan magenta golden silver beige violet turquoise dark "
    "light bright pale colourful colored striped spotted plain colour color square circle triangle rectangle ellipse "
    "diamond star cross ring pentagon hexagon disc ball box cube shape object thing round flat oval line arrow heart "
    "moon small large big tiny huge little tall short long wide narrow thin thick medium smaller larger bigger "
    "smallest largest biggest taller shorter longer size moving moves move going goes go turning turns turn rotating "
    "spinning still standing stands staying stationary static fast slow quickly slowly faster slower upward upwards "
    "downward downwards leftward leftwards rightward rightwards forward backward around across away towards toward "
    "through along back up down left right top bottom motion running walking jumping riding flying swimming sitting "
    "lying holding carrying eating playing throwing catching driving falling climbing dancing looking facing wearing "
    "kicking hitting pushing pulling following passing crossing entering leaving stopping starting bouncing sliding "
    "rolling diagonally above below under over behind before front beside near next between inside outside closest "
    "nearest farthest far side middle center centre corner edge opposite than more most less least leftmost "
    "rightmost man woman person people boy girl child kid baby lady guy player rider dog cat horse cow sheep bird "
    "duck fish elephant giraffe zebra lion tiger bear panda monkey rabbit snake turtle fox deer goat pig mouse "
    "parrot car bus truck train bike bicycle motorbike motorcycle boat ship plane airplane skateboard surfboard "
    "scooter shirt t-shirt pants jeans dress hat cap jacket coat shoes helmet glasses bag backpack umbrella hand "
    "hands arm leg head face hair tail wing body racket bat frisbee rope stick phone camera cup bottle bowl plate "
    "knife chair table bed sofa tree grass road street wall floor ground water sea river snow sand sky field house "
    "door window background animal vehicle video"
)
WORDS = tuple(_WORDS.split())
"""Words that referring expressions are mostly made of; the tokenizers learn them."""

BRANCH_ENDS = (
    *("conv2.weight", "conv4.3.weight", "proj_out.weight", "to_out.0.weight", "ff.net.2.weight"),  # diffusers
    *("out_proj.weight", "fc2.weight", "output.dense.weight"),  # transformers
)
"""Names of the layers that end a residual branch."""
TEMPORAL_ENDS = ("transformer_in.proj_out.weight", "conv4.3.weight")
BRANCH_GAIN = {"unet": 0.7, "vae": 0.2, "text_encoder": 0.3, "clip": 0.3, "roberta": 0.3}
TEMPORAL_GAIN = 0.2
POSITION_STD = 0.3
KERNEL_EDGE = 0.5
"""Weight of a 3×3 kernel's edge against its centre, per axis."""
LATENT_GAIN = 13.0
"""Makes the standard deviation of the scaled latents of natural images about 1."""
POSTERIOR_LOG_VARIANCE = -15.0


@dataclass(frozen=True)
class TinySizes:
    """Sizes of the tiny stack; every channel count is a multiple of the normalisations' groups."""

    channels: tuple[int, ...] = (32, 32, 64, 64)
    """UNet channels per block."""
    head_dim: int = 16
    layers_per_block: int = 2
    vae_channels: tuple[int, ...] = (32, 32, 32, 32)
    vae_layers_per_block: int = 2
    vae_norm_groups: int = 32
    latent_channels: int = 4
    """Of the VAE's latents, which the UNet takes and predicts."""
    text_width: int = 64
    """Width of the diffusion text encoder and of the UNet's cross-attention."""
    text_tokens: int = 77
    """Tokens of a text for the diffusion text encoder."""
    image_width: int = 64
    image_size: int = 224
    """Height and width of the image encoder's images."""
    image_patch: int = 32
    """Patch size of the image encoder."""
    sentence_width: int = 64
    encoder_layers: int = 2
    """Layers of the text, image and sentence encoders."""
    max_tokens: int = 4096
    """Upper limit of either vocabulary."""


def make_tiny_stack(
    folder: str | Path, sentences: Iterable[str] | None = None, seed: int = 0, *, force: bool = False, **sizes: Any
) -> Path:
    """Write a tiny random frozen stack in the Hugging Face layout.

    The subfolders are ``PARTS``. Weights depend only on the seed and on each parameter's name and shape; the global
    random state does not change. A stack that was made with the same parameters is kept. The folder gets its name when
    everything in it is written.

    Args:
        folder: where the stack goes.
        sentences: text that the tokenizers learn beside their built-in words; its order does not matter.
        seed: of the weights.
        force: replace a stack that was made with other parameters (never a folder that holds anything else).
        sizes: fields of ``TinySizes``.

    Returns:
        ``folder``.

    Raises:
        UserError: ``folder`` holds something else, or cannot be written.
    """
    folder = Path(folder)
    texts = sorted({" ".join(text.split()) for text in sentences or ()} - {""})
    chosen = TinySizes(**sizes)
    parameters = json.loads(json.dumps({"version": VERSION, "seed": seed, **asdict(chosen)}))
    parameters["sentences"] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names or folder.is_file():
        if STAMP not in names or names - {*PARTS, STAMP}:
            raise UserError(f"{folder} holds something other than a tiny stack; choose a new or empty folder")
        if read_json(folder / STAMP, "the parameters of a tiny stack")["parameters"] == parameters:
            return folder
        if not force:
            raise UserError(f"{folder} was made with another seed, sizes or sentences; remove it, or choose another")
    with atomic_folder(folder) as temporary:
        try:
            _write_parts(temporary, texts, seed, chosen)
        except SafetensorError as error:  # of a full disk, too
            raise OSError(str(error)) from error
        write_json(temporary / STAMP, {"parameters": parameters})
    return folder


@torch.no_grad()
def _write_parts(folder: Path, texts: list[str], seed: int, sizes: TinySizes) -> None:
    """Write every subfolder of the stack."""
    clip_tokens = _write_clip_tokenizer(folder / "tokenizer", texts, sizes.max_tokens, sizes.text_tokens)
    sentence_tokens = write_roberta_tokenizer(folder / "roberta", texts, sizes.max_tokens)
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    CLIPImageProcessor().save_pretrained(folder / "clip")
    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):  # building a model draws its initial weights
        for part, model in _models(sizes, clip_tokens, sentence_tokens).items():
            for name, parameter in model.named_parameters():
                parameter.copy_(random_weight(part, name.removeprefix("text_model."), parameter.shape, seed))
            options = {}
            if part == "text_encoder":
                # transformers 5 drops this prefix from its names; with it, as published, version 4 reads them too.
                state = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
                options["state_dict"] = {f"text_model.{name}": value for name, value in state.items()}
            model.save_pretrained(folder / part, **options)


def _models(sizes: TinySizes, clip_tokens: int, sentence_tokens: int) -> dict[str, Any]:
    """The models by subfolder, with the initial weights of the libraries."""
    levels, layers = len(sizes.vae_channels), {"num_hidden_layers": sizes.encoder_layers, "num_attention_heads": 4}
    unet = UNet3DConditionModel(
        sample_size=32,
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers_per_block,
        attention_head_dim=sizes.head_dim,
        cross_attention_dim=sizes.text_width,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.vae_channels,
        layers_per_block=sizes.vae_layers_per_block,
        norm_num_groups=sizes.vae_norm_groups,
        latent_channels=sizes.latent_channels,
        sample_size=64,
    )
    text = CLIPTextConfig(
        vocab_size=clip_tokens,
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        max_position_embeddings=sizes.text_tokens,
        projection_dim=sizes.text_width // 2,
        hidden_act="gelu",
        bos_token_id=clip_tokens - 2,
        eos_token_id=clip_tokens - 1,
        pad_token_id=0,
        **layers,
    )
    image = CLIPVisionConfig(
        hidden_size=sizes.image_width,
        intermediate_size=2 * sizes.image_width,
        image_size=sizes.image_size,
        patch_size=sizes.image_patch,
        projection_dim=sizes.image_width // 2,
        hidden_act="gelu",
        **layers,
    )
    sentence = RobertaConfig(
        vocab_size=sentence_tokens,
        hidden_size=sizes.sentence_width,
        intermediate_size=2 * sizes.sentence_width,
        max_position_embeddings=ROBERTA_LENGTH + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **layers,
    )
    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": CLIPTextModel(text),
        "clip": CLIPVisionModelWithProjection(image),
        "roberta": RobertaModel(sentence),
    }


def random_weight(part: str, name: str, shape: torch.Size, seed: int) -> Tensor:
    """The random value of one parameter of the stack; nothing but the arguments decides it.

    Args:
        part: the subfolder of the model that the parameter belongs to.
        name: its name in the model.
        shape: its shape; a matrix's or kernel's first axis is its output.
        seed: of the stack.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{part}/{name}".encode()))
    value = torch.randn(shape, generator=generator)
    if name == "quant_conv.bias":
        return torch.cat([torch.zeros(shape[0] // 2), torch.full((shape[0] // 2,), POSTERIOR_LOG_VARIANCE)])
    if name == "quant_conv.weight":
        mean, log_variance = value.chunk(2)
        return torch.cat([mean * LATENT_GAIN, log_variance * 0.1]) / math.sqrt(shape[1])
    if "position_embedding" in name or "token_type_embedding" in name:
        return value * POSITION_STD
    if name.endswith(("token_embedding.weight", "word_embeddings.weight", "class_embedding")):
        return value
    if len(shape) == 1:
        return 0.05 * value + (0.0 if name.endswith("bias") else 1.0)
    value = value / math.sqrt(math.prod(shape[1:]))
    if shape[2:] == (3, 3):
        profile = torch.tensor([KERNEL_EDGE, 1.0, KERNEL_EDGE])
        kernel = profile[:, None] * profile
        value = value * kernel / kernel.square().mean().sqrt()
    if name.endswith(BRANCH_ENDS):
        temporal = name.endswith(TEMPORAL_ENDS) or ("temp_attentions" in name and name.endswith("proj_out.weight"))
        value = value * (TEMPORAL_GAIN if temporal else BRANCH_GAIN[part])
    return value


def _train_merges(corpus: Iterable[str], alphabet: Sequence[str], size: int, suffix: str) -> list[tuple[str, str]]:
    """Train byte-level BPE and return its merges, most frequent first.

    The trainer numbers symbols in the order of a hash table and breaks ties by those numbers; naming every symbol
    beforehand makes the merges the same in every process.
    """
    word_end: dict[str, Any] = {"end_of_word_suffix": suffix} if suffix else {}
    tokenizer = Tokenizer(models.BPE(**word_end))
    tokenizer.normalizer = normalizers.NFC()
    if suffix:  # CLIP: words and runs of punctuation, a space belongs to no token
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        show_progress=False,
        special_tokens=[*alphabet, *(symbol + suffix for symbol in alphabet if suffix)],
        **word_end,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def _write(folder: Path, tokens: Iterable[str], merges: Iterable[tuple[str, str]], config: dict[str, object]) -> int:
    """Write a tokenizer's files; token ids follow the order of ``tokens``. Returns the number of tokens."""
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return len(vocabulary)


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes, in the order of the published vocabularies ("!" first)."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _write_clip_tokenizer(folder: Path, sentences: Sequence[str], max_tokens: int, length: int) -> int:
    """Train and write a CLIP tokenizer: lower-casing BPE with ``</w>`` at word ends. Returns the number of tokens.

    The layout is the published one: bytes, bytes that end a word, merges, ``<|startoftext|>``, ``<|endoftext|>``.
    Padding is "!" (id 0), as in the published text-to-video stack.
    """
    symbols, suffix, special = _byte_symbols(), "</w>", ["<|startoftext|>", "<|endoftext|>"]
    corpus = [text.lower() for text in (*WORDS, *sentences)]
    merges = _train_merges(corpus, symbols, max_tokens - len(special), suffix)
    tokens = [*symbols, *(symbol + suffix for symbol in symbols), *(left + right for left, right in merges), *special]
    config: dict[str, object] = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        "bos_token": special[0],
        "eos_token": special[1],
        "unk_token": special[1],
        "pad_token": symbols[0],
    }
    return _write(folder, tokens, merges, config)


def write_roberta_tokenizer(folder: Path, sentences: Sequence[str], max_tokens: int) -> int:
    """Train and write a RoBERTa tokenizer: byte-level BPE in which a space belongs to the word after it.

    The layout is the published one: ``<s>``, ``<pad>``, ``</s>``, ``<unk>`` (ids 0…3), bytes, merges, ``<mask>``.
    Returns the number of tokens.
    """
    symbols, special = _byte_symbols(), ["<s>", "<pad>", "</s>", "<unk>"]
    # A word has one spelling at the start of a sentence and another after a space.
    corpus = [*(prefix + word for word in WORDS for prefix in ("", " ")), *sentences]
    merges = _train_merges(corpus, symbols, max_tokens - len(special) - 1, suffix="")
    tokens = [*special, *symbols, *(left + right for left, right in merges), "<mask>"]
    config: dict[str, object] = {
        "tokenizer_class": "RobertaTokenizer",
        "model_max_length": ROBERTA_LENGTH,
        "add_prefix_space": False,
        "trim_offsets": True,
        "errors": "replace",
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    return _write(folder, tokens, merges, config)
