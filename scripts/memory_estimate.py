"""Estimate the GPU memory and the kernels of a training step or of inference without a GPU, or measure memory on one.

python -m scripts.memory_estimate --config configs/vdit_ytvos.yaml [--size 512 640] [--precision bf16 ...]
python -m scripts.memory_estimate --config configs/vdit_ytvos.yaml --inference --num_frames 36 [--size 368 640]

``--inference`` segments one clip of ``--num_frames`` frames with ``--expressions_per_batch`` sentences. Without a GPU
the model runs on PyTorch's fake tensors, which have a type and a size but no content. Counted are the bytes of the live
ones, the operations that launch kernels, and the copies for which the host waits. Types are those of autocast on CUDA,
and attention is assumed to be fused, as it is there. The count does not include CUDA itself (about half a GB),
workspaces of convolutions and fragmentation of the allocator.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from util.config import Config, load_config
from util.errors import Parser, UserError, help_asked, run_cli

if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(lambda: load_config(["--help"], " ".join(__doc__.split("\n\n")[:2])))

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BatchEncoding

from datasets.clip import BATCH_MULTIPLE
from engine import training_step
from models import (
    SegmentationModel,
    build_criterion,
    build_model,
    build_parameter_groups,
    prepare_inference,
    prepare_training,
)
from models.diffusion.conditioning import bicubic_taps
from models.inference import VIDEO_MULTIPLE, InferenceOptions, sentence_outputs
from scripts.count_parameters import FULL_SIZE, frozen_parts, stack_of
from util.preprocessing import resized_size

aten = torch.ops.aten
GIB = 2**30
SENTENCE = "the person on the left"
SENTENCE_TOKENS = 20  # their memory hardly matters
TRAINING_SIZE = (512, 640)  # the largest frames of the published training
FREE = 1 << 40  # bytes that a GPU is assumed to have free
ADAM = 8  # bytes of its state per parameter
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
"""Operations, besides views, that compute nothing."""
STACK_PARTS = ("unet", "transformer", "vae", "text_encoder", "image_encoder")


class LiveMemory(TorchDispatchMode):
    """Counts what a device does while it is active: bytes of live tensors, kernels, and copies that the host waits for.

    Works with real tensors and with fake ones (``FakeTensorMode``, entered before), which raise an error where the
    host reads a value of the device. Views share their memory.

    Args:
        inputs: count from the beginning.
        device: the type of the device.

    Attributes:
        now, peak: live bytes, and their maximum.
        kernels: operations that compute or copy something on the device.
        waits: the shapes of tensors that were copied between devices while the host waited.
    """

    def __init__(self, inputs: Sequence[Tensor], device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.alive: dict[int, int] = {}
        self.now = self.peak = self.kernels = 0
        self.waits: list[tuple[int, ...]] = []
        for tensor in inputs:
            self.add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results, inputs = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in (result, (args, kwargs)))
        for tensor in results:
            self.add(tensor)
        devices = {tensor.device.type for tensor in (*inputs, *results)}
        if (
            self.device in devices
            and func.namespace != "prim"
            and not func.is_view
            and func.__name__.split(".")[0] not in NO_KERNEL
        ):
            self.kernels += 1
            copies = func in (aten._to_copy.default, aten.copy_.default) and len(devices) > 1
            if copies and not getattr(inputs[-1], "pinned", False):
                self.waits.append(tuple(inputs[-1].shape))
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor until its memory is freed."""
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self.alive.pop(key)


@dataclass
class Estimate:
    """Bytes, kernels and waits of a training step or of inference."""

    parts: dict[str, int]
    """Weights by part; in training also AdamW's state, and the activations that live at the end of the forward pass."""
    peak: int
    kernels: int | None = None
    """None: measured on a GPU."""
    waits: Sequence[tuple[int, ...]] = ()
    """Shapes of the tensors for whose copy the host waits."""


class ByteTokenizer:
    """Replaces a tokenizer: a fixed number of tokens for every sentence, one for each of its first bytes."""

    def __init__(self, length: int) -> None:
        self.model_max_length = length

    def __call__(self, captions: list[str], **options: Any) -> BatchEncoding:
        rows = [list(text.encode()[: self.model_max_length].ljust(self.model_max_length)) for text in captions]
        return BatchEncoding(
            {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]},
            tensor_type=options.get("return_tensors"),
        )


class BlankTexts:
    """Replaces a cache of text features: zeros for every sentence."""

    def __init__(self, width: int) -> None:
        self.width = width

    def prepare(self, sentences: Iterable[str], device: torch.device) -> None:
        """Do nothing."""

    def __call__(self, sentences: Sequence[str], device: torch.device) -> list[Tensor]:
        return [torch.zeros(SENTENCE_TOKENS, self.width) for _ in sentences]


