"""Loads the frozen parts: text-to-video diffusion stack, image encoder, sentence encoder.

The classes come from diffusers and transformers, and every size from the loaded configurations.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, DDIMScheduler, UNet3DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection, RobertaModel
from transformers import logging as transformers_logging

from models.diffusion.unet import TapUNet3D
from util.checkpoint import check_plain_pickle
from util.config import CLIP, ROBERTA
from util.errors import UserError, first_line
from util.files import ROOT, read_json
from util.hub import HUB, Repository, Unreachable, fetch, open_repository

_log = logging.getLogger(__name__)

NO_CODE = {"trust_remote_code": False}
"""For every call of transformers: where it is left out, they ask on the terminal whether to run a repository's code."""
PUBLISHED = {
    "scheduler": "full_size/scheduler",
    "UNet": "full_size/unet",
    "VAE": "full_size/vae",
    "diffusion text encoder": "full_size/text_encoder",
    "image encoder": "full_size/clip",
    "sentence encoder": "full_size/roberta",
    "transformer": "full_size_wan/transformer",
    "VAE of Wan": "full_size_wan/vae",
    "UMT5 text encoder": "full_size_wan/text_encoder",
}
"""Part → folder in ``configs`` with its published sizes."""
LARGER = 10  # a configuration may have this many times the published sizes
HARMLESS = 100  # such a number is a rate of dropout or the like, which the published parts may have at 0
BYTES = 256  # the smallest vocabulary of a byte-level tokenizer; both are byte-level
TOKENIZER_FILES = frozenset(
    {
        *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
        *("special_tokens_map.json", "added_tokens.json", "spiece.model"),
    }
)
CONFIGS = frozenset({"config.json", "scheduler_config.json"})
T2V_FOLDERS = ("scheduler", "unet", "vae", "text_encoder", "tokenizer")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:-\d+-of-\d+)?(?:\.(?P<variant>fp16|bf16))?(?:-\d+-of-\d+)?"
    r"\.(?P<kind>safetensors|bin)(?P<index>\.index(?:\.(?P<index_variant>fp16|bf16))?\.json)?"
)
"""Names of files with the weights of a part, whole or in several files with an index."""
_TOTAL = re.compile(r"-of-(\d+)")
STRIDE4_BLOCK = 2  # the block of the VAE whose output is the stride-4 feature


