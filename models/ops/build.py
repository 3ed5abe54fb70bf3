"""Compiles and loads the operator's kernels.

A library's file name holds a hash of everything it was built from, so a library that does not fit is never loaded.
``setup.py`` imports this file on its own: it uses nothing else of the project.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

Kind = Literal["cpu", "cuda"]

PREBUILT = Path(__file__).resolve().parent
"""Where ``setup.py`` puts libraries."""
SOURCES = PREBUILT / "src"
SYSTEM_CUDA = "/usr/local/cuda"
COMMON = ("-O3", "-std=c++20")
"""Flags of every compiler."""


class BuildError(RuntimeError):
    """A kernel cannot be built or loaded here; the message is one sentence that says why."""


def load(kind: Kind) -> Path:
    """Load a kernel's library, which registers its operators; without a library, compile it first.

    Returns:
        The library's file: beside the sources, or in the cache.

    Raises:
        BuildError: the kernel cannot be compiled, or its library does not load.
    """
    library = _find(kind)
    if library is None:
        return _build(kind)
    try:
        torch.ops.load_library(library)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise BuildError(f"{library} does not load ({reason}); delete it to have it rebuilt") from error
    return library


def cache_folder() -> Path:
    """The project's cache, for kernels compiled at first use: ``t2v-rvos`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "t2v-rvos"


def recipe(kind: Kind) -> dict[str, Any]:
    """Name, sources and flags of a kernel, as ``torch.utils.cpp_extension.load`` takes them.

    The name holds a hash of sources, flags, platform and PyTorch's version, and the GPU architectures of CUDA. The
    compiler is not part of it: a library that was built with ``CXX`` is also found without it.

    Raises:
        BuildError: ``TORCH_CUDA_ARCH_LIST`` cannot be read.
    """
    host = ["-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
    openmp = ["-fopenmp"] if kind == "cpu" and platform.system() == "Linux" else []
    if kind == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        host += ["-mavx2", "-mfma"]
    # PyTorch switches off the conversions of half-precision numbers, which the kernels use.
    conversions = [f"-U__CUDA_NO_{name}_CONVERSIONS__" for name in ("HALF", "BFLOAT16")] if kind == "cuda" else []
    flags = (*COMMON, *host, *openmp, *conversions)
    content = hashlib.sha256(repr((torch.__version__, platform.system(), platform.machine(), flags)).encode())
    for path in sorted(SOURCES.iterdir()):
        content.update(path.read_bytes())
    architectures = sorted(cuda_architectures()) if kind == "cuda" else []
    marks = (f"-{'ptx' if '+' in entry else 'sm'}{re.sub('[^0-9]', '', entry)}" for entry in architectures)
    nvcc = [*COMMON, *(part for flag in host for part in ("-Xcompiler", flag)), *conversions]
    nvcc += ["-ccbin", os.environ["CXX"]] if "CXX" in os.environ else []
    return {
        "name": f"msda_{kind}-{content.hexdigest()[:16]}{''.join(marks)}",
        "sources": [str(path) for path in sorted(SOURCES.glob(f"msda_{kind}*.c*"))],
        "extra_cflags": [*COMMON, *host, *openmp],
        "extra_cuda_cflags": nvcc,
        "extra_ldflags": openmp,
    }


def cuda_architectures() -> list[str]:
    """The GPU architectures to compile for, such as "9.0": ``TORCH_CUDA_ARCH_LIST``, or the GPUs of this machine.

    Raises:
        BuildError: the list cannot be read.
    """
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    for entry in asked:
        if not re.fullmatch(r"\d+\.\d(\+PTX)?", entry):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has the entry {entry!r}; use the form '8.0;9.0+PTX'")
    return asked or [f"{major}.{minor}" for major, minor in _capabilities()]


def runs_on(name: str, capability: tuple[int, int]) -> bool:
    """Whether the CUDA library of this name has code for a GPU of this compute capability."""
    for mark, major, minor in re.findall(r"-(sm|ptx)(\d+)(\d)(?=-|$)", name):
        built = (int(major), int(minor))
        if built <= capability and (mark == "ptx" or built[0] == capability[0]):
            return True
    return False


def check_tools(kind: Kind) -> None:
    """Check that the compilers are there, and add ninja to the PATH.

    Raises:
        BuildError: one is missing, or nvcc is of a different CUDA than PyTorch.
    """
    compiler = os.environ.get("CXX", "c++")
    if not shutil.which(compiler):
        raise BuildError(f"no C++ compiler was found ({compiler}); install g++ (apt install g++), or name one in CXX")
    if not shutil.which("ninja"):  # the scripts of a virtual environment are only on the PATH when it is activated
        os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
    if not shutil.which("ninja"):
        raise BuildError("ninja was not found; run: pip install ninja")
    if kind == "cpu":
        return
    if torch.version.cuda is None:
        raise BuildError("this PyTorch was built without CUDA; install one with CUDA from pytorch.org")
    from torch.utils import cpp_extension

    major = torch.version.cuda.split(".")[0]
    for home in (cpp_extension.CUDA_HOME, SYSTEM_CUDA, Path(torch.__file__).parents[1] / f"nvidia/cu{major}"):
        # The headers too: nvcc on the PATH may be a script outside of its toolkit.
        if Path(f"{home}/include/cuda_runtime_api.h").is_file() and shutil.which(f"{home}/bin/nvcc"):
            command = [f"{home}/bin/nvcc", "--version"]
            if f"release {major}." in subprocess.run(command, capture_output=True, text=True).stdout:
                cpp_extension.CUDA_HOME = str(home)
                return
    raise BuildError(
        f"no nvcc of CUDA {major} was found; install the CUDA {major} toolkit and set CUDA_HOME to its folder, or "
        "install nvcc with pip (docs/operator.md)"
    )


def cudart_flags(folder: str) -> list[str]:
    """Linker flags for CUDA from pip: ``folder`` gets a link to its libcudart, which lacks the name of a library."""
    from torch.utils import cpp_extension

    libraries = Path(f"{cpp_extension.CUDA_HOME}/lib")
    for library in [] if (libraries / "libcudart.so").exists() else sorted(libraries.glob("libcudart.so.*"))[:1]:
        Path(folder, "libcudart.so").symlink_to(library)
        return [f"-L{folder}"]
    return []


def _find(kind: Kind) -> Path | None:
    """A library that fits the sources, this PyTorch and, for CUDA, every GPU of this machine."""
    stem = "-".join(recipe(kind)["name"].split("-")[:2])
    for folder in (PREBUILT, cache_folder()):
        for library in sorted(folder.glob(f"{stem}*.so")):
            if kind == "cpu" or all(runs_on(library.stem, capability) for capability in _capabilities()):
                return library
    return None


def _capabilities() -> list[tuple[int, int]]:
    return sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})


