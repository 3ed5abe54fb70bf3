"""The shell scripts: what they check before they start, what they repeat, and what they pass on.

They run in a copy with a space in its path, with stand-ins for ``python`` and ``df`` where a machine must look
different.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SCRIPTS = ("scripts/setup.sh", "scripts/test.sh", ".ci/run")
TOOLS = ("awk", "bash", "cat", "dirname", "find", "flock", "mkdir", "mv", "rm", "sed", "test")
ROOMY_DF = "echo 'Filesystem 1024-blocks Used Available Capacity Mounted'; echo '/dev/disk 99 9 99999999 1% /'"
FULL_DF = "echo 'Filesystem 1024-blocks Used Available Capacity Mounted'; echo '/dev/disk 99 9 3145728 1% /'"


class Clone:
    """A copy of the setup in a folder of its own, and a PATH that holds only what a test puts there."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder / "my clone"
        self.bin = folder / "bin"
        for name in SCRIPTS:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, self.folder / name)
        self.bin.mkdir()
        for name in TOOLS:
            tool = shutil.which(name)
            if tool:
                (self.bin / name).symlink_to(tool)
        self.tool("df", ROOMY_DF)
        self.write("requirements.txt", "--no-index --find-links wheels\ntiny")
        self.write("requirements-dev.txt", "--no-index --find-links wheels\ntinydev")
        self.write("requirements-web.txt", "--no-index --find-links wheels\ntiny")
        self.write("constraints.txt", "tiny==1.0\ntinydev==1.0")

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    def tool(self, name: str, code: str) -> Path:
        """Put a shell script on the PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{code}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    def wheel(self, name: str, version: str) -> None:
        """Put a package of one module under wheels/."""
        info = f"{name}-{version}.dist-info"
        (self.folder / "wheels").mkdir(exist_ok=True)
        with zipfile.ZipFile(self.folder / f"wheels/{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    def run(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a script from another folder, with nothing of the caller's environment but what is given."""
        settings = {"PATH": str(self.bin), "HOME": str(self.folder.parent), "PIP_CONFIG_FILE": os.devnull, **env}
        command = [shutil.which("bash") or "bash", str(self.folder / script), *args]
        return subprocess.run(command, cwd="/", env=settings, capture_output=True, text=True, timeout=300)

    def refusal(self, *args: str, **env: str) -> str:
        """The sentence with which setup.sh stops before it has made anything."""
        run = self.run("scripts/setup.sh", *args, **env)
        assert run.returncode == 2, run.stdout + run.stderr
        lines = run.stderr.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert not (self.folder / ".venv").exists()
        return lines[0]


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Clone:
    return Clone(root, tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(root: Path, name: str):
    path = root / name
    assert os.access(path, os.X_OK)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""


def test_no_python(clone: Clone):
    assert "Python 3.11, 3.12 or 3.13 with its venv module is needed, but no Python was found" in clone.refusal()


@pytest.mark.parametrize("version", ["2.7.18", "3.10.13", "3.14.0"])
def test_python_too_old_or_too_new(clone: Clone, version: str):
    python = clone.tool("python3", f"echo {version}")
    assert f"is needed, but python3 is {version}; install it" in clone.refusal()
    python.rename(clone.folder / "my python")
    chosen = str(clone.folder / "my python")
    assert f"is needed, but {chosen} is {version}; install it" in clone.refusal(PYTHON=chosen)


def test_python_without_venv(clone: Clone):
    clone.tool("python3", 'case "$2" in *version_info*) echo 3.12.1 ;; *) exit 1 ;; esac')
    assert "python3 (3.12.1) lacks the venv module (on Debian and Ubuntu: apt install python3.12-venv)" in (
        clone.refusal()
    )


def test_chosen_python_does_not_run(clone: Clone):
    assert "PYTHON=/absent/python does not run" in clone.refusal(PYTHON="/absent/python")


def test_full_disk(clone: Clone):
    clone.tool("df", FULL_DF)
    assert "needs about 8 GiB on the disk of" in clone.refusal(PYTHON=sys.executable)
    assert "but only 3 GiB are free" in clone.refusal(PYTHON=sys.executable)


def test_unknown_argument(clone: Clone):
    assert (
        "unknown argument '--fast'; bash scripts/setup.sh takes --dev, --web, --torch cpu, or nothing"
        in clone.refusal("--fast")
    )


def test_torch_of_another_kind(clone: Clone):
    """Its index, its versions, no CUDA libraries; and it stays, also where a later run does not repeat it."""
    assert "--torch takes cpu, or cu and a number such as cu128, not 'cuda'" in clone.refusal("--torch", "cuda")
    clone.write("constraints.txt", "cuda-toolkit==13\nnvidia-cublas==13.1\ntorch==2.11.0\ntriton==3\ntiny==1.0")
    python = clone.write(
        ".venv/bin/python",
        '#!/bin/sh\ncase "$*" in\n*version_info*) echo 3.12.1 ;;\n'
        '*install*) echo "$*"; cat .venv/tmp/constraints.txt ;;\nesac',
    )
    python.chmod(0o755)
    (clone.folder / ".venv/lib").mkdir()
    run = clone.run("scripts/setup.sh", "--torch", "cpu")
    assert run.returncode == 0, run.stderr
    assert "--extra-index-url https://download.pytorch.org/whl/cpu\ntorch==2.11.0+cpu\ntiny==1.0\n" in run.stdout
    assert clone.run("scripts/setup.sh").stdout == ""
    other = clone.run("scripts/setup.sh", "--torch", "cu128", TORCH_INDEX="https://mirror/whl").stdout
    assert "--extra-index-url https://mirror/whl/cu128\ntorch==2.11.0+cu128\ntiny==1.0\n" in other


@pytest.mark.slow
def test_setup_is_repeatable_and_resumes(clone: Clone):
    """One environment through a life: made, left alone, extended, updated, cut off, broken."""

    def setup(*args: str) -> subprocess.CompletedProcess[str]:
        return clone.run("scripts/setup.sh", *args, PYTHON=sys.executable, VIRTUAL_ENV="/elsewhere", PIP_USER="1")

    def version(module: str) -> str:
        code = f"import {module}; print({module}.VERSION)"
        run = subprocess.run([python, "-c", code], capture_output=True, text=True)
        return run.stdout.strip()

    python = clone.folder / ".venv/bin/python"
    clone.wheel("tiny", "1.0")
    first = setup()
    assert first.returncode == 0, first.stderr
    assert "creating .venv with Python" in first.stdout
    assert version("tiny") == "1.0"

    again = setup()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    failed = setup("--dev")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("error: pip could not install requirements-dev.txt")
    clone.wheel("tinydev", "1.0")
    assert setup("--dev").returncode == 0
    assert (version("tiny"), version("tinydev")) == ("1.0", "1.0")
    assert setup("--dev").stdout == setup().stdout == ""
    assert setup("--dev", "--web").stdout.splitlines()[0] == "setup: installing requirements-web.txt"

    clone.wheel("tiny", "2.0")
    clone.write("constraints.txt", "tiny==2.0\ntinydev==1.0")
    assert "installing requirements.txt" in setup().stdout
    assert version("tiny") == "2.0"

    (packages,) = (clone.folder / ".venv/lib").glob("python3*/site-packages")
    (packages / "tiny-2.0.dist-info/RECORD").unlink()  # as left by a run that was killed while it unpacked
    (packages / "tiny.py").unlink()
    (clone.folder / ".venv/.installed-requirements.txt").unlink()
    assert setup().returncode == 0
    assert version("tiny") == "2.0"

    python.unlink()
    python.symlink_to("/absent/python")
    broken = setup()
    assert broken.returncode == 0, broken.stderr
    assert "it is created again" in broken.stdout
    assert version("tiny") == "2.0"


def test_every_requirement_is_pinned_within_its_range(root: Path):
    pins = dict(line.split("==") for line in _lines(root / "constraints.txt"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    required = [
        Requirement(line)
        for name in ("requirements", "requirements-dev", "requirements-web")
        for line in _lines(root / f"{name}.txt")
    ]
    assert len(required) > 20
    for requirement in required:
        pin = pins[canonicalize_name(requirement.name)]
        assert pin in requirement.specifier, requirement
        assert {clause.operator for clause in requirement.specifier} == {">=", "<"}, requirement
    assert (pins["torch"], pins["torchvision"]) == ("2.11.0", "0.26.0")


@pytest.fixture
def checks(clone: Clone) -> Clone:
    """A clone whose .venv only notes what it is asked to run, and fails where the file ``fail`` says so."""
    clone.write("scripts/setup.sh", 'echo "setup $*"')
    python = clone.write(
        ".venv/bin/python",
        '#!/bin/sh\nshift\necho "$*"\nwhile read -r words status; do\n'
        'case "$*" in $words*) exit "$status" ;; esac\ndone < fail',
    )
    python.chmod(0o755)
    clone.write("fail", "nothing 0")
    return clone


HALVES = ["-m not slow -k matcher", "-m slow -k matcher"]
SPREAD = "--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder"
PYTEST = [f"pytest {SPREAD} {words}" for words in HALVES]


@pytest.mark.parametrize(
    ("fail", "ran", "status"),
    [
        ("nothing 0", 6, 0),
        ("ruff*check 1", 2, 1),
        ("mypy 1", 4, 1),
        ("pytest*-m?not 1", 5, 1),
        ("pytest*-m?not 5", 6, 0),
        ("pytest*slow*matcher 5", 6, 5),
        ("pytest*-m?slow 1", 6, 1),
    ],
)
def test_checks_in_order_until_one_fails(checks: Clone, fail: str, ran: int, status: int):
    checks.write("fail", fail)
    run = checks.run("scripts/test.sh", "-k", "matcher")
    assert (
        run.stdout.splitlines() == ["setup --dev --web", "ruff check .", "ruff format --check .", "mypy", *PYTEST][:ran]
    )
    assert run.returncode == status


def test_coverage_is_shown_when_asked_for(checks: Clone):
    run = checks.run("scripts/test.sh", "--coverage", "-k", "matcher")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[4:] == [
        *(f"coverage run --append -m pytest {words}" for words in HALVES),
        "coverage report",
    ]


@pytest.mark.parametrize("status", [0, 1])
def test_ci_runs_tests_then_the_short_quickstart(clone: Clone, status: int):
    clone.write("scripts/test.sh", f"echo tests; exit {status}")
    clone.write("scripts/quickstart.sh", 'echo "quickstart $QUICKSTART_SHORT"; exit 3')
    run = clone.run(".ci/run")
    assert run.stdout.splitlines() == (["tests"] if status else ["tests", "quickstart 1"])
    assert run.returncode == (status or 3)


def _lines(path: Path) -> list[str]:
    """A requirements file without its comments."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