class VAEEncoder(AutoencoderKL):
    """``AutoencoderKL`` of diffusers without its decoder, and with its stride-4 feature (VD-IT section 3.3).

    Attributes:
        maps: the most memory that it takes per frame, besides the frame, in maps of its first block.
    """

    maps = 3
    _keys_to_ignore_on_load_unexpected = (r"^decoder\.", r"^post_quant_conv\.")

    @functools.wraps(AutoencoderKL.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.decoder, self.post_quant_conv
        for module in self.modules():
            if isinstance(module, nn.SiLU):
                module.inplace = True  # overwrites the result of a normalisation, which nothing else reads

    @property
    def stride4_channels(self) -> int:
        """Channels of the stride-4 feature."""
        return self.config.block_out_channels[STRIDE4_BLOCK]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Encode images.

        Args:
            images: ``[N, 3, H, W]`` in -1…1, H and W multiples of 8.

        Returns:
            the moments of the posterior ``[N, 2·4, H/8, W/8]`` (mean, log variance), and the output of the
            third down block before its downsampler ``[N, C, H/4, W/4]``.
        """
        encoder = self.encoder
        x = encoder.conv_in(images)
        for i, block in enumerate(encoder.down_blocks):
            for resnet in block.resnets:
                x = _add_residual(resnet, x)
            if i == STRIDE4_BLOCK:
                f4 = x
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
        x = encoder.mid_block(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(x)))
        if self.quant_conv is not None:
            x = self.quant_conv(x)
        return x, f4


def _add_residual(resnet: Any, x: Tensor) -> Tensor:
    """A resnet of the VAE with three maps in memory instead of four; diffusers' also divides its result by 1."""
    # Nested, so that a map is freed as soon as it has been read.
    residual = resnet.conv2(resnet.nonlinearity(resnet.norm2(resnet.conv1(resnet.nonlinearity(resnet.norm1(x))))))
    return residual.add_(x if resnet.conv_shortcut is None else resnet.conv_shortcut(x))


class WholeVAE(AutoencoderKL):
    """``AutoencoderKL`` of diffusers, which encodes and decodes the masks of REM.

    Attributes:
        maps, decode_maps: as in ``VAEEncoder``, to encode and to decode.
    """

    maps, decode_maps = 5, 6

    def forward(self, x: Tensor, decode: bool = False) -> Tensor:  # type: ignore[override]
        """Encode images or decode latents.

        Args:
            x: images ``[N, 3, H, W]`` in -1…1, H and W multiples of 8; with ``decode`` latents ``[N, 4, H/8, W/8]``.
            decode: whether to decode.

        Returns:
            the mode of the posterior, or images. Latents are not scaled.
        """
        return self.decode(x).sample if decode else self.encode(x).latent_dist.mode()


@dataclass
class FrozenStack:
    """The frozen parts of VD-IT and HCD."""

    unet: TapUNet3D
    vae: VAEEncoder
    text_encoder: CLIPTextModel
    tokenizer: Any
    image_encoder: CLIPVisionModelWithProjection
    sentence_encoder: RobertaModel
    sentence_tokenizer: Any
    signal_rate: float
    """ᾱ₀ = 1 − β₀ of the scheduler: the share of the variance of the latents that is kept at step 0."""


@dataclass
class WholeStack:
    """The parts of a whole text-to-video generator, for REM."""

    unet: UNet3DConditionModel
    vae: WholeVAE
    text_encoder: CLIPTextModel
    tokenizer: Any
    signal_rate: float
    """As in ``FrozenStack``."""


def load_whole_stack(pretrained: str) -> WholeStack:
    """Load a whole text-to-video generator from a local directory or a hub id, laid out as for ``load_stack``.

    Raises:
        UserError: a part is missing, incomplete, of a different kind, or cannot be read.
    """
    (t2v,) = find_sources((part_sources(pretrained)["unet"], "--pretrained", T2V_FOLDERS))
    _quiet_loading()
    return WholeStack(signal_rate=_signal_rate(t2v), **_generator(t2v, UNet3DConditionModel, WholeVAE))


def load_stack(pretrained: str, image_encoder: str = "", text_encoder: str = "") -> FrozenStack:
    """Load every frozen part from local directories or hub ids.

    Args:
        pretrained: the text-to-video stack, with subfolders ``unet``, ``vae``, ``text_encoder``,
            ``tokenizer`` and ``scheduler``.
        image_encoder: CLIP vision model; empty: ``<pretrained>/clip`` if it exists, else LAION's ViT-H/14.
        text_encoder: RoBERTa; empty: ``<pretrained>/roberta`` if it exists, else ``roberta-base``.

    Raises:
        UserError: a part is missing, incomplete, of a different kind, or cannot be read.
    """
    t2v, images, sentences = find_sources(*_wanted(pretrained, image_encoder, text_encoder))
    _quiet_loading()
    # Before the large parts, so that a mistake shows early.
    signal_rate = _signal_rate(t2v)
    sentence_encoder, sentence_tokenizer = read_sentence_encoder(sentences)
    wide = {"dtype": torch.float32, **NO_CODE}
    return FrozenStack(
        signal_rate=signal_rate,
        **_generator(t2v, TapUNet3D, VAEEncoder),
        image_encoder=load_network(
            "image encoder", images, CLIPVisionModelWithProjection.from_pretrained, **wide, **_projection(images)
        ),
        sentence_encoder=sentence_encoder,
        sentence_tokenizer=sentence_tokenizer,
    )


def _signal_rate(t2v: Source) -> float:
    scheduler = load_part("scheduler", t2v, DDIMScheduler.from_pretrained, subfolder="scheduler")
    return float(scheduler.alphas_cumprod[0])


def _generator(t2v: Source, unet: Any, vae: Any) -> dict[str, Any]:
    """Load the parts of the text-to-video stack, UNet and VAE as the given classes, by the names of ``FrozenStack``."""
    wide = {"dtype": torch.float32}
    text = {**wide, **NO_CODE}
    parts = {
        "unet": load_network("UNet", t2v, unet.from_pretrained, subfolder="unet", **wide),
        "vae": load_network("VAE", t2v, vae.from_pretrained, subfolder="vae", **wide),
        "text_encoder": load_network(
            "diffusion text encoder", t2v, CLIPTextModel.from_pretrained, subfolder="text_encoder", **text
        ),
        "tokenizer": load_part("tokenizer", t2v, CLIPTokenizer.from_pretrained, subfolder="tokenizer", **NO_CODE),
    }
    tokenizer, config, where = parts["tokenizer"], parts["text_encoder"].config, f"{t2v.name}/tokenizer"
    check_tokenizer(tokenizer, config, where, t2v.flag)
    if tokenizer.model_max_length > config.max_position_embeddings:
        raise UserError(
            f"the tokenizer of {where} does not limit a text to the {config.max_position_embeddings} tokens of its "
            f"encoder; tokenizer_config.json may be missing there; give a complete folder or hub id with {t2v.flag}"
        )
    return parts


def stack_downloads(
    pretrained: str, image_encoder: str = "", text_encoder: str = "", alone: bool = False
) -> list[tuple[Repository, list[str]]]:
    """The repositories and files that ``load_stack`` reads from the hub, for ``util.hub.fetch``.

    Args:
        pretrained, image_encoder, text_encoder: as for ``load_stack``.
        alone: without image and sentence encoder, as ``load_whole_stack`` reads.

    Raises:
        UserError: as for ``load_stack``.
    """
    wanted = _wanted(pretrained, image_encoder, text_encoder)
    return list(_downloads(wanted[:1] if alone else wanted).values())


def _wanted(pretrained: str, image_encoder: str, text_encoder: str) -> list[_Wanted]:
    sources = part_sources(pretrained, image_encoder, text_encoder)
    return [
        (sources["unet"], "--pretrained", T2V_FOLDERS),
        (sources["image_encoder"], "--image_encoder", ("",)),
        (sources["sentence_encoder"], "--text_encoder", ("",)),
    ]


def load_sentence_encoder(pretrained: str, text_encoder: str = "") -> tuple[RobertaModel, Any]:
    """Load the sentence encoder with its tokenizer: all that a model on another backbone needs.

    Args:
        pretrained, text_encoder: as ``load_stack`` takes them.

    Raises:
        UserError: it is missing, incomplete, of a different kind, or cannot be read.
    """
    name = part_sources(pretrained, "", text_encoder)["sentence_encoder"]
    return read_sentence_encoder(*find_sources((name, "--text_encoder", ("",))))


def read_sentence_encoder(source: Source) -> tuple[RobertaModel, Any]:
    """``load_sentence_encoder`` from a source that has been found."""
    _quiet_loading()
    options = {"add_pooling_layer": False, "dtype": torch.float32, **NO_CODE}
    encoder = load_network("sentence encoder", source, RobertaModel.from_pretrained, **options)
    tokenizer = load_part("sentence tokenizer", source, AutoTokenizer.from_pretrained, **NO_CODE)
    check_tokenizer(tokenizer, encoder.config, source.name, source.flag)
    return encoder, tokenizer


def part_sources(pretrained: str, image_encoder: str = "", text_encoder: str = "") -> dict[str, str]:
    """The source of every part with weights: a local folder or a hub id.

    Args:
        pretrained, image_encoder, text_encoder: as ``load_stack`` takes them; a hub id may begin with ``hf://``.
    """
    image_encoder = image_encoder or _beside(pretrained, "clip", CLIP)
    text_encoder = text_encoder or _beside(pretrained, "roberta", ROBERTA)
    stack, image, sentence = (source.removeprefix(HUB) for source in (pretrained, image_encoder, text_encoder))
    generator = dict.fromkeys(("unet", "transformer", "vae", "text_encoder"), stack)
    return {**generator, "image_encoder": image, "sentence_encoder": sentence}


def empty_stack(folder: str | Path) -> FrozenStack:
    """Build the frozen parts on the meta device, without weights or tokenizers, from configuration files.

    Args:
        folder: holds ``unet``, ``vae``, ``text_encoder``, ``clip``, ``roberta`` and ``scheduler``, each
            with its JSON configuration (``configs/full_size`` has the published sizes).
    """
    folder = Path(folder)
    return FrozenStack(
        **_empty_generator(folder, TapUNet3D, VAEEncoder),
        image_encoder=empty_part(CLIPVisionModelWithProjection, folder / "clip"),
        sentence_encoder=empty_part(RobertaModel, folder / "roberta", add_pooling_layer=False),
        sentence_tokenizer=None,
    )


def empty_whole_stack(folder: str | Path) -> WholeStack:
    """``empty_stack`` for a whole generator; ``clip`` and ``roberta`` are not needed."""
    return WholeStack(**_empty_generator(Path(folder), UNet3DConditionModel, WholeVAE))


def _empty_generator(folder: Path, unet: Any, vae: Any) -> dict[str, Any]:
    return {
        "unet": empty_part(unet, folder / "unet"),
        "vae": empty_part(vae, folder / "vae"),
        "text_encoder": empty_part(CLIPTextModel, folder / "text_encoder"),
        "tokenizer": None,
        "signal_rate": float(DDIMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod[0]),
    }


def empty_part(cls: Any, folder: Path, **options: Any) -> Any:
    """A part of a class of diffusers or transformers on the meta device, as a folder's ``config.json`` has it."""
    with torch.device("meta"):
        if issubclass(cls, ConfigMixin):
            return cls.from_config(cls.load_config(folder))
        return cls(cls.config_class.from_pretrained(folder), **options)


@dataclass
class StockParts:
    """State dicts of the complete parts, including weights that the models never use (for exports)."""

    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    sentence_encoder: dict[str, Tensor]


def load_stock_parts(pretrained: str, text_encoder: str = "") -> StockParts:
    """Load the complete parts.

    Args:
        pretrained, text_encoder: as ``load_stack`` takes them. The pooling layer of a sentence encoder, which nothing
            reads, is zero where it is missing.

    Raises:
        UserError: a part is missing, incomplete, of a different kind, or cannot be read.
    """
    sources, options = part_sources(pretrained, "", text_encoder), {"dtype": torch.float32}
    t2v, sentence_source = find_sources(
        (sources["unet"], "--pretrained", ("unet", "vae")), (sources["sentence_encoder"], "--text_encoder", ("",))
    )
    _quiet_loading()
    unet = load_network("UNet", t2v, UNet3DConditionModel.from_pretrained, subfolder="unet", **options)
    vae = load_network("VAE", t2v, AutoencoderKL.from_pretrained, subfolder="vae", **options)
    sentence_encoder, info = load_part(
        "sentence encoder",
        sentence_source,
        RobertaModel.from_pretrained,
        add_pooling_layer=True,
        output_loading_info=True,
        **options,
        **NO_CODE,
    )
    sentences = sentence_encoder.state_dict()
    sentences.update({name: torch.zeros_like(sentences[name]) for name in info["missing_keys"]})
    return StockParts(unet.state_dict(), vae.state_dict(), sentences)


def _projection(images: Source) -> dict[str, int]:
    """The width of the projection, which the configuration of a whole CLIP states outside of its ``vision_config``."""
    with suppress(UserError):  # the library reports a broken file
        whole = read_json(images.folder / "config.json", "the configuration of the image encoder")
        if isinstance(whole, dict) and "vision_config" in whole and isinstance(whole.get("projection_dim"), int):
            return {"projection_dim": whole["projection_dim"]}
    return {}


_Wanted = tuple[str, str, Sequence[str]]
"""The name of a source (a local folder or a hub id), the option that names it, and the subfolders that are loaded; ""
is the source itself."""


@dataclass(frozen=True)
class Source:
    """A source of parts."""

    name: str
    """A local folder or a hub id."""
    flag: str
    """The option that names it."""
    folder: Path
    """The folder that holds its files: ``name`` itself, or one of the hub's cache."""


def find_sources(*wanted: _Wanted) -> list[Source]:
    """Find sources, and download the files of repositories that are loaded.

    Raises:
        UserError: there is no folder or repository of that name, or neither the hub nor the cache has a file.
    """
    downloads = _downloads(wanted)
    folders = dict(zip(downloads, fetch(list(downloads.values())), strict=True))
    return [Source(name, flag, folders.get(flag, Path(name))) for name, flag, _ in wanted]


def _downloads(wanted: Sequence[_Wanted]) -> dict[str, tuple[Repository, list[str]]]:
    """Option → the repository that it names, and the files that are loaded; nothing for local folders."""
    found = {}
    for name, flag, folders in wanted:
        if Path(name).is_dir():
            lost = [folder for folder in folders if not (Path(name) / folder).is_dir()]
            if lost:
                raise UserError(f"{name} has no folder {lost[0]}; give a complete local folder or a hub id with {flag}")
        else:
            repository = open_repository(name, flag)
            found[flag] = repository, [file for folder in folders for file in _files_of(repository, folder)]
    return found


def _files_of(repository: Repository, folder: str) -> list[str]:
    """The files of a part that are loaded.

    Raises:
        Unreachable: the cache lacks the part's weights, and the hub cannot be reached.
    """
    inside = f"{folder}/" if folder else ""
    names = [name.removeprefix(inside) for name in repository.keys if name.startswith(inside)]
    if not _weights_files(names)[0] and not repository.online and folder not in ("scheduler", "tokenizer"):
        raise Unreachable(
            f"the weights of {repository.source}{inside and f', folder {folder},'} are not in the cache, and the hub "
            f"cannot be reached; connect to the network once, or give a complete local folder with {repository.flag}"
        )
    return [inside + name for name in read_names(names)]


def read_names(names: Collection[str]) -> list[str]:
    """The names of the files that are read of a part, among those in its folder."""
    read = {*TOKENIZER_FILES, *CONFIGS, *_weights_files(names)[0]}
    return [name for name in names if name in read]


def _weights_files(names: Collection[str]) -> tuple[list[str], dict[str, Any]]:
    """Choose one of the forms in which a folder holds all weights: full precision first, then safetensors, then whole.

    Returns:
        the names of its files, and the options that make the libraries read them.
    """
    forms: dict[tuple[str, bool, bool], list[str]] = {}
    for name in names:
        if found := _WEIGHTS.fullmatch(name):
            several = bool(found["index"] or _TOTAL.search(name))
            form = found["variant"] or found["index_variant"] or "", found["kind"] == "bin", several
            forms.setdefault(form, []).append(name)
    complete = [form for form, files in forms.items() if not form[-1] or _are_all(files)]
    if not complete:
        return [], {}
    variant, pickled, _ = chosen = min(complete)
    return sorted(forms[chosen]), {"variant": variant or None, "use_safetensors": not pickled}


def _are_all(files: Collection[str]) -> bool:
    """Whether these are an index and as many files of weights as their names state."""
    return {int(total) for name in files for total in _TOTAL.findall(name)} == {len(files) - 1}


def load_part(what: str, source: Source, load: Callable[..., Any], **options: Any) -> Any:
    """``load`` a part from a source, and report any failure in one sentence."""
    where = source.name + (f"/{options['subfolder']}" if "subfolder" in options else "")
    try:
        if what in PUBLISHED:
            _check_sizes(PUBLISHED[what], source.folder / options.get("subfolder", ""), load, **options)
        return load(source.folder, **options)
    except Exception as error:  # the libraries raise many kinds, tokenizers even Exception itself
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason = "its configuration asks for code of its own (auto_map), which is never run"
        raise UserError(
            f"cannot load the {what} from {where}: {reason.rstrip('.: ')}; "
            f"give a complete local folder or a reachable hub id with {source.flag}"
        ) from error


def _check_sizes(part: str, folder: Path, load: Callable[..., Any], **options: Any) -> None:
    """Refuse a configuration that would take more memory than published models or the part's own weights do.

    Raises:
        ValueError: a size is far beyond the published one, or the weights' files hold much less than it describes.
    """
    cls = load.__self__  # type: ignore[attr-defined]
    name = "scheduler_config.json" if cls is DDIMScheduler else "config.json"
    published = json.loads((ROOT / "configs" / part / name).read_text())
    file = folder / name
    largest = max(value for _, value in _numbers(published))
    text = file.read_text()
    for key, value in _numbers(json.loads(text)):
        limit = max(HARMLESS, LARGER * max((n for other, n in _numbers(published) if other == key), default=largest))
        if not value <= limit:
            raise ValueError(f"its {name} says {key} {value:.4g}, which is above {limit:.4g}")
    if cls is DDIMScheduler:
        return
    pooling = {key: value for key, value in options.items() if key == "add_pooling_layer"}
    described, held = _described_numbers(cls, folder, text, **pooling), _held_numbers(folder)
    if held and described > 2 * held:
        raise ValueError(f"its {name} describes {described:.4g} numbers, and its weights' files hold {held:.4g}")


@functools.cache
def _described_numbers(cls: Any, folder: Path, text: str, **options: Any) -> int:
    """How many numbers a part has with the configuration ``text`` of a folder."""
    return sum(weight.numel() for weight in empty_part(cls, folder, **options).parameters())


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every size in a configuration with its key: numbers but those of tokens, and lengths of lists."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, name)
    elif isinstance(value, list):
        yield f"length of {key}", len(value)
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not key.endswith("_id"):
        yield key, value


def _held_numbers(folder: Path) -> int:
    """How many numbers the files of weights in a folder hold, at most."""
    held = 0
    for path in (folder / name for name in _weights_files(_names(folder))[0]):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                held += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        elif path.suffix == ".bin":
            check_plain_pickle(path)
            held += path.stat().st_size // 2
    return held


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def load_network(what: str, source: Source, load: Callable[..., Any], **options: Any) -> Any:
    """Load a model with all its weights: the libraries only warn, and use random numbers, where a file lacks some."""
    where = f"{source.name}/{options['subfolder']}" if "subfolder" in options else source.name
    names = _names(source.folder / options.get("subfolder", ""))
    files, form = _weights_files(names)
    if names and not files:
        raise UserError(
            f"the {what} in {where} does not hold all weights (model.safetensors, diffusion_pytorch_model.safetensors, "
            f"the same as .bin or .fp16, or several files and their index); give a complete local "
            f"folder or hub id with {source.flag}"
        )
    if form.get("variant"):
        _log.warning(
            "%s holds the %s in half precision only (%s): masks differ slightly, and its identity is another",
            *(source.name, what, files[0]),
        )
    model, info = load_part(
        what, source, load, output_loading_info=True, ignore_mismatched_sizes=True, **form, **options
    )
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise UserError(
            f"the {what} of {where} holds {name} of shape {list(found)}, but its config.json describes "
            f"{list(expected)}; the files belong to different models; give a complete folder or hub id with "
            f"{source.flag}"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"the {what} of {source.name} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more weights; " if len(missing) > 1 else "; ")
            + f"it is incomplete or a different kind of model; give the right one with {source.flag}"
        )
    return model


def check_tokenizer(tokenizer: Any, config: Any, where: str, flag: str) -> None:
    """Refuse a tokenizer without its files, which loads with a few special tokens only, or of a different model."""
    if not BYTES <= len(tokenizer) <= config.vocab_size:
        raise UserError(
            f"the tokenizer of {where} has {len(tokenizer)} tokens, and its encoder {config.vocab_size}; "
            f"its files are missing or belong to a different model; give a complete folder or hub id with {flag}"
        )


def _beside(pretrained: str, name: str, default: str) -> str:
    folder = Path(pretrained) / name
    return str(folder) if folder.is_dir() else default


def _quiet_loading() -> None:
    """Silence progress bars (of later downloads too) and lists of weights that are left out; errors still show."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
