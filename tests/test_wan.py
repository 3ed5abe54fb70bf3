"""Wan 2.1 behind the pyramid, on a tiny random Wan in diffusers' layout; the reference is diffusers' own forward."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models import build_model, prepare_inference, prepare_sentences
from models.diffusion import wan
from models.diffusion.generators import GENERATORS, find_generator
from models.diffusion.wan import TEXT_TOKENS, WanEncoder, cleaned, load_stack, tap_blocks
from models.inference import InferenceOptions, VideoSegmenter, sentence_outputs
from models.lora import LoraLayer, merge_lora
from models.segmenter import Segmenter
from tests.tiny_models import backward, model_config, random_clips
from tests.tiny_wan import make_tiny_wan
from util.errors import UserError
from util.preprocessing import IMAGENET_MEAN, IMAGENET_STD

SENTENCES = ["the red circle moving left", "a dog &amp; two cats", "the small blue square"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "text"


@pytest.fixture(scope="module")
def pipeline(tiny_wan: Path) -> Any:
    return WanPipeline.from_pretrained(tiny_wan)


def build(tiny_wan: Path, cache: Path, **options: Any) -> Segmenter:
    torch.manual_seed(0)
    return build_model(model_config(tiny_wan, text_cache=str(cache), **options)).eval()


def reference_taps(pipeline: Any, frames: Tensor, captions: list[str], time_mode: str) -> list[Tensor]:
    """Features behind the tapped blocks, from hooks on diffusers' transformer: ``[B, t·h·w, C]``."""
    text, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=512)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    video = (2 * (frames * std + mean) - 1).transpose(1, 2)
    vae = pipeline.vae
    if time_mode == "clip":
        video = torch.cat([video, video[:, :, -1:].repeat(1, 1, (1 - video.shape[2]) % 4, 1, 1)], dim=2)
        latents = vae.encode(video).latent_dist.mode()
    else:
        latents = torch.cat([vae.encode(video[:, :, i : i + 1]).latent_dist.mode() for i in range(video.shape[2])], 2)
    shift, scale = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    found: list[Tensor] = []
    numbers = tap_blocks(len(pipeline.transformer.blocks))
    hooks = [
        pipeline.transformer.blocks[number - 1].register_forward_hook(lambda module, inputs, out: found.append(out))
        for number in numbers
    ]
    pipeline.transformer((latents - shift) / scale, torch.zeros(len(captions)).long(), text)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("time_mode", ["clip", "frame"])
