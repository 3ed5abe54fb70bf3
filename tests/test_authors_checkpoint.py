"""The authors' checkpoints: what goes in comes out, and whatever is wrong with a file is said by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import build_model
from models.authors import BACKBONE, authors_model, authors_names, authors_state, convert_authors
from models.checkpoints import carried_state, open_checkpoint, save_checkpoint, trained_state
from models.diffusion.stack import empty_stock_parts
from models.lora import merged_state
from models.segmenter import Segmenter
from scripts.count_parameters import FULL_SIZE, empty_model
from tests.checkpoint_tools import change_unet, differences, tiny_config, tiny_model, write_authors
from tests.tiny_models import restore
from util.config import Config
from util.errors import UserError

MODELS = ("vdit", "hcd")


@pytest.fixture(scope="module", params=MODELS)
def released(request: pytest.FixtureRequest, tiny_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A model whose UNet is not quite the pretrained one, and its checkpoint in the authors' layout."""
    cfg = tiny_config(tiny_stack, model=request.param)
    model = tiny_model(cfg, seed=1)
    change_unet(model)
    path = tmp_path_factory.mktemp("authors") / f"{cfg.model}.pth"
    return {"cfg": cfg, "model": model, "path": path, "state": write_authors(path, model, cfg)}


def load(path: Path, cfg: Config, **options: Any) -> tuple[Segmenter, list[str]]:
    """A fresh model with the weights of a file, and the notes."""
    model = tiny_model(cfg, seed=2)
    _, notes = restore(model, path, cfg, **options)
    return model, notes


def test_every_weight_comes_in(released: dict) -> None:
    model, notes = load(released["path"], released["cfg"])
    assert differences(model.state_dict(), released["model"].state_dict()) == []
    assert notes == [], "the file has all parts, so nothing is left to say"
    assert [part.carried for part in (model.encoder.unet, model.encoder.vae)] == [True, False]


def test_a_run_from_it_keeps_the_unet_that_it_brought(released: dict, tmp_path: Path) -> None:
    cfg = released["cfg"]
    model, _ = load(released["path"], cfg)
    frozen = restore(model, released["path"], cfg)[0]
    save_checkpoint(tmp_path / "c.pth", model, cfg.model, {}, frozen=frozen)
    again, notes = load(tmp_path / "c.pth", cfg)
    assert notes == [] and differences(again.state_dict(), model.state_dict()) == []
    assert {name.split(".module.")[0] for name in carried_state(again)} == {"encoder.unet"}


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


def test_adapters_may_be_new_on_a_merged_unet(tiny_stack: Path, tmp_path: Path) -> None:
    cfg = tiny_config(tiny_stack, model="hcd", lora_rank=4)
    source = tiny_model(cfg, seed=1)
    write_authors(tmp_path / "hcd.pth", source, cfg)
    torch.manual_seed(5)
    model = build_model(cfg)
    restore(model, tmp_path / "hcd.pth", cfg)
    assert differences(merged_state(model), merged_state(source)) == []
    assert any(".lora_A." in name for name in trained_state(model))


def _rename(name: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["model"][name + "x"] = content["model"].pop(name)

    return change


def _reshape(name: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["model"][name] = content["model"][name][:-1].clone()

    return change


def _alias(content: dict) -> None:
    content["model"]["bbox_embed.1.layers.0.bias"] = content["model"]["bbox_embed.1.layers.0.bias"] + 1


def _foreign(content: dict) -> None:
    content["model"] = {"conv1.weight": torch.zeros(1)}


BACK = BACKBONE["vdit"]
DAMAGE = {
    "a renamed trained key": (_rename("query_tensors"), "query_tensorsx"),
    "a renamed class head": (_rename("class_embed.0.weight"), "class_embed.0.weightx"),
    "a renamed UNet key": (_rename(f"{BACK}unet.conv_in.weight"), f"{BACK}unet.conv_in.weightx"),
    "a renamed noise key": (_rename(f"{BACK}noise_pred.weight"), f"{BACK}noise_pred.weightx"),
    "an unknown part": (lambda content: content["model"].update({f"{BACK}new.weight": torch.zeros(1)}), f"{BACK}new."),
    "a reshaped trained tensor": (_reshape("query_embed.weight"), "query_embed.weight of shape [4, 64]"),
    "a reshaped VAE tensor": (_reshape(f"{BACK}vae.encoder.conv_in.bias"), "conv_in.bias of shape"),
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
def vdit(tiny_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Segmenter, Config, Path]:
    """A model that nothing may change, and its file."""
    cfg = tiny_config(tiny_stack)
    model, path = tiny_model(cfg, seed=1), tmp_path_factory.mktemp("authors") / "vdit.pth"
    write_authors(path, model, cfg)
    return model, cfg, path


@pytest.mark.parametrize("kind", [*DAMAGE, "truncated"])
def test_damage_is_one_sentence(vdit: tuple[Segmenter, Config, Path], tmp_path: Path, kind: str) -> None:
    model, cfg, whole = vdit
    path = tmp_path / "released.pth"
    change, named = DAMAGE.get(kind, (None, "not a readable checkpoint"))
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
    assert differences(before, trained_state(model)) == [], "the model is as it was"


def test_a_checkpoint_of_the_other_model_is_told_by_its_keys(released: dict) -> None:
    other = {"vdit": "hcd", "hcd": "vdit"}[released["cfg"].model]
    with pytest.raises(UserError, match=f"model '{released['cfg'].model}'.*model: {released['cfg'].model}"):
        open_checkpoint(str(released["path"]), "--resume", other)


def test_other_sizes_are_named(released: dict, tiny_stack: Path) -> None:
    cfg = tiny_config(tiny_stack, model=released["cfg"].model, nheads=2)
    with pytest.raises(UserError, match="nheads 4, and here it is 2"):
        load(released["path"], cfg)


@pytest.fixture(scope="module", params=MODELS)
def full_size(request: pytest.FixtureRequest) -> dict[str, list[int]]:
    """The names and shapes of a full-size export, on the meta device; ``model`` beside them."""
    model = request.param
    state = merged_state(empty_model(Config(model=model)))
    exported = authors_state(state, model, empty_stock_parts(FULL_SIZE), _full_size_projection())
    return {"": [MODELS.index(model)], **{name: list(value.shape) for name, value in exported.items()}}


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


def test_what_only_this_project_has_is_not_exported() -> None:
    with pytest.raises(UserError, match=r"no place for encoder\.surprise"):
        authors_names("hcd").theirs("encoder.surprise.weight")
