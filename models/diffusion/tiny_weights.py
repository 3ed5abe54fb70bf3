"""Random weights of the tiny frozen stack.

A frozen random network is of use only while pixels can be told apart in its features and the features stay in
range, so the weights are not the libraries' initial ones:

- diffusers starts the temporal convolutions' last layer at zero; here it is random, so that time matters;
- residual branches are weak, above all temporal ones: colours and positions survive the depth;
- spatial kernels fade from their centre: an object's features stay where it is;
- the VAE's latents have standard deviation 1 after scaling, as the published VAE's, and a posterior nearly without
  variance; with initial weights they would drown in the noise that VD-IT adds at step 0.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

BRANCH_ENDS = (
    *("conv2.weight", "conv4.3.weight", "proj_out.weight", "to_out.0.weight", "ff.net.2.weight"),  # diffusers
    *("out_proj.weight", "fc2.weight", "output.dense.weight"),  # transformers
)
"""Names of the layers that end a residual branch."""
TEMPORAL_ENDS = ("transformer_in.proj_out.weight", "conv4.3.weight")
BRANCH_GAIN = {"unet": 0.7, "vae": 0.2, "text_encoder": 0.3, "clip": 0.3, "roberta": 0.3}
TEMPORAL_GAIN = 0.2
POSITION_STD = 0.3
KERNEL_EDGE = 0.5
"""Weight of a 3×3 kernel's edge against its centre, per axis."""
LATENT_GAIN = 13.0
"""Makes the standard deviation of the scaled latents of natural images about 1."""
POSTERIOR_LOG_VARIANCE = -15.0


@torch.no_grad()
def randomise(model: nn.Module, part: str, seed: int) -> None:
    """Give every parameter of a model its random value, in place.

    Args:
        model: a model of the stack.
        part: its subfolder in the stack.
        seed: of the stack.
    """
    for name, parameter in model.named_parameters():
        parameter.copy_(random_weight(part, name.removeprefix("text_model."), parameter.shape, seed))


def random_weight(part: str, name: str, shape: torch.Size, seed: int) -> Tensor:
    """The random value of one parameter of the stack; nothing but the arguments decides it.

    Args:
        part: the subfolder of the model that the parameter belongs to.
        name: its name in the model.
        shape: its shape; a matrix's or kernel's first axis is its output.
        seed: of the stack.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{part}/{name}".encode()))
    value = torch.randn(shape, generator=generator)
    if name == "quant_conv.bias":
        return torch.cat([torch.zeros(shape[0] // 2), torch.full((shape[0] // 2,), POSTERIOR_LOG_VARIANCE)])
    if name == "quant_conv.weight":
        mean, log_variance = value.chunk(2)
        return torch.cat([mean * LATENT_GAIN, log_variance * 0.1]) / math.sqrt(shape[1])
    if "position_embedding" in name or "token_type_embedding" in name:
        return value * POSITION_STD
    if name.endswith(("token_embedding.weight", "word_embeddings.weight", "class_embedding")):
        return value
    if len(shape) == 1:
        return 0.05 * value + (0.0 if name.endswith("bias") else 1.0)
    value = value / math.sqrt(math.prod(shape[1:]))
    if shape[2:] == (3, 3):
        profile = torch.tensor([KERNEL_EDGE, 1.0, KERNEL_EDGE])
        kernel = profile[:, None] * profile
        value = value * kernel / kernel.square().mean().sqrt()
    if name.endswith(BRANCH_ENDS):
        temporal = name.endswith(TEMPORAL_ENDS) or ("temp_attentions" in name and name.endswith("proj_out.weight"))
        value = value * (TEMPORAL_GAIN if temporal else BRANCH_GAIN[part])
    return value
