"""Choose the device, return free memory to the system, and explain memory shortages."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from util.errors import RunError, UserError

if TYPE_CHECKING:  # PyTorch takes seconds to import, and light commands use this module
    import torch

TRAINING = (
    "--batch_size 1 (with --accumulate for the same updates), --gradient_checkpointing, --precision bf16, fewer "
    "--num_frames, smaller --train_scales and --max_size"
)
INFERENCE = "--expressions_per_batch 1, a smaller --eval_size, a limit by --max_size, --precision bf16"
DEMO = "a shorter --window, fewer sentences at once, a smaller --eval_size, a limit by --max_size, --precision bf16"
_SIGNS = re.compile(
    "can't allocate memory|cannot allocate memory|not enough memory|(cuda|mps backend) out of memory"
    "|could not create a (primitive|memory object)$",  # oneDNN's
    re.IGNORECASE | re.MULTILINE,
)
"""Parts of the libraries' and the system's messages about memory."""
_READ_AT_ONCE = 1 << 29  # bytes
_LARGE_FILE = 1 << 24  # bytes
_DONTNEED = 4  # MADV_DONTNEED of Linux
_CHANGED = ("Anonymous:", "Swap:", "Private_Hugetlb:")  # memory of a mapping that is in no file
_DEVICES = {"io", "pf", "mm", "ht"}  # flags of mappings that a driver has filled, or that have huge pages
_MAPPING = re.compile("([0-9a-f]+)-([0-9a-f]+) .{4} [^/]*(/.*)?")  # first line of a mapping in /proc/self/smaps


def resolve_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Args:
        name: ``auto`` (the first of CUDA, MPS and the CPU that is available), ``cuda``, ``mps`` or ``cpu``.

    Raises:
        UserError: PyTorch does not find the device, or an unknown name.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, found in available.items() if found)
    if name not in available:
        raise UserError(f"unknown device {name!r}; choose auto, {', '.join(available)}")
    if not available[name]:
        raise UserError(f"--device {name}, but PyTorch finds no {name.upper()} device here; use --device cpu or auto")
    return torch.device(name)


def use_expandable_segments() -> None:
    """Let PyTorch's CUDA allocator extend its blocks, before its first use and unless the user has configured it.

    The clips of a training run differ in size, and blocks of fixed sizes leave gaps that no later clip fits into.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    if sys.platform == "linux" and not any(name in os.environ for name in names):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to a device. A copy to CUDA is queued: from pinned memory, the host does not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def free_memory(device: torch.device) -> int:
    """Bytes of a CUDA device that a new tensor may take: free ones, and those that PyTorch holds without using them."""
    import torch

    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def device_name(device: torch.device) -> str:
    """The name of the device for records: the GPU's product name, or "cpu"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def memory_advice(flags: str) -> Iterator[None]:
    """Explain which options need less memory where the block runs out of it, on the CPU or a GPU.

    Args:
        flags: the options that help.

    Raises:
        RunError: there was not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise RunError(f"there is not enough memory ({reason}); these options need less: {flags}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there is not enough memory, on the CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and _SIGNS.search(str(error)) is not None


def give_back() -> None:
    """Return the free memory of this process to the system, where its C library can (glibc).

    The library keeps memory that was freed in pieces: 0.8 GB after one pass of the full-size UNet.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def passing(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield tensors that are read once, and give the memory of those that are mapped from files back on the way.

    Pages that were read stay in memory as long as their file is mapped: 11 GB for an authors' checkpoint.
    """
    read = 0
    for tensor in tensors:
        yield tensor
        read += tensor.nbytes
        if read > _READ_AT_ONCE:
            forget_mapped_files(read)
            read = 0
    forget_mapped_files(read)


def forget_mapped_files(read: int) -> None:
    """Let go of the pages of large files that are mapped and were not changed; they are read again when needed.

    Other threads may read the files meanwhile, but not begin to change their copy of one (``MAP_PRIVATE``).

    Args:
        read: bytes that were read since the last call; below ``_LARGE_FILE`` there is no search, which takes 0.1 s.
    """
    maps = Path("/proc/self/smaps")  # of Linux; kernels may leave it out
    if read < _LARGE_FILE or not maps.is_file():
        return
    advise = ctypes.CDLL(None).madvise
    with maps.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if mapping := _MAPPING.match(line):
                start, end = (int(number, 16) for number in mapping.group(1, 2))
                clean_file = bool(mapping[3]) and end - start > _LARGE_FILE
            elif line.startswith(_CHANGED):
                clean_file &= int(line.split()[1]) == 0
            elif line.startswith("VmFlags:") and clean_file and _DEVICES.isdisjoint(line.split()):
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)
