"""The small sets of ``scripts.eval_all``, as each is distributed."""

from __future__ import annotations

from pathlib import Path

from datasets.refcoco import SPLITS
from scripts.toy_formats_a2d import write_toy_a2d, write_toy_jhmdb
from scripts.toy_formats_coco import write_toy_refcoco
from scripts.toy_formats_videos import write_toy_davis, write_toy_mevis

REFER_SETS = tuple(SPLITS)
CHECKS = (
    *((name, name) for name in ("ytvos", "a2d", "jhmdb")),
    *(("davis", folder) for folder in ("davis_raw", "davis")),
    *(("mevis", folder) for folder in ("mevis_v1", "mevis_v2")),
    *((name, "coco") for name in REFER_SETS),
)
"""Dataset and its folder below that of the data."""


def write_sets(data: Path, train_videos: int, eval_videos: int, images: int, frames: int) -> None:
    """Write all but Ref-YouTube-VOS below ``data``: ``davis_raw``, ``mevis_v1``, ``mevis_v2``, ``a2d``, …

    Args:
        data: a folder without these.
        train_videos, eval_videos: of every set of videos.
        images: of each split of the RefCOCO sets but the training split, which has three times as many.
        frames: of a video.
    """
    write_toy_davis(data / "davis_raw", num_train=train_videos, num_valid=eval_videos, frames=frames)
    for name, no_target in (("mevis_v1", 0), ("mevis_v2", 1)):
        write_toy_mevis(
            data / name,
            num_train=train_videos,
            num_valid_u=eval_videos,
            num_valid=1,
            frames=frames,
            no_target=no_target,
        )
    write_toy_a2d(data / "a2d", num_train=train_videos, num_test=eval_videos, frames=frames)
    write_toy_jhmdb(data / "jhmdb", num_videos=eval_videos, frames=frames)
    write_toy_refcoco(data / "refer", num_train=3 * images, num_eval=images)
