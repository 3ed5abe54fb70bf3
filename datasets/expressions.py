"""Expressions files (``meta_expressions.json``): which videos, frames and sentences a split has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from datasets.reading import DATA_PAGE, plain_name
from util.errors import UserError
from util.io import read_json
from util.sentences import normalise_sentence


@dataclass(frozen=True)
class Expression:
    """A sentence about one object.

    Attributes:
        caption: the normalised sentence.
        obj_id: the object's value in the masks, 1…254; None if the file has none, and for negatives.
        negative: whether the sentence refers to nothing in the video.
        kind: the sentence's group, for scores per group; None if the file has none.
    """

    caption: str
    obj_id: int | None
    negative: bool = False
    kind: str | None = None


ExpressionT = TypeVar("ExpressionT")
NEGATIVE = "negative"
"""The ``kind`` of expressions that refer to nothing; their ``obj_id`` is null."""
_MASK_VALUES = frozenset(map(str, range(1, 255)))


@dataclass(frozen=True)
class Entry(Generic[ExpressionT]):
    """One video of an expressions file: its frame names, in order of time, and its expressions by id."""

    frames: list[str]
    expressions: dict[str, ExpressionT]


VideoEntry = Entry[Expression]


def read_expressions(path: Path, split: str) -> dict[str, VideoEntry]:
    """Read and check a ``meta_expressions.json``: video name → entry, in the file's order.

    Raises:
        UserError: the file is missing, not JSON, of another structure, or holds an empty sentence.
    """
    return read_entries(path, split, _expression)


def read_entries(
    path: Path, split: str, read: Callable[[Path, str, Mapping[str, Any]], ExpressionT]
) -> dict[str, Entry[ExpressionT]]:
    """The same for a dataset whose expressions have other parts.

    Args:
        path: the file.
        split: which it describes, for messages.
        read: makes an expression of the file, its place in it, for messages, and its JSON value.

    Raises:
        UserError: the file is missing, not JSON or of another structure.
    """
    content = read_json(path, f"the expressions of the {split} split, see {DATA_PAGE}")
    videos = require_mapping(require_mapping(content, path, "the file").get("videos"), path, "'videos'")
    return {plain_name(name, path, "video"): _entry(path, name, video, read) for name, video in videos.items()}


def read_caption(path: Path, where: str, expression: Mapping[str, Any]) -> str:
    """Read an expression's sentence, normalised.

    Raises:
        UserError: there is none, or it is empty.
    """
    sentence = expression.get("exp")
    if not isinstance(sentence, str):
        raise UserError(f"{path}: {where} should have its sentence under 'exp' (see {DATA_PAGE})")
    caption = normalise_sentence(sentence)
    if not caption:
        raise UserError(f"{path}: the sentence of {where} is empty; write what it refers to, or remove it")
    return caption


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
    return Entry([plain_name(frame, path, f"frame of video {name!r}") for frame in frames], expressions)


def _expression(path: Path, where: str, expression: Mapping[str, Any]) -> Expression:
    caption, obj_id, kind = read_caption(path, where, expression), expression.get("obj_id"), expression.get("kind")
    if obj_id is not None and str(obj_id) not in _MASK_VALUES:
        raise UserError(f"{path}: 'obj_id' of {where} is {obj_id!r:.40}; it should be a mask value, 1 to 254")
    if kind == NEGATIVE and obj_id is not None:
        raise UserError(
            f"{path}: {where} is of the kind {NEGATIVE!r}, which refers to nothing, but has the obj_id {obj_id!r}; "
            "make that null, or use another kind"
        )
    return Expression(
        caption,
        None if obj_id is None else int(obj_id),
        kind == NEGATIVE,
        None if kind is None else str(kind),
    )


def require_mapping(value: Any, path: Path, what: str) -> Mapping[str, Any]:
    """Return ``value``; raise a ``UserError`` that names the file and the part if it is not a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} should be a JSON object (see {DATA_PAGE} for the file's form)")
    return value


def require_video_folders(parent: Path, videos: Iterable[str]) -> None:
    """Raise a ``UserError`` that names the first video, of those that the expressions list, without a folder."""
    present = video_folders(parent)
    missing = [name for name in videos if name not in present]
    if missing:
        more = f" (and those of {len(missing) - 1} more videos)" if len(missing) > 1 else ""
        raise UserError(f"{parent / missing[0]} is missing{more}, but the expressions list it (see {DATA_PAGE})")


def video_folders(parent: Path) -> set[str]:
    """Names of the folders in ``parent``."""
    return {path.name for path in parent.iterdir() if path.is_dir()}
