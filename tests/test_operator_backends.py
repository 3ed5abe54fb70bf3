"""Which implementation runs, what is told about it, and how a kernel comes to be built, once."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch

from models.ops import MSDeformAttn, backends, compiling, libraries, multi_scale_deformable_attention
from tests.operator_tools import FOUR_LEVELS, case, needs
from util.errors import UserError, run_cli

WORKS = 'echo run >> "$COUNT"; sleep 1; : > library.so'
FAILS = 'echo "$1: fatal error: no such header" >&2; exit 1'


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing chosen and nothing built yet; kernels would go into this folder."""
    monkeypatch.delenv("MSDA_BACKEND", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(libraries, "_folders", lambda: [libraries.cache_folder()])
    backends._choose.cache_clear()
    yield tmp_path / "cache/t2v-rvos"
    backends._choose.cache_clear()


def _compiler(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for the C++ compiler into ``CXX``."""
    path = folder / "my g++"
    path.write_text(f"#!/bin/sh\n{code}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def _run() -> str:
    """The backend that an attention on the CPU gets, after it has run."""
    value, locations, weights = case(FOUR_LEVELS, dtype=torch.float32)
    assert multi_scale_deformable_attention(value, FOUR_LEVELS, locations, weights).isfinite().all()
    return backends.backend_for(value).name


def test_a_compiler_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With g++ the CPU kernel runs: not even forward and backward of plain PyTorch would work here."""
    needs(compiling.find_compiler)
    monkeypatch.delenv("MSDA_BACKEND", raising=False)
    monkeypatch.setattr("models.ops.plain.forward", None)
    monkeypatch.setattr("models.ops.plain.backward", None)
    backends._choose.cache_clear()
    assert _run() == "cpp"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("multi-scale")]
    assert line.startswith("multi-scale deformable attention on cpu: cpp (")
    assert _run() == "cpp"
    assert capsys.readouterr().err == ""  # told once
    value, locations, weights = (tensor.requires_grad_() for tensor in case(FOUR_LEVELS, dtype=torch.float32))
    multi_scale_deformable_attention(value, FOUR_LEVELS, locations, weights).sum().backward()
    assert value.grad is not None and value.grad.any()


def test_no_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    assert _run() == "torch"
    assert capsys.readouterr().err == (
        "multi-scale deformable attention on cpu: torch, many times slower than cpp: "
        "no C++ compiler was found; install g++ (on Debian and Ubuntu: apt install g++)\n"
    )
    assert not fresh.exists()
    monkeypatch.setenv("MSDA_BACKEND", "cpp")
    with pytest.raises(UserError, match=r"^MSDA_BACKEND=cpp is not to be had: no C\+\+ compiler was found; install g"):
        _run()
    assert not fresh.exists()


def test_a_failed_build(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _compiler(tmp_path, FAILS, monkeypatch)
    assert _run() == "torch"
    progress, choice = capsys.readouterr().err.splitlines()
    assert progress.startswith("compiling the cpu kernel of multi-scale deformable attention, once")
    assert "torch, many times slower than cpp: my g++ could not compile the kernel; install g++ 11 or newer" in choice
    (log,) = fresh.glob("*.log")
    assert str(log) in choice
    assert "fatal error: no such header" in log.read_text(encoding="utf-8")
    assert [path.suffix for path in fresh.iterdir() if path != log] == [".lock"]


def test_a_library_that_does_not_load(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = fresh / compiling.library_name("cpu")
    fresh.mkdir(parents=True)
    library.write_bytes(b"not a library")
    assert _run() == "torch"
    assert f"{library} does not load (" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _compiler(tmp_path, WORKS, monkeypatch)
    (tmp_path / "cache").write_text("a file")
    assert _run() == "torch"
    assert f"{fresh} cannot be written (" in capsys.readouterr().err


def test_forced_plain_pytorch(fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MSDA_BACKEND", "torch")
    assert _run() == "torch"
    assert capsys.readouterr().err == "multi-scale deformable attention on cpu: torch\n"
    assert not fresh.exists()


def test_forced_on_the_wrong_device(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSDA_BACKEND", "cuda")
    with pytest.raises(UserError, match=r"^MSDA_BACKEND=cuda takes tensors on cuda, and these are on cpu; unset it$"):
        _run()


def test_an_unknown_one_ends_in_one_sentence(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MSDA_BACKEND", "fast")
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: MSDeformAttn(8, num_levels=1, num_heads=1, num_points=1) and None)
    told = "error: MSDA_BACKEND=fast is unknown; choose cuda, cpp or torch, or unset it\n"
    assert (stop.value.code, capsys.readouterr().err) == (2, told)


def _build(queue: multiprocessing.Queue[str]) -> None:
    queue.put(str(libraries._build_once("cpu")))


def test_two_processes_build_once(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compiler(tmp_path, WORKS, monkeypatch)
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_build, args=(queue,)) for _ in range(2)]
    for process in processes:
        process.start()
    built = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert built == [str(fresh / compiling.library_name("cpu"))] * 2
    assert (tmp_path / "count").read_text() == "run\n"


def test_a_kernel_of_other_sources_is_not_taken(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiling.library_name("cpu")
    sources = shutil.copytree(compiling.SOURCES, tmp_path / "src")
    monkeypatch.setattr(compiling, "SOURCES", sources)
    assert compiling.library_name("cpu") == before
    with (sources / "msda_cpu.cpp").open("a") as file:
        file.write("// changed\n")
    changed = compiling.library_name("cpu")
    assert changed != before
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert compiling.library_name("cpu") not in (before, changed)
