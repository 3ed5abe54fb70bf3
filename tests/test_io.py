"""Files: written whole or not at all, and what cannot be written or read is said in one sentence."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.silent_wrongs import check_renames
from util.errors import UserError
from util.files import atomic_folder, atomic_path, is_unfinished, read_json, write_json
from util.run_log import RunLog


def test_json_comes_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"sentence": "the “red” square"})
    assert read_json(path, "a sentence") == {"sentence": "the “red” square"}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_an_error_in_the_block_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        assert is_unfinished(temporary) and not is_unfinished(path)
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("at", ["copy", "rename"])
def test_a_full_disk_leaves_the_older_folder(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = tmp_path / "source", tmp_path / "deep" / "folder"
    for folder, content in ((source, "new"), (path, "old")):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(content)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def copy(**options: Any) -> None:
        with atomic_folder(path) as staging:
            shutil.copytree(source, staging, dirs_exist_ok=True, **options)

    def rename(folder: Path, target: Path) -> None:
        if target == path and folder.suffix != ".old":  # the older folder has made room, and gets its place back
            full()
        folder.replace(target)

    if at == "rename":
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match=r"^cannot write .*folder: .*No space left on device; choose"):
        copy(copy_function=full if at == "copy" else shutil.copy2)
    monkeypatch.undo()
    assert [file.name for file in path.parent.iterdir()] == ["folder"] and (path / "a.txt").read_text() == "old"
    copy()
    assert [file.name for file in path.parent.iterdir()] == ["folder"] and (path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("copied", [True, False])
def test_a_rename_that_keeps_failing_hides_no_earlier_folder(copied: bool, tmp_path: Path) -> None:
    check_renames(tmp_path, copied)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file/a.json", "part of its folder is a file"), ("folder", "is a folder"), ("x" * 300 + "/a.json", "too long")],
)
def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=reason):
        write_json(tmp_path / name, {})


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.json: No space left"):
        write_json(tmp_path / "a.json", {})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\xff"])
def test_what_is_no_json_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.json") as error:
        read_json(path, "numbers")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("taken", ["log.jsonl", "tensorboard"])
def test_logs_that_cannot_be_written_are_one_sentence(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir() if taken == "log.jsonl" else (tmp_path / taken).write_text("")
    with pytest.raises(UserError, match=f"cannot write the logs .*{taken}"):
        RunLog(tmp_path, 1, 0)
