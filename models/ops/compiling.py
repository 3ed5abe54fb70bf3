"""Compiling the operator's kernels: one recipe for ``setup.py`` and for the first use.

    python models/ops/compiling.py FOLDER      # builds what this machine can build into FOLDER

It stands alone (the standard library and PyTorch), so that ``pip install ./models/ops`` can run it from a copy.
A library's name tells what it was made from, so one that does not fit is never loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

Kind = Literal["cpu", "cuda"]

SOURCES = Path(__file__).resolve().parent / "src"
FILES: dict[Kind, tuple[str, ...]] = {
    "cpu": ("msda_cpu.cpp",),
    "cuda": ("msda_cuda.cu", "msda_cuda.cpp", "msda_cuda.h", "msda_kernels.cuh"),
}
COMMON_FLAGS = ("-O3", "-std=c++20")
HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
USUAL_ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0+PTX")
"""What a CUDA library is built for ahead of time where there is no GPU to ask: Turing to Hopper, and later by PTX."""


class BuildError(RuntimeError):
    """A kernel that cannot be built here: one sentence that says what to install. ``log`` is the compiler's output."""

    def __init__(self, sentence: str, log: str = "") -> None:
        super().__init__(sentence)
        self.log = log


def library_name(kind: Kind, architectures: Sequence[str] = ()) -> str:
    """The file name of a kernel built here from the present sources: ``msda_cpu-<key>.so``.

    Args:
        kind: ``cpu`` or ``cuda``.
        architectures: of CUDA, as in ``TORCH_CUDA_ARCH_LIST``: "9.0", "8.6+PTX". They stand in the name.
    """
    parts = [str(torch.__version__), platform.system(), platform.machine(), *_flags(kind)]
    content = hashlib.sha256("\n".join(parts).encode())
    for name in FILES[kind]:
        content.update((SOURCES / name).read_bytes())
    marks = "".join(f"-{'ptx' if arch.endswith('+PTX') else 'sm'}{_digits(arch)}" for arch in sorted(architectures))
    return f"msda_{kind}-{content.hexdigest()[:16]}{marks}.so"


def runs_on(name: str, capability: tuple[int, int]) -> bool:
    """Whether a CUDA library of this name has code for a GPU of this compute capability."""
    for mark, major, minor in re.findall(r"-(sm|ptx)(\d+)(\d)(?=[-.])", name):
        built = (int(major), int(minor))
        if built <= capability and (mark == "ptx" or built[0] == capability[0]):
            return True
    return False


def cuda_architectures() -> tuple[str, ...]:
    """What to build for: ``TORCH_CUDA_ARCH_LIST``, else the GPUs of this machine, else the usual ones.

    Raises:
        BuildError: the list cannot be read.
    """
    if asked := os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").replace(",", " ").split():
        for arch in asked:
            if not re.fullmatch(r"\d+\.\d(\+PTX)?", arch):
                raise BuildError(f"TORCH_CUDA_ARCH_LIST names {arch!r}; write architectures as in '8.0;9.0+PTX'")
        return tuple(dict.fromkeys(asked))
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return tuple(f"{major}.{minor}" for major, minor in sorted(found))
    return USUAL_ARCHITECTURES


def find_compiler() -> str:
    """The C++ compiler: ``CXX``, else the first on the PATH.

    Raises:
        BuildError: there is none.
    """
    if asked := os.environ.get("CXX"):
        if not shutil.which(asked):
            raise BuildError(f"CXX={asked} is not there; give the path of g++ 11 or newer")
        return asked
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return name
    raise BuildError("no C++ compiler was found; install g++ (on Debian and Ubuntu: apt install g++)")


def find_nvcc() -> str:
    """The compiler of the CUDA that PyTorch was built with: in ``CUDA_HOME``, on the PATH, or in its usual place.

    Raises:
        BuildError: there is none, or of another CUDA.
    """
    wanted = torch.version.cuda
    if wanted is None:
        raise BuildError("this PyTorch was built without CUDA; install one with CUDA from pytorch.org")
    major = wanted.split(".")[0]
    advice = f"install the CUDA {major} toolkit, and set CUDA_HOME to its folder"
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = next((str(Path(home, "bin/nvcc")) for home in homes if Path(home, "bin/nvcc").is_file()), None)
    nvcc = nvcc or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        raise BuildError(f"no nvcc was found; {advice}")
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise BuildError(f"{nvcc} does not run ({error.strerror}); {advice}") from error
    version = re.search(r"release (\d+)\.(\d+)", said)
    if version is None or version[1] != major:
        found = f"of CUDA {version[1]}.{version[2]}" if version else "broken"
        raise BuildError(f"{nvcc} is {found}, and PyTorch of CUDA {wanted}; {advice}")
    return nvcc


