"""The segmentation core: one clip of frames and its sentences in, masks at the original size out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import Segmenter, build_model, merge_lora
from models.loading import load_weights
from models.postprocessors import binary_masks, pixel_boxes, probability_maps
from models.selection import best_query
from util.config import Config
from util.padding import pad_clips

MULTIPLE = 16  # pixels: frames are padded to it, as the published models are evaluated


@dataclass(frozen=True)
class Prediction:
    """What the model says about one expression in one clip."""

    masks: np.ndarray
    """bool ``[T, H0, W0]`` at the original size; empty where the mean score is below ``score_threshold``."""
    boxes: np.ndarray
    """``[T, 4]``: (x0, y0, x1, y1) in pixels of the original size."""
    scores: np.ndarray
    """``[T]``: the chosen query's probability of being the referred object, in each frame."""
    query: int
    seconds: float
    """From frames in memory to masks in memory, with its share of the pass that serves all sentences of a clip."""
    probabilities: np.ndarray | None = None
    """float32 ``[T, H0, W0]``, 0 outside of ``masks``; None where not asked for."""


def load_for_inference(cfg: Config, checkpoint: dict[str, Any], device: torch.device) -> tuple[Segmenter, list[str]]:
    """Build the model of a configuration with the weights of a checkpoint, in evaluation mode.

    Args:
        cfg: the configuration.
        checkpoint: from ``models.loading.open_checkpoint``.
        device: where it goes.

    Returns:
        The model, and what the user should know.

    Raises:
        UserError: a frozen part cannot be loaded, or the weights are not this model's.
    """
    model = build_model(cfg)
    notes = load_weights(model, checkpoint, cfg).notes
    merge_lora(model)  # the same function, at no cost
    return model.to(device).eval(), notes


@torch.inference_mode()
def segment(
    model: Segmenter,
    frames: Tensor,
    orig_size: tuple[int, int],
    sentences: Mapping[str, str],
    cfg: Config,
    device: torch.device,
    soft: bool = False,
) -> Iterator[tuple[str, Prediction]]:
    """Segment one clip for each of its sentences; one query is chosen for all its frames.

    Args:
        model: in eval mode, on ``device``.
        frames: float32 ``[T, 3, h, w]``, ImageNet-normalised.
        orig_size: (H0, W0) of the masks.
        sentences: expression id → sentence.
        cfg: reads ``threshold``, ``score_threshold`` and ``seed``.
        device: where the model is.
        soft: also give the probabilities.

    Yields:
        expression id and its prediction, in the order of ``sentences``.
    """
    if not sentences:
        return
    size = (frames.shape[-2], frames.shape[-1])
    clip, padding = (tensor.to(device) for tensor in pad_clips([frames], MULTIPLE))
    started = time.perf_counter()
    torch.manual_seed(cfg.seed)
    pixels = model.encoder.encode_pixels(clip)  # what depends on the frames alone serves every sentence
    shared = (time.perf_counter() - started) / len(sentences)
    for exp_id, sentence in sentences.items():
        started = time.perf_counter()
        torch.manual_seed(cfg.seed)  # noise, where the model draws any, depends on no other expression
        output = model.segment_pixels(pixels, padding, [sentence], select=best_query)
        assert output.masks is not None and output.chosen is not None
        query = int(output.chosen[0])
        scores = output.logits[0, :, query, 0].float().sigmoid().cpu().numpy()
        named = bool(scores.mean() >= cfg.score_threshold)  # whether the sentence names anything at all
        probabilities = probability_maps(output.masks[0], size, orig_size) if soft else None
        masks = (
            binary_masks(output.masks[0], size, orig_size, cfg.threshold)
            if probabilities is None
            else probabilities >= cfg.threshold
        )
        masks &= named
        yield (
            exp_id,
            Prediction(
                masks=masks.numpy(),
                boxes=pixel_boxes(output.boxes[0, :, query], orig_size).cpu().numpy(),
                scores=scores,
                query=query,
                seconds=shared + time.perf_counter() - started,
                probabilities=None if probabilities is None else probabilities.mul_(masks).numpy(),
            ),
        )
