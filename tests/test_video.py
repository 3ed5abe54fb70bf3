"""Reading videos (containers, codecs, times, rotation, transparency, excerpts) and writing them with their sound."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.filter import Graph
from av.stream import Disposition
from av.video.reformatter import Colorspace
from PIL import Image

from tests.media_tools import COLOURS, colour_number, loudness, picture, write_film, write_frames
from util.errors import UserError
from util.video import WHOLE, Excerpt, Media, create_video, open_media, open_sound, parse_time

KINDS = {
    "H.264 in MP4": ("a.mp4", "libx264", "yuv420p", (48, 64)),
    "H.264 in MPEG-TS": ("a.ts", "libx264", "yuv420p", (48, 64)),
    "MPEG-4 in AVI": ("a.avi", "mpeg4", "yuv420p", (48, 64)),
    "VP9 in WebM": ("a.webm", "libvpx-vp9", "yuv420p", (48, 64)),
    "VP9, odd size": ("a.webm", "libvpx-vp9", "yuv420p", (45, 61)),
    "10 bits": ("a.mkv", "ffv1", "yuv420p10le", (48, 64)),
    "MPEG-4": ("a.mov", "mpeg4", "yuv420p", (48, 64)),
}


def numbers(media: Media) -> list[int]:
    return [colour_number(frame.image) for frame in media.frames()]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path: Path, kind: str):
    name, codec, pixels, size = KINDS[kind]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    media = open_media(write_film(tmp_path / name, codec=codec, pixels=pixels, size=size))
    frames = list(media.frames())
    assert media.size == size
    assert [colour_number(frame.image) for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert all(frame.image.shape == (*size, 3) and frame.image.dtype == np.uint8 for frame in frames)
    assert [float(frame.time) for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5], abs=1e-3)
    assert [frame.name for frame in frames] == [f"{i:05d}" for i in range(6)]
    assert float(media.rate) == pytest.approx(10, rel=0.01) and media.notes == []
    assert numbers(media) == [0, 1, 2, 3, 4, 5], "a second pass gives the same"


def test_grey(tmp_path: Path):
    path = write_film(tmp_path / "a.mkv", codec="ffv1", pixels="gray")
    image = next(open_media(path).frames()).image
    assert image.shape == (48, 64, 3) and np.ptp(image.astype(int), axis=-1).max() <= 1
    assert image[30, 40, 0] == pytest.approx(np.dot(COLOURS[0], (0.299, 0.587, 0.114)), abs=4)


def test_variable_frame_rate_keeps_its_times(tmp_path: Path):
    times = [0, 3600, 9000, 9900, 20000, 45000]
    media = open_media(write_film(tmp_path / "a.mp4", times=times))
    frames = list(media.frames())
    assert [frame.time for frame in frames] == [Fraction(time, 90000) for time in times]
    assert [frame.duration * 90000 for frame in frames][:-1] == [3600, 5400, 900, 10100, 25000]


@pytest.mark.parametrize(
    ("matrix", "white", "size"),
    [
        ((0, 1, 0, -1, 0, 0, 0, 0, 1), (0, -1), (64, 48)),  # a quarter turn clockwise: the corner goes to the right
        ((0, -1, 0, 1, 0, 0, 0, 0, 1), (-1, 0), (64, 48)),
        ((-1, 0, 0, 0, -1, 0, 0, 0, 1), (-1, -1), (48, 64)),
        ((-1, 0, 0, 0, 1, 0, 0, 0, 1), (0, -1), (48, 64)),  # a mirror, as some front cameras film
    ],
)
def test_the_rotation_flag(tmp_path: Path, matrix, white: tuple[int, int], size: tuple[int, int]):
    media = open_media(write_film(tmp_path / "portrait.mov", matrix=matrix))
    image = next(media.frames()).image
    assert media.size == image.shape[:2] == size
    corners = {(y, x): int(image[y * 3, x * 3].min()) for y in (0, -1) for x in (0, -1)}
    assert max(corners, key=lambda corner: corners[corner]) == white


CONTAINERS = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "avi": "mpeg4", "gif": ""}


@pytest.mark.parametrize("container", CONTAINERS)
def test_frames_keep_their_index_in_the_file(tmp_path: Path, container: str):
    path = tmp_path / f"a.{container}"
    if container == "gif":
        first, *others = [Image.fromarray(picture(i)) for i in range(50)]
        first.save(path, save_all=True, append_images=others, duration=100)
    else:
        write_film(path, frames=50, codec=CONTAINERS[container])
    check_indices(path)


def check_indices(path: Path) -> None:
    """Read parts of 50 frames at 10 per second, also after a seek; the colour of a frame tells its index."""
    for start, stride in ((0, 1), (1, 3), (Fraction("3.25"), 2)):
        media = open_media(path, Excerpt(Fraction(start), stride=stride))
        for _ in range(2):
            frames = list(media.frames())
            expected = range(-(-start * 10 // 1), 50, stride)
            assert [frame.index for frame in frames] == [*expected]
            assert [colour_number(frame.image) for frame in frames] == [i % len(COLOURS) for i in expected]


def test_frames_that_are_never_shown_have_no_index(tmp_path: Path):
    """Encoders add such frames to VP8 as packets of their own, for others to refer to."""
    if "libvpx" not in av.codecs_available:
        pytest.skip("this FFmpeg has no libvpx")
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=10, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        pictures = [av.VideoFrame.from_ndarray(picture(i), format="rgb24") for i in range(50)]
        for number, packet in enumerate([packet for frame in (*pictures, None) for packet in stream.encode(frame)]):
            content = bytearray(packet)
            container.mux(packet)
            if number % 5 == 3:
                content[0] &= ~16  # the bit show_frame
                hidden = av.Packet(bytes(content))
                hidden.stream, hidden.time_base = stream, Fraction(1, 1000)
                hidden.pts = hidden.dts = 100 * number + 50
                container.mux(hidden)
    check_indices(tmp_path / "a.webm")
    assert open_media(tmp_path / "a.webm").count == 50


def test_a_gif_with_transparency_lies_on_white(tmp_path: Path):
    frames = []
    for i in range(3):
        image = Image.new("RGBA", (33, 21))
        image.paste((255, 0, 0, 255), (5 * i, 5, 5 * i + 8, 15))
        frames.append(image)
    durations = [100, 250, 40]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=durations, disposal=2)
    read = list(open_media(tmp_path / "a.gif").frames())
    assert [frame.duration for frame in read] == [Fraction(d, 1000) for d in durations]
    for i, frame in enumerate(read):
        assert frame.image[0, 0].tolist() == [255, 255, 255]
        assert frame.image[7, 5 * i + 2].tolist() == [255, 0, 0]


def test_a_transparent_webm_lies_on_white(tmp_path: Path):
    if "libvpx-vp9" not in av.codecs_available:
        pytest.skip("this FFmpeg has no libvpx-vp9")
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuva420p"
        stream.options = {"auto-alt-ref": "0", "cpu-used": "8", "deadline": "realtime"}
        stream.metadata["alpha_mode"] = "1"
        for i in range(3):
            rgba = np.zeros((48, 64, 4), np.uint8)
            rgba[:, :32] = (200, 40, 40, 255)
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = list(open_media(tmp_path / "a.webm").frames())
    assert [float(frame.time) for frame in frames] == [0, 0.1, 0.2]
    for frame in frames:
        assert np.abs(frame.image[24, 10].astype(int) - (200, 40, 40)).max() < 20
        assert frame.image[24, 50].min() > 245


def test_excerpts(tmp_path: Path):
    path = write_film(tmp_path / "a.mp4", frames=30)
    every = numbers(open_media(path))
    media = open_media(path, Excerpt(Fraction("0.3"), Fraction("1"), 3))
    frames = list(media.frames())
    assert [frame.time * 10 for frame in frames] == [3, 6, 9]
    assert [frame.duration * 10 for frame in frames] == [3, 3, 1], "the last one ends where the excerpt does"
    assert [colour_number(frame.image) for frame in frames] == every[3:10:3]
    assert media.rate == Fraction(10, 3)
    late = open_media(path, Excerpt(Fraction("2.3")))
    assert [frame.time * 10 for frame in late.frames()] == list(range(23, 30)), "sought, not decoded up to"
    assert numbers(late) == every[23:]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_of_a_video_cut_in_the_middle_the_rest_is_used(tmp_path: Path, name: str):
    path = write_film(tmp_path / name, frames=60, options={"movflags": "faststart"} if name == "a.mp4" else None)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    media = open_media(path)
    read = numbers(media)
    assert 5 < len(read) < 60 and read == [i % 6 for i in range(len(read))]
    assert len(media.notes) == 1 and re.search(rf"damaged or cut off.*: only {len(read)} frames \(", media.notes[0])


def broken(kind: str, folder: Path) -> Path:
    """A file or folder that is no video."""
    path = folder / f"{kind}.mp4"
    if kind == "header alone":
        path.write_bytes(write_film(folder / "whole.mp4").read_bytes()[:1200])
    elif kind == "sound alone":
        path = write_film(folder / "whole.mkv", sound="flac")
        with av.open(str(path)) as source, av.open(str(folder / "sound.mkv"), "w") as target:
            stream = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        path = folder / "sound.mkv"
    elif kind == "subtitles":
        path.write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n")
    elif kind == "letters":
        path = folder / "letters.ans"
        path.write_text("hello\n" * 20)
    elif kind == "playlist":
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "picture":
        path = folder / "picture.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    elif kind != "missing":
        path.write_bytes({"zero bytes": b"", "text": b"hello world\n" * 99, "noise": bytes(range(256)) * 40}[kind])
    return path


BROKEN = {
    "missing": "does not exist",
    "zero bytes": "is empty (0 bytes)",
    "text": "cannot read",
    "noise": "cannot read",
    "header alone": "cut off",
    "sound alone": "has no images: it has only sound",
    "subtitles": "video",
    "letters": "cannot read",
    "playlist": "cannot read",
    "empty folder": "a folder without an image",
    "picture": "cannot read the image",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_video_is_told_in_one_sentence(tmp_path: Path, kind: str):
    path = broken(kind, tmp_path)
    with pytest.raises(UserError) as told:
        list(open_media(path).frames())
    message = str(told.value)
    assert BROKEN[kind] in message and str(path) in message and "\n" not in message


def test_mistakes_with_good_files(tmp_path: Path):
    path = write_film(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"no frame from 9 s on; it lasts 0\.60 s, so choose an earlier start"):
        open_media(path, Excerpt(Fraction(9)))
    with pytest.raises(UserError, match=r"no frame from 0\.51 s to 0\.52 s; choose a longer part"):
        open_media(path, Excerpt(Fraction("0.51"), Fraction("0.52")))
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match=r"pipe\.mp4 is neither a file nor a folder; give a video"):
        open_media(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match=r"--end \(1 s\) must be after --start \(2 s\)"):
        Excerpt(Fraction(2), Fraction(1))


@pytest.mark.parametrize(
    ("text", "seconds"), [("12.5", "12.5"), (".5", "0.5"), ("1:02", "62"), ("1:00:02.25", "3602.25"), ("90", "90")]
)
def test_times(text: str, seconds: str):
    assert parse_time(text, "--start") == Fraction(seconds)


@pytest.mark.parametrize("text", ["", "-1", "1:75", "1:2:3:4", "soon", "1e3", "nan", "1:60:00", "1" * 10, "1" * 5000])
def test_no_times(text: str):
    with pytest.raises(UserError, match=r"--start must be a time in seconds or as hh:mm:ss"):
        parse_time(text, "--start")


# --- writing


def copy(source: Path, target: Path, excerpt: Excerpt = WHOLE) -> Path:
    """Write an excerpt of a video again, with its sound, beginning at 0."""
    media = open_media(source, excerpt)
    frames = list(media.frames())
    begin = frames[0].time if excerpt.start else Fraction(0)
    end = frames[-1].time + frames[-1].duration - begin if excerpt.end is not None else None
    with (
        open_sound(source, begin, end, bool(excerpt.start), getattr(media, "shifts", ())) as sound,
        create_video(target, media.rate, sound, media.pixel_aspect) as video,
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
    "WavPack, in blocks of one second, becomes AAC": ("a.mkv", "wavpack", "aac"),
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


@pytest.mark.parametrize("rate", [Fraction(240000, 1001), Fraction(24), Fraction(1, 3000)])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_rates_of_slow_motion_and_of_slide_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: Fraction, codec: str
):
    monkeypatch.setattr(av, "codecs_available", {codec})
    with create_video(tmp_path / "a.mp4", rate) as video:
        for number in range(3):
            video.write(picture(number), number / rate, 1 / rate)
    frames = list(open_media(tmp_path / "a.mp4").frames())
    assert [float(frame.time) for frame in frames] == pytest.approx([float(i / rate) for i in range(3)], abs=1e-4)


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
    with create_video(tmp_path / "a.mp4", Fraction(10)) as video:
        for i in range(3):
            video.write(picture(i, 33, 47), Fraction(i, 10), Fraction(1, 10))
    media = open_media(tmp_path / "a.mp4")
    frames = [frame.image for frame in media.frames()]
    assert media.size == (34, 48) and [colour_number(frame) for frame in frames] == [0, 1, 2]
    assert np.abs(frames[0][-1].astype(int) - frames[0][-2]).max() < 12


def test_a_failure_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), create_video(tmp_path / "a.mp4", Fraction(10)) as video:
        video.write(picture(0), Fraction(0), Fraction(1, 10))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_the_codec_lacks(tmp_path: Path):
    with create_video(tmp_path / "tiny.mp4", Fraction(10)) as video:
        video.write(picture(0, 1, 1), Fraction(0), Fraction(1, 10))
    assert open_media(tmp_path / "tiny.mp4").size == (2, 2)
    with (
        pytest.raises(
            UserError, match=r"frames of 70000×2 cannot be written as a video, whose sides have at most 16384"
        ),
        create_video(tmp_path / "long.mp4", Fraction(10)) as video,
    ):
        video.write(np.zeros((2, 70000, 3), np.uint8), Fraction(0), Fraction(1, 10))
    assert not (tmp_path / "long.mp4").exists()


# --- clocks, headers, damage, fields and colours that players correct


def test_the_pixel_aspect_ratio_is_carried_over(tmp_path: Path):
    """A DVD's 720×576 is shown as 16:9, and a turned phone video has the inverse ratio."""
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.mpg", "mpeg2video")):
        assert open_media(write_film(tmp_path / name, codec=codec, aspect=Fraction(4, 3))).pixel_aspect == Fraction(
            4, 3
        )
    wide = Fraction(64, 45)
    source = write_film(tmp_path / "dvd.mp4", aspect=wide)
    assert open_media(source).pixel_aspect == wide
    target = copy(source, tmp_path / "b.mp4")
    turned = write_film(tmp_path / "phone.mov", aspect=wide, matrix=(0, 1, 0, -1, 0, 0, 0, 0, 1))
    for path, aspect in ((target, wide), (copy(turned, tmp_path / "c.mp4"), 1 / wide)):
        with av.open(str(path)) as container:
            assert container.streams.video[0].sample_aspect_ratio == aspect
    assert open_media(copy(write_film(tmp_path / "d.mp4"), tmp_path / "e.mp4")).pixel_aspect == 1


