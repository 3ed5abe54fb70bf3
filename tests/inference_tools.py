"""A stub model and videos for the tests of inference, and what they look at."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import inference_ytvos
from datasets.files import Video
from datasets.predictions import InferenceRecord
from datasets.registry import DATASETS
from engine import segment_videos
from models.inference import VIDEO_MULTIPLE, InferenceOptions
from models.segmenter import ClipMasks, best_query
from util.config import Config

HEIGHT, WIDTH, FRAMES = 50, 90, 3
SENTENCES = {"0": "the left half", "1": "the right half"}


class StubOutput(SimpleNamespace):
    """The output of the stub."""

    probabilities = staticmethod(torch.sigmoid)

    def best(self) -> ClipMasks:
        query = int(self.chosen[0])
        scores, boxes = self.logits[:, :, query, 0].sigmoid(), self.boxes[:, :, query]
        return ClipMasks(self.masks, scores, boxes, queries=self.chosen)


class StubModel(nn.Module):
    """Finds the half of the frame that the sentence names; query 3 is best. Records sentences and padded sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.sentences: list[str] = []
        self.sizes: set[tuple[int, int]] = set()
        self.encoder = SimpleNamespace(encode_pixels=lambda frames: frames)
        self.place = nn.Parameter(torch.zeros(()))  # its device is the model's

    def segment_pixels(self, frames: Tensor, padding: Tensor, captions: list[str], select: Any) -> StubOutput:
        assert select is best_query and len(captions) == 1
        _, length, channels, height, width = frames.shape
        assert channels == 3 and height % VIDEO_MULTIPLE == 0 and width % VIDEO_MULTIPLE == 0
        assert padding.shape == (1, height, width) and padding.dtype == torch.bool
        assert (frames * padding[:, None, None]).abs().sum() == 0, "padding has the mean colour"
        self.sentences += captions
        self.sizes.add((height, width))
        real = int((~padding[0, 0]).sum())
        masks = torch.full((1, length, height, width), 9.0)  # padding included: it must be cut off
        left = "left" in captions[0]
        masks[..., : real // 2] = 5.0 if left else -5.0
        masks[..., real // 2 : real] = -5.0 if left else 5.0
        logits = torch.full((1, length, 5, 1), -3.0)
        logits[:, :, 3] = 2.0
        boxes = torch.tensor([0.25 if left else 0.75, 0.5, 0.5, 1.0]).expand(1, length, 5, 4)
        output = StubOutput(logits=logits, boxes=boxes, masks=masks)
        output.chosen = select(output)
        return output


def run_inference(model: nn.Module, videos: list[Video], cfg: Config, record: InferenceRecord) -> None:
    """Segment videos with a stub, as ``inference_ytvos.py`` does."""
    segment_videos(
        model,  # type: ignore[arg-type]
        videos,
        record,
        DATASETS[cfg.dataset_file].layout,
        InferenceOptions.from_config(cfg),
        workers=cfg.num_workers,
        visualize=cfg.visualize,
    )


def finish(videos: list[Video], cfg: Config, record: InferenceRecord) -> list[str]:
    """Write the submission, as ``inference_ytvos.py`` does."""
    return inference_ytvos.finish(videos, record, DATASETS[cfg.dataset_file].layout, cfg.visualize)


def write_halves(root: Path, width: int = WIDTH) -> Path:
    """A valid split of two videos with two expressions each."""
    names = [f"{5 * i:05d}" for i in range(FRAMES)]
    videos = {name: {"frames": names, "expressions": {i: {"exp": s} for i, s in SENTENCES.items()}} for name in "ab"}
    for name in videos:
        (root / "valid" / "JPEGImages" / name).mkdir(parents=True)
        for i, frame in enumerate(names):
            picture = np.full((HEIGHT, width, 3), 60 + 40 * i, dtype=np.uint8)
            Image.fromarray(picture).save(root / "valid" / "JPEGImages" / name / f"{frame}.jpg")
    for split, content in (("valid", videos), ("test", {})):
        path = root / "meta_expressions" / split / "meta_expressions.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"videos": content}))
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content, but for timings and what a killed process left under a hidden name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "inference.json" and not path.name.startswith(".")
    }
