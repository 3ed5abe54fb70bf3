"""A tiny Wan 2.1 with random weights, in the layout that diffusers' pipeline writes, with RoBERTa beside it.

It takes about two megabytes and needs no download. As in ``models.diffusion.tiny``, weights depend only on the seed and
on each parameter's name and shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoTokenizer, RobertaConfig, RobertaModel, UMT5Config, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from models.diffusion.tiny import ROBERTA_LENGTH, WORDS, random_weight, write_roberta_tokenizer
from util.errors import UserError
from util.files import atomic_folder

SPECIAL = ("<pad>", "</s>", "<unk>")
TEXT_WIDTH = 32
LATENTS = 16
SENTENCE = "▁"
"""The piece that stands for a space, as in SentencePiece."""


@torch.no_grad()
def make_tiny_wan(folder: str | Path, seed: int = 0, *, layers: int = 6, heads: int = 4) -> Path:
    """Write a tiny random Wan: ``transformer``, ``vae``, ``text_encoder``, ``tokenizer``, ``scheduler``, ``roberta``.

    The folder gets its name when everything in it is written.

    Args:
        folder: where it goes; it must not exist, or be empty.
        seed: of the weights.
        layers: blocks of the transformer.
        heads: its attention heads of 16 channels.

    Returns:
        ``folder``.

    Raises:
        UserError: ``folder`` holds something, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose a new folder")
    transformers_logging.disable_progress_bar()
    with atomic_folder(folder) as temporary, torch.random.fork_rng(devices=[]):
        tokenizer = _write_tokenizer(temporary / "tokenizer")
        pipeline: Any = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(
                UMT5Config(
                    vocab_size=len(tokenizer),
                    d_model=TEXT_WIDTH,
                    d_kv=8,
                    d_ff=64,
                    num_layers=2,
                    num_heads=4,
                    tie_word_embeddings=False,
                )
            ),
            vae=AutoencoderKLWan(
                base_dim=8,
                z_dim=LATENTS,
                dim_mult=[1, 2, 2, 2],
                num_res_blocks=1,
                latents_mean=[0.1 * (channel % 3 - 1) for channel in range(LATENTS)],
                latents_std=[1 + 0.1 * (channel % 3) for channel in range(LATENTS)],
            ),
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
            transformer=WanTransformer3DModel(
                num_attention_heads=heads,
                attention_head_dim=16,
                in_channels=LATENTS,
                out_channels=LATENTS,
                text_dim=TEXT_WIDTH,
                freq_dim=32,
                ffn_dim=8 * heads * 4,
                num_layers=layers,
            ),
        )
        sentences = write_roberta_tokenizer(temporary / "roberta", (), max_tokens=4096)
        roberta = RobertaModel(
            RobertaConfig(
                vocab_size=sentences,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=ROBERTA_LENGTH + 2,
                type_vocab_size=1,
            )
        )
        parts = {"text_encoder": pipeline.text_encoder, "vae": pipeline.vae, "transformer": pipeline.transformer}
        for part, model in {**parts, "roberta": roberta}.items():
            for name, parameter in model.named_parameters():
                parameter.copy_(_weight(part, name, parameter.shape, seed))
        pipeline.save_pretrained(temporary)
        roberta.save_pretrained(temporary / "roberta")
    return folder


def _weight(part: str, name: str, shape: torch.Size, seed: int) -> Tensor:
    """The random value of a parameter. Names are changed where those of ``random_weight`` mean something else."""
    if name.endswith("gamma"):  # of an RMS normalisation
        return 1 + 0.05 * random_weight("wan", name, shape, seed)
    return random_weight("roberta" if part == "roberta" else "unet", f"{part}.{name}", shape, seed)


def _write_tokenizer(folder: Path) -> Any:
    """Write a tokenizer of UMT5's kind: SentencePiece's unigrams, which are the built-in words and their letters."""
    letters = sorted({letter for word in WORDS for letter in word})
    pieces = [SENTENCE, *(SENTENCE + word for word in dict.fromkeys(WORDS)), *letters]
    vocabulary = [(token, 0.0) for token in SPECIAL]
    vocabulary += [(piece, -2.0 - 4.0 * (len(piece) == 1)) for piece in dict.fromkeys(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SENTENCE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=SENTENCE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", SPECIAL.index("</s>"))]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "T5TokenizerFast",
        "model_max_length": 512,
        "extra_ids": 0,
        **{"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)
