"""Checkpoints: this project's formats, the authors' layout, conversion between them, and loading a model from one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, UNet3DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

import main
from models import Segmenter, build_model, checkpoints, frozen_sources, load_pretrained
from models.authors import BACKBONE, authors_model, authors_names, authors_state, convert_authors
from models.checkpoints import (
    CLASS_HEADS,
    PARTS,
    Checkpoint,
    frozen_identity,
    load_state,
    loaded_parts_state,
    open_checkpoint,
    part_hash,
    portable,
    save_checkpoint,
    trained_state,
)
from models.diffusion.stack import StockParts
from models.lora import merged_state
from models.pretrained import Pretrained
from scripts import convert_checkpoint
from scripts.count_parameters import FULL_SIZE, empty_model
from tests.commands import read_checkpoint, run_command
from tests.conftest import SMALL
from tests.tiny_models import change_unet, differences, restore, tiny_config, tiny_model, write_authors
from util import device
from util.checkpoint import read_content, save_weights
from util.config import Config, config_dict
from util.device import passing
from util.errors import UserError, run_cli


def small_model(width: int = 3) -> nn.Module:
    torch.manual_seed(width)
    model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    model[1].requires_grad_(False)
    return model


def test_only_trained_parameters_are_stored_and_come_back(tmp_path: Path) -> None:
    model, path = small_model(), tmp_path / "deep" / "checkpoint.pth"
    save_checkpoint(path, model, "vdit", {"lr": 0.1}, step=7)
    content = read_checkpoint(path, "vdit")
    assert content["weights"].keys() == {"0.weight", "0.bias"}
    assert content["step"] == 7
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pth"]

    other = small_model()
    with torch.no_grad():
        other[0].weight.zero_()
    load_state(other, content["weights"], path)
    assert torch.equal(other[0].weight, model[0].weight)
    assert content["config"] == {"lr": 0.1}


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        save_checkpoint(tmp_path / name, small_model(), "vdit", {"lr": 0.1}, step=7)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pth", small_model(), "hcd", {})
    with pytest.raises(UserError, match=r"'hcd'.*'vdit'"):
        read_checkpoint(tmp_path / "c.pth", "vdit")


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pth", small_model(3), "vdit", {})
    with pytest.raises(UserError, match=r"0\.bias.*\[3\].*\[4\]"):
        load_state(small_model(4), read_checkpoint(tmp_path / "c.pth", "vdit")["weights"], "c.pth")


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "foreign", "code"])
def test_an_unreadable_checkpoint_is_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.pth"
    if kind == "truncated":
        save_checkpoint(path, small_model(), "vdit", {})
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
    save_checkpoint(path, small_model(), "vdit", {}, step=1)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, small_model(), "vdit", {}, step=2)
    assert read_checkpoint(path, "vdit")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


# -------- This project's formats, and the identity of frozen parts --------------


@pytest.fixture(scope="module")
def cfg(small_stack: Path) -> Config:
    return tiny_config(small_stack)


@pytest.fixture(scope="module")
def original(cfg: Config) -> Segmenter:
    """A model; do not modify."""
    return tiny_model(cfg, seed=1)


@pytest.fixture(scope="module")
def files(original: Segmenter, cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Its checkpoints: one for resuming, one with weights only."""
    folder = tmp_path_factory.mktemp("formats")
    paths = {"pth": folder / "checkpoint.pth", "safetensors": folder / "weights.safetensors"}
    frozen = frozen_identity(original, frozen_sources(cfg))
    save_checkpoint(paths["pth"], original, cfg.model, config_dict(cfg), frozen=frozen, step=3)
    save_weights(paths["safetensors"], read_checkpoint(paths["pth"]))
    return paths


@pytest.fixture
def target(cfg: Config) -> Segmenter:
    return tiny_model(cfg, seed=2)


def load_into(model: Segmenter, path: Path, cfg: Config, **options: Any) -> list[str]:
    """Load a checkpoint into a model; returns the notes."""
    return restore(model, path, cfg, **options)[1]


def load(path: Path, cfg: Config) -> tuple[Segmenter, list[str]]:
    """A new model with the weights of a checkpoint, and the notes."""
    model = tiny_model(cfg, seed=2)
    return model, load_into(model, path, cfg)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_both_kinds_hold_the_same(
    original: Segmenter, target: Segmenter, files: dict[str, Path], cfg: Config, kind: str
) -> None:
    content = read_checkpoint(files[kind], cfg.model)
    assert content["weights"].keys() == trained_state(original).keys()
    assert content["config"] == config_dict(cfg)
    assert content["frozen"].keys() == {"unet", "vae", "text_encoder", "image_encoder", "sentence_encoder"}
    assert ("step" in content) == (kind == "pth")
    assert load_into(target, files[kind], cfg) == []
    assert differences(target.state_dict(), original.state_dict()) == []
    assert not loaded_parts_state(target), "no frozen part came with the file"


def test_files_have_the_same_permissions(files: dict[str, Path]) -> None:
    assert files["safetensors"].stat().st_mode == files["pth"].stat().st_mode


def test_files_are_mapped_and_not_read(files: dict[str, Path]) -> None:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system does not list its memory maps")
    contents = [read_content(path) for path in files.values()]
    text = maps.read_text()
    assert all(str(path) in text for path in files.values())
    del contents


