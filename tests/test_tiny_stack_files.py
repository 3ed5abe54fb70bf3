"""How the tiny stack treats folders and files of sentences."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL

from models.diffusion import tiny
from models.diffusion.tiny import STAMP, make_tiny_stack
from scripts.make_tiny_stack import main, read_sentences
from tests.test_tiny_stack import QUICK, SENTENCES, WEIGHTS
from util.errors import UserError, run_cli

# ------------------------------------------------------------------ folders


@pytest.fixture(scope="module")
def quick_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_stack(tmp_path_factory.mktemp("quick") / "stack", **QUICK)


@pytest.fixture
def stack(quick_stack: Path, tmp_path: Path) -> Path:
    """A stack that a test may change."""
    return Path(shutil.copytree(quick_stack, tmp_path / "stack"))


def test_same_stack_is_kept(stack: Path) -> None:
    (stack / "unet" / "notes.txt").write_text("mine")
    assert make_tiny_stack(stack, **QUICK) == stack
    assert (stack / "unet" / "notes.txt").exists(), "it was written again"


def test_other_parameters_need_force(stack: Path) -> None:
    before = (stack / WEIGHTS[0]).read_bytes()
    for change in ({"seed": 1}, {"sentences": SENTENCES}, {"head_dim": 32}):
        with pytest.raises(UserError, match="--force"):
            make_tiny_stack(stack, **{**QUICK, **change})
    assert (stack / WEIGHTS[0]).read_bytes() == before
    make_tiny_stack(stack, seed=1, force=True, **QUICK)
    assert (stack / WEIGHTS[0]).read_bytes() != before
    assert [path.name for path in stack.parent.iterdir()] == ["stack"], "something was left beside it"


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_incomplete_stack_is_named_and_repaired_by_force(stack: Path, damage: str) -> None:
    broken = stack / WEIGHTS[1]
    broken.unlink() if damage == "missing" else broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(UserError, match="incomplete"):
        make_tiny_stack(stack, **QUICK)
    make_tiny_stack(stack, force=True, **QUICK)
    AutoencoderKL.from_pretrained(stack, subfolder="vae", local_files_only=True)


@pytest.mark.parametrize("force", [False, True])
def test_foreign_folder_is_never_replaced(stack: Path, tmp_path: Path, force: bool) -> None:
    mine = tmp_path / "mine"
    (mine / "unet").mkdir(parents=True)
    (stack / "thesis.txt").write_text("years")
    for folder in (mine, stack):
        with pytest.raises(UserError, match="holds something else"):
            make_tiny_stack(folder, seed=7, force=force, **QUICK)
    assert (mine / "unet").is_dir()
    assert (stack / "thesis.txt").read_text() == "years"


def test_empty_folder_is_used_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (make_tiny_stack(tmp_path / "empty", **QUICK) / STAMP).is_file()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"file is a file|cannot write"):
            make_tiny_stack(folder, **QUICK)


def test_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "randomise", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_tiny_stack(tmp_path / "stack", **QUICK)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- sentences


def test_sentence_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a red dog\n\na blue cat\n", encoding="utf-8")
    (tmp_path / "b.json").write_text('["a red dog", "猫"]', encoding="utf-8")
    expressions = {"videos": {"v": {"frames": ["0"], "expressions": {"0": {"exp": "a red dog", "obj_id": "1"}}}}}
    (tmp_path / "c.json").write_text(json.dumps(expressions), encoding="utf-8")
    assert read_sentences(tmp_path / "a.txt") == ["a red dog", "", "a blue cat"]
    assert read_sentences(tmp_path / "b.json") == ["a red dog", "猫"]
    assert read_sentences(tmp_path / "c.json") == ["a red dog"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.json", None),
        ("missing.txt", None),
        ("broken.json", b"[1,"),
        ("numbers.json", b"[1, 2]"),
        ("text.json", b'"a red dog"'),
        ("layout.json", b'{"videos": {"v": ["a red dog"]}}'),
        ("value.json", b'{"videos": {"v": {"expressions": {"0": {"exp": 3}}}}}'),
        ("empty.json", b"[]"),
        ("blank.txt", b"\n  \n"),
        ("picture.txt", b"\xff\xd8\xff\xe0"),
    ],
)
def test_bad_sentence_files_end_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments = ["make_tiny_stack", "--output_dir", str(tmp_path / "stack"), "--sentences", str(tmp_path / name)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert name in lines[0]
    assert not (tmp_path / "stack").exists()
