"""Reads and writes videos: files that FFmpeg decodes, GIFs, folders of images, single images.

``open_media`` opens any of these. Its frames are upright 8-bit RGB without transparency, with the times at which they
are shown. They are read one by one, so memory does not grow with the video, and they can be read any number of times.
``open_video`` writes an MP4 with given times and the sound of another video (``open_sound``); ``write_video`` writes an
MP4 with a fixed rate.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import cv2
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageOps, ImageSequence

from util.errors import UserError
from util.files import BROKEN_IMAGE, atomic_path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".avif"})
DEFAULT_FPS = Fraction(24)
SEEK_FROM = 2  # seconds; decoding up to an earlier start is as fast as seeking
TICK = Fraction(1, 90000)  # of the MP4s that are written, in seconds

# Formats that FFmpeg reads from text: characters drawn as images, subtitles, and lists of other files to open.
NOT_VIDEO = frozenset({"tty", "hls", "dash", "concat", "lavfi", "srt", "webvtt", "ass"})
READ_OPTIONS = {"protocol_whitelist": "file"}  # a file cannot make FFmpeg open a network address

# Codecs that MP4 can hold and that players expect there; other sound is encoded as AAC, which has these sample rates.
COPIED_SOUND = frozenset({"aac", "mp3", "opus", "flac", "alac", "ac3", "eac3"})
AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})

_UNSPECIFIED, _BT709, _LIMITED = 2, 1, 1  # FFmpeg's codes: unknown colour space, BT.709, limited range
_HD_LINES = 720  # players assume BT.709 from this height on if the colour space is unknown
_FRAME_DURATION = 1 << 8  # FFmpeg's AV_CODEC_FLAG_FRAME_DURATION: the durations of frames are valid
_SHORTEST_MS, _USUAL_MS = 20, 100  # players show an animated image's frame for 100 ms if it asks for less than 20

_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)")


def parse_time(text: str, where: str) -> Fraction:
    """Parse a time such as ``12.5``, ``1:02.5`` or ``1:00:02.5`` into seconds.

    Args:
        text: the user's input.
        where: the name of its option, for the error message ("--start").

    Raises:
        UserError: it is not a time.
    """
    match = _CLOCK.fullmatch(text.strip())
    if not match or (match[2] and Fraction(match[3]) >= 60) or (match[1] and int(match[2]) >= 60):
        raise UserError(f"{where} must be a time in seconds or as hh:mm:ss, such as 12.5 or 1:02, not {text!r}")
    hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


@dataclass(frozen=True)
class Excerpt:
    """Selects every ``stride``-th of the frames with ``start`` ≤ time < ``end`` (seconds; None: the video's end)."""

    start: Fraction = Fraction(0)
    end: Fraction | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.end is not None and self.end <= self.start:
            raise UserError(f"--end ({float(self.end):g} s) must be after --start ({float(self.start):g} s)")

    def is_past(self, time: Fraction) -> bool:
        """Whether a time lies at or after the end."""
        return self.end is not None and time >= self.end


WHOLE = Excerpt()


@dataclass(frozen=True)
class MediaFrame:
    """One frame.

    Attributes:
        image: uint8 RGB ``[H, W, 3]``.
        time: seconds since the beginning of the file.
        duration: seconds until the next frame of the excerpt.
        name: the stem of the frame's file in a folder of images; otherwise its number in the excerpt, ``00000``.
    """

    image: np.ndarray
    time: Fraction
    duration: Fraction
    name: str


class RawFrame(NamedTuple):
    """A frame before conversion to RGB; ``load`` converts it. ``name`` is empty unless the frame has its own file."""

    time: Fraction
    duration: Fraction
    name: str
    load: Callable[[], np.ndarray]


@dataclass
class Media(ABC):
    """A video, a folder of images or a single image, opened by ``open_media``.

    Attributes:
        path: the file or folder.
        excerpt: which frames are read.
        size: (H0, W0) of the upright frames.
        rate: average frames per second of the excerpt.
        count: number of frames of the excerpt according to the file's header; None if it is unknown.
        still: whether it is a single image.
        notes: messages for the user; complete once all frames have been read.
    """

    path: Path
    excerpt: Excerpt = WHOLE
    size: tuple[int, int] = (0, 0)
    rate: Fraction = DEFAULT_FPS
    count: int | None = None
    still: bool = False
    notes: list[str] = field(default_factory=list)

    @abstractmethod
    def raw_frames(self) -> Generator[RawFrame]:
        """Yield all frames from the excerpt's start, or from before it, in order of time."""

    def frames(self) -> Generator[MediaFrame]:
        """Yield the frames of the excerpt in order of time; at most two are in memory.

        Raises:
            UserError: the file or an image of the folder cannot be read.
        """
        kept: RawFrame | None = None
        image = np.empty(0, np.uint8)
        end = Fraction(0)
        seen = yielded = 0
        for frame in self.raw_frames():
            if frame.time < self.excerpt.start:
                continue
            if self.excerpt.is_past(frame.time):
                break
            end = frame.time + frame.duration
            if seen % self.excerpt.stride == 0:
                if kept is not None:
                    yield MediaFrame(image, kept.time, frame.time - kept.time, kept.name or f"{yielded:05d}")
                    yielded += 1
                kept, image = frame, frame.load()
            seen += 1
        if kept is not None:
            yield MediaFrame(image, kept.time, end - kept.time, kept.name or f"{yielded:05d}")

    def _measure(self, times: Sequence[Fraction], end: Fraction) -> None:
        """Set count and size of images whose times are known; refuse an excerpt that has none of them."""
        contained = sum(time >= self.excerpt.start and not self.excerpt.is_past(time) for time in times)
        if not contained:
            raise UserError(f"{self.path} lasts {float(end):.2f} s and ends before --start")
        self.count = -(-contained // self.excerpt.stride)
        with closing(self.frames()) as frames:
            self.size = next(frames).image.shape[:2]

    def note(self, text: str) -> None:
        """Add a message for the user unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)


def open_media(path: str | Path, excerpt: Excerpt = WHOLE, fps: Fraction = DEFAULT_FPS) -> Media:
    """Open a video file, a GIF, a folder of images or a single image.

    Args:
        excerpt: which frames to read.
        fps: frames per second of a folder of images, which has no times of its own.

    Raises:
        UserError: the path does not exist, is not a video, has no frame that can be decoded, or ends before the
            excerpt.
    """
    if "://" in str(path):
        raise UserError(f"{path} is a web address; download the video and give the file")
    path = Path(path)
    try:
        if path.is_dir():
            return ImageFolder(path, excerpt, fps)
        if not path.exists():
            raise UserError(f"{path} does not exist; give a video, a GIF, an image or a folder of images")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); copy or download the video again")
        return ImageFile(path, excerpt, fps) if path.suffix.lower() in IMAGE_SUFFIXES else VideoFile(path, excerpt)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


class ImageFolder(Media):
    """A folder of frames, one image each, in natural order of their names; see ``open_media``."""

    def __init__(self, path: Path, excerpt: Excerpt, fps: Fraction) -> None:
        self.fps = fps
        self.files = sorted(
            (
                file
                for file in path.iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
            ),
            key=natural_order,
        )
        if not self.files:
            inner = next((folder.name for folder in sorted(path.iterdir()) if folder.is_dir()), None)
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            advice = f"give a folder in it, such as {inner}" if inner else f"a folder of frames holds {kinds} files"
            raise UserError(f"{path} is a folder without an image; {advice}")
        stems: dict[str, Path] = {}
        for file in self.files:
            if stems.setdefault(file.stem, file) is not file:
                raise UserError(f"{path} holds both {stems[file.stem].name} and {file.name}; keep one image per frame")
        super().__init__(path, excerpt, rate=fps / excerpt.stride)
        self._measure([i / fps for i in range(len(self.files))], len(self.files) / fps)

    def raw_frames(self) -> Generator[RawFrame]:
        for number, file in enumerate(self.files):
            yield RawFrame(number / self.fps, 1 / self.fps, file.stem, partial(self._load, file))

    def _load(self, file: Path) -> np.ndarray:
        with _image_errors(file), Image.open(file) as image:
            pixels = image_pixels(image)
        if self.size not in ((0, 0), pixels.shape[:2]):
            (h, w), (height, width) = pixels.shape[:2], self.size
            raise UserError(
                f"{file} is {w}×{h} and the frames before it {width}×{height}; all frames of a video must have one size"
            )
        return pixels


class ImageFile(Media):
    """A single image as a video of one frame, or an animated PNG, WebP or AVIF; see ``open_media``."""

    def __init__(self, path: Path, excerpt: Excerpt, fps: Fraction) -> None:
        super().__init__(path, excerpt, rate=fps)
        with _image_errors(path), Image.open(path) as image:
            self.still = image.format not in ("PNG", "WEBP", "AVIF") or getattr(image, "n_frames", 1) == 1
        spans = [(frame.time, frame.duration) for frame in self.raw_frames()]
        end = spans[-1][0] + spans[-1][1]
        if not self.still:
            self.rate = len(spans) / end / excerpt.stride
        self._measure([time for time, _ in spans], end)

    def raw_frames(self) -> Generator[RawFrame]:
        time = Fraction(0)
        with _image_errors(self.path), Image.open(self.path) as image:
            if self.still:
                yield RawFrame(time, 1 / self.rate, "", partial(self._load, image))
                return
            for frame in ImageSequence.Iterator(image):
                frame.load()
                shown = round(frame.info.get("duration") or 0)
                duration = Fraction(shown if shown >= _SHORTEST_MS else _USUAL_MS, 1000)
                yield RawFrame(time, duration, "", partial(self._load, frame))
                time += duration

    def _load(self, image: Image.Image) -> np.ndarray:
        with _image_errors(self.path):
            return image_pixels(image)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts frame2.png before frame10.png: numbers are compared by value, the rest as text."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)] + [(-1, path.name)]


@contextmanager
def _image_errors(path: Path) -> Iterator[None]:
    """Report a broken image file as a UserError."""
    try:
        yield
    except BROKEN_IMAGE as error:
        raise UserError(f"cannot read the image {path}; it is damaged or a different kind of file") from error


class VideoFile(Media):
    """A video file in any container and codec that FFmpeg knows; see ``open_media``.

    Damaged parts and a missing end are skipped, and reported in ``notes``.
    """

    def __init__(self, path: Path, excerpt: Excerpt = WHOLE) -> None:
        super().__init__(path, excerpt)
        self._reformatter = VideoReformatter()
        with open_container(path) as container:
            stream = video_stream(container, path)
            self.begin = Fraction(container.start_time or 0, av.time_base)
            self._clock = stream.time_base or TICK
            rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
            self._source_rate = next((Fraction(rate) for rate in rates if rate and 0 < rate <= 1000), Fraction(25))
            self._expected = stream.frames  # 0 if the header does not say
            container_length = Fraction(container.duration or 0, av.time_base)
            self._length: Fraction | None = None  # seconds of the images according to the header
            if stream.duration and stream.time_base:
                self._length = stream.duration * stream.time_base
            elif container_length and not container.streams.audio:
                self._length = container_length
        self.rate = self._source_rate / excerpt.stride
        length = self._expected / self._source_rate if self._expected else self._length or container_length
        if length:
            excerpt_end = min(length, excerpt.end or length)
            self.count = max(1, round((excerpt_end - excerpt.start) * self.rate))
        with closing(self.frames()) as frames:
            first = next(frames, None)
        if first is None:
            with closing(self._decode(Fraction(0))) as decoded:
                end = max((frame.time + frame.duration for frame in decoded), default=None)
            if end is None:
                raise UserError(f"{path} has no frame that can be decoded; it is damaged, cut off or not a video")
            start = f"{float(excerpt.start):g}"
            raise UserError(
                f"{path} has no frame from --start {start} s on and before --end; it lasts {float(end):.2f} s"
            )
        self.size = first.image.shape[:2]

    def raw_frames(self) -> Generator[RawFrame]:
        start = self.excerpt.start
        if start >= SEEK_FROM:
            frames = self._decode(start)
            first = next(frames, None)
            if first is not None and first.time <= start:
                yield first
                yield from frames
                return
            frames.close()  # the seek went too far, as happens in containers without an index
        yield from self._decode(Fraction(0))

    def _decode(self, seek: Fraction) -> Generator[RawFrame]:
        """Decode from the last key frame before ``seek`` (seconds; 0: from the first frame) to the end."""
        packets = damaged = decoded = 0
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            if seek:
                try:
                    container.seek(int((self.begin + seek) / self._clock), stream=stream)
                except (av.FFmpegError, OSError):
                    return
            time, step = Fraction(-1), 1 / self._source_rate
            for frames in _decoded_packets(container, stream):
                packets += 1
                damaged += frames is None
                for frame in frames or ():
                    time, duration = self._shown(frame, time, step)
                    decoded += 1
                    yield RawFrame(time, duration, "", partial(self._load, frame))
        if decoded and not seek:
            end = time + step
            missing = self._expected - (packets - 1) if self._expected else 0
            late = self._length is not None and self._length - end > max(Fraction(1, 2), 3 * step)
            if damaged or missing > 1 or late:
                whole = f" of {self._expected}" if self._expected else ""
                read = f"only {decoded}{whole} frames ({float(end):.1f} s) could be read"
                self.note(f"{self.path} is damaged or cut off: {read}")

    def _shown(self, frame: av.VideoFrame, before: Fraction, step: Fraction) -> tuple[Fraction, Fraction]:
        """Return time and duration of a frame; missing and repeated times are replaced by plausible ones."""
        base = frame.time_base or self._clock  # frames that the decoder held back until the end have none
        stamp = frame.pts if frame.pts is not None else frame.dts
        time = before + step if stamp is None else stamp * base - self.begin
        if before < 0:
            time = max(time, Fraction(0))
        elif time <= before:
            time = before + (min(step, TICK) if stamp is not None else step)
        return time, frame.duration * base if frame.duration else step

    def _load(self, frame: av.VideoFrame) -> np.ndarray:
        image = frame_pixels(frame, self._reformatter)
        if self.size not in ((0, 0), image.shape[:2]):
            height, width = self.size
            self.note(f"frames of {self.path} change their size; all are scaled to the first one's, {width}×{height}")
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return image


def read_video_frames(path: Path, indices: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Read the frames of a data set's video file by index, as stored.

    The file is decoded from its beginning, because a seek by time does not hit the same frame in every file.

    Args:
        indices: frame numbers from 0, in rising order; a number beyond the end stands for the last frame.

    Returns:
        frames uint8 RGB ``[T, H, W, 3]``, and the index of each.

    Raises:
        UserError: the file is missing or broken, or has no frame.
    """
    if not path.is_file():
        raise UserError(f"video {path} is missing; download or extract it again")
    wanted, found = set(indices), {}
    frame, last = None, -1
    with open_container(path) as container:
        stream = video_stream(container, path)
        stream.codec_context.thread_count = 1  # data workers read side by side
        try:
            for last, frame in enumerate(container.decode(stream)):
                if last in wanted:
                    found[last] = frame.to_ndarray(format="rgb24")
                if last == indices[-1]:
                    break
        except (av.FFmpegError, OSError) as error:
            reason = error.strerror or str(error)
            raise UserError(f"video {path} is broken ({reason}); download or extract it again") from error
    if frame is None:
        raise UserError(f"video {path} is broken (no frame can be decoded); download or extract it again")
    if last not in found:
        found[last] = frame.to_ndarray(format="rgb24")
    if len({image.shape for image in found.values()}) > 1:
        raise UserError(f"video {path} has frames of several sizes; download or extract it again")
    chosen = [min(index, last) for index in indices]
    return np.stack([found[index] for index in chosen]), chosen


def open_container(path: Path) -> InputContainer:
    """Open a file with FFmpeg.

    Raises:
        UserError: FFmpeg cannot read it, or it is a text.
    """
    try:
        # an absolute path cannot be mistaken for an address
        container = av.open(str(path.resolve()), metadata_errors="replace", options=READ_OPTIONS)
    except (av.FFmpegError, OSError) as error:
        reason = (
            "permission denied"
            if isinstance(error, PermissionError)
            else "it is not a video, or it is damaged or cut off"
        )
        raise UserError(f"cannot read {path} as a video: {reason}") from error
    if NOT_VIDEO & set(container.format.name.split(",")):
        container.close()
        raise UserError(f"cannot read {path} as a video: it is a text ({container.format.name})")
    return container


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the largest video stream of a file, leaving out the cover images of music.

    Raises:
        UserError: there is none, or its codec is unknown.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    known = [stream for stream in streams if stream.codec_context is not None]
    if known:
        return max(known, key=lambda stream: (stream.width or 0) * (stream.height or 0))
    what = "a codec that FFmpeg does not know" if streams else "no images: it has only sound, is damaged or cut off"
    raise UserError(f"{path} has {what}; give a different video")


def _packets(container: InputContainer, stream: Any) -> Generator[av.Packet | None]:
    """Yield the packets of a stream; None at a place where the file breaks off."""
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                return
            yield packet
    except (av.FFmpegError, OSError):
        yield None


def _decoded_packets(container: InputContainer, stream: VideoStream) -> Generator[list[av.VideoFrame] | None]:
    """Yield the frames of each packet, None for a damaged one, and finally those that the decoder held back."""
    decoder = _decoder(stream)
    for packet in _packets(container, stream):
        try:
            yield None if packet is None else decoder.decode(packet)
        except (av.FFmpegError, OSError):
            yield None
    try:
        yield decoder.decode(None)
    except (av.FFmpegError, OSError):
        yield []


def _decoder(stream: VideoStream) -> av.VideoCodecContext:
    """Return the stream's decoder; libvpx for transparent VP8 and VP9, since FFmpeg's own ignores transparency."""
    library = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.codec.canonical_name, "")
    flag = {name.lower(): value for name, value in stream.metadata.items()}.get("alpha_mode")
    if flag != "1" or library not in av.codecs_available:
        return stream.codec_context
    return cast(av.VideoCodecContext, av.CodecContext.create(library, "r"))


def frame_pixels(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Convert a decoded frame to uint8 RGB ``[H, W, 3]``, upright, on white where it is transparent.

    Args:
        frame: from the decoder.
        reformatter: one for all frames of a video; creating it takes time and memory.
    """
    source = Colorspace.ITU709 if frame.colorspace == _UNSPECIFIED and frame.height >= _HD_LINES else None
    transparent = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    layout = "rgba" if transparent else "rgb24"
    pixels = _on_white(reformatter.reformat(frame, format=layout, src_colorspace=source).to_ndarray())
    # The display matrix gives x' = a·x + c·y and y' = b·x + d·y; phones store frames in the sensor's orientation.
    for item in cast(Any, frame.side_data):  # typed as a mapping of texts in PyAV
        if item.type == Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = np.frombuffer(bytes(item), np.int32).tolist()
            if abs(a) + abs(d) < abs(b) + abs(c):  # a quarter turn
                pixels, a, d = pixels.transpose(1, 0, 2), c, b
            return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
    return pixels


def image_pixels(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image to uint8 RGB ``[H, W, 3]``, upright by its EXIF flag, on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, of which Pillow would clip all values above 255
        grey = np.asarray(image).astype(np.int64) >> 8
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    return _on_white(np.array(image.convert("RGBA" if image.has_transparency_data else "RGB")))


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Blend uint8 RGBA ``[H, W, 4]`` with white; RGB is returned as it is."""
    if pixels.shape[-1] == 3:
        return pixels
    colours, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


class Sound:
    """The sound of a video as packets for the MP4 that ``open_video`` writes; made by ``open_sound``."""

    def __init__(
        self, container: InputContainer, stream: AudioStream, start: Fraction, end: Fraction | None, cut: bool
    ) -> None:
        self._source, self._stream = container, stream
        self._shift = Fraction(container.start_time or 0, av.time_base) + start
        self._end, self._cut = end, cut
        self._clock = stream.time_base or Fraction(1, stream.codec_context.sample_rate)
        self._waiting: av.Packet | None = None
        self._packets: Iterator[av.Packet] = iter(())

    def add_to(self, output: OutputContainer) -> None:
        """Add the sound's stream to a container to which nothing has been written yet."""
        context = self._stream.codec_context
        codec = context.codec.canonical_name
        if codec in COPIED_SOUND and (codec != "aac" or context.extradata_size > 0):  # MPEG-TS has no extradata
            self._target = output.add_stream_from_template(self._stream)
            self._packets = self._copy()
            return
        rate = context.sample_rate if context.sample_rate in AAC_RATES else 48000
        layout = "mono" if context.layout.nb_channels == 1 else "stereo"
        self._target = output.add_stream("aac", rate=rate, layout=layout)
        self._target.codec_context.open(strict=False)
        self._packets = self._encode(rate, layout)

    def packets(self, until: Fraction | None = None) -> Iterator[av.Packet]:
        """Yield each packet once that begins before ``until`` (seconds of the new file); None: all that are left."""
        while (packet := self._waiting or next(self._packets, None)) is not None:
            self._waiting = None
            if until is not None and packet.pts is not None and packet.pts * packet.time_base >= until:
                self._waiting = packet
                return
            yield packet

    def _excerpt(self, pieces: Iterable[Any]) -> Iterator[Any]:
        """Yield the packets or frames that lie in the excerpt, with their times in the new file."""
        for piece in pieces:
            if piece.pts is None:
                continue
            time = piece.pts * self._clock - self._shift
            if self._end is not None and time >= self._end:
                return
            if not self._cut or time + (piece.duration or 0) * self._clock > 0:
                piece.pts -= round(self._shift / self._clock)
                yield piece

    def _demux(self) -> Iterator[av.Packet]:
        if self._cut:
            with suppress(av.FFmpegError, OSError):  # a container without an index is read from its beginning
                self._source.seek(int(self._shift / self._clock), stream=self._stream)
        for packet in _packets(self._source, self._stream):
            if packet is not None and packet.dts is not None:
                yield packet

    def _copy(self) -> Iterator[av.Packet]:
        for packet in self._excerpt(self._demux()):
            packet.dts -= round(self._shift / self._clock)
            packet.stream = self._target
            yield packet

    def _encode(self, rate: int, layout: str) -> Iterator[av.Packet]:
        size = self._target.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=size)
        for frame in self._excerpt(self._decoded()):
            frame.time_base = self._clock
            for piece in resampler.resample(frame):
                yield from self._target.encode(piece)
        for piece in resampler.resample(None):
            yield from self._target.encode(piece)
        yield from self._target.encode(None)

    def _decoded(self) -> Iterator[av.AudioFrame]:
        for packet in self._demux():
            with suppress(av.FFmpegError, OSError):  # a damaged packet leaves a gap
                yield from self._stream.codec_context.decode(packet)


@contextmanager
def open_sound(path: Path, start: Fraction, end: Fraction | None = None, cut: bool = False) -> Iterator[Sound | None]:
    """Open the sound of a video for the block; None if it has no sound or an unknown codec.

    Args:
        start: the time in this video at which the new file begins, in seconds.
        end: the length of the new file in seconds; None: it ends with this one.
        cut: leave out the sound before ``start``.

    Raises:
        UserError: FFmpeg cannot read the file.
    """
    with open_container(path) as container:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        yield Sound(container, streams[0], start, end, cut) if streams else None


class VideoWriter:
    """Writes images with their times into an MP4; made by ``open_video``."""

    def __init__(self, container: OutputContainer, rate: Fraction, sound: Sound | None) -> None:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        rate = rate.limit_denominator(1000)
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, VideoStream)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # several videos are written side by side
        stream.options = {"crf": "18", "preset": "veryfast"} if codec == "libx264" else {"qscale": "3"}
        context = stream.codec_context
        context.time_base = self._tick = TICK if codec == "libx264" else 1 / rate  # MPEG-4's clock has 16 bits
        context.flags |= _FRAME_DURATION
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        self._container, self._stream, self._sound = container, stream, sound
        self._reformatter = VideoReformatter()
        self._last = -1
        if sound is not None:
            sound.add_to(container)

    def write(self, image: np.ndarray, time: Fraction, duration: Fraction) -> None:
        """Append an image.

        Args:
            image: uint8 RGB ``[H, W, 3]``; all images of a video have one size. Odd sizes grow by one repeated row or
                column, because H.264 (4:2:0) has only even ones.
            time: when it is shown, in seconds; later than the image before.
            duration: for how long, in seconds.
        """
        even = np.pad(image, ((0, len(image) % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
        if self._last < 0:
            self._stream.height, self._stream.width = even.shape[:2]
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame = self._reformatter.reformat(frame, format="yuv420p", dst_colorspace=Colorspace.ITU709)
        self._last = max(self._last + 1, round(time / self._tick))
        frame.pts, frame.time_base = self._last, self._tick
        frame.duration = max(1, round(duration / self._tick))
        for packet in self._sound.packets(until=time) if self._sound else ():
            self._container.mux(packet)
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write the images that the encoder still holds, and the rest of the sound."""
        self._container.mux(self._stream.encode())
        for packet in self._sound.packets() if self._sound else ():
            self._container.mux(packet)


@contextmanager
def open_video(path: Path, rate: Fraction, sound: Sound | None = None) -> Iterator[VideoWriter]:
    """Write an MP4 that browsers play: H.264, or MPEG-4 Part 2 if this FFmpeg has no libx264.

    The file gets its name when the block succeeds.

    Args:
        path: ends in ``.mp4``.
        rate: average frames per second.
        sound: the sound to include, from ``open_sound``.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        # faststart puts the index first, so that a browser can play before it has loaded the whole file
        with (
            atomic_path(path) as temporary,
            av.open(str(temporary), "w", options={"movflags": "faststart"}) as container,
        ):
            writer = VideoWriter(container, rate, sound)
            yield writer
            writer.finish()
    except av.FFmpegError as error:  # for example a size that H.264 does not support
        raise UserError(f"cannot write {path} as a video: {error.strerror or error}") from error


def write_video(path: Path, images: Iterable[np.ndarray], fps: float = 6) -> None:
    """Write images as an MP4 with a fixed rate; see ``open_video``.

    Args:
        path: ends in ``.mp4``.
        images: at least one, uint8 RGB ``[H, W, 3]``, all of one size; taken one at a time.
        fps: frames per second.

    Raises:
        UserError: the file cannot be written.
    """
    step = 1 / Fraction(fps).limit_denominator(1000)
    with open_video(path, 1 / step) as video:
        for number, image in enumerate(images):
            video.write(image, number * step, step)