def test_mapped_tensors_that_were_read_take_no_memory(tmp_path: Path) -> None:
    if not Path("/proc/self/smaps").is_file():
        pytest.skip("this system does not list its memory maps")

    def mapped() -> int:
        return int(Path("/proc/self/status").read_text().split("RssFile:")[1].split()[0])  # kB

    save_file({name: torch.full((1 << 24,), 3.0) for name in "ab"}, tmp_path / "large.safetensors")
    weights = load_file(tmp_path / "large.safetensors")
    weights["b"][0] = 5  # what was changed is kept
    before = mapped()
    assert weights["a"].sum() == 3 << 24 and mapped() > before + (60 << 10)
    assert [float(value[-1]) for value in passing(weights[name] for name in "ab")] == [3, 3]
    assert weights["b"][0] == 5
    del weights
    weights = load_file(tmp_path / "large.safetensors")
    before = mapped()
    assert [float(value.sum()) for value in passing(weights.values())] == [3 << 24] * 2
    assert mapped() < before + (10 << 10)
    assert weights["a"].sum() == 3 << 24


MAPPING = """10000000-20000000 rw-p 00000000 08:01 12    /data/a b.pth
Rss:              262144 kB
Anonymous:             {} kB
Private_Hugetlb:       {} kB
Swap:                  {} kB
VmFlags: rd wr mr mw me {}
"""


@pytest.mark.parametrize(
    ("numbers", "forgotten"),
    [
        ((0, 0, 0, "ac"), True),
        ((4, 0, 0, "ac"), False),  # changed
        ((0, 0, 4, "ac"), False),  # changed, and swapped out
        ((0, 2048, 0, "ht"), False),  # memory in huge pages
        ((0, 0, 0, "io"), False),  # of a driver
    ],
)
def test_only_what_can_be_read_again_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: tuple[Any, ...], forgotten: bool
) -> None:
    maps = tmp_path / "smaps"
    maps.write_text(MAPPING.format(*numbers))
    advised: list[int] = []
    system = SimpleNamespace(madvise=lambda start, size, advice: advised.append(size.value))
    monkeypatch.setattr(device, "Path", lambda name: maps)
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: system)
    device.forget_mapped_files(1 << 20)  # too few to look for them
    assert advised == []
    device.forget_mapped_files(1 << 28)
    assert advised == ([1 << 28] if forgotten else [])
    maps.unlink()
    device.forget_mapped_files(1 << 28)


def test_segmenting_hashes_only_what_the_checkpoint_names(
    original: Segmenter, cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = frozen_identity(original, frozen_sources(cfg))
    save_checkpoint(tmp_path / "all.pth", original, cfg.model, config_dict(cfg), frozen)
    save_checkpoint(tmp_path / "none.pth", original, cfg.model, config_dict(cfg))
    hashed: list[int] = []
    monkeypatch.setattr(checkpoints, "part_hash", lambda weights: hashed.append(len(weights)) or part_hash(weights))
    load_pretrained(tmp_path / "none.pth", device="cpu")
    assert not hashed
    load_pretrained(tmp_path / "all.pth", device="cpu")
    assert len(hashed) == len(frozen) == 5


def test_a_part_of_a_known_revision_is_not_hashed_again(
    original: Segmenter, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = dict.fromkeys(frozen_sources(cfg), "org/stack")
    monkeypatch.setattr(checkpoints, "cached_revision", lambda source: "abc")
    recorded = frozen_identity(original, sources)
    monkeypatch.setattr(checkpoints, "part_hash", lambda weights: "new")
    assert frozen_identity(original, sources, recorded) == recorded
    recorded["vae"]["revision"] = "other"
    again = frozen_identity(original, sources, recorded)
    assert {part for part, entry in again.items() if entry["sha256"] == "new"} == {"vae"}


def test_the_hash_depends_on_values_only(cfg: Config) -> None:
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
    with pytest.raises(UserError, match=f"trained with a different {words} .*--ignore_frozen_identity") as error:
        load_into(target, files["safetensors"], cfg)
    assert "\n" not in str(error.value)
    notes = load_into(target, files["safetensors"], dataclasses.replace(cfg, ignore_frozen_identity=True))
    assert len(notes) == 1 and words in notes[0]


def test_a_checkpoint_without_identity_is_accepted_with_a_note(
    original: Segmenter, target: Segmenter, cfg: Config, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "c.pth", original, cfg.model, config_dict(cfg))
    notes = load_into(target, tmp_path / "c.pth", cfg)
    assert len(notes) == 1 and "does not say with which UNet, VAE" in notes[0]


def test_class_heads_are_new_by_rule(
    original: Segmenter, target: Segmenter, files: dict[str, Path], cfg: Config
) -> None:
    before = {name: value.clone() for name, value in trained_state(target).items()}
    assert "new class heads" in load_into(target, files["pth"], cfg, new_run=True)[0]
    changed = {name for name, value in trained_state(target).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if not name.startswith(CLASS_HEADS)}

    assert (
        "its class heads"
        in load_into(target, files["pth"], dataclasses.replace(cfg, keep_class_heads=True), new_run=True)[0]
    )
    assert differences(trained_state(target), trained_state(original)) == []


def test_new_adapters_on_weights_without(files: dict[str, Path], small_stack: Path) -> None:
    cfg = tiny_config(small_stack, lora_rank=2)
    model = tiny_model(cfg, seed=2)
    load_into(model, files["pth"], cfg, new_run=True)
    with pytest.raises(UserError, match=r"lacks .*\.lora_"):
        load_into(model, files["pth"], cfg)


def test_other_sizes_are_named(files: dict[str, Path], small_stack: Path, target: Segmenter) -> None:
    with pytest.raises(UserError, match="was made with nheads 4, but this configuration has 2"):
        load_into(target, files["pth"], tiny_config(small_stack, nheads=2))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("noise", "gaussian", "noise predicted, but this configuration has gaussian"),
        ("unet_text", False, "unet_text True, but this configuration has False"),
        ("stride4", "stem", "stride4 vae, but this configuration has stem"),
        ("backbone", "swin3d_t", "backbone t2v, but this configuration has swin3d_t"),
    ],
)
def test_another_function_is_named(
    files: dict[str, Path], small_stack: Path, target: Segmenter, option: str, value: Any, said: str
) -> None:
    with pytest.raises(UserError, match=f"was made with {said}"):
        load_into(target, files["pth"], tiny_config(small_stack, **{option: value}))


