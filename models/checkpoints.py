"""Saves and loads checkpoints, and verifies the frozen parts that they were trained with.

A checkpoint holds everything that is trained, and those frozen parts that came with a checkpoint and differ from the
pretrained ones. It names its other frozen parts by a hash of their weights, which loading verifies. The hash covers
names, shapes and float32 values, so it does not depend on the file format or on the version of a library.

Adapters (LoRA) wrap a layer, whose weight is then called ``….base_layer.weight``; stored weights have the name that
the layer has without an adapter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import T2V, resolved
from models.authors import LORA, SIZES, authors_names, authors_weights, read_authors
from models.frozen import FineTuned
from models.precision import HALVES
from models.rem import is_trained
from util.checkpoint import (
    BESIDE,
    FORMAT,
    TRAINING_KEYS,
    check_content,
    check_model,
    check_training_state,
    newest_intact,
    read_content,
    save_weights,
    write_pickle,
)
from util.config import AUTO_MAX_SIZE, MODELS, Config
from util.device import forget_mapped_files, passing
from util.distributed import gather_objects, is_main, print_notes
from util.errors import UserError, nearest
from util.hub import HubFile, Wanted, cached_revision, find_checkpoint, hub_id, shown_size
from util.options import AUTO, checked

CLASS_HEADS = "class_heads."
PATHS = ("pretrained", "image_encoder", "text_encoder", "backbone_weights")
"""Options that name frozen parts. A checkpoint may have them beside it."""

Identity = dict[str, dict[str, str]]
"""Part → its ``sha256``, the ``source`` it was loaded from, and the ``revision`` of a hub id."""

PARTS = {
    "unet": ("encoder.unet.module", "UNet", "--pretrained"),
    "transformer": ("encoder.transformer.module", "transformer", "--pretrained"),
    "vae": ("encoder.vae.module", "VAE", "--pretrained"),
    "text_encoder": ("encoder.text_encoder.module", "diffusion text encoder", "--pretrained"),
    "image_encoder": ("encoder.image_encoder.module", "image encoder", "--image_encoder"),
    "backbone": ("encoder.backbone.module", "backbone", "--backbone_weights"),
    "sentence_encoder": ("sentence_encoder.backbone.module", "sentence encoder", "--text_encoder"),
}
"""Part → prefix of its parameters, its name for messages, and the option that names its source."""

BUILT_WITH = {*PATHS, *SIZES, *MODELS["vdit"].architecture}
BUILT_WITH |= {"pyramid_channels", "lora_rank", "lora_targets", "max_size", "freeze_layers"}
"""Options of a checkpoint whose values are checked when it is opened."""
MAX_RANK = 1024  # of new adapters that a checkpoint asks for
THREADS = 4


@dataclass
class Checkpoint:
    """An opened checkpoint. Its tensors are memory-mapped: they take memory when they are used."""

    path: Path
    model: str
    """A name of ``util.config.MODELS``."""
    options: dict[str, Any]
    """The options that it was made with, as plain values."""
    weights: dict[str, Tensor]
    """By the names of this project."""
    frozen: Identity
    """The frozen parts that it was trained with."""
    training: dict[str, Any] = field(default_factory=dict)
    """``optimizer``, ``step``, ``steps_per_epoch`` and perhaps ``scaler``; empty where it holds weights only."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about how it was found."""
    authors_layout: bool = False
    """Whether the file has the authors' layout."""
    extras: dict[str, Any] = field(default_factory=dict)
    """What an authors' file holds besides, kept when it is converted: ``unused`` tensors, ``args`` and ``epoch``."""
    original: HubFile | None = None
    """The authors' file on the hub that it is the conversion of."""

    @property
    def fine_tunes(self) -> bool:
        """Whether it was trained here with all of the UNet, so that its UNet is recorded as it was before."""
        fine_tuned = MODELS[self.model].fine_tuned and not self.authors_layout
        return fine_tuned and not any(LORA in name for name in self.weights)

    @property
    def step(self) -> int:
        """Number of optimiser steps done; 0 where it holds weights only."""
        return self.training.get("step", 0)

    def name_in_file(self, name: str) -> str:
        """The name that the file has for a parameter of this project."""
        if not self.authors_layout:
            return name
        try:
            return authors_names(self.model).theirs(name)[0]
        except UserError:  # the authors' layout has no place for it
            return name

    def config(self, **options: Any) -> Config:
        """The configuration that the checkpoint was made with; ``options`` that are not None or empty take precedence.

        Raises:
            UserError: an option is unknown or has an invalid value, or ``model`` differs.
        """
        check_model(self.model, self.path, options.get("model") or "")
        known = {option.name for option in dataclasses.fields(Config)}
        for name in options.keys() - known:
            near = nearest(name, sorted(known))
            advice = f"did you mean {near!r}?" if near else "main.py --help lists the options"
            raise UserError(f"unknown option {name!r}; {advice}")
        values = {name: value for name, value in self.options.items() if name in known}
        if values.get("max_size") == AUTO_MAX_SIZE:  # the former default, which would bound whole videos
            values["max_size"] = AUTO
        given = {name: value for name, value in options.items() if value is not None and value != ""}
        try:
            return Config(**{**values, **given, "model": self.model})
        except UserError as error:
            others = ", or those given in their place," if given else ""
            raise UserError(f"the options stored in {self.path}{others} are not valid: {error}") from error

    def require_options(self, options: Mapping[str, Any], new_run: bool = False) -> None:
        """Refuse options that change sizes or what the model computes, even where the weights would fit.

        It needs no model, so the user hears of it before gigabytes of frozen parts are loaded.

        Args:
            options: of the run, as plain values.
            new_run: the weights begin a new run, which may compute something else with them.

        Raises:
            UserError: an option differs; the message names it.
        """
        names = {*SIZES, "pyramid_channels"} - {"dropout"}  # dropout has no weights and may change
        if any(LORA in name for name in self.weights):
            names |= {"lora_rank", "lora_alpha"}
        stored = {name: self.options[name] for name in names if name in self.options}
        if not new_run:  # a checkpoint older than an option was made with the option's default
            stored.update(
                {name: self.options.get(name, getattr(Config, name)) for name in MODELS[self.model].architecture}
            )
        for name in sorted(stored):
            before = resolved(self.model, name, stored[name])
            now = resolved(options["model"], name, options[name])
            if before != now:
                raise UserError(
                    f"{self.path} was made with {name} {before}, but this configuration has {now}; use the "
                    "configuration that the checkpoint was made with"
                )

    def require_steps_per_epoch(self, steps_per_epoch: int) -> None:
        """Refuse to resume with epochs of a different length: the position in one would mean other clips.

        Raises:
            UserError: the lengths differ.
        """
        own = self.training["steps_per_epoch"]
        if own != steps_per_epoch:
            raise UserError(
                f"{self.path} was trained with {own} steps per epoch, and this run has {steps_per_epoch}; resume with "
                "the same data, --batch_size, --accumulate and number of processes"
            )

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the moments of the optimiser, which ``open_resumed`` has checked; its options remain those of this run.

        Raises:
            UserError: it has the state of other parameters.
        """
        state = self.training["optimizer"]
        groups, own = state["param_groups"], optimizer.param_groups
        params = [p for group in own for p in group["params"]]
        known = [state["state"].get(i) for i in range(len(params))]
        fits = all(m is None or m["exp_avg"].shape == p.shape for m, p in zip(known, params, strict=True))
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own] or not fits:
            raise UserError(
                f"the optimizer in {self.path} has the state of other parameters than this model trains; resume with "
                "the configuration of the run, or begin a new one with --pretrained_weights"
            )
        mixed = [{**mine, "params": group["params"]} for group, mine in zip(groups, own, strict=True)]
        optimizer.load_state_dict(deepcopy({**state, "param_groups": mixed}))


def open_checkpoint(
    source: str, flag: str, model: str = "", original: bool = False, others: Callable[[], Wanted] = tuple
) -> Checkpoint:
    """Open a checkpoint of this project or of the authors.

    An authors' checkpoint on the hub is converted once, and the conversion kept: later it is opened without the 100
    times larger file.

    Args:
        source: a file, a folder that holds one checkpoint, or ``[hf://]org/repo[@revision][/file]``.
        flag: the option that names it, for messages.
        model: the model that the configuration builds; empty: any.
        original: open the authors' file itself.
        others: what a download should fetch too (``util.hub.fetch``), so that one note states the size of everything.

    Raises:
        UserError: it cannot be found or read, belongs to a different model, or holds an unknown name.
    """
    found = find_checkpoint(source, flag, converted=not original)
    if not isinstance(found, HubFile):
        return _open(found, model)
    if original:
        return _open(found.download(others()), model)
    if not found.converted.is_file():
        checkpoint = _open(found.download(others()), model)
        return _converted(found, checkpoint) if checkpoint.authors_layout else checkpoint
    return dataclasses.replace(_open(found.converted, model), original=found)


def _converted(found: HubFile, checkpoint: Checkpoint, carry: Collection[str] = ()) -> Checkpoint:
    """Convert an authors' checkpoint of the hub, and keep the conversion for later runs.

    Args:
        found: the file.
        checkpoint: its content.
        carry: as for ``without_frozen``.

    Returns:
        the conversion; the checkpoint itself if the conversion cannot be written.
    """
    kept = found.converted
    try:
        save_weights(kept, portable(without_frozen(checkpoint, carry), kept))
    except UserError as error:
        checkpoint.notes.append(f"the conversion of {checkpoint.path} could not be kept: {error}")
        return checkpoint
    print_notes(
        [
            f"converted {found.file} to {shown_size(kept.stat().st_size)}, which later runs use: {kept}; the download "
            f"is no longer needed (hf cache rm model/{found.repository.name})"
        ]
    )
    return dataclasses.replace(_open(kept, checkpoint.model), original=found)


def _open(path: Path, model: str) -> Checkpoint:
    content = read_content(path)
    authors = authors_weights(content)
    if authors:
        content = read_authors(content, authors, path)
        check_model(content["model"], path, model)
    else:
        content = check_content(content, path, model)
    if content["model"] not in MODELS:
        raise UserError(f"{path} is a checkpoint of the model {content['model']!r}; known are {', '.join(MODELS)}")
    _check_options(content["model"], content["config"], content["weights"], path)
    training = {key: content[key] for key in (*TRAINING_KEYS, "scaler") if key in content}
    return Checkpoint(
        path,
        content["model"],
        content["config"],
        content["weights"],
        content["frozen"],
        training if training.keys() >= TRAINING_KEYS else {},
        authors_layout=bool(authors),
        extras={name: content[name] for name in ("unused", "args", "epoch") if name in content},
    )


def without_frozen(checkpoint: Checkpoint, carry: Collection[str] = ()) -> Checkpoint:
    """An authors' checkpoint with the identity of its frozen parts in their place.

    Args:
        checkpoint: in the authors' layout.
        carry: frozen parts to keep. The UNet of REM, which is trained, is kept in any case, and that of an HCD without
            adapters, which are merged into it.
    """
    weights, fine_tuned = checkpoint.weights, MODELS[checkpoint.model].fine_tuned
    known = {} if fine_tuned else weights_identity(weights)
    frozen = {part: {**entry, "source": checkpoint.path.name} for part, entry in known.items()}
    own_unet = fine_tuned or (checkpoint.model == "hcd" and not any(LORA in name for name in weights))
    dropped = held_parts(weights) - {*carry, *(["unet"] if own_unet else [])}
    trained = {name: value for name, value in weights.items() if not held_parts([name]) & dropped}
    return dataclasses.replace(checkpoint, weights=trained, frozen=frozen)


def _check_options(model: str, options: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> None:
    """Check the options that a checkpoint's model is built with, before they can take all memory.

    Raises:
        UserError: one has a wrong type, or they describe a larger model than the weights.
    """
    given = {name: value for name, value in options.items() if name in BUILT_WITH}
    value = {name: checked(Config, name, value, f"{name} in the options of {path}") for name, value in given.items()}
    ranks = {size for name, tensor in weights.items() if LORA in name for size in tensor.shape} or range(MAX_RANK + 1)
    if value.get("lora_rank", AUTO) not in (AUTO, *ranks):
        raise UserError(f"{path} is damaged: its lora_rank is not that of its weights")
    if not given.keys() & {*SIZES, "pyramid_channels"} or not MODELS[model].scored:
        return
    size = {name: value.get(name, getattr(Config, name)) for name in (*SIZES, "pyramid_channels")}
    dim, (c4, c8, c16, c32) = size["hidden_dim"], size["pyramid_channels"]
    described = sum(
        size[f"{part}_layers"]
        * dim
        * (matrices * dim + 2 * size["dim_feedforward"] + 12 * size["nheads"] * size[f"{part}_n_points"])
        for part, matrices in (("enc", 2), ("dec", 8))
    )
    described += dim * (6 * dim + 2 * size["num_queries"] + size["dynamic_mask_channels"] ** 2 + c8 + c16 + 10 * c32)
    described += 144 * (c4 + c8)
    if value.get("backbone", T2V) == T2V:
        described += c4 * min(c4, c8) + c8**2 + c16**2 + c32**2
    held = sum(tensor.numel() for name, tensor in weights.items() if not held_parts([name]))
    if described > 2 * held:  # some are lost in damaged files, which a later message describes better
        raise UserError(
            f"{path} is damaged: its options describe a model of at least {min(described, 10**300):.3g} trained "
            f"numbers, but it holds {held:.3g}; copy or download it again"
        )


def open_resumed(resume: str, folder: Path, model: str) -> Checkpoint | None:
    """Open the checkpoint from which a training run continues; None for a new run.

    Args:
        resume: as ``--resume`` names it: empty, ``auto`` (the newest intact checkpoint in ``folder``, if any) or as
            ``open_checkpoint`` takes it.
        folder: the output folder of the run.
        model: the model that the configuration builds.

    Raises:
        UserError: as ``open_checkpoint``, or the checkpoint holds weights only.
    """
    notes: list[str] = []
    if resume == "auto":
        found = newest_intact(folder) if is_main() else None
        path, notes = gather_objects(found)[0]  # one process decides, as files may come and go
        if path is None:
            print_notes([*notes, f"{folder} holds no intact checkpoint; a new run begins"])
            return None
        resume, notes = str(path), [*notes, f"resuming from {path}"]
    if not resume:
        return None
    checkpoint = open_checkpoint(resume, "--resume", model)
    if not checkpoint.training:
        raise UserError(
            f"{checkpoint.path} holds weights only; --resume needs the checkpoint.pth of a training run, and "
            "--pretrained_weights begins a new run from weights"
        )
    check_training_state(checkpoint.training, checkpoint.weights, checkpoint.path)
    checkpoint.notes += notes
    return checkpoint


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[str, str],
    *,
    new_run: bool = False,
    keep_class_heads: bool = False,
    ignore_identity: bool = False,
    only_verify: bool = False,
) -> tuple[Identity, list[str]]:
    """Put the weights of a checkpoint into a model, and verify that its frozen parts are those it was trained with.

    Args:
        model: on the CPU, with its frozen parts.
        checkpoint: its options have been checked.
        sources: where the frozen parts were loaded from (``models.frozen_sources``).
        new_run: the weights begin a new run: class heads are new unless ``keep_class_heads``, and adapters may be.
        keep_class_heads: take the class heads too.
        ignore_identity: accept other frozen parts, with a note.
        only_verify: hash only the parts of which the checkpoint records a hash; the run writes no checkpoint.

    Returns:
        The identity of the model's frozen parts, and notes for the user.

    Raises:
        UserError: the weights do not fit the model, or a frozen part differs.
    """
    path, weights, notes = checkpoint.path, checkpoint.weights, []
    for part in {"unet", "transformer"} & checkpoint.frozen.keys():
        prefix, words, flag = PARTS[part]
        if prefix not in (f"{name}.module" for name, _ in frozen_parts(model)):
            source = checkpoint.frozen[part].get("source", "")
            raise UserError(f"{path} was trained on features of a {words} ({source}); name that generator with {flag}")
    dropped = new_run and not keep_class_heads
    if dropped:
        weights = {name: value for name, value in weights.items() if not name.startswith(CLASS_HEADS)}
        notes.append(f"starting from {path} with new class heads (--keep_class_heads keeps those of the checkpoint)")
    elif new_run:
        notes.append(f"starting from {path} with its class heads")
    # New adapters change nothing, and a checkpoint with a UNet but no adapters has them merged into the UNet.
    held = held_parts(weights)
    adapters = (new_run or "unet" in held) and not any(LORA in name for name in weights)

    frozen_layers = checkpoint.options.get("freeze_layers", ())

    def optional(name: str) -> bool:
        if checkpoint.fine_tunes and held_parts([name]) == {"unet"}:  # it has the weights that it trained
            return not is_trained(name, frozen_layers)
        return (dropped and name.startswith(CLASS_HEADS)) or (adapters and LORA in name)

    before = frozen_identity(model, sources, checkpoint.frozen, {"unet"}) if MODELS[checkpoint.model].fine_tuned else {}
    load_state(model, weights, path, optional, checkpoint.name_in_file)
    hashed = checkpoint.frozen if only_verify else PARTS
    frozen = frozen_identity(model, sources, checkpoint.frozen, hashed)
    if checkpoint.original is not None and not ignore_identity:
        known = {part: checkpoint.frozen.get(part, entry).get("sha256") for part, entry in frozen.items()}
        other = {part for part, entry in frozen.items() if known[part] != entry.get("sha256")} - held
        if other:  # the authors' file has its own
            names = ", ".join(PARTS[part][1] for part in PARTS if part in other)
            print_notes([f"{path.name} was trained with a different {names} than the one loaded, and holds its own"])
            whole = _open(checkpoint.original.download(), checkpoint.model)
            whole = dataclasses.replace(_converted(checkpoint.original, whole, held | other), original=None)
            options = {"new_run": new_run, "keep_class_heads": keep_class_heads, "only_verify": only_verify}
            return load_weights(model, whole, sources, **options)
    compared = {**frozen, "unet": before["unet"]} if checkpoint.fine_tunes else frozen
    notes += check_identity(checkpoint.frozen, compared, path, held, ignore_identity)
    recorded = {part: entry.get("sha256") for part, entry in checkpoint.frozen.items()}
    proven = {
        part: entry
        for part, entry in frozen.items()
        if "revision" in entry and part in recorded.keys() - held and entry["sha256"] == recorded[part]
    }
    if checkpoint.original is not None and is_main() and not proven.items() <= checkpoint.frozen.items():
        # Later runs know these revisions, and do not hash them again.
        verified = dataclasses.replace(checkpoint, frozen={**checkpoint.frozen, **proven})
        with suppress(UserError):  # a cache that cannot be written
            save_weights(path, portable(verified, path))
    return frozen, notes


def save_checkpoint(
    path: str | Path, model: nn.Module, name: str, config: dict[str, Any], frozen: Identity | None = None, **state: Any
) -> None:
    """Write a checkpoint beside ``path`` and rename it.

    Args:
        path: the file.
        model: its trained weights are stored, and frozen parts that came with a checkpoint.
        name: of the model.
        config: the options of the run, as plain values.
        frozen: identity of the frozen parts. Those that came with a checkpoint then go into a file beside ``path``,
            unless it is there already; without identities they are in ``path`` itself.
        state: further entries, such as ``optimizer``, ``step`` and ``steps_per_epoch``.

    Raises:
        UserError: a file cannot be written; an older checkpoint stays intact.
    """
    content = {"format": FORMAT, "model": name, "config": config, "weights": trained_state(model), **state}
    if frozen:
        content["frozen"] = frozen
        beside = save_loaded_parts(Path(path).parent, model, name, frozen)
        content.update({"beside": beside} if beside else {})
    else:
        content["weights"].update(loaded_parts_state(model))
    write_pickle(path, content)


def save_loaded_parts(folder: Path, model: nn.Module, name: str, frozen: Identity) -> str:
    """Write the frozen parts that came with a checkpoint into a file of their own, unless it is there.

    A run that holds frozen parts in half precision calls this before their digits are lost.

    Args:
        folder: of the checkpoints of the run.
        model: with its frozen parts.
        name: of the model.
        frozen: identity of the frozen parts.

    Returns:
        the name of the file; empty where no part came with a checkpoint.

    Raises:
        UserError: it cannot be written, or it is gone and the model no longer has all digits.
    """
    loaded = loaded_parts_state(model)
    if not loaded:
        return ""
    hashes = json.dumps([{part: entry["sha256"] for part, entry in frozen.items()}, sorted(loaded)], sort_keys=True)
    file = folder / f"{BESIDE}{hashlib.sha256(hashes.encode()).hexdigest()[:16]}.safetensors"
    if not file.is_file():
        if any(tensor.dtype in HALVES for tensor in loaded.values()):
            raise UserError(
                f"{file} is gone, and the frozen weights in it are now held in half precision; restore the file, and "
                "resume from the last checkpoint"
            )
        save_weights(file, {"model": name, "weights": loaded})
    return file.name


def portable(checkpoint: Checkpoint, file: Path) -> dict[str, Any]:
    """The content of a file of weights to pass on, for ``util.checkpoint.save_weights``.

    The folders of this machine are left out. A frozen part beside the file is named by its path relative to it, and is
    found there when the file is opened.

    Args:
        checkpoint: with the weights to store.
        file: where it will be written.
    """

    def named(source: str) -> str:
        path = Path(source)
        if not path.is_absolute() and not path.exists():
            return source  # a hub id
        folder, absolute = file.absolute().parent, path.absolute()
        if repository := hub_id(absolute):
            return repository
        return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else path.name

    rules = {option.name: option.metadata["rule"] for option in dataclasses.fields(Config)}
    config = {
        name: named(value) if name in PATHS and value else value
        for name, value in checkpoint.options.items()
        if name in rules and (name in PATHS or not rules[name].path)
    }
    frozen = {part: dict(entry) for part, entry in checkpoint.frozen.items()}
    for part, entry in frozen.items():
        source = entry.get("source", "")
        if part == "backbone" and " " in source:  # its name and the path of its weights (``models.frozen_sources``)
            name, _, path = source.partition(" ")
            entry["source"] = f"{name} {named(path)}"
        elif source:
            entry["source"] = named(source)
    content = {"model": checkpoint.model, "config": config, "frozen": frozen, "weights": checkpoint.weights}
    return {**content, **checkpoint.extras}


def part_hash(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of named tensors, in hexadecimal, whatever their order and their precision on disk.

    Args:
        weights: of a part, by their names in it, on the CPU. Half-precision values are hashed as float32.
    """

    def digest(name: str) -> bytes:
        value = weights[name].detach().float().contiguous()
        found = hashlib.sha256(f"{name} {list(value.shape)}\n".encode())
        found.update(value.flatten().numpy().data)
        return found.digest()

    with ThreadPoolExecutor(THREADS) as threads:  # hashing releases the interpreter lock
        whole = hashlib.sha256(b"".join(threads.map(digest, sorted(weights)))).hexdigest()
    forget_mapped_files(sum(value.nbytes for value in weights.values()))
    return whole


def weights_identity(weights: Mapping[str, Tensor]) -> Identity:
    """The identity of the frozen parts that stored weights contain."""
    held: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        for part in held_parts([name]):
            held.setdefault(part, {})[name.removeprefix(f"{PARTS[part][0]}.")] = value
    return {part: {"sha256": part_hash(held[part])} for part in PARTS if part in held}


def held_parts(names: Iterable[str]) -> set[str]:
    """The frozen parts among stored weights of these names."""
    prefixes = {f"{prefix}.": part for part, (prefix, _, _) in PARTS.items()}
    return {part for name in names if LORA not in name for prefix, part in prefixes.items() if name.startswith(prefix)}


def frozen_identity(
    model: nn.Module, sources: Mapping[str, str], recorded: Identity | None = None, parts: Collection[str] = PARTS
) -> Identity:
    """The identity of the frozen parts of a model.

    Args:
        model: on the CPU, with all digits of its weights.
        sources: where each part was loaded from (``models.frozen_sources``).
        recorded: identity in a checkpoint. A part of the same revision on the hub is not hashed again.
        parts: those whose hash is needed.
    """
    prefixes = {prefix: part for part, (prefix, _, _) in PARTS.items()}
    identity: Identity = {}
    for name, module in frozen_parts(model):
        part = prefixes[f"{name}.module"]
        entry = {"source": "a checkpoint"}
        if not module.from_checkpoint:
            entry["source"] = source = sources[part]
            local = part == "backbone" or Path(source).exists()
            revision = None if local else cached_revision(source)
            entry.update({"revision": revision} if revision else {})
        known = (recorded or {}).get(part, {})
        if "revision" in entry and entry.items() <= known.items() and "sha256" in known:
            entry["sha256"] = known["sha256"]
        elif isinstance(module, FineTuned) and module.identity:
            entry["sha256"] = module.identity
        elif part in parts:
            prefix = f"{name}.module."
            entry["sha256"] = part_hash(
                {key.removeprefix(prefix): value for key, value in part_state(module, name).items()}
            )
        if isinstance(module, FineTuned):  # it will change
            module.identity = entry.get("sha256", "")
        identity[part] = entry
    for part, digest in getattr(getattr(model, "encoder", None), "unloaded_parts", {}).items():
        identity[part] = {"source": sources[part], "sha256": digest}
    return {part: identity[part] for part in PARTS if part in identity}


def check_identity(
    recorded: Mapping[str, Any], own: Identity, path: Path, held: Collection[str] = (), ignore: bool = False
) -> list[str]:
    """Compare the frozen parts that a checkpoint was trained with with those of the model.

    Args:
        recorded: identity in the checkpoint.
        own: identity of the model.
        path: of the checkpoint.
        held: parts whose weights came with the checkpoint.
        ignore: accept parts that differ, with a note.

    Returns:
        notes for the user.

    Raises:
        UserError: a part differs.
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
                f"{path} was trained with a different {words} ({_shown(known)}) than the one loaded ({_shown(entry)})"
            )
            advice = "the file is damaged, get it again;" if part in held else f"pass the right one with {flag},"
            if not ignore:
                raise UserError(f"{difference}; {advice} or accept the difference with --ignore_frozen_identity")
            notes.append(f"{difference}; ignored")
    if unknown:
        notes.append(f"{path} does not say with which {', '.join(unknown)} it was trained; the loaded one is used")
    return notes


def _shown(entry: Mapping[str, Any]) -> str:
    source, revision = entry.get("source", ""), str(entry.get("revision", ""))[:8]
    return " ".join(filter(None, (f"{source}{'@' + revision if revision else ''}", f"sha256 {entry['sha256'][:8]}…")))


def stored_name(name: str) -> str:
    """The name under which a parameter is stored."""
    return name.replace(".base_layer.", ".")


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters of a model and the buffers of its trained parts (such as norm statistics), by name.

    Weights of a fine-tuned part that are not trained belong to it if they differ from the pretrained ones.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = {name for _, part in frozen_parts(model) if isinstance(part, FineTuned) for name in part.changed}
    frozen = tuple(f"{name}." for name, _ in frozen_parts(model))
    return {
        stored_name(name): value
        for name, value in model.state_dict().items()
        if name in kept or (parameters[name].requires_grad if name in parameters else not name.startswith(frozen))
    }


def loaded_parts_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the frozen parts that came with a checkpoint, by name."""
    parts = (part_state(part, name) for name, part in frozen_parts(model) if part.from_checkpoint)
    return {name: value for part in parts for name, value in part.items()}


def frozen_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every frozen part, recognised by its attribute ``from_checkpoint`` (``models.frozen``)."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "from_checkpoint"))


def part_state(part: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The weights of a frozen part by their stored names, without adapters."""
    state = part.state_dict()
    return {f"{prefix}.{stored_name(name)}": value for name, value in state.items() if LORA not in name}


def check_state(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | Path,
    optional: Callable[[str], bool] = lambda name: False,
    shown: Callable[[str], str] = str,
) -> None:
    """Refuse weights that do not fit a model. It needs all trained weights, and all or none of each frozen part.

    Args:
        model: on any device.
        weights: by stored names.
        path: their file, for messages.
        optional: whether a trained parameter may be missing.
        shown: the name of a parameter in the file, for messages.

    Raises:
        UserError: a parameter is missing, unknown or of a different shape.
    """
    own = {stored_name(name): value for name, value in model.state_dict().items()}
    cause = "use the configuration that the checkpoint was made with; if it is the same, the file is damaged"
    for name, value in sorted(weights.items()):
        if name not in own:
            raise UserError(f"{path} holds {shown(name)}, which this model lacks; {cause}")
        if own[name].shape != value.shape:
            expected = list(own[name].shape)
            raise UserError(
                f"{path} holds {shown(name)} of shape {list(value.shape)}, but the model expects {expected}; {cause}"
            )
    missing = sorted(name for name in trained_state(model).keys() - weights.keys() if not optional(name))
    if missing:
        more = f" and {len(missing) - 1} more trained parameters" if len(missing) > 1 else ""
        raise UserError(f"{path} lacks {shown(missing[0])}{more}; {cause}")
    for name, part in frozen_parts(model):
        names = part_state(part, name).keys()
        lost = sorted(name for name in names - weights.keys() if not optional(name))
        if lost and len(lost) < len(names):
            raise UserError(
                f"{path} lacks {shown(lost[0])}, but holds other weights of that part; it is incomplete, copy or "
                "download it again"
            )


def load_state(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | Path,
    optional: Callable[[str], bool] = lambda name: False,
    shown: Callable[[str], str] = str,
) -> None:
    """Put weights into a model. A frozen part whose weights change is ``from_checkpoint`` from then on.

    Args:
        model: changed only if all weights fit. Trained weights are copied. Those of frozen parts that differ replace
            the model's own tensors, so that memory-mapped ones take no memory.
        weights: by stored names; their precision may differ, and they may be memory-mapped.
        path, optional, shown: as for ``check_state``; missing parameters keep their values.

    Raises:
        UserError: a parameter is missing, unknown or of a different shape.
    """
    check_state(model, weights, path, optional, shown)
    own = {
        stored_name(name): value
        for name, value in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    }
    with torch.no_grad():
        for name, part in frozen_parts(model):
            given = [key for key in part_state(part, name) if key in weights and not own[key].requires_grad]
            for key, value in zip(given, passing(weights[key] for key in given), strict=True):
                if not torch.equal(own[key], value.to(own[key])):
                    own[key].data = value.to(own[key])
                    if isinstance(part, FineTuned):
                        part.changed.add(key)
                    else:
                        part.from_checkpoint = True  # type: ignore[assignment]
            weights = {key: value for key, value in weights.items() if key not in given}
        for name, value in weights.items():
            own[name].copy_(value)
