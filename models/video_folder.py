"""From a video to a folder of masks and pictures: what ``demo.py`` and the page have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from models.inference import WINDOW, VideoSegmenter
from models.pretrained import Pretrained
from util.demo_run import DemoResult, Progress, run_demo
from util.device import device_name
from util.media_frames import Media
from util.preprocessing import normalise_sentence


def segment_to_folder(
    pretrained: Pretrained,
    media: Media,
    sentences: Sequence[str],
    folder: Path,
    *,
    window: int = WINDOW,
    overlap: int | None = None,
    threshold: float | None = None,
    score_threshold: float | None = None,
    save_prob: bool = False,
    force: bool = False,
    report: Callable[[Progress], None] | None = None,
    show: bool = True,
) -> DemoResult:
    """Segment a video and write what ``docs/demo.md`` lists.

    Args:
        pretrained: the model.
        media: the video.
        sentences: as typed.
        folder: it appears when all is written.
        window: frames that the model sees together.
        overlap: frames that two windows share; None: 6, or half of a short window.
        threshold: mask probability from which a pixel belongs to the object; None: the configuration's.
        score_threshold: mean score below which a sentence names nothing; None: the configuration's.
        save_prob: also write the probabilities.
        force: replace an earlier result.
        report: is told after every frame.
        show: print a progress bar.

    Raises:
        UserError: the video cannot be read or a file not written, the folder is taken, or window and overlap do not
            fit together.
        RunError: the predictions are not finite numbers, or the video was changed while it was read.
    """
    options = pretrained.options
    named = [normalise_sentence(sentence) for sentence in sentences]
    segmenter = VideoSegmenter(pretrained.model, options, named, window, overlap)
    return run_demo(
        media,
        sentences,
        segmenter.run,
        folder,
        threshold=options.threshold if threshold is None else threshold,
        score_threshold=options.score_threshold if score_threshold is None else score_threshold,
        save_prob=save_prob,
        force=force,
        report=report,
        show=show,
        about={
            "checkpoint": str(pretrained.checkpoint),
            "model": pretrained.name,
            "device": device_name(pretrained.device),
            "window": window,
            "overlap": segmenter.overlap,
            "stride": media.excerpt.stride,
            "eval_size": options.eval_size,
            "seed": options.seed,
        },
    )
