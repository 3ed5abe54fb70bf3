"""The CUDA kernels where no GPU is: they compile, link and load; and their sources run on the CPU, thread by thread.

Where there is a GPU, the other tests of the operator run the kernels there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.ops import compiling, libraries, plain
from tests.operator_tools import FOUR_LEVELS, case, needs


@pytest.mark.slow
def test_it_compiles_links_and_loads(tmp_path: Path) -> None:
    """For sm_90; nothing is left undefined, and PyTorch sees its operators."""
    needs(compiling.find_compiler)
    needs(compiling.find_nvcc)
    name = compiling.library_name("cuda", ["9.0"])
    found = [folder / name for folder in libraries._folders() if (folder / name).is_file()]
    library = found[0] if found else compiling.build("cuda", tmp_path, ["9.0"])
    code = (
        "import sys, torch\ntorch.ops.load_library(sys.argv[1])\n"
        "print(torch.ops.t2v_rvos_cuda.forward.default._schema)\n"
        "print(torch._C._dispatch_has_kernel_for_dispatch_key('t2v_rvos_cuda::backward', 'CUDA'))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True, timeout=600)
    assert run.stdout.splitlines() == [
        "t2v_rvos_cuda::forward(Tensor value, int[] shapes, Tensor locations, Tensor weights) -> Tensor",
        "True",
    ], run.stderr


def test_a_library_is_taken_for_the_gpus_it_has_code_for() -> None:
    name = compiling.library_name("cuda", ["9.0", "8.0+PTX"])
    assert name.endswith("-ptx80-sm90.so")
    runs = {cap: compiling.runs_on(name, cap) for cap in [(7, 5), (8, 0), (8, 6), (9, 0), (12, 0)]}
    assert runs == {(7, 5): False, (8, 0): True, (8, 6): True, (9, 0): True, (12, 0): True}
    assert not compiling.runs_on(compiling.library_name("cuda", ["9.0"]), (12, 0))
    assert not compiling.runs_on(compiling.library_name("cuda", ["8.6"]), (8, 0))


def test_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    assert compiling.cuda_architectures() == ("8.0", "9.0+PTX")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(compiling.BuildError, match="TORCH_CUDA_ARCH_LIST names 'Hopper'"):
        compiling.cuda_architectures()


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("release 11.8, V11.8.89", "is of CUDA 11.8, and PyTorch of CUDA 13.0; install the CUDA 13 toolkit"),
        ("nothing", "is broken, and PyTorch of CUDA 13.0"),
    ],
)
def test_another_cuda(said: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho '{said}'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(compiling.BuildError, match=re.escape(sentence)):
        compiling.find_nvcc()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(compiling.BuildError, match="built without CUDA"):
        compiling.find_nvcc()


@pytest.fixture(scope="module")
def on_cpu(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The CUDA sources compiled for the CPU with ``cuda_on_cpu.h``; the namespace of their operators."""
    compiler = needs(compiling.find_compiler)
    folder = tmp_path_factory.mktemp("on_cpu")
    texts = {name: (compiling.SOURCES / name).read_text(encoding="utf-8") for name in compiling.FILES["cuda"]}
    texts["msda_cuda.h"] = texts["msda_cuda.h"].replace("<cuda_runtime_api.h>", '"cuda_on_cpu.h"')
    texts["msda_kernels.cuh"] = re.sub(r".*extern __shared__.*\n", "", texts["msda_kernels.cuh"])
    kernels = texts.pop("msda_cuda.cu").replace("cuda_bf16.h", "c10/util/BFloat16.h")
    kernels = kernels.replace("cuda_fp16.h", "c10/util/Half.h")
    launch = re.compile(r"(\w+<T, Acc>)<<<(.*?), stream>>>\(\n(.*?)\);", re.DOTALL)
    kernels = launch.sub(r"on_cpu::launch(\2, [=] { \1(\3); });", kernels)
    types = "using __half = c10::Half;\nusing __nv_bfloat16 = c10::BFloat16;\n"
    texts["kernels.cpp"] = kernels.replace("namespace msda {", f"{types}namespace msda {{", 1)
    binding = re.sub(r".*(include <c10/cuda|CUDAGuard).*\n", "", texts["msda_cuda.cpp"])
    for old, new in {
        "C10_CUDA_CHECK(": "TORCH_CHECK(0 == ",
        "c10::cuda::getCurrentCUDAStream()": "nullptr",
        "(t2v_rvos_cuda, CUDA": "(t2v_rvos_cuda_on_cpu, CPU",
        "(t2v_rvos_cuda, library": "(t2v_rvos_cuda_on_cpu, library",
    }.items():
        assert old in binding
        binding = binding.replace(old, new)
    texts["msda_cuda.cpp"] = binding
    texts["cuda_on_cpu.h"] = (root / "tests/cuda_on_cpu.h").read_text(encoding="utf-8")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    headers, libraries_folder = compiling._torch_folders()
    command = [compiler, "-O1", "-std=c++20", "-fPIC", "-shared", *headers, "kernels.cpp", "msda_cuda.cpp"]
    command += ["-o", "on_cpu.so", f"-L{libraries_folder}", "-ltorch_cpu", "-lc10"]
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
