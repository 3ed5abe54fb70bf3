"""Sentences that share a batch, and long videos in windows: the same masks, and one object followed throughout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import build_model
from models.inference import FollowedQuery, InferenceOptions, VideoSegmenter, segment
from models.segmenter import LayerPrediction, SegmenterOutput
from tests.tiny_models import model_config
from util.errors import RunError, UserError
from util.preprocessing import normalise

CPU = torch.device("cpu")
SENTENCES = ["the red circle", "a blue square moving left", "the thing that is small", "a star"]
HEIGHT, WIDTH = 32, 48


# --- the real model in small


@pytest.mark.parametrize("options", [{"model": "vdit"}, {"model": "vdit", "noise": "gaussian"}, {"model": "hcd"}])
def test_sentences_do_not_depend_on_their_batch(options: dict[str, Any], tiny_stack: Path):
    cfg = model_config(tiny_stack, **options)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    frames = torch.randn(2, 3, 64, 96)
    masks = {}
    for size in (1, 3, 4):
        batched = replace(cfg, expressions_per_batch=size)
        results = segment(
            model, frames, (64, 96), dict(enumerate(SENTENCES)), InferenceOptions.from_config(batched), soft=True
        )
        masks[size] = {key: (p.probabilities, p.scores, p.boxes, p.query) for key, p in results}
        assert list(masks[size]) == [0, 1, 2, 3]
    assert not np.allclose(masks[1][0][1], masks[1][3][1], atol=1e-6), "sentences matter at all"
    for size in (3, 4):
        for key, alone in masks[1].items():
            for one, other in zip(alone, masks[size][key], strict=True):
                np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_short_video_is_one_clip(tiny_stack: Path):
    cfg = replace(model_config(tiny_stack), eval_size=64, train_scales=(64,), max_size=96)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3), np.uint8)
    found = list(
        VideoSegmenter(model, InferenceOptions.from_config(cfg), SENTENCES[:2], window=36, overlap=6).run(frames)
    )
    clip = normalise(torch.from_numpy(frames).permute(0, 3, 1, 2))
    expected = segment(
        model, clip, (64, 96), dict(enumerate(SENTENCES[:2])), InferenceOptions.from_config(cfg), soft=True
    )
    for i, prediction in expected:
        kept = np.stack([frame.probabilities[i] for frame in found])
        assert prediction.probabilities is not None
        np.testing.assert_allclose(np.where(kept >= 0.5, kept, 0), prediction.probabilities, atol=1e-6)
        np.testing.assert_allclose(np.stack([frame.scores[i] for frame in found]), prediction.scores, atol=1e-6)
        np.testing.assert_allclose(np.stack([frame.boxes[i] for frame in found]), prediction.boxes, atol=1e-4)


# --- a stub whose queries change places from one window to the next


class TwoHalves(nn.Module):
    """Two queries: one has the left half, one the right; which is which, and which scores more, changes by window."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SimpleNamespace(encode_pixels=lambda frames: frames)
        self.place = nn.Parameter(torch.zeros(()))  # its device is that of the model
        self.lengths: list[int] = []
        self.sizes: set[tuple[int, int]] = set()

    def segment_pixels(
        self, frames: Tensor, padding: Tensor, captions: list[str], select: Callable[[LayerPrediction], Tensor]
    ) -> Any:
        length, height, width = frames.shape[1], *frames.shape[-2:]
        swapped = len(self.lengths) % 2
        self.lengths.append(length)
        self.sizes.add((height, width))
        halves = torch.full((2, height, width), -4.0)
        halves[swapped, :, : width // 2] = 4.0  # of query 0, unless they are swapped
        halves[1 - swapped, :, width // 2 :] = 4.0
        masks = halves[None, None].expand(1, length, -1, -1, -1)
        boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])[[swapped, 1 - swapped]]
        scores = torch.tensor([1.0, 0.0]).expand(1, length, 2)[..., None]  # query 0 always scores more
        layer = LayerPrediction(scores, boxes.expand(1, length, 2, 4), masks[..., ::2, ::2])
        layer.chosen = select(layer)
        layer.masks = masks[torch.arange(1), :, layer.chosen]
        return SegmenterOutput([layer])


