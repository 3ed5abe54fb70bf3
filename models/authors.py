"""Converts checkpoints from and to the authors' layout, ``{"model": weights, "epoch": …, "args": argparse.Namespace}``.
REM's has ``unet``, the weights by diffusers' names, in place of ``model``. An ``optimizer`` in it is not used.

Every weight of a released checkpoint either has a name in this project, or is on the list of those that the models
never use. Any other weight is an error.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from models.diffusion.stack import StockParts
from util.checkpoint import is_state
from util.errors import UserError

Value = TypeVar("Value")

BACKBONE = {"vdit": "backbone.0.diff_ftex.", "hcd": "backbone.diff_feature_extract."}
"""Prefix of the names of the visual encoder, which differs between the two models."""

UNUSED = (
    "sentence_proj.{rest}",  # frozen and never called in the released code
    "@unet.up_blocks.3.{rest}",  # after the last tap
    "@unet.conv_norm_out.{rest}",
    "@unet.conv_out.{rest}",
    "@vae.decoder.{rest}",
    "@vae.post_quant_conv.{rest}",
    "text_encoder.text_backbone.pooler.{rest}",
    "{rest}.position_ids",  # constant buffers of older transformers versions
)
"""Names in released checkpoints that the models never use, as templates; ``@`` is the ``BACKBONE`` of the model."""

NAMES = (
    ("query_tensors", "language_queries.vectors"),
    ("fusion_module.multihead_attn.{rest}", "language_queries.attention.{rest}"),
    ("text_proj.fc.{rest}", "sentence_encoder.linear.{rest}"),
    ("text_proj.layer_norm.{rest}", "sentence_encoder.norm.{rest}"),
    ("text_encoder.text_backbone.{rest}", "sentence_encoder.backbone.module.{rest}"),
    ("query_embed.weight", "transformer.query_position"),
    ("transformer.level_embed", "transformer.level_embed"),
    ("transformer.reference_points.{rest}", "transformer.reference_point.{rest}"),
    ("input_proj.{rest}", "transformer.input_proj.{rest}"),
    ("transformer.encoder.layers.{n}.self_attn.{rest}", "transformer.encoder.{n}.attention.{rest}"),
    ("transformer.encoder.layers.{n}.norm1.{rest}", "transformer.encoder.{n}.norm.{rest}"),
    ("transformer.encoder.layers.{n}.norm2.{rest}", "transformer.encoder.{n}.feed_forward.norm.{rest}"),
    ("transformer.encoder.layers.{n}.linear{k}.{rest}", "transformer.encoder.{n}.feed_forward.linear{k}.{rest}"),
    ("transformer.decoder.layers.{n}.linear{k}.{rest}", "transformer.decoder.{n}.feed_forward.linear{k}.{rest}"),
    ("transformer.decoder.layers.{n}.self_attn.{rest}", "transformer.decoder.{n}.self_attention.{rest}"),
    ("transformer.decoder.layers.{n}.cross_attn.{rest}", "transformer.decoder.{n}.cross_attention.{rest}"),
    # Deformable DETR numbers its norms in the order of definition; self-attention runs first.
    ("transformer.decoder.layers.{n}.norm2.{rest}", "transformer.decoder.{n}.norm1.{rest}"),
    ("transformer.decoder.layers.{n}.norm1.{rest}", "transformer.decoder.{n}.norm2.{rest}"),
    ("transformer.decoder.layers.{n}.norm3.{rest}", "transformer.decoder.{n}.feed_forward.norm.{rest}"),
    ("bbox_embed.{rest}", "transformer.box_heads.{rest}"),
    ("class_embed.{rest}", "class_heads.{rest}"),
    ("controller.{rest}", "mask_head.controller.{rest}"),
    ("mask_refine.conv1_1div{n}.{rest}", "refinement.refine{n}.1.{rest}"),
    ("mask_refine.conv2_1div{n}.{rest}", "refinement.refine{n}.3.{rest}"),
    ("@projection.{rest}", "encoder.image_projection.{rest}"),
    ("@cross_attn.cros_attn.w_qs.{rest}", "encoder.fusion.query.{rest}"),
    ("@cross_attn.cros_attn.w_ks.{rest}", "encoder.fusion.key.{rest}"),
    ("@cross_attn.cros_attn.w_vs.{rest}", "encoder.fusion.value.{rest}"),
    ("@cross_attn.cros_attn.fc.{rest}", "encoder.fusion.output.{rest}"),
    ("@cross_attn.cros_attn.layer_norm.{rest}", "encoder.fusion.norm1.{rest}"),
    ("@cross_attn.pos_ffn.w_{k}.{rest}", "encoder.fusion.linear{k}.{rest}"),
    ("@cross_attn.pos_ffn.layer_norm.{rest}", "encoder.fusion.norm2.{rest}"),
    ("@unet.{rest}", "encoder.unet.module.{rest}"),
    ("@vae.{rest}", "encoder.vae.module.{rest}"),
    ("@text_encoder.text_model.{rest}", "encoder.text_encoder.module.{rest}"),
    ("@cv_model.{rest}", "encoder.image_encoder.module.{rest}"),
)
"""The authors' names and this project's, as templates; ``@`` is the ``BACKBONE`` of the model."""

OWN_NAMES = {
    "vdit": (
        ("@noise_pred.{rest}", "encoder.noise.conv.{rest}"),
        ("@noise_fc.0.{rest}", "encoder.noise.linear1.{rest}"),
        ("@noise_fc.2.{rest}", "encoder.noise.linear2.{rest}"),
    ),
    "hcd": (
        ("@first_feature.down_sample.{rest}", "encoder.stride4.spatial.{rest}"),
        ("@first_feature.conv_temporal.{rest}", "encoder.stride4.temporal.{rest}"),
        ("linear3_16.{rest}", "query_dot_head.mix.{rest}"),
    ),
}
"""Names that only one of the models has."""

LEVELS = {
    "vdit": ("encoder.stride4.project", "encoder.levels.0", "encoder.levels.1", "encoder.levels.2"),
    # HCD has no convolutions at level 0, so its list of levels begins with level 1.
    "hcd": ("encoder.levels.0", "encoder.levels.1", "encoder.levels.2"),
}
"""The modules that are called ``act_postprocess.0``, ``.1``, … there, and also ``act_K_postprocess`` with K up to 4."""

_FIELDS = {"{n}": r"(?P<n>\d+)", "{k}": r"(?P<k>[12])", "{rest}": r"(?P<rest>.+)"}


class AuthorsNames:
    """The names of one of the two models.

    Args:
        model: ``vdit`` or ``hcd``.
    """

    def __init__(self, model: str) -> None:
        levels = LEVELS[model]
        first = 5 - len(levels)
        names = [*NAMES, *OWN_NAMES[model]]
        names += [(f"@act_{first + i}_postprocess.{{rest}}", f"{to}.{{rest}}") for i, to in enumerate(levels)]
        # Released checkpoints hold these tensors a second time, under another name.
        names += [(f"@act_postprocess.{i}.{{rest}}", f"{to}.{{rest}}") for i, to in enumerate(levels)]
        names.append(("transformer.decoder.bbox_embed.{rest}", "transformer.box_heads.{rest}"))
        newer = ("@text_encoder.{rest}", "encoder.text_encoder.module.{rest}")  # newer transformers
        self._unused = [_pattern(theirs, model) for theirs in UNUSED]
        self._ours = [(_pattern(theirs, model), ours) for theirs, ours in (*names, newer)]
        self._theirs = [(_pattern(ours, model), theirs.replace("@", BACKBONE[model])) for theirs, ours in names]

    def ours(self, theirs: str) -> str | None:
        """This project's name of a released parameter; None if the models never use it.

        Raises:
            UserError: the name is unknown.
        """
        if any(pattern.fullmatch(theirs) for pattern in self._unused):
            return None
        for pattern, ours in self._ours:
            match = pattern.fullmatch(theirs)
            if match:
                return ours.format(**match.groupdict())
        raise UserError(f"the checkpoint holds {theirs}, which is a weight of neither VD-IT nor HCD; check the path")

    def theirs(self, ours: str) -> list[str]:
        """The released name of one of this project's parameters, and its alias if it has one.

        Raises:
            UserError: the released models have no such parameter.
        """
        matches = ((pattern.fullmatch(ours), theirs) for pattern, theirs in self._theirs)
        names = [theirs.format(**match.groupdict()) for match, theirs in matches if match]
        if not names:
            raise UserError(f"the authors' layout has no place for {ours}, which comes from an option of this project")
        return names


def _pattern(template: str, model: str) -> re.Pattern[str]:
    text = re.escape(template.replace("@", BACKBONE[model]))
    for field, pattern in _FIELDS.items():
        text = text.replace(re.escape(field), pattern)
    return re.compile(text)


class UNetNames:
    """The names of REM: those of diffusers."""

    prefix = "encoder.unet.module."

    def ours(self, theirs: str) -> str:
        """This project's name of a released parameter."""
        return self.prefix + theirs

    def theirs(self, ours: str) -> list[str]:
        """The released name of one of this project's parameters.

        Raises:
            UserError: it is not a parameter of the UNet.
        """
        if not ours.startswith(self.prefix):
            raise UserError(f"the authors' layout has no place for {ours}, which comes from an option of this project")
        return [ours.removeprefix(self.prefix)]


