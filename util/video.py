"""Reads and writes videos: files that FFmpeg decodes, GIFs, folders of images, single images.

``open_media`` opens any of these. Its frames are upright 8-bit RGB without transparency, with the times at which they
are shown. They are read one by one, so memory does not grow with the video, and they can be read any number of times.
``create_video`` writes an MP4 with given times and the sound of another video (``open_sound``); ``write_video`` writes
an MP4 with a fixed rate.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pi_heif
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from PIL import ExifTags, Image, ImageOps

from util.errors import UserError
from util.files import BROKEN_IMAGE, MAX_PIXELS, TOO_MANY_PIXELS, atomic_path, open_image, reason_of

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".jp2"}
    | {".avif", ".heic", ".heif", ".hif"}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"}
    | {".3gp", ".ogv", ".gif"}
)
# Pillow's names of the formats that are read; for some others it runs programs.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF", "JPEG2000")
ANIMATED_FORMATS = ("PNG", "WEBP", "AVIF")
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

# A clock jumps where it goes back, and where it goes ahead by more than LONGEST_GAP past the end that the file
# announces. In formats whose clock may restart (MPEG-TS, …) every such gap is a jump, as for FFmpeg's own program.
# Elsewhere, it is a variable frame rate: recordings of a screen show one image for minutes.
BACK, LONGEST_GAP = 0.25, 10  # seconds; decoders swap a few frames of damaged files
UNKNOWN_END = 6 * 3600  # seconds; MP4 holds no gap of more than 6.6 hours
SCANNED_BYTES, SCANNED_PACKETS = 2**30, 10**6  # the packets of larger files are not counted beforehand


_UNSPECIFIED, _BT709, _BT2020, _LIMITED = 2, 1, 9, 1  # FFmpeg's codes of colours and of the limited range
_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020
_BT2020_TO_BT709 = np.array(  # linear light; rows are R, G, B of BT.2020
    [[1.6605, -0.1246, -0.0182], [-0.5876, 1.1329, -0.1006], [-0.0728, -0.0083, 1.1187]], np.float32
)
_HD_LINES = 720  # players assume BT.709 from this height on if the colour space is unknown
_MAY_RESTART = 1 << 9  # FFmpeg's AVFMT_TS_DISCONT: the clock of the format may restart
_FRAME_DURATION = 1 << 8  # FFmpeg's AV_CODEC_FLAG_FRAME_DURATION: the durations of frames are valid
_INSTANT, _USUAL = Fraction(1, 100), Fraction(1, 10)  # browsers show an animated image's frames of ≤ 10 ms for 100 ms
_PHOTO_STARTS = (b"II*\0", b"MM\0*")  # of TIFF and of most raw photos, of which FFmpeg shows a preview
_HEIF_STARTS = (b"ftypheic", b"ftypheix", b"ftypmif1")  # at byte 4; FFmpeg shows one tile of it

_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+:/|www\.", re.IGNORECASE)
_SUFFIX_OF_STEM = re.compile(r"(?<=[0-9])[^a-z0-9]*(?=[a-z])", re.IGNORECASE)  # where "00000_mask" divides
_CLOCK = re.compile(r"(?:(?:(\d{1,5}):)?(\d{1,7}):)?(\d{1,9}(?:\.\d{0,99})?|\.\d{1,99})")  # seeks have 64 bits

pi_heif.register_heif_opener()


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
        pixel_aspect: width of a pixel divided by its height; 1 if the file does not say.
        rate: average frames per second of the excerpt.
        count: number of frames of the excerpt, as far as it is known before they are decoded; None if it is unknown.
        still: whether it is a single image.
        notes: messages for the user; complete once all frames have been read.
    """

    pixel_aspect = Fraction(1)

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
    address, path = re.sub(r":/+", "://", str(path), count=1), Path(path)  # a path has one slash
    try:
        if _ADDRESS.match(address) and not path.exists():
            raise UserError(f"{address} is a web address; download the video first and give the file")
        if path.is_dir():
            return ImageFolder(path, excerpt, fps)
        if not path.is_file():
            wrong = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise UserError(f"{path} {wrong}; give a video, a GIF, an image or a folder of images")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); copy or download the video again")
        return ImageFile(path, excerpt, fps) if _is_picture(path) else VideoFile(path, excerpt)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _is_picture(path: Path) -> bool:
    """Whether Pillow reads a file, by its name or, where FFmpeg would show a part of it, by its content."""
    with path.open("rb") as file:
        start = file.read(12)
    if start.startswith(b"GIF8"):  # whatever its name, FFmpeg reads all of its frames
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES or start[:4] in _PHOTO_STARTS or start[4:] in _HEIF_STARTS


