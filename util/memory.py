"""Memory: what is free goes back to the system; where it is not enough, one sentence says what would need less."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from util.errors import RunError

TRAINING = (
    "--batch_size 1 (with --accumulate for the same updates), --gradient_checkpointing, --precision bf16, fewer "
    "--num_frames, smaller --train_scales and --max_size"
)
INFERENCE = "--expressions_per_batch 1, a smaller --eval_size and --max_size, --precision bf16"
DEMO = "a shorter --window, fewer sentences at once, a smaller --eval_size and --max_size, --precision bf16"
_CLASS = "OutOfMemoryError"  # PyTorch's, which light commands do not import
_SIGNS = ("can't allocate memory", "not enough memory", "cuda out of memory", "cannot allocate memory")
"""What PyTorch's and the system's messages have in them, in lower case."""


@contextmanager
def memory_advice(flags: str) -> Iterator[None]:
    """Tell what would need less memory where the block has run out of it, on the CPU or a GPU.

    Args:
        flags: which help.

    Raises:
        RunError: there was not enough.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise RunError(f"there is not enough memory ({reason}); what needs less: {flags}") from error


def give_back() -> None:
    """Give memory that is free in this process back to the system, where its C library can (glibc).

    It keeps what was freed in pieces between others: after a pass of the full-size UNet, 0.8 GB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on the CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == _CLASS:
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error).lower() for sign in _SIGNS)