def _build(kind: Kind) -> Path:
    """Compile a kernel into the cache and load it. One process compiles; the others wait for its result.

    Raises:
        BuildError: the kernel cannot be compiled, here or by the process that this one waited for.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    check_tools(kind)
    cache, arguments = cache_folder(), recipe(kind)
    log = cache / f"{arguments['name']}.log"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        before = _written(log)
        with FileLock(cache / "build.lock"):  # the system releases the lock of a killed process
            if _find(kind):
                return load(kind)
            if _written(log) != before:
                raise BuildError(
                    f"another process could not compile the kernel (see {log}); install g++ 11 or newer, or name one "
                    "in CXX"
                )
            print(f"compiling the {kind} kernel of the operator, once, in about a minute", file=sys.stderr, flush=True)
            return _compile(arguments, cache, log)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise BuildError(f"{cache} cannot be used ({reason}); set XDG_CACHE_HOME to a writable folder") from error


def _written(log: Path) -> int | None:
    """When a log was written; None if there is none."""
    return log.stat().st_mtime_ns if log.is_file() else None


def _compile(arguments: dict[str, Any], cache: Path, log: Path) -> Path:
    """Compile a kernel into the cache and load it, while the lock is held.

    Args:
        arguments: from ``recipe``.
        cache: folder of the library.
        log: gets the compiler's messages if it fails.

    Raises:
        BuildError: it cannot be compiled.
    """
    from torch.utils import cpp_extension

    for leftover in cache.glob("build-*/"):
        shutil.rmtree(leftover)
    # A new folder every time: a killed build leaves PyTorch's own lock file, which would block the next build.
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as scratch:
        arguments["extra_ldflags"] += cudart_flags(scratch)
        try:
            cpp_extension.load(**arguments, build_directory=scratch, is_python_module=False)
        except RuntimeError as error:
            log.write_text(str(error), encoding="utf-8")
            compiler = os.environ.get("CXX", "c++")
            raise BuildError(
                f"{compiler} could not compile the kernel (see {log}); install g++ 11 or newer, or name one in CXX"
            ) from error
        library = f"{arguments['name']}.so"
        return Path(scratch, library).replace(cache / library)
