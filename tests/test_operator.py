"""The sampling operator: its results on every backend, tracing, autocast, and how its kernels are compiled."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from models.ops import MSDeformAttn, build, functional, multi_scale_deformable_attention, plain
from scripts.bench_operator import LEVELS, _other_projects, best_time, make_inputs
from util.errors import UserError, run_cli

Shapes = Sequence[tuple[int, int]]
FOUR_LEVELS: Shapes = [(6, 4), (3, 2), (2, 1), (1, 1)]
BACKENDS = ("torch", "cpp", "triton", "cuda")


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Force each backend in turn; the result is the device that its tensors must be on."""
    name = request.param
    device = torch.device("cuda" if name in ("triton", "cuda") else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU to run the CUDA and Triton kernels on")
    if name in ("cpp", "cuda"):
        needs_tools("cpu" if name == "cpp" else "cuda")
    monkeypatch.setenv("MSDA_BACKEND", name)
    assert functional.backend_for(torch.empty(0, 0, 0, 8, device=device)) == name
    return device


def needs_tools(kind: build.Kind) -> None:
    """Skip the test where a kernel cannot be compiled."""
    try:
        build.check_tools(kind)
    except build.BuildError as error:
        pytest.skip(str(error))


def case(
    shapes: Shapes,
    seed: int = 0,
    *,
    batch: int = 2,
    queries: int = 3,
    heads: int = 2,
    width: int = 8,
    points: int = 3,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    """Random value, locations and weights; a third of the locations is outside or on the edge."""
    generator = torch.Generator().manual_seed(seed)
    positions = sum(h * w for h, w in shapes)
    levels = len(shapes)
    value = torch.randn(batch, positions, heads, width, dtype=torch.float64, generator=generator)
    locations = torch.rand(batch, queries, heads, levels, points, 2, dtype=torch.float64, generator=generator) * 1.6
    weights = torch.rand(batch, queries, heads, levels, points, dtype=torch.float64, generator=generator)
    value, locations, weights = (t.to(device, dtype) for t in (value, locations - 0.3, weights))
    return value, locations, weights


def gradients(result: Tensor, inputs: Sequence[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    """The gradients of a random projection of the result."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(result.shape, dtype=torch.float64, generator=generator).to(result)
    return torch.autograd.grad(result, inputs, direction)


HALVES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Half precision → what it may be off: a few of its last places, at values of a few units."""


def _direct(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """One bilinear sample at a time."""
    batch, _, heads, width = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = torch.zeros(batch, queries, heads, width, dtype=value.dtype)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                first = 0
                for level, (h, w) in enumerate(shapes):
                    grid = value[b, first : first + h * w, m].view(h, w, width)
                    first += h * w
                    for p in range(points):
                        x = float(locations[b, q, m, level, p, 0]) * w - 0.5
                        y = float(locations[b, q, m, level, p, 1]) * h - 0.5
                        x0, y0 = math.floor(x), math.floor(y)
                        for yy, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
                            for xx, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
                                if 0 <= yy < h and 0 <= xx < w:
                                    out[b, q, m] += weights[b, q, m, level, p] * wy * wx * grid[yy, xx]
    return out.flatten(2)


@pytest.mark.parametrize("shapes", [[(5, 7)], [(1, 1)], FOUR_LEVELS])
def test_it_samples_as_defined(device: torch.device, shapes: Shapes) -> None:
    value, locations, weights = case(shapes)
    ours = multi_scale_deformable_attention(value.to(device), shapes, locations.to(device), weights.to(device))
    torch.testing.assert_close(ours.cpu(), _direct(value, shapes, locations, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shapes", [[(3, 4)], [(3, 2), (1, 1)]])
def test_gradients(device: torch.device, shapes: Shapes) -> None:
    inputs = [tensor.requires_grad_() for tensor in case(shapes, batch=1, queries=2, points=2, device=device)]
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: multi_scale_deformable_attention(value, shapes, locations, weights),
        inputs,
        nondet_tol=1e-12 if device.type == "cuda" else 0.0,
    )


@pytest.mark.parametrize("seed", range(12))
def test_it_agrees_with_plain_pytorch(device: torch.device, seed: int) -> None:
    """Values and all three gradients, over random shapes; differentiated by autograd on the other side."""
    draw = random.Random(seed)
    shapes = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(draw.choice([1, 4]))]
    width = 8 * draw.choice([1, 2, 3, 4, 5, 8])
    sizes = {"batch": draw.randint(1, 3), "queries": draw.randint(1, 20), "heads": draw.randint(1, 8)}
    inputs = case(shapes, seed, width=width, points=draw.randint(1, 5), **sizes, device=device)
    inputs[1][0, 0, 0, 0, 0] = 1e30  # far outside, where no integer reaches
    ours = multi_scale_deformable_attention(
        inputs[0].requires_grad_(), shapes, *(t.requires_grad_() for t in inputs[1:])
    )
    found = gradients(ours, inputs)
    inputs[1].data[0, 0, 0, 0, 0] = 10.0  # grid_sample wants an integer
    reference = plain.forward(inputs[0], shapes, *inputs[1:])
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-11)
    for one, other in zip(found, gradients(reference, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_adds_up_in_float32(device: torch.device, dtype: torch.dtype) -> None:
    value, locations, weights = case(FOUR_LEVELS, heads=4, dtype=torch.float32, device=device)
    inputs = [value.to(dtype).requires_grad_(), locations.requires_grad_(), weights.requires_grad_()]
    ours = multi_scale_deformable_attention(inputs[0], FOUR_LEVELS, *inputs[1:])
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = plain.forward(exact[0], FOUR_LEVELS, *exact[1:])
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=HALVES[dtype], atol=HALVES[dtype])
    for one, other in zip(gradients(ours, inputs), gradients(expected, exact), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=HALVES[dtype], atol=4 * HALVES[dtype])
    # Locations of half precision are read as they are, and get gradients of their own type.
    halves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    result = multi_scale_deformable_attention(halves[0], FOUR_LEVELS, *halves[1:])
    assert {gradient.dtype for gradient in gradients(result, halves)} == {dtype}


def test_layout_in_memory_does_not_matter(device: torch.device) -> None:
    dense = [tensor.requires_grad_() for tensor in case(FOUR_LEVELS, device=device, dtype=torch.float32)]
    flipped = [t.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for t in dense]
    shifted = [torch.cat([t.detach().new_zeros(1), t.detach().flatten()])[1:].view(t.shape) for t in dense]
    shifted = [tensor.requires_grad_() for tensor in shifted]
    assert not any(tensor.is_contiguous() for tensor in flipped)
    assert all(tensor.data_ptr() % 16 for tensor in shifted)
    first = multi_scale_deformable_attention(dense[0], FOUR_LEVELS, *dense[1:])
    expected = gradients(first, dense)
    for inputs in (flipped, shifted):
        other = multi_scale_deformable_attention(inputs[0], FOUR_LEVELS, *inputs[1:])
        torch.testing.assert_close(other, first, rtol=0, atol=0)
        for one, two in zip(gradients(other, inputs), expected, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_nothing_in_nothing_out(device: torch.device, batch: int, queries: int) -> None:
    inputs = [tensor.requires_grad_() for tensor in case(FOUR_LEVELS, batch=batch, queries=queries, device=device)]
    result = multi_scale_deformable_attention(inputs[0], FOUR_LEVELS, *inputs[1:])
    assert result.shape == (batch, queries, 16)
    found = gradients(result, inputs)
    assert [g.shape for g in found] == [t.shape for t in inputs]
    assert not any(g.any() for g in found)


@pytest.mark.parametrize(
    "device", ["cpp", "triton", "cuda"], indirect=True
)  # plain PyTorch multiplies values outside by zero
def test_kernels_do_not_read_what_is_outside(device: torch.device) -> None:
    """Zero times infinity is not zero: a place outside, or beside the edge, must not borrow a value."""
    value = torch.ones(1, 4, 1, 8, device=device)
    value[:, :3] = math.inf
    locations = torch.tensor([[3.0, 3.0], [math.nan, 0.5], [1.1, 1.1]], device=device).view(1, 1, 1, 1, 3, 2)
    weights = torch.ones(1, 1, 1, 1, 3, device=device)
    result = multi_scale_deformable_attention(value, [(2, 2)], locations, weights)
    torch.testing.assert_close(result, torch.full_like(result, 0.3 * 0.3))


def test_padded_values_do_not_matter(device: torch.device) -> None:
    torch.manual_seed(0)
    attention = MSDeformAttn(16, num_levels=1, num_heads=2, num_points=2).to(device)
    query, values = torch.randn(1, 3, 16, device=device), torch.randn(1, 12, 16, device=device)
    references = torch.rand(1, 3, 1, 4, device=device)
    padding = torch.zeros(1, 12, dtype=torch.bool, device=device)
    padding[:, 8:] = True
    first = attention(query, references, values, [(3, 4)], padding)
    values[:, 8:] = 100
    torch.testing.assert_close(attention(query, references, values, [(3, 4)], padding), first)


def test_offsets_start_as_a_star() -> None:
    attention = MSDeformAttn(32, num_levels=4, num_heads=8, num_points=4)
    offsets = attention.sampling_offsets.bias.view(8, 4, 4, 2)
    reach = offsets.abs().amax(-1)  # head, level, point
    expected = torch.arange(1.0, 5.0).expand(8, 4, 4)
    torch.testing.assert_close(reach, expected)
    directions = {tuple(d.round(decimals=3).tolist()) for d in offsets[:, 0, 0]}
    assert len(directions) == 8


def test_it_is_registered_as_pytorch_wants_it(device: torch.device) -> None:
    """Schema, autograd, fake tensors and tracing with fixed and with changing sizes."""
    flat = [side for shape in FOUR_LEVELS for side in shape]
    value, locations, weights = (t.requires_grad_() for t in case(FOUR_LEVELS, dtype=torch.float32, device=device))
    torch.library.opcheck(torch.ops.t2v_rvos.ms_deform_attn.default, (value, flat, locations, weights))
    arguments = (torch.randn(2, 3, 16, device=device), value.detach(), flat, locations.detach(), weights.detach())
    torch.library.opcheck(torch.ops.t2v_rvos.ms_deform_attn_backward.default, arguments)


def test_compiled_without_a_break(device: torch.device) -> None:
    """One graph, also when sizes change, with the same result and gradients."""

    def sampled(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value * 2, FOUR_LEVELS, locations, weights) + 1

    compiled = torch.compile(sampled, backend="aot_eager", fullgraph=True)
    for queries in (3, 5):
        inputs = [t.requires_grad_() for t in case(FOUR_LEVELS, queries=queries, dtype=torch.float32, device=device)]
        expected, found = sampled(*inputs), compiled(*inputs)
        torch.testing.assert_close(found, expected)
        for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
            torch.testing.assert_close(one, other)


def test_under_autocast(device: torch.device) -> None:
    """Projections in bfloat16, locations and sums in float32."""
    torch.manual_seed(0)
    attention = MSDeformAttn(32, num_levels=4, num_heads=2, num_points=2).to(device)
    positions = sum(h * w for h, w in FOUR_LEVELS)
    query, values = torch.randn(1, 3, 32, device=device), torch.randn(1, positions, 32, device=device)
    references = torch.rand(1, 3, 4, 2, device=device)
    expected = attention(query, references, values, FOUR_LEVELS)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = attention(query, references, values, FOUR_LEVELS)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())


def test_the_same_in_every_run(device: torch.device) -> None:
    """Bit by bit, whatever the number of threads; on CUDA when deterministic algorithms are asked for."""
    threads = torch.get_num_threads()
    shapes = [(16, 20), (8, 10), (4, 5), (2, 3)]
    inputs = [t.requires_grad_() for t in case(shapes, queries=300, heads=8, dtype=torch.float32, device=device)]

    def run(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        result = multi_scale_deformable_attention(inputs[0], shapes, *inputs[1:])
        return [result, *gradients(result, inputs)]

    torch.use_deterministic_algorithms(device.type == "cuda")
    try:
        first = run(1)
        for count in (1, 2):
            assert all(torch.equal(one, other) for one, other in zip(first, run(count), strict=True))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


def _value(value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    return multi_scale_deformable_attention(value, [(3, 4)], locations, weights)


REFUSED: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Any]]] = {
    "other shapes": ("do not fit", lambda v, l, w: multi_scale_deformable_attention(v, [(3, 5)], l, w)),
    "other levels": ("do not fit", lambda v, l, w: multi_scale_deformable_attention(v, [(2, 4), (1, 4)], l, w)),
    "fewer weights": ("do not match", lambda v, l, w: _value(v, l, w[:, :1])),
    "other heads": ("do not match the value", lambda v, l, w: _value(v[:, :, :1], l, w)),
    "other batch": ("do not match the value", lambda v, l, w: _value(v[:1], l, w)),
    "heads and width in one": ("should be", lambda v, l, w: _value(v.flatten(2), l, w)),
    "boxes": ("should be", lambda v, l, w: _value(v, l.repeat(1, 1, 1, 1, 1, 2), w)),
    "integers": ("types int64, float64, float64", lambda v, l, w: _value(v.long(), l, w)),
    "float32 among float64": ("or all float64", lambda v, l, w: _value(v, l.float(), w)),
    "float64 among float32": ("or all float64", lambda v, l, w: _value(v.float(), l.float(), w)),
    "two devices": ("are on meta, cpu and cpu", lambda v, l, w: _value(v.to("meta"), l, w)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_sentence(what: str) -> None:
    part, call = REFUSED[what]
    with pytest.raises(ValueError, match=part) as refusal:
        call(*case([(3, 4)]))
    assert "\n" not in str(refusal.value)


def test_shapes_without_data() -> None:
    value, locations, weights = (tensor.to("meta") for tensor in case(FOUR_LEVELS))
    result = multi_scale_deformable_attention(value, FOUR_LEVELS, locations, weights)
    assert (result.device.type, result.shape, result.dtype) == ("meta", (2, 3, 16), torch.float64)


COMPILES = 'case "$*" in *-dumpversion*) echo 13.0.0;; *.cpp*) echo run >> "$COUNT"; sleep 1;; esac; exec c++ "$@"'
FAILS = 'case "$*" in *-dumpversion*) echo 13.0.0;; *) echo "fatal error: no such header" >&2; exit 1;; esac'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of compiled kernels: no backend is chosen and nothing is compiled yet."""
    for name in ("MSDA_BACKEND", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "nothing")
    functional._choose.cache_clear()
    yield tmp_path / "cache/t2v-rvos"
    functional._choose.cache_clear()


def _compiler(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in for the C++ compiler into ``CXX``."""
    path = folder / "g++"
    path.write_text(f"#!/bin/sh\n{code}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("COUNT", str(folder / "count"))


def _run() -> str:
    """The backend of an attention on the CPU, after it has run."""
    value, locations, weights = case(FOUR_LEVELS, dtype=torch.float32)
    assert multi_scale_deformable_attention(value, FOUR_LEVELS, locations, weights).isfinite().all()
    return functional.backend_for(value)


def test_the_kernel_is_preferred(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a compiler plain PyTorch is not called, and one line reports the choice, once."""
    needs_tools("cpu")
    monkeypatch.delenv("MSDA_BACKEND", raising=False)
    monkeypatch.setattr(plain, "forward", None)
    monkeypatch.setattr(plain, "backward", None)
    functional._choose.cache_clear()
    assert _run() == "cpp"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("multi-scale")]
    assert len(lines) == 1 and lines[0].startswith("multi-scale deformable attention on cpu: cpp (")
    assert _run() == "cpp"
    assert capsys.readouterr().err == ""
    value, locations, weights = (tensor.requires_grad_() for tensor in case(FOUR_LEVELS, dtype=torch.float32))
    multi_scale_deformable_attention(value, FOUR_LEVELS, locations, weights).sum().backward()
    assert value.grad is not None and value.grad.any()


def test_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(cache))
    assert _run() == "torch"
    reason = "no C++ compiler was found (c++); install g++ (apt install g++), or name one in CXX"
    assert capsys.readouterr().err == (
        f"multi-scale deformable attention on cpu: torch, many times slower than cpp: {reason}\n"
    )
    monkeypatch.setenv("MSDA_BACKEND", "cpp")
    with pytest.raises(UserError) as refusal:
        _run()
    assert str(refusal.value) == f"MSDA_BACKEND=cpp is not available: {reason}"
    assert not cache.exists()


def test_a_failed_build(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain PyTorch runs, the compiler's messages are kept, and the next run tries again."""
    _compiler(tmp_path, FAILS, monkeypatch)
    for _ in range(2):
        functional._choose.cache_clear()
        assert _run() == "torch"
        progress, choice = capsys.readouterr().err.splitlines()
        assert progress.startswith("compiling the cpu kernel")
        (log,) = cache.glob("*.log")
        assert f"g++ could not compile the kernel (see {log}); install g++ 11 or newer" in choice
        assert "fatal error: no such header" in log.read_text(encoding="utf-8")
        log.unlink()
    assert [path.name for path in cache.iterdir()] == ["build.lock"]


def test_a_build_that_failed_in_another_process_is_not_repeated(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _compiler(tmp_path, FAILS, monkeypatch)
    log = cache / f"{build.recipe('cpu')['name']}.log"

    @contextmanager
    def wait_for_the_other(lock: Path) -> Iterator[None]:
        log.write_text("fatal error: no such header")
        yield

    monkeypatch.setattr(build, "FileLock", wait_for_the_other)
    assert _run() == "torch"
    (line,) = capsys.readouterr().err.splitlines()
    assert f"another process could not compile the kernel (see {log}); install g++ 11 or newer" in line


def test_a_library_that_does_not_load(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = cache / f"{build.recipe('cpu')['name']}.so"
    cache.mkdir(parents=True)
    library.write_bytes(b"not a library")
    assert _run() == "torch"
    assert f"{library} does not load (" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_tools("cpu")
    cache.parent.write_text("a file")
    assert _run() == "torch"
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{cache} cannot be used (" in line


def test_forced_plain_pytorch(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MSDA_BACKEND", "torch")
    assert _run() == "torch"
    assert capsys.readouterr().err == "multi-scale deformable attention on cpu: torch\n"
    assert not cache.exists()


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_forced_on_the_wrong_device(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSDA_BACKEND", name)
    with pytest.raises(UserError, match=rf"^MSDA_BACKEND={name} runs on cuda, but the tensors are on cpu; unset it$"):
        _run()


def test_an_unknown_backend_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MSDA_BACKEND", "fast")
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: MSDeformAttn(8, num_levels=1, num_heads=1, num_points=1) and None)
    message = "error: MSDA_BACKEND=fast is unknown; choose cuda, triton, cpp or torch, or unset it\n"
    assert (stop.value.code, capsys.readouterr().err) == (2, message)


NO_NVCC, NO_TRITON = build.BuildError("no nvcc of CUDA 13 was found"), build.BuildError("Triton is not installed")


@pytest.mark.parametrize(
    ("width", "cuda", "triton", "report"),
    [
        (8, None, None, "cuda (msda.so)"),
        (12, None, None, "triton: the CUDA kernels need heads whose width is a multiple of 8"),
        (8, NO_NVCC, None, f"triton: {NO_NVCC}"),
        (8, NO_NVCC, NO_TRITON, f"torch, many times slower than cuda: {NO_NVCC}; {NO_TRITON}"),
    ],
)
def test_order_of_choice_on_a_gpu(
    width: int,
    cuda: Exception | None,
    triton: Exception | None,
    report: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The CUDA kernels, then Triton, then plain PyTorch; nothing runs here."""
    monkeypatch.setattr(build, "load", Mock(side_effect=cuda, return_value=Path("msda.so")))
    monkeypatch.setattr(functional, "_try_triton", Mock(side_effect=triton))
    assert functional._choose("cuda", "", packs=width % 8 == 0) == report.split()[0].strip(":,")
    assert capsys.readouterr().err == f"multi-scale deformable attention on cuda: {report}\n"
    for name, error in (("cuda", cuda), ("triton", triton)):
        if error:
            with pytest.raises(UserError, match=f"^MSDA_BACKEND={name} is not available: {error}$"):
                functional._choose("cuda", name, packs=True)
        else:
            assert functional._choose("cuda", name, packs=True) == name


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError(), "Triton is not installed"),
        (RuntimeError("No C compiler.\nmore"), "Triton cannot compile a kernel here (No C compiler.)"),
        (AssertionError(), "Triton cannot compile a kernel here (AssertionError)"),
    ],
    ids=repr,
)
def test_triton_that_does_not_work(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises becomes a reason in one sentence."""
    kernels = SimpleNamespace(forward=Mock(side_effect=error))
    monkeypatch.setitem(sys.modules, "models.ops.triton_kernels", kernels)
    monkeypatch.setattr("models.ops.triton_kernels", kernels, raising=False)
    with pytest.raises(build.BuildError) as refusal:
        functional._try_triton("cpu")
    assert str(refusal.value) == reason


def _start_load(folder: Path) -> subprocess.Popen[str]:
    """Load the CPU kernel in a process of its own: a second library cannot register the operator again."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom models.ops import build\n"
        "build.PREBUILT = Path(sys.argv[1])\nprint(build.load('cpu'))"
    )
    command = [sys.executable, "-c", code, str(folder / "nothing")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
def test_two_processes_compile_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_tools("cpu")
    _compiler(tmp_path, COMPILES, monkeypatch)
    processes = [_start_load(tmp_path) for _ in range(2)]
    library = cache / f"{build.recipe('cpu')['name']}.so"
    assert [process.communicate()[0] for process in processes] == [f"{library}\n"] * 2
    assert (tmp_path / "count").read_text() == "run\n"
    assert {path.name for path in cache.iterdir()} == {library.name, "build.lock"}


@pytest.mark.slow
def test_a_killed_build_does_not_block_the_next_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its lock nor its unfinished files stay in the way."""
    needs_tools("cpu")
    ready = tmp_path / "ready"
    _compiler(tmp_path, COMPILES.replace("sleep 1", f': > "{ready}"; sleep 600'), monkeypatch)
    killed = _start_load(tmp_path)
    while not ready.exists():
        assert killed.poll() is None
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert list(cache.glob("build-*/lock"))
    monkeypatch.delenv("CXX")
    assert _start_load(tmp_path).communicate()[0].endswith(".so\n")
    assert not list(cache.glob("build-*/"))


def test_a_kernel_of_other_sources_flags_or_another_pytorch_is_not_used(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = shutil.copytree(build.SOURCES, tmp_path / "src")
    cache.mkdir(parents=True)
    library = cache / f"{build.recipe('cpu')['name']}.so"
    library.touch()
    monkeypatch.setattr(build, "SOURCES", sources)
    assert build._find("cpu") == library
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.99.0")
        assert build._find("cpu") is None
    with monkeypatch.context() as patch:
        patch.setattr(build, "COMMON", ("-O2",))
        assert build._find("cpu") is None
    with (sources / "msda_cpu.cpp").open("a") as file:
        file.write("// changed\n")
    assert build._find("cpu") is None


def test_the_benchmark_measures_operators_of_other_projects(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Called as their documentation says; what is not installed or fails is left out."""

    def sample(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        assert shapes.tolist() == [list(shape) for shape in LEVELS] and starts.tolist() == [0, 3600, 4520, 4760]
        return plain.forward(value, LEVELS, locations, weights)

    def differentiate(
        value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, grad: Tensor, step: int
    ) -> Sequence[Tensor]:
        assert step == 1 and grad.is_contiguous()
        return plain.backward(grad, value, LEVELS, locations, weights)

    kernel = SimpleNamespace(ms_deform_attn_forward=lambda *a: sample(*a[:5]), ms_deform_attn_backward=differentiate)
    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_kernel=lambda name, version: kernel))
    monkeypatch.setitem(sys.modules, "deformops", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "deformops.registry", SimpleNamespace(msda=sample))
    inputs = [tensor.requires_grad_() for tensor in make_inputs("decoder", 1, torch.device("cpu"), torch.float32)]
    expected = plain.forward(inputs[0], LEVELS, *inputs[1:])
    wanted = gradients(expected, inputs)
    found = dict(_other_projects((inputs[0], inputs[1], inputs[2])))
    assert list(found) == ["hub", "deformops"]
    for operator in found.values():
        result = operator(*inputs)
        torch.testing.assert_close(result, expected)
        for one, other in zip(gradients(result, inputs), wanted, strict=True):
            torch.testing.assert_close(one, other)

    monkeypatch.setitem(sys.modules, "kernels", None)
    monkeypatch.setitem(sys.modules, "deformops.registry", SimpleNamespace(msda=None))
    assert not list(_other_projects((inputs[0], inputs[1], inputs[2])))
    assert [line[:18] for line in capsys.readouterr().out.splitlines()] == ["hub       left out", "deformops left out"]


def test_the_benchmark_uses_the_threads_of_pytorch() -> None:
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(3)
    try:
        best_time(lambda: seen.add(torch.get_num_threads()), 0.01)
    finally:
        torch.set_num_threads(before)
    assert seen == {3}
