"""The CUDA kernels without a GPU: they compile, link and load, and their sources run on the CPU, thread by thread.

On a machine with a GPU, ``test_operator.py`` runs the kernels there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from models.ops import build, plain
from tests.test_operator import FOUR_LEVELS, case, needs_tools


@pytest.mark.slow
def test_it_compiles_links_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For sm_90, with nothing left undefined; PyTorch sees its operators."""
    needs_tools("cuda")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    if build._find("cuda") is None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = (
        "import torch\nfrom models.ops import build\nprint(build.load('cuda'))\n"
        "print(torch.ops.t2v_rvos_cuda.forward.default._schema)\n"
        "print(torch._C._dispatch_has_kernel_for_dispatch_key('t2v_rvos_cuda::backward', 'CUDA'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert run.stdout.splitlines()[1:] == [
        "t2v_rvos_cuda::forward(Tensor value, int[] shapes, Tensor locations, Tensor weights) -> Tensor",
        "True",
    ], run.stderr
    assert run.stdout.splitlines()[0].endswith("-sm90.so")


def test_a_library_is_used_on_the_gpus_it_has_code_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(architectures: str) -> str:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
        return build.recipe("cuda")["name"]

    both = name("9.0;8.0+PTX")
    assert both.endswith("-ptx80-sm90")
    runs = {cap: build.runs_on(both, cap) for cap in [(7, 5), (8, 0), (8, 6), (9, 0), (12, 0)]}
    assert runs == {(7, 5): False, (8, 0): True, (8, 6): True, (9, 0): True, (12, 0): True}
    assert not build.runs_on(name("9.0"), (12, 0))
    assert not build.runs_on(name("8.6"), (8, 0))
    with pytest.raises(build.BuildError, match="TORCH_CUDA_ARCH_LIST has the entry 'Fast'"):
        name("Fast")


def _toolkit(folder: Path, release: str) -> Path:
    """A CUDA toolkit whose nvcc reports a release."""
    for name in ("bin", "include", "lib"):
        (folder / name).mkdir(parents=True)
    (folder / "bin/nvcc").write_text(f"#!/bin/sh\necho 'release {release}, V{release}.1'\n")
    (folder / "bin/nvcc").chmod(0o755)
    (folder / "include/cuda_runtime_api.h").touch()
    return folder


