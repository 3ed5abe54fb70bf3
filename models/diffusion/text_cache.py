"""Features of sentences on disk, for a text encoder that is too large to stay in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from util.errors import UserError
from util.files import atomic_path

BATCH = 16
"""Sentences that the text encoder takes at once."""
PER_FILE = 64 * BATCH
"""Sentences of a file: it bounds the memory, and what a stopped run loses."""

KEY = "sentence:"
"""Precedes a sentence in a file, where the name ``__metadata__`` is taken."""

Encode = Callable[[Sequence[str]], list[Tensor]]
"""At most ``BATCH`` sentences → their features ``[tokens, width]``, on the CPU."""


class TextCache:
    """Features of sentences, each computed once per text encoder.

    Several processes may share the folder. Only one of them loads the text encoder at a time.

    Args:
        folder: files of encoders with other identities are in folders beside it; it may not exist yet.
        load: loads the text encoder, on a device. It is called when sentences are missing; its result is dropped
            afterwards.
        width: of the features.
        max_tokens: of a sentence.
    """

    def __init__(self, folder: Path, load: Callable[[torch.device], Encode], width: int, max_tokens: int) -> None:
        self.folder, self.load, self.width, self.max_tokens = folder, load, width, max_tokens
        self._files: dict[str, Path] = {}
        self._seen: set[Path] = set()

    def prepare(self, sentences: Iterable[str], device: torch.device) -> None:
        """Compute on a device and store the features of all sentences that are missing.

        Raises:
            UserError: the text encoder cannot be loaded, or a file cannot be read or written.
        """
        wanted = dict.fromkeys(sentences)
        if not self._missing(wanted):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                missing = self._missing(wanted)  # another process may have been faster
                encode = self.load(device) if missing else None
                for start in range(0, len(missing) if encode else 0, PER_FILE):
                    self._store(encode, missing[start : start + PER_FILE])  # type: ignore[arg-type]
        except OSError as error:
            raise UserError(
                f"cannot write the text cache {self.folder}: {error.strerror or error}; name another folder with "
                "--text_cache"
            ) from error

    def __call__(self, sentences: Sequence[str], device: torch.device) -> list[Tensor]:
        """The features of each sentence, ``[tokens, width]``, on the CPU.

        Raises:
            UserError: as ``prepare``.
        """
        self.prepare(sentences, device)
        return [self._read(sentence) for sentence in sentences]

    def _missing(self, sentences: Iterable[str]) -> list[str]:
        missing = [sentence for sentence in sentences if sentence not in self._files]
        if missing:
            for path in sorted({*self.folder.glob("[!.]*.safetensors")} - self._seen):
                with _opened(path) as file:
                    self._files.update((key.removeprefix(KEY), path) for key in file.keys())  # noqa: SIM118
                self._seen.add(path)
        return [sentence for sentence in missing if sentence not in self._files]

    def _store(self, encode: Encode, sentences: Sequence[str]) -> None:
        features: dict[str, Tensor] = {}
        with torch.inference_mode():
            for start in range(0, len(sentences), BATCH):
                batch = sentences[start : start + BATCH]
                features.update(zip((KEY + sentence for sentence in batch), encode(batch), strict=True))
        name = hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:32]
        with atomic_path(self.folder / f"{name}.safetensors") as temporary:
            try:
                save_file(features, temporary)
            except SafetensorError as error:  # of a full disk, too
                raise OSError(str(error)) from error
        self._missing(sentences)

    def _read(self, sentence: str) -> Tensor:
        path = self._files[sentence]
        with _opened(path) as file:
            size = file.get_slice(KEY + sentence).get_shape()
            if len(size) != 2 or not 0 < size[0] <= self.max_tokens or size[1] != self.width:
                raise _damaged(path)
            value = file.get_tensor(KEY + sentence)
        if not value.is_floating_point() or not value.isfinite().all():
            raise _damaged(path)
        return value


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"the text cache {path} is damaged; delete it, and it is computed again")
