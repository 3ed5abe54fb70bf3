"""The frozen stack: loading refuses incomplete parts; the tiny stack has valid files, tokenizers and features."""

from __future__ import annotations

import io
import json
import resource
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizerFast,
)

from models.diffusion import tiny
from models.diffusion.stack import load_stack
from models.diffusion.tiny import STAMP, WORDS, make_tiny_stack
from models.text_encoder import SentenceEncoder
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


# -------- The tiny stack --------------------------------------------------------


SENTENCES = ["the small red square moving left", "a large blue circle below the green triangle"]
ODD_TEXTS = [
    "",
    "   ",
    "猫 в 日本語",
    "🐱👨‍👩‍👧",
    "stop! ?? ...",
    "a" * 3000,
    "<s> <|endoftext|> <pad>",
    "naïve\tcafé\n\x00",
]
QUICK = {"layers_per_block": 1, "vae_layers_per_block": 1, "encoder_layers": 1}
WEIGHTS = ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model", "clip/model"]
WEIGHTS = [f"{name}.safetensors" for name in [*WEIGHTS, "roberta/model"]]
TOKENIZER_FILES = [f"{part}/{name}" for part in ("tokenizer", "roberta") for name in ("vocab.json", "merges.txt")]


@pytest.fixture(scope="module")
def clip_tokenizer(tiny_stack: Path) -> Any:
    return CLIPTokenizer.from_pretrained(tiny_stack / "tokenizer", local_files_only=True)


@pytest.fixture(scope="module")
def sentence_tokenizer(tiny_stack: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_stack / "roberta", local_files_only=True)


@pytest.fixture(scope="module")
def sentence_encoder(tiny_stack: Path) -> RobertaModel:
    return RobertaModel.from_pretrained(tiny_stack / "roberta", local_files_only=True).eval()


