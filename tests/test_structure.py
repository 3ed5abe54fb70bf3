"""The structure of the project: who may import whom, where options are read, and names that mean one thing."""

from __future__ import annotations

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import engine

# util <- datasets, models <- engine <- main, inference_ytvos, demo <- scripts <- space; a room may import itself.
BELOW_ENGINE = {"datasets", "models", "util"}
ARROWS: dict[str, set[str]] = {
    "util": set(),
    "datasets": {"util"},
    "models": {"util"},
    "engine": BELOW_ENGINE,
    "main": {"engine", *BELOW_ENGINE},
    "inference_ytvos": {"engine", *BELOW_ENGINE},
    "inference_davis": {"inference_ytvos", "engine", *BELOW_ENGINE},
    "demo": {"engine", *BELOW_ENGINE},
    "scripts": {"main", "inference_ytvos", "demo", "engine", *BELOW_ENGINE},
    "space": {"scripts", "util"},
}
TESTS = "tests"  # may import everything
SKIPPED = {".venv", ".git", "data", "runs", "build", "dist"}

BORDER = {"from_config", "frozen_sources", "load_pretrained", "open_pretrained"}
"""Functions below the entry points that read the configuration, beside those named ``build_…``."""
REGISTRY = {"datasets/__init__.py", "datasets/registry.py", "util/config.py"}
"""Modules that declare the options, or choose a builder by them."""


def test_arrows(root: Path) -> None:
    assert broken_arrows(root) == []


def test_options_stop_at_the_border(root: Path) -> None:
    assert reads_of_options(root) == []


def test_a_training_run_is_one_argument() -> None:
    assert len(inspect.signature(engine.train).parameters) == 1


def test_scripts_are_commands(root: Path) -> None:
    """Libraries live elsewhere; every command has a purpose in its first line."""
    for path in (root / "scripts").glob("*.py"):
        if path.name != "__init__.py":
            tree = ast.parse(path.read_text("utf-8"))
            assert ast.get_docstring(tree), path
            assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body), path
            assert "__main__" in path.read_text("utf-8"), path


def test_a_module_name_means_one_thing(root: Path) -> None:
    """Commands may be named after what they are about; libraries may not share a name or shadow a standard one."""
    names = Counter(
        path.stem
        for path in sources(root)
        if path.relative_to(root).parts[0] not in (TESTS, "scripts") and path.stem not in ("__init__", "setup")
    )
    assert {name for name, count in names.items() if count > 1} <= {"files"}  # of any kind, and of datasets
    assert set(names) & set(sys.stdlib_module_names) == set()


def test_hugging_faces_datasets_is_not_required(root: Path) -> None:
    """The folder ``datasets`` hides the library of that name."""
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        lines = (root / name).read_text("utf-8").splitlines()
        assert lines and not [line for line in lines if line.startswith(("datasets=", "datasets>", "datasets<"))]


MISTAKES = {
    "upwards": ("util/a.py", "from models import segmenter", "util must not import models"),
    "upwards in a function": ("util/a.py", "def f():\n    import engine", "util must not import engine"),
    "sideways": ("datasets/a.py", "from models.segmenter import X", "datasets must not import models"),
    "relative": ("models/a.py", "from ..engine import X", "models must not import engine"),
    "by name": ("util/a.py", "import importlib\nimportlib.import_module('models.x')", "util must not import models"),
    "tests": ("scripts/a.py", "from tests.conftest import ROOT", "scripts must not import tests"),
    "no room": ("stray.py", "x = 1", "stray.py is in no room"),
    "the other datasets": ("scripts/a.py", "from datasets import load_dataset", "datasets has no load_dataset"),
    "sys.path": ("tests/a.py", "import sys\nsys.path.insert(0, '.')", "edits sys.path"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_broken_arrow_is_found(tmp_path: Path, mistake: str) -> None:
    name, source, message = MISTAKES[mistake]
    for file in ("models/segmenter.py", "datasets/__init__.py", "tests/conftest.py", "engine.py"):
        write(tmp_path / file, "X = ROOT = 1")
    assert broken_arrows(tmp_path) == []
    write(tmp_path / name, source)
    (found,) = broken_arrows(tmp_path)
    assert message in found and found.startswith(name)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f(cfg: Config) -> int:\n    return cfg.lr", [1, 2]),
        ("class A:\n    def f(self) -> int:\n        return self.cfg.lr", [3]),
        ("def build_f(cfg: Config) -> int:\n    return cfg.lr", []),
        ("class A:\n    def from_config(cls, cfg: Config) -> int:\n        return cfg.lr", []),
    ],
)
def test_a_read_below_the_border_is_found(tmp_path: Path, source: str, lines: list[int]) -> None:
    write(tmp_path / "models" / "a.py", source)
    assert reads_of_options(tmp_path) == [f"models/a.py:{line}" for line in lines]


