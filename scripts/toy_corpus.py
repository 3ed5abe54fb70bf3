"""Toy videos with texts, on which the tiny stack is pre-trained."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.toy import ToyParameters, make_video
from datasets.toy.scene import KINDS, free_scene, render_frames
from datasets.toy.sentences import describe_object, describe_scene
from util.distributed import is_main

SEED = 1  # not the benchmark's: its videos stay unseen
OBJECTS = (1, 1, 1, 2, 2, 2, 0, 0, 0, 0)
"""Objects of the videos in turn; 0: a video like the benchmark's. Few objects make words easy to learn."""


@dataclass
class Corpus:
    """Videos with their texts."""

    frames: Tensor
    """uint8 ``[V, T, 3, H, W]``."""
    texts: list[list[str]]
    """per video: captions of the scene, of single objects, and the benchmark's sentences."""

    def pick(self, generator: torch.Generator, count: int) -> Tensor:
        """Indices of ``count`` random videos."""
        return torch.randint(len(self.frames), (count,), generator=generator)


def make_corpus(videos: int, frames: int, height: int, width: int) -> Corpus:
    """Toy videos in memory, of a seed of their own."""
    parameters = ToyParameters(videos, 0, 0, frames, height, width, SEED, KINDS)
    pixels, texts = [], []
    for index in tqdm(range(videos), desc="videos", unit="video", dynamic_ncols=True, disable=not is_main()):
        rng = random.Random(f"{SEED}/captions/{index}")
        count = OBJECTS[index % len(OBJECTS)]
        if count:
            scene, sentences = free_scene(rng, frames, height, width, count), []
        else:
            video = make_video(parameters, "train", index)
            scene, sentences = video.scene, [sentence.text for sentence in video.sentences]
        pixels.append(torch.from_numpy(render_frames(scene)).permute(0, 3, 1, 2))
        captions = [describe_scene(rng, scene) for _ in range(4)]
        texts.append(captions + [describe_object(rng, scene) for _ in range(4)] + sentences)
    return Corpus(torch.stack(pixels), texts)