JOINED = {
    "MPEG-TS": ("a.ts", "libx264", ""),
    "MPEG-TS, AAC": ("a.ts", "libx264", "aac"),
    "MPEG-PS, MP2": ("a.mpg", "mpeg2video", "mp2"),
    "Matroska, AAC that is copied": ("a.mkv", "libx264", "aac"),
}


@pytest.mark.parametrize("kind", JOINED)
def test_of_joined_files_the_second_goes_on_where_the_first_ends(tmp_path: Path, kind: str):
    name, codec, sound = JOINED[kind]
    source = write_film(tmp_path / name, frames=20, codec=codec, sound=sound)
    source.write_bytes(2 * source.read_bytes())
    media = open_media(source)
    times = [float(frame.time) for frame in media.frames()]
    assert np.diff(times) == pytest.approx([0.1] * 39, abs=1e-3) and times[0] < 0.05
    assert media.count == 40 and media.notes == [
        f"the clock of {source} jumps once, as in joined files; images and sound go on without a gap"
    ]
    for excerpt, frames in ((WHOLE, range(40)), (Excerpt(Fraction("2.45")), range(25, 40))):
        path = copy(source, tmp_path / "b.mp4", excerpt)
        shown = list(open_media(path).frames())
        assert [colour_number(frame.image) for frame in shown] == [i % 20 % 6 for i in frames]
        assert float(shown[-1].time + shown[-1].duration) == pytest.approx(len(frames) / 10, abs=0.05)
    if sound:
        levels, _ = loudness(copy(source, tmp_path / "b.mp4"))
        heard = levels > 0.1
        assert heard[6:19].all() and not heard[21:24].any() and heard[26:39].all() and len(heard) <= 41


