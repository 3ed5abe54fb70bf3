"""Scores of one mask folder per expression, the layout of Ref-YouTube-VOS submissions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError
from util.files import read_json
from util.mask_files import read_binary_mask, read_index_mask, require_folder, require_masks
from util.metrics import Shape, shape_scores
from util.negatives import NEGATIVE, is_negative
from util.parallel import map_videos

_HOLDS = (
    "the valid videos, their frames and expressions, each expression with the obj_id of its object (null, and the kind "
    f"{NEGATIVE!r}, if it names nothing); "
    "name another file with --expressions_file"
)


_TRUTH = "the ground truth, <video>/<frame>.png, palette PNGs whose value is the object id"


@dataclass(frozen=True)
class _Expression:
    obj_id: int | None  # None: a negative
    kind: str | None


@dataclass(frozen=True)
class _Video:
    name: str
    frames: list[str]
    expressions: dict[str, _Expression]


def default_expressions(gt: Path) -> Path:
    """Where Ref-YouTube-VOS keeps the expressions that belong to ``<root>/<split>/Annotations``."""
    split = gt.absolute().parent
    name = split.name if split.name in ("train", "valid", "test") else "valid"
    return split.parent / "meta_expressions" / name / "meta_expressions.json"


def described_videos(expressions: Path) -> list[str]:
    """Names of the videos of an expressions file about which something is said.

    Raises:
        UserError: the file is missing or malformed.
    """
    videos = _entry(read_json(expressions, _HOLDS), "videos", dict, expressions, "the file")
    return [name for name, video in videos.items() if _entry(video, "expressions", dict, expressions, f"video {name}")]


def require_truth(gt: Path, expressions: Path) -> None:
    """Find out before any work that the truth is not all there; arguments as for ``score_expressions``.

    Raises:
        UserError: the sentence says which is missing, masks or object ids, and what it must hold.
    """
    require_folder(gt, _TRUTH)
    _choose_videos(expressions, gt)


def score_expressions(gt: Path, pred: Path, expressions: Path | None = None, workers: int = 1) -> dict[str, Any]:
    """J and F of every expression over all its video's frames, and their means over expressions.

    A negative (a sentence that names nothing) scores 1 in a frame where its mask is empty, else 0. It counts in the
    means of its kind only.

    The videos scored are those of the expressions' file whose folder exists in ``gt``: the
    challenge's file also lists the test videos.

    Args:
        gt: folder of ``<video>/<frame>.png``, palette PNGs whose value is the object id.
        pred: folder of ``<video>/<exp_id>/<frame>.png``, 8-bit PNGs of 0 and 255.
        expressions: ``meta_expressions.json`` whose expressions carry ``obj_id`` (null with the kind ``negative``)
            and, if they like, ``kind``; None is ``default_expressions(gt)``.
        workers: processes.

    Returns:
        Ready for JSON, every score 0…1, ``JF`` the mean of J and F:

        - ``per_expression``: ``<video>/<exp_id>`` → ``J F JF obj_id`` (and ``kind``)
        - ``per_video``, ``per_kind``: name → ``J F JF``, means over its ``expressions`` (a number); a video without
          any expression that names an object has no row
        - ``global``: ``J F JF``, the means over all expressions that name an object; where there are negatives also
          ``negative_accuracy``, the share of them whose masks are all empty
        - ``notes``: sentences that a reader of the scores should know, such as videos left out

    Raises:
        UserError: a missing folder or file, a broken image, a wrong size, an expression without
            ``obj_id``, a prediction that is not of 0 and 255, negatives alone.
    """
    require_folder(gt, _TRUTH)
    require_folder(pred, "the predictions, <video>/<exp_id>/<frame>.png")
    path = expressions or default_expressions(gt)
    videos, notes = _choose_videos(path, gt)
    require_masks(
        file
        for video in videos
        for frame in video.frames
        for file in (gt / video.name / f"{frame}.png", *_predictions(pred, video, frame))
    )
    results = map_videos(partial(_score_video, gt=gt, pred=pred), videos, workers)

    per_expression: dict[str, dict[str, Any]] = {}
    invisible = []
    for video, (rows, never_visible) in zip(videos, results, strict=True):
        per_expression.update({f"{video.name}/{exp_id}": row for exp_id, row in rows.items()})
        invisible += [f"{video.name}/{exp_id}" for exp_id in never_visible]
    if invisible:
        notes.append(
            f"the objects of {len(invisible)} expressions (first {invisible[0]}) are in no frame of {gt}; "
            "is their obj_id right?"
        )
    named = {video.name: _named(rows.values()) for video, (rows, _) in zip(videos, results, strict=True)}
    means = mean_scores(_named(per_expression.values()))
    if negatives := [row for row in per_expression.values() if row["obj_id"] is None]:
        means["negative_accuracy"] = float(np.mean([row["JF"] == 1 for row in negatives]))
    kinds = sorted({row["kind"] for row in per_expression.values() if "kind" in row})
    return {
        "task": "expressions",
        "notes": notes,
        "global": means,
        "per_kind": {
            kind: counted_mean_scores([row for row in per_expression.values() if row.get("kind") == kind])
            for kind in kinds
        },
        "per_video": {name: counted_mean_scores(rows) for name, rows in named.items() if rows},
        "per_expression": per_expression,
    }


def _named(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the expressions that name an object."""
    return [row for row in rows if row["obj_id"] is not None]


