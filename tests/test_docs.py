"""The documentation: its commands are known to their scripts, its links and names exist, and it runs on toy data."""

from __future__ import annotations

import argparse
import contextlib
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests import docs_tools
from tests.commands import run_command
from tests.conftest import ROOT
from tests.docs_tools import PAGES, Block, anchors, blocks, check_command, code_spans, known_flags, prose, python_script
from util.config import load_config
from util.errors import UserError

RUN_PAGES = ("data", "training", "evaluation", "checkpoints", "library", "demo")  # in the order in which they build on
MADE_UP = "forest"  # the dataset that docs/development.md adds
# Options of other programs.
FOREIGN_FLAGS = {"--logdir", "--prefix", "--local-dir", "--shm-size", f"--{MADE_UP}_path"}
ROOMS = ("configs", "scripts", "models", "datasets", "util", "tests", "toy", "docs")


def test_contents_lists_every_page() -> None:
    listed = re.findall(r"\]\((\w+\.md)\)", docs_tools.read_page("docs/README.md"))
    assert sorted(listed) == sorted({Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"})


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_known_to_their_scripts(page: str) -> None:
    spans = [
        f"{span}\n" for span in code_spans(page) if re.match(r"(python|bash|sbatch) [^\s…]+[./][^\s…]+( |$)", span)
    ]
    written = [*blocks(page), *(Block(page, "", span.removesuffix("\n"), False, ()) for span in spans)]
    for block in written:
        if block.language == "python":
            compile(block.body, page, "exec", dont_inherit=True)
        for words in block.commands:
            try:
                check_command(words)
            except Exception as error:
                pytest.fail(f"{page}: {' '.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES)
def test_flags_are_known(page: str) -> None:
    text = docs_tools.read_page(page)
    flags = set(re.findall(r"(?<![\w!-])--[a-z][\w-]*", re.sub(r"<!--.*?-->", "", text)))
    assert flags - known_flags() - FOREIGN_FLAGS == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page} links to {target}, and {file.name} has no such heading"


@pytest.mark.parametrize("page", PAGES)
def test_named_files_modules_and_recipes_exist(page: str) -> None:
    for span in code_spans(page):
        if MADE_UP in span:
            continue
        for name in docs_tools.braces(span):
            missing = not_there(name)
            assert not missing, f"{page} names {missing}"


def not_there(name: str) -> str:
    """The file, module or recipe of the project that a name stands for and that is missing; empty: all is well."""
    path = name.split()[0] if " " in name else name
    if re.fullmatch(rf"({'|'.join(ROOMS)})/[\w./+-]*", path):
        return "" if (ROOT / path).exists() else path
    if re.fullmatch(r"[\w-]+\.py", path):
        return "" if (ROOT / path).is_file() else path
    if match := re.fullmatch(rf"((?:{'|'.join(ROOMS)})(?:\.[a-z]\w*)+)(?:\.([A-Z]\w*))?(?:\(.*)?", name):
        module, attribute = match[1], match[2]
        file = ROOT.joinpath(*module.split("."))
        if not file.with_suffix(".py").is_file() and not file.is_dir():
            file, attribute = file.parent, file.name
        source = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        known = source.is_file() and (not attribute or re.search(rf"\b{attribute}\b", source.read_text("utf-8")))
        return "" if known else name
    if re.fullmatch(r"(vdit|hcd)_[a-z0-9_]+", name):
        return "" if any((ROOT / "configs" / where / f"{name}.yaml").is_file() for where in ("", "ablations")) else name
    return ""


def test_a_mistake_is_seen() -> None:
    """Without these, a reader that finds nothing would pass."""
    for command in ("python main.py --epoch 3", "python -m scripts.check_data coco x", "bash scripts/absent.sh"):
        with pytest.raises((UserError, AssertionError, argparse.ArgumentError)):
            check_command(command.split())
    for name in ("configs/absent.yaml", "util.io.absent", "vdit_absent", "absent.py", "scripts.absent"):
        assert not_there(name) == name
    assert not_there("util.io.write_json") == not_there("models/ops") == not_there("vdit_ytvos") == ""
    assert "as-parts" in set(anchors(ROOT / "docs" / "demo.md")) and "--ytvos_path" in known_flags()
    assert docs_tools.command_words("A=1 bash scripts/x_{a,b}.sh [--copy] … # x") == [
        ["bash", "scripts/x_a.sh", "--copy"],
        ["bash", "scripts/x_b.sh", "--copy"],
    ]


def test_every_recipe_is_read() -> None:
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        load_config(["--config", str(path)], "")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a fresh clone to a command, and is written in its place."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "toy", "scripts", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.slow
def test_pages_on_toy_data(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every marked block, page after page, as somebody does who follows them."""
    monkeypatch.setattr("tests.commands.ROOT", checkout)
    ran = 0
    for block in (block for page in RUN_PAGES for block in blocks(f"docs/{page}.md") if block.runs):
        if block.language == "python":
            with contextlib.chdir(checkout):
                exec(compile(block.body, block.page, "exec", dont_inherit=True), {})
        for _, *words in block.commands:
            module, arguments = python_script(words)
            done = run_command(import_module(module).main, *arguments, *block.extra)
            assert done.returncode == 0, f"{block.page}: python {' '.join(words)}\n{done.stdout}{done.stderr}"
        ran += 1
    marked = sum(block.runs for page in PAGES for block in blocks(page))
    assert ran == marked, "a page with marked blocks is not in RUN_PAGES"
    assert ran >= len(RUN_PAGES)
