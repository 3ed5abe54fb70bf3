"""The toy lab's runs: which are kept, done and stopped, on what they are scored, and all of it once."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inference_ytvos
import main
from models.diffusion.tiny import make_tiny_stack
from scripts import toy_lab, toy_lab_pictures, toy_lab_runs
from scripts.toy_lab import (
    UNKNOWN,
    VARIANTS,
    Lab,
    Results,
    Scores,
    Stopped,
    _call,
    find_score,
    gather,
    run_all,
    stack_sizes,
    write_clips,
)
from tests.commands import run_command
from util.errors import RunError, UserError
from util.io import write_json

BASE, RANDOM, GAUSSIAN = VARIANTS[:3]
SIZES = {"channels": (32, 32, 32, 32), "layers_per_block": 1, "image_size": 32, "image_patch": 16, "max_tokens": 400}


def finish(lab: Lab, variant: toy_lab.Variant, seed: int, jf: float) -> None:
    write_json(lab.folder(variant, seed) / "run.json", lab.parameters(variant, seed))
    write_json(lab.folder(variant, seed) / "score.json", {"jf": jf, "swapped_jf": 1.0, "seconds": 2.0})


def test_a_finished_run_is_kept_unless_its_parameters_are_others(tmp_path: Path) -> None:
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "weights").write_text("a")
    lab = Lab(tmp_path / "stack", tmp_path / "out", steps=10)
    assert find_score(lab, BASE, 0) is None
    finish(lab, BASE, 0, 50.0)
    assert find_score(lab, BASE, 0) == {"jf": 50.0, "swapped_jf": 1.0, "seconds": 2.0}
    (lab.folder(BASE, 0) / "score.json").unlink()
    assert find_score(lab, BASE, 0) is None, "a run that was stopped"
    with pytest.raises(UserError, match=r"base/seed_0 holds a run with steps 10, and this one has 11; remove"):
        find_score(Lab(lab.stack, lab.output, steps=11), BASE, 0)
    with pytest.raises(UserError, match="valid_videos 100, and this one has 7"):
        find_score(Lab(lab.stack, lab.output, steps=10, valid_videos=7), BASE, 0)
    (tmp_path / "stack" / "weights").write_text("b")
    with pytest.raises(UserError, match="holds a run with stack '"):
        find_score(Lab(lab.stack, lab.output, steps=10), BASE, 0)


def test_only_what_is_not_done_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, done = Lab(tmp_path / "stack", tmp_path / "out"), []
    prepared: list[list[int]] = []

    def run(lab: Lab, variant: toy_lab.Variant, seed: int, stop: threading.Event) -> dict[str, float]:
        done.append((variant.name, seed))
        return {"jf": 10.0 + seed, "swapped_jf": 1.0, "seconds": 3.0}

    monkeypatch.setattr(toy_lab, "run_variant", run)
    monkeypatch.setattr(toy_lab, "prepare", lambda lab, seeds: prepared.append(seeds))
    finish(lab, BASE, 1, 77.0)
    results: Results = run_all(lab, [BASE, RANDOM], [0, 1], processes=1)
    assert done == [("base", 0), ("random_stack", 0), ("random_stack", 1)] and prepared == [[0, 1]]
    assert gather(results, [BASE, RANDOM], [0, 1]) == {
        "base": Scores((10.0, 77.0), (1.0, 1.0), (3.0, 2.0)),
        "random_stack": Scores((10.0, 11.0), (1.0, 1.0), (3.0, 3.0)),
    }


def test_a_failed_run_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def run(lab: Lab, variant: toy_lab.Variant, seed: int, stop: threading.Event) -> dict[str, float]:
        ran.append(variant.name)
        if variant is BASE:
            raise RunError("main.py failed: diverged")
        assert stop.wait(30), "nobody told it"
        raise Stopped

    monkeypatch.setattr(toy_lab, "run_variant", run)
    monkeypatch.setattr(toy_lab, "prepare", lambda lab, seeds: None)
    with pytest.raises(RunError, match="diverged"):
        run_all(Lab(tmp_path / "stack", tmp_path / "out"), [BASE, RANDOM, GAUSSIAN], [0, 1, 2], processes=2)
    assert len(ran) < 9


def test_commands_that_fail_or_are_stopped(tmp_path: Path) -> None:
    log, stop = tmp_path / "log.txt", threading.Event()
    with pytest.raises(RunError, match=r"-c failed: the disk is full; its whole output is in .*log\.txt$"):
        _call(["-c", "print('x'); raise SystemExit('error: the disk is full')"], log, stop)
    _call(["-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], log, stop)
    assert log.read_text().split()[-1] == "1" and log.read_text().startswith("x")
    stop.set()
    started = time.monotonic()
    with pytest.raises(Stopped):
        _call(["-c", "import time; time.sleep(60)"], log, stop)
    assert time.monotonic() - started < 30


def test_validation_clips_are_middle_frames_with_what_is_seen_there(tmp_path: Path) -> None:
    frames = ["00000", "00005", "00010"]
    for frame, ids in zip(frames, ([1, 2], [0, 2], [1, 2]), strict=True):
        (tmp_path / "v").mkdir(exist_ok=True)
        Image.fromarray(np.array([ids], dtype=np.uint8)).save(tmp_path / "v" / f"{frame}.png")
    expressions = {"0": {"exp": "a", "obj_id": "1"}, "1": {"exp": "b", "obj_id": "2"}}
    write_json(tmp_path / "all.json", {"videos": {"v": {"frames": frames, "expressions": expressions}}})
    write_clips(tmp_path / "all.json", tmp_path, tmp_path / "valid.json")
    written = json.loads((tmp_path / "valid.json").read_text())
    assert written == {"videos": {"v": {"frames": ["00005"], "expressions": {"1": expressions["1"]}}}}


def test_sizes_of_a_stack(tiny_stack: Path, tmp_path: Path) -> None:
    sizes = stack_sizes(tiny_stack)
    assert sizes["channels"] == (32, 32, 64, 64) and sizes["text_tokens"] > 0
    (tmp_path / "tiny_stack.json").write_text("[]")
    with pytest.raises(UserError, match="does not hold the sizes of a toy stack"):
        stack_sizes(tmp_path)


@pytest.mark.slow
def test_the_lab_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = make_tiny_stack(tmp_path / "stack", seed=5, **SIZES)

    def in_process(words: list[str], log: Path, stop: threading.Event) -> None:
        """The first command in a process, as they all are; the others here."""
        calls.append(words[0])
        if len(calls) == 1:
            _call(words, log, stop)
        else:
            done = run_command({"main.py": main.main, "inference_ytvos.py": inference_ytvos.main}[words[0]], *words[1:])
            assert done.returncode == 0, done.stderr

    calls: list[str] = []
    monkeypatch.setattr(toy_lab_runs, "_call", in_process)
    monkeypatch.setattr(toy_lab.signal, "signal", lambda *arguments: None)  # Ctrl-C is pytest's
    output, more = tmp_path / "lab", ("--only", "base", "random_stack", "--train_videos", 4, "--valid_videos", 2)
    options = ("--stack", stack, "--output_dir", output, "--seeds", 0, "--processes", 1, *more)
    result = run_command(toy_lab.main, *options, "--steps", 2)
    assert result.returncode == 0, result.stdout[-1500:] + result.stderr[-1500:]
    assert calls == ["main.py", "inference_ytvos.py", "inference_ytvos.py"] * 2
    assert "trained parameters" in (output / "base" / "seed_0" / "log.txt").read_text()
    numbers = json.loads((output / "lab.json").read_text())
    assert numbers["variants"].keys() == {"base", "random_stack"} and numbers["settings"]["steps"] == 2
    assert [claim["verdict"] for claim in numbers["claims"]] == [UNKNOWN]
    assert (output / "lab.md").read_text() in result.stdout
    steps = [json.loads(line)["step"] for line in (output / "base/seed_0/train/log.jsonl").read_text().splitlines()]
    assert steps == [2]
    assert re.search(r"\[2/2\] .*J&F \d+\.\d", result.stdout)

    monkeypatch.setattr(toy_lab_runs, "_call", lambda *arguments: pytest.fail("everything is done already"))
    lab = Lab(stack, output, steps=2, train_videos=4, valid_videos=2)
    assert run_all(lab, [BASE, RANDOM], [0], 1).keys() == {("base", 0), ("random_stack", 0)}
    other = run_command(toy_lab.main, *options, "--steps", 3)
    assert other.returncode == 2 and "holds a run with steps 2, and this one has 3" in other.stderr
    assert other.stderr.count("\n") == 1

    picture = tmp_path / "lab.png"
    drawn = run_command(toy_lab_pictures.main, "--lab", output, "--stack", stack, "--picture", picture, "--rows", 2)
    assert drawn.returncode == 0, drawn.stderr[-1500:]
    with Image.open(picture) as image:
        assert image.width > 1000 and image.height > 250
