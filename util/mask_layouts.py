"""Where the masks of a video go, and what their files hold: one class for each benchmark's layout.

Masks lie in folders of one PNG per frame. A folder is made of the predictions for one expression (Ref-YouTube-VOS,
MeViS) or, merged, for one expression of every object (Ref-DAVIS17). Folders are named relative to an output folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from util.mask_pngs import index_fault, mask_fault, write_index_mask, write_mask

ANNOTATIONS = "Annotations"
CLIP_FRAMES = 36
DAVIS_ANNOTATIONS = 4  # sentences of each object, by number a = 0…3
BACKGROUND = 0.1  # the probability that an object must exceed to be shown (Ref-DAVIS17)


class SegmentedVideo(Protocol):
    """What is needed of a video; ``datasets.Video`` is one."""

    @property
    def name(self) -> str:
        """Its folder's name."""

    @property
    def frame_paths(self) -> Sequence[Path]:
        """Every frame, in order of time; the stem is the frame's name."""

    @property
    def expressions(self) -> Mapping[str, str]:
        """Expression id → sentence."""


class ClipMasks(Protocol):
    """What is needed of a prediction; ``models.inference.Prediction`` is one."""

    @property
    def masks(self) -> np.ndarray:
        """bool ``[T, H0, W0]``."""

    @property
    def probabilities(self) -> np.ndarray | None:
        """float32 ``[T, H0, W0]``, 0 outside of ``masks``; needed where the layout is ``soft``."""


class MaskLayout(ABC):
    """A benchmark's layout of masks.

    Attributes:
        roots: the folders below the output folder that hold masks and nothing else.
        clip_frames: frames of the clips that a video is cut into, each with a query of its own; None: it is one clip.
        soft: masks are made of probabilities.
    """

    roots: tuple[str, ...]
    clip_frames: int | None = None
    soft: bool = False

    @abstractmethod
    def folders(self, video: SegmentedVideo) -> dict[str, list[str]]:
        """Every folder of masks of a video → the ids of the expressions that it is made of, in their order."""

    @abstractmethod
    def merge(self, predictions: Iterable[tuple[str, ClipMasks]], shape: tuple[int, int, int]) -> np.ndarray:
        """The masks of a folder.

        Args:
            predictions: by expression id, in the order of ``folders``; all are taken.
            shape: (T, H0, W0).

        Returns:
            bool or uint8 ``[T, H0, W0]``, one plane per frame, as ``write`` takes them.
        """

    @abstractmethod
    def write(self, path: Path, plane: np.ndarray) -> None:
        """Write the mask of one frame.

        Raises:
            UserError: the file cannot be written.
        """

    @abstractmethod
    def fault(self, file: BinaryIO, video: SegmentedVideo, size: tuple[int, int]) -> str | None:
        """What is wrong with a mask file of a video whose frame has this (height, width), or None."""

    def zip_name(self, name: str) -> str:
        """The name that a file, ``<folder>/<frame>.png``, has in the submission."""
        return name


class YtvosLayout(MaskLayout):
    """``Annotations/<video>/<exp_id>/<frame>.png``, 8-bit greyscale, 0 or 255; ``Annotations`` at the zip's root."""

    roots = (ANNOTATIONS,)

    def folders(self, video: SegmentedVideo) -> dict[str, list[str]]:
        return {f"{ANNOTATIONS}/{video.name}/{exp_id}": [exp_id] for exp_id in video.expressions}

    def merge(self, predictions: Iterable[tuple[str, ClipMasks]], shape: tuple[int, int, int]) -> np.ndarray:
        ((_, prediction),) = predictions
        assert prediction.masks.shape == shape
        return prediction.masks

    def write(self, path: Path, plane: np.ndarray) -> None:
        write_mask(path, plane)

    def fault(self, file: BinaryIO, video: SegmentedVideo, size: tuple[int, int]) -> str | None:
        return mask_fault(file, size)


class MevisLayout(YtvosLayout):
    """The same files, from clips of 36 frames, with ``<video>/<exp_id>/<frame>.png`` at the zip's root."""

    clip_frames = CLIP_FRAMES

    def zip_name(self, name: str) -> str:
        return name.removeprefix(f"{ANNOTATIONS}/")


class DavisLayout(MaskLayout):
    """``anno_<a>/<video>/<frame>.png``, palette PNGs, value = object id: all objects, by their sentences number a.

    Probabilities below the threshold count as 0, the background as 0.1; a pixel is of the object with the greatest
    probability, and of the background if none exceeds it. An expression's id is 4 · (object id − 1) + a.
    """

    roots = tuple(f"anno_{number}" for number in range(DAVIS_ANNOTATIONS))
    clip_frames = CLIP_FRAMES
    soft = True

    def folders(self, video: SegmentedVideo) -> dict[str, list[str]]:
        ids = sorted(map(int, video.expressions))
        return {
            f"{root}/{video.name}": [str(exp_id) for exp_id in ids if exp_id % DAVIS_ANNOTATIONS == number]
            for number, root in enumerate(self.roots)
        }

    def merge(self, predictions: Iterable[tuple[str, ClipMasks]], shape: tuple[int, int, int]) -> np.ndarray:
        ids = np.zeros(shape, np.uint8)
        greatest = np.full(shape, BACKGROUND, np.float32)
        for exp_id, prediction in predictions:
            probabilities = prediction.probabilities
            assert probabilities is not None and probabilities.shape == shape
            winning = probabilities > greatest  # of equal ones the first wins, as in argmax
            np.copyto(greatest, probabilities, where=winning)
            ids[winning] = davis_object(exp_id)
        return ids

    def write(self, path: Path, plane: np.ndarray) -> None:
        write_index_mask(path, plane)

    def fault(self, file: BinaryIO, video: SegmentedVideo, size: tuple[int, int]) -> str | None:
        return index_fault(file, size, max(map(davis_object, video.expressions), default=0))


LAYOUTS: dict[str, MaskLayout] = {
    "ytvos": YtvosLayout(),
    "davis": DavisLayout(),
    "mevis": MevisLayout(),
}
"""By the name of ``--dataset_file``."""


def davis_object(exp_id: str) -> int:
    """The id, from 1, of the object that an expression of Ref-DAVIS17 names."""
    return int(exp_id) // DAVIS_ANNOTATIONS + 1
