"""util/config.py and util/options.py: what is accepted, what is refused and in which words."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from datasets.registry import load_config
from util.config import Config, config_dict
from util.errors import UserError
from util.options import expected


def load(*argv: str) -> Config:
    return load_config(argv, "a test")


@pytest.fixture
def config_file(tmp_path: Path):
    """Write a YAML text and give its path."""

    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_defaults_are_the_published_recipe(root: Path):
    """The defaults, the YAML of the recipe and specification agree, so that a flag changes one thing."""
    recipe = load("--config", str(root / "configs/vdit_ytvos.yaml"))
    encoders = {"image_encoder": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "text_encoder": "roberta-base"}
    assert recipe == dataclasses.replace(Config(), split="valid", **encoders, config=recipe.config)
    assert (recipe.lr, recipe.lr_processes, recipe.weight_decay, recipe.clip_max_norm) == (1e-4, 4, 5e-4, 0.1)
    assert (recipe.epochs, recipe.lr_drop, recipe.num_frames, recipe.batch_size) == (9, (6, 8), 5, 1)
    costs = ("set_cost_class", "set_cost_bbox", "set_cost_giou", "set_cost_mask", "set_cost_dice")
    weights = ("cls_loss_coef", "bbox_loss_coef", "giou_loss_coef", "mask_loss_coef", "dice_loss_coef")
    assert [getattr(recipe, name) for name in costs] == [getattr(recipe, name) for name in weights] == [2, 5, 2, 2, 5]


@pytest.mark.parametrize("name", ["vdit_ytvos", "vdit_toy"])
def test_shipped_files_hold_only_plain_yaml(root: Path, name: str):
    path = root / f"configs/{name}.yaml"
    config = config_dict(load("--config", str(path)))
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {key: config[key] for key in plain} == plain


def test_flags_override_the_file(config_file):
    path = config_file("lr: 3.0e-4\nepochs: 3\ncrop_scales: [400]\nvisualize: true\n")
    config = load("--config", path, "--epochs", "4", "--crop_scales", "--no-visualize", "--lr_drop", "2", "3")
    assert (config.lr, config.epochs, config.crop_scales, config.visualize) == (3e-4, 4, (), False)
    assert (config.lr_drop, config.config, config.weight_decay) == ((2, 3), path, Config().weight_decay)


def test_numbers_as_people_write_them(config_file):
    config = load("--config", config_file("lr: 1e-4\ndropout: 0\nset_cost_bbox: 5"), "--weight_decay", "1e-3")
    assert (config.lr, config.dropout, config.set_cost_bbox, config.weight_decay) == (1e-4, 0.0, 5.0, 1e-3)
    assert all(type(value) is float for value in (config.lr, config.dropout, config.set_cost_bbox))


def test_home_folder_is_expanded(config_file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = load("--config", config_file("ytvos_path: ~/videos"), "--output_dir=~/runs", "--pretrained", "a/~b")
    assert (config.ytvos_path, config.output_dir) == ("/home/someone/videos", "/home/someone/runs")
    assert config.pretrained == "a/~b"


def test_plain_values_survive_json_and_yaml(config_file):
    config = dataclasses.replace(Config(), split="valid", crop_scales=(), lr=3e-7, output_dir=Path("runs") / "x")
    values = config_dict(config)
    assert Config(**json.loads(json.dumps(values))) == config
    text = yaml.safe_dump({**values, "config": ""})
    path = config_file(text)
    assert load("--config", path) == dataclasses.replace(config, config=path)


def test_frozen_and_validated_when_replaced():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().lr = 1.0  # type: ignore[misc]
    with pytest.raises(UserError, match="lr must be a number above 0, not -1"):
        dataclasses.replace(Config(), lr=-1.0)


YAML_MISTAKES = {
    "lrr: 1": "unknown key 'lrr' in {path}, line 1; did you mean 'lr'?",
    "# note\nnum_query: 5": "unknown key 'num_query' in {path}, line 2; did you mean 'num_queries'?",
    "qqq: 1": "unknown key 'qqq' in {path}, line 1; `python main.py --help` lists the known ones",
    "? [1, 2]\n: 3": "unknown key 'a list' in {path}, line 1",
    "lr: 1\nlr: 2": "lr in {path}, line 2 is given a second time",
    "lr: fast": "lr in {path}, line 1 must be a number above 0, not 'fast'",
    "lr: .nan": "lr in {path}, line 1 must be a number above 0, not nan",
    "epochs: 9.0": "epochs in {path}, line 1 must be a whole number of at least 1, not 9.0",
    "epochs: true": "epochs in {path}, line 1 must be a whole number of at least 1, not True",
    "epochs: '9'": "epochs in {path}, line 1 must be a whole number of at least 1, not '9'",
    "visualize: 1": "visualize in {path}, line 1 must be true or false, not 1",
    "resume:": "resume in {path}, line 1 must be a path or '', not null",
    "split: ''": "split in {path}, line 1 must be text, not ''",
    "split: 2024-13-45": "split in {path}, line 1 must be text: month must be in 1..12",
    "noise: pink": "noise in {path}, line 1 must be one of auto, predicted, gaussian, none, not 'pink'",
    "dropout: 1": "dropout in {path}, line 1 must be a number of at least 0 and below 1, not 1.0",
    "train_scales: 64": "train_scales in {path}, line 1 must be a list of whole numbers of at least 16, not 64",
    "train_scales: [64, 1.5]": "must be a list of whole numbers of at least 16, not [64, 1.5]",
    "crop_range: [384]": "crop_range in {path}, line 1 must be a list of 2 whole numbers of at least 1, not [384]",
    "- lr\n- 1": "{path} should hold one `key: value` per line, not a list",
    "fast": "{path} should hold one `key: value` per line, not a single value",
    "": "{path} should hold one `key: value` per line, not nothing",
    "lr: 1\nepochs: [1": "{path}, line 2 is not valid YAML: ",
    "lr: 1\n\tepochs: 1": "{path}, line 2 is not valid YAML: ",
    "epochs: &a 1\nlr: *a": "{path}, line 2 is not valid YAML: aliases (*name) are not supported; repeat the value",
    "seed: 0x" + 5000 * "f": "seed in {path}, line 1 must be a whole number from 0 to 4294967295, not a",
    "epochs: 1"
    + 400 * "0": "epochs in {path}, line 1 must be a whole number of at least 1, not a number of many digits",
    "train_scales: [1" + 400 * "0" + "]": "of at least 16, not [a number of many digits]",
    "lr: 1" + 400 * "0": "lr in {path}, line 1 must be a number above 0, not ",
    "lr: 1" + 400 * ":00" + ".5": "lr in {path}, line 1 must be a number above 0: ",
    "lr: 1 #" + 100_000 * "x": "cannot read the config file {path}: it has 100007 bytes, and at most 65536 are read",
    "lr: !!python/object/apply:os.getcwd []": "{path}, line 1 is not valid YAML: could not determine a constructor",
    "lr: \x01": "{path} is not valid YAML: ",
    "[" * 1500: "{path} is nested too deeply",
}


@pytest.mark.parametrize("text", YAML_MISTAKES, ids=lambda text: ascii(text[:20]))
def test_mistakes_in_a_file(config_file, text: str):
    path = config_file(text)
    with pytest.raises(UserError) as mistake:
        load("--config", path)
    assert YAML_MISTAKES[text].format(path=path) in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(UserError, match=r"the config file .*absent\.yaml is missing"):
        load("--config", str(tmp_path / "absent.yaml"))
    with pytest.raises(UserError, match="cannot read the config file"):
        load("--config", str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot read the config file .*binary\.yaml"):
        load("--config", str(tmp_path / "binary.yaml"))


FLAG_MISTAKES = {
    "--lrr 1": "unknown flag --lrr; did you mean --lr?",
    "--ytvos-path=x": "unknown flag --ytvos-path; did you mean --ytvos_path?",
    "--qqq": "unknown flag --qqq; see --help",
    "train": "unexpected argument 'train'; every option is given as --name value",
    "--ckpt x": "unknown flag --ckpt; did you mean --resume?",
    "--num_q 5": "unknown flag --num_q; did you mean --num_queries?",
    "--lr": "--lr: expected one argument; see --help",
    "--lr fast": "--lr must be a number above 0, not 'fast'",
    "--epochs 1.5": "--epochs must be a whole number of at least 1, not '1.5'",
    "--epochs 0": "--epochs must be a whole number of at least 1, not 0",
    "--seed -1": "--seed must be a whole number from 0 to 4294967295, not -1",
    "--visualize=maybe": "ignored explicit argument 'maybe'",
    "--device tpu": "--device must be one of auto, cpu, cuda, mps, not 'tpu'",
    "--lr_drop six": "--lr_drop must be a list of whole numbers of at least 1, not ['six']",
    "--pyramid_channels 1 2 3": "--pyramid_channels must be a list of 4 whole numbers of at least 1, not [1, 2, 3]",
}


@pytest.mark.parametrize("line", FLAG_MISTAKES)
def test_mistakes_in_flags(line: str):
    with pytest.raises(UserError) as mistake:
        load(*line.split())
    assert FLAG_MISTAKES[line] in str(mistake.value)


CONTRADICTIONS = {
    "--nheads 5": "nheads must divide hidden_dim, and 5 does not divide 256",
    "--hidden_dim 80": "hidden_dim must be a multiple of 32, not 80",
    "--lr_drop 8 6": "lr_drop must list epochs in increasing order, not [8, 6]",
    "--lr_drop 6 6": "lr_drop must list epochs in increasing order, not [6, 6]",
    "--crop_range 600 384": "crop_range must be the smallest and the largest side, in this order, not [600, 384]",
    "--max_size 640 --eval_size 720": "max_size (640) limits the longer side, and must be at least the shorter one",
    "--train_scales": "train_scales must name at least one scale",
    "--set_cost_class 0 --set_cost_bbox 0 --set_cost_giou 0 --set_cost_mask 0 --set_cost_dice 0": "no query can be",
}


@pytest.mark.parametrize("line", CONTRADICTIONS)
def test_values_that_contradict_each_other(line: str, config_file):
    with pytest.raises(UserError) as mistake:
        load(*line.split())
    assert CONTRADICTIONS[line] in str(mistake.value)


@pytest.mark.parametrize("line", ["--eval_size 720", "--max_size 0 --train_scales 700 --eval_size 720"])
def test_sides_without_a_limit(line: str):
    assert load(*line.split()).eval_size == 720


def test_contradictions_name_the_file(config_file):
    path = config_file("nheads: 5")
    with pytest.raises(UserError) as mistake:
        load("--config", path)
    assert str(mistake.value).endswith(f"see {path} and the flags given")


def test_help_shows_groups_texts_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as end:
        load("--help")
    text = capsys.readouterr().out
    assert end.value.code == 0
    for field in dataclasses.fields(Config):
        assert f"--{field.name}" in text
        assert field.metadata["rule"].help in text
        assert expected(Config, field.name)
    for heading in ("model:", "matching and losses:", "data:", "training:", "run:"):
        assert f"\n{heading}\n" in text
    assert "(default: 6 8)" in text
    assert "(default: 0.0001)" in text


def test_a_mistake_ends_a_script_with_status_2(root: Path):
    imports = "from datasets.registry import load_config; from util.errors import run_cli"
    code = f"{imports}; run_cli(lambda: load_config(None, ''))"
    run = subprocess.run([sys.executable, "-c", code, "--lrr", "1"], cwd=root, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "error: unknown flag --lrr; did you mean --lr?\n"
