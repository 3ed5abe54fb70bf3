"""Videos of which single frames have masks: what A2D-Sentences and JHMDB-Sentences share (docs/data.md).

An item is a sentence and one annotated frame. Its clip is a window of ``num_frames`` around that frame, which stands at
``num_frames // 2`` also at a video's ends, where the first or last frame is repeated. The clip's target has T = 1, the
annotated frame, and ``annotated`` is that frame's index in the clip. ``exp_id`` is the item's id, as the annotations in
COCO's form have it, and ``orig_size`` the size of the true mask.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.annotation_files import read_coco_masks
from datasets.clip import ClipDataset, Sample, make_target
from datasets.evaluators import Rle, encode_masks
from datasets.reading import DATA_PAGE
from datasets.transforms import ClipTransform
from util.errors import UserError

SLACK = (
    2  # pixels: a clip may be of another scale than its masks, and a little wider or narrower, as MP4 has even sides
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """A sentence and the frame in which its object has a mask.

    Attributes:
        id: of the item in the annotations in COCO's form.
        video: its name.
        caption: the normalised sentence.
        frame: number of the annotated frame, from 1.
    """

    id: str
    video: str
    caption: str
    frame: int


ItemT = TypeVar("ItemT", bound=Item)


class AnnotatedFrames(ClipDataset, Generic[ItemT]):
    """One clip per item. Subclasses read frames and masks.

    Args:
        items: the annotated frames.
        transform: applied to every clip.
        num_frames: frames of a clip, at least 1.
        train: clips whose object a crop has cut off are replaced; and an id may occur again.
        seed: of the run.
        listed_in: the file that lists the items, for messages.

    Raises:
        UserError: there is no item, two items for evaluation have one id, or ``num_frames`` is below 1.
    """

    def __init__(
        self,
        items: Sequence[ItemT],
        transform: ClipTransform,
        num_frames: int,
        train: bool,
        seed: int,
        listed_in: Path,
    ) -> None:
        super().__init__(seed, replace_invisible=train)
        if num_frames < 1:
            raise UserError(f"num_frames is {num_frames}; a clip has at least 1 frame")
        if not items:
            raise UserError(f"{listed_in} lists no sentence that can be used; fetch it again (see {DATA_PAGE})")
        if not train:
            ids = set()
            for item in items:
                if item.id in ids:
                    raise UserError(f"{listed_in} lists {item.id} twice; a sentence is scored once in a frame")
                ids.add(item.id)
        self.items = items
        self.transform = transform
        self.num_frames = num_frames

    def __len__(self) -> int:
        return len(self.items)

    @abstractmethod
    def read_window(self, item: ItemT) -> tuple[Tensor, list[int]]:
        """Read an item's clip, as ``clamp`` chooses it: uint8 ``[T, 3, H, W]``, and the frames' numbers, from 1."""

    @abstractmethod
    def read_mask(self, item: ItemT) -> Tensor:
        """Read an item's mask: bool ``[H0, W0]``."""

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform clip ``index``.

        Raises:
            UserError: a file is missing or broken, or mask and frames do not belong together.
        """
        item = self.items[index]
        frames, numbers = self.read_window(item)
        mask = self.read_mask(item)
        masks = fit_mask(mask, (frames.shape[-2], frames.shape[-1]), item)[None]
        frames, masks, caption = self.transform(frames, masks, item.caption, rng)
        target = make_target(
            masks,
            caption=caption,
            orig_size=(mask.shape[0], mask.shape[1]),
            video=item.video,
            exp_id=item.id,
            frame_names=[f"{number:05d}" for number in numbers],
        )
        target["annotated"] = self.num_frames // 2
        return frames, target

    def truth(self, coco_file: Path) -> dict[str, Rle]:
        """Item id → its mask at original size, as run lengths.

        Args:
            coco_file: the annotations in COCO's form; where there are none, the masks are read one by one.

        Raises:
            UserError: the file is malformed or lacks an item, or a mask is missing or broken.
        """
        if coco_file.is_file():
            return read_coco_masks(coco_file, [item.id for item in self.items])
        logger.warning("%s is missing: the truth is read from the %d masks themselves", coco_file, len(self.items))
        return {item.id: encode_masks(self.read_mask(item)[None].numpy())[0] for item in self.items}


def clamp(annotated: int, num_frames: int, length: int | None) -> list[int]:
    """Indices, from 0, of a clip around the annotated frame, which stands at ``num_frames // 2``.

    Indices beyond an end are those of the first or last frame.

    Args:
        annotated: index of the annotated frame.
        num_frames: frames of the clip.
        length: frames of the video; None: not known, and the end stays open.
    """
    first = annotated - num_frames // 2
    last = first + num_frames if length is None else length - 1
    return [min(max(index, 0), last) for index in range(first, first + num_frames)]


def fit_mask(mask: Tensor, size: tuple[int, int], item: Item) -> Tensor:
    """The mask ``[H0, W0]`` at the frame's ``size`` (H, W).

    Raises:
        UserError: they are of different shapes, and do not belong together.
    """
    if mask.shape == size:
        return mask
    height, width = size
    if abs(mask.shape[1] - width * mask.shape[0] / height) > SLACK:
        raise UserError(
            f"the mask of {item.id} is of {mask.shape[1]}×{mask.shape[0]} pixels, and frame {item.frame} of its video "
            f"{item.video} of {width}×{height}; take annotations and videos from one release of the dataset"
        )
    return F.interpolate(mask[None, None].to(torch.uint8), size, mode="nearest-exact")[0, 0].bool()
