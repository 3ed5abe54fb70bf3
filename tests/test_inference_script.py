"""inference_ytvos.py from the command line, with the real model in small; bad input."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import inference_ytvos
import models.inference
from tests.commands import run_command
from tests.inference_tools import FRAMES, tree, write_halves


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_halves(tmp_path / "data")


@pytest.fixture
def script(tiny_config: list[str], tiny_checkpoint: Path, data: Path, tmp_path: Path) -> list[str]:
    """Flags of a good run; a later flag overrides."""
    paths = ["--resume", str(tiny_checkpoint), "--ytvos_path", str(data), "--output_dir", str(tmp_path / "out")]
    return [*tiny_config, *paths]


def other_model(checkpoint: Path, path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "model": "hcd"}, path)


BAD_INPUT = {
    "no checkpoint": (["--resume", ""], "no checkpoint is given"),
    "missing checkpoint": (["--resume", "{tmp}/nothing.pth"], "nothing.pth does not exist"),
    "truncated checkpoint": (["--resume", "{tmp}/half.pth"], "half.pth is not a readable checkpoint"),
    "checkpoint of another model": (["--resume", "{tmp}/hcd.pth"], "is a checkpoint of the model 'hcd'"),
    "checkpoint of other sizes": (["--hidden_dim", "32"], "use the configuration that the checkpoint was made with"),
    "missing data": (["--ytvos_path", "{tmp}/nowhere"], "nowhere is missing"),
    "missing frame": (["--ytvos_path", "{tmp}/holes"], "holes/valid/JPEGImages/a/00005.jpg is missing (and 1 more)"),
    "unknown split": (["--split", "val"], "unknown split 'val'"),
    "no expression": (["--expressions_file", "{tmp}/none.json"], "no video left"),
    "output in a file": (["--output_dir", "{tmp}/half.pth/out"], "a part of its folder is a file"),
    "missing stack": (["--pretrained", "{tmp}/nowhere"], "nowhere"),
    "threshold": (["--threshold", "1.5"], "--threshold must be"),
    "score threshold": (["--score_threshold", "-1"], "--score_threshold must be a number from 0 to 1"),
    "flag": (["--tresh", "0.5"], "unknown flag --tresh"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_one_sentence_and_status_2(
    kind: str, script: list[str], tiny_checkpoint: Path, data: Path, tmp_path: Path
):
    (tmp_path / "half.pth").write_bytes(tiny_checkpoint.read_bytes()[:1000])
    other_model(tiny_checkpoint, tmp_path / "hcd.pth")
    (tmp_path / "none.json").write_text('{"videos": {}}')
    shutil.copytree(data, tmp_path / "holes")
    for name in ("a/00005", "b/00000"):
        (tmp_path / "holes" / "valid" / "JPEGImages" / f"{name}.jpg").unlink()
    flags, sentence = BAD_INPUT[kind]
    done = run_command(inference_ytvos.main, *script, *(flag.format(tmp=tmp_path) for flag in flags))
    message = done.stderr
    assert done.returncode == 2
    assert message.startswith("error: ") and message.count("\n") == 1
    assert sentence in message
    assert not (tmp_path / "out" / "Annotations").exists()


def test_cuda_without_one(script: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = run_command(inference_ytvos.main, *script, "--device", "cuda")
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr


def test_very_large_frames_are_noted_once(script: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models.inference, "LARGE_SIDE", 40)
    done = run_command(inference_ytvos.main, *script, "--eval_size", "32")
    assert done.returncode == 0, done.stderr
    note = "note: the model sees 'a' at 57×32 pixels, and 1 more with a longer side above 40; --max_size limits"
    assert done.stdout.count("--max_size") == done.stdout.count(note) == 1


@pytest.mark.slow
def test_the_script_from_end_to_end(root: Path, script: list[str], tmp_path: Path):
    """Once as a user types it, once in this process, which gives the same files."""
    options = [*script, "--eval_size", "32", "--visualize"]
    outputs = [tmp_path / "out", tmp_path / "again"]
    typed = subprocess.run([sys.executable, "inference_ytvos.py", *options], cwd=root, capture_output=True, text=True)
    called = run_command(inference_ytvos.main, *options, "--output_dir", outputs[1])
    for output, done in zip(outputs, (typed, called), strict=True):
        assert done.returncode == 0, done.stderr
        assert f"submission, checked: {output / 'submission.zip'}" in done.stdout
        assert f"contact sheet: {output / 'visualize' / 'contact_sheet.png'}" in done.stdout
    first, second = (tree(output) for output in outputs)
    assert first.keys() == second.keys()
    # The encoder does not promise the same bytes on a busy machine; the overlays it is given are compared as PNG.
    exact = [name for name in first if not name.endswith(".mp4")]
    assert {name: first[name] for name in exact} == {name: second[name] for name in exact}, "the same run, other files"
    assert len([name for name in first if name.startswith("Annotations/")]) == 4 * FRAMES
    assert {name for name in first if name.endswith(".mp4")} == {f"visualize/{v}_{e}.mp4" for v in "ab" for e in "01"}
