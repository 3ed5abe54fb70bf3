"""The commands on a tiny Wan: training, resuming, two processes, scoring, conversion, the hub, the library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine
import main
from models import load_pretrained
from models.checkpoints import open_checkpoint
from models.diffusion import wan
from scripts import convert_checkpoint, push_to_hub
from tests.commands import read_checkpoint, run_command
from tests.forks import Forks
from tests.tiny_models import differences, tiny_flags
from tests.tiny_wan import make_tiny_wan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flags(root: Path, tiny_wan: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A tiny HCD on the tiny Wan."""
    cache = tmp_path_factory.mktemp("cache") / "text"
    return [
        *("--config", root / "configs/wan_ytvos.yaml", *tiny_flags(), "--text_encoder", tiny_wan / "roberta"),
        *("--pretrained", tiny_wan, "--text_cache", cache, "--ytvos_path", toy_data, "--device", "cpu"),
        *("--num_frames", 2, "--train_scales", 64, "--crop_scales", "--max_size", 96, "--eval_size", 64),
        *("--num_workers", 0, "--lr_processes", 1, "--log_every", 1, "--sample_every", 0, "--lora_dropout", 0),
    ]


@pytest.fixture(scope="module")
def run(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with two clips each."""
    folder = tmp_path_factory.mktemp("runs") / "once"
    done = run_command(main.main, *flags, "--max_steps", 4, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_checkpoint_holds_what_is_trained(run: Path) -> None:
    content = read_checkpoint(run / "checkpoint.pth", "hcd")
    frozen = [name for name in content["weights"] if ".module." in name and ".lora_" not in name]
    assert frozen == [] and any(".attn2.to_v.lora_A." in name for name in content["weights"])
    assert content["frozen"].keys() == {"transformer", "vae", "text_encoder", "sentence_encoder"}
    assert not (run / "text").exists()


def test_a_resumed_run_gives_the_same_weights(run: Path, flags: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    for words in (("--max_steps", 2), ("--max_steps", 4, "--resume", "auto")):
        done = run_command(main.main, *flags, *words, "--output_dir", folder)
        assert done.returncode == 0, done.stderr
    one, two = (read_checkpoint(at / "checkpoint.pth")["weights"] for at in (run, folder))
    assert differences(one, two) == []


def test_two_processes_follow_the_curve_of_one(run: Path, flags: list[object], forks: Forks, tmp_path: Path) -> None:
    words = [*flags, "--max_steps", 4, "--batch_size", 1, "--lr_processes", 2, "--output_dir", tmp_path / "two"]
    words += ["--text_cache", tmp_path / "text"]  # both processes find it empty, and one of them fills it
    forks.run(tmp_path / "said", 2, "run_main", *words)
    assert losses(tmp_path / "two") == pytest.approx(losses(run), rel=2e-3)


def test_a_checkpoint_is_scored(run: Path, flags: list[object], tmp_path: Path) -> None:
    words = ("--eval", "--resume", run / "checkpoint.pth", "--output_dir", tmp_path / "valid")
    done = run_command(main.main, *flags, *words)
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads((tmp_path / "valid" / "results.json").read_text())["metrics"]["J&F"] <= 100


def test_a_different_text_encoder_is_refused(run: Path, flags: list[object], tiny_wan: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_wan, tmp_path / "wan")
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(make_tiny_wan(tmp_path / "other", seed=1) / "text_encoder", folder / "text_encoder")
    words = ("--pretrained", folder, "--eval", "--resume", run / "checkpoint.pth", "--output_dir", tmp_path / "valid")
    done = run_command(main.main, *flags, *words)
    assert done.returncode == 2 and "trained with a different diffusion text encoder" in done.stderr


def test_another_generator_is_refused(run: Path, flags: list[object], small_stack: Path, tmp_path: Path) -> None:
    words = ("--pretrained", small_stack, "--text_encoder", small_stack / "roberta", "--posterior", "auto")
    done = run_command(
        main.main, *flags, *words, "--eval", "--resume", run / "checkpoint.pth", "--output_dir", tmp_path / "valid"
    )
    assert done.returncode == 2
    assert "was trained on features of a transformer" in done.stderr and "name that generator with" in done.stderr


def test_conversion_the_hub_and_the_library(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_command(convert_checkpoint.main, run, tmp_path / "weights.safetensors", "--dtype", "float32")
    assert done.returncode == 0, done.stderr

    class Api:
        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
            (tmp_path / "hub" / repo).mkdir(parents=True)

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr(push_to_hub, "HfApi", Api)
    done = run_command(push_to_hub.main, run, "me/wan", "--private")
    assert done.returncode == 0, done.stderr
    own = open_checkpoint(str(run), "--resume").weights
    assert differences(own, open_checkpoint(str(tmp_path / "hub/me/wan"), "--resume").weights) == []

    options: dict[str, Any] = {"pretrained": str(read_checkpoint(run / "checkpoint.pth")["config"]["pretrained"])}
    options["text_encoder"] = f"{options['pretrained']}/roberta"
    frames = np.random.default_rng(0).integers(0, 255, (7, 48, 64, 3), dtype=np.uint8)
    masks = []
    for file in (tmp_path / "weights.safetensors", tmp_path / "hub/me/wan"):
        model = load_pretrained(file, device="cpu", eval_size=48, text_cache=str(tmp_path / "text"), **options)
        result = model.segment(frames, ["a red circle", "the left one"], window=4, threshold=0.3)
        assert result.num_frames == 7 and result.size == (48, 64)
        masks.append(torch.from_numpy(result[0].scores))
    assert torch.equal(*masks)


def test_the_authors_layout_has_no_place_for_it(run: Path, tmp_path: Path) -> None:
    done = run_command(convert_checkpoint.main, run, tmp_path / "out.pth", "--to", "authors")
    assert done.returncode == 2 and "Wan 2.1, which the authors' layout cannot store" in done.stderr
    assert not (tmp_path / "out.pth").exists()


def test_sentences_of_the_validation_are_encoded_before_training(
    flags: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flipped clips and validations need no text encoder, which may not fit beside a model in training."""
    calls: list[str] = []
    load, step = wan._load_umt5, engine.training_step

    def called(name: str, function: Any) -> Any:
        return lambda *of, **options: calls.append(name) or function(*of, **options)

    monkeypatch.setattr(wan, "_load_umt5", called("load", load))
    monkeypatch.setattr(engine, "training_step", called("step", step))
    words = ("--max_steps", 2, "--eval_every", 100, "--text_cache", tmp_path / "text", "--output_dir", tmp_path / "run")
    done = run_command(main.main, *flags, *words)
    assert done.returncode == 0, done.stderr
    assert calls == ["load", "step", "step"]
    assert "J&F" in (tmp_path / "run" / "validation.json").read_text()