@cache
def authors_names(model: str) -> AuthorsNames | UNetNames:
    """The names of a model in the authors' layout."""
    return UNetNames() if model == "rem" else AuthorsNames(model)


def authors_model(names: Collection[str]) -> str:
    """The model whose parameters have these names in the authors' layout: ``vdit`` or ``hcd``.

    Raises:
        UserError: it is neither.
    """
    found = [model for model, prefix in BACKBONE.items() if any(name.startswith(prefix) for name in names)]
    if len(found) != 1:
        raise UserError(
            "the file holds the weights of neither VD-IT nor HCD, nor is it a checkpoint of this project; give a "
            "checkpoint of one of these"
        )
    return found[0]


def convert_authors(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a released state dict (of tensors or anything else) and drop what is never used.

    Aliases of one tensor become one entry.

    Raises:
        UserError: the names belong to neither model, one is unknown, or two aliases differ.
    """
    table = AuthorsNames(authors_model(state))
    renamed: dict[str, Value] = {}
    sources: dict[str, str] = {}
    for name, value in state.items():
        ours = table.ours(name)
        if ours is None:
            continue
        if ours in renamed and not _same(renamed[ours], value):
            raise UserError(
                f"the checkpoint's {sources[ours]} and {name} should be one tensor, but differ; the file is damaged, "
                "download it again"
            )
        renamed.setdefault(ours, value)
        sources.setdefault(ours, name)
    return renamed


def _same(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        shared = first.data_ptr() == second.data_ptr() and first.shape == second.shape
        return shared or torch.equal(first, second)
    return first == second


SIZES = (
    *("hidden_dim", "dim_feedforward", "enc_layers", "dec_layers", "nheads", "enc_n_points", "dec_n_points"),
    *("num_queries", "dropout", "dynamic_mask_channels"),
)
"""Options of the model with the same name and meaning in both layouts."""

KEPT = "sentence_proj."
"""Prefix of unused weights that no pretrained part has; a converted checkpoint keeps them for the conversion back."""


_WRAPPED = re.compile(r"^module\.|base_model\.model\.|base_layer\.")
"""What DistributedDataParallel and peft add to names."""
_ADAPTER = re.compile(r"(\.lora_[AB])\.weight$")
LORA = ".lora_"
"""Part of the name of every adapter weight, and of no other."""


def authors_weights(content: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a file in the authors' layout, by their names without wrappers; empty for any other file.

    Beside the authors' dict they may be in that of other trainers, or be the whole file.
    """
    if "format" in content:  # of this project
        return {}
    states = (content.get("model"), content.get("unet"), content.get("state_dict"), content.get("weights"), content)
    state = next((state for state in states if state and is_state(state)), {})
    return {_ADAPTER.sub(r"\1.default.weight", _WRAPPED.sub("", name)): value for name, value in state.items()}


def read_authors(content: dict[str, Any], state: dict[str, Tensor], path: str | Path) -> dict[str, Any]:
    """Convert the content of an authors' checkpoint to that of this project's (``util.checkpoint``).

    Args:
        content: of the file.
        state: its ``authors_weights``.
        path: the file, for messages.

    Raises:
        UserError: it belongs to neither model, or a name is unknown.
    """
    if all(LORA in name for name in state):
        raise UserError(f"{path} holds LoRA adapters alone; give the checkpoint of the whole model")
    plain = _plain_args(content)
    if not is_state(content.get("model")) and is_state(content.get("unet")):  # REM
        model, weights = "rem", {UNetNames.prefix + name: value for name, value in state.items()}
        side = 256 if plain.get("half") is True else 512  # of its frames
        options: dict[str, Any] = {"eval_size": side, "train_scales": [side], "crop_scales": []}
    else:
        try:
            model, weights = authors_model(state), convert_authors(state)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        options = {name: plain[name] for name in (*SIZES, "lora_alpha") if name in plain}
        options |= _pyramid(weights, model)
    rank = next((len(value) for name, value in weights.items() if name.endswith(".lora_A.default.weight")), 0)
    return {
        "model": model,
        "config": {"model": model, "lora_rank": rank, **options},
        "weights": weights,
        "frozen": {},
        "unused": {name: value for name, value in state.items() if name.startswith(KEPT)},
        "args": plain,
        "epoch": content.get("epoch") if isinstance(content.get("epoch"), int) else 0,
    }


def _plain_args(content: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the authors' training that are plain values."""
    args = content.get("args")
    given = vars(args) if isinstance(args, argparse.Namespace) else {}
    return {str(name): value for name, value in given.items() if _is_plain(value)}


def _is_plain(value: Any, depth: int = 2) -> bool:
    """Whether a value can be written as JSON: a list in a pickle may hold itself."""
    return (
        value is None
        or isinstance(value, (bool, int, float, str))
        or (isinstance(value, (list, tuple)) and depth > 0 and all(_is_plain(item, depth - 1) for item in value))
    )


def _pyramid(weights: dict[str, Tensor], model: str) -> dict[str, list[int]]:
    """``pyramid_channels``, from the last convolution of every level."""
    level0 = ["encoder.stride4.spatial.5"] if model == "hcd" else []
    found = [weights.get(f"{name}.weight") for name in (*level0, *(f"{level}.1" for level in LEVELS[model]))]
    return {"pyramid_channels": [len(weight) for weight in found if weight is not None]}


def authors_state(
    weights: Mapping[str, Tensor], model: str, stock: StockParts, kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Convert weights to the authors' layout, with everything that a released checkpoint holds.

    Args:
        weights: of a whole model, with its frozen parts, by this project's names, with LoRA merged.
        model: ``vdit`` or ``hcd``.
        stock: the parts that this project never loads.
        kept: the ``sentence_proj`` of an authors' checkpoint. Missing tensors are filled with zeros, or ones for the
            weight of a normalisation: nothing reads them.

    Returns:
        the state dict, in which two names of one tensor share it.

    Raises:
        UserError: a weight has no place in that layout.
    """
    names = AuthorsNames(model)
    state = {theirs: value for ours, value in weights.items() for theirs in names.theirs(ours)}
    whole = {
        **{f"{BACKBONE[model]}unet.{name}": value for name, value in stock.unet.items()},
        **{f"{BACKBONE[model]}vae.{name}": value for name, value in stock.vae.items()},
        **{f"text_encoder.text_backbone.{name}": value for name, value in stock.sentence_encoder.items()},
    }
    state.update({name: value for name, value in whole.items() if names.ours(name) is None})
    for name in ("fc.weight", "fc.bias", "layer_norm.weight", "layer_norm.bias"):
        like = state[f"text_proj.{name}"]
        neutral = torch.ones_like(like) if name == "layer_norm.weight" else torch.zeros_like(like)
        state[KEPT + name] = kept.get(KEPT + name, neutral)
    return state


def unet_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of REM's UNet by the authors' names; its other parts are the pretrained ones."""
    prefix = UNetNames.prefix
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
