"""Running the project's own commands one after the other, as a user would type them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


class StepFailed(SystemExit):
    """A command of the sequence failed; the process ends with the same status."""


def run(title: str, *command: str | int | Path) -> None:
    """Print a title and the command, and run it with this Python from the project's root.

    Args:
        title: what the step is for.
        command: the arguments after ``python``.

    Raises:
        StepFailed: the command failed; its own message is above.
    """
    words = [str(near(word) if isinstance(word, Path) else word) for word in command]
    print(f"\n=== {title}\n$ python {shlex.join(words)}", flush=True)
    status = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if status:
        print(f"error: the step '{title}' failed, its message is above", file=sys.stderr)
        raise StepFailed(status)


def clear(folder: Path, *names: str) -> None:
    """Remove what an earlier run left in the folders that this one writes.

    Raises:
        UserError: something there cannot be removed.
    """
    for name in names:
        target = folder / name
        try:
            if target.is_dir():
                shutil.rmtree(target)
        except OSError as error:
            raise UserError(f"cannot remove {target} of an earlier run: {error}; choose another folder") from error


def near(path: Path) -> Path:
    """The path as shown to a user: relative to the project's root where it lies inside."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
