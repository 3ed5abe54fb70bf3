"""REM: the function, its training step, checkpoints and inference on the tiny stack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet3DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import demo
from datasets.clip import denormalise, sample_frames
from engine import training_step
from models import build_criterion, build_model, build_parameter_groups, frozen_sources, prepare_training
from models.checkpoints import (
    frozen_identity,
    load_weights,
    open_checkpoint,
    open_resumed,
    save_checkpoint,
    trained_state,
)
from models.diffusion.tiny import make_tiny_stack
from models.inference import InferenceOptions, VideoSegmenter, build_for_inference, segment
from models.pretrained import load_pretrained
from models.rem import LatentEncoder, Rem, is_trained
from scripts import convert_checkpoint
from tests.commands import run_command
from util.checkpoint import read_content, write_pickle
from util.config import Config, config_dict
from util.drawing import LastClip
from util.errors import UserError

UNET = "encoder.unet.module."
SIDE = 64


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_stack(tmp_path_factory.mktemp("rem") / "stack", layers_per_block=1)


@pytest.fixture(scope="module")
def cfg(stack: Path) -> Config:
    sizes: dict[str, Any] = {"eval_size": SIDE, "train_scales": (SIDE,), "num_frames": 2}
    return Config(model="rem", pretrained=str(stack), device="cpu", precision="fp32", lr=1e-3, **sizes)


def rem(cfg: Config) -> Rem:
    model = build_model(cfg)
    assert isinstance(model, Rem)
    return model


def clip(frames: int = 2, clips: int = 1) -> Tensor:
    return torch.randn(clips, frames, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


class Batch:
    """A clip whose object is the left half."""

    def __init__(self, frames: int = 2) -> None:
        self.frames, self.padding = clip(frames), torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        self.captions, self.annotated = ["the left half"], None
        masks = torch.zeros(frames, SIDE, SIDE, dtype=torch.bool)
        masks[..., : SIDE // 2] = True
        self.targets = [{"masks": masks, "boxes": torch.zeros(frames, 4), "valid": torch.ones(frames)}]


def step(cfg: Config, model: nn.Module, count: int = 1) -> list[float]:
    """Train; return the losses."""
    optimizer = torch.optim.AdamW(build_parameter_groups(cfg, model), lr=cfg.lr)
    losses = []
    for _ in range(count):
        torch.manual_seed(0)
        terms = training_step(model.train(), build_criterion(cfg), [Batch(cfg.num_frames)], optimizer, 0.0, None, 0.1)
        losses.append(float(terms["loss"]))
    return losses


@pytest.mark.parametrize("frames", [1, 3])
def test_it_computes_what_the_unet_of_diffusers_does(cfg: Config, stack: Path, frames: int) -> None:
    model = rem(replace(cfg, noise="none")).double()
    output = model(clip(frames).double(), torch.zeros(1, SIDE, SIDE), ["the red ball"])
    output.latents.square().mean().backward()

    unet = UNet3DConditionModel.from_pretrained(stack, subfolder="unet").eval().double()
    text = model.encoder.text_encoder.module
    ids = model.encoder.tokenizer(["the red ball"], padding="max_length", return_tensors="pt").input_ids
    pixels = model.encoder.encode_pixels(clip(frames).double())
    stock = unet(pixels.latents.transpose(1, 2), 0, text(ids).last_hidden_state).sample.transpose(1, 2)
    stock.square().mean().backward()
    assert torch.allclose(output.latents, stock, rtol=1e-6, atol=1e-9)
    expected = {name: p.grad.norm() for name, p in unet.named_parameters() if "time_embedding" not in name}
    found = {name: p.grad.norm() for name, p in model.encoder.unet.module.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-6, atol=1e-9) for name in expected)


def test_the_host_does_not_wait_for_the_gpu(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of fake tensors, from which a value cannot be read."""
    waits: list[torch.Size] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **kwargs or {})
            if function is torch.ops.aten._to_copy.default and args[0].device != result.device:
                waits.append(result.shape)
            return result

    encoder = rem(cfg).encoder
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for module in encoder.modules():
            for own in (module._parameters, module._buffers):
                own.update(
                    {name: torch.empty_like(value, device="cuda") for name, value in own.items() if value is not None}
                )
        text = torch.empty(1, 77, encoder.unet.module.config.cross_attention_dim, device="cuda")
        monkeypatch.setattr("models.rem.text_states", lambda *of: text)
        monkeypatch.setattr("models.diffusion.encoder.free_memory", lambda device: 1 << 30)
        with Watch():
            latents = encoder(encoder.encode_pixels(torch.empty(1, 2, 3, SIDE, SIDE, device="cuda")), ["a"])
            masks = encoder.decode_masks(latents)
    assert masks.shape == (1, 2, SIDE, SIDE) and masks.device.type == "cuda" and not waits


