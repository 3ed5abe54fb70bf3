"""How a model computes: frozen parts held in half precision, trained ones under autocast, the large ones compiled."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.compiling import compile_frozen
from models.diffusion.encoder import VideoEncoder
from models.diffusion.frozen import Frozen
from models.segmenter import Segmenter
from util.config import Config
from util.precision import HALVES, precision_name, resolve_precision


def prepare_training(model: Segmenter, cfg: Config, device: torch.device) -> torch.amp.GradScaler | None:
    """Bring a model to the device that trains it, in the precision and form of its options.

    Args:
        model: with its weights, on the CPU.
        cfg: reads ``precision`` and ``compile``.
        device: where it goes.

    Returns:
        for float16 what scales the loss, else None.
    """
    dtype = resolve_precision(cfg.precision, device)
    set_precision(model, dtype)  # before it is moved: half as many bytes
    model.to(device)
    if cfg.compile:
        compile_frozen(model)
    return torch.amp.GradScaler(device.type) if dtype == torch.float16 else None


def prepare_inference(model: Segmenter, cfg: Config, device: torch.device) -> Segmenter:
    """Bring a model to the device that it segments on, in the precision and form of its options, in evaluation mode.

    Args:
        model: with its weights, on the CPU.
        cfg: reads ``precision`` and ``compile``.
        device: where it goes.
    """
    set_precision(model, resolve_precision(cfg.precision, device, training=False))
    if isinstance(model.encoder, VideoEncoder):
        model.encoder.precision = torch.float32  # its trained parts are small, and a third of the masks' error
    if device.type == "cpu" and isinstance(model.encoder, VideoEncoder) and model.encoder.vae.held:
        # a sixth faster there; the order of additions is another, and float32 stays as it was
        for weight in model.encoder.vae.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    if cfg.compile:
        compile_frozen(model)
    return model.to(device).eval()


def with_named_precision(cfg: Config, device: torch.device) -> Config:
    """A configuration whose precision at inference is named: masks of two machines' ``auto`` never mix."""
    return replace(cfg, precision=precision_name(resolve_precision(cfg.precision, device, training=False)))


def set_precision(model: Segmenter, dtype: torch.dtype) -> None:
    """Let a model hold its frozen parts and compute in a precision, in place; float32 leaves it as it is.

    What is trained stays float32, and so do the places that say so (``util.precision.in_float32``) and everything
    the model predicts. Another backbone in the stack's place stays float32, too, and computes under autocast.

    Args:
        model: with its weights. Half of their digits are lost: hash or store frozen parts before.
        dtype: float32, bfloat16 or float16.
    """
    if dtype not in HALVES:
        return
    model.precision = model.encoder.precision = dtype
    stack = model.encoder if isinstance(model.encoder, VideoEncoder) else None
    for part in (*(stack.children() if stack else ()), model.sentence_encoder.backbone):
        if isinstance(part, Frozen):
            part.hold(dtype)
