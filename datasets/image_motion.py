"""An image as a clip: a steady camera motion, blur and a change of light, for pre-training on images.

The motion is one homography per frame (turn, shift, zoom and a perspective tilt together), so that a pixel is
resampled once. It goes on evenly over the clip, and one frame of the clip is the image itself.

Frames are warped and blurred by OpenCV, ten times as fast as torchvision, which does both in float.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from util.preprocessing import IMAGENET_MEAN

MEAN_COLOUR = [round(255 * value) for value in IMAGENET_MEAN]  # where a frame shows what is beyond the image


@dataclass(frozen=True)
class ImageMotion:
    """Makes clips of images. The bounds are of a whole clip; each is drawn evenly from both directions.

    Attributes:
        rotation: degrees.
        translation: share of the image's width and height.
        zoom: natural logarithm of the change in size.
        perspective: share of width and height that each corner goes by itself.
        light: change of brightness, as a share.
        blur_probability: how often a frame is blurred.
        blur: least and greatest standard deviation, in pixels of an image whose shorter side is 480.
    """

    rotation: float = 20.0
    translation: float = 0.1
    zoom: float = 0.2
    perspective: float = 0.08
    light: float = 0.2
    blur_probability: float = 0.25
    blur: tuple[float, float] = (0.5, 2.5)

    def __call__(self, image: Tensor, mask: Tensor, num_frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Make a clip.

        Args:
            image: uint8 ``[3, H, W]``.
            mask: bool ``[H, W]``.
            num_frames: T.
            rng: the only source of randomness.

        Returns:
            frames uint8 ``[T, 3, H, W]``, filled with the mean colour beyond the image, and masks bool ``[T, H, W]``.
        """
        if get_worker_info() is not None:
            cv2.setNumThreads(0)  # a worker has one core, and OpenCV's threads do not live on in a forked process
        picture, outline = image.permute(1, 2, 0).contiguous().numpy(), mask.to(torch.uint8).numpy()
        height, width = outline.shape
        turn, zoom, light = rng.uniform(-1, 1, 3) * (np.radians(self.rotation), self.zoom, self.light)
        shift = rng.uniform(-self.translation, self.translation, 2)
        tilt = rng.uniform(-self.perspective, self.perspective, (4, 2))
        still = int(rng.integers(num_frames))
        frames, masks = [], []
        corners = _corners(height, width)
        for number in range(num_frames):
            share = (number - still) / max(1, num_frames - 1)
            frame, seen = picture, outline
            if share * light:  # before the motion, so that what it uncovers keeps the mean colour
                frame = cv2.convertScaleAbs(frame, alpha=1 + share * light)
            if share:
                moved = _move(corners, share * turn, share * zoom, share * shift, share * tilt)
                homography = _homography(corners, moved)
                frame = cv2.warpPerspective(frame, homography, (width, height), borderValue=MEAN_COLOUR)
                seen = cv2.warpPerspective(seen, homography, (width, height), flags=cv2.INTER_NEAREST)  # it is a mask
            frames.append(self._blur(frame, rng))
            masks.append(seen)
        return torch.from_numpy(np.stack(frames).transpose(0, 3, 1, 2).copy()), torch.from_numpy(np.stack(masks) > 0)

    def _blur(self, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.blur_probability:
            return frame
        sigma = rng.uniform(*self.blur) * min(frame.shape[:2]) / 480
        kernel = 2 * int(np.ceil(2 * sigma)) + 1
        return cv2.GaussianBlur(frame, (kernel, kernel), sigma)


def _corners(height: int, width: int) -> np.ndarray:
    """``[4, 2]``, (x, y) in pixels: the image's own corners, clockwise from the top left one."""
    return np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=float)


def _move(corners: np.ndarray, turn: float, zoom: float, shift: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """Where the corners go: zoomed and turned (radians) about the middle, shifted, and each by its own ``tilt``.

    ``shift [2]`` and ``tilt [4, 2]`` are shares of width and height.
    """
    size = corners[2]
    cos, sin = np.cos(turn), np.sin(turn)
    centred = (corners - size / 2) @ np.array([(cos, sin), (-sin, cos)])
    return centred * np.exp(zoom) + size / 2 + (shift + tilt) * size


def _homography(corners: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """``[3, 3]``: takes the corners ``[4, 2]`` to where they go. OpenCV counts from the middle of the first pixel."""
    return cv2.getPerspectiveTransform((corners - 0.5).astype(np.float32), (moved - 0.5).astype(np.float32))