def test_noise_depends_on_the_seed_only_and_can_be_left_out(cfg: Config) -> None:
    model, options = rem(cfg).eval(), InferenceOptions.from_config(cfg)
    sentences = {"0": "a ball", "1": "the dog"}

    def masks(options: InferenceOptions) -> np.ndarray:
        found = dict(segment(model, clip()[0], (20, 30), sentences, options, soft=True))
        return np.stack([prediction.probabilities for prediction in found.values()])

    first = masks(options)
    torch.manual_seed(5)
    assert np.array_equal(first, masks(options))
    assert not np.array_equal(first, masks(replace(options, seed=1)))
    alone = masks(replace(options, expressions_per_batch=1))
    assert np.abs(first - alone).max() < 1e-3
    quiet = rem(replace(cfg, noise="none")).encoder.encode_pixels(clip()).latents
    assert torch.equal(
        quiet, model.encoder.encode_images(2 * (clip() * model.encoder.pixel_std + model.encoder.pixel_mean) - 1)
    )


def test_groups_freezing_and_the_clamp(cfg: Config) -> None:
    model = rem(cfg)
    decayed, free = build_parameter_groups(replace(cfg, weight_decay=1e-5), model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-5, 0.0)
    assert all(".bias" in names[id(p)] or "norm" in names[id(p)] for p in free["params"])
    images = {name for name, p in rem(replace(cfg, freeze_layers=("temporal",))).named_parameters() if p.requires_grad}
    clips = {name for name, p in model.named_parameters() if p.requires_grad}
    assert clips - images == {name for name in clips if "temp" in name} != set()
    small = {name for name, p in rem(replace(cfg, freeze_layers=("coarsest",))).named_parameters() if p.requires_grad}
    blocks = {".".join(name.removeprefix(UNET).split(".")[:2]) for name in clips - small}
    assert {block for block in blocks if not block.startswith("mid_block")} == {"down_blocks.3", "up_blocks.0"}
    assert not any("time_embedding" in name or not name.startswith(UNET) for name in clips)
    step(cfg, model)
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) <= 0.1 + 1e-6


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}, {"num_frames": 1, "freeze_layers": ("temporal",)}])
def test_the_loss_falls(cfg: Config, options: dict[str, Any]) -> None:
    cfg = replace(cfg, lr=1e-3 if not options.get("lora_rank") else 1e-2, **options)
    losses = step(cfg, rem(cfg), 5)
    assert losses[-1] < 0.9 * losses[0]


def test_gradient_checkpointing_and_bf16(cfg: Config) -> None:
    gradients = []
    for options in ({}, {"gradient_checkpointing": True}):
        model = rem(replace(cfg, **options))
        step(cfg, model)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-5) for name in gradients[0])
    half = rem(cfg)
    prepare_training(half, "bf16", torch.device("cpu"))
    assert np.isfinite(step(cfg, half)).all()
    kinds = {name: {p.dtype for p in part.parameters()} for name, part in half.encoder.named_children()}
    assert kinds["unet"] == {torch.float32} and kinds["vae"] == kinds["text_encoder"] == {torch.bfloat16}


def save(path: Path, model: nn.Module, cfg: Config, **state: Any) -> Path:
    """Save as a run does: with the identity of the pretrained parts."""
    save_checkpoint(path, model, "rem", config_dict(cfg), frozen_identity(model, frozen_sources(cfg)), **state)
    return path


def test_checkpoints_hold_what_differs_from_the_stack(cfg: Config, tmp_path: Path) -> None:
    images = replace(cfg, num_frames=1, freeze_layers=("temporal",))
    model = rem(images)
    identity = frozen_identity(model, frozen_sources(images))
    step(images, model)
    path = tmp_path / "checkpoint.pth"
    save_checkpoint(path, model, "rem", config_dict(images), identity)
    assert read_content(path)["weights"].keys() == {
        f"{UNET}{name}" for name, _ in model.encoder.unet.module.named_parameters() if is_trained(name, ["temporal"])
    }
    clips = rem(cfg)  # the next stage begins with it
    found, notes = load_weights(clips, open_checkpoint(str(path), "--resume"), frozen_sources(cfg), new_run=True)
    assert found["unet"]["sha256"] == identity["unet"]["sha256"] and len(notes) == 1
    before, after = model.state_dict(), clips.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert len(trained_state(clips)) > len(trained_state(model))


