"""How much GPU memory a training step takes: counted without a GPU, at full size, or measured where one is at hand.

python -m scripts.memory_estimate --config configs/vdit_ytvos.yaml [--size 512 640] [--precision bf16 ...]

The step really runs, forward and backward. Without a GPU its tensors are PyTorch's fake ones, which have a type and a
size and no content, and the bytes of those that live are counted. Types are those of autocast on CUDA, and attention is
taken to be fused, as it is there. What no count of tensors sees is left out: about half a GB of CUDA itself, the
workspaces of convolutions, and what the allocator cannot use.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from datasets.registry import load_config
from util.command_line import Parser
from util.config import Config
from util.errors import UserError, help_asked, run_cli

if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    load_config(["--help"], " ".join(__doc__.split("\n\n")[:2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BatchEncoding

from engine import training_step
from models import Segmenter, build_criterion, build_model
from models.diffusion.stack import empty_stack
from models.precision import prepare_training
from scripts.count_parameters import FULL_SIZE, stack_of
from scripts.live_memory import LiveMemory

GIB = 2**30
WORDS = 20  # of a sentence; its memory hardly matters
ADAM = 8  # bytes of its state per parameter
STACK_PARTS = ("unet", "vae", "text_encoder", "image_encoder")


@dataclass
class Estimate:
    """Bytes of a training step."""

    parts: dict[str, int] = field(default_factory=dict)
    """Weights by part, AdamW's state, and what is alive when the forward pass ends."""
    peak: int = 0
    """The most at any time."""
    measured: bool = False


class Words:
    """In the place of a tokenizer: so many tokens for every sentence."""

    def __init__(self, length: int) -> None:
        self.model_max_length = length

    def __call__(self, captions: list[str], **options: Any) -> BatchEncoding:
        ids = torch.ones(len(captions), self.model_max_length, dtype=torch.long)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


class FusedAttention(torch.autograd.Function):
    """Attention's shapes, and what a fused kernel keeps: its inputs, its output and one number per query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Shapes as ``scaled_dot_product_attention`` has them."""
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the inputs' shapes."""
        return tuple(torch.empty_like(value) for value in ctx.saved_tensors[:3])  # type: ignore[return-value]


def fused_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In the place of ``scaled_dot_product_attention``, which autocast narrows."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    return FusedAttention.apply(query, key, value)


def widening(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A normalisation as autocast has it on CUDA: float32."""
    return lambda x, *args, **kwargs: norm(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)


@contextmanager
def without_gpu() -> Iterator[None]:
    """Fake tensors, and the types that autocast gives them on CUDA."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", fused_attention))
        for name in ("layer_norm", "group_norm"):
            stack.enter_context(patch.object(F, name, widening(getattr(F, name))))
        stack.enter_context(FakeTensorMode())
        yield


def estimate(cfg: Config, size: tuple[int, int], measure: bool = False, folder: Path = FULL_SIZE) -> Estimate:
    """The memory of a training step.

    Args:
        cfg: the options; ``pretrained`` and the like are not read.
        size: (H, W) of the padded frames.
        measure: on this machine's GPU, with random weights.
        folder: configuration files of the frozen parts.
    """
    device = torch.device("cuda" if measure else "cpu")
    if cfg.precision == "auto":
        cfg = replace(cfg, precision="bf16")
    stack = empty_stack(folder)
    stack.tokenizer = Words(stack.text_encoder.config.max_position_embeddings)
    stack.sentence_tokenizer = Words(WORDS)
    with torch.device("meta"):
        model = build_model(cfg, stack)
    with patch.object(model, "to", lambda where: model):
        scaler = prepare_training(model, cfg, device)
    if measure:
        return _measured(cfg, model, size, device, scaler)
    with without_gpu():
        return _counted(cfg, model, size, device, scaler)


def _counted(cfg: Config, model: Segmenter, size: tuple[int, int], device: torch.device, scaler: Any) -> Estimate:
    parameters = materialise(model, device)
    found = Estimate({**weight_bytes(model), "AdamW's state": ADAM * parameters})
    with LiveMemory(list(model.parameters())) as memory:
        step = random_step(cfg, model, size, device, scaler, torch.optim.SGD)
        handles = _watch(model, memory, found.parts)
        step()
        for handle in handles:
            handle.remove()
    found.peak = memory.peak + ADAM * parameters
    return found


