"""J and F over folders of masks, for every benchmark of whole videos.

- ``score_expressions``: Ref-YouTube-VOS and Long-RVOS, one folder of masks per expression, which refers to one object
  or to none.
- ``score_unions``: MeViS and ReVOS, the same, but an expression refers to any number of instances.
- ``score_davis``: the two tasks of DAVIS-2017. ``score_ref_davis``: both tasks for the four annotations of Ref-DAVIS17.

``video_metrics`` and ``video_counts`` turn any of their results into the entries of ``results.json``. J and F of one
frame are computed in ``util.metrics``. Videos are scored in parallel processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datasets.expressions import NEGATIVE, VideoEntry, expressions_paths, object_id, read_expressions
from datasets.files import and_more, decode_segmentation, require_folder, video_folders, visible
from datasets.predictions import LAYOUTS, read_binary_mask, read_index_mask, require_masks
from datasets.toy import STAMP as TOY_STAMP
from util.errors import UserError
from util.files import MAX_PIXELS, read_json
from util.metrics import (
    MAX_PROPOSALS,
    VOID,
    Shape,
    chosen_object,
    fixed_scores,
    matched_scores,
    motion,
    shape_scores,
    statistics,
    switch_rate,
    warped_j,
)
from util.parallel import map_videos
from util.text import normalise_sentence

MASK_FILE = "mask_dict.json"  # in the folder of a split of MeViS, and in the root of ReVOS
LONG_RVOS_TYPES = frozenset({"static", "dynamic", "hybrid"})
"""The kinds of sentences of Long-RVOS; a set that has no others is read and scored as Long-RVOS is."""
TEMPORAL = ("tIoU", "vIoU")
CONSISTENCY = ("TC", "IDSW")
REVOS_KINDS = ("referring", "reasoning")  # their means have equal weight in the score of ReVOS

DavisTask = Literal["semi-supervised", "unsupervised"]
SEMI_SUPERVISED: DavisTask = "semi-supervised"
UNSUPERVISED: DavisTask = "unsupervised"
TASKS = {"matched": UNSUPERVISED, "fixed": SEMI_SUPERVISED}  # of Ref-DAVIS17

_PRED_EXPRESSIONS = "the predictions, <video>/<exp_id>/<frame>.png"


# Ref-YouTube-VOS

OBJECTS_FILE = "meta_expressions_valid.json"
"""The authors' file with the sentences of every object of the validation videos; it lists no frames."""
PALETTE, PER_EXPRESSION, PER_OBJECT = (
    "palette masks",
    "a folder of masks per expression",
    "a folder of masks per object",
)
_NEEDED = (
    "set --expressions_file to a file with an obj_id for every expression (such as meta_expressions_challenge.json of "
    f"the published ground truth) or to the authors' {OBJECTS_FILE}"
)


class UnknownObjects(UserError):
    """Palette masks whose objects no expressions file names."""


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth of Ref-YouTube-VOS, or of a set in its layout. It can be pickled.

    Attributes:
        masks: the folder of ``<video>/``.
        layout: ``PALETTE``: ``<video>/<frame>.png``, value = object id. ``PER_EXPRESSION`` and ``PER_OBJECT``:
            ``<video>/<exp_id or obj_id>/<frame>.png``, 0 where the object is not; a missing file is an empty mask.
        videos: the scored videos, sorted by name.
        source: the files that the sentences and object ids are from, for the report.
        notes: sentences about videos that are left out.
        consistency: the metrics of temporal consistency that apply. ``TC`` needs objects that keep their shape before
            a background at rest, so that the masks show how they move, which only the toy benchmark has.
    """

    masks: Path
    layout: str
    videos: dict[str, VideoEntry]
    source: str
    notes: list[str]
    consistency: tuple[str, ...] = ("IDSW",)

    def __str__(self) -> str:
        return f"ground truth: {self.layout} in {self.masks}, {self.source}"

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the video and path of each mask file. In the two folder layouts, a missing file is an empty mask."""
        for name, video in self.videos.items():
            keys = sorted({str(key) for key in self.targets(name).values() if key is not None})
            for folder in [""] if self.layout == PALETTE else keys:
                yield from ((name, self.masks / name / folder / f"{frame}.png") for frame in video.frames)

    def targets(self, video: str) -> dict[str, Any]:
        """Return the key of each expression's mask in ``read``, which folders are named after; None for negatives."""
        by_expression = self.layout == PER_EXPRESSION
        return {
            exp_id: None if expression.negative else (exp_id if by_expression else expression.obj_id)
            for exp_id, expression in self.videos[video].expressions.items()
        }

    def read(self, video: str) -> Iterator[dict[Any, np.ndarray]]:
        """Yield target → mask, bool ``[H, W]``, for each frame of a video; of palette masks, all objects of the frame.

        Raises:
            UserError: a file is missing or broken, or differs in size.
        """
        keys, frames = sorted(set(self.targets(video).values()), key=str), self.videos[video].frames
        if self.layout == PALETTE:
            shape = None
            for frame in frames:
                ids = read_index_mask(self.masks / video / f"{frame}.png", shape)
                shape = ids.shape
                shown = {*np.unique(ids).tolist(), *keys} - {0, VOID}
                yield {key: np.zeros(shape, bool) if key is None else ids == key for key in sorted(shown, key=str)}
            return
        paths = (self.masks / video / str(key) / f"{frame}.png" for frame in frames for key in keys)
        first = next((path for path in paths if path.is_file()), None)
        if first is None:
            raise UserError(f"{self.masks / video} holds no mask of an expression's frame; extract the masks again")
        size = read_index_mask(first).shape
        for frame in frames:
            yield {key: self.read_mask(video, key, frame, size) for key in keys}

    def read_mask(self, video: str, key: Any, frame: str, size: tuple[int, int]) -> np.ndarray:
        """Return the mask of a target in one frame, bool ``[H, W]``.

        Raises:
            UserError: the file is missing (of palette masks) or broken, or has a different size.
        """
        if self.layout == PALETTE:
            return read_index_mask(self.masks / video / f"{frame}.png", size) == key
        path = self.masks / video / str(key) / f"{frame}.png"
        return read_index_mask(path, size) != 0 if path.is_file() else np.zeros(size, bool)