def test_a_clock_that_jumps_ahead_or_starts_elsewhere(tmp_path: Path):
    late = write_film(tmp_path / "late.ts", times=[9000 * i + 3600 * 90000 for i in range(6)]).read_bytes()
    early = write_film(tmp_path / "early.ts").read_bytes()
    for data in (early + late, late + early, late + early + late):
        (tmp_path / "a.ts").write_bytes(data)
        media = open_media(tmp_path / "a.ts")
        frames = list(media.frames())
        assert [float(frame.time) for frame in frames] == pytest.approx([i / 10 for i in range(len(frames))], abs=1e-3)
        assert numbers(media) == [0, 1, 2, 3, 4, 5] * (len(frames) // 6) and media.count == len(frames) >= 12
        assert len(media.notes) == 1 and "jumps" in media.notes[0]


def test_an_mp4_whose_last_image_lasts_is_complete(tmp_path: Path):
    with create_video(tmp_path / "a.mp4", Fraction(10)) as video:
        for i in range(30):
            video.write(picture(i), Fraction(i, 10), Fraction(1, 10) if i < 29 else Fraction(60))
    media = open_media(tmp_path / "a.mp4")
    assert list(media.frames())[-1].duration == 60 and media.notes == []


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_still_image_of_minutes_is_no_jump(tmp_path: Path, name: str):
    times = [0, 9000, 600 * 90000, 600 * 90000 + 9000]
    media = open_media(write_film(tmp_path / name, frames=4, times=times))
    assert [round(frame.time * 90000) for frame in media.frames()] == times and media.notes == []


def test_the_number_of_frames_is_counted_and_not_read_from_the_header(tmp_path: Path):
    path = write_film(tmp_path / "a.avi", frames=54, codec="mpeg4")
    number = (54).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(number, (2555).to_bytes(4, "little"), 2))
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 2555
    media = open_media(path)
    assert media.count == 54 and open_media(path, Excerpt(Fraction(1), Fraction(3), 4)).count == 5
    assert len(list(media.frames())) == 54
    assert media.notes == [
        f"{path} is damaged or cut off, or its header is wrong: only 54 frames (5.4 of 255.5 s) could be read"
    ]


