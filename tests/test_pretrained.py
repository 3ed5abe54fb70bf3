"""The models as a library: load_pretrained and what it gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from models import load_pretrained
from models.pretrained import Pretrained
from scripts import convert_checkpoint
from tests.commands import run_command
from util.errors import UserError

SENTENCES = ["The red  circle", "a blue square"]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, small_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with their stack beside them, as one passes them on."""
    folder = tmp_path_factory.mktemp("passed on")
    (folder / "stack").symlink_to(small_stack)
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["config"]["pretrained"] = str(folder / "stack")
    torch.save(content, folder.parent / "checkpoint.pth")
    done = run_command(convert_checkpoint.main, folder.parent / "checkpoint.pth", folder / "weights.safetensors")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Pretrained:
    return load_pretrained(folder, device="cpu", eval_size=64, max_size=96, train_scales=(64,))


def test_no_folder_of_this_machine_is_passed_on(folder: Path):
    with safe_open(folder / "weights.safetensors", "pt") as file:
        about = "".join(file.metadata().values())
    assert str(folder.parent) not in about and "output_dir" not in about
    assert '"pretrained": "stack"' in about


def test_kinds_of_frames(model: Pretrained, tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (3, 60, 90, 3), np.uint8)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    kinds = [
        model.segment(video, SENTENCES)
        for video in (frames, torch.from_numpy(frames).permute(0, 3, 1, 2), list(frames), tmp_path, str(tmp_path))
    ]
    first = kinds[0]
    assert first.size == (60, 90) and first.num_frames == 3
    assert [result.sentence for result in first.sentences] == SENTENCES
    for result in first.sentences:
        assert result.masks.shape == (3, 60, 90) and result.masks.dtype == bool
        assert np.array_equal(result.masks[1], result.mask(1))
        assert result.boxes.shape == (3, 4) and result.scores.shape == (3,) and result.found
        assert result.score == pytest.approx(result.scores.mean())
    assert first["a blue square"] is first[1]
    for other in kinds[1:]:
        for one, two in zip(first.sentences, other.sentences, strict=True):
            assert np.array_equal(one.masks, two.masks)


def test_thresholds(model: Pretrained):
    frames = np.random.default_rng(0).integers(0, 255, (2, 60, 90, 3), np.uint8)
    full = model.segment(frames, "the red circle", threshold=0.0)
    assert full[0].masks.all() and full[0].found
    none = model.segment(frames, "the red circle", threshold=0.0, score_threshold=1.0)
    assert not none[0].masks.any() and not none[0].found
    assert none[0].score == full[0].score, "the score is given all the same"


def test_windows(model: Pretrained):
    frames = np.random.default_rng(0).integers(0, 255, (9, 60, 90, 3), np.uint8)
    assert model.segment(frames, "the red circle", window=4, overlap=1).num_frames == 9


@pytest.mark.parametrize(
    ("video", "sentences", "message"),
    [
        (np.zeros((0, 60, 90, 3), np.uint8), "a", "the video has no frame"),
        (np.zeros((2, 60, 90), np.uint8), "a", "frame 0 is uint8"),
        (np.zeros((2, 60, 90, 3), np.float32), "a", "frame 0 is float32"),
        (np.zeros((2, 60, 90, 3), np.uint8), " ", "a sentence is empty"),
        (np.zeros((2, 60, 90, 3), np.uint8), [], "a sentence is empty"),
        ("nowhere.mp4", "a", "nowhere.mp4 does not exist"),
    ],
)
def test_bad_input(model: Pretrained, video: np.ndarray | str, sentences: str, message: str):
    with pytest.raises(UserError, match=message):
        model.segment(video, sentences)


def test_what_cannot_be_loaded(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing\.pth"):
        load_pretrained(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="hidden_dim"):
        load_pretrained(folder, hidden_dim=33)
