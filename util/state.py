"""The weights of a model that its checkpoints hold, and putting them back.

That is all that is trained, and those frozen parts that are not the pretrained ones but came with a checkpoint.

Adapters (LoRA) wrap a layer, whose weight is then called ``….base_layer.weight``; stored weights have the name that
the layer has without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from util.errors import UserError

LORA = ".lora_"
"""What names of adapters have in them, and no others."""


def stored_name(name: str) -> str:
    """The name under which a parameter is stored."""
    return name.replace(".base_layer.", ".")


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters of a model and the buffers of its trained parts (a norm's statistics), by name."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    frozen = tuple(f"{name}." for name, _ in frozen_parts(model))
    return {
        stored_name(name): value
        for name, value in model.state_dict().items()
        if (parameters[name].requires_grad if name in parameters else not name.startswith(frozen))
    }


def carried_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the frozen parts that came with a checkpoint, by name."""
    parts = (part_state(part, name) for name, part in frozen_parts(model) if part.carried)
    return {name: value for part in parts for name, value in part.items()}


def frozen_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every frozen part: they have an attribute ``carried``, whether they came with a checkpoint."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "carried"))


def part_state(part: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The weights of a frozen part by their stored names, without adapters."""
    state = part.state_dict()
    return {f"{prefix}.{stored_name(name)}": value for name, value in state.items() if LORA not in name}


def check_state(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | Path,
    optional: Callable[[str], bool] = lambda name: False,
    shown: Callable[[str], str] = str,
) -> None:
    """Refuse weights that are not this model's: all that is trained, and of a frozen part all or nothing.

    Args:
        model: on any device.
        weights: by stored names.
        path: where they are from, for the message.
        optional: which trained parameters may be missing.
        shown: what the file calls a parameter, for the message.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    own = {stored_name(name): value for name, value in model.state_dict().items()}
    strangers = sorted(weights.keys() - own.keys())
    if strangers:
        raise UserError(
            f"{path} holds {shown(strangers[0])}, which this model lacks; it was made with another configuration, or "
            "is damaged"
        )
    for name, value in weights.items():
        if own[name].shape != value.shape:
            raise UserError(
                f"{path} holds {shown(name)} of shape {list(value.shape)}, and this model's is "
                f"{list(own[name].shape)}; it was made with another configuration, or is damaged"
            )
    missing = sorted(name for name in trained_state(model).keys() - weights.keys() if not optional(name))
    if missing:
        raise UserError(
            f"{path} lacks {shown(missing[0])}"
            + (f" and {len(missing) - 1} more trained parameters" if len(missing) > 1 else "")
            + "; it was made with another configuration, or is damaged"
        )
    for name, part in frozen_parts(model):
        names = part_state(part, name).keys()
        lost = sorted(names - weights.keys())
        if lost and len(lost) < len(names):
            raise UserError(f"{path} lacks {shown(lost[0])}, and holds other weights of that part; it is incomplete")


def load_state(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | Path,
    optional: Callable[[str], bool] = lambda name: False,
    shown: Callable[[str], str] = str,
) -> None:
    """Copy weights into a model. A frozen part whose weights change by it is ``carried`` from then on.

    Args:
        model: changed only if all of the weights fit.
        weights: may be of another precision, and memory-mapped.
        path, optional, shown: as ``check_state`` takes them; what is missing keeps its value.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    check_state(model, weights, path, optional, shown)
    own = {stored_name(name): value for name, value in model.state_dict().items()}
    for name, part in frozen_parts(model):
        given = [key for key in part_state(part, name) if key in weights]
        if not all(torch.equal(own[key], weights[key].to(own[key])) for key in given):
            part.carried = True  # type: ignore[assignment]
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
