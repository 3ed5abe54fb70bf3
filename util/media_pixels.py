"""From what decoders give to upright RGB: rotation and mirror flags, transparency, deep and grey pictures."""

from __future__ import annotations

from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image, ImageOps

Matrix = tuple[int, int, int, int]
UPRIGHT: Matrix = (1, 0, 0, 1)
"""(a, b, c, d) of x' = a·x + c·y, y' = b·x + d·y, as signs: how a picture is turned and mirrored for display."""

_UNSPECIFIED = 2  # of a colour space, in FFmpeg
_HD_LINES = 720  # from here on, pictures without a colour space are BT.709, as players take them


def display_matrix(frame: av.VideoFrame) -> Matrix:
    """How a frame is to be turned, by multiples of 90°; phones film in the sensor's orientation and say it so."""
    for item in cast(Any, frame.side_data):  # its stub says that it holds texts
        if item.type == Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = np.frombuffer(bytes(item), np.int32).tolist()
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
            return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)
    return UPRIGHT


def turned(picture: np.ndarray, matrix: Matrix) -> np.ndarray:
    """A picture ``[H, W, 3]`` as its display matrix wants it; ``[W, H, 3]`` where that is a quarter turn."""
    a, b, c, d = matrix
    if b:
        picture = picture.transpose(1, 0, 2)
    picture = picture[:: -1 if (d or b) < 0 else 1, :: -1 if (a or c) < 0 else 1]
    return np.ascontiguousarray(picture)


def frame_pixels(frame: av.VideoFrame, reformatter: VideoReformatter | None = None) -> np.ndarray:
    """A decoded frame as uint8 RGB ``[H, W, 3]``, upright, on white where it is transparent.

    Args:
        frame: from the decoder.
        reformatter: for all frames of a video; a new one for each takes time and memory.
    """
    source = None
    if frame.colorspace == _UNSPECIFIED and frame.height >= _HD_LINES:
        source = Colorspace.ITU709
    layout = "rgba" if _transparent(frame) else "rgb24"
    reformatter = reformatter or VideoReformatter()
    pixels = reformatter.reformat(frame, format=layout, src_colorspace=source).to_ndarray()
    return turned(on_white(pixels), display_matrix(frame))


def image_pixels(image: Image.Image) -> np.ndarray:
    """A picture of Pillow as uint8 RGB ``[H, W, 3]``, upright by its EXIF flag, on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow would cut off all above 255
        grey = np.asarray(image).astype(np.int64) >> 8
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    return on_white(np.array(image.convert("RGBA" if image.has_transparency_data else "RGB")))


def on_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 ``[H, W, 3 or 4]``, the fourth channel being opacity → ``[H, W, 3]`` on a white ground."""
    if pixels.shape[-1] == 3:
        return pixels
    colours, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _transparent(frame: av.VideoFrame) -> bool:
    """Whether frames of this format can be; those with a palette can, too."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
