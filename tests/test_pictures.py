"""Reading pictures: formats, modes, bit depths, animations, folders of frames, and pictures in memory."""

from __future__ import annotations

import base64
import struct
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile

from tests.media_tools import colour_number, picture, write_film
from util.errors import UserError
from util.files import MAX_PIXELS
from util.video import Excerpt, Media, image_pixels, open_media

HEIC = """
    AAAAGGZ0eXBoZWljAAAAAG1pZjFoZWljAAAB+m1ldGEAAAAAAAAAIWhkbHIAAAAAAAAAAHBpY3QAAAAAAAAAAAAAAAAAAAAADnBpdG0AAAAAAAUA
    AABWaWxvYwAAAABEAAAFAAEAAAABAAACGgAAAB4AAgAAAAEAAAI4AAAAHQADAAAAAQAAAlUAAAAeAAQAAAABAAACcwAAAB4ABQAAAAEAAAKRAAAA
    CAAAAHdpaW5mAAAAAAAFAAAAFWluZmUCAAABAAEAAGh2YzEAAAAAFWluZmUCAAABAAIAAGh2YzEAAAAAFWluZmUCAAABAAMAAGh2YzEAAAAAFWlu
    ZmUCAAABAAQAAGh2YzEAAAAAFWluZmUCAAAAAAUAAGdyaWQAAAAAIGlyZWYAAAAAAAAAFGRpbWcABQAEAAEAAgADAAQAAADSaXBycAAAAKJpcGNv
    AAAAcmh2Y0MBBAgAAAMAn6gAAAMA8AD8/fj4AAAPAyAAAQAXQAEMAf//BAgAAAMAn6gAAAMAAB66AkAhAAEAJkIBAQQIAAADAJ+oAAADAAAeoCCB
    BZbqSTK5oCAAAAMAIAAAAwMhIgABAAdEAcFysCJAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAUaXNwZQAAAAAAAACAAAAAgAAAAChpcG1hAAAAAAAA
    AAUAAQKBAgACAoECAAMCgQIABAKBAgAFAQMAAACHbWRhdAAAABooAa8GOFsG/Lf2w////iKH2X8+4sQ4z6en4AAAABkoAa8GOFsG/Le9////ow7/
    /79d0Q4z6en4AAAAGigBrwY4Wwb8t/jKf/e/1CO//8WixDjPp6fgAAAAGigBrwY4Wwb6t/jkf///2Ro9l9jixDjPp6fgAAABAQCAAIA=
"""  # 128×128 pixels as phones store them: four HEVC tiles of 64×64, each of one colour


UNREAD = "it is damaged or of a kind that is not read; copy it again or save it as JPEG or PNG"


def numbers(media: Media) -> list[int]:
    return [colour_number(frame.image) for frame in media.frames()]


def tiff(path: Path, samples: bytes, bits: int = 8, photometric: int = 1, kind: int = 0) -> Path:
    """Write a grey TIFF of 6×4 pixels with tags that Pillow does not write."""
    tags = {254: kind, 256: 6, 257: 4, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 4, 279: len(samples)}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 254 else 3, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + directory)
    return path


def first_image(path: Path) -> np.ndarray:
    return next(open_media(path).frames()).image


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


def refused(path: Path, message: str) -> None:
    """Assert that nothing is segmented, and that the sentence says what to do."""
    with pytest.raises(UserError) as told:
        open_media(path)
    assert str(told.value) == message


