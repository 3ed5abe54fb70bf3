"""The page's own HTML: cards for the video, progress, mistakes, and scores. Texts of visitors are escaped."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from demo import DemoResult, Progress
from scripts.web_video import seconds_of
from util.drawing import colour_of
from util.video import Media

SIDE = 1280  # pixels of a shown picture's longer side, at most
QUALITY = 88  # of JPEG
LINE_WIDTH, LINE_HEIGHT = 240, 36  # of a score's curve, in its own units
STAGES = {"segment": "Looking for the objects", "draw": "Drawing them"}


def picture(image: np.ndarray, alt: str) -> str:
    """A picture, uint8 RGB ``[H, W, 3]``, as an element that holds all of it: no file is left behind."""
    shown = Image.fromarray(image)
    shown.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=QUALITY)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img class="picture" alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'


def video_card(media: Media, name: str, first: np.ndarray) -> str:
    """What was uploaded: its first frame, name, size and length."""
    height, width = media.size
    facts = [f"{width} × {height}"]
    if media.still:
        facts.append("picture")
    else:
        facts += [f"{seconds_of(media):.1f} s", f"{float(media.rate):.3g} frames/s"]
    return (
        f'<div class="card video">{picture(first, "first frame")}'
        f"<div><b>{escape(name)}</b><br><small>{' · '.join(facts)}</small></div></div>"
    )


def error_card(text: str) -> str:
    """A mistake, in one sentence."""
    sentence = text[:1].upper() + text[1:] if text.split(" ")[0].isalpha() else text  # a file keeps its name
    return f'<div class="card error" role="alert">{escape(sentence.rstrip("."))}.</div>'


def note_card(text: str) -> str:
    """Something that a visitor should know."""
    return f'<div class="card note" role="status">{escape(text)}</div>'


def progress_card(progress: Progress) -> str:
    """How far a run is."""
    total = max(progress.total or progress.done, progress.done)
    share = 100 * progress.done / total
    frames = f"{progress.done} of {total} frames" if progress.total else f"{progress.done} frames"
    return (
        f'<div class="card" role="status"><b>{STAGES[progress.stage]}</b> '
        f"<small>{frames} · {progress.rate:.1f} frames/s</small>"
        f'<div class="bar"><i style="width:{share:.1f}%"></i></div></div>'
    )


def score_cards(result: DemoResult, threshold: float, frame: int) -> str:
    """Every sentence's colour, score, and score in each frame; it is said plainly where it names nothing.

    Args:
        result: of the run.
        threshold: score below which a sentence names nothing.
        frame: that is looked at.
    """
    cards = []
    for i, sentence in enumerate(result.sentences):
        colour = "rgb({},{},{})".format(*colour_of(i))
        verdict = "" if sentence.found else _nothing(sentence.score, threshold)
        cards.append(
            f'<div class="card score{"" if sentence.found else " nothing"}" style="--own:{colour}">'
            f"<p><i></i><b>{escape(sentence.text)}</b></p>{_curve(result.scores[:, i], frame)}"
            f"<p class=numbers><span>score <b>{sentence.score:.2f}</b></span>"
            f"<span>this frame {result.scores[frame, i]:.2f}</span></p>{verdict}</div>"
        )
    return f'<div class="scores">{"".join(cards)}</div>'


def _nothing(score: float, threshold: float) -> str:
    return (
        f'<p class="verdict" role="status">Not found: its best match scores {score:.2f}, below the threshold of '
        f"{threshold:g}, so all its masks are empty.</p>"
    )


def _curve(scores: np.ndarray, frame: int) -> str:
    """Scores over time as a line, with a mark at a frame."""
    last = max(1, len(scores) - 1)
    points = [(LINE_WIDTH * i / last, LINE_HEIGHT * (1 - float(score))) for i, score in enumerate(scores)]
    if len(points) == 1:
        points.append((float(LINE_WIDTH), points[0][1]))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    at = LINE_WIDTH * frame / last
    return (
        f'<svg viewBox="0 -2 {LINE_WIDTH} {LINE_HEIGHT + 4}" preserveAspectRatio="none" role="img" '
        f'aria-label="score in each frame, from 0 to 1"><polyline points="{line}"/>'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="-2" y2="{LINE_HEIGHT + 2}"/></svg>'
    )
