"""Agreement with the numbers that the published models produce."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.commands import run_command
from tests.parity import (
    GRADIENT_TOLERANCE,
    TOLERANCE,
    Fixture,
    compare,
    compare_evaluation,
    compare_fixture,
    find_fixtures,
    fixture_model,
    main,
)


def _fixture(shared: Path, name: str) -> Fixture:
    return next(f for f in find_fixtures(shared / "golden", (name.split("/")[0],)) if f.name == name)


@pytest.mark.parametrize("name", ["vdit/video", "vdit/image", "vdit/a2d", "hcd/video", "hcd/image"])
def test_published_numbers(shared: Path, name: str) -> None:
    rows = compare_fixture(_fixture(shared, name))
    assert len(rows) == (252 if name.startswith("vdit") else 270)
    assert [row for row in rows if not row.ok] == []


@pytest.mark.slow
def test_published_numbers_of_rem(shared: Path) -> None:
    rows = compare_fixture(_fixture(shared, "rem/rem"))
    assert len(rows) == 3 * (6 + 1 + 1474 + 1)
    assert [row for row in rows if not row.ok] == []
    exact = [row for row in rows if row.tolerance in (TOLERANCE, GRADIENT_TOLERANCE)]
    assert len(exact) > len(rows) / 4  # the others depend on rounding


def test_a_changed_weight_is_noticed(shared: Path) -> None:
    fixture = _fixture(shared, "vdit/image")
    model, _ = fixture_model(fixture)
    with torch.no_grad():
        model.refinement.refine4[3].bias[0] += 1
    wrong = [row.name for row in compare_evaluation(model, fixture) if not row.ok]
    assert wrong == ["eval.pred_masks"]


def test_comparison_is_relative_to_the_largest_magnitude_and_knows_shapes() -> None:
    row = compare("x", torch.tensor([100.0, 0.05]), torch.tensor([100.0, 0.0]))
    assert row.ok
    assert row.relative == pytest.approx(5e-4)
    assert not compare("x", torch.tensor([100.0, 0.2]), torch.tensor([100.0, 0.0])).ok
    assert not compare("x", torch.zeros(2), torch.zeros(3)).ok
    assert not compare("x", torch.tensor([float("nan")]), torch.tensor([1.0])).ok


@pytest.mark.parametrize(
    "broken",
    [
        "no folder",
        "empty folder",
        "no checkpoint",
        "no tensors",
        "broken tensors",
        "empty checkpoint",
        "checkpoint with code",
        "checkpoint of another layout",
    ],
)
def test_bad_fixtures_are_one_sentence(shared: Path, tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "golden"
    if broken == "empty folder":
        folder.mkdir()
    elif broken != "no folder":
        (folder / "vdit").mkdir(parents=True)
        (folder / "pretrained").symlink_to(shared / "golden" / "pretrained")
        for suffix in ("json", "safetensors"):
            shutil.copy(shared / "golden" / "vdit" / f"image.{suffix}", folder / "vdit")
    if broken == "no tensors":
        (folder / "vdit" / "image.safetensors").unlink()
    if broken == "broken tensors":
        (folder / "vdit" / "image.safetensors").write_bytes(b"half a f")
    if broken == "empty checkpoint":
        (folder / "vdit" / "checkpoint.pth").touch()
    if broken == "checkpoint of another layout":
        torch.save({"model": {"step": 1}}, folder / "vdit" / "checkpoint.pth")
    if broken == "checkpoint with code":
        torch.save({"model": print}, folder / "vdit" / "checkpoint.pth")
    result = run_command(main, folder, *(() if broken == "empty folder" else ("--model", "vdit")))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_command_prints_its_table(shared: Path) -> None:
    result = run_command(main, shared / "golden", "--model", "hcd")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    for name in ("hcd/video", "hcd/image"):
        assert name in result.stdout
    assert "vdit" not in result.stdout
    assert "eval.unet_feat.5" in result.stdout