# --- formats, modes and bit depths


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.jpg", "IMG_1.mp4", "IMG_1"])
def test_all_tiles_of_a_heic_are_read_whatever_its_name(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(base64.b64decode(HEIC))
    media = open_media(tmp_path / name)
    assert media.size == (128, 128) and media.still
    image = first_image(tmp_path / name).astype(int)
    corners = [image[y, x] for y in (32, 96) for x in (32, 96)]
    assert np.abs(np.array(corners) - [(200, 40, 40), (40, 180, 60), (50, 60, 210), (220, 200, 40)]).max() <= 2


def test_a_heic_with_a_changed_byte(tmp_path: Path):
    content, path = base64.b64decode(HEIC), tmp_path / "a.heic"
    outcomes = {True: 0, False: 0}
    for place in range(12, len(content), 3):
        path.write_bytes(content[:place] + b"\0" + content[place + 1 :])
        try:
            image = first_image(path)
            assert image.dtype == np.uint8 and image.ndim == 3
            outcomes[True] += 1
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            outcomes[False] += 1
    assert all(outcomes.values()), outcomes


MODES = {
    "1": (255, 255, 255),
    "L": (124, 124, 124),
    "LA": (124, 124, 124),
    "I;16": (200, 200, 200),
    "I;16L": (200, 200, 200),
    "I;16B": (200, 200, 200),
    "I;16N": (200, 200, 200),
    "P": (204, 102, 51),  # of Pillow's palette
    "PA": (204, 102, 51),
    "RGB": (200, 100, 50),
    "RGBA": (200, 100, 50),
    "RGBa": (200, 100, 50),
    "RGBX": (200, 100, 50),
    "CMYK": (200, 100, 50),
    "HSV": (200, 100, 50),
    "YCbCr": (199, 99, 49),
    "F": "the picture holds floating-point values, which are not read; convert it to 8-bit RGB",
    "I": "the picture holds 32-bit values, which are not read; convert it to 8-bit RGB",
    "LAB": "the picture holds LAB values, which are not read; convert it to 8-bit RGB",
    "La": "the picture holds premultiplied values, which are not read; convert it to 8-bit RGB",
}


def test_every_mode_of_pillow_is_listed():
    assert set(MODES) == set(Image.MODES)


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str):
    rgb = Image.new("RGB", (6, 4), (200, 100, 50))
    if mode.startswith("I;16"):
        image = Image.frombytes(mode, (6, 4), np.full(24, 51200, ">u2" if mode.endswith("B") else "<u2").tobytes())
    elif mode in ("1", "LAB"):
        image = Image.new(mode, (6, 4), 1)
    else:
        through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
        image = (rgb.convert(through) if through else rgb).convert(mode)
    expected = MODES[mode]
    if isinstance(expected, str):
        with pytest.raises(UserError) as told:
            image_pixels(image, "the picture")
        assert str(told.value) == expected
    else:
        assert image_pixels(image, "the picture").tolist() == np.full((4, 6, 3), expected).tolist()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tif", "a.avif", "a.jp2", "a.jfif"])
def test_formats(tmp_path: Path, name: str):
    Image.fromarray(picture(2)).save(tmp_path / name, **({"format": "JPEG"} if name == "a.jfif" else {}))
    assert colour_number(first_image(tmp_path / name)) == 2 and open_media(tmp_path / name).still


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits(tmp_path: Path, kind: str, channels: int):
    values = np.full((4, 6, channels), 51200, np.uint16)
    values[..., 3:] = 65535
    cv2.imwrite(str(tmp_path / f"16.{kind}"), values)
    assert first_image(tmp_path / f"16.{kind}").tolist() == np.full((4, 6, 3), 200).tolist()
    path = tmp_path / f"12.{kind}"
    cv2.imwrite(str(path), values >> 4)
    refused(
        path,
        f"{path} would be nearly black: its 16-bit values are all below 4096, as if they had 12 bits or fewer; scale "
        "them to 8 bits",
    )


def test_dark_frames_of_a_folder_with_16_bits(tmp_path: Path):
    for i, value in enumerate((51200, 2048)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((4, 6), value, np.uint16))
    assert [int(frame.image.max()) for frame in open_media(tmp_path).frames()] == [200, 8]


def test_kinds_of_tiff(tmp_path: Path):
    packed = bytes([0xC8, 0x0C, 0x80]) * 12  # two values of 12 bits each, 0xC80
    white_is_0 = np.full(24, 13107, "<u2").tobytes()
    grey = np.full((4, 6, 3), 200).tolist()
    assert first_image(tiff(tmp_path / "12.tif", packed, bits=12)).tolist() == grey
    assert first_image(tiff(tmp_path / "8.tif", bytes([55]) * 24, photometric=0)).tolist() == grey
    assert first_image(tiff(tmp_path / "16.tif", white_is_0, bits=16, photometric=0)).max() == 204
    path = tmp_path / "float.tif"
    Image.fromarray(np.full((4, 6), 0.5, np.float32)).save(path)
    refused(path, f"{path} holds floating-point values, which are not read; convert it to 8-bit RGB")
    cv2.imwrite(str(path), np.full((4, 6, 3), 0.5, np.float32))
    refused(path, f"cannot read the image {path}; {UNREAD}")


