"""Scenes of the toy benchmark: moving shapes, their frames with smooth edges, and masks of what is visible.

All lengths are integers in sub-pixels (a quarter of a pixel); x grows to the right and y downwards. Shapes are drawn on
the grid of sub-pixels, and a pixel's coverage is the number of its sub-pixels inside the shape. No floating-point
number is involved, so every machine draws the same pixels.
"""

from __future__ import annotations

import random
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

SUBPIXELS = 4
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (45, 165, 60),
    "blue": (45, 75, 215),
    "yellow": (235, 215, 50),
    "orange": (240, 135, 30),
    "purple": (145, 60, 185),
    "cyan": (60, 205, 215),
    "white": (238, 238, 238),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
MOTIONS = ("left", "right", "up", "down", "still")
KINDS = ("colour", "shape", "size", "motion", "relation")
MAX_OBJECTS = 5

FRAME_SIZE = (64, 96)  # height and width in pixels of the frames that the bundled weights know
SIDE_MULTIPLE = 32  # pixels: the models pad frames to it

# Relative to the shorter side. Nothing lies between "small" and "large", so the words are never ambiguous.
RADIUS = {"small": (0.125, 0.155), "large": (0.220, 0.280)}
# Distance that a moving object travels, relative to the frame's width (left, right) or height (up, down).
TRAVEL = {"left": (0.25, 0.45), "right": (0.25, 0.45), "up": (0.30, 0.50), "down": (0.30, 0.50)}
DRIFT = 0.04  # of the frame: the most that a moving object drifts across its direction
INSIDE = 0.6  # radii: a centre stays this far from the border
COLOUR_JITTER = 8  # of 255

FULL = SUBPIXELS * SUBPIXELS  # coverage of a pixel that lies inside a shape
NIGHT = (30, 36, 50)  # percent of red, green and blue that is left
OUTLINE = 3  # sub-pixels; a darker edge keeps overlapping objects of one colour apart
OUTLINE_SHADE = 50  # percent of the colour
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


def frame_side(text: str) -> int:
    """The height or width of frames for a model, as given on a command line.

    Raises:
        ArgumentTypeError: it is no multiple of ``SIDE_MULTIPLE``, or below the least side of ``FRAME_SIZE``.
    """
    least = min(FRAME_SIZE)
    if not text.isdecimal() or int(text) < least or int(text) % SIDE_MULTIPLE:
        raise ArgumentTypeError(f"{text} is no multiple of {SIDE_MULTIPLE} of at least {least}")
    return int(text)


@dataclass(frozen=True, eq=False)
class ToyObject:
    """One shape.

    Attributes:
        obj_id: value in the masks, from 1.
        colour, shape: names from COLOURS and SHAPES.
        rgb: its own tint of the colour, 0…255.
        radius: sub-pixels.
        centres: int64 [T, 2], (x, y) in sub-pixels.
    """

    obj_id: int
    colour: str
    shape: str
    rgb: tuple[int, int, int]
    radius: int
    centres: np.ndarray


@dataclass(frozen=True, eq=False)
class Scene:
    """A video before it is drawn: frame size in pixels, objects from back to front, seed of the background."""

    height: int
    width: int
    objects: tuple[ToyObject, ...]
    background_seed: int

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.objects[0].centres)


class Plan(NamedTuple):
    """Looks and motion of an object. ``anchor`` is the middle of its path, relative to the frame; None: anywhere."""

    colour: str
    shape: str
    size: str
    motion: str
    anchor: tuple[float, float] | None = None


def sample_scene(
    rng: random.Random, num_frames: int, height: int, width: int, focus: str, kinds: Sequence[str]
) -> Scene:
    """Draw a scene of 2 to 5 objects that is likely to offer a sentence of kind ``focus``.

    Two of the objects differ in nothing but what ``focus`` speaks of; further pairs are made for other ``kinds``.
    Whether a sentence really holds is verified on the finished scene (``sentences.Facts``).
    """
    count = rng.randint(3 if focus == "relation" else 2, MAX_OBJECTS)
    plans = _related_trio(rng) if focus == "relation" else _pair(rng, focus)
    pair_kinds = [kind for kind in kinds if kind != "relation"]
    if focus != "relation" and "relation" in kinds and count == MAX_OBJECTS:
        plans += _related_trio(rng)
    while len(plans) < count:
        if pair_kinds and count - len(plans) >= 2 and rng.random() < 0.6:
            plans += _pair(rng, rng.choice(pair_kinds))
        else:
            plans.append(_look_alike(rng, rng.choice(plans)))
    rng.shuffle(plans)
    ids = list(range(1, len(plans) + 1))
    rng.shuffle(ids)  # so that ids do not reveal which object covers which
    objects = tuple(
        _place(rng, plan, obj_id, num_frames, height, width) for plan, obj_id in zip(plans, ids, strict=True)
    )
    return Scene(height, width, objects, background_seed=rng.getrandbits(32))


