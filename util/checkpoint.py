"""Checkpoint files: what is trained, and what it takes to go on (docs/checkpoints.md).

A run's ``checkpoint.pth`` holds ``format``, ``model`` (its name), ``config`` (the options it was made with),
``weights`` (what is trained), ``frozen`` (the identity of the frozen parts), and for going on ``optimizer``, ``step``
and ``steps_per_epoch``. Frozen parts that are not the pretrained ones never change in a run: they are written once,
into a file beside it, which ``beside`` names. For passing on, ``save_weights`` writes all but what going on takes as
one safetensors file. Both are read without running code that a file may carry, and memory-mapped: a tensor takes
memory when it is used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from util.errors import UserError
from util.io import atomic_path
from util.precision import HALVES
from util.state import carried_state, trained_state

FORMAT = "t2v-rvos-1"
TRAINING_KEYS = {"optimizer": dict, "step": int, "steps_per_epoch": int}
"""What going on takes beside the weights, and its types. ``scaler`` is there where the run has one."""
BESIDE = "frozen-"
"""How the names of files begin that hold a run's frozen parts; they are no checkpoints by themselves."""
_TYPES: dict[str, type] = {"model": str, "config": dict, "frozen": dict, "args": dict, "epoch": int, "scaler": dict}
_TYPES.update(TRAINING_KEYS)
_JSON_KEYS = ("config", "frozen", "args", "epoch")
"""What a safetensors file holds as JSON, beside ``format`` and ``model``."""
_UNUSED = "unused."
"""Prefix of the tensors in a safetensors file that belong to the authors' layout alone."""


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    name: str,
    config: dict[str, Any],
    frozen: Mapping[str, Mapping[str, str]] | None = None,
    **state: Any,
) -> None:
    """Write a checkpoint beside ``path`` and rename it.

    Args:
        path: the file.
        model: what it has trained is stored, and frozen parts that came with a checkpoint.
        name: which model it is ("vdit").
        config: the run's options.
        frozen: identity of the frozen parts. Those that came with a checkpoint then go into a file beside ``path``,
            unless it is there already; without identities they are in ``path`` itself.
        state: further entries, such as ``optimizer``, ``step`` and ``steps_per_epoch``.

    Raises:
        UserError: a file cannot be written; an older checkpoint stays intact.
    """
    content = {"format": FORMAT, "model": name, "config": config, "weights": trained_state(model), **state}
    if frozen:
        content["frozen"] = frozen
    if frozen:
        beside = save_carried(Path(path).parent, model, name, frozen)
        content.update({"beside": beside} if beside else {})
    else:
        content["weights"].update(carried_state(model))
    write_pickle(path, content)


def save_carried(folder: Path, model: nn.Module, name: str, frozen: Mapping[str, Mapping[str, str]]) -> str:
    """Write the frozen parts that came with a checkpoint into their own file, unless it is there.

    Args:
        folder: of the run's checkpoints.
        model: a run that holds frozen parts in half precision calls this before, as digits are lost then.
        name: which model it is.
        frozen: identity of the frozen parts.

    Returns:
        the file's name; empty where no part came with a checkpoint.

    Raises:
        UserError: it cannot be written, or is gone and the model no longer has all digits.
    """
    carried = carried_state(model)
    if not carried:
        return ""
    file = folder / _beside(frozen, carried)
    if not file.is_file():
        if any(tensor.dtype in HALVES for tensor in carried.values()):
            raise UserError(
                f"{file} is gone, and the frozen weights in it are held in half precision by now; put it back, and go "
                "on from the last checkpoint"
            )
        save_weights(file, {"model": name, "weights": carried})
    return file.name


def write_pickle(path: str | Path, content: dict[str, Any]) -> None:
    """Write with ``torch.save`` beside ``path`` and rename.

    Raises:
        UserError: the file cannot be written; an older one stays intact.
    """
    try:
        # An open file: given a path, torch writes its name into the file, and equal content has other bytes.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())  # else a machine that fails may leave the new name without the content
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {_reason(error)}; an older file there is intact") from error


def _reason(error: BaseException) -> str:
    """Why a file cannot be written: what the system says, which PyTorch's own message may hide."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return (cause.strerror if isinstance(cause, OSError) else None) or str(error).splitlines()[0]


def save_weights(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint without what training needs as a safetensors file, beside ``path`` and renamed.

    Args:
        path: the file; its name ends in ``.safetensors``.
        content: ``model``, ``config``, ``frozen`` and ``weights``, and where there is any, what the authors' layout
            has beside them: ``unused`` tensors by its names, and ``args``.

    Raises:
        UserError: the file cannot be written; an older one stays intact.
    """
    tensors = {**content["weights"], **{_UNUSED + key: value for key, value in content.get("unused", {}).items()}}
    try:
        about = {key: json.dumps(content[key]) for key in _JSON_KEYS if content.get(key) is not None}
        with atomic_path(path) as temporary:
            save_file(
                {key: value.contiguous() for key, value in tensors.items()},
                temporary,
                {"format": FORMAT, "model": content["model"], **about},
            )
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)  # as any other file; the library leaves it to its owner alone
    except (OSError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"cannot write the checkpoint {path}: {error}; an older one there is intact") from error


