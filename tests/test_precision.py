"""bf16, fp16 and float32: what is held in which, what stays float32, and that the loss is nearly the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import list_videos
from datasets.files import read_clips
from datasets.registry import load_config
from datasets.toy import make_toy
from engine import training_step
from models import build_criterion, build_model, frozen, prepare_inference, prepare_training, set_precision
from models.checkpoints import open_checkpoint, save_checkpoint, save_loaded_parts
from models.diffusion import attention
from models.diffusion.attention import blocked_attention
from models.inference import InferenceOptions, build_for_inference, sentence_outputs
from models.mask_heads import DynamicMaskHead
from models.precision import call_in_float32, in_float32, resolve_precision
from models.segmenter import Segmenter
from tests.conftest import ROOT
from tests.tiny_models import backward, model_config, random_clips, square_targets
from util.device import give_back
from util.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZE = (32, 48)  # half precision is slow on CPUs


def _model(stack: Path, name: str = "vdit", dtype: torch.dtype = torch.float32) -> Segmenter:
    torch.manual_seed(0)
    model = build_model(model_config(stack, model=name, posterior="mode", lora_dropout=0.0))
    set_precision(model, dtype)
    return model


def _batch() -> Any:
    frames, padding, captions = random_clips(1, 2, *SIZE)
    targets = square_targets(1, 2, *SIZE)
    return SimpleNamespace(frames=frames, padding=padding, captions=captions, targets=targets, annotated=None)


@pytest.mark.parametrize("instruction", [None, "avx512_bf16", "amx_bf16"])
def test_auto_is_what_the_hardware_computes_in(instruction: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """T4 and V100 have no bf16, which PyTorch emulates there."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bool(instruction))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, instruction: True})
    cuda = "bf16" if instruction else "fp16"
    assert resolve_precision("auto", CUDA) == resolve_precision("auto", CUDA, training=False) == cuda
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("auto", CPU, training=False) == ("bf16" if instruction else "fp32")
    mps = torch.device("mps")
    assert resolve_precision("auto", mps) == resolve_precision("auto", mps, training=False) == "fp32"
    for name in ("fp16", "bf16", "tf32", "fp32"):
        assert resolve_precision(name, CUDA) == resolve_precision(name, CPU, training=False) == name


