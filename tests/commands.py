"""The project's commands, run in the test's own process: a new one takes 12 s of CPU to import PyTorch and diffusers.

What only a true process shows is tested with one: ``test_as_a_user_types_it`` of every script at the top.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

from tests.conftest import ROOT
from util.checkpoint import check_content, read_content
from util.errors import run_cli


def run_command(main: Callable[[], int | None], *words: object) -> CompletedProcess[str]:
    """Run a script's ``main`` from the project's root, as its last lines do.

    Args:
        main: of the script; it reads ``sys.argv``.
        words: of the command line, without the script's name.

    Returns:
        the exit status and what was written to ``sys.stdout`` and ``sys.stderr``.
    """
    argv = [main.__module__, *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    status: int | str | None = None
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            run_cli(main)
        except SystemExit as end:
            status = end.code
    assert isinstance(status, int), status
    return CompletedProcess(argv, status, out.getvalue(), err.getvalue())


def read_checkpoint(path: Path, model: str = "") -> dict[str, Any]:
    """The content of a checkpoint of this project; ``model`` is the one it must be of."""
    return check_content(read_content(path), path, model)