def mean_scores(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Means of ``J`` and ``F`` over rows, and ``JF``, the mean of both."""
    j, f = np.mean([(row["J"], row["F"]) for row in rows], axis=0)
    return {"J": float(j), "F": float(f), "JF": float(j + f) / 2}


def counted_mean_scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same, with the number of ``expressions``."""
    return {**mean_scores(rows), "expressions": len(rows)}


def _predictions(pred: Path, video: _Video, frame: str) -> list[Path]:
    """The prediction of every expression for one frame."""
    return [pred / video.name / exp_id / f"{frame}.png" for exp_id in video.expressions]


def _score_video(video: _Video, gt: Path, pred: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Scores by expression, and the expressions whose object is in no frame."""
    scores = []  # [T][expressions] of (J, F)
    visible: set[int] = set()
    for frame in video.frames:
        index = read_index_mask(gt / video.name / f"{frame}.png")
        objects = {expression.obj_id for expression in video.expressions.values() if expression.obj_id is not None}
        truths = {number: Shape.of(index == number) for number in objects}
        visible |= {number for number, truth in truths.items() if truth.area}
        guesses = [Shape.of(read_binary_mask(path, index.shape)) for path in _predictions(pred, video, frame)]
        scores.append(
            [
                _negative_scores(guess) if expression.obj_id is None else shape_scores(truths[expression.obj_id], guess)
                for expression, guess in zip(video.expressions.values(), guesses, strict=True)
            ]
        )
    rows: dict[str, dict[str, Any]] = {}
    for (exp_id, expression), (j, f) in zip(video.expressions.items(), np.mean(scores, axis=0), strict=True):
        rows[exp_id] = {"J": float(j), "F": float(f), "JF": float(j + f) / 2, "obj_id": expression.obj_id}
        if expression.kind is not None:
            rows[exp_id]["kind"] = expression.kind
    seen = {None, *visible}  # a negative has nothing to be seen
    return rows, [exp_id for exp_id, expression in video.expressions.items() if expression.obj_id not in seen]


def _negative_scores(guess: Shape) -> tuple[float, float]:
    """(J, F) of a frame in which nothing is named. The boundary is not asked: that of a full frame is empty too."""
    score = 0.0 if guess.area else 1.0
    return score, score


def _choose_videos(path: Path, gt: Path) -> tuple[list[_Video], list[str]]:
    """The videos to score, by name, and notes on those left out."""
    listed = _entry(read_json(path, _HOLDS), "videos", dict, path, "the file")
    present = {folder.name for folder in gt.iterdir() if folder.is_dir() and not folder.name.startswith(".")}
    videos = [_read_video(path, name, listed[name]) for name in sorted(listed) if name in present]
    if not videos:
        raise UserError(
            f"none of the {len(listed)} videos of {path} has a folder in {gt}; "
            "give the folder of masks that belongs to these expressions"
        )
    if all(expression.obj_id is None for video in videos for expression in video.expressions.values()):
        raise UserError(f"{path}: no expression names an object, so there is no J and F; it must hold {_HOLDS}")
    notes = []
    if len(videos) < len(listed):
        absent = len(listed) - len(videos)
        notes.append(f"{absent} of the {len(listed)} videos of {path} have no folder in {gt} and are left out")
    if len(videos) < len(present):
        notes.append(f"{len(present) - len(videos)} folders of {gt} are not in {path} and are left out")
    return videos, notes


def _read_video(path: Path, name: str, content: Any) -> _Video:
    where = f"video {name}"
    frames = _entry(content, "frames", list, path, where)
    expressions = _entry(content, "expressions", dict, path, where)
    if not frames or not expressions:
        raise UserError(f"{path}: {where} has no {'expressions' if frames else 'frames'}; it must hold {_HOLDS}")
    return _Video(
        name,
        [str(frame) for frame in frames],
        {exp_id: _read_expression(path, f"{where}, expression {exp_id}", body) for exp_id, body in expressions.items()},
    )


def _read_expression(path: Path, where: str, content: Any) -> _Expression:
    if is_negative(content, path, where):
        return _Expression(None, NEGATIVE)
    text = str(_entry(content, "obj_id", (str, int), path, where))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 254):
        raise UserError(f"{path}: {where} has the obj_id {text!r}; it must be the object's value in the masks, 1…254")
    kind = content.get("kind")
    return _Expression(int(text), None if kind is None else str(kind))


def _entry(content: Any, key: str, kind: type | tuple[type, ...], path: Path, where: str) -> Any:
    if not isinstance(content, dict) or not isinstance(content.get(key), kind):
        raise UserError(f"{path}: {where} has no valid '{key}'; the file must hold {_HOLDS}")
    return content[key]
