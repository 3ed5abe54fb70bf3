"""The truth of a batch of clips, as matcher and criterion read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOW_STRIDE = 2


@dataclass
class Target:
    """The truth of a batch of clips, padded like its frames."""

    boxes: Tensor
    """``[B, T, 4]``: (cx, cy, w, h) in 0…1 of the unpadded frame; zeros where invisible."""
    masks: Tensor
    """``[B, T, H, W]``, 0 or 1 as floats."""
    valid: Tensor
    """``[B, T]``: 1 where the object is visible."""

    @property
    def present(self) -> Tensor:
        """``[B]``: 0 for a clip without target (its sentence names nothing in it), else 1."""
        return self.valid.amax(1)

    @property
    def low_masks(self) -> Tensor:
        """The masks at every second pixel, starting at 1: ``[B, T, H/2, W/2]``."""
        return self.masks[..., 1::LOW_STRIDE, 1::LOW_STRIDE]


def build_target(targets: Sequence[Mapping[str, Any]], size: Sequence[int]) -> Target:
    """Stack the clips' targets and pad their masks on the right and bottom.

    Args:
        targets: per clip ``boxes [T, 4]``, ``masks [T, h, w]``, ``valid [T]``, on one device.
        size: (H, W) of the padded frames.
    """
    masks = []
    for target in targets:
        h, w = target["masks"].shape[-2:]
        masks.append(F.pad(target["masks"].float(), (0, size[1] - w, 0, size[0] - h)))
    return Target(
        boxes=torch.stack([target["boxes"] for target in targets]),
        masks=torch.stack(masks),
        valid=torch.stack([target["valid"].float() for target in targets]),
    )
