"""Which options contradict each other, or would have no effect."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from util.errors import UserError

if TYPE_CHECKING:
    from util.config import Config


def check_together(config: Config) -> None:
    """Refuse values that contradict each other.

    Raises:
        UserError: the sentence names both options.
    """
    hidden = config.hidden_dim
    rules = (
        (hidden % config.nheads == 0, f"nheads must divide hidden_dim, and {config.nheads} does not divide {hidden}"),
        # group normalisation has 32 groups, and the position code splits the width into sines and cosines of x and y
        (hidden % 32 == 0, f"hidden_dim must be a multiple of 32, not {hidden}"),
        (bool(config.train_scales), "train_scales must name at least one scale"),
        (
            max((*config.train_scales, config.eval_size)) <= config.max_size,
            f"max_size ({config.max_size}) bounds the longer side, and must be at least every shorter side in "
            f"train_scales ({max(config.train_scales, default=0)}) and eval_size ({config.eval_size})",
        ),
        (
            config.crop_range[0] <= config.crop_range[1],
            f"crop_range must be least and greatest side in this order, not {list(config.crop_range)}",
        ),
        (
            all(first < second for first, second in pairwise(config.lr_drop)),
            f"lr_drop must be epochs in rising order, not {list(config.lr_drop)}",
        ),
        (
            any(getattr(config, f"set_cost_{part}") for part in ("class", "bbox", "giou", "mask", "dice")),
            "at least one of the set_cost_* options must be above 0, or no query can be matched",
        ),
        (bool(config.lora_targets), "lora_targets must name at least one layer; --lora_rank 0 is without LoRA"),
        *_backbone_rules(config),
    )
    for good, sentence in rules:
        if not good:
            raise UserError(sentence)


def _backbone_rules(config: Config) -> list[tuple[bool, str]]:
    """What holds of the backbone's options; a setting that would have no effect is refused, lest a table claim it."""
    name = config.backbone
    if name == "t2v":
        return [
            (not config.backbone_weights, "backbone_weights is for other backbones; t2v's are named by pretrained"),
            (not config.train_backbone, "train_backbone is for other backbones; t2v is adapted by lora_rank"),
        ]
    return [
        (value in absent, f"{option} {value} has no effect with backbone {name}; leave it at {absent[0]}")
        for option, value, absent in (
            ("noise", config.noise, ("auto", "none")),
            ("stride4", config.stride4, ("auto",)),
            ("lora_rank", config.lora_rank, ("auto", 0)),
            ("unet_text", config.unet_text, (True,)),
            ("image_tokens", config.image_tokens, (True,)),
            ("compile", config.compile, (False,)),
        )
    ]
