"""Checkpoints: what goes in comes out, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from models.checkpoints import load_state, save_checkpoint
from util.checkpoint import read_checkpoint
from util.errors import UserError


def _model(width: int = 3) -> nn.Module:
    torch.manual_seed(width)
    model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    model[1].requires_grad_(False)
    return model


def test_only_trained_parameters_are_stored_and_come_back(tmp_path: Path) -> None:
    model, path = _model(), tmp_path / "deep" / "checkpoint.pth"
    save_checkpoint(path, model, "vdit", {"lr": 0.1}, step=7)
    content = read_checkpoint(path, "vdit")
    assert content["weights"].keys() == {"0.weight", "0.bias"}
    assert content["step"] == 7
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pth"]

    other = _model()
    with torch.no_grad():
        other[0].weight.zero_()
    load_state(other, content["weights"], path)
    assert torch.equal(other[0].weight, model[0].weight)
    assert content["config"] == {"lr": 0.1}


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        save_checkpoint(tmp_path / name, _model(), "vdit", {"lr": 0.1}, step=7)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pth", _model(), "hcd", {})
    with pytest.raises(UserError, match=r"'hcd'.*'vdit'"):
        read_checkpoint(tmp_path / "c.pth", "vdit")


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pth", _model(3), "vdit", {})
    with pytest.raises(UserError, match=r"0\.weight.*\[3, 2\].*\[4, 2\]"):
        load_state(_model(4), read_checkpoint(tmp_path / "c.pth", "vdit")["weights"], "c.pth")


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "foreign", "code"])
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.pth"
    if kind == "truncated":
        save_checkpoint(path, _model(), "vdit", {})
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind == "code":
        torch.save({"format": print}, path)
    with pytest.raises(UserError, match=r"c\.pth"):
        read_checkpoint(path, "vdit")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pth"
    save_checkpoint(path, _model(), "vdit", {}, step=1)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, _model(), "vdit", {}, step=2)
    assert read_checkpoint(path, "vdit")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]
