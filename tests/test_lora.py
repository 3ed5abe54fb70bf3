"""LoRA on the UNet: what is adapted and trained, merged and unmerged agreement, original names, single frames."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import build_model, trained_parameters
from models.lora import add_lora, has_lora, merge_lora, merged_state
from models.segmenter import Segmenter
from scripts.count_parameters import empty_model
from tests.commands import read_checkpoint
from tests.forks import Forks
from tests.tiny_models import backward, model_config, random_clips
from util.config import Config

LORA = ".lora_"


def _config(stack: Path, **options: object) -> Config:
    return model_config(stack, **{"model": "hcd", "posterior": "mode", **options})


@pytest.fixture(scope="module")
def hcd(tiny_stack: Path) -> Segmenter:
    """HCD with adapters that change something; only to be read."""
    torch.manual_seed(0)
    model = build_model(_config(tiny_stack))
    _shake(model)
    return model.eval()


def _shake(model: nn.Module) -> None:
    """Give the adapters, whose second halves start at zero, values as of a trained model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def _clips(frames: int) -> tuple[Tensor, Tensor, list[str]]:
    return random_clips(1, frames)


def test_hcd_adapts_every_query_and_value_projection(tiny_stack: Path, hcd: Segmenter) -> None:
    plain = build_model(_config(tiny_stack, lora_rank=0))
    assert not has_lora(plain) and not has_lora(build_model(model_config(tiny_stack)))
    wanted = {name for name, _ in plain.encoder.unet.module.named_modules() if name.endswith((".to_q", ".to_v"))}
    adapted = {name.partition(LORA)[0] for name, _ in hcd.encoder.unet.module.named_parameters() if LORA in name}
    assert adapted == wanted
    for part in ("transformer_in.", "temp_attentions.", ".attn1.", ".attn2.", "mid_block.", "up_blocks.2."):
        assert any(part in name for name in adapted), part
    layer = hcd.encoder.unet.module.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v")
    assert layer.lora_A["default"].weight.shape == (16, layer.base_layer.in_features)
    assert (layer.scaling["default"], layer.lora_dropout["default"].p) == (2.0, 0.1)


def test_adapters_are_all_that_is_trained_beside_the_other_parts(tiny_stack: Path, hcd: Segmenter) -> None:
    plain = trained_parameters(build_model(_config(tiny_stack, lora_rank=0)))
    trained = trained_parameters(hcd)
    added = trained.keys() - plain.keys()
    assert plain.keys() <= trained.keys()
    assert added and all(name.startswith("encoder.unet.module.") and LORA in name for name in added)


def test_full_size_number_of_adapter_parameters() -> None:
    """Per layer rank · (in + out), of every attention's query (from the block's width) and value (cross: from 1024)."""
    model = empty_model(Config(model="hcd"))
    found = sum(count for name, count in trained_parameters(model).items() if LORA in name)
    plain = empty_model(Config(model="hcd", lora_rank=0))
    expected = sum(
        16 * sum(module.weight.shape)
        for name, module in plain.encoder.unet.named_modules()
        if name.endswith((".to_q", ".to_v"))
    )
    assert found == expected
    assert sum(trained_parameters(model).values()) - found == sum(trained_parameters(plain).values())


def test_new_adapters_change_nothing(tiny_stack: Path) -> None:
    results = []
    for rank in (0, 4):
        torch.manual_seed(0)
        model = build_model(_config(tiny_stack, lora_rank=0)).eval()
        if rank:
            add_lora(model.encoder.unet, rank, 32, 0.1)
        with torch.inference_mode():
            results.append(model(*_clips(2)).masks)
    assert torch.equal(*results)


def test_dropout_of_adapters_follows_the_mode_and_nothing_else_wakes(hcd: Segmenter) -> None:
    model = copy.deepcopy(hcd).train()
    awake = {name for name, module in model.encoder.unet.named_modules() if module.training}
    assert awake and all(LORA + "dropout" in name for name in awake)
    frames, _, captions = _clips(2)
    with torch.no_grad():
        pixels = model.encoder.encode_pixels(frames)
        one, other = model.encoder(pixels, captions), model.encoder(pixels, captions)
        assert not torch.equal(one[3], other[3])
        model.eval()
        torch.testing.assert_close(model.encoder(pixels, captions)[3], model.encoder(pixels, captions)[3])
    assert not any(module.training for module in model.modules())


