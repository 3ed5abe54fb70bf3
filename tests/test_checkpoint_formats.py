"""Both kinds of this project's checkpoints in a model, the identity of its frozen parts, and beginning from weights."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import main
from models import Segmenter, frozen_sources
from models.checkpoints import (
    CLASS_HEADS,
    carried_state,
    frozen_identity,
    open_checkpoint,
    part_hash,
    save_checkpoint,
    trained_state,
)
from tests.checkpoint_tools import differences, tiny_config, tiny_model
from tests.tiny_models import restore
from util.checkpoint import read_checkpoint, read_content, save_weights
from util.config import Config, config_dict
from util.errors import UserError, run_cli


@pytest.fixture(scope="module")
def cfg(tiny_stack: Path) -> Config:
    return tiny_config(tiny_stack)


@pytest.fixture(scope="module")
def source(cfg: Config) -> Segmenter:
    """A model that nothing changes."""
    return tiny_model(cfg, seed=1)


@pytest.fixture(scope="module")
def files(source: Segmenter, cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Its checkpoint of both kinds."""
    folder = tmp_path_factory.mktemp("formats")
    paths = {"pth": folder / "checkpoint.pth", "safetensors": folder / "weights.safetensors"}
    frozen = frozen_identity(source, frozen_sources(cfg))
    save_checkpoint(paths["pth"], source, cfg.model, config_dict(cfg), frozen=frozen, step=3)
    save_weights(paths["safetensors"], read_checkpoint(paths["pth"]))
    return paths


@pytest.fixture
def target(cfg: Config) -> Segmenter:
    return tiny_model(cfg, seed=2)


def load(model: Segmenter, path: Path, cfg: Config, **options: Any) -> list[str]:
    return restore(model, path, cfg, **options)[1]


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_both_kinds_hold_the_same(
    source: Segmenter, target: Segmenter, files: dict[str, Path], cfg: Config, kind: str
) -> None:
    content = read_checkpoint(files[kind], cfg.model)
    assert content["weights"].keys() == trained_state(source).keys()
    assert content["config"] == config_dict(cfg)
    assert content["frozen"].keys() == {"unet", "vae", "text_encoder", "image_encoder", "sentence_encoder"}
    assert ("step" in content) == (kind == "pth")
    assert load(target, files[kind], cfg) == []
    assert differences(target.state_dict(), source.state_dict()) == []
    assert not carried_state(target), "no frozen part came with the file"


def test_a_file_of_weights_is_as_readable_as_any_other(files: dict[str, Path]) -> None:
    assert files["safetensors"].stat().st_mode == files["pth"].stat().st_mode


def test_files_are_mapped_and_not_read(files: dict[str, Path]) -> None:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system does not list its memory maps")
    contents = [read_content(path) for path in files.values()]
    text = maps.read_text()
    assert all(str(path) in text for path in files.values())
    del contents


def test_the_hash_is_of_values(cfg: Config) -> None:
    weights = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(2)}
    expected = part_hash(weights)
    assert part_hash(dict(reversed(weights.items()))) == expected
    assert part_hash({name: value.half() for name, value in weights.items()}) == expected
    assert part_hash({**weights, "b": weights["b"].view(3, 2)}) != expected
    assert part_hash({**weights, "b": weights["b"] + 1e-6}) != expected
    assert part_hash({"c": weights["b"], "a": weights["a"]}) != expected


@pytest.mark.parametrize("part", ["unet", "image_encoder", "sentence_encoder"])
def test_another_frozen_part_is_refused_by_name(
    target: Segmenter, files: dict[str, Path], cfg: Config, part: str
) -> None:
    module = {
        "unet": target.encoder.unet,
        "image_encoder": target.encoder.image_encoder,
        "sentence_encoder": target.sentence_encoder.backbone,
    }[part]
    with torch.no_grad():
        next(module.parameters()).add_(1)  # type: ignore[union-attr]
    words = {"unet": "UNet", "image_encoder": "image encoder", "sentence_encoder": "sentence encoder"}[part]
    with pytest.raises(UserError, match=f"trained with another {words} .*--ignore_frozen_identity") as error:
        load(target, files["safetensors"], cfg)
    assert "\n" not in str(error.value)
    notes = load(target, files["safetensors"], dataclasses.replace(cfg, ignore_frozen_identity=True))
    assert len(notes) == 1 and words in notes[0]