def free_scene(rng: random.Random, num_frames: int, height: int, width: int, count: int) -> Scene:
    """Draw a scene of ``count`` unrelated objects."""
    objects = tuple(_place(rng, _any_plan(rng), i + 1, num_frames, height, width) for i in range(count))
    return Scene(height, width, objects, background_seed=rng.getrandbits(32))


def _any_plan(rng: random.Random) -> Plan:
    return Plan(rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(SIZES), rng.choice(MOTIONS))


def _other(rng: random.Random, values: Sequence[str], value: str) -> str:
    return rng.choice([v for v in values if v != value])


def _pair(rng: random.Random, kind: str) -> list[Plan]:
    """Two objects that only words of ``kind`` tell apart; their other properties are random."""
    first, free = _any_plan(rng), _any_plan(rng)
    twins = {
        "colour": free._replace(colour=_other(rng, list(COLOURS), first.colour), shape=first.shape),
        "shape": free._replace(shape=_other(rng, SHAPES, first.shape), colour=first.colour),
        "size": first._replace(size=_other(rng, SIZES, first.size), motion=free.motion),
        "motion": first._replace(motion=_other(rng, MOTIONS, first.motion)),
    }
    return [first, twins[kind]]


def _related_trio(rng: random.Random) -> list[Plan]:
    """Twins on both sides of a third object that looks different. Often all three move alike, to stay in order."""
    first, free = _any_plan(rng), _any_plan(rng)
    reference = free._replace(
        colour=_other(rng, list(COLOURS), first.colour), shape=_other(rng, SHAPES, first.shape), size="small"
    )
    first = first._replace(size="small" if rng.random() < 0.7 else "large")
    motions = [rng.choice(MOTIONS)] * 3 if rng.random() < 0.5 else [rng.choice(MOTIONS) for _ in range(3)]
    along_x = rng.random() < 0.5
    across = rng.uniform(0.3, 0.7)
    anchors = []
    for along in (0.2, 0.5, 0.8):
        place = (along + rng.uniform(-0.06, 0.06), across + rng.uniform(-0.1, 0.1))
        anchors.append(place if along_x else place[::-1])
    return [
        plan._replace(motion=motion, anchor=anchor)
        for plan, motion, anchor in zip((first, reference, first), motions, anchors, strict=True)
    ]


def _look_alike(rng: random.Random, plan: Plan) -> Plan:
    """Another object; it usually shares a word with ``plan``, so that a model must read words together."""
    free = _any_plan(rng)
    draw = rng.random()
    if draw < 0.35:
        return free._replace(colour=plan.colour)
    return free._replace(shape=plan.shape) if draw < 0.7 else free


def _place(rng: random.Random, plan: Plan, obj_id: int, num_frames: int, height: int, width: int) -> ToyObject:
    """Turn a plan into a straight path whose centre stays inside the frame."""
    frame = (width * SUBPIXELS, height * SUBPIXELS)
    radius = round(rng.uniform(*RADIUS[plan.size]) * min(frame))
    travel = [0, 0]
    if plan.motion != "still":
        axis = 0 if plan.motion in ("left", "right") else 1
        sign = -1 if plan.motion in ("left", "up") else 1
        travel[axis] = sign * round(rng.uniform(*TRAVEL[plan.motion]) * frame[axis])
        travel[1 - axis] = round(rng.uniform(-DRIFT, DRIFT) * frame[1 - axis])
    steps = np.arange(num_frames)
    centres = np.empty((num_frames, 2), np.int64)
    for axis in range(2):
        border = round(INSIDE * radius)
        low = border - min(travel[axis], 0)
        high = frame[axis] - border - max(travel[axis], 0)
        if plan.anchor is None:
            start = rng.randint(low, high)
        else:
            start = min(max(round(plan.anchor[axis] * frame[axis]) - travel[axis] // 2, low), high)
        centres[:, axis] = start + travel[axis] * steps // (num_frames - 1)
    red, green, blue = (
        min(max(value + rng.randint(-COLOUR_JITTER, COLOUR_JITTER), 0), 255) for value in COLOURS[plan.colour]
    )
    return ToyObject(obj_id, plan.colour, plan.shape, (red, green, blue), radius, centres)


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
    """Object id of every pixel, 0 for the background: uint8 [T, H, W]. Objects in front hide those behind them."""
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


def darken(frames: np.ndarray) -> np.ndarray:
    """The frames at night, dark and bluish: uint8 RGB [T, H, W, 3]."""
    return (frames.astype(np.uint16) * np.array(NIGHT, np.uint16) // 100).astype(np.uint8)


def full_areas(scene: Scene) -> dict[int, int]:
    """The area in pixels of each object (by id) without occlusion."""
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
    """Value noise, 0…255: interpolated random grids of ``cells`` cells, each with half the weight of the last."""
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
