"""Several objects in one picture: each sentence has its colour, and a label that keeps to its object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from util.lettering import letters, wrap_text
from util.visualisation import INK, MASK_COLOUR, PAPER, Picture, draw_outline

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    MASK_COLOUR,
    (60, 200, 255),
    (255, 225, 60),
    (180, 255, 120),
    (0, 120, 255),
    (225, 0, 0),
    (180, 60, 180),
    (255, 120, 120),
)
"""Colours that people with any of the three kinds of colour-blindness tell apart (ΔE of at least 20)."""
TINT, SHADE = 0.18, 0.82  # share of an object's colour inside it, low: sentences name colours; brightness outside
SAME = 0.6  # IoU from which two outlines would hide one another, and the later one is drawn inside the other
LABEL_LINES, LABEL_WIDTH = 2, 0.45  # of a label at most: lines, and share of the picture's width
FEWEST_LETTERS = 5  # a label for which fewer have room is left out
INERTIA = 0.75  # share of a label's old place in its new one; without, it would tremble with its mask
RANK = 0.02  # by how much each side of an object is better than the next, all else being equal
STAY = 0.3  # by how much another side of the object must be better before its label changes over
_FINE = 4  # a label's corners are drawn at so many times the size


def colour_of(number: int) -> Colour:
    """The colour of sentence ``number``, from 0."""
    return PALETTE[number % len(PALETTE)]


def numbered(sentences: Sequence[str]) -> list[str]:
    """Labels of sentences: numbered where there are more of them than colours."""
    many = len(sentences) > len(PALETTE)
    return [f"{i}  {sentence}" if many else sentence for i, sentence in enumerate(sentences, start=1)]


class ObjectPainter:
    """Draws the objects of a video's frames, in order, so that labels move calmly.

    Args:
        labels: one for each object; empty ones are not drawn.
        size: (H, W) of the frames; letters and lines follow it.
        letter_scale: how large letters are, 1 being usual.
    """

    def __init__(self, labels: Sequence[str], size: tuple[int, int], letter_scale: float = 1.0) -> None:
        height, width = size
        short = min(size)
        self.size = size
        self.line = int(1.2 + short / 300)
        self.seam = self.line + 2 * max(1, round(self.line / 2))
        letter = max(10, round(letter_scale * (0.7 * short + 0.3 * max(size)) / 30))
        room = max(1, round(LABEL_WIDTH * width))
        chips = (_chip(label, colour_of(i), letter, room) for i, label in enumerate(labels))
        self._labels = [
            None if chip is None or chip.shape[0] > height / 3 or chip.shape[1] > width else _Label(chip, size)
            for chip in chips
        ]

    def draw(self, frame: Picture, masks: np.ndarray) -> Picture:
        """Draw objects over a frame: tints, outlines with a dark seam, labels; the rest is shaded a little.

        Args:
            frame: uint8 RGB ``[H, W, 3]``.
            masks: bool ``[S, H, W]``, one for each label.
        """
        assert frame.shape[:2] == self.size and masks.shape == (len(self._labels), *self.size), (
            frame.shape,
            masks.shape,
        )
        picture = cv2.convertScaleAbs(frame, alpha=SHADE)
        boxes = [cv2.boundingRect(mask.view(np.uint8)) for mask in masks]  # x, y, w, h; 0 0 0 0 of an empty one
        shown = [i for i, box in enumerate(boxes) if box[2]]
        for i in shown:
            x, y, w, h = boxes[i]
            np.copyto(picture[y : y + h, x : x + w], frame[y : y + h, x : x + w], where=_crop(masks[i], boxes[i]))
        for i in shown:
            x, y, w, h = boxes[i]
            patch = picture[y : y + h, x : x + w]
            tinted = cv2.addWeighted(patch, 1 - TINT, np.full_like(patch, colour_of(i)), TINT, 0)
            np.copyto(patch, tinted, where=_crop(masks[i], boxes[i]))
        for number, i in enumerate(shown):
            inset = sum(_same(masks[i], masks[j]) for j in shown[:number]) * ((self.line + self.seam) // 2 + 1)
            draw_outline(picture, _shrunk(masks[i], inset), colour_of(i), self.line, self.seam)
        covered = cv2.integral(np.asarray(masks.any(axis=0), np.uint8))
        placed: list[_Box] = []
        for i, label in enumerate(self._labels):
            if label is None or i not in shown:
                continue
            placed.append(label.place(_main_part(masks[i], boxes[i]), placed, covered, self.seam))
            label.paste(picture)
        return picture


@dataclass(frozen=True)
class _Box:
    """Where something lies in a picture, in pixels."""

    x: float
    y: float
    w: float
    h: float

    def overlap(self, other: _Box) -> float:
        """Pixels in common."""
        width = min(self.x + self.w, other.x + other.w) - max(self.x, other.x)
        height = min(self.y + self.h, other.y + other.h) - max(self.y, other.y)
        return max(0.0, width) * max(0.0, height)


class _Label:
    """A label and its place."""

    def __init__(self, chip: np.ndarray, size: tuple[int, int]) -> None:
        self.chip = chip  # RGBA
        self.h, self.w = chip.shape[:2]
        self.room = size[1] - self.w, size[0] - self.h  # greatest x and y
        self.at: tuple[float, float] | None = None
        self.side = ""

    def place(self, target: _Box, taken: Sequence[_Box], covered: np.ndarray, gap: int) -> _Box:
        """Move to an object, or towards it: close by, where the label hides no object and no other label.

        Args:
            target: the object.
            taken: other labels of the frame.
            covered: ``[H + 1, W + 1]``: the integral of all objects' pixels.
            gap: between the object and its label, in pixels.
        """
        sides = {name: self._inside(x, y) for name, x, y in self._choices(target, gap)}
        costs = {
            name: self._cost(box, target, taken, covered) + RANK * rank
            for rank, (name, box) in enumerate(sides.items())
        }
        best = min(costs, key=lambda name: costs[name])
        if self.side not in costs or costs[best] < costs[self.side] - STAY:
            self.side = best
        goal = sides[self.side]
        if self.at is not None and max(abs(goal.x - self.at[0]), abs(goal.y - self.at[1])) < 2 * self.w:
            x, y = (INERTIA * old + (1 - INERTIA) * new for old, new in zip(self.at, (goal.x, goal.y), strict=True))
            moved = self._inside(x, y)
            goal = goal if any(moved.overlap(other) for other in taken) else moved
        self.at = goal.x, goal.y
        return goal

    def _cost(self, box: _Box, target: _Box, taken: Sequence[_Box], covered: np.ndarray) -> float:
        """How bad a place is: the shares of the label that hide objects and other labels, and how far it lies."""
        x0, y0 = int(box.x), int(box.y)
        x1, y1 = x0 + self.w, y0 + self.h
        hidden = int(covered[y1, x1]) - int(covered[y0, x1]) - int(covered[y1, x0]) + int(covered[y0, x0])
        labels = sum(box.overlap(other) for other in taken)
        away = max(target.x - box.x - self.w, box.x - target.x - target.w, 0.0) + max(
            target.y - box.y - self.h, box.y - target.y - target.h, 0.0
        )
        return (hidden + 10 * labels) / (self.w * self.h) + 0.2 * away / self.h

    def paste(self, picture: Picture) -> None:
        """Draw it at its place."""
        assert self.at is not None
        x, y = (round(side) for side in self.at)
        ground = picture[y : y + self.h, x : x + self.w]
        alpha = self.chip[..., 3:].astype(np.float32) / 255
        ground[:] = (self.chip[..., :3] * alpha + ground * (1 - alpha)).round().astype(np.uint8)

    def _choices(self, target: _Box, gap: int) -> Iterator[tuple[str, float, float]]:
        """Places by name, in order of preference."""
        right, bottom = target.x + target.w, target.y + target.h
        columns = {"": target.x + target.w / 2 - self.w / 2, " left": target.x, " right": right - self.w}
        for column, x in columns.items():
            yield f"above{column}", x, target.y - self.h - gap
            yield f"below{column}", x, bottom + gap
        for row, y in {"": target.y + target.h / 2 - self.h / 2, " high": target.y, " low": bottom - self.h}.items():
            yield f"right{row}", right + gap, y
            yield f"left{row}", target.x - self.w - gap, y
        yield "inside", columns[""], target.y + gap
        for step in (1, 2, 3):
            yield f"above {step}", columns[""], target.y - (self.h + gap) * (step + 1)
            yield f"below {step}", columns[""], bottom + gap + (self.h + gap) * step

    def _inside(self, x: float, y: float) -> _Box:
        return _Box(min(max(0.0, x), self.room[0]), min(max(0.0, y), self.room[1]), self.w, self.h)


def legend(title: str, entries: Sequence[tuple[str, str]], width: int, size: int = 18) -> Picture:
    """A dark picture ``[h, width, 3]`` that tells which colour is which sentence.

    Args:
        title: above.
        entries: sentence and remark of each object, in their order.
        width: pixels.
        size: of the letters, in pixels.
    """
    font, margin, line = letters(size), size // 2 + 2, size + size // 3
    indent = 3 * size
    rows: list[tuple[list[str], int | None]] = [(wrap_text(title, font, width - 2 * margin), None)]
    for i, (sentence, remark) in enumerate(entries):
        rows.append((wrap_text(f"{sentence}  ·  {remark}", font, width - indent - margin), i))
    height = sum(len(lines) * line for lines, _ in rows) + (len(rows) - 1) * size // 3 + 2 * margin
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    y = margin
    for lines, number in rows:
        if number is not None:
            box = (margin, y, margin + 2 * size - size // 3, y + line - 2)
            draw.rounded_rectangle(box, radius=size // 4, fill=colour_of(number))
            centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            draw.text(centre, str(number + 1), fill=_ink_on(colour_of(number)), font=font, anchor="mm")
        for text in lines:
            draw.text((margin if number is None else indent, y), text, fill=INK, font=font)
            y += line
        y += size // 3
    return np.asarray(image)


def _chip(text: str, colour: Colour, size: int, width: int) -> np.ndarray | None:
    """A label as RGBA ``[h, w, 4]``: letters on a rounded ground of the colour; None where it has no room."""
    font, pad = letters(size), max(2, size // 3)
    lines = wrap_text(text, font, width - 2 * pad, LABEL_LINES)
    fitting = min(map(len, lines)) if len(lines) > 1 else len(lines[0])
    if not text.strip() or fitting < min(FEWEST_LETTERS, len(text.strip())):
        return None
    line = size + max(2, size // 6)
    w = int(max(font.getlength(text) for text in lines)) + 2 * pad + 1
    h = line * len(lines) + pad
    ground = Image.new("L", (w * _FINE, h * _FINE))
    ImageDraw.Draw(ground).rounded_rectangle((0, 0, w * _FINE - 1, h * _FINE - 1), radius=pad * _FINE, fill=235)
    image = Image.new("RGB", (w, h), colour)
    draw = ImageDraw.Draw(image)
    for number, row in enumerate(lines):
        draw.text((pad, pad // 2 + number * line), row, fill=_ink_on(colour), font=font)
    return np.dstack([np.asarray(image), np.asarray(ground.resize((w, h), Image.Resampling.BOX))])


def _ink_on(colour: Colour) -> Colour:
    """Dark letters on a light colour, white ones on a dark colour."""
    red, green, blue = colour
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else (255, 255, 255)


def _crop(mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The mask within its box, ``[h, w, 1]``."""
    x, y, w, h = box
    return mask[y : y + h, x : x + w, None]


def _same(mask: np.ndarray, other: np.ndarray) -> bool:
    union = np.count_nonzero(mask | other)
    return bool(union) and bool(np.count_nonzero(mask & other) >= SAME * union)


def _shrunk(mask: np.ndarray, inset: int) -> np.ndarray:
    """The mask without a rim of ``inset`` pixels; as it is where nothing would be left."""
    if not inset:
        return mask
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * inset + 1, 2 * inset + 1))
    smaller = cv2.erode(mask.view(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    return smaller.view(bool) if smaller.any() else mask


def _main_part(mask: np.ndarray, box: Sequence[int]) -> _Box:
    """Where the largest connected part of a mask lies: a label keeps to the object, not to a speck elsewhere."""
    x, y, w, h = box
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask[y : y + h, x : x + w].astype(np.uint8))
    left, top, width, height = stats[1:][stats[1:, cv2.CC_STAT_AREA].argmax(), :4].tolist()
    return _Box(x + left, y + top, width, height)
