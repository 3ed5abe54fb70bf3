"""Draws results on images: overlays, labels, legends, contact sheets, and the images of a training log.

``draw_overlay`` draws one object with its box, score and sentence; the functions below it write such overlays of a
whole benchmark (``--visualize``). ``ObjectPainter`` draws several objects of a video, each with a colour and a label
that follows it; the demo and the web page use it. An image is a uint8 RGB array ``[H, W, 3]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw

from util.errors import UserError, nearest
from util.files import BROKEN_IMAGE, atomic_path, open_image
from util.lettering import UNKNOWN, draw_text, drawable, right_to_left, text_width, wrap_text
from util.video import write_video

if TYPE_CHECKING:  # PyTorch takes seconds to import, and only LastClip handles its tensors
    from torch import Tensor, nn

Picture = np.ndarray
Colour = tuple[int, int, int]
Size = tuple[int, int]  # height, width
Box = tuple[float, float, float, float]  # x, y, width, height in pixels

# Eight colours that differ for people with any of the three kinds of colour-blindness (ΔE of at least 20).
PALETTE: tuple[Colour, ...] = (
    (255, 45, 150),
    (60, 200, 255),
    (255, 225, 60),
    (180, 255, 120),
    (0, 120, 255),
    (225, 0, 0),
    (180, 60, 180),
    (255, 120, 120),
)
MASK_COLOUR, BOX_COLOUR, GROUND_TRUTH_COLOUR = PALETTE[0], PALETTE[2], (60, 220, 90)
INK, PAPER, WHITE = (240, 240, 240), (22, 22, 26), (255, 255, 255)
TINT, SHADE = 0.18, 0.82  # the mask's colour inside it, faint because sentences name colours; brightness outside
GAP = 6  # pixels between images that are put side by side

# Overlays of benchmarks are drawn within these limits: text stays legible on thumbnails, and files of 4K videos small.
MIN_SIDE, MAX_SIDE = 480, 960  # pixels of the longer side
OVERLAYS = "visualize"  # their folder
OVERLAY_FPS = 6  # Ref-YouTube-VOS annotates every fifth frame of 30 per second
SHEET_ROWS, SHEET_COLUMNS = 8, 5

MANY = 24  # with more objects, labels are numbers, and outlines may hide each other: the time stays linear
SAME_IOU = 0.6  # from this IoU on, the later one of two outlines is drawn inside the other, which would hide it
LABEL_LINES, LABEL_WIDTH = 2, 0.45  # a label's maximum number of lines, and share of the image's width
FEWEST_LETTERS = 5  # a longer label that has room for fewer letters in a line is left out
INERTIA = 0.75  # weight of a label's old position; without it, labels would tremble with the masks
RANK = 0.02  # cost of each step down the order of preferred places
STAY = 0.3  # additional cost of a place more than a label's height away from the current one
LABEL_COST = 10  # cost of covering another label; covering an object costs 1

SHEET_TILES, SHEET_TILES_PER_ROW, SHEET_MOST_PER_ROW = 12, 4, 6
SHEET_WIDTH, SHEET_LEAST_WIDTH, TILE_HEIGHT = 1280, 640, 400  # pixels


def text_bar(text: str, width: int, size: int | None = None) -> Picture:
    """Draw wrapped text on a dark bar ``[h, width, 3]`` with an even h.

    Letters of ``size`` pixels are used; None: the size follows the width.
    """
    size = size or max(15, width // 38)
    margin, step = size // 2, size + size // 3
    lines = wrap_text(text, size, width - 2 * margin)
    image = Image.new("RGB", (width, (len(lines) * step + size + 1) // 2 * 2), PAPER)
    for number, line in enumerate(lines):
        draw_text(image, margin, margin + number * step, line, size, INK)
    return np.asarray(image)


def legend(
    title: str, entries: Sequence[tuple[str, str]], width: int, size: int = 18, colours: Sequence[Colour] | None = None
) -> Picture:
    """Draw a dark bar with a title, and a line for each object: its number and colour, its sentence and a remark.

    Both ``width`` and the letters' ``size`` are in pixels; ``colours`` are as in ``ObjectPainter``.
    """
    rows, indent = [text_bar(title, width, size)], 3 * size
    colours = colours or object_colours(len(entries))
    for i, (sentence, remark) in enumerate(entries):
        bar = text_bar(f"{sentence}  ·  {remark}", width - indent, size)
        image = Image.new("RGB", (width, len(bar)), PAPER)
        image.paste(Image.fromarray(bar), (indent, 0))
        _paste(image, _chip(str(i + 1), colours[i], size, indent), size // 2, size // 3)
        rows.append(np.asarray(image))
    return np.concatenate(rows)


def object_colours(count: int, names: Sequence[str] = (), where: str = "--colors") -> list[Colour]:
    """Return the colours of ``count`` objects: those with the given names, or the palette's if there are none.

    Args:
        names: as the user typed them, one for each object: of CSS, or ``#rrggbb``.
        where: the name of their option, for the error message.

    Raises:
        UserError: a name is unknown, or there are more or fewer names than objects.
    """
    if not names:
        return [PALETTE[i % len(PALETTE)] for i in range(count)]
    if len(names) != count:
        raise UserError(f"{where} has {len(names)} for {count} sentence{'s'[: count > 1]}; give one for each sentence")
    return [_named_colour(name, where) for name in names]


def _named_colour(name: str, where: str) -> Colour:
    with suppress(ValueError):
        colour = ImageColor.getrgb(name)
        if len(colour) == 3:  # four with a transparency, which an object does not have
            return colour
    near = nearest(name.lower(), [*ImageColor.colormap])
    hint = f"did you mean {near!r}?" if near else "give a name such as orange, or #rrggbb"
    raise UserError(f"{where} has no colour {name[:40]!r}; {hint}")


def _ink_on(colour: Colour) -> Colour:
    """Return dark ink for a light colour, white ink for a dark one."""
    red, green, blue = colour
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else WHITE


def draw_overlay(
    frame: Picture,
    mask: np.ndarray,
    sentence: str = "",
    box: Sequence[float] | None = None,
    score: float | None = None,
    colour: Colour = MASK_COLOUR,
) -> Picture:
    """Draw a mask, a box and its score over a frame, and a bar with the sentence below it.

    The frame is drawn at ``overlay_size``. The bar's height depends only on the sentence and the width, so all frames
    of a clip give images of one size.

    Args:
        frame: uint8 RGB ``[H, W, 3]``.
        mask: bool ``[H, W]``.
        sentence: any Unicode text; no bar if it is empty.
        box: (x0, y0, x1, y1) in pixels of ``frame``.
        score: 0…1, written at the box.
    """
    assert frame.shape[:2] == mask.shape, (frame.shape, mask.shape)
    size = overlay_size(*mask.shape)
    picture = _draw_masks(_resized(frame, size), _resized_mask(mask, size)[None], [colour], line=3, seam=5)
    if box is not None:
        scale = size[1] / mask.shape[1]
        _draw_box(picture, [side * scale for side in box], score)
    return np.concatenate([picture, text_bar(sentence, size[1])]) if sentence else picture


def overlay_size(height: int, width: int) -> Size:
    """Return the (height, width) at which ``draw_overlay`` draws a frame: even, the longer side within the limits."""
    longest = max(height, width)
    scale = min(max(longest, MIN_SIDE), MAX_SIDE) / longest
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _draw_masks(frame: Picture, masks: np.ndarray, colours: Sequence[Colour], line: int, seam: int) -> Picture:
    """Darken a frame outside of the masks, tint it inside, and draw outlines ``line`` pixels wide on a dark ``seam``.

    Args:
        masks: bool ``[S, H, W]``. Without any mask the whole frame is dark, which shows that nothing was found.
        seam: width of the dark line below, which makes the outline visible on any background.
    """
    shown = [i for i, mask in enumerate(masks) if mask.any()]
    picture = np.where(np.logical_or.reduce(masks)[..., None], frame, cv2.convertScaleAbs(frame, alpha=SHADE))
    for i in shown:
        tinted = cv2.addWeighted(picture, 1 - TINT, np.full_like(picture, colours[i]), TINT, 0)
        np.copyto(picture, tinted, where=masks[i][..., None])
    kind = cv2.LINE_AA if line > 1 else cv2.LINE_8  # an anti-aliased line of one pixel would be pale
    for number, i in enumerate(shown):
        earlier = shown[:number] if len(shown) <= MANY else []
        same = min(sum(_is_same(masks[i], masks[j]) for j in earlier), len(PALETTE) - 1)
        outline = _shrunk(masks[i], same * ((line + seam) // 2 + 1)).astype(np.uint8)
        outlines, _ = cv2.findContours(outline, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, PAPER, seam, kind)
        cv2.drawContours(picture, outlines, -1, colours[i], line, kind)
    return picture


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.count_nonzero(one & other) >= SAME_IOU * np.count_nonzero(one | other))


def _shrunk(mask: np.ndarray, inset: int) -> np.ndarray:
    """Return the mask without a rim of ``inset`` pixels, or the mask itself if nothing would be left."""
    if not inset:
        return mask
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * inset + 1, 2 * inset + 1))
    smaller = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE).astype(bool)
    return smaller if smaller.any() else mask


def _draw_box(picture: Picture, box: Sequence[float], score: float | None) -> None:
    """Draw a box (x0, y0, x1, y1) into the image, and the score at its upper left corner."""
    height, width = picture.shape[:2]
    x0, x1 = (int(np.clip(round(x), 0, width - 1)) for x in (box[0], box[2]))
    y0, y1 = (int(np.clip(round(y), 0, height - 1)) for y in (box[1], box[3]))
    cv2.rectangle(picture, (x0, y0), (x1, y1), PAPER, 4)
    cv2.rectangle(picture, (x0, y0), (x1, y1), BOX_COLOUR, 2)
    if score is not None:
        chip = _chip(f"{score:.2f}", BOX_COLOUR, 14, width)
        image = Image.fromarray(picture)
        _paste(image, chip, x0, y0 - 20)
        picture[:] = np.asarray(image)


def movie_path(folder: Path) -> Path:
    """Return the path of an expression's MP4, given the folder OUTPUT/visualize/VIDEO/EXPRESSION of its overlays."""
    return folder.parent.with_name(f"{folder.parent.name}_{folder.name}.mp4")


