"""The network on the tiny stack: contracts that the published numbers alone do not show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models import build_model
from models.diffusion.encoder import TemporalStem, VideoEncoder
from models.diffusion.stack import load_stack
from models.mask_heads import DynamicMaskHead, QueryDotHead, shuffle_mask
from models.segmenter import LayerPrediction, Segmenter, all_queries, best_query
from tests.tiny_models import backward, model_config, random_clips
from util.config import Config
from util.errors import UserError


@pytest.fixture(scope="module")
def cfg(tiny_stack: Path) -> Config:
    return model_config(tiny_stack)


@pytest.fixture(scope="module")
def model(cfg: Config) -> Segmenter:
    torch.manual_seed(0)
    return build_model(cfg)


def test_evaluation_gives_one_mask_per_frame(model: Segmenter) -> None:
    model.eval()
    frames, padding, captions = random_clips(2, 3)
    with torch.inference_mode():
        output = model(frames, padding, captions)
    assert len(output.layers) == 1
    assert output.logits.shape == (2, 3, 5, 1)
    assert output.boxes.shape == (2, 3, 5, 4)
    assert output.chosen is not None and output.chosen.shape == (2,)
    assert output.masks is not None and output.masks.shape == (2, 3, 64, 96)
    assert (output.boxes >= 0).all() and (output.boxes <= 1).all()


def test_all_queries_holds_the_best_one(model: Segmenter) -> None:
    model.eval()
    frames, padding, captions = random_clips(2, 2)
    with torch.inference_mode():
        best, every = model(frames, padding, captions), model(frames, padding, captions, all_queries)
    assert every.chosen is None
    picked = every.masks[torch.arange(2), :, best.chosen]
    torch.testing.assert_close(picked, best.masks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (112, 16), (16, 16)])
def test_sizes_that_are_multiples_of_16(model: Segmenter, height: int, width: int) -> None:
    model.eval()
    frames, padding, captions = random_clips(1, 2, height, width)
    with torch.inference_mode():
        assert model(frames, padding, captions).masks.shape == (1, 2, height, width)


def test_a_clip_does_not_depend_on_its_neighbours(model: Segmenter) -> None:
    model.eval()
    frames, padding, captions = random_clips(2, 3)
    captions = ["the square", "the circle"]  # of equal length, so that the words are padded alike
    with torch.inference_mode():
        together, alone = model(frames, padding, captions), model(frames[1:], padding[1:], captions[1:])
    torch.testing.assert_close(together.masks[1:], alone.masks, rtol=1e-3, atol=1e-3)


def test_frozen_parts_stay_frozen_and_asleep(model: Segmenter) -> None:
    model.train()
    encoder = model.encoder
    frozen = [encoder.unet, encoder.vae, encoder.text_encoder, encoder.image_encoder, model.sentence_encoder.backbone]
    for part in frozen:
        assert not any(module.training for module in part.modules())
        assert not any(p.requires_grad for p in part.parameters())
    assert model.transformer.training


def test_gradients_reach_every_trained_part_through_the_frozen_unet(model: Segmenter, cfg: Config) -> None:
    output, terms = backward(model, cfg, 2, 2)
    assert len(output.layers) == cfg.dec_layers
    assert len(terms) == 7 * cfg.dec_layers
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    for part in (model.encoder.noise, model.encoder.fusion, model.encoder.image_projection):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters()) > 0
    assert all(p.grad is None for p in model.encoder.unet.parameters())


def test_the_last_up_block_is_not_held(model: Segmenter) -> None:
    names = {name for name, _ in model.encoder.unet.named_parameters()}
    assert not any(".up_blocks.3." in f".{name}" or "conv_out" in name for name in names)
    assert any("up_blocks.2" in name for name in names)


def test_posterior_is_sampled_in_training_only(model: Segmenter) -> None:
    frames, *_ = random_clips(1, 2)
    encoder = model.encoder
    model.eval()
    torch.testing.assert_close(encoder.encode_pixels(frames).latents, encoder.encode_pixels(frames).latents)
    model.train()
    assert not torch.equal(encoder.encode_pixels(frames).latents, encoder.encode_pixels(frames).latents)


def test_noise_is_standardised_per_clip(model: Segmenter) -> None:
    generator = torch.Generator().manual_seed(3)
    spread = torch.tensor([1.0, 5.0]).view(2, 1, 1, 1, 1)
    noise = model.encoder.noise(torch.randn(2, 3, 4, 8, 12, generator=generator) * spread)
    torch.testing.assert_close(noise.flatten(1).mean(1), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(noise.flatten(1).std(1), torch.ones(2), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("noise", "image_tokens"), [("none", True), ("gaussian", False)])
def test_ablations_build_and_run(tiny_stack: Path, noise: str, image_tokens: bool) -> None:
    stack = load_stack(str(tiny_stack))
    encoder = VideoEncoder(stack, TemporalStem(32), (32, 64, 128, 256), noise, image_tokens).eval()
    frames, _, captions = random_clips(1, 2)
    with torch.inference_mode():
        pixels = encoder.encode_pixels(frames)
        pyramid = encoder(pixels, captions)
    assert (pixels.image_tokens is None) != image_tokens
    assert [tuple(level.shape) for level in pyramid] == [
        (2, 32, 16, 24),
        (2, 64, 8, 12),
        (2, 128, 4, 6),
        (2, 256, 2, 3),
    ]


def test_dynamic_head_is_a_convolution_per_query() -> None:
    torch.manual_seed(0)
    head = DynamicMaskHead(dim=8, channels=16)
    features, states, centres = torch.randn(2, 8, 3, 5), torch.randn(2, 4, 8), torch.rand(2, 4, 2) * 40
    ours = head(features, states, centres)
    parameters = head.controller(states)
    for n in range(2):
        for q in range(4):
            weight1, weight2, bias1, bias2 = parameters[n, q].split(head.sizes)
            y, x = torch.meshgrid(torch.arange(3) * 8.0 + 4, torch.arange(5) * 8.0 + 4, indexing="ij")
            relative = torch.stack([centres[n, q, 0] - x, centres[n, q, 1] - y])
            hidden = F.conv2d(torch.cat([features[n], relative])[None], weight1.view(16, 10, 1, 1), bias1).relu()
            expected = F.conv2d(hidden, weight2.view(16, 16, 1, 1), bias2)[0]
            torch.testing.assert_close(ours[n, q], expected, rtol=1e-4, atol=1e-4)


def test_query_dot_head_mixes_then_dots() -> None:
    torch.manual_seed(0)
    head = QueryDotHead()
    memory = [torch.randn(2, 8, 6, 10), torch.randn(2, 8, 3, 5), torch.randn(2, 8, 2, 3)]
    states = torch.randn(2, 4, 8)
    resized = [F.interpolate(m, size=(6, 10), mode="bicubic", align_corners=False) for m in memory]
    mixed = head.mix(torch.stack(resized, dim=-1))  # [N, C, h, w, 16]
    expected = torch.einsum("nqc,nchwk->nqkhw", states, mixed)
    torch.testing.assert_close(head(memory, states), expected, rtol=1e-4, atol=1e-4)


def test_shuffled_mask_is_four_times_as_large() -> None:
    mask = torch.zeros(1, 16, 2, 3)
    mask[0, 6, 1, 2] = 1  # channel 6 = row 1, column 2 of a 4×4 cell
    shuffled = shuffle_mask(mask)
    assert shuffled.shape == (1, 8, 12)
    assert shuffled[0].nonzero().tolist() == [[5, 10]]


def test_best_query_has_the_highest_mean_probability() -> None:
    logits = torch.tensor([[[-9.0, 1.0, 0.9], [2.0, 1.0, 0.9]]])[..., None]  # B, T, Q, 1
    empty = torch.zeros(0)
    assert best_query(LayerPrediction(logits, empty, empty)).tolist() == [1]


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--pretrained"):
        load_stack(str(tmp_path))
