"""What the demo writes: a folder that appears when it is complete, masks as PNGs and as one COCO file."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from util.errors import UserError
from util.files import atomic_folder, sole_run
from util.run_log import library_versions, project_version

MASKS_FILE = "masks.json"
MAKER = "demo.py"  # by which a folder's masks.json is known as the demo's
SLUG_LETTERS = 40


@dataclass(frozen=True)
class FrameRecord:
    """A frame that was segmented: its name, and time and duration in seconds."""

    name: str
    time: Fraction
    duration: Fraction


@dataclass(frozen=True)
class SentenceRecord:
    """What came of a sentence.

    Attributes:
        number: from 1.
        text: as it was typed.
        folder: of its masks, below ``masks`` and ``probabilities``.
        score: mean over the frames, 0…1.
        found: the score is not below the threshold; otherwise all its masks are empty.
    """

    number: int
    text: str
    folder: str
    score: float = 0.0
    found: bool = True


@contextmanager
def new_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """A folder to write into, which gets its name when the block succeeds; otherwise nothing is left of it.

    Args:
        path: its name. A folder that is there must be empty or, with ``force``, written by the demo; it then stays as
            it is until the new one takes its place.
        force: replace an earlier result.

    Raises:
        UserError: the name is taken, or nothing can be written there.
    """
    path = path.absolute()
    require_free(path, force)
    with sole_run(path), atomic_folder(path) as staging:
        yield staging


def require_free(path: Path, force: bool) -> None:
    """Refuse an output folder that would have to be overwritten.

    Raises:
        UserError: it is a file, or holds something that may not be replaced.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"cannot write {path}: it is a file; choose another --out")
    if not any(path.iterdir()):
        return
    if not _is_result(path):
        raise UserError(f"{path} is not empty and holds no result of the demo; choose another --out")
    if not force:
        raise UserError(f"{path} holds an earlier result; choose another --out, or replace it with --force")


def _is_result(path: Path) -> bool:
    """Whether the demo has written a folder: its masks.json begins with the demo's name."""
    try:
        with (path / MASKS_FILE).open(encoding="utf-8") as file:
            return f'"maker": "{MAKER}"' in file.read(200)
    except (OSError, UnicodeDecodeError):
        return False


def sentence_records(sentences: Sequence[str]) -> list[SentenceRecord]:
    """Sentences with the names of their folders, such as ``1_the-dog-chasing-the-ball``."""
    digits = len(str(len(sentences)))
    return [
        SentenceRecord(i, text, f"{i:0{digits}d}_{slug(text)}".rstrip("_")) for i, text in enumerate(sentences, start=1)
    ]


def slug(text: str) -> str:
    """A sentence as a part of a file name: letters and digits of any script, and hyphens; it may be empty."""
    text = unicodedata.normalize("NFC", text.casefold())
    letters = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text)
    return "-".join(letters.split())[:SLUG_LETTERS].rstrip("-")


class CocoWriter:
    """Writes masks, in order, as a file of COCO's layout, which tools for it read; memory holds one of them.

    Images are frames, categories sentences; every frame has one annotation for each sentence, empty ones too.

    Args:
        file: open for writing.
        about: what the masks were made of and with; plain values.
        size: (H0, W0) of the frames.
        frames: all of them.
        sentences: all of them.
    """

    def __init__(
        self,
        file: TextIO,
        about: Mapping[str, Any],
        size: tuple[int, int],
        frames: Sequence[FrameRecord],
        sentences: Sequence[SentenceRecord],
    ) -> None:
        versions = {"project": project_version(), **library_versions()}
        self._file = file
        self._count = 0
        self._write('{"info": ', {"maker": MAKER, **about, "versions": versions})
        file.write(',\n"categories": [\n')
        for i, sentence in enumerate(sentences):
            entry = {"id": sentence.number, "name": sentence.text, "folder": sentence.folder}
            self._write(",\n" if i else "", {**entry, "score": round(sentence.score, 5), "found": sentence.found})
        file.write('\n],\n"images": [\n')
        height, width = size
        for i, frame in enumerate(frames):
            entry = {"id": i, "file_name": f"{frame.name}.png", "width": width, "height": height}
            times = {"time": round(float(frame.time), 6), "duration": round(float(frame.duration), 6)}
            self._write(",\n" if i else "", {**entry, **times})
        file.write('\n],\n"annotations": [\n')

    def add(self, frame: int, sentence: int, mask: np.ndarray, box: np.ndarray, score: float) -> None:
        """Write a mask.

        Args:
            frame: its index.
            sentence: the number.
            mask: bool ``[H, W]``.
            box: ``[4]``: the predicted (x0, y0, x1, y1) in pixels.
            score: of the frame, 0…1.
        """
        from pycocotools import mask as coco  # slow to import, and few commands need it

        runs = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        x0, y0, x1, y1 = (float(side) for side in box)
        entry = {
            "id": self._count + 1,
            "image_id": frame,
            "category_id": sentence,
            "score": round(float(score), 5),
            "bbox": [round(side, 2) for side in (x0, y0, x1 - x0, y1 - y0)],
            "area": int(np.count_nonzero(mask)),
            "iscrowd": 0,
            "segmentation": {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")},
        }
        self._write(",\n" if self._count else "", entry)
        self._count += 1

    def finish(self) -> None:
        """Write the end."""
        self._file.write("\n]}\n")

    def _write(self, before: str, entry: Mapping[str, Any]) -> None:
        self._file.write(before + json.dumps(entry, ensure_ascii=False))
