"""Drawing of toy scenes: frames with smooth edges and hard masks of what is visible, in integer arithmetic.

Shapes are drawn on a grid of sub-pixels (4 × 4 per pixel); a pixel's coverage is the number of its sub-pixels
inside the shape. No floating-point number is involved, so every machine draws the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from datasets.toy_scene import SUBPIXELS, Scene, ToyObject
from util.files import atomic_path

FULL = SUBPIXELS * SUBPIXELS  # coverage of a pixel that lies inside a shape
OUTLINE = 3  # sub-pixels; a darker edge keeps overlapping objects of one colour apart
OUTLINE_SHADE = 50  # percent of the colour
JPEG_QUALITY = 95
LIGHT = (110, 88)  # percent of the colour at a shape's top and bottom

# Corners in thousandths of the radius.
POLYGONS = {
    "triangle": ((0, -1080), (1120, 860), (-1120, 860)),
    "star": (
        *((0, -1180), (305, -420), (1122, -365), (494, 160), (694, 955)),
        *((0, 519), (-694, 955), (-494, 160), (-1122, -365), (-305, -420)),
    ),
}
REACH = 1250  # thousandths of the radius: no shape reaches further


class Stamp(NamedTuple):
    """A shape at one position inside the pixel grid.

    Attributes:
        cover: uint8 [h, w], 0…16.
        body: uint8 [h, w], the cover without the outline.
        light: int32 [h, 1, 1], percent of the colour in each row.
    """

    cover: np.ndarray
    body: np.ndarray
    light: np.ndarray


def render_masks(scene: Scene) -> np.ndarray:
    """Object id of every pixel, 0 = background: uint8 [T, H, W]. Who is further in front hides the others."""
    ids = np.zeros((scene.num_frames, scene.height, scene.width), np.uint8)
    for frame, rows, columns, obj, stamp in _stamps(scene):
        ids[frame, rows, columns][2 * stamp.cover >= FULL] = obj.obj_id
    return ids


def render_frames(scene: Scene) -> np.ndarray:
    """The video: uint8 RGB [T, H, W, 3]."""
    background = render_background(scene.background_seed, scene.height, scene.width)
    frames = np.repeat(background[None], scene.num_frames, axis=0)
    for frame, rows, columns, obj, stamp in _stamps(scene):
        patch = frames[frame, rows, columns]
        cover, body = stamp.cover[..., None].astype(np.int32), stamp.body[..., None].astype(np.int32)
        colour = np.minimum(np.array(obj.rgb, np.int32) * stamp.light // 100, 255)
        edge = colour * OUTLINE_SHADE // 100
        patch[:] = (patch * (FULL - cover) + edge * (cover - body) + colour * body + FULL // 2) // FULL
    return frames


def full_areas(scene: Scene) -> dict[int, int]:
    """The area of each object (by id) in pixels, were nothing in its way."""
    return {obj.obj_id: int(_sprite(obj.shape, obj.radius).sum()) // FULL for obj in scene.objects}


def _stamps(scene: Scene) -> Iterator[tuple[int, slice, slice, ToyObject, Stamp]]:
    """Every object in every frame, from back to front: frame number, rows, columns, object, stamp cut to the frame."""
    for obj in scene.objects:
        reach = _reach(obj.radius)
        for frame, (x, y) in enumerate(obj.centres.tolist()):
            left, phase_x = divmod(x - reach, SUBPIXELS)
            top, phase_y = divmod(y - reach, SUBPIXELS)
            stamp = _stamp(obj.shape, obj.radius, phase_x, phase_y)
            height, width = stamp.cover.shape
            rows = slice(max(top, 0), min(top + height, scene.height))
            columns = slice(max(left, 0), min(left + width, scene.width))
            cut = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
            yield frame, rows, columns, obj, Stamp(stamp.cover[cut], stamp.body[cut], stamp.light[cut[0]])


def _reach(radius: int) -> int:
    return radius * REACH // 1000 + 1


@lru_cache(maxsize=1024)
def _stamp(shape: str, radius: int, phase_x: int, phase_y: int) -> Stamp:
    """A shape whose grid starts ``phase`` sub-pixels inside a pixel."""
    fine = _sprite(shape, radius)
    y, x = np.mgrid[-OUTLINE : OUTLINE + 1, -OUTLINE : OUTLINE + 1]
    inner = cv2.erode(fine, (x * x + y * y <= OUTLINE * OUTLINE).astype(np.uint8))
    padding = [(phase, -(phase + fine.shape[0]) % SUBPIXELS) for phase in (phase_y, phase_x)]
    cover, body = (_count(np.pad(layer, padding)) for layer in (fine, inner))
    rows = np.arange(len(cover), dtype=np.int32)[:, None, None]
    top, bottom = LIGHT
    return Stamp(cover, body, top - (top - bottom) * rows // len(cover))


def _count(fine: np.ndarray) -> np.ndarray:
    """Number of set sub-pixels per pixel."""
    height, width = (length // SUBPIXELS for length in fine.shape)
    return fine.reshape(height, SUBPIXELS, width, SUBPIXELS).sum(axis=(1, 3), dtype=np.uint8)


@lru_cache(maxsize=256)
def _sprite(shape: str, radius: int) -> np.ndarray:
    """A shape on the sub-pixel grid, its centre in the middle: uint8 0/1 [2·reach, 2·reach]."""
    reach = _reach(radius)
    # Middles of the sub-pixels in thousandths of half a sub-pixel, as are the lengths below.
    axis = (2 * np.arange(-reach, reach, dtype=np.int64) + 1) * 1000
    x, y = axis[None, :], axis[:, None]
    unit = 2 * radius
    if shape == "circle":
        inside = x * x + y * y <= (980 * unit) ** 2
    elif shape == "ring":
        distance = x * x + y * y
        inside = (distance <= (1060 * unit) ** 2) & (distance >= (520 * unit) ** 2)
    elif shape == "square":
        inside = np.maximum(abs(x), abs(y)) <= 870 * unit
    elif shape == "cross":
        long, short = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
        inside = (long <= 1100 * unit) & (short <= 370 * unit)
    else:
        inside = _inside_polygon(x, y, [(a * unit, b * unit) for a, b in POLYGONS[shape]])
    return inside.astype(np.uint8)


def _inside_polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[int, int]]) -> np.ndarray:
    """Even-odd rule: how many edges does a ray to the right cross?"""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        spans = (y0 > y) != (y1 > y)
        left_of_edge = (x - x0) * (y1 - y0) < (x1 - x0) * (y - y0)
        inside ^= spans & (left_of_edge == (y1 > y0))
    return inside


def render_background(seed: int, height: int, width: int) -> np.ndarray:
    """A dull texture (clouds, a slope, stripes or checks, with grain): uint8 RGB [height, width, 3]."""
    rng = np.random.default_rng(seed)
    base = rng.integers(70, 150) + rng.integers(-18, 19, size=3)
    tint = rng.integers(-24, 25, size=3) + rng.choice((-20, 20))
    y, x = np.mgrid[:height, :width]
    style = rng.integers(4)
    if style == 0:
        pattern = _clouds(rng, height, width, (3, 7, 13))
    elif style == 1:
        pattern = _clouds(rng, height, width, (2,))
    elif style == 2:
        slope_x, slope_y = [(1, 0), (0, 1), (1, 1), (1, -1)][rng.integers(4)]
        pattern = _wave(slope_x * x + slope_y * y, int(rng.integers(6, 17)))
    else:
        period = int(rng.integers(8, 21))
        pattern = (_wave(x, period) + _wave(y, period)) // 2
    grain = rng.integers(-4, 5, size=(height, width, 1))
    shade = base + (pattern[..., None] - 128) * tint // 128
    return np.clip(shade + grain, 0, 255).astype(np.uint8)


def _wave(position: np.ndarray, period: int) -> np.ndarray:
    """Stripes with soft edges: 0…255."""
    ramp = abs(position % period * 2 - period) * 510 // period - 128
    return np.clip(ramp, 0, 255)


def _clouds(rng: np.random.Generator, height: int, width: int, cells: tuple[int, ...]) -> np.ndarray:
    """Value noise, 0…255: random grids of so many cells, interpolated and added, each at half the last's weight."""
    total = np.zeros((height, width), np.int64)
    weight = 1 << (len(cells) - 1)
    norm = 2 * weight - 1
    for count in cells:
        grid = rng.integers(0, 256, size=(count + 1, count + 1))
        row, row_share = _grid_position(height, count)
        column, column_share = _grid_position(width, count)
        upper = grid[row][:, column] * (256 - column_share) + grid[row][:, column + 1] * column_share
        lower = grid[row + 1][:, column] * (256 - column_share) + grid[row + 1][:, column + 1] * column_share
        total += weight * ((upper * (256 - row_share[:, None]) + lower * row_share[:, None]) >> 16)
        weight >>= 1
    return total // norm


def _grid_position(length: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel the cell before it and its way into the cell in 256ths."""
    position = np.arange(length) * cells * 256 // length
    return position >> 8, position & 255


def write_frame(path: Path, frame: np.ndarray) -> None:
    """Write a frame as JPEG, beside and renamed.

    Raises:
        OSError: the disk is full. (Pillow itself, given a file, overlooks a write that is cut short by that.)
    """
    content = BytesIO()
    # Full colour resolution: at this size, halving it would wash out small shapes.
    Image.fromarray(frame).save(content, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())
