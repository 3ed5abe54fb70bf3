"""Models of any size with random weights, made where and in the precision in which they are used.

The sizes come from configuration files; nothing is downloaded, and a weight never exists twice. A weight depends on its
part, name and shape alone: the project's form and the stock form of a part get the same numbers.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTokenizer

from models import Segmenter, build_model
from models.diffusion.encoder import VideoEncoder
from models.diffusion.stack import FrozenStack, empty_stack
from models.diffusion.tiny import (
    BRANCH_ENDS,
    BRANCH_GAIN,
    TEMPORAL_ENDS,
    TEMPORAL_GAIN,
    write_clip_tokenizer,
    write_roberta_tokenizer,
)
from util.config import Config
from util.errors import UserError

NUMBERS = 4_194_301
"""Random numbers that are drawn; weights are windows of them. Prime, so that no row of a matrix meets itself again."""
MAX_TOKENS = 4096


class RandomWeights:
    """Gives modules of the meta device their weights.

    Args:
        device: where they go.
    """

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.numbers = torch.randn(NUMBERS, generator=generator).to(device)

    @torch.no_grad()
    def fill(self, module: nn.Module, part: str, dtype: torch.dtype) -> None:
        """Give every parameter and buffer of a module that has none its values.

        Args:
            module: on the meta device.
            part: a key of ``models.diffusion.tiny.BRANCH_GAIN``.
            dtype: of the weights.
        """
        for prefix, owner in module.named_modules():
            for name, old in owner.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                new = self.weight(part, full, old.shape, dtype)
                owner.register_parameter(name, nn.Parameter(new, requires_grad=old.requires_grad))
            for name, value in owner.named_buffers(recurse=False):
                owner.register_buffer(name, _buffer(name, value).to(self.numbers.device), persistent=False)

    def weight(self, part: str, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A weight such that a deep network keeps its values in range; see ``models.diffusion.tiny``."""
        value = torch.empty(shape, dtype=dtype, device=self.numbers.device)
        start = zlib.crc32(f"{part}/{name}".encode()) % NUMBERS
        scale, shift = _scale(part, name, shape)
        flat = value.view(-1)
        done = 0
        while done < flat.numel():
            window = self.numbers[start : start + flat.numel() - done]
            flat[done : done + len(window)].copy_(window * scale + shift)
            done, start = done + len(window), 0
        return value


def random_model(cfg: Config, stack: Path, device: torch.device, dtype: torch.dtype) -> Segmenter:
    """The project's model, its frozen parts held in ``dtype``, its trained ones as they are before training.

    Args:
        cfg: the configuration.
        stack: configuration files of the frozen parts (``models.diffusion.stack.empty_stack``).
        device: where it goes.
        dtype: float32, bfloat16 or float16.
    """
    frozen = _stack(stack)
    weights = RandomWeights(device)
    for part, module in _tokens_parts(frozen).items():
        weights.fill(module, part, dtype)
    weights.fill(frozen.unet, "unet", dtype)
    weights.fill(frozen.vae, "vae", dtype)
    torch.manual_seed(0)
    return build_model(cfg, frozen).to(device)


def random_stock(
    cfg: Config, stack: Path, device: torch.device
) -> tuple[Segmenter, UNet3DConditionModel, AutoencoderKL]:
    """What the baseline is made of, in float32 and with the same weights. Arguments as for ``random_model``.

    Returns:
        a model without UNet and VAE, and these two as their library has them: with the last up block, with the decoder.
    """
    frozen = _stack(stack)
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(UNet3DConditionModel.load_config(stack / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(stack / "vae"))
    weights = RandomWeights(device)
    for part, module in {**_tokens_parts(frozen), "unet": unet, "vae": vae}.items():
        weights.fill(module, part, torch.float32)
    torch.manual_seed(0)
    model = build_model(cfg, frozen)
    assert isinstance(model.encoder, VideoEncoder)
    model.encoder.unet = model.encoder.vae = nn.Identity()  # type: ignore[assignment]
    return model.to(device), unet, vae


def _tokens_parts(frozen: FrozenStack) -> dict[str, nn.Module]:
    """The parts that both forms share."""
    return {
        "text_encoder": frozen.text_encoder,
        "clip": frozen.image_encoder,
        "roberta": frozen.sentence_encoder,
    }


def _stack(folder: Path) -> FrozenStack:
    """The frozen parts without weights, with tokenizers of the usual words, which no one has to download.

    Raises:
        UserError: a configuration file is missing.
    """
    try:
        frozen = empty_stack(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} should hold a configuration file for every frozen part: {reason}") from error
    text = frozen.text_encoder.config
    with tempfile.TemporaryDirectory() as place:
        clip, roberta = Path(place, "clip"), Path(place, "roberta")
        write_clip_tokenizer(clip, (), min(MAX_TOKENS, text.vocab_size), text.max_position_embeddings)
        write_roberta_tokenizer(roberta, (), min(MAX_TOKENS, frozen.sentence_encoder.config.vocab_size))
        frozen.tokenizer = CLIPTokenizer.from_pretrained(clip)
        frozen.sentence_tokenizer = AutoTokenizer.from_pretrained(roberta)
    return frozen


def _scale(part: str, name: str, shape: torch.Size) -> tuple[float, float]:
    """Factor and summand that make a weight of normal numbers."""
    if len(shape) < 2:
        return 0.05, 0.0 if name.endswith("bias") else 1.0
    scale = 1 / math.sqrt(math.prod(shape[1:]))
    if name.endswith(BRANCH_ENDS):
        temporal = name.endswith(TEMPORAL_ENDS) or ("temp_attentions" in name and name.endswith("proj_out.weight"))
        scale *= TEMPORAL_GAIN if temporal else BRANCH_GAIN[part]
    return scale, 0.0


def _buffer(name: str, like: Tensor) -> Tensor:
    """What a library puts into a buffer when it makes it."""
    if name == "position_ids":
        return torch.arange(like.shape[-1]).expand(like.shape).clone()
    if name == "token_type_ids":
        return torch.zeros(like.shape, dtype=torch.long)
    raise AssertionError(f"unknown buffer {name}")
