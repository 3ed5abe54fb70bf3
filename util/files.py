"""Bringing a file of a dataset to where it is wanted: linked or copied, never moved."""

from __future__ import annotations

import shutil
from pathlib import Path

from util.errors import UserError
from util.io import atomic_path


def bring_file(source: Path, target: Path, copy: bool) -> None:
    """Link or copy a file, unless it is there already.

    Args:
        source: the file, which is only read.
        target: where it is wanted; its folder is made.
        copy: copy it. Otherwise it is a symbolic link, or a copy on a file system without links.

    Raises:
        UserError: it cannot be copied, or the target cannot be written.
    """
    if target.is_file():
        same = target.samefile(source)
        linked = target.is_symlink()
        if (same and not (copy and linked)) or (not same and target.stat().st_size == source.stat().st_size):
            return
    with atomic_path(target) as temporary:
        if not copy:
            try:
                temporary.symlink_to(source.resolve())
                return
            except OSError:  # a file system without links
                pass
        try:
            shutil.copyfile(source, temporary)
        except OSError as error:
            raise UserError(f"cannot copy {source} to {target}: {error.strerror or error}") from error
