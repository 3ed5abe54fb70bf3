"""Generators and read-outs: every pair trains 20 steps and infers, at tiny size with random weights."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor

import inference_ytvos
import main
from datasets.registry import load_config
from models import build_model, frozen_sources
from models.checkpoints import frozen_identity, open_checkpoint, save_checkpoint
from models.diffusion import generators
from models.diffusion.generators import GENERATORS, Generator
from models.inference import InferenceOptions, build_for_inference, sentence_outputs
from scripts.count_parameters import empty_model
from tests.commands import run_command
from tests.conftest import ROOT
from tests.test_ablations import TOY
from tests.tiny_models import backward, model_config, random_clips
from util.config import Config, config_dict
from util.errors import UserError
from util.preprocessing import IMAGENET_MEAN, IMAGENET_STD

FILES = sorted((ROOT / "configs" / "generators").glob("*.yaml"))
GENERATOR_OPTIONS = ("pretrained", "image_encoder", "time_mode")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_pair_trains_and_infers(
    file: Path, small_stack: Path, tiny_wan: Path, one_video: Path, tmp_path: Path
) -> None:
    stack = tiny_wan if file.stem.startswith("wan") else small_stack
    parts = ("--pretrained", stack, "--image_encoder", "", "--text_encoder", stack / "roberta")
    options = ("--config", file, *parts, "--text_cache", tmp_path / "text", "--ytvos_path", one_video, *TOY)
    run = run_command(main.main, *options, "--output_dir", tmp_path / "run", "--max_steps", 20, "--log_every", 1)
    assert run.returncode == 0, run.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 20 and all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5])
    checkpoint = ("--resume", tmp_path / "run" / "checkpoint.pth", "--output_dir", tmp_path / "valid")
    done = run_command(inference_ytvos.main, *options, *checkpoint)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "valid" / "Annotations").glob("*/*/*.png"))) > 10


def test_every_pair_is_there_and_documented() -> None:
    names = {f"{row}_{model}" for row in ("modelscope", "zeroscope", "wan", "wan_frame") for model in ("vdit", "hcd")}
    assert {file.stem for file in FILES} == names
    page = (ROOT / "docs" / "generators.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
    assert [row.class_name for row in GENERATORS if f"`{row.class_name}`" not in page] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_row_changes_the_generator_only(file: Path) -> None:
    model = file.stem.split("_")[-1]
    own = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert own.pop("base") == f"../{model}_ytvos.yaml" and own.keys() <= set(GENERATOR_OPTIONS)
    row, recipe = load_config(["--config", str(file)], ""), load_config(["--config", f"configs/{model}_ytvos.yaml"], "")
    for field in dataclasses.fields(Config):
        if field.name not in (*GENERATOR_OPTIONS, "config"):
            assert getattr(row, field.name) == getattr(recipe, field.name), field.name


@pytest.fixture
def svd_folder(small_stack: Path, tmp_path: Path) -> Path:
    """A tiny random Stable Video Diffusion in diffusers' layout, with RoBERTa beside it."""
    blocks = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1}
    torch.manual_seed(0)
    UNetSpatioTemporalConditionModel(
        **blocks,
        cross_attention_dim=32,
        num_attention_heads=(2, 2, 4, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    ).save_pretrained(tmp_path / "svd" / "unet")
    AutoencoderKLTemporalDecoder(**blocks, down_block_types=("DownEncoderBlock2D",) * 4).save_pretrained(
        tmp_path / "svd" / "vae"
    )
    shutil.copytree(small_stack / "roberta", tmp_path / "svd" / "roberta")
    return tmp_path / "svd"


def test_the_example_of_the_docs(svd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file and one row are a generator: features as in diffusers, adapters, a training step, a checkpoint."""
    page = (ROOT / "docs" / "generators.md").read_text(encoding="utf-8").partition("## Adding a generator")[2]
    code, row = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    svd = ModuleType("models.diffusion.svd")
    monkeypatch.setitem(sys.modules, svd.__name__, svd)
    exec(code, svd.__dict__)
    added = eval(row, {"Generator": Generator, "svd": svd, "ROOT": ROOT})
    monkeypatch.setattr(generators, "GENERATORS", (*GENERATORS, added))
    assert generators.find_generator(str(svd_folder)) is added

    cfg = model_config(svd_folder, model="hcd", lora_rank=2, precision="fp32")
    model = build_model(cfg).eval()
    shapes = [[p.shape for p in each.parameters()] for each in (model, empty_model(cfg, svd_folder))]
    assert shapes[0] == shapes[1]
    clips, _, captions = random_clips(1, 3, height=80)
    with torch.inference_mode():
        levels = model.encoder(model.encoder.encode_pixels(clips), captions)
        sizes = [tuple(level.shape) for level in levels]
        assert sizes == [(3, 32, 20, 24), (3, 64, 10, 12), (3, 128, 5, 6), (3, 256, 3, 3)]
        ((_, output),) = sentence_outputs(model, clips[0], ["a dog", "a cat"], InferenceOptions())
        assert output.masks.shape == (2, 3, 80, 96)

        stock = UNetSpatioTemporalConditionModel.from_pretrained(svd_folder / "unet").eval()
        vae = AutoencoderKLTemporalDecoder.from_pretrained(svd_folder / "vae").eval()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        images = 2 * (clips[0] * std + mean) - 1
        latents = vae.config.scaling_factor * vae.encode(images).latent_dist.mode()[None]
        found: list[Tensor] = []
        stock.up_blocks[1].register_forward_hook(lambda block, given, out: found.append(out))
        sample = torch.cat([latents, torch.zeros_like(latents)], dim=2)
        stock(sample, math.log(0.002) / 4, torch.zeros(1, 1, 32), torch.tensor([[6.0, 127.0, 0.0]]))
        assert torch.allclose(levels[2], model.encoder.levels[1](found[0]), atol=1e-4)

    backward(model, cfg, 1, 3)
    adapters = [p for name, p in model.named_parameters() if "down_blocks" in name and "attn1.to_v.lora_B" in name]
    assert adapters and all(p.grad is not None and p.grad.any() for p in adapters)
    frozen = frozen_identity(model, frozen_sources(cfg))
    assert frozen.keys() == {"unet", "vae", "sentence_encoder"}
    save_checkpoint(tmp_path / "c.pth", model, "hcd", config_dict(cfg), frozen, step=1, steps_per_epoch=1)
    again, _ = build_for_inference(cfg, open_checkpoint(str(tmp_path / "c.pth"), "--resume"), torch.device("cpu"))
    with torch.inference_mode():
        pairs = zip(*(m.eval().encoder.encode_pixels(clips).levels for m in (model, again)), strict=True)
        assert all(torch.allclose(*pair, atol=1e-4) for pair in pairs)

    with pytest.raises(UserError, match="noise has no meaning for Stable Video Diffusion"):
        build_model(model_config(svd_folder, noise="gaussian"))
