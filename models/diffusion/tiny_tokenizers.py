"""Small tokenizers for the tiny frozen stack, trained on the words of referring expressions.

Both are written as the files that the published stack distributes (``vocab.json``, ``merges.txt``,
``tokenizer_config.json``), not as a ``tokenizer.json``: those load alike in transformers 4 and 5. Both work on
bytes, so every text has tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

CLIP_LENGTH = 77
ROBERTA_LENGTH = 512

WORDS_BY_KIND = {
    "function": "a an the this that these those and or of to in on at by with from into onto for as its it his her "
    "their he she they him them who which while when then there is are was be being has have not no other another "
    "each both one two three four five six seven eight nine ten first second third last all only same someone",
    "colour": "red green blue yellow orange purple pink brown black white grey gray cyan magenta golden silver beige "
    "violet turquoise dark light bright pale colourful colored striped spotted plain colour color",
    "shape": "square circle triangle rectangle ellipse diamond star cross ring pentagon hexagon disc ball box cube "
    "shape object thing round flat oval line arrow heart moon",
    "size": "small large big tiny huge little tall short long wide narrow thin thick medium smaller larger bigger "
    "smallest largest biggest taller shorter longer size",
    "motion": "moving moves move going goes go turning turns turn rotating spinning still standing stands staying "
    "stationary static fast slow quickly slowly faster slower upward upwards downward downwards leftward "
    "leftwards rightward rightwards forward backward around across away towards toward through along back up down "
    "left right top bottom motion running walking jumping riding flying swimming sitting lying holding carrying eating "
    "playing throwing catching driving falling climbing dancing looking facing wearing kicking hitting pushing "
    "pulling following passing crossing entering leaving stopping starting bouncing sliding rolling diagonally",
    "relation": "above below under over behind before front beside near next between inside outside closest nearest "
    "farthest far side middle center centre corner edge opposite than more most less least leftmost rightmost",
    "thing": "man woman person people boy girl child kid baby lady guy player rider dog cat horse cow sheep bird duck "
    "fish elephant giraffe zebra lion tiger bear panda monkey rabbit snake turtle fox deer goat pig mouse parrot "
    "car bus truck train bike bicycle motorbike motorcycle boat ship plane airplane skateboard surfboard scooter "
    "shirt t-shirt pants jeans dress hat cap jacket coat shoes helmet glasses bag backpack umbrella hand hands arm "
    "leg head face hair tail wing body racket bat ball frisbee rope stick phone camera cup bottle bowl plate "
    "knife chair table bed sofa tree grass road street wall floor ground water sea river snow sand sky field "
    "house door window background animal vehicle video",
}


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


def built_in_words() -> list[str]:
    """The default corpus: the words that referring expressions are mostly made of, without repetition."""
    return list(dict.fromkeys(word for words in WORDS_BY_KIND.values() for word in words.split()))


def write_clip_tokenizer(folder: Path, sentences: Sequence[str], max_tokens: int, length: int = CLIP_LENGTH) -> int:
    """Train and write a CLIP tokenizer: lower-casing BPE with ``</w>`` at word ends.

    The layout is the published one: bytes, bytes that end a word, merges, ``<|startoftext|>``, ``<|endoftext|>``.
    Padding is "!" (id 0), as in the published text-to-video stack.

    Args:
        folder: where the files go.
        sentences: text to learn merges from, beside the built-in words.
        max_tokens: upper limit of the vocabulary, more than 514.
        length: tokens of a text, 77 as published.

    Returns:
        The number of tokens; the last two ids are start and end of text.
    """
    symbols, suffix, special = _byte_symbols(), "</w>", ["<|startoftext|>", "<|endoftext|>"]
    corpus = [text.lower() for text in (*built_in_words(), *sentences)]
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

    Args:
        folder: where the files go.
        sentences: text to learn merges from, beside the built-in words.
        max_tokens: upper limit of the vocabulary, more than 261.

    Returns:
        The number of tokens.
    """
    symbols, special = _byte_symbols(), ["<s>", "<pad>", "</s>", "<unk>"]
    # A word has one spelling at the start of a sentence and another after a space.
    corpus = [*(prefix + word for word in built_in_words() for prefix in ("", " ")), *sentences]
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
