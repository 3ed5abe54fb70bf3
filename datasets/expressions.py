"""Expressions files (``meta_expressions.json``): the videos, frames and sentences of a split.

This is the only parser of such files; loaders, checks and scores share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from datasets.files import DATA_PAGE, Video, plain_name, require_files
from util.errors import UserError
from util.files import read_json
from util.text import normalise_sentence


@dataclass(frozen=True)
class Expression:
    """A sentence about one object, or about nothing (a negative).

    Attributes:
        sentence: as it is written.
        obj_id: the object's value in the masks, 1…254, or its folder; None if the file has none, and for negatives.
        negative: whether the sentence refers to nothing in the video.
        kind: the sentence's group, for scores per group; None if the file has none.
    """

    sentence: str
    obj_id: int | None
    negative: bool = False
    kind: str | None = None

    @property
    def caption(self) -> str:
        """The normalised sentence."""
        return normalise_sentence(self.sentence)


ExpressionT = TypeVar("ExpressionT")
NEGATIVE = "negative"
"""The ``kind`` of expressions that refer to nothing; their ``obj_id`` is null."""
_MASK_VALUES = frozenset(map(str, range(255)))


@dataclass(frozen=True)
class Entry(Generic[ExpressionT]):
    """A video of an expressions file: its frame names, sorted by name, and its expressions by id."""

    frames: list[str]
    expressions: dict[str, ExpressionT]


VideoEntry = Entry[Expression]


def read_expressions(path: Path, split: str) -> dict[str, VideoEntry]:
    """Read a ``meta_expressions.json`` whose sentences are about one object each.

    Args:
        path: the file.
        split: the split it describes, for messages.

    Returns:
        video name → entry, in the order of the file.

    Raises:
        UserError: the file is missing, not JSON, has a different structure or an empty sentence.
    """
    return read_entries(path, split, _expression)


def expressions_path(root: Path, split: str) -> Path:
    """Return the expressions file of a split of Ref-YouTube-VOS: the first of ``expressions_paths`` that exists."""
    paths = expressions_paths(root, split)
    return next((path for path in paths if path.is_file()), paths[0])


def expressions_paths(root: Path, split: str) -> list[Path]:
    """Return the places of a split's expressions file; the ground truth of 2026 has it in the folder of the split."""
    return [
        root / "meta_expressions" / split / "meta_expressions.json",
        root / split / "meta_expressions_challenge.json",
        root / split / "meta_expressions.json",
    ]


def read_entries(
    path: Path, split: str, read: Callable[[Path, str, Mapping[str, Any]], ExpressionT]
) -> dict[str, Entry[ExpressionT]]:
    """Read an expressions file of a dataset whose expressions have other fields.

    Args:
        path: the file.
        split: the split it describes, for messages.
        read: makes an expression from the file's path, the expression's place in it (for messages) and its JSON value.

    Raises:
        UserError: the file is missing, not JSON or has a different structure.
    """
    content = read_json(path, f"the expressions of the {split} split, see {DATA_PAGE}")
    videos = require_mapping(require_mapping(content, path, "the file").get("videos"), path, "'videos'")
    return {plain_name(name, path, "video"): _entry(path, name, video, read) for name, video in videos.items()}


def read_sentence(path: Path, where: str, expression: Mapping[str, Any]) -> str:
    """Return the sentence of an expression as it is written.

    Raises:
        UserError: there is none, or it is empty.
    """
    sentence = expression.get("exp")
    if not isinstance(sentence, str):
        raise UserError(f"{path}: {where} should have its sentence under 'exp' (see {DATA_PAGE})")
    if not normalise_sentence(sentence):
        raise UserError(f"{path}: the sentence of {where} is empty; write what it refers to, or remove it")
    return sentence


def object_id(value: Any, lowest: int = 1) -> int:
    """Return an object id, a number or text, as a number; raise a ``ValueError`` if it is not ``lowest`` to 254."""
    if str(value) not in _MASK_VALUES or int(value) < lowest:
        raise ValueError(f"{value!r} is no mask value")
    return int(value)


def make_videos(images: Path, videos: Mapping[str, Entry[Any]]) -> list[Video]:
    """List videos for inference, with all their frames, and their sentences as they are written.

    The published inference of whole videos does not lower the case of sentences, unlike training.

    Args:
        images: the folder of ``<video>/<frame>.jpg``.
        videos: name → frames and expressions.

    Raises:
        UserError: a video has no folder.
    """
    require_files([images / name for name in videos], "the expressions file")
    return [
        Video(
            name,
            [images / name / f"{frame}.jpg" for frame in video.frames],
            {exp_id: expression.sentence for exp_id, expression in video.expressions.items()},
        )
        for name, video in videos.items()
    ]


def require_mapping(value: Any, path: Path, what: str) -> Mapping[str, Any]:
    """Return ``value`` if it is a JSON object; raise a ``UserError`` that names the file and the part otherwise."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} should be a JSON object (see {DATA_PAGE} for the file's form)")
    return value


def _entry(
    path: Path, name: str, video: Any, read: Callable[[Path, str, Mapping[str, Any]], ExpressionT]
) -> Entry[ExpressionT]:
    video = require_mapping(video, path, f"video {name!r}")
    frames = video.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path}: video {name!r} should have a list of frame names, 'frames' (see {DATA_PAGE})")
    listed = require_mapping(video.get("expressions"), path, f"'expressions' of video {name!r}")
    expressions = {}
    for exp_id, expression in listed.items():
        where = f"expression {exp_id!r} of video {name!r}"
        expression = require_mapping(expression, path, where)
        expressions[plain_name(exp_id, path, f"expression of video {name!r}")] = read(path, where, expression)
    return Entry(sorted(plain_name(frame, path, f"frame of video {name!r}") for frame in frames), expressions)


def _expression(path: Path, where: str, expression: Mapping[str, Any]) -> Expression:
    sentence, obj_id = read_sentence(path, where, expression), expression.get("obj_id")
    kind = expression.get("kind", expression.get("type"))  # Long-RVOS calls it type
    try:
        # Objects of Long-RVOS are folders, and their numbers may begin with 0.
        number = None if obj_id is None else object_id(obj_id, lowest=0 if "type" in expression else 1)
    except ValueError as error:
        raise UserError(
            f"{path}: 'obj_id' of {where} is {obj_id!r:.40}; it should be a mask value, 1 to 254"
        ) from error
    if kind == NEGATIVE and obj_id is not None:
        raise UserError(
            f"{path}: {where} is of the kind {NEGATIVE!r}, which refers to nothing, but has the obj_id {obj_id!r}; "
            "make that null, or use another kind"
        )
    return Expression(sentence, number, kind == NEGATIVE, None if kind is None else str(kind))
