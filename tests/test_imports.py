"""The rooms of the project and the arrows between them: who may import whom, and no others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

# A room may always import itself. "models" as a target is the package's own files, not its sub-rooms.
ARROWS: dict[str, set[str]] = {
    "main": {"engine", "models", "datasets", "util"},
    "inference_ytvos": {"models", "datasets", "util"},
    "inference_davis": {"inference_ytvos", "util"},
    "demo": {"models", "datasets", "util"},
    "engine": {"datasets", "util"},
    "models": {"models.diffusion", "models.ops", "util"},
    "models.diffusion": {"util"},
    "models.ops": {"util"},
    "datasets": {"util"},
    "scripts": {"engine", "models", "models.diffusion", "models.ops", "datasets", "util"},
    "util": {"datasets"},  # until the inference modules of util are part of engine.py
}
# Tests may import everything; they are read for the other rules only.
FREE = "tests"
SKIPPED = {".venv", ".git", "data", "runs", "build"}


def test_arrows(root: Path):
    assert _violations(root) == []


def test_every_room_is_there(root: Path):
    """Without this, a moved folder would make the arrows hold of nothing."""
    rooms = {_room(_module(path, root)) for path in _sources(root)}
    assert rooms >= {"models", "models.diffusion", "models.ops", "datasets", "scripts", "util", "tests"}


def test_hugging_faces_datasets_is_not_required(root: Path):
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        lines = (root / name).read_text(encoding="utf-8").splitlines()
        assert lines, name
        assert not [line for line in lines if line.startswith(("datasets=", "datasets>", "datasets<", "datasets~"))]


MISTAKES = {
    "util importing a room": ("util/a.py", "from models import segmenter", "util must not import models"),
    "util importing inside a function": ("util/a.py", "def f():\n    import engine", "util must not import engine"),
    "engine importing a model": ("engine.py", "import models.segmenter as s", "engine must not import models"),
    "dataset importing the model": ("datasets/a.py", "from models.segmenter import X", "must not import models"),
    "model importing a dataset": ("models/a.py", "from datasets import clip", "models must not import datasets"),
    "sub-room importing its parent": (
        "models/diffusion/a.py",
        "from models.segmenter import X",
        "models.diffusion must not import models",
    ),
    "the same, relative": (
        "models/diffusion/a.py",
        "from ..segmenter import X",
        "models.diffusion must not import models",
    ),
    "sub-room importing its sister": (
        "models/ops/a.py",
        "from models import diffusion",
        "models.ops must not import models.diffusion",
    ),
    "script importing main": ("scripts/a.py", "import main", "scripts must not import main"),
    "main reaching into a sub-room": ("main.py", "import models.ops", "main must not import models.ops"),
    "room importing tests": ("scripts/a.py", "from tests.conftest import ROOT", "scripts must not import tests"),
    "import by name": ("util/a.py", "import importlib\nimportlib.import_module('models.segmenter')", "import models"),
    "file outside the rooms": ("stray.py", "x = 1", "stray.py is in no room"),
    "Hugging Face's datasets": ("scripts/a.py", "from datasets import load_dataset", "datasets has no load_dataset"),
    "a part of Hugging Face's datasets": ("scripts/a.py", "import datasets.arrow_dataset", "has no datasets.arrow_dat"),
    "sys.path edit": ("tests/a.py", "import sys\nsys.path.insert(0, '.')", "touches sys.path"),
    "sys.path by another name": ("scripts/a.py", "from sys import path", "touches sys.path"),
    "site directory": ("scripts/a.py", "import site\nsite.addsitedir('.')", "touches sys.path"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(tmp_path: Path, mistake: str):
    name, source, message = MISTAKES[mistake]
    for file in ("models/segmenter.py", "models/diffusion/unet.py", "models/ops/module.py", "datasets/clip.py"):
        _write(tmp_path / file, "X = 1")
    for file in ("util/io.py", "tests/conftest.py", "engine.py", "main.py"):
        _write(tmp_path / file, "ROOT = 1")
    assert _violations(tmp_path) == []
    _write(tmp_path / name, source)
    found = _violations(tmp_path)
    assert len(found) == 1
    assert message in found[0]
    assert found[0].startswith(name)


def test_what_is_allowed(tmp_path: Path):
    _write(tmp_path / "util/io.py", "import json, sys\nfrom . import errors\nprint(sys.argv)")
    _write(tmp_path / "util/errors.py", "class UserError(ValueError): ...")
    _write(tmp_path / "models/diffusion/unet.py", "from util.errors import UserError\nfrom diffusers import X")
    _write(tmp_path / "models/__init__.py", "from models.diffusion.unet import X\nfrom .diffusion import unet")
    _write(tmp_path / "datasets/__init__.py", "from util import io\ndef build(): ...\nREGISTRY: dict = {}")
    _write(tmp_path / "main.py", "from datasets import REGISTRY, build\nimport models, util.io")
    _write(tmp_path / "tests/test_x.py", "import main\nfrom models.diffusion import unet")
    _write(tmp_path / ".venv/lib/x.py", "import sys\nsys.path = []")
    assert _violations(tmp_path) == []


def _write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source + "\n", encoding="utf-8")


def _sources(root: Path) -> list[Path]:
    tops = [top for top in root.iterdir() if top.name not in SKIPPED]  # not walked: .venv has 15 000 files
    return sorted(
        path for top in tops for path in ([top] if top.is_file() else top.rglob("*.py")) if path.suffix == ".py"
    )


def _module(path: Path, root: Path) -> str:
    """``models/diffusion/unet.py`` → ``models.diffusion.unet``; a package's ``__init__.py`` is the package."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _room(module: str) -> str | None:
    """The innermost room that holds a module; None outside the project."""
    parts = module.split(".")
    for length in (2, 1):
        name = ".".join(parts[:length])
        if name in ARROWS or name == FREE:
            return name
    return None


