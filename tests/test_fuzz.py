"""Readers on random and damaged input: each returns a valid value or raises an error of one sentence.

The examples are the same in every run.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from scipy.io import savemat

from datasets import a2d, jhmdb
from datasets.a2d import read_instance_mask
from datasets.expressions import read_expressions
from datasets.files import decode_segmentation, read_coco_masks, read_frame
from datasets.imports import import_annotations
from datasets.jhmdb import count_puppet_masks, read_puppet_mask
from datasets.mevis import InstanceMasks, list_split, unite
from datasets.predictions import check_submission, frame_size, mask_fault, read_binary_mask, read_index_mask
from datasets.refcoco import convert_refcoco, draw_mask, instances_name, read_items
from datasets.registry import load_config
from demo import read_command
from tests.commands import read_checkpoint
from tests.media_tools import write_film
from util.config import Config, config_dict
from util.errors import UserError
from util.files import read_json, read_plain_pickle
from util.options import read_yaml
from util.video import open_media, parse_time, read_video_frames

few = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""Few examples, the same in every run. Raise ``max_examples`` to search for new failures."""

texts = st.text(st.characters(codec=None, categories=None), max_size=8)
ODD = (10**19, -1, 0, 1, "1", "1" * 5000, "٣", "²", "a\0b", "..", "/etc", "x" * 400, "1e400", "")
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.sampled_from(ODD))


