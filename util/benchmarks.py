"""The names of ``--dataset_file``, and what ``--eval`` scores for each."""

from __future__ import annotations

EVAL_SPLITS = {
    "ytvos": "valid",
    "davis": "valid",
    "mevis": "valid_u",
    "a2d": "test",
    "jhmdb": "test",
    "refcoco": "val",
    "refcoco+": "val",
    "refcocog": "val",
}
"""Name → the split that stands for "auto": the one whose scores papers report, and whose truth is public."""

MIXTURES = {
    "joint": ("refcoco", "refcoco+", "refcocog", "ytvos"),
    "joint_coco": ("refcoco", "refcoco+", "refcocog"),
    "ytvos_joint_davis": ("ytvos", "davis"),
}
"""Name of a mixture for training → its parts, which are scored one after the other."""

DATASETS = (*EVAL_SPLITS, *MIXTURES)

AUTO_SPLIT = "auto"


def resolve_split(dataset_file: str, split: str) -> str:
    """The split that is meant: "auto" is the dataset's own, and stays "auto" for a mixture, whose parts have theirs."""
    return EVAL_SPLITS.get(dataset_file, AUTO_SPLIT) if split == AUTO_SPLIT else split


def scored_parts(dataset_file: str) -> tuple[str, ...]:
    """The datasets that are scored under a name: itself, or the parts of a mixture."""
    return MIXTURES.get(dataset_file, (dataset_file,))