def test_noise_options_without_weights_are_distinguished(small_stack: Path, tmp_path: Path) -> None:
    gaussian, none = (tiny_config(small_stack, noise=noise) for noise in ("gaussian", "none"))
    model = tiny_model(gaussian, seed=1)
    save_checkpoint(
        tmp_path / "c.pth",
        model,
        "vdit",
        config_dict(gaussian),
        frozen=frozen_identity(model, frozen_sources(gaussian)),
    )
    with pytest.raises(UserError, match="noise gaussian, but this configuration has none"):
        load_into(tiny_model(none, seed=2), tmp_path / "c.pth", none)
    notes = load_into(tiny_model(none, seed=2), tmp_path / "c.pth", none, new_run=True)
    assert len(notes) == 1 and "new class heads" in notes[0], "a new run may use a different function"


def test_a_different_rank_is_named_and_auto_means_16(small_stack: Path, tmp_path: Path) -> None:
    auto, same, other = (tiny_config(small_stack, model="hcd", lora_rank=rank) for rank in ("auto", 16, 8))
    model = tiny_model(auto, seed=1)
    save_checkpoint(
        tmp_path / "c.pth", model, "hcd", config_dict(auto), frozen=frozen_identity(model, frozen_sources(auto))
    )
    assert load_into(tiny_model(same, seed=2), tmp_path / "c.pth", same) == []
    with pytest.raises(UserError, match="lora_rank 16, but this configuration has 8"):
        load_into(tiny_model(other, seed=2), tmp_path / "c.pth", other)


def test_a_model_of_no_known_name(tmp_path: Path, original: Segmenter) -> None:
    save_checkpoint(tmp_path / "c.pth", original, "other", {})
    with pytest.raises(UserError, match="of the model 'other'; known are vdit, hcd"):
        open_checkpoint(str(tmp_path / "c.pth"), "--resume")


OPTIONS: dict[str, Any] = {
    **{"enc_layers": 10**7, "dec_layers": 10**6, "hidden_dim": 320_000, "num_queries": 10**9, "nheads": 2**20},
    **{"dim_feedforward": 10**9, "enc_n_points": 10**8, "dynamic_mask_channels": 10**6, "lora_rank": 10**6},
    **{"pyramid_channels": [10**6, 64, 128, 256], "pretrained": 5, "text_encoder": ["a"], "backbone": None},
    **{"max_size": "large", "image_encoder": "x" * 300, "dropout": "none"},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_options_that_the_weights_contradict(files: dict[str, Path], tmp_path: Path, option: str, kind: str) -> None:
    """They are refused before anything is built."""
    path = tmp_path / files[kind].name
    if kind == "pth":
        content = torch.load(files[kind], weights_only=True)
        content["config"][option] = OPTIONS[option]
        torch.save(content, path)
    else:
        with safe_open(files[kind], framework="pt") as file:
            about = file.metadata()
        about["config"] = json.dumps({**json.loads(about["config"]), option: OPTIONS[option]})
        save_file(load_file(files[kind]), path, about)
    with pytest.raises(UserError, match=rf"{path.name} (is damaged: its |must be |has a name of more)") as caught:
        open_checkpoint(str(path), "--resume")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("config", "[]"), ("config", "5"), ("frozen", '"x"'), ("frozen", '{"unet": 5}'), ("epoch", "[]"), ("args", "3")],
)
def test_metadata_of_another_type_is_one_sentence(files: dict[str, Path], tmp_path: Path, key: str, value: str) -> None:
    with safe_open(files["safetensors"], framework="pt") as file:
        about = {**file.metadata(), key: value}
    save_file(load_file(files["safetensors"]), tmp_path / "c.safetensors", about)
    with pytest.raises(UserError, match=r"c\.safetensors is damaged: its"):
        open_checkpoint(str(tmp_path / "c.safetensors"), "--resume")


def test_names_that_are_too_long(files: dict[str, Path]) -> None:
    for source in ("x" * 300, "org/" + "x" * 300, f"runs/{'é' * 200}/c.pth", "hf://org/" + "x" * 300):
        with pytest.raises(UserError, match="has a name of more than 255 bytes"):
            open_checkpoint(source, "--resume")
        with pytest.raises(UserError, match="has a name of more than 255 bytes"):
            load_pretrained(source)


def _rename(tensors: dict) -> None:
    tensors["surprise"] = tensors.pop("language_queries.vectors")


def _reshape(tensors: dict) -> None:
    tensors["language_queries.vectors"] = tensors["language_queries.vectors"].flatten()