def write_overlay(
    path: Path, sentence: str, frame: Path, mask: np.ndarray, box: np.ndarray | None, score: float | None
) -> None:
    """Write the overlay of one expression for one frame of its video.

    Args:
        frame: the image file.
        mask: bool ``[H0, W0]``.
        box: (x0, y0, x1, y1) in pixels; None: nothing is drawn.

    Raises:
        UserError: the frame cannot be read or the overlay not written.
    """
    drawn = None if box is None else box.tolist()
    write_picture(
        path, draw_overlay(read_picture(frame), mask, sentence, drawn, None if score is None else float(score))
    )


def write_movie(folder: Path, frames: Sequence[Path]) -> None:
    """Write the MP4 of an expression from the overlays in its folder, in the order of the frames."""
    write_video(movie_path(folder), (read_picture(folder / f"{frame.stem}.png") for frame in frames), OVERLAY_FPS)


def write_sheet(path: Path, expressions: Sequence[tuple[Path, str, Sequence[Path]]]) -> None:
    """Write a contact sheet of some expressions and some frames of each, evenly spread.

    Each expression is a tuple of the folder of its overlays, its sentence, and the frames of the video.
    """
    rows = []
    for folder, sentence, frames in spread(expressions, SHEET_ROWS):
        tiles = [read_picture(folder / f"{frame.stem}.png") for frame in spread(frames, SHEET_COLUMNS)]
        # the row's title has the sentence
        bare = [tile[: -len(text_bar(sentence, tile.shape[1]))] for tile in tiles]
        rows.append((f"{folder.parent.name} · {folder.name} · {sentence}", bare))
    contact_sheet(rows, path)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most ``count`` items, evenly spread from the first to the last."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Picture]]], path: Path, tile_width: int = 320, header: Picture | None = None
) -> None:
    """Write a PNG with rows of images, each row below its title.

    Args:
        rows: titles, which may be empty, and images, which may differ in size and number.
        tile_width: width of an image in the sheet, in pixels.
        header: an image above all, at least as wide as the rows; the sheet gets its width.

    Raises:
        UserError: the file cannot be written.
    """
    width = GAP + max(len(tiles) for _, tiles in rows) * (tile_width + GAP) if header is None else header.shape[1]
    strips = [] if header is None else [header]
    for title, images in rows:
        tiles = [_resized(tile, (max(1, round(len(tile) * tile_width / tile.shape[1])), tile_width)) for tile in images]
        strip = np.full((max(map(len, tiles)) + GAP, width, 3), PAPER, np.uint8)
        for number, tile in enumerate(tiles):
            x = GAP + number * (tile_width + GAP)
            strip[: len(tile), x : x + tile_width] = tile
        strips += [text_bar(title, width, size=max(13, tile_width // 20)), strip] if title else [strip]
    write_picture(path, np.concatenate(strips))


def sentence_labels(sentences: Sequence[str]) -> list[str]:
    """Return the labels of sentences: only numbers beyond ``MANY``, numbered if there are more than colours.

    They are also numbered if no font can draw all of a sentence.
    """
    if len(sentences) > MANY:
        return [str(i) for i in range(1, len(sentences) + 1)]
    many = len(sentences) > len(PALETTE) or any(UNKNOWN in drawable(s) for s in sentences)
    return [f"{i}  {sentence}" if many else sentence for i, sentence in enumerate(sentences, start=1)]


class ObjectPainter:
    """Draws the objects of a video, frame by frame and in order, because labels follow their objects smoothly.

    Args:
        labels: one for each object; an empty one is not drawn.
        size: (H, W) of the frames; letters and lines are scaled with it.
        letter_scale: relative size of the letters.
        colours: one for each object; None: the palette's.
    """

    def __init__(
        self, labels: Sequence[str], size: Size, letter_scale: float = 1.0, colours: Sequence[Colour] | None = None
    ) -> None:
        height, width = size
        short = min(size)
        self.size = size
        self.line = int(1.2 + short / 300)
        self.seam = self.line + 2 * max(1, round(self.line / 2))
        self.colours = colours or object_colours(len(labels))
        letter = max(10, round(letter_scale * (0.7 * short + 0.3 * max(size)) / 30))
        room = max(1, round(LABEL_WIDTH * width))
        chips = [_chip(label, colour, letter, room) for label, colour in zip(labels, self.colours, strict=True)]
        self._labels = [
            None if chip is None or chip.height > height / 3 or chip.width > width else _Label(chip, size)
            for chip in chips
        ]

    def draw(self, frame: Picture, masks: np.ndarray) -> Picture:
        """Draw the objects of a frame with their labels.

        Args:
            frame: uint8 RGB ``[H, W, 3]``.
            masks: bool ``[S, H, W]``, one for each label.
        """
        assert frame.shape[:2] == self.size and masks.shape == (len(self.colours), *self.size), masks.shape
        picture = Image.fromarray(_draw_masks(frame, masks, self.colours, self.line, self.seam))
        taken = np.asarray(masks.any(axis=0), np.uint8)
        for label, mask in zip(self._labels, masks, strict=True):
            if label is not None and mask.any():
                label.move(_main_part(mask), taken, self.seam)
                label.paste(picture)
        return np.asarray(picture)


def _main_part(mask: np.ndarray) -> Box:
    """Return the box of the mask's largest connected part; a label should not follow a speck elsewhere."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    left, top, width, height = stats[1:][stats[1:, cv2.CC_STAT_AREA].argmax(), :4].tolist()
    return left, top, width, height


def _chip(text: str, colour: Colour, size: int, width: int) -> Image.Image | None:
    """Draw a label, RGBA: letters on a rounded background; None if it is empty or there is no room for it."""
    pad, text = max(2, size // 3), drawable(text)
    lines = wrap_text(text, size, width - 2 * pad, LABEL_LINES)
    if not text or max(map(len, lines)) < min(FEWEST_LETTERS, len(text)):
        return None
    step = size + max(2, size // 6)
    widths = [text_width(line, size) for line in lines]
    chip = Image.new("RGBA", (int(max(widths)) + 2 * pad + 1, step * len(lines) + pad))
    ImageDraw.Draw(chip).rounded_rectangle((0, 0, chip.width - 1, chip.height - 1), radius=pad, fill=(*colour, 235))
    for number, (line, wide) in enumerate(zip(lines, widths, strict=True)):
        x = int(max(widths) - wide) if right_to_left(line) else 0
        draw_text(chip, pad + x, pad // 2 + number * step, line, size, _ink_on(colour))
    return chip


def _paste(image: Image.Image, chip: Image.Image | None, x: float, y: float) -> None:
    """Draw a label into an image, moved inside of it if necessary."""
    if chip is not None:
        inside = max(0, min(round(x), image.width - chip.width)), max(0, min(round(y), image.height - chip.height))
        image.paste(chip, inside, chip)


class _Label:
    """A label and its current position."""

    def __init__(self, chip: Image.Image, size: Size) -> None:
        self.chip = chip
        self.w, self.h = chip.size
        self.room = size[1] - self.w, size[0] - self.h  # largest x and y
        self.at: np.ndarray | None = None  # x, y

    def move(self, target: Box, taken: np.ndarray, gap: int) -> None:
        """Move towards the place near an object at which the label hides least.

        Args:
            target: the object.
            taken: uint8 ``[H, W]``: 1 on objects, ``LABEL_COST`` on the other labels; this label is added.
            gap: pixels between the object and its label.
        """
        left, top, width, height = target
        centre, middle, step = left + (width - self.w) / 2, top + (height - self.h) / 2, self.h + gap
        places = [
            *((x, y) for x in (centre, left, left + width - self.w) for y in (top - step, top + height + gap)),
            *((x, middle) for x in (left + width + gap, left - self.w - gap)),
            (centre, top + gap),
            *((centre, y) for i in (2, 3, 4) for y in (top - step * i, top + height + gap + step * (i - 1))),
        ]  # in order of preference
        goals = np.clip(places, 0, self.room)

        def cost(number: int) -> float:
            far = self.at is not None and np.abs(goals[number] - self.at).max() > self.h
            return self._below(taken, goals[number]).mean() + RANK * number + STAY * far

        goal = goals[min(range(len(goals)), key=cost)]
        if self.at is not None and np.abs(goal - self.at).max() < 2 * self.w:
            moved = INERTIA * self.at + (1 - INERTIA) * goal
            goal = goal if self._below(taken, moved).max() == LABEL_COST else moved
        self.at = goal
        self._below(taken, goal)[:] = LABEL_COST

    def paste(self, picture: Image.Image) -> None:
        """Draw the label at its position."""
        assert self.at is not None
        _paste(picture, self.chip, *self.at)

    def _below(self, plane: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Return the part ``[h, w]`` of a plane ``[H, W]`` that the label covers at a place."""
        x, y = place.round().astype(int)
        return plane[y : y + self.h, x : x + self.w]


def sheet_tile(frame: Picture, masks: np.ndarray, time: float, colours: Sequence[Colour] | None = None) -> Picture:
    """Draw a frame for ``object_sheet``: small, with its time, and the objects' numbers if there are several.

    Args:
        frame: uint8 RGB ``[H0, W0, 3]``.
        masks: bool ``[S, H0, W0]``.
        time: in seconds.
        colours: as in ``ObjectPainter``.
    """
    height, width = frame.shape[:2]
    tile_width = min((SHEET_WIDTH - GAP) // SHEET_TILES_PER_ROW - GAP, max(1, TILE_HEIGHT * width // height))
    size = max(1, round(tile_width * height / width)), tile_width
    smaller = np.stack([_resized_mask(mask, size) for mask in masks])
    labels = [str(i) if len(masks) > 1 else "" for i in range(1, len(masks) + 1)]
    return _stamped(ObjectPainter(labels, size, 1.7, colours).draw(_resized(frame, size), smaller), clock(time))


def object_sheet(
    path: Path,
    title: str,
    entries: Sequence[tuple[str, str]],
    tiles: Sequence[Picture],
    colours: Sequence[Colour] | None = None,
) -> None:
    """Write the contact sheet of a video: frames drawn by ``sheet_tile`` below a legend.

    All tiles have one size; ``title``, ``entries`` and ``colours`` are those of ``legend``.

    Raises:
        UserError: the file cannot be written.
    """
    width = tiles[0].shape[1]
    columns = min(len(tiles), (SHEET_WIDTH - GAP) // (width + GAP), SHEET_MOST_PER_ROW)
    rows = [("", tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    header = legend(title, entries, max(GAP + columns * (width + GAP), SHEET_LEAST_WIDTH), colours=colours)
    contact_sheet(rows, path, width, header)


def _stamped(picture: Picture, text: str) -> Picture:
    """Write text into the lower left corner, if there is room."""
    height, width = picture.shape[:2]
    size = max(10, width // 26)
    if text_width(text, size) + size > width // 2:
        return picture
    image = Image.fromarray(picture)
    _paste(image, _chip(text, PAPER, size, width), 0, height)
    return np.asarray(image)


def clock(seconds: float) -> str:
    """Format a time as 0:01.5 or 1:00:01.5."""
    tenths = round(seconds * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


class LastClip:
    """Draws the first clip of the last training step: the prediction beside the ground truth.

    A forward hook keeps references to what the step has computed, so steps of which nothing is drawn cost nothing.

    Args:
        model: the segmenter itself, without wrappers.
        to_pixels: converts float frames ``[3, H, W]``, as the model gets them, to uint8.
        threshold: mask probability from which a pixel belongs to the object.
    """

    def __init__(self, model: nn.Module, to_pixels: Callable[[Tensor], Tensor], threshold: float = 0.5) -> None:
        self.to_pixels, self.threshold = to_pixels, threshold
        self._step: tuple[tuple[Any, ...], Callable[[], Tensor]] | None = None  # the inputs, and the first clip's masks
        model.register_forward_hook(self._keep)

    def _keep(self, model: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if model.training:
            self._step = inputs, output.first_clip()

    def draw(self) -> Picture | None:
        """Draw the clip's annotated frame or, if all are annotated, the middle one; None before the first step.

        This waits for the device.
        """
        if self._step is None:
            return None
        (frames, padding, captions, select, annotated), probabilities = self._step
        masks = probabilities()
        middle = len(masks) // 2
        number = middle if annotated is None else int(annotated[0])
        real = ~padding[0].cpu()
        height, width = int(real[:, 0].sum()), int(real[0].sum())
        frame = self.to_pixels(frames[0, number].float().cpu())[:, :height, :width].permute(1, 2, 0).numpy()
        predicted = masks[middle].float().cpu()[:height, :width].numpy() >= self.threshold
        ground_truth = select.target.masks[0][middle].cpu()[:height, :width].numpy() > 0
        left, right = draw_overlay(frame, predicted), draw_overlay(frame, ground_truth, colour=GROUND_TRUTH_COLOUR)
        picture = np.concatenate([left, np.zeros((len(left), GAP, 3), np.uint8), right], axis=1)
        return np.concatenate([picture, text_bar(f"prediction · ground truth: {captions[0]}", picture.shape[1])])


def read_picture(path: Path) -> Picture:
    """Read an image file as RGB, as stored (without its EXIF orientation).

    Raises:
        UserError: the file is missing or not an image.
    """
    try:
        with open_image(path) as image:
            return np.array(image.convert("RGB"))
    except BROKEN_IMAGE as error:
        raise UserError(f"cannot read the image {path}: {error}") from error


def write_picture(path: Path, picture: Picture) -> None:
    """Write an image in the format of the path's suffix; the file gets its name when it is complete.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, compress_level=3)  # three times as fast at the same size


def _resized(picture: Picture, size: Size) -> Picture:
    method = cv2.INTER_AREA if size[1] < picture.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(picture, size[::-1], interpolation=method)


def _resized_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    return cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) >= 0.5
