"""``inference.json``: what made the masks of an output folder, and which are done, so that a stopped run can continue.

A folder belongs to one checkpoint and one set of options: masks of two runs never mix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import read_json, write_json
from util.run_log import library_versions

MASK_OPTIONS = (
    *("dataset_file", "expressions_file", "split", "eval_size", "max_size", "seed", "precision"),
    *("threshold", "score_threshold"),
)
"""Options that masks depend on, beside those of the model and the folder of the dataset."""

Results = dict[str, dict[str, dict[str, Any]]]  # video → expression id → result


class InferenceRecord:
    """The record of an output folder, on disk whenever a method returns.

    Several processes may share a folder, each with a record of its own: an expression that any of them lists is done.

    Args:
        path: the JSON file. An existing one is continued, and the records of other processes beside it are read.
        identity: everything that the masks depend on, as plain values, with the ``checkpoint_sha256``.
        about: further facts (paths, device).

    Raises:
        UserError: the file has results of another identity, is not such a record, or cannot be written.
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
        """Record expressions of a video whose files are all written.

        Args:
            video: its name.
            results: expression id → ``sentence``, ``score`` (0…1), ``query`` (for several clips ``queries``),
                ``frames`` and ``seconds``.
        """
        self.expressions.setdefault(video, {}).update({exp_id: dict(result) for exp_id, result in results.items()})
        self._write()

    def absorb(self) -> None:
        """Take over the records of the other processes, when all are done, and remove their files."""
        for path in sorted(set(self.path.parent.glob("inference*.json")) - {self.path}):
            for video, results in self._read(path).items():
                self.expressions.setdefault(video, {}).update(results)
            self._write()
            path.unlink()

    def timing(self) -> dict[str, float]:
        """Frames (counted for each expression), seconds from frames to masks, and frames per second."""
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


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
