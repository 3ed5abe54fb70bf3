"""From a clip's mask logits at padded resolution to masks at the size that the video has on disk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

FRAMES_AT_ONCE = 8  # bounds the memory: a 1280×720 frame of float32 is 3.7 MB, a video may have hundreds


def mask_probabilities(logits: Tensor, size: tuple[int, int], orig_size: tuple[int, int]) -> Tensor:
    """Cut off the padding, resize the logits bilinearly to the original size, take the sigmoid.

    Args:
        logits: ``[T, H, W]`` at padded resolution.
        size: (h, w) of the unpadded frames, h ≤ H and w ≤ W.
        orig_size: (H0, W0) on disk.

    Returns:
        float32 ``[T, H0, W0]``, 0…1.
    """
    height, width = size
    assert height <= logits.shape[-2] and width <= logits.shape[-1], (size, logits.shape)
    unpadded = logits[:, None, :height, :width].float()
    resized = F.interpolate(unpadded, size=orig_size, mode="bilinear", align_corners=False)
    return resized[:, 0].sigmoid()


def binary_masks(logits: Tensor, size: tuple[int, int], orig_size: tuple[int, int], threshold: float) -> Tensor:
    """Masks on the CPU, where the probability is at least ``threshold``: bool ``[T, H0, W0]``.

    Arguments as for ``mask_probabilities``; a few frames are resized at once, so that the device's memory does not
    grow with the length of the video.
    """
    parts = logits.split(FRAMES_AT_ONCE)
    return torch.cat([(mask_probabilities(part, size, orig_size) >= threshold).cpu() for part in parts])


def pixel_boxes(boxes: Tensor, orig_size: tuple[int, int]) -> Tensor:
    """Boxes (cx, cy, w, h) in 0…1, ``[..., 4]`` → corners (x0, y0, x1, y1) in pixels, within the image."""
    height, width = orig_size
    corners = box_convert(boxes.float(), "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
    return clip_boxes_to_image(corners, orig_size)
