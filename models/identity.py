"""Which frozen parts a model has: a hash of their weights, which its checkpoints hold and loading verifies.

The hash is over names, shapes and float32 values, so that it is the same whichever file format, or version of the
libraries, the weights came through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.diffusion.stack import part_sources
from util.config import Config
from util.errors import UserError
from util.hub import cached_revision
from util.state import LORA, frozen_parts, part_state

Identity = dict[str, dict[str, str]]
"""Part → its ``sha256``, the ``source`` it was loaded from, and the ``revision`` where that is a hub id."""

PARTS = {
    "unet": ("encoder.unet.module", "UNet", "--pretrained"),
    "vae": ("encoder.vae.module", "VAE", "--pretrained"),
    "text_encoder": ("encoder.text_encoder.module", "diffusion text encoder", "--pretrained"),
    "image_encoder": ("encoder.image_encoder.module", "image encoder", "--image_encoder"),
    "backbone": ("encoder.backbone.module", "backbone", "--backbone_weights"),
    "sentence_encoder": ("sentence_encoder.backbone.module", "sentence encoder", "--text_encoder"),
}
"""Part → prefix of its parameters, its name in words, and the option that chooses it."""

THREADS = 4
_CONFIGS = {"unet": "unet/config.json", "vae": "vae/config.json", "text_encoder": "text_encoder/config.json"}


def part_hash(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of named tensors, in hexadecimal; neither their order nor their precision on disk matters.

    Args:
        weights: a part's, by their names in it; on the CPU. bfloat16 and float16 count as their float32 values.
    """

    def digest(name: str) -> bytes:
        value = weights[name].detach().float().contiguous()
        found = hashlib.sha256(f"{name} {list(value.shape)}\n".encode())
        found.update(value.flatten().numpy().data)
        return found.digest()

    with ThreadPoolExecutor(THREADS) as threads:  # hashing runs beside Python
        return hashlib.sha256(b"".join(threads.map(digest, sorted(weights)))).hexdigest()


def weights_identity(weights: Mapping[str, Tensor]) -> Identity:
    """The identity of the frozen parts among stored weights; those that they lack are left out."""
    identity: Identity = {}
    for part, (prefix, _, _) in PARTS.items():
        start = f"{prefix}."
        own = {
            name.removeprefix(start): value
            for name, value in weights.items()
            if name.startswith(start) and LORA not in name
        }
        if own:
            identity[part] = {"sha256": part_hash(own)}
    return identity


def held_parts(names: Iterable[str]) -> set[str]:
    """The frozen parts that stored weights of these names belong to."""
    prefixes = {f"{prefix}.": part for part, (prefix, _, _) in PARTS.items()}
    return {part for name in names if LORA not in name for prefix, part in prefixes.items() if name.startswith(prefix)}


def frozen_identity(model: nn.Module, cfg: Config) -> Identity:
    """The identity of a model's frozen parts.

    Args:
        model: on the CPU.
        cfg: reads where they come from.
    """
    weights: dict[str, Tensor] = {}
    carried = set()
    for name, module in frozen_parts(model):
        weights.update(part_state(module, name))
        if module.carried:
            carried.add(f"{name}.module")
    identity = weights_identity(weights)
    sources = part_sources(cfg.pretrained, cfg.image_encoder, cfg.text_encoder)
    sources["backbone"] = f"{cfg.backbone} {cfg.backbone_weights or 'random'}"
    for part, entry in identity.items():
        if PARTS[part][0] in carried:
            entry["source"] = "a checkpoint"
            continue
        entry["source"] = source = sources[part]
        local = part == "backbone" or Path(source).exists()
        revision = None if local else cached_revision(source, _CONFIGS.get(part, "config.json"))
        if revision:
            entry["revision"] = revision
    return identity


def check_identity(
    recorded: Mapping[str, Any], own: Identity, path: Path, held: Collection[str] = (), ignore: bool = False
) -> list[str]:
    """Compare the frozen parts that a checkpoint was trained with to those of the model.

    Args:
        recorded: the checkpoint's.
        own: the model's.
        path: of the checkpoint.
        held: parts whose weights came with the checkpoint.
        ignore: accept other parts, and only note them.

    Returns:
        notes for the user.

    Raises:
        UserError: a part is another one.
    """
    notes = []
    unknown = []
    for part, entry in own.items():
        _, words, flag = PARTS[part]
        known = recorded.get(part)
        if not isinstance(known, dict) or not isinstance(known.get("sha256"), str):
            unknown += [words] if part not in held else []
        elif known["sha256"] != entry["sha256"]:
            difference = (
                f"{path} was trained with another {words} ({_shown(known)}) than the one loaded ({_shown(entry)})"
            )
            mend = "what came with it is damaged or exchanged" if part in held else f"give the right one with {flag}"
            if not ignore:
                raise UserError(f"{difference}; {mend}, or go on all the same with --ignore_frozen_identity")
            notes.append(f"{difference}; ignored")
    if unknown:
        notes.append(f"{path} does not say with which {', '.join(unknown)} it was trained; taken as they are")
    return notes


def _shown(entry: Mapping[str, Any]) -> str:
    source, revision = entry.get("source", ""), str(entry.get("revision", ""))[:8]
    return " ".join(filter(None, (f"{source}{'@' + revision if revision else ''}", f"sha256 {entry['sha256'][:8]}…")))