def test_frames_of_a_large_file_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_film(tmp_path / "a.avi", frames=54, codec="mpeg4")
    monkeypatch.setattr("util.video.SCANNED_BYTES", 0)
    number = (54).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(number, (2555).to_bytes(4, "little"), 2))
    assert open_media(path).count == 2555, "that of the header"


def test_an_mp4_that_was_trimmed_without_coding_it_again(tmp_path: Path):
    """Its table lists 60 frames, and its edit list shows the last 37."""
    source = write_film(tmp_path / "a.mp4", frames=60)
    with av.open(str(source)) as whole, av.open(str(tmp_path / "b.mp4"), "w") as trimmed:
        stream = trimmed.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                packet.pts -= (cut := int(Fraction("2.3") / packet.time_base))
                packet.dts -= cut
                trimmed.mux(packet)
    media = open_media(tmp_path / "b.mp4")
    assert media.count == 37 and numbers(media) == numbers(open_media(source))[23:] and media.notes == []


def test_a_packet_without_content_is_not_the_end(tmp_path: Path):
    path = write_film(tmp_path / "a.mov", frames=20, codec="mpeg4")
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)][:20]
    table, stored = struct.pack(">20I", *map(len, packets)), b"".join(packets)
    content, without = path.read_bytes(), b"".join(packets[:10] + packets[11:]) + bytes(len(packets[10]))
    assert table in content and stored in content
    path.write_bytes(content.replace(table, table[:40] + bytes(4) + table[44:]).replace(stored, without))
    media = open_media(path)
    assert len(list(media.frames())) == media.count == 19 and media.notes == []


