"""Writing of videos: times, sound that stays in step, odd sizes, nothing left of a failure."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.media_tools import colour_number, loudness, picture, write_film
from util.errors import UserError
from util.media_frames import WHOLE, Excerpt
from util.media_reader import open_media
from util.media_sound import open_sound
from util.media_writer import open_video


def copy(source: Path, target: Path, excerpt: Excerpt = WHOLE) -> Path:
    """Write an excerpt of a video again, with its sound, beginning at 0."""
    media = open_media(source, excerpt)
    frames = list(media.frames())
    begin = frames[0].time if excerpt.start else Fraction(0)
    end = frames[-1].time + frames[-1].duration - begin if excerpt.end is not None else None
    with (
        open_sound(source, begin, end, cut=bool(excerpt.start)) as sound,
        open_video(target, media.rate, media.time_base, sound) as video,
    ):
        for frame in frames:
            video.write(frame.image, frame.time - begin, frame.duration)
    return target


def test_times_are_those_of_the_source(tmp_path: Path):
    times = [0, 3600, 9000, 9900, 20000, 45000]
    path = copy(write_film(tmp_path / "a.mp4", times=times), tmp_path / "b.mp4")
    frames = list(open_media(path).frames())
    assert [frame.time * 90000 for frame in frames] == times
    assert [colour_number(frame.image) for frame in frames] == [0, 1, 2, 3, 4, 5]


SOUNDS = {
    "AAC is copied": ("a.mp4", "aac", "aac"),
    "Opus is copied": ("a.mkv", "libopus", "opus"),
    "MP3 is copied": ("a.mkv", "libmp3lame", "mp3"),
    "FLAC is copied": ("a.mkv", "flac", "flac"),
    "PCM becomes AAC": ("a.mov", "pcm_s16le", "aac"),
    "AAC of MPEG-TS is coded again": ("a.ts", "aac", "aac"),
}


@pytest.mark.parametrize("kind", SOUNDS)
@pytest.mark.parametrize("cut", [False, True])
def test_sound_stays_in_step(tmp_path: Path, kind: str, cut: bool):
    """The film's tone begins after half a second: it must do so in the copy, and at 0.2 s where 0.3 s are cut off."""
    name, codec, written = SOUNDS[kind]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    source = write_film(tmp_path / name, frames=20, sound=codec)
    excerpt = Excerpt(Fraction("0.3"), Fraction("1.3")) if cut else WHOLE
    path = copy(source, tmp_path / "b.mp4", excerpt)
    levels, found = loudness(path)
    assert found == written
    begin, length = (0.2, 1.0) if cut else (0.5, 2.0)
    assert abs(int((levels > 0.1).argmax()) / 10 - begin) <= 0.1001
    assert (levels[round(begin * 10) + 1 : round(length * 10) - 1] > 0.1).all()
    with av.open(str(path)) as container:
        (video,), (audio,) = container.streams.video, container.streams.audio
        for stream in (video, audio):
            assert float(stream.duration * stream.time_base) == pytest.approx(length, abs=0.06)


def test_a_copied_packet_is_the_same(tmp_path: Path):
    source = write_film(tmp_path / "a.mp4", frames=10, sound="aac")
    target = copy(source, tmp_path / "b.mp4")
    packets = []
    for path in (source, target):
        with av.open(str(path)) as container:
            packets.append([(p.pts, bytes(p)) for p in container.demux(audio=0) if p.dts is not None])
    assert packets[0] == packets[1]


def test_no_sound(tmp_path: Path):
    with av.open(str(copy(write_film(tmp_path / "a.mp4"), tmp_path / "b.mp4"))) as container:
        assert not container.streams.audio


def test_odd_sizes_grow_by_a_repeated_row(tmp_path: Path):
    with open_video(tmp_path / "a.mp4", Fraction(10)) as video:
        for i in range(3):
            video.write(picture(i, 33, 47), Fraction(i, 10), Fraction(1, 10))
    media = open_media(tmp_path / "a.mp4")
    frames = [frame.image for frame in media.frames()]
    assert media.size == (34, 48) and [colour_number(frame) for frame in frames] == [0, 1, 2]
    assert np.abs(frames[0][-1].astype(int) - frames[0][-2]).max() < 12


def test_a_failure_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), open_video(tmp_path / "a.mp4", Fraction(10)) as video:
        video.write(picture(0), Fraction(0), Fraction(1, 10))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_the_codec_lacks(tmp_path: Path):
    with open_video(tmp_path / "tiny.mp4", Fraction(10)) as video:
        video.write(picture(0, 1, 1), Fraction(0), Fraction(1, 10))
    assert open_media(tmp_path / "tiny.mp4").size == (2, 2)
    with (
        pytest.raises(UserError, match=r"cannot write .*long\.mp4"),
        open_video(tmp_path / "long.mp4", Fraction(10)) as video,
    ):
        video.write(np.zeros((2, 70000, 3), np.uint8), Fraction(0), Fraction(1, 10))
    assert not (tmp_path / "long.mp4").exists()
