"""Pickles from strangers: what Python 2 and 3 write of plain values is read, and nothing else is, let alone run."""

from __future__ import annotations

import datetime
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.true_formats import python2_pickle
from util.errors import UserError
from util.files import read_plain_pickle

VALUE = [{"split": "val", "ids": [1, 2**40, -3], "point": (1.5, None, True), "text": "café"}]

# [{'sent': 'a caf\xc3\xa9', 'raw': u'caf\xe9', 'ids': [1, 70000], 'area': 1.5, 'crowd': False}] in the opcodes of
# Python 2.7's protocols 0 (text) and 2.
PYTHON2 = {
    "protocol 0": b"(lp1\n(dp2\nS'ids'\np3\n(lp4\nI1\naI70000\nasS'raw'\np5\nVcaf\\u00e9\np6\nsS'sent'\np7\n"
    b"S'a caf\\xc3\\xa9'\np8\nsS'area'\np9\nF1.5\nsS'crowd'\np10\nI00\nsa.",
    "protocol 2": b"\x80\x02]q\x01}q\x02(U\x03idsq\x03]q\x04(K\x01Jp\x11\x01\x00eU\x03rawq\x05X\x05\x00\x00\x00caf"
    b"\xc3\xa9q\x06U\x04sentq\x07U\x07a caf\xc3\xa9q\x08U\x04areaq\tG?\xf8\x00\x00\x00\x00\x00\x00U\x05crowdq\n\x89ua.",
}
PLAIN = [{"sent": "a café", "raw": "café", "ids": [1, 70000], "area": 1.5, "crowd": False}]


def write(folder: Path, content: bytes) -> Path:
    path = folder / "refs.p"
    path.write_bytes(content)
    return path


def read(folder: Path, content: bytes) -> Any:
    return read_plain_pickle(write(folder, content), "the expressions")


@pytest.mark.parametrize("protocol", PYTHON2)
def test_python_2(tmp_path: Path, protocol: str) -> None:
    assert read(tmp_path, PYTHON2[protocol]) == PLAIN


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_python_3(tmp_path: Path, protocol: int) -> None:
    assert read(tmp_path, pickle.dumps(VALUE, protocol)) == VALUE


def test_byte_strings_are_utf8_or_latin1(tmp_path: Path) -> None:
    value = [{"sent": "a café " + 300 * "x", "id": 7}]
    assert read(tmp_path, python2_pickle(value)) == value
    assert b"\xe9" in python2_pickle(value, "latin-1")
    assert read(tmp_path, python2_pickle(value, "latin-1")) == value


class Command:
    """Runs a command when it is unpickled, as any pickle can."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    content = pickle.dumps([{"sent": "a dog", "id": Command(marker)}], protocol)
    with pytest.raises(UserError, match=r"refs\.p \(the expressions\) is refused: .* names (posix|nt)\.system"):
        read(tmp_path, content)
    assert not marker.exists()
    pickle.loads(content)  # without the restriction it runs
    assert marker.exists()


@pytest.mark.parametrize(
    "value", [OrderedDict(a=1), datetime.date(2026, 1, 1), np.int64(3), np.zeros(2), Path("a"), len]
)
def test_anything_that_is_not_plain_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match="is refused"):
        read(tmp_path, pickle.dumps([value]))


class Outside(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return "elsewhere" if obj == "x" else None


def test_an_object_outside_of_the_file_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Outside(stream).dump(["x"])
    with pytest.raises(UserError, match=r"is refused.*'elsewhere'"):
        read(tmp_path, stream.getvalue())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\x00\x01\x02",
        pickle.dumps(VALUE)[:-5],
        b"\x80\x02]q\x01K\x01b.",  # sets the state of a list
        b"\x80\x63.",  # protocol 99
        b"\x80\x02\x82\x01.",  # an extension
        b"I" + 5000 * b"9" + b"\n.",
        b"(" * 10,
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"refs\.p \(the expressions\) is not a complete pickle file") as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.p is missing; it should hold the expressions"):
        read_plain_pickle(tmp_path / "none.p", "the expressions")
    with pytest.raises(UserError, match="cannot read"):
        read_plain_pickle(tmp_path, "the expressions")
