"""The network: from frames and a sentence to the mask of the referred object in every frame.

VD-IT and HCD are two sets of the same parts (``models.build_model``). Legend: ``B`` clips, ``T`` frames, ``N`` = B·T,
``Q`` queries, ``C`` width, ``H``×``W`` the padded frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from models.deformable_transformer import DeformableTransformer
from models.mask_heads import MaskHead, MaskRefinement, QueryDotHead, shuffle_mask, sum_memories
from models.precision import call_in_float32, in_own_precision
from models.pyramid import ClipFeatures, PyramidEncoder
from models.text_encoder import LanguageQueries, SentenceEncoder


@dataclass
class LayerPrediction:
    """The predictions of one decoder layer for a batch of clips. ``T`` is 1 where one frame was selected."""

    logits: Tensor
    """``[B, T, Q, 1]``: whether the query is the referred object."""
    boxes: Tensor
    """``[B, T, Q, 4]``: (cx, cy, w, h) in 0…1 of the unpadded frame."""
    low_masks: Tensor
    """``[B, T, Q, H/2, W/2]``: mask logits before refinement."""
    chosen: Tensor | None = None
    """``[B]``: the refined query; None if all are refined."""
    masks: Tensor | None = None
    """``[B, T, H, W]`` logits of the chosen query, or ``[B, T, Q, H, W]`` of all; None before refinement."""


class Selector(Protocol):
    """Chooses one query per clip, ``[B]``, or None for all."""

    def __call__(self, prediction: LayerPrediction) -> Tensor | None:
        """Choose from the predictions of one decoder layer, whose ``masks`` are not set yet."""


def best_query(prediction: LayerPrediction) -> Tensor:
    """The query with the highest class probability, averaged over the frames of the clip, ``[B]``."""
    return prediction.logits[..., 0].sigmoid().mean(dim=1).argmax(dim=1)


def all_queries(prediction: LayerPrediction) -> None:
    """All queries, for datasets that score every query (A2D, JHMDB, RefCOCO)."""
    return


@dataclass
class ClipMasks:
    """What a model predicts for each clip of a batch. A model without queries has masks only."""

    masks: Tensor
    """``[B, T, H, W]``; the output's ``probabilities`` makes probabilities of them."""
    scores: Tensor | None = None
    """``[B, T]``, 0…1: the probability of being the referred object."""
    boxes: Tensor | None = None
    """``[B, T, 4]``: (cx, cy, w, h) in 0…1."""
    low: Tensor | None = None
    """bool ``[B, T, h, w]``: the coarse mask, by which the next window follows the object."""
    queries: Tensor | None = None
    """``[B]``."""


@dataclass
class SegmenterOutput:
    """The predictions of the decoder layers, in order."""

    layers: list[LayerPrediction]
    """All layers in training, only the last one in evaluation."""

    @property
    def logits(self) -> Tensor:
        """``[B, T, Q, 1]``."""
        return self.layers[-1].logits

    @property
    def boxes(self) -> Tensor:
        """``[B, T, Q, 4]``."""
        return self.layers[-1].boxes

    @property
    def chosen(self) -> Tensor | None:
        """``[B]`` or None."""
        return self.layers[-1].chosen

    @property
    def masks(self) -> Tensor | None:
        """``[B, T, H, W]`` of the chosen query or ``[B, T, Q, H, W]`` of all."""
        return self.layers[-1].masks

    def best(self) -> ClipMasks:
        """The prediction of the chosen query of each clip."""
        last = self.layers[-1]
        assert last.masks is not None and last.chosen is not None
        rows = torch.arange(len(last.chosen), device=last.chosen.device)
        return ClipMasks(
            masks=last.masks,
            scores=last.logits[rows, :, last.chosen, 0].float().sigmoid(),
            boxes=last.boxes[rows, :, last.chosen],
            low=last.low_masks[rows, :, last.chosen] > 0,
            queries=last.chosen,
        )

    def first_clip(self) -> Callable[[], Tensor]:
        """A function that returns the mask probabilities of the first clip, ``[T, H, W]``; it keeps no graph."""
        assert self.masks is not None
        masks = self.masks[0].detach()
        return partial(self.probabilities, masks)

    @staticmethod
    def probabilities(masks: Tensor) -> Tensor:
        """Resized mask logits as probabilities, 0…1."""
        return masks.sigmoid()


