"""Segmenting a video of any length: windows of frames that overlap, and one object followed through all of them.

The published models take a whole video as one clip. A long one does not fit, and cut into clips it would get a query of
its own in each, perhaps another object's. Here each window's query is the one that goes on with the last window's mask
where the two overlap, and the masks are faded into each other there. Memory does not grow with the video.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.postprocessors import mask_probabilities, pixel_boxes
from models.prediction import sentence_outputs
from models.segmenter import Segmenter
from models.selection import LayerPrediction, Selector, best_query
from util.config import Config
from util.errors import UserError
from util.frames import normalise, resize_frames

WINDOW, OVERLAP = 36, 6


@dataclass(frozen=True)
class FrameResult:
    """What the model says of a frame, for each of S sentences."""

    probabilities: np.ndarray
    """float32 ``[S, H0, W0]``, 0…1."""
    boxes: np.ndarray
    """``[S, 4]``: (x0, y0, x1, y1) in pixels."""
    scores: np.ndarray
    """``[S]``, 0…1: the followed query's probability of being the referred object, in this frame."""


@dataclass
class _Raw:
    """A frame before its masks have the video's size."""

    logits: Tensor
    """``[S, H, W]``, padded."""
    boxes: Tensor
    """``[S, 4]`` in 0…1."""
    scores: Tensor
    """``[S]``."""

    def fade(self, other: _Raw, share: float) -> _Raw:
        """This frame with a share of the other's view of it."""
        return _Raw(
            torch.lerp(self.logits, other.logits, share),
            torch.lerp(self.boxes, other.boxes, share),
            torch.lerp(self.scores, other.scores, share),
        )


