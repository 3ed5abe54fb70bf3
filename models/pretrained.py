"""The models as a library: masks of one's own video in two lines.

    from models import load_pretrained
    result = load_pretrained("runs/vdit", device="auto").segment("video.mp4", ["a red car", "the dog"])

``result.sentences[0].masks`` are then the red car's, ``[T, H, W]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

from models.loading import config_of, open_checkpoint
from models.prediction import load_for_inference
from models.segmenter import Segmenter
from models.windows import WINDOW, VideoSegmenter
from util.config import Config
from util.device import resolve_device
from util.errors import UserError
from util.hub import HUB, SUFFIXES
from util.sentences import normalise_sentence

PATHS = ("pretrained", "image_encoder", "text_encoder", "backbone_weights")
"""Options that name frozen parts, which a checkpoint may have beside it."""

Frames = str | Path | np.ndarray | Tensor | Sequence[Any]


@dataclass(frozen=True)
class SentenceResult:
    """What the model says of one sentence in a video of T frames."""

    sentence: str
    size: tuple[int, int]
    """(H, W) of the frames, in pixels."""
    scores: np.ndarray
    """``[T]``, 0…1: the probability of being the object that the sentence names."""
    boxes: np.ndarray
    """``[T, 4]``: (x0, y0, x1, y1) in pixels."""
    found: bool
    """Whether the mean score reaches the threshold; otherwise all masks are empty."""
    runs: tuple[dict[str, Any], ...]
    """The masks as COCO's compressed run lengths, one per frame; they take little memory."""

    @property
    def score(self) -> float:
        """The mean over all frames."""
        return float(self.scores.mean())

    def mask(self, frame: int) -> np.ndarray:
        """The mask in one frame: bool ``[H, W]``."""
        return coco.decode(self.runs[frame]).astype(bool)

    @cached_property
    def masks(self) -> np.ndarray:
        """All masks, decoded at the first use: bool ``[T, H, W]``."""
        return np.stack([self.mask(frame) for frame in range(len(self.runs))])


@dataclass(frozen=True)
class VideoResult:
    """What the model says of a video, sentence by sentence in the order in which they were given."""

    sentences: tuple[SentenceResult, ...]
    size: tuple[int, int]
    """(H, W), in pixels."""

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.sentences[0].runs)

    def __getitem__(self, sentence: str | int) -> SentenceResult:
        """The result of a sentence, by its text or its number."""
        if isinstance(sentence, int):
            return self.sentences[sentence]
        for result in self.sentences:
            if result.sentence == sentence:
                return result
        raise KeyError(sentence)


@dataclass
class Pretrained:
    """A model that is ready to segment."""

    model: Segmenter
    """In eval mode, on ``device``."""
    cfg: Config
    device: torch.device
    notes: tuple[str, ...] = ()
    """What loading found that the user should know."""

    def segment(
        self,
        video: Frames,
        sentences: str | Sequence[str],
        *,
        window: int = WINDOW,
        overlap: int | None = None,
        threshold: float | None = None,
        score_threshold: float | None = None,
    ) -> VideoResult:
        """Segment the objects that sentences name. Every sentence's object is followed through the whole video.

        Args:
            video: a video file, a picture, a folder of frames, or frames in memory: uint8 RGB ``[T, H, W, 3]`` (NumPy),
                ``[T, 3, H, W]`` (PyTorch), or a sequence of pictures (NumPy or PIL).
            sentences: one or several.
            window: frames that the model sees together.
            overlap: frames that two windows share; None: 6, or half of a short window.
            threshold: mask probability from which a pixel belongs to the object; None: the configuration's.
            score_threshold: mean score below which a sentence names nothing; None: the configuration's.

        Raises:
            UserError: the video cannot be read or has no frame, or a sentence is empty.
        """
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        named = [normalise_sentence(text) for text in texts]
        if not named or not all(named):
            raise UserError("a sentence is empty; name what to segment")
        pixels = self.cfg.threshold if threshold is None else threshold
        least = self.cfg.score_threshold if score_threshold is None else score_threshold
        runs: list[list[dict[str, Any]]] = [[] for _ in named]
        boxes, scores = [], []
        size: tuple[int, int] | None = None
        segmenter = VideoSegmenter(self.model, self.cfg, self.device, named, window, overlap)
        for frame in segmenter.run(_frames(video)):
            size = frame.probabilities.shape[1], frame.probabilities.shape[2]
            masks = np.asfortranarray((frame.probabilities >= pixels).transpose(1, 2, 0), dtype=np.uint8)
            for kept, run in zip(runs, coco.encode(masks), strict=True):
                kept.append(run)
            boxes.append(frame.boxes)
            scores.append(frame.scores)
        if size is None:
            raise UserError("the video has no frame; give at least one")
        results = []
        for i, text in enumerate(texts):
            mine = np.stack([row[i] for row in scores])
            found = bool(mine.mean() >= least)
            kept = runs[i] if found else [_empty(size)] * len(mine)
            results.append(SentenceResult(text, size, mine, np.stack([row[i] for row in boxes]), found, tuple(kept)))
        return VideoResult(tuple(results), size)


