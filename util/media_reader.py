"""Videos of any kind, frame by frame: what FFmpeg decodes, a folder of frames, a picture.

Frames come upright, as 8-bit RGB on white, with the times at which they are shown. Memory holds two frames, and a file
can be read again.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from util.errors import UserError
from util.media_frames import WHOLE, Excerpt, Media, RawFrame
from util.media_images import DEFAULT_FPS, SUFFIXES, ImageFile, ImageFolder
from util.media_pixels import frame_pixels

SEEK_FROM = 2.0  # seconds: an earlier start is not worth a seek
FINEST = 1_000_000  # a second's ticks, at most; a file with others is read in ticks of 1/90000 s
NOT_VIDEO = frozenset({"tty", "hls", "dash", "concat", "lavfi", "srt", "webvtt", "ass"})
"""Formats that FFmpeg takes texts for: letters drawn as pictures, and lists of other files to open."""
READ_OPTIONS = {"protocol_whitelist": "file"}  # a file opens no other address, whatever is written in it


def open_media(path: str | Path, excerpt: Excerpt = WHOLE, fps: Fraction = DEFAULT_FPS) -> Media:
    """Open a video file, a GIF, a folder of frames or a picture.

    Args:
        path: the file or folder.
        excerpt: which frames are wanted.
        fps: frames per second of pictures, which do not tell.

    Raises:
        UserError: it is missing, no video, without a frame that can be decoded, or ends before the excerpt.
    """
    if "://" in str(path):
        raise UserError(f"{path} is an address, and only files are read; download the video and give its file")
    path = Path(path)
    try:
        if path.is_dir():
            return ImageFolder(path, excerpt, fps)
        if not path.exists():
            raise UserError(f"{path} does not exist; give a video, a GIF, a picture or a folder of frames")
        if not path.is_file():
            raise UserError(f"{path} is neither a file nor a folder; give a video, a picture or a folder of frames")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); copy or download the video again")
        return ImageFile(path, excerpt, fps) if path.suffix.lower() in SUFFIXES else VideoFile(path, excerpt)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


class VideoFile(Media):
    """A video file in any container and codec that FFmpeg knows.

    Damaged parts and a missing end are passed over, and noted.

    Args:
        path: the file.
        excerpt: which frames are wanted; a late start is sought, not decoded up to.

    Raises:
        UserError: it is no video, has no frame that can be decoded, or ends before the excerpt.
    """

    def __init__(self, path: Path, excerpt: Excerpt = WHOLE) -> None:
        super().__init__(path, excerpt)
        self._reformatter = VideoReformatter()
        with open_container(path) as container:
            stream = video_stream(container, path)
            self.begin = begin_of(container)
            base = self._clock = stream.time_base or self.time_base
            self.time_base = base if base.numerator == 1 and base.denominator <= FINEST else self.time_base
            self._source_rate = _rate(stream)
            self._expected = stream.frames  # 0 where the file does not tell
            self.length = _length(container, stream)
            self._guess = Fraction(container.duration or 0, av.time_base)
        self.rate = self._source_rate / excerpt.stride
        self.count = self._count()
        with closing(self.frames()) as frames:
            first = next(frames, None)
        if first is None:
            self._raise_empty()
        assert first is not None
        self.size = first.image.shape[:2]  # type: ignore[assignment]

    def raw_frames(self) -> Generator[RawFrame]:
        start = self.excerpt.start
        if start >= SEEK_FROM:
            frames = self._decode(start)
            first = next(frames, None)
            if first is not None and first.time <= start:
                yield first
                yield from frames
                return
            frames.close()  # sought too far: some containers have no index
        yield from self._decode(Fraction(0))

    def _decode(self, seek: Fraction) -> Generator[RawFrame]:
        """All frames, from the last key frame before ``seek`` (seconds; 0: from the first one)."""
        packets = damaged = decoded = 0
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            if seek:
                try:
                    container.seek(int((self.begin + seek) / self._clock), stream=stream)
                except (av.FFmpegError, OSError):
                    return
            time, step = Fraction(-1), 1 / self._source_rate
            for frames in _decoded(container, stream):
                packets += 1
                damaged += frames is None
                for frame in frames or ():
                    time, duration = self._shown(frame, time, step)
                    decoded += 1
                    yield RawFrame(time, duration, "", partial(self._pixels, frame))
        if decoded and not seek:
            self._note_damage(packets - 1, damaged, decoded, time + step)

    def _shown(self, frame: av.VideoFrame, before: Fraction, step: Fraction) -> tuple[Fraction, Fraction]:
        """Time and duration of a frame; those that files lack or have twice are made up."""
        base = frame.time_base or self._clock  # frames that the decoder held to the end have none
        stamp = frame.pts if frame.pts is not None else frame.dts
        time = before + step if stamp is None else stamp * base - self.begin
        if before < 0:
            time = max(time, Fraction(0))
        elif time <= before:
            time = before + (min(step, self.time_base) if stamp is not None else step)
        duration = frame.duration * base if frame.duration else step
        return time, duration

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        picture = frame_pixels(frame, self._reformatter)
        if self.size not in ((0, 0), picture.shape[:2]):
            height, width = self.size
            self.note(f"frames of {self.path} change their size; all are scaled to the first one's, {width}×{height}")
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        return picture

    def _count(self) -> int | None:
        """Number of frames of the excerpt, by what the file tells."""
        length = self._expected / self._source_rate if self._expected else self.length or self._guess
        if not length:
            return None
        end = min(length, self.excerpt.end or length)
        return max(1, round((end - self.excerpt.start) * self._source_rate / self.excerpt.stride))

    def _note_damage(self, packets: int, damaged: int, decoded: int, end: Fraction) -> None:
        """Say that the file is cut off or damaged, where it was read to its end."""
        missing = self._expected - packets if self._expected else 0
        late = self.length is not None and self.length - end > max(Fraction(1, 2), 3 / self._source_rate)
        if damaged or missing > 1 or late:
            whole = f" of {self._expected}" if self._expected else ""
            self.note(
                f"{self.path} is damaged or cut off: {decoded}{whole} frames ({float(end):.1f} s) could be read, and "
                "the result has only these"
            )

    def _raise_empty(self) -> None:
        """Say why there is no frame."""
        with closing(self._decode(Fraction(0))) as frames:
            end = max((frame.time + frame.duration for frame in frames), default=None)
        if end is None:
            raise UserError(f"{self.path} has no frame that can be decoded; it is damaged, cut off or no video")
        raise UserError(
            f"{self.path} has no frame from --start {float(self.excerpt.start):g} s on and before --end; it lasts "
            f"{float(end):.2f} s"
        )


def open_container(path: Path) -> InputContainer:
    """Open a file with FFmpeg.

    Raises:
        UserError: it is no file that FFmpeg reads.
    """
    try:
        # absolute, so that no name is taken for an address
        container = av.open(str(path.resolve()), metadata_errors="replace", options=READ_OPTIONS)
    except (av.FFmpegError, OSError) as error:
        reason = "permission denied" if isinstance(error, PermissionError) else "it is no video, damaged or cut off"
        raise UserError(f"cannot read {path} as a video: {reason}") from error
    names = set(container.format.name.split(","))
    if names & NOT_VIDEO:
        container.close()
        raise UserError(f"cannot read {path} as a video: it is a text ({container.format.name})")
    return container


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream of pictures; cover pictures of music are none.

    Raises:
        UserError: there is none, or its codec is unknown.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    known = [stream for stream in streams if stream.codec_context is not None]
    if known:
        return max(known, key=lambda stream: (stream.width or 0) * (stream.height or 0))
    what = "a codec that FFmpeg does not know" if streams else "no pictures: it is sound alone, damaged or cut off"
    raise UserError(f"{path} has {what}; give another video")


def begin_of(container: InputContainer) -> Fraction:
    """When the file begins, in seconds of its own clock."""
    return Fraction(container.start_time or 0, av.time_base)


def _decoded(container: InputContainer, stream: VideoStream) -> Generator[list[av.VideoFrame] | None]:
    """The frames of each packet, None for a damaged one, at last those left; a file that breaks off simply ends."""
    packets, decoder = container.demux(stream), _decoder(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError):
            yield None
            packet = None
        if packet is None or packet.size == 0:
            break
        try:
            yield decoder.decode(packet)
        except (av.FFmpegError, OSError):
            yield None
    try:
        yield decoder.decode(None)
    except (av.FFmpegError, OSError):
        yield []


def _decoder(stream: VideoStream) -> av.VideoCodecContext:
    """The stream's decoder, or that of libvpx for transparent VP8 and VP9, which FFmpeg's own show on black."""
    library = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.codec.canonical_name, "")
    flag = {name.lower(): value for name, value in stream.metadata.items()}.get("alpha_mode")
    if flag != "1" or library not in av.codecs_available:
        return stream.codec_context
    decoder = av.CodecContext.create(library, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    return decoder


def _rate(stream: VideoStream) -> Fraction:
    """Frames per second on average; 25 where the file tells nothing sensible."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= 1000:
            return Fraction(rate)
    return Fraction(25)


def _length(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Seconds of the pictures by the file's header, or None."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    if container.duration and not container.streams.audio:
        return Fraction(container.duration, av.time_base)
    return None
