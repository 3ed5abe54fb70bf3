"""Reading some frames of a video file (MP4), decoded by FFmpeg through PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import torch
from torch import Tensor

from util.errors import UserError


def read_video_frames(path: Path, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Read frames of a video file by their index.

    The file is decoded from its beginning up to the last frame that is wanted: a seek by time would not hit the same
    frame in every file.

    Args:
        path: the file.
        indices: of the frames, from 0, in rising order; beyond the video's end they stand for its last frame.

    Returns:
        frames uint8 ``[T, 3, H, W]``, and the index of each.

    Raises:
        UserError: the file is missing, broken or without a frame.
    """
    if not path.is_file():
        raise UserError(f"video {path} is missing; fetch or extract it again")
    wanted, found = set(indices), {}
    frame, last = None, -1
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:  # the latter where the codec is unknown
                raise UserError(f"video {path} has no pictures; fetch or extract this file again")
            stream.codec_context.thread_count = 1  # several workers read side by side
            for last, frame in enumerate(container.decode(stream)):
                if last in wanted:
                    found[last] = _as_tensor(frame)
                if last == indices[-1]:
                    break
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"video {path} is broken ({reason}); fetch or extract this file again") from error
    if frame is None:
        raise UserError(f"video {path} has no frame that can be decoded; fetch or extract this file again")
    if last not in found:
        found[last] = _as_tensor(frame)
    if len({picture.shape for picture in found.values()}) > 1:
        raise UserError(f"video {path} has frames of several sizes; fetch or extract this file again")
    chosen = [min(index, last) for index in indices]
    return torch.stack([found[index] for index in chosen]), chosen


def _as_tensor(frame: av.VideoFrame) -> Tensor:
    """uint8 RGB ``[3, H, W]``."""
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
