"""The full-size models and the bundled configurations of their frozen parts, on the meta device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from transformers import CLIPTextModel, CLIPVisionModelWithProjection, RobertaModel

from models import trained_parameters
from models.authors import authors_names, convert_authors
from models.diffusion.stack import empty_part
from models.segmenter import Segmenter
from scripts.count_parameters import FULL_SIZE, empty_model, stack_of
from util.config import Config
from util.errors import UserError


@pytest.fixture(scope="module", params=["vdit", "hcd"])
def full_size(request: pytest.FixtureRequest) -> Segmenter:
    return empty_model(Config(model=request.param, lora_rank=0))  # as released: HCD's adapters are merged


def test_trained_parameters_are_the_published_number(full_size: Segmenter) -> None:
    published = 30.04 if full_size.query_dot_head is None else 30.09
    assert round(sum(trained_parameters(full_size).values()) / 1e6, 2) == published


def test_frozen_parts_have_their_published_sizes(full_size: Segmenter) -> None:
    def millions(part: object) -> float:
        return round(sum(p.numel() for p in part.parameters()) / 1e6, 1)  # type: ignore[attr-defined]

    assert millions(full_size.encoder.text_encoder) == 340.4
    assert millions(full_size.encoder.image_encoder) == 632.1
    assert millions(full_size.encoder.vae) == 34.2
    # 1411.2 M less the last up block, the output norm and the output convolution
    assert millions(full_size.encoder.unet) == 1381.4


def test_sizes_are_read_from_the_configured_stack(root: Path) -> None:
    assert stack_of(Config()) == FULL_SIZE
    assert stack_of(Config(pretrained=str(root / "toy" / "stack"))) == root / "toy" / "stack"


def test_every_name_of_a_released_checkpoint_is_known(full_size: Segmenter, shared: Path) -> None:
    name = "vdit" if full_size.query_dot_head is None else "hcd"
    released = json.loads((shared / "golden" / f"full_size_{name}_keys.json").read_text())
    own = {name: list(tensor.shape) for name, tensor in full_size.state_dict().items()}
    converted = convert_authors(released)
    assert {name: own.get(name) for name in converted} == converted
    assert own.keys() == converted.keys()


def test_an_unknown_name_is_an_error_that_names_it() -> None:
    names = authors_names("vdit")
    assert names.ours("sentence_proj.fc.weight") is None
    with pytest.raises(UserError, match=r"backbone\.0\.surprise"):
        names.ours("backbone.0.surprise")


def test_full_size_configs_have_the_published_parameter_counts(root: Path) -> None:
    folder = root / "configs" / "full_size"
    vae = empty_part(AutoencoderKL, folder / "vae")
    models = {
        "unet": empty_part(UNet3DConditionModel, folder / "unet"),
        "vae": torch.nn.ModuleList([vae.encoder, vae.quant_conv]),
        "text_encoder": empty_part(CLIPTextModel, folder / "text_encoder"),
        "clip": empty_part(CLIPVisionModelWithProjection, folder / "clip"),
        "roberta": empty_part(RobertaModel, folder / "roberta"),
    }
    millions = {name: round(sum(p.numel() for p in model.parameters()) / 1e6, 1) for name, model in models.items()}
    assert millions == {"unet": 1411.2, "vae": 34.2, "text_encoder": 340.4, "clip": 632.1, "roberta": 124.6}


def test_full_size_configs_are_the_published_values(root: Path, shared: Path) -> None:
    published = {path.parent.name: path for path in (shared / "golden" / "full_size_configs").glob("*/*.json")}
    assert len(published) == 6
    for part, path in published.items():
        bundled = root / "configs" / "full_size" / part / path.name
        assert json.loads(bundled.read_text(encoding="utf-8")) == json.loads(path.read_text(encoding="utf-8")), part
