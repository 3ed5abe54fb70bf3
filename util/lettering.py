"""Letters in pictures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import ImageFont

ELLIPSIS = "…"


@cache
def letters(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships, at a size in pixels; characters that it lacks are shown as boxes."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: int, limit: int | None = None) -> list[str]:
    """Break text into lines of at most ``width`` pixels: between words, and within one that is longer than a line.

    Args:
        text: any Unicode text.
        font: from ``letters``.
        width: pixels.
        limit: of lines; the last one then ends with an ellipsis where there is more. None: as many as it takes.
    """
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".lstrip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if limit is None or len(lines) <= limit:
        return lines
    last = lines[limit - 1]
    while last and font.getlength(last + ELLIPSIS) > width:
        last = last[:-1].rstrip()
    return [*lines[: limit - 1], last + ELLIPSIS]
