"""Reading videos (containers, codecs, times, rotation, transparency, excerpts) and writing them with their sound."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from tests.media_tools import COLOURS, colour_number, loudness, picture, write_film
from util.errors import UserError
from util.video import WHOLE, Excerpt, Media, open_media, open_sound, open_video, parse_time

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


def test_pictures(tmp_path: Path):
    half = np.zeros((5, 7, 4), np.uint8)
    half[..., 3] = 128
    Image.fromarray(half).save(tmp_path / "half.png")
    Image.fromarray(np.full((5, 7), 51200, np.uint16)).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned clockwise
    Image.fromarray(picture(0)).save(tmp_path / "phone.jpg", exif=exif)
    images = {path.stem: next(open_media(path).frames()).image for path in tmp_path.iterdir()}
    assert images["half"].tolist() == np.full((5, 7, 3), 127).tolist()
    assert images["deep"].tolist() == np.full((5, 7, 3), 200).tolist()
    assert images["phone"].shape == (64, 48, 3) and images["phone"][3, -3].min() > 240
    media = open_media(tmp_path / "phone.jpg")
    assert media.still and media.count == 1 and len(list(media.frames())) == 1


def test_an_animated_png(tmp_path: Path):
    first, *others = [Image.fromarray(picture(i)) for i in range(3)]
    first.save(tmp_path / "a.png", save_all=True, append_images=others, duration=[100, 300, 50])
    media = open_media(tmp_path / "a.png")
    assert numbers(media) == [0, 1, 2] and not media.still and media.count == 3
    assert [float(frame.time) for frame in media.frames()] == [0, 0.1, 0.4]


def test_an_animation_is_opened_without_decoding_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, *others = [Image.fromarray(picture(i)) for i in range(30)]
    first.save(tmp_path / "a.png", save_all=True, append_images=others, duration=50)
    decoded: list[int] = []
    seek = PngImageFile.seek
    monkeypatch.setattr(PngImageFile, "seek", lambda image, number: (decoded.append(number), seek(image, number)))
    media = open_media(tmp_path / "a.png")
    assert (media.count, media.rate) == (30, 20) and max(decoded) <= 1
    assert len(list(media.frames())) == 30


def test_a_folder_in_natural_order(tmp_path: Path):
    for i in (0, 1, 2, 10, 11):
        Image.fromarray(picture(i)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / ".hidden.png").write_text("no frame")
    media = open_media(tmp_path, fps=Fraction(5))
    assert [frame.name for frame in media.frames()] == ["frame0", "frame1", "frame2", "frame10", "frame11"]
    assert [float(frame.time) for frame in media.frames()] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    media = open_media(tmp_path, Excerpt(Fraction(1, 5), stride=2), Fraction(5))
    assert [frame.name for frame in media.frames()] == ["frame1", "frame10"] and media.count == 2


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
    assert len(media.notes) == 1 and f"damaged or cut off: only {len(read)}" in media.notes[0]


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
    for i, size in enumerate([(48, 64), (24, 32)]):
        Image.fromarray(picture(0, *size)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match=r"1\.png is 32×24 and the frames before it 64×48"):
        list(open_media(tmp_path).frames())
    Image.fromarray(picture(0)).save(tmp_path / "1.jpg")
    with pytest.raises(UserError, match=r"holds both 1\.jpg and 1\.png"):
        open_media(tmp_path)


@pytest.mark.parametrize(
    ("text", "seconds"), [("12.5", "12.5"), (".5", "0.5"), ("1:02", "62"), ("1:00:02.25", "3602.25"), ("90", "90")]
)
def test_times(text: str, seconds: str):
    assert parse_time(text, "--start") == Fraction(seconds)


@pytest.mark.parametrize("text", ["", "-1", "1:75", "1:2:3:4", "soon", "1e3", "nan", "1:60:00"])
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
        open_sound(source, begin, end, cut=bool(excerpt.start)) as sound,
        open_video(target, media.rate, sound) as video,
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
