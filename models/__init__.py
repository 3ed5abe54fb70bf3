"""Builds the models, their loss, and their place on a device. In this package only the ``build_*`` functions,
``frozen_sources`` and ``open_pretrained`` read the configuration.

VD-IT (arXiv 2403.12042) = encoder with predicted noise and VAE tap + dynamic mask head.
HCD (arXiv 2508.13584) = encoder without noise, with temporal stem and LoRA + dynamic mask head + query-dot head.
REM (ICCV 2025) = the whole UNet, fine-tuned, and the decoder of the VAE (``models.rem``).
``KINDS`` has a row for each of them, and ``util.config.MODELS`` what options and commands know about it. In VD-IT and
HCD, noise, stride-4 feature, LoRA and backbone each have an option and can be changed independently
(docs/ablations.md); the query-dot head comes with the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from models.backbones import BackboneEncoder, build_backbone
from models.criterion import Criterion, Matcher
from models.deformable_transformer import DeformableTransformer
from models.diffusion.generators import GENERATORS, find_generator, generator_of
from models.diffusion.stack import WholeStack, empty_whole_stack, load_sentence_encoder, load_whole_stack, part_sources
from models.frozen import FineTuned, Frozen
from models.lora import add_lora, has_lora, merge_lora, merged_state
from models.mask_heads import DynamicMaskHead, MaskRefinement, QueryDotHead
from models.precision import HALVES, apply_precision, resolve_precision
from models.pyramid import PyramidEncoder, prepare_sentences
from models.rem import LatentCriterion, LatentEncoder, Rem, parameter_groups
from models.segmenter import Segmenter
from models.text_encoder import LanguageQueries, SentenceEncoder
from util.config import MODELS, Config
from util.errors import UserError
from util.options import AUTO

if TYPE_CHECKING:
    from models.pretrained import load_pretrained

__all__ = [
    "Criterion",
    "Rem",
    "SegmentationModel",
    "Segmenter",
    "build_criterion",
    "build_model",
    "build_parameter_groups",
    "frozen_sources",
    "has_lora",
    "load_pretrained",
    "merge_lora",
    "merged_state",
    "prepare_inference",
    "prepare_sentences",
    "prepare_training",
    "trained_parameters",
]

T2V = "t2v"

SegmentationModel = Segmenter | Rem
"""What ``build_model`` returns. All have the ``forward`` contract of ``Segmenter``, as far as it has a meaning."""


def resolved(model: str, option: str, value: Any) -> Any:
    """The value of an option, with the model's own value in place of "auto"."""
    return getattr(MODELS[model], option) if value == AUTO else value


def build_model(cfg: Config, stack: Any = None) -> SegmentationModel:
    """The model that a configuration names, on the CPU, with its frozen parts.

    Args:
        cfg: the configuration.
        stack: pretrained parts already loaded, of a generator (``models.diffusion.generators``); None: those needed are
            loaded from ``cfg.pretrained`` and the like.

    Raises:
        UserError: a pretrained part or the backbone cannot be loaded, or an option has no meaning for the generator.
    """
    return KINDS[cfg.model].build(cfg, stack)


