"""Segment the objects that sentences name, in every frame of every video of a split.

python inference_ytvos.py --config configs/vdit_ytvos.yaml --resume runs/vdit/checkpoint.pth \\
    --ytvos_path data/ref-youtube-vos --output_dir runs/vdit/valid --visualize

``--dataset_file`` is ytvos (a whole video is one clip, and one query is chosen for it), davis or mevis (clips of 36
frames, each with its own query). Masks are written in the benchmark's layout, zipped and checked. A run that was
stopped goes on where it stopped. Under torchrun, processes share the videos.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from util.config import Config, load_config
from util.errors import RunError, UserError, help_asked, run_cli

if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    load_config(["--help"], __doc__.split("\n")[0])

import torch

from datasets import list_videos
from datasets.predictions import LAYOUTS, check_submission, require_frames, write_submission
from datasets.video import Video, load_clip
from models import Segmenter
from models.loading import open_checkpoint
from models.precision import with_named_precision
from models.prediction import load_for_inference, segment
from util import video_inference
from util.device import device_name, resolve_device
from util.distributed import is_main, process_group, rank, tell, wait_for_all
from util.inference_record import InferenceRecord, open_record
from util.locking import sole_run
from util.memory import INFERENCE, memory_advice
from util.overlays import write_sheet
from util.video_inference import count_expressions, share_of_videos

PATIENCE = timedelta(hours=12)  # of a process that has done its share, for the slowest one


def main(argv: Sequence[str] | None = None) -> None:
    """Segment a split as the command line says (``argv`` without the program's name; None: the process's own)."""
    argv = sys.argv[1:] if argv is None else argv
    cfg = load_config(argv, __doc__.split("\n")[0])
    if not cfg.resume:
        raise UserError(
            "no checkpoint is given; name one by --resume: a file, a folder that holds one, or hf://org/repo"
        )
    with (
        process_group(resolve_device(cfg.device), PATIENCE) as device,
        sole_run(cfg.output_dir, is_main()),
        memory_advice(INFERENCE),
    ):
        segment_split(cfg, device)


def segment_split(cfg: Config, device: torch.device) -> None:
    """Segment this process's share of the videos of ``cfg.split``; the main process finishes when all have done theirs.

    Raises:
        UserError: data or checkpoint is missing or broken, or a file cannot be written.
        RunError: the predictions are not finite numbers, or the zip is not a whole submission.
    """
    cfg = with_named_precision(cfg, device)
    checkpoint = open_checkpoint(cfg.resume, "--resume", cfg.model)
    videos = [video for video in list_videos(cfg) if video.expressions]
    if not videos:
        raise UserError(
            f"the {cfg.split} split of {cfg.dataset_file} has no expression; its expressions file lists none"
        )
    require_frames(videos)
    record = open_record(cfg, checkpoint["path"], device_name(device), rank())
    model, notes = load_for_inference(cfg, checkpoint, device)
    tell(notes)
    del checkpoint  # and with it the memory map of its file
    run_inference(model, share_of_videos(videos), cfg, record, device)
    wait_for_all()
    if is_main():
        record.absorb()
        print("\n".join(finish(videos, cfg, record)))


def run_inference(
    model: Segmenter, videos: Sequence[Video], cfg: Config, record: InferenceRecord, device: torch.device
) -> None:
    """Write the masks of every expression that is not written yet; see ``util.video_inference``.

    Args:
        model: in eval mode, on ``device``.
        videos: what to segment.
        cfg: also reads ``eval_size``, ``max_size``, ``threshold``, ``score_threshold`` and ``seed``.
        record: which expressions are done.
        device: where the model is.

    Raises:
        UserError: a frame cannot be read or a file not written.
        RunError: the predictions are not finite numbers.
    """
    read = partial(load_clip, short_side=cfg.eval_size, long_side=cfg.max_size)
    predict = partial(segment, model, cfg=cfg, device=device, soft=LAYOUTS[cfg.dataset_file].soft)
    video_inference.run_inference(videos, cfg, record, read, predict, show=is_main())


def finish(videos: Sequence[Video], cfg: Config, record: InferenceRecord) -> list[str]:
    """Write and check the submission zip, and with ``cfg.visualize`` the contact sheet.

    Returns:
        Lines that say what was written.

    Raises:
        RunError: the zip is not a whole submission.
    """
    layout, output = LAYOUTS[cfg.dataset_file], Path(cfg.output_dir)
    archive = output / "submission.zip"
    write_submission(output, videos, archive, layout)
    faults = check_submission(archive, videos, layout)
    if faults:
        raise RunError(f"{archive}: {faults[0]} ({len(faults)} faults in all)")
    masks = sum(len(layout.folders(video)) * len(video.frame_paths) for video in videos)
    lines = [
        f"wrote {masks} masks of {count_expressions(videos)} expressions in {len(videos)} videos "
        f"({record.timing()['frames_per_second']:.2f} frames/s): {', '.join(str(output / r) for r in layout.roots)}",
        f"submission, checked: {archive}",
    ]
    if cfg.visualize:
        sheet = write_sheet(output, videos)
        lines.append(f"overlays: {sheet.parent}, contact sheet: {sheet}")
    return lines


if __name__ == "__main__":
    run_cli(main)
