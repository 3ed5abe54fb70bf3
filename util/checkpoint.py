"""Checkpoint files: their format, and which of them a run keeps (docs/checkpoints.md).

``checkpoint.pth`` of a run holds ``format``, ``model`` (its name), ``config`` (the options it was made with),
``weights`` (everything trained), ``frozen`` (the identity of the frozen parts), and to resume ``optimizer``, ``step``
and ``steps_per_epoch``. Frozen parts that differ from the pretrained ones never change in a run: they are written once,
into a file beside it, which ``beside`` names. To publish weights, ``save_weights`` writes everything but the training
state as one safetensors file. Both kinds of files are memory-mapped, and code in a file is never run.

In the folder of a run, ``checkpoint_000400.pth`` is the state after step 400. The newest is also called
``checkpoint.pth``, and the best ``checkpoint_best.pth``; a second name is a hard link, and takes no space.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickletools
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from util.errors import UserError, first_line, printable
from util.files import atomic_path, reason_of

FORMAT = "t2v-rvos-1"
BESIDE = "frozen-"
"""Prefix of the files that hold the frozen parts of a run; alone, they are not checkpoints."""
NEWEST, BEST = "checkpoint.pth", "checkpoint_best.pth"
EARLIER = "earlier"
"""Prefix of the folders that hold the checkpoints of an earlier run."""
RETRY = 60.0  # seconds until writing a checkpoint is tried again after a failure
_NUMBERED = re.compile(r"checkpoint_(\d+)\.pth")
TRAINING_KEYS = {"optimizer", "step", "steps_per_epoch"}
"""Entries that a run needs to resume, beside the weights."""
_TYPES: dict[str, type] = {
    **{"model": str, "config": dict, "frozen": dict, "args": dict, "epoch": int},
    **{"optimizer": dict, "step": int, "steps_per_epoch": int, "scaler": dict},
}
_JSON_KEYS = ("config", "frozen", "args", "epoch")
"""Entries that a safetensors file holds as JSON, beside ``format`` and ``model``."""
_PLAIN_NAMES = re.compile(
    r"collections\.(OrderedDict|Counter)|argparse\.Namespace|(builtins|__builtin__)\.set|torch\.(Size|device)"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.(Float|Half|BFloat16|Double|Long|Int|Short|Char|Byte|Bool)Storage"
)
"""What a pickle may name. PyTorch also allows types that take any amount of memory, or that no weight has."""
_DTYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
_DTYPES |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
_MOMENTS = {"exp_avg", "exp_avg_sq"}
_MAX_GROUPS = 2  # of the optimiser
_OLD_PICKLES = 5  # at the start of a file of PyTorch before 1.6; the numbers follow them
_SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
_UNUSED = "unused."
"""Prefix of the tensors in a safetensors file that belong to the authors' layout alone."""


def write_pickle(path: str | Path, content: dict[str, Any]) -> None:
    """Write with ``torch.save``, beside ``path`` and renamed.

    Raises:
        UserError: the file cannot be written; an older one stays intact.
    """
    with atomic_path(path) as temporary:
        try:
            # An open file: given a path, torch stores its name, so that equal content would have different bytes.
            with temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())  # else a machine that crashes may leave the new name without the content
        except (OSError, RuntimeError) as error:
            cause: BaseException | None = error  # PyTorch's message may hide that of the system
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            reason = (cause.strerror if cause is not None else None) or first_line(error)
            raise UserError(f"cannot write {path}: {reason}; if there was an older file, it is intact") from error


