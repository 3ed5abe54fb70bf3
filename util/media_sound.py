"""The sound of a video, brought into another file: packets copied where MP4 holds their codec, else encoded as AAC."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer

from util.media_reader import begin_of, open_container

COPIED = frozenset({"aac", "mp3", "opus", "flac", "alac", "ac3", "eac3"})
"""Codecs that MP4 holds and players expect there."""
_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})  # of AAC


class Sound:
    """The sound of a video from ``start`` to ``end``, as packets of a stream of another container.

    Args:
        container: the open video.
        stream: its sound.
        start: where the other file begins, in seconds of this one.
        end: where it ends; None: with this one.
        cut: leave out what is before ``start``.
    """

    def __init__(
        self, container: InputContainer, stream: AudioStream, start: Fraction, end: Fraction | None, cut: bool
    ) -> None:
        self._source, self._stream = container, stream
        self._shift = begin_of(container) + start
        self._end, self._cut = end, cut
        context = stream.codec_context
        codec = context.codec.canonical_name
        self._clock = stream.time_base or Fraction(1, context.sample_rate)
        self.copied = codec in COPIED and (codec != "aac" or context.extradata_size > 0)
        self._waiting: av.Packet | None = None
        self._packets: Iterator[av.Packet] = iter(())

    def add_to(self, output: OutputContainer) -> None:
        """Add the stream to a container that is not begun yet."""
        context = self._stream.codec_context
        if self.copied:
            self._target = output.add_stream_from_template(self._stream)
            self._packets = self._copy()
            return
        rate = context.sample_rate if context.sample_rate in _RATES else 48000
        layout = "mono" if context.layout.nb_channels == 1 else "stereo"
        self._target = output.add_stream("aac", rate=rate, layout=layout)
        self._target.codec_context.open(strict=False)
        self._packets = self._encode(rate, layout)

    def packets(self, until: Fraction | None = None) -> Iterator[av.Packet]:
        """The packets that begin before ``until`` (seconds of the other file), once; None: all that are left."""
        while True:
            packet = self._waiting or next(self._packets, None)
            self._waiting = None
            if packet is None:
                return
            if until is not None and packet.pts is not None and packet.pts * packet.time_base >= until:
                self._waiting = packet
                return
            yield packet

    def _wanted(self, stamp: int, seconds: Fraction) -> bool | None:
        """Whether a piece lies in the excerpt; None: it and all that follow lie behind."""
        time = stamp * self._clock - self._shift
        if self._end is not None and time >= self._end:
            return None
        return not self._cut or time + seconds > 0

    def _demux(self) -> Generator[av.Packet]:
        if self._cut:  # a container without an index is read from its beginning
            with suppress(av.FFmpegError, OSError):
                self._source.seek(int(self._shift / self._clock), stream=self._stream)
        packets = self._source.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError):  # the file breaks off: so does the sound
                return
            if packet is None or packet.size == 0:
                return
            if packet.pts is not None and packet.dts is not None:
                yield packet

    def _copy(self) -> Iterator[av.Packet]:
        for packet in self._demux():
            wanted = self._wanted(packet.pts or 0, (packet.duration or 0) * self._clock)
            if wanted is None:
                return
            if wanted:
                ticks = round(self._shift / self._clock)
                packet.pts, packet.dts = (packet.pts or 0) - ticks, (packet.dts or 0) - ticks
                packet.stream = self._target
                yield packet

    def _encode(self, rate: int, layout: str) -> Iterator[av.Packet]:
        size = self._target.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=size)
        for frame in self._decoded():
            for piece in resampler.resample(frame):
                yield from self._target.encode(piece)
        for piece in resampler.resample(None):
            yield from self._target.encode(piece)
        yield from self._target.encode(None)

    def _decoded(self) -> Iterator[av.AudioFrame]:
        """The sound of the excerpt, with times of the other file."""
        for packet in self._demux():
            try:
                frames = self._stream.codec_context.decode(packet)
            except (av.FFmpegError, OSError):  # a damaged piece is a gap
                continue
            for frame in frames:
                if frame.pts is None:
                    continue
                wanted = self._wanted(frame.pts, Fraction(frame.samples, frame.sample_rate))
                if wanted is None:
                    return
                if wanted:
                    frame.pts, frame.time_base = frame.pts - round(self._shift / self._clock), self._clock
                    yield frame


@contextmanager
def open_sound(path: Path, start: Fraction, end: Fraction | None = None, cut: bool = False) -> Iterator[Sound | None]:
    """The sound of a video for as long as the block lasts; None where it has none, or in an unknown codec.

    Args:
        path: the video.
        start: where the other file begins, in seconds of this one.
        end: where it ends; None: with this one.
        cut: leave out what is before ``start``.

    Raises:
        UserError: it is no file that FFmpeg reads.
    """
    with open_container(path) as container:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        yield Sound(container, streams[0], start, end, cut) if streams else None