class ImageFolder(Media):
    """A folder of frames, one image each, in natural order of their names; see ``open_media``.

    The headers of all images of the excerpt are read at once, so that a broken or smaller one is found early.
    """

    def __init__(self, path: Path, excerpt: Excerpt, fps: Fraction) -> None:
        self.path, self.fps = path, fps
        content = [entry for entry in sorted(path.iterdir(), key=natural_order) if not entry.name.startswith(".")]
        self.files = [entry for entry in content if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file()]
        video = next((entry for entry in content if entry.suffix.lower() in VIDEO_SUFFIXES and entry.is_file()), None)
        if video is not None:
            raise UserError(f"{path} is a folder with the video {video.name}; give that file, or a folder of images")
        if not self.files:
            inner = next((entry.name for entry in content if entry.is_dir()), None)
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            advice = f"give a folder in it, such as {inner}" if inner else f"a folder of frames holds {kinds} files"
            raise UserError(f"{path} is a folder without an image; {advice}")
        self._require_one_per_frame()
        super().__init__(path, excerpt, fps, len(self.files) / fps)
        for number, file in enumerate(self.files):
            if excerpt.start <= number / fps < (excerpt.end or len(self.files) / fps):
                with _opened(file) as image:
                    require_single(file, image)
                    self._require_size(file, _upright_size(image))

    def all_frames(self) -> Generator[MediaFrame]:
        for number, file in enumerate(self.files):
            yield MediaFrame(number / self.fps, 1 / self.fps, file.stem, partial(self._load, file), number)

    def _require_one_per_frame(self) -> None:
        """Raise ``UserError`` if two names have the same numbers, or one extends another, as ``00000_mask1`` does."""
        stems = {file.stem: file for file in self.files}
        numbered: dict[object, Path] = {}
        for file in self.files:
            other = numbered.setdefault(tuple(re.findall(r"[0-9]+", file.stem)) or file.stem, file)
            starts = (file.stem[: match.start()] for match in _SUFFIX_OF_STEM.finditer(file.stem))
            other = next((stems[start] for start in starts if start in stems), other)
            if other is not file:
                raise UserError(
                    f"{self.path} holds both {other.name} and {file.name}; keep one image per frame, and move "
                    "masks and other images to a folder of their own"
                )

    def _require_size(self, file: Path, size: tuple[int, ...]) -> None:
        if self.size not in ((0, 0), size):
            (h, w), (height, width) = size, self.size
            raise UserError(
                f"{file} is {w}×{h} and the frames before it {width}×{height}; all frames of a video must have one size"
                ", so scale it, or move it to another folder"
            )

    def _load(self, file: Path) -> np.ndarray:
        with _opened(file) as image:
            pixels = image_pixels(image, file, first=self.size == (0, 0))
        self._require_size(file, pixels.shape[:2])
        return pixels


