"""Faults (docs/faults.md): hostile files, odd input, runs that collide or lack memory, and killed processes."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import h5py
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from safetensors.torch import save_file
from scipy.io import savemat
from tqdm import tqdm

import demo
import inference_ytvos
import main
from datasets import build_dataset, jhmdb, list_videos
from datasets.a2d import read_instance_mask
from datasets.expressions import read_expressions
from datasets.files import decode_segmentation, read_frame, read_text
from datasets.jhmdb import read_puppet_mask
from datasets.predictions import (
    MAX_MASK_BYTES,
    InferenceRecord,
    check_submission,
    frame_size,
    read_binary_mask,
    read_index_mask,
)
from datasets.predictions import write_mask as write_binary_mask
from datasets.registry import load_config
from datasets.toy import make_toy
from demo import main as demo_main
from demo import new_folder, sentence_records
from engine import build_mask_identity, build_record
from models import build_model, pretrained
from models.diffusion.stack import load_stack
from models.inference import InferenceOptions
from scripts import make_toy_data, quickstart
from tests import bad_inputs
from tests.commands import read_checkpoint, run_command
from tests.conftest import ROOT
from tests.hub_server import checkpoint_path
from tests.inference_tools import StubModel, finish, run_inference, write_halves
from tests.jf_tools import expression_scores
from tests.kill import JOBS
from tests.silent_wrongs import OUTPUTS, check_output, names_on_the_terminal
from tests.tiny_models import backward, model_config
from tests.ytvos_tools import HEIGHT, NAMES, WIDTH, config, expressions_path, train_error, write_dataset, write_mask
from util import files as locking
from util.checkpoint import Keeper, newest_intact, write_pickle
from util.config import Config
from util.device import is_out_of_memory, memory_advice
from util.drawing import read_picture, write_picture
from util.errors import RunError, UserError, run_cli
from util.files import MAX_PIXELS, TOO_MANY_PIXELS, read_json, read_plain_pickle, sole_run, write_json
from util.parallel import bar_style
from util.video import open_media, read_video_frames

LIMIT = 300  # MB of memory that reading a small file may take


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def refused(read: Callable[..., Any], *arguments: Any, says: str | None = None) -> None:
    """Assert that reading is refused with one sentence, without using much memory."""
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


class Bytes:
    """Takes 3 GB when it is unpickled."""

    def __reduce__(self) -> Any:
        return bytearray, (3 * 10**9,)


TENSORS: dict[str, Callable[[], Any]] = {
    "bytes": Bytes,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed sparse": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "uint16": lambda: torch.ones(3, dtype=torch.uint16),
    "of no device": lambda: torch.ones(3, device="meta"),
    "one number": lambda: torch.ones(1).expand(60_000, 60_000),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_is_not_plain(tmp_path: Path, kind: str, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    content = {"format": "t2v-rvos-1", "model": "vdit", "config": {}, "weights": {"a": TENSORS[kind]()}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(read_checkpoint, path, says="plain")


def test_a_safetensors_file_of_8_bit_floats(tmp_path: Path) -> None:
    about = {"format": "t2v-rvos-1", "model": "vdit", "config": "{}"}
    save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors", about)
    refused(read_checkpoint, tmp_path / "a.safetensors", says="holds a as a tensor of another kind")


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_checkpoint(tmp_path: Path, packing: int) -> None:
    content = {"format": "t2v-rvos-1", "model": "vdit", "config": {}, "weights": {"a": torch.ones(300)}}
    write_pickle(tmp_path / "plain.pth", content)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "a.pth", "w", packing) as packed:
        for record in plain.infolist():
            packed.writestr(record.filename, plain.read(record))
    refused(read_checkpoint, tmp_path / "a.pth", says="is compressed; write it again with torch.save")


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
    """A grey PNG with this size in its header, whatever its pixels are."""

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
    refused(open_media, path, says="cannot read the image")


def bombs(folder: Path) -> dict[str, Path]:
    """Small files that declare 16000×16000 pixels or, for ``photo.png``, a little more than the limit."""
    paths = {name: folder / name for name in ("a.gif", "gif.png", "a.bmp", "photo.png")}
    for name, kind, place, size in (
        ("a.gif", "GIF", 6, "<HH"),
        ("gif.png", "GIF", 6, "<HH"),
        ("a.bmp", "BMP", 18, "<II"),
    ):
        file = io.BytesIO()
        Image.new("P", (1, 1)).save(file, kind)
        content = bytearray(file.getvalue())
        struct.pack_into(size, content, place, 16000, 16000)
        paths[name].write_bytes(content)
    side = math.isqrt(MAX_PIXELS) + 1
    paths["photo.png"].write_bytes(png(side, side, zlib.compress(bytes(1 << 20))))
    return paths


@pytest.mark.parametrize("name", ["a.gif", "gif.png", "a.bmp", "photo.png"])
def test_small_files_of_too_many_pixels(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bombs(tmp_path)[name]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("pixels are decoded"))
    refused(open_media, path, says=TOO_MANY_PIXELS)
    refused(read_picture, path, says=TOO_MANY_PIXELS)
    refused(frame_size, path, says=TOO_MANY_PIXELS)
    refused(read_frame, path, says=TOO_MANY_PIXELS if name == "photo.png" else "is broken")
    refused(read_index_mask, path, says=TOO_MANY_PIXELS if name == "photo.png" else "not a PNG")
    shutil.copy(path, tmp_path / "a.mp4")
    refused(open_media, tmp_path / "a.mp4")
    refused(read_video_frames, tmp_path / "a.mp4", [0])
    (tmp_path / "frames").mkdir()
    shutil.copy(path, tmp_path / "frames" / "a.png")
    refused(open_media, tmp_path / "frames", says=TOO_MANY_PIXELS)


def test_a_video_that_grows(tmp_path: Path) -> None:
    """The size of a Motion JPEG may change in every frame; one that is too large is left out."""
    side = math.isqrt(MAX_PIXELS) + 1
    small, large = io.BytesIO(), io.BytesIO()
    Image.new("L", (64, 48)).save(small, "JPEG")
    Image.new("L", (side, side)).save(large, "JPEG")
    path = tmp_path / "a.mjpeg"
    path.write_bytes(small.getvalue() * 3 + large.getvalue() + small.getvalue())
    media = open_media(path)
    assert [frame.image.shape for frame in media.frames()] == 4 * [(48, 64, 3)]
    assert len(media.notes) == 1 and "is damaged or cut off: only 4" in media.notes[0]
    refused(read_video_frames, path, [0, 3], says="is broken")


def test_a_mask_of_another_size_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(5000, 5000, zlib.compress(bytes(5001 * 5000))))
    assert read_index_mask(path, (5000, 5000)).shape == (5000, 5000)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("pixels are decoded"))
    refused(read_index_mask, path, (20, 30), says="is 5000×5000 pixels, but its frame is 30×20")
    refused(read_binary_mask, path, (20, 30), says="is 5000×5000 pixels, but its frame is 30×20")


DEVICES: dict[str, Callable[[Path], Any]] = {
    "JSON": lambda path: read_json(path, "numbers"),
    "configuration": lambda path: load_config(["--config", str(path)], ""),
    "pickle": lambda path: read_plain_pickle(path, "the expressions"),
    "text": lambda path: read_text(path, "names"),
    "frame": read_frame,
    "size of a frame": frame_size,
    "mask": read_index_mask,
    "picture": read_picture,
    "masks in h5": lambda path: read_instance_mask(path, 1),
    "masks of MATLAB": lambda path: read_puppet_mask(path, 1),
    "video": open_media,
    "clip": lambda path: read_video_frames(path, [0]),
    "submission": lambda path: check_submission(path, []),
}


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_or_a_pipe_is_not_read(tmp_path: Path, name: str) -> None:
    pipe, device, link = tmp_path / "pipe.png", Path("/dev/zero"), tmp_path / "a.png"
    os.mkfifo(pipe)  # opening it waits for a writer
    link.symlink_to(device)
    for path in (pipe, device, link):
        refused(DEVICES[name], path, says=str(path))


def test_yaml_from_a_stranger(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: /dev/zero\n")
    refused(load_config, ["--config", str(path)], "", says="/dev/zero: it is a device or a pipe, not a file")
    lines = ["lr:", "  - &a0 {k: 1}", *(f"  - &a{n} {{<<: [{', '.join(9 * [f'*a{n - 1}'])}]}}" for n in range(1, 9))]
    path.write_text("\n".join(lines))
    refused(load_config, ["--config", str(path)], "", says="line 3 is not valid YAML: aliases")
    path.write_text(f"seed: 0b{'1' * 5000}\n")
    refused(load_config, ["--config", str(path)], "", says="seed in .*, line 1 must be a whole number")


def test_an_h5_file_from_a_stranger(tmp_path: Path) -> None:
    """Links and values in other files are not followed, and a chunk cannot expand to more than it declares."""
    path, other = tmp_path / "a.h5", tmp_path / "other.h5"
    masks = np.ones((1, 30, 20), np.uint8)
    with h5py.File(other, "w") as file:
        file["instance"], file["reMask"] = np.ones(1), masks
    virtual = h5py.VirtualLayout(masks.shape, np.uint8)
    virtual[:] = h5py.VirtualSource(other, "reMask", masks.shape)
    raw = tmp_path / "raw"
    raw.write_bytes(masks.tobytes())

    def external_link(file: h5py.File) -> None:
        file["reMask"] = h5py.ExternalLink(str(other), "reMask")

    def soft_link(file: h5py.File) -> None:
        file["reMask"] = h5py.SoftLink("/instance")

    def expanding(file: h5py.File) -> None:
        made = file.create_dataset("reMask", masks.shape, np.uint8, chunks=masks.shape, compression="gzip")
        made.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(1 << 29), 9))

    cases: dict[str, Callable[[h5py.File], Any]] = {
        "'reMask' is a link": external_link,
        "is a link to other data": soft_link,
        "values of 'reMask' are in another file": lambda file: file.create_virtual_dataset("reMask", virtual),
        "'reMask' are in another": lambda file: file.create_dataset(
            "reMask", masks.shape, np.uint8, external=[(str(raw), 0, masks.size)]
        ),
        "expands to more than its 600 bytes": expanding,
        "bytes, and at most": lambda file: file.create_dataset("reMask", (1, 1 << 15, 1 << 15), np.uint8),
        "not an array of numbers": lambda file: file.create_dataset("reMask", data=["text"]),
    }
    for says, write in cases.items():
        with h5py.File(path, "w") as file:
            file["instance"] = np.ones(1)
            write(file)
        refused(read_instance_mask, path, 1, says=says)
    for packing in ({}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True, "fletcher32": True}):
        with h5py.File(path, "w") as file:
            file.create_dataset("instance", data=np.ones(1), **packing)
            file.create_dataset("reMask", data=masks, **packing)
        assert read_instance_mask(path, 1).all()


def test_a_matlab_file_that_expands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"part_mask": np.ones((200, 300, 3), np.uint8)}, do_compression=True)
    assert path.stat().st_size < 10_000 and read_puppet_mask(path, 1).all()
    monkeypatch.setattr(jhmdb, "MAX_MAT_BYTES", 100_000)
    refused(read_puppet_mask, path, 1, says="an array has at least 100000 bytes")
    monkeypatch.setattr(jhmdb, "MAX_MAT_BYTES", 100)
    refused(read_puppet_mask, path, 1, says="at most 100 are read")


def test_a_submission_from_a_stranger(tmp_path: Path) -> None:
    """It is never unpacked: its names have no effect, and no more is read of a file than a mask can have."""
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
    """Yield a folder in which this process may give up the rights of root."""
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
    "mask": lambda folder: write_binary_mask(folder / "a.png", np.ones((2, 2), bool)),
    "picture": lambda folder: write_picture(folder / "a.png", np.ones((2, 2, 3), np.uint8)),
    "checkpoint": lambda folder: write_pickle(folder / "a.pth", {}),
    "demo": lambda folder: new_folder(folder / "out").__enter__(),
    "toy data": lambda folder: make_toy(folder / "toy", num_train=1, num_valid=0, num_test=0, frames=4),
    "record": lambda folder: build_record(
        model_config(folder, output_dir=str(folder / "out")), None, torch.device("cpu")
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_may_not_be_written(name: str) -> None:
    WRITERS[name](Path(tempfile.mkdtemp()))  # modules imported later might not be readable without root
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
        path.parent.chmod(0o111)  # a folder whose files can be opened but not listed
        lose_rights()
        with pytest.raises(UserError, match=folder.name) as error:
            READERS[name](path)
        assert "\n" not in str(error.value)


# -------- Odd names, sentences and objects --------------------------------------


ODD = {
    "0": "红色的车 left",
    "1": "🚗💨👩‍👩‍👧 left",
    "2": "السيارة الحمراء left",
    "3": "left " + "very " * 2000 + "big",
    "4": "a\u0301\u200b\ufeff left\x07",
    "5": "left" + "x" * 3000,
}


def test_inference_with_odd_names_and_sentences(tmp_path: Path) -> None:
    root = write_halves(tmp_path / "数据 📁 ملف")
    name = "视频 🐕 'a\"b"
    path = root / "meta_expressions" / "valid" / "meta_expressions.json"
    video = json.loads(path.read_text())["videos"]["a"]
    video["expressions"] = {exp_id: {"exp": sentence} for exp_id, sentence in ODD.items()}
    (root / "valid" / "JPEGImages" / "a").rename(root / "valid" / "JPEGImages" / name)
    write_json(path, {"videos": {name: video}})
    out = tmp_path / "输出"
    cfg = Config(
        **{"ytvos_path": str(root), "output_dir": str(out), "eval_size": 36, "visualize": True, "num_workers": 1},
        **{"train_scales": (64,), "expressions_per_batch": 1},
    )
    videos = list_videos(cfg)
    record = InferenceRecord(out / "inference.json", {"checkpoint_sha256": "", **build_mask_identity(cfg)}, {})
    run_inference(StubModel(), videos, cfg, record)  # type: ignore[arg-type]
    finish(videos, cfg, record)
    (out / "Annotations" / name / "0" / ".00000.123-0a1b2c3d.png").write_bytes(b"half a f")
    assert check_submission(out / "submission.zip", videos) == [] == check_submission(out, videos)
    assert read_json(out / "inference.json", "the record")["expressions"][name].keys() == ODD.keys()
    with Image.open(out / "visualize" / name / "3" / "00000.png") as picture:
        assert picture.height < 5000
    assert len(list((out / "visualize").glob("*.mp4"))) == len(ODD)


def test_sentences_are_cut_at_the_encoders_length(tiny_stack: Path) -> None:
    cfg = model_config(tiny_stack)
    model = build_model(cfg).eval()
    words, padding = model.sentence_encoder(list(ODD.values()))
    assert words.shape[:2] == padding.shape == (len(ODD), model.sentence_encoder.max_length)
    assert words.isfinite().all() and not padding.all(1).any()
    limit = load_stack(str(tiny_stack)).tokenizer.model_max_length
    found = model.encoder.encode_text(list(ODD.values()))
    assert found.shape[:2] == (len(ODD), limit) and found.isfinite().all()


def test_folders_of_sentences_are_short_and_differ() -> None:
    records = sentence_records([*ODD.values(), "🚗", "..", "/", "𝔞" * 300])
    folders = [record.folder for record in records]
    assert len(set(folders)) == len(folders)
    for folder in folders:
        assert len(folder.encode()) < 200 and "/" not in folder and folder not in (".", "..")


@pytest.mark.parametrize("words", [("a.mp4", "a dog \udcff"), ("\udcff.mp4", "a dog"), ("a.mp4", "a\0b")])
def test_words_that_are_no_text(words: tuple[str, str]) -> None:
    done = run_command(demo_main, *words, "--resume", "a.pth")
    assert done.returncode == 2 and "which is not text in UTF-8" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "..", "a/b"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    video = {"frames": ["0"], "expressions": {"0": {"exp": "a dog"}}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"videos": {name: video}}))
    refused(read_expressions, path, "valid")
    path.write_text(json.dumps({"videos": {"v": {**video, "frames": [name]}}}))
    refused(read_expressions, path, "valid")


def test_videos_without_a_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(None))
    refused(open_media, path)
    refused(read_video_frames, path, [0])
    path.write_bytes(b"")
    refused(open_media, path, says="is empty")
    refused(read_video_frames, path, [0])
    (tmp_path / "frames").mkdir()
    refused(open_media, tmp_path / "frames", says="without an image")
    write_json(tmp_path / "a.json", {"videos": {"v": {"frames": [], "expressions": {"0": {"exp": "a dog"}}}}})
    refused(read_expressions, tmp_path / "a.json", "valid", says="should have a list of frame names")


def test_an_object_of_one_pixel(tmp_path: Path, tiny_stack: Path) -> None:
    """It can be trained on and scored, and its mask can be decoded from COCO's formats."""
    root = write_dataset(tmp_path)
    for video in "ab":
        for frame in NAMES:
            ids = np.zeros((HEIGHT, WIDTH), np.uint8)
            ids[20, 40], ids[0, 0] = 1, 2
            write_mask(root / "train" / "Annotations" / video / f"{frame}.png", ids)
    clips = build_dataset(config(root, crop_scales=(), colour_distortion=False), "train")
    _, target = clips[0]
    assert target["masks"].any() and (target["boxes"] >= 0).all() and (target["boxes"][:, 2:] > 0).any()

    truth = np.zeros((2, 20, 30), bool)
    truth[:, 5, 5] = True
    assert expression_scores(truth, truth) == (1.0, 1.0)
    assert expression_scores(truth, np.zeros_like(truth)) == (0.0, 0.0)
    runs = {"size": [4, 5], "counts": [7, 1, 12]}
    assert decode_segmentation(runs, 4, 5, "it").sum() == 1
    assert decode_segmentation([[1, 1, 1.4, 1, 1.4, 1.4]], 4, 5, "it").sum() <= 1


