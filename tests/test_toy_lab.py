"""The toy lab: its statistics and verdicts, its variants, which runs are done and kept, its probes."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import inference_ytvos
import main
from models.diffusion.tiny import make_tiny_stack
from scripts import baselines, eval_jf, toy_lab
from scripts.toy_lab import (
    CLAIMS,
    FAILS,
    HOLDS,
    SCORES,
    UNDECIDED,
    VARIANTS,
    Claim,
    Lab,
    Results,
    Variant,
    call,
    compare,
    find_score,
    parse_args,
    pooled_deviation,
    render,
    report,
    run_all,
    shuffle_frames,
    verdict,
)
from tests.commands import run_command
from util.errors import RunError, UserError
from util.files import write_json

VDIT, RANDOM = VARIANTS[:2]
SIZES = {"channels": (32, 32, 32, 32), "layers_per_block": 1, "image_size": 32, "image_patch": 16, "max_tokens": 400}


def scores(*jf: float) -> list[dict[str, float]]:
    """One run per J&F; frames in another order cost 1, 2, … J&F, and TC is the same in all runs."""
    return [
        {**dict.fromkeys(SCORES, 50.0), "jf": value, "shuffled_jf": value - i, "seconds": 10.0}
        for i, value in enumerate(jf, 1)
    ]


# ---------------------------------------------------------------- statistics


def test_the_deviation_is_pooled_over_groups() -> None:
    # variances 1 and 9 with 2 degrees of freedom each, and 2 with 1: √((2 + 18 + 2) / 5)
    assert pooled_deviation([(1, 2, 3), (10, 13, 16), (5, 7)]) == pytest.approx(math.sqrt(22 / 5), abs=1e-12)
    assert pooled_deviation([(1, 2, 3), (8,)]) == pytest.approx(1)
    assert pooled_deviation([(1,), (8,)]) is None


@pytest.mark.parametrize(
    ("difference", "error", "expected"),
    [
        (2.0, 1.0, HOLDS),
        (1.99, 1.0, UNDECIDED),
        (-1.99, 1.0, UNDECIDED),
        (-2.0, 1.0, FAILS),
        (0.0, 0.0, UNDECIDED),
        (0.1, 0.0, HOLDS),
        (50.0, None, UNDECIDED),
    ],
)
def test_verdicts(difference: float, error: float | None, expected: str) -> None:
    assert verdict(difference, error) == expected


def test_a_claim_about_two_variants_and_one_about_two_scores() -> None:
    own = {"vdit": scores(40, 42, 44), "random_stack": scores(30, 32, 34), "hcd": scores(41, 42, 43)}
    better = ("vdit", "jf")
    # pooled: √((2·4 + 2·4 + 2·1) / 6) = √3, and its error for two means of three is √3 · √(2/3) = √2
    difference = compare(own, Claim("", "", better, ("random_stack", "jf")))
    assert difference == (pytest.approx(10), pytest.approx(math.sqrt(2)))
    # seed by seed: 1, 2, 3 in every variant, so the deviation is 1 and the error of a mean of three √(1/3)
    difference = compare(own, Claim("", "", better, ("vdit", "shuffled_jf")))
    assert difference == (pytest.approx(2), pytest.approx(math.sqrt(1 / 3)))


def test_the_report_lists_decided_claims_only() -> None:
    own = {"vdit": scores(40, 42, 44), "random_stack": scores(30, 32, 34), "hcd": scores(31, 32, 33)}
    numbers = json.loads(json.dumps(report(own)))
    found = {claim["text"]: claim["verdict"] for claim in numbers["claims"]}
    decided = {CLAIMS[0].text: HOLDS, "Frames in order beat shuffled ones": HOLDS, "HCD beats VD-IT": FAILS}
    assert found == {**decided, "Pre-trained features make masks more consistent": UNDECIDED}
    assert numbers["variants"]["vdit"]["jf"] == [40, 42, 44] and numbers["variants"]["vdit"]["tc"] == [50, 50, 50]

    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in render(numbers).splitlines() if line[:1] == "|"
    ]
    columns = dict(zip(rows[0], rows[2], strict=True))
    assert columns["variant"] == VDIT.title and columns["J&F"] == "42.0 ± 2.0" and columns["seeds"] == "3"
    assert columns["J&F, shuffled frames"] == "40.0 ± 1.0"
    assert {row[0]: row[5] for row in rows[7:]} == {text: f"**{verdict}**" for text, verdict in decided.items()}
    assert rows[7][2:5] == ["J&F of vdit − J&F of random_stack", "+10.0", "1.4"]


def test_one_seed_has_no_spread() -> None:
    numbers = report({"vdit": scores(40), "random_stack": scores(10)})
    assert {(given["standard_error"], given["verdict"]) for given in numbers["claims"]} == {(None, UNDECIDED)}
    text = render(numbers)
    assert "± " not in text.replace("Mean ± ", "") and "These runs decide no claim." in text


# ------------------------------------------------------------- command line


def test_claims_are_about_variants_and_variants_are_options(tmp_path: Path) -> None:
    names = {variant.name for variant in VARIANTS}
    named = [name for claim in CLAIMS for name in (claim.better, claim.worse)]
    assert {name for name, _ in named} == names - {"rem"} and {score for _, score in named} <= set(SCORES)
    lab = Lab(tmp_path / "stack", tmp_path / "out")
    parameters = {variant.name: lab.parameters(variant, 0) for variant in VARIANTS}
    changed = {
        name: {key: value for key, value in own.items() if value != parameters["vdit"][key]}
        for name, own in parameters.items()
    }
    assert changed["random_stack"] == {"random_stack": True} and changed["empty_sentence"] == {"unet_text": False}
    assert [changed[name]["model"] for name in ("hcd", "rem")] == ["hcd", "rem"]
    options = lab.options(RANDOM, 3)
    assert options[options.index("--pretrained") + 1] == str(lab.output / "random_stacks" / "seed_3")
    assert options[options.index("--text_encoder") + 1] == str(lab.stack / "roberta")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--only vdit empty_sentnce", "--only: invalid choice: 'empty_sentnce'.*empty_sentence"),
        ("--steps 0", "--steps must be at least 1, not 0"),
        ("--seeds 1 1", r"--seeds must be different whole numbers of at least 0, not \[1, 1\]"),
        ("--stack absent", "absent is missing; bash scripts/train_toy.sh --stack-only makes"),
        ("--probes 1", "--probes must be at least 5, not 1"),
        ("--probe_size 128 192", "--probe_size belongs to --probes; leave it out"),
        ("--probe_size 64 90", "--probe_size: 90 is no multiple of 32 of at least 64"),
    ],
)
def test_mistakes_on_the_command_line(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_args(words.split())


# --------------------------------------------------------------------- runs


def finish(lab: Lab, variant: Variant, seed: int, jf: float) -> None:
    write_json(lab.folder(variant, seed) / "run.json", lab.parameters(variant, seed))
    write_json(lab.folder(variant, seed) / "score.json", {"jf": jf, "swapped_jf": 1.0, "seconds": 2.0})


def test_a_finished_run_is_kept_unless_its_parameters_differ(tmp_path: Path) -> None:
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "weights").write_text("a")
    lab = Lab(tmp_path / "stack", tmp_path / "out", steps=10)
    assert find_score(lab, VDIT, 0) is None
    finish(lab, VDIT, 0, 50.0)
    assert find_score(lab, VDIT, 0) == {"jf": 50.0, "swapped_jf": 1.0, "seconds": 2.0}
    (lab.folder(VDIT, 0) / "score.json").unlink()
    assert find_score(lab, VDIT, 0) is None, "a run that was stopped"
    with pytest.raises(UserError, match=r"vdit/seed_0 holds a run with steps 10, and this one has 11; remove"):
        find_score(Lab(lab.stack, lab.output, steps=11), VDIT, 0)
    with pytest.raises(UserError, match="valid_videos 40, and this one has 7"):
        find_score(Lab(lab.stack, lab.output, steps=10, valid_videos=7), VDIT, 0)
    (tmp_path / "stack" / "weights").write_text("b")
    with pytest.raises(UserError, match="holds a run with stack '"):
        find_score(Lab(lab.stack, lab.output, steps=10), VDIT, 0)


def test_only_unfinished_runs_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, done = Lab(tmp_path / "stack", tmp_path / "out"), []
    prepared: list[list[tuple[str, int]]] = []

    def run(lab: Lab, variant: Variant, seed: int, stop: threading.Event) -> dict[str, float]:
        done.append((variant.name, seed))
        return {"jf": 10.0 + seed, "swapped_jf": 1.0, "seconds": 3.0}

    monkeypatch.setattr(toy_lab, "run_variant", run)
    monkeypatch.setattr(
        toy_lab, "prepare", lambda lab, jobs: prepared.append([(variant.name, seed) for variant, seed in jobs])
    )
    finish(lab, VDIT, 1, 77.0)
    results: Results = run_all(lab, [VDIT, RANDOM], [0, 1], processes=1)
    assert done == [("vdit", 0), ("random_stack", 0), ("random_stack", 1)] and prepared == [done]
    found = {key: score["jf"] for key, score in results.items()}
    assert found == {("vdit", 0): 10, ("vdit", 1): 77, ("random_stack", 0): 10, ("random_stack", 1): 11}


def test_a_failed_run_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(lab: Lab, variant: Variant, seed: int, stop: threading.Event) -> dict[str, float]:
        if variant is VDIT:
            raise RunError("main.py failed: diverged")
        call(["-c", "import time; time.sleep(600)"], tmp_path / "log.txt", stop)
        raise AssertionError("it was not stopped")

    monkeypatch.setattr(toy_lab, "run_variant", run)
    monkeypatch.setattr(toy_lab, "prepare", lambda lab, jobs: None)
    with pytest.raises(RunError, match="diverged"):
        run_all(Lab(tmp_path / "stack", tmp_path / "out"), [VDIT, RANDOM], [0, 1, 2], processes=2)


def test_a_command_that_fails(tmp_path: Path) -> None:
    log, stop = tmp_path / "log.txt", threading.Event()
    with pytest.raises(RunError, match=r"-c failed: the disk is full; its output is in .*log\.txt$"):
        call(["-c", "print('x'); raise SystemExit('error: the disk is full')"], log, stop)
    with pytest.raises(RunError, match=r"^scripts\.baselines failed: "):
        call(["-m", "scripts.baselines", "no such command"], log, stop)
    call(["-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], log, stop)
    assert log.read_text().split()[-1] == "1" and log.read_text().startswith("x")


def test_shuffled_frames_keep_their_masks(one_video: Path, tmp_path: Path) -> None:
    source, target = one_video / "valid", tmp_path / "valid"
    shuffle_frames(source, target)
    pairs = []
    for folder in (source, target):
        frames, masks = sorted(folder.glob("JPEGImages/*/*")), sorted(folder.glob("Annotations/*/*"))
        pairs.append([(frame.read_bytes(), mask.read_bytes()) for frame, mask in zip(frames, masks, strict=True)])
    assert len(pairs[0]) == 4 and pairs[0] != pairs[1] and sorted(pairs[0]) == sorted(pairs[1])


@pytest.mark.slow
def test_the_lab_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = make_tiny_stack(tmp_path / "stack", seed=5, **SIZES)
    mains: dict[str, Any] = {"main.py": main.main, "inference_ytvos.py": inference_ytvos.main}
    mains |= {"scripts.baselines": baselines.main, "scripts.eval_jf": eval_jf.main}
    calls: list[str] = []
    given: list[list[str]] = []

    def in_process(words: Sequence[object], log: Path, stop: threading.Event) -> None:
        """The first training in a process of its own, as in the lab; the other commands here."""
        name, *rest = words[1:] if words[0] == "-m" else words
        calls.append(str(name))
        given.append([str(word) for word in rest])
        if calls.count("main.py") == 1 and name == "main.py":
            call(words, log, stop)
        else:
            done = run_command(mains[str(name)], *rest)
            assert done.returncode == 0, done.stderr

    monkeypatch.setattr(toy_lab, "call", in_process)
    monkeypatch.setattr(toy_lab, "SIZES", SIZES)
    monkeypatch.setattr(toy_lab.signal, "signal", lambda *arguments: None)  # Ctrl-C is pytest's
    output, more = tmp_path / "lab", ("--only", "vdit", "random_stack", "--train_videos", 4, "--valid_videos", 2)
    options = ("--stack", stack, "--output_dir", output, "--seeds", 0, "--processes", 1, *more)
    result = run_command(toy_lab.main, *options, "--steps", 2)
    assert result.returncode == 0, result.stdout[-1500:] + result.stderr[-1500:]
    assert calls == ["scripts.baselines", *["main.py", "main.py", *["inference_ytvos.py", "scripts.eval_jf"] * 3] * 2]
    _, frames, clips, *scored = given[:9]
    trained = output / "vdit" / "seed_0"
    assert not {"--resume", "--pretrained_weights"} & set(frames)
    assert clips[-3:] == ["--pretrained_weights", str(trained / "frames" / "checkpoint.pth"), "--keep_class_heads"]
    assert all(words[words.index("--resume") + 1] == str(trained / "clips" / "checkpoint.pth") for words in scored[::2])
    roots = [Path(words[words.index("--ytvos_path") + 1]).name for words in scored[::2]]
    sentences = [Path(words[words.index("--expressions_file") + 1]).name for words in scored[::2]]
    assert list(zip(roots, sentences, strict=True)) == [
        ("data", "meta_expressions.json"),
        ("data", "swapped.json"),
        ("shuffled", "meta_expressions.json"),
    ]
    assert "trained parameters" in (trained / "log.txt").read_text()
    numbers = json.loads((output / "lab.json").read_text())
    assert numbers["variants"].keys() == {"vdit", "random_stack"} and numbers["settings"]["steps"] == 2
    assert {claim["verdict"] for claim in numbers["claims"]} == {UNDECIDED}
    assert all(0 <= numbers["variants"]["vdit"][score][0] <= 100 for score in SCORES)
    assert (output / "lab.md").read_text() in result.stdout
    steps = [json.loads(line)["step"] for line in (trained / "frames" / "log.jsonl").read_text().splitlines()]
    assert steps == [2]
    assert re.search(r"\[2/2\] .*J&F \d+\.\d", result.stdout)

    monkeypatch.setattr(toy_lab, "call", lambda *arguments: pytest.fail("everything is done already"))
    lab = Lab(stack, output, steps=2, train_videos=4, valid_videos=2)
    assert run_all(lab, [VDIT, RANDOM], [0], 1).keys() == {("vdit", 0), ("random_stack", 0)}
    other = run_command(toy_lab.main, *options, "--steps", 3)
    assert other.returncode == 2 and "holds a run with steps 2, and this one has 3" in other.stderr
    assert other.stderr.count("\n") == 1


# ------------------------------------------------------------------- probes


def test_a_probe_reads_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that show the colour of each pixel's object, and nothing else."""
    monkeypatch.setattr(toy_lab, "PROBE_STEPS", 40)
    names = torch.stack([toy_lab.probe_video(index, (64, 96))[1] for index in range(12)])[:, :2]
    colours = torch.nn.functional.one_hot(names[:, :, 1].long() + 1).movedim(-1, 2).float()
    shares = toy_lab.probe(colours[..., ::4, ::4], names, trained=10)
    assert shares["colour"] > 0.9
    assert shares["motion"] < 0.8 and shares["shape"] < 0.6


def test_the_table_of_the_probes(tiny_stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_lab, "PROBE_STEPS", 1)
    done = run_command(toy_lab.main, "--stack", tiny_stack, "--probes", 5)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["read", "from", "colour", "shape", "motion"]
    assert [line[:7] for line in lines[1:]] == ["pixels,", "latents", "latents", "the UNe", "chance "]
