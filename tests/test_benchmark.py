"""scripts.benchmark: both paths compute the same, and what is reported is what was measured."""

from __future__ import annotations

import json
import os
import re
import signal
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from scripts import benchmark
from scripts.benchmark import (
    StageMeter,
    benchmark_config,
    compare,
    machine,
    main,
    measure,
    parse_args,
    random_model,
    report,
)
from tests.commands import run_command
from tests.tiny_models import tiny_flags
from util.config import Config, config_dict, load_config
from util.errors import RunError, UserError

CPU = torch.device("cpu")
STAGES = {
    *("reading", "VAE", "image tokens", "noise and stride 4", "text", "fusion", "UNet", "pyramid", "transformer"),
    *("heads", "post-processing", "PNG writing", "other", "all"),
}
SENTENCES = 3
SMALL = ["--frames", 2, "--sentences", SENTENCES, "--height", 64, "--width", 96, "--device", "cpu"]
Plan = tuple[Namespace, Config]


def small_flags(stack: Path, *flags: object) -> list[str]:
    """The command line of a benchmark of tiny sizes."""
    return [str(word) for word in (*SMALL, "--stack", stack, *tiny_flags(), *flags)]


def small_plan(words: list[str]) -> Plan:
    args, rest = parse_args(words)
    return args, benchmark_config(args, load_config(["--device", args.device, *rest], ""))


@pytest.fixture(scope="module")
def plan(small_stack: Path) -> Plan:
    return small_plan(small_flags(small_stack, "--train-size", 64, 96, "--train-frames", 2))


@pytest.fixture(scope="module")
def runs(plan: Plan) -> dict[str, dict[str, Any]]:
    fast = {dtype: measure("fast", *plan, dtype) for dtype in ("bf16", "fp32")}
    return {**fast, "baseline": measure("baseline", *plan, "fp32")}


def test_every_stage_is_measured(runs: dict[str, dict[str, Any]]) -> None:
    for run in runs.values():
        assert set(run["stages"]) == STAGES
        assert all(seconds > 0 for name, seconds in run["stages"].items() if name != "other")
        assert run["stages"]["all"] == run["seconds"]
        assert run["rate"] == pytest.approx(2 * SENTENCES / run["seconds"])
        assert len(run["queries"]) == SENTENCES
        assert run["peak_memory"] > 2**27


def test_both_paths_agree(runs: dict[str, dict[str, Any]]) -> None:
    bf16, fp32 = (compare(runs[name], runs["baseline"]) for name in ("bf16", "fp32"))
    assert fp32["same_query"] == SENTENCES and 0 < fp32["greatest_difference"] < 1e-3
    assert bf16["same_query"] >= 1 and 0 < bf16["greatest_difference"] < 0.05  # random queries score nearly the same


def test_the_baseline_repeats_for_every_sentence_what_the_fast_path_shares(runs: dict[str, dict[str, Any]]) -> None:
    found = compare(runs["fp32"], runs["baseline"])
    assert runs["bf16"]["operations"] == runs["fp32"]["operations"] > 0
    assert 1.5 < found["operations_ratio"] < SENTENCES
    assert found["speedup"] == pytest.approx(runs["baseline"]["seconds"] / runs["fp32"]["seconds"])
    assert found["peak_memory_ratio"] == runs["fp32"]["peak_memory"] / runs["baseline"]["peak_memory"]
    assert json.loads(json.dumps(found)) == found  # nothing but plain values


def test_an_answer_that_differs_is_seen() -> None:
    numbers = {"rate": 1.0, "operations": 1, "peak_memory": 1}
    run = {**numbers, "queries": [1, 2], "logits": np.array([[0.0, 1.0], [0.0, 9.0]])}
    other = {**numbers, "queries": [1, 3], "logits": np.array([[0.0, 2.0], [5.0, 5.0]])}
    found = compare(run, other)
    assert (found["same_query"], found["greatest_difference"]) == (1, 0.5)
    assert compare({**run, "queries": [0, 0]}, other)["greatest_difference"] == 1
    assert "speedup" not in compare(run, None)


@pytest.mark.parametrize("with_baseline", [True, False])
def test_report(plan: Plan, runs: dict[str, dict[str, Any]], with_baseline: bool) -> None:
    args, cfg = plan
    base = runs["baseline"] if with_baseline else None
    sizes = {name: getattr(args, name) for name in ("frames", "sentences", "height", "width")}
    fast = compare(runs["fp32"], base)
    result = {"settings": {**sizes, "config": config_dict(cfg)}, "machine": machine(CPU), "fast": [fast]}
    text = "\n".join(report({**result, "baseline": base}))
    assert text.startswith("vdit, 2 frames of 64×96, 3 sentences")
    if with_baseline:
        assert f"{fast['speedup']:.2f}× the baseline's throughput" in text
        assert f"the same query for {SENTENCES} of {SENTENCES} sentences" in text
    else:
        assert "throughput" not in text and "nan" not in text and "ratio" not in text


