"""The demo's contact sheet: some frames of a video with all objects, under a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from util.demo_results import SentenceRecord
from util.lettering import letters
from util.media_frames import MediaFrame
from util.object_overlays import ObjectPainter, legend
from util.visualisation import INK, PAPER, Picture, contact_sheet, sheet_width

TILES, COLUMNS = 12, 4
WIDTH, TILE_HEIGHT = 1280, 400  # pixels: of the sheet, about; of a tile, at most
GAP = 6
LEAST = 640  # pixels: a narrower sheet has no room for sentences


class Sheet:
    """Collects tiles and writes them.

    Args:
        sentences: all of them, with their scores.
        size: (H0, W0) of the frames.
        frames: how many there are.
    """

    def __init__(self, sentences: Sequence[SentenceRecord], size: tuple[int, int], frames: int) -> None:
        self.sentences = sentences
        count = min(TILES, frames)
        self.wanted = {int(i) for i in np.linspace(0, frames - 1, count).round()}
        height, width = size
        self.columns = min(COLUMNS if width >= height else COLUMNS + 2, max(2, -(-count // 2)) if count > 1 else 1)
        self.tile_width = min((WIDTH - GAP) // max(self.columns, 2) - GAP, max(1, TILE_HEIGHT * width // height))
        self.size = max(1, round(self.tile_width * height / width)), self.tile_width
        self.tiles: list[Picture] = []

    def add(self, number: int, frame: MediaFrame, masks: np.ndarray) -> None:
        """Show a frame, if it is among the chosen ones.

        Args:
            number: of the frame, from 0.
            frame: the frame.
            masks: bool ``[S, H0, W0]``.
        """
        if number not in self.wanted:
            return
        height, width = self.size
        shrinks = width < frame.image.shape[1]
        image = cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        smaller = [
            cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
            for mask in masks
        ]
        # Numbers, which the legend explains; of a single sentence the colour says enough.
        labels = [str(sentence.number) if len(masks) > 1 else "" for sentence in self.sentences]
        tile = ObjectPainter(labels, self.size, letter_scale=1.7).draw(image, np.stack(smaller))
        self.tiles.append(_stamped(tile, _clock(float(frame.time))))

    def write(self, path: Path, title: str) -> None:
        """Write the sheet.

        Args:
            path: the PNG.
            title: above all.

        Raises:
            UserError: the file cannot be written.
        """
        width = max(sheet_width(self.columns, self.tile_width, GAP), LEAST)
        entries = [
            (sentence.text, f"score {sentence.score:.2f}" + ("" if sentence.found else ", not found"))
            for sentence in self.sentences
        ]
        rows = [("", self.tiles[i : i + self.columns]) for i in range(0, len(self.tiles), self.columns)]
        contact_sheet(rows, path, self.tile_width, GAP, legend(title, entries, width))


def _stamped(picture: Picture, text: str) -> Picture:
    """The picture with its time in a corner."""
    size = max(10, picture.shape[1] // 26)
    font = letters(size)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    width = int(font.getlength(text)) + size
    if width > picture.shape[1] // 2:
        return picture
    bottom = picture.shape[0]
    draw.rectangle((0, bottom - size - size // 2, width, bottom), fill=PAPER)
    draw.text((size // 2, bottom - size // 4), text, fill=INK, font=font, anchor="ls")
    return np.asarray(image)


def _clock(seconds: float) -> str:
    """0:01.5, or 1:00:01.5."""
    tenths = round(seconds * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
