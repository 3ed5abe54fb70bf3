"""The documentation: scripts accept its commands, its links and names exist, and its marked blocks run on toy data.

A fenced block after the comment ``<!-- runs -->`` is run on toy data; ``<!-- runs with: FLAGS -->`` adds flags to each
of its commands, to keep the run short.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from datasets.registry import load_config
from tests.commands import run_command
from tests.conftest import ROOT
from tests.true_formats import write_own_clips
from util.errors import Parser, UserError

DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb"))
PAGES = ("README.md", "CONTRIBUTING.md", *DOCS)
# Shell scripts that pass their arguments to a Python script after the setup.
THIN = {f"scripts/{name}.sh": f"scripts.{name}" for name in ("quickstart", "toy_lab", "train_toy")}
OPTIONS_IN_TEXT = ("scripts/setup.sh", "scripts/test.sh")
SHELLS = ("bash", "sh", "sbatch")
OTHER_PROGRAMS = {"source", "pip", "tensorboard", "hf", "git", "cp", "pre-commit", ".venv/bin/pip", "sha256sum", "tar"}

_FENCE = re.compile(
    r"(?P<mark><!-- runs(?: with: (?P<extra>[^\n]*?))? -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_PLACEHOLDERS = {"NAME": "ytvos", "SPLIT": "valid", "CONFIG": "vdit_ytvos"}  # where only some values are accepted


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: its file.
        language: the word after the fence.
        body: its lines.
        runs: whether it is run on toy data.
        extra: flags that the test adds.
    """

    page: str
    language: str
    body: str
    runs: bool
    extra: tuple[str, ...]

    @property
    def commands(self) -> list[list[str]]:
        """Its commands, split into words; empty if the block shows something else, such as a folder layout."""
        lines = [line for line in self.body.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
        first = re.match(r"(?:[A-Z_]+=\S+ )*(\S+)", lines[0]) if lines else None
        shown = self.language not in ("", "bash", "sh") or first is None or not is_program(first[1])
        return [] if shown else [words for line in lines for words in command_words(line)]


def read_page(page: str) -> str:
    """The text of a page; of a notebook, that between its code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if not page.endswith(".ipynb"):
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(
            page,
            match["language"],
            re.sub(f"^{match['indent']}", "", match["body"], flags=re.MULTILINE),
            match["mark"] is not None,
            tuple(shlex.split(match["extra"] or "")),
        )
        for match in _FENCE.finditer(read_page(page))
    ]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", read_page(page))


def code_spans(page: str) -> list[str]:
    """Texts in single backquotes."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def is_program(word: str) -> bool:
    """Whether a line that starts with this word is a command."""
    return word in {"python", *SHELLS, *OTHER_PROGRAMS}


def command_words(line: str) -> list[list[str]]:
    """Commands of a line: one for each choice in braces, without brackets, ellipses and environment variables."""
    if "python -c" not in line:
        line = re.sub(r"[\[\]]", " ", re.sub(r"\|[^\]]*(?=\])", " ", line))  # take the first alternative
    words = [word for word in shlex.split(line, comments=True) if word != "…"]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    return [list(choice) for choice in itertools.product(*map(braces, words))] if words else []


def braces(word: str) -> list[str]:
    """``dist_{a,b}.sh`` → ``dist_a.sh``, ``dist_b.sh``."""
    match = re.search(r"\{([^{}]*,[^{}]*)\}", word)
    if not match:
        return [word]
    return [rest for choice in match[1].split(",") for rest in braces(word.replace(match[0], choice, 1))]


class Parsed(BaseException):
    """Raised when a script has read its command line."""


def check_command(words: list[str]) -> None:
    """Let a script parse a command, and stop before its work begins.

    Raises:
        AssertionError: there is no such script, or it has no such option.
        UserError: the value of an option is wrong.
        SystemExit: argparse rejects the command line.
    """
    program, *rest = (_PLACEHOLDERS.get(word, word) for word in words)
    if program == "python":
        module, arguments = python_script(rest)
        if module:
            parse(module, arguments)
    elif program in SHELLS:
        script, *arguments = rest
        assert (ROOT / script).is_file(), f"{script} does not exist"
        if program == "sbatch":
            script, *arguments = arguments
        check_shell(script, arguments)
    else:
        assert program in OTHER_PROGRAMS, f"unknown program {program}"


def python_script(words: list[str]) -> tuple[str, list[str]]:
    """Module and arguments of ``python WORDS``; the module is empty if it is not the project's."""
    match words:
        case ["-c", code]:
            compile(code, "docs", "exec")
            return "", []
        case ["-m", "pytest", *tests]:
            assert all((ROOT / test).exists() for test in tests if test.startswith("tests"))
            return "", []
        case ["-m", module, *arguments]:
            return module, arguments
        case [script, *arguments]:
            assert (ROOT / script).is_file(), f"{script} does not exist"
            return ("", []) if script.endswith("setup.py") else (script.removesuffix(".py"), arguments)
    raise AssertionError(f"python {words}")


def check_shell(script: str, arguments: list[str]) -> None:
    """Like ``check_command``, for one of the project's shell scripts."""
    if script in THIN:
        parse(THIN[script], arguments)
    elif script in OPTIONS_IN_TEXT:
        known = (ROOT / script).read_text(encoding="utf-8")
        assert all(word in known for word in arguments[:1] if word.startswith("--")), (script, arguments)
    elif script == "scripts/launch.sh":
        if arguments[0] == "--nproc":
            arguments = arguments[2:]
        if arguments[0] in ("train", "test"):
            check_recipe(script, *arguments)
        else:
            check_command(["python", *arguments])
    else:
        launched = re.search(r'launch.sh" (train|test)( \w+)? "\${?@', (ROOT / script).read_text(encoding="utf-8"))
        assert launched, f"{script} does not start a recipe"
        check_recipe(script, launched[1], *(launched[2] or "").split(), *arguments)


def check_recipe(script: str, task: str, config: str, *arguments: str) -> None:
    """Let ``main.py`` parse what a launch script passes to it; ``CONFIG`` stands for any configuration."""
    values = 1 if task == "train" else 2
    assert len(arguments) >= values and not any(word.startswith("-") for word in arguments[:values]), (
        f"{script} lacks a folder or checkpoint"
    )
    parse("main", ["--config", f"configs/{_PLACEHOLDERS.get(config, config)}.yaml", *arguments[values:]])


def parse(module: str, arguments: list[str]) -> None:
    """Start a script and stop it when it has read its command line."""
    script = import_module(module)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(ROOT))
        stack.enter_context(mock.patch.object(sys, "argv", [module, *arguments]))
        stack.enter_context(stopping(Parser, "parse_args"))
        modules = (script, import_module("inference_ytvos"))
        readers = ((m, name) for m in modules for name in ("load_config", "read_options"))
        for reader in {pair for pair in readers if hasattr(*pair)}:
            stack.enter_context(stopping(*reader))
        try:
            script.main()
        except Parsed:
            return
        except SystemExit as end:
            assert end.code == 0, f"{module} rejects its command line"  # 0: --help
            return
    raise AssertionError(f"{module} has not read its command line")