def _measured(cfg: Config, model: Segmenter, size: tuple[int, int], device: torch.device, scaler: Any) -> Estimate:
    parameters = materialise(model, device)
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point():
            nn.init.normal_(value, std=0.01)
        else:
            nn.init.zeros_(value)
    step = random_step(cfg, model, size, device, scaler, torch.optim.AdamW)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats(device)
        step()
    parts = {**weight_bytes(model), "AdamW's state": ADAM * parameters}
    return Estimate(parts, torch.cuda.max_memory_allocated(device), measured=True)


def materialise(model: Segmenter, device: torch.device) -> int:
    """Give a model of the meta device tensors without content on ``device``; how many parameters are trained."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            if id(old) not in made:
                new = torch.empty(old.shape, dtype=old.dtype, device=device)
                made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
            module.register_parameter(name, made[id(old)])
        for name, value in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(value.shape, dtype=value.dtype, device=device))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def weight_bytes(model: Segmenter) -> dict[str, int]:
    """Bytes of the weights by part and type."""
    sums: Counter[str] = Counter()
    for name, value in model.named_parameters():
        part = next((part for part in STACK_PARTS if name.startswith(f"encoder.{part}.")), "sentence_encoder")
        kind = str(value.dtype).removeprefix("torch.")
        sums[f"trained weights, {kind}" if value.requires_grad else f"{part}, {kind}"] += value.nbytes
    return dict(sums)


def random_step(
    cfg: Config, model: nn.Module, size: tuple[int, int], device: torch.device, scaler: Any, optimizer_class: Any
) -> Any:
    """A training step on random clips, to be called."""
    optimizer = optimizer_class([p for p in model.parameters() if p.requires_grad], lr=cfg.lr)
    criterion = build_criterion(cfg)
    clips, frames, (height, width) = cfg.batch_size, cfg.num_frames, size
    target = {
        "boxes": torch.full((frames, 4), 0.5, device=device),
        "masks": torch.zeros(frames, height, width, dtype=torch.bool, device=device),
        "valid": torch.ones(frames, dtype=torch.long, device=device),
    }
    batch = SimpleNamespace(
        frames=torch.zeros(clips, frames, 3, height, width, device=device),
        padding=torch.zeros(clips, height, width, dtype=torch.bool, device=device),
        captions=["the person on the left"] * clips,
        targets=[target] * clips,
        annotated=None,
    )
    model.train()
    return lambda: training_step(model, criterion, [batch] * cfg.accumulate, optimizer, cfg.clip_max_norm, scaler)


def _watch(model: Segmenter, memory: LiveMemory, parts: dict[str, int]) -> list[Any]:
    """Note what is alive after the UNet and after the whole forward pass, beside what was there before."""
    marks = {"start": memory.now}

    def enter(*args: Any) -> None:
        marks["unet"] = memory.now

    def leave(*args: Any) -> None:
        parts["kept: by the UNet"] = memory.now - marks["unet"]

    def end(*args: Any) -> None:
        parts["kept: by the rest"] = memory.now - marks["start"] - parts["kept: by the UNet"]

    unet = model.encoder.unet
    assert isinstance(unet, nn.Module)
    return [unet.register_forward_pre_hook(enter), unet.register_forward_hook(leave), model.register_forward_hook(end)]


def main() -> None:
    """Print a table of one configuration."""
    parser = Parser(description="Estimate the GPU memory of a training step.", add_help=False)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 640), help="height and width of the padded frames")
    parser.add_argument("--measure", action="store_true", help="measure on this machine's GPU")
    args, rest = parser.parse_known_args()
    cfg = load_config(rest, " ".join(__doc__.split("\n\n")[:2]))
    if cfg.backbone != "t2v":
        raise UserError("the estimate is of backbone t2v")
    if args.measure and not torch.cuda.is_available():
        raise UserError("--measure needs a GPU, and PyTorch finds none here; leave it out for an estimate")
    if any(side < 32 or side % 32 for side in args.size):
        raise UserError(f"--size must be multiples of 32, to which training frames are padded, not {args.size}")
    found = estimate(cfg, tuple(args.size), args.measure, stack_of(cfg))
    print(
        f"{cfg.model}, {cfg.precision}, gradient checkpointing {'on' if cfg.gradient_checkpointing else 'off'}: "
        f"{cfg.batch_size} × {cfg.num_frames} frames of {args.size[0]}×{args.size[1]}"
    )
    for name, count in found.parts.items():
        print(f"{name:<32} {count / GIB:8.2f} GiB")
    print(f"{'peak, ' + ('measured' if found.measured else 'counted'):<32} {found.peak / GIB:8.2f} GiB", flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    run_cli(main)