def _violations(root: Path) -> list[str]:
    """One sentence for each broken rule, in the order of the files."""
    found = []
    for path in _sources(root):
        module, where = _module(path, root), str(path.relative_to(root))
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=where)
        room = _room(module)
        if room is None:
            found.append(f"{where} is in no room: move it, or give its room arrows")
            continue
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for line, target, names in _imports(tree, package):
            if _room(target) is None:
                continue
            found += [f"{where}:{line} {problem}" for problem in _import_problems(room, target, names, root)]
        found += [f"{where}:{line} touches sys.path: the root is the import root" for line in _path_edits(tree)]
    return found


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[int, str, list[str]]]:
    """Every import: its line, the absolute module, and the names taken from it (none for ``import a.b``)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, target, [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from ((node.lineno, arg.value, []) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def _import_problems(room: str, target: str, names: list[str], root: Path) -> Iterator[str]:
    """What is wrong with an import of one of the project's modules."""
    if not _exists(root, target):
        yield f"imports a package that is not the project's: it has no {target}"
        return
    for name in names or [""]:
        inner = f"{target}.{name}" if name and _exists(root, f"{target}.{name}") else target
        if inner == target and name not in ("", "*") and name not in _top_level_names(root, target):
            yield f"imports a package that is not the project's: {target} has no {name}"
        aim = _room(inner)
        if room not in (FREE, aim) and aim not in ARROWS[room]:
            yield f"{room} must not import {inner if aim == FREE else aim}"


def _exists(root: Path, module: str) -> bool:
    path = root.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@cache
def _top_level_names(root: Path, module: str) -> set[str]:
    """The names that a module of the project binds."""
    path = root.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else ():
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _path_edits(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        attribute = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.path", "site.addsitedir")
        taken = isinstance(node, ast.ImportFrom) and node.module == "sys" and "path" in {a.name for a in node.names}
        if attribute or taken:
            yield node.lineno
