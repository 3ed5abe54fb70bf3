"""Made-up configuration files and flags: options that hold, or one sentence."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from datasets.refcoco import convert_refcoco
from datasets.registry import load_config
from tests.fuzz_tools import few, leaves, reads, texts, values, write
from util.config import Config, config_dict
from util.config_files import read_yaml
from util.demo_options import read_command
from util.io import read_json
from util.media_frames import parse_time
from util.plain_pickle import read_plain_pickle

NAMES = tuple(field.name for field in dataclasses.fields(Config))
YAML = (
    *("!!python/object/apply:os.system [touch x]", "!!python/name:os.system", "!!timestamp 2001-99-99", "&a [*a]"),
    *('!!int ""', '!!float ""', "!!bool x", "!!int 0x", "!!int 1:2:x", '!!binary "é"', "!!set [a]", "{<<: 1}", "? a"),
    *("2001-01-01", "0b", "1_", "-", "~", ".inf", "~nobody/x", "'\\0'", '"\\ud800"', '"\\0"', "1" * 5000),
)
settings = st.one_of(st.sampled_from(YAML), values(("a",)).map(json.dumps), texts)
lines = st.tuples(st.sampled_from((*NAMES, "base")), settings).map(": ".join)


@few
@given(st.one_of(st.text(max_size=40), st.lists(lines, min_size=1, max_size=3).map("\n".join)))
def test_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content.encode("utf-8", "replace"))
    cfg = reads(lambda: Config(**read_yaml(Config, path)))
    if cfg is not None:
        plain = config_dict(cfg)
        assert Config(**yaml.safe_load(yaml.safe_dump(plain))) == cfg and json.dumps(plain, ensure_ascii=False).encode()


def test_every_odd_value_for_every_kind_of_option(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for name in ("lr", "seed", "eval", "train_scales", "lora_targets", "ytvos_path", "model", "lora_rank", "base"):
        for value in YAML:
            path.write_text(f"{name}: {value}\n")
            reads(read_yaml, Config, path)
    assert not Path("x").exists(), "no tag of a file is ever run"


words = st.lists(st.one_of(st.sampled_from(NAMES).map("--{}".format), texts, st.sampled_from(("-1", "--", "inf"))))


@few
@given(words.filter(lambda line: not {"--help", "-h"} & set(line)))
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
@example(b'"\\ud83d"')
@example(b'"\\\\ud83d"')
@example(b"\xef\xbb\xbf{}")
def test_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    value = reads(read_json, path, "numbers")
    assert json.dumps(value, ensure_ascii=False).encode()


plain = st.recursive(
    st.one_of(leaves, st.binary(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(leaves, inner)),
    max_leaves=6,
)


@few
@given(st.one_of(st.binary(max_size=40), st.tuples(plain, st.sampled_from((2, 4))).map(lambda v: pickle.dumps(*v))))
@example(b"\x80\x02]r\xff\xff\xff\xff.")  # numbered as if there were 2³² others
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
objects = st.fixed_dictionaries({"id": st.integers(0, 1), "image_id": st.integers(0, 1)}, optional={"bbox": leaves})
images = st.fixed_dictionaries({"id": st.integers(0, 1), "file_name": st.one_of(st.just("a.jpg"), leaves)})


@few
@given(st.lists(references, max_size=2), st.lists(images, max_size=2), st.lists(objects, max_size=2))
def test_references(tmp_path: Path, spoken: Any, pictures: Any, things: Any) -> None:
    source = tmp_path / "refer" / "refcoco"
    write(source / "instances.json", {"images": pictures, "annotations": things})
    (source / "refs(unc).p").write_bytes(pickle.dumps(spoken, 2))
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / "a.jpg").touch()
    reads(convert_refcoco, "refcoco", tmp_path / "refer", tmp_path / "out", tmp_path / "images")