def empty_parts(folder: Path, model: str) -> Any:
    """The frozen parts on the meta device, with stand-ins for the tokenizers.

    Args:
        folder: configuration files of the parts.
        model: the model.

    Raises:
        UserError: a configuration file is missing.
    """
    stack = frozen_parts(folder, model)
    if hasattr(stack, "tokenizer"):
        stack.tokenizer = ByteTokenizer(stack.text_encoder.config.max_position_embeddings)
    else:  # its text encoder is not in memory
        stack.text_cache = BlankTexts(stack.transformer.config.text_dim)
    stack.sentence_tokenizer = ByteTokenizer(SENTENCE_TOKENS)
    return stack


class FusedAttention(torch.autograd.Function):
    """Attention with the memory of a fused kernel, which keeps inputs, output and one number per query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return an output of the right shape."""
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients of the right shapes."""
        return tuple(torch.empty_like(value) for value in ctx.saved_tensors[:3])  # type: ignore[return-value]


def fused_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Replaces ``scaled_dot_product_attention``, whose inputs autocast narrows."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    return FusedAttention.apply(query, key, value)


def widening(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A normalisation in float32, as autocast does it on CUDA."""
    return lambda x, *args, **kwargs: norm(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)


def pinned(tensor: Tensor) -> Tensor:
    """Replaces ``Tensor.pin_memory``, which fake tensors lack."""
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


def blank_taps(before: int, after: int, device: torch.device) -> tuple[Tensor, ...]:
    """Replaces the cached taps of a resize, which are computed from values and must not hold fake tensors."""
    with unset_fake_temporarily():
        taps = bicubic_taps(before, after, torch.device("cpu"))
    return tuple(torch.empty(tap.shape, dtype=tap.dtype, device=device) for tap in taps)


@contextmanager
def without_gpu() -> Iterator[None]:
    """Use fake tensors, also of CUDA, with the types that autocast gives them there."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", fused_attention))
        for name in ("layer_norm", "group_norm"):
            stack.enter_context(patch.object(F, name, widening(getattr(F, name))))
        stack.enter_context(patch("models.diffusion.encoder.free_memory", lambda device: FREE))
        stack.enter_context(patch("models.diffusion.conditioning.bicubic_taps", blank_taps))
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda *args, **options: True))
        stack.enter_context(patch.object(Tensor, "pin_memory", pinned))
        stack.enter_context(FakeTensorMode())
        yield


def estimate(cfg: Config, size: tuple[int, int], measure: bool = False, folder: Path = FULL_SIZE) -> Estimate:
    """The memory of a training step.

    Args:
        cfg: the options; paths are not read.
        size: (H, W) of the padded frames.
        measure: run on this machine's GPU with random weights.
        folder: configuration files of the frozen parts.
    """
    device = torch.device("cuda" if measure else "cpu")
    if cfg.precision == "auto":
        cfg = replace(cfg, precision="bf16")
    stack = empty_parts(folder, cfg.model)
    with torch.device("meta"):
        model = build_model(cfg, stack)
    with patch.object(model, "to", lambda where: model):
        scaler = prepare_training(model, cfg.precision, device, cfg.compile)
    with nullcontext() if measure else without_gpu():
        if not measure:
            waits = training_waits(cfg, model, size)
        allocate(model, device)
        adam = ADAM * sum(p.numel() for p in model.parameters() if p.requires_grad)
        parts = {**weight_bytes(model), "AdamW's state": adam}
        if not measure:
            with LiveMemory(list(model.parameters())) as memory:
                step = random_step(cfg, model, size, device, scaler, torch.optim.SGD)
                _watch(model, memory, parts)
                step()
            return Estimate(parts, memory.peak + adam, memory.kernels, waits)
        step = random_step(cfg, model, size, device, scaler, torch.optim.AdamW)
        return Estimate(parts, measured_peak(model, step, device))


def training_waits(cfg: Config, model: SegmentationModel, size: tuple[int, int]) -> Sequence[tuple[int, ...]]:
    """Shapes of the tensors for whose copy the host waits in a training step.

    Counted on fake CUDA tensors, with empty gradients in place of the backward pass: without a driver, autograd accepts
    CPU tensors only.
    """
    device = torch.device("cuda")

    def backward(loss: Tensor) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)

    allocate(model, device)
    scaler = torch.amp.GradScaler("cuda") if model.precision == torch.float16 else None
    step = random_step(cfg, model, size, device, scaler, partial(torch.optim.AdamW, fused=True))
    with patch.object(Tensor, "backward", backward), LiveMemory((), "cuda") as memory:
        step()
    return memory.waits


def estimate_inference(cfg: Config, size: tuple[int, int], measure: bool = False, folder: Path = FULL_SIZE) -> Estimate:
    """The memory of segmenting one clip with its first batch of sentences; arguments as for ``estimate``."""
    device = torch.device("cuda")
    precision = "bf16" if cfg.precision == "auto" else cfg.precision
    stack = empty_parts(folder, cfg.model)
    with torch.device("meta"):
        model = build_model(replace(cfg, lora_rank=0), stack)  # adapters are merged
    with patch.object(model, "to", lambda where: model):
        prepare_inference(model, precision, device, cfg.compile)
    options, sentences = InferenceOptions.from_config(cfg), [SENTENCE] * cfg.expressions_per_batch
    with nullcontext() if measure else without_gpu(), torch.no_grad():
        allocate(model, device)
        frames = torch.zeros(cfg.num_frames, 3, *size)  # not counted, because they stay on the CPU

        def step() -> None:
            next(sentence_outputs(model, frames, sentences, options))

        if measure:
            return Estimate(weight_bytes(model), measured_peak(model, step, device))
        with LiveMemory(list(model.parameters()), "cuda") as memory:
            step()
        return Estimate(weight_bytes(model), memory.peak, memory.kernels, memory.waits)


def allocate(model: nn.Module, device: torch.device) -> None:
    """Replace the weights of a model by empty ones on ``device``: ``to_empty``, also for fake tensors."""
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            empty = torch.empty(value.shape, dtype=value.dtype, device=device)
            setattr(module, name, nn.Parameter(empty, value.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))


def measured_peak(model: nn.Module, step: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that PyTorch allocates in a step, with random weights and after a first step."""
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point():
            nn.init.normal_(value, std=0.01)
        else:
            nn.init.zeros_(value)
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)


