"""Damaged copies of files of every kind: a valid value or one sentence, never another error nor a dead process.

Pictures, videos and archives are damaged in their bytes, the same way in every run.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from scipy.io import savemat

from datasets.a2d import read_instance_mask
from datasets.jhmdb import count_puppet_masks, read_puppet_mask
from datasets.predictions import (
    check_submission,
    frame_size,
    mask_fault,
    read_binary_mask,
    read_index_mask,
)
from datasets.reading import read_frame
from datasets.video_files import read_video_frames
from tests.fuzz_tools import damaged, reads
from tests.media_tools import write_film
from util.checkpoint import read_checkpoint
from util.media_reader import open_media

SIZE = (20, 30)
COPIES = 40
PIXELS = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
PICTURES = [Image.fromarray(np.roll(PIXELS, number, 0)) for number in range(3)]


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def palette_png() -> bytes:
    ids = np.zeros(SIZE, np.uint8)
    ids[3:8, 4:9] = 2
    picture = Image.fromarray(ids)
    picture.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
    return encoded(picture, "PNG")


def all_frames(path: Path) -> None:
    for number, frame in enumerate(open_media(path).frames()):
        assert frame.image.ndim == 3 and frame.image.dtype == np.uint8
        if number > 20:
            break


def faults_of(path: Path) -> None:
    for find in (mask_fault, lambda file, size: mask_fault(file, size, 3)):
        with path.open("rb") as file:
            assert isinstance(find(file, SIZE), str | None)


def sizes_match(read: Callable[[Path], Any]) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        assert read(path).shape[-2:] == frame_size(path)

    return check


def try_all(folder: Path, suffix: str, good: bytes, *readers: Callable[[Path], Any]) -> None:
    """All readers on the file itself, which must be readable, and on its damaged copies."""
    path = folder / f"a{suffix}"
    path.write_bytes(good)
    readers[0](path)
    for content in damaged(good, COPIES):
        path.write_bytes(content)
        for read in readers:
            reads(read, path)


def test_masks(tmp_path: Path) -> None:
    try_all(tmp_path, ".png", palette_png(), sizes_match(read_index_mask), read_binary_mask, faults_of)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_frames(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    try_all(tmp_path, f".{kind.lower()}", encoded(PICTURES[0], kind), sizes_match(read_frame), all_frames)


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "GIF", "PNG", "animated WEBP"])
def test_pictures_and_animations(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {} if kind in ("WEBP", "BMP") else {"save_all": True, "append_images": PICTURES[1:]}
    kind = kind.split()[-1]
    try_all(tmp_path, f".{kind.lower()}", encoded(PICTURES[0], kind, **options), all_frames)


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".avi", "mpeg4"), (".webm", "libvpx-vp9")])
def test_videos(tmp_path: Path, suffix: str, codec: str) -> None:
    good = write_film(tmp_path / f"film{suffix}", codec=codec, sound="aac" if suffix == ".mp4" else "").read_bytes()
    try_all(tmp_path, suffix, good, all_frames, lambda path: read_video_frames(path, [0, 2, 9]))


def test_h5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "good.h5", "w") as file:
        file["instance"], file["reMask"] = np.array([[0.0, 1.0]]), np.ones((2, 30, 20), np.uint8)
    try_all(tmp_path, ".h5", (tmp_path / "good.h5").read_bytes(), lambda path: read_instance_mask(path, 1))


def test_an_h5_file_of_other_things(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for ids, masks in (("text", "text"), (np.zeros(3), np.zeros(3)), (np.nan, np.ones((2, 2))), (None, None)):
        with h5py.File(path, "w") as file:
            for name, value in (("instance", ids), ("reMask", masks)):
                file.create_group(name) if value is None else file.create_dataset(name, data=value)
        reads(read_instance_mask, path, 1)
    with h5py.File(path, "w") as file:
        file["instance"] = np.ones(1)
        file.create_dataset("reMask", (1, 2**20, 2**20), np.uint8, chunks=(1, 64, 64))  # declared, not stored
    assert path.stat().st_size < 10_000 and reads(read_instance_mask, path, 1) is None


@pytest.mark.parametrize("packed", [False, True])
def test_matlab(tmp_path: Path, packed: bool) -> None:
    """scipy alone ends the process on some of these."""
    savemat(tmp_path / "good.mat", {"part_mask": np.ones((*SIZE, 3), np.uint8)}, do_compression=packed)
    good = (tmp_path / "good.mat").read_bytes()
    try_all(tmp_path, ".mat", good, lambda path: read_puppet_mask(path, 2), count_puppet_masks)
    if not packed:
        tagged = bytearray(good)
        tagged[201] = 0x80  # the type of the values' element
        (tmp_path / "a.mat").write_bytes(tagged)
        assert reads(read_puppet_mask, tmp_path / "a.mat", 2) is None


WEIGHTS = {"a.b": torch.ones(3, 4), "c": torch.ones(5, dtype=torch.float16)}
ABOUT = {"format": "t2v-rvos-1", "model": "vdit"}
CHECKPOINT = {**ABOUT, "config": {"lr": 1.0}, "weights": WEIGHTS, "optimizer": {"state": {}}, "step": 3}


@pytest.mark.parametrize("kind", ["pth", "old pth", "safetensors"])
def test_checkpoints(tmp_path: Path, kind: str) -> None:
    file = io.BytesIO()
    if kind == "safetensors":
        file.write(save(WEIGHTS, {**ABOUT, "config": "{}", "frozen": "{}"}))
    else:
        torch.save({**CHECKPOINT, "steps_per_epoch": 2}, file, _use_new_zipfile_serialization=kind == "pth")
    try_all(tmp_path, f".{kind.split()[-1]}", file.getvalue(), read_checkpoint)


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_submissions(tmp_path: Path, packing: int) -> None:
    frame = tmp_path / "00000.png"
    frame.write_bytes(palette_png())
    video: Any = SimpleNamespace(name="v", expressions={"0": "a dog"}, frame_paths=[frame])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        archive.writestr("Annotations/v/0/00000.png", encoded(Image.new("L", SIZE[::-1]), "PNG"))
    try_all(tmp_path, ".zip", file.getvalue(), lambda path: check_submission(path, [video]))
