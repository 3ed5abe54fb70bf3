"""The registry of datasets: one row each with its options, splits, metrics and mask layout.

A row's module is imported when the dataset is used, so that commands start without PyTorch, h5py and SciPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util import config
from util.config import MODELS, Config
from util.errors import UserError
from util.options import AUTO

if TYPE_CHECKING:
    from datasets.predictions import MaskLayout

_OVERLAPS = ("oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9")
J_AND_F = ("J&F", "J", "F")
AVERAGE_PRECISIONS = ("mAP", "mAP_best_query", "AP@0.5", "AP@0.75", *_OVERLAPS)
_SCORED = ("mAP", "AP@", "box_")  # how metrics begin that need scores or boxes
OVERLAPS_AND_BOXES = (*_OVERLAPS, "box_P@0.5", "box_P@0.5_GIoU")


@dataclass(frozen=True)
class Size:
    """What a split of the whole dataset holds; None where no number is published.

    Attributes:
        videos: number of videos, or of images.
        expressions: number of sentences.
        frames: number of frames of all videos.
    """

    videos: int | None = None
    expressions: int | None = None
    frames: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A row of the table.

    Attributes:
        name: the value of ``--dataset_file``.
        module: the module of this package that reads it. It has ``build_clips(cfg, split)`` and
            ``check(row, root, splits, findings)``. For whole videos it also has ``build_videos(cfg)`` and
            ``build_scorer(cfg)``, for single frames ``build_evaluator(cfg)``.
        root: the option that names its folder; ``util.config.Config`` declares it.
        evaluated: the split that "auto" stands for: papers report its scores and its ground truth is public.
        metrics: those that can choose the best checkpoint, the usual one first.
        splits: split → its size in the whole dataset.
        masks: the mask layout of whole videos (a key of ``LAYOUTS``); empty if single frames or images are scored.
        converted: whether ``scripts.prepare_data`` makes its folder.
    """

    name: str
    module: str
    root: str
    evaluated: str
    metrics: tuple[str, ...]
    splits: Mapping[str, Size]
    masks: str = ""
    converted: bool = False

    @property
    def layout(self) -> MaskLayout:
        """The layout of the masks that inference writes."""
        return import_module("datasets.predictions").LAYOUTS[self.masks]

    def function(self, name: str) -> Any:
        """Return the function ``name`` of the dataset's module; None if it has none."""
        return getattr(import_module(f"datasets.{self.module}"), name, None)


_refcoco = partial(
    Dataset, module="refcoco", root="coco_path", evaluated="val", metrics=OVERLAPS_AND_BOXES, converted=True
)
_ROWS = (
    Dataset(
        "ytvos",
        module="ytvos",
        root="ytvos_path",
        evaluated="valid",
        metrics=J_AND_F,
        splits={"train": Size(3471, expressions=12913), "valid": Size(202), "test": Size(305)},
        masks="ytvos",
    ),
    Dataset(
        "davis",
        module="davis",
        root="davis_path",
        evaluated="valid",
        metrics=J_AND_F,
        splits={"train": Size(60, frames=4209), "valid": Size(30, frames=1999)},
        masks="davis",
        converted=True,
    ),
    Dataset(
        "mevis",
        module="mevis",
        root="mevis_path",
        evaluated="valid_u",
        metrics=J_AND_F,
        splits={"train": Size(1662), "valid_u": Size(50), "valid": Size(140)},
        masks="mevis",
    ),
    Dataset(
        "long_rvos",
        module="ytvos",
        root="long_rvos_path",
        evaluated="valid",
        metrics=(*J_AND_F, "tIoU", "vIoU"),
        splits={"train": Size(1855), "valid": Size(112), "test": Size(226)},
        masks="clips",
    ),
    Dataset(
        "revos",
        module="mevis",
        root="revos_path",
        evaluated="valid",
        metrics=(*J_AND_F, "R"),
        splits={"train": Size(), "valid": Size()},
        masks="clips",
    ),
    Dataset(
        "a2d",
        module="a2d",
        root="a2d_path",
        evaluated="test",
        metrics=AVERAGE_PRECISIONS,
        splits={"train": Size(3017), "test": Size(737)},
    ),
    Dataset(
        "jhmdb",
        module="jhmdb",
        root="jhmdb_path",
        evaluated="test",
        metrics=AVERAGE_PRECISIONS,
        splits={"test": Size(928)},
    ),
    _refcoco(
        "refcoco",
        splits={
            "train": Size(16994, 120624),
            "val": Size(1500, 10834),
            "testA": Size(750, 5657),
            "testB": Size(750, 5095),
        },
    ),
    _refcoco(
        "refcoco+",
        splits={
            "train": Size(16992, 120191),
            "val": Size(1500, 10758),
            "testA": Size(750, 5726),
            "testB": Size(750, 4889),
        },
    ),
    _refcoco("refcocog", splits={"train": Size(21899, 80512), "val": Size(1300, 4896), "test": Size(2600, 9602)}),
)
DATASETS = {row.name: row for row in _ROWS}

