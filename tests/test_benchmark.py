"""scripts.benchmark: both paths compute the same, and what is reported is what was measured."""

from __future__ import annotations

import json
import os
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts import benchmark
from scripts.benchmark import (
    SHARED,
    STAGES,
    StageMeter,
    agreement,
    benchmark_config,
    device_peaks,
    main,
    measure,
    parse_args,
    peak_memory,
    random_model,
    report,
    summarise,
)
from tests.commands import run_command
from tests.tiny_models import tiny_flags
from util.config import Config, config_dict, load_config
from util.errors import RunError, UserError

CPU = torch.device("cpu")
SENTENCES = 3
SMALL = ["--frames", 2, "--sentences", SENTENCES, "--height", 64, "--width", 96, "--matrix", 64, "--device", "cpu"]
Plan = tuple[Namespace, Config]


def small_flags(stack: Path, *flags: object) -> list[str]:
    """The command line of a benchmark of tiny sizes."""
    return [str(word) for word in (*SMALL, "--stack", stack, *tiny_flags(), *flags)]


def small_plan(words: list[str]) -> Plan:
    args, rest = parse_args(words)
    return args, benchmark_config(args, load_config(["--device", args.device, *rest], ""))


@pytest.fixture(scope="module")
def plan(tiny_stack: Path) -> Plan:
    return small_plan(small_flags(tiny_stack, "--train-size", 64, 96, "--train-frames", 2))


@pytest.fixture(scope="module")
def found(plan: Plan) -> dict[str, Any]:
    runs = [measure("fast", *plan, dtype) for dtype in ("bf16", "fp32")]
    args, cfg = plan
    settings = {**{name: getattr(args, name) for name in ("frames", "sentences", "height", "width")}}
    return {
        "command": "python -m scripts.benchmark",
        "settings": {**settings, "config": config_dict(cfg)},
        "versions": {"torch": "2"},
        "fast": runs,
        "baseline": measure("baseline", *plan, "fp32"),
        "sweep": {"rows": [{"frames": 2, "sentences": 4, "seconds": 2.0, "peak_memory": 1}]},
        "processes": [{"processes": 2, "threads": 1, "rate": 3.0}],
    }


@pytest.fixture(scope="module")
def result(found: dict[str, Any]) -> dict[str, Any]:
    return summarise(found)


def test_every_stage_is_measured(found: dict[str, Any]) -> None:
    for run in (*found["fast"], found["baseline"]):
        assert set(run["stages"]) == set(STAGES)
        assert all(seconds > 0 for seconds in run["stages"].values())
        assert run["rate"] == pytest.approx(2 * SENTENCES / run["seconds"])
        assert len(run["queries"]) == SENTENCES
        assert run["peak_memory"] > 2**27


def test_operations_are_those_of_all_sentences(found: dict[str, Any]) -> None:
    bf16, fp32, slow = (run["operations"] for run in (*found["fast"], found["baseline"]))
    assert bf16 == fp32
    for name in set(SHARED) & set(slow):
        assert slow[name] == SENTENCES * fp32[name] > 0, name
    for name in ("text", "fusion", "pyramid", "transformer"):
        assert slow[name] == fp32[name] > 0, name
    assert slow["UNet"] > 1.05 * fp32["UNet"]  # the last up block
    assert slow["heads"] == pytest.approx(fp32["heads"], rel=0.05)


def test_both_paths_agree(result: dict[str, Any]) -> None:
    bf16, fp32 = (run["agreement"] for run in result["fast"])
    assert fp32["same_query"] == SENTENCES and 0 < fp32["greatest_difference"] < 1e-3
    assert bf16["same_query"] >= 1 and 0 < bf16["greatest_difference"] < 0.05  # random queries score nearly the same