def find_ground_truth(gt: Path, expressions: Path | None = None) -> GroundTruth:
    """Find out how the ground truth of Ref-YouTube-VOS is stored, and where its sentences and object ids are.

    Videos of the expressions file without a folder in ``gt`` are left out, because the file of the challenge also lists
    the test videos.

    Args:
        gt: ``<root>/<split>/Annotations``.
        expressions: an expressions file, or ``OBJECTS_FILE``, whose sentences must then be those of the expressions
            file, in the same order; None: the first of ``expressions_paths`` with all object ids, or else the first
            that exists.

    Raises:
        UserError: masks, sentences or object ids are missing, or do not belong together.
    """
    masks = video_folders(require_folder(gt, "the ground truth, a folder per video"))
    root, split = split_of(gt)
    objects = expressions if expressions and lists_objects(expressions) else None
    if expressions and not objects:
        paths = [expressions]
    else:
        paths = expressions_paths(root, split)
        # Some copies of meta_expressions_challenge.json may have the form of OBJECTS_FILE; they are used as such.
        paths = [path for path in paths if path.is_file() and not lists_objects(path)] or paths[:1]
    if not paths[0].is_file():
        raise UserError(
            f"{paths[0]} is missing; put meta_expressions_challenge.json of the published ground truth into "
            f"{root / split}, or set --expressions_file"
        )
    present = {folder.name for folder in visible(masks.iterdir()) if folder.is_dir()}
    found = [(path, *_choose_videos(path, present, masks)) for path in paths]
    path, videos, notes = next((row for row in found if not _first_unknown(row[1])), found[0])
    source = f"sentences of {path}"
    layout = find_layout(videos, masks)
    if layout == PALETTE:
        if objects is None and _first_unknown(videos):
            places = [*expressions_paths(root, split), *(f / OBJECTS_FILE for f in (root / split, path.parent, root))]
            objects = next((place for place in places if lists_objects(place)), None)
        if objects is not None:
            videos = _with_objects(videos, path, objects)
            source = f"object ids of {objects}, sentences of {path} in the same order"
        if unknown := _first_unknown(videos):
            raise UnknownObjects(f"{path}: {unknown} has no 'obj_id'; {_NEEDED}")
    if not any(not e.negative for video in videos.values() for e in video.expressions.values()):
        raise UserError(f"{path}: no expression refers to an object, so there is no J and F; {_NEEDED}")
    toy = layout == PALETTE and (root / TOY_STAMP).is_file()
    return GroundTruth(masks, layout, videos, source, notes, CONSISTENCY if toy else ("IDSW",))


def split_of(gt: Path) -> tuple[Path, str]:
    """Return the dataset's folder and the split of ``<root>/<split>/Annotations``; other folders count as valid."""
    split = gt.absolute().parent
    return split.parent, split.name if split.name in ("train", "valid", "test") else "valid"


def lists_objects(path: Path) -> bool:
    """Return whether a file has the form of ``OBJECTS_FILE``, and not that of an expressions file."""
    return any("objects" in video and "expressions" not in video for video in _object_lists(path).values())


def _object_lists(path: Path) -> dict[str, Any]:
    """Return the videos of a file in the form of ``OBJECTS_FILE``; other values are left out."""
    content = read_json(path, "the sentences of the validation videos") if path.is_file() else {}
    videos = content.get("videos", content) if isinstance(content, dict) else {}
    return (
        {name: video for name, video in videos.items() if isinstance(video, dict)} if isinstance(videos, dict) else {}
    )