MIXTURES: dict[str, dict[str, int]] = {
    "joint": {"refcoco": 1, "refcoco+": 1, "refcocog": 1, "ytvos": 1},
    "joint_coco": {"refcoco": 1, "refcoco+": 1, "refcocog": 1},
    "ytvos_joint_davis": {"ytvos": 1, "davis": 5},  # Ref-DAVIS17 has 60 training videos, Ref-YouTube-VOS 3471
}
"""Mixture for training → its parts, and how often each occurs. The parts are scored one after the other."""

# util.config declares the options, and this table knows their values.
config.DATASET_NAMES[:] = [*DATASETS, *MIXTURES]
config.VALIDATED_NAMES[:] = [AUTO, *DATASETS, *MIXTURES]
config.METRICS[:] = [AUTO, *sorted({metric for row in _ROWS for metric in row.metrics})]


def load_config(argv: Sequence[str] | None, description: str) -> Config:
    """Read the options of a run, see ``util.config.load_config``, and resolve those that depend on the dataset.

    Raises:
        UserError: an unknown key or flag, or a wrong value.
    """
    return resolve(config.load_config(argv, description))


def resolve(cfg: Config) -> Config:
    """Replace the split "auto" with the dataset's own, and check that ``eval_metric`` exists where it is needed.

    The split of a mixture stays "auto", because every part has its own.

    Raises:
        UserError: a dataset that is validated in training does not have the metric.
    """
    for part in scored_parts(validated_set(cfg.dataset_file, cfg.eval_dataset)):
        metrics = metrics_of(part, cfg.model)
        if cfg.eval_metric not in (AUTO, *metrics):
            raise UserError(
                f"eval_metric must be auto or one of those that {part} has with model {cfg.model}, "
                f"{', '.join(metrics)}, and not {cfg.eval_metric}"
            )
    if cfg.split == AUTO and cfg.dataset_file in DATASETS:
        return replace(cfg, split=DATASETS[cfg.dataset_file].evaluated)
    return cfg


def scored_parts(name: str) -> tuple[str, ...]:
    """Return the datasets that are scored under a name: the dataset itself, or the parts of a mixture."""
    return tuple(MIXTURES.get(name, (name,)))


def validated_set(dataset_file: str, eval_dataset: str) -> str:
    """Return the dataset or mixture that is validated in training: ``eval_dataset``, or for "auto" ``dataset_file``."""
    return dataset_file if eval_dataset == AUTO else eval_dataset


def metrics_of(name: str, model: str) -> tuple[str, ...]:
    """Return the metrics of a dataset that a model has, the usual one first."""
    metrics = DATASETS[name].metrics
    return metrics if MODELS[model].scored else tuple(m for m in metrics if not m.startswith(_SCORED))


def scored_metric(name: str, metric: str, model: str) -> str:
    """Return the metric that chooses the best checkpoint on a dataset: ``metric``, or for "auto" the usual one."""
    return metrics_of(name, model)[0] if metric == AUTO else metric


def root_of(cfg: Config) -> Path:
    """Return the root folder of ``cfg.dataset_file``."""
    return Path(getattr(cfg, DATASETS[cfg.dataset_file].root))
