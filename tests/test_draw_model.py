"""The drawing of the models: docs/models.md shows what the code computes now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import draw_model
from tests.commands import run_command


@pytest.mark.slow
def test_the_page_is_of_this_code(root: Path, tmp_path: Path) -> None:
    """Where this fails, ``python -m scripts.draw_model`` makes page and picture anew."""
    page = tmp_path / "models.md"
    shutil.copy(root / "docs" / "models.md", page)
    done = run_command(draw_model.main, "--page", page, "--picture", tmp_path / "models.svg")
    assert done.returncode == 0, done.stderr
    assert page.read_text("utf-8") == (root / "docs" / "models.md").read_text("utf-8")
    assert (tmp_path / "models.svg").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--picture", "a.txt"), "--picture must end in .svg, .pdf or .png"),
        (("--frames", "0"), "--size and --frames must be at least 1"),
        (("--page", "absent.md"), "absent.md should hold the lines"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_model, "read_parts", lambda *of: {})
    done = run_command(draw_model.main, *arguments)
    assert done.returncode == 2 and named in done.stderr and done.stderr.count("\n") == 1
