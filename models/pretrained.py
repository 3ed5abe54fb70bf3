"""The models as a library: masks of any video in two lines.

    from models import load_pretrained
    result = load_pretrained("runs/vdit", device="auto").segment("video.mp4", ["a red car", "the dog"])

``result.sentences[0].masks`` are then the masks of the red car, bool ``[T, H, W]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from models import SegmentationModel
from models.checkpoints import PATHS, open_checkpoint
from models.diffusion.generators import GENERATORS, find_generator
from models.diffusion.stack import stack_downloads
from models.inference import WINDOW, InferenceOptions, VideoSegmenter, build_for_inference
from util.config import MODELSCOPE, WEIGHTS, Config
from util.device import resolve_device
from util.errors import UserError
from util.files import BROKEN_IMAGE
from util.hub import Wanted, published_weights
from util.text import normalise_sentence

Frames = str | Path | Image.Image | np.ndarray | Tensor | Iterable[Any]


@dataclass(frozen=True)
class SentenceResult:
    """The prediction for one sentence in a video of T frames."""

    sentence: str
    size: tuple[int, int]
    """(H, W) of the frames, in pixels."""
    scores: np.ndarray | None
    """``[T]``, 0…1: the probability that the chosen query is the object that the sentence names; None from REM."""
    boxes: np.ndarray | None
    """``[T, 4]``: (x0, y0, x1, y1) in pixels; None from REM."""
    found: bool
    """Whether the mean score reaches the threshold, for REM whether any mask has a pixel; otherwise all are empty."""
    runs: tuple[dict[str, Any], ...]
    """The masks as COCO's compressed run lengths, one per frame; they take little memory."""

    @property
    def score(self) -> float | None:
        """The mean over all frames; None from a model without scores (REM)."""
        return None if self.scores is None else float(self.scores.mean())

    def mask(self, frame: int) -> np.ndarray:
        """The mask in one frame: bool ``[H, W]``."""
        return coco.decode(self.runs[frame]).astype(bool)

    @cached_property
    def masks(self) -> np.ndarray:
        """All masks, decoded at the first use: bool ``[T, H, W]``."""
        return np.stack([self.mask(frame) for frame in range(len(self.runs))])


@dataclass(frozen=True)
class VideoResult:
    """The predictions for a video, one for each sentence, in the given order."""

    sentences: tuple[SentenceResult, ...]
    size: tuple[int, int]
    """(H, W), in pixels."""

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.sentences[0].runs)

    def __getitem__(self, sentence: str | int) -> SentenceResult:
        """The result of a sentence, by its text or its index."""
        if isinstance(sentence, int):
            return self.sentences[sentence]
        for result in self.sentences:
            if result.sentence == sentence:
                return result
        raise KeyError(f"no result for the sentence {sentence!r}")