def test_a_file_that_knows_no_identity_is_taken_with_a_note(
    source: Segmenter, target: Segmenter, cfg: Config, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "c.pth", source, cfg.model, config_dict(cfg))
    notes = load(target, tmp_path / "c.pth", cfg)
    assert len(notes) == 1 and "does not say with which UNet, VAE" in notes[0]


def test_class_heads_are_new_by_rule(source: Segmenter, target: Segmenter, files: dict[str, Path], cfg: Config) -> None:
    before = {name: value.clone() for name, value in trained_state(target).items()}
    assert "new class heads" in load(target, files["pth"], cfg, new_run=True)[0]
    changed = {name for name, value in trained_state(target).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if not name.startswith(CLASS_HEADS)}

    assert (
        "its class heads"
        in load(target, files["pth"], dataclasses.replace(cfg, keep_class_heads=True), new_run=True)[0]
    )
    assert differences(trained_state(target), trained_state(source)) == []


def test_new_adapters_on_weights_without(files: dict[str, Path], tiny_stack: Path) -> None:
    cfg = tiny_config(tiny_stack, lora_rank=2)
    model = tiny_model(cfg, seed=2)
    load(model, files["pth"], cfg, new_run=True)
    with pytest.raises(UserError, match=r"lacks .*\.lora_"):
        load(model, files["pth"], cfg)


def test_other_sizes_are_named(files: dict[str, Path], tiny_stack: Path, target: Segmenter) -> None:
    with pytest.raises(UserError, match="another configuration: nheads 4, and here it is 2"):
        load(target, files["pth"], tiny_config(tiny_stack, nheads=2))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("noise", "gaussian", "noise predicted, and here it is gaussian"),
        ("unet_text", False, "unet_text True, and here it is False"),
        ("stride4", "stem", "stride4 vae, and here it is stem"),
        ("backbone", "swin3d_t", "backbone t2v, and here it is swin3d_t"),
    ],
)
def test_another_function_is_named(
    files: dict[str, Path], tiny_stack: Path, target: Segmenter, option: str, value: Any, said: str
) -> None:
    with pytest.raises(UserError, match=f"another configuration: {said}"):
        load(target, files["pth"], tiny_config(tiny_stack, **{option: value}))


def test_noise_without_weights_is_told_apart(tiny_stack: Path, tmp_path: Path) -> None:
    gaussian, none = (tiny_config(tiny_stack, noise=noise) for noise in ("gaussian", "none"))
    model = tiny_model(gaussian, seed=1)
    save_checkpoint(
        tmp_path / "c.pth",
        model,
        "vdit",
        config_dict(gaussian),
        frozen=frozen_identity(model, frozen_sources(gaussian)),
    )
    with pytest.raises(UserError, match="noise gaussian, and here it is none"):
        load(tiny_model(none, seed=2), tmp_path / "c.pth", none)
    notes = load(tiny_model(none, seed=2), tmp_path / "c.pth", none, new_run=True)
    assert len(notes) == 1 and "new class heads" in notes[0], "a new run may compute something else"


def test_a_rank_is_named_and_auto_is_one(tiny_stack: Path, tmp_path: Path) -> None:
    auto, same, other = (tiny_config(tiny_stack, model="hcd", lora_rank=rank) for rank in ("auto", 16, 8))
    model = tiny_model(auto, seed=1)
    save_checkpoint(
        tmp_path / "c.pth", model, "hcd", config_dict(auto), frozen=frozen_identity(model, frozen_sources(auto))
    )
    assert load(tiny_model(same, seed=2), tmp_path / "c.pth", same) == []
    with pytest.raises(UserError, match="lora_rank 16, and here it is 8"):
        load(tiny_model(other, seed=2), tmp_path / "c.pth", other)