def values(names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """JSON values that contain these names as keys and values, at any place."""
    keys = st.one_of(st.sampled_from(names), texts)
    return st.recursive(
        st.one_of(leaves, st.sampled_from(names)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
        max_leaves=10,
    )


def write(path: Path, content: Any) -> Path:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def reads(read: Callable[..., Any], *arguments: Any) -> Any:
    """Call a reader; returns None if it raises a ``UserError``, which must be one sentence. Other errors propagate."""
    try:
        return read(*arguments)
    except UserError as error:
        sentence = str(error)
        assert sentence and "\n" not in sentence
        return None


def damaged(good: bytes, number: int) -> Iterator[bytes]:
    """Damaged copies of a file, the same in every run: truncated, or with bytes changed, removed or inserted."""
    draw = random.Random(len(good))
    for _ in range(number):
        content, kind = bytearray(good), draw.random()
        place = draw.randrange(len(content))
        if kind < 0.25:
            del content[place:]
        elif kind < 0.8:
            for _ in range(draw.choice((1, 1, 2, 4, 16))):
                place = draw.randrange(min(len(content), draw.choice((64, 256, len(content)))))
                content[place] = draw.choice(
                    (0, 255, 128, draw.randrange(256), content[place] ^ 1 << draw.randrange(8))
                )
        elif kind < 0.9:
            content[place : place + draw.randrange(20)] = b""
        else:
            content[place:place] = draw.randbytes(draw.randrange(20))
        yield bytes(content)


# -------- Random expressions and annotations ------------------------------------


MASK_SIZE = (4, 5)

object_ids = st.one_of(leaves, st.lists(leaves, max_size=2))
sentences = st.fixed_dictionaries({}, optional={"exp": leaves, "obj_id": leaves, "anno_id": object_ids, "kind": leaves})
listed = st.dictionaries(st.one_of(st.just("0"), texts), st.one_of(leaves, sentences), max_size=2)
videos = st.fixed_dictionaries({"frames": st.lists(st.one_of(texts, leaves), max_size=2), "expressions": listed})
documents = st.one_of(
    values(("videos", "frames", "expressions", "exp")),
    st.fixed_dictionaries({"videos": st.dictionaries(texts, st.one_of(leaves, videos), max_size=2)}),
)


@few
@given(documents)
def test_expressions(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "mevis" / "valid" / "meta_expressions.json"
    (path.parent / "JPEGImages").mkdir(parents=True, exist_ok=True)
    write(path, content)
    for video in (reads(read_expressions, path, "valid") or {}).values():
        assert video.frames and all(isinstance(name, str) and name for name in video.frames)
        for expression in video.expressions.values():
            assert expression.caption == " ".join(expression.caption.split()).lower() and expression.caption.encode()
            assert expression.obj_id is None or 1 <= expression.obj_id <= 254
    for video in (reads(list_split, tmp_path / "mevis", "valid") or {}).values():
        assert all(isinstance(e.instances, tuple | None) and e.caption for e in video.expressions.values())


@few
@given(st.lists(st.one_of(leaves, st.lists(leaves, min_size=4, max_size=5)), max_size=3))
def test_lists_of_annotated_frames(tmp_path: Path, content: Any) -> None:
    write(tmp_path / "a2d_sentences_single_frame_test_annotations.json", content)
    for item in reads(a2d.read_items, tmp_path, "test") or []:
        assert item.caption and item.frame >= 1 and item.instance >= 0 and "/" not in item.video
    write(tmp_path / jhmdb.LIST_FILE, content)
    for item in reads(jhmdb.read_items, tmp_path) or []:
        assert item.caption and 1 <= item.frame <= item.length
        assert item.masks.is_relative_to(tmp_path) and ".." not in item.masks.parts


runs = st.one_of(texts, st.text("0123456789:;<=?@ABCOP_`aino", max_size=8), st.lists(st.integers(-1, 20), max_size=6))
corners = st.lists(st.one_of(st.floats(-12, 12), st.integers(-12, 12), leaves), max_size=8)
segmentations = st.one_of(
    values(("size", "counts")),
    st.fixed_dictionaries({"size": st.one_of(st.just(list(MASK_SIZE)), leaves), "counts": runs}),
    st.lists(corners, max_size=3),
)


@few
@given(segmentations)
def test_segmentations(content: Any) -> None:
    mask = reads(decode_segmentation, content, *MASK_SIZE, "entry 1")
    assert mask is None or (mask.shape == MASK_SIZE and mask.dtype == np.bool_)


numbers = st.one_of(st.integers(0, 3), leaves)
entries = st.fixed_dictionaries(
    {
        "id": numbers,
        "image_id": numbers,
        "height": st.one_of(st.just(MASK_SIZE[0]), leaves),
        "width": st.just(MASK_SIZE[1]),
    },
    optional={
        **{"caption": leaves, "file_name": leaves, "segmentation": segmentations},
        "bbox": st.one_of(leaves, st.lists(numbers, min_size=3, max_size=4)),
    },
)


@few
@given(st.fixed_dictionaries({"images": st.lists(entries, max_size=2), "annotations": st.lists(entries, max_size=2)}))
def test_annotations_in_cocos_form(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path / instances_name("refcoco", "val"), content)
    for item in reads(read_items, tmp_path, "refcoco", "val") or []:
        assert item["caption"] and "/" not in item["file_name"]
        reads(draw_mask, item, "refcoco", "val")
    assert set(reads(read_coco_masks, path, ["0", "1"]) or ("0", "1")) == {"0", "1"}


@few
@given(st.dictionaries(texts, st.one_of(leaves, st.lists(st.one_of(st.none(), segmentations), max_size=2)), max_size=2))
def test_masks_of_instances(tmp_path: Path, content: Any) -> None:
    masks = reads(InstanceMasks, write(tmp_path / "mask_dict.json", content))
    for instance, frames in content.items() if masks else ():
        for frame in range(len(frames)):
            union = reads(unite, {instance: masks.read(instance, frame)}, MASK_SIZE, "a.json")
            assert union is None or union.shape == MASK_SIZE


# -------- Random configurations, flags, JSON files and pickles ------------------


NAMES = tuple(field.name for field in dataclasses.fields(Config))
YAML = (
    *("!!python/object/apply:os.system [touch x]", "!!python/name:os.system", "!!timestamp 2001-99-99", "&a [*a]"),
    *('!!int ""', '!!float ""', "!!bool x", "!!int 0x", "!!int 1:2:x", '!!binary "é"', "!!set [a]", "{<<: 1}", "? a"),
    *("2001-01-01", "0b", "1_", "-", "~", ".inf", "~nobody/x", "'\\0'", '"\\0"', "1" * 5000),
)
option_values = st.one_of(st.sampled_from(YAML), values(("a",)).map(json.dumps), texts)
option_lines = st.tuples(st.sampled_from((*NAMES, "base")), option_values).map(": ".join)


own_images = st.fixed_dictionaries(
    {},
    optional={
        "id": leaves,
        "file_name": st.one_of(leaves, st.sampled_from(("0.png", "cat/1.png", "/", "."))),
        "height": leaves,
    },
)
own_masks = st.one_of(leaves, st.sampled_from(([[0, 0, 3, 0, 3, 3]], {"size": [4, 5], "counts": [3, 17]})))
own_objects = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("id", "image_id", "video_id", "category_id", "track_id"), leaves),
        **{"segmentation": own_masks, "segmentations": st.lists(own_masks, max_size=2)},
    },
)
own_videos = st.fixed_dictionaries({}, optional={"id": leaves, "file_names": st.lists(leaves, max_size=2)})
own_categories = st.lists(st.fixed_dictionaries({}, optional={"id": leaves, "name": leaves}), max_size=2)
own = st.fixed_dictionaries(
    {},
    optional={
        **{"images": st.lists(own_images, max_size=2), "videos": st.lists(own_videos, max_size=2)},
        **{"annotations": st.lists(own_objects, max_size=2), "categories": own_categories},
    },
)


