"""Inference: clips and whole videos in, masks at the original size out.

Two ways lead from frames to masks. ``segment`` takes one clip, as the published models are evaluated: a whole video, or
clips of 36 frames that are independent of each other. ``VideoSegmenter`` takes a stream of any length: windows of
frames that overlap, and one object followed through all of them, in memory that does not grow with the video.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from models import SegmentationModel, build_model, frozen_sources, merge_lora, prepare_inference, prepare_sentences
from models.checkpoints import Checkpoint, load_weights
from models.rem import RemOutput
from models.segmenter import LayerPrediction, SegmenterOutput, Selector, best_query
from util.config import MODELS, Config, config_dict, long_side
from util.device import upload
from util.errors import RunError, UserError
from util.metrics import QueryPredictions
from util.preprocessing import normalise, pad_clips, resize_frames, resized_size

VIDEO_MULTIPLE = 16
"""Height and width of whole videos are padded to a multiple of this, as in the published evaluation."""
LARGE_SIDE = 1280
"""Pixels. A longer side above it is reported, because it takes much memory."""
WINDOW, OVERLAP = 36, 6
"""Frames that the model sees together, and frames that two consecutive windows share."""
ModelOutput = SegmenterOutput | RemOutput
FRAMES_AT_ONCE = 8
"""Masks resized at once. It bounds the memory: one of 1280×720 takes 3.7 MB, and a video may have hundreds."""


@dataclass(frozen=True)
class InferenceOptions:
    """How a model segments; most fields are the options of the same names (``util.config``)."""

    eval_size: int = 360
    max_size: int | None = None
    """None: no limit; ``util.config.SQUARE``: frames become squares of ``eval_size``."""
    expressions_per_batch: int = 4
    threshold: float = 0.5
    score_threshold: float = 0.0
    seed: int = 42
    clip_frames: int | None = None
    """Length of the clips of whole videos, where the dataset prescribes none; None: the whole video."""

    @classmethod
    def from_config(cls, cfg: Config) -> Self:
        """The options of a configuration, for whole videos."""
        values = {field.name: getattr(cfg, field.name) for field in fields(cls) if field.name != "clip_frames"}
        values["max_size"] = long_side(cfg, None)
        return cls(**values, clip_frames=MODELS[cfg.model].clip_frames)


def large_video_notes(sizes: Mapping[str, tuple[int, int]], options: InferenceOptions) -> list[str]:
    """A note for the user if the longer side of any video exceeds ``LARGE_SIDE`` after resizing.

    Args:
        sizes: name of a video → its (H0, W0).
        options: ``eval_size`` and ``max_size`` are used.
    """
    seen = {name: resized_size(*size, options.eval_size, options.max_size) for name, size in sizes.items()}
    large = [name for name, size in seen.items() if max(size) > LARGE_SIDE]
    if not large:
        return []
    name = max(large, key=lambda name: max(seen[name]))
    height, width = seen[name]
    more = f", and {len(large) - 1} more with a longer side above {LARGE_SIDE}" if len(large) > 1 else ""
    return [f"the model sees {name!r} at {width}×{height} pixels{more}; --max_size limits the longer side"]


def build_for_inference(
    cfg: Config, checkpoint: Checkpoint, device: torch.device
) -> tuple[SegmentationModel, list[str]]:
    """Build the model of a configuration with the weights of a checkpoint, on ``device`` and in evaluation mode.

    Returns:
        The model, and notes for the user.

    Raises:
        UserError: a frozen part cannot be loaded, or the weights do not fit the model.
    """
    checkpoint.require_options(config_dict(cfg))
    model = build_model(cfg)
    ignore = cfg.ignore_frozen_identity
    _, notes = load_weights(model, checkpoint, frozen_sources(cfg), ignore_identity=ignore, only_verify=True)
    merge_lora(model)  # computes the same, without the cost of adapters
    return prepare_inference(model, cfg.precision, device, cfg.compile), notes


@dataclass(frozen=True)
class Prediction:
    """The prediction for one expression in one clip of T frames."""

    masks: np.ndarray
    """bool ``[T, H0, W0]`` at the original size; empty where the mean score is below ``score_threshold``."""
    boxes: np.ndarray | None
    """``[T, 4]``: (x0, y0, x1, y1) in pixels of the original size; None from a model without boxes."""
    scores: np.ndarray | None
    """``[T]``: the chosen query's probability of being the referred object, in each frame; None without scores."""
    query: int | None
    finite: bool
    """Whether the prediction consists of finite numbers."""
    seconds: float
    """From frames in memory to masks in memory, with its share of the pass that serves all sentences of a clip."""
    probabilities: np.ndarray | None = None
    """float32 ``[T, H0, W0]``, 0 outside of ``masks``; None where not asked for."""


