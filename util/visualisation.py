"""Pictures of results: overlays of mask, box and sentence, contact sheets, MP4 files, training curves.

A picture is a uint8 RGB array ``[H, W, 3]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from util.errors import UserError
from util.files import atomic_path
from util.lettering import letters, wrap_text
from util.media_writer import open_video

Picture = np.ndarray
Curve = Sequence[tuple[float, float]]  # (x, y) points in order of x

# Pictures are drawn within these limits, so that words stay legible over a thumbnail and files small for 4K.
MIN_SIDE, MAX_SIDE = 480, 960  # pixels, of the longer side

MASK_COLOUR = (255, 45, 150)
BOX_COLOUR = (255, 225, 60)
INK, PAPER = (240, 240, 240), (22, 22, 26)
TINT, SHADE = 0.28, 0.72  # share of the mask's colour inside it, low: sentences name colours; brightness left outside


def draw_overlay(
    frame: Picture,
    mask: np.ndarray,
    sentence: str = "",
    box: Sequence[float] | None = None,
    score: float | None = None,
    colour: tuple[int, int, int] = MASK_COLOUR,
) -> Picture:
    """Draw a mask's tint and contour, a box and its score over a frame, and a bar with the sentence below it.

    The frame is drawn at ``overlay_size``; the bar's height depends on the sentence and the width alone, so that all
    frames of a clip give pictures of one size.

    Args:
        frame: uint8 RGB ``[H, W, 3]``.
        mask: bool ``[H, W]``.
        sentence: any Unicode text; wrapped where it is long, no bar where it is empty.
        box: (x0, y0, x1, y1) in pixels of ``frame``.
        score: 0…1, written at the box.
        colour: RGB of the mask.
    """
    assert frame.shape[:2] == mask.shape, (frame.shape, mask.shape)
    height, width = overlay_size(*mask.shape)
    scale = width / mask.shape[1]
    shrinks = height < mask.shape[0]
    picture = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    inside = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5

    # Without any mask the whole frame is shaded, which says that nothing was found.
    tinted = picture * (1 - TINT) + np.array(colour) * TINT
    picture = np.where(inside[..., None], tinted, picture * SHADE).round().astype(np.uint8)
    draw_outline(picture, inside, colour, line=3, seam=5)
    if box is not None:
        _draw_box(picture, [side * scale for side in box], score)
    return np.concatenate([picture, text_bar(sentence, width)]) if sentence else picture


def draw_outline(picture: Picture, mask: np.ndarray, colour: tuple[int, int, int], line: int, seam: int) -> None:
    """Draw a mask's contours, those of its holes too, into the picture.

    Args:
        picture: uint8 RGB ``[H, W, 3]``.
        mask: bool ``[H, W]``.
        colour: RGB.
        line: width in pixels.
        seam: width of the dark line below, which makes the other one visible on any ground.
    """
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    kind = cv2.LINE_AA if line > 1 else cv2.LINE_8  # a smooth line of one pixel would be pale
    cv2.drawContours(picture, outlines, -1, PAPER, seam, kind)
    cv2.drawContours(picture, outlines, -1, colour, line, kind)


def overlay_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which ``draw_overlay`` draws a frame: even numbers, the longer side within the limits."""
    longest = max(height, width)
    scale = min(max(longest, MIN_SIDE), MAX_SIDE) / longest
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def text_bar(text: str, width: int, size: int | None = None) -> Picture:
    """A dark bar ``[h, width, 3]``, h even, with text wrapped into it.

    Args:
        text: any Unicode text; characters that DejaVu Sans lacks are shown as boxes.
        width: pixels.
        size: of the letters, in pixels; by default it follows the width.
    """
    size = size or max(15, width // 38)
    font = letters(size)
    margin = size // 2
    lines = wrap_text(text, font, width - 2 * margin)
    height = (len(lines) * (size + size // 3) + size + 1) // 2 * 2
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((margin, margin + number * (size + size // 3)), line, fill=INK, font=font)
    return np.asarray(image)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Picture]]],
    path: Path,
    tile_width: int = 320,
    gap: int = 6,
    header: Picture | None = None,
) -> None:
    """Write a PNG with one row of pictures per entry, each under its title.

    Args:
        rows: titles, which may be empty, and pictures, which may differ in size and number.
        path: the PNG.
        tile_width: width of a picture in the sheet, in pixels.
        gap: between pictures, in pixels.
        header: a picture above all, at least as wide as the tiles need (``sheet_width``): the sheet gets its width.

    Raises:
        UserError: the file cannot be written.
    """
    assert rows and all(tiles for _, tiles in rows), "a contact sheet needs pictures"
    width = sheet_width(max(len(tiles) for _, tiles in rows), tile_width, gap)
    width = width if header is None else header.shape[1]
    strips = [] if header is None else [header]
    for title, tiles in rows:
        tiles = [_to_width(tile, tile_width) for tile in tiles]
        strip = _paper(max(len(tile) for tile in tiles) + gap, width)
        for number, tile in enumerate(tiles):
            x = gap + number * (tile_width + gap)
            strip[: len(tile), x : x + tile_width] = tile
        strips += [text_bar(title, width, size=max(13, tile_width // 20)), strip] if title else [strip]
    write_picture(path, np.concatenate(strips))


def sheet_width(columns: int, tile_width: int = 320, gap: int = 6) -> int:
    """Width of a contact sheet, in pixels."""
    return gap + columns * (tile_width + gap)


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture in the format of the path's suffix, beside and renamed.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary, compress_level=3)  # a third of the time, the same size
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another output folder") from error


def read_picture(path: Path) -> Picture:
    """Read an image file as RGB.

    Raises:
        UserError: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot read the picture {path}: {error}") from error


def write_video(path: Path, pictures: Iterable[Picture], fps: float = 6) -> None:
    """Write an MP4 that browsers play: H.264, 4:2:0, or MPEG-4 Part 2 where this FFmpeg has no libx264.

    Odd sizes, which 4:2:0 cannot hold, grow by one repeated row or column. Pictures are taken one at a time.

    Args:
        path: ends in ``.mp4``.
        pictures: at least one, all of one size.
        fps: frames per second.

    Raises:
        UserError: the file cannot be written.
    """
    step = 1 / Fraction(fps).limit_denominator(1000)
    with open_video(path, 1 / step, step) as video:
        for number, picture in enumerate(pictures):
            video.write(picture, number * step, step)


def plot_curves(
    path: Path,
    panels: Mapping[str, Mapping[str, Curve]],
    title: str,
    x_label: str = "step",
    window: int | None = None,
) -> None:
    """Write training curves as a PNG, one panel above the other on one x axis.

    A curve that is averaged is drawn pale, under its moving average. A curve has one colour in all panels.

    Args:
        path: the picture.
        panels: label of the y axis → name of the curve → points; at least one panel.
        title: above all.
        x_label: below all.
        window: points over which a curve is averaged; None: a 25th of them, 1: not at all.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and few commands plot
    from matplotlib.figure import Figure

    assert panels, "a plot needs a panel"
    figure = Figure(figsize=(8, 1 + 2.6 * len(panels)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(n for c in panels.values() for n in c))}
    for axis, (y_label, curves) in zip(axes, panels.items(), strict=True):
        for name, points in curves.items():
            x, y = np.array(points, dtype=float).reshape(-1, 2).T
            width = min(len(x), len(x) // 25 if window is None else window)
            if width > 1:
                axis.plot(x, y, color=colours[name], alpha=0.25, linewidth=0.8)
                kernel = np.full(width, 1 / width)
                x, y = np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid")
            axis.plot(x, y, color=colours[name], label=name, marker="o" if len(x) < 15 else None, markersize=3)
        axis.set_ylabel(y_label)
        axis.grid(alpha=0.3)
        if len(colours) > 1:
            axis.legend(fontsize=8)
    axes[-1].set_xlabel(x_label)
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another output folder") from error


def _draw_box(picture: Picture, box: Sequence[float], score: float | None) -> None:
    """Draw a box (x0, y0, x1, y1), and the score at its upper left corner, into the picture."""
    height, width = picture.shape[:2]
    x0, x1 = (int(np.clip(round(x), 0, width - 1)) for x in (box[0], box[2]))
    y0, y1 = (int(np.clip(round(y), 0, height - 1)) for y in (box[1], box[3]))
    cv2.rectangle(picture, (x0, y0), (x1, y1), PAPER, 4)
    cv2.rectangle(picture, (x0, y0), (x1, y1), BOX_COLOUR, 2)
    if score is None:
        return
    text, font = f"{score:.2f}", letters(14)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    label_width = int(draw.textlength(text, font=font)) + 7
    x, y = min(x0, width - label_width), max(0, y0 - 19)
    draw.rectangle((x, y, x + label_width, y + 18), fill=BOX_COLOUR)
    draw.text((x + 4, y + 1), text, fill=PAPER, font=font)
    picture[:] = np.asarray(image)


def _to_width(picture: Picture, width: int) -> Picture:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    shrinks = width < picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _paper(height: int, width: int) -> Picture:
    return np.full((height, width, 3), PAPER, dtype=np.uint8)
