"""Loading the frozen parts: what is incomplete or another model's is refused, never filled with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from models.diffusion.stack import load_stack
from util.errors import UserError


@pytest.fixture
def stack(tiny_stack: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_stack, tmp_path / "stack"))


def _lose_a_weight(folder: Path) -> str:
    """Remove one weight from a part's file; its name."""
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    name = min(key for key in weights if not key.startswith(("decoder", "conv_norm_out", "conv_out", "pooler")))
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "clip", "roberta"])
def test_a_missing_weight_is_refused(stack: Path, part: str) -> None:
    name = _lose_a_weight(stack / part).removeprefix("text_model.")
    with pytest.raises(UserError, match=r"lacks .*; it is incomplete") as error:
        load_stack(str(stack))
    assert name in str(error.value)


@pytest.mark.parametrize(("flag", "other"), [("image_encoder", "roberta"), ("text_encoder", "unet")])
def test_another_kind_of_model_is_refused(tiny_stack: Path, flag: str, other: str) -> None:
    with pytest.raises(UserError, match=f"--{flag}"):
        load_stack(str(tiny_stack), **{flag: str(tiny_stack / other)})


@pytest.mark.parametrize(
    "file", ["unet/config.json", "clip/model.safetensors", "tokenizer/vocab.json", "scheduler/scheduler_config.json"]
)
def test_a_truncated_file_is_one_sentence(stack: Path, file: str) -> None:
    path = stack / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cannot load the .* from") as error:
        load_stack(str(stack))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["tokenizer", "tokenizer/tokenizer_config.json", "roberta/vocab.json"])
def test_a_missing_tokenizer_file_is_one_sentence(stack: Path, missing: str) -> None:
    path = stack / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="tokenizer") as error:
        load_stack(str(stack))
    assert "\n" not in str(error.value)