def test_training_is_measured(plan: Plan) -> None:
    fast, slow = measure("train fast", *plan, "fp32"), measure("train baseline", *plan, "fp32")
    for run in (fast, slow):
        assert run["rate"] == pytest.approx(1 / run["seconds"])
        assert np.isfinite(run["loss"])
    assert slow["operations"] > fast["operations"] > 0


@pytest.mark.parametrize("part", ["fast", "train fast"])
def test_compiled_parts_never_run_under_the_operation_counter(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """PyTorch never compiles code whose first call is in a dispatch mode."""
    modes: list[object] = []

    def compile_module(module: nn.Module) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            modes.append(_get_current_dispatch_mode())
            return module(*args)

        return run

    monkeypatch.setattr(torch, "compile", compile_module)
    args, cfg = plan
    run = measure(part, args, replace(cfg, compile=True), "fp32")
    assert run["operations"] > 0
    assert len(modes) >= 4 and set(modes) == {None}  # UNet and VAE, to warm up and timed


def test_a_model_without_image_tokens_is_measured(small_stack: Path) -> None:
    run = measure("fast", *small_plan(small_flags(small_stack, "--no-baseline", "--no-image_tokens")), "fp32")
    assert set(run["stages"]) == STAGES - {"image tokens", "fusion"}


@pytest.mark.parametrize(("kind", "backend"), [("cpu", "torch"), ("cuda", None)])
def test_the_baseline_has_the_plain_operator_on_the_cpu(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, kind: str, backend: str | None
) -> None:
    monkeypatch.delenv("MSDA_BACKEND", raising=False)
    monkeypatch.setattr(benchmark, "resolve_device", lambda name: torch.device(kind))
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(benchmark, "measure", lambda *_: {"backend": os.environ.get("MSDA_BACKEND")})
    args, cfg = plan
    assert benchmark.run_part("baseline", args, replace(cfg, device="auto")) == {"backend": backend}


def test_meter() -> None:
    meter = StageMeter(CPU)
    with meter.stage("product"):
        torch.ones(3, 4) @ torch.ones(4, 5)
    meter.active = False
    assert meter.stage("other")(abs)(-1) == 1
    assert set(meter.seconds) == {"product"}


# The command.


@pytest.mark.slow
def test_the_whole_command(small_stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In threads, so memory is not measured: a test of ``scripts.gpu_check`` measures in processes."""
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    file = tmp_path / "speed.json"
    run = run_command(
        main, *small_flags(small_stack, "--dtype", "fp32", "--training", "--train-size", 64, 96, "--json", file)
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(file.read_text())
    (fast,) = result["fast"]
    assert fast["speedup"] > 0 and set(fast["stages"]) == STAGES
    assert result["command"].startswith("python -m scripts.benchmark --frames 2")
    assert fast["greatest_difference"] < 1e-3
    assert result["training"]["fast"]["speedup"] > 0
    assert "the baseline's throughput" in run.stdout


def test_reading_and_writing_alone() -> None:
    run = run_command(main, *map(str, SMALL), "--files", "2", "--num_workers", "3")
    assert run.returncode == 0, run.stderr
    assert re.search(
        r"^4 frames, 3 sentences, 3 threads, \d+ cores: \d+\.\d frames per second, \d+\.\d ms of CPU time per frame$",
        run.stdout,
        re.MULTILINE,
    )


def test_mistakes(small_stack: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--frames", "1"], "--frames must be at least 2, not 1"),
        (["--sentences", "0"], "--sentences must be at least 1"),
        (["--train-size", "60", "96"], "multiples of 32, not 60 96"),
        (["--surprise", "1"], "surprise"),
        (["--no-image_tokens"], "the baseline has image tokens"),
    ):
        with pytest.raises(UserError, match=message):
            main([*words, *(["--device", "cpu"] if "--device" not in words else [])])
    with pytest.raises(UserError, match="a configuration file for every frozen part"):
        random_model(Config(), tmp_path, CPU)


def kill_this_process(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_ends_the_run(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "measure", kill_this_process)
    args, cfg = plan
    with pytest.raises(RunError, match="measures fast bf16 was killed, most likely for lack of memory"):
        benchmark.run_part("fast", args, cfg, "bf16")
