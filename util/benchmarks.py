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


def folder_option(dataset: str) -> str:
    """The option that names a dataset's folder; the three sets of RefCOCO share theirs."""
    return "coco_path" if dataset.startswith("refcoco") else f"{dataset}_path"


VIDEO_SETS = ("ytvos", "davis", "mevis")
"""Sets whose videos are segmented from end to end, and scored by their masks; the others are scored item by item."""

MIXTURES = {
    "joint": ("refcoco", "refcoco+", "refcocog", "ytvos"),
    "joint_coco": ("refcoco", "refcoco+", "refcocog"),
    "ytvos_joint_davis": ("ytvos", "davis"),
}
"""Name of a mixture for training → its parts, which are scored one after the other."""

_VIDEO_METRICS = ("J&F", "J", "F")
_OVERLAPS = ("oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9")
_AVERAGE_PRECISIONS = ("mAP", "mAP_best_query", "AP@0.5", "AP@0.75", *_OVERLAPS)
EVAL_METRICS = {
    **dict.fromkeys(VIDEO_SETS, _VIDEO_METRICS),
    **dict.fromkeys(("a2d", "jhmdb"), _AVERAGE_PRECISIONS),
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), (*_OVERLAPS, "box_P@0.5")),
}
"""Name → the metrics by which the best checkpoint can be chosen, the usual one first."""

DATASETS = (*EVAL_SPLITS, *MIXTURES)

AUTO_SPLIT = "auto"  # of datasets and metrics, too


def resolve_split(dataset_file: str, split: str) -> str:
    """The split that is meant: "auto" is the dataset's own, and stays "auto" for a mixture, whose parts have theirs."""
    return EVAL_SPLITS.get(dataset_file, AUTO_SPLIT) if split == AUTO_SPLIT else split


def scored_parts(dataset_file: str) -> tuple[str, ...]:
    """The datasets that are scored under a name: itself, or the parts of a mixture."""
    return MIXTURES.get(dataset_file, (dataset_file,))


def scored_metric(dataset_file: str, metric: str) -> str:
    """The metric that ``metric`` means for a dataset: itself, or the dataset's usual one for "auto"."""
    return EVAL_METRICS[dataset_file][0] if metric == AUTO_SPLIT else metric


def validated_set(dataset_file: str, eval_dataset: str) -> str:
    """What is validated in training: ``eval_dataset``, where it is not "auto"."""
    return dataset_file if eval_dataset == AUTO_SPLIT else eval_dataset
