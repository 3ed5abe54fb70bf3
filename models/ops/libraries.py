"""The compiled kernels: found where they were built ahead of time, else built at first use, and loaded."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from models.ops import compiling
from models.ops.compiling import BuildError, Kind

INSTALLED = "t2v_rvos_kernels"
"""The package that ``pip install ./models/ops`` makes."""


def cache_folder() -> Path:
    """Where kernels that are built at first use stay: ``t2v-rvos`` in ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "t2v-rvos"


def load(kind: Kind) -> Path:
    """Load a kernel's library, which registers its operators; it is built first where there is none.

    Returns:
        The library's file.

    Raises:
        BuildError: it is not there and cannot be built, or does not load.
    """
    library = _find(kind) or _build_once(kind)
    try:
        torch.ops.load_library(library)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise BuildError(f"{library} does not load ({reason}); delete it, and it is built anew") from error
    return library


def _folders() -> list[Path]:
    """Where libraries may be: beside the sources, installed, in the cache."""
    spec = find_spec(INSTALLED)
    installed = spec.submodule_search_locations if spec else None
    return [Path(__file__).resolve().parent, *map(Path, installed or ()), cache_folder()]


def _find(kind: Kind) -> Path | None:
    """A library of the present sources for this PyTorch and, for CUDA, for every GPU here."""
    prefix = compiling.library_name(kind).removesuffix(".so")
    for folder in _folders():
        for library in sorted(folder.glob(f"{prefix}*.so")):
            if kind == "cpu" or all(compiling.runs_on(library.name, capability) for capability in _capabilities()):
                return library
    return None


def _capabilities() -> set[tuple[int, int]]:
    return {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}


def _build_once(kind: Kind) -> Path:
    """Build into the cache. Of several processes the first builds, and the others wait and take what it made."""
    folder = cache_folder()
    architectures = compiling.cuda_architectures() if kind == "cuda" else ()
    name = compiling.library_name(kind, architectures)
    log = folder / f"{name}.log"
    compiling.find_compiler()  # without tools nothing is written
    if kind == "cuda":
        compiling.find_nvcc()
    before = _written(log)
    with _lock(folder / f"{name}.lock"):
        if library := _find(kind):
            return library
        if _written(log) not in (before, None):  # by another process meanwhile; no clock is asked, as it may jump
            raise BuildError(f"another process could not compile it (see {log}); mend that, and start again")
        _tell(f"compiling the {kind} kernel of multi-scale deformable attention, once: less than a minute …")
        started = time.monotonic()
        try:
            library = compiling.build(kind, folder, architectures)
        except BuildError as error:
            if not error.log:
                raise
            log.write_text(error.log, encoding="utf-8")
            raise BuildError(f"{error} (its messages are in {log})") from error
        log.unlink(missing_ok=True)
        _tell(f"compiled in {time.monotonic() - started:.0f} s: {library}")
        return library


def _written(log: Path) -> tuple[int, int] | None:
    """Tells whether a file was written anew; None where there is none."""
    if not log.is_file():
        return None
    state = log.stat()
    return state.st_mtime_ns, state.st_ino


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock of a killed process is free. Where files cannot be locked, all go on at once."""
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except ImportError:  # not a Unix: what is built is renamed into place, so building twice does no harm
        yield
        return
    except OSError as error:
        raise BuildError(
            f"{path.parent} cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _tell("waiting for another process, which compiles multi-scale deformable attention …")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