def test_a_picture_of_a_training_clip(cfg: Config) -> None:
    model, batch = rem(cfg).train(), Batch()
    last = LastClip(model, denormalise)
    target = build_criterion(cfg).prepare(batch.targets, (SIDE, SIDE))
    output = model(batch.frames, batch.padding, batch.captions, build_criterion(cfg).select(target), batch.annotated)
    assert "masks" not in vars(output)  # nothing is drawn until it is asked for
    picture = last.draw()
    assert picture is not None and picture.shape[1] > 2 * SIDE


def test_another_stack_is_refused(cfg: Config, tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoint.pth", rem(cfg), cfg)
    other = make_tiny_stack(tmp_path / "stack", seed=1, layers_per_block=1)
    moved = replace(cfg, pretrained=str(other))
    with pytest.raises(UserError, match="trained with a different UNet"):
        load_weights(rem(moved), open_checkpoint(str(path), "--resume"), frozen_sources(moved))


def test_a_truncated_checkpoint_is_refused(cfg: Config, tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoint.pth", rem(cfg), cfg)
    content = read_content(path)
    del content["weights"][f"{UNET}conv_out.weight"]
    write_pickle(path, content)
    with pytest.raises(UserError, match=r"lacks encoder\.unet\.module\.conv_out\.weight"):
        load_weights(rem(cfg), open_checkpoint(str(path), "--resume"), frozen_sources(cfg))


def test_a_run_resumes_with_both_groups(cfg: Config, tmp_path: Path) -> None:
    model = rem(cfg)
    optimizer = torch.optim.AdamW(build_parameter_groups(cfg, model), lr=cfg.lr)
    batch = [Batch()]
    training_step(model, build_criterion(cfg), batch, optimizer, 0.0)
    state = {"optimizer": optimizer.state_dict(), "step": 1, "steps_per_epoch": 2}
    path = save(tmp_path / "checkpoint.pth", model, cfg, **state)
    resumed = open_resumed(str(path), tmp_path, "rem")
    assert resumed is not None
    again = torch.optim.AdamW(build_parameter_groups(cfg, model), lr=cfg.lr)
    resumed.load_optimizer(again)
    for mine, theirs in zip(again.param_groups, optimizer.param_groups, strict=True):
        assert mine["weight_decay"] == theirs["weight_decay"] and len(mine["params"]) == len(theirs["params"])
        for p in mine["params"]:
            assert torch.equal(again.state[p]["exp_avg"], optimizer.state[p]["exp_avg"])


@pytest.fixture(scope="module")
def released(cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the authors' layout, of a UNet that differs from the pretrained one."""
    unet = UNet3DConditionModel.from_pretrained(cfg.pretrained, subfolder="unet")
    with torch.no_grad():
        for p in unet.parameters():
            p += 0.01
    path = tmp_path_factory.mktemp("released") / "rem.pth"
    write_pickle(path, {"unet": unet.state_dict(), "optimizer": {"state": {}}, "epoch": 3})
    return path


def test_the_released_layout_both_ways(cfg: Config, released: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(released), "--resume")
    assert (checkpoint.model, checkpoint.options["eval_size"]) == ("rem", 512)
    file, back = tmp_path / "rem.safetensors", tmp_path / "back.pth"
    convert_checkpoint.main([str(released), str(file), "--stack", cfg.pretrained])
    converted = open_checkpoint(str(file), "--resume")
    assert converted.model == "rem" and not converted.authors_layout
    convert_checkpoint.main([str(file), str(back), "--to", "authors", "--pretrained", cfg.pretrained])
    before, after = read_content(released), read_content(back)
    assert before["unet"].keys() == after["unet"].keys() and after["epoch"] == 3
    assert all(torch.equal(before["unet"][name], after["unet"][name]) for name in before["unet"])


def test_wrapped_names_and_adapters_alone(released: Path, tmp_path: Path) -> None:
    unet = read_content(released)["unet"]
    write_pickle(tmp_path / "wrapped.pth", {"unet": {f"module.{name}": value for name, value in unet.items()}})
    wrapped, plain = (open_checkpoint(str(path), "--resume") for path in (tmp_path / "wrapped.pth", released))
    assert wrapped.weights.keys() == plain.weights.keys()
    write_pickle(tmp_path / "lora.pth", {"unet": {"mid_block.attentions.0.to_q.lora_A.weight": torch.zeros(4, 8)}})
    with pytest.raises(UserError, match=r"lora\.pth holds LoRA adapters alone"):
        open_checkpoint(str(tmp_path / "lora.pth"), "--resume")


@pytest.mark.slow
def test_training_goes_on_from_released_weights(cfg: Config, released: Path, tmp_path: Path) -> None:
    for options in ({}, {"lora_rank": 4}):
        started = replace(cfg, **options)
        model = rem(started)
        load_weights(model, open_checkpoint(str(released), "--pretrained_weights"), frozen_sources(cfg), new_run=True)
        step(started, model)
        path = save(tmp_path / f"run{len(options)}" / "checkpoint.pth", model, started)
        again, notes = build_for_inference(started, open_checkpoint(str(path), "--resume"), torch.device("cpu"))
        assert not notes
        model.eval()
        found = []
        for one in (model, again):
            torch.manual_seed(0)
            found.append(one(clip(), torch.zeros(1), ["a dog"]).latents)
        assert torch.allclose(*found, atol=2e-3)


def decode_nothing(encoder: LatentEncoder, latents: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*latents.shape[:2], SIDE, SIDE)


def test_library_without_scores_and_boxes(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "checkpoint.pth", rem(cfg), cfg)
    video = np.random.default_rng(0).integers(0, 255, (5, 24, 40, 3), dtype=np.uint8)
    pretrained = load_pretrained(path, device="cpu", pretrained=cfg.pretrained)
    result = pretrained.segment(video, ["the ball", "the dog"], window=3, threshold=0.2)
    for sentence in result.sentences:
        assert sentence.score is None and sentence.scores is None and sentence.boxes is None
        assert sentence.masks.shape == (5, 24, 40) and sentence.found == sentence.masks.any()
    monkeypatch.setattr(LatentEncoder, "decode_masks", decode_nothing)
    nothing = pretrained.segment(video, "the ball", window=3)["the ball"]
    assert not nothing.found and not nothing.masks.any()


def test_demo_without_scores_and_boxes(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentEncoder, "decode_masks", decode_nothing)
    path = save(tmp_path / "checkpoint.pth", rem(cfg), cfg)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = ("--resume", path, "--pretrained", cfg.pretrained, "--out", tmp_path / "out", "--device", "cpu")
    done = run_command(demo.main, tmp_path / "a.png", "the ball", *words)
    assert done.returncode == 0, done.stderr
    assert "1 “the ball”: not found, its masks are empty" in done.stdout
    content = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert content["categories"][0].keys() == {"id", "name", "folder", "found"}
    assert not content["annotations"][0].keys() & {"score", "predicted_box"} and content["annotations"][0]["area"] == 0


def test_inference_in_bf16(cfg: Config, tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoint.pth", rem(cfg), cfg)
    masks = []
    for precision in ("fp32", "bf16"):
        own = replace(cfg, precision=precision, noise="none")
        model, _ = build_for_inference(own, open_checkpoint(str(path), "--resume"), torch.device("cpu"))
        kinds = {p.dtype for p in model.encoder.parameters()}
        assert kinds == {torch.bfloat16 if precision == "bf16" else torch.float32}
        with torch.inference_mode():
            masks.append(model(clip(), torch.zeros(1), ["a dog"]).masks)
    assert float((masks[0] - masks[1]).abs().mean()) < 0.1 * float(masks[0].std())


def test_windows_blend_masks(cfg: Config) -> None:
    video = np.random.default_rng(0).integers(0, 255, (5, 24, 40, 3), dtype=np.uint8)
    frames = list(VideoSegmenter(rem(cfg).eval(), InferenceOptions.from_config(cfg), ["a"], 3).run(video))
    assert len(frames) == 5 and all(frame.scores is None and frame.boxes is None for frame in frames)
    assert all(frame.probabilities.min() >= 0 and frame.probabilities.max() <= 1 for frame in frames)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "swin3d_t"}, "no effect with"),
        ({"score_threshold": 0.5}, "score_threshold has no effect with model rem"),
        ({"noise": "predicted"}, "gaussian or none"),
        ({"eval_size": 360}, "square frames"),
        ({"train_scales": (64, 96)}, "square frames"),
        ({"model": "vdit", "freeze_layers": ("temporal",)}, "freeze_layers has no effect with model vdit"),
    ],
)
def test_options_without_meaning_are_refused(cfg: Config, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(cfg, **options)


def test_frames_at_random() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_frames(50, 10, 8, rng, 0.0, near=False) for _ in range(200)]
    assert all(frames == sorted(set(frames)) and len(frames) == 8 for frames in drawn)
    assert 0.1 < np.mean([10 in frames for frames in drawn]) < 0.25  # the start frame is one of fifty
