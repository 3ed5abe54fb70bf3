"""Images as clips: one steady motion for frames and masks, blur, light, and the same clip for the same seed."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.image_motion import MEAN_COLOUR, ImageMotion, _corners, _homography, _move

STILL: dict[str, Any] = {
    "rotation": 0,
    "translation": 0,
    "zoom": 0,
    "perspective": 0,
    "light": 0,
    "blur_probability": 0,
}


def make_image(height: int = 120, width: int = 160) -> tuple[Tensor, Tensor]:
    """A white object, which the mask marks, on black."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[40:80, 60:110] = True
    return (mask * 255).to(torch.uint8).expand(3, -1, -1).contiguous(), mask


def motion(**options: Any) -> ImageMotion:
    return ImageMotion(**{**STILL, **options})


def clip(motion: ImageMotion, seed: int = 0, num_frames: int = 5) -> tuple[Tensor, Tensor]:
    return motion(*make_image(), num_frames, np.random.default_rng(seed))


def centres(masks: Tensor) -> np.ndarray:
    """``[T, 2]``, (x, y) of the mean pixel."""
    return np.array([np.argwhere(mask.numpy()).mean(0)[::-1] for mask in masks])


def still_frame(frames: Tensor) -> int:
    """The frame that is the image itself."""
    found = [number for number, frame in enumerate(frames) if torch.equal(frame, make_image()[0])]
    assert len(found) == 1
    return found[0]


def test_what_comes_out() -> None:
    frames, masks = clip(ImageMotion())
    assert frames.shape == (5, 3, 120, 160) and frames.dtype == torch.uint8 and type(frames) is Tensor
    assert masks.shape == (5, 120, 160) and masks.dtype == torch.bool and type(masks) is Tensor
    assert masks.flatten(1).any(1).all()


def test_without_any_motion_it_is_the_image_again_and_again() -> None:
    image, mask = make_image()
    frames, masks = clip(motion())
    assert (frames == image).all() and (masks == mask).all()


@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_one_frame_is_the_image_itself(num_frames: int) -> None:
    found = {still_frame(clip(motion(translation=0.2), seed, num_frames)[0]) for seed in range(12)}
    assert found == set(range(num_frames))


@pytest.mark.parametrize("seed", range(5))
def test_a_shift_is_steady(seed: int) -> None:
    masks = clip(motion(translation=0.2), seed)[1]
    steps = np.diff(centres(masks), axis=0)
    assert np.abs(steps - steps.mean(0)).max() <= 1  # to the pixel, as masks are warped by the nearest one
    whole = centres(masks)[-1] - centres(masks)[0]
    assert (np.abs(whole) <= np.array([0.2 * 160, 0.2 * 120]) + 1).all() and np.abs(whole).max() > 2


@pytest.mark.parametrize("seed", range(4))
def test_a_zoom_is_steady(seed: int) -> None:
    areas = clip(motion(zoom=0.4), seed)[1].sum((1, 2)).log()
    steps = areas.diff()
    assert (steps - steps.mean()).abs().max() < 0.06 and 0.05 < steps.sum().abs() <= 2 * 0.4 + 0.05


def test_a_turn_is_about_the_middle() -> None:
    image = torch.zeros(3, 101, 101, dtype=torch.uint8)
    mask = torch.zeros(101, 101, dtype=torch.bool)
    mask[48:53, 48:53] = True  # the middle
    mask[48:53, 90:95] = True  # and 42 pixels to its right
    masks = motion(rotation=60)(image, mask, 3, np.random.default_rng(1))[1]
    for frame in masks:
        assert frame[50, 50]
        far = np.argwhere(frame.numpy() & ~torch.zeros_like(frame).index_fill(0, torch.arange(46, 56), True).numpy())
        for y, x in far:
            assert 38 < np.hypot(y - 50, x - 50) < 47


def test_a_half_turn_hits_every_pixel() -> None:
    """Half a pixel beside it, the frame would be blurred and a row and a column lost."""
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    corners, nowhere = _corners(40, 60), np.zeros(2)
    homography = _homography(corners, _move(corners, np.pi, 0, nowhere, np.zeros((4, 2))))
    turned = cv2.warpPerspective(picture, homography, (60, 40))
    assert np.abs(turned.astype(int) - picture[::-1, ::-1]).max() <= 1