def save_weights(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint without training state as a safetensors file, beside ``path`` and renamed.

    Args:
        path: the file; its name ends in ``.safetensors``.
        content: ``model``, ``config``, ``frozen`` and ``weights``; for the authors' layout also ``unused`` tensors by
            the authors' names, and ``args``.

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
            temporary.chmod(0o666 & ~mask)  # as any other file: the library lets only the owner read it
    except (OSError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"cannot write the checkpoint {path}: {error}; an older one there is intact") from error


def read_content(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file of any kind, memory-mapped: a safetensors file or a dict written by ``torch.save``.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, or holds anything but plain values and tensors.
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
    for state in filter(is_state, (content, *content.values())):
        check_plain(state, path)
    return content


def check_plain(state: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not plain: what loads as something else, or takes more memory than the file.

    Raises:
        UserError: a tensor is sparse, quantised, complex, of 8-bit floats, or repeats the numbers of its storage.
    """
    for name, tensor in state.items():
        if not _is_plain(tensor):
            raise UserError(
                f"{path} holds {name} as a tensor of another kind ({tensor.dtype}, {list(tensor.shape)}); save it as "
                "plain, contiguous numbers"
            )


def _is_plain(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_nested or tensor.dtype not in _DTYPES or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def check_content(content: dict[str, Any], path: str | Path, expected_model: str = "") -> dict[str, Any]:
    """Check that ``content`` is a whole checkpoint of this project, and add the weights of the file beside it.

    Raises:
        UserError: it is not, it belongs to a different model, or the file beside it is missing.
    """
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project ({FORMAT})")
    if not is_state(content.get("weights")) or not content.keys() >= {"model", "config"}:
        raise UserError(f"{path} lacks the weights, or the options it was made with; main.py did not write it")
    content = {"frozen": {}, **content}
    for key, kind in _TYPES.items():
        if key in content and not isinstance(content[key], kind):
            raise UserError(f"{path} is damaged: its {key} is not of type {kind.__name__}")
    for entry in content["frozen"].values():
        if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
            raise UserError(f"{path} is damaged: its frozen parts are not described by text; copy it again")
    check_model(content["model"], path, expected_model)
    if "beside" in content:
        content["weights"] = {**_read_beside(Path(path), content.pop("beside")), **content["weights"]}
    return content


def check_training_state(training: dict[str, Any], weights: dict[str, Tensor], path: Path) -> None:
    """Check the entries that a run resumes from.

    Raises:
        UserError: a number is out of range, or the optimiser's state does not belong to the weights.
    """
    scaler = training.get("scaler")
    if type(training["step"]) is not int or not 0 <= training["step"] < sys.maxsize:
        fault = "its step is not a number of steps"
    elif type(training["steps_per_epoch"]) is not int or not 0 < training["steps_per_epoch"] < sys.maxsize:
        fault = "its steps_per_epoch is not a number of steps"
    elif scaler and not (scaler.keys() == _SCALER and all(map(_is_number, scaler.values()))):
        fault = "its scaler is not the state of a GradScaler"
    elif not _is_adamw(training["optimizer"], weights):
        fault = "its optimizer is not the state of AdamW for its weights"
    else:
        return
    raise UserError(f"{path} is damaged: {fault}; resume from another checkpoint")


def _is_adamw(state: dict[str, Any], weights: dict[str, Tensor]) -> bool:
    """Whether a value is the state of AdamW, and every moment has the shape of a weight."""
    groups, moments = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not 1 <= len(groups) <= _MAX_GROUPS or not isinstance(moments, dict):
        return False
    params: list[Any] = []
    for group in groups:
        options = dict(group) if isinstance(group, dict) else {}
        own, betas = options.pop("params", None), options.pop("betas", None)
        if not isinstance(own, list) or len(params) + len(own) > len(weights):
            return False
        params += own
        if not isinstance(betas, (list, tuple)) or len(betas) != 2 or not all(_is_number(beta) for beta in betas):
            return False
        if options.get("amsgrad") or not all(value is None or _is_number(value) for value in options.values()):
            return False
    if params != list(range(len(params))) or not moments.keys() <= set(params):
        return False
    shapes = {value.shape for value in weights.values()}
    return all(_is_moment(value, shapes) for value in moments.values())


def _is_moment(value: Any, shapes: set[torch.Size]) -> bool:
    """Whether a value is the state of one parameter, which has one of the given shapes."""
    if not is_state(value) or value.keys() != {"step", *_MOMENTS} or not all(map(_is_plain, value.values())):
        return False
    step, first, second = value["step"], value["exp_avg"], value["exp_avg_sq"]
    if step.numel() != 1 or not 0 <= step.item() < math.inf:
        return False
    return first.shape == second.shape and first.shape in shapes and first.dtype.is_floating_point


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _read_beside(path: Path, name: Any) -> dict[str, Tensor]:
    """The frozen weights that a checkpoint names. Their hashes are verified when they are loaded."""
    if not isinstance(name, str) or not re.fullmatch(rf"{BESIDE}[0-9a-f]{{16}}\.safetensors", name):
        raise UserError(f"{path} is damaged: it names {name!r} as the file of its frozen weights")
    file = path.with_name(name)
    if not file.is_file():
        raise UserError(
            f"{path} needs {name} beside it, which holds the frozen weights it was trained with; copy both files, or "
            "convert the checkpoint where both are (scripts.convert_checkpoint)"
        )
    content = read_content(file)
    if content.get("format") != FORMAT or not is_state(content.get("weights")):
        raise UserError(f"{file} does not hold the frozen weights that {path} was trained with; copy it again")
    return content["weights"]


def is_state(value: Any) -> bool:
    """Whether a value is a dict of named tensors."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def check_model(name: Any, path: str | Path, expected_model: str) -> None:
    """Refuse a checkpoint of a different model than the configuration builds (empty: any).

    Raises:
        UserError: the models differ.
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
        reason = reason_of(path, "it may be truncated, or another program wrote it")
        raise UserError(f"{path} is not a readable checkpoint; {reason}") from error
    content.update({key: about[key] for key in ("format", "model") if key in about})
    content["weights"] = {key: value for key, value in tensors.items() if not key.startswith(_UNUSED)}
    content["unused"] = {key.removeprefix(_UNUSED): value for key, value in tensors.items() if key.startswith(_UNUSED)}
    return content


def _read_pickle(path: Path) -> Any:
    try:
        return read_plain_tensors(path)
    except UserError:
        raise
    except Exception as error:  # torch's readers raise many kinds, which differ between versions
        reason = reason_of(path, "it may be truncated, written by another program, or carry code, which is never run")
        raise UserError(f"{path} is not a readable checkpoint; {reason}") from error


def read_plain_tensors(path: Path) -> Any:
    """Read what ``torch.save`` wrote, memory-mapped and without running code.

    The authors' files hold an ``argparse.Namespace``, which is plain data.

    Raises:
        UserError: the file is compressed, or names anything but tensors and plain values.
        Exception: it is damaged; the kinds differ between versions of PyTorch.
    """
    check_plain_pickle(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def check_plain_pickle(path: Path) -> None:
    """Refuse what ``torch.save`` wrote if it is compressed, or names anything but tensors and plain values.

    Raises:
        UserError: it is or does.
        Exception: it is damaged.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # Numbers are mapped from where a record begins, as if it were plain.
            packed = [record for record in records if record.compress_type or record.compress_size != record.file_size]
            if packed:
                raise UserError(f"{path} is compressed; write it again with torch.save, which stores numbers plainly")
            for record in records:
                if record.filename.endswith(".pkl"):
                    _check_names(path, BytesIO(archive.read(record)), 1)
    else:
        with path.open("rb") as file:
            _check_names(path, file, _OLD_PICKLES)


def _check_names(path: Path, file: IO[bytes], pickles: int) -> None:
    """Refuse pickles that name anything but tensors and plain values, before anything in them is built."""
    for _ in range(pickles):
        for opcode, argument, _ in pickletools.genops(file):
            name = str(argument).replace(" ", ".")
            if opcode.name == "GLOBAL" and not _PLAIN_NAMES.fullmatch(name):
                raise UserError(
                    f"{path} is not a readable checkpoint; it names {name[:80]!r}, which is no plain tensor or value, "
                    "and may carry code, which is never run"
                )


def numbered_checkpoints(folder: Path) -> dict[int, Path]:
    """Step → its checkpoint, in rising order."""
    found = ((_NUMBERED.fullmatch(path.name), path) for path in folder.glob("checkpoint_*.pth"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


class Keeper:
    """Writes checkpoints and keeps the last ones.

    A checkpoint that cannot be written does not end the run, and older ones stay: the disk may be full for an hour
    only, and a run that continues loses nothing. Only the last checkpoint of a run must be written.

    Args:
        folder: of the run.
        write: writes the checkpoint of a step to a path, beside it and renamed; raises ``UserError`` on failure.
        keep: number of checkpoints that stay, at least 1.
        minutes: a checkpoint is due after this many minutes without one; 0: never.
        active: False writes nothing (in every process but the main one).
    """

    def __init__(
        self, folder: Path, write: Callable[[Path, int], None], keep: int, minutes: float, active: bool = True
    ) -> None:
        self.folder, self.write, self.keep, self.seconds = folder, write, keep, 60 * minutes
        self.active = active
        self._saved = -1
        self._next = self._after(self.seconds)

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.active and time.monotonic() >= self._next

    def save(self, step: int, must: bool = False) -> None:
        """Write the checkpoint of a step, unless it is written, and remove those that are no longer kept.

        Args:
            step: number of steps done.
            must: raise the error if it cannot be written, because the run ends here.

        Raises:
            UserError: ``must``, and it cannot be written.
        """
        if step == self._saved or not self.active:
            return
        try:
            self._write(step)
        except UserError as error:
            if must:
                raise
            self._next = self._after(RETRY)
            print(f"warning: {printable(error)}; training continues and will try again", file=sys.stderr, flush=True)
            return
        self._saved = step
        self._next = self._after(self.seconds)

    def keep_best(self, step: int) -> None:
        """Keep the current checkpoint, of step ``step``, as the best.

        Raises:
            UserError: it cannot be written.
        """
        self.save(step)
        if step == self._saved:
            _link(self._path(step), self.folder / BEST)
        else:
            self.write(self.folder / BEST, step)

    @staticmethod
    def _after(seconds: float) -> float:
        return time.monotonic() + seconds if seconds else math.inf

    def _path(self, step: int) -> Path:
        return self.folder / f"checkpoint_{step:06d}.pth"

    def _write(self, step: int) -> None:
        path = self._path(step)
        try:
            self.write(path, step)
        except UserError:
            if not self._make_room():
                raise
            self.write(path, step)
        _link(path, self.folder / NEWEST)
        for old in list(numbered_checkpoints(self.folder).values())[: -self.keep]:
            old.unlink(missing_ok=True)

    def _make_room(self) -> bool:
        """Remove all checkpoints but the newest; return whether there were any."""
        old = list(numbered_checkpoints(self.folder).values())[:-1]
        for path in old:
            path.unlink(missing_ok=True)
        return bool(old)


def begin_folder(folder: Path, first_step: int) -> list[str]:
    """Prepare the folder of a run: checkpoints beyond ``first_step`` belong to an earlier run, and are moved aside.

    Half-written files of a killed process are removed.

    Args:
        folder: of the run; it need not exist.
        first_step: number of steps done.

    Returns:
        Notes for the user.

    Raises:
        UserError: a file cannot be moved.
    """
    later = [path for step, path in numbered_checkpoints(folder).items() if step > first_step]
    later += [path for path in (folder / NEWEST, folder / BEST) if path.is_file() and _step(path) > first_step]
    try:
        for half in folder.glob(".checkpoint*.pth"):
            half.unlink(missing_ok=True)
        if not later:
            return []
        number = 1 + max((int(path.name.rpartition("-")[2]) for path in folder.glob(f"{EARLIER}-[0-9]*")), default=0)
        aside = folder / f"{EARLIER}-{number}"
        aside.mkdir()
        for path in folder.glob(f"{BESIDE}*"):
            _link(path, aside / path.name)
        for path in later:
            path.rename(aside / path.name)
    except OSError as error:
        raise UserError(f"cannot move aside the checkpoints in {folder}: {error.strerror or error}") from error
    return [f"{folder} held checkpoints of an earlier run, beyond step {first_step}; they are now in {aside}"]


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint of a folder that can be read to its end.

    Returns:
        the checkpoint or None, and notes that say which were skipped and why.
    """
    notes = []
    paths = [path for path in (*reversed(numbered_checkpoints(folder).values()), folder / NEWEST) if path.is_file()]
    files = {(path.stat().st_dev, path.stat().st_ino): path for path in paths}  # each file once, under whatever name
    found: list[tuple[int, Path]] = []
    for path in files.values():
        try:
            found.append((_read_step(path), path))
        except UserError as error:
            notes.append(f"skipped {path}: {error}")
    for _, path in sorted(found, reverse=True):
        fault = _fault(path)
        if not fault:
            return path, notes
        notes.append(f"skipped {path}: {fault}")
    return None, notes


def _read_step(path: Path) -> int:
    """The step of a checkpoint that a run can resume from.

    Raises:
        UserError: it is not one.
    """
    content = check_content(read_content(path), path)
    if not content.keys() >= TRAINING_KEYS:
        raise UserError("it holds weights only")
    check_training_state(content, content["weights"], path)
    return content["step"]


def _step(path: Path) -> int:
    """The step of a checkpoint; beyond all others where it cannot be read."""
    try:
        return _read_step(path)
    except UserError:
        return sys.maxsize


def _fault(path: Path) -> str:
    """What is wrong with the bytes of a checkpoint, all of which are read; empty where nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
        return f"it cannot be read ({error})"
    return f"its part {broken} is damaged" if broken else ""


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, replacing any file of that name; copy it where the file system has no links.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
