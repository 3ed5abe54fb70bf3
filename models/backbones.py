"""Discriminative backbones that replace the text-to-video stack in comparisons.

``swin3d_t``, ``swin3d_s`` and ``swin3d_b`` are torchvision's Video Swin Transformers; ``timm:NAME`` is any timm model
that returns features at strides 4, 8, 16 and 32. They are frozen by default, like the text-to-video stack. 1×1
convolutions map their levels to the channels of the pyramid.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import get_model
from torchvision.models.swin_transformer import PatchMerging

from models.frozen import Frozen
from models.precision import in_own_precision
from models.pyramid import PyramidEncoder
from util.checkpoint import check_plain, read_plain_tensors
from util.errors import UserError, nearest
from util.preprocessing import IMAGENET_MEAN, IMAGENET_STD

_log = logging.getLogger(__name__)

STRIDES = (4, 8, 16, 32)
TIMM = "timm:"
DOWNLOAD = "DEFAULT"  # selects the pretrained weights that the library downloads
RANDOM_SEED = 0  # no checkpoint stores a frozen backbone, so every run must draw the same random weights


@dataclass
class PyramidFeatures:
    """The pyramid of a clip, which does not depend on the sentence.

    Attributes:
        levels: four maps ``[B·T, C, H/s, W/s]``, s = 4, 8, 16, 32.
        batch_shape: (B, T).
    """

    levels: list[Tensor]
    batch_shape: tuple[int, int]

    def repeat(self, count: int) -> PyramidFeatures:
        """Repeat the batch ``count`` times, once for each sentence."""
        batch, frames = self.batch_shape
        return PyramidFeatures([level.repeat(count, 1, 1, 1) for level in self.levels], (count * batch, frames))


class BackboneEncoder(PyramidEncoder):
    """A discriminative backbone with the interface of ``VideoEncoder``.

    Args:
        backbone: frames ``[B, T, 3, H, W]`` → four maps ``[B·T, C, h, w]``; ``channels`` lists their C.
        pyramid_channels: channels of the four levels.
        trained: whether the backbone is trained. Batch normalisation always keeps its statistics, because a process
            sees few clips.
    """

    def __init__(self, backbone: VideoSwin | TimmFeatures, pyramid_channels: tuple[int, ...], trained: bool) -> None:
        super().__init__()
        self.trained = trained
        self.backbone = backbone if trained else Frozen(backbone)
        self.levels = nn.ModuleList(
            nn.Conv2d(own, wanted, 1) for own, wanted in zip(backbone.channels, pyramid_channels, strict=True)
        )

    def train(self, mode: bool = True) -> BackboneEncoder:
        """Set the mode of all modules but batch normalisation, which stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @in_own_precision
    def encode_pixels(self, frames: Tensor) -> PyramidFeatures:
        """Compute the pyramid, which does not depend on the sentence; see ``PyramidEncoder``."""
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            maps = self.backbone(frames)
        levels = [project(features) for project, features in zip(self.levels, maps, strict=True)]
        return PyramidFeatures(levels, (frames.shape[0], frames.shape[1]))

    def forward(self, pixels: PyramidFeatures, captions: list[str]) -> list[Tensor]:
        """Return the pyramid, four maps ``[B·T, C, H/s, W/s]``; the B sentences are not used."""
        assert len(captions) == pixels.batch_shape[0]
        return pixels.levels