def load_pretrained(path_or_hub_id: str | Path, device: str = "auto", **options: Any) -> Pretrained:
    """A model from a checkpoint, with the configuration that it was made with.

    Args:
        path_or_hub_id: a checkpoint of this project or of the authors: a file, a folder that holds one, or a repository
            of the hub, ``org/repo`` or ``hf://org/repo[@revision][/file]``.
        device: ``auto``, ``cpu`` or ``cuda``.
        **options: of ``util.config.Config``, where they should differ: ``pretrained="…"`` names the frozen parts.

    Raises:
        UserError: the checkpoint or a frozen part cannot be had, or an option is wrong.
    """
    return open_pretrained(str(path_or_hub_id), "load_pretrained", {**options, "device": device})


def open_pretrained(source: str, flag: str, options: dict[str, Any]) -> Pretrained:
    """The same for a command: ``flag`` is what named the checkpoint, for messages."""
    checkpoint = _open(source, flag)
    beside = {
        name: str(checkpoint["path"].parent / value)
        for name in PATHS
        if (value := checkpoint["config"].get(name)) and (checkpoint["path"].parent / value).is_dir()
    }
    cfg = config_of(checkpoint, **{**beside, **options, "resume": str(checkpoint["path"])})
    resolved = resolve_device(cfg.device)
    model, notes = load_for_inference(cfg, checkpoint, resolved)
    return Pretrained(model, cfg, resolved, tuple(notes))


def _open(source: str, flag: str) -> dict[str, Any]:
    """The checkpoint; ``org/repo`` is the hub's, unless it is here, or is mistyped for what is in a folder here."""
    path = Path(source)
    here = path.exists() or path.parent.is_dir()
    if here or source.startswith(HUB) or source.count("/") != 1 or source.endswith(SUFFIXES):
        return open_checkpoint(source, flag)
    try:
        return open_checkpoint(HUB + source, flag)
    except UserError as error:
        raise UserError(f"there is no file or folder {source} here, and on the hub: {error}") from error


def portable(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """A checkpoint's content as it is passed on: ``config`` and ``frozen`` without the folders of this machine.

    A frozen part that lies beside the file is named by its path from there, and found there again.

    Args:
        content: with ``config`` and ``frozen``.
        file: where it will be written.
    """

    def named(source: str) -> str:
        path = Path(source)
        if not path.is_absolute() and not path.exists():
            return source  # of the hub
        folder, absolute = file.absolute().parent, path.absolute()
        return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else path.name

    rules = {option.name: option.metadata["rule"] for option in fields(Config)}
    config = {
        name: named(value) if name in PATHS and value else value
        for name, value in content["config"].items()
        if name in rules and (name in PATHS or not rules[name].path)
    }
    frozen = {
        part: {key: named(value) if key == "source" else value for key, value in entry.items()}
        for part, entry in content["frozen"].items()
    }
    return {**content, "config": config, "frozen": frozen}


def _frames(video: Frames) -> Iterator[np.ndarray]:
    """Frames uint8 RGB ``[H, W, 3]``, one after the other."""
    if isinstance(video, str | Path):
        from util.video import open_media  # FFmpeg, which frames in memory do without

        yield from (frame.image for frame in open_media(video).frames())
        return
    if isinstance(video, Tensor):
        video = video.movedim(1, -1).cpu().numpy() if video.ndim == 4 else video.cpu().numpy()
    pictures: Iterable[Any] = video
    for number, picture in enumerate(pictures):
        frame = np.asarray(picture)
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise UserError(
                f"frame {number} is {frame.dtype} {frame.shape}; give uint8 RGB pictures [H, W, 3], or as one tensor "
                "[T, 3, H, W]"
            )
        yield frame


def _empty(size: tuple[int, int]) -> dict[str, Any]:
    """The run lengths of a mask without a pixel."""
    return coco.encode(np.zeros(size, np.uint8, order="F"))
