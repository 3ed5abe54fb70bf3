"""Draw the README's animation: generated videos, unseen in training, with the masks that the bundled model finds.

    python -m scripts.readme_animation [--resume toy/vdit.safetensors] [--output docs/animation.webp]

The videos are the first ones of a set in which two or three objects stay visible. The model's scores are printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.toy import ToyParameters, make_video
from datasets.toy.scene import KINDS, full_areas, render_frames
from util.drawing import ObjectPainter
from util.errors import Parser, run_cli
from util.files import atomic_path
from util.metrics import fixed_scores

PARAMETERS = ToyParameters(0, 1, 0, frames=16, height=280, width=420, seed=2026, kinds=KINDS)
VIDEOS, COLUMNS, GAP = 4, 2, 6
PAPER = 24  # grey value of the gaps
VISIBLE = 0.97  # least share of each object's area in every frame
RATE, REST = 8, 700  # frames per second; milliseconds at the end


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the animation."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--resume", default="toy/vdit.safetensors", help="checkpoint (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/animation.webp"), help="default: %(default)s")
    args = parser.parse_args(argv)
    from models.pretrained import load_pretrained  # only here: it takes seconds

    model = load_pretrained(args.resume)
    shown: list[list[np.ndarray]] = []
    for index in count():
        video = make_video(PARAMETERS, "valid", index)
        seen = [np.count_nonzero(video.masks == i, (1, 2)) >= VISIBLE * a for i, a in full_areas(video.scene).items()]
        if len(seen) > 3 or not np.all(seen):
            continue
        sentences = {sentence.obj_id: sentence.text for sentence in reversed(video.sentences) if sentence.obj_id}
        frames = render_frames(video.scene)
        found = model.segment(frames, list(sentences.values())).sentences
        for (obj_id, text), result in zip(sentences.items(), found, strict=True):
            pairs = zip((video.masks == obj_id).astype(np.uint8), result.masks.astype(np.uint8), strict=True)
            print(f"{text}: J&F {100 * np.mean(fixed_scores(pairs, 1)):.0f}")
        painter = ObjectPainter(list(sentences.values()), frames.shape[1:3], 1.35)
        masks = np.stack([result.masks for result in found], axis=1)  # [T, S, H, W]
        tiles = [painter.draw(frame, mask) for frame, mask in zip(frames, masks, strict=True)]
        shown.append([np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=PAPER) for tile in tiles])
        if len(shown) == VIDEOS:
            break
    rows = [shown[first : first + COLUMNS] for first in range(0, VIDEOS, COLUMNS)]
    sheets = [np.vstack([np.hstack([video[i] for video in row]) for row in rows]) for i in range(PARAMETERS.frames)]
    first, *others = [Image.fromarray(sheet) for sheet in sheets]
    times = [1000 // RATE] * len(others) + [REST]
    with atomic_path(args.output) as temporary:
        first.save(temporary, save_all=True, append_images=others, duration=times, loop=0, quality=80, method=6)
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    run_cli(main)