def weight_bytes(model: SegmentationModel) -> dict[str, int]:
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
    """A function that runs a training step on blank clips."""
    optimizer = optimizer_class(build_parameter_groups(cfg, model), lr=cfg.lr)
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
        captions=[SENTENCE] * clips,
        targets=[target] * clips,
        annotated=None,
    )
    model.train()
    return lambda: training_step(
        model, criterion, [batch] * cfg.accumulate, optimizer, cfg.clip_max_norm, scaler, cfg.clip_grad_value
    )


def _watch(model: SegmentationModel, memory: LiveMemory, parts: dict[str, int]) -> None:
    """Record the memory that the forward pass keeps for the backward pass, of the denoiser and of the rest."""
    start = memory.now
    unet = "kept: by the UNet" if hasattr(model.encoder, "unet") else "kept: by the transformer"

    def enter(*args: Any) -> None:
        parts[unet] = -memory.now

    def leave(*args: Any) -> None:
        parts[unet] += memory.now

    def end(*args: Any) -> None:
        # autocast frees its copies of trained weights at the end of the forward pass
        parts["kept: by the rest"] = max(0, memory.now - start - parts[unet])

    network = model.encoder.denoiser
    network.register_forward_pre_hook(enter)
    network.register_forward_hook(leave)
    model.register_forward_hook(end)


def inference_size(cfg: Config) -> tuple[int, int]:
    """The padded (H, W) of a video of 16:9 at inference."""
    options = InferenceOptions.from_config(cfg)
    height, width = resized_size(9, 16, options.eval_size, options.max_size)
    return -(-height // VIDEO_MULTIPLE) * VIDEO_MULTIPLE, -(-width // VIDEO_MULTIPLE) * VIDEO_MULTIPLE


def main() -> None:
    """Print the estimate of one configuration."""
    parser = Parser(description="Estimate the GPU memory of a training step or of inference.", add_help=False)
    parser.add_argument("--size", type=int, nargs=2, help="height and width of the padded frames")
    parser.add_argument("--inference", action="store_true", help="segment a clip instead of a training step")
    parser.add_argument("--measure", action="store_true", help="measure on this machine's GPU")
    args, rest = parser.parse_known_args()
    cfg = load_config(rest, " ".join(__doc__.split("\n\n")[:2]))
    if cfg.backbone != "t2v":
        raise UserError("the estimate supports --backbone t2v only")
    if args.measure and not torch.cuda.is_available():
        raise UserError("--measure needs a GPU, and PyTorch finds none here; leave it out to get an estimate")
    multiple = VIDEO_MULTIPLE if args.inference else BATCH_MULTIPLE
    size = tuple(args.size or (inference_size(cfg) if args.inference else TRAINING_SIZE))
    if any(side < multiple or side % multiple for side in size):
        raise UserError(f"--size must be multiples of {multiple}, to which frames are padded, not {list(size)}")
    found = (estimate_inference if args.inference else estimate)(cfg, size, args.measure, stack_of(cfg))
    frames = f"{cfg.num_frames} frames of {size[0]}×{size[1]}"
    print(
        f"{cfg.model}, {cfg.precision}, inference: {frames}, {cfg.expressions_per_batch} sentences"
        if args.inference
        else f"{cfg.model}, {cfg.precision}, gradient checkpointing {'on' if cfg.gradient_checkpointing else 'off'}: "
        f"{cfg.batch_size} × {frames}"
    )
    for name, count in found.parts.items():
        print(f"{name:<32} {count / GIB:8.2f} GiB")
    print(f"{'peak, ' + ('measured' if found.kernels is None else 'counted'):<32} {found.peak / GIB:8.2f} GiB")
    if found.kernels is not None:
        print(f"{'kernels, about':<32} {found.kernels:8}")
        print(f"{'copies that the host waits for':<32} {len(found.waits):8}")


if __name__ == "__main__":
    run_cli(main)
