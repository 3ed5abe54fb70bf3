"""scripts.benchmark: what is said of both paths is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.registry import load_config
from scripts import benchmark, benchmark_report, benchmark_runs
from scripts.benchmark import main, make_plan, parse_args
from scripts.benchmark_meter import StageMeter, device_peaks, peak_memory
from scripts.benchmark_model import random_model
from scripts.benchmark_plan import SHARED, STAGES, Plan
from scripts.benchmark_summary import agreement, summarise
from tests.commands import run_command
from tests.tiny_models import tiny_flags
from util.config import Config
from util.errors import RunError, UserError

CPU = torch.device("cpu")
SENTENCES = 3
SMALL = ["--frames", 2, "--sentences", SENTENCES, "--height", 64, "--width", 96, "--matrix", 64, "--device", "cpu"]


def small_flags(stack: Path, *flags: object) -> list[str]:
    """The command line of a benchmark of tiny sizes."""
    return [str(word) for word in (*SMALL, "--stack", stack, *tiny_flags(), *flags)]


@pytest.fixture(scope="module")
def plan(tiny_stack: Path) -> Plan:
    return small_plan(small_flags(tiny_stack, "--train-size", 64, 96, "--train-frames", 2))


def small_plan(words: list[str]) -> Plan:
    args, rest = parse_args(words)
    plan = make_plan(args, load_config(["--device", args.device, *rest], ""))
    return Plan(**json.loads(json.dumps(plan.__dict__)))  # as the processes get it


@pytest.fixture(scope="module")
def found(plan: Plan) -> dict[str, Any]:
    runs = [benchmark_runs.fast(plan, dtype) for dtype in ("bf16", "fp32")]
    runs.append(benchmark_runs.baseline(plan, "fp32"))
    for run in runs:
        run["logits"] = run.pop("arrays")["logits"]
    return {
        "command": "python -m scripts.benchmark",
        "settings": plan.__dict__,
        "versions": {"torch": "2"},
        "fast": runs[:2],
        "baseline": runs[2],
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


def test_page_and_chart(result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page, chart = tmp_path / "speed.json", tmp_path / "page.md", tmp_path / "speed.png"
    file.write_text(json.dumps(result))
    page.write_text("before\n<!-- speed.json -->\nold\n<!-- end of speed.json -->\nafter\n")
    for _ in range(2):
        benchmark_report.main([str(file), "--page", str(page), "--chart", str(chart)])
    text = page.read_text()
    assert text.startswith("before\n<!-- speed.json -->\n- vdit, 2 frames of 64×96") and text.endswith("\nafter\n")
    assert "old" not in text and text.count("| UNet |") == 2
    assert text.count("![Seconds of every stage](speed.png)\n<!-- end") == 1
    assert f"**{result['speedup']:.2f}× the baseline's throughput**" in text
    assert chart.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "**" not in printed and "2 × 1 (processes × threads): 3 frames × sentences per second together" in printed
    assert "frames 2, sentences 4: 2.00 s, 1 s a frame, 0.25 s a frame and sentence" in printed


def test_a_result_without_a_baseline(found: dict[str, Any]) -> None:
    alone = summarise({name: value for name, value in found.items() if name != "baseline"})
    assert "speedup" not in alone
    assert "baseline" not in benchmark_report.text_report(alone)


def test_training_is_measured(plan: Plan) -> None:
    fast, slow = benchmark_runs.train_fast(plan, "fp32"), benchmark_runs.train_baseline(plan, "fp32")
    for run in (fast, slow):
        assert run["rate"] == pytest.approx(1 / run["seconds"])
        assert np.isfinite(run["loss"])
    assert slow["operations"] > fast["operations"] > 0


def test_sweep(plan: Plan) -> None:
    wide = Plan(**{**plan.__dict__, "sweep_frames": (3,), "sweep_sentences": (1,)})
    rows = benchmark_runs.sweep(wide, "bf16")["rows"]
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
    assert meter.timed("other", abs)(-1) == 1
    assert set(meter.seconds) == {"product"}
    assert set(device_peaks(CPU, 32, 0.01)) == {"fp32", "bf16", "copy"}
    assert peak_memory(CPU) > 2**26


# The command.


@pytest.mark.slow
def test_as_a_user_types_it(tiny_stack: Path, tmp_path: Path) -> None:
    file, chart = tmp_path / "speed.json", tmp_path / "speed.png"
    words = small_flags(tiny_stack, "--dtype", "fp32", "--json", file, "--chart", chart)
    run = run_command(main, *words)
    assert run.returncode == 0, run.stderr
    result = json.loads(file.read_text())
    assert result["speedup"] > 0 and result["peak_memory_ratio"] > 0 and set(STAGES) < set(result["stages"])
    assert result["command"].startswith("python -m scripts.benchmark --frames 2")
    assert result["fast"][0]["agreement"]["greatest_difference"] < 1e-3
    assert "the baseline's throughput" in run.stdout and chart.is_file()


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


def test_a_process_that_fails_ends_the_run(plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(benchmark.sys, "executable", str(program))
    with pytest.raises(RunError, match="measures fast bf16 was killed, most likely for want of memory"):
        benchmark.run_part(plan, "fast", "bf16")


def test_files_that_are_no_results(tmp_path: Path) -> None:
    file, page = tmp_path / "speed.json", tmp_path / "page.md"
    file.write_text("{}")
    with pytest.raises(UserError, match=r"speed.json is no result of scripts.benchmark"):
        benchmark_report.main([str(file)])
    page.write_text("no place for it")
    with pytest.raises(UserError, match=r"lacks the lines <!-- speed\.json -->"):
        benchmark_report.update_page(page, "speed.json", "text")
