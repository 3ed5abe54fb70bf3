"""Pre-training of the toy stack: captions are correct, a stopped run resumes exactly, the result loads as a stack."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datasets.registry import load_config
from datasets.toy import ToyParameters, make_video
from datasets.toy.scene import COLOURS, KINDS, SHAPES
from datasets.toy.sentences import describe_scene
from models.diffusion.stack import load_stack
from scripts import train_toy
from scripts.train_toy import fit, pretrain
from util.errors import RunError, UserError


def test_a_caption_names_every_object_and_nothing_else() -> None:
    parameters = ToyParameters(6, 0, 0, 8, 64, 96, 3, KINDS)
    for index in range(6):
        scene = make_video(parameters, "train", index).scene
        caption = describe_scene(random.Random(index), scene)
        parts = re.split(r", | and ", caption)
        assert len(parts) == len(scene.objects)
        assert sorted(shape for part in parts for shape in SHAPES if shape in part.split()) == sorted(
            obj.shape for obj in scene.objects
        )
        said = {colour for colour in COLOURS if colour in caption.replace(",", "").split()}
        assert said <= {obj.colour for obj in scene.objects}
        assert describe_scene(random.Random(index), scene) == caption


def test_every_phase_of_rem_is_a_valid_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(train_toy, "run", lambda title, *words: commands.append([str(word) for word in words]))
    (tmp_path / "stack").mkdir()
    train_toy.make_model("rem", tmp_path, tmp_path / "work", share=0.001)
    trainings = [words[words.index("main.py") + 1 :] for words in commands if "main.py" in words]
    first, *others = [load_config(words, "") for words in trainings]
    assert (first.model, first.num_frames, first.freeze_layers) == ("rem", 1, ("temporal", "coarsest"))
    before = [tmp_path / "work" / "rem" / name / "checkpoint.pth" for name in ("frames", "falling", "again")]
    assert [cfg.pretrained_weights for cfg in others] == [str(path) for path in before]


@pytest.mark.parametrize(("model", "scale", "longest"), [("vdit", 128, 192), ("rem", 192, "auto")])
def test_models_see_frames_as_large_as_those_that_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, scale: int, longest: int | str
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(train_toy, "run", lambda title, *words: commands.append([str(word) for word in words]))
    (tmp_path / "stack").mkdir()
    train_toy.make_model(model, tmp_path, tmp_path / "work", 1, (128, 192))
    data, training = (next(words for words in commands if name in words) for name in ("--height", "main.py"))
    assert data[-4:] == ["--height", "128", "--width", "192"]
    cfg = load_config(training[training.index("main.py") + 1 :], "")
    assert (cfg.train_scales, cfg.eval_size, cfg.max_size) == ((scale,), scale, longest)


@pytest.fixture(autouse=True)
def _rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train_toy.RATES, "line", 0.05)


def _regression(folder: Path, steps: int, stop_at: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    calls = 0

    def loss(generator: torch.Generator, step: int) -> Tensor:
        nonlocal calls
        calls += 1
        if stop_at is not None and calls > stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=generator)
        return (model(x)[:, 0] - x.sum(1)).square().mean()

    fit("line", [model], loss, steps, folder)
    return model.state_dict()


def test_fit_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_toy, "SAVE_SECONDS", 0)
    whole = _regression(tmp_path / "whole", 300)
    with pytest.raises(KeyboardInterrupt):
        _regression(tmp_path / "parts", 300, stop_at=120)
    resumed = _regression(tmp_path / "parts", 300)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert float((whole["weight"] - 1).abs().max()) < 0.2


@pytest.mark.parametrize("content", [b"", b"no zip file", {"modules": {}, "step": 3}])
def test_a_damaged_state_is_one_sentence(tmp_path: Path, content: bytes | dict) -> None:
    path = tmp_path / "line.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"line\.pth is damaged; delete it to train line from the beginning"):
        _regression(tmp_path, 5)


def test_fit_stops_at_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(RunError, match=r"not finite at step 1; .* delete .*line\.pth"):
        fit("line", [model], lambda generator, step: model.weight.sum() * float("nan"), 5, tmp_path)


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("keep me")
    with pytest.raises(UserError, match="is no toy stack"):
        pretrain(tmp_path / "letters", tmp_path / "work", videos=1, share=0.001)
    assert (tmp_path / "letters" / "a.txt").read_text() == "keep me"
    with pytest.raises(UserError, match="--share must be above 0"):
        train_toy.main(["--share", "0"])
    with pytest.raises(UserError, match="--size: 100 is no multiple of 32 of at least 64"):
        train_toy.main(["--size", "96", "100"])


@pytest.mark.slow
def test_a_pretrained_stack_loads_in_half_precision(tmp_path: Path) -> None:
    pretrain(tmp_path / "stack", tmp_path / "work", videos=6, share=0.001)
    loaded = load_stack(str(tmp_path / "stack"))
    assert {p.dtype for p in loaded.unet.parameters()} == {torch.float32}
    assert loaded.vae.config.scaling_factor != 0.18215
    size = sum(path.stat().st_size for path in (tmp_path / "stack").rglob("*") if path.is_file())
    assert size < 9 * 2**20
