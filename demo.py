"""Segment the objects that sentences name in any video: masks, an overlay with its sound, a contact sheet.

python demo.py video.mp4 "the dog chasing the ball" "the ball" --resume runs/vdit/checkpoint.pth --out out

VIDEO is a video, a GIF, a picture or a folder of frames, of any length; ``docs/demo.md`` says what is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from models.pretrained import open_pretrained
from models.windows import VideoSegmenter
from util.demo_options import read_command
from util.demo_results import require_free
from util.demo_run import run_demo
from util.device import device_name
from util.errors import UserError, run_cli
from util.media_reader import open_media
from util.sentences import normalise_sentence


def main(argv: Sequence[str] | None = None) -> None:
    """Segment a video as the command line says (``argv`` without the program's name; None: the process's own)."""
    path, sentences, options, given = read_command(sys.argv[1:] if argv is None else argv)
    if not given.get("resume"):
        raise UserError(
            "no checkpoint is given; name one by --resume: a file, a folder that holds one, or hf://org/repo"
        )
    folder = options.folder(path)
    require_free(folder, options.force)  # before minutes of work, not after them
    media = open_media(path, options.excerpt(), options.rate())
    pretrained = open_pretrained(given.pop("resume"), "--resume", {"device": "auto", **given})
    for note in pretrained.notes:
        print(f"note: {note}")
    cfg = pretrained.cfg
    segmenter = VideoSegmenter(
        pretrained.model,
        cfg,
        pretrained.device,
        [normalise_sentence(sentence) for sentence in sentences],
        options.window,
        None if options.overlap == "auto" else int(options.overlap),
    )
    result = run_demo(
        media,
        sentences,
        segmenter.run,
        folder,
        threshold=cfg.threshold,
        score_threshold=cfg.score_threshold,
        save_prob=options.save_prob,
        force=options.force,
        about={
            "checkpoint": cfg.resume,
            "model": cfg.model,
            "device": device_name(pretrained.device),
            "window": options.window,
            "overlap": segmenter.overlap,
            "stride": options.stride,
            "eval_size": cfg.eval_size,
            "seed": cfg.seed,
        },
    )
    for note in media.notes:
        print(f"note: {note}")
    print("\n".join(result.lines(cfg.score_threshold)))


if __name__ == "__main__":
    run_cli(main)