def write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source + "\n", encoding="utf-8")


def sources(root: Path) -> list[Path]:
    """Every Python file of the project."""
    tops = [top for top in root.iterdir() if top.name not in SKIPPED]  # .venv has 15 000 files
    found = (path for top in tops for path in ([top] if top.is_file() else top.rglob("*.py")))
    return sorted(path for path in found if path.suffix == ".py")


def reads_of_options(root: Path) -> list[str]:
    """Places below the border where a configuration is a parameter or is read."""
    found = []
    for path in sources(root):
        where = path.relative_to(root).as_posix()
        if where.split("/")[0].removesuffix(".py") not in ("util", "datasets", "models", "engine") or where in REGISTRY:
            continue
        found += [f"{where}:{line}" for line in sorted(set(_reads(ast.parse(path.read_text("utf-8")))))]
    return found


def _reads(node: ast.AST) -> Iterator[int]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            if child.name.removeprefix("_").startswith("build_") or child.name in BORDER:
                continue
            arguments = [*child.args.args, *child.args.kwonlyargs]
            yield from (arg.lineno for arg in arguments if arg.annotation and ast.unparse(arg.annotation) == "Config")
        if isinstance(child, ast.Attribute) and ast.unparse(child.value) in ("cfg", "self.cfg"):
            yield child.lineno
        yield from _reads(child)


def broken_arrows(root: Path) -> list[str]:
    """One sentence for each import that is not allowed, in the order of the files."""
    found = []
    for path in sources(root):
        where = path.relative_to(root).as_posix()
        module = where.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        room = module.partition(".")[0]
        if room not in (*ARROWS, TESTS):
            found.append(f"{where} is in no room: move it, or give its room arrows")
            continue
        tree = ast.parse(path.read_text("utf-8"), filename=where)
        for line, target, names in _imports(tree, module if path.name == "__init__.py" else module.rpartition(".")[0]):
            aim = target.partition(".")[0]
            if aim not in (*ARROWS, TESTS):
                continue
            unknown = [name for name in names if name not in _names(root, target)]
            if unknown:
                found.append(f"{where}:{line} imports another package: {target} has no {unknown[0]}")
            elif room not in (TESTS, aim) and aim not in ARROWS[room]:
                found.append(f"{where}:{line} {room} must not import {aim}")
        found += [f"{where}:{line} edits sys.path: the root of the project is the import root" for line in _edits(tree)]
    return found


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[int, str, list[str]]]:
    """Every import: its line, the absolute module, and the names taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, target, [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from ((node.lineno, arg.value, []) for arg in node.args[:1] if isinstance(arg, ast.Constant))


@cache
def _names(root: Path, module: str) -> set[str]:
    """Names that can be imported from a module of the project: what it binds, and the modules in it."""
    path = root.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = {child.stem for child in path.iterdir()} if path.is_dir() else set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))) if file.is_file() else ():
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _edits(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        attribute = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.path", "site.addsitedir")
        taken = isinstance(node, ast.ImportFrom) and node.module == "sys" and "path" in {a.name for a in node.names}
        if attribute or taken:
            yield node.lineno
