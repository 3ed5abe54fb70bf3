"""MeViS, versions 1 and 2: its files (docs/data.md).

An expression names any number of instances, ``anno_id``; version 2 also has sentences that name nothing: an empty
``anno_id``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.coco_masks import decode_segmentation
from datasets.expressions import Entry, read_caption, read_entries, require_mapping, require_video_folders
from datasets.reading import DATA_PAGE, require_folder
from datasets.scoring import MASK_FILE
from util.errors import UserError
from util.io import read_json

SPLITS = ("train", "valid_u", "valid")


@dataclass(frozen=True)
class MevisExpression:
    """A sentence (normalised) and the ids of the instances that it names; None where the file does not say."""

    caption: str
    instances: tuple[str, ...] | None

    @property
    def negative(self) -> bool:
        """Whether it names nothing."""
        return self.instances == ()


MevisEntry = Entry[MevisExpression]


class InstanceMasks:
    """The masks of a split's instances, as run lengths, packed: a list of a million would be copied by every worker.

    Args:
        path: ``mask_dict.json``: {instance: [run lengths or null, for each frame]}.

    Raises:
        UserError: the file is missing or malformed; run lengths are checked when they are read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_json(path, f"the masks of all instances, see {DATA_PAGE}")
        self._first: dict[str, tuple[int, int]] = {}
        pieces, ends, total = [], [0], 0
        for instance, frames in require_mapping(content, path, "the file").items():
            if not isinstance(frames, list):
                raise UserError(f"{path}: instance {instance!r} should have a list of one mask or null per frame")
            self._first[instance] = (len(ends) - 1, len(frames))
            for mask in frames:
                piece = b"" if mask is None else json.dumps(mask).encode()
                pieces.append(piece)
                total += len(piece)
                ends.append(total)
        self._text, self._ends = b"".join(pieces), np.array(ends)

    def require(self, instances: Iterable[str], length: int, where: str) -> None:
        """Raise a ``UserError`` if one of a video's instances is missing, or has masks for another number of frames."""
        for instance in instances:
            if instance not in self._first:
                raise UserError(f"{self.path} has no masks of instance {instance}, which {where} names")
            frames = self._first[instance][1]
            if frames != length:
                raise UserError(
                    f"{self.path} has masks of instance {instance} for {frames} frames, and {where} names it in a "
                    f"video of {length}; take both files from one release of the dataset"
                )

    def segmentations(self, instance: str) -> list[Any]:
        """An instance's run lengths, as they stand in the file, or None, for each frame."""
        return [self._read(instance, frame) for frame in range(self._first[instance][1])]

    def union(self, instances: Sequence[str], frame: int, size: tuple[int, int]) -> np.ndarray:
        """The union of some instances in one frame, bool ``[H, W]``; empty where none is visible.

        Raises:
            UserError: run lengths are damaged, or of another size.
        """
        shown = {instance: self._read(instance, frame) for instance in instances}
        return unite(shown, size, f"{self.path}, frame {frame}")

    def _read(self, instance: str, frame: int) -> Any:
        number = self._first[instance][0] + frame
        text = self._text[self._ends[number] : self._ends[number + 1]]
        return json.loads(text) if text else None


def unite(segmentations: Mapping[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    """The union of instances in one frame: bool ``[H, W]``.

    Args:
        segmentations: run lengths by instance, None where it is not visible.
        size: (H, W).
        where: file and frame, for messages.

    Raises:
        UserError: run lengths are damaged, or of another size.
    """
    mask = np.zeros(size, dtype=bool)
    for instance, segmentation in segmentations.items():
        if segmentation is not None:
            mask |= decode_segmentation(segmentation, *size, f"{where}, instance {instance}")
    return mask


def read_split(root: Path, split: str) -> dict[str, MevisEntry]:
    """Read a split as ``list_split`` does, and check that the videos' folders exist.

    Raises:
        UserError: as there, or a folder is missing.
    """
    videos = list_split(root, split)
    require_video_folders(root / split / "JPEGImages", videos)
    return videos


def list_split(root: Path, split: str) -> dict[str, MevisEntry]:
    """Read which videos, frames and expressions a split has.

    Raises:
        UserError: an unknown split, a missing folder or file, or a malformed file.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; MeViS has {', '.join(SPLITS)}")
    require_folder(root, "the MeViS folders train, valid_u and valid")
    require_folder(root / split, f"the {split} split of MeViS: JPEGImages and meta_expressions.json")
    require_folder(root / split / "JPEGImages", f"a folder of JPEG frames per video of the {split} split")
    videos = read_entries(root / split / "meta_expressions.json", split, _expression)
    if not videos:
        raise UserError(f"{root / split / 'meta_expressions.json'} lists no video; fetch it again (see {DATA_PAGE})")
    return videos


def open_masks(folder: Path, videos: Mapping[str, MevisEntry]) -> InstanceMasks:
    """Read the masks of a split's folder, and check that all that its expressions name are there.

    Raises:
        UserError: the file is missing (as in ``valid``, whose truth is not public) or malformed, or an expression does
            not say what it names.
    """
    if not (folder / MASK_FILE).is_file():
        raise UserError(
            f"{folder / MASK_FILE} is missing; it should hold the masks of the {folder.name} split, of which train "
            f"and valid_u have one (see {DATA_PAGE})"
        )
    masks = InstanceMasks(folder / MASK_FILE)
    for name, video in videos.items():
        for exp_id, expression in video.expressions.items():
            where = f"expression {exp_id!r} of video {name!r}"
            if expression.instances is None:
                raise UserError(
                    f"{folder / 'meta_expressions.json'}: {where} has no 'anno_id', so its masks are unknown; it "
                    "should be the list of the instances that it names"
                )
            masks.require(expression.instances, len(video.frames), where)
    return masks


def _expression(path: Path, where: str, expression: Mapping[str, Any]) -> MevisExpression:
    instances = expression.get("anno_id")
    if instances is not None and not (
        isinstance(instances, list) and all(isinstance(instance, (int, str)) for instance in instances)
    ):
        raise UserError(f"{path}: 'anno_id' of {where} is {instances!r}; it should be a list of instances")
    return MevisExpression(
        read_caption(path, where, expression),
        None if instances is None else tuple(dict.fromkeys(map(str, instances))),
    )