def test_what_the_result_holds(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result  # nothing but plain values
    first, slow = result["fast"][0], result["baseline"]
    assert result["speedup"] == first["speedup"] == pytest.approx(slow["seconds"] / first["seconds"])
    assert result["peak_memory_ratio"] == first["peak_memory"] / slow["peak_memory"]
    assert 1.5 < result["fast"][1]["operations_ratio"] < SENTENCES
    row = result["stages"]["UNet"]
    assert row["ratio"] == pytest.approx(row["baseline_seconds"] / row["seconds"])
    assert row["share_of_peak"] == pytest.approx(row["operations"] / row["seconds"] / result["peaks"]["bf16"])
    assert 0 < first["unet_share_of_sentence"] < 1
    assert result["stages"]["other"]["seconds"] >= 0


def test_an_answer_that_differs_is_seen() -> None:
    run = {"queries": [1, 2], "logits": np.array([[0.0, 1.0], [0.0, 9.0]])}
    other = {"queries": [1, 3], "logits": np.array([[0.0, 2.0], [5.0, 5.0]])}
    assert agreement(run, other) == {"sentences": 2, "same_query": 1, "greatest_difference": 0.5}
    assert agreement({**run, "queries": [0, 0]}, other)["greatest_difference"] is None


def test_report(result: dict[str, Any]) -> None:
    text = "\n".join(report(result))
    assert text.startswith("vdit, 2 frames of 64×96, 3 sentences")
    assert f"{result['speedup']:.2f}× the baseline's throughput" in text
    assert "2 processes × 1 threads: 3 per second together" in text
    assert "frames 2, sentences 4: 2.00 s, 0.25 s per frame and sentence" in text


def test_a_result_without_a_baseline(found: dict[str, Any]) -> None:
    alone = summarise({name: value for name, value in found.items() if name != "baseline"})
    assert "speedup" not in alone
    assert "baseline" not in "\n".join(report(alone))


def test_training_is_measured(plan: Plan) -> None:
    fast, slow = measure("train fast", *plan, "fp32"), measure("train baseline", *plan, "fp32")
    for run in (fast, slow):
        assert run["rate"] == pytest.approx(1 / run["seconds"])
        assert np.isfinite(run["loss"])
    assert slow["operations"] > fast["operations"] > 0


def test_sweep(plan: Plan) -> None:
    args = Namespace(**{**vars(plan[0]), "sweep_frames": (3,), "sweep_sentences": (1,)})
    rows = measure("sweep", args, plan[1], "bf16")["rows"]
    assert [(row["frames"], row["sentences"]) for row in rows] == [(3, SENTENCES), (2, 1)]
    assert all(row["seconds"] > 0 for row in rows)


def test_meter() -> None:
    meter = StageMeter(CPU)
    with meter.counting(), meter.stage("product"):
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert meter.operations["product"] == 2 * 3 * 4 * 5
    with meter.stage("product"):
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert meter.operations["product"] == 2 * 3 * 4 * 5  # counted no longer
    meter.active = False
    assert meter.stage("other")(abs)(-1) == 1
    assert set(meter.seconds) == {"product"}
    assert set(device_peaks(CPU, 32, 0.01)) == {"fp32", "bf16", "copy"}
    assert peak_memory(CPU) > 2**26


# The command.


@pytest.mark.slow
def test_as_a_user_types_it(tiny_stack: Path, tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    run = run_command(main, *small_flags(tiny_stack, "--dtype", "fp32", "--processes", 2, "--json", file))
    assert run.returncode == 0, run.stderr
    result = json.loads(file.read_text())
    assert result["speedup"] > 0 and result["peak_memory_ratio"] > 0 and set(STAGES) < set(result["stages"])
    assert result["command"].startswith("python -m scripts.benchmark --frames 2")
    assert result["fast"][0]["agreement"]["greatest_difference"] < 1e-3
    assert result["processes"][0]["rate"] > 0
    assert "the baseline's throughput" in run.stdout


def test_mistakes(tiny_stack: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--frames", "1"], "--frames must be at least 2, not 1"),
        (["--sentences", "0"], "--sentences must be at least 1"),
        (["--processes", "2", "0"], "--processes must be at least 1"),
        (["--train-size", "60", "96"], "multiples of 32, not 60 96"),
        (["--stack", str(tmp_path / "none")], "none does not exist"),
        (["--surprise", "1"], "surprise"),
        (["--no-image_tokens"], "the baseline has image tokens"),
    ):
        with pytest.raises(UserError, match=message):
            main([*words, *(["--device", "cpu"] if "--device" not in words else [])])
    with pytest.raises(UserError, match="a configuration file for every frozen part"):
        random_model(Config(), tmp_path, CPU, torch.float32)


def kill_this_process(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_ends_the_run(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "measure", kill_this_process)
    args, cfg = plan
    with pytest.raises(RunError, match="measures fast bf16 was killed, most likely for lack of memory"):
        benchmark.run_part("fast", args, cfg, "bf16")
