"""Scores of one mask folder per expression where an expression names any number of instances, or none (MeViS)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from util.errors import UserError
from util.jf_expressions import counted_mean_scores, mean_scores
from util.mask_files import read_binary_mask, require_folder, require_masks
from util.metrics import Shape, shape_scores
from util.parallel import map_videos

MASK_FILE = "mask_dict.json"  # in the folder of a split of MeViS


class UnionVideo(Protocol):
    """What is needed of a video and its truth; it must be picklable."""

    @property
    def name(self) -> str:
        """Its folder's name."""

    @property
    def frames(self) -> Sequence[str]:
        """Frame names, in order of time."""

    @property
    def targets(self) -> Mapping[str, Hashable]:
        """Expression id → what it names; false where it names nothing. Expressions may share a target."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of its masks; None where none says so."""

    def truths(self, frame: int, size: tuple[int, int]) -> Mapping[Any, np.ndarray]:
        """The mask, bool ``[H, W]``, of every target in a frame of that size.

        Raises:
            UserError: the truth is damaged, or of another size.
        """


def score_unions(videos: Sequence[UnionVideo], pred: Path, version: str, workers: int = 1) -> dict[str, Any]:
    """J and F of every expression over all its video's frames, and their means over expressions.

    In a frame where neither truth nor prediction has a pixel, both are 1. Sentences that name nothing are expressions
    like others, whose truth is empty in every frame.

    Args:
        videos: with their truth.
        pred: folder of ``<video>/<exp_id>/<frame>.png``, 8-bit PNGs of 0 and 255.
        version: of the dataset; the same video and expression id can be another sentence in another version.
        workers: processes.

    Returns:
        Ready for JSON, every score 0…1, ``JF`` the mean of J and F:

        - ``per_expression``: ``<version>/<video>/<exp_id>`` → ``J F JF`` and ``target``, whether it names anything
        - ``per_video``: name → ``J F JF``, means over its ``expressions`` (a number)
        - ``global``: ``J F JF``, the means over all expressions
        - ``with_target``, ``without_target`` (where there are such): the same over those ``expressions``; without
          target also ``accuracy``, the share of them whose masks are all empty

    Raises:
        UserError: a missing folder or file, a broken image, a wrong size, a prediction that is not of 0 and 255.
    """
    require_folder(pred, "the predictions, <video>/<exp_id>/<frame>.png")
    if not videos:
        raise UserError("there is no expression to score; the dataset's list of expressions is empty")
    require_masks(
        _path(pred, video, exp_id, frame) for video in videos for exp_id in video.targets for frame in video.frames
    )
    results = map_videos(partial(_score_video, pred=pred), videos, workers)
    rows = [row for result in results for row in result.values()]
    scores: dict[str, Any] = {
        "task": "mevis",
        "version": version,
        "notes": [],
        "global": mean_scores(rows),
        "per_video": {
            video.name: counted_mean_scores(list(result.values()))
            for video, result in zip(videos, results, strict=True)
        },
        "per_expression": {
            f"{version}/{video.name}/{exp_id}": row
            for video, result in zip(videos, results, strict=True)
            for exp_id, row in result.items()
        },
    }
    named, unnamed = [row for row in rows if row["target"]], [row for row in rows if not row["target"]]
    if named:
        scores["with_target"] = counted_mean_scores(named)
    if unnamed:
        accuracy = float(np.mean([row["J"] == 1 for row in unnamed]))
        scores["without_target"] = {**counted_mean_scores(unnamed), "accuracy": accuracy}
    return scores


def _path(pred: Path, video: UnionVideo, exp_id: str, frame: str) -> Path:
    return pred / video.name / exp_id / f"{frame}.png"


def _score_video(video: UnionVideo, pred: Path) -> dict[str, dict[str, Any]]:
    """Scores by expression."""
    scores, size = [], video.size  # [T][expressions] of (J, F)
    for number, frame in enumerate(video.frames):
        guesses = []
        for exp_id in video.targets:
            guess = read_binary_mask(_path(pred, video, exp_id, frame), size)
            size = (guess.shape[0], guess.shape[1])
            guesses.append(guess)
        assert size is not None, "a video has expressions"
        truths = {target: Shape.of(mask) for target, mask in video.truths(number, size).items()}
        scores.append(
            [
                shape_scores(truths[target], Shape.of(guess))
                for target, guess in zip(video.targets.values(), guesses, strict=True)
            ]
        )
    return {
        exp_id: {"J": float(j), "F": float(f), "JF": float(j + f) / 2, "target": bool(target)}
        for (exp_id, target), (j, f) in zip(video.targets.items(), np.mean(scores, axis=0), strict=True)
    }
