"""Reads and writes videos: files that FFmpeg decodes, GIFs, folders of images, single images.

``open_media`` opens any of these. Its frames are upright 8-bit RGB without transparency, with the times at which they
are shown. They are read one by one, so memory does not grow with the video, and they can be read any number of times.
``open_video`` writes an MP4 with given times and the sound of another video (``open_sound``); ``write_video`` writes an
MP4 with a fixed rate.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageOps

from util.errors import UserError
from util.files import BROKEN_IMAGE, MAX_PIXELS, TOO_MANY_PIXELS, atomic_path, open_image, reason_of

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".avif"})
DEFAULT_FPS = Fraction(24)
SEEK_FROM = 2  # seconds; decoding up to an earlier start is as fast as seeking
TICK = Fraction(1, 90000)  # of the MP4s that are written, in seconds

# Formats that FFmpeg reads from text: characters drawn as images, subtitles, and lists of other files to open.
NOT_VIDEO = frozenset({"tty", "hls", "dash", "concat", "lavfi", "srt", "webvtt", "ass"})
DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}  # the size may change within a video
READ_OPTIONS = {"protocol_whitelist": "file", **DECODER_OPTIONS}  # a file cannot make FFmpeg open a network address

# Codecs that MP4 can hold and that players expect there; other sound is encoded as AAC.
COPIED_SOUND = frozenset({"aac", "mp3", "opus", "flac", "alac", "ac3", "eac3"})
SOUND_RATE = 48000  # samples per second of encoded sound

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


WHOLE = Excerpt()


@dataclass
class MediaFrame:
    """One frame.

    Attributes:
        time: seconds since the beginning of the file.
        duration: seconds until the next frame of the excerpt.
        name: the stem of the frame's file in a folder of images; otherwise its number in the excerpt, ``00000``.
        load: converts the image when it is first asked for.
        index: number of frames before it in the file, in order of time.
    """

    time: Fraction
    duration: Fraction
    name: str
    load: Callable[[], np.ndarray]
    index: int

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]``."""
        image = self.load()
        self.load = partial(np.asarray, image)  # lets go of the decoded frame
        return image


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

    def __init__(self, path: Path, excerpt: Excerpt, rate: Fraction, length: Fraction, still: bool = False) -> None:
        """Read the first frame; ``rate`` and ``length`` (seconds; 0: unknown) are those of the whole file."""
        self.path, self.excerpt, self.still = path, excerpt, still
        self.size = (0, 0)
        self.rate = rate / excerpt.stride
        self.count: int | None = None
        self.notes: list[str] = []
        if length:
            frames = round((min(length, excerpt.end or length) - excerpt.start) * rate)
            self.count = max(1, -(-frames // excerpt.stride))
        with closing(self.frames()) as excerpt_frames:
            first = next(excerpt_frames, None)
        if first is None:
            end = max((frame.time + frame.duration for frame in self.all_frames()), default=None)
            if end is None:
                raise UserError(
                    f"{path} has no frame that can be decoded; it is damaged, cut off, not a video, or its frames have "
                    f"{TOO_MANY_PIXELS}"
                )
            start = f"{float(excerpt.start):g}"
            if excerpt.end is not None and excerpt.start < end:
                raise UserError(
                    f"{path} has no frame from {start} s to {float(excerpt.end):g} s; choose a longer part of it"
                )
            raise UserError(
                f"{path} has no frame from {start} s on; it lasts {float(end):.2f} s, so choose an earlier start"
            )
        self.size = first.image.shape[:2]

    @abstractmethod
    def all_frames(self) -> Generator[MediaFrame]:
        """Yield all frames in order of time, beginning with the excerpt or earlier.

        Their durations last until the next frame of the file, and names are empty unless a frame has its own file.
        """

    def frames(self) -> Generator[MediaFrame]:
        """Yield the frames of the excerpt in order of time; at most two are in memory.

        Raises:
            UserError: the file or an image of the folder cannot be read.
        """
        kept: MediaFrame | None = None
        seen, end = 0, Fraction(0)
        for frame in self.all_frames():
            if frame.time < self.excerpt.start:
                continue
            if self.excerpt.end is not None and frame.time >= self.excerpt.end:
                break
            end = frame.time + frame.duration
            if seen % self.excerpt.stride == 0:
                if kept is not None:
                    kept.duration = frame.time - kept.time
                    yield kept
                kept = frame
                kept.name = kept.name or f"{seen // self.excerpt.stride:05d}"
                kept.image  # noqa: B018 - decode it before the file is read on
            seen += 1
        if kept is not None:
            kept.duration = end - kept.time
            yield kept

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
        if not path.is_file():
            wrong = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise UserError(f"{path} {wrong}; give a video, a GIF, an image or a folder of images")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); copy or download the video again")
        return ImageFile(path, excerpt, fps) if path.suffix.lower() in IMAGE_SUFFIXES else VideoFile(path, excerpt)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


class ImageFolder(Media):
    """A folder of frames, one image each, in natural order of their names; see ``open_media``."""

    def __init__(self, path: Path, excerpt: Excerpt, fps: Fraction) -> None:
        self.fps = fps
        content = [entry for entry in sorted(path.iterdir(), key=natural_order) if not entry.name.startswith(".")]
        self.files = [entry for entry in content if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file()]
        if not self.files:
            inner = next((entry.name for entry in content if entry.is_dir()), None)
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            advice = f"give a folder in it, such as {inner}" if inner else f"a folder of frames holds {kinds} files"
            raise UserError(f"{path} is a folder without an image; {advice}")
        stems: dict[str, Path] = {}
        for file in self.files:
            if stems.setdefault(file.stem, file) is not file:
                raise UserError(f"{path} holds both {stems[file.stem].name} and {file.name}; keep one image per frame")
        super().__init__(path, excerpt, fps, len(self.files) / fps)

    def all_frames(self) -> Generator[MediaFrame]:
        for number, file in enumerate(self.files):
            yield MediaFrame(number / self.fps, 1 / self.fps, file.stem, partial(self._load, file), number)

    def _load(self, file: Path) -> np.ndarray:
        with _readable(file), open_image(file) as image:
            pixels = image_pixels(image)
        if self.size not in ((0, 0), pixels.shape[:2]):
            (h, w), (height, width) = pixels.shape[:2], self.size
            raise UserError(
                f"{file} is {w}×{h} and the frames before it {width}×{height}; all frames of a video must have one size"
            )
        return pixels


class ImageFile(Media):
    """A single image as a video of one frame, or an animated PNG, WebP or AVIF; see ``open_media``.

    The rate and the number of frames of an excerpt are estimates by the first frame's duration: Pillow has to decode an
    animation to find the others.
    """

    def __init__(self, path: Path, excerpt: Excerpt, fps: Fraction) -> None:
        self.path, self._step = path, 1 / fps
        with _readable(path), open_image(path) as image:
            animated = image.format in ("PNG", "WEBP", "AVIF")  # phones store a preview as a second image
            self._count = getattr(image, "n_frames", 1) if animated else 1
        with closing(self.all_frames()) as frames:
            step = next(frames).duration
        super().__init__(path, excerpt, 1 / step, self._count * step, self._count == 1)

    def all_frames(self) -> Generator[MediaFrame]:
        time = Fraction(0)
        with _readable(self.path), open_image(self.path) as image:
            for number in range(self._count):
                image.seek(number)
                image.load()
                shown = round(image.info.get("duration") or 0)
                duration = Fraction(shown if shown >= _SHORTEST_MS else _USUAL_MS, 1000)
                duration = self._step if self._count == 1 else duration
                yield MediaFrame(time, duration, "", partial(self._load, image), number)
                time += duration

    def _load(self, image: Image.Image) -> np.ndarray:
        with _readable(self.path):
            return image_pixels(image)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts frame2.png before frame10.png: numbers are compared by value, the rest as text."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)] + [(-1, path.name)]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Report an image that cannot be read in the block as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"cannot read the image {path}: {error}; scale it down") from error
    except BROKEN_IMAGE as error:
        reason = reason_of(path, "it is damaged or a different kind of file")
        raise UserError(f"cannot read the image {path}; {reason}") from error


class VideoFile(Media):
    """A video file in any container and codec that FFmpeg knows; see ``open_media``.

    Damaged parts and a missing end are skipped, and reported in ``notes``.
    """

    def __init__(self, path: Path, excerpt: Excerpt = WHOLE) -> None:
        self.path = path
        self._reformatter = VideoReformatter()
        self._sought: tuple[int, int] | None = None  # the first frame after a seek, and those before it
        with open_container(path) as container:
            stream = video_stream(container, path)
            self._begin = Fraction(container.start_time or 0, av.time_base)
            self._clock = stream.time_base or TICK
            rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
            rate = next((Fraction(rate) for rate in rates if rate and 0 < rate <= 1000), Fraction(25))
            self._step = 1 / rate
            self._expected = stream.frames  # 0 if the header does not say
            container_length = Fraction(container.duration or 0, av.time_base)
            self._length = (stream.duration or 0) * self._clock  # of the images according to the header; 0: unknown
            if not self._length and not container.streams.audio:
                self._length = container_length
        super().__init__(path, excerpt, rate, self._expected * self._step or self._length or container_length)

    def all_frames(self) -> Generator[MediaFrame]:
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

    def _decode(self, seek: Fraction) -> Generator[MediaFrame]:
        """Decode from the last key frame before ``seek`` (seconds; 0: from the first frame) to the end."""
        packets = damaged = decoded = index = 0
        time = Fraction(-1)
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            if seek:
                try:
                    container.seek(int((self._begin + seek) / self._clock), stream=stream)
                except (av.FFmpegError, OSError):
                    return
            for frames in _decoded(_packets(container, stream), _decoder(stream)):
                packets += 1
                damaged += frames is None
                for frame in frames or ():
                    if seek and not decoded:
                        index = self._frames_before(frame)
                    time, duration = self._shown(frame, time)
                    decoded += 1
                    yield MediaFrame(time, duration, "", partial(self._load, frame), index)
                    index += 1
        end = time + self._step
        missing = self._expected - (packets - 1) > 1 if self._expected else False  # the last one flushes the decoder
        early = self._length and self._length - end > max(Fraction(1, 2), 3 * self._step)
        if decoded and not seek and (damaged or missing or early):
            whole = f" of {self._expected}" if self._expected else ""
            self.note(
                f"{self.path} is damaged or cut off: only {decoded}{whole} frames ({float(end):.1f} s) could be read"
            )

    def _frames_before(self, first: av.VideoFrame) -> int:
        """Count the frames before the first one after a seek, without decoding them."""
        end = _stamp(first)
        if self._sought is None or self._sought[0] != end:
            count = 0
            with open_container(self.path) as container:
                stream = video_stream(container, self.path)
                is_vp8 = stream.codec_context.codec.canonical_name == "vp8"
                for packet in _packets(container, stream):
                    if packet is None or (packet.dts or 0) >= end:
                        break
                    hidden = packet.is_discard or (is_vp8 and not memoryview(packet)[0] & 16)  # type: ignore[arg-type]
                    count += _stamp(packet) < end and not hidden
            self._sought = end, count
        return self._sought[1]

    def _shown(self, frame: av.VideoFrame, before: Fraction) -> tuple[Fraction, Fraction]:
        """Return time and duration of a frame; missing and repeated times are replaced by plausible ones."""
        base = frame.time_base or self._clock  # frames that the decoder held back until the end have none
        stamp = frame.pts if frame.pts is not None else frame.dts
        time = before + self._step if stamp is None else stamp * base - self._begin
        if before < 0:
            time = max(time, Fraction(0))
        elif time <= before:
            time = before + min(self._step, TICK)
        return time, frame.duration * base if frame.duration else self._step

    def _load(self, frame: av.VideoFrame) -> np.ndarray:
        image = frame_pixels(frame, self._reformatter)
        if self.size not in ((0, 0), image.shape[:2]):
            height, width = self.size
            self.note(f"frames of {self.path} change their size; all are scaled to the first one's, {width}×{height}")
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return image


def _stamp(piece: Any) -> int:
    """Return when a packet or a frame is shown, or else when it is decoded, in ticks; 0 if neither is known."""
    return next((stamp for stamp in (piece.pts, piece.dts) if stamp is not None), 0)


def read_video_frames(path: Path, indices: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Read the frames of a dataset's video file by index, as stored.

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
            reason = reason_of(path, error.strerror or error)
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
        UserError: FFmpeg cannot read it, or it is a text file.
    """
    try:
        # an absolute path cannot be mistaken for an address
        container = av.open(str(path.resolve()), metadata_errors="replace", options=READ_OPTIONS)
    except (av.FFmpegError, OSError) as error:
        reason = (
            "permission denied"
            if isinstance(error, PermissionError)
            else reason_of(path, "it is not a video, or it is damaged or cut off")
        )
        raise UserError(f"cannot read {path} as a video: {reason}") from error
    if NOT_VIDEO & set(container.format.name.split(",")):
        container.close()
        reason = reason_of(path, f"it is a text file ({container.format.name})")
        raise UserError(f"cannot read {path} as a video: {reason}")
    return container


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the largest video stream of a file, leaving out the cover images of music; its decoder is not open yet.

    Raises:
        UserError: there is none, its codec is unknown, or its frames are larger than ``MAX_PIXELS``.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    known = [stream for stream in streams if stream.codec_context is not None]
    if known:
        largest = max(known, key=_pixels)
        if _pixels(largest) > MAX_PIXELS:
            raise UserError(f"the frames of {path} have {TOO_MANY_PIXELS}; scale the video down")
        largest.codec_context.options = DECODER_OPTIONS
        return largest
    what = "a codec that FFmpeg does not know" if streams else "no images: it has only sound, is damaged or cut off"
    raise UserError(f"{path} has {what}; give a different video")


def _pixels(stream: VideoStream) -> int:
    return (stream.width or 0) * (stream.height or 0)


def _packets(container: InputContainer, stream: Any) -> Generator[av.Packet | None]:
    """Yield the packets of a stream; None at a place where the file breaks off."""
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                return
            yield packet
    except (av.FFmpegError, OSError):
        yield None


def _decoded(packets: Iterable[av.Packet | None], decoder: Any) -> Generator[list[Any] | None]:
    """Yield the frames of each packet, None for a damaged one, and finally those that the decoder held back."""
    for packet in packets:
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
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(library, "r"))
    decoder.options = DECODER_OPTIONS
    return decoder


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
        grey = (np.asarray(image, np.int32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return _on_white(np.array(image.convert("RGBA" if image.has_transparency_data else "RGB")))


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Blend uint8 RGBA ``[H, W, 4]`` with white; RGB is returned as it is."""
    if pixels.shape[-1] == 3:
        return pixels
    blended = np.empty((*pixels.shape[:2], 3), np.uint8)
    for row, source in zip(blended, pixels, strict=True):  # one by one: the products take six times the memory
        colours, alpha = source[:, :3].astype(np.uint16), source[:, 3:].astype(np.uint16)
        row[:] = (colours * alpha + 255 * (255 - alpha) + 127) // 255
    return blended


class Sound:
    """The sound of a video as packets for the MP4 that ``open_video`` writes; made by ``open_sound``."""

    def __init__(
        self, container: InputContainer, stream: AudioStream, start: Fraction, end: Fraction | None, cut: bool
    ) -> None:
        self._source, self._stream = container, stream
        self._clock = stream.time_base or Fraction(1, stream.codec_context.sample_rate)
        begin = Fraction(container.start_time or 0, av.time_base) + start
        self._shift = round(begin / self._clock)  # in ticks of the sound
        self._end, self._cut = end, cut
        self._waiting: av.Packet | None = None
        self._packets: Iterator[av.Packet] = iter(())

    def add_to(self, output: OutputContainer) -> None:
        """Add the sound's stream to a container to which nothing has been written yet."""
        context = self._stream.codec_context
        codec = context.codec.canonical_name
        if codec in COPIED_SOUND and (codec != "aac" or context.extradata_size > 0):  # MPEG-TS has no extradata
            self._packets = self._copy(output.add_stream_from_template(self._stream))
            return
        layout = "mono" if context.layout.nb_channels == 1 else "stereo"
        target = output.add_stream("aac", rate=SOUND_RATE, layout=layout)
        target.codec_context.open(strict=False)
        self._packets = self._encode(target, layout)

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
            piece.pts -= self._shift
            if self._end is not None and piece.pts * self._clock >= self._end:
                return
            if not self._cut or piece.pts + (piece.duration or 0) > 0:
                yield piece

    def _demux(self) -> Iterator[av.Packet]:
        if self._cut:
            with suppress(av.FFmpegError, OSError):  # a container without an index is read from its beginning
                self._source.seek(self._shift, stream=self._stream)
        packets = _packets(self._source, self._stream)
        return (packet for packet in packets if packet is not None and packet.dts is not None)

    def _copy(self, target: AudioStream) -> Iterator[av.Packet]:
        for packet in self._excerpt(self._demux()):
            packet.dts -= self._shift
            packet.stream = target
            yield packet

    def _encode(self, target: AudioStream, layout: str) -> Iterator[av.Packet]:
        size = target.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=SOUND_RATE, frame_size=size)
        decoded = _decoded(self._demux(), self._stream.codec_context)  # a damaged packet leaves a gap
        for frame in self._excerpt(frame for frames in decoded for frame in frames or ()):
            frame.time_base = self._clock
            for piece in resampler.resample(frame):
                yield from target.encode(piece)
        for last in (*resampler.resample(None), None):
            yield from target.encode(last)


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


@dataclass(frozen=True)
class Encoding:
    """How the images of a video are stored.

    Attributes:
        codec: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the pixel format.
        options: of the encoder.
        tick: unit of the times, in seconds.
    """

    codec: str
    pixels: str
    options: Mapping[str, str]
    tick: Fraction = TICK


class VideoWriter:
    """Writes images with their times into an MP4 or MOV; made by ``open_video``."""

    def __init__(
        self, container: OutputContainer, rate: Fraction, sound: Sound | None, encoding: Encoding | None
    ) -> None:
        rate = rate.limit_denominator(1000)
        if encoding is None and "libx264" in av.codecs_available:
            encoding = Encoding("libx264", "yuv420p", {"crf": "18", "preset": "veryfast"})
        elif encoding is None:
            encoding = Encoding("mpeg4", "yuv420p", {"qscale": "3"}, 1 / rate)  # MPEG-4's clock has 16 bits
        stream = container.add_stream(encoding.codec, rate=rate)
        assert isinstance(stream, VideoStream)
        stream.pix_fmt = encoding.pixels
        stream.thread_count = 1  # several videos are written side by side
        stream.options = dict(encoding.options)
        context = stream.codec_context
        context.time_base = self._tick = encoding.tick
        context.flags |= _FRAME_DURATION
        if encoding.pixels.startswith("yuv"):
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
            image: uint8 RGB ``[H, W, 3]``, or RGBA ``[H, W, 4]`` if the encoding has transparency; all images of a
                video have one size. Odd sizes grow by one repeated row or column in 4:2:0, which has only even ones.
            time: when it is shown, in seconds; later than the image before.
            duration: for how long, in seconds.
        """
        pixels = str(self._stream.pix_fmt)
        if pixels == "yuv420p":
            image = np.pad(image, ((0, len(image) % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
        if self._last < 0:
            self._stream.height, self._stream.width = image.shape[:2]
        assert image.shape[:2] == (self._stream.height, self._stream.width), "all images of a video have one size"
        frame = av.VideoFrame.from_ndarray(image, format="rgb24" if image.shape[2] == 3 else "rgba")
        if frame.format.name != pixels:
            frame = self._reformatter.reformat(frame, format=pixels, dst_colorspace=Colorspace.ITU709)
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
def open_video(
    path: Path, rate: Fraction, sound: Sound | None = None, encoding: Encoding | None = None
) -> Iterator[VideoWriter]:
    """Write an MP4 or MOV. The file gets its name when the block succeeds.

    Args:
        path: ends in ``.mp4`` or ``.mov``.
        rate: average frames per second.
        sound: the sound to include, from ``open_sound``.
        encoding: None: what browsers play, H.264, or MPEG-4 Part 2 if this FFmpeg has no libx264.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        # faststart puts the index first, so that a browser can play before it has loaded the whole file
        with (
            atomic_path(path) as temporary,
            av.open(str(temporary), "w", options={"movflags": "faststart"}) as container,
        ):
            writer = VideoWriter(container, rate, sound, encoding)
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
