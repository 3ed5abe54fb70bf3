"""The submission: files, zip, and a check that finds every fault."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.predictions import (
    check_submission,
    frame_size,
    is_written,
    mask_path,
    require_frames,
    write_mask,
    write_submission,
)
from util.errors import UserError

HEIGHT, WIDTH = 24, 40


@dataclass
class FakeVideo:
    name: str
    frame_paths: list[Path]
    expressions: dict[str, str] = field(default_factory=lambda: {"0": "a dog", "1": "a cat"})


@pytest.fixture
def videos(tmp_path: Path) -> list[FakeVideo]:
    """Two videos of two frames and two expressions, their frames on disk."""
    result = []
    for name in ("a", "b"):
        paths = [tmp_path / "frames" / name / f"{i:05d}.jpg" for i in (0, 5)]
        paths[0].parent.mkdir(parents=True)
        for path in paths:
            Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path)
        result.append(FakeVideo(name, paths))
    return result


@pytest.fixture
def written(tmp_path: Path, videos: list[FakeVideo]) -> Path:
    """A folder with all masks."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:9, 5:20] = True
    for video in videos:
        for exp_id in video.expressions:
            for frame in video.frame_paths:
                write_mask(mask_path(tmp_path / "out", video.name, exp_id, frame.stem), mask)
    return tmp_path / "out"


FIRST = "Annotations/a/0/00000.png"


def save(image: Image.Image | np.ndarray, **options) -> Callable[[Path], object]:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return lambda path: picture.save(path, **options)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 1
    path.write_bytes(content)


GREY = np.zeros((HEIGHT, WIDTH), np.uint8)
FAULTS = {
    "missing": (Path.unlink, "is missing"),
    "empty file": (lambda path: path.write_bytes(b""), "is not a readable PNG"),
    "cut": (cut, "is not a readable PNG"),
    "flipped bit": (flip_a_bit, "is not a readable PNG"),
    "a JPEG": (save(GREY, format="JPEG"), "is not a readable PNG"),
    "other size": (save(GREY[:20]), "is 40×20, not 40×24"),
    "turned": (save(GREY.T.copy()), "is 24×40, not 40×24"),
    "colour": (save(np.zeros((HEIGHT, WIDTH, 3), np.uint8)), "is not 8-bit greyscale"),
    "palette": (save(Image.fromarray(GREY).convert("P")), "is not 8-bit greyscale"),
    "one bit": (save(Image.fromarray(GREY).convert("1")), "is not 8-bit greyscale"),
    "16 bits": (save(GREY.astype(np.uint16)), "is not 8-bit greyscale"),
    "zero and one": (save(GREY + 1), "holds the value 1, not only 0 and 255"),
}


def test_masks_are_8_bit_greyscale(written: Path):
    with Image.open(written / FIRST) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (WIDTH, HEIGHT))
        values = np.asarray(image)
    assert np.unique(values).tolist() == [0, 255] and (values == 255).sum() == 6 * 15


def test_a_whole_submission_has_no_fault(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    write_submission(written, videos, tmp_path / "s.zip")
    assert check_submission(tmp_path / "s.zip", videos) == []
    assert check_submission(written, videos) == []
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        names = archive.namelist()
    assert len(names) == 8 and names[0] == FIRST
    assert {name.split("/")[0] for name in names} == {"Annotations"}


def test_only_masks_go_into_the_zip(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    (written / "Annotations" / "a" / "0" / ".DS_Store").write_text("stray")
    write_submission(written, videos, tmp_path / "s.zip")
    assert check_submission(tmp_path / "s.zip", videos) == []
    assert check_submission(written, videos) == ["Annotations/a/0/.DS_Store is not the mask of any expression's frame"]


def test_same_masks_same_zip(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    for name in ("s.zip", "t.zip"):
        write_submission(written, videos, tmp_path / name)
    assert (tmp_path / "s.zip").read_bytes() == (tmp_path / "t.zip").read_bytes()


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found(tmp_path: Path, written: Path, videos: list[FakeVideo], kind: str):
    damage, words = FAULTS[kind]
    write_submission(written, videos, tmp_path / "s.zip")
    assert is_written(written, videos[0], "Annotations/a/0")
    damage(written / FIRST)
    assert not is_written(written, videos[0], "Annotations/a/0")
    assert is_written(written, videos[0], "Annotations/a/1")

    (fault,) = check_submission(written, videos)
    assert fault.startswith(f"{FIRST} {words}")

    with zipfile.ZipFile(tmp_path / "s.zip") as good, zipfile.ZipFile(tmp_path / "t.zip", "w") as bad:
        for name in good.namelist():
            if name != FIRST:
                bad.writestr(name, good.read(name))
            elif (written / FIRST).exists():
                bad.write(written / FIRST, FIRST)
    (fault,) = check_submission(tmp_path / "t.zip", videos)
    assert fault.startswith(f"{FIRST} {words}")


def test_a_zip_with_other_things(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    write_submission(written, videos, tmp_path / "s.zip")
    with zipfile.ZipFile(tmp_path / "s.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("readme.txt", "hello")
        archive.writestr(FIRST, archive.read(FIRST))
    assert check_submission(tmp_path / "s.zip", videos) == [
        f"{FIRST} is there 2 times",
        "readme.txt is not the mask of any expression's frame",
    ]


def test_a_zip_without_annotations_at_its_root(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for path in sorted((written / "Annotations").rglob("*.png")):
            archive.write(path, path.relative_to(written / "Annotations").as_posix())
    faults = check_submission(tmp_path / "s.zip", videos)
    assert len(faults) == 16 and faults[0] == f"{FIRST} is missing"


def test_zips_that_cannot_be_read(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    with pytest.raises(UserError, match=r"nothing\.zip is missing"):
        check_submission(tmp_path / "nothing.zip", videos)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match="is not a sound zip"):
        check_submission(tmp_path / "text.zip", videos)
    write_submission(written, videos, tmp_path / "s.zip")
    content = bytearray((tmp_path / "s.zip").read_bytes())
    content[60] ^= 1
    (tmp_path / "s.zip").write_bytes(content)
    with pytest.raises(UserError, match="is not a sound zip"):
        check_submission(tmp_path / "s.zip", videos)


def test_a_missing_mask_makes_no_zip(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    (written / FIRST).unlink()
    with pytest.raises(UserError, match=r"00000\.png is missing; run the inference again"):
        write_submission(written, videos, tmp_path / "s.zip")
    assert not (tmp_path / "s.zip").exists()


def test_a_mask_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "Annotations").write_text("in the way")
    with pytest.raises(UserError, match="a part of its folder is a file"):
        write_mask(mask_path(tmp_path, "a", "0", "00000"), np.zeros((2, 2), bool))


def test_frames(tmp_path: Path, videos: list[FakeVideo]):
    path = videos[0].frame_paths[0]
    assert frame_size(path) == (HEIGHT, WIDTH)
    require_frames(videos)
    path.write_text("no picture")
    with pytest.raises(UserError, match=r"frame .*a/00000\.jpg is broken"):
        frame_size(path)
    path.unlink()
    with pytest.raises(UserError, match=r"frame .*a/00000\.jpg is missing"):
        frame_size(path)
    with pytest.raises(UserError, match=r"frame .*a/00000\.jpg is missing; "):
        require_frames(videos)
    videos[1].frame_paths[1].unlink()
    with pytest.raises(UserError, match=r"frame .*a/00000\.jpg is missing \(and 1 more\)"):
        require_frames(videos)