def test_a_gpu_without_bf16_trains_and_segments_in_float16(small_stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    model = _model(small_stack)
    monkeypatch.setattr(model, "to", lambda device: model)
    scaler = prepare_training(model, "auto", CUDA)
    assert scaler is not None and scaler.is_enabled() and model.precision == torch.float16
    model = _model(small_stack)
    monkeypatch.setattr(model, "to", lambda device: model)
    assert prepare_inference(model, "auto", CUDA).encoder.unet.held == torch.float16


@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_only_tf32_rounds_to_tf32(small_stack: Path, precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "tf32"
    prepare_training(_model(small_stack), precision, CPU)
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    prepare_inference(_model(small_stack), "fp32", CPU)
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("shape", "keys"), [((2, 3, 70, 8), 70), ((2, 3, 70, 8), 5), ((40, 2, 3, 8), 3), ((1, 2, 9, 8), 400)]
)
def test_attention_in_blocks_is_attention(shape: tuple[int, ...], keys: int) -> None:
    torch.manual_seed(0)
    batch, heads, _, width = shape
    query = torch.randn(shape)
    key, value = torch.randn(2, batch, keys, heads, width).transpose(2, 3)
    expected = F.scaled_dot_product_attention(query, key, value)
    for scores in (1, 100, 1000, 1 << 20):
        torch.testing.assert_close(blocked_attention(query, key, value, scores=scores), expected)
    torch.testing.assert_close(
        blocked_attention(query, key, value, 0.3), F.scaled_dot_product_attention(query, key, value, scale=0.3)
    )


def test_attention_runs_in_blocks_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []
    monkeypatch.setattr(attention, "blocked_attention", lambda query, *_: calls.append(query.dtype) or query)
    x = torch.randn(1, 2, 4, 8)
    half, mask = x.bfloat16(), torch.zeros(4, 4, dtype=torch.bfloat16)
    with attention.BlockedAttention():
        for query in (half, x, half.clone().requires_grad_()):
            assert F.scaled_dot_product_attention(query, query, query).shape == x.shape
        F.scaled_dot_product_attention(half, half, half, attn_mask=mask)
        F.scaled_dot_product_attention(half, half, half, is_causal=True)
    F.scaled_dot_product_attention(half, half, half)
    assert calls == [torch.bfloat16]


@pytest.mark.parametrize("fast", [True, False])
def test_frozen_parts_take_the_faster_attention_and_give_memory_back(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    blocked: list[int] = []
    given: list[int] = []
    monkeypatch.setattr(frozen, "fused_is_fast", lambda: fast)
    monkeypatch.setattr(frozen, "give_back", lambda: given.append(1))
    monkeypatch.setattr(attention, "blocked_attention", lambda query, *_: blocked.append(1) or query)

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x * self.weight, x, x)

    part, x = frozen.Frozen(Attends()), torch.randn(1, 2, 4, 8)
    with torch.inference_mode():
        part(x)
        assert not given and not blocked  # float32 is as it was
        part.hold(torch.bfloat16)
        assert part(x).dtype == torch.bfloat16
    assert len(given) == 1 and len(blocked) == (not fast)
    part(x)  # in training what was freed is needed again at once
    assert len(given) == 1
    give_back()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vdit", "hcd"])
def test_steps_in_bf16_follow_those_in_float32(small_stack: Path, name: str) -> None:
    losses: dict[torch.dtype, list[float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = _model(small_stack, name, dtype).train()
        criterion = build_criterion(model_config(small_stack))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        terms = [training_step(model, criterion, [_batch()], optimizer, 0.1) for _ in range(2)]
        assert all(value.isfinite() for step in terms for value in step.values())
        losses[dtype] = [float(step["loss"]) for step in terms]
    assert losses[torch.bfloat16] != losses[torch.float32]
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.05)


@pytest.mark.parametrize("name", ["vdit", "hcd"])
def test_what_is_frozen_is_held_in_half_and_what_is_trained_is_not(small_stack: Path, name: str) -> None:
    model = _model(small_stack, name, torch.bfloat16)
    output, terms = backward(model, model_config(small_stack), 1, 2)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    last = output.layers[-1]
    for prediction in (last.logits, last.boxes, last.masks, last.low_masks, *terms.values()):
        assert prediction.dtype == torch.float32
    with torch.inference_mode():
        seen = model.eval()(*random_clips(1, 2))
    assert seen.masks.dtype == seen.boxes.dtype == torch.float32


@pytest.mark.parametrize("name", ["vdit", "hcd"])
def test_masks_in_bf16_follow_those_in_float32(small_stack: Path, name: str) -> None:
    """In the mean within 2 % of their range, at the same query. Single pixels of random weights may be further off."""
    frames, padding, captions = random_clips(1, 2, *SIZE)
    masks = []
    for precision in ("fp32", "bf16"):
        model = prepare_inference(_model(small_stack, name), precision, CPU)
        with torch.inference_mode():
            output = model(frames, padding, captions, select=lambda prediction: torch.zeros(1, dtype=torch.long))
        masks.append(output.masks)
    exact, half = masks
    assert not torch.equal(exact, half)
    assert (exact - half).abs().mean() < 0.02 * (exact.max() - exact.min())
    assert model.encoder.vae.held == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vdit", "hcd"])
def test_trained_masks_in_bf16_follow_those_in_float32(name: str, tmp_path: Path) -> None:
    """The bundled weights: 99.8 % of all pixels, and 98 % of any sentence's, within 2 % of the range of its logits.

    At the worst pixel, on an outline or where the model wavers between two objects, it can be more.
    """
    make_toy(tmp_path, num_train=1, num_valid=2, num_test=0, seed=5)
    flags = ["--config", str(ROOT / "configs" / f"{name}_toy.yaml"), "--ytvos_path", str(tmp_path), "--device", "cpu"]
    outputs: dict[str, list[Tensor]] = {}
    for precision in ("fp32", "bf16"):
        cfg = load_config([*flags, "--pretrained", str(ROOT / "toy" / "stack"), "--precision", precision], "")
        checkpoint = open_checkpoint(str(ROOT / "toy" / f"{name}.safetensors"), "--resume")
        options = InferenceOptions.from_config(cfg)
        model, _ = build_for_inference(cfg, checkpoint, CPU)
        with torch.inference_mode():
            outputs[precision] = [
                masks
                for video in list_videos(cfg)
                for _, output in sentence_outputs(
                    model,
                    next(read_clips([video.frame_paths], options.eval_size, options.max_size))[0],
                    list(video.expressions.values()),
                    options,
                )
                for masks in output.masks
            ]
    shares = []
    for exact, half in zip(outputs["fp32"], outputs["bf16"], strict=True):
        apart = (exact - half).abs() / (exact.max() - exact.min())
        assert apart.max() > 0
        shares.append(float((apart > 0.02).float().mean()))
    assert len(shares) > 8 and sum(shares) / len(shares) < 0.002 and max(shares) < 0.02, shares


def test_float32_is_as_it_was(small_stack: Path) -> None:
    model = _model(small_stack)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_precision(model, torch.float32)
    assert all(part.held is None for part in model.modules() if hasattr(part, "held"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_places_and_masks_are_computed_in_float32(small_stack: Path) -> None:
    """Where a query looks, in pixels, and differences of pixels: eight binary digits would be whole pixels off."""
    model = _model(small_stack, dtype=torch.bfloat16)
    seen: list[Tensor] = []
    attention = model.transformer.encoder[0].attention
    samples = attention._samples
    attention._samples = lambda *args: seen.extend(samples(*args)) or tuple(seen[-2:])
    backward(model, model_config(small_stack), 1, 2)
    assert len(seen) == 2 and {value.dtype for value in seen} == {torch.float32}

    torch.manual_seed(0)
    head = DynamicMaskHead(8)
    features, states, centres = torch.randn(1, 8, 4, 80), torch.randn(1, 2, 8), torch.tensor([[[639.0, 30.0]] * 2])
    exact, plain = head(features, states, centres), vars(DynamicMaskHead)["forward"].__wrapped__
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(features, states, centres), exact)
        assert not torch.equal(plain(head, features, states, centres), exact)


def test_an_island_widens_its_arguments_wherever_they_are() -> None:
    layer = nn.Linear(4, 3)
    x = torch.randn(2, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert call_in_float32(layer, x).dtype == torch.float32
    torch.testing.assert_close(call_in_float32(layer, x), layer(x.float()), rtol=0, atol=0)
    total = in_float32(lambda parts, scale: sum(parts) * scale)
    assert total([x, x], 2).dtype == torch.float32
    assert total([x.double()], 2).dtype == torch.float64


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(small_stack: Path) -> None:
    cfg = model_config(small_stack, precision="fp16", posterior="mode")
    torch.manual_seed(0)
    model = build_model(cfg)
    scaler = prepare_training(model, cfg.precision, CPU)
    assert scaler is not None and prepare_training(_model(small_stack), "auto", CPU) is None
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    batch = _batch()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    criterion = build_criterion(cfg)
    good = training_step(model.train(), criterion, [batch], optimizer, 0.1, scaler)
    assert good["scale"] == 256 and good["skipped"] == 0 and good["grad_norm"] > 0
    before = [p.detach().clone() for p in parameters]
    parameters[0].register_hook(lambda gradient: gradient * float("inf"))
    left_out = training_step(model, criterion, [batch], optimizer, 0.1, scaler)
    assert left_out["skipped"] == 1 and left_out["grad_norm"] == 0 and left_out["loss"].isfinite()
    assert all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    assert scaler.state_dict()["scale"] == 128
    scaler.update(0.5)  # such a scale is not for overflow, but for a gradient that is never finite
    assert not training_step(model, criterion, [batch], optimizer, 0.1, scaler)["grad_norm"].isfinite()


def test_frozen_weights_of_a_checkpoint_are_stored_with_all_digits(small_stack: Path, tmp_path: Path) -> None:
    model = _model(small_stack)
    model.encoder.vae.from_checkpoint = True
    identity = {"vae": {"sha256": "0" * 64}}
    name = save_loaded_parts(tmp_path, model, "vdit", identity)
    set_precision(model, torch.bfloat16)
    save_checkpoint(tmp_path / "checkpoint.pth", model, "vdit", {}, identity)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=name):
        save_checkpoint(tmp_path / "checkpoint.pth", model, "vdit", {}, identity)
