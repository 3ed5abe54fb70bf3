"""Models: ``build_model`` and ``build_criterion`` are the only places that read a configuration.

VD-IT (arXiv 2403.12042) = encoder with predicted noise and VAE tap + dynamic mask head.
HCD (arXiv 2508.13584) = encoder without noise, with temporal stem and LoRA + dynamic mask head + query-dot head.
Noise, stride-4 feature, LoRA and backbone each have an option, and can be exchanged alone (docs/ablations.md); the
query-dot head comes with the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.backbones import BackboneEncoder, build_backbone
from models.criterion import Criterion
from models.defaults import resolved
from models.deformable_transformer import DeformableTransformer
from models.diffusion.encoder import VideoEncoder
from models.diffusion.stack import FrozenStack, load_sentence_encoder, load_stack
from models.diffusion.stride4 import TemporalStem, VAETap
from models.lora import add_lora, has_lora, merge_lora, merged_state
from models.mask_heads import DynamicMaskHead, MaskRefinement, QueryDotHead
from models.matcher import Matcher
from models.segmenter import Segmenter
from models.text_encoder import LanguageQueries, SentenceEncoder
from util.config import Config

if TYPE_CHECKING:
    from models.pretrained import load_pretrained

__all__ = [
    "Criterion",
    "Segmenter",
    "build_criterion",
    "build_model",
    "has_lora",
    "load_pretrained",
    "merge_lora",
    "merged_state",
    "trained_parameters",
]

T2V = "t2v"


def build_model(cfg: Config, stack: FrozenStack | None = None) -> Segmenter:
    """The model that a configuration names, on the CPU, with its frozen parts.

    Args:
        cfg: the configuration.
        stack: frozen parts already loaded; None: those needed are loaded from ``cfg.pretrained`` and the like.

    Raises:
        UserError: a frozen part or the backbone cannot be loaded.
    """
    encoder: VideoEncoder | BackboneEncoder
    if cfg.backbone == T2V:
        stack = stack or load_stack(cfg.pretrained, cfg.image_encoder, cfg.text_encoder)
        encoder = _build_encoder(cfg, stack)
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


def _build_encoder(cfg: Config, stack: FrozenStack) -> VideoEncoder:
    """The text-to-video backbone, with LoRA where its rank is above 0."""
    noise, stride4, rank = (
        resolved(cfg.model, option, getattr(cfg, option)) for option in ("noise", "stride4", "lora_rank")
    )
    c4, c8, c16, c32 = cfg.pyramid_channels
    stack.unet.recompute = cfg.gradient_checkpointing
    encoder = VideoEncoder(
        stack,
        TemporalStem(c4) if stride4 == "stem" else VAETap(stack.vae.stride4_channels, c8, c4),
        (c4, c8, c16, c32),
        noise,
        cfg.image_tokens,
        cfg.posterior,
        cfg.unet_text,
    )
    if rank:
        add_lora(encoder.unet, rank, cfg.lora_alpha, cfg.lora_dropout, cfg.lora_targets)
    return encoder


def build_criterion(cfg: Config) -> Criterion:
    """Matcher and loss weights of a configuration."""
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


def trained_parameters(model: Segmenter) -> dict[str, int]:
    """Name → number of elements of every parameter that is trained."""
    return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}


def __getattr__(name: str) -> Any:
    """``load_pretrained``, which builds on all of the above and is imported when it is asked for."""
    if name == "load_pretrained":
        from models.pretrained import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
