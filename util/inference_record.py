"""``inference.json``: what made the masks of an output folder, and what is done, so that a stopped run goes on.

Masks of two checkpoints or two configurations never mix: a folder belongs to one of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from util.config import Config
from util.errors import UserError
from util.io import read_json, write_json

_LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "numpy")

# Beside the options of the model, those that masks depend on.
MASK_OPTIONS = (
    *("dataset_file", "ytvos_path", "expressions_file", "split", "eval_size", "max_size", "seed"),
    *("threshold", "score_threshold"),
)


class InferenceRecord:
    """The record of an output folder, on disk whenever a method returns.

    Args:
        path: the JSON file; one that is there is gone on with.
        identity: everything that the masks depend on (plain values), the checkpoint's ``checkpoint_sha256`` included.
        about: further facts worth knowing (paths, device).

    Raises:
        UserError: the file has results of another identity, is no such record, or cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = dict(identity)
        self.about = {**about, "versions": {"python": platform.python_version(), **{n: version(n) for n in _LIBRARIES}}}
        self.expressions: dict[str, dict[str, dict[str, Any]]] = self._read() if path.exists() else {}
        self._write()

    def find(self, video: str, exp_id: str) -> dict[str, Any] | None:
        """The result of an expression, or None."""
        return self.expressions.get(video, {}).get(exp_id)

    def add(self, video: str, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Record expressions of a video, by id, whose files are all written.

        Args:
            video: its name.
            results: each with ``sentence``, ``score`` (0…1), ``query``, ``frames`` and ``seconds``.
        """
        self.expressions.setdefault(video, {}).update({exp_id: dict(result) for exp_id, result in results.items()})
        self._write()

    def timing(self) -> dict[str, float]:
        """Frames (once for each expression), seconds from frames to masks, and frames per second."""
        results = [result for video in self.expressions.values() for result in video.values()]
        frames, seconds = (sum(result[key] for result in results) for key in ("frames", "seconds"))
        rate = frames / seconds if seconds else 0.0
        return {"frames": frames, "seconds": round(seconds, 3), "frames_per_second": round(rate, 3)}

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        content = read_json(self.path, "the record of an inference run")
        expressions = content.get("expressions") if isinstance(content, dict) else None
        if not isinstance(expressions, dict) or not isinstance(content.get("identity"), dict):
            raise UserError(f"{self.path} is not the record of an inference run; choose another --output_dir")
        for key, value in self.identity.items() if expressions else ():
            other = content["identity"].get(key)
            if other != value:
                raise UserError(
                    f"{self.path.parent} holds masks made with {key} {other!r}, and this run has {value!r}; "
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


def mask_options(cfg: Config) -> dict[str, Any]:
    """The options that masks depend on, as plain values; paths that exist are made absolute."""
    options: dict[str, Any] = {}
    for field in dataclasses.fields(cfg):
        rule, value = field.metadata["rule"], getattr(cfg, field.name)
        if rule.group != "model" and field.name not in MASK_OPTIONS:
            continue
        if rule.path and value and Path(value).exists():
            value = str(Path(value).resolve())
        options[field.name] = list(value) if isinstance(value, tuple) else value
    return options


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