def build(kind: Kind, folder: Path, architectures: Sequence[str] = ()) -> Path:
    """Compile and link a kernel; it is made in a folder beside and renamed, so that no half of one is ever seen.

    Args:
        kind: ``cpu`` or ``cuda``.
        folder: where the library goes.
        architectures: of CUDA; see ``library_name``.

    Raises:
        BuildError: a tool is missing or fails, or the folder cannot be written.
    """
    compiler = find_compiler()
    commands = _cpu_commands(compiler) if kind == "cpu" else _cuda_commands(compiler, find_nvcc(), architectures)
    target = folder / library_name(kind, architectures)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".msda-") as scratch:
            for command in commands:
                run = subprocess.run(
                    command, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
                )
                if run.returncode:
                    tool = Path(command[0]).name
                    sentence = f"{tool} could not compile the kernel; install g++ 11 or newer, or name one in CXX"
                    if kind == "cuda":
                        sentence = f"{tool} could not compile the kernel; install a g++ that this CUDA knows, see CXX"
                    raise BuildError(sentence, f"{' '.join(command)}\n{run.stdout}")
            Path(scratch, "library.so").replace(target)
    except OSError as error:
        place = error.filename or folder
        raise BuildError(f"{place} cannot be used ({error.strerror}); see that it can be written") from error
    return target


def _flags(kind: Kind) -> tuple[str, ...]:
    """What decides about the machine code, beside the sources and the architectures of CUDA."""
    flags = [*COMMON_FLAGS, *HOST_FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    if kind == "cpu":
        if platform.system() == "Linux":
            flags.append("-fopenmp")
        if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
            flags += ["-mavx2", "-mfma"]
    return tuple(flags)


def _torch_folders() -> tuple[list[str], Path]:
    """Flags that find PyTorch's headers, and the folder of its libraries."""
    root = Path(torch.__file__).resolve().parent
    headers = (root / "include", root / "include/torch/csrc/api/include")
    return [part for header in headers for part in ("-isystem", str(header))], root / "lib"


def _link_flags(libraries: Path, names: Sequence[str]) -> list[str]:
    strict = ["-Wl,--no-undefined"] if platform.system() == "Linux" else []
    return [f"-L{libraries}", *(f"-l{name}" for name in names), *strict]


def _cpu_commands(compiler: str) -> list[list[str]]:
    headers, libraries = _torch_folders()
    source = str(SOURCES / FILES["cpu"][0])
    command = [compiler, *_flags("cpu"), *headers, "-shared", "-o", "library.so", source]
    return [command + _link_flags(libraries, ("torch_cpu", "c10"))]


def _cuda_commands(compiler: str, nvcc: str, architectures: Sequence[str]) -> list[list[str]]:
    """The kernels by nvcc without PyTorch's headers, their binding by nvcc's host compiler, and the two together."""
    headers, libraries = _torch_folders()
    host = ["-ccbin", compiler, *COMMON_FLAGS]
    host += [part for flag in _flags("cuda") if flag not in COMMON_FLAGS for part in ("-Xcompiler", flag)]
    targets = []
    for arch in architectures or USUAL_ARCHITECTURES:
        digits = _digits(arch)
        targets += ["-gencode", f"arch=compute_{digits},code={'compute' if arch.endswith('+PTX') else 'sm'}_{digits}"]
        if arch.endswith("+PTX"):
            targets += ["-gencode", f"arch=compute_{digits},code=sm_{digits}"]
    link = _link_flags(libraries, ("c10_cuda", "torch_cpu", "c10"))
    link = [part for flag in link for part in (("-Xlinker", flag[4:]) if flag.startswith("-Wl,") else (flag,))]
    return [
        [nvcc, *host, *targets, "--threads", "2", "-c", str(SOURCES / "msda_cuda.cu"), "-o", "kernels.o"],
        [nvcc, *host, *headers, "-c", str(SOURCES / "msda_cuda.cpp"), "-o", "binding.o"],
        [nvcc, *host, "-shared", "-cudart", "shared", "-o", "library.so", "kernels.o", "binding.o", *link],
    ]


def _digits(arch: str) -> str:
    return arch.removesuffix("+PTX").replace(".", "")


def main() -> int:
    """Build the CPU kernel, and the CUDA kernel where nvcc is; what is already there stays."""
    parser = argparse.ArgumentParser(description="Compile the kernels of multi-scale deformable attention.")
    parser.add_argument("folder", type=Path, help="where the libraries go")
    folder = parser.parse_args().folder.resolve()
    try:
        _build_missing("cpu", folder)
        try:
            find_nvcc()
        except BuildError as error:
            print(f"the CUDA kernel is left out: {error}", flush=True)
        else:
            _build_missing("cuda", folder, cuda_architectures())
    except BuildError as error:
        print(f"{error.log}\nerror: {error}".strip(), file=sys.stderr)
        return 2
    return 0


def _build_missing(kind: Kind, folder: Path, architectures: Sequence[str] = ()) -> None:
    target = folder / library_name(kind, architectures)
    if target.is_file():
        print(f"{target} is up to date", flush=True)
        return
    print(f"compiling {target.name}", flush=True)
    build(kind, folder, architectures)
    current = library_name(kind).removesuffix(".so")
    for old in folder.glob(f"msda_{kind}-*.so"):
        if not old.name.startswith(current):
            old.unlink()


if __name__ == "__main__":
    sys.exit(main())