def build_segmenter(cfg: Config, stack: Any = None) -> Segmenter:
    """VD-IT or HCD; arguments as for ``build_model``."""
    encoder: PyramidEncoder
    if cfg.backbone == T2V:
        generator = generator_of(stack) if stack else find_generator(cfg.pretrained)
        encoder, stack = generator.build_encoder(cfg, stack, asdict(MODELS[cfg.model]))
        rank = resolved(cfg.model, "lora_rank", cfg.lora_rank)
        if rank:
            add_lora(encoder.denoiser, rank, cfg.lora_alpha, cfg.lora_dropout, cfg.lora_targets)
    else:
        backbone = build_backbone(cfg.backbone, cfg.backbone_weights)
        encoder = BackboneEncoder(backbone, cfg.pyramid_channels, cfg.train_backbone)
    roberta, tokenizer = (
        (stack.sentence_encoder, stack.sentence_tokenizer)
        if stack
        else load_sentence_encoder(cfg.pretrained, cfg.text_encoder)
    )
    c4, c8, c16, c32 = cfg.pyramid_channels
    return Segmenter(
        encoder=encoder,
        sentence_encoder=SentenceEncoder(roberta, tokenizer, cfg.hidden_dim, cfg.dropout),
        language_queries=LanguageQueries(cfg.num_queries, cfg.hidden_dim),
        transformer=DeformableTransformer(
            in_channels=(c8, c16, c32),
            dim=cfg.hidden_dim,
            num_queries=cfg.num_queries,
            num_heads=cfg.nheads,
            hidden_dim=cfg.dim_feedforward,
            enc_layers=cfg.enc_layers,
            dec_layers=cfg.dec_layers,
            enc_points=cfg.enc_n_points,
            dec_points=cfg.dec_n_points,
            dropout=cfg.dropout,
        ),
        mask_head=DynamicMaskHead(cfg.hidden_dim, cfg.dynamic_mask_channels),
        query_dot_head=QueryDotHead() if cfg.model == "hcd" else None,
        refinement=MaskRefinement(c4, c8),
        dim=cfg.hidden_dim,
    )


def build_rem(cfg: Config, stack: WholeStack | None = None) -> Rem:
    """REM; arguments as for ``build_model``."""
    if stack is None and find_generator(cfg.pretrained) is not GENERATORS[0]:
        raise UserError(
            f"model rem is built on {GENERATORS[0].name}'s generator, and {cfg.pretrained} holds a different one"
        )
    noise, rank = (resolved(cfg.model, option, getattr(cfg, option)) for option in ("noise", "lora_rank"))
    encoder = LatentEncoder(
        stack or load_whole_stack(cfg.pretrained),
        noise=noise != "none",
        trained=not rank,
        frozen=cfg.freeze_layers,
        recompute=cfg.gradient_checkpointing,
    )
    if rank:
        add_lora(encoder.unet, rank, cfg.lora_alpha, cfg.lora_dropout, cfg.lora_targets)
    return Rem(encoder)


def build_criterion(cfg: Config) -> Criterion | LatentCriterion:
    """The loss of a configuration."""
    return KINDS[cfg.model].criterion(cfg)


def build_matching_criterion(cfg: Config) -> Criterion:
    """Matcher and loss weights of VD-IT and HCD."""
    matcher = Matcher(
        cost_class=cfg.set_cost_class,
        cost_bbox=cfg.set_cost_bbox,
        cost_giou=cfg.set_cost_giou,
        cost_mask=cfg.set_cost_mask,
        cost_dice=cfg.set_cost_dice,
        alpha=cfg.focal_alpha,
    )
    weights = {
        "loss_ce": cfg.cls_loss_coef,
        "loss_bbox": cfg.bbox_loss_coef,
        "loss_giou": cfg.giou_loss_coef,
        "loss_mask": cfg.mask_loss_coef,
        "loss_dice": cfg.dice_loss_coef,
        "loss_mask_low": cfg.mask_loss_coef,
        "loss_dice_low": cfg.dice_loss_coef,
    }
    return Criterion(matcher, weights, cfg.focal_alpha)