@torch.inference_mode()
def segment(
    model: SegmentationModel,
    frames: Tensor,
    orig_size: tuple[int, int],
    sentences: Mapping[str, str],
    options: InferenceOptions,
    soft: bool = False,
) -> Iterator[tuple[str, Prediction]]:
    """Segment one clip for each of its sentences; one query is chosen for all its frames.

    Args:
        model: in evaluation mode.
        frames: float32 ``[T, 3, h, w]``, ImageNet-normalised.
        orig_size: (H0, W0) of the masks.
        sentences: expression id → sentence.
        options: ``expressions_per_batch``, ``threshold``, ``score_threshold`` and ``seed`` are used.
        soft: also return the probabilities.

    Yields:
        expression id and its prediction, in the order of ``sentences``.
    """
    if not sentences:
        return
    size = (frames.shape[-2], frames.shape[-1])
    ids, started = list(sentences), time.perf_counter()
    outputs = sentence_outputs(model, frames, list(sentences.values()), options)
    for first, output in outputs:
        group = ids[first : first + options.expressions_per_batch]
        predictions = [_predict(output, i, size, orig_size, options, soft) for i in range(len(group))]
        seconds = (time.perf_counter() - started) / len(group)  # the first group's include what serves all sentences
        for exp_id, prediction in zip(group, predictions, strict=True):
            yield exp_id, replace(prediction, seconds=seconds)
        started = time.perf_counter()


def sentence_outputs(
    model: SegmentationModel,
    frames: Tensor,
    sentences: Sequence[str],
    options: InferenceOptions,
    select: Callable[[int, int], Selector] = lambda first, count: best_query,
) -> Iterator[tuple[int, ModelOutput]]:
    """Run the model on one clip. What depends on the frames alone is computed once for all sentences.

    Apart from rounding, the output for a sentence does not depend on the sentences it shares a batch with.

    Args:
        model: in evaluation mode.
        frames: float32 ``[T, 3, h, w]``, ImageNet-normalised.
        sentences: at least one.
        options: ``expressions_per_batch`` and ``seed`` are used.
        select: (index of the first sentence of a batch, their number) → which query of each is refined.

    Yields:
        index of a batch's first sentence, and the output for the batch.
    """
    prepare_sentences(model, sentences)
    device = next(model.parameters()).device
    clip, padding = (upload(tensor, device) for tensor in pad_clips([frames], VIDEO_MULTIPLE))
    torch.manual_seed(options.seed)  # noise, where the model draws any
    pixels: Any = model.encoder.encode_pixels(clip)
    for first in range(0, len(sentences), options.expressions_per_batch):
        group = list(sentences[first : first + options.expressions_per_batch])
        count = len(group)
        shared = pixels.repeat(count) if count > 1 else pixels
        torch.manual_seed(options.seed)
        yield (first, model.segment_pixels(shared, padding.expand(count, -1, -1), group, select=select(first, count)))


