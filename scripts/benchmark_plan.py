"""What a run of the benchmark measures: plain values, which its processes hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FAST, BASELINE = "fast", "baseline"
TRAIN_FAST, TRAIN_BASELINE = "train_fast", "train_baseline"
SWEEP = "sweep"
PARTS = (FAST, BASELINE, TRAIN_FAST, TRAIN_BASELINE, SWEEP)
"""Each is measured in a process of its own."""

READING, POST, WRITING = "reading", "post-processing", "PNG writing"
OTHER = "other"
SHARED = (READING, "VAE", "image tokens", "noise and stride 4")
"""Stages that the fast path runs once per video, whatever the number of sentences."""
STAGES = (*SHARED, "text", "fusion", "UNet", "pyramid", "transformer", "heads", POST, WRITING)


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        config: options of the model and its inference, as ``util.config.Config`` has them.
        stack: folder of the frozen parts' configuration files.
        frames, sentences: of the video.
        height, width: of its frames as the model sees them; on disk they are twice as large.
        repeats: how often inference is timed; the best time counts.
        train_frames, train_height, train_width: of a training clip.
        train_steps: how many are timed.
        sweep_frames, sweep_sentences: further numbers that the fast path is tried with.
        matrix: side of the matrices that show what the device can do; None: large ones.
    """

    config: dict[str, Any]
    stack: str
    frames: int
    sentences: int
    height: int
    width: int
    repeats: int
    train_frames: int
    train_height: int
    train_width: int
    train_steps: int
    sweep_frames: tuple[int, ...]
    sweep_sentences: tuple[int, ...]
    matrix: int | None
