"""One place for the version, hooks, the citation, and options that do something."""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib

import yaml

from datasets.registry import DATASETS
from tests.conftest import ROOT
from util.config import Config


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
    # By ``util.config`` itself, the registry, and the builder of the encoder.
    by_name = {"config", *(row.root for row in DATASETS.values()), "noise", "stride4", "lora_rank"}
    assert {field.name for field in dataclasses.fields(Config)} - read - by_name == set()
