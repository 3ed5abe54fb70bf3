"""The carried configurations of the published frozen parts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    RobertaConfig,
    RobertaModel,
)


def test_full_size_configs_have_the_published_parameter_counts(root: Path) -> None:
    folder = root / "configs" / "full_size"
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        models = {
            "unet": UNet3DConditionModel.from_config(UNet3DConditionModel.load_config(folder / "unet")),
            "vae": torch.nn.ModuleList([vae.encoder, vae.quant_conv]),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")),
            "clip": CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(folder / "clip")),
            "roberta": RobertaModel(RobertaConfig.from_pretrained(folder / "roberta")),
        }
    millions = {name: round(sum(p.numel() for p in model.parameters()) / 1e6, 1) for name, model in models.items()}
    assert millions == {"unet": 1411.2, "vae": 34.2, "text_encoder": 340.4, "clip": 632.1, "roberta": 124.6}


def test_full_size_configs_are_the_published_values(root: Path, shared: Path) -> None:
    published = {path.parent.name: path for path in (shared / "golden" / "full_size_configs").glob("*/*.json")}
    assert len(published) == 6
    for part, path in published.items():
        carried = root / "configs" / "full_size" / part / path.name
        assert json.loads(carried.read_text(encoding="utf-8")) == json.loads(path.read_text(encoding="utf-8")), part
