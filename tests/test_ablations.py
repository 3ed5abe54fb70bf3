"""Every row of the papers' ablations: one option each, which trains and infers; and files that build on others.

``ABLATION_STEPS=20 pytest tests/test_ablations.py -m slow`` trains each for longer.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

import inference_ytvos
import main
from datasets.registry import load_config
from models import build_model, has_lora
from models.backbones import BackboneEncoder
from models.diffusion.encoder import GaussianNoise, PredictedNoise, TemporalStem, VAETap, VideoEncoder
from tests.commands import read_checkpoint
from tests.conftest import ROOT
from tests.tiny_models import model_config, tiny_flags
from util.config import Config
from util.errors import UserError

FILES = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
STEPS = os.environ.get("ABLATION_STEPS", "2")
OPTIONS = ("noise", "image_tokens", "unet_text", "stride4", "lora_rank", "backbone")
TOY = (
    *tiny_flags(),
    *("--num_frames", "2", "--reverse_probability", "0"),
    *("--train_scales", "64", "--crop_scales", "--max_size", "96", "--eval_size", "64", "--num_workers", "0"),
    *("--batch_size", "1", "--lr_processes", "1", "--device", "cpu", "--backbone_weights", ""),
)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_row_trains_and_infers(
    file: Path, small_stack: Path, one_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = (
        "--pretrained",
        small_stack,
        "--image_encoder",
        small_stack / "clip",
        "--text_encoder",
        small_stack / "roberta",
    )
    options = [str(word) for word in ("--config", file, *stack, "--ytvos_path", one_video, *TOY)]
    run, valid = tmp_path / "run", tmp_path / "valid"
    monkeypatch.setattr(sys, "argv", ["main.py", *options, "--output_dir", str(run), "--max_steps", STEPS])
    main.main()
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert losses and all(math.isfinite(loss) for loss in losses)

    checkpoint = run / "checkpoint.pth"
    weights = read_checkpoint(checkpoint, file.stem.split("_")[0])["weights"]
    rank = json.loads((run / "config.json").read_text())["lora_rank"]
    adapted = {value.shape[0] for name, value in weights.items() if ".lora_A." in name}
    assert adapted == ({rank} if rank not in (0, "auto") else {16} if "hcd" in file.stem and rank == "auto" else set())

    monkeypatch.setattr(
        sys, "argv", ["inference_ytvos.py", *options, "--output_dir", str(valid), "--resume", str(checkpoint)]
    )
    inference_ytvos.main()
    assert (valid / "submission.zip").is_file()
    assert len(list((valid / "Annotations").glob("*/*/*.png"))) > 10


def test_every_row_is_there_and_documented() -> None:
    rows = {file.stem for file in FILES}
    assert rows >= {f"vdit_noise_{name}" for name in ("predicted", "gaussian", "none")}
    assert rows >= {f"hcd_lora_{rank}" for rank in (0, 4, 8, 16, 32)}
    assert rows >= {f"vdit_backbone_{name}" for name in ("swin3d_t", "swin3d_s", "swin3d_b", "resnet50")}
    assert rows >= {f"{model}_{row}" for model in ("vdit", "hcd") for row in ("image_tokens_off", "unet_text_off")}
    assert rows >= {f"{model}_stride4_{name}" for model in ("vdit", "hcd") for name in ("vae", "stem")}
    documented = (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")
    assert [row for row in sorted(rows) if f"`{row}`" not in documented] == []
    assert [option for option in OPTIONS if f"--{option}" not in documented] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_row_changes_one_thing(file: Path) -> None:
    own = yaml.safe_load(file.read_text(encoding="utf-8"))
    model = file.stem.split("_")[0]
    assert own.pop("base") == f"../{model}_ytvos.yaml"
    if "backbone" in own:
        assert own.pop("backbone_weights") == "DEFAULT"
    (option,) = own
    assert option in OPTIONS
    row, recipe = load_config(["--config", str(file)], ""), load_config(["--config", f"configs/{model}_ytvos.yaml"], "")
    assert row.model == model and getattr(row, option) == own[option]
    for field in dataclasses.fields(Config):
        if field.name not in (option, "config", "backbone_weights"):
            assert getattr(row, field.name) == getattr(recipe, field.name), field.name
    assert file.read_text(encoding="utf-8").startswith("# ")


def _encoder(stack: Path, **options: object) -> VideoEncoder:
    encoder = build_model(model_config(stack, **options)).encoder
    assert isinstance(encoder, VideoEncoder)
    return encoder


def test_auto_is_each_models_own(small_stack: Path) -> None:
    vdit, hcd = (_encoder(small_stack, model=model) for model in ("vdit", "hcd"))
    assert isinstance(vdit.noise, PredictedNoise) and isinstance(vdit.stride4, VAETap) and not has_lora(vdit)
    assert hcd.noise is None and isinstance(hcd.stride4, TemporalStem) and has_lora(hcd)


def test_each_option_changes_its_part(small_stack: Path) -> None:
    one = _encoder(small_stack, noise="gaussian", stride4="stem", lora_rank=4, image_tokens=False)
    assert isinstance(one.noise, GaussianNoise) and isinstance(one.stride4, TemporalStem)
    assert has_lora(one) and one.image_encoder is None
    other = _encoder(small_stack, model="hcd", noise="predicted", stride4="vae", lora_rank=0)
    assert isinstance(other.noise, PredictedNoise) and isinstance(other.stride4, VAETap) and not has_lora(other)
    swin = build_model(model_config(small_stack, backbone="swin3d_t"))
    assert isinstance(swin.encoder, BackboneEncoder)


def test_without_text_the_unet_is_given_the_empty_sentence(small_stack: Path) -> None:
    with_text, without = (_encoder(small_stack, unet_text=text).eval() for text in (True, False))
    empty = with_text.encode_text(["", ""])
    assert torch.equal(without.encode_text(["a cat", "the red ball"]), empty)
    assert not torch.allclose(with_text.encode_text(["a cat", "the red ball"]), empty)


MISTAKES = {
    "--backbone swin3d": "--backbone must be one of t2v, swin3d_t, swin3d_s, swin3d_b, timm:NAME, not 'swin3d'; "
    "did you mean 'swin3d_t'?",
    "--backbone timm:": "not 'timm:'",
    "--stride4 stemm": "--stride4 must be one of auto, vae, stem, not 'stemm'; did you mean 'stem'?",
    "--noise gausian": "did you mean 'gaussian'?",
    "--lora_rank eight": "--lora_rank must be auto or a whole number of at least 0, not 'eight'",
    "--lora_rank -1": "--lora_rank must be auto or a whole number of at least 0, not -1",
    "--lora_targets to_q to_w": "--lora_targets must be a list of to_q, to_k, to_v, to_out.0, ff.net.0.proj, "
    "ff.net.2, not ['to_q', 'to_w']; did you mean 'to_v'?",
    "--lora_targets": "lora_targets must name at least one layer",
    "--lora_dropout 1": "--lora_dropout must be a number of at least 0 and below 1, not 1.0",
    "--train_backbone": "train_backbone is for other backbones",
    "--backbone_weights DEFAULT": "backbone_weights is for other backbones",
    "--backbone swin3d_t --noise gaussian": "noise gaussian has no effect with backbone swin3d_t; leave it at auto",
    "--backbone timm:resnet50 --lora_rank 4": "lora_rank 4 has no effect with backbone timm:resnet50",
    "--backbone swin3d_t --no-unet_text": "unet_text False has no effect with backbone swin3d_t",
    "--unet_texts": "unknown flag --unet_texts; did you mean --unet_text?",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_in_options(line: str) -> None:
    with pytest.raises(UserError) as mistake:
        load_config(line.split(), "")
    assert MISTAKES[line] in str(mistake.value)


def test_a_rank_is_read_from_files_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("lora_rank: 8\nlora_targets: [to_q]\nbackbone: t2v\n")
    assert load_config(["--config", str(path)], "").lora_rank == 8
    assert load_config(["--config", str(path)], "").lora_targets == ("to_q",)
    config = load_config(["--config", str(path), "--lora_rank", "auto", "--lora_targets", "to_k", "to_v"], "")
    assert (config.lora_rank, config.lora_targets) == ("auto", ("to_k", "to_v"))


def test_a_file_builds_on_another(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "first.yaml").write_text("lr: 1.0e-3\nepochs: 3\nlr_drop: [2]\n")
    (tmp_path / "deep" / "second.yaml").write_text("base: ../first.yaml\nepochs: 4\n")
    (tmp_path / "third.yaml").write_text("batch_size: 7\nbase: deep/second.yaml\n")
    config = load_config(["--config", str(tmp_path / "third.yaml"), "--batch_size", "8"], "")
    assert (config.lr, config.epochs, config.lr_drop, config.batch_size) == (1e-3, 4, (2,), 8)


BASES = {
    "base: a.yaml": "base in {a}, line 1 names {a}, whose base is this file again",
    "lr: 1\nbase: ./b.yaml": "base in {b}, line 1 names {a}, whose base is this file again",
    "base: absent.yaml": "the config file {absent} is missing, which base in {a}, line 1 names",
    "base: wrong.yaml": "unknown key 'lrr' in {wrong}, line 2; did you mean 'lr'?",
    "base: [b.yaml]": "base in {a}, line 1 must be the path of another config file, not ['b.yaml']",
    "base:": "base in {a}, line 1 must be the path of another config file, not null",
    "base: .": "cannot read the config file",
    "bas: b.yaml": "unknown key 'bas' in {a}, line 1; did you mean 'base'?",
    "base: b.yaml\nbase: b.yaml": "base in {a}, line 2 is given a second time",
}


@pytest.mark.parametrize("text", BASES, ids=ascii)
def test_mistakes_in_the_base(tmp_path: Path, text: str) -> None:
    files = {name: tmp_path / f"{name}.yaml" for name in ("a", "b", "wrong", "absent")}
    files["a"].write_text(text)
    files["b"].write_text("base: a.yaml")
    files["wrong"].write_text("epochs: 1\nlrr: 1\n")
    with pytest.raises(UserError) as mistake:
        load_config(["--config", str(files["a"])], "")
    assert BASES[text].format(**files) in str(mistake.value)
    assert "\n" not in str(mistake.value)
