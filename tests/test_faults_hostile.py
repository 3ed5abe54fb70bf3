"""Files from an attacker, and files and folders that may not be read or written."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from datasets.predictions import MAX_MASK_BYTES, check_submission, read_index_mask, write_mask
from datasets.reading import read_frame
from datasets.toy import make_toy
from tests.tiny_models import model_config
from util.checkpoint import read_checkpoint, write_pickle
from util.config import load_config
from util.demo_results import new_folder
from util.errors import UserError
from util.hub import checkpoint_path
from util.inference_record import open_record
from util.io import read_json, write_json
from util.keeping import newest_intact
from util.media_reader import open_media
from util.plain_pickle import read_plain_pickle
from util.visualisation import write_picture

LIMIT = 300  # MB of memory that reading a small file may take


class Command:
    """Runs a command where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def refused(read: Callable[..., Any], *arguments: Any, says: str | None = None) -> None:
    """Reading is refused in one sentence, without taking much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=says) as error:
        read(*arguments)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT * 1024


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["weights", "config", "optimizer", "frozen"])
def test_a_checkpoint_with_code(tmp_path: Path, place: str, zipped: bool) -> None:
    path, marker = tmp_path / "checkpoint.pth", tmp_path / "ran"
    content = {"format": "t2v-rvos-1", "model": "vdit", "config": {}, "weights": {}, "step": 1}
    torch.save({**content, place: Command(marker)}, path, _use_new_zipfile_serialization=zipped)
    refused(read_checkpoint, path, says="carry code, which is never run")
    found, notes = newest_intact(tmp_path)
    assert found is None and len(notes) == 1
    path.write_bytes(pickle.dumps(Command(marker)))
    refused(read_checkpoint, path)
    refused(read_plain_pickle, path, "the expressions", says="is refused")
    assert not marker.exists()


def test_a_checkpoint_that_names_a_file_elsewhere(tmp_path: Path) -> None:
    content = {"format": "t2v-rvos-1", "model": "vdit", "config": {}, "weights": {}, "step": 1, "steps_per_epoch": 1}
    for name in ("../secret.safetensors", "/etc/passwd", "frozen-0123456789abcdef.safetensors/../x"):
        write_pickle(tmp_path / "a.pth", {**content, "optimizer": {}, "beside": name})
        refused(read_checkpoint, tmp_path / "a.pth", says="it names .* as the file of its frozen weights")


@pytest.mark.parametrize("length", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_safetensors_header_that_declares_too_much(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        struct.pack("<Q", length) + b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4]}}'
    )
    refused(read_checkpoint, path, says="not a readable checkpoint")
    save_file({"a": torch.ones(2)}, path, {"format": "t2v-rvos-1", "model": "vdit", "config": "[" * 100_000})
    refused(read_checkpoint, path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r\xff\xff\xff\xff.",  # a place in a table of 2³² values
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b".",  # 64 GiB
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 36) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 36) + b".",
        b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b".",
    ],
)
def test_a_pickle_that_declares_too_much(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.p"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert read_plain_pickle(path, "the expressions") == []
    except UserError as error:
        assert "\n" not in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT * 1024


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A grey PNG whose header says so, whatever it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [20_000, 1 << 31 - 1])
def test_a_picture_that_declares_too_many_pixels(tmp_path: Path, side: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(side, side, zlib.compress(bytes(1 << 20))))
    refused(read_frame, path, says="is broken")
    refused(read_index_mask, path, says="cannot read the mask")
    refused(open_media, path, says="no picture that can be read")


def test_a_submission_from_a_stranger(tmp_path: Path) -> None:
    """It is read and never unpacked: names lead nowhere, and a file that grows is read no further than a mask can."""
    frame = tmp_path / "00000.jpg"
    Image.new("RGB", (30, 20)).save(frame)
    video: Any = SimpleNamespace(name="v", expressions={"0": "a dog"}, frame_paths=[frame])
    path = tmp_path / "a.zip"
    link = zipfile.ZipInfo("Annotations/v/0/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("Annotations/v/0/00000.png", "w", force_zip64=True) as bomb:
            for _ in range(5):
                bomb.write(bytes(MAX_MASK_BYTES))
        archive.writestr("../escaped.png", b"x")
        archive.writestr("/absolute.png", b"x")
        archive.writestr(link, "/etc/passwd")
    assert path.stat().st_size < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faults = check_submission(path, [video])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT * 1024
    assert len(faults) == 4 and faults[0].startswith("Annotations/v/0/00000.png is not a readable PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["00000.jpg", "a.zip"]
    assert not (tmp_path.parent / "escaped.png").exists()


@contextmanager
def nobody() -> Iterator[Path]:
    """A folder, and this process without the rights of root, who may read and write all."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(folder)


def lose_rights() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "JSON": lambda folder: write_json(folder / "a.json", {}),
    "mask": lambda folder: write_mask(folder / "a.png", np.ones((2, 2), bool)),
    "picture": lambda folder: write_picture(folder / "a.png", np.ones((2, 2, 3), np.uint8)),
    "checkpoint": lambda folder: write_pickle(folder / "a.pth", {}),
    "demo": lambda folder: new_folder(folder / "out").__enter__(),
    "toy data": lambda folder: make_toy(folder / "toy", num_train=1, num_valid=0, num_test=0, frames=4),
    "record": lambda folder: open_record(model_config(folder, output_dir=str(folder / "out")), None, "cpu"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_may_not_be_written(name: str) -> None:
    WRITERS[name](Path(tempfile.mkdtemp()))  # what is imported at the first call may not be readable for nobody
    with nobody() as folder:
        folder.chmod(0o555)
        lose_rights()
        with pytest.raises(UserError, match=rf"cannot write .*{folder.name}") as error:
            WRITERS[name](folder)
        assert "ermission denied" in str(error.value) and "\n" not in str(error.value)
        assert list(folder.iterdir()) == []


READERS: dict[str, Callable[[Path], Any]] = {
    "JSON": lambda path: read_json(path, "numbers"),
    "configuration": lambda path: load_config(["--config", str(path)], ""),
    "pickle": lambda path: read_plain_pickle(path, "the expressions"),
    "checkpoint": read_checkpoint,
    "frame": read_frame,
    "mask": read_index_mask,
    "video": open_media,
    "folder of a checkpoint": lambda path: checkpoint_path(str(path.parent), "--resume"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_may_not_be_read(name: str) -> None:
    with nobody() as folder:
        path = folder / "inner" / "a.mp4"
        path.parent.mkdir()
        path.write_bytes(b"\x00" * 100)
        with pytest.raises(UserError):
            READERS[name](path)
        path.chmod(0)
        path.parent.chmod(0o111)  # its files can be opened by those who know their names
        lose_rights()
        with pytest.raises(UserError, match=folder.name) as error:
            READERS[name](path)
        assert "\n" not in str(error.value)