def test_merged_and_unmerged_outputs_agree(tiny_stack: Path, hcd: Segmenter) -> None:
    merged = copy.deepcopy(hcd)
    merge_lora(merged)
    plain = build_model(_config(tiny_stack, lora_rank=0))
    assert not has_lora(merged) and merged.state_dict().keys() == plain.state_dict().keys()
    assert trained_parameters(merged).keys() == trained_parameters(plain).keys()
    with torch.inference_mode():
        ours, theirs = hcd(*_clips(3)), merged(*_clips(3))
    for name in ("logits", "boxes", "masks"):
        expected = getattr(ours, name)
        torch.testing.assert_close(getattr(theirs, name), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    without = copy.deepcopy(plain)
    without.load_state_dict({**merged.state_dict(), **_unet(plain)})
    with torch.inference_mode():  # the adapters do something, or this would show nothing
        assert not torch.allclose(without.eval()(*_clips(3)).masks, ours.masks, atol=1e-2)
    merge_lora(merged)  # a second time is nothing


def _unet(model: Segmenter) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if name.startswith("encoder.unet.")}


def test_merged_state_is_the_merged_models_and_leaves_the_model_alone(hcd: Segmenter) -> None:
    before = {name: value.clone() for name, value in hcd.state_dict().items()}
    states = (merged_state(hcd.encoder.unet.module), merged_state(hcd))
    merged = copy.deepcopy(hcd)
    merge_lora(merged)
    for state, expected in zip(states, (merged.encoder.unet.module.state_dict(), merged.state_dict()), strict=True):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert all(torch.equal(before[name], value) for name, value in hcd.state_dict().items())
    assert merged_state(merged).keys() == merged.state_dict().keys()  # without adapters: the state as it is


def test_adapters_learn_and_the_unet_does_not(tiny_stack: Path, hcd: Segmenter) -> None:
    model = copy.deepcopy(hcd)
    backward(model, _config(tiny_stack), 1, 2)
    unet = dict(model.encoder.unet.module.named_parameters())
    assert all((p.grad is not None) == (LORA in name) for name, p in unet.items())
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for name, p in unet.items() if ".lora_A." in name)


def test_single_frames_leave_temporal_adapters_alone(tiny_stack: Path, hcd: Segmenter) -> None:
    """The reason for ``find_unused_parameters`` in main.py, with one frame alone."""
    model = copy.deepcopy(hcd)
    backward(model, _config(tiny_stack), 1, 1)
    adapters = {name: p for name, p in model.encoder.unet.module.named_parameters() if LORA in name}
    idle = {name for name, p in adapters.items() if p.grad is None}
    assert idle == {name for name in adapters if "temp_attentions." in name or name.startswith("transformer_in.")}
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None and LORA not in name]


def test_options_reach_the_adapters(tiny_stack: Path) -> None:
    options = {"lora_rank": 4, "lora_alpha": 6.0, "lora_dropout": 0.0, "lora_targets": ("to_k", "to_out.0")}
    unet = build_model(_config(tiny_stack, model="vdit", **options)).encoder.unet.module
    adapted = {name.partition(LORA)[0]: p for name, p in unet.named_parameters() if ".lora_A." in name}
    assert adapted and all(name.endswith((".to_k", ".to_out.0")) for name in adapted)
    assert {p.shape[0] for p in adapted.values()} == {4}
    assert math.isclose(unet.get_submodule(next(iter(adapted))).scaling["default"], 1.5)


def test_adapters_of_every_target_can_be_merged(tiny_stack: Path) -> None:
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    torch.manual_seed(0)
    model = build_model(_config(tiny_stack, lora_rank=2, lora_targets=targets)).eval()
    new = copy.deepcopy(model)
    _shake(model)
    merged = copy.deepcopy(model)
    merge_lora(merged)
    assert not has_lora(merged)
    with torch.inference_mode():
        first, ours, theirs = (network(*_clips(2)).masks for network in (new, model, merged))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * float(ours.abs().max()))
    assert not torch.allclose(first, ours, atol=1e-2), "the adapters do something"


def test_adapters_are_not_added_twice(hcd: Segmenter) -> None:
    with pytest.raises(ValueError, match="already"):
        add_lora(hcd.encoder.unet, 4, 32)


@pytest.mark.slow
@pytest.mark.parametrize("frames", ["1", "2"])
def test_two_processes_train_adapters(
    forks: Forks, small_stack: Path, toy_data: Path, tmp_path: Path, frames: str
) -> None:
    options = ("--config", "configs/hcd_toy.yaml", "--pretrained", small_stack, "--ytvos_path", toy_data)
    more = ("--output_dir", tmp_path, "--device", "cpu", "--num_frames", frames, "--max_steps", 3, "--batch_size", 1)
    forks.run(tmp_path / "said", 2, "run_main", *options, *more)
    weights = read_checkpoint(tmp_path / "checkpoint.pth", "hcd")["weights"]
    temporal = [v for name, v in weights.items() if ".lora_B." in name and "temp_attentions." in name]
    spatial = [v for name, v in weights.items() if ".lora_B." in name and ".attentions." in name]
    assert all(v.abs().sum() > 0 for v in spatial)
    assert all((v.abs().sum() > 0) == (frames != "1") for v in temporal)
