"""Generators and read-outs: every pair trains 20 steps and infers, at tiny size with random weights."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

import inference_ytvos
import main
from datasets.registry import load_config
from models.diffusion.generators import GENERATORS
from tests.commands import run_command
from tests.conftest import ROOT
from tests.test_ablations import TOY
from util.config import Config

FILES = sorted((ROOT / "configs" / "generators").glob("*.yaml"))
GENERATOR_OPTIONS = ("pretrained", "image_encoder", "time_mode")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_pair_trains_and_infers(
    file: Path, small_stack: Path, tiny_wan: Path, toy_data: Path, tmp_path: Path
) -> None:
    stack = tiny_wan if file.stem.startswith("wan") else small_stack
    parts = ("--pretrained", stack, "--image_encoder", "", "--text_encoder", stack / "roberta")
    options = ("--config", file, *parts, "--text_cache", tmp_path / "text", "--ytvos_path", toy_data, *TOY)
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
