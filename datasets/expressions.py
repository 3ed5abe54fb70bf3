"""Expressions files (``meta_expressions.json``): which videos, frames and sentences a split has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.clip import normalise_sentence
from datasets.reading import DATA_PAGE
from util.errors import UserError
from util.io import read_json
from util.negatives import is_negative

# Names become parts of paths, also of files that are written: one plain component, no way out of the folder.
_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]+")


@dataclass(frozen=True)
class Expression:
    """A sentence (normalised) and the id (1…254) of the object it refers to.

    ``obj_id`` is None where the file does not say, and where the sentence is ``negative``: it names nothing.
    """

    caption: str
    obj_id: int | None
    negative: bool = False


@dataclass(frozen=True)
class VideoEntry:
    """One video of an expressions file: its frame names, in order of time, and its expressions by id."""

    frames: list[str]
    expressions: dict[str, Expression]


def read_expressions(path: Path, split: str) -> dict[str, VideoEntry]:
    """Read and check a ``meta_expressions.json``: video name → entry, in the file's order.

    Raises:
        UserError: the file is missing, not JSON, of another structure, or holds an empty sentence.
    """
    content = read_json(path, f"the expressions of the {split} split, see {DATA_PAGE}")
    videos = require_mapping(require_mapping(content, path, "the file").get("videos"), path, "'videos'")
    return {_plain_name(name, path, "video"): _video_entry(path, name, video) for name, video in videos.items()}


def _video_entry(path: Path, name: str, video: Any) -> VideoEntry:
    video = require_mapping(video, path, f"video {name!r}")
    frames = video.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path}: video {name!r} should have a list of frame names, 'frames' (see {DATA_PAGE})")
    expressions = require_mapping(video.get("expressions"), path, f"'expressions' of video {name!r}")
    return VideoEntry(
        [_plain_name(frame, path, f"frame of video {name!r}") for frame in frames],
        {
            _plain_name(exp_id, path, f"expression of video {name!r}"): _expression(path, name, exp_id, expression)
            for exp_id, expression in expressions.items()
        },
    )


def _expression(path: Path, video: str, exp_id: str, expression: Any) -> Expression:
    where = f"expression {exp_id!r} of video {video!r}"
    expression = require_mapping(expression, path, where)
    sentence, obj_id = expression.get("exp"), expression.get("obj_id")
    if not isinstance(sentence, str):
        raise UserError(f"{path}: {where} should have its sentence under 'exp' (see {DATA_PAGE})")
    caption = normalise_sentence(sentence)
    if not caption:
        raise UserError(f"{path}: the sentence of {where} is empty; write what it refers to, or remove it")
    if obj_id is not None and not (str(obj_id).isdecimal() and 1 <= int(obj_id) <= 254):
        raise UserError(f"{path}: 'obj_id' of {where} is {obj_id!r}; it should be a mask value, 1 to 254")
    return Expression(caption, None if obj_id is None else int(obj_id), is_negative(expression, path, where))


def require_mapping(value: Any, path: Path, what: str) -> Mapping[str, Any]:
    """Return ``value``; raise a ``UserError`` that names the file and the part if it is not a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} should be a JSON object (see {DATA_PAGE} for the file's form)")
    return value


def _plain_name(name: Any, path: Path, what: str) -> str:
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise UserError(f"{path}: {what} is named {name!r}; a name is text without slashes")
    return name
