"""Write a release: a source archive of the committed files, named by its version, and its SHA-256.

python -m scripts.make_release [--output_dir dist] [--commit HEAD]

Unpacked anywhere, ``bash scripts/setup.sh`` installs what it needs. The version stands in ``pyproject.toml`` alone, and
``CHANGELOG.md`` must have an entry for it.
"""

from __future__ import annotations

import hashlib
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

from util.errors import Parser, UserError, run_cli
from util.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]


def git(root: Path, *words: str) -> str:
    """What git prints.

    Raises:
        UserError: git is not there, or refuses.
    """
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError("a release is made by git, which is not installed here") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]  # a killed one says nothing
        raise UserError(f"git {words[0]} failed in {root}: {said[-1]}")
    return done.stdout


def make_release(root: Path, output: Path, commit: str = "HEAD") -> Path:
    """Write the archive of a commit, and beside it a file that ``sha256sum --check`` reads.

    Args:
        root: of the checkout.
        output: folder for both.
        commit: whose files are taken; others that lie in the folder are not.

    Returns:
        the archive.

    Raises:
        UserError: ``root`` is no checkout, the commit is unknown, or something cannot be written.
    """
    project = tomllib.loads(git(root, "show", f"{commit}:pyproject.toml"))["project"]
    name = f"{project['name']}-{project['version']}"
    archive = output / f"{name}.tar.gz"
    with atomic_path(archive) as path:
        git(root, "archive", "--format=tar.gz", f"--prefix={name}/", f"--output={path.absolute()}", commit)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with atomic_path(output / f"{archive.name}.sha256") as path:
        path.write_text(f"{digest}  {archive.name}\n", encoding="utf-8")
    return archive


def notes(root: Path, commit: str) -> list[str]:
    """What whoever makes a release should know."""
    version = tomllib.loads(git(root, "show", f"{commit}:pyproject.toml"))["project"]["version"]
    found = []
    if f"## [{version}]" not in git(root, "show", f"{commit}:CHANGELOG.md"):
        found.append(f"CHANGELOG.md has no entry for {version}")
    if git(root, "status", "--porcelain"):
        found.append("some changes are not committed, and not in the archive")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Write the release that the command line names (``argv`` without the program's name; None: the process's own)."""
    parser = Parser(prog="python -m scripts.make_release", description="Write a source archive.")
    parser.add_argument("--output_dir", type=Path, default=Path("dist"))
    parser.add_argument("--commit", default="HEAD", help="commit or tag (default: HEAD)")
    args = parser.parse_args(argv)
    archive = make_release(ROOT, args.output_dir, args.commit)
    for note in notes(ROOT, args.commit):
        print(f"note: {note}")
    print(f"wrote {archive} and {archive.name}.sha256")


if __name__ == "__main__":
    run_cli(main)