class VideoSegmenter:
    """Segments the objects that sentences name in a stream of frames.

    Args:
        model: in eval mode, on ``device``.
        cfg: reads ``eval_size``, ``max_size``, ``expressions_per_batch``, ``threshold`` and ``seed``.
        device: where the model is.
        sentences: S of them, at least one.
        window: frames that the model sees together.
        overlap: frames that two windows share, fewer than ``window``; None: 6, or half of a short window.

    Raises:
        UserError: the numbers do not fit together.
    """

    def __init__(
        self,
        model: Segmenter,
        cfg: Config,
        device: torch.device,
        sentences: Sequence[str],
        window: int = WINDOW,
        overlap: int | None = None,
    ) -> None:
        if overlap is None:
            overlap = min(OVERLAP, window // 2)
        if not 0 < overlap < window and (window, overlap) != (1, 0):
            raise UserError(f"--overlap must be at least 1 and less than --window, not {overlap} of {window}")
        if not sentences:
            raise UserError("there is no sentence; name what to segment")
        self.model, self.cfg, self.device = model, cfg, device
        self.sentences = list(sentences)
        self.window, self.overlap = window, overlap

    @torch.inference_mode()
    def run(self, frames: Iterable[np.ndarray]) -> Iterator[FrameResult]:
        """Segment the frames of one video.

        The last window reaches back as far as it takes to be a whole one.

        Args:
            frames: uint8 RGB ``[H0, W0, 3]``, all of one size, in order of time.

        Yields:
            One result per frame, in order, up to ``window`` frames later than the frame was taken.

        Raises:
            UserError: frames differ in size.
        """
        clip: deque[Tensor] = deque(maxlen=self.window)
        size: tuple[int, int] | None = None
        held: list[_Raw] = []  # the last window's frames that the next one may share
        last: Tensor | None = None  # the chosen masks of the last window [S, T, h, w]
        seen = covered = 0
        for frame in frames:
            size = size or (frame.shape[0], frame.shape[1])
            clip.append(self._prepare(frame, seen, size))
            seen += 1
            if seen == covered + self.window - (self.overlap if covered else 0):
                raws, last = self._segment(list(clip), last, covered - (seen - len(clip)))
                done, held = self._join(held, raws, covered - (seen - len(clip)), self.overlap)
                covered = seen
                yield from (self._finish(raw, clip[0].shape[-2:], size) for raw in done)
        if seen > covered and size:
            raws, last = self._segment(list(clip), last, covered - (seen - len(clip)))
            done, held = self._join(held, raws, covered - (seen - len(clip)), 0)
            yield from (self._finish(raw, clip[0].shape[-2:], size) for raw in done)
        if size:
            yield from (self._finish(raw, clip[0].shape[-2:], size) for raw in held)

    def _prepare(self, frame: np.ndarray, index: int, size: tuple[int, int]) -> Tensor:
        """A frame as the model takes it: float32 ``[3, h, w]``."""
        if frame.shape[:2] != size:
            sizes = " and ".join(f"{width}×{height}" for height, width in (frame.shape[:2], size))
            raise UserError(f"frames {index} and 0 differ in size ({sizes}); a video has frames of one size")
        picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
        return normalise(resize_frames(picture, self.cfg.eval_size, self.cfg.max_size))

    def _segment(self, clip: Sequence[Tensor], last: Tensor | None, shared: int) -> tuple[list[_Raw], Tensor]:
        """Segment a window.

        Args:
            clip: its frames.
            last: the chosen masks of the window before, bool ``[S, T, h, w]``, or None.
            shared: how many frames it shares with that: the last of those are the first of these.

        Returns:
            What the model says of each frame, and the chosen masks.
        """

        def select(first: int, count: int) -> Selector:
            if last is None or not shared:
                return best_query
            return FollowedQuery(last[first : first + count, -shared:])

        logits, boxes, scores, masks = [], [], [], []
        for _, output in sentence_outputs(
            self.model, torch.stack(list(clip)), self.sentences, self.cfg, self.device, select
        ):
            assert output.masks is not None and output.chosen is not None
            rows = torch.arange(len(output.chosen), device=output.chosen.device)
            layer = output.layers[-1]
            logits.append(output.masks)
            boxes.append(layer.boxes[rows, :, output.chosen])
            scores.append(layer.logits[rows, :, output.chosen, 0].sigmoid())
            masks.append(layer.low_masks[rows, :, output.chosen] > 0)
        parts = (torch.cat(part).transpose(0, 1).float() for part in (logits, boxes, scores))
        return [_Raw(*frame) for frame in zip(*parts, strict=True)], torch.cat(masks)

    def _join(
        self, held: Sequence[_Raw], raws: Sequence[_Raw], shared: int, keep: int
    ) -> tuple[list[_Raw], list[_Raw]]:
        """Fade what is held into a new window.

        Args:
            held: the last frames of the window before, which are not given out yet.
            raws: the new window.
            shared: how many frames the two windows share; those before the held ones are given out already.
            keep: how many frames to hold for the next window.

        Returns:
            Frames to give out, and frames to hold.
        """
        joined = [
            old.fade(new, (i + 1) / (len(held) + 1))
            for i, (old, new) in enumerate(zip(held, raws[shared - len(held) : shared], strict=True))
        ]
        joined += raws[shared:]
        border = len(joined) - keep
        return joined[:border], joined[border:]

    def _finish(self, raw: _Raw, size: tuple[int, ...], orig_size: tuple[int, int]) -> FrameResult:
        """A frame's result at the video's size."""
        probabilities = mask_probabilities(raw.logits, (size[0], size[1]), orig_size)
        return FrameResult(
            probabilities.cpu().numpy(), pixel_boxes(raw.boxes, orig_size).cpu().numpy(), raw.scores.cpu().numpy()
        )


class FollowedQuery:
    """Chooses the query that goes on with a mask: the greatest sum of score and IoU with it where windows overlap.

    Both are 0…1. Where the object is out of sight in all shared frames, the score alone decides.

    Args:
        masks: bool ``[B, T, h, w]`` of the frames that come first in the new window, at the size of ``low_masks``.
    """

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks

    def __call__(self, prediction: LayerPrediction) -> Tensor:
        """The index of the chosen query, ``[B]``."""
        mine = prediction.low_masks[:, : self.masks.shape[1]] > 0
        theirs = self.masks[:, :, None]
        common = (mine & theirs).sum((1, 3, 4))
        either = (mine | theirs).sum((1, 3, 4)).clamp(min=1)
        score = prediction.logits[..., 0].sigmoid().mean(dim=1)
        return (score + common / either).argmax(dim=1)
