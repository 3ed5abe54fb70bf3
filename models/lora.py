"""LoRA on a frozen UNet or transformer (HCD; Hu et al., "LoRA", ICLR 2022), with the ``peft`` library.

An adapted layer computes W x + (alpha / rank) · B A dropout(x). W stays frozen, A and B are trained, and B starts at
zero, so that training starts from the pretrained function. Merged into W, adapters cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from models.frozen import Frozen

ADAPTER = "default"
"""The name of the adapters in peft, part of the names of their parameters."""


def add_lora(
    denoiser: Frozen, rank: int, alpha: float, dropout: float = 0.0, targets: Sequence[str] = ("to_q", "to_v")
) -> None:
    """Add trained adapters to layers of a frozen module, in place; their dropout follows the training mode.

    Adapters of layers that are never called get no gradient: with single frames (T = 1), those of temporal attentions.

    Args:
        denoiser: the UNet or transformer of the encoder.
        rank: width of an adapter, at least 1.
        alpha: the output of an adapter is scaled by alpha / rank.
        dropout: probability of dropping an input of an adapter.
        targets: suffixes of the names of the layers that get one; ``to_q`` and ``to_v`` are the query and value
            projections of every attention (spatial, temporal and cross).

    Raises:
        ValueError: no layer has such a name, or the module has adapters already.
    """
    if has_lora(denoiser):
        raise ValueError("the module has LoRA adapters already")
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))  # type: ignore[arg-type]
    inject_adapter_in_model(config, denoiser.module, ADAPTER)
    for _, layer in _adapted_layers(denoiser):
        layer.cast_input_dtype_enabled = False
        for matrix in (layer.lora_A, layer.lora_B):
            matrix[ADAPTER] = AdapterLinear(matrix[ADAPTER].weight)
    denoiser.adapter_dropouts = tuple(layer.lora_dropout for _, layer in _adapted_layers(denoiser))


class AdapterLinear(nn.Module):
    """A linear layer without bias that computes in the precision of its input.

    Its trained weight stays float32 in a part that is held in half precision.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` → ``[..., out]``."""
        return F.linear(x, self.weight.to(x.dtype))


def has_lora(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(True for _ in _adapted_layers(model))


def merge_lora(model: nn.Module) -> None:
    """Merge every adapter of a model into its layer, in place: the same function and the original names.

    The merged weights are frozen. A model without adapters stays as it is.
    """
    for name, layer in list(_adapted_layers(model)):
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    for module in model.modules():
        if isinstance(module, Frozen):
            module.adapter_dropouts = ()
        if "peft_config" in vars(module):  # left there by peft
            del module.peft_config


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that a model would have after ``merge_lora``; the model itself stays as it is.

    Args:
        model: with or without adapters: the UNet (``encoder.unet.module``), or the whole network.

    Returns:
        Weights under the names of the model without adapters. Those of adapted layers are new tensors.
    """
    state: dict[str, Tensor] = dict(model.state_dict())
    for name, layer in _adapted_layers(model):
        base = f"{name}.base_layer."
        for key in [key for key in state if key.startswith(f"{name}.")]:
            value = state.pop(key)
            if key.startswith(base):
                own = key.removeprefix(base)
                state[f"{name}.{own}"] = value + layer.get_delta_weight(ADAPTER) if own == "weight" else value
    return state


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Name and module of every layer with an adapter."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
