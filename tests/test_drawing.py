"""Drawing: overlays of one and of several objects, text that wraps, contact sheets, image and MP4 files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from util import drawing, video
from util.drawing import (
    BOX_COLOUR,
    MANY,
    MASK_COLOUR,
    PALETTE,
    ObjectPainter,
    clock,
    contact_sheet,
    draw_overlay,
    legend,
    object_colours,
    object_sheet,
    overlay_size,
    read_picture,
    sentence_labels,
    sheet_tile,
    text_bar,
    write_picture,
)
from util.errors import UserError
from util.lettering import text_width, wrap_text
from util.video import write_video

GREY = 128


def grey(height: int = 300, width: int = 480) -> np.ndarray:
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def square(height: int = 300, width: int = 480) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[100:200, 100:300] = True
    return mask


def decode(path: Path) -> tuple[list[np.ndarray], str, str]:
    """Frames, codec and pixel format of a video file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, stream.codec_context.name, str(stream.codec_context.pix_fmt)


def test_overlay_tints_the_mask_and_shades_the_rest():
    picture = draw_overlay(grey(), square()).astype(int)
    assert picture.shape == (300, 480, 3)
    inside, outside = picture[150, 200], picture[20, 20]
    assert np.sign(inside - GREY).tolist() == np.sign(np.array(MASK_COLOUR) - GREY).tolist()
    assert len(set(outside)) == 1 and outside[0] < GREY
    assert (picture[150, 98:103] == MASK_COLOUR).all(axis=-1).any(), "a contour at the mask's left edge"


def test_overlay_of_an_empty_mask_only_shades():
    picture = draw_overlay(grey(), np.zeros((300, 480), dtype=bool))
    assert len(np.unique(picture)) == 1


def test_overlay_leaves_its_arguments_alone():
    frame, mask = grey(), square()
    draw_overlay(frame, mask, "x", (1, 2, 30, 40), 0.5)
    assert (frame == GREY).all() and mask.sum() == 100 * 200


def test_box_is_drawn_in_pixels_of_the_frame():
    picture = draw_overlay(grey(60, 96), np.zeros((60, 96), dtype=bool), box=(10, 20, 50, 40))
    yellow = (picture == BOX_COLOUR).all(axis=-1)
    ys, xs = np.nonzero(yellow)
    scale = picture.shape[1] / 96
    assert np.abs(np.array([xs.min(), ys.min(), xs.max(), ys.max()]) - scale * np.array([10, 20, 50, 40])).max() <= 2


@pytest.mark.parametrize("box", [(-50, -50, 1000, 1000), (0, 0, 0, 0), (479, 299, 480, 300), (300, 200, 100, 100)])
def test_boxes_at_and_beyond_the_edges(box: tuple[float, float, float, float]):
    picture = draw_overlay(grey(), square(), "a box", box, 0.99)
    assert (picture == BOX_COLOUR).all(axis=-1).any()


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((480, 854), (480, 854)), ((64, 96), (320, 480)), ((2160, 3840), (540, 960)), ((333, 501), (332, 500)),
     ((1, 2000), (2, 960))],
)  # fmt: skip
def test_overlay_size(size: tuple[int, int], drawn: tuple[int, int]):
    assert overlay_size(*size) == drawn
    assert draw_overlay(np.zeros((*size, 3), np.uint8), np.ones(size, bool)).shape == (*drawn, 3)


def test_sentence_goes_below_the_frame():
    plain, captioned = draw_overlay(grey(), square()), draw_overlay(grey(), square(), "the grey square")
    assert (captioned[:300] == plain).all()
    bar = captioned[300:]
    assert len(bar) % 2 == 0 and bar.max() > 200, "an even bar with bright letters"


def test_long_sentences_wrap():
    short, long = text_bar("a dog", 480), text_bar("a dog and a cat " * 20, 480)
    assert short.shape[1] == long.shape[1] == 480
    assert len(long) > 3 * len(short)
    margin = long[:, -4:]
    assert (margin == margin[0, 0]).all(), "no letter runs over the edge"


def test_one_endless_word_wraps_too():
    assert len(text_bar("狗" * 300, 480)) > 3 * len(text_bar("狗", 480))


