"""Segment the objects that sentences name, in every frame of every video of a split.

python inference_ytvos.py --config configs/vdit_ytvos.yaml --resume runs/vdit/checkpoint.pth \\
    --ytvos_path data/ref-youtube-vos --output_dir runs/vdit/valid --visualize

``--dataset_file`` is ytvos (a whole video is one clip, and one query is chosen for it), davis, mevis, long_rvos or
revos (clips of 36 frames, each with its own query). Masks are written in the benchmark's layout, zipped and checked. A
stopped run continues where it stopped. Under torchrun, processes share the videos.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from datasets.registry import load_config
from util.config import Config
from util.errors import RunError, UserError, help_asked, run_cli

if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(lambda: load_config(["--help"], __doc__.split("\n")[0]))

import torch

from datasets import list_videos
from datasets.files import Video
from datasets.predictions import InferenceRecord, MaskLayout, check_submission, require_frames, write_submission
from datasets.registry import DATASETS
from engine import build_record, count_expressions, print_large_videos, segment_videos, share_of_videos
from models.checkpoints import open_checkpoint
from models.inference import InferenceOptions, build_for_inference
from models.precision import resolve_precision
from util.device import INFERENCE, memory_advice, resolve_device
from util.distributed import is_main, print_notes, process_group, wait_for_all
from util.drawing import OVERLAYS, write_sheet
from util.files import sole_run


def main(argv: Sequence[str] | None = None) -> None:
    """Segment a split as the command line says (``argv`` without the program's name; None: the process's own)."""
    argv = sys.argv[1:] if argv is None else argv
    cfg = load_config(argv, __doc__.split("\n")[0])
    if not cfg.resume:
        raise UserError(
            "no checkpoint is given; name one with --resume: a file, a folder that holds one, or hf://org/repo"
        )
    with (
        process_group(resolve_device(cfg.device)) as device,
        sole_run(cfg.output_dir, is_main()),
        memory_advice(INFERENCE),
    ):
        segment_split(cfg, device)


def segment_split(cfg: Config, device: torch.device) -> None:
    """Segment this process's share of the videos of ``cfg.split``; the main process then writes the submission.

    Raises:
        UserError: data or checkpoint is missing or broken, or a file cannot be written.
        RunError: the predictions are not finite, or the zip is not a complete submission.
    """
    # Masks of two machines whose "auto" differs must never mix.
    cfg = replace(cfg, precision=resolve_precision(cfg.precision, device, training=False))
    checkpoint = open_checkpoint(cfg.resume, "--resume", cfg.model)
    videos = [video for video in list_videos(cfg) if video.expressions]
    if not videos:
        raise UserError(
            f"the {cfg.split} split of {cfg.dataset_file} has no expressions; choose another --split or "
            "--expressions_file"
        )
    require_frames(videos)
    options = InferenceOptions.from_config(cfg)
    print_large_videos(videos, options)
    record = build_record(cfg, checkpoint.path, device)
    model, notes = build_for_inference(cfg, checkpoint, device)
    print_notes(notes)
    del checkpoint  # releases the memory map of its file
    layout = DATASETS[cfg.dataset_file].layout
    segment_videos(
        model, share_of_videos(videos), record, layout, options, workers=cfg.num_workers, visualize=cfg.visualize
    )
    wait_for_all()
    if is_main():
        record.absorb()
        print("\n".join(finish(videos, record, layout, cfg.visualize)))


def finish(videos: Sequence[Video], record: InferenceRecord, layout: MaskLayout, visualize: bool = False) -> list[str]:
    """Write and check the submission zip and, with ``visualize``, the contact sheet, in the folder of the record.

    Returns:
        Lines that say what was written.

    Raises:
        RunError: the zip is not a complete submission.
    """
    output = record.path.parent
    archive = output / "submission.zip"
    write_submission(output, videos, archive, layout)
    faults = check_submission(archive, videos, layout)
    if faults:
        raise RunError(
            f"{archive} is not a complete submission: {faults[0]} (fault 1 of {len(faults)}); run the same "
            "command again"
        )
    masks = sum(len(layout.folders(video)) * len(video.frame_paths) for video in videos)
    lines = [
        f"wrote {masks} masks of {count_expressions(videos)} expressions in {len(videos)} videos "
        f"({record.timing()['frames_per_second']:.2f} frames/s): {', '.join(str(output / r) for r in layout.roots)}",
        f"submission, checked: {archive}",
    ]
    if visualize:
        sheet = output / OVERLAYS / "contact_sheet.png"
        expressions = [
            (sheet.parent / video.name / exp_id, sentence, video.frame_paths)
            for video in videos
            for exp_id, sentence in video.expressions.items()
        ]
        write_sheet(sheet, expressions)
        lines.append(f"overlays: {sheet.parent}, contact sheet: {sheet}")
    return lines


if __name__ == "__main__":
    run_cli(main)