@few
@given(own, st.sampled_from(("coco", "ytvis")))
@example(
    {
        "images": [{"id": 1, "file_name": "0.png"}],
        "annotations": [{"image_id": 1, "category_id": 2, "segmentation": {"size": [4, 5], "counts": [3, 17]}}],
        "categories": [{"id": 2, "name": "it"}],
    },
    "coco",
)
def test_own_annotations(tmp_path: Path, content: Any, style: str) -> None:
    frames = tmp_path / "clips" / "cat"
    frames.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        Image.new("RGB", MASK_SIZE[::-1]).save(frames / f"{number}.png")
    path, out = write(tmp_path / "a.json", content), tmp_path / "out"
    if reads(import_annotations, style, tmp_path / "clips", path, "category", out):
        (video,) = read_expressions(out / "meta_expressions" / "train" / "meta_expressions.json", "train").values()
        assert video.frames and video.expressions
        shutil.rmtree(out)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "clips"], "all or nothing"


@few
@given(st.one_of(st.text(max_size=40), st.lists(option_lines, min_size=1, max_size=3).map("\n".join)))
def test_yaml_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content.encode("utf-8", "replace"))
    cfg = reads(lambda: Config(**read_yaml(Config, path)))
    assert cfg is None or Config(**yaml.safe_load(yaml.safe_dump(config_dict(cfg)))) == cfg