def test_flipped_bytes_are_reported(tmp_path: Path):
    path = write_film(tmp_path / "a.mp4", frames=54, size=(240, 320))
    data = bytearray(path.read_bytes())
    for position in np.random.default_rng(1).integers(len(data) // 8, len(data) * 7 // 8, 40):
        data[position] ^= 8
    path.write_bytes(data)
    with av.open(str(path)) as container:
        frames = []
        for packet in container.demux(video=0):
            with suppress(av.FFmpegError):
                frames += packet.decode()
    flagged = sum(frame.is_corrupt for frame in frames)
    media = open_media(path)
    assert len(list(media.frames())) == len(frames) and flagged > 5
    assert f"{path} is damaged: {flagged} of {len(frames)} frames show errors" in media.notes
    media = open_media(path, Excerpt(Fraction(3), Fraction(5)))
    assert sum(1 for _ in media.frames()) > 15 and "frames show errors" in media.notes[-1]


def woven(count: int, size: tuple[int, int] = (48, 64)) -> Iterator[av.VideoFrame]:
    """Interlaced frames: a bar moves by 8 pixels from field to field, the upper field first."""
    graph = Graph()
    source = graph.add_buffer(width=size[1], height=size[0], format="yuv420p", time_base=Fraction(1, 10))
    graph.link_nodes(source, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
    for i in range(count):
        image = np.full((*size, 3), 40, np.uint8)
        image[::2, 4 * i : 4 * i + 8] = image[1::2, 4 * i + 2 : 4 * i + 10] = 220
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = i, Fraction(1, 10)
        graph.push(frame)
        yield cast(av.VideoFrame, graph.pull())


INTERLACED = {"a.mp4": ("libx264", {"x264-params": "tff=1", "crf": "8"}, 0), "a.mpg": ("mpeg2video", {"qmax": "2"}, 0)}


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_video_is_deinterlaced(tmp_path: Path, name: str):
    codec, options, flags = INTERLACED[name]
    flags |= 1 << 18 | 1 << 29 if codec == "mpeg2video" else 0  # interlaced DCT and motion estimation
    path = write_frames(tmp_path / name, woven(10), codec, options, flags)
    media = open_media(path)
    frames = list(media.frames())
    assert media.notes == [f"{path} is interlaced; its frames are deinterlaced"]
    assert np.diff([float(frame.time) for frame in frames]) == pytest.approx([0.1] * 9, abs=1e-3)
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == len(stored) == 10
    for i in range(1, 9):
        shown = frames[i].image[..., 1].astype(int)
        combs = [np.abs(np.diff(image, axis=0)).mean() for image in (shown, stored[i])]
        assert combs[0] < 0.3 * combs[1] and combs[1] > 5
        assert shown[20, 4 * i + 4] > 180, "the bar is where the first field shows it"
    assert [frame.time for frame in media.frames()] == [frame.time for frame in frames]


@pytest.mark.parametrize("name", ["a.mp4", "a.mpg"])
def test_interlaced_frames_keep_their_index_after_a_seek(tmp_path: Path, name: str):
    codec, options, _ = INTERLACED[name]
    interlaced = 1 << 18 | 1 << 29 if codec == "mpeg2video" else 0
    path = write_frames(tmp_path / name, woven(40, (48, 320)), codec, {**options, "g": "10"}, interlaced)
    assert [frame.index for frame in open_media(path, Excerpt(Fraction(3))).frames()] == [*range(30, 40)]


def test_interlaced_frames_of_two_rows_are_left_as_they_are(tmp_path: Path):
    path = write_frames(tmp_path / "a.mkv", woven(3, (2, 64)), "ffv1")
    assert [frame.image.shape for frame in open_media(path).frames()] == 3 * [(2, 64, 3)]


def test_progressive_frames_of_a_mixed_video_stay_as_they_are(tmp_path: Path):
    still = av.VideoFrame.from_ndarray(picture(0), format="rgb24").reformat(format="yuv420p")
    path = write_frames(tmp_path / "a.mkv", [still, *woven(3), still], "ffv1")
    frames = list(open_media(path).frames())
    assert len(frames) == 5 and np.array_equal(frames[0].image, frames[-1].image)


PQ, HLG = 16, 18  # FFmpeg's codes


def encoded(image: np.ndarray, curve: int) -> np.ndarray:
    """An SDR image (sRGB) as HDR video shows it: BT.2020, white at 203 cd/m², as uint16."""
    code = image / 255
    light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    light = 203 * light @ np.array([[0.6274, 0.0691, 0.0164], [0.3293, 0.9195, 0.0880], [0.0433, 0.0114, 0.8956]])
    if curve == PQ:
        power = (light / 10000) ** 0.1593017578125
        code = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        display = light / 1000
        luma = np.maximum(display @ (0.2627, 0.6780, 0.0593), 1e-9)[..., None]
        scene = display * luma ** (1 / 1.2 - 1)
        logarithm = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        code = np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithm)
    return np.round(code.clip(0, 1) * 65535).astype(np.uint16)


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv420p", "yuva444p10le"])
def test_hdr_is_read_as_the_sdr_it_shows(tmp_path: Path, pixels: str):
    """The same picture in PQ and HLG; 8 bits hold PQ's curve coarsely: near white, a step is 9 grey levels."""
    image = np.repeat(
        np.repeat(np.array([COLOURS, [(s, s, s) for s in (0, 10, 60, 128, 200, 255)]], np.uint8), 16, 0), 16, 1
    )
    for curve in (PQ, HLG):
        hdr = av.VideoFrame.from_ndarray(encoded(image, curve), format="rgb48le")
        hdr = hdr.reformat(format=pixels, dst_colorspace=Colorspace.BT2020)
        hdr.color_trc, hdr.color_primaries, hdr.colorspace = curve, 9, 9
        media = open_media(write_frames(tmp_path / f"{curve}.mkv", [hdr], "ffv1"))
        read = next(media.frames()).image
        inside = np.s_[4::8, 4::8]  # not at an edge between colours, whose chroma is mixed
        assert np.abs(read[inside].astype(int) - image[inside]).max() <= (12 if pixels == "yuv420p" else 3)
        assert media.notes == [f"{media.path} has HDR or BT.2020 colours; they are converted to SDR"]


def test_lights_above_white_and_colours_outside_of_sdr_are_clipped(tmp_path: Path):
    bright = np.full((16, 32, 3), 65535 * 3 // 4, np.uint16)  # PQ: 983 cd/m²
    bright[:, 16:] = (0, 65535 // 2, 0)  # pure green of BT.2020
    frame = av.VideoFrame.from_ndarray(bright, format="rgb48le").reformat(format="gbrp10le")
    frame.color_trc, frame.color_primaries = PQ, 9
    image = next(open_media(write_frames(tmp_path / "a.mkv", [frame], "ffv1")).frames()).image
    assert image[8, 8].tolist() == [255, 255, 255]
    assert image[8, 24, 1] > 180 and image[8, 24, [0, 2]].max() == 0
    grey = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 128, np.uint8), format="rgb24").reformat(format="yuv444p")
    grey.color_trc, grey.color_primaries = 1, 9  # SDR with the primaries of HDR
    image = next(open_media(write_frames(tmp_path / "b.mkv", [grey], "ffv1")).frames()).image
    assert np.abs(image.astype(int) - 128).max() <= 1


def test_the_default_sound_is_taken(tmp_path: Path):
    """The first track is silent, as a commentary may be; the second one is marked as the default."""
    source = write_film(tmp_path / "a.mkv", frames=20, sound="flac")
    silent = write_film(tmp_path / "b.mkv", frames=4, sound="flac")  # the tone begins later
    with av.open(str(source)) as film, av.open(str(silent)) as other, av.open(str(tmp_path / "two.mkv"), "w") as target:
        streams = [film.streams.video[0], other.streams.audio[0], film.streams.audio[0]]
        copies = [target.add_stream_from_template(stream) for stream in streams]
        copies[1].disposition, copies[2].disposition = Disposition(0), Disposition.default
        for stream, new in zip(streams, copies, strict=True):
            for packet in stream.container.demux(stream):
                if packet.dts is not None:
                    packet.stream = new
                    target.mux(packet)
            stream.container.seek(0)
    levels, _ = loudness(copy(tmp_path / "two.mkv", tmp_path / "c.mp4"))
    assert len(levels) >= 20 and levels.max() > 0.1