def _predict(
    output: ModelOutput,
    index: int,
    size: tuple[int, int],
    orig_size: tuple[int, int],
    options: InferenceOptions,
    soft: bool,
) -> Prediction:
    """The prediction for one sentence of a batch; ``seconds`` is left at 0."""
    best, activation = output.best(), output.probabilities
    values, scores = best.masks[index], None
    finite = bool(values.isfinite().all()) and (best.scores is None or bool(best.scores[index].isfinite().all()))
    probabilities = probability_maps(values, size, orig_size, activation) if soft else None
    masks = (
        binary_masks(values, size, orig_size, options.threshold, activation)
        if probabilities is None
        else probabilities >= options.threshold
    )
    if best.scores is not None:
        scores = best.scores[index].cpu().numpy()
        masks &= bool(scores.mean() >= options.score_threshold)  # else the sentence names nothing in the clip
    return Prediction(
        masks=masks.numpy(),
        boxes=None if best.boxes is None else pixel_boxes(best.boxes[index], orig_size),
        scores=scores,
        query=None if best.queries is None else int(best.queries[index]),
        finite=finite,
        seconds=0.0,
        probabilities=None if probabilities is None else probabilities.mul_(masks).numpy(),
    )


@dataclass(frozen=True)
class FrameResult:
    """The prediction for one frame and S sentences."""

    probabilities: np.ndarray
    """float32 ``[S, H0, W0]``, 0…1."""
    boxes: np.ndarray | None
    """``[S, 4]``: (x0, y0, x1, y1) in pixels; None from a model without boxes."""
    scores: np.ndarray | None
    """``[S]``, 0…1: the followed query's probability of being the referred object, in this frame; None without."""


class _Raw(NamedTuple):
    """The prediction for one frame, with masks at the size of the model's input."""

    masks: Tensor
    """``[S, H, W]``, padded; logits, or whatever the output's ``probabilities`` takes."""
    boxes: Tensor | None
    """``[S, 4]`` in 0…1."""
    scores: Tensor | None
    """``[S]``."""

    def fade(self, other: _Raw, share: float) -> _Raw:
        """Blend with another prediction for the same frame; ``share`` is the weight of the other."""
        pairs = zip(self, other, strict=True)
        return _Raw(*(None if a is None else torch.lerp(a, b, share) for a, b in pairs))  # type: ignore[arg-type]


