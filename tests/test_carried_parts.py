"""Frozen parts that came with a checkpoint: a run writes them once, beside its checkpoints, and knows them again."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import Segmenter, frozen_sources
from models.checkpoints import frozen_identity, save_checkpoint, trained_state
from scripts import convert_checkpoint
from tests.checkpoint_tools import change_unet, differences, tiny_config, tiny_model
from tests.tiny_models import restore
from util.checkpoint import read_checkpoint
from util.config import Config, config_dict
from util.errors import UserError


@pytest.fixture(scope="module")
def cfg(tiny_stack: Path) -> Config:
    return tiny_config(tiny_stack, model="hcd", lora_rank=2)


@pytest.fixture(scope="module")
def source(cfg: Config) -> Segmenter:
    """A model with another UNet than the pretrained one, and new adapters on it; only to be read."""
    return _model(cfg, 1.5)


@pytest.fixture(scope="module")
def written(source: Segmenter, cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint; only to be read."""
    path = tmp_path_factory.mktemp("run") / "checkpoint.pth"
    _save(path, source, cfg)
    return path


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint and of what is beside it."""
    shutil.copytree(written.parent, tmp_path / "copy")
    return tmp_path / "copy" / "checkpoint.pth"


def _model(cfg: Config, factor: float) -> Segmenter:
    model = tiny_model(cfg, seed=1)
    change_unet(model, factor)
    model.encoder.unet.carried = True
    return model


def _save(path: Path, model: Segmenter, cfg: Config, step: int = 1) -> None:
    frozen = frozen_identity(model, frozen_sources(cfg))
    save_checkpoint(path, model, cfg.model, config_dict(cfg), frozen=frozen, step=step)


def _beside(path: Path) -> Path:
    (file,) = path.parent.glob("frozen-*.safetensors")
    return file


def _load(path: Path, cfg: Config) -> tuple[Segmenter, list[str]]:
    model = tiny_model(cfg, seed=2)
    return model, restore(model, path, cfg)[1]


def test_a_checkpoint_holds_what_is_trained_and_names_the_rest(written: Path, source: Segmenter) -> None:
    assert {path.name for path in written.parent.iterdir()} == {"checkpoint.pth", _beside(written).name}
    content = torch.load(written, weights_only=True)
    assert content["weights"].keys() == trained_state(source).keys()
    assert content["beside"] == _beside(written).name
    assert all(name.startswith("encoder.unet.module.") for name in load_file(_beside(written)))


def test_it_comes_back_whole(written: Path, source: Segmenter, cfg: Config) -> None:
    model, notes = _load(written, cfg)
    assert notes == [] and differences(model.state_dict(), source.state_dict()) == []
    assert model.encoder.unet.carried and not model.encoder.vae.carried
    assert frozen_identity(model, frozen_sources(cfg))["unet"]["source"] == "a checkpoint"


def test_it_is_written_once(copied: Path, source: Segmenter, cfg: Config) -> None:
    before = _beside(copied).stat()
    _save(copied, source, cfg, step=2)
    assert _beside(copied).stat().st_mtime_ns == before.st_mtime_ns
    assert read_checkpoint(copied)["step"] == 2
    _beside(copied).unlink()
    _save(copied, source, cfg, step=3)
    assert _beside(copied).stat().st_size == before.st_size


def test_other_frozen_parts_get_another_file(copied: Path, source: Segmenter, cfg: Config) -> None:
    first = _beside(copied).name
    other = _model(cfg, 2.0)
    _save(copied, other, cfg)
    assert len(list(copied.parent.glob("frozen-*"))) == 2, "the first may be another checkpoint's"
    assert torch.load(copied, weights_only=True)["beside"] != first
    model, _ = _load(copied, cfg)
    assert differences(model.state_dict(), other.state_dict()) == []


def test_without_identities_all_is_in_the_checkpoint(tmp_path: Path, source: Segmenter, cfg: Config) -> None:
    save_checkpoint(tmp_path / "c.pth", source, cfg.model, config_dict(cfg))
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]
    model, _ = _load(tmp_path / "c.pth", cfg)
    assert differences(model.state_dict(), source.state_dict()) == []


def test_what_is_passed_on_is_complete(written: Path, source: Segmenter, cfg: Config, tmp_path: Path) -> None:
    convert_checkpoint.main([str(written), str(tmp_path / "w.safetensors")])
    model, notes = _load(tmp_path / "w.safetensors", cfg)
    assert notes == [] and differences(model.state_dict(), source.state_dict()) == []


@pytest.mark.parametrize("fault", ["absent", "exchanged", "truncated", "of another program", "a path", "no name"])
def test_what_is_wrong_beside_it_is_one_sentence(copied: Path, cfg: Config, fault: str) -> None:
    file = _beside(copied)
    said = f"{file.name} is not a readable checkpoint"
    if fault == "absent":
        file.unlink()
        said = f"checkpoint.pth needs {file.name} beside it"
    elif fault == "exchanged":
        _save(copied.parent / "other" / "checkpoint.pth", _model(cfg, 2.0), cfg)
        _beside(copied.parent / "other" / "checkpoint.pth").replace(file)
        said = "trained with another UNet"
    elif fault == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif fault == "of another program":
        save_file({"x": torch.ones(1)}, file)
        said = f"{file.name} does not hold the frozen weights"
    else:
        content = torch.load(copied, weights_only=True)
        content["beside"] = 3 if fault == "no name" else f"../copy/{file.name}"
        torch.save(content, copied)
        said = "checkpoint.pth is damaged: it names"
    with pytest.raises(UserError) as error:
        _load(copied, cfg)
    assert said in str(error.value) and "\n" not in str(error.value)
    if fault == "exchanged":
        assert "what came with it is damaged or exchanged" in str(error.value)
        _, notes = _load(copied, dataclasses.replace(cfg, ignore_frozen_identity=True))
        assert len(notes) == 1 and notes[0].endswith("ignored")
