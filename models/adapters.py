"""Reading the authors' released checkpoints: their parameter names in, this project's names out.

Every key of a released checkpoint is either mapped, or on the list of parts that the models never
use, or an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from util.errors import UserError

Value = TypeVar("Value")

_DECODER = r"(?:transformer\.decoder\.)?"
_BACKBONE = r"backbone\.(?:0\.diff_ftex|diff_feature_extract)\."  # VD-IT, HCD

UNUSED = (
    r"sentence_proj\..*",  # frozen and never called in the released code
    _BACKBONE + r"unet\.(up_blocks\.3|conv_norm_out|conv_out)\..*",  # behind the last tap
    _BACKBONE + r"vae\.(decoder|post_quant_conv)\..*",
    _BACKBONE + r"cv_model\.visual_projection\..*",  # CLIP's joint space; the tokens are read before it
    r"text_encoder\.text_backbone\.pooler\..*",
    r".*\.position_ids",  # constant buffers of older transformers versions
)

RENAMES = (
    (r"query_tensors", "language_queries.vectors"),
    (r"fusion_module\.multihead_attn\.(.*)", r"language_queries.attention.\1"),
    (r"text_proj\.fc\.(.*)", r"sentence_encoder.linear.\1"),
    (r"text_proj\.layer_norm\.(.*)", r"sentence_encoder.norm.\1"),
    (r"text_encoder\.text_backbone\.(.*)", r"sentence_encoder.backbone.module.\1"),
    (r"query_embed\.weight", "transformer.query_position"),
    (r"transformer\.level_embed", "transformer.level_embed"),
    (r"transformer\.reference_points\.(.*)", r"transformer.reference_point.\1"),
    (r"input_proj\.(.*)", r"transformer.input_proj.\1"),
    (r"transformer\.encoder\.layers\.(\d+)\.self_attn\.(.*)", r"transformer.encoder.\1.attention.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm1\.(.*)", r"transformer.encoder.\1.norm.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm2\.(.*)", r"transformer.encoder.\1.feed_forward.norm.\2"),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(linear[12])\.(.*)", r"transformer.\1.\2.feed_forward.\3.\4"),
    (r"transformer\.decoder\.layers\.(\d+)\.(self|cross)_attn\.(.*)", r"transformer.decoder.\1.\2_attention.\3"),
    # Deformable DETR numbers its norms in the order of definition; self-attention runs first.
    (r"transformer\.decoder\.layers\.(\d+)\.norm2\.(.*)", r"transformer.decoder.\1.norm1.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm1\.(.*)", r"transformer.decoder.\1.norm2.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm3\.(.*)", r"transformer.decoder.\1.feed_forward.norm.\2"),
    (_DECODER + r"bbox_embed\.(.*)", r"transformer.box_heads.\1"),
    (r"class_embed\.(.*)", r"class_heads.\1"),
    (r"controller\.(.*)", r"mask_head.controller.\1"),
    (r"mask_refine\.conv1_1div([48])\.(.*)", r"refinement.refine\1.1.\2"),
    (r"mask_refine\.conv2_1div([48])\.(.*)", r"refinement.refine\1.3.\2"),
    (_BACKBONE + r"projection\.(.*)", r"encoder.image_projection.\1"),
    (_BACKBONE + r"cross_attn\.cros_attn\.w_qs\.(.*)", r"encoder.fusion.query.\1"),
    (_BACKBONE + r"cross_attn\.cros_attn\.w_ks\.(.*)", r"encoder.fusion.key.\1"),
    (_BACKBONE + r"cross_attn\.cros_attn\.w_vs\.(.*)", r"encoder.fusion.value.\1"),
    (_BACKBONE + r"cross_attn\.cros_attn\.fc\.(.*)", r"encoder.fusion.output.\1"),
    (_BACKBONE + r"cross_attn\.cros_attn\.layer_norm\.(.*)", r"encoder.fusion.norm1.\1"),
    (_BACKBONE + r"cross_attn\.pos_ffn\.w_([12])\.(.*)", r"encoder.fusion.linear\1.\2"),
    (_BACKBONE + r"cross_attn\.pos_ffn\.layer_norm\.(.*)", r"encoder.fusion.norm2.\1"),
    (_BACKBONE + r"noise_pred\.(.*)", r"encoder.noise.conv.\1"),
    (_BACKBONE + r"noise_fc\.0\.(.*)", r"encoder.noise.linear1.\1"),
    (_BACKBONE + r"noise_fc\.2\.(.*)", r"encoder.noise.linear2.\1"),
    (r"backbone\.0\.diff_ftex\.act_(?:1_postprocess|postprocess\.0)\.(.*)", r"encoder.stride4.project.\1"),
    (r"backbone\.0\.diff_ftex\.act_(?:2_postprocess|postprocess\.1)\.(.*)", r"encoder.levels.0.\1"),
    (r"backbone\.0\.diff_ftex\.act_(?:3_postprocess|postprocess\.2)\.(.*)", r"encoder.levels.1.\1"),
    (r"backbone\.0\.diff_ftex\.act_(?:4_postprocess|postprocess\.3)\.(.*)", r"encoder.levels.2.\1"),
    # HCD has no convolutions at level 0, so its list of levels begins with level 1.
    (r"backbone\.diff_feature_extract\.act_(?:2_postprocess|postprocess\.0)\.(.*)", r"encoder.levels.0.\1"),
    (r"backbone\.diff_feature_extract\.act_(?:3_postprocess|postprocess\.1)\.(.*)", r"encoder.levels.1.\1"),
    (r"backbone\.diff_feature_extract\.act_(?:4_postprocess|postprocess\.2)\.(.*)", r"encoder.levels.2.\1"),
    (_BACKBONE + r"first_feature\.down_sample\.(.*)", r"encoder.stride4.spatial.\1"),
    (_BACKBONE + r"first_feature\.conv_temporal\.(.*)", r"encoder.stride4.temporal.\1"),
    (r"linear3_16\.(.*)", r"query_dot_head.mix.\1"),
    (_BACKBONE + r"unet\.(.*)", r"encoder.unet.module.\1"),
    (_BACKBONE + r"vae\.(.*)", r"encoder.vae.module.\1"),
    (_BACKBONE + r"text_encoder\.(?:text_model\.)?(.*)", r"encoder.text_encoder.module.\1"),
    (_BACKBONE + r"cv_model\.(.*)", r"encoder.image_encoder.module.\1"),
)

_RENAMES = tuple((re.compile(pattern), name) for pattern, name in RENAMES)
_UNUSED = re.compile("|".join(UNUSED))


def convert_name(name: str) -> str | None:
    """This project's name of a released parameter; None where the models never use it.

    Raises:
        UserError: the name is unknown.
    """
    if _UNUSED.fullmatch(name):
        return None
    for pattern, ours in _RENAMES:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(ours)
    raise UserError(f"the checkpoint holds {name}, which is part of neither VD-IT nor HCD, nor known to be unused")


def convert_authors(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a released state dict (of tensors or of anything else) and leave out what is never used.

    Aliases of one tensor come out as one entry.

    Raises:
        UserError: a name is unknown.
    """
    renamed = {}
    for name, value in state.items():
        ours = convert_name(name)
        if ours is not None:
            renamed[ours] = value
    return renamed


def load_converted(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load a converted state dict; the frozen parts may be left out, as they are in the model already.

    Raises:
        UserError: a trained parameter is missing, a name is not the model's, or a shape differs.
    """
    own = model.state_dict()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, value in state.items():
        if name not in own:
            raise UserError(f"the checkpoint holds {name}, which this model does not have")
        if own[name].shape != value.shape:
            raise UserError(
                f"the checkpoint's {name} has shape {list(value.shape)}, the model's {list(own[name].shape)}; "
                "the sizes of checkpoint and configuration differ"
            )
    missing = sorted(trained - state.keys())
    if missing:
        raise UserError(f"the checkpoint lacks {missing[0]} and {len(missing) - 1} more trained parameters")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)
