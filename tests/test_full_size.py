"""The full-size model, on the meta device: nothing is allocated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import trained_parameters
from models.adapters import convert_authors, convert_name
from models.segmenter import Segmenter
from scripts.count_parameters import empty_model
from util.config import Config
from util.errors import UserError


@pytest.fixture(scope="module")
def full_size() -> Segmenter:
    return empty_model(Config())


def test_trained_parameters_are_the_published_number(full_size: Segmenter) -> None:
    assert round(sum(trained_parameters(full_size).values()) / 1e6, 2) == 30.04


def test_frozen_parts_have_their_published_sizes(full_size: Segmenter) -> None:
    def millions(part: object) -> float:
        return round(sum(p.numel() for p in part.parameters()) / 1e6, 1)  # type: ignore[attr-defined]

    assert millions(full_size.encoder.text_encoder) == 340.4
    assert millions(full_size.encoder.image_encoder) == 632.1
    assert millions(full_size.encoder.vae) == 34.2
    # 1411.2 M less the last up block, the output norm and the output convolution
    assert millions(full_size.encoder.unet) == 1381.4


def test_every_name_of_a_released_checkpoint_finds_its_place(full_size: Segmenter, shared: Path) -> None:
    released = json.loads((shared / "golden" / "full_size_vdit_keys.json").read_text())
    own = {name: list(tensor.shape) for name, tensor in full_size.state_dict().items()}
    converted = convert_authors(released)
    assert {name: own.get(name) for name in converted} == converted
    assert own.keys() - converted.keys() == {"encoder.image_encoder.module.visual_projection.weight"}


def test_an_unknown_name_is_an_error_that_names_it() -> None:
    assert convert_name("sentence_proj.fc.weight") is None
    with pytest.raises(UserError, match=r"backbone\.0\.surprise"):
        convert_name("backbone.0.surprise")