DAMAGE = {"renamed": (_rename, "surprise"), "reshaped": (_reshape, "language_queries.vectors of shape [320]")}


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("damage", [*DAMAGE, "truncated", "empty", "code", "another program's"])
def test_damage_is_one_sentence(
    files: dict[str, Path], cfg: Config, original: Segmenter, tmp_path: Path, kind: str, damage: str
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
        load_into(original, path, cfg)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def train(
    monkeypatch: pytest.MonkeyPatch, root: Path, cfg: Config, toy_data: Path, tmp_path: Path, capsys: Any
) -> Callable[..., tuple[int, str, str]]:
    """Run one training step of main.py; returns exit status, output and error messages."""

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
    train: Callable, files: dict[str, Path], original: Segmenter, cfg: Config, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    shutil.copy(files["safetensors"], tmp_path / "folder" / "model.safetensors")
    status, output, error = train("--pretrained_weights", str(tmp_path / "folder"), "--keep_class_heads")
    assert status == 0, error
    assert output.count("starting from") == 1 and "from step" not in output
    content = read_checkpoint(tmp_path / "run" / "checkpoint.pth", cfg.model)
    assert content["step"] == 1 and content["frozen"] == frozen_identity(original, frozen_sources(cfg))
    own = trained_state(original)
    assert all(torch.allclose(content["weights"][name], value, atol=1e-6) for name, value in own.items())


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_alone_are_not_resumed(train: Callable, files: dict[str, Path], kind: str) -> None:
    status, _, error = train("--resume", str(files[kind]))
    assert status == 2
    assert error.count("\n") == 0 and "--pretrained_weights" in error


# -------- Frozen parts stored beside a checkpoint -------------------------------


@pytest.fixture(scope="module")
def hcd_cfg(small_stack: Path) -> Config:
    return tiny_config(small_stack, model="hcd", lora_rank=2)


@pytest.fixture(scope="module")
def hcd_source(hcd_cfg: Config) -> Segmenter:
    """A model with adapters on a UNet that is not the pretrained one; do not modify."""
    return changed_model(hcd_cfg, 1.5)


@pytest.fixture(scope="module")
def written(hcd_source: Segmenter, hcd_cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint; do not modify."""
    path = tmp_path_factory.mktemp("run") / "checkpoint.pth"
    save(path, hcd_source, hcd_cfg)
    return path


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint and of the file beside it."""
    shutil.copytree(written.parent, tmp_path / "copy")
    return tmp_path / "copy" / "checkpoint.pth"


def changed_model(hcd_cfg: Config, factor: float) -> Segmenter:
    model = tiny_model(hcd_cfg, seed=1)
    change_unet(model, factor)
    model.encoder.unet.from_checkpoint = True
    return model


def save(path: Path, model: Segmenter, hcd_cfg: Config, step: int = 1) -> None:
    frozen = frozen_identity(model, frozen_sources(hcd_cfg))
    save_checkpoint(path, model, hcd_cfg.model, config_dict(hcd_cfg), frozen=frozen, step=step)


def beside(path: Path) -> Path:
    (file,) = path.parent.glob("frozen-*.safetensors")
    return file


def test_a_checkpoint_holds_what_is_trained_and_names_the_rest(written: Path, hcd_source: Segmenter) -> None:
    assert {path.name for path in written.parent.iterdir()} == {"checkpoint.pth", beside(written).name}
    content = torch.load(written, weights_only=True)
    assert content["weights"].keys() == trained_state(hcd_source).keys()
    assert content["beside"] == beside(written).name
    assert all(name.startswith("encoder.unet.module.") for name in load_file(beside(written)))


def test_it_comes_back_whole(written: Path, hcd_source: Segmenter, hcd_cfg: Config) -> None:
    model, notes = load(written, hcd_cfg)
    assert notes == [] and differences(model.state_dict(), hcd_source.state_dict()) == []
    assert model.encoder.unet.from_checkpoint and not model.encoder.vae.from_checkpoint
    assert frozen_identity(model, frozen_sources(hcd_cfg))["unet"]["source"] == "a checkpoint"


def test_it_is_written_once(copied: Path, hcd_source: Segmenter, hcd_cfg: Config) -> None:
    before = beside(copied).stat()
    save(copied, hcd_source, hcd_cfg, step=2)
    assert beside(copied).stat().st_mtime_ns == before.st_mtime_ns
    assert read_checkpoint(copied)["step"] == 2
    beside(copied).unlink()
    save(copied, hcd_source, hcd_cfg, step=3)
    assert beside(copied).stat().st_size == before.st_size


def test_other_frozen_parts_get_another_file(copied: Path, hcd_source: Segmenter, hcd_cfg: Config) -> None:
    first = beside(copied).name
    other = changed_model(hcd_cfg, 2.0)
    save(copied, other, hcd_cfg)
    assert len(list(copied.parent.glob("frozen-*"))) == 2, "another checkpoint may need the first one"
    assert torch.load(copied, weights_only=True)["beside"] != first
    model, _ = load(copied, hcd_cfg)
    assert differences(model.state_dict(), other.state_dict()) == []


def test_without_identities_all_is_in_the_checkpoint(tmp_path: Path, hcd_source: Segmenter, hcd_cfg: Config) -> None:
    save_checkpoint(tmp_path / "c.pth", hcd_source, hcd_cfg.model, config_dict(hcd_cfg))
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]
    model, _ = load(tmp_path / "c.pth", hcd_cfg)
    assert differences(model.state_dict(), hcd_source.state_dict()) == []


def test_a_converted_checkpoint_is_complete(
    written: Path, hcd_source: Segmenter, hcd_cfg: Config, tmp_path: Path
) -> None:
    convert_checkpoint.main([str(written), str(tmp_path / "w.safetensors")])
    model, notes = load(tmp_path / "w.safetensors", hcd_cfg)
    assert notes == [] and differences(model.state_dict(), hcd_source.state_dict()) == []


@pytest.mark.parametrize("fault", ["absent", "exchanged", "truncated", "of another program", "a path", "no name"])
def test_a_bad_file_beside_it_is_one_sentence(copied: Path, hcd_cfg: Config, fault: str) -> None:
    file = beside(copied)
    said = f"{file.name} is not a readable checkpoint"
    if fault == "absent":
        file.unlink()
        said = f"checkpoint.pth needs {file.name} beside it"
    elif fault == "exchanged":
        save(copied.parent / "other" / "checkpoint.pth", changed_model(hcd_cfg, 2.0), hcd_cfg)
        beside(copied.parent / "other" / "checkpoint.pth").replace(file)
        said = "trained with a different UNet"
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
        load(copied, hcd_cfg)
    assert said in str(error.value) and "\n" not in str(error.value)
    if fault == "exchanged":
        assert "the file is damaged" in str(error.value)
        _, notes = load(copied, dataclasses.replace(hcd_cfg, ignore_frozen_identity=True))
        assert len(notes) == 1 and notes[0].endswith("ignored")


# -------- The authors' layout ---------------------------------------------------


MODELS = ("vdit", "hcd")


@pytest.fixture(scope="module", params=MODELS)
def released(request: pytest.FixtureRequest, small_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A model with a modified UNet, and its checkpoint in the authors' layout."""
    cfg = tiny_config(small_stack, model=request.param)
    model = tiny_model(cfg, seed=1)
    change_unet(model)
    path = tmp_path_factory.mktemp("authors") / f"{cfg.model}.pth"
    return {"cfg": cfg, "model": model, "path": path, "state": write_authors(path, model, cfg)}


def test_every_weight_comes_in(released: dict) -> None:
    model, notes = load(released["path"], released["cfg"])
    assert differences(model.state_dict(), released["model"].state_dict()) == []
    assert notes == [], "the file has all parts, so there is nothing to report"
    assert [part.from_checkpoint for part in (model.encoder.unet, model.encoder.vae)] == [True, False]


def test_a_run_from_it_keeps_the_unet_that_it_brought(released: dict, tmp_path: Path) -> None:
    cfg = released["cfg"]
    model, _ = load(released["path"], cfg)
    frozen = restore(model, released["path"], cfg)[0]
    save_checkpoint(tmp_path / "c.pth", model, cfg.model, {}, frozen=frozen)
    again, notes = load(tmp_path / "c.pth", cfg)
    assert notes == [] and differences(again.state_dict(), model.state_dict()) == []
    assert {name.split(".module.")[0] for name in loaded_parts_state(again)} == {"encoder.unet"}


def test_the_two_names_of_a_tensor_are_stored_once(released: dict) -> None:
    state, path = released["state"], released["path"]
    stored = torch.load(path, weights_only=False)["model"]
    assert stored["bbox_embed.0.layers.0.weight"].data_ptr() == (
        stored["transformer.decoder.bbox_embed.0.layers.0.weight"].data_ptr()
    )
    unique = {value.data_ptr(): value.nbytes for value in state.values()}
    assert path.stat().st_size < 1.2 * sum(unique.values()) + 1e6


def test_it_is_mapped_and_not_read(released: dict) -> None:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system does not list its memory maps")
    checkpoint = open_checkpoint(str(released["path"]), "--resume")
    assert str(released["path"]) in maps.read_text()
    assert checkpoint.weights


def test_adapters_may_be_new_on_a_merged_unet(small_stack: Path, tmp_path: Path) -> None:
    cfg = tiny_config(small_stack, model="hcd", lora_rank=4)
    source = tiny_model(cfg, seed=1)
    write_authors(tmp_path / "hcd.pth", source, cfg)
    torch.manual_seed(5)
    model = build_model(cfg)
    restore(model, tmp_path / "hcd.pth", cfg)
    assert differences(merged_state(model), merged_state(source)) == []
    assert any(".lora_A." in name for name in trained_state(model))


def rename_key(name: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["model"][name + "x"] = content["model"].pop(name)

    return change


def reshape_key(name: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["model"][name] = content["model"][name][:-1].clone()

    return change


def _alias(content: dict) -> None:
    content["model"]["bbox_embed.1.layers.0.bias"] = content["model"]["bbox_embed.1.layers.0.bias"] + 1


def _foreign(content: dict) -> None:
    content["model"] = {"conv1.weight": torch.zeros(1)}


BACK = BACKBONE["vdit"]
RELEASED_DAMAGE = {
    "a renamed trained key": (rename_key("query_tensors"), "query_tensorsx"),
    "a renamed class head": (rename_key("class_embed.0.weight"), "class_embed.0.weightx"),
    "a renamed UNet key": (rename_key(f"{BACK}unet.conv_in.weight"), f"{BACK}unet.conv_in.weightx"),
    "a renamed noise key": (rename_key(f"{BACK}noise_pred.weight"), f"{BACK}noise_pred.weightx"),
    "an unknown part": (lambda content: content["model"].update({f"{BACK}new.weight": torch.zeros(1)}), f"{BACK}new."),
    "a reshaped trained tensor": (reshape_key("query_embed.weight"), "query_embed.weight of shape [4, 64]"),
    "a reshaped VAE tensor": (reshape_key(f"{BACK}vae.encoder.conv_in.bias"), "conv_in.bias of shape"),
    "a lost trained tensor": (
        lambda content: content["model"].pop("controller.layers.0.bias"),
        "controller.layers.0.bias",
    ),
    "a lost UNet tensor": (lambda content: content["model"].pop(f"{BACK}unet.conv_in.bias"), "unet.conv_in.bias"),
    "two values of one tensor": (_alias, "bbox_embed.1.layers.0.bias"),
    "neither model": (_foreign, "neither VD-IT nor HCD"),
    "code": (lambda content: content.update(args=print), "carry code"),
    "another class": (lambda content: content.update(args=Path("x")), "carry code"),
}


@pytest.fixture(scope="module")
def vdit(small_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Segmenter, Config, Path]:
    """A model, which must not be modified, and its checkpoint."""
    cfg = tiny_config(small_stack)
    model, path = tiny_model(cfg, seed=1), tmp_path_factory.mktemp("authors") / "vdit.pth"
    write_authors(path, model, cfg)
    return model, cfg, path


@pytest.mark.parametrize("kind", [*RELEASED_DAMAGE, "truncated"])
def test_damage_to_a_released_checkpoint_is_one_sentence(
    vdit: tuple[Segmenter, Config, Path], tmp_path: Path, kind: str
) -> None:
    model, cfg, whole = vdit
    path = tmp_path / "released.pth"
    change, named = RELEASED_DAMAGE.get(kind, (None, "not a readable checkpoint"))
    if change is None:
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    else:
        content = torch.load(whole, weights_only=False)
        change(content)
        torch.save(content, path)
    before = {name: value.clone() for name, value in trained_state(model).items()}
    with pytest.raises(UserError) as error:
        restore(model, path, cfg)
    assert named in str(error.value) and "\n" not in str(error.value)
    assert "released.pth" in str(error.value)
    assert differences(before, trained_state(model)) == [], "the model must be unchanged"


def test_an_option_that_holds_itself_is_left_out(vdit: tuple[Segmenter, Config, Path], tmp_path: Path) -> None:
    content = torch.load(vdit[2], weights_only=False)
    loop: list[Any] = []
    loop.append(loop)
    content["args"].lr_drop = loop
    torch.save(content, tmp_path / "c.pth")
    assert "lr_drop" not in open_checkpoint(str(tmp_path / "c.pth"), "--resume").extras["args"]


def test_a_checkpoint_of_the_other_model_is_recognised_by_its_keys(released: dict) -> None:
    other = {"vdit": "hcd", "hcd": "vdit"}[released["cfg"].model]
    with pytest.raises(UserError, match=f"model '{released['cfg'].model}'.*model: {released['cfg'].model}"):
        open_checkpoint(str(released["path"]), "--resume", other)


def test_other_sizes_of_a_released_checkpoint_are_named(released: dict, small_stack: Path) -> None:
    cfg = tiny_config(small_stack, model=released["cfg"].model, nheads=2)
    with pytest.raises(UserError, match="nheads 4, but this configuration has 2"):
        load(released["path"], cfg)


@pytest.fixture(scope="module", params=MODELS)
def full_size(request: pytest.FixtureRequest) -> dict[str, list[int]]:
    """Names and shapes of a full-size export, on the meta device; under "" the index of the model."""
    model = request.param
    state = merged_state(empty_model(Config(model=model)))
    exported = authors_state(state, model, _full_size_stock(), _full_size_projection())
    return {"": [MODELS.index(model)], **{name: list(value.shape) for name, value in exported.items()}}


def _full_size_stock() -> StockParts:
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(UNet3DConditionModel.load_config(FULL_SIZE / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(FULL_SIZE / "vae"))
        roberta = RobertaModel(RobertaConfig.from_pretrained(FULL_SIZE / "roberta"), add_pooling_layer=True)
    return StockParts(unet.state_dict(), vae.state_dict(), roberta.state_dict())


def _full_size_projection() -> dict[str, Tensor]:
    with torch.device("meta"):
        return {"sentence_proj.fc.weight": torch.empty(256, 768)}


def test_a_full_size_export_has_the_released_names_and_shapes(full_size: dict[str, list[int]], shared: Path) -> None:
    model = MODELS[full_size[""][0]]
    released = json.loads((shared / "golden" / f"full_size_{model}_keys.json").read_text())
    assert {name: shape for name, shape in full_size.items() if name} == released


def test_names_go_both_ways(full_size: dict[str, list[int]]) -> None:
    names = [name for name in full_size if name]
    model = MODELS[full_size[""][0]]
    assert authors_model(names) == model
    table = authors_names(model)
    assert convert_authors(dict.fromkeys(names, 0)).keys() == {table.ours(name) for name in names} - {None}
    for name in names:
        ours = table.ours(name)
        assert ours is None or name in table.theirs(ours)


def test_parameters_unknown_to_the_authors_are_not_exported() -> None:
    with pytest.raises(UserError, match=r"no place for encoder\.surprise"):
        authors_names("hcd").theirs("encoder.surprise.weight")


# -------- scripts.convert_checkpoint --------------------------------------------


def convert(*arguments: str | Path) -> None:
    convert_checkpoint.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["vdit", "hcd"])
def test_there_and_back_is_exact(
    small_stack: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny_config(small_stack, model=name)
    model = tiny_model(cfg, seed=1)
    merged = name == "hcd"
    if merged:
        change_unet(model)
    released, converted, exported = (tmp_path / file for file in ("a.pth", "b.safetensors", "c.pth"))
    state = write_authors(released, model, cfg)

    convert(released, converted, "--stack", small_stack)
    told = capsys.readouterr().out
    assert ("not stored" in told) and ("with the unet" in told) == merged
    content = read_checkpoint(converted, name)
    assert content["frozen"].keys() == {"unet", "vae", "text_encoder", "image_encoder", "sentence_encoder"}
    assert any(key.startswith("encoder.unet.module.") for key in content["weights"]) == merged
    assert not any(key.startswith("encoder.vae.") for key in content["weights"])
    loaded, notes = load(converted, cfg)
    assert notes == [] and differences(loaded.state_dict(), model.state_dict()) == []

    convert(converted, exported, "--to", "authors", "--pretrained", small_stack)
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
def run(small_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Segmenter, Config, Path]:
    """An HCD with adapters as training leaves it, and its checkpoint; only to be read."""
    cfg = tiny_config(small_stack, model="hcd", lora_rank=4)
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
    assert notes == [], "the frozen parts are not in the file"
    expected = {name: value.half().float() for name, value in model.named_parameters() if value.requires_grad}
    own = {name: value for name, value in loaded.named_parameters() if value.requires_grad}
    assert differences(own, expected) == []


def test_half_precision_of_loaded_parts(small_stack: Path, tmp_path: Path) -> None:
    cfg = tiny_config(small_stack, model="hcd")
    model = tiny_model(cfg, seed=1)
    change_unet(model)
    write_authors(tmp_path / "a.pth", model, cfg)
    options = ("--stack", small_stack, "--dtype", "bfloat16", "--carry", "vae")
    convert(tmp_path / "a.pth", tmp_path / "h.safetensors", *options)
    loaded, notes = load(tmp_path / "h.safetensors", cfg)
    assert notes == []
    for name in ("encoder.unet.module.conv_in.weight", "encoder.vae.module.encoder.conv_in.weight"):
        assert torch.equal(loaded.state_dict()[name], model.state_dict()[name].bfloat16().float())
    encoder = loaded.encoder
    assert [part.from_checkpoint for part in (encoder.unet, encoder.vae, encoder.text_encoder)] == [True, True, False]


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
    small_stack: Path,
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
def test_options_unknown_to_the_authors_are_not_exported(small_stack: Path, tmp_path: Path, option: dict) -> None:
    cfg = tiny_config(small_stack, model="hcd", **option)
    save_checkpoint(tmp_path / "c.pth", tiny_model(cfg, seed=1), "hcd", config_dict(cfg))
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"was made with {name} {value}, which the authors' layout cannot store"):
        convert(tmp_path / "c.pth", tmp_path / "a.pth", "--to", "authors")


def test_another_stack_is_refused_on_the_way_to_the_authors(
    run: tuple[Segmenter, Config, Path], tmp_path: Path
) -> None:
    from models.diffusion.tiny import make_tiny_stack

    other = make_tiny_stack(tmp_path / "other", seed=1, **SMALL)
    with pytest.raises(UserError, match="trained with a different UNet"):
        convert(run[2], tmp_path / "a.pth", "--to", "authors", "--pretrained", other)
    assert not (tmp_path / "a.pth").exists()


def test_every_frozen_part_can_come_from_a_checkpoint() -> None:
    """The script has its own list of names, because importing the models takes seconds."""
    assert set(convert_checkpoint.FROZEN) == set(PARTS)


# -------- models.load_pretrained ------------------------------------------------


SENTENCES = ["The red  circle", "a blue square"]


@pytest.fixture(scope="module")
def passed_on(tiny_checkpoint: Path, small_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights and their frozen stack."""
    passed_on = tmp_path_factory.mktemp("passed on")
    (passed_on / "stack").symlink_to(small_stack)
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["config"]["pretrained"] = str(passed_on / "stack")
    torch.save(content, passed_on.parent / "checkpoint.pth")
    done = run_command(convert_checkpoint.main, passed_on.parent / "checkpoint.pth", passed_on / "weights.safetensors")
    assert done.returncode == 0, done.stderr
    return passed_on


@pytest.fixture(scope="module")
def pretrained(passed_on: Path) -> Pretrained:
    return load_pretrained(passed_on, device="cpu", eval_size=64, max_size=96, train_scales=(64,))


def test_converted_weights_name_no_local_folder(passed_on: Path):
    with safe_open(passed_on / "weights.safetensors", "pt") as file:
        about = "".join(file.metadata().values())
    assert str(passed_on.parent) not in about and "output_dir" not in about
    assert '"pretrained": "stack"' in about


def test_kinds_of_frames(pretrained: Pretrained, tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (3, 60, 90, 3), np.uint8)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    kinds = [
        pretrained.segment(video, SENTENCES)
        for video in (frames, torch.from_numpy(frames).permute(0, 3, 1, 2), list(frames), tmp_path, str(tmp_path))
    ]
    first = kinds[0]
    assert first.size == (60, 90) and first.num_frames == 3
    assert [result.sentence for result in first.sentences] == SENTENCES
    for result in first.sentences:
        assert result.masks.shape == (3, 60, 90) and result.masks.dtype == bool
        assert np.array_equal(result.masks[1], result.mask(1))
        assert result.boxes.shape == (3, 4) and result.scores.shape == (3,) and result.found
        assert result.score == pytest.approx(result.scores.mean())
    assert first["a blue square"] is first[1]
    for other in kinds[1:]:
        for one, two in zip(first.sentences, other.sentences, strict=True):
            assert np.array_equal(one.masks, two.masks)


def test_kinds_of_pictures(pretrained: Pretrained):
    rgb = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    opaque = np.dstack([rgb, np.full((60, 90), 255, np.uint8)])
    turned = Image.fromarray(np.rot90(rgb))
    turned.getexif()[0x112] = 6  # to be turned clockwise
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    pictures = [rgb, opaque, Image.fromarray(rgb), Image.fromarray(opaque), turned, tensor, [tensor], rgb[None]]
    grey = rgb[..., 0].copy()
    sixteen = Image.fromarray(grey.astype(np.uint16) << 8)
    greys = [np.dstack([grey] * 3), grey, grey[..., None], Image.fromarray(grey), sixteen, torch.from_numpy(grey)]
    for kinds in (pictures, greys):
        masks = [pretrained.segment(kind, SENTENCES)[0].masks for kind in kinds]
        assert masks[0].shape == (1, 60, 90) and 0 < masks[0].mean() < 1
        assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert pretrained.segment((Image.fromarray(rgb) for _ in range(3)), SENTENCES).num_frames == 3


def test_thresholds(pretrained: Pretrained):
    frames = np.random.default_rng(0).integers(0, 255, (2, 60, 90, 3), np.uint8)
    full = pretrained.segment(frames, "the red circle", threshold=0.0)
    assert full[0].masks.all() and full[0].found
    none = pretrained.segment(frames, "the red circle", threshold=0.0, score_threshold=1.0)
    assert not none[0].masks.any() and not none[0].found
    assert none[0].score == full[0].score, "the score does not depend on the threshold"


def test_windows(pretrained: Pretrained):
    frames = np.random.default_rng(0).integers(0, 255, (9, 60, 90, 3), np.uint8)
    assert pretrained.segment(frames, "the red circle", window=4, overlap=1).num_frames == 9


@pytest.mark.parametrize(
    ("video", "sentences", "message"),
    [
        (np.zeros((0, 60, 90, 3), np.uint8), "a", "the video has no frame"),
        (np.zeros((2, 60, 90), np.uint8), "a", r"^frame 0 is uint8 \(2, 60, 90\); give RGB, RGBA or grey pictures: "),
        (np.zeros((2, 60, 90, 3), np.float32), "a", r"^frame 0 is float32 \(60, 90, 3\); scale its values to 0…255 "),
        (torch.zeros(2, 3, 60, 90), "a", r"^frame 0 is torch.float32 \(3, 60, 90\); scale its values to 0…255 and"),
        (torch.zeros(2, 60, 90, 3, dtype=torch.uint8), "a", r"^frame 0 is torch.uint8 \(60, 90, 3\); give .* \[3, H"),
        (np.zeros((60, 90), np.uint16), "a", r"^frame 0 is uint16 \(60, 90\); scale its values to 0…255 and convert"),
        (np.zeros((0, 90, 3), np.uint8), "a", r"^frame 0 is uint8 \(0, 90, 3\); give RGB, RGBA or grey pictures"),
        (["a.png", "b.png"], "a", "^frame 0 is the name of a file; give the folder of the files, or open"),
        (
            Image.new("F", (90, 60)),
            "a",
            "^frame 0 holds floating-point values, which are not read; convert it to 8-bit RGB",
        ),
        ("https://example.com/a.mp4", "a", "^https://example.com/a.mp4 is a web address; download the video first"),
        (np.zeros((2, 60, 90, 3), np.uint8), " ", "a sentence is empty"),
        (np.zeros((2, 60, 90, 3), np.uint8), [], "a sentence is empty"),
        ("nowhere.mp4", "a", "nowhere.mp4 does not exist"),
    ],
)
def test_bad_frames_and_sentences(pretrained: Pretrained, video: Any, sentences: str, message: str):
    with pytest.raises(UserError, match=message):
        pretrained.segment(video, sentences)


@pytest.mark.parametrize("name", ["threshold", "score_threshold"])
def test_thresholds_are_shares(pretrained: Pretrained, name: str):
    with pytest.raises(UserError, match=f"^{name} must be a number from 0 to 1, not 50$"):
        pretrained.segment(np.zeros((1, 60, 90, 3), np.uint8), "a", **{name: 50})


def test_pictures_of_pillow_that_cannot_be_read(pretrained: Pretrained, tmp_path: Path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"^frame 0 cannot be read: .*; give a different one$"):
        pretrained.segment([Image.open(tmp_path / "a.png")], "a")
    frames = [Image.new("RGB", (90, 60), (level, 0, 0)) for level in (0, 99)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"^the picture holds several images: pages, an animation"):
        pretrained.segment(Image.open(tmp_path / "a.gif"), "a")


def test_a_stored_limit_of_640_is_the_former_default():
    def limit(stored: int | str, **options: Any) -> int | str:
        return Checkpoint(Path("a.pth"), "vdit", {"max_size": stored}, {}, {}).config(**options).max_size

    assert limit(640) == limit("auto") == "auto"
    assert limit(800) == 800 and limit(0) == 0
    assert limit(640, max_size=640) == 640, "an option overrides what is stored"


def test_loading_errors(passed_on: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing\.pth"):
        load_pretrained(tmp_path / "nothing.pth")
    with pytest.raises(
        UserError, match=r"weights\.safetensors, or those given in their place, are not valid: .*hidden_dim"
    ):
        load_pretrained(passed_on, hidden_dim=33)


def opened(path: Path, **parts: Any) -> Checkpoint:
    """A checkpoint without weights."""
    return Checkpoint(path, "vdit", **{"options": {}, "weights": {}, "frozen": {}, **parts})


@pytest.mark.parametrize(("at", "named"), [("out/w.pth", "w.pth"), ("my data/w.pth", "w.pth")])
def test_the_weights_of_a_backbone_are_passed_on_without_their_folder(tmp_path: Path, at: str, named: str) -> None:
    frozen = {
        "backbone": {"sha256": "0", "source": f"timm:x {tmp_path / at}"},
        "unet": {"sha256": "1", "source": f"{tmp_path / 'my stack'}"},
        "vae": {"sha256": "2", "source": "org/repo"},
    }
    checkpoint = opened(tmp_path / "c.pth", options={"backbone_weights": f"{tmp_path / at}"}, frozen=frozen)
    content = portable(checkpoint, tmp_path / "out" / "weights.safetensors")
    sources = {part: entry["source"] for part, entry in content["frozen"].items()}
    assert sources == {"backbone": f"timm:x {named}", "unet": "my stack", "vae": "org/repo"}
    assert content["config"]["backbone_weights"] == named
    assert frozen["unet"]["source"] == f"{tmp_path / 'my stack'}", "the checkpoint itself is not changed"
    random = {"backbone": {"sha256": "0", "source": "timm:x random"}}
    assert portable(opened(tmp_path, frozen=random), tmp_path / "w.safetensors")["frozen"] == random


def test_weights_of_a_backbone_beside_a_checkpoint_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pth").touch()
    (tmp_path / "clip").mkdir()
    names = {"backbone_weights": "w.pth", "image_encoder": "clip", "pretrained": "org/repo"}
    found = opened(tmp_path / "c.pth", options={"backbone": "timm:x", **names})
    built: list[Config] = []

    def build(cfg: Config, *_: Any) -> tuple[None, list[str]]:
        built.append(cfg)
        return None, []

    monkeypatch.setattr("models.pretrained.open_checkpoint", lambda *_, **__: found)
    monkeypatch.setattr("models.pretrained.build_for_inference", build)
    load_pretrained(tmp_path / "c.pth", device="cpu")
    (cfg,) = built
    assert cfg.backbone_weights == str(tmp_path / "w.pth") and cfg.image_encoder == str(tmp_path / "clip")
    assert cfg.pretrained == "org/repo"