@pytest.mark.parametrize("text", ["señora «ß» – 世界", "🐕‍🦺", "مرحبا", "tab\tand\nline", "\x07", "\ud800", ""])
def test_any_unicode(text: str):
    bar = text_bar(text, 200)
    assert bar.dtype == np.uint8 and bar.shape[1:] == (200, 3) and len(bar) % 2 == 0


def test_a_bar_narrower_than_a_letter():
    assert text_bar("wide", 8).shape[1] == 8


def test_contact_sheet_places_every_picture(tmp_path: Path):
    red, green = grey(100, 200), grey(150, 200)
    red[:], green[:] = (255, 0, 0), (0, 255, 0)
    contact_sheet([("first", [red, red]), ("second " * 30, [green])], tmp_path / "sheet.png", tile_width=100)
    sheet = read_picture(tmp_path / "sheet.png")
    assert sheet.shape[1] == 6 + 2 * 106
    assert (sheet == (255, 0, 0)).all(axis=-1).sum() == 2 * 50 * 100
    assert (sheet == (0, 255, 0)).all(axis=-1).sum() == 75 * 100


@pytest.mark.parametrize("size", [(64, 96), (63, 95)])
def test_video_is_h264_of_even_size(tmp_path: Path, size: tuple[int, int]):
    levels = [40, 120, 200]
    write_video(tmp_path / "a" / "clip.mp4", (np.full((*size, 3), level, np.uint8) for level in levels), fps=6)
    frames, codec, pixels = decode(tmp_path / "a" / "clip.mp4")
    assert (codec, pixels) == ("h264", "yuv420p")
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 3
    assert [frame.mean() for frame in frames] == pytest.approx(levels, abs=4)


def test_video_without_libx264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video.av, "codecs_available", {"mpeg4"})
    write_video(tmp_path / "clip.mp4", [grey(64, 96)] * 3)
    frames, codec, _ = decode(tmp_path / "clip.mp4")
    assert codec == "mpeg4" and len(frames) == 3


def test_a_failed_video_leaves_nothing(tmp_path: Path):
    with pytest.raises(AssertionError, match="one size"):
        write_video(tmp_path / "clip.mp4", [grey(64, 96), grey(32, 32)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_picture(path.with_suffix(".png"), grey()),
        lambda path: write_video(path.with_suffix(".mp4"), [grey()]),
        lambda path: contact_sheet([("a", [grey()])], path.with_suffix(".png")),
    ],
)
def test_a_folder_that_cannot_be_made(tmp_path: Path, write):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*a part of its folder is a file"):
        write(tmp_path / "file" / "picture")


def test_pictures_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read the image .*missing\.png"):
        read_picture(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"cannot read the image .*text\.png"):
        read_picture(tmp_path / "text.png")


def test_grey_files_are_read_as_rgb(tmp_path: Path):
    Image.fromarray(np.full((4, 6), 9, np.uint8)).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png").tolist() == np.full((4, 6, 3), 9).tolist()


# --- several objects: colours that differ for everyone, labels that stay inside and hide nothing