class VideoSwin(nn.Module):
    """torchvision's Video Swin Transformer (Liu et al., CVPR 2022), with a feature for every frame.

    The network was trained with patches of 2×4×4, in which two frames make one token. Here, patches are 1×4×4, and the
    two temporal slices of the embedding kernel are summed, as in ReferFormer. The result equals that of the trained
    network on a clip in which every frame occurs twice. A window of 8 steps then spans 8 frames.

    The output of each stage is layer-normalised without parameters, as in detectors with Swin; the 1×1 convolutions
    provide scale and shift.

    Args:
        network: torchvision's model; its embedding is modified, and its head is not used.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        stock = network.patch_embed.proj
        patch = (1, *stock.kernel_size[1:])
        single = nn.Conv3d(stock.in_channels, stock.out_channels, patch, stride=patch)
        single.weight = nn.Parameter(stock.weight.detach().sum(dim=2, keepdim=True))
        single.bias = stock.bias
        self.patch_embed = network.patch_embed
        self.patch_embed.proj = single
        self.patch_embed.tuple_patch_size = patch
        self.features = network.features
        self.channels = tuple(network.num_features // 2**i for i in (3, 2, 1, 0))

    def forward(self, frames: Tensor) -> list[Tensor]:
        """``[B, T, 3, H, W]``, ImageNet-normalised → four maps ``[B·T, C, H/s, W/s]``, s = 4, 8, 16, 32."""
        x = self.patch_embed(frames.transpose(1, 2))  # [B, T, h, w, C]
        levels = []
        for layer in self.features:
            x = layer(x)
            if not isinstance(layer, PatchMerging):
                levels.append(rearrange(F.layer_norm(x, x.shape[-1:]), "b t h w c -> (b t) c h w").contiguous())
        return levels


class TimmFeatures(nn.Module):
    """A timm model that is applied to each frame.

    Frames are padded to a multiple of 32 on the right and bottom, and the levels are cropped, so that every model gives
    levels of height ⌈H/s⌉ and width ⌈W/s⌉.

    Args:
        network: created with ``features_only=True``.

    Raises:
        ValueError: the model has no features at one of the strides.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Any) -> None:
        super().__init__()
        found = {stride: i for i, stride in enumerate(network.feature_info.reduction())}
        if not set(STRIDES) <= found.keys():
            raise ValueError(f"it has features at strides {', '.join(map(str, found))}")
        self.network = network
        self.taken = [found[stride] for stride in STRIDES]
        self.channels = tuple(network.feature_info.channels()[i] for i in self.taken)
        self.channels_last = str(getattr(network, "output_fmt", "")).endswith("NHWC")
        # From ImageNet's normalisation to the model's own: (x·std + mean − own mean) / own std
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        own_mean, own_std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """``[B, T, 3, H, W]``, ImageNet-normalised → four maps ``[B·T, C, ⌈H/s⌉, ⌈W/s⌉]``, s = 4, 8, 16, 32."""
        height, width = frames.shape[-2:]
        images = F.pad(frames.flatten(0, 1), (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        maps = self.network(images * self.scale + self.shift)
        levels = []
        for i, stride in zip(self.taken, STRIDES, strict=True):
            level = maps[i].movedim(-1, 1) if self.channels_last else maps[i]
            levels.append(level[..., : -(-height // stride), : -(-width // stride)].contiguous())
        return levels


def build_backbone(name: str, weights: str = "") -> VideoSwin | TimmFeatures:
    """Build a backbone on the CPU.

    Args:
        name: ``swin3d_t``, ``swin3d_s``, ``swin3d_b`` or ``timm:NAME``.
        weights: ``DEFAULT``: the pretrained weights that the library downloads; a path: a ``.pth`` or ``.safetensors``
            file with the library's parameter names; empty: random weights, the same in every run.

    Raises:
        UserError: the model is unknown or lacks a stride, or the weights are not available or do not fit.
    """
    if not weights:
        _log.warning("backbone %s has random weights; --backbone_weights DEFAULT downloads pretrained ones", name)
    elif weights != DOWNLOAD and not Path(weights).is_file():
        raise UserError(f"the weights {weights} do not exist; give a file, DEFAULT or nothing with --backbone_weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return _timm(name.removeprefix(TIMM), weights) if name.startswith(TIMM) else _video_swin(name, weights)


def _video_swin(name: str, weights: str) -> VideoSwin:
    with _weights_of(name, weights):
        network = get_model(name, weights=DOWNLOAD if weights == DOWNLOAD else None)
        if weights not in ("", DOWNLOAD):
            network.load_state_dict(_read_weights(Path(weights)))
    return VideoSwin(network)


def _timm(name: str, weights: str) -> TimmFeatures:
    import timm  # takes seconds to import, and most runs do not need it

    if not timm.is_model(name):
        near = nearest(name, timm.list_models())
        hint = f"did you mean {TIMM}{near}?" if near else "timm.list_models() lists the known ones"
        raise UserError(f"timm has no model {name!r}, which --backbone names; {hint}")
    backbone, options = _fitting(name)
    if not weights:
        return backbone
    with _weights_of(f"{TIMM}{name}", weights):
        options["pretrained"] = True
        if weights != DOWNLOAD:
            _read_weights(Path(weights))  # refuses what timm would load
            options["pretrained_cfg_overlay"] = {"file": weights}
            timm.create_model(name, **options)  # fails if the file lacks a weight, unlike a feature extractor
        return TimmFeatures(timm.create_model(name, features_only=True, **options))


def _fitting(name: str) -> tuple[TimmFeatures, dict[str, Any]]:
    """Build a timm model with random weights that accepts frames of any size; return it and its options."""
    import timm

    problems = []
    options: dict[str, Any]
    for options in ({}, {"strict_img_size": False}):  # the latter for models that otherwise accept one size only
        try:
            backbone = TimmFeatures(timm.create_model(name, features_only=True, **options)).eval()
            with torch.no_grad():
                backbone(torch.zeros(1, 1, 3, 64, 96))
            return backbone, options
        except Exception as error:  # models raise many kinds
            problems += str(error).splitlines() or [type(error).__name__]
    raise UserError(
        f"{TIMM}{name} has no features at strides {', '.join(map(str, STRIDES))} for frames of any size "
        f"({problems[0]}); choose a model such as {TIMM}resnet50"
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, of a ``.pth`` file without running code."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = read_plain_tensors(path)
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    check_plain({name: value for name, value in state.items() if isinstance(value, Tensor)}, path)
    return state


@contextmanager
def _weights_of(name: str, weights: str) -> Iterator[None]:
    """Report any failure to load the weights of a backbone as a UserError."""
    try:
        yield
    except Exception as error:  # the libraries raise many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        if weights == DOWNLOAD:
            raise UserError(
                f"cannot download the weights of {name}: {lines[0].rstrip('.: ')}; connect to the network and run "
                "the command again, give a local file with --backbone_weights, or leave it empty for random weights"
            ) from error
        reason = lines[1] if len(lines) > 1 and lines[0].startswith("Error") else lines[0]  # by load_state_dict
        raise UserError(
            f"{weights} does not hold the weights of {name}: {reason[:200].rstrip('.: ')}; give a different file with "
            "--backbone_weights"
        ) from error
