"""What the measurements of the benchmark say beside each other: ratios, shares, whether both paths agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.benchmark_plan import OTHER, SHARED, STAGES

Result = dict[str, Any]


def summarise(found: Mapping[str, Any]) -> Result:
    """Measurements with what they say beside each other.

    Args:
        found: ``command``, ``settings``, ``versions``, the runs ``fast`` (a list) and ``baseline``, and the like.

    Returns:
        the same without arrays, with ``speedup``, ``peak_memory_ratio`` and ``stages`` of the first fast run, and these
        also in each fast run. Without a baseline, ratios are left out.
    """
    result: Result = {"stages": {}, **{name: value for name, value in found.items() if name != "fast"}}
    first = found["fast"][0]
    result["machine"], result["peaks"] = first["machine"], first["peaks"]
    base = dict(found["baseline"]) if "baseline" in found else None
    runs = []
    for run in found["fast"]:
        own = {name: value for name, value in run.items() if name not in ("machine", "peaks", "logits")}
        own["stage_table"] = stage_table(run, base, first["peaks"])
        own["sentence_seconds"], own["unet_share_of_sentence"] = sentence_cost(run, found["settings"]["sentences"])
        operations = sum(run["operations"].values())
        own["share_of_peak"] = share_of_peak(operations, run["seconds"], first["peaks"], run["dtype"])
        if base:
            own["speedup"] = run["rate"] / base["rate"]
            own["operations_ratio"] = sum(base["operations"].values()) / operations
            own["peak_memory_ratio"] = run["peak_memory"] / base["peak_memory"]
            own["agreement"] = agreement(run, base)
        runs.append(own)
    if base:
        base.pop("logits", None)
        result["baseline"] = base
        result = {"speedup": runs[0]["speedup"], "peak_memory_ratio": runs[0]["peak_memory_ratio"], **result}
    training = result.get("training", {})
    if "baseline" in training:
        fast, slow = training["fast"], training["baseline"]
        ratios = {
            "speedup": fast["rate"] / slow["rate"],
            "peak_memory_ratio": fast["peak_memory"] / slow["peak_memory"],
        }
        result["training"] = {**ratios, **training}
    return {**result, "stages": runs[0]["stage_table"], "fast": runs}


def stage_table(run: Mapping[str, Any], base: Mapping[str, Any] | None, peaks: Mapping[str, float]) -> Result:
    """By stage: seconds, operations and share of the peak of a fast run, and those of the baseline with the ratio."""
    rows: Result = {}
    for name in (*STAGES, OTHER):
        seconds, operations = seconds_of(run, name), run["operations"].get(name, 0)
        row: Result = {"seconds": seconds, "operations": operations}
        row["share_of_peak"] = share_of_peak(operations, seconds, peaks, run["dtype"])
        if base:
            slow, slow_operations = seconds_of(base, name), base["operations"].get(name, 0)
            row["baseline_seconds"], row["baseline_operations"] = slow, slow_operations
            row["baseline_share_of_peak"] = share_of_peak(slow_operations, slow, peaks, "fp32")
            row["ratio"] = slow / seconds if seconds else None
        rows[name] = row
    return rows


def sentence_cost(run: Mapping[str, Any], sentences: int) -> tuple[float, float]:
    """Seconds that one more sentence takes, and the share of them that the UNet takes."""
    own = sum(seconds for name, seconds in run["stages"].items() if name not in SHARED)
    return own / sentences, run["stages"]["UNet"] / own


def agreement(run: Mapping[str, Any], base: Mapping[str, Any]) -> Result:
    """Whether two paths say the same of the first frame: of how many sentences they choose the same query, and by how
    much the mask logits of those differ at most, in their range.
    """
    import numpy as np

    same = [i for i, pair in enumerate(zip(run["queries"], base["queries"], strict=True)) if pair[0] == pair[1]]
    found: Result = {"sentences": len(base["queries"]), "same_query": len(same), "greatest_difference": None}
    if same:
        own, other = run["logits"][same], base["logits"][same]
        found["greatest_difference"] = float(np.abs(own - other).max() / np.ptp(other))
    return found


def seconds_of(run: Mapping[str, Any], name: str) -> float:
    """Seconds of a stage of a run; ``OTHER`` is what is in no stage."""
    if name != OTHER:
        return float(run["stages"].get(name, 0.0))
    return max(0.0, float(run["seconds"] - sum(run["stages"].values())))


def share_of_peak(operations: float, seconds: float | None, peaks: Mapping[str, float], dtype: str) -> float | None:
    """How much of the greatest rate of operations was reached; None without operations or time."""
    if not operations or not seconds:
        return None
    return operations / seconds / peaks["fp32" if dtype == "fp32" else "bf16"]
