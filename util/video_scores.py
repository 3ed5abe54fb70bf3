"""Scores of video sets, in any of their forms, as the metrics and counts of ``results.json``."""

from __future__ import annotations

from typing import Any

from util.jf_ref_davis import TASKS

_KEYS = {"J&F": "JF", "J": "J", "F": "F"}
_DAVIS_KEYS = {"J&F": "J&F", "J": "JM", "F": "FM", "J_recall": "JR", "F_recall": "FR", "J_decay": "JD", "F_decay": "FD"}


def video_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """The metrics, 0…100 (decay −100…100).

    ``J&F``, ``J`` and ``F`` are the benchmark's own. Beyond them, a dot joins a part's name to its metric: of
    Ref-YouTube-VOS ``negative_accuracy``; of MeViS ``with_target.J&F``…; of Ref-DAVIS17 ``matched.J&F``…, which are
    the benchmark's, ``fixed.J&F``…, and the same of each annotation, ``matched.anno_0.J&F``….

    Args:
        scores: of ``score_expressions``, ``score_unions`` or ``score_ref_davis``.
    """
    if scores["task"] == "ref-davis":
        mean = scores["matched"]["mean"]
        metrics = {name: mean[key] for name, key in list(_DAVIS_KEYS.items())[:3]}
        for task in TASKS:
            rows = {task: scores[task]["mean"]}
            rows |= {f"{task}.anno_{number}": row for number, row in enumerate(scores[task]["annotations"])}
            metrics |= {f"{label}.{name}": row[key] for label, row in rows.items() for name, key in _DAVIS_KEYS.items()}
    else:
        metrics = _rows("", scores["global"])
        for part in ("with_target", "without_target"):
            metrics |= _rows(f"{part}.", scores.get(part, {}))
        for kind, row in scores.get("per_kind", {}).items():
            metrics |= _rows(f"kind.{kind}.", row)
        for name, value in (
            ("negative_accuracy", scores["global"].get("negative_accuracy")),
            ("no_target_accuracy", scores.get("without_target", {}).get("accuracy")),
        ):
            if value is not None:
                metrics[name] = value
    return {name: 100 * value for name, value in metrics.items()}


def video_counts(scores: dict[str, Any]) -> dict[str, int]:
    """What was scored: videos, and expressions or (Ref-DAVIS17) objects."""
    if scores["task"] == "ref-davis":
        detail = scores["matched"]["details"][0]
        return {"videos": len(detail["per_frame"]), "objects": len(detail["per_object"]), "annotations": 4}
    names = [name.rpartition("/")[0] for name in scores["per_expression"]]
    return {"videos": len(set(names)), "expressions": len(names)}


def _rows(prefix: str, row: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": row[key] for name, key in _KEYS.items() if key in row}