def test_a_model_of_no_known_name(tmp_path: Path, source: Segmenter) -> None:
    save_checkpoint(tmp_path / "c.pth", source, "other", {})
    with pytest.raises(UserError, match="of the model 'other'; known are vdit and hcd"):
        open_checkpoint(str(tmp_path / "c.pth"), "--resume")


def _rename(tensors: dict) -> None:
    tensors["surprise"] = tensors.pop("language_queries.vectors")


def _reshape(tensors: dict) -> None:
    tensors["language_queries.vectors"] = tensors["language_queries.vectors"].flatten()


DAMAGE = {"renamed": (_rename, "surprise"), "reshaped": (_reshape, "language_queries.vectors of shape [320]")}


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("damage", [*DAMAGE, "truncated", "empty", "code", "another program's"])
def test_damage_is_one_sentence(
    files: dict[str, Path], cfg: Config, source: Segmenter, tmp_path: Path, kind: str, damage: str
) -> None:
    path = tmp_path / files[kind].name
    change, named = DAMAGE.get(damage, (None, path.name))
    if damage in ("truncated", "empty"):
        path.write_bytes(files[kind].read_bytes()[: {"truncated": 50_000, "empty": 0}[damage]])
    elif damage == "code":
        torch.save({"format": print}, path)
    elif damage == "another program's":
        save_file({"x": torch.ones(1)}, path) if kind == "safetensors" else torch.save({"x": torch.ones(1)}, path)
    elif kind == "pth":
        content = torch.load(files[kind], weights_only=True)
        change(content["weights"])
        torch.save(content, path)
    else:
        with safe_open(files[kind], framework="pt") as file:
            about = file.metadata()
        tensors = load_file(files[kind])
        change(tensors)
        save_file(tensors, path, about)
    with pytest.raises(UserError) as error:
        load(source, path, cfg)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def train(
    monkeypatch: pytest.MonkeyPatch, root: Path, cfg: Config, toy_data: Path, tmp_path: Path, capsys: Any
) -> Callable[..., tuple[int, str, str]]:
    """main.py with further arguments: status, output and errors; it trains one step."""

    def run(*more: str) -> tuple[int, str, str]:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({name: value for name, value in config_dict(cfg).items() if value != ""}))
        paths = ("--config", str(config), "--ytvos_path", str(toy_data), "--output_dir", str(tmp_path / "run"))
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", ["main.py", *paths, "--max_steps", "1", "--lr", "1e-12", *more])
        with pytest.raises(SystemExit) as stop:
            run_cli(main.main)
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith("error")]
        return int(stop.value.code or 0), said.out, "\n".join(errors)

    return run


def test_a_run_begins_from_weights(
    train: Callable, files: dict[str, Path], source: Segmenter, cfg: Config, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    shutil.copy(files["safetensors"], tmp_path / "folder" / "model.safetensors")
    status, output, error = train("--pretrained_weights", str(tmp_path / "folder"), "--keep_class_heads")
    assert status == 0, error
    assert output.count("starting from") == 1 and "from step" not in output
    content = read_checkpoint(tmp_path / "run" / "checkpoint.pth", cfg.model)
    assert content["step"] == 1 and content["frozen"] == frozen_identity(source, frozen_sources(cfg))
    own = trained_state(source)
    assert all(torch.allclose(content["weights"][name], value, atol=1e-6) for name, value in own.items())


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_alone_are_not_resumed(train: Callable, files: dict[str, Path], kind: str) -> None:
    status, _, error = train("--resume", str(files[kind]))
    assert status == 2
    assert error.count("\n") == 0 and "--pretrained_weights" in error
