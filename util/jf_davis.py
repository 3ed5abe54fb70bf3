"""Scores of folders of predictions in the DAVIS-2017 layout, ``<sequence>/<frame>.png``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from util.errors import UserError
from util.mask_files import read_index_mask, require_folder, require_masks
from util.metrics import MAX_PROPOSALS, VOID, fixed_scores, matched_scores, statistics
from util.parallel import map_videos

DavisTask = Literal["semi-supervised", "unsupervised"]
SEMI_SUPERVISED: DavisTask = "semi-supervised"
UNSUPERVISED: DavisTask = "unsupervised"


def score_davis(
    gt: Path, pred: Path, task: DavisTask, sequences: Sequence[str] | None = None, workers: int = 1
) -> dict[str, Any]:
    """J and F as the official DAVIS-2017 evaluation computes them.

    Semi-supervised: identities are fixed, the first and the last frame are left out, 255 in the
    ground truth is background. Unsupervised: all frames, 255 is void, up to 20 proposals are
    matched to the objects per sequence. Objects are ids 1…max of the first ground-truth frame; one
    without a prediction scores against an empty mask.

    Args:
        gt: folder of ``<sequence>/<frame>.png``, palette PNGs whose value is the object id.
        pred: folder of the same form; the value is the object's or the proposal's id.
        task: the protocol.
        sequences: names to score; None scores every folder in ``gt``.
        workers: processes.

    Returns:
        Ready for JSON, every score 0…1 (decay −1…1), objects named by ground-truth id:

        - ``per_object``: ``<sequence>_<id>`` → ``JM JR JD FM FR FD`` (mean, recall, decay)
        - ``per_frame``: sequence → ``J``, ``F``, lists ``[objects][frames]`` in the order of ids
        - ``global``: the means of ``per_object``'s values over all objects, and ``J&F``
        - ``assignment`` (unsupervised): sequence → the matched proposal's id per object, or null

    Raises:
        UserError: a missing folder or file, a broken image, a wrong size, too high an id.
    """
    (scores,) = score_davis_runs(gt, [DavisRun(pred, task)], sequences, workers)
    return scores


class DavisRun(NamedTuple):
    """A folder of predictions and how it is scored."""

    pred: Path
    task: DavisTask
    strict: bool = True
    """Refuse ids that no object has, with fixed identities; otherwise they are not looked at."""


def score_davis_runs(
    gt: Path, runs: Sequence[DavisRun], sequences: Sequence[str] | None = None, workers: int = 1
) -> list[dict[str, Any]]:
    """``score_davis`` of several folders of predictions for the same sequences, side by side."""
    require_folder(gt, "the ground truth, <sequence>/<frame>.png")
    for run in runs:
        require_folder(run.pred, "the predictions, <sequence>/<frame>.png")
    names = sequences or _sequences(gt)
    jobs = [_Job(run, name, _frames(gt / name, run.task)) for run in runs for name in names]
    require_masks(job.run.pred / job.name / file for job in jobs for file in _scored(job.files, job.run.task))
    results = map_videos(partial(_score_sequence, gt=gt), jobs, workers)
    return [
        _report(run.task, dict(zip(names, results[i * len(names) : (i + 1) * len(names)], strict=True)))
        for i, run in enumerate(runs)
    ]


class _Job(NamedTuple):
    run: DavisRun
    name: str
    files: list[str]


_Result = tuple[np.ndarray, np.ndarray, list[int | None]]  # J and F [objects, T], and the proposals' ids (unsupervised)


def _report(task: DavisTask, results: dict[str, _Result]) -> dict[str, Any]:
    """What ``score_davis`` returns."""
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


def mean_over_objects(objects: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of ``JM JR JD FM FR FD`` over objects, and ``J&F``, the mean of the mean J and F."""
    means = {key: float(np.mean([row[key] for row in objects])) for key in objects[0]}
    return {"J&F": (means["JM"] + means["FM"]) / 2, **means}


def read_sequences(path: Path) -> list[str]:
    """Names of sequences, one a line, as in DAVIS' ``ImageSets/2017/val.txt``.

    Raises:
        UserError: the file is missing, unreadable or names nothing.
    """
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; it must hold the names of sequences, one a line") from error
    if not names:
        raise UserError(f"{path} is empty; it must hold the names of sequences, one a line")
    return list(dict.fromkeys(names))


def _sequences(gt: Path) -> list[str]:
    names = sorted(path.name for path in gt.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{gt} holds no folder; it must hold <sequence>/<frame>.png, the ground truth")
    return names


def _frames(folder: Path, task: DavisTask) -> list[str]:
    """File names of a sequence's ground truth, in order."""
    require_folder(folder, "the ground truth of the sequence, <frame>.png")
    names = sorted(path.name for path in folder.glob("*.png") if not path.name.startswith("."))
    if not _scored(names, task):
        least = 3 if task == SEMI_SUPERVISED else 1
        raise UserError(f"{folder} holds {len(names)} PNG files; the {task} task needs at least {least}")
    return names


def _scored(names: list[str], task: DavisTask) -> list[str]:
    return names[1:-1] if task == SEMI_SUPERVISED else names


def _score_sequence(job: _Job, gt: Path) -> _Result:
    name, files, (pred, task, strict) = job.name, job.files, job.run
    first = read_index_mask(gt / name / files[0])
    objects = int(np.where(first == VOID, 0, first).max())
    if not objects:
        raise UserError(f"{gt / name / files[0]} shows no object; a sequence's first frame tells how many it has")
    if task == UNSUPERVISED:
        pairs = _read_pairs(gt / name, pred / name, files, MAX_PROPOSALS, f"the task allows {MAX_PROPOSALS} proposals")
        return matched_scores(pairs, objects)
    highest = objects if strict else VOID
    pairs = _read_pairs(gt / name, pred / name, _scored(files, task), highest, f"the sequence has {objects} objects")
    return *fixed_scores(pairs, objects), []


def _read_pairs(
    gt: Path, pred: Path, files: list[str], highest: int, rule: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ground truth and prediction of every frame, uint8 ``[H, W]``; ids above ``highest`` break the ``rule``."""
    for file in files:
        truth = read_index_mask(gt / file)
        guess = read_index_mask(pred / file, truth.shape)
        if guess.max() > highest:
            raise UserError(f"{pred / file} holds the id {guess.max()}, but {rule}; write ids 1…{highest} only")
        yield truth, guess
