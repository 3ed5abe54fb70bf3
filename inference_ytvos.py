"""Segment the objects that sentences name, in every frame of every video of a Ref-YouTube-VOS split.

python inference_ytvos.py --config configs/vdit_ytvos.yaml --resume runs/vdit/checkpoint.pth \\
    --ytvos_path data/ref-youtube-vos --output_dir runs/vdit/valid --visualize

A whole video is one clip, and one query is chosen for it. A run that was stopped goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets import Video, list_videos, load_frames
from datasets.clip import pad_clips
from models import Segmenter, build_model, merge_lora
from models.loading import load_weights, open_checkpoint
from models.postprocessors import binary_masks, pixel_boxes
from models.selection import best_query
from util.background import BackgroundTasks, read_ahead
from util.config import Config, load_config
from util.device import device_name, resolve_device
from util.errors import RunError, UserError, run_cli
from util.inference_record import InferenceRecord, file_sha256, mask_options
from util.submission import (
    check_submission,
    frame_size,
    is_written,
    mask_path,
    require_frames,
    write_mask,
    write_submission,
)
from util.visualisation import (
    Picture,
    contact_sheet,
    draw_overlay,
    overlay_size,
    read_picture,
    write_picture,
    write_video,
)

MULTIPLE = 16  # pixels: frames are padded to it, as the published models are evaluated
FPS = 6  # of the MP4: Ref-YouTube-VOS keeps every fifth frame of 30 a second
SHEET_ROWS, SHEET_COLUMNS = 8, 5


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says about one expression."""

    masks: np.ndarray
    """bool ``[T, H0, W0]`` at the original size; empty where the mean score is below ``score_threshold``."""
    boxes: np.ndarray
    """``[T, 4]``: (x0, y0, x1, y1) in pixels of the original size."""
    scores: np.ndarray
    """``[T]``: the chosen query's probability of being the referred object, in each frame."""
    query: int
    seconds: float
    """From frames in memory to masks in memory, with its share of the pass that serves all sentences of a video."""


def main() -> None:
    """Segment a split as the command line says."""
    cfg = load_config(sys.argv[1:], "Segment the objects that sentences name in the videos of a split.")
    device = resolve_device(cfg.device)
    if not cfg.resume:
        raise UserError("no checkpoint is given; name the checkpoint.pth that main.py wrote by --resume")
    checkpoint = open_checkpoint(cfg.resume, "--resume", cfg.model)
    videos = [video for video in list_videos(cfg) if video.expressions]
    if not videos:
        raise UserError(f"the {cfg.split} split of {cfg.ytvos_path} has no expression; its expressions file lists none")
    require_frames(videos)
    record = InferenceRecord(
        Path(cfg.output_dir) / "inference.json",
        {"checkpoint_sha256": file_sha256(checkpoint["path"]), **mask_options(cfg)},
        {"checkpoint": str(checkpoint["path"].resolve()), "device": device_name(device)},
    )
    model = build_model(cfg)
    for note in load_weights(model, checkpoint, cfg).notes:
        print(f"note: {note}")
    del checkpoint  # and with it the memory map of its file
    merge_lora(model)  # the same function, at no cost
    run_inference(model.to(device).eval(), videos, cfg, record, device)
    print("\n".join(finish(videos, cfg, record)))


def run_inference(
    model: Segmenter, videos: Sequence[Video], cfg: Config, record: InferenceRecord, device: torch.device
) -> None:
    """Write the masks of every expression, and with ``cfg.visualize`` its overlays; skip those that are written.

    Args:
        model: in eval mode, on ``device``.
        videos: what to segment.
        cfg: reads ``output_dir``, ``eval_size``, ``max_size``, ``threshold``, ``score_threshold``, ``seed``,
            ``num_workers`` and ``visualize``.
        record: which expressions are done; those of a video are added when all their files are written.
        device: where the model is.

    Raises:
        UserError: a frame cannot be read or a file not written.
        RunError: the predictions are not finite numbers.
    """
    work = [(video, pending(video, cfg, record)) for video in videos]
    skipped = sum(len(video.expressions) - len(sentences) for video, sentences in work)
    if skipped:
        print(f"skipped {skipped} of {_count(videos)} expressions, which are written already")
    work = [(video, sentences) for video, sentences in work if sentences]
    total = sum(len(video.frame_paths) * len(sentences) for video, sentences in work)
    with (
        BackgroundTasks(max(1, cfg.num_workers)) as tasks,
        tqdm(total=total, unit="frame", desc="segment", dynamic_ncols=True, file=sys.stdout) as bar,
    ):
        loaded = read_ahead(work, lambda item: load_frames(item[0], cfg.eval_size, cfg.max_size))
        for number, ((video, sentences), (frames, orig_size)) in enumerate(loaded, start=1):
            bar.set_postfix(video=f"{number}/{len(work)}")
            results = {}
            for exp_id, prediction in segment(model, frames, orig_size, sentences, cfg, device):
                if not np.isfinite(prediction.scores).all():
                    raise RunError(
                        f"the predictions for video {video.name!r}, expression {exp_id!r} are not finite numbers; "
                        f"{cfg.resume} may come from a run that diverged"
                    )
                tasks.submit(write_expression, video, exp_id, prediction, cfg)
                results[exp_id] = {
                    "sentence": sentences[exp_id],
                    "score": round(float(prediction.scores.mean()), 5),
                    "query": prediction.query,
                    "frames": len(frames),
                    "seconds": round(prediction.seconds, 3),
                }
                bar.update(len(frames))
            tasks.wait()  # what is recorded is on the disk
            record.add(video.name, results)


