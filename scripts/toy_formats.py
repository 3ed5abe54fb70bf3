"""What the writers of small sets in true formats share (``scripts.toy_formats_a2d``, ``_coco``, ``_videos``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from util.errors import UserError
from util.files import atomic_path


def empty_folder(root: str | Path) -> Path:
    """Return ``root`` as a path.

    Raises:
        UserError: it is a file, or a folder with something in it.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is there already; choose another folder for the toy set")
    return root


def write_lines(path: Path, lines: Sequence[str], encoding: str = "utf-8") -> None:
    """Write a text file, beside and renamed."""
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding=encoding)
