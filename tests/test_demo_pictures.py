"""Several objects in a picture: colours that differ for everyone, labels that stay inside and hide nothing."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from util.demo_results import SentenceRecord
from util.demo_sheet import Sheet, _clock
from util.lettering import letters, wrap_text
from util.media_frames import MediaFrame
from util.object_overlays import PALETTE, ObjectPainter, colour_of, legend, numbered
from util.visualisation import read_picture

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
        own = pixels_of(picture, colour_of(i), 70)
        assert own[100:200, x0 : x0 + 3].all(axis=0).any(), "a line along the edge"
        assert not own[:, : x0 - 3].any() and not own[:, x1 + 3 :].any()
        inside = picture[150, (x0 + x1) // 2].astype(int) - 120
        assert np.sign(inside).tolist() == np.sign(np.array(colour_of(i)) - 120).tolist() and abs(inside).max() < 50


def test_two_names_of_one_object_show_both_outlines():
    frame, masks = scene((60, 60, 260, 200), (60, 60, 260, 200))
    picture = ObjectPainter(["", ""], (240, 320)).draw(frame, masks)
    for i in range(2):
        assert pixels_of(picture, colour_of(i), 60).sum() > 400


def test_labels_hide_no_object_where_there_is_room():
    frame, masks = scene((20, 60, 100, 200), (110, 60, 190, 200))
    labels = ["the object on the left", "the other one beside it"]
    bare = ObjectPainter(["", ""], (240, 320)).draw(frame, masks)
    picture = ObjectPainter(labels, (240, 320)).draw(frame, masks)
    changed = (picture != bare).any(axis=-1)
    assert changed.any() and not changed[masks.any(axis=0)].any()
    assert pixels_of(picture, colour_of(0)).sum() > 1000 and pixels_of(picture, colour_of(1)).sum() > 1000


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
    assert numbered(["a", "b"]) == ["a", "b"]
    assert numbered(list("abcdefghi"))[8] == "9  i" and colour_of(8) == colour_of(0)


def test_long_labels_end_with_an_ellipsis():
    lines = wrap_text("one two three four five six", letters(14), 60, limit=2)
    assert len(lines) == 2 and lines[1].endswith("…")
    assert all(letters(14).getlength(line) <= 60 for line in lines)
    assert wrap_text("one", letters(14), 60, limit=2) == ["one"]


def test_the_legend_grows_with_its_entries():
    entries = [("the dog", "score 0.90"), ("the cat " * 30, "not found")]
    picture = legend("video.mp4", entries, 400)
    assert picture.shape[1] == 400 and len(picture) > len(legend("video.mp4", entries[:1], 400)) + 60
    assert pixels_of(picture, colour_of(0)).any() and pixels_of(picture, colour_of(1)).any()


@pytest.mark.parametrize("size", [(48, 64), (64, 36), (45, 61)])
@pytest.mark.parametrize("frames", [1, 2, 5, 40])
def test_the_contact_sheet(tmp_path: Path, size: tuple[int, int], frames: int):
    sheet = Sheet([SentenceRecord(1, "a", "1_a", 0.9), SentenceRecord(2, "b", "2_b", 0.1, False)], size, frames)
    for i in range(frames):
        image, masks = scene((5, 5, 20, 20), (0, 0, 0, 0), size=size)
        from_start = MediaFrame(image, i, 1, f"{i}")  # type: ignore[arg-type]
        sheet.add(i, from_start, masks)
    sheet.write(tmp_path / "sheet.png", "señora.mp4")
    picture = read_picture(tmp_path / "sheet.png")
    assert len(sheet.tiles) == min(12, frames)
    assert 400 < picture.shape[1] <= 1280 and len(picture) > 100


def test_clock():
    assert [_clock(s) for s in (0, 1.26, 59.96, 61, 3661.5)] == ["0:00.0", "0:01.3", "1:00.0", "1:01.0", "1:01:01.5"]
