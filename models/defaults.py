"""What makes the two models what they are, as values of options: what "auto" means, and what a checkpoint implies."""

from __future__ import annotations

from typing import Any

from util.config import Config

OWN: dict[str, dict[str, Any]] = {
    "vdit": {"noise": "predicted", "stride4": "vae", "lora_rank": 0},
    "hcd": {"noise": "none", "stride4": "stem", "lora_rank": 16},
}
"""What an option that is "auto" means for each model."""

FUNCTION = ("noise", "image_tokens", "unet_text", "stride4", "backbone")
"""Options that decide what a model computes. The weights do not always tell: two kinds of noise have none."""


def resolved(model: str, option: str, value: Any) -> Any:
    """An option's value, "auto" as the model has it."""
    return OWN[model][option] if value == "auto" else value


def published(model: str, option: str) -> Any:
    """The value with which an option is as the model was published."""
    return resolved(model, option, getattr(Config, option))