@torch.inference_mode()
def segment(
    model: Segmenter,
    frames: Tensor,
    orig_size: tuple[int, int],
    sentences: Mapping[str, str],
    cfg: Config,
    device: torch.device,
) -> Iterator[tuple[str, Prediction]]:
    """Segment one video for each of its sentences.

    Args:
        model: see ``run_inference``.
        frames: float32 ``[T, 3, h, w]``, ImageNet-normalised.
        orig_size: (H0, W0) of the masks.
        sentences: expression id → sentence.
        cfg: reads ``threshold``, ``score_threshold`` and ``seed``.
        device: where the model is.

    Yields:
        expression id and its prediction.
    """
    height, width = frames.shape[-2:]
    clip, padding = (tensor.to(device) for tensor in pad_clips([frames], MULTIPLE))
    started = time.perf_counter()
    torch.manual_seed(cfg.seed)
    pixels = model.encoder.encode_pixels(clip)  # what depends on the frames alone serves every sentence
    shared = (time.perf_counter() - started) / len(sentences)
    for exp_id, sentence in sentences.items():
        started = time.perf_counter()
        torch.manual_seed(cfg.seed)  # noise, where the model draws any, depends on no other expression
        output = model.segment_pixels(pixels, padding, [sentence], select=best_query)
        assert output.masks is not None and output.chosen is not None
        query = int(output.chosen[0])
        scores = output.logits[0, :, query, 0].float().sigmoid().cpu().numpy()
        named = scores.mean() >= cfg.score_threshold  # whether the sentence names anything at all
        yield (
            exp_id,
            Prediction(
                masks=binary_masks(output.masks[0], (height, width), orig_size, cfg.threshold).numpy() & named,
                boxes=pixel_boxes(output.boxes[0, :, query], orig_size).cpu().numpy(),
                scores=scores,
                query=query,
                seconds=shared + time.perf_counter() - started,
            ),
        )


def pending(video: Video, cfg: Config, record: InferenceRecord) -> dict[str, str]:
    """The expressions of a video that are not wholly written yet."""
    output = Path(cfg.output_dir)
    return {
        exp_id: sentence
        for exp_id, sentence in video.expressions.items()
        if (record.find(video.name, exp_id) or {}).get("sentence") != sentence
        or not is_written(output, video, exp_id)
        or (cfg.visualize and not movie_path(output, video, exp_id).is_file())
    }


def write_expression(video: Video, exp_id: str, prediction: Prediction, cfg: Config) -> None:
    """Write the masks of an expression, and with ``cfg.visualize`` its overlays and, last, its MP4."""
    output = Path(cfg.output_dir)
    for frame, mask in zip(video.frame_paths, prediction.masks, strict=True):
        write_mask(mask_path(output, video.name, exp_id, frame.stem), mask)
    if cfg.visualize:
        write_video(movie_path(output, video, exp_id), _overlays(output, video, exp_id, prediction), FPS)


def _overlays(output: Path, video: Video, exp_id: str, prediction: Prediction) -> Iterator[Picture]:
    """Draw and write the overlay of each frame, and hand it on."""
    for i, frame in enumerate(video.frame_paths):
        picture = draw_overlay(
            read_picture(frame),
            prediction.masks[i],
            video.expressions[exp_id],
            prediction.boxes[i].tolist(),
            float(prediction.scores[i]),
        )
        write_picture(overlay_path(output, video, exp_id, frame), picture)
        yield picture


def finish(videos: Sequence[Video], cfg: Config, record: InferenceRecord) -> list[str]:
    """Write and check the submission zip, and with ``cfg.visualize`` the contact sheet.

    Returns:
        Lines that say what was written.

    Raises:
        RunError: the zip is not a whole submission.
    """
    output = Path(cfg.output_dir)
    archive = output / "submission.zip"
    write_submission(output, videos, archive)
    faults = check_submission(archive, videos)
    if faults:
        raise RunError(f"{archive}: {faults[0]} ({len(faults)} faults in all)")
    masks = sum(len(video.expressions) * len(video.frame_paths) for video in videos)
    lines = [
        f"wrote {masks} masks of {_count(videos)} expressions in {len(videos)} videos "
        f"({record.timing()['frames_per_second']:.2f} frames/s): {output / 'Annotations'}",
        f"submission, checked: {archive}",
    ]
    if cfg.visualize:
        sheet = output / "visualize" / "contact_sheet.png"
        contact_sheet(sheet_rows(videos, output), sheet)
        lines.append(f"overlays: {sheet.parent}, contact sheet: {sheet}")
    return lines


def sheet_rows(videos: Sequence[Video], output: Path) -> list[tuple[str, list[Picture]]]:
    """A few expressions and a few frames of each, evenly spread, from the overlays that are written."""
    expressions = [(video, exp_id) for video in videos for exp_id in video.expressions]
    rows = []
    for video, exp_id in _spread(expressions, SHEET_ROWS):
        tiles = []
        for frame in _spread(video.frame_paths, SHEET_COLUMNS):
            height, _ = overlay_size(*frame_size(frame))  # without the bar: the row's title has the sentence
            tiles.append(read_picture(overlay_path(output, video, exp_id, frame))[:height])
        rows.append((f"{video.name} · {exp_id} · {video.expressions[exp_id]}", tiles))
    return rows


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` items, evenly spread from the first to the last."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def _count(videos: Sequence[Video]) -> int:
    """Number of expressions."""
    return sum(len(video.expressions) for video in videos)


def overlay_path(output: Path, video: Video, exp_id: str, frame: Path) -> Path:
    """Where the overlay of a frame lies."""
    return output / "visualize" / video.name / exp_id / f"{frame.stem}.png"


def movie_path(output: Path, video: Video, exp_id: str) -> Path:
    """Where the MP4 of an expression lies."""
    return output / "visualize" / f"{video.name}_{exp_id}.mp4"


if __name__ == "__main__":
    run_cli(main)