def read_checkpoint(path: str | Path, expected_model: str = "") -> dict[str, Any]:
    """A checkpoint of this project, of either kind, on the CPU.

    Args:
        path: the file.
        expected_model: the model that the configuration builds; empty: any.

    Raises:
        UserError: the file is missing, truncated, of another kind, or of another model.
    """
    return check_content(read_content(path), path, expected_model)


def read_content(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file of any kind, memory-mapped: a safetensors file or a ``torch.save`` of a dict.

    Raises:
        UserError: the file is missing, truncated, of another kind, or holds anything but plain values and tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist; give the path of a checkpoint.pth")
    try:
        content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint of this project ({FORMAT})")
    return content


def check_content(content: dict[str, Any], path: str | Path, expected_model: str = "") -> dict[str, Any]:
    """``content``, if it is a checkpoint of this project with all that every one of them has.

    What is in a file beside it is in ``weights``, too.

    Raises:
        UserError: it is not, or of another model, or the file beside it is missing.
    """
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project ({FORMAT})")
    if not is_state(content.get("weights")):
        raise UserError(f"{path} holds no weights; it is no checkpoint that main.py wrote")
    if not content.keys() >= {"model", "config"}:
        raise UserError(f"{path} does not say with which options it was made; it is no checkpoint that main.py wrote")
    content = {"frozen": {}, **content}
    for key, kind in _TYPES.items():
        if key in content and not isinstance(content[key], kind):
            raise UserError(f"{path} is damaged: its {key} is no {kind.__name__}")
    check_model(content["model"], path, expected_model)
    if "beside" in content:
        content["weights"] = {**_read_beside(Path(path), content.pop("beside")), **content["weights"]}
    return content


def _beside(frozen: Mapping[str, Mapping[str, str]], names: Iterable[str]) -> str:
    """The name of a file of frozen weights, by what is in it: the same for all checkpoints of a run."""
    hashes = {part: entry["sha256"] for part, entry in frozen.items()}
    content = json.dumps([hashes, sorted(names)], sort_keys=True)
    return f"{BESIDE}{hashlib.sha256(content.encode()).hexdigest()[:16]}.safetensors"


def _read_beside(path: Path, name: Any) -> dict[str, Tensor]:
    """The frozen weights that a checkpoint names; whether they are the right ones is seen when they are loaded."""
    if not isinstance(name, str) or not re.fullmatch(rf"{BESIDE}[0-9a-f]{{16}}\.safetensors", name):
        raise UserError(f"{path} is damaged: it names {name!r} as the file of its frozen weights")
    file = path.with_name(name)
    if not file.is_file():
        raise UserError(
            f"{path} needs {name} beside it, which holds the frozen weights it was trained with; copy both files, or "
            "convert it where they are (scripts.convert_checkpoint)"
        )
    content = read_content(file)
    if content.get("format") != FORMAT or not is_state(content.get("weights")):
        raise UserError(f"{file} does not hold the frozen weights that {path} was trained with; copy it anew")
    return content["weights"]


def is_state(value: Any) -> bool:
    """Whether a value is a dict of named tensors."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def check_model(name: Any, path: str | Path, expected_model: str) -> None:
    """Refuse a checkpoint of another model than the configuration builds (empty: any).

    Raises:
        UserError: it is of another one.
    """
    if expected_model and name != expected_model:
        raise UserError(
            f"{path} is a checkpoint of the model {name!r}, and the configuration builds "
            f"{expected_model!r}; give a configuration with model: {name}"
        )


def _is_safetensors(path: Path) -> bool:
    """Whether a file starts as safetensors does: the length of a JSON header, and its brace."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = file.metadata() or {}
            tensors = file.get_tensors()
        content: dict[str, Any] = {key: json.loads(about[key]) for key in _JSON_KEYS if key in about}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable checkpoint; it may be truncated or of another program") from error
    content.update({key: about[key] for key in ("format", "model") if key in about})
    content["weights"] = {key: value for key, value in tensors.items() if not key.startswith(_UNUSED)}
    content["unused"] = {key.removeprefix(_UNUSED): value for key, value in tensors.items() if key.startswith(_UNUSED)}
    return content


def _read_pickle(path: Path) -> Any:
    """The authors' files carry their command line as an ``argparse.Namespace``, which is only data."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch's readers raise many kinds, which differ between versions
        raise UserError(
            f"{path} is not a readable checkpoint; it may be truncated, of another program, or carry code, which is "
            "never run"
        ) from error