@dataclass
class Pretrained:
    """A model that is ready to segment."""

    model: SegmentationModel
    """In evaluation mode, on ``device``."""
    name: str
    """A name of ``util.config.MODELS``."""
    checkpoint: Path
    """The file it was loaded from."""
    options: InferenceOptions
    device: torch.device
    notes: tuple[str, ...] = ()
    """Notes of the loading for the user."""

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
                ``[T, 3, H, W]`` (PyTorch), one picture, or a sequence of pictures (NumPy, PyTorch or PIL). Pictures may
                also be RGBA (shown on white) or grey; PIL pictures are turned by their EXIF flag.
            sentences: one or several.
            window: frames that the model sees together.
            overlap: frames that two windows share; None: 6, or half of a short window.
            threshold: mask probability from which a pixel belongs to the object; None: as in ``options``.
            score_threshold: mean score below which a sentence names nothing; None: as in ``options``.

        Returns:
            One result per sentence, in the given order.

        Raises:
            UserError: the video cannot be read or has no frame, a sentence is empty, a threshold is not within 0…1, or
                ``overlap`` does not fit.
            RunError: the predictions are not finite.
        """
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        named = [normalise_sentence(text) for text in texts]
        if not named or not all(named):
            raise UserError("a sentence is empty; name what to segment")
        mask_threshold = self.options.threshold if threshold is None else threshold
        score_minimum = self.options.score_threshold if score_threshold is None else score_threshold
        for name, value in (("threshold", mask_threshold), ("score_threshold", score_minimum)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} must be a number from 0 to 1, not {value:g}")
        runs: list[list[dict[str, Any]]] = [[] for _ in named]
        boxes: list[Any] = []
        scores: list[Any] = []
        size: tuple[int, int] | None = None
        segmenter = VideoSegmenter(self.model, self.options, named, window, overlap)
        for frame in segmenter.run(_frames(video)):
            size = frame.probabilities.shape[1], frame.probabilities.shape[2]
            masks = np.asfortranarray((frame.probabilities >= mask_threshold).transpose(1, 2, 0), dtype=np.uint8)
            for kept, run in zip(runs, coco.encode(masks), strict=True):
                kept.append(run)
            boxes.append(frame.boxes)
            scores.append(frame.scores)
        if size is None:
            raise UserError("the video has no frame; give at least one")
        results = []
        for i, text in enumerate(texts):
            mine = None if scores[0] is None else np.stack([row[i] for row in scores])
            found = bool(coco.area(runs[i]).any() if mine is None else mine.mean() >= score_minimum)
            kept = runs[i] if found else [coco.encode(np.zeros(size, np.uint8, order="F"))] * len(scores)
            box = None if boxes[0] is None else np.stack([row[i] for row in boxes])
            results.append(SentenceResult(text, size, mine, box, found, tuple(kept)))
        return VideoResult(tuple(results), size)


def load_pretrained(
    path_or_hub_id: str | Path = WEIGHTS["vdit"].source, device: str = "auto", **options: Any
) -> Pretrained:
    """Load a model from a checkpoint, with the configuration that it was made with.

    Args:
        path_or_hub_id: a checkpoint of this project or of the authors: a file, a folder that holds one, or a repository
            of the hub, ``org/repo`` or ``hf://org/repo[@revision][/file]``; by default the published VD-IT.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        **options: of ``util.config.Config``, to override those of the checkpoint: ``pretrained="…"`` names the frozen
            parts.

    Raises:
        UserError: the checkpoint or a frozen part cannot be loaded, or an option is wrong.
    """
    return open_pretrained(str(path_or_hub_id), "load_pretrained", {**options, "device": device})


def open_pretrained(source: str, flag: str, options: dict[str, Any]) -> Pretrained:
    """``load_pretrained`` for a command, whose option ``flag`` named the checkpoint."""
    published = published_weights(source)
    given = options.get("pretrained")
    # Before gigabytes are downloaded.
    if published and given and (found := find_generator(given)) is not GENERATORS[0]:
        raise UserError(
            f"{source} was trained with {GENERATORS[0].name}, and {given} holds {found.name}; leave --pretrained out, "
            f"or name a checkpoint of {found.name} with {flag}"
        )

    def others() -> Wanted:
        if published is None:
            return ()
        names = ("pretrained", "image_encoder", "text_encoder")
        t2v, image, sentence = (options.get(name) or getattr(Config, name) for name in names)
        return stack_downloads(t2v, image, sentence, alone=published.frozen == (MODELSCOPE,))

    checkpoint = open_checkpoint(source, flag, others=others)
    beside = {
        name: str(checkpoint.path.parent / value)
        for name in PATHS
        if (value := checkpoint.options.get(name)) and (checkpoint.path.parent / value).exists()
    }
    cfg = checkpoint.config(**{**beside, **options, "resume": str(checkpoint.path)})
    device = resolve_device(cfg.device)
    model, notes = build_for_inference(cfg, checkpoint, device)
    return Pretrained(
        model, cfg.model, checkpoint.path, InferenceOptions.from_config(cfg), device, (*checkpoint.notes, *notes)
    )


def _frames(video: Frames) -> Iterator[np.ndarray]:
    """Yield frames, uint8 RGB ``[H, W, 3]``."""
    if isinstance(video, str | Path):
        from util.video import open_media  # imports FFmpeg, which arrays do not need

        yield from (frame.image for frame in open_media(video).frames())
        return
    if isinstance(video, Image.Image):
        from util.video import require_single

        require_single("the picture", video)
    if isinstance(video, Image.Image) or (isinstance(video, np.ndarray | Tensor) and video.ndim < 4):
        video = [video]
    for number, picture in enumerate(cast(Iterable[Any], video)):
        yield _frame(picture, f"frame {number}", first=number == 0)


def _frame(picture: Any, name: str, first: bool) -> np.ndarray:
    """Convert a picture in memory to uint8 RGB ``[H, W, 3]``; ``name`` is for error messages."""
    if isinstance(picture, str | Path):
        raise UserError(f"{name} is the name of a file; give the folder of the files, or open them with Pillow")
    if not isinstance(picture, Image.Image):
        given = picture if isinstance(picture, Tensor) else np.asarray(picture)
        what = f"{name} is {given.dtype} {tuple(given.shape)}"
        if str(given.dtype).removeprefix("torch.") != "uint8":
            raise UserError(f"{what}; scale its values to 0…255 and convert them to uint8")
        if isinstance(given, Tensor):
            given = (given.movedim(0, -1) if given.ndim == 3 else given).cpu().numpy()
        height, width, channels = (*given.shape, 1, 1, 1)[:3]
        if given.ndim not in (2, 3) or given.size == 0 or channels not in (1, 3, 4):
            raise UserError(
                f"{what}; give RGB, RGBA or grey pictures: [H, W, 3], [H, W, 4] or [H, W], in PyTorch [3, H, W], "
                "[4, H, W] or [H, W]"
            )
        if channels == 3:
            return given
        picture = Image.fromarray(given if channels == 4 else given.reshape(height, width))
    from util.video import image_pixels

    try:
        return image_pixels(picture, name, first)
    except UserError:
        raise
    except (*BROKEN_IMAGE, RuntimeError) as error:  # Pillow decodes a file when its pixels are first needed
        raise UserError(f"{name} cannot be read: {error}; give a different one") from error
