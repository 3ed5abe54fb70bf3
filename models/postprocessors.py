"""From a clip's mask logits at padded resolution to masks at the size that the video has on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from models.segmenter import SegmenterOutput
from util.metrics import QueryPredictions

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


def probability_maps(logits: Tensor, size: tuple[int, int], orig_size: tuple[int, int]) -> Tensor:
    """What ``mask_probabilities`` gives, on the CPU, a few frames at once: float32 ``[T, H0, W0]``."""
    parts = logits.split(FRAMES_AT_ONCE)
    return torch.cat([mask_probabilities(part, size, orig_size).cpu() for part in parts])


def query_predictions(
    output: SegmenterOutput, targets: Sequence[Mapping[str, Any]], threshold: float
) -> list[QueryPredictions]:
    """All queries' masks and boxes in the one frame of each clip that is scored, at its original size.

    Args:
        output: of clips with one frame (T = 1), every query refined.
        targets: per clip ``exp_id``, ``size [2]`` (h, w) after the transforms and ``orig_size [2]``.
        threshold: mask probability from which a pixel belongs to the object.
    """
    assert output.masks is not None and output.masks.shape[1] == 1 and output.masks.ndim == 5, "all queries, one frame"
    predictions = []
    for i, target in enumerate(targets):
        size, orig_size = (tuple(target[key].tolist()) for key in ("size", "orig_size"))
        masks = binary_masks(output.masks[i, 0], size, orig_size, threshold)
        predictions.append(
            QueryPredictions(
                item=target["exp_id"],
                scores=output.logits[i, 0, :, 0].float().sigmoid().cpu().numpy(),
                masks=masks.numpy(),
                boxes=pixel_boxes(output.boxes[i, 0], orig_size).cpu().numpy(),
            )
        )
    return predictions


def pixel_boxes(boxes: Tensor, orig_size: tuple[int, int]) -> Tensor:
    """Boxes (cx, cy, w, h) in 0…1, ``[..., 4]`` → corners (x0, y0, x1, y1) in pixels, within the image."""
    height, width = orig_size
    corners = box_convert(boxes.float(), "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
    return clip_boxes_to_image(corners, orig_size)
