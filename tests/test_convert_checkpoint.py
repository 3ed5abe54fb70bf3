"""scripts.convert_checkpoint: to the file that is passed on, to the authors' layout, there and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from models import frozen_sources
from models.checkpoints import PARTS, frozen_identity, save_checkpoint
from models.lora import merged_state
from models.segmenter import Segmenter
from scripts import convert_checkpoint
from tests.checkpoint_tools import change_unet, differences, tiny_config, tiny_model, write_authors
from tests.tiny_models import restore
from util.checkpoint import read_checkpoint, read_content
from util.config import Config, config_dict
from util.errors import UserError, run_cli


def convert(*arguments: str | Path) -> None:
    convert_checkpoint.main([str(argument) for argument in arguments])


def load(path: Path, cfg: Config) -> tuple[Segmenter, list[str]]:
    model = tiny_model(cfg, seed=2)
    return model, restore(model, path, cfg)[1]


@pytest.mark.parametrize("name", ["vdit", "hcd"])
def test_there_and_back_is_exact(
    tiny_stack: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny_config(tiny_stack, model=name)
    model = tiny_model(cfg, seed=1)
    merged = name == "hcd"
    if merged:
        change_unet(model)
    released, converted, exported = (tmp_path / file for file in ("a.pth", "b.safetensors", "c.pth"))
    state = write_authors(released, model, cfg)

    convert(released, converted, "--stack", tiny_stack)
    told = capsys.readouterr().out
    assert ("left out" in told) and ("with the unet" in told) == merged
    content = read_checkpoint(converted, name)
    assert content["frozen"].keys() == {"unet", "vae", "text_encoder", "image_encoder", "sentence_encoder"}
    assert any(key.startswith("encoder.unet.module.") for key in content["weights"]) == merged
    assert not any(key.startswith("encoder.vae.") for key in content["weights"])
    loaded, notes = load(converted, cfg)
    assert notes == [] and differences(loaded.state_dict(), model.state_dict()) == []

    convert(converted, exported, "--to", "authors", "--pretrained", tiny_stack)
    back = read_content(exported)
    assert differences(back["model"], state) == []
    first = read_content(released)
    assert (back["epoch"], back["args"]) == (first["epoch"], first["args"])
    one, two = (back["model"][f"{prefix}bbox_embed.0.layers.0.weight"] for prefix in ("", "transformer.decoder."))
    assert one.data_ptr() == two.data_ptr(), "stored once"


def test_the_released_layout_survives(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden"
    convert(golden / "vdit" / "checkpoint.pth", tmp_path / "a.safetensors", "--stack", golden / "pretrained")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth", "--to", "authors", "--pretrained", golden / "pretrained")
    first, back = (read_content(path) for path in (golden / "vdit" / "checkpoint.pth", tmp_path / "b.pth"))
    assert differences(first["model"], back["model"]) == []
    assert first["args"] == back["args"] and first["epoch"] == back["epoch"]


@pytest.fixture(scope="module")
def run(tiny_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Segmenter, Config, Path]:
    """An HCD with adapters as training leaves it, and its checkpoint; only to be read."""
    cfg = tiny_config(tiny_stack, model="hcd", lora_rank=4)
    model = tiny_model(cfg, seed=1)
    path = tmp_path_factory.mktemp("run") / "checkpoint.pth"
    frozen = frozen_identity(model, frozen_sources(cfg))
    save_checkpoint(path, model, "hcd", config_dict(cfg), frozen=frozen, optimizer={}, step=1, steps_per_epoch=2)
    return model, cfg, path


def test_a_run_becomes_a_file_to_pass_on(run: tuple[Segmenter, Config, Path], tmp_path: Path) -> None:
    model, cfg, path = run
    convert(path.parent, tmp_path / "w.safetensors")
    content = read_checkpoint(tmp_path / "w.safetensors", "hcd")
    whole = read_checkpoint(path)
    assert content.keys() - {"unused"} == {"format", "model", "config", "frozen", "weights"}
    paths = {"pretrained": Path(whole["config"]["pretrained"]).name}  # no folder of this machine
    assert content["config"] == {name: whole["config"][name] for name in content["config"]} | paths
    assert content["config"].keys() >= {"hidden_dim", "lora_rank", "eval_size"}
    hashes = [{part: entry["sha256"] for part, entry in c["frozen"].items()} for c in (content, whole)]
    assert hashes[0] == hashes[1]
    loaded, notes = load(tmp_path / "w.safetensors", cfg)
    assert notes == [] and differences(loaded.state_dict(), model.state_dict()) == []


def test_half_precision(run: tuple[Segmenter, Config, Path], tmp_path: Path) -> None:
    model, cfg, path = run
    small, large = tmp_path / "h.safetensors", tmp_path / "f.safetensors"
    convert(path, small, "--dtype", "float16")
    convert(path, large)
    assert small.stat().st_size < 0.6 * large.stat().st_size
    loaded, notes = load(small, cfg)
    assert notes == [], "the identity is of the frozen parts, which are not in the file"
    expected = {name: value.half().float() for name, value in model.named_parameters() if value.requires_grad}
    own = {name: value for name, value in loaded.named_parameters() if value.requires_grad}
    assert differences(own, expected) == []


def test_half_precision_of_carried_parts(tiny_stack: Path, tmp_path: Path) -> None:
    cfg = tiny_config(tiny_stack, model="hcd")
    model = tiny_model(cfg, seed=1)
    change_unet(model)
    write_authors(tmp_path / "a.pth", model, cfg)
    options = ("--stack", tiny_stack, "--dtype", "bfloat16", "--carry", "vae")
    convert(tmp_path / "a.pth", tmp_path / "h.safetensors", *options)
    loaded, notes = load(tmp_path / "h.safetensors", cfg)
    assert notes == []
    for name in ("encoder.unet.module.conv_in.weight", "encoder.vae.module.encoder.conv_in.weight"):
        assert torch.equal(loaded.state_dict()[name], model.state_dict()[name].bfloat16().float())
    assert loaded.encoder.unet.carried and loaded.encoder.vae.carried and not loaded.encoder.text_encoder.carried


def test_adapters_are_merged_for_the_authors(run: tuple[Segmenter, Config, Path], tmp_path: Path) -> None:
    model, cfg, path = run
    convert(path, tmp_path / "a.pth", "--to", "authors")
    merged, notes = load(tmp_path / "a.pth", dataclasses.replace(cfg, lora_rank=0))
    assert notes == []
    expected = merged_state(model)
    assert differences(dict(merged.state_dict()), expected) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.pth", "b.safetensors"), "nowhere.pth does not exist"),
        (("nowhere.pth", "b.pth"), "should end in .safetensors"),
        (("nowhere.pth", "b.safetensors", "--to", "authors"), "should end in .pth"),
        (("{run}", "b.pth", "--to", "authors", "--pretrained", "nowhere/a/stack"), "nowhere/a/stack"),
        (("{released}", "b.safetensors"), "configs/full_size should have the sizes of its frozen parts"),
        (("{released}", "b.safetensors", "--stack", "nowhere/stack"), "nowhere/stack does not exist"),
        (("{run}", "b.safetensors", "--carry", "vae"), "does not hold the VAE"),
        (("{run}", "b.safetensors", "--pretrained", "a/stack"), "--pretrained has no effect with --to project"),
        (("{run}", "b.pth", "--to", "authors", "--dtype", "float16"), "--dtype has no effect with --to authors"),
    ],
)
def test_mistakes_are_one_sentence(
    run: tuple[Segmenter, Config, Path],
    tiny_stack: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    model, cfg, path = run
    monkeypatch.chdir(tmp_path)
    if "{released}" in arguments:
        write_authors(tmp_path / "released.pth", model, cfg)
    words = {"run": str(path), "released": "released.pth"}
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: convert(*(argument.format(**words) for argument in arguments)))
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.startswith("error: ") and message.count("\n") == 1 and said in message


@pytest.mark.parametrize("option", [{"noise": "gaussian"}, {"unet_text": False}])
def test_what_the_authors_layout_cannot_say_is_not_exported(tiny_stack: Path, tmp_path: Path, option: dict) -> None:
    cfg = tiny_config(tiny_stack, model="hcd", **option)
    save_checkpoint(tmp_path / "c.pth", tiny_model(cfg, seed=1), "hcd", config_dict(cfg))
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"was made with {name} {value}, for which the authors' layout has no place"):
        convert(tmp_path / "c.pth", tmp_path / "a.pth", "--to", "authors")


def test_another_stack_is_refused_on_the_way_to_the_authors(
    run: tuple[Segmenter, Config, Path], tmp_path: Path
) -> None:
    from models.diffusion.tiny import make_tiny_stack

    other = make_tiny_stack(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="trained with another UNet"):
        convert(run[2], tmp_path / "a.pth", "--to", "authors", "--pretrained", other)
    assert not (tmp_path / "a.pth").exists()


def test_every_frozen_part_can_be_carried() -> None:
    """They are named apart from the models, which take seconds to import."""
    assert set(convert_checkpoint.FROZEN) == set(PARTS)