class ImageFile(Media):
    """A single image as a video of one frame, or an animated PNG, WebP or AVIF; see ``open_media``.

    The rate and the number of frames of an excerpt are estimates by the first frame's duration: Pillow has to decode an
    animation to find the others.
    """

    def __init__(self, path: Path, excerpt: Excerpt, fps: Fraction) -> None:
        self.path, self._step = path, 1 / fps
        with _opened(path) as image:
            self._numbers = range(1)  # phones store a preview as a second image
            if image.format in ANIMATED_FORMATS:  # the default image of an APNG may not belong to its animation
                self._numbers = range(getattr(image, "default_image", False), getattr(image, "n_frames", 1))
            else:
                require_single(path, image)
        count = len(self._numbers)
        with closing(self.all_frames()) as frames:
            step = next(frames).duration
        super().__init__(path, excerpt, 1 / step, count * step, count == 1)

    def all_frames(self) -> Generator[MediaFrame]:
        time = Fraction(0)
        with _opened(self.path) as image:
            if self._numbers.start:  # Pillow would blend the animation with the hidden default image
                image.load()
                image.paste(0, (0, 0, *image.size))
            for number in self._numbers:
                image.seek(number)
                duration = self._step
                if len(self._numbers) > 1:
                    image.load()
                    shown = (image.info.get("duration") or 0) / 1000
                    duration = Fraction(shown).limit_denominator(1 << 16)  # as APNG has them
                    duration = duration if duration > _INSTANT else _USUAL
                yield MediaFrame(time, duration, "", partial(self._load, image), number - self._numbers.start)
                time += duration

    def _load(self, image: Image.Image) -> np.ndarray:
        with _readable(self.path):
            return image_pixels(image, self.path, first=self.size == (0, 0))


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts frame2.png before frame10.png: numbers are compared by value, the rest as text."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)] + [(-1, path.name)]


def require_single(name: object, image: Image.Image) -> None:
    """Raise ``UserError`` if an image has several pages or frames, or is the preview of a raw photo."""
    pages = getattr(image, "n_frames", 1) if image.format in (*ANIMATED_FORMATS, "GIF", "TIFF") else 1
    if pages > 1 or getattr(image, "tag_v2", {}).get(ExifTags.Base.NewSubfileType) == 1:
        raise UserError(
            f"{name} holds several images: pages, an animation, or a raw photo with its preview; save the one to "
            "segment as JPEG or PNG, or all of them as images in a folder"
        )


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) of an image after it is turned by its EXIF flag, according to its header."""
    # Pillow turns TIFF itself, and PNG's own getexif decodes the image to look for a flag behind it.
    flag = 1 if image.format == "TIFF" else Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return (image.width, image.height) if flag in (5, 6, 7, 8) else (image.height, image.width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image by its header; report as a UserError if it cannot be read in the block."""
    with _readable(path), open_image(path, IMAGE_FORMATS) as image:
        yield image


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Report an image that cannot be read in the block as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"cannot read the image {path}: {error}; scale it down") from error
    except (*BROKEN_IMAGE, RuntimeError) as error:  # the latter from libheif
        reason = reason_of(path, "it is damaged or of a kind that is not read; copy it again or save it as JPEG or PNG")
        raise UserError(f"cannot read the image {path}; {reason}") from error


