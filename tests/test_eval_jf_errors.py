"""The scoring command: what users get wrong is one sentence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts import eval_jf
from tests.jf_tools import SIZE, edit_json, write_davis, write_mask, write_ytvos
from util.errors import UserError


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    return write_davis(tmp_path)


@pytest.fixture
def ytvos(tmp_path: Path) -> Path:
    return write_ytvos(tmp_path)


def spoil_truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def spoil_checksum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") - 5] ^= 1  # within the check sum of the pixels
    path.write_bytes(content)


def spoil_content(path: Path) -> None:
    path.write_bytes(b"no image at all")


def spoil_mode(path: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(path)


def spoil_size(path: Path) -> None:
    write_mask(path, np.zeros((SIZE[0], SIZE[1] + 1), bool))


def spoil_value(path: Path) -> None:
    write_mask(path, np.full(SIZE, 99, np.uint8))


SPOILS = [
    (Path.unlink, "is missing"),
    (spoil_truncated, "broken or no PNG"),
    (spoil_checksum, "broken or no PNG"),
    (spoil_content, "broken or no PNG"),
    (spoil_mode, "mode RGB"),
    (spoil_size, "is 33×24 pixels"),
]


def refuse(match: str, *argv: object) -> None:
    with pytest.raises(UserError, match=match) as caught:
        eval_jf.main([*map(str, argv), "--workers", "1"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("spoil", "message"), [*SPOILS, (spoil_value, "holds the id 99, but the sequence has 3")])
def test_bad_davis_prediction(davis: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(davis / "pred" / "dog" / "00002.png")
    refuse(f"dog/00002.png.*{message}", "--gt", davis / "gt", "--pred", davis / "pred")


@pytest.mark.parametrize(("spoil", "message"), [*SPOILS, (spoil_value, "holds the value 99.*only 0 and 255")])
def test_bad_expression_prediction(ytvos: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(ytvos / "Annotations" / "dog" / "1" / "00005.png")
    refuse(f"dog/1/00005.png.*{message}", "--gt", ytvos / "valid/Annotations", "--pred", ytvos / "Annotations")


def test_missing_ground_truth_frame(ytvos: Path) -> None:
    gt = ytvos / "valid" / "Annotations"
    (gt / "cat" / "00010.png").unlink()
    refuse("cat/00010.png is missing", "--gt", gt, "--pred", ytvos / "Annotations")


def test_missing_masks_are_counted(davis: Path) -> None:
    shutil.rmtree(davis / "pred" / "dog")
    refuse(r"dog/00001.png is missing \(and 2 more\)", "--gt", davis / "gt", "--pred", davis / "pred")


def test_too_many_proposals(davis: Path) -> None:
    spoil_value(davis / "pred" / "dog" / "00000.png")
    folders = ("--gt", davis / "gt", "--pred", davis / "pred")
    refuse("holds the id 99, but the task allows 20", *folders, "--task", "unsupervised")


def test_ground_truth_that_cannot_be_scored(davis: Path) -> None:
    folders = ("--gt", davis / "gt", "--pred", davis / "pred")
    write_mask(davis / "gt" / "cat" / "00000.png", np.full(SIZE, 255, np.uint8))
    refuse("cat/00000.png shows no object", *folders)
    for number in (2, 3, 4):
        (davis / "gt" / "cat" / f"0000{number}.png").unlink()
    refuse("cat holds 2 PNG files.*at least 3", *folders)


def test_missing_folders(davis: Path) -> None:
    gt, pred, none, empty = davis / "gt", davis / "pred", davis / "none", davis / "empty"
    empty.mkdir()
    for task in (["--task", "semi-supervised"], ["--task", "unsupervised"], ["--task", "expressions"], []):
        refuse("none is missing", "--gt", none, "--pred", pred, *(task or ["--task", "semi-supervised"]))
        refuse("none is missing", "--gt", gt, "--pred", none, *task)
    refuse("empty holds neither", "--gt", gt, "--pred", empty)
    refuse("empty holds no folder", "--gt", empty, "--pred", pred)


def test_options_that_do_not_fit(davis: Path) -> None:
    folders = ("--gt", davis / "gt", "--pred", davis / "pred")
    names = davis / "names.txt"
    refuse("cannot read .*names.txt", *folders, "--sequences", names)
    names.write_text("\n")
    refuse("names.txt is empty", *folders, "--sequences", names)
    names.write_text("bird\n")
    refuse("gt/bird is missing", *folders, "--sequences", names)
    refuse("--sequences belongs to", *folders, "--sequences", names, "--task", "expressions")
    refuse("--expressions_file belongs to", *folders, "--expressions", names)
    refuse("is a folder; name a file", *folders, "--json", davis)
    with pytest.raises(UserError, match="--workers must be at least 1"):
        eval_jf.main([*map(str, folders), "--workers", "0"])


def drop_obj_id(meta: dict[str, Any]) -> None:
    del meta["videos"]["cat"]["expressions"]["0"]["obj_id"]


def spoil_obj_id(meta: dict[str, Any]) -> None:
    meta["videos"]["cat"]["expressions"]["0"]["obj_id"] = "0"


def drop_frames(meta: dict[str, Any]) -> None:
    meta["videos"]["cat"]["frames"] = []


def keep_test_video(meta: dict[str, Any]) -> None:
    meta["videos"] = {"test": meta["videos"]["test"]}


def spoil_videos(meta: dict[str, Any]) -> None:
    meta["videos"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_obj_id, "expression '0' of video 'cat' has no 'obj_id'.*--expressions"),
        (spoil_obj_id, "'obj_id' of expression '0' of video 'cat' is '0'"),
        (drop_frames, "video 'cat' should have a list of frame names"),
        (keep_test_video, "none of the 1 videos"),
        (spoil_videos, "'videos' should be a JSON object"),
    ],
)
def test_bad_expressions_file(ytvos: Path, change: Callable[[Any], None], message: str) -> None:
    path = ytvos / "meta_expressions" / "valid" / "meta_expressions.json"
    edit_json(path, change)
    refuse(
        f"meta_expressions.json.*{message}|{message}.*meta_expressions.json",
        *("--gt", ytvos / "valid" / "Annotations", "--pred", ytvos / "Annotations"),
    )


def test_missing_expressions_file_ends_in_one_sentence(ytvos: Path, root: Path) -> None:
    path = ytvos / "meta_expressions" / "valid" / "meta_expressions.json"
    path.unlink()
    folders = ["--gt", ytvos / "valid" / "Annotations", "--pred", ytvos / "Annotations"]
    run = subprocess.run(
        [sys.executable, "-m", "scripts.eval_jf", *folders], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.splitlines() == [run.stderr.strip()]
    assert f"{path} is missing" in run.stderr
    assert "obj_id" in run.stderr


def test_error_in_a_worker_process_ends_in_one_sentence(davis: Path, root: Path) -> None:
    spoil_truncated(davis / "pred" / "dog" / "00002.png")
    folders = ["--gt", davis / "gt", "--pred", davis / "pred", "--workers", "2"]
    run = subprocess.run(
        [sys.executable, "-m", "scripts.eval_jf", *folders], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "dog/00002.png" in run.stderr
