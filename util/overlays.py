"""Pictures of what was segmented: an overlay of every frame, an MP4 of every expression, and a contact sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.predictions import frame_size
from datasets.video import Video
from util.visualisation import (
    Picture,
    contact_sheet,
    draw_overlay,
    overlay_size,
    read_picture,
    write_picture,
    write_video,
)

FPS = 6  # of the MP4: Ref-YouTube-VOS keeps every fifth frame of 30 a second
SHEET_ROWS, SHEET_COLUMNS = 8, 5
FOLDER = "visualize"


def overlay_path(output: Path, video: Video, exp_id: str, frame: Path) -> Path:
    """Where the overlay of a frame lies."""
    return output / FOLDER / video.name / exp_id / f"{frame.stem}.png"


def movie_path(output: Path, video: Video, exp_id: str) -> Path:
    """Where the MP4 of an expression lies."""
    return output / FOLDER / f"{video.name}_{exp_id}.mp4"


def write_overlays(
    output: Path,
    video: Video,
    exp_id: str,
    frames: Sequence[Path],
    masks: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
) -> None:
    """Draw the prediction for one expression over some frames of its video.

    Args:
        output: the output folder.
        video: whose frames they are.
        exp_id: the expression.
        frames: T files.
        masks: bool ``[T, H0, W0]``.
        boxes: ``[T, 4]``: corners in pixels.
        scores: ``[T]``.

    Raises:
        UserError: a frame cannot be read, or a picture not written.
    """
    for i, frame in enumerate(frames):
        sentence, score = video.expressions[exp_id], float(scores[i])
        picture = draw_overlay(read_picture(frame), masks[i], sentence, boxes[i].tolist(), score)
        write_picture(overlay_path(output, video, exp_id, frame), picture)


def write_movie(output: Path, video: Video, exp_id: str) -> None:
    """Make the MP4 of an expression from its overlays, which are all written."""
    overlays = (read_picture(overlay_path(output, video, exp_id, frame)) for frame in video.frame_paths)
    write_video(movie_path(output, video, exp_id), overlays, FPS)


def write_sheet(output: Path, videos: Sequence[Video]) -> Path:
    """Draw a few expressions and a few frames of each, evenly spread, from the overlays that are written.

    Returns:
        The picture's path.
    """
    sheet = output / FOLDER / "contact_sheet.png"
    contact_sheet(list(_sheet_rows(output, videos)), sheet)
    return sheet


def _sheet_rows(output: Path, videos: Sequence[Video]) -> Iterator[tuple[str, list[Picture]]]:
    expressions = [(video, exp_id) for video in videos for exp_id in video.expressions]
    for video, exp_id in _spread(expressions, SHEET_ROWS):
        tiles = []
        for frame in _spread(video.frame_paths, SHEET_COLUMNS):
            height, _ = overlay_size(*frame_size(frame))  # without the bar: the row's title has the sentence
            tiles.append(read_picture(overlay_path(output, video, exp_id, frame))[:height])
        yield f"{video.name} · {exp_id} · {video.expressions[exp_id]}", tiles


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` items, evenly spread from the first to the last."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]
