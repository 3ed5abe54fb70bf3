"""Segment the objects that sentences name in any video: masks, an overlay with its sound, a contact sheet.

python demo.py video.mp4 "the dog chasing the ball" "the ball" --resume runs/vdit/checkpoint.pth --out out

VIDEO is a video, a GIF, a picture or a folder of frames, of any length; ``docs/demo.md`` says what is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from util.demo_options import read_command
from util.demo_results import require_free
from util.errors import UserError, orderly_end, run_cli
from util.media_reader import open_media
from util.memory import DEMO, memory_advice


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
    # Only now, as they take seconds, in which a mistake above need not wait.
    from models.pretrained import open_pretrained
    from models.video_folder import segment_to_folder

    pretrained = open_pretrained(given.pop("resume"), "--resume", {"device": "auto", **given})
    for note in pretrained.notes:
        print(f"note: {note}")
    with orderly_end(), memory_advice(DEMO):
        result = segment_to_folder(
            pretrained,
            media,
            sentences,
            folder,
            window=options.window,
            overlap=None if options.overlap == "auto" else int(options.overlap),
            save_prob=options.save_prob,
            force=options.force,
        )
    for note in media.notes:
        print(f"note: {note}")
    print("\n".join(result.lines(pretrained.cfg.score_threshold)))


if __name__ == "__main__":
    run_cli(main)