class VideoFile(Media):
    """A video file in any container and codec that FFmpeg knows; see ``open_media``.

    Damaged parts and a missing end are skipped, interlaced frames are deinterlaced, HDR is converted to SDR, and times
    go on where the file's clock jumps. Each is reported in ``notes``.

    Attributes:
        shifts: what was added to the times of the file after each jump of its clock, in seconds; complete once all
            frames have been read.
    """

    def __init__(self, path: Path, excerpt: Excerpt = WHOLE) -> None:
        self.path = path
        self.shifts: list[Fraction] = []
        self._reformatter = VideoReformatter()
        self._sought: tuple[int, int] | None = None  # the first frame after a seek, and those before it
        with open_container(path) as container:
            stream = video_stream(container, path)
            self._clock = stream.time_base or TICK
            rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
            rate = next((Fraction(rate) for rate in rates if rate and 0 < rate <= 1000), Fraction(25))
            self._step = 1 / rate
            aspect = stream.sample_aspect_ratio or Fraction(1)
            self._stored_aspect = aspect if Fraction(1, 10) <= aspect <= 10 else Fraction(1)
            container_length = Fraction(container.duration or 0, av.time_base)
            length = (stream.duration or 0) * self._clock  # of the images according to the header; 0: unknown
            if not length and not container.streams.audio:
                length = container_length
            self._begin = Fraction(container.start_time or 0, av.time_base)
            self._announced = length if _clock_end(container) else 0  # there FFmpeg derives it from the clock
            packets, self._jumps = _scan(container, stream)
            length = (packets or stream.frames) * self._step or length or container_length
        super().__init__(path, excerpt, rate, length)

    def all_frames(self) -> Generator[MediaFrame]:
        start = self.excerpt.start
        if start >= SEEK_FROM and not self._jumps:
            frames = self._decode(start)
            first = next(frames, None)
            if first is not None and first.time <= start:
                yield first
                yield from frames
                return
            frames.close()  # the seek went too far, as happens in containers without an index
        yield from self._decode(Fraction(0))

    def _decode(self, seek: Fraction) -> Generator[MediaFrame]:
        """Decode from the last key frame before ``seek`` (seconds; 0: from the first frame) to the excerpt's end."""
        lost = read = corrupt = index = 0
        before, duration, whole = Fraction(-1), self._step, not seek
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            if seek:
                try:
                    container.seek(int((self._begin + seek) / self._clock), stream=stream)
                except (av.FFmpegError, OSError):
                    return
            clock = _Clock(container, sought=bool(seek))
            batches = self._deinterlaced(_decoded(_packets(container, stream), _decoder(stream)))
            for frame in (frame for batch in batches for frame in ((None,) if batch is None else batch)):
                if frame is None:
                    lost += 1
                    continue
                if seek and before < 0:
                    index = self._frames_before(frame)
                time, shown = self._shown(frame, before, clock)
                if self.excerpt.end is not None and time >= self.excerpt.end:
                    whole = False
                    break
                before, duration = time, shown
                if time >= self.excerpt.start:
                    read += 1
                    corrupt += frame.is_corrupt
                yield MediaFrame(time, duration, "", partial(self._load, frame), index)
                index += 1
        self.shifts = clock.shifts
        end = before + duration
        early = self._announced - end > max(Fraction(1, 2), 3 * self._step)
        if whole and read and (lost or early):
            wrong = "is damaged or cut off" + ("" if lost else ", or its header is wrong")
            seconds = f"{float(end):.1f} of {float(self._announced):.1f} s" if early else f"{float(end):.1f} s"
            self.note(f"{self.path} {wrong}: only {read} frames ({seconds}) could be read")
        if corrupt:
            self.note(f"{self.path} is damaged: {corrupt} of {read} frames show errors")
        if self.shifts:
            times = f"{len(self.shifts)} times" if len(self.shifts) > 1 else "once"
            self.note(
                f"the clock of {self.path} jumps {times}, as in joined files; images and sound go on without a gap"
            )

    def _frames_before(self, first: av.VideoFrame) -> int:
        """Count the frames before the first one after a seek, without decoding them."""
        # the deinterlacer's ticks are finer
        end = round(_stamp(first) * (first.time_base or self._clock) / self._clock)
        if self._sought is None or self._sought[0] != end:
            count = 0
            with open_container(self.path) as container:
                stream = video_stream(container, self.path)
                for packet in _packets(container, stream):
                    if packet is None or (packet.dts or 0) >= end:
                        break
                    count += _stamp(packet) < end and not _is_hidden(packet, stream)
            self._sought = end, count
        return self._sought[1]

    def _deinterlaced(self, decoded: Iterable[list[Any] | None]) -> Generator[list[Any] | None]:
        """Pass frames on; from the first interlaced one on, they are deinterlaced."""
        deinterlacer: _Deinterlacer | None = None
        for frames in decoded:
            if deinterlacer is None and any(frame.interlaced_frame for frame in frames or ()):
                self.note(f"{self.path} is interlaced; its frames are deinterlaced")
                deinterlacer = _Deinterlacer()
            if deinterlacer is not None and frames is not None:
                frames = [ready for frame in frames for ready in deinterlacer(frame)]
            yield frames
        yield deinterlacer(None) if deinterlacer is not None else []

    def _shown(self, frame: av.VideoFrame, before: Fraction, clock: _Clock) -> tuple[Fraction, Fraction]:
        """Return time and duration of a frame; missing and repeated times are replaced by plausible ones."""
        base = frame.time_base or self._clock  # frames that the decoder held back until the end have none
        stamp = frame.pts if frame.pts is not None else frame.dts
        time = before + self._step if stamp is None else clock.continued(stamp * base - self._begin, self._step)
        if before < 0:
            time = max(time, Fraction(0))
        elif time <= before:
            time = before + min(self._step, TICK)
        return time, frame.duration * base if frame.duration else self._step

    def _load(self, frame: av.VideoFrame) -> np.ndarray:
        if is_hdr(frame):
            self.note(f"{self.path} has HDR or BT.2020 colours; they are converted to SDR")
        image = frame_pixels(frame, self._reformatter)
        self.pixel_aspect = 1 / self._stored_aspect if 45 < abs(frame.rotation) < 135 else self._stored_aspect
        if self.size not in ((0, 0), image.shape[:2]):
            height, width = self.size
            self.note(f"frames of {self.path} change their size; all are scaled to the first one's, {width}×{height}")
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return image


