"""``inference.json``: what made the masks of an output folder, and what is done, so that a stopped run goes on.

Masks of two checkpoints or two configurations never mix: a folder belongs to one of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.config import Config
from util.errors import UserError
from util.io import read_json, write_json
from util.results import library_versions

# Beside the options of the model and the dataset's own folder, those that masks depend on.
MASK_OPTIONS = (
    *("dataset_file", "expressions_file", "split", "eval_size", "max_size", "seed", "precision"),
    *("threshold", "score_threshold"),
)


Results = dict[str, dict[str, dict[str, Any]]]  # video → expression id → result


class InferenceRecord:
    """The record of an output folder, on disk whenever a method returns.

    Several processes may share a folder, each with a record of its own: what any of them has done is done.

    Args:
        path: the JSON file; one that is there is gone on with, and those of other processes beside it are read.
        identity: everything that the masks depend on (plain values), the checkpoint's ``checkpoint_sha256`` included.
        about: further facts worth knowing (paths, device).

    Raises:
        UserError: the file has results of another identity, is no such record, or cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = dict(identity)
        self.about = {**about, "versions": library_versions()}
        self.expressions: Results = self._read(path) if path.exists() else {}
        others = sorted(set(path.parent.glob("inference*.json")) - {path})
        self._others = [self._read(other) for other in others]
        self._write()

    def find(self, video: str, exp_id: str) -> dict[str, Any] | None:
        """The result of an expression, or None."""
        found = (results.get(video, {}).get(exp_id) for results in (self.expressions, *self._others))
        return next((result for result in found if result is not None), None)

    def add(self, video: str, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Record expressions of a video, by id, whose files are all written.

        Args:
            video: its name.
            results: each with ``sentence``, ``score`` (0…1), ``query`` (or, of several clips, ``queries``), ``frames``
                and ``seconds``.
        """
        self.expressions.setdefault(video, {}).update({exp_id: dict(result) for exp_id, result in results.items()})
        self._write()

    def absorb(self) -> None:
        """Take over what other processes recorded beside this one, when all are done, and remove their files."""
        for path in sorted(set(self.path.parent.glob("inference*.json")) - {self.path}):
            for video, results in self._read(path).items():
                self.expressions.setdefault(video, {}).update(results)
            self._write()
            path.unlink()

    def timing(self) -> dict[str, float]:
        """Frames (once for each expression), seconds from frames to masks, and frames per second."""
        results = [result for video in self.expressions.values() for result in video.values()]
        frames, seconds = (sum(result[key] for result in results) for key in ("frames", "seconds"))
        rate = frames / seconds if seconds else 0.0
        return {"frames": frames, "seconds": round(seconds, 3), "frames_per_second": round(rate, 3)}

    def _read(self, path: Path) -> Results:
        content = read_json(path, "the record of an inference run")
        expressions = content.get("expressions") if isinstance(content, dict) else None
        if not isinstance(expressions, dict) or not isinstance(content.get("identity"), dict):
            raise UserError(f"{path} is not the record of an inference run; choose another --output_dir")
        for key, value in self.identity.items() if expressions else ():
            other = content["identity"].get(key)
            if other != value:
                raise UserError(
                    f"{path.parent} holds masks made with {key} {other!r}, and this run has {value!r}; "
                    "choose another --output_dir, or remove that folder"
                )
        return expressions

    def _write(self) -> None:
        write_json(
            self.path,
            {
                "identity": self.identity,
                "about": self.about,
                "timing": self.timing(),
                "expressions": self.expressions,
            },
        )


def open_record(cfg: Config, checkpoint: Path | None, device: str, process: int = 0) -> InferenceRecord:
    """The record of ``cfg.output_dir`` for a run with a checkpoint.

    Args:
        cfg: its options are part of the identity.
        checkpoint: the file; None: the model is in training, and the folder is cleared before every use.
        device: in words.
        process: number of this process, from 0.

    Raises:
        UserError: the folder has masks of another run or a dataset, or cannot be written.
    """
    if (Path(cfg.output_dir) / "meta_expressions").is_dir():
        raise UserError(f"{cfg.output_dir} holds a dataset; choose another --output_dir for the masks")
    name = f"inference-{process}.json" if process else "inference.json"
    return InferenceRecord(
        Path(cfg.output_dir) / name,
        {"checkpoint_sha256": file_sha256(checkpoint) if checkpoint else "", **mask_options(cfg)},
        {"checkpoint": str(checkpoint.resolve()) if checkpoint else "", "device": device},
    )


def mask_options(cfg: Config) -> dict[str, Any]:
    """The options that masks depend on, as plain values; paths that exist are made absolute."""
    options: dict[str, Any] = {}
    for field in dataclasses.fields(cfg):
        rule, value = field.metadata["rule"], getattr(cfg, field.name)
        if rule.group != "model" and field.name not in (*MASK_OPTIONS, f"{cfg.dataset_file}_path"):
            continue
        if rule.path and value and Path(value).exists():
            value = str(Path(value).resolve())
        options[field.name] = list(value) if isinstance(value, tuple) else value
    return options


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