def windows_options() -> InferenceOptions:
    return InferenceOptions(eval_size=HEIGHT, max_size=WIDTH)


def black(count: int) -> list[np.ndarray]:
    return [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * count


@pytest.mark.parametrize(
    ("frames", "lengths"),
    [(0, []), (1, [1]), (7, [7]), (8, [8]), (9, [8, 8]), (14, [8, 8]), (15, [8, 8, 8]), (26, [8, 8, 8, 8])],
)
def test_one_object_through_all_windows(frames: int, lengths: list[int]):
    model: Any = TwoHalves()
    found = list(VideoSegmenter(model, windows_options(), ["left"], window=8, overlap=2).run(iter(black(frames))))
    assert model.lengths == lengths, "the last window reaches back to be a whole one"
    assert len(found) == frames
    for result in found:
        assert result.probabilities.shape == (1, HEIGHT, WIDTH) and result.boxes.shape == (1, 4)
        mask = result.probabilities[0] >= 0.5
        assert mask[:, : WIDTH // 2].all() and not mask[:, WIDTH // 2 :].any()
        np.testing.assert_allclose(result.boxes[0], [0, 0, WIDTH / 2, HEIGHT], atol=1e-4)


@pytest.mark.parametrize(("max_size", "padded"), [(None, (32, 208)), (100, (16, 112))])
def test_wide_frames(max_size: int | None, padded: tuple[int, int]):
    """At the shorter side 32 they are 200 pixels wide."""
    model: Any = TwoHalves()
    frames = [np.zeros((48, 300, 3), np.uint8)] * 2
    (first, _) = VideoSegmenter(model, InferenceOptions(eval_size=HEIGHT, max_size=max_size), ["left"]).run(frames)
    assert model.sizes == {padded} and first.probabilities.shape == (1, 48, 300)


def test_frames_come_out_soon():
    """No more than a window is waited for, however long the video."""
    given = 0

    def count() -> Any:
        nonlocal given
        for frame in black(40):
            given += 1
            yield frame

    model: Any = TwoHalves()
    for number, _ in enumerate(VideoSegmenter(model, windows_options(), ["left"], 8, 2).run(count())):
        assert given - number <= 8


def test_followed_query():
    masks = torch.full((1, 3, 3, 4, 4), -1.0)  # [B, T, Q, h, w]
    masks[:, :, 1, :2] = 1.0
    masks[:, :, 2, 2:] = 1.0
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(1, 3, 3)[..., None]
    prediction = LayerPrediction(logits, torch.zeros(1, 3, 3, 4), masks)
    lower = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    lower[:, :, 2:] = True
    assert FollowedQuery(lower)(prediction).tolist() == [2], "the same object, though another scores more"
    assert FollowedQuery(torch.zeros_like(lower))(prediction).tolist() == [1], "it was out of sight: the best"


@pytest.mark.parametrize(("window", "overlap"), [(8, 8), (8, 0), (1, 1), (0, 0)])
def test_windows_that_do_not_fit(window: int, overlap: int):
    model: Any = TwoHalves()
    with pytest.raises(UserError, match="--overlap must be at least 1 and less than --window"):
        VideoSegmenter(model, windows_options(), ["left"], window, overlap)


@pytest.mark.parametrize("part", ["logits", "boxes", "masks"])
def test_predictions_that_are_not_finite(part: str):
    class Diverged(TwoHalves):
        def segment_pixels(self, *args: Any, **options: Any) -> Any:
            output = super().segment_pixels(*args, **options)
            (layer,) = output.layers
            setattr(layer, part, getattr(layer, part) * float("nan"))
            return output

    model: Any = Diverged()
    with pytest.raises(RunError, match="the predictions are not finite"):
        list(VideoSegmenter(model, windows_options(), ["left"]).run(black(2)))


def test_frames_of_two_sizes():
    model: Any = TwoHalves()
    frames = [*black(2), np.zeros((WIDTH, HEIGHT, 3), np.uint8)]
    with pytest.raises(UserError, match="frames 2 and 0 differ in size"):
        list(VideoSegmenter(model, windows_options(), ["left"]).run(frames))