def stopping(owner: Any, name: str) -> Any:
    """Patch a function that reads the command line, so that it raises ``Parsed`` afterwards."""
    read = getattr(owner, name)

    def stop(*args: Any, **kwargs: Any) -> None:
        read(*args, **kwargs)
        raise Parsed

    return mock.patch.object(owner, name, stop)


@cache
def known_flags() -> frozenset[str]:
    """Every option of every script."""
    files = [*ROOT.glob("*.py"), *(ROOT / "scripts").iterdir(), *(ROOT / "util").glob("*.py")]
    files += [ROOT / "tests" / f"{name}.py" for name in ("all_evaluations", "parity", "full_size", "bad_inputs")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in (".py", ".sh", ".sbatch")]
    declared = {f"--{name}" for text in texts for name in re.findall(r"^    (\w+): [\w\[\], |.]+ = _\w+\(", text, re.M)}
    quoted = {flag for text in texts for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    return frozenset(declared | quoted | {flag.replace("--", "--no-", 1) for flag in declared})


def anchors(page: Path) -> Iterator[str]:
    """Anchors of a page's headings, as GitHub generates them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ +(.+)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# -------- Tests ------------------------------------------------------------------


RUN_PAGES = (
    "data",
    "training",
    "evaluation",
    "checkpoints",
    "library",
    "demo",
    "finetune",
    "generators",
)  # later pages use earlier results
MADE_UP = "forest"  # the dataset that docs/development.md adds
# Options of other programs, and of the benchmark at the commit whose measurements docs/performance.md shows.
FOREIGN_FLAGS = {"--logdir", "--prefix", "--local-dir", "--repo-type", "--space-sdk", "--shm-size", f"--{MADE_UP}_path"}
FOREIGN_FLAGS |= {"--cache-dir", "--sweep-frames", "--sweep-sentences", "--exclude"}
ROOMS = ("configs", "scripts", "models", "datasets", "util", "tests", "toy", "docs", "space")


def test_contents_lists_every_page() -> None:
    listed = re.findall(r"\]\((\w+\.(?:md|ipynb))\)", read_page("docs/README.md"))
    assert sorted(listed) == sorted({Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"})


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_known_to_their_scripts(page: str) -> None:
    spans = [
        f"{span}\n" for span in code_spans(page) if re.match(r"(python|bash|sh|sbatch) [^\s…]+[./][^\s…]+( |$)", span)
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
    text = re.sub(r"<!-- (\S+\.json) -->.*?<!-- end of \1 -->", "", read_page(page), flags=re.DOTALL)
    flags = set(re.findall(r"(?<![\w!-])--[a-z][\w-]*", re.sub(r"<!--.*?-->", "", text)))
    assert flags - known_flags() - FOREIGN_FLAGS == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page: str) -> None:
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
        for name in braces(span):
            missing = not_there(name)
            assert not missing, f"{page} names {missing}"


def not_there(name: str) -> str:
    """The missing file, module or recipe that a name refers to; empty if there is none."""
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


def test_mistakes_are_found() -> None:
    """Shows that the checks above can fail."""
    for command in (
        "python main.py --epoch 3",
        "python -m scripts.check_data coco x",
        "sh scripts/absent.sh",
        "sh scripts/dist_test.sh vdit_davis",
    ):
        with pytest.raises((UserError, AssertionError, argparse.ArgumentError)):
            check_command(command.split())
    for name in ("configs/absent.yaml", "util.files.absent", "vdit_absent", "absent.py", "scripts.absent"):
        assert not_there(name) == name
    assert not_there("util.files.write_json") == not_there("models/ops") == not_there("vdit_ytvos") == ""
    assert "what-is-written" in set(anchors(ROOT / "docs" / "demo.md")) and "--ytvos_path" in known_flags()
    assert command_words("A=1 bash scripts/x_{a,b}.sh [--copy] … # x") == [
        ["bash", "scripts/x_a.sh", "--copy"],
        ["bash", "scripts/x_b.sh", "--copy"],
    ]


def test_every_recipe_is_read() -> None:
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        load_config(["--config", str(path)], "")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a fresh clone to commands and that they may write to."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "toy", "scripts", "docs"):
        (folder / name).symlink_to(ROOT / name)
    write_own_clips(folder, frames=4)  # of docs/finetune.md
    return folder


@pytest.mark.slow
def test_pages_on_toy_data(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every marked block, page by page."""
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
