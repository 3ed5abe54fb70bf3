"""Clips of videos in which expressions name objects: what Ref-YouTube-VOS and MeViS share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from datasets.clip import ClipDataset, Sample, make_target, sample_frames
from datasets.reading import read_frames
from datasets.transforms import ClipTransform
from util.errors import UserError


class NamedExpression(Protocol):
    """What is needed of an expression."""

    @property
    def caption(self) -> str:
        """The normalised sentence."""

    @property
    def negative(self) -> bool:
        """Whether it names nothing in its video."""


class ExpressionVideo(Protocol):
    """What is needed of a video."""

    @property
    def frames(self) -> Sequence[str]:
        """Frame names, in order of time."""

    @property
    def expressions(self) -> Mapping[str, NamedExpression]:
        """By id."""


class ExpressionClips(ClipDataset):
    """Clips of videos with expressions. Subclasses read the masks.

    For training: one clip per expression and start frame, every ``num_frames`` frames. With ``num_frames`` None: one
    clip per expression, all frames of its video in order, none replaced – the truth for evaluation.

    Args:
        videos: by name.
        images: the folder of ``<video>/<frame>.jpg``.
        transform: applied to every clip.
        num_frames: frames per clip, or None.
        seed: of the run.
        reverse_probability: share of training clips that run backwards.

    Raises:
        UserError: ``num_frames`` is below 1, or there is no expression.
    """

    def __init__(
        self,
        videos: Mapping[str, ExpressionVideo],
        images: Path,
        transform: ClipTransform,
        num_frames: int | None,
        seed: int = 0,
        reverse_probability: float = 0.3,
    ) -> None:
        super().__init__(seed, replace_invisible=num_frames is not None)
        if num_frames is not None and num_frames < 1:
            raise UserError(f"num_frames is {num_frames}; a clip has at least 1 frame")
        self.videos = videos
        self.images = images
        self.transform = transform
        self.num_frames = num_frames
        self.reverse_probability = reverse_probability
        self._expressions = [(name, exp_id) for name, video in videos.items() for exp_id in video.expressions]
        # An array, because workers would copy the reference counts of a list of a hundred thousand tuples.
        self._clips = np.array(
            [
                (number, start)
                for number, (name, _) in enumerate(self._expressions)
                for start in range(0, len(videos[name].frames), num_frames or len(videos[name].frames))
            ]
        )
        if not len(self._clips):
            raise UserError(f"the videos of {images} have no expression; their expressions file should list some")

    def __len__(self) -> int:
        return len(self._clips)

    @abstractmethod
    def read_masks(self, video: str, exp_id: str, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Read what an expression that is no negative names, in some frames: bool ``[T, H, W]`` of that size."""

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """Read and transform clip ``index``.

        Raises:
            UserError: a frame or mask is missing, broken or of another size.
        """
        number, start = self._clips[index].tolist()
        name, exp_id = self._expressions[number]
        video = self.videos[name]
        expression = video.expressions[exp_id]
        length = len(video.frames)
        indices = (
            list(range(length))
            if self.num_frames is None
            else sample_frames(length, start, self.num_frames, rng, self.reverse_probability)
        )
        names = [video.frames[i] for i in indices]

        frames = torch.stack(read_frames([self.images / name / f"{frame}.jpg" for frame in names]))
        height, width = frames.shape[-2:]
        if expression.negative:
            masks = torch.zeros(len(names), height, width, dtype=torch.bool)
        else:
            masks = self.read_masks(name, exp_id, indices, (height, width))

        frames, masks, caption = self.transform(frames, masks, expression.caption, rng)
        target = make_target(
            masks,
            caption=caption,
            orig_size=(height, width),
            video=name,
            exp_id=exp_id,
            frame_names=names,
            negative=expression.negative,
        )
        return frames, target
