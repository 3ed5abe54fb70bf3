"""Segmenting and scoring a set of videos, in all processes together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets.evaluators import Score, Scorer, Scores
from datasets.scoring import video_counts, video_metrics
from datasets.video import Video
from util.config import Config
from util.distributed import is_main, rank, tell, wait_for_all
from util.inference_record import InferenceRecord
from util.io import write_json
from util.video_inference import ClipReader, run_inference, share_of_videos


def video_score(
    videos: Sequence[Video],
    scorer: Scorer | None,
    cfg: Config,
    open_record: Callable[[int], InferenceRecord],
    read: ClipReader,
    segment: Callable[..., Any],
    keep: bool,
) -> Score:
    """What segments this process's share of the videos with a model, and scores the masks of all in the main process.

    Args:
        videos: all of them.
        scorer: of the masks below ``cfg.output_dir``; None in all processes but the main one.
        cfg: as ``run_inference`` reads it.
        open_record: the record of what is segmented, by the number of this process.
        read: of a clip.
        segment: of a model and a clip, as ``run_inference`` takes it.
        keep: masks that are there already need not be made again; the record is opened now, so that one of another
            checkpoint is refused at once.
    """
    share = share_of_videos(videos)
    record = open_record(rank()) if keep else None

    def score(model: Any) -> Scores:
        run_inference(share, cfg, record or open_record(rank()), read, partial(segment, model), show=is_main())
        wait_for_all()
        if scorer is None:
            return {}, {}
        scores = scorer(max(1, cfg.num_workers))
        write_json(Path(cfg.output_dir) / "scores.json", scores)
        tell(scores.get("notes", []))
        frames = sum(len(video.frame_paths) for video in videos)
        return video_metrics(scores), {**video_counts(scores), "frames": frames}

    return score
