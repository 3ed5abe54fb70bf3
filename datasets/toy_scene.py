"""Scenes of the toy benchmark: what moves where. Geometry only; `toy_render` draws, `toy_sentences` names.

All lengths are integers in sub-pixels (a quarter of a pixel), so that a scene and its masks are the same on
every machine. x grows to the right and y downwards.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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

# Shares of the shorter side. Nothing lies between "small" and "large", so the words are never in doubt.
RADIUS = {"small": (0.125, 0.155), "large": (0.220, 0.280)}
# Shares of the frame's width (left, right) or height (up, down) that a moving object travels.
TRAVEL = {"left": (0.25, 0.45), "right": (0.25, 0.45), "up": (0.30, 0.50), "down": (0.30, 0.50)}
DRIFT = 0.04  # of the frame: the most that a moving object drifts across its direction
INSIDE = 0.6  # radii: a centre stays this far from the border
COLOUR_JITTER = 8  # of 255


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
    """What an object shall be. ``anchor`` is the middle of its path in shares of the frame, None = anywhere."""

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
    Likely only: whether a sentence holds is for `toy_sentences` to verify on the finished scene.
    """
    plans = _plan(rng, focus, kinds)
    rng.shuffle(plans)
    ids = list(range(1, len(plans) + 1))
    rng.shuffle(ids)  # ids tell nothing about who covers whom
    objects = tuple(
        _place(rng, plan, obj_id, num_frames, height, width) for plan, obj_id in zip(plans, ids, strict=True)
    )
    return Scene(height, width, objects, background_seed=rng.getrandbits(32))


def free_scene(rng: random.Random, num_frames: int, height: int, width: int, count: int) -> Scene:
    """Draw a scene of ``count`` objects that have nothing to do with each other."""
    objects = tuple(_place(rng, _any_plan(rng), i + 1, num_frames, height, width) for i in range(count))
    return Scene(height, width, objects, background_seed=rng.getrandbits(32))


def _plan(rng: random.Random, focus: str, kinds: Sequence[str]) -> list[Plan]:
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
    return plans


def _any_plan(rng: random.Random) -> Plan:
    return Plan(rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(SIZES), rng.choice(MOTIONS))


def _other(rng: random.Random, values: Sequence[str], value: str) -> str:
    return rng.choice([v for v in values if v != value])


def _pair(rng: random.Random, kind: str) -> list[Plan]:
    """Two objects that only the words of ``kind`` can tell apart (with what is free drawn at random)."""
    first, free = _any_plan(rng), _any_plan(rng)
    twins = {
        "colour": free._replace(colour=_other(rng, list(COLOURS), first.colour), shape=first.shape),
        "shape": free._replace(shape=_other(rng, SHAPES, first.shape), colour=first.colour),
        "size": first._replace(size=_other(rng, SIZES, first.size), motion=free.motion),
        "motion": first._replace(motion=_other(rng, MOTIONS, first.motion)),
    }
    return [first, twins[kind]]


def _related_trio(rng: random.Random) -> list[Plan]:
    """Twins on both sides of a third object that looks different. Often all three move alike, which keeps them so."""
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
    """A bystander; most of the time it shares a word with ``plan``, so that words must be read together."""
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