def test_which_nvcc_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of PyTorch's CUDA version: of CUDA_HOME, the system's, or from pip."""
    needs_tools("cpu")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "site-packages/torch/__init__.py"))
    monkeypatch.setattr(build, "SYSTEM_CUDA", str(tmp_path / "system"))
    for home in (None, str(_toolkit(tmp_path / "old", "11.8"))):
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", home)
        with pytest.raises(build.BuildError, match="no nvcc of CUDA 13 was found; install the CUDA 13 toolkit"):
            build.check_tools("cuda")
    for name in ("site-packages/nvidia/cu13", "system", "asked"):
        found = str(_toolkit(tmp_path / name, "13.0"))
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", found if name == "asked" else str(tmp_path / "old"))
        build.check_tools("cuda")
        assert found == cpp_extension.CUDA_HOME
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(build.BuildError, match="built without CUDA"):
        build.check_tools("cuda")


def test_libcudart_from_pip_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit, folder = _toolkit(tmp_path / "cu13", "13.0"), tmp_path / "build"
    folder.mkdir()
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(toolkit))
    assert build.cudart_flags(str(folder)) == []
    (toolkit / "lib/libcudart.so.13").write_text("library")
    assert build.cudart_flags(str(folder)) == [f"-L{folder}"]
    assert (folder / "libcudart.so").read_text() == "library"
    (toolkit / "lib/libcudart.so").touch()  # of a whole toolkit
    assert build.cudart_flags(str(folder)) == []


@pytest.fixture(scope="module")
def on_cpu(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The CUDA sources compiled for the CPU with ``cuda_on_cpu.h``; the namespace of their operators."""
    needs_tools("cpu")
    compiler = os.environ.get("CXX", "c++")
    folder = tmp_path_factory.mktemp("on_cpu")
    texts = {path.name: path.read_text(encoding="utf-8") for path in build.SOURCES.iterdir()}
    del texts["msda_cpu.cpp"]
    texts["msda_cuda.h"] = texts["msda_cuda.h"].replace("<cuda_runtime_api.h>", '"cuda_on_cpu.h"')
    texts["msda_kernels.cuh"] = re.sub(r".*extern __shared__.*\n", "", texts["msda_kernels.cuh"])
    kernels = texts.pop("msda_cuda.cu").replace("cuda_bf16.h", "c10/util/BFloat16.h")
    kernels = kernels.replace("cuda_fp16.h", "c10/util/Half.h")
    launch = re.compile(r"(\w+<T, Acc>)<<<(.*?), stream>>>\(\n(.*?)\);", re.DOTALL)
    kernels = launch.sub(r"on_cpu::launch(\2, [=] { \1(\3); });", kernels)
    types = "using __half = c10::Half;\nusing __nv_bfloat16 = c10::BFloat16;\n"
    texts["kernels.cpp"] = kernels.replace("namespace msda {", f"{types}namespace msda {{", 1)
    binding = re.sub(r".*(include <c10/cuda|CUDAGuard).*\n", "", texts["msda_cuda_binding.cpp"])
    for old, new in {
        "C10_CUDA_CHECK(": "TORCH_CHECK(0 == ",
        "c10::cuda::getCurrentCUDAStream()": "nullptr",
        "(t2v_rvos_cuda, CUDA": "(t2v_rvos_cuda_on_cpu, CPU",
        "(t2v_rvos_cuda, library": "(t2v_rvos_cuda_on_cpu, library",
    }.items():
        assert old in binding
        binding = binding.replace(old, new)
    texts["msda_cuda_binding.cpp"] = binding
    texts["cuda_on_cpu.h"] = (root / "tests/cuda_on_cpu.h").read_text(encoding="utf-8")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    headers = [part for folder in cpp_extension.include_paths() for part in ("-isystem", folder)]
    command = [compiler, "-O1", "-std=c++20", "-fPIC", "-shared", *headers, "kernels.cpp", "msda_cuda_binding.cpp"]
    command += ["-o", "on_cpu.so", f"-L{cpp_extension.library_paths()[0]}", "-ltorch_cpu", "-lc10"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    torch.ops.load_library(folder / "on_cpu.so")
    return "t2v_rvos_cuda_on_cpu"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("width", "heads", "points", "shapes"),
    [
        (8, 2, 3, [(5, 7)]),
        (24, 3, 5, FOUR_LEVELS),  # more points than shared memory holds at a time, and idle threads
        (32, 8, 4, FOUR_LEVELS),
        (520, 1, 1, [(4, 4), (1, 1)]),  # more channels than a warp reads at a time
    ],
)
def test_their_sources_compute_the_operator(
    on_cpu: str, dtype: torch.dtype, width: int, heads: int, points: int, shapes: list[tuple[int, int]]
) -> None:
    operators = getattr(torch.ops, on_cpu)
    value, locations, weights = case(shapes, heads=heads, width=width, points=points, queries=9)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value, locations, weights = value.to(dtype), locations.to(wide), weights.to(wide)
    grad = torch.randn(2, 9, heads * width, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(dtype)
    flat = [side for shape in shapes for side in shape]
    exact = [tensor.double() for tensor in (value, locations, weights)]
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 32 * torch.finfo(wide).eps}

    result = operators.forward(value, flat, locations, weights)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), plain.forward(exact[0], shapes, *exact[1:]), **tolerance)
    expected = plain.backward(grad.double(), exact[0], shapes, *exact[1:])
    for ordered in (False, True):
        found = operators.backward(grad, value, flat, locations, weights, ordered)
        assert [tensor.dtype for tensor in found] == [dtype, wide, wide]
        torch.testing.assert_close(found[0].double(), expected[0], **tolerance)
        for one, other in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=256 * torch.finfo(wide).eps)
