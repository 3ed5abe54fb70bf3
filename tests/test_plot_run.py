"""scripts.plot_run: curves of runs, and logs that are missing, empty or torn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scripts import plot_run
from scripts.plot_run import plot_curves, read_log, run_names
from tests.commands import run_command
from util.drawing import read_picture
from util.errors import UserError

LINES = [{"step": 10 * n, "epoch": 0, "loss": 3 / n, "loss_dice": 1 / n, "lr": 1e-4} for n in range(1, 40)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "vdit")


def write_run(folder: Path, lines: list = LINES, end: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is handed to the plot."""
    calls: list[dict[str, Any]] = []

    def plot_curves(path: Path, panels: Mapping, title: str, window: int | None) -> None:
        calls.append({"path": path, "panels": panels, "title": title, "window": window})

    monkeypatch.setattr(plot_run, "plot_curves", plot_curves)
    return calls


def test_a_picture_of_two_runs(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "hcd", LINES[:7])
    out = tmp_path / "pictures" / "c.png"
    result = run_command(plot_run.main, run, other, "--out", out, "--keys", "loss", "lr")
    assert result.returncode == 0, result.stderr
    assert "vdit to step 390, hcd to step 70" in result.stdout
    assert read_picture(out).std() > 5


def test_what_is_drawn(run: Path, tmp_path: Path, drawn: list) -> None:
    later = [{"step": 400, "loss": float("nan")}, {"step": 400, "valid.J&F": 55.0}]
    other = write_run(tmp_path / "other", LINES + later)
    assert run_command(plot_run.main, run, other, run).returncode == 0
    panels = drawn[0]["panels"]
    assert list(panels) == ["loss (weighted sum)", "loss_dice", "learning rate"]  # of the usual ones, those there are
    assert panels["loss_dice"] == {name: [(x["step"], x["loss_dice"]) for x in LINES] for name in ("vdit", "other")}
    assert len(panels["loss (weighted sum)"]["other"]) == len(LINES)
    assert drawn[0]["window"] is None and drawn[0]["path"] == run / "curves.png"
    assert run_command(plot_run.main, run, other, "--keys", "valid.J&F", "--smooth", "5").returncode == 0
    assert drawn[1]["panels"] == {"valid.J&F": {"other": [(400, 55.0)]}} and drawn[1]["window"] == 5


def test_a_log_that_is_still_written_is_read_up_to_there(tmp_path: Path) -> None:
    assert read_log(write_run(tmp_path / "run", end='{"step": 400, "lo')) == LINES
    assert read_log(tmp_path / "run" / "log.jsonl") == LINES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"log\.jsonl is missing"),
        ("", "no whole line yet"),
        ('{"step": 1', "no whole line yet"),
        ('{"step": 1}\n{"st\n{"step": 3}\n', r"line 2 of .*log\.jsonl is no line of a training log"),
        ('{"loss": 1}\n{"step": 3}\n', "line 1"),
        ("[1]\n[2]\n", "line 1"),
        ('{"step": "a"}\n[2]\n', "line 1"),
        ("\udcff\n", r"cannot read .*log\.jsonl"),
    ],
)
def test_a_bad_log_is_one_sentence(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=said) as error:
        read_log(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--keys", "los"), "no run has 'los'; did you mean 'loss'?"),
        (("--keys", "zzz"), "no run has 'zzz'; there is epoch, loss, loss_dice, lr"),
        (("--smooth", "0"), "--smooth must be a whole number of at least 1, not 0"),
    ],
)
def test_mistakes_of_the_command_line(run: Path, words: tuple[str, ...], said: str) -> None:
    result = run_command(plot_run.main, run, *words)
    assert result.returncode == 2 and result.stderr == f"error: {said}\n"


def test_names_of_runs_differ() -> None:
    assert run_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert run_names([Path("/x/1/train"), Path("/x/2/train")]) == ["1/train", "2/train"]


def test_curves(tmp_path: Path):
    many = [(float(x), float(1 / (x + 1))) for x in range(200)]
    panels = {
        "loss": {"total": many, "mask": many[:3]},
        "J (%)": {"train": [(0, 0.0), (100, float("nan"))], "none": []},
    }
    plot_curves(tmp_path / "curve.png", panels, "a run")
    picture = read_picture(tmp_path / "curve.png")
    assert picture.shape[1] == 880 and picture.std() > 5