def build_parameter_groups(cfg: Config, model: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters of a model as groups for AdamW."""
    if MODELS[cfg.model].fine_tuned:
        return parameter_groups(model, cfg.weight_decay)
    return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": cfg.weight_decay}]


@dataclass(frozen=True)
class Kind:
    """How a model is built.

    Attributes:
        build: configuration and pretrained parts (or None) → the model.
        criterion: configuration → its loss.
        empty: folder of configuration files → its pretrained parts on the meta device, without tokenizers.
    """

    build: Callable[[Config, Any], SegmentationModel]
    criterion: Callable[[Config], Any]
    empty: Callable[[str | Path], Any]


_segmenter = Kind(
    build_segmenter, build_matching_criterion, lambda folder: find_generator(str(folder)).empty_stack(Path(folder))
)
KINDS = {
    "vdit": _segmenter,
    "hcd": _segmenter,
    "rem": Kind(build_rem, lambda cfg: LatentCriterion(), empty_whole_stack),
}


def frozen_sources(cfg: Config) -> dict[str, str]:
    """Where the frozen parts come from: part (``models.checkpoints.PARTS``) → local folder or hub id."""
    sources = part_sources(cfg.pretrained, cfg.image_encoder, cfg.text_encoder)
    return {**sources, "backbone": f"{cfg.backbone} {cfg.backbone_weights or 'random'}"}


def prepare_training(
    model: SegmentationModel, precision: str, device: torch.device, compiled: bool = False
) -> torch.amp.GradScaler | None:
    """Move a model to the device that trains it, in the given precision.

    Args:
        model: with its weights, on the CPU.
        precision: ``auto``, ``bf16``, ``fp16``, ``tf32`` or ``fp32``.
        device: the target device.
        compiled: compile the denoiser and the VAE.

    Returns:
        the scaler of the loss for float16, else None.
    """
    dtype = apply_precision(resolve_precision(precision, device))
    set_precision(model, dtype)  # before the move: half as many bytes
    model.to(device)
    if compiled:
        compile_frozen(model)
    return torch.amp.GradScaler(device.type) if dtype == torch.float16 else None


def prepare_inference(
    model: SegmentationModel, precision: str, device: torch.device, compiled: bool = False
) -> SegmentationModel:
    """Move a model to the device that segments, in the given precision and in evaluation mode.

    Args: as for ``prepare_training``.
    """
    for part in model.modules():
        if isinstance(part, FineTuned):
            part.requires_grad_(False)  # it can then be held in half precision, too
    set_precision(model, apply_precision(resolve_precision(precision, device, training=False)))
    if not isinstance(model.encoder, BackboneEncoder):
        model.encoder.precision = torch.float32  # its trained parts are small, and cause a third of the masks' error
        if device.type == "cpu" and model.encoder.vae.held:
            # A sixth faster on the CPU. It changes the order of additions, so float32 keeps its layout.
            for weight in model.encoder.vae.parameters():
                if weight.ndim == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    if compiled:
        compile_frozen(model)
    return model.to(device).eval()


def set_precision(model: SegmentationModel, dtype: torch.dtype) -> None:
    """Hold the frozen parts in half precision and compute in it, in place; float32 changes nothing.

    Trained weights stay float32, as do functions marked ``models.precision.in_float32`` and every prediction. A
    backbone other than the text-to-video stack also stays float32, and computes under autocast.

    Args:
        model: with its weights. Half of their digits are lost: hash or store frozen parts before.
        dtype: float32, bfloat16 or float16.
    """
    if dtype not in HALVES:
        return
    model.precision = model.encoder.precision = dtype
    for name, part in model.named_modules():
        if isinstance(part, Frozen) and name != "encoder.backbone":
            part.hold(dtype)


def compile_frozen(model: SegmentationModel) -> None:
    """Compile denoiser and VAE, which are most of the operations of a step, at their first call.

    The trained parts are many small operations and a custom operator, and gain nothing.
    """
    assert not isinstance(model.encoder, BackboneEncoder), "the configuration refuses --compile with other backbones"
    name = "the UNet" if hasattr(model.encoder, "unet") else "the transformer"
    model.encoder.denoiser.compile_with_fallback(name)
    model.encoder.vae.compile_with_fallback("the VAE")


def trained_parameters(model: nn.Module) -> dict[str, int]:
    """Name → number of elements of every parameter that is trained."""
    return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}


def __getattr__(name: str) -> Any:
    """Import ``load_pretrained``, which builds on all of the above, at its first use."""
    if name == "load_pretrained":
        from models.pretrained import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