def test_perspective_is_more_than_an_affine_map() -> None:
    frame, seen = torch.zeros(3, 100, 100, dtype=torch.uint8), torch.ones(100, 100, dtype=torch.bool)
    masks = motion(perspective=0.2)(frame, seen, 2, np.random.default_rng(3))[1]
    moved = masks[0] if not masks[0].all() else masks[1]
    widths = moved.sum(1)
    assert widths[30] != widths[70]  # an affine map keeps opposite sides parallel


@pytest.mark.parametrize("seed", range(10))
def test_masks_follow_the_frames(seed: int) -> None:
    image = torch.zeros(3, 120, 160, dtype=torch.uint8)
    mask = make_image()[1]
    image[0] = mask * 255  # red; the mean colour beyond the image is not
    frames, masks = ImageMotion(light=0, blur_probability=0)(image, mask, 5, np.random.default_rng(seed))
    red = (frames[:, 0] > 127) & (frames[:, 1] < 60)
    assert (red == masks).float().mean() > 0.99 and (red & masks).sum() / (red | masks).sum() > 0.9


def test_masks_are_warped_by_the_nearest_pixel() -> None:
    """A thin line stays: half of it would be lost to a threshold after interpolation."""
    mask = torch.zeros(60, 60, dtype=torch.bool)
    mask[30] = True
    frames = torch.zeros(3, 60, 60, dtype=torch.uint8)
    for seed in range(10):
        masks = motion(translation=0.1)(frames, mask, 4, np.random.default_rng(seed))[1]
        assert (masks.sum(1) <= 1).all() and masks.sum((1, 2)).min() >= 50


def test_what_lies_beyond_the_image_has_the_mean_colour() -> None:
    image, mask = torch.full((3, 60, 60), 255, dtype=torch.uint8), torch.zeros(60, 60, dtype=torch.bool)
    frames, _ = motion(rotation=60, light=0.5)(image, mask, 2, np.random.default_rng(2))
    corners = frames[:, :, 0, 0].tolist()
    assert MEAN_COLOUR in corners and MEAN_COLOUR == [124, 116, 104]


def test_light_changes_steadily_and_nothing_else() -> None:
    image, mask = torch.full((3, 20, 20), 100, dtype=torch.uint8), torch.ones(20, 20, dtype=torch.bool)
    frames, masks = motion(light=0.5)(image, mask, 5, np.random.default_rng(0))
    values = frames[:, 0, 0, 0].int()
    assert (values.diff() - values.diff()[0]).abs().max() <= 1 and values.diff()[0] != 0
    assert 100 in values and (frames == frames[:, :1, :1, :1]).all() and masks.all()


def test_blur() -> None:
    image, mask = make_image(480, 480)
    frames, masks = motion(blur_probability=1)(image, mask, 3, np.random.default_rng(0))
    assert all(60 < frame[0, 60, 59] < 200 for frame in frames) and (masks == mask).all()  # the edge, once 0
    image, mask = image[:, 30:78, 40:88], mask[30:78, 40:88]
    some = motion(blur_probability=0.25, blur=(25, 25))
    clips = [some(image, mask, 4, np.random.default_rng(seed))[0] for seed in range(50)]
    changed = [(frames != image).flatten(1).any(1) for frames in clips]
    assert 0.15 < torch.stack(changed).float().mean() < 0.35


def test_a_clip_depends_on_its_seed_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = clip(ImageMotion(), 3)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    again, other = clip(ImageMotion(), 3), clip(ImageMotion(), 4)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and not torch.equal(first[0], other[0])


class _Threads(torch.utils.data.Dataset):
    """Makes a clip and says how many threads OpenCV then has."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        clip(ImageMotion())
        return cv2.getNumThreads()


def test_opencv_has_one_thread_in_a_worker() -> None:
    threads = cv2.getNumThreads()
    assert [int(found) for found in DataLoader(_Threads(), num_workers=1)] == [1]
    clip(ImageMotion())
    assert cv2.getNumThreads() == threads
