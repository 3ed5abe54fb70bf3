"""Clip transforms: one geometry for frames, masks and sentence; sizes; colours; determinism."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from datasets.transforms import (
    EvalTransform,
    TrainTransform,
    build_transform,
    distort_colours,
    flip,
    resize,
    swap_sides,
)
from util.config import Config
from util.errors import UserError
from util.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalise, resize_frames, resized_size

SMALL: dict[str, Any] = {"train_scales": (48, 56, 64), "crop_scales": (60, 80), "crop_range": (50, 90), "max_size": 96}


def make_clip(frames: int = 3, height: int = 60, width: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Black frames, all alike, with a white object that the masks mark."""
    masks = torch.zeros(frames, height, width, dtype=torch.bool)
    masks[:, height // 4 : height * 3 // 4, width // 5 : width // 2] = True
    return (masks[:, None] * 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous(), masks


def to_grey(frames: torch.Tensor) -> torch.Tensor:
    """Normalised ``[T, 3, h, w]`` → brightness ``[T, h, w]`` in 0…1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (frames * std + mean).mean(1)


@pytest.mark.parametrize(
    ("size", "short_side", "long_side", "expected"),
    [
        ((720, 1280), 360, 640, (360, 640)),
        ((1280, 720), 360, 640, (640, 360)),
        ((480, 854), 360, 640, (360, 640)),
        ((480, 640), 360, 640, (360, 480)),
        ((480, 480), 512, 640, (512, 512)),
        ((720, 1280), 512, 640, (360, 640)),  # the longer side would be 910
        ((100, 1000), 288, 640, (64, 640)),
        ((1000, 100), 288, 640, (640, 64)),
        ((720, 1280), 600, None, (600, 1066)),
        ((480, 910), 360, None, (360, 682)),  # Ref-DAVIS17
        ((480, 1152), 360, None, (360, 864)),
        ((3, 3000), 10, 64, (1, 64)),
        ((64, 64), 64, 64, (64, 64)),
    ],
)
def test_size_rule(size: tuple[int, int], short_side: int, long_side: int | None, expected: tuple[int, int]) -> None:
    assert resized_size(*size, short_side, long_side) == expected


def test_masks_stay_binary_and_follow_the_frames() -> None:
    frames, masks = make_clip()
    small_frames, small_masks, caption = EvalTransform(36, 64)(frames, masks, "the dog", np.random.default_rng(0))
    assert small_frames.shape == (3, 3, 36, 60) and small_frames.dtype == torch.float32
    assert small_masks.shape == (3, 36, 60) and small_masks.dtype == torch.bool
    assert caption == "the dog"
    assert type(small_frames) is type(small_masks) is torch.Tensor
    assert ((to_grey(small_frames) > 0.5) == small_masks).float().mean() > 0.97


def test_frames_are_antialiased() -> None:
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 254
    assert (resize_frames(stripes, 16)[..., 2:-2].float() - 127).abs().max() < 20


def test_masks_are_resized_by_nearest() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, ::2, ::2] = True
    frames = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert resize(frames, masks, 2)[1].all() and not resize(frames, ~masks, 2)[1].any()


def test_normalise_is_imagenets() -> None:
    frames = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    expected = [(value / 255 - m) / s for value, m, s in zip((0, 128, 255), IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    torch.testing.assert_close(normalise(frames).flatten(), torch.tensor(expected))


def test_train_transform_moves_all_frames_masks_and_words_together() -> None:
    frames, masks = make_clip()  # the object is in the left half
    flips = 0
    sizes = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        out, out_masks, caption = TrainTransform(**SMALL)(frames, masks, "the bright dog on the left", rng)
        assert out.shape[-2:] == out_masks.shape[-2:] and max(out.shape[-2:]) <= 96
        assert min(out.shape[-2:]) in SMALL["train_scales"] or max(out.shape[-2:]) == 96
        assert all(torch.equal(mask, out_masks[0]) for mask in out_masks)
        grey = to_grey(out)
        # Contrast shifts black and white per frame, so each is told apart by its own middle.
        middle = (grey.amax((1, 2)) + grey.amin((1, 2)))[:, None, None] / 2
        if out_masks[0].any() and not out_masks[0].all():
            assert ((grey > middle) == out_masks).float().mean() > 0.95
        flips += caption == "the bright dog on the right"
        assert caption in ("the bright dog on the right", "the bright dog on the left")
        sizes.add(tuple(out.shape[-2:]))
    assert 12 <= flips <= 28
    assert len(sizes) > 10  # crops change the aspect


def test_flip_changes_the_words_exactly_when_it_changes_the_frames() -> None:
    frames, masks = make_clip(width=80)
    transform = TrainTransform(train_scales=(60,), crop_scales=(), max_size=100)
    for seed in range(20):
        _, out, caption = transform(frames, masks, "left one", np.random.default_rng(seed))
        expected = masks.flip(-1) if caption == "right one" else masks
        assert torch.equal(out, expected)


def test_the_published_sizes_are_the_defaults() -> None:
    transform = TrainTransform()
    assert transform.train_scales == (288, 320, 352, 392, 416, 448, 480, 512) and transform.max_size == 640
    assert transform.crop_scales == (400, 500, 600) and transform.crop_range == (384, 600)
    assert EvalTransform() == EvalTransform(eval_size=360, max_size=640)


@pytest.mark.parametrize(
    ("max_size", "eval_size", "train", "items", "videos"),
    [
        ("auto", 360, 640, 640, None),
        ("auto", 720, 640, 720, None),
        (0, 360, None, None, None),
        (800, 360, 800, 800, 800),
    ],
)
def test_the_limit_of_the_longer_side(
    max_size: int | str, eval_size: int, train: int | None, items: int | None, videos: int | None
) -> None:
    cfg = Config(max_size=max_size, eval_size=eval_size)
    transform = build_transform(cfg, train=True)
    assert isinstance(transform, TrainTransform) and transform.max_size == train
    assert build_transform(cfg, train=False) == EvalTransform(eval_size, items)
    assert build_transform(cfg, train=False, whole_videos=True) == EvalTransform(eval_size, videos)


def test_every_scale_is_used() -> None:
    frames, masks = make_clip(1, 30, 40)
    transform = TrainTransform(train_scales=(16, 24, 32), crop_scales=(), max_size=64)
    sides = {transform(frames, masks, "", np.random.default_rng(seed))[0].shape[-2:] for seed in range(30)}
    assert sides == {(16, 21), (24, 32), (32, 42)}


def test_crops_are_no_larger_than_the_frame() -> None:
    frames, masks = make_clip(1, 20, 30)
    transform = TrainTransform(train_scales=(16,), crop_scales=(20,), crop_range=(384, 600), max_size=64)
    shapes = {transform(frames, masks, "", np.random.default_rng(seed))[0].shape for seed in range(10)}
    assert shapes == {(1, 3, 16, 24)}


@pytest.mark.parametrize(
    ("sentence", "swapped"),
    [
        ("the dog on the left", "the dog on the right"),
        ("right of the left car", "left of the right car"),
        ("a bright leftover, upright", "a bright leftover, upright"),
        ("left, then right.", "right, then left."),
        ("the left-hand man", "the right-hand man"),
        ("", ""),
    ],
)
def test_whole_words_are_swapped(sentence: str, swapped: str) -> None:
    assert swap_sides(sentence) == swapped
    assert swap_sides(swapped) == sentence


def test_flip_mirrors_frames_and_masks() -> None:
    frames, masks = make_clip()
    flipped, flipped_masks, caption = flip(frames, masks, "left")
    assert torch.equal(flipped, frames.flip(-1)) and torch.equal(flipped_masks, masks.flip(-1))
    assert caption == "right"


def test_colours_change_but_never_the_hue() -> None:
    # A pure red, green and blue pixel: whatever the brightness, contrast and saturation, the largest channel stays.
    frames = (torch.eye(3)[None, :, None, :] * 150 + 50).to(torch.uint8).repeat(40, 1, 2, 1)
    out = distort_colours(frames, np.random.default_rng(0))
    assert out.shape == frames.shape and out.dtype == torch.uint8
    assert (out.argmax(1) == frames.argmax(1)).all()
    changed = (out != frames).flatten(1).any(1).float().mean()
    assert 0.7 < changed < 1  # 1 − 1/8 is expected


def test_equal_seeds_give_equal_clips_whatever_the_global_generators() -> None:
    frames, masks = make_clip()
    results = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        state = torch.get_rng_state()
        results.append(TrainTransform(**SMALL)(frames, masks, "left", np.random.default_rng([1, 2, 3])))
        assert torch.equal(state, torch.get_rng_state())
    (frames_a, masks_a, caption_a), (frames_b, masks_b, caption_b) = results
    assert torch.equal(frames_a, frames_b) and torch.equal(masks_a, masks_b) and caption_a == caption_b


def test_inputs_are_left_alone() -> None:
    frames, masks = make_clip()
    kept_frames, kept_masks = frames.clone(), masks.clone()
    for seed in range(10):
        TrainTransform(train_scales=(60,), crop_scales=(60,), crop_range=(60, 100), max_size=100)(
            frames, masks, "", np.random.default_rng(seed)
        )
    EvalTransform(60, 100)(frames, masks, "", np.random.default_rng(0))
    assert torch.equal(frames, kept_frames) and torch.equal(masks, kept_masks)


def test_without_colour_distortion_the_colours_stay() -> None:
    frames = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 32, 48, dtype=torch.bool)
    transform = TrainTransform(train_scales=(32,), crop_scales=(), max_size=64, colour_distortion=False)
    for seed in range(4):
        out, _, _ = transform(frames, masks, "a dog", np.random.default_rng(seed))
        plain = normalise(frames)
        assert torch.equal(out, plain) or torch.equal(out, plain.flip(-1))


@pytest.mark.parametrize(("options", "limit"), [({"max_size": 500}, 500), ({"train_scales": (700,)}, 640)])
def test_a_limit_below_the_scales_is_refused_in_training_only(options: dict[str, Any], limit: int) -> None:
    cfg = Config(**options)
    with pytest.raises(UserError, match=rf"limits the longer side in training to {limit} pixels, and must be at least"):
        build_transform(cfg, train=True)
    assert build_transform(cfg, train=False, whole_videos=True)
