"""Pictures: what is drawn where, sizes, text that wraps, MP4 files that decode, curves."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from util import media_writer
from util.errors import UserError
from util.visualisation import (
    BOX_COLOUR,
    MASK_COLOUR,
    contact_sheet,
    draw_overlay,
    overlay_size,
    plot_curves,
    read_picture,
    text_bar,
    write_picture,
    write_video,
)

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


@pytest.mark.parametrize("text", ["señora «ß» – 世界", "🐕‍🦺", "مرحبا", "tab\tand\nline", "\x07", ""])
def test_any_unicode(text: str):
    bar = text_bar(text, 200)
    assert bar.dtype == np.uint8 and bar.shape[1:] == (200, 3) and len(bar) % 2 == 0


def test_a_bar_narrower_than_a_letter():
    assert text_bar("wide", 8).shape[1] == 8


def test_contact_sheet_places_every_picture(tmp_path: Path):
    red, green = grey(100, 200), grey(150, 200)
    red[:], green[:] = (255, 0, 0), (0, 255, 0)
    contact_sheet([("first", [red, red]), ("second " * 30, [green])], tmp_path / "sheet.png", tile_width=100, gap=4)
    sheet = read_picture(tmp_path / "sheet.png")
    assert sheet.shape[1] == 4 + 2 * 104
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
    monkeypatch.setattr(media_writer.av, "codecs_available", {"mpeg4"})
    write_video(tmp_path / "clip.mp4", [grey(64, 96)] * 3)
    frames, codec, _ = decode(tmp_path / "clip.mp4")
    assert codec == "mpeg4" and len(frames) == 3


def test_a_failed_video_leaves_nothing(tmp_path: Path):
    with pytest.raises(AssertionError, match="one size"):
        write_video(tmp_path / "clip.mp4", [grey(64, 96), grey(32, 32)])
    assert list(tmp_path.iterdir()) == []


def test_curves(tmp_path: Path):
    many = [(float(x), float(1 / (x + 1))) for x in range(200)]
    panels = {
        "loss": {"total": many, "mask": many[:3]},
        "J (%)": {"train": [(0, 0.0), (100, float("nan"))], "none": []},
    }
    plot_curves(tmp_path / "curve.png", panels, "a run")
    picture = read_picture(tmp_path / "curve.png")
    assert picture.shape[1] == 880 and picture.std() > 5


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_picture(path.with_suffix(".png"), grey()),
        lambda path: write_video(path.with_suffix(".mp4"), [grey()]),
        lambda path: contact_sheet([("a", [grey()])], path.with_suffix(".png")),
        lambda path: plot_curves(path.with_suffix(".png"), {"loss": {"total": [(0, 1.0)]}}, "a run"),
    ],
)
def test_a_folder_that_cannot_be_made(tmp_path: Path, write):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*a part of its folder is a file"):
        write(tmp_path / "file" / "picture")


def test_pictures_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read the picture .*missing\.png"):
        read_picture(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"cannot read the picture .*text\.png"):
        read_picture(tmp_path / "text.png")


def test_grey_files_are_read_as_rgb(tmp_path: Path):
    Image.fromarray(np.full((4, 6), 9, np.uint8)).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png").tolist() == np.full((4, 6, 3), 9).tolist()
