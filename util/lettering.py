"""Draws text of any script on images.

DejaVu Sans, from matplotlib's files, draws most alphabets, OpenCV's built-in font Chinese, Japanese and Korean, and
Noto (the optional package ``manimgx-fonts``) other scripts and emoji. The system's fonts are not used, so images are
the same on every machine. matplotlib joins letters and orders right-to-left text, whatever libraries the system has.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import regex
from PIL import Image, ImageDraw

if TYPE_CHECKING:  # matplotlib is imported when text is drawn
    from matplotlib.ft2font import FT2Font

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # takes the place of characters that no font has
NOTO = "manimgx_fonts"
ASCENT = 0.93  # height of a line above its baseline, relative to the size
# Chinese and Japanese break between any two characters, but not before closing or after opening punctuation.
WIDE = r"\p{Han}\p{Hiragana}\p{Katakana}\u3000-\u303f\uff01-\uff60"
UNITS = regex.compile(rf"[「『（【《〈]*[{WIDE}][、。，．：；？！）」』】》〉…ー]*\s*|[^\s{WIDE}]+\s*|\s+")


@lru_cache(256)
def wrap_text(text: str, size: int, width: int, limit: int | None = None) -> tuple[str, ...]:
    """Break text into lines of at most ``width`` pixels, between words or within words that are too long.

    With a ``limit``, at most ``limit`` lines are returned; the last one ends with an ellipsis if text is left out. The
    lines are ``drawable``.
    """
    words = UNITS.findall(drawable(text))
    whole = (text_width(word.rstrip(), size) <= width for word in words)
    units = (unit for word, fits in zip(words, whole, strict=True) for unit in ([word] if fits else _clusters(word)))
    lines: list[list[str]] = [[]]
    room = float(width)
    for unit in units:
        bare = unit.rstrip()
        if lines[-1] and text_width(bare, size) > room:
            if len(lines) == limit:
                last = lines[-1]
                while last and text_width("".join(last).rstrip() + "…", size) > width:
                    last[-1:] = _clusters(last[0])[:-1] if len(last) == 1 else []
                last[:] = ["".join(last).rstrip(), "…"]
                break
            lines.append([])
            room = width
        lines[-1].append(unit)
        room -= text_width(bare, size) + (len(unit) - len(bare)) * text_width(" ", size)
    return tuple("".join(line).rstrip() for line in lines)


@lru_cache(4096)
def text_width(text: str, size: int) -> float:
    """Return the width of a line from ``wrap_text`` in pixels, for letters of ``size`` pixels."""
    return sum(
        _font(part, size).get_width_height()[0] / 64 if shaped else _east_asian(part, size)[1]
        for shaped, part in _parts(text)
    )


def draw_text(image: Image.Image, x: int, y: int, text: str, size: int, ink: tuple[int, int, int]) -> None:
    """Draw a line from ``wrap_text`` with its upper left corner at (x, y)."""
    pen, baseline = float(x), y + round(ASCENT * size)
    for shaped, part in _parts(text):
        if shaped:
            font = _font(part, size)
            font.draw_glyphs_to_bitmap()
            mask, advance = font.get_image(), font.get_width_height()[0] / 64
            left, top = pen + font.get_bitmap_offset()[0] / 64, baseline + font.get_descent() // 64 - len(mask)
        else:
            mask, advance = _east_asian(part, size)
            left, top = pen, baseline - size
        ImageDraw.Draw(image).bitmap((round(left), top), Image.fromarray(mask), fill=ink)
        pen += advance


def lettering_notes(texts: Iterable[str]) -> list[str]:
    """Return a note for the user if characters of the texts cannot be drawn."""
    characters = sorted(set(unicodedata.normalize("NFC", "".join(texts))))
    lost = [c for c in characters if _replacement(c) not in (c, " ", "")]
    if not lost:
        return []
    shown = " ".join(lost[:20]) + (" …" if len(lost) > 20 else "")
    cure = "" if _noto() else "; python -m pip install manimgx-fonts adds fonts for most scripts"
    return [f"no font has {shown}, and images show {UNKNOWN} or a name in its place{cure}"]


def drawable(text: str) -> str:
    """Replace the characters that no font has: symbols by their names, others by ``UNKNOWN``; remove invisible ones."""
    text = "".join(map(_replacement, unicodedata.normalize("NFC", text)))
    return regex.sub(rf"{UNKNOWN}(\s*{UNKNOWN})+", UNKNOWN, text).strip()


def _clusters(text: str) -> list[str]:
    """Split a text into what a reader sees as one character: a letter with its marks, an emoji of several parts."""
    return regex.findall(r"\X", text)


@cache
def _replacement(character: str) -> str:
    """Return a character that some font has itself; otherwise what is drawn in its place."""
    kind = unicodedata.category(character)
    if character.isspace():
        return " "
    if character in _characters(_dejavu(), *_noto()) or _in_opencv(character):
        return character
    if kind == "So":
        return f"[{unicodedata.name(character, 'symbol').lower()}]"
    return "" if kind[0] == "M" or kind in ("Cc", "Cf", "Cs", "Sk") else UNKNOWN


def right_to_left(text: str) -> bool:
    """Return whether the first letter of a text, which decides the order of the whole, is of a right-to-left script."""
    kinds = map(unicodedata.bidirectional, text)
    return next((kind for kind in kinds if kind in ("L", "R", "AL")), "L") != "L"


def _parts(text: str) -> list[tuple[bool, str]]:
    """Split a line into parts, from left to right, that matplotlib (True) or OpenCV draws."""
    known = _characters(_dejavu(), *_noto())
    parts = [(shaped, "".join(part)) for shaped, part in groupby(text, key=known.__contains__)]
    if len(parts) < 2:
        return parts
    back = right_to_left(text)
    mark = "\N{RIGHT-TO-LEFT MARK}" if back else "\N{LEFT-TO-RIGHT MARK}"  # a part follows the order of the line
    return [(shaped, mark + part if shaped else part) for shaped, part in parts][:: -1 if back else 1]


def _font(text: str, size: int) -> FT2Font:
    """Return a font with a text laid out in it."""
    from matplotlib.ft2font import FT2Font, LoadFlags

    missing = "".join(set(text) - _characters(_dejavu()))
    if missing:
        from matplotlib.font_manager import get_font  # looks at the system's fonts at its first import

        # Letters of a word join within one font only, and DejaVu has a part of the Arabic script.
        first = "Arabic" if regex.search(r"\p{Arabic}", missing) else "DejaVu"
        fonts = sorted([_dejavu(), *_noto()], key=lambda path: first not in path.name)
        font = get_font(fonts)
    else:
        font = FT2Font(_dejavu())
    font.set_size(size, 72)
    font.set_text(text, flags=LoadFlags.DEFAULT)
    return font


def _east_asian(text: str, size: int) -> tuple[np.ndarray, int]:
    """Draw text with OpenCV's font; return its mask ``[1.5 * size, W]``, baseline in row ``size``, and its width."""
    font = cv2.FontFace("uni")
    width = cv2.getTextSize((0, 0), text, (0, 0), font, size)[2]
    mask = np.zeros((size + size // 2, max(1, width)), np.uint8)
    cv2.putText(mask, text, (0, size), 255, font, size)
    return mask, width


@cache
def _in_opencv(character: str) -> bool:
    """Return whether OpenCV has an East Asian character; it draws a question mark in place of others."""
    if unicodedata.east_asian_width(character) not in "WF":
        return False
    return not np.array_equal(_east_asian(character, 20)[0], _east_asian("?", 20)[0])


@cache
def _characters(*fonts: Path) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    return frozenset(chr(code) for font in fonts for code in FT2Font(font).get_charmap())


@cache
def _dejavu() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _noto() -> tuple[Path, ...]:
    spec = find_spec(NOTO)
    folders = spec.submodule_search_locations or [] if spec else []
    return tuple(sorted(path for folder in folders for path in Path(folder).glob("*.ttf") if "Italic" not in path.name))
