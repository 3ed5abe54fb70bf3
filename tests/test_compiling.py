"""--compile: the same numbers, and one sentence where it cannot be."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import build_model, compile_frozen
from models.frozen import _with_fallback as with_fallback
from tests.tiny_models import backward, model_config


def test_a_failure_is_told_once_and_the_module_runs(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def broken(x: Tensor) -> Tensor:
        calls.append(1)
        raise RuntimeError("no compiler here\nand much more")

    layer = nn.Linear(2, 2)
    run, x = with_fallback(broken, layer, "the UNet"), torch.ones(1, 2)
    for _ in range(3):
        assert torch.equal(run(x), layer(x))
    assert calls == [1]
    told = capsys.readouterr().err
    assert told == "note: the UNet could not be compiled (RuntimeError: no compiler here); it runs uncompiled\n"


def test_what_is_not_the_compilers_fault_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="shapes"):
        with_fallback(layer, layer, "the UNet")(torch.ones(1, 3))
    with pytest.raises(RuntimeError, match="shapes"):
        with_fallback(lambda x: layer(x), layer, "the UNet")(torch.ones(1, 3))
    assert capsys.readouterr().err == ""


def test_a_shortage_of_memory_is_not_the_compilers(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def short(x: Tensor) -> Tensor:
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    layer = nn.Linear(2, 2)
    run = with_fallback(short, layer, "the UNet")
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            run(torch.ones(1, 2))
    assert calls == [1, 1] and capsys.readouterr().err == ""


@pytest.mark.slow
def test_compiled_parts_give_the_same_gradients(
    small_stack: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Captured and differentiated as ``torch.compile`` does it, but run without generated code, which takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    cfg = model_config(small_stack, posterior="mode")
    gradients = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = build_model(cfg)
        if compiles:
            compile_frozen(model)
        names = list(model.state_dict())
        backward(model, cfg, 1, 2)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert names == list(model.state_dict())
    assert "could not be compiled" not in capsys.readouterr().err
    plain, compiled = gradients
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-3 * float(value.abs().max()) + 1e-7)