@pytest.mark.parametrize("pixels", [0, 1])
def test_a_step_on_an_empty_or_tiny_object_is_finite(
    tiny_stack: Path, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[:, 30, 50] = bool(pixels)
    box = torch.tensor([[50.5 / 96, 30.5 / 64, 1 / 96, 1 / 64]]).repeat(2, 1) * pixels
    target = {"boxes": box, "masks": masks, "valid": torch.full((2,), pixels)}
    monkeypatch.setattr("tests.tiny_models.square_targets", lambda *_: [target])
    cfg = model_config(tiny_stack)
    model = build_model(cfg)
    _, terms = backward(model, cfg, 1, 2)
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_masks_that_are_all_empty(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    for path in (root / "train" / "Annotations").rglob("*.png"):
        write_mask(path, np.zeros((HEIGHT, WIDTH), np.uint8))
    clips = build_dataset(config(root), "train")
    refused(clips.__getitem__, 0, says="show no pixel of their object")
    empty: Any = np.zeros((2, 8, 8), bool)
    assert expression_scores(empty, empty) == (1.0, 1.0)
    shutil.rmtree(root / "train" / "Annotations" / "a")
    assert "Annotations" in train_error(root)
    assert expressions_path(root, "train").is_file()


@pytest.mark.parametrize("source", ["org/repo", "hf://org/repo"])
def test_frozen_parts_of_a_hub_that_is_away(source: str) -> None:
    """The cache is empty, and tests have no network."""
    refused(
        load_stack, source, says=r"org/repo is not in the cache, and the hub cannot be reached; .* with --pretrained"
    )


def test_frozen_parts_that_are_nowhere() -> None:
    refused(
        load_stack, "/nowhere/a/stack", says="there is no such folder here, and the hub has no repository /nowhere/a/"
    )


# -------- Runs: one output folder, memory, clocks, terminals --------------------


COMMANDS: dict[str, tuple[Any, ...]] = {
    "training": (main.main, "--device", "cpu"),
    "evaluation": (main.main, "--device", "cpu", "--eval", "--resume", "a.pth"),
    "inference": (inference_ytvos.main, "--device", "cpu", "--resume", "a.pth"),
    "toy data": (make_toy_data.main,),
    "quickstart": (quickstart.main,),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_run_is_refused(tmp_path: Path, name: str) -> None:
    command, *words = COMMANDS[name]
    folder = tmp_path / "out"
    with sole_run(folder):
        done = run_command(command, *words, "--output_dir", folder)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"error: another run is writing to {folder}; wait for it to end" in done.stderr
        assert list(folder.iterdir()) == []
    assert not folder.exists(), "nothing may be written"


def test_a_second_demo_is_refused(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as first:
        with pytest.raises(UserError, match="another run is writing to"), new_folder(tmp_path / "out"):
            pytest.fail("two may not write")
        (first / "a.txt").write_text("mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a.txt"]


HOLDER = """
import os, sys, time
from util.files import sole_run
with sole_run(sys.argv[1]):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(100)
"""


def test_a_killed_run_is_no_run_though_its_workers_live(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match="another run"), sole_run(tmp_path):
            pytest.fail("two may not write")
        holder.kill()
        holder.wait()
        os.kill(worker, 0)
        with sole_run(tmp_path):
            assert len(locking._held) == 1
    finally:
        os.kill(worker, signal.SIGKILL)
    assert not locking._held


def test_where_folders_cannot_be_locked_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with sole_run(tmp_path), sole_run(tmp_path), sole_run(tmp_path / "other", active=False):
        assert not (tmp_path / "other").exists()


CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB.\nSee documentation"


def fail(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


def test_training_without_enough_memory(
    tiny_config: list[str], toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "train", fail(torch.OutOfMemoryError(CUDA)))
    where = ("--ytvos_path", toy_data, "--output_dir", tmp_path, "--num_workers", 0)
    done = run_command(main.main, *tiny_config, *where)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith("error: there is not enough memory (CUDA out of memory. Tried to allocate 20.00 GiB")
    assert (
        "these options need less: --batch_size 1 (with --accumulate for the same updates), --gradient_checkpointing"
        in last
    )
    (session,) = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert session["state"] == "failed" and "not enough memory" in session["message"]


def test_inference_and_demo_without_enough_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_ytvos, "segment_split", fail(MemoryError()))
    done = run_command(inference_ytvos.main, "--device", "cpu", "--resume", "a.pth", "--output_dir", tmp_path / "out")
    assert done.returncode == 1
    assert "not enough memory (MemoryError); these options need less: --expressions_per_batch 1" in done.stderr
    for module, name in ((demo, "open_media"), (pretrained, "open_pretrained")):
        stub = SimpleNamespace(notes=(), size=(4, 4), options=InferenceOptions())
        monkeypatch.setattr(module, name, lambda *_, stub=stub: stub)
    monkeypatch.setattr(demo, "segment_to_folder", fail(torch.OutOfMemoryError(CUDA)))
    done = run_command(demo.main, "a.mp4", "a dog", "--resume", "a.pth", "--out", tmp_path / "demo")
    assert done.returncode == 1 and "these options need less: a shorter --window" in done.stderr
    assert not any(tmp_path.iterdir())


def test_what_is_not_about_memory_stays(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not enough memory .*; these options need less: sleep"), memory_advice("sleep"):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RunError, match="not enough memory"), memory_advice("sleep"):
        np.empty(1 << 60, np.uint8)
    with pytest.raises(RunError, match="not enough memory"), memory_advice("sleep"):
        raise RuntimeError("could not create a primitive")  # oneDNN, in layers that need more than there is
    other = (RuntimeError("shape mismatch"), RuntimeError("could not create a primitive descriptor for a pool"))
    for error in (*other, OSError(28, "No space left on device"), UserError("x")):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error)), memory_advice("sleep"):
            raise error


def test_a_jump_of_the_clock_asks_for_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    keeper = Keeper(tmp_path, lambda path, step: written.append(step), keep=1, minutes=10)
    for now in (0.0, 1e12):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert not keeper.due()


def test_nothing_is_decided_by_the_clock_on_the_wall(root: Path) -> None:
    """Durations are measured with ``time.monotonic`` and ``time.perf_counter``, which do not jump."""
    sources = [path for room in ("util", "models", "datasets", "scripts") for path in (root / room).rglob("*.py")]
    found = [path.name for path in (*sources, *root.glob("*.py")) if "time.time()" in path.read_text(encoding="utf-8")]
    assert len(sources) > 50 and found == ["web_demo.py"], "which compares the ages of files"


def test_letters_that_the_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def command() -> None:
        print("1 “红色的车 🚗”")
        raise UserError("“红” is missing \udcff")

    with pytest.raises(SystemExit) as end:
        run_cli(command)
    assert end.value.code == 2
    for stream in streams.values():
        stream.flush()
    out, err = (stream.buffer.getvalue() for stream in streams.values())  # type: ignore[attr-defined]
    assert rb"\u7ea2" in out and rb"\U0001f697" in out and rb"\udcff" in err


def test_a_path_without_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    with pytest.raises(SystemExit) as end:
        run_cli(command)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: no permission to use {tmp_path}; give another path\n"


def test_progress_bars_stay_on_their_lines(tmp_path: Path) -> None:
    """A bar inside another one, as of a validation during training."""

    def command() -> None:
        for _ in tqdm([1], **bar_style()):
            list(tqdm([1], **bar_style()))

    with (tmp_path / "out").open("w", newline="") as file, redirect_stdout(file), suppress(SystemExit):
        run_cli(command)
    said = (tmp_path / "out").read_bytes()
    assert b"\n\r100%" in said and b"\x1b[A" in said and b"\\" not in said


@pytest.mark.parametrize("command", OUTPUTS)
def test_output_that_cannot_be_written_ends_no_work(command: str) -> None:
    check_output(command)


def test_help_that_cannot_be_written(root: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "main.py", "--help"], cwd=root, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.startswith(b"error: cannot write to the standard output")
    assert done.stderr.count(b"\n") == 1


def test_names_that_command_the_terminal(tmp_path: Path) -> None:
    for _, check in names_on_the_terminal(tmp_path):
        check()


# -------- Killed and repeated ---------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Results of ``tests.kill.kill_each`` for every job."""
    base = tmp_path_factory.mktemp("kills")
    words = [sys.executable, "-m", "tests.kill", str(base)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    print(done.stderr[-10000:])  # shown where a test fails
    assert done.returncode == 0
    return json.loads((base / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_killed_and_repeated(found: dict[str, list[dict[str, Any]]], job: str) -> None:
    never, *killed = found[job]
    assert never == {"point": "never", "status": 0, "broken": []}
    assert {next(iter(end["point"])) for end in killed} == {"rename", "size"}
    for end in killed:
        status = -signal.SIGKILL if "rename" in end["point"] else -signal.SIGXFSZ
        assert end == {**end, "status": status, "broken": [], "again": 0, "other": []}


# -------- The table in docs/faults.md -------------------------------------------


ROW = re.compile(r"\| .+ \| .+ \| .+ \| (?P<tests>`.+`) \|")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as in the tests of each kind
def test_every_bad_input_ends_as_it_should(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = bad_inputs.main(tmp_path)
    said = capsys.readouterr()
    assert status == 0 and "0 tracebacks, 0 silent wrongs, 0 files outside" in said.out, said.out
    assert "Traceback" not in said.err


def test_every_file_outside_is_seen(tmp_path: Path) -> None:
    """By the script of bad inputs, which also tells a silent wrong from a traceback."""
    (tmp_path / "in").mkdir()
    watch = bad_inputs.Watch(tmp_path / "in")
    (tmp_path / "in" / "a.txt").write_text("")
    assert watch.found == []
    (tmp_path / "in" / ".." / "secret.txt").write_text("")
    (tmp_path / "secret.txt").read_text()
    watch.active = False
    assert [found.rpartition(" is ")[2] for found in watch.found] == ["written", "read"]
    endings = {"": None, "silent wrong: no": AssertionError("no"), "traceback: KeyError: 'a'": KeyError("a")}
    assert [bad_inputs.outcome(fail(error) if error else dict) for error in endings.values()] == list(endings)
    assert bad_inputs.outcome(fail(UserError("a"))) == "" != bad_inputs.outcome(fail(UserError("a\nb")))


def test_every_fault_has_its_test(root: Path) -> None:
    lines = (root / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and not line.startswith(("| fault", "|---"))]
    assert len(rows) > 50
    for row in rows:
        match = ROW.fullmatch(row)
        assert match, row
        for name in match["tests"].split(", "):
            file, _, function = name.strip("`").partition("::")
            source = (root / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {function}\(", source, re.MULTILINE), name


def test_every_test_of_a_fault_is_in_the_table(root: Path) -> None:
    table = (root / "docs" / "faults.md").read_text(encoding="utf-8")
    for file in ("test_faults.py", "test_fuzz.py"):
        for name in re.findall(r"^def (test_\w+)\(", (root / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE):
            assert f"`{file}::{name}`" in table or name.startswith("test_every_"), name