def _stamp(piece: Any) -> int:
    """Return when a packet or a frame is shown, or else when it is decoded, in ticks; 0 if neither is known."""
    return next((stamp for stamp in (piece.pts, piece.dts) if stamp is not None), 0)


def _is_hidden(packet: av.Packet, stream: VideoStream) -> bool:
    """Return whether no frame is shown for a packet: an edit list leaves it out, or it is a reference frame of VP8."""
    is_vp8 = stream.codec_context.codec.canonical_name == "vp8"
    return packet.is_discard or (is_vp8 and not memoryview(packet)[0] & 16)  # type: ignore[arg-type]


class _Deinterlacer:
    """FFmpeg's filter bwdif, which leaves progressive frames as they are; set up again where size or format change."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._kind: tuple[str, int, int] | None = None

    def __call__(self, frame: av.VideoFrame | None) -> list[av.VideoFrame]:
        """Take a frame (None: there are no more) and return those that are ready: each becomes one."""
        ready: list[av.VideoFrame] = []
        kind = None if frame is None else (frame.format.name, frame.width, frame.height)
        if kind != self._kind:
            ready = self._pushed(None)
            self._graph, self._kind = None, kind
            if frame is not None:
                graph = Graph()
                source = graph.add_buffer(None, frame.width, frame.height, frame.format, None, frame.time_base or TICK)
                bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
                with suppress(av.FFmpegError):  # fewer than three rows or columns; they are left as they are
                    graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
                    self._graph = graph
        return ready + self._pushed(frame)

    def _pushed(self, frame: av.VideoFrame | None) -> list[av.VideoFrame]:
        if self._graph is None:
            return [] if frame is None else [frame]
        ready: list[av.VideoFrame] = []
        self._graph.push(frame)
        with suppress(BlockingIOError, EOFError):
            while True:
                ready.append(cast(av.VideoFrame, self._graph.pull()))
        return ready


class _Clock:
    """Continues the times of a file where its clock jumps.

    Args:
        container: the file.
        sought: whether the first time may be any.
        known: shifts of the file's images, to which those of its sound belong.
    """

    def __init__(self, container: InputContainer, sought: bool, known: Sequence[Fraction] = ()) -> None:
        self.shifts: list[Fraction] = []
        self.shift = Fraction(0)
        self._end, self._known = _clock_end(container), known
        self._last: Fraction | None = None
        self._sought = sought

    def continued(self, time: Fraction, step: Fraction) -> Fraction:
        """Return a time plus the shift. At a jump, the shift is chosen so that the time is ``step`` after the last."""
        last = self._last
        if last is None:
            last = time if self._sought else min(time, Fraction(0))
        if _jumps(last, time + self.shift, self._end):
            shift = last + step - time
            near = (known for known in self._known if abs(known - shift) < 1)
            self.shift = min(near, key=lambda known: abs(known - shift), default=shift)
            self.shifts.append(self.shift)
        self._last = time + self.shift
        return self._last


def _clock_end(container: InputContainer) -> Fraction | int:
    """Return the time, in seconds, from which on a gap of more than ``LONGEST_GAP`` is a jump of the clock."""
    if container.format.flags & _MAY_RESTART:
        return 0
    return Fraction(container.duration, av.time_base) if container.duration else UNKNOWN_END


def _jumps(last: float | Fraction, time: float | Fraction, end: float | Fraction) -> bool:
    """Return whether the clock of a file jumps between two times (seconds), given its ``_clock_end``."""
    return time - last < -BACK or (time - last > LONGEST_GAP and time > end)


def _scan(container: InputContainer, stream: VideoStream) -> tuple[int, bool]:
    """Return the number of images by a file's packets, 0 if there are too many, and whether its clock jumps."""
    if container.size > SCANNED_BYTES:
        return 0, False
    begin, tick = (container.start_time or 0) / av.time_base, float(stream.time_base or TICK)
    end = float(_clock_end(container))
    count, jumps, last = 0, False, None
    for packet in islice(_packets(container, stream), SCANNED_PACKETS):
        if packet is None or _is_hidden(packet, stream):
            continue
        count += 1
        if packet.dts is not None:
            time = packet.dts * tick - begin
            jumps |= _jumps(min(time, 0.0) if last is None else last, time, end)
            last = time
    return count if count < SCANNED_PACKETS else 0, jumps


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
            else reason_of(path, "it is not a video, or it is damaged or cut off; copy it again")
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
            if packet.size:  # decoders would take an empty one for the end
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
    """Convert a decoded frame to uint8 RGB ``[H, W, 3]`` in SDR, upright, on white where it is transparent.

    Args:
        frame: from the decoder.
        reformatter: one for all frames of a video; creating it takes time and memory.
    """
    hdr, source = is_hdr(frame), None
    if frame.colorspace == _UNSPECIFIED:
        source = Colorspace.BT2020 if hdr else Colorspace.ITU709 if frame.height >= _HD_LINES else None
    transparent = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    layout = ("rgba64le" if transparent else "rgb48le") if hdr else ("rgba" if transparent else "rgb24")
    pixels = reformatter.reformat(frame, format=layout, src_colorspace=source).to_ndarray()
    pixels = _on_white(_in_sdr(pixels, frame) if hdr else pixels)
    # The display matrix gives x' = a·x + c·y and y' = b·x + d·y; phones store frames in the sensor's orientation.
    for item in cast(Any, frame.side_data):  # typed as a mapping of texts in PyAV
        if item.type == Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = np.frombuffer(bytes(item), np.int32).tolist()
            if abs(a) + abs(d) < abs(b) + abs(c):  # a quarter turn
                pixels, a, d = pixels.transpose(1, 0, 2), c, b
            return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
    return pixels