class Segmenter(nn.Module):
    """Referring video object segmentation with text-to-video diffusion features.

    Args:
        encoder: frames and sentence → pyramid.
        sentence_encoder: sentence → words.
        language_queries: words → decoder queries.
        transformer: pyramid and queries → states, boxes, memories.
        mask_head: states → low masks.
        query_dot_head: its masks are added to those of ``mask_head`` (HCD); None: not used (VD-IT).
        refinement: low mask → full-resolution mask.
        dim: width of the decoder.

    Attributes:
        precision: of matrix products and convolutions (``models.precision``); predictions are float32.
    """

    precision: torch.dtype = torch.float32

    def __init__(
        self,
        encoder: PyramidEncoder,
        sentence_encoder: SentenceEncoder,
        language_queries: LanguageQueries,
        transformer: DeformableTransformer,
        mask_head: MaskHead,
        query_dot_head: QueryDotHead | None,
        refinement: MaskRefinement,
        dim: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.sentence_encoder = sentence_encoder
        self.language_queries = language_queries
        self.transformer = transformer
        heads = [nn.Linear(dim, 1) for _ in transformer.decoder]
        self.class_heads = nn.ModuleList(heads)
        self.mask_head = mask_head
        self.query_dot_head = query_dot_head
        self.refinement = refinement
        for head in heads:
            nn.init.constant_(head.bias, -math.log(99))

    def forward(
        self,
        frames: Tensor,
        padding: Tensor,
        captions: list[str],
        select: Selector = best_query,
        annotated: Tensor | None = None,
    ) -> SegmenterOutput:
        """Segment the object that each clip's sentence names.

        Args:
            frames: ``[B, T, 3, H, W]``, ImageNet-normalised and zero-padded on the right and bottom; H and W
                multiples of 16.
            padding: ``[B, H, W]``, True where padded.
            captions: B sentences.
            select: chooses the refined query: ``best_query``, ``all_queries`` or a matcher bound to targets.
            annotated: ``[B]``, the frame of each clip that the decoder gets (A2D, JHMDB); None: all frames.

        Returns:
            ``logits [B, T, Q, 1]``, ``boxes [B, T, Q, 4]``, ``chosen [B]`` and mask logits ``masks [B, T, H, W]``.
        """
        return self.segment_pixels(self.encoder.encode_pixels(frames), padding, captions, select, annotated)

    @in_own_precision
    def segment_pixels(
        self,
        pixels: ClipFeatures,
        padding: Tensor,
        captions: list[str],
        select: Selector = best_query,
        annotated: Tensor | None = None,
    ) -> SegmenterOutput:
        """``forward`` from the output of ``encoder.encode_pixels``, which serves every sentence of a video."""
        batch, frames = pixels.batch_shape
        pyramid = self.encoder(pixels, captions)
        if annotated is not None:
            index = torch.arange(batch, device=annotated.device) * frames + annotated
            pyramid = [level[index] for level in pyramid]
            frames = 1

        queries = self.language_queries(*self.sentence_encoder(captions))
        decoded = self.transformer(
            pyramid[1:], padding.repeat_interleave(frames, dim=0), queries.repeat_interleave(frames, dim=0)
        )
        features = sum_memories(decoded.memory)
        sizes = unpadded_size(padding).repeat_interleave(frames, dim=0)[:, None]

        layers = []
        first = 0 if self.training else len(decoded.states) - 1
        for i in range(first, len(decoded.states)):
            states, boxes = decoded.states[i], decoded.boxes[i]
            low = self.mask_head(features, states, boxes[..., :2].detach() * sizes)
            if self.query_dot_head is not None:
                low = low + self.query_dot_head(decoded.memory, states)
            prediction = LayerPrediction(
                logits=call_in_float32(self.class_heads[i], states).unflatten(0, (batch, frames)),
                boxes=boxes.unflatten(0, (batch, frames)),
                low_masks=shuffle_mask(low).unflatten(0, (batch, frames)),
            )
            prediction.chosen = select(prediction)
            prediction.masks = self._refine(low.unflatten(0, (batch, frames)), prediction.chosen, pyramid)
            layers.append(prediction)
        return SegmenterOutput(layers)

    def _refine(self, low: Tensor, chosen: Tensor | None, pyramid: list[Tensor]) -> Tensor:
        """Refine ``low [B, T, Q, 16, h, w]``: the chosen query of each clip, or all of them in turn.

        Copies of a clip, one per sentence, share their ``pyramid[0]``.
        """
        batch, frames, queries = low.shape[:3]
        f4, f8 = pyramid[0], pyramid[1]
        if chosen is not None:
            picked = low[torch.arange(batch, device=low.device), :, chosen].flatten(0, 1)
            pairs = zip(picked.split(len(f4)), f8.split(len(f4)), strict=True)
            return torch.cat([self.refinement(mask, f4, own) for mask, own in pairs]).unflatten(0, (batch, frames))
        assert len(f4) == len(f8), "refining all queries needs one sentence per clip"
        masks = [self.refinement(low[:, :, q].flatten(0, 1), f4, f8) for q in range(queries)]
        return torch.stack(masks, dim=1).unflatten(0, (batch, frames))


def unpadded_size(padding: Tensor) -> Tensor:
    """(width, height) in pixels of the unpadded frames: ``[B, H, W]`` → ``[B, 2]``."""
    real = ~padding
    return torch.stack([real[:, 0].sum(-1), real[:, :, 0].sum(-1)], dim=-1).float()