def test_every_odd_value_for_every_kind_of_option(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for name in ("lr", "seed", "eval", "train_scales", "lora_targets", "ytvos_path", "model", "lora_rank", "base"):
        for value in YAML:
            path.write_text(f"{name}: {value}\n")
            reads(read_yaml, Config, path)
    assert not Path("x").exists(), "a YAML tag must never run code"


command_words = st.lists(
    st.one_of(st.sampled_from(NAMES).map("--{}".format), texts, st.sampled_from(("-1", "--", "inf")))
)


@few
@given(command_words.filter(lambda line: not {"--help", "-h"} & set(line)))
def test_flags(line: list[str]) -> None:
    cfg = reads(load_config, line, "")
    assert cfg is None or isinstance(cfg, Config)
    command = reads(read_command, ["video.mp4", *line])
    assert command is None or all(sentence.strip() for sentence in command[1])


@few
@given(st.one_of(texts, st.text("0123456789:.", max_size=8)))
def test_times(text: str) -> None:
    time = reads(parse_time, text, "--start")
    assert time is None or time >= 0


@few
@given(st.one_of(st.binary(max_size=40), st.text('{}[]",:0123456789eE+-.nulltrfas\\ud8 ', max_size=30).map(str.encode)))
@example(b'{"a": ' + b"1" * 5000 + b"}")
@example(b"\xef\xbb\xbf{}")
def test_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    reads(read_json, path, "numbers")


plain_values = st.recursive(
    st.one_of(leaves, st.binary(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(leaves, inner)),
    max_leaves=6,
)


@few
@given(
    st.one_of(st.binary(max_size=40), st.tuples(plain_values, st.sampled_from((2, 4))).map(lambda v: pickle.dumps(*v)))
)
@example(b"\x80\x02]r\xff\xff\xff\xff.")  # a memo index of 2³²
@example(b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.")  # 64 GiB of bytes
def test_pickles(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.p"
    path.write_bytes(content)
    reads(read_plain_pickle, path, "the expressions")


references = st.fixed_dictionaries(
    {"split": st.sampled_from(("val", "train", "x")), "image_id": st.integers(0, 1), "ann_id": st.integers(0, 1)},
    optional={
        "ref_id": leaves,
        "sentences": st.one_of(leaves, st.lists(st.fixed_dictionaries({"sent": leaves, "sent_id": leaves}))),
    },
)
coco_objects = st.fixed_dictionaries(
    {"id": st.integers(0, 1), "image_id": st.integers(0, 1)}, optional={"bbox": leaves}
)
coco_images = st.fixed_dictionaries({"id": st.integers(0, 1), "file_name": st.one_of(st.just("a.jpg"), leaves)})


@few
@given(st.lists(references, max_size=2), st.lists(coco_images, max_size=2), st.lists(coco_objects, max_size=2))
def test_references(tmp_path: Path, spoken: Any, pictures: Any, things: Any) -> None:
    source = tmp_path / "refer" / "refcoco"
    write(source / "instances.json", {"images": pictures, "annotations": things})
    (source / "refs(unc).p").write_bytes(pickle.dumps(spoken, 2))
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / "a.jpg").touch()
    reads(convert_refcoco, "refcoco", tmp_path / "refer", tmp_path / "out", tmp_path / "images")


# -------- Damaged files ---------------------------------------------------------


FILE_SIZE = (20, 30)
COPIES = 40
PIXELS = np.random.default_rng(0).integers(0, 255, (*FILE_SIZE, 3), dtype=np.uint8)
PICTURES = [Image.fromarray(np.roll(PIXELS, number, 0)) for number in range(3)]


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The content of a picture's file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def palette_png() -> bytes:
    ids = np.zeros(FILE_SIZE, np.uint8)
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
            assert isinstance(find(file, FILE_SIZE), str | None)


def sizes_match(read: Callable[[Path], Any]) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        assert read(path).shape[-2:] == frame_size(path)

    return check


def try_all(folder: Path, suffix: str, good: bytes, *readers: Callable[[Path], Any]) -> None:
    """Call all readers on damaged copies of a file. The first must be able to read the file itself."""
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


def test_an_h5_file_with_other_content(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for ids, masks in (("text", "text"), (np.zeros(3), np.zeros(3)), (np.nan, np.ones((2, 2))), (None, None)):
        with h5py.File(path, "w") as file:
            for name, value in (("instance", ids), ("reMask", masks)):
                file.create_group(name) if value is None else file.create_dataset(name, data=value)
        reads(read_instance_mask, path, 1)
    with h5py.File(path, "w") as file:
        file["instance"] = np.ones(1)
        file.create_dataset("reMask", (1, 2**20, 2**20), np.uint8, chunks=(1, 64, 64))  # declared but not stored
    assert path.stat().st_size < 10_000 and reads(read_instance_mask, path, 1) is None


@pytest.mark.parametrize("packed", [False, True])
def test_matlab(tmp_path: Path, packed: bool) -> None:
    """SciPy alone crashes the process on some of these."""
    savemat(tmp_path / "good.mat", {"part_mask": np.ones((*FILE_SIZE, 3), np.uint8)}, do_compression=packed)
    good = (tmp_path / "good.mat").read_bytes()
    try_all(tmp_path, ".mat", good, lambda path: read_puppet_mask(path, 2), count_puppet_masks)
    if not packed:
        tagged = bytearray(good)
        tagged[201] = 0x80  # the type of the element of the values
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
        archive.writestr("Annotations/v/0/00000.png", encoded(Image.new("L", FILE_SIZE[::-1]), "PNG"))
    try_all(tmp_path, ".zip", file.getvalue(), lambda path: check_submission(path, [video]))
