"""The memory that a training step or inference takes, counted without a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from models.diffusion.encoder import VAE_BYTES
from scripts import memory_estimate
from scripts.count_parameters import empty_model, stack_of
from scripts.memory_estimate import (
    GIB,
    Estimate,
    LiveMemory,
    allocate,
    estimate,
    estimate_inference,
    inference_size,
    without_gpu,
)
from tests.commands import run_command
from tests.tiny_models import model_config
from util.config import Config, load_config
from util.device import upload

REM: dict[str, Any] = {"model": "rem", "eval_size": 512, "train_scales": (512,)}


def test_bytes_that_are_alive_and_the_most_there_were() -> None:
    weight = torch.zeros(25)
    with LiveMemory([weight]) as memory:
        assert memory.now == memory.peak == 100
        first = torch.zeros(50)
        view = first[:10]  # shares its memory
        assert memory.now == 300
        second = first + 1
        del first
        assert memory.now == memory.peak == 500
        del view, second
        assert memory.now == 100 and memory.peak == 500


def test_the_host_waits_for_copies_that_are_not_queued() -> None:
    cuda = torch.device("cuda")
    with without_gpu(), LiveMemory((), "cuda") as memory:
        a = upload(torch.zeros(4), cuda)
        assert not memory.waits and memory.kernels == 1 and memory.now == 16
        b = torch.ones(2, 2).to(cuda)
        assert memory.waits == [(2, 2)]
        (a + b.view(4)).cpu()
        assert memory.waits == [(2, 2), (4,)] and memory.kernels == 4
        with pytest.raises(Exception, match="_local_scalar_dense"):
            a.sum().item()


@pytest.mark.slow
def test_full_size_inference_stays_within_its_budget() -> None:
    """36 frames of 360×640 with 4 sentences, as in docs/performance.md."""
    found = estimate_inference(Config(num_frames=36), (368, 640))
    assert found.kernels is not None and found.kernels <= 3294
    assert found.peak <= 12.9 * GIB
    assert not found.waits


@pytest.mark.slow
def test_full_size_inference_with_wan_stays_within_its_budget(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """36 frames of 360×640 with 4 sentences, as in docs/generators.md."""
    monkeypatch.chdir(root)
    cfg = load_config(["--config", "configs/wan_ytvos.yaml", "--num_frames", "36"], "")
    assert estimate_inference(cfg, (368, 640), folder=stack_of(cfg)).peak <= 10.1 * GIB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "kernels", "peak"),
    [("vdit", {}, 8985, 15.5), ("hcd", {"batch_size": 2, "gradient_checkpointing": True}, 14481, 14.6)],
)
def test_a_full_size_step_stays_within_its_budget(
    name: str, options: dict[str, Any], kernels: int, peak: float
) -> None:
    found = estimate(Config(model=name, **options), (512, 640))
    assert found.kernels is not None and found.kernels <= kernels
    assert found.peak <= peak * GIB
    assert not found.waits


@pytest.mark.slow
def test_with_little_memory_the_vae_encodes_fewer_frames_at_once(
    small_stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = model_config(small_stack, num_frames=2, precision="bf16")
    together = estimate_inference(cfg, (64, 96), folder=small_stack).kernels
    monkeypatch.setattr(memory_estimate, "FREE", 0)
    one_by_one = estimate_inference(cfg, (64, 96), folder=small_stack).kernels
    assert together is not None and one_by_one is not None and together < one_by_one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "options", "call", "shape"),
    [
        ("full_size", {"image_tokens": False}, "encode_pixels", (3, 368, 640)),
        ("full_size_wan", {"time_mode": "frame"}, "encode_pixels", (3, 368, 640)),
        ("full_size", REM, "encode_pixels", (3, 512, 512)),
        ("full_size", REM, "decode_masks", (4, 64, 64)),
    ],
    ids=["vdit", "wan", "rem", "rem-decode"],
)
@torch.no_grad()
def test_a_full_size_vae_fills_the_memory_that_it_may_take(
    root: Path, folder: str, options: dict[str, Any], call: str, shape: tuple[int, ...]
) -> None:
    encoder: Any = empty_model(Config(**options), root / "configs" / folder).encoder
    encoder.vae.hold(torch.bfloat16)
    taken = []

    def start(*_: Any) -> None:
        memory.peak = memory.now
        taken.append(-memory.now)

    def end(*_: Any) -> None:
        taken[-1] += memory.peak

    with without_gpu():
        allocate(encoder, torch.device("cuda"))
        clip = torch.empty(1, 200, *shape, device="cuda")
        encoder.vae.register_forward_pre_hook(start)
        encoder.vae.register_forward_hook(end)
        with LiveMemory(list(encoder.parameters()), "cuda") as memory:
            getattr(encoder, call)(clip)
    assert 0.8 * VAE_BYTES < max(taken) <= VAE_BYTES


def _sum(found: Estimate, word: str) -> int:
    return sum(count for name, count in found.parts.items() if word in name)


@pytest.fixture(scope="module")
def training(small_stack: Path) -> Estimate:
    """Training in half precision."""
    return estimate(model_config(small_stack, precision="bf16"), (64, 96), folder=small_stack)


@pytest.mark.slow
def test_each_measure_takes_what_it_should(small_stack: Path, training: Estimate) -> None:
    def of(**options: object) -> Estimate:
        return estimate(model_config(small_stack, **options), (64, 96), folder=small_stack)

    wide, half, again = of(precision="fp32"), training, of(precision="bf16", gradient_checkpointing=True)
    assert _sum(wide, "unet, float32") == 2 * _sum(half, "unet, bfloat16") > 0
    assert _sum(wide, "trained") == _sum(half, "trained") == _sum(half, "AdamW") / 2
    assert _sum(wide, "by the UNet") > 1.7 * _sum(half, "by the UNet")
    assert _sum(half, "by the UNet") > 2 * _sum(again, "by the UNet") > 0
    assert _sum(half, "by the rest") == pytest.approx(_sum(again, "by the rest"), rel=0.01)
    assert wide.peak > half.peak > again.peak > sum(again.parts.values())


@pytest.mark.slow
def test_inference_takes_less_than_training(small_stack: Path, training: Estimate) -> None:
    def of(size: tuple[int, int] = (64, 96), **options: Any) -> Estimate:
        return estimate_inference(model_config(small_stack, **options), size, folder=small_stack)

    wide, half = of(precision="fp32"), of(precision="bf16")
    assert _sum(wide, "unet, float32") == 2 * _sum(half, "unet, bfloat16") > 0
    assert _sum(wide, "trained") == _sum(half, "trained") > 0
    assert training.peak > half.peak > sum(half.parts.values())
    assert of((128, 96), precision="bf16").peak > half.peak
    assert of(precision="bf16", expressions_per_batch=32).peak > half.peak  # a few take less than the VAE
    assert of(model="hcd").parts.keys() == half.parts.keys(), "adapters are merged"


def test_the_size_of_a_video_at_inference() -> None:
    assert inference_size(Config()) == (368, 640)
    assert inference_size(Config(eval_size=480)) == (480, 864)  # 480×853
    assert inference_size(Config(max_size=520)) == (304, 528)  # 292×520


def test_a_toy_configuration_has_its_own_stack(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.chdir(root)
    done = run_command(memory_estimate.main, "--config", "configs/vdit_toy.yaml", "--inference")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("vdit, fp32, inference: 3 frames of 64×96, 4 sentences\n")
    assert re.search(r"unet, float32 +0\.01 GiB", done.stdout), done.stdout  # the published one has 5 GiB


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--size", "100", "96"), "multiples of 32"),
        (("--size", "0", "96"), "multiples of 32"),
        (("--size", "100", "96", "--inference"), "multiples of 16"),
        (("--measure",), "GPU"),
        (("--x",), "--x"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: tuple[str, ...], named: str) -> None:
    if "--measure" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    result = run_command(memory_estimate.main, *arguments)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and named in result.stderr


@pytest.mark.slow
def test_a_fine_tuned_unet_is_counted_as_trained(small_stack: Path) -> None:
    sizes: dict[str, Any] = {"eval_size": 64, "train_scales": (64,), "num_frames": 2, "precision": "bf16"}

    def of(**options: Any) -> Estimate:
        return estimate(Config(model="rem", **{**sizes, **options}), (64, 64), folder=small_stack)

    whole, again, lora = of(), of(gradient_checkpointing=True), of(lora_rank=4)
    assert _sum(whole, "trained") > 100 * _sum(whole, "unet, float32") and _sum(lora, "unet, bfloat16") > 0
    assert _sum(whole, "by the UNet") > 1.5 * _sum(again, "by the UNet") > 0
    assert whole.peak > again.peak > lora.peak
    inference = estimate_inference(Config(model="rem", **sizes), (64, 64), folder=small_stack)
    assert _sum(inference, "bfloat16") > 0 and _sum(inference, "float32") == _sum(inference, "trained") == 0
    assert not any(found.waits for found in (whole, again, lora, inference))