@pytest.fixture(scope="module")
def text_encoder(tiny_stack: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(tiny_stack / "text_encoder", local_files_only=True).eval()


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth random images ``[N, 3, H, W]`` in -1…1."""
    coarse = torch.rand(count, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(seed))
    return 2 * torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) - 1


def clip_text(tokenizer: Any, encoder: CLIPTextModel, sentences: list[str]) -> Tensor:
    """Token states ``[N, 77, C]``."""
    tokens = tokenizer(sentences, padding="max_length", truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return encoder(tokens.input_ids).last_hidden_state


def assert_sane(name: str, feature: Tensor, low: float = 0.1, high: float = 10.0) -> None:
    assert torch.isfinite(feature).all(), name
    assert low < feature.std() < high, f"{name}: standard deviation {feature.std():.3g}"


# ------------------------------------------------------------------ loading


@pytest.mark.parametrize(
    ("part", "model"),
    [("text_encoder", CLIPTextModel), ("clip", CLIPVisionModelWithProjection), ("roberta", RobertaModel)],
)
def test_transformers_models_load_in_full(tiny_stack: Path, part: str, model: Any) -> None:
    _, info = model.from_pretrained(tiny_stack / part, local_files_only=True, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize(("part", "model"), [("unet", UNet3DConditionModel), ("vae", AutoencoderKL)])
def test_diffusers_models_load_in_full(tiny_stack: Path, part: str, model: Any) -> None:
    _, info = model.from_pretrained(tiny_stack, subfolder=part, local_files_only=True, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_scheduler_and_image_processor(tiny_stack: Path) -> None:
    scheduler = DDIMScheduler.from_pretrained(tiny_stack, subfolder="scheduler", local_files_only=True)
    assert scheduler.alphas_cumprod[0].item() == pytest.approx(1 - 0.00085)
    assert scheduler.betas[-1].item() == pytest.approx(0.012)
    assert len(scheduler.betas) == 1000
    processor = CLIPImageProcessor.from_pretrained(tiny_stack / "clip", local_files_only=True)
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == 224


def test_text_encoder_names_are_those_of_the_published_files(tiny_stack: Path) -> None:
    with (tiny_stack / "text_encoder" / "model.safetensors").open("rb") as file:
        names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert all(name.startswith("text_model.") for name in names if name != "__metadata__")


# --------------------------------------------------------------- tokenizers


def test_clip_token_ids(clip_tokenizer: Any, text_encoder: CLIPTextModel) -> None:
    config, last = text_encoder.config, len(clip_tokenizer) - 1
    assert (clip_tokenizer.bos_token_id, clip_tokenizer.eos_token_id) == (last - 1, last)
    assert (config.bos_token_id, config.eos_token_id, config.vocab_size) == (last - 1, last, last + 1)
    assert clip_tokenizer.pad_token == "!"
    assert clip_tokenizer.pad_token_id == config.pad_token_id == 0
    ids = clip_tokenizer("the red square", padding="max_length", truncation=True).input_ids
    assert len(ids) == clip_tokenizer.model_max_length == 77
    assert ids[0] == last - 1
    assert ids[4] == last
    assert set(ids[5:]) == {0}


def test_sentence_token_ids(tiny_stack: Path, sentence_tokenizer: Any) -> None:
    config = RobertaConfig.from_pretrained(tiny_stack / "roberta", local_files_only=True)
    tokenizer = sentence_tokenizer
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == tokenizer.model_max_length + 2
    tokens = tokenizer(["the red square", "dog"], padding="longest")
    assert tokens.input_ids[1][2:] == [2, 1, 1]
    assert tokens.attention_mask[1] == [1, 1, 1, 0, 0]
    fast = RobertaTokenizerFast.from_pretrained(tiny_stack / "roberta", local_files_only=True)
    assert fast(SENTENCES).input_ids == tokenizer(SENTENCES).input_ids


def test_pooled_text_is_the_end_token(clip_tokenizer: Any, text_encoder: CLIPTextModel) -> None:
    tokens = clip_tokenizer([*SENTENCES, "dog!"], padding="max_length", return_tensors="pt")
    with torch.inference_mode():
        output = text_encoder(tokens.input_ids)
    ends = tokens.input_ids.argmax(dim=-1)
    assert ends.tolist() == [len(sentence.split()) + 1 for sentence in SENTENCES] + [3]
    assert torch.equal(output.pooler_output, output.last_hidden_state[torch.arange(3), ends])


@pytest.mark.parametrize("captions", [["the red square"], ["dog", "the red square on the left"]])
def test_words_do_not_depend_on_how_the_padding_is_given(
    sentence_tokenizer: Any, sentence_encoder: RobertaModel, captions: list[str]
) -> None:
    encoder = SentenceEncoder(sentence_encoder, sentence_tokenizer, 32, 0.0)
    tokens = sentence_tokenizer(captions, padding="longest", return_tensors="pt")
    with torch.no_grad():
        words, padding = encoder(captions)
        expected = encoder.norm(encoder.linear(sentence_encoder(**tokens).last_hidden_state))
    assert torch.equal(words, expected) and torch.equal(padding, tokens.attention_mask == 0)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_sentences_survive_a_round_trip(clip_tokenizer: Any, sentence_tokenizer: Any, sentence: str) -> None:
    clip_ids = clip_tokenizer(sentence.upper(), padding="max_length").input_ids
    assert clip_tokenizer.decode(clip_ids, skip_special_tokens=True) == sentence
    assert sentence_tokenizer.decode(sentence_tokenizer(sentence).input_ids, skip_special_tokens=True) == sentence


def test_built_in_words_are_single_tokens(clip_tokenizer: Any, sentence_tokenizer: Any) -> None:
    words = [word for word in WORDS if word.isalpha()]
    assert len(words) > 250
    assert [word for word in words if clip_tokenizer.tokenize(word) != [f"{word}</w>"]] == []
    assert [word for word in words if sentence_tokenizer.tokenize(f" {word}") != [f"Ġ{word}"]] == []


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_text_has_tokens(
    clip_tokenizer: Any, sentence_tokenizer: Any, text_encoder: CLIPTextModel, sentence_encoder: RobertaModel, text: str
) -> None:
    assert torch.isfinite(clip_text(clip_tokenizer, text_encoder, [text])).all()
    ids = sentence_tokenizer(text, truncation=True).input_ids
    assert ids[0] == 0
    assert ids[-1] == 2
    assert sentence_tokenizer.unk_token_id not in ids
    with torch.inference_mode():
        assert torch.isfinite(sentence_encoder(torch.tensor([ids])).last_hidden_state).all()


# ----------------------------------------------------------------- features


def test_token_features_are_sane(
    tiny_stack: Path,
    clip_tokenizer: Any,
    sentence_tokenizer: Any,
    text_encoder: CLIPTextModel,
    sentence_encoder: RobertaModel,
) -> None:
    text = clip_text(clip_tokenizer, text_encoder, SENTENCES)
    assert text.shape == (2, 77, 64)
    image_encoder = CLIPVisionModelWithProjection.from_pretrained(tiny_stack / "clip", local_files_only=True).eval()
    with torch.inference_mode():
        image = image_encoder(images(2, 224, 224)).last_hidden_state
        words = sentence_encoder(**sentence_tokenizer(["the red", "the blue"], return_tensors="pt")).last_hidden_state
    assert image.shape == (2, 50, 64)
    for name, feature in {"text": text, "image": image, "words": words}.items():
        assert_sane(name, feature)
    assert_sane("image tokens across patches", image - image.mean(dim=1, keepdim=True))
    assert torch.cosine_similarity(words[0, 2], words[1, 2], dim=0) < 0.7, "red and blue look alike"


def test_vae_features_are_sane(tiny_stack: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_stack, subfolder="vae", local_files_only=True).eval()
    stride4: list[Tensor] = []
    vae.encoder.down_blocks[2].resnets[-1].register_forward_hook(lambda *args: stride4.append(args[2]))
    with torch.inference_mode():
        posterior = vae.encode(images(2, 96, 128)).latent_dist
    assert_sane("stride 4", stride4[0])
    assert_sane("latents", vae.config.scaling_factor * posterior.mean, 0.3, 3.0)
    assert posterior.std.max() < 0.01, "a sampled posterior must be about its mode"


def test_unet_features_are_sane_and_depend_on_text_and_time(
    tiny_stack: Path, clip_tokenizer: Any, text_encoder: CLIPTextModel
) -> None:
    unet = UNet3DConditionModel.from_pretrained(tiny_stack, subfolder="unet", local_files_only=True).eval()
    taps = {
        "transformer_in": unet.transformer_in,
        **{f"down {i}": unet.down_blocks[i] for i in range(2)},
        **{f"up {i}": unet.up_blocks[i] for i in range(3)},
    }

    def features(latents: Tensor, sentence: str) -> dict[str, Tensor]:
        """Every tap ``[T, C, h, w]`` for latents ``[1, 4, T, h, w]``."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                found[name] = output if isinstance(output, Tensor) else output[0]

            return hook

        hooks = [module.register_forward_hook(keep(name)) for name, module in taps.items()]
        with torch.inference_mode():
            unet(latents, 0, clip_text(clip_tokenizer, text_encoder, [sentence]))
        for hook in hooks:
            hook.remove()
        return found

    latents = torch.randn(1, 4, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    later = latents.clone()
    later[:, :, 2] = -later[:, :, 2]
    base = features(latents, SENTENCES[0])
    other_text = features(latents, SENTENCES[1])
    other_time = features(later, SENTENCES[0])
    for name, feature in base.items():
        assert_sane(name, feature)
        assert_sane(f"{name} across positions", feature - feature.mean(dim=(2, 3), keepdim=True))
        change = (feature - other_time[name])[0].std() / feature.std()
        assert 0.01 < change < 1, f"{name}: frame 0 changes by {change:.3g} with frame 2"
        if name != "transformer_in":  # comes before the text
            change = (feature - other_text[name]).std() / feature.std()
            assert 0.01 < change < 1, f"{name}: changes by {change:.3g} with the sentence"


# -------------------------------------------------------------- determinism


def test_seed_and_sentences_decide_the_files(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first = make_tiny_stack(tmp_path / "first", SENTENCES, **QUICK)
    again = make_tiny_stack(tmp_path / "again", reversed(SENTENCES), **QUICK)
    other = make_tiny_stack(tmp_path / "other", SENTENCES, seed=1, **QUICK)
    assert torch.equal(state, torch.get_rng_state())
    for name in [*WEIGHTS, *TOKENIZER_FILES]:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    for name in WEIGHTS:
        assert (first / name).read_bytes() != (other / name).read_bytes(), name


def test_new_words_are_learnt(tmp_path: Path) -> None:
    folder = make_tiny_stack(tmp_path / "stack", ["the vermilion dodecahedron"], **QUICK)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    assert tokenizer.tokenize("vermilion dodecahedron") == ["vermilion</w>", "dodecahedron</w>"]


# ------------------------------------------------------------------ folders


@pytest.fixture(scope="module")
def quick_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_stack(tmp_path_factory.mktemp("quick") / "stack", **QUICK)


@pytest.fixture
def own_stack(quick_stack: Path, tmp_path: Path) -> Path:
    """A stack that a test may change."""
    return Path(shutil.copytree(quick_stack, tmp_path / "stack"))


def test_same_stack_is_kept(own_stack: Path) -> None:
    (own_stack / "unet" / "notes.txt").write_text("mine")
    assert make_tiny_stack(own_stack, **QUICK) == own_stack
    assert (own_stack / "unet" / "notes.txt").exists(), "it was written again"


def test_other_parameters_need_force(own_stack: Path) -> None:
    before = (own_stack / WEIGHTS[0]).read_bytes()
    for change in ({"seed": 1}, {"sentences": SENTENCES}, {"head_dim": 32}):
        with pytest.raises(UserError, match="another seed, sizes or sentences"):
            make_tiny_stack(own_stack, **{**QUICK, **change})
    assert (own_stack / WEIGHTS[0]).read_bytes() == before
    make_tiny_stack(own_stack, seed=1, force=True, **QUICK)
    assert (own_stack / WEIGHTS[0]).read_bytes() != before
    assert [path.name for path in own_stack.parent.iterdir()] == ["stack"], "something was left beside it"


@pytest.mark.parametrize("force", [False, True])
def test_foreign_folder_is_never_replaced(own_stack: Path, tmp_path: Path, force: bool) -> None:
    mine = tmp_path / "mine"
    (mine / "unet").mkdir(parents=True)
    (own_stack / "thesis.txt").write_text("years")
    for folder in (mine, own_stack):
        with pytest.raises(UserError, match="holds something other than a tiny stack"):
            make_tiny_stack(folder, seed=7, force=force, **QUICK)
    assert (mine / "unet").is_dir()
    assert (own_stack / "thesis.txt").read_text() == "years"


SIZES: dict[str, tuple[str, dict[str, Any], str]] = {
    "steps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps 1e"),
    "steps with a point": ("scheduler/scheduler_config.json", {"num_train_timesteps": 1e9}, "num_train_timesteps 1e"),
    "layers": ("roberta/config.json", {"num_hidden_layers": 10**7}, "num_hidden_layers 1e.* above 120"),
    "nested layers": ("clip/config.json", {"vision_config": {"num_hidden_layers": 10**7}}, "above 320"),
    "some more layers": ("roberta/config.json", {"num_hidden_layers": 100}, "describes .* numbers"),
    "width": ("text_encoder/config.json", {"hidden_size": 10**6}, "hidden_size 1e"),
    "many blocks": ("vae/config.json", {"block_out_channels": [32] * 10**5}, "length of block_out_channels"),
    "wider blocks": ("unet/config.json", {"block_out_channels": [3200, 6400, 12800, 12800]}, "describes .* numbers"),
    "positions": ("clip/config.json", {"image_size": 2240, "patch_size": 1}, "describes .* numbers"),
    "no number": ("unet/config.json", {"layers_per_block": float("nan")}, "layers_per_block nan"),
    "text": ("unet/config.json", {"layers_per_block": "two"}, "cannot load the UNet"),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_far_beyond_the_published_ones_or_the_weights(own_stack: Path, kind: str) -> None:
    name, change, said = SIZES[kind]
    (own_stack / name).write_text(json.dumps({**json.loads((own_stack / name).read_text()), **change}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said) as caught:
        load_stack(str(own_stack))
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


class Allocates:
    """A pickle of it makes a byte array of a terabyte."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return bytearray, (1 << 40,)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before PyTorch 1.6"])
def test_weights_of_the_older_kind(own_stack: Path, old: bool) -> None:
    folder = own_stack / "roberta"
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    file.unlink()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
    (folder / "training_args.bin").write_bytes(b"not read")
    assert load_stack(str(own_stack)).unet
    torch.save({**state, "x": Allocates()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match=r"pytorch_model.bin .*names '\w+.bytearray', which is no plain"):
        load_stack(str(own_stack))


def test_small_numbers_are_no_sizes(own_stack: Path) -> None:
    """Configurations of other versions differ in rates, and have options of text generation."""
    for part in ("roberta", "clip"):
        path = own_stack / part / "config.json"
        content = json.loads(path.read_text())
        others = {"attention_dropout": 0.1, "initializer_factor": 2.0, "top_k": 50, "num_beams": 4, "max_length": 77}
        path.write_text(json.dumps({**content, **others}))
    assert load_stack(str(own_stack)).unet


@pytest.mark.parametrize("part", ["roberta", "clip", "text_encoder"])
def test_code_in_a_folder_is_never_run(
    own_stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], part: str
) -> None:
    """Left to themselves, the libraries ask on the terminal, and run it on "y"."""
    code = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    marker = tmp_path / "ran"
    for file in (*(own_stack / part).glob("*config.json"), *own_stack.glob("tokenizer/*config.json")):
        content = json.loads(file.read_text())
        kind = {"model_type": "evil"} if file.name == "config.json" else {"tokenizer_class": "T"}
        file.write_text(json.dumps({**content, **kind, "auto_map": code}))
        (file.parent / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\nM = T = C\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    refused = pytest.raises(UserError, match=r"roberta: its configuration asks for code of its own .auto_map., which")
    with refused if part == "roberta" else nullcontext():  # the other two are loaded by their known classes
        load_stack(str(own_stack))
    assert not marker.exists() and "[y/N]" not in "".join(capfd.readouterr())


def test_empty_folder_is_used_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (make_tiny_stack(tmp_path / "empty", **QUICK) / STAMP).is_file()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"something other than a tiny stack|cannot write"):
            make_tiny_stack(folder, **QUICK)


def test_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "random_weight", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_tiny_stack(tmp_path / "stack", **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tiny, "_write_parts", refuse)
    with pytest.raises(UserError, match=r"cannot write .*stack: .*No space left on device.*; choose another"):
        make_tiny_stack(tmp_path / "stack", **QUICK)
    assert list(tmp_path.iterdir()) == []