def _with_objects(videos: Mapping[str, VideoEntry], path: Path, objects_path: Path) -> dict[str, VideoEntry]:
    """Add the object ids of ``OBJECTS_FILE`` to expressions that have none, by the order of the sentences.

    Raises:
        UserError: the sentences differ, or an object id is not a mask value.
    """
    listed, result = _object_lists(objects_path), {}
    for name, video in videos.items():
        objects = listed.get(name, {}).get("objects")
        if not isinstance(objects, dict):
            raise UserError(f"{objects_path} has no objects of video {name!r}, which {path} lists")
        try:
            pairs = [(text, object_id(obj_id)) for obj_id, entry in objects.items() for text in entry["expressions"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{objects_path}: video {name!r} should have a list of sentences, 'expressions', for every object id "
                "from 1 to 254"
            ) from error
        expressions = {}
        for number, (exp_id, expression) in enumerate(video.expressions.items()):
            text, obj_id = pairs[number] if number < len(pairs) else (None, 0)
            if not isinstance(text, str) or normalise_sentence(text) != expression.caption:
                other = "no sentence" if text is None else repr(text)
                raise UserError(
                    f"expression {exp_id!r} of video {name!r} is {expression.sentence!r} in {path}, and {objects_path} "
                    f"has {other} in its place; take both files from one release"
                )
            expressions[exp_id] = replace(expression, obj_id=obj_id)
        if len(pairs) > len(expressions):
            raise UserError(
                f"{objects_path} has {len(pairs)} sentences of video {name!r}, and {path} has {len(expressions)}; take "
                "both files from one release"
            )
        result[name] = replace(video, expressions=expressions)
    return result


def is_long_rvos(videos: Mapping[str, VideoEntry]) -> bool:
    """Return whether the expressions have kinds, and all of them are those of Long-RVOS."""
    return {e.kind for video in videos.values() for e in video.expressions.values()} <= LONG_RVOS_TYPES


def find_layout(videos: Mapping[str, VideoEntry], masks: Path) -> str:
    """Return how the masks of videos are stored, by the folders inside of the videos' folders and their names.

    Long-RVOS has a folder per object. Its files and folders of objects that are never visible may be missing.

    Raises:
        UserError: an expression has no folder.
    """
    inner = {}
    for name in (name for name in videos if (masks / name).is_dir()):
        with os.scandir(masks / name) as entries:
            inner[name] = {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    if not any(inner.values()):
        return PALETTE
    if is_long_rvos(videos):
        return PER_OBJECT
    named = [
        (name, exp_id, expression)
        for name, video in videos.items()
        for exp_id, expression in video.expressions.items()
        if not expression.negative
    ]
    missing = [f"{name}/{exp_id}" for name, exp_id, _ in named if exp_id not in inner[name]]
    if not missing:
        return PER_EXPRESSION
    objects: dict[str, set[str]] = {name: set() for name in videos}
    for name, _, expression in named:
        objects[name].add(str(expression.obj_id))
    if objects == inner:
        return PER_OBJECT
    raise UserError(
        f"folder {masks / missing[0]}, the masks of an expression, is missing{and_more(missing)}; extract the masks "
        "again"
    )


def _first_unknown(videos: Mapping[str, VideoEntry]) -> str:
    """Return the place of the first expression whose object is unknown; empty if there is none."""
    unknown = (
        f"expression {exp_id!r} of video {name!r}"
        for name, video in videos.items()
        for exp_id, expression in video.expressions.items()
        if expression.obj_id is None and not expression.negative
    )
    return next(unknown, "")


def _choose_videos(path: Path, present: set[str], masks: Path) -> tuple[dict[str, VideoEntry], list[str]]:
    """Return the videos to score, sorted by name, and notes about those left out."""
    listed = read_expressions(path, "valid")
    videos = {name: listed[name] for name in sorted(listed) if name in present}
    if not videos:
        raise UserError(
            f"none of the {len(listed)} videos of {path} has a folder in {masks}; "
            "give the folder of masks that belongs to these expressions"
        )
    for name, video in videos.items():
        if not video.expressions:
            raise UserError(f"{path}: video {name!r} has no expressions, so there is nothing to score; remove it")
    notes = []
    if len(videos) < len(listed):
        absent = len(listed) - len(videos)
        notes.append(f"{absent} of the {len(listed)} videos of {path} have no folder in {masks} and are left out")
    if len(videos) < len(present):
        notes.append(f"{len(present) - len(videos)} folders of {masks} are not in {path} and are left out")
    return videos, notes


def score_expressions(ground_truth: GroundTruth, pred: Path, workers: int = 1) -> dict[str, Any]:
    """Compute J and F of every expression over all frames of its video, and their means over expressions.

    A negative (an expression that refers to nothing) scores 1 in a frame where its mask is empty, else 0. It counts
    only in the means of its kind.

    Args:
        ground_truth: the ground truth, see ``find_ground_truth``.
        pred: folder of ``<video>/<exp_id>/<frame>.png``, 8-bit PNGs of 0 and 255, or 1-bit PNGs.

    Returns:
        Ready for JSON, all scores 0…1, ``JF`` is the mean of J and F:

        - ``per_expression``: ``<video>/<exp_id>`` → ``J F JF IDSW obj_id`` (and ``kind``). ``IDSW`` is the share of
          frames in which the object that the mask overlaps most changes. On the toy benchmark, all rows also have
          ``TC``, the mean J of a frame's mask against the previous one, warped by the known motion; of Long-RVOS,
          ``tIoU``, the share of the frames with an object or a prediction that have both, and ``vIoU``, the sum of J
          over the frames with both, divided by the number of frames with either; 1 if no frame has any
        - ``per_video``, ``per_kind``: name → ``J F JF IDSW expressions``, means and the number of expressions; a video
          with negatives only has no row
        - ``global``: ``J F JF IDSW``, means over all expressions except negatives; with negatives also
          ``negative_accuracy``, the share of them whose masks are all empty
        - ``notes``: sentences that explain the scores, for example about videos left out

    Raises:
        UserError: a folder or file is missing, an image is broken or has a wrong size, or a prediction has other values
            than 0 and 255.
    """
    require_folder(pred, _PRED_EXPRESSIONS)
    require_masks(
        pred / name / exp_id / f"{frame}.png"
        for name, video in ground_truth.videos.items()
        for frame in video.frames
        for exp_id in video.expressions
    )
    if ground_truth.layout == PALETTE:
        require_masks(path for _, path in ground_truth.files())
    results = map_videos(
        partial(_score_video, ground_truth=ground_truth, pred=pred), list(ground_truth.videos), workers
    )

    metrics = ("J", "F", *(TEMPORAL if is_long_rvos(ground_truth.videos) else ()), *ground_truth.consistency)
    per_expression: dict[str, dict[str, Any]] = {}
    per_video = {}
    invisible = []
    for (name, video), (scores, visible_targets) in zip(ground_truth.videos.items(), results, strict=True):
        targets = ground_truth.targets(name)
        for number, (exp_id, expression) in enumerate(video.expressions.items()):
            kind = {} if expression.kind is None else {"kind": expression.kind}
            row = _row({metric: scores[metric][number] for metric in metrics})
            per_expression[f"{name}/{exp_id}"] = {**row, "obj_id": expression.obj_id, **kind}
            if targets[exp_id] is not None and targets[exp_id] not in visible_targets:
                invisible.append(f"{name}/{exp_id}")
        if rows := _with_object(per_expression[f"{name}/{exp_id}"] for exp_id in video.expressions):
            per_video[name] = _counted_mean_scores(rows)
    notes = [*ground_truth.notes]
    if invisible:
        notes.append(
            f"the objects of {len(invisible)} expressions (first {invisible[0]}) are in no frame of "
            f"{ground_truth.masks}; is their obj_id right?"
        )
    means = _mean_scores(_with_object(per_expression.values()))
    if negatives := [row for row in per_expression.values() if row.get("kind") == NEGATIVE]:
        means["negative_accuracy"] = float(np.mean([row["JF"] == 1 for row in negatives]))
    return {
        "task": "expressions",
        "notes": notes,
        "global": means,
        "per_kind": _by_kind(per_expression.values()),
        "per_video": per_video,
        "per_expression": per_expression,
    }


def _score_video(name: str, ground_truth: GroundTruth, pred: Path) -> tuple[dict[str, np.ndarray], set[Any]]:
    """Return the scores of a video, see ``_score_masks``, and the targets that are visible in any frame."""
    seen: set[Any] = set()

    def masks() -> Iterator[dict[Any, np.ndarray]]:
        for found in ground_truth.read(name):
            seen.update(target for target, mask in found.items() if target not in seen and mask.any())
            yield found

    video, targets = ground_truth.videos[name], ground_truth.targets(name)
    return _score_masks(pred / name, video.frames, targets, masks(), consistency=ground_truth.consistency), seen


def _score_masks(
    pred: Path,
    frames: Sequence[str],
    targets: Mapping[str, Any],
    ground_truth: Iterable[Mapping[Any, np.ndarray]],
    foreground: Sequence[int] | None = None,
    consistency: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Score the expressions of one video.

    Args:
        pred: folder of ``<exp_id>/<frame>.png``.
        targets: expression id → key of its target in ``ground_truth``; None marks a negative of Ref-YouTube-VOS.
        ground_truth: for each frame, target → mask, bool ``[H, W]``; for ``consistency``, of all objects.
        foreground: pixels of all objects of the video in each frame, for the robustness of ReVOS.
        consistency: the metrics of temporal consistency to compute, some of ``CONSISTENCY``.

    Returns:
        ``J``, ``F``, ``tIoU``, ``vIoU``, those of ``consistency``, and with ``foreground`` also ``R``: float64
        ``[expressions]``; ``predicted``, whether anything is predicted in any frame: bool ``[expressions]``.
    """
    scores, robust = [], []  # [T][expressions] of (J, F, in ground truth, in prediction), and of R
    chosen: dict[str, list[Any]] = {exp_id: [] for exp_id in targets}
    warped: dict[str, list[float]] = {exp_id: [] for exp_id in targets}
    last_ids: np.ndarray | None = None
    last_masks: dict[str, np.ndarray] = {}
    flow: tuple[np.ndarray, np.ndarray] | None = None
    for number, (frame, masks) in enumerate(zip(frames, ground_truth, strict=True)):
        shapes = {target: Shape.of(masks[target]) for target in set(targets.values())}
        row = []
        if "TC" in consistency:
            ids = np.zeros(next(iter(masks.values())).shape, np.uint8)
            for obj_id, mask in masks.items():
                ids[mask] = obj_id or 0
            if last_ids is not None:
                flow = motion(last_ids, ids)
            last_ids = ids
        for exp_id, target in targets.items():
            mask = read_binary_mask(pred / exp_id / f"{frame}.png", masks[target].shape)
            guess = Shape.of(mask)
            # A full-frame mask has no boundary, so the F of a negative would be 1.
            pair = shape_scores(shapes[target], guess) if target is not None else (not guess.area,) * 2
            row.append((*pair, shapes[target].area > 0, guess.area > 0))
            if "IDSW" in consistency:
                chosen[exp_id].append(chosen_object(guess, masks))
            if "TC" in consistency:
                if flow is not None:
                    warped[exp_id].append(warped_j(last_masks[exp_id], mask, *flow))
                last_masks[exp_id] = mask
            if foreground is not None:
                robust.append(robustness(int((mask & ~masks[target]).sum()), foreground[number]))
        scores.append(row)
    j, f, shown, guessed = np.moveaxis(np.array(scores, float), -1, 0)  # each [T, expressions]
    both = (shown * guessed).astype(bool)
    either = np.maximum(shown, guessed).sum(axis=0)
    temporal = {
        name: np.divide(np.where(both, values, 0).sum(axis=0), either, out=np.ones(len(targets)), where=either > 0)
        for name, values in zip(TEMPORAL, (1, j), strict=True)
    }
    means = {"J": j.mean(axis=0), "F": f.mean(axis=0), **temporal}
    if "IDSW" in consistency:
        means["IDSW"] = np.array([switch_rate(objects) for objects in chosen.values()])
    if "TC" in consistency:
        means["TC"] = np.array([np.mean(values or [1.0]) for values in warped.values()])
    if foreground is not None:
        means["R"] = np.reshape(robust, j.shape).mean(axis=0)
    return {**means, "predicted": guessed.any(axis=0)}


def robustness(wrong: int, foreground: int) -> float:
    """Return R of one frame, 0…1: 1 − wrongly predicted pixels / pixels of all objects, and 0 below that."""
    return max(0.0, 1 - wrong / (foreground + 1e-6))  # the constant is that of the published code


def _row(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return scores, among them J and F, as plain numbers, with the mean of J and F."""
    return {**{name: float(value) for name, value in scores.items()}, "JF": float(scores["J"] + scores["F"]) / 2}


def _with_object(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row.get("kind") != NEGATIVE]


def _mean_scores(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    names = [name for name in ("J", "F", *TEMPORAL, "R", *CONSISTENCY) if name in rows[0]]
    return _row(dict(zip(names, np.mean([[row[name] for name in names] for row in rows], axis=0), strict=True)))


def _by_kind(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the means of every kind, sorted by name."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "kind" in row:
            groups.setdefault(row["kind"], []).append(row)
    return {kind: _counted_mean_scores(group) for kind, group in sorted(groups.items())}


def _counted_mean_scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {**_mean_scores(rows), "expressions": len(rows)}


# MeViS and ReVOS


def unite(segmentations: Mapping[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    """Return the union of instances in one frame, bool ``[H, W]``.

    Args:
        segmentations: run lengths by instance; None if it is not visible.
        size: (H, W).
        where: the file and the frame, for messages.

    Raises:
        UserError: run lengths are damaged or have a different size.
    """
    mask = np.zeros(size, dtype=bool)
    for instance, segmentation in segmentations.items():
        if segmentation is not None:
            mask |= decode_segmentation(segmentation, *size, f"{where}, instance {instance}")
    return mask


@dataclass(frozen=True)
class ScoredVideo:
    """A video and its ground truth, as ``score_unions`` scores it. It can be pickled."""

    name: str
    frames: list[str]
    targets: dict[str, tuple[str, ...]]  # expression id → the ids of its instances, sorted
    masks: dict[str, list[Any]]  # instance → run lengths, or None, for each frame
    where: Path  # the file of the masks, for messages
    kinds: dict[str, str | None]  # expression id → its kind; None if the file has none
    foreground: list[Any] | None = None  # run lengths of all objects for each frame (ReVOS)

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the first mask that states it; None if none does, because no instance is ever visible."""
        for mask in chain.from_iterable(self.masks.values()):
            match mask:
                case {"size": [int(height), int(width)]} if min(height, width) > 0 and height * width <= MAX_PIXELS:
                    return height, width
        return None

    def ground_truth(self, frame: int, size: tuple[int, int]) -> dict[tuple[str, ...], np.ndarray]:
        """Return the union, bool ``[H, W]``, of every distinct target in a frame.

        Raises:
            UserError: run lengths are damaged or have a different size.
        """
        where = f"{self.where}, frame {frame} of video {self.name!r}"
        return {
            target: unite({instance: self.masks[instance][frame] for instance in target}, size, where)
            for target in set(self.targets.values())
        }


def score_unions(videos: Sequence[ScoredVideo], pred: Path, version: str, workers: int = 1) -> dict[str, Any]:
    """Compute J and F of every expression over all frames of its video, and their means over expressions.

    In a frame where ground truth and prediction are both empty, J and F are 1. Expressions that refer to nothing count
    like others; their ground truth is empty in every frame.

    Args:
        pred: folder of ``<video>/<exp_id>/<frame>.png``, 8-bit PNGs of 0 and 255.
        version: of the dataset; the same video and expression id can be a different sentence in another version. Of
            ReVOS, it is "revos".

    Returns:
        Ready for JSON, all scores 0…1, ``JF`` is the mean of J and F. If the videos have a ``foreground``, all rows
        also have ``R``, the mean over frames of ``robustness``:

        - ``per_expression``: ``<version>/<video>/<exp_id>`` → ``J F JF``, ``target``, whether it refers to anything,
          and ``predicted``, whether any frame has a mask (and ``kind``)
        - ``per_video``: name → ``J F JF expressions``, means and the number of expressions
        - ``global``: ``J F JF``, means over all expressions; of version 2 also ``final``, the mean of ``JF`` and the
          two accuracies below; of ReVOS, the mean of the rows of referring and reasoning expressions
        - ``per_kind``: kind → ``J F JF expressions``; empty if expressions have no kinds
        - ``with_target``, ``without_target`` (if there are such expressions): ``J F JF expressions`` and ``accuracy``:
          the share of them with a mask in any frame (T-acc), or without one in every frame (N-acc)

    Raises:
        UserError: a folder or file is missing, an image is broken or has a wrong size, or a prediction has other values
            than 0 and 255.
    """
    require_folder(pred, _PRED_EXPRESSIONS)
    if not videos:
        raise UserError("there is no expression to score; the dataset's list of expressions is empty")
    require_masks(
        pred / video.name / exp_id / f"{frame}.png"
        for video in videos
        for exp_id in video.targets
        for frame in video.frames
    )
    results = map_videos(partial(_score_union_video, pred=pred), videos, workers)
    by_video = {
        video.name: {
            exp_id: {
                **_row({name: result[name][number] for name in ("J", "F", "R") if name in result}),
                "target": bool(target),
                "predicted": bool(result["predicted"][number]),
                **({} if video.kinds[exp_id] is None else {"kind": video.kinds[exp_id]}),
            }
            for number, (exp_id, target) in enumerate(video.targets.items())
        }
        for video, result in zip(videos, results, strict=True)
    }
    rows = [row for result in by_video.values() for row in result.values()]
    per_kind = _by_kind(rows)
    balanced = [per_kind[kind] for kind in REVOS_KINDS if kind in per_kind]
    scores: dict[str, Any] = {
        "task": "mevis",
        "version": version,
        "notes": [],
        "global": _mean_scores(balanced or rows),
        "per_kind": per_kind,
        "per_video": {name: _counted_mean_scores(list(result.values())) for name, result in by_video.items()},
        "per_expression": {
            f"{version}/{name}/{exp_id}": row for name, result in by_video.items() for exp_id, row in result.items()
        },
    }
    for key, has_target in (("with_target", True), ("without_target", False)):
        if part := [row for row in rows if row["target"] == has_target]:
            accuracy = float(np.mean([row["predicted"] == has_target for row in part]))
            scores[key] = {**_counted_mean_scores(part), "accuracy": accuracy}
    if version == "v2" and "with_target" in scores and "without_target" in scores:
        accuracies = [scores[key]["accuracy"] for key in ("without_target", "with_target")]
        scores["global"]["final"] = float(np.mean([scores["global"]["JF"], *accuracies]))
    return scores


def _score_union_video(video: ScoredVideo, pred: Path) -> dict[str, np.ndarray]:
    """Score a video; see ``_score_masks``."""
    size = video.size
    if size is None:
        height, width = read_binary_mask(pred / video.name / next(iter(video.targets)) / f"{video.frames[0]}.png").shape
        size = (height, width)
    masks = (video.ground_truth(number, size) for number in range(len(video.frames)))
    areas = None
    if video.foreground is not None:
        where = f"the foreground of video {video.name!r}, beside {video.where}"
        areas = [int(unite({"all": runs}, size, where).sum()) for runs in video.foreground]
    return _score_masks(pred / video.name, video.frames, video.targets, masks, areas)


# DAVIS and Ref-DAVIS17


def score_davis(
    gt: Path, pred: Path, task: DavisTask, sequences: Sequence[str] | None = None, workers: int = 1
) -> dict[str, Any]:
    """Compute J and F as the official DAVIS-2017 evaluation does.

    Semi-supervised: identities are fixed, the first and the last frame are left out, 255 in the ground truth is
    background. Unsupervised: all frames, 255 is void, up to 20 proposals per sequence are matched to the objects. The
    objects are ids 1…max of the first ground-truth frame; one without a prediction scores against an empty mask.

    Args:
        gt: folder of ``<sequence>/<frame>.png``, palette PNGs whose value is the object id.
        pred: folder of the same layout; the value is the id of the object or proposal.
        sequences: names of the sequences to score; None: every folder in ``gt``.

    Returns:
        Ready for JSON, all scores 0…1 (decay −1…1), objects named by ground-truth id:

        - ``per_object``: ``<sequence>_<id>`` → ``JM JR JD FM FR FD`` (mean, recall, decay)
        - ``per_frame``: sequence → ``J``, ``F``, lists ``[objects][frames]`` in the order of ids
        - ``global``: the means of ``per_object`` over all objects, and ``J&F``
        - ``assignment`` (unsupervised): sequence → the id of the matched proposal per object, or null

    Raises:
        UserError: a folder or file is missing, an image is broken, has a wrong size or too high an id.
    """
    (scores,) = _score_runs(gt, [_Run(pred, task)], sequences, workers)
    return scores


def score_ref_davis(gt: Path, pred: Path, sequences: Sequence[str] | None = None, workers: int = 1) -> dict[str, Any]:
    """Compute J and F of Ref-DAVIS17 for each of the four annotations, and their mean.

    ``matched``, the benchmark's own score, follows the unsupervised task of DAVIS-2017. Matching hides swapped objects,
    so ``fixed`` adds the semi-supervised task. In both, the objects are those of a sequence's first frame. The
    prediction for an object that appears later is a proposal like any other in ``matched`` and is ignored in ``fixed``.

    Args:
        gt: folder of ``<sequence>/<frame>.png``, palette PNGs whose value is the object id.
        pred: folder of ``anno_<a>/<sequence>/<frame>.png`` of the same kind, a = 0…3.
        sequences: names of the sequences to score; None: every folder in ``gt``.

    Returns:
        Ready for JSON, all scores 0…1 (decay −1…1), for ``matched`` and ``fixed`` each:

        - ``mean``: the means of the rows of ``annotations``
        - ``annotations``: four rows of ``J&F JM JR JD FM FR FD``, over all objects
        - ``details``: the result of ``score_davis`` for each annotation

    Raises:
        UserError: a folder or file is missing, an image is broken, has a wrong size or too high an id.
    """
    require_folder(pred, "the predictions, anno_<a>/<sequence>/<frame>.png")
    roots = LAYOUTS["davis"].roots
    runs = [_Run(pred / root, task, strict=False) for task in TASKS.values() for root in roots]
    scores = _score_runs(gt, runs, sequences, workers)
    report: dict[str, Any] = {"task": "ref-davis"}
    for i, name in enumerate(TASKS):
        details = scores[i * len(roots) : (i + 1) * len(roots)]
        rows = [detail["global"] for detail in details]
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        report[name] = {"mean": mean, "annotations": rows, "details": details}
    return report


def mean_over_objects(objects: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the means of ``JM JR JD FM FR FD`` over objects, and ``J&F``, the mean of the mean J and F."""
    means = {key: float(np.mean([row[key] for row in objects])) for key in objects[0]}
    return {"J&F": (means["JM"] + means["FM"]) / 2, **means}


@dataclass(frozen=True)
class _Run:
    """A folder of predictions and the task by which it is scored."""

    pred: Path
    task: DavisTask
    strict: bool = True  # with fixed identities, refuse ids that no object has; otherwise ignore them

    def scored(self, files: list[str]) -> list[str]:
        """Return the frames that count, of all frames of a sequence."""
        return files[1:-1] if self.task == SEMI_SUPERVISED else files


_Job = tuple[_Run, str, list[str]]  # the run, the name of a sequence and all its frames
_Result = tuple[np.ndarray, np.ndarray, list[int | None]]  # J and F [objects, T], and the matched proposals


def _score_runs(gt: Path, runs: Sequence[_Run], sequences: Sequence[str] | None, workers: int) -> list[dict[str, Any]]:
    """Score several folders of predictions for the same sequences, with one pool of processes."""
    require_folder(gt, "the ground truth, <sequence>/<frame>.png")
    for run in runs:
        require_folder(run.pred, "the predictions, <sequence>/<frame>.png")
    names = sequences or sorted(path.name for path in gt.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{gt} holds no folder; it must hold <sequence>/<frame>.png, the ground truth")
    jobs = [(run, name, _frames(gt / name, run)) for run in runs for name in names]
    require_masks(run.pred / name / file for run, name, files in jobs for file in run.scored(files))
    results = map_videos(partial(_score_sequence, gt=gt), jobs, workers)
    return [
        _report(run.task, dict(zip(names, results[i * len(names) : (i + 1) * len(names)], strict=True)))
        for i, run in enumerate(runs)
    ]


def _frames(folder: Path, run: _Run) -> list[str]:
    """Return the file names of a sequence's ground truth, in order."""
    require_folder(folder, "the ground truth of the sequence, <frame>.png")
    names = sorted(path.name for path in folder.glob("*.png") if not path.name.startswith("."))
    if not run.scored(names):
        least = 3 if run.task == SEMI_SUPERVISED else 1
        raise UserError(f"{folder} holds {len(names)} PNG files; the {run.task} task needs at least {least}")
    return names


def _score_sequence(job: _Job, gt: Path) -> _Result:
    run, name, files = job
    first = read_index_mask(gt / name / files[0])
    objects = int(np.where(first == VOID, 0, first).max())
    if not objects:
        raise UserError(f"{gt / name / files[0]} shows no object; the first frame determines the objects of a sequence")
    highest, rule = MAX_PROPOSALS, f"the task allows {MAX_PROPOSALS} proposals"
    if run.task == SEMI_SUPERVISED:
        highest, rule = objects if run.strict else VOID, f"the sequence has {objects} objects"

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for file in run.scored(files):
            ground_truth = read_index_mask(gt / name / file)
            path = run.pred / name / file
            prediction = read_index_mask(path, ground_truth.shape)
            if prediction.max() > highest:
                raise UserError(f"{path} holds the id {prediction.max()}, but {rule}; write ids 1…{highest} only")
            yield ground_truth, prediction

    return matched_scores(pairs(), objects) if run.task == UNSUPERVISED else (*fixed_scores(pairs(), objects), [])


def _report(task: DavisTask, results: dict[str, _Result]) -> dict[str, Any]:
    """Build the result of ``score_davis``."""
    per_object = {
        f"{name}_{number}": {
            f"{letter}{key}": value
            for letter, values in (("J", j), ("F", f))
            for key, value in zip("MRD", statistics(values), strict=True)
        }
        for name, (all_j, all_f, _) in results.items()
        for number, (j, f) in enumerate(zip(all_j, all_f, strict=True), start=1)
    }
    scores: dict[str, Any] = {
        "task": task,
        "global": mean_over_objects(list(per_object.values())),
        "per_object": per_object,
        "per_frame": {name: {"J": j.tolist(), "F": f.tolist()} for name, (j, f, _) in results.items()},
    }
    if task == UNSUPERVISED:
        scores["assignment"] = {name: proposals for name, (_, _, proposals) in results.items()}
    return scores


# results.json

_KEYS = {"J&F": "JF", "J": "J", "F": "F", "tIoU": "tIoU", "vIoU": "vIoU", "R": "R", "TC": "TC", "IDSW": "IDSW"}
_DAVIS_KEYS = {"J&F": "J&F", "J": "JM", "F": "FM", "J_recall": "JR", "F_recall": "FR", "J_decay": "JD", "F_decay": "FD"}


def video_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """Return the metrics, 0…100 (decay −100…100), of a set of videos.

    ``J&F``, ``J`` and ``F`` are the benchmark's own, and of Long-RVOS ``tIoU`` and ``vIoU``, of ReVOS ``R``. ``IDSW``
    and, on the toy benchmark, ``TC`` are those of ``score_expressions``. Sets with kinds of sentences add
    ``kind.<kind>.J&F``…; Ref-YouTube-VOS ``negative_accuracy``; MeViS and ReVOS ``with_target.J&F``… and
    ``without_target.J&F``…; MeViS version 2 ``N-acc``, ``T-acc`` and ``Final``; Ref-DAVIS17 ``matched.J&F``…,
    ``fixed.J&F``… and the same of each annotation, ``matched.anno_0.J&F``….

    Args:
        scores: result of ``score_expressions``, ``score_unions`` or ``score_ref_davis``.
    """
    if scores["task"] == "ref-davis":
        mean = scores["matched"]["mean"]
        metrics = {name: mean[_DAVIS_KEYS[name]] for name in ("J&F", "J", "F")}
        for task in TASKS:
            rows = {task: scores[task]["mean"]}
            rows |= {f"{task}.anno_{number}": row for number, row in enumerate(scores[task]["annotations"])}
            metrics |= {f"{label}.{name}": row[key] for label, row in rows.items() for name, key in _DAVIS_KEYS.items()}
    else:
        rows = {"": scores["global"]}
        rows |= {f"{part}.": scores[part] for part in ("with_target", "without_target") if part in scores}
        rows |= {f"kind.{kind}.": row for kind, row in scores.get("per_kind", {}).items()}
        metrics = {
            f"{prefix}{name}": row[key] for prefix, row in rows.items() for name, key in _KEYS.items() if key in row
        }
        if "negative_accuracy" in scores["global"]:
            metrics["negative_accuracy"] = scores["global"]["negative_accuracy"]
        if "final" in scores["global"]:
            metrics |= {"N-acc": scores["without_target"]["accuracy"], "T-acc": scores["with_target"]["accuracy"]}
            metrics["Final"] = scores["global"]["final"]
    return {name: 100 * value for name, value in metrics.items()}


def video_counts(scores: dict[str, Any]) -> dict[str, int]:
    """Return the number of videos, and of expressions or (Ref-DAVIS17) objects; arguments as for ``video_metrics``."""
    if scores["task"] == "ref-davis":
        detail = scores["matched"]["details"][0]
        return {"videos": len(detail["per_frame"]), "objects": len(detail["per_object"]), "annotations": 4}
    names = [name.rpartition("/")[0] for name in scores["per_expression"]]
    return {"videos": len(set(names)), "expressions": len(names)}
