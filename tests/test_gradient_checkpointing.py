"""--gradient_checkpointing: the same gradients, bit by bit, from less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import build_model
from models.segmenter import Segmenter
from tests.tiny_models import backward, model_config, random_clips


def _gradients(stack: Path, frames: int, **options: object) -> tuple[dict[str, Tensor], int]:
    """Of every trained parameter, and how many bytes are kept for them between the two passes."""
    cfg = model_config(stack, **options)
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:  # starts at zero
                parameter.normal_(std=0.05)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    torch.manual_seed(1)  # the posterior's sample, and dropout
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backward(model, cfg, 1, frames)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize(("model", "frames"), [("vdit", 2), ("hcd", 2), ("hcd", 1)])
def test_gradients_are_the_same_and_less_is_kept(small_stack: Path, model: str, frames: int) -> None:
    plain, much = _gradients(small_stack, frames, model=model)
    again, little = _gradients(small_stack, frames, model=model, gradient_checkpointing=True)
    assert plain.keys() == again.keys()
    assert [name for name in plain if not torch.equal(plain[name], again[name])] == []
    assert any("encoder.fusion" in name and gradient.any() for name, gradient in again.items())
    assert little < 0.8 * much


@pytest.mark.parametrize("recompute", [False, True])
def test_a_unet_with_nothing_trained_before_it_has_no_graph(small_stack: Path, recompute: bool) -> None:
    options = {"noise": "none", "image_tokens": False, "gradient_checkpointing": recompute}
    model = build_model(model_config(small_stack, **options)).train()
    taps: list[Tensor] = []
    model.encoder.unet.register_forward_hook(lambda module, args, output: taps.extend(output))
    frames, padding, captions = random_clips(1, 2)
    assert model(frames, padding, captions).logits.requires_grad
    assert len(taps) == 6 and not any(tap.requires_grad for tap in taps)


def test_evaluation_computes_once(small_stack: Path) -> None:
    model: Segmenter = build_model(model_config(small_stack, gradient_checkpointing=True)).eval()
    calls: list[int] = []
    model.encoder.unet.module.down_blocks[0].resnets[0].register_forward_hook(lambda *args: calls.append(1))
    with torch.inference_mode():
        model(*random_clips(1, 2))
    assert calls == [1]
