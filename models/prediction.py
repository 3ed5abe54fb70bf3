"""The segmentation core: one clip of frames and its sentences in, masks at the original size out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import Segmenter, build_model, merge_lora
from models.loading import check_options, load_weights
from models.postprocessors import binary_masks, pixel_boxes, probability_maps
from models.precision import prepare_inference
from models.segmenter import SegmenterOutput
from models.selection import Selector, best_query
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
    check_options(checkpoint, cfg)
    model = build_model(cfg)
    notes = load_weights(model, checkpoint, cfg).notes
    merge_lora(model)  # the same function, at no cost
    return prepare_inference(model, cfg, device), notes


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
        cfg: reads ``expressions_per_batch``, ``threshold``, ``score_threshold`` and ``seed``.
        device: where the model is.
        soft: also give the probabilities.

    Yields:
        expression id and its prediction, in the order of ``sentences``.
    """
    if not sentences:
        return
    size = (frames.shape[-2], frames.shape[-1])
    ids, started = list(sentences), time.perf_counter()
    outputs = sentence_outputs(model, frames, list(sentences.values()), cfg, device)
    for first, output in outputs:
        group = ids[first : first + cfg.expressions_per_batch]
        predictions = [_predict(output, i, size, orig_size, cfg, soft) for i in range(len(group))]
        seconds = (time.perf_counter() - started) / len(group)  # the first group's with what serves all sentences
        for exp_id, prediction in zip(group, predictions, strict=True):
            yield exp_id, replace(prediction, seconds=seconds)
        started = time.perf_counter()


def sentence_outputs(
    model: Segmenter,
    frames: Tensor,
    sentences: Sequence[str],
    cfg: Config,
    device: torch.device,
    select: Callable[[int, int], Selector] = lambda first, count: best_query,
) -> Iterator[tuple[int, SegmenterOutput]]:
    """What the model says of one clip: what depends on the frames alone is computed once for all sentences.

    A sentence's output does not depend on those it shares a batch with, but for rounding.

    Args:
        model: in eval mode, on ``device``.
        frames: float32 ``[T, 3, h, w]``, ImageNet-normalised.
        sentences: at least one.
        cfg: reads ``expressions_per_batch`` and ``seed``.
        device: where the model is.
        select: (index of the first sentence of a batch, their number) → which query of each is refined.

    Yields:
        index of a batch's first sentence, and the output for the batch.
    """
    clip, padding = (tensor.to(device) for tensor in pad_clips([frames], MULTIPLE))
    torch.manual_seed(cfg.seed)  # noise, where the model draws any
    pixels = model.encoder.encode_pixels(clip)
    for first in range(0, len(sentences), cfg.expressions_per_batch):
        group = list(sentences[first : first + cfg.expressions_per_batch])
        count = len(group)
        shared = pixels.repeat(count) if count > 1 else pixels
        torch.manual_seed(cfg.seed)
        yield (
            first,
            model.segment_pixels(shared, padding.expand(count, -1, -1), group, select=select(first, count)),
        )


def _predict(
    output: SegmenterOutput, index: int, size: tuple[int, int], orig_size: tuple[int, int], cfg: Config, soft: bool
) -> Prediction:
    """The prediction for one sentence of a batch; ``seconds`` is left at 0."""
    assert output.masks is not None and output.chosen is not None
    query = int(output.chosen[index])
    scores = output.logits[index, :, query, 0].float().sigmoid().cpu().numpy()
    named = bool(scores.mean() >= cfg.score_threshold)  # whether the sentence names anything at all
    probabilities = probability_maps(output.masks[index], size, orig_size) if soft else None
    masks = (
        binary_masks(output.masks[index], size, orig_size, cfg.threshold)
        if probabilities is None
        else probabilities >= cfg.threshold
    )
    masks &= named
    return Prediction(
        masks=masks.numpy(),
        boxes=pixel_boxes(output.boxes[index, :, query], orig_size).cpu().numpy(),
        scores=scores,
        query=query,
        seconds=0.0,
        probabilities=None if probabilities is None else probabilities.mul_(masks).numpy(),
    )