def test_several_pages_and_raw_photos_are_refused(tmp_path: Path):
    path = tmp_path / "a.tif"
    Image.fromarray(picture(0)).save(path, save_all=True, append_images=[Image.fromarray(picture(1))])
    advice = (
        " holds several images: pages, an animation, or a raw photo with its preview; save the one to segment as "
        "JPEG or PNG, or all of them as images in a folder"
    )
    refused(path, f"{path}{advice}")
    for name in ("photo.NEF", "photo.dng"):
        refused(tiff(tmp_path / name, bytes(24), kind=1), f"{tmp_path / name}{advice}")
    path = tmp_path / "frames" / "a.webp"
    path.parent.mkdir()
    Image.fromarray(picture(0)).save(path, save_all=True, append_images=[Image.fromarray(picture(1))])
    refused(path.parent, f"{path}{advice}")


def test_a_photo_of_too_many_pixels(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("1", (MAX_PIXELS // 1024, 1025)).save(path)
    refused(path, f"cannot read the image {path}: it has more than 33 million pixels; scale it down")


def test_programs_are_not_run_for_pictures(tmp_path: Path):
    """Pillow draws EPS with Ghostscript, whatever the file's name."""
    path = tmp_path / "a.png"
    Image.fromarray(picture(0)).save(path, "EPS")
    refused(path, f"cannot read the image {path}; {UNREAD}")


# --- animations


@pytest.mark.parametrize("kind", ["png", "webp", "avif"])
@pytest.mark.parametrize(("given", "shown"), [(10, 100), (11, 11), (16, 16), (17, 17), (40, 40)])
def test_frames_last_as_long_as_browsers_show_them(tmp_path: Path, kind: str, given: int, shown: int):
    first, *others = [Image.fromarray(picture(i)) for i in range(4)]
    first.save(tmp_path / f"a.{kind}", save_all=True, append_images=others, duration=given)
    media = open_media(tmp_path / f"a.{kind}")
    assert [frame.duration * 1000 for frame in media.frames()] == 4 * [shown]
    assert media.rate == Fraction(1000, shown) and numbers(media) == [0, 1, 2, 3]


def test_sixty_frames_a_second_are_exact(tmp_path: Path):
    first, *others = [Image.fromarray(picture(i)) for i in range(3)]
    first.save(tmp_path / "a.png", save_all=True, append_images=others, duration=1000 / 60)
    assert [frame.time for frame in open_media(tmp_path / "a.png").frames()] == [0, Fraction(1, 60), Fraction(1, 30)]


def test_the_hidden_default_image_of_an_apng_is_no_frame(tmp_path: Path):
    poster = Image.new("RGBA", (16, 16), (0, 0, 255, 255))
    frames = []
    for colour in ((255, 0, 0, 255), (0, 255, 0, 255)):
        frame = Image.new("RGBA", (16, 16))
        frame.paste(colour, (0, len(frames) * 8, 8, 16))
        frames.append(frame)
    options = {"save_all": True, "default_image": True, "duration": 50, "blend": 1}
    poster.save(tmp_path / "a.png", append_images=frames, **options)
    media = open_media(tmp_path / "a.png")
    first, second = [frame.image for frame in media.frames()]
    assert media.count == 2 and not media.still
    assert first[0].tolist() == 8 * [[255, 0, 0]] + 8 * [[255, 255, 255]], "the poster is not behind the frame"
    assert second[:, 0].tolist() == 8 * [[255, 0, 0]] + 8 * [[0, 255, 0]]
    poster.save(tmp_path / "one.png", append_images=frames[:1], **options)
    media = open_media(tmp_path / "one.png")
    assert media.still and media.count == 1 and first_image(tmp_path / "one.png")[0, 0].tolist() == [255, 0, 0]


def test_a_gif_with_the_name_of_a_picture_is_played(tmp_path: Path):
    first, *others = [Image.fromarray(picture(i)) for i in range(3)]
    first.save(tmp_path / "a.png", "GIF", save_all=True, append_images=others, duration=50)
    assert numbers(open_media(tmp_path / "a.png")) == [0, 1, 2]


# --- folders


def write_frames(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(picture(0)).save(folder / name)


@pytest.mark.parametrize("poster", [True, False])
def test_a_folder_with_a_video(tmp_path: Path, poster: bool):
    write_film(tmp_path / "clip.mp4")
    if poster:
        write_frames(tmp_path, "poster.jpg")
    refused(tmp_path, f"{tmp_path} is a folder with the video clip.mp4; give that file, or a folder of images")


@pytest.mark.parametrize(
    "names",
    [
        ("00000.jpg", "00000.png"),
        ("poster.jpg", "poster.png"),
        ("00000.jpg", "00000_mask.png"),
        ("00000.jpg", "00000_mask1.png"),
        ("00000.jpg", "00000-obj 1-alpha.png"),
        ("frame_7.png", "mask_7.png"),
        ("rgb_0007.left.png", "rgb_0007.right.png"),
    ],
)
def test_two_images_for_one_frame(tmp_path: Path, names: tuple[str, str]):
    write_frames(tmp_path, "00001.jpg", *names)
    one, two = names
    refused(
        tmp_path,
        f"{tmp_path} holds both {one} and {two}; keep one image per frame, and move masks and other images to a "
        "folder of their own",
    )


@pytest.mark.parametrize(
    "names",
    [
        ("img.png", "img_1.png", "img_2.png"),
        ("1_1.png", "1_2.png", "2_1.png"),
        ("shot1_take1.png", "shot1_take2.png", "shot2_take1.png"),
        ("2026-01-02 10.00.00.png", "2026-01-02 10.00.01.png"),
        ("a.png", "b.png", "c.png"),
    ],
)
def test_names_of_one_image_per_frame(tmp_path: Path, names: tuple[str, ...]):
    write_frames(tmp_path, *names)
    assert [frame.name for frame in open_media(tmp_path).frames()] == [Path(name).stem for name in names]


def test_files_of_a_folder_are_compared_before_anything_but_the_first_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_frames(tmp_path, *(f"{i}.png" for i in range(5)))
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(picture(0, 64, 48)).save(tmp_path / "5.jpg", exif=exif)  # 48×64 once it is turned
    loaded: list[str] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (loaded.append(image.filename), load(image))[1])
    assert open_media(tmp_path).count == 6
    assert {Path(name).name for name in loaded} == {"0.png"}
    size = "is 48×64 and the frames before it 64×48; all frames of a video must have one size, so scale it, or move it"
    size += " to another folder"
    Image.fromarray(picture(0)).save(tmp_path / "6.jpg", exif=exif)
    refused(tmp_path, f"{tmp_path / '6.jpg'} {size}")
    Image.fromarray(picture(0, 64, 48)).save(tmp_path / "4.png")
    refused(tmp_path, f"{tmp_path / '4.png'} {size}")
    (tmp_path / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    refused(tmp_path, f"cannot read the image {tmp_path / '2.png'}; {UNREAD}")
    assert open_media(tmp_path, Excerpt(end=Fraction(2)), Fraction(1)).count == 2, "files outside of it do not matter"
    assert {Path(name).name for name in loaded} == {"0.png"}


# --- addresses


@pytest.mark.parametrize("given", ["https://example.com/a.mp4", "rtsp://camera/1", "www.example.com/watch?v=1"])
def test_an_address_is_downloaded_first(given: str):
    for path in (given, Path(given)):
        with pytest.raises(UserError) as told:
            open_media(path)
        assert str(told.value) == f"{given} is a web address; download the video first and give the file"


def test_a_file_in_the_form_of_an_address():
    with pytest.raises(UserError, match=r"^file:/home/a\.mp4 does not exist"):
        open_media("file:///home/a.mp4")


def test_a_file_whose_name_looks_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_frames(tmp_path, "www.png")
    assert open_media("www.png").size == (48, 64)