def window_overlap(window: int, overlap: int | str | None) -> int:
    """Return the number of frames that two windows share; None or "auto": 6, or half of a short window.

    Raises:
        UserError: the numbers do not fit together.
    """
    shared = overlap if isinstance(overlap, int) else min(OVERLAP, window // 2)
    if not 0 < shared < window and (window, shared) != (1, 0):
        raise UserError(f"--overlap must be at least 1 and less than --window, not {shared} of {window}")
    return shared


class VideoSegmenter:
    """Segments the objects that sentences name in a stream of frames.

    The published models take a whole video as one clip. A long video does not fit into memory, and cut into independent
    clips each of them would choose a query of its own, perhaps another object's. Here the query of each window is the
    one that best continues the mask of the window before in the frames that both share, where the masks are blended.

    Args:
        model: in evaluation mode.
        options: all but ``threshold`` and ``score_threshold`` are used.
        sentences: S of them, at least one.
        window: frames that the model sees together.
        overlap: as in ``window_overlap``.

    Raises:
        UserError: the numbers do not fit together.
    """

    def __init__(
        self,
        model: SegmentationModel,
        options: InferenceOptions,
        sentences: Sequence[str],
        window: int = WINDOW,
        overlap: int | None = None,
    ) -> None:
        if not sentences:
            raise UserError("there is no sentence; name what to segment")
        self.model, self.options = model, options
        self.sentences = list(sentences)
        self.window, self.overlap = window, window_overlap(window, overlap)
        self._activation: Activation = torch.sigmoid  # the one of the model's outputs

    @torch.inference_mode()
    def run(self, frames: Iterable[np.ndarray]) -> Iterator[FrameResult]:
        """Segment the frames of one video.

        The last window has as many frames as the others: it begins earlier, and shares more frames.

        Args:
            frames: uint8 RGB ``[H0, W0, 3]``, all of one size, in order of time.

        Yields:
            One result per frame, in order, at most ``window`` frames after that frame was read.

        Raises:
            UserError: frames differ in size.
            RunError: the predictions are not finite.
        """
        clip: deque[Tensor] = deque(maxlen=self.window)
        size: tuple[int, int] | None = None
        held: list[_Raw] = []  # the last window's frames that the next one may share
        last: Tensor | None = None  # the chosen masks of the last window [S, T, h, w]
        seen = covered = 0
        for frame in chain(frames, (None,)):  # None: the end
            if frame is not None:
                size = size or (frame.shape[0], frame.shape[1])
                clip.append(self._prepare(frame, seen, size))
                seen += 1
            due = covered + self.window - (self.overlap if covered else 0)
            if size and (seen == due or (frame is None and seen > covered)):
                shared = covered - (seen - len(clip))
                raws, last = self._segment(list(clip), last, shared)
                done, held = self._join(held, raws, shared, self.overlap)
                covered = seen
                yield from (self._finish(raw, clip[0].shape[-2:], size) for raw in done)
        if size:
            yield from (self._finish(raw, clip[0].shape[-2:], size) for raw in held)

    def _prepare(self, frame: np.ndarray, index: int, size: tuple[int, int]) -> Tensor:
        """A frame as the model takes it: float32 ``[3, h, w]``."""
        if frame.shape[:2] != size:
            sizes = " and ".join(f"{width}×{height}" for height, width in (frame.shape[:2], size))
            raise UserError(f"frames {index} and 0 differ in size ({sizes}); a video has frames of one size")
        picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
        return normalise(resize_frames(picture, self.options.eval_size, self.options.max_size))

    def _segment(self, clip: Sequence[Tensor], last: Tensor | None, shared: int) -> tuple[list[_Raw], Tensor | None]:
        """Segment a window.

        Args:
            clip: its frames.
            last: masks of the queries chosen in the previous window, bool ``[S, T, h, w]``, or None.
            shared: number of frames at the start of this window that are also the end of the previous one.

        Returns:
            The prediction for each frame, and masks like ``last`` of the queries chosen now, if there are queries.
        """

        def select(first: int, count: int) -> Selector:
            if last is None or not shared:
                return best_query
            return FollowedQuery(last[first : first + count, -shared:])

        found = []
        for _, output in sentence_outputs(self.model, torch.stack(list(clip)), self.sentences, self.options, select):
            found.append(output.best())
            self._activation = output.probabilities

        def joined(parts: list[Any]) -> Any:
            return None if parts[0] is None else torch.cat(parts)

        columns = [joined([getattr(best, name) for best in found]) for name in ("masks", "boxes", "scores")]
        if not all(bool(column.isfinite().all()) for column in columns if column is not None):
            raise RunError("the predictions are not finite numbers; the checkpoint may come from a run that diverged")
        frames = [
            _Raw(*(None if column is None else column[:, t].float() for column in columns))  # type: ignore[arg-type]
            for t in range(len(clip))
        ]
        return frames, joined([best.low for best in found])

    def _join(
        self, held: Sequence[_Raw], raws: Sequence[_Raw], shared: int, keep: int
    ) -> tuple[list[_Raw], list[_Raw]]:
        """Blend the end of the previous window into a new window.

        Args:
            held: predictions for the last frames of the previous window, which have not been returned yet.
            raws: predictions for the new window.
            shared: number of frames that the two windows share. Those before the held ones are finished.
            keep: number of frames to hold back for the next window.

        Returns:
            Predictions that are finished, and predictions to hold back.
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
        probabilities = mask_probabilities(raw.masks, (size[0], size[1]), orig_size, self._activation)
        return FrameResult(
            probabilities.cpu().numpy(),
            None if raw.boxes is None else pixel_boxes(raw.boxes, orig_size),
            None if raw.scores is None else raw.scores.cpu().numpy(),
        )


class FollowedQuery:
    """Chooses the query that continues a mask: the one with the highest sum of its score and the IoU with the mask in
    the frames that two windows share. Both are 0…1. If the object is not visible in them, the score alone decides.

    Args:
        masks: bool ``[B, T, h, w]`` of the frames that come first in the new window, at the size of ``low_masks``.
    """

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks

    def __call__(self, prediction: LayerPrediction) -> Tensor:
        """The index of the chosen query, ``[B]``."""
        predicted = prediction.low_masks[:, : self.masks.shape[1]] > 0
        previous = self.masks[:, :, None]
        intersection = (predicted & previous).sum((1, 3, 4))
        union = (predicted | previous).sum((1, 3, 4)).clamp(min=1)
        score = prediction.logits[..., 0].sigmoid().mean(dim=1)
        return (score + intersection / union).argmax(dim=1)


Activation = Callable[[Tensor], Tensor]
"""Makes probabilities of masks that a model predicts: the sigmoid of logits, for example."""


def mask_probabilities(
    masks: Tensor, size: tuple[int, int], orig_size: tuple[int, int], activation: Activation = torch.sigmoid
) -> Tensor:
    """Cut off the padding, resize the masks bilinearly to the original size, and make probabilities of them.

    Args:
        masks: ``[T, H, W]`` at padded resolution, as the model predicts them.
        size: (h, w) of the unpadded frames, h ≤ H and w ≤ W.
        orig_size: (H0, W0) on disk.
        activation: the output's ``probabilities``.

    Returns:
        float32 ``[T, H0, W0]``, 0…1.
    """
    height, width = size
    assert height <= masks.shape[-2] and width <= masks.shape[-1], (size, masks.shape)
    unpadded = masks[:, None, :height, :width].float()
    return activation(F.interpolate(unpadded, size=orig_size, mode="bilinear", align_corners=False)[:, 0])


def binary_masks(
    masks: Tensor,
    size: tuple[int, int],
    orig_size: tuple[int, int],
    threshold: float,
    activation: Activation = torch.sigmoid,
) -> Tensor:
    """Masks on the CPU, where the probability is at least ``threshold``: bool ``[T, H0, W0]``.

    Arguments as for ``mask_probabilities``; a few frames are resized at once, so that the device's memory does not
    grow with the length of the video.
    """
    parts = masks.split(FRAMES_AT_ONCE)
    return torch.cat([(mask_probabilities(part, size, orig_size, activation) >= threshold).cpu() for part in parts])


def probability_maps(
    masks: Tensor, size: tuple[int, int], orig_size: tuple[int, int], activation: Activation = torch.sigmoid
) -> Tensor:
    """``mask_probabilities``, computed for a few frames at once and moved to the CPU: float32 ``[T, H0, W0]``."""
    parts = masks.split(FRAMES_AT_ONCE)
    return torch.cat([mask_probabilities(part, size, orig_size, activation).cpu() for part in parts])


def query_predictions(
    output: ModelOutput, targets: Sequence[Mapping[str, Any]], threshold: float
) -> list[QueryPredictions]:
    """All queries' masks and boxes in the one frame of each clip that is scored, at its original size.

    Args:
        output: of clips with one frame (T = 1), every query refined. A model without queries has one mask.
        targets: per clip ``exp_id``, ``size [2]`` (h, w) after the transforms and ``orig_size [2]``.
        threshold: mask probability from which a pixel belongs to the object.
    """
    assert output.masks is not None and output.masks.shape[1] == 1, "one frame of each clip"
    predictions = []
    for i, target in enumerate(targets):
        size, orig_size = (tuple(target[key].tolist()) for key in ("size", "orig_size"))
        scores = boxes = None
        masks = output.masks[i]
        if isinstance(output, SegmenterOutput):
            assert masks.ndim == 4, "all queries"
            masks = masks[0]
            scores = output.logits[i, 0, :, 0].float().sigmoid().cpu().numpy()
            boxes = pixel_boxes(output.boxes[i, 0], orig_size)
        binary = binary_masks(masks, size, orig_size, threshold, output.probabilities).numpy()
        predictions.append(QueryPredictions(target["exp_id"], scores, binary, boxes, bool(masks.isfinite().all())))
    return predictions


def pixel_boxes(boxes: Tensor, orig_size: tuple[int, int]) -> np.ndarray:
    """Boxes (cx, cy, w, h) in 0…1, ``[..., 4]`` → float32 corners (x0, y0, x1, y1) in pixels, in the image."""
    height, width = orig_size
    corners = box_convert(boxes.float().cpu(), "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    return clip_boxes_to_image(corners, orig_size).numpy()
