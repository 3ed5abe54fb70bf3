"""Reading the documentation as a machine: blocks, commands, links, names; parsing a command as its script does.

A fenced block after the comment ``<!-- runs -->`` is run by ``test_docs.py`` on toy data; ``<!-- runs with: FLAGS -->``
adds flags to each of its commands, which keep it short.
"""

from __future__ import annotations

import contextlib
import itertools
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

from tests.conftest import ROOT
from util.command_line import Parser

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
# Shell scripts that hand their arguments to a Python script after the set-up.
THIN = {f"scripts/{name}.sh": f"scripts.{name}" for name in ("quickstart", "eval_all", "toy_lab", "train_toy")}
OPTIONS_IN_TEXT = ("scripts/setup.sh", "scripts/test.sh")
OTHER_PROGRAMS = {"source", "pip", "tensorboard", "hf", "git", "pre-commit", ".venv/bin/pip", "sha256sum", "tar"}

_FENCE = re.compile(
    r"(?P<mark><!-- runs(?: with: (?P<extra>[^\n]*?))? -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_PLACEHOLDERS = {"NAME": "ytvos", "SPLIT": "valid"}  # where a parser wants one of a list


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: its file.
        language: what stands after the fence.
        body: its lines.
        runs: whether it is run on toy data.
        extra: flags that the test adds then.
    """

    page: str
    language: str
    body: str
    runs: bool
    extra: tuple[str, ...]

    @property
    def commands(self) -> list[list[str]]:
        """Its commands as words; none where it shows something else, such as a layout."""
        lines = [line for line in self.body.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
        first = re.match(r"(?:[A-Z_]+=\S+ )*(\S+)", lines[0]) if lines else None
        shown = self.language not in ("", "bash", "sh") or first is None or not is_program(first[1])
        return [] if shown else [words for line in lines for words in command_words(line)]


def read_page(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


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
    """What stands in single backquotes."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def is_program(word: str) -> bool:
    """Whether a line that begins so is a command."""
    return word in {"python", "bash", "sbatch", *OTHER_PROGRAMS}


def command_words(line: str) -> list[list[str]]:
    """A line as commands: every choice in braces once; brackets, ellipses and settings of the environment left out."""
    if "python -c" not in line:
        line = re.sub(r"[\[\]]", " ", re.sub(r"\|[^\]]*(?=\])", " ", line))  # of alternatives the first
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
    """The command line has been read."""


def check_command(words: list[str]) -> None:
    """Read a command as its script does, to where its work would begin.

    Raises:
        AssertionError: there is no such script, or it has no such option.
        UserError: an option's value is wrong, as the script says it.
        SystemExit: argparse refuses the command line.
    """
    program, *rest = (_PLACEHOLDERS.get(word, word) for word in words)
    if program == "python":
        module, arguments = python_script(rest)
        if module:
            parse(module, arguments)
    elif program in ("bash", "sbatch"):
        script, *arguments = rest
        assert (ROOT / script).is_file(), f"{script} does not exist"
        if program == "sbatch":
            script, *arguments = arguments
        check_shell(script, arguments)
    else:
        assert program in OTHER_PROGRAMS, f"unknown program {program}"


def python_script(words: list[str]) -> tuple[str, list[str]]:
    """The module that ``python WORDS`` starts, and its arguments; no module for what is not the project's."""
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
    """The same for one of the project's shell scripts."""
    if script in THIN:
        parse(THIN[script], arguments)
    elif script in OPTIONS_IN_TEXT:
        known = (ROOT / script).read_text(encoding="utf-8")
        assert all(word in known for word in arguments[:1] if word.startswith("--")), (script, arguments)
    elif script == "scripts/launch.sh":
        if arguments[0] == "--nproc":
            arguments = arguments[2:]
        if arguments[0] not in ("train", "test"):
            check_command(["python", *arguments])
    else:
        launched = re.search(r'launch.sh" (train|test) (\w+) "\${?@', (ROOT / script).read_text(encoding="utf-8"))
        assert launched, f"{script} is none of the scripts that start a recipe"
        values = 1 if launched[1] == "train" else 2
        assert not any(word.startswith("-") for word in arguments[:values]), f"{script} lacks a folder or checkpoint"
        parse("main", ["--config", f"configs/{launched[2]}.yaml", *arguments[values:]])


def parse(module: str, arguments: list[str]) -> None:
    """Start a script and stop it once it has read its command line."""
    script = import_module(module)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(ROOT))
        stack.enter_context(mock.patch.object(sys, "argv", [module, *arguments]))
        stack.enter_context(stopping(Parser, "parse_args"))
        modules = (script, import_module("inference_ytvos"))
        readers = ((m, name) for m in modules for name in ("load_config", "read_command"))
        for reader in {pair for pair in readers if hasattr(*pair)}:
            stack.enter_context(stopping(*reader))
        try:
            script.main()
        except Parsed:
            return
        except SystemExit as end:
            assert end.code == 0, f"{module} refuses its command line"  # 0: --help
            return
    raise AssertionError(f"{module} has not read its command line")


def stopping(owner: Any, name: str) -> Any:
    """Replace a function that reads the command line by one that does, and then stops."""
    read = getattr(owner, name)

    def stop(*args: Any, **kwargs: Any) -> None:
        read(*args, **kwargs)
        raise Parsed

    return mock.patch.object(owner, name, stop)


@cache
def known_flags() -> frozenset[str]:
    """Every option of every script."""
    files = [*ROOT.glob("*.py"), *(ROOT / "scripts").iterdir(), *(ROOT / "util").glob("*.py")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in (".py", ".sh", ".sbatch")]
    declared = {f"--{name}" for text in texts for name in re.findall(r"^    (\w+): [\w\[\], |.]+ = _\w+\(", text, re.M)}
    quoted = {flag for text in texts for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    return frozenset(declared | quoted | {flag.replace("--", "--no-", 1) for flag in declared})


def anchors(page: Path) -> Iterator[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ +(.+)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
