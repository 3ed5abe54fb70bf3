"""The carried toy weights: they score, training on from them holds the score, and the frozen stack matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import inference_ytvos
import main
from datasets.scoring import score_expressions
from datasets.toy import make_toy
from models.diffusion.tiny import make_tiny_stack
from scripts.train_toy import SIZES
from tests.commands import run_command

MOST_MEGABYTES, MOST_OF_HCD = 12, 4


def _score(data: Path, stack: Path, checkpoint: Path, output: Path, *more: object) -> float:
    """J&F over all sentences that name an object, 0–100."""
    options = ("--config", f"configs/{checkpoint.stem}_toy.yaml", "--pretrained", stack, "--ytvos_path", data)
    result = run_command(inference_ytvos.main, *options, "--resume", checkpoint, "--output_dir", output, *more)
    assert result.returncode == 0, result.stderr[-2000:]
    scores = score_expressions(data / "valid" / "Annotations", output / "Annotations")
    return 100 * scores["global"]["JF"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small toy set of the benchmark's own size of frames."""
    root = tmp_path_factory.mktemp("benchmark") / "toy"
    make_toy(root, num_train=60, num_valid=12, num_test=0, negatives=1)
    return root


@pytest.fixture(scope="module")
def carried_score(root: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """J&F of the carried weights on their own stack."""
    return _score(data, root / "toy" / "stack", root / "toy" / "vdit.safetensors", tmp_path_factory.mktemp("carried"))


def test_the_carried_weights_are_small(root: Path) -> None:
    files = [path for path in (root / "toy" / "stack").rglob("*") if path.is_file()] + [root / "toy/vdit.safetensors"]
    assert sum(path.stat().st_size for path in files) <= MOST_MEGABYTES * 1e6
    assert (root / "toy/hcd.safetensors").stat().st_size <= MOST_OF_HCD * 1e6


@pytest.mark.slow
def test_hcd_is_as_good(root: Path, data: Path, carried_score: float, tmp_path: Path) -> None:
    assert _score(data, root / "toy" / "stack", root / "toy" / "hcd.safetensors", tmp_path) >= carried_score - 3


@pytest.mark.slow
def test_sixty_steps_hold_the_score(root: Path, data: Path, carried_score: float, tmp_path: Path) -> None:
    stack, carried = root / "toy" / "stack", root / "toy" / "vdit.safetensors"
    options = ("--config", "configs/vdit_toy.yaml", "--pretrained", stack, "--ytvos_path", data)
    begin = ("--pretrained_weights", carried, "--keep_class_heads", "--max_steps", "60")
    trained = run_command(main.main, *options, *begin, "--output_dir", tmp_path / "train")
    assert trained.returncode == 0, trained.stderr[-2000:]
    checkpoint = (tmp_path / "train" / "checkpoint.pth").rename(tmp_path / "train" / "vdit.pth")
    after = _score(data, stack, checkpoint, tmp_path / "after")
    assert after > carried_score - 3
    assert carried_score > 30  # far above what ignores the sentence on this set


@pytest.mark.slow
def test_another_stack_is_refused_and_lowers_the_score(
    root: Path, data: Path, carried_score: float, tmp_path: Path
) -> None:
    carried = root / "toy" / "vdit.safetensors"
    known = json.loads((data / "meta_expressions" / "train" / "meta_expressions.json").read_text())
    texts = [entry["exp"] for video in known["videos"].values() for entry in video["expressions"].values()]
    random = make_tiny_stack(tmp_path / "random", texts, 0, **SIZES)
    options = ("--config", "configs/vdit_toy.yaml", "--pretrained", random, "--ytvos_path", data)
    refused = run_command(inference_ytvos.main, *options, "--resume", carried, "--output_dir", tmp_path / "refused")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    with_random = _score(data, random, carried, tmp_path / "other", "--ignore_frozen_identity")
    assert with_random < carried_score - 10