def is_hdr(frame: av.VideoFrame) -> bool:
    """Return whether a frame has the transfer curve PQ or HLG (BT.2100), or the primaries of BT.2020."""
    return frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67) or frame.color_primaries == _BT2020


def _in_sdr(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Convert the uint16 RGB or RGBA pixels ``[H, W, C]`` of an HDR frame to sRGB, as uint8.

    Reference white, 203 cd/m² (BT.2408), becomes 255. Brighter pixels and colours outside of BT.709 are clipped.
    """
    light, encoded = _light(frame.color_trc), _srgb_codes()
    wide = frame.color_primaries in (_BT2020, _UNSPECIFIED)
    converted = np.empty(pixels.shape, np.uint8)
    for row, source in zip(converted, pixels, strict=True):  # one by one: float32 takes four times the memory
        rgb = light[source[:, :3]]
        if frame.color_trc == ColorTrc.ARIB_STD_B67:  # the system gamma of a display of 1000 cd/m²
            rgb *= (rgb @ _LUMA)[:, None] ** 0.2 * np.float32(1000 / 203)
        rgb = rgb @ _BT2020_TO_BT709 if wide else rgb
        row[:, :3] = encoded[(np.clip(rgb, 0, 1) * 65535 + 0.5).astype(np.uint16)]
        row[:, 3:] = source[:, 3:] >> 8
    return converted


@cache
def _light(curve: int) -> np.ndarray:
    """Return the light of each 16-bit code, ``[65536]``: 1 is reference white, for HLG the maximum of the scene.

    ``curve`` is FFmpeg's code; the constants are those of BT.2100. Other curves than PQ and HLG are taken for sRGB.
    """
    code = np.linspace(0, 1, 65536)
    if curve == ColorTrc.SMPTE2084:
        root = code ** (1 / 78.84375)
        ratio = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        light = ratio ** (1 / 0.1593017578125) * (10000 / 203)
    elif curve == ColorTrc.ARIB_STD_B67:
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    else:
        light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@cache
def _srgb_codes() -> np.ndarray:
    """Return the 8-bit sRGB codes of 65536 levels of light from 0 to 1."""
    light = np.linspace(0, 1, 65536)
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * code).astype(np.uint8)


def image_pixels(image: Image.Image, name: object, first: bool = True) -> np.ndarray:
    """Convert a Pillow image to uint8 RGB ``[H, W, 3]``, upright by its EXIF flag, on white where it is transparent.

    Args:
        image: of any mode with 8 bits, 16-bit grey, or 16-bit colour as Pillow reads it.
        name: for error messages.
        first: whether it is the first frame of its video, which must not be nearly black if it has 16 bits.

    Raises:
        UserError: its values are floats, 32-bit, LAB or premultiplied, or appear to be fewer than 16 bits in 16.
    """
    unread = {"F": "floating-point", "I": "32-bit", "LAB": "LAB", "La": "premultiplied"}.get(image.mode)
    if unread is not None:
        raise UserError(f"{name} holds {unread} values, which are not read; convert it to 8-bit RGB")
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    tags = getattr(image, "tag_v2", {})  # of TIFF
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # of which Pillow would clip all values above 255
        values = np.asarray(image)
        if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is 0
            values = ~values
        dark = bits == 16 and 0 < values.max() < 1 << 12
        pixels = np.repeat((values >> (bits - 8)).astype(np.uint8)[..., None], 3, axis=-1)
    else:
        pixels = np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        dark = deep and pixels[..., :3].max() < 1 << 4
    if first and dark:
        raise UserError(
            f"{name} would be nearly black: its 16-bit values are all below 4096, as if they had 12 bits or fewer; "
            "scale them to 8 bits"
        )
    return _on_white(pixels)


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
    """The sound of a video as packets for the MP4 that ``create_video`` writes; made by ``open_sound``."""

    def __init__(
        self,
        container: InputContainer,
        stream: AudioStream,
        start: Fraction,
        end: Fraction | None,
        cut: bool,
        shifts: Sequence[Fraction],
    ) -> None:
        self._source, self._stream, self._shifts = container, stream, shifts
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
        """Yield the packets or frames up to the excerpt's end, with their times in the new file."""
        for piece in pieces:
            if piece.pts is None:
                continue
            piece.pts -= self._shift
            if self._end is not None and piece.pts * self._clock >= self._end:
                return
            yield piece

    def _demux(self) -> Iterator[av.Packet]:
        """Yield the packets in order of time; those that a jump of the clock would put before others are dropped."""
        if seek := self._cut and not self._shifts:
            with suppress(av.FFmpegError, OSError):  # a container without an index is read from its beginning
                self._source.seek(self._shift, stream=self._stream)
        clock = _Clock(self._source, bool(seek), self._shifts)
        begin = Fraction(self._source.start_time or 0, av.time_base)
        last = None
        for packet in _packets(self._source, self._stream):
            if packet is None or packet.dts is None:
                continue
            clock.continued(packet.dts * self._clock - begin, (packet.duration or 0) * self._clock)
            shift = round(clock.shift / self._clock)
            packet.dts += shift
            packet.pts = None if packet.pts is None else packet.pts + shift
            if last is None or packet.dts > last:
                last = packet.dts
                yield packet

    def _copy(self, target: AudioStream) -> Iterator[av.Packet]:
        for packet in self._excerpt(self._demux()):
            if not self._cut or packet.pts + (packet.duration or 0) > 0:
                packet.dts -= self._shift
                packet.stream = target
                yield packet

    def _encode(self, target: AudioStream, layout: str) -> Iterator[av.Packet]:
        size = target.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=SOUND_RATE, frame_size=size)
        decoded = _decoded(self._demux(), self._stream.codec_context)  # a damaged packet leaves a gap
        for frame in chain(self._excerpt(frame for frames in decoded for frame in frames or ()), (None,)):
            if frame is not None:
                frame.time_base = self._clock
            for piece in resampler.resample(frame):  # shorter than frames, which may last a second
                time = piece.time or 0.0
                late = self._end is not None and time >= self._end
                if not late and (not self._cut or time + piece.samples / SOUND_RATE > 0):
                    yield from target.encode(piece)
        yield from target.encode(None)


