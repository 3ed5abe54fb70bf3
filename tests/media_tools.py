"""Video files for tests, written by FFmpeg."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

COLOURS = [(200, 40, 40), (40, 180, 60), (50, 60, 210), (220, 200, 40), (240, 240, 240), (20, 20, 20)]
RATE = 10  # frames per second
SOUND_RATE = 48000


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame of one colour, by its number, with a white upper left quarter."""
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = COLOURS[number % len(COLOURS)]
    frame[: height // 4, : width // 4] = 255
    return frame


def colour_number(image: np.ndarray) -> int:
    """Which of ``COLOURS`` the centre of a frame has."""
    height, width = image.shape[:2]
    distances = np.abs(np.array(COLOURS, int) - image[height // 2, width // 2].astype(int)).sum(axis=1)
    assert distances.min() < 30, image[height // 2, width // 2]
    return int(distances.argmin())


def write_film(
    path: Path,
    frames: int = 6,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    sound: str = "",
    matrix: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Write ``picture(0)``, ``picture(1)``, … as a video.

    Args:
        path: whose suffix names the container.
        frames: how many.
        size: (height, width).
        codec: of the pictures.
        pixels: their format.
        times: in 1/90000 s; None: 10 frames per second.
        sound: codec of a tone as long as the video; empty: none.
        matrix: display matrix, nine numbers (a, b, u, c, d, v, x, y, w) with the unit 1.
        options: of the container.
        aspect: width of a pixel divided by its height; None: not written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.thread_count = 1
        stream.options = {"crf": "12", "preset": "veryfast", "g": "5"} if codec == "libx264" else {}
        if codec == "libvpx-vp9":
            stream.options = {"cpu-used": "8", "deadline": "realtime"}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 90000)
        if matrix is not None:
            stream.set_display_matrix([value << (30 if i % 3 == 2 else 16) for i, value in enumerate(matrix)])
        audio = None
        if sound:
            audio = container.add_stream(sound, rate=SOUND_RATE, layout="mono")
            audio.codec_context.open(strict=False)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, RATE) if times is None else Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            seconds = frames / RATE if times is None else times[-1] / 90000
            _write_tone(container, audio, round(seconds * SOUND_RATE))
    return path


def write_frames(
    path: Path, frames: Iterable[av.VideoFrame], codec: str, options: dict[str, str] | None = None, flags: int = 0
) -> Path:
    """Write frames, 10 per second, with their own pixel format, colours and fields, losslessly if the codec can.

    Args:
        options, flags: of the encoder.
    """
    with av.open(str(path), "w") as container:
        stream = None
        for i, frame in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=RATE)
                stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, frame.format.name
                stream.options = options or {}
                context = stream.codec_context
                context.flags |= flags
                context.colorspace, context.color_range = frame.colorspace, frame.color_range
                context.color_trc, context.color_primaries = frame.color_trc, frame.color_primaries
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _write_tone(container: av.container.OutputContainer, audio: av.AudioStream, samples: int) -> None:
    """Silence for the first half second, then a tone."""
    size = audio.codec_context.frame_size or 1024
    resampler = av.AudioResampler(
        format=audio.codec_context.format.name, layout="mono", rate=SOUND_RATE, frame_size=size
    )
    t = np.arange(samples)
    wave = (np.sin(t / 20) * 9000 * (t >= SOUND_RATE // 2)).astype(np.int16)
    for begin in range(0, samples, size):
        piece = av.AudioFrame.from_ndarray(wave[None, begin : begin + size], format="s16", layout="mono")
        piece.sample_rate, piece.pts, piece.time_base = SOUND_RATE, begin, Fraction(1, SOUND_RATE)
        for whole in resampler.resample(piece):
            container.mux(audio.encode(whole))
    for whole in resampler.resample(None):
        container.mux(audio.encode(whole))
    container.mux(audio.encode(None))


def loudness(path: Path) -> tuple[np.ndarray, str]:
    """Loudness of each tenth of a second of the sound of a file, as it is played, and the sound's codec."""
    levels: dict[int, float] = {}
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        for frame in container.decode(stream):
            assert frame.time is not None
            values = frame.to_ndarray().astype(float)
            tenth = int(frame.time * 10 + 1e-6)
            levels[tenth] = max(
                levels.get(tenth, 0.0), float(np.abs(values).max() / (1 if values.max() <= 1.5 else 2**15))
            )
        codec = stream.codec_context.codec.canonical_name
    return np.array([levels.get(i, 0.0) for i in range(max(levels) + 1)]), codec