@pytest.mark.parametrize("frames", [1, 5, 6, 36])
@torch.no_grad()
def test_taps_equal_those_of_diffusers(tiny_wan: Path, cache: Path, pipeline: Any, frames: int, time_mode: str) -> None:
    encoder = build(tiny_wan, cache, time_mode=time_mode).encoder
    assert isinstance(encoder, WanEncoder)
    clips, _, _ = random_clips(2, frames, 32, 48)
    captions = SENTENCES[:2]
    expected = reference_taps(pipeline, clips, captions, time_mode)
    taps: list[Tensor] = []
    encoder.transformer.register_forward_hook(lambda module, inputs, out: taps.extend(out))
    pyramid = encoder(encoder.encode_pixels(clips), captions)
    assert len(taps) == len(expected) == 4
    for tap, reference in zip(taps, expected, strict=True):
        assert tap.shape[2] == (1 + -(-(frames - 1) // 4) if time_mode == "clip" else frames)
        torch.testing.assert_close(tap.flatten(2).mT, reference, rtol=0, atol=1e-5)
    sizes = [
        (2 * frames, channels, -(-32 // s), -(-48 // s))
        for channels, s in zip((32, 64, 128, 256), (4, 8, 16, 32), strict=True)
    ]
    assert [tuple(level.shape) for level in pyramid] == sizes


def test_the_text_is_that_of_the_pipeline(tiny_wan: Path, cache: Path, pipeline: Any) -> None:
    encoder = build(tiny_wan, cache).encoder
    for text in (*SENTENCES, "", "  two\n spaces &lt;b&gt; "):
        assert cleaned(text) == prompt_clean(text)
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(SENTENCES, do_classifier_free_guidance=False, max_sequence_length=512)
    own = encoder.encode_text(SENTENCES)  # type: ignore[operator]
    assert own.shape == (3, TEXT_TOKENS, 32)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    assert not own[:, 20:].any()


def test_nothing_behind_the_last_tap_is_loaded(tiny_wan: Path, cache: Path) -> None:
    assert tap_blocks(30) == (6, 12, 18, 24) and tap_blocks(4) == (1, 2, 3, 4)
    transformer = load_stack(str(tiny_wan), text_cache=str(cache)).transformer
    names = {name.split(".")[0] for name, _ in transformer.named_parameters()}
    assert len(transformer.blocks) == 5 < transformer.config.num_layers
    assert names == {"patch_embedding", "condition_embedder", "blocks"}


def test_each_frame_has_its_own_phase(tiny_wan: Path, cache: Path) -> None:
    """Frame 0 is its latent frame's last phase; frames 1 to 4 are the four phases of the second latent frame."""
    level = build(tiny_wan, cache).encoder.get_submodule("levels.1")
    pair = torch.randn(1, 128, 3, 2, 3)
    x = F.conv2d(pair[0].transpose(0, 1), level.phases.weight, level.phases.bias).unflatten(1, (4, -1))  # type: ignore[union-attr, arg-type]
    expected = torch.stack([x[0, 3], x[1, 0], x[1, 1], x[1, 2], x[1, 3], x[2, 0]])
    torch.testing.assert_close(level(pair, 6), level.scale(expected))  # type: ignore[operator]


def test_a_clip_beyond_the_positions_is_one_sentence(tiny_wan: Path, cache: Path) -> None:
    encoder = build(tiny_wan, cache).encoder
    encoder.positions = 2  # type: ignore[assignment]
    encoder.encode_pixels(random_clips(1, 5)[0])
    with pytest.raises(UserError, match="6 frames has 3 latent frames, and the transformer has positions for 2"):
        encoder.encode_pixels(random_clips(1, 6)[0])


@torch.no_grad()
def test_sentences_that_share_pixels_equal_those_alone(tiny_wan: Path, cache: Path) -> None:
    model = build(tiny_wan, cache)
    clip, _, _ = random_clips(1, 6)
    together, alone = (
        [output for _, output in sentence_outputs(model, clip[0], SENTENCES, InferenceOptions(expressions_per_batch=n))]
        for n in (3, 1)
    )
    for index, output in enumerate(alone):
        torch.testing.assert_close(together[0].masks[index], output.masks[0], rtol=0, atol=1e-4)  # type: ignore[index]
    assert not torch.allclose(alone[0].masks[0], alone[2].masks[0], atol=1e-3)  # type: ignore[index]


def test_windows_cover_a_video(tiny_wan: Path, cache: Path) -> None:
    model = build(tiny_wan, cache)
    frames = torch.randint(
        0, 255, (12, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).numpy()
    segmenter = VideoSegmenter(model, InferenceOptions(eval_size=32), SENTENCES[:2], window=6, overlap=2)
    found = list(segmenter.run(frames))
    assert len(found) == 12 and all(frame.probabilities.shape == (2, 32, 48) for frame in found)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "time_mode"), [("hcd", "clip"), ("vdit", "frame")])
def test_two_clips_are_learnt_by_heart(tiny_wan: Path, cache: Path, model: str, time_mode: str) -> None:
    torch.manual_seed(0)
    cfg = model_config(tiny_wan, text_cache=str(cache), model=model, time_mode=time_mode)
    network = build_model(cfg)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(20):
        _, terms = backward(network, cfg, 2, 2)
        losses.append(sum(term.item() for name, term in terms.items() if name.startswith("loss")))
        optimizer.step()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert losses[-1] < 0.6 * losses[0]


def test_adapters_are_in_both_attentions(tiny_wan: Path, cache: Path) -> None:
    model = build(tiny_wan, cache, model="hcd")
    adapted = {name for name, layer in model.encoder.denoiser.module.named_modules() if isinstance(layer, LoraLayer)}
    assert adapted == {
        f"blocks.{i}.{part}.{to}" for i in range(5) for part in ("attn1", "attn2") for to in ("to_q", "to_v")
    }
    merge_lora(model)
    assert not any(".lora_" in name for name in model.state_dict())


@torch.no_grad()
def test_half_precision_keeps_positions_and_scales_wide(tiny_wan: Path, cache: Path) -> None:
    clip, padding, captions = random_clips(1, 5)
    wide = build(tiny_wan, cache)(clip, padding, captions)
    model = prepare_inference(build(tiny_wan, cache), "bf16", torch.device("cpu"))
    transformer = model.encoder.denoiser.module
    assert transformer.rope.freqs_cos.dtype == torch.float32  # type: ignore[union-attr]
    kinds = {name.split(".")[-1]: p.dtype for name, p in transformer.blocks[0].named_parameters()}  # type: ignore[index]
    assert kinds["scale_shift_table"] == torch.float32 and kinds["weight"] == torch.bfloat16
    narrow = model(clip, padding, captions)
    scale = wide.masks.std()
    assert (wide.masks - narrow.masks).abs().mean() < 0.05 * scale


# Options and folders.


@pytest.mark.parametrize(
    "options",
    [
        {"image_tokens": True},
        {"noise": "predicted"},
        {"noise": "gaussian"},
        {"stride4": "vae"},
        {"posterior": "sample"},
        {"image_encoder": "some/clip"},
        {"lora_targets": ("to_q", "ff.net.2")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_without_meaning_are_refused_before_loading(
    tiny_wan: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(wan, "load_stack", lambda *_: pytest.fail("it loads"))
    with pytest.raises(UserError, match=f"{next(iter(options))} .* has no meaning for Wan") as error:
        build_model(model_config(tiny_wan, **options))
    assert "\n" not in str(error.value)


def test_time_mode_has_no_meaning_for_a_unet(tiny_stack: Path) -> None:
    with pytest.raises(UserError, match="time_mode frame has no meaning for a UNet"):
        build_model(model_config(tiny_stack, time_mode="frame"))


def test_the_folder_says_which_generator_it_is(tiny_wan: Path, tiny_stack: Path, tmp_path: Path) -> None:
    assert find_generator(str(tiny_wan)).name == "Wan 2.1"
    assert find_generator(str(tiny_stack)).name == find_generator(str(tmp_path)).name == "ModelScope"
    assert [find_generator(str(row.sizes)) for row in GENERATORS] == list(GENERATORS)
    config = tmp_path / "transformer" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"_class_name": "LTXVideoTransformer3DModel"}))
    with pytest.raises(
        UserError, match="holds a LTXVideoTransformer3DModel, which is not supported; supported are UNet3D"
    ):
        build_model(model_config(tmp_path))


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("transformer", {"in_channels": 36}, "holds patch_embedding.weight of shape .*different models"),
        ("transformer", {"num_layers": 100_000}, "num_layers 1e\\+05, which is above"),
        ("vae", {"z_dim": 48}, "holds encoder.conv_out.bias of shape .*different models"),
        ("text_encoder", {"d_model": 64}, "not a text-to-video model of Wan 2.1"),
        ("text_encoder", {"vocab_size": 300}, "tokenizer .* has 408 tokens, and its encoder 300"),
    ],
)
def test_other_kinds_of_parts_are_refused(
    tiny_wan: Path, cache: Path, tmp_path: Path, part: str, changes: dict[str, int], sentence: str
) -> None:
    folder = shutil.copytree(tiny_wan, tmp_path / "wan")
    config = folder / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(UserError, match=sentence) as error:
        load_stack(str(folder), text_cache=str(cache))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "model", "changes"),
    [
        ("transformer", WanTransformer3DModel, {"in_channels": 36}),  # image to video
        ("vae", AutoencoderKLWan, {"z_dim": 48}),  # Wan 2.2
    ],
)
def test_relatives_of_wan_are_refused(
    tiny_wan: Path, cache: Path, tmp_path: Path, part: str, model: Any, changes: dict[str, int]
) -> None:
    """Their weights agree with their own configuration."""
    folder = shutil.copytree(tiny_wan, tmp_path / "wan")
    model.from_config({**model.load_config(folder / part), **changes}).save_pretrained(folder / part)
    with pytest.raises(UserError, match=r"not a text-to-video model of Wan 2\.1, .*--pretrained"):
        load_stack(str(folder), text_cache=str(cache))


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "vae"])
def test_a_missing_part_is_named(tiny_wan: Path, cache: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(tiny_wan, tmp_path / "wan", ignore=lambda *of: [part])
    with pytest.raises(UserError, match=f"has no folder {part}; .*--pretrained") as error:
        load_stack(str(folder), text_cache=str(cache))
    assert "\n" not in str(error.value)


def test_zeroscope_is_accepted(tiny_stack: Path, tmp_path: Path) -> None:
    """The class of ModelScope's UNet with another sample size."""
    folder = shutil.copytree(tiny_stack, tmp_path / "zeroscope")
    config = folder / "unet" / "config.json"
    content = json.loads(config.read_text())
    assert content["sample_size"] != 72
    config.write_text(json.dumps({**content, "sample_size": [40, 72]}))
    torch.manual_seed(0)
    one = build_model(model_config(folder)).eval()
    torch.manual_seed(0)
    two = build_model(model_config(tiny_stack)).eval()
    clip, padding, captions = random_clips(1, 2)
    with torch.no_grad():
        assert torch.equal(one(clip, padding, captions).masks, two(clip, padding, captions).masks)


# The text cache.


def test_a_sentence_is_encoded_once(tiny_wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    load = wan._load_umt5

    def counted(*of: Any) -> Any:
        encode = load(*of)

        def encode_batch(sentences: Sequence[str]) -> list[Tensor]:
            loads.append(len(sentences))
            return encode(sentences)

        return encode_batch

    monkeypatch.setattr(wan, "_load_umt5", counted)
    model = build(tiny_wan, tmp_path)
    many = [f"object {number}" for number in range(20)]
    prepare_sentences(model, [*many, *many, "__metadata__"])
    assert loads == [16, 5]
    first = model.encoder.encode_text([many[3], "__metadata__"])  # type: ignore[operator]
    assert loads == [16, 5]
    again = build(tiny_wan, tmp_path).encoder.encode_text([many[3], "__metadata__"])  # type: ignore[operator]
    assert torch.equal(first, again) and loads == [16, 5]
    assert not any("umt5" in type(module).__name__.lower() for module in model.modules())
    build(tiny_wan, tmp_path).encoder.encode_text(["a new one"])  # type: ignore[operator]
    assert loads == [16, 5, 1]


def test_another_text_encoder_has_its_own_cache(tiny_wan: Path, tmp_path: Path) -> None:
    other = make_tiny_wan(tmp_path / "other", seed=1)
    texts = [build(folder, tmp_path / "cache").encoder.encode_text(["a dog"]) for folder in (tiny_wan, other)]  # type: ignore[operator]
    assert not torch.equal(*texts)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_text_encoder_is_known_by_the_files_that_are_read(tiny_wan: Path, cache: Path, tmp_path: Path) -> None:
    """A download has no others, so a folder with more files is the same encoder."""
    folder = shutil.copytree(tiny_wan, tmp_path / "wan")
    text = folder / "text_encoder"
    shutil.copy(text / "model.safetensors", text / "model.fp16.safetensors")
    (text / "generation_config.json").write_text("{}")
    known = [load_stack(str(name), text_cache=str(cache)).text_sha256 for name in (tiny_wan, folder)]
    assert known[0] == known[1]
    (folder / "tokenizer" / "spiece.model").write_bytes(b"other pieces")
    assert load_stack(str(folder), text_cache=str(cache)).text_sha256 != known[0]


@pytest.mark.parametrize("damage", ["text", "shape", "nan"])
def test_a_damaged_cache_is_one_sentence(tiny_wan: Path, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    build(tiny_wan, tmp_path).encoder.encode_text(["a dog"])  # type: ignore[operator]
    (file,) = tmp_path.glob("*/*.safetensors")
    if damage == "text":
        file.write_text("x")
    else:
        save_file({"sentence:a dog": torch.full((4, 32 if damage == "nan" else 33), float("nan"))}, file)
    with pytest.raises(UserError, match=r"the text cache .*\.safetensors is damaged; delete it") as error:
        build(tiny_wan, tmp_path).encoder.encode_text(["a dog"])  # type: ignore[operator]
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written_is_one_sentence(tiny_wan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write the text cache .*--text_cache"):
        build(tiny_wan, tmp_path / "file").encoder.encode_text(["a dog"])  # type: ignore[operator]


def test_operations_at_full_size(root: Path) -> None:
    """The numbers of docs/generators.md, for five frames."""
    with torch.device("meta"), torch.no_grad():
        stack = wan.empty_stack(root / "configs" / "full_size_wan")
        video, text = torch.empty(1, 3, 5, 368, 640), torch.empty(1, 512, 4096)
        counts = []
        for network, inputs in ((stack.vae, (video,)), (stack.transformer, (torch.empty(1, 16, 2, 46, 80), text))):
            with FlopCounterMode(display=False) as counter:
                network(*inputs)
            counts.append(round(counter.get_total_flops() / 5e12, 2))
        whole = WanTransformer3DModel.from_config(
            WanTransformer3DModel.load_config(root / "configs/full_size_wan/transformer")
        )
    assert counts == [1.26, 0.89]
    assert round(sum(p.numel() for p in whole.parameters()) / 1e9, 3) == 1.419
    assert round(sum(p.numel() for p in stack.transformer.parameters()) / 1e9, 2) == 1.14