@contextmanager
def open_sound(
    path: Path, start: Fraction, end: Fraction | None = None, cut: bool = False, shifts: Sequence[Fraction] = ()
) -> Iterator[Sound | None]:
    """Open the default sound of a video for the block; None if it has no sound or an unknown codec.

    Args:
        start: the time in this video at which the new file begins, in seconds.
        end: the length of the new file in seconds; None: it ends with this one.
        cut: leave out the sound before ``start``.
        shifts: those of the images where the file's clock jumps, see ``VideoFile``; they keep the sound in step.

    Raises:
        UserError: FFmpeg cannot read the file.
    """
    with open_container(path) as container:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        streams.sort(key=lambda stream: not stream.disposition & Disposition.default)
        yield Sound(container, streams[0], start, end, cut, shifts) if streams else None


@dataclass(frozen=True)
class Encoding:
    """How the images of a video are stored.

    Attributes:
        codec: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the pixel format.
        options: of the encoder.
        tick: unit of the times, in seconds.
        max_side: limit of height and width in pixels.
    """

    codec: str
    pixels: str
    options: Mapping[str, str]
    tick: Fraction = TICK
    max_side: int = 16384


class VideoWriter:
    """Writes images with their times into an MP4 or MOV; made by ``create_video``."""

    def __init__(
        self,
        container: OutputContainer,
        rate: Fraction,
        sound: Sound | None,
        pixel_aspect: Fraction,
        encoding: Encoding | None,
    ) -> None:
        if encoding is None and "libx264" in av.codecs_available:
            encoding = Encoding("libx264", "yuv420p", {"crf": "18", "preset": "veryfast"})
        elif encoding is None:
            tick = (1 / rate).limit_denominator((1 << 16) - 1)  # its clock has 16 bits
            encoding = Encoding("mpeg4", "yuv420p", {"qscale": "3"}, tick, 8190)
        stream = container.add_stream(encoding.codec, rate=rate.limit_denominator(1000))
        assert isinstance(stream, VideoStream)
        stream.pix_fmt = encoding.pixels
        stream.thread_count = 1  # several videos are written side by side
        stream.options = dict(encoding.options)
        context = stream.codec_context
        context.time_base = self._tick = encoding.tick
        context.flags |= _FRAME_DURATION
        context.sample_aspect_ratio = pixel_aspect.limit_denominator(1000)
        if encoding.pixels.startswith("yuv"):
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
        self._container, self._stream, self._sound, self._encoding = container, stream, sound, encoding
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

        Raises:
            UserError: the size cannot be encoded.
        """
        if max(image.shape[:2]) > self._encoding.max_side:
            raise UserError(
                f"frames of {image.shape[1]}×{image.shape[0]} cannot be written as a video, whose sides have at most "
                f"{self._encoding.max_side} pixels; scale them down"
            )
        pixels = self._encoding.pixels
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
def create_video(
    path: Path,
    rate: Fraction,
    sound: Sound | None = None,
    pixel_aspect: Fraction = Fraction(1),
    encoding: Encoding | None = None,
) -> Iterator[VideoWriter]:
    """Write an MP4 or MOV. The file gets its name when the block succeeds.

    Args:
        path: ends in ``.mp4`` or ``.mov``.
        rate: average frames per second.
        sound: the sound to include, from ``open_sound``.
        pixel_aspect: width of a pixel divided by its height.
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
            writer = VideoWriter(container, rate, sound, pixel_aspect, encoding)
            yield writer
            writer.finish()
    except av.FFmpegError as error:  # for example a size that H.264 does not support
        raise UserError(f"cannot write {path} as a video: {error.strerror or error}") from error


def write_video(path: Path, images: Iterable[np.ndarray], fps: float = 6) -> None:
    """Write images as an MP4 with a fixed rate; see ``create_video``.

    Args:
        path: ends in ``.mp4``.
        images: at least one, uint8 RGB ``[H, W, 3]``, all of one size; taken one at a time.
        fps: frames per second.

    Raises:
        UserError: the file cannot be written.
    """
    step = 1 / Fraction(fps).limit_denominator(1000)
    with create_video(path, 1 / step) as video:
        for number, image in enumerate(images):
            video.write(image, number * step, step)
