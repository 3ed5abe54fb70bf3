"""RefCOCO, RefCOCO+ and RefCOCOg: training clips made of images, and single images for evaluation (docs/data.md).

An item's id, ``target["exp_id"]``, is ``<set>_<split>_<id of its image entry>``: unique over all sets, and different
for equal sentences. ``target["video"]`` is the image's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from datasets.annotation_files import require_files
from datasets.clip import ClipDataset, Sample, make_target
from datasets.evaluators import GroundTruth, RefcocoEvaluator
from datasets.image_motion import ImageMotion
from datasets.reading import read_frame, require_folder
from datasets.refcoco_files import IMAGES, Item, PackedItems, draw_mask, instances_path, item_id, read_items
from datasets.transforms import ClipTransform, build_transform
from util.errors import UserError

if TYPE_CHECKING:
    from util.config import Config


class RefcocoImages(ClipDataset):
    """Images with one referred object each: clips of ``num_frames`` with a motion, single frames without.

    Args:
        root: holds ``train2014/`` and ``instances_<set>_<split>.json``.
        name: refcoco, refcoco+ or refcocog.
        split: train, val, testA, testB or test.
        transform: applied to every clip.
        motion: makes a clip of an image; None: an item is the image alone, and none is replaced.
        num_frames: frames per clip.
        seed: of the run.

    Raises:
        UserError: a missing folder, file or image, or a malformed file; images are checked when they are read.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        split: str,
        transform: ClipTransform,
        motion: ImageMotion | None = None,
        num_frames: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed, replace_invisible=motion is not None)
        assert motion is not None or num_frames == 1
        self.name, self.split = name, split
        self.transform, self.motion, self.num_frames = transform, motion, num_frames
        items = read_items(root, name, split)
        self.images = require_folder(root / IMAGES, "the training images of COCO 2014")
        require_files([self.images / item["file_name"] for item in items], instances_path(root, name, split))
        self._items = PackedItems(items)

    def __len__(self) -> int:
        return len(self._items)

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform item ``index``.

        Raises:
            UserError: the image is missing, broken or of another size, or its object's outline is malformed.
        """
        item: Item = self._items[index]
        path = self.images / item["file_name"]
        image = read_frame(path)
        height, width = image.shape[-2:]
        if (height, width) != (item["height"], item["width"]):
            raise UserError(
                f"image {path} is of {width}×{height} pixels, and the annotations of {self.name} say "
                f"{item['width']}×{item['height']}; take both from one release of the dataset"
            )
        mask = torch.from_numpy(draw_mask(item, self.name, self.split))
        frames, masks = (
            (image[None], mask[None]) if self.motion is None else self.motion(image, mask, self.num_frames, rng)
        )
        frames, masks, caption = self.transform(frames, masks, item["caption"], rng)
        target = make_target(
            masks,
            caption=caption,
            orig_size=(height, width),
            video=path.stem,
            exp_id=item_id(item, self.name, self.split),
            frame_names=[path.stem] * len(frames),
        )
        if self.motion is None:
            target["annotated"] = 0
        return frames, target


def build_clips(cfg: Config, split: str) -> RefcocoImages:
    """Build the clips (``train``) or the single images (another split) of the set ``cfg.dataset_file``.

    Raises:
        UserError: a missing folder or file, or a malformed one.
    """
    root, train = Path(cfg.coco_path), split == "train"
    transform = build_transform(cfg, train)
    if not train:
        return RefcocoImages(root, cfg.dataset_file, split, transform)
    motion = ImageMotion() if cfg.colour_distortion else ImageMotion(light=0)
    return RefcocoImages(root, cfg.dataset_file, split, transform, motion, cfg.num_frames, cfg.seed)


def build_evaluator(cfg: Config) -> RefcocoEvaluator:
    """The metrics of ``cfg.split`` against its truth, which is drawn at the images' original size, item by item.

    Raises:
        UserError: the set's file is missing or malformed.
    """
    name, split = cfg.dataset_file, cfg.split
    items = PackedItems(read_items(Path(cfg.coco_path), name, split))
    positions = {item_id(item, name, split): position for position, item in enumerate(items)}

    def truth(wanted: str) -> GroundTruth:
        item: Item = items[positions[wanted]]
        x, y, width, height = item["bbox"]
        return GroundTruth(draw_mask(item, name, split), np.array([x, y, x + width, y + height]))

    return RefcocoEvaluator(list(positions), truth)
