"""MP4 files that browsers play, picture by picture, with the times and the sound of another video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from util.errors import UserError
from util.files import atomic_path
from util.media_sound import Sound

_BT709, _LIMITED = 1, 1  # in FFmpeg: of colour space, primaries and transfer; of the range
_FRAME_DURATION = 1 << 8  # FFmpeg's flag: durations of frames are meant


class VideoWriter:
    """Takes pictures and their times; made by ``open_video``."""

    def __init__(
        self, container: OutputContainer, rate: Fraction, time_base: Fraction, sound: Sound | None, quality: int
    ) -> None:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        if codec == "mpeg4":  # whose clock has 16 bits
            time_base = 1 / rate.limit_denominator(1000)
        stream = container.add_stream(codec, rate=rate.limit_denominator(1000))
        assert isinstance(stream, VideoStream)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # several are written side by side
        stream.options = {"crf": str(quality), "preset": "veryfast"} if codec == "libx264" else {"qscale": "3"}
        context = stream.codec_context
        context.time_base = time_base
        context.flags |= _FRAME_DURATION
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        self._container, self._stream, self._sound, self._time_base = container, stream, sound, time_base
        self._reformatter = VideoReformatter()
        self._size: tuple[int, ...] | None = None
        self._last = -1
        if sound is not None:
            sound.add_to(container)

    def write(self, picture: np.ndarray, time: Fraction, duration: Fraction) -> None:
        """Append a picture.

        Args:
            picture: uint8 RGB ``[H, W, 3]``, all of one size; 4:2:0 cannot hold odd ones, which grow by one repeated
                row or column.
            time: when it is shown, in seconds; rising from picture to picture.
            duration: for how long.
        """
        even = np.pad(picture, ((0, len(picture) % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
        if self._size is None:  # the codec opens with the first picture, and keeps its size
            self._size = self._stream.height, self._stream.width = even.shape[:2]
        assert self._size == even.shape[:2], f"pictures of one size, not {self._size} and {even.shape[:2]}"
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame = self._reformatter.reformat(frame, format="yuv420p", dst_colorspace=Colorspace.ITU709)
        self._last = max(self._last + 1, round(time / self._time_base))
        frame.pts, frame.time_base = self._last, self._time_base
        frame.duration = max(1, round(duration / self._time_base))
        self._mux_sound(time)
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write what the encoder still holds, and the rest of the sound."""
        assert self._size is not None, "a video needs pictures"
        self._container.mux(self._stream.encode())
        self._mux_sound(None)

    def _mux_sound(self, until: Fraction | None) -> None:
        for packet in self._sound.packets(until) if self._sound is not None else ():
            self._container.mux(packet)


@contextmanager
def open_video(
    path: Path,
    rate: Fraction,
    time_base: Fraction = Fraction(1, 90000),
    sound: Sound | None = None,
    quality: int = 18,
) -> Iterator[VideoWriter]:
    """Write an MP4, beside and renamed: H.264, 4:2:0, or MPEG-4 Part 2 where this FFmpeg has no libx264.

    Args:
        path: ends in ``.mp4``.
        rate: frames per second, on average.
        time_base: of which times are multiples, in seconds.
        sound: that goes with it.
        quality: of the pictures, as libx264's crf: lower is better.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        # faststart: the index comes first, so that a browser can play before it has read all
        with (
            atomic_path(path) as temporary,
            av.open(str(temporary), "w", options={"movflags": "faststart"}) as container,
        ):
            writer = VideoWriter(container, rate, time_base, sound, quality)
            yield writer
            writer.finish()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another output folder") from error
    except av.FFmpegError as error:  # a size that H.264 does not have, for one
        raise UserError(f"cannot write {path} as a video: {error.strerror or error}") from error
