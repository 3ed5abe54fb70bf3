"""Scores of Ref-DAVIS17: four folders of predictions, one for each annotation, and their means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.jf_davis import SEMI_SUPERVISED, UNSUPERVISED, DavisRun, score_davis_runs
from util.mask_files import require_folder
from util.mask_layouts import LAYOUTS

MATCHED, FIXED = "matched", "fixed"
TASKS = {MATCHED: UNSUPERVISED, FIXED: SEMI_SUPERVISED}


def score_ref_davis(gt: Path, pred: Path, sequences: Sequence[str] | None = None, workers: int = 1) -> dict[str, Any]:
    """J and F of Ref-DAVIS17, of each annotation and in the mean over the four.

    ``matched`` is the benchmark's own score, DAVIS-2017's unsupervised protocol: all frames, 255 is void, proposals are
    matched to objects. Since that hides objects that are swapped, ``fixed`` is the score with fixed identities, by the
    semi-supervised protocol. In both, objects are those of a sequence's first frame; what is predicted for one that
    appears later is a proposal like others where proposals are matched, and is not looked at where they are fixed.

    Args:
        gt: folder of ``<sequence>/<frame>.png``, palette PNGs whose value is the object id.
        pred: folder of ``anno_<a>/<sequence>/<frame>.png`` of the same form, a = 0…3.
        sequences: names to score; None scores every folder in ``gt``.
        workers: processes.

    Returns:
        Ready for JSON, every score 0…1 (decay −1…1), for ``matched`` and ``fixed`` each:

        - ``mean``: the means of ``annotations``' rows
        - ``annotations``: four rows of ``J&F JM JR JD FM FR FD``, over all objects
        - ``details``: what ``score_davis`` returns for each annotation

    Raises:
        UserError: a missing folder or file, a broken image, a wrong size, too high an id.
    """
    require_folder(pred, "the predictions, anno_<a>/<sequence>/<frame>.png")
    roots = LAYOUTS["davis"].roots
    runs = [DavisRun(pred / root, task, strict=False) for task in TASKS.values() for root in roots]
    scores = score_davis_runs(gt, runs, sequences, workers)
    report: dict[str, Any] = {"task": "ref-davis"}
    for i, name in enumerate(TASKS):
        details = scores[i * len(roots) : (i + 1) * len(roots)]
        rows = [detail["global"] for detail in details]
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        report[name] = {"mean": mean, "annotations": rows, "details": details}
    return report