# Machado, Oliveira, Fernandes (2009): what people without one kind of cones see, in linear RGB
SIGHT = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: tuple[int, int, int], sight: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a colour as somebody sees it."""
    share = np.array(colour) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(sight @ linear, 0, 1) / (0.9505, 1, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_eight_colours_that_everybody_tells_apart(sight: str):
    assert len(PALETTE) >= 8
    points = [lab(colour, np.array(SIGHT[sight])) for colour in PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in combinations(points, 2)) >= 20


def scene(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (240, 320)) -> tuple[np.ndarray, np.ndarray]:
    """A grey frame, and masks that are boxes (x0, y0, x1, y1)."""
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return np.full((*size, 3), 120, np.uint8), masks


def pixels_of(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 25) -> np.ndarray:
    return np.abs(picture.astype(int) - colour).max(axis=-1) <= tolerance


def test_each_object_has_its_colour():
    frame, masks = scene((40, 100, 120, 200), (180, 100, 280, 200))
    picture = ObjectPainter(["", ""], (240, 320)).draw(frame, masks)
    assert (frame == 120).all(), "the frame is not drawn into"
    assert picture[10, 10].tolist() == [98, 98, 98], "a little darker outside"
    for i, (x0, x1) in enumerate([(40, 120), (180, 280)]):
        own = pixels_of(picture, PALETTE[i], 70)
        assert own[100:200, x0 : x0 + 3].all(axis=0).any(), "a line along the edge"
        assert not own[:, : x0 - 3].any() and not own[:, x1 + 3 :].any()
        inside = picture[150, (x0 + x1) // 2].astype(int) - 120
        assert np.sign(inside).tolist() == np.sign(np.array(PALETTE[i]) - 120).tolist() and abs(inside).max() < 50


def test_chosen_colours(tmp_path: Path):
    colours = object_colours(2, ["Orange", "#0a0bFc"])
    assert colours == [(255, 165, 0), (10, 11, 252)]
    assert object_colours(9) == [*PALETTE, PALETTE[0]]
    frame, masks = scene((40, 100, 120, 200), (180, 100, 280, 200))
    tile = sheet_tile(frame, masks, 0.0, colours)
    object_sheet(tmp_path / "sheet.png", "a.mp4", [("a", "score 1.00"), ("b", "score 1.00")], [tile], colours)
    overlay = ObjectPainter(["", ""], (240, 320), colours=colours).draw(frame, masks)
    for picture in (overlay, tile, read_picture(tmp_path / "sheet.png")):
        for i, colour in enumerate(colours):
            assert pixels_of(picture, colour).sum() > 50 and not pixels_of(picture, PALETTE[i]).any()


def test_two_names_of_one_object_show_both_outlines():
    frame, masks = scene((60, 60, 260, 200), (60, 60, 260, 200))
    picture = ObjectPainter(["", ""], (240, 320)).draw(frame, masks)
    for i in range(2):
        assert pixels_of(picture, PALETTE[i], 60).sum() > 400


def test_labels_hide_no_object_where_there_is_room():
    frame, masks = scene((20, 60, 100, 200), (110, 60, 190, 200))
    labels = ["the object on the left", "the other one beside it"]
    bare = ObjectPainter(["", ""], (240, 320)).draw(frame, masks)
    picture = ObjectPainter(labels, (240, 320)).draw(frame, masks)
    changed = (picture != bare).any(axis=-1)
    assert changed.any() and not changed[masks.any(axis=0)].any()
    assert pixels_of(picture, PALETTE[0]).sum() > 1000 and pixels_of(picture, PALETTE[1]).sum() > 1000


@pytest.mark.parametrize("box", [(0, 0, 320, 240), (0, 0, 5, 5), (315, 235, 320, 240), (0, 235, 320, 240)])
@pytest.mark.parametrize("label", ["a dog", "a very long sentence about " * 6, "世界 🐕 مرحبا", "x" * 200])
def test_labels_at_the_edges(box: tuple[int, int, int, int], label: str):
    frame, masks = scene(box)
    painter = ObjectPainter([label], (240, 320))
    picture = painter.draw(frame, masks)
    (chip,) = painter._labels
    assert picture.shape == frame.shape and chip is not None and chip.at is not None
    x, y = chip.at
    assert 0 <= x <= 320 - chip.w and 0 <= y <= 240 - chip.h


@pytest.mark.parametrize("width", [440, 560, 580, 620])
def test_a_label_may_end_with_a_short_line(width: int):
    """Such as "mat" in a line of its own: it does not mean that there is no room."""
    (label,) = ObjectPainter(["the very big red dog that runs over the mat"], (300, width))._labels
    assert label is not None


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (16, 12), (48, 64), (40, 3000)])
def test_small_and_odd_frames(size: tuple[int, int]):
    frame = np.zeros((*size, 3), np.uint8)
    for masks in (np.ones((2, *size), bool), np.zeros((2, *size), bool)):
        assert ObjectPainter(["a dog", "the dog that runs"], size).draw(frame, masks).shape == frame.shape


def test_a_label_follows_calmly():
    painter = ObjectPainter(["a dog"], (240, 320))
    (chip,) = painter._labels
    assert chip is not None
    places = []
    for i in range(20):
        frame, masks = scene((100 + 6 * (i % 2), 100, 160 + 6 * (i % 2), 160))  # trembles by 6 pixels
        painter.draw(frame, masks)
        places.append(chip.at)
    assert np.abs(np.diff(np.array(places)[10:], axis=0)).max() < 2


def test_more_sentences_than_colours_are_numbered():
    assert sentence_labels(["a", "b"]) == ["a", "b"]
    assert sentence_labels(list("abcdefghi"))[8] == "9  i" and object_colours(9)[8] == PALETTE[0]


def test_many_objects_are_drawn_in_linear_time(monkeypatch: pytest.MonkeyPatch):
    """300 names of one object took minutes for a frame: each pair was compared, and outlines shrunk ever further."""
    assert sentence_labels(["a"] * (MANY + 1)) == [str(i) for i in range(1, MANY + 2)]
    work = {"pairs": 0, "shrunk": 0, "places": 0}

    def counted(name: str, function: Callable, owner: Any = drawing) -> None:
        def call(*arguments: Any) -> Any:
            key = {"_is_same": "pairs", "_shrunk": "shrunk", "_below": "places"}[name]
            work[key] += int(arguments[1] > 0) if key == "shrunk" else 1
            return function(*arguments)

        monkeypatch.setattr(owner, name, call)

    counted("_is_same", drawing._is_same)
    counted("_shrunk", drawing._shrunk)
    counted("_below", drawing._Label._below, drawing._Label)
    frame, masks = scene(*[(60, 60, 260, 200)] * 300)
    picture = ObjectPainter(sentence_labels(["a dog"] * 300), (240, 320)).draw(frame, masks)
    assert picture.shape == frame.shape and work["pairs"] == work["shrunk"] == 0 and work["places"] <= 300 * 20
    most = scene(*[(60, 60, 260, 200)] * MANY)
    ObjectPainter([""] * MANY, (240, 320)).draw(*most)
    assert work["pairs"] <= MANY * MANY / 2 and work["shrunk"] == MANY - 1


def test_long_labels_end_with_an_ellipsis():
    lines = wrap_text("one two three four five six", 14, 60, limit=2)
    assert len(lines) == 2 and lines[1].endswith("…")
    assert all(text_width(line, 14) <= 60 for line in lines)
    assert wrap_text("one", 14, 60, limit=2) == ("one",)


def test_a_label_whose_last_line_is_short_is_drawn():
    frame, masks = scene((100, 90, 140, 130))
    label = "the dog behind the white cat"  # "cat" does not fit into the first line
    named, bare = (ObjectPainter([text], (240, 320)).draw(frame, masks) for text in (label, ""))
    assert wrap_text(label, 10, 138)[-1] == "cat" and (named != bare).any()


def test_the_legend_grows_with_its_entries():
    entries = [("the dog", "score 0.90"), ("the cat " * 30, "not found")]
    picture = legend("video.mp4", entries, 400)
    assert picture.shape[1] == 400 and len(picture) > len(legend("video.mp4", entries[:1], 400)) + 60
    assert pixels_of(picture, PALETTE[0]).any() and pixels_of(picture, PALETTE[1]).any()


@pytest.mark.parametrize("size", [(48, 64), (64, 36), (45, 61)])
@pytest.mark.parametrize("frames", [1, 2, 5, 12])
def test_the_contact_sheet(tmp_path: Path, size: tuple[int, int], frames: int):
    image, masks = scene((5, 5, 20, 20), (0, 0, 0, 0), size=size)
    tiles = [sheet_tile(image, masks, float(i)) for i in range(frames)]
    entries = [("a", "score 0.90"), ("b", "score 0.10, not found")]
    object_sheet(tmp_path / "sheet.png", "señora.mp4", entries, tiles)
    picture = read_picture(tmp_path / "sheet.png")
    assert 400 < picture.shape[1] <= 1280 and len(picture) > 100


def test_clock():
    assert [clock(s) for s in (0, 1.26, 59.96, 61, 3661.5)] == ["0:00.0", "0:01.3", "1:00.0", "1:01.0", "1:01:01.5"]
