"""Discriminative backbones: the encoder's interface, every frame its features, frozen or trained, weights by file."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from models import build_model, frozen_sources
from models.backbones import BackboneEncoder, TimmFeatures, VideoSwin, build_backbone
from models.checkpoints import frozen_identity, save_checkpoint
from models.segmenter import Segmenter
from scripts.count_parameters import empty_model
from tests.tiny_models import TINY, differences, model_config, restore
from util.config import Config, config_dict
from util.errors import UserError

CHANNELS = TINY["pyramid_channels"]
SMALL = "timm:mobilenetv3_small_050"


def _frames(batch: int = 2, frames: int = 3, height: int = 48, width: int = 80) -> Tensor:
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def swin() -> VideoSwin:
    backbone = build_backbone("swin3d_t").eval()
    assert isinstance(backbone, VideoSwin)
    return backbone


@pytest.fixture(scope="module")
def model(tiny_stack: Path) -> Segmenter:
    torch.manual_seed(0)
    return build_model(model_config(tiny_stack, backbone=SMALL))


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 96), (2, 48, 80), (3, 16, 16)])
def test_video_swin_gives_every_frame_four_levels(swin: VideoSwin, frames: int, height: int, width: int) -> None:
    with torch.inference_mode():
        levels = swin(_frames(2, frames, height, width))
    assert [tuple(level.shape) for level in levels] == [
        (2 * frames, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip((96, 192, 384, 768), (4, 8, 16, 32), strict=True)
    ]
    assert swin.channels == (96, 192, 384, 768)
    assert all(level.isfinite().all() for level in levels)


def test_video_swin_is_the_trained_network_on_doubled_frames(swin: VideoSwin) -> None:
    stock = get_model("swin3d_t", weights=None).eval()
    torch.manual_seed(1)
    nn.init.normal_(stock.patch_embed.proj.weight, std=0.1)
    stages: list[Tensor] = []
    for i in (0, 2, 4, 6):
        stock.features[i].register_forward_hook(lambda module, args, output: stages.append(output))
    frames = _frames(1, 4)
    with torch.inference_mode():
        stock(frames.transpose(1, 2).repeat_interleave(2, dim=2))
        expected = [nn.functional.layer_norm(x, x.shape[-1:])[0].permute(0, 3, 1, 2) for x in stages]
        ours = VideoSwin(stock)(frames)
    for level, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-4)


def test_video_swin_sees_time(swin: VideoSwin) -> None:
    frames = _frames(1, 3)
    changed = frames.clone()
    changed[:, 2] += 1
    with torch.inference_mode():
        one, other = swin(frames), swin(changed)
    assert not torch.allclose(one[3][0], other[3][0], atol=1e-3), "frame 0 hears of frame 2"


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "hrnet_w18_small"])
def test_timm_models_give_four_levels_of_any_size(name: str) -> None:
    backbone = build_backbone(f"timm:{name}").eval()
    with torch.inference_mode():
        for height, width in ((48, 80), (64, 32)):
            levels = backbone(_frames(1, 2, height, width))
            assert [tuple(level.shape) for level in levels] == [
                (2, channels, -(-height // stride), -(-width // stride))
                for channels, stride in zip(backbone.channels, (4, 8, 16, 32), strict=True)
            ]


def test_timm_models_get_their_own_normalisation() -> None:
    seen = {}
    for name in ("resnet18", "tf_efficientnetv2_b0", "mobilevit_xxs"):
        backbone = build_backbone(f"timm:{name}")
        assert isinstance(backbone, TimmFeatures)
        white = torch.ones(3, 1, 1)
        mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        seen[name] = (white - mean) / std * backbone.scale + backbone.shift
        own = backbone.network.pretrained_cfg
        expected = (1 - torch.tensor(own["mean"])) / torch.tensor(own["std"])
        torch.testing.assert_close(seen[name].flatten(), expected)
    assert not torch.allclose(seen["resnet18"], seen["mobilevit_xxs"])


def test_the_network_runs_on_another_backbone(model: Segmenter) -> None:
    model.eval()
    padding = torch.zeros(2, 48, 80, dtype=torch.bool)
    with torch.inference_mode():
        output = model(_frames(), padding, ["a cat", "the red ball"])
        one = model(_frames(), padding, ["a cat", "the red ball"], annotated=torch.tensor([0, 2]))
    assert output.masks.shape == (2, 3, 48, 80) and one.masks.shape == (2, 1, 48, 80)
    assert isinstance(model.encoder, BackboneEncoder)
    assert not hasattr(model.encoder, "unet")


def test_a_frozen_backbone_stays_frozen_and_asleep(model: Segmenter) -> None:
    model.train()
    backbone = model.encoder.backbone
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    pixels = model.encoder.encode_pixels(_frames())
    sum(level.mean() for level in model.encoder(pixels, ["a", "b"])).backward()
    assert all(p.grad is not None for p in model.encoder.levels.parameters())
    assert all(p.grad is None for p in backbone.parameters())
    assert [(level.in_channels, level.out_channels) for level in model.encoder.levels] == list(
        zip(build_backbone(SMALL).channels, CHANNELS, strict=True)
    )


@pytest.mark.parametrize("name", [SMALL, "swin3d_t"])
def test_a_trained_backbone_learns_but_for_its_statistics(name: str) -> None:
    encoder = BackboneEncoder(build_backbone(name), CHANNELS, trained=True).train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    sum(level.square().mean() for level in encoder(encoder.encode_pixels(_frames()), ["a", "b"])).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    assert all(torch.equal(before[name], value) for name, value in encoder.named_buffers())
    assert encoder.backbone.training


def test_statistics_of_a_trained_backbone_are_stored(tiny_stack: Path, tmp_path: Path) -> None:
    """They are neither parameters nor frozen weights that the checkpoint knows by their hash."""
    cfg = model_config(tiny_stack, backbone=SMALL, train_backbone=True)
    model, other = build_model(cfg), build_model(cfg)
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.add_(1)
    save_checkpoint(
        tmp_path / "c.pth", model, cfg.model, config_dict(cfg), frozen=frozen_identity(model, frozen_sources(cfg))
    )
    restore(other, tmp_path / "c.pth", cfg)
    assert differences(other.state_dict(), model.state_dict()) == []


def test_random_weights_are_the_same_in_every_run_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        torch.manual_seed(1)
        one, drawn = build_backbone(SMALL), torch.rand(1)
    torch.manual_seed(2)
    other = build_backbone(SMALL)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn), "the caller's random numbers are as if nothing had been drawn"
    assert "random weights; --backbone_weights DEFAULT" in caplog.text


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["swin3d_t", SMALL])
def test_weights_of_a_file(tmp_path: Path, name: str, suffix: str) -> None:
    torch.manual_seed(3)
    whole = get_model(name, weights=None) if name == "swin3d_t" else timm.create_model(name.removeprefix("timm:"))
    weights, file = whole.state_dict(), tmp_path / f"weights{suffix}"
    save_file(weights, file) if suffix == ".safetensors" else torch.save({"model": weights}, file)
    ours, random = build_backbone(name, str(file)), build_backbone(name)
    known = {float(value.double().sum()) for value in weights.values() if value.is_floating_point()}
    kept = [float(p.detach().double().sum()) in known for p in ours.parameters() if p.dim() == 2 or p.dim() == 4]
    assert len(kept) > 10 and all(kept)
    assert any(not torch.equal(a, b) for a, b in zip(ours.parameters(), random.parameters(), strict=True))


@pytest.mark.parametrize("name", ["swin3d_t", SMALL])
@pytest.mark.parametrize("fault", ["another model's", "incomplete", "code", "bytes", "truncated", "absent"])
def test_wrong_weights_are_one_sentence(tmp_path: Path, name: str, fault: str) -> None:
    file = tmp_path / "weights.pth"
    whole = get_model(name, weights=None) if name == "swin3d_t" else timm.create_model(name.removeprefix("timm:"))
    weights = whole.state_dict()
    if fault == "another model's":
        weights = nn.Linear(2, 2).state_dict()
    if fault == "incomplete":
        del weights[sorted(key for key in weights if key.endswith(".weight"))[5]]
    if fault != "absent":
        torch.save({"code": print, "bytes": bytearray(9)}.get(fault, weights), file)
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"weights\.pth .*--backbone_weights") as error:
        build_backbone(name, str(file))
    assert "\n" not in str(error.value)


def test_no_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    for name in ("swin3d_t", "timm:resnet18"):
        with pytest.raises(UserError, match=f"cannot download the weights of {name}: .*no route to host.*local file"):
            build_backbone(name, "DEFAULT")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:resnet5", "timm has no model 'resnet5', which --backbone names; did you mean timm:resnet5"),
        ("timm:qqqqq", "timm.list_models"),
        ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224 has no features at strides 4, 8, 16, 32"),
        ("timm:levit_128", "choose a model such as timm:resnet50"),
    ],
)
def test_models_that_do_not_fit_are_one_sentence(name: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        build_backbone(name)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_parameters_are_counted_on_the_meta_device() -> None:
    frozen = sum(p.numel() for p in empty_model(Config(backbone="swin3d_t")).encoder.backbone.parameters())
    stock = sum(p.numel() for p in get_model("swin3d_t").parameters())
    assert frozen == stock - (768 * 400 + 400) - 2 * 768 - 96 * 3 * 16  # head, last norm, one slice of the embedding
