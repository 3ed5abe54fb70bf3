"""One place for the version, a release that installs, hooks, the citation, and options that do something."""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from util.config import Config

NEEDED = (
    *("scripts/setup.sh", "requirements.txt", "requirements-dev.txt", "constraints.txt", "pyproject.toml", "README.md"),
    *("LICENSE", "NOTICE", "CHANGELOG.md", "CITATION.cff", "models/ops/setup.py", "toy/vdit.safetensors", "main.py"),
    *("toy/stack/unet/config.json", "configs/vdit_ytvos.yaml", "configs/full_size/unet/config.json"),
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked release of the last commit."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no git checkout, so no release can be made of it")
    folder = tmp_path_factory.mktemp("release")
    words = ["git", "archive", "--prefix=release/", "--output", str(folder / "release.tar.gz"), "HEAD"]
    subprocess.run(words, cwd=ROOT, check=True)
    with tarfile.open(folder / "release.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "release"


def test_a_release_has_what_its_set_up_needs(release: Path) -> None:
    assert [name for name in NEEDED if not (release / name).is_file()] == []
    assert not list(release.rglob("*.so")) and not (release / ".venv").exists() and not (release / "runs").exists()
    refused = subprocess.run([release / "scripts/setup.sh", "--nothing"], capture_output=True, text=True)
    assert (refused.returncode, refused.stderr[:24]) == (2, "error: unknown argument ")


def test_a_release_runs(release: Path, tmp_path: Path) -> None:
    """With this environment, which is what its set-up would make."""
    words = [sys.executable, "-m", "scripts.make_toy_data", "--output_dir", str(tmp_path / "toy")]
    small = ["--train_videos", "1", "--valid_videos", "1", "--num_frames", "4"]
    done = subprocess.run([*words, *small], cwd=release, capture_output=True, text=True)
    assert done.returncode == 0 and "toy data written" in done.stdout, done.stderr


def test_the_version_stands_in_one_place() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert changelog.count("## [Unreleased]") == 1
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changelog, re.MULTILINE)
    assert re.findall(r"^## \[(\d.*?)\]", changelog, re.MULTILINE) == released and released[:1] in ([], [version])
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def test_citation() -> None:
    """The keys that the format asks for, and both papers as NOTICE names them."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    notice = " ".join((ROOT / "NOTICE").read_text("utf-8").split())
    assert {"cff-version", "message", "title", "authors"} <= set(cff) and cff["cff-version"] == "1.2.0"
    assert len(cff["references"]) == 2
    for paper in cff["references"]:
        names = ", ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"])
        number = paper["identifiers"][0]["value"].removeprefix("arXiv:")
        assert {"type", "title", "authors"} <= set(paper)
        assert f"{names}. {paper['title']}." in notice and f"arXiv {number}" in notice


def test_hooks_check_what_the_tests_check() -> None:
    """And nothing has to be fetched for them."""
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    hooks = {hook["id"]: hook["entry"] for hook in repo["hooks"]}
    tests = (ROOT / "scripts" / "test.sh").read_text("utf-8")
    assert repo["repo"] == "local" and {hook["language"] for hook in repo["hooks"]} == {"system"}
    assert all(entry.startswith(".venv/bin/python -m ") for entry in hooks.values())
    for tool in ("ruff check", "ruff format", "mypy"):
        assert f"-m {tool}" in tests and any(f"-m {tool}" in entry for entry in hooks.values())


def test_every_option_is_read_somewhere() -> None:
    """An option that nothing reads would be believed to do something."""
    read: set[str] = set()
    for path in [
        *ROOT.glob("*.py"),
        *(p for room in ("models", "datasets", "util", "scripts") for p in (ROOT / room).rglob("*.py")),
    ]:
        if path == ROOT / "util" / "config.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("cfg", "config", "self.cfg", "options"):
                read.add(node.attr)
    by_name = {"config"}  # by util.config itself
    assert {field.name for field in dataclasses.fields(Config)} - read - by_name == set()
