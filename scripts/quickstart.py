"""Train, infer, score and draw on toy data in minutes. ``scripts/quickstart.sh`` calls this.

The bundled toy weights have seen bright videos only. This adapts them to videos at night: it trains, stops, resumes,
segments, scores and draws, and shows the scores by day and at night before and after. The scores of swapped sentences
and of the largest object are shown for comparison, because a model that ignores its sentence, or only finds large
objects, would score the same on them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.config import MODELS
from util.errors import CLOSED_PIPE_STATUS, Parser, UserError, run_cli
from util.files import ROOT, sole_run, write_json

TOY = ROOT / "toy"
RATES = {"vdit": "4e-4", "hcd": "1e-4", "rem": "1e-5"}  # higher ones lose more of what was known
FULL = {"train_videos": 400, "valid_videos": 40, "steps": 200}
SHORT = {"train_videos": 60, "valid_videos": 5, "steps": 20}


def main(argv: Sequence[str] | None = None) -> None:
    """Run all steps and print the scores."""
    parser = Parser(description="Make toy data, adapt the bundled weights to night, resume, infer, score and draw.")
    parser.add_argument("--model", choices=tuple(MODELS), default="vdit")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument(
        "--short", action="store_true", help="use a few videos and steps, to check that everything runs"
    )
    args: argparse.Namespace = parser.parse_args(argv)
    with sole_run(args.output_dir):
        quickstart(args.model, args.output_dir.absolute(), **(SHORT if args.short else FULL))


def quickstart(model: str, output: Path, train_videos: int, valid_videos: int, steps: int) -> None:
    """Run all steps into ``output`` and replace what an earlier run wrote there.

    Raises:
        UserError: the bundled weights are missing, or an earlier run cannot be removed.
        StepFailed: a step failed.
    """
    started = time.monotonic()
    data, night, bundled = output / "data", output / "data_night", TOY / f"{model}.safetensors"
    if not bundled.is_file() or not (TOY / "stack").is_dir():
        raise UserError(f"{near(bundled)} or {near(TOY / 'stack')} is missing; bash scripts/train_toy.sh makes them")
    clear(output, "train", "start", "night_before", "valid", "night_after", "swapped", "largest")
    masks, sentences = data / "valid" / "Annotations", data / "meta_expressions" / "valid" / "meta_expressions.json"
    sizes = ("--train_videos", train_videos, "--valid_videos", valid_videos)
    make = ("-m", "scripts.make_toy_data", "--force", "--negatives", 1, *sizes, "--output_dir")
    run("Toy data: moving shapes, and sentences that refer to one of them", *make, data)
    run("The same videos at night; two thirds of those for training stay bright", *make, night, "--look", "night")

    options = ("--config", f"configs/{model}_toy.yaml", "--pretrained", TOY / "stack", "--ytvos_path")
    infer = ("inference_ytvos.py", *options, data)
    at_night = ("inference_ytvos.py", *options, night, "--visualize")
    start = ("--resume", bundled, "--output_dir")
    run("Inference with the bundled checkpoint, by day", *infer, *start, output / "start")
    run("Inference with the bundled checkpoint, at night", *at_night, *start, output / "night_before")

    checkpoint = output / "train" / "checkpoint.pth"
    train = ("main.py", *options, night, "--output_dir", output / "train", "--lr", RATES[model])
    begin = ("--pretrained_weights", bundled, *(("--keep_class_heads",) if MODELS[model].scored else ()))
    run("Training, first half", *train, *begin, "--max_steps", steps // 2)
    falling = ("--lr_schedule", "cosine", "--max_steps", steps)
    run("Training, resumed from its checkpoint, with a falling rate", *train, *falling, "--resume", checkpoint)

    trained = ("--resume", checkpoint, "--output_dir")
    run("Inference after training, by day", *infer, *trained, output / "valid")
    run("Inference after training, at night", *at_night, *trained, output / "night_after")
    swapped = output / "swapped" / "meta_expressions.json"
    run(
        "Swapping each sentence for another object's",
        *("-m", "scripts.baselines", "swap", "--expressions", sentences, "--output", swapped),
    )
    run("Inference with swapped sentences", *infer, *trained, output / "swapped", "--expressions_file", swapped)
    run(
        "A baseline that ignores sentences: the largest object",
        *("-m", "scripts.baselines", "largest", "--gt", masks, "--expressions", sentences),
        *("--output_dir", output / "largest"),
    )

    # The masks and sentences of the two sets are the same.
    titles = {
        "start": "Scores of the bundled checkpoint, by day",
        "night_before": "Scores of the bundled checkpoint, at night",
        "valid": "Scores after training, by day",
        "night_after": "Scores after training, at night",
        "swapped": "Scores of swapped sentences",
        "largest": "Scores of the largest object",
    }
    scores = {
        name: score(title, masks, output / name, swapped if name == "swapped" else sentences)
        for name, title in titles.items()
    }
    results = {
        "model": model,
        "adapted_before": scores["night_before"]["jf"],
        "adapted_after": scores["night_after"]["jf"],
        "start_jf": scores["start"]["jf"],
        "val_jf": scores["valid"]["jf"],
        "swapped_jf": scores["swapped"]["jf"],
        "baseline_jf": scores["largest"]["jf"],
        "kinds": scores["valid"]["kinds"],
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(output / "results.json", results)
    show(output, results)


def score(title: str, masks: Path, predicted: Path, sentences: Path) -> dict[str, Any]:
    """J&F of a folder of predictions, 0–100: ``jf`` over all sentences that refer to an object, and ``kinds``."""
    report = predicted / "scores.json"
    run(
        title,
        *("-m", "scripts.eval_jf", "--gt", masks, "--pred", predicted / "Annotations", "--task", "expressions"),
        *("--expressions", sentences, "--json", report),
    )
    scores = json.loads(report.read_text(encoding="utf-8"))
    kinds = {kind: round(100 * row["JF"], 2) for kind, row in scores["per_kind"].items()}
    return {"jf": round(100 * scores["global"]["JF"], 2), "kinds": kinds}


def show(output: Path, results: dict[str, Any]) -> None:
    """Print the scores and the names of the pictures."""
    print(f"\nJ&F on the validation videos, {results['seconds']:.0f} s in total")
    print(f"{'by day':>31}{'at night':>10}")
    print(f"  bundled checkpoint        {results['start_jf']:5.1f}{results['adapted_before']:10.1f}")
    print(f"  after {results['steps']:3d} steps           {results['val_jf']:5.1f}{results['adapted_after']:10.1f}")
    for kind, value in results["kinds"].items():
        name = "no mask where none is named" if kind == "negative" else kind
        print(f"    {name:<23} {value:5.1f}")
    print(f"  swapped sentences         {results['swapped_jf']:5.1f}")
    print(f"  largest object            {results['baseline_jf']:5.1f}")
    print(f"results: {near(output / 'results.json')}")
    print("pictures at night, before and after, with a film of every sentence beside them:")
    for name in ("night_before", "night_after"):
        print(f"  {near(output / name / 'visualize' / 'contact_sheet.png')}")


class StepFailed(SystemExit):
    """A command of a sequence failed; the process ends with its status."""


def run(title: str, *command: str | int | Path) -> None:
    """Print a title and a command, and run the command with this Python from the project's root.

    Args:
        title: the purpose of the step.
        command: the arguments after ``python``.

    Raises:
        StepFailed: the command failed and has printed its own message.
    """
    words = [str(near(word) if isinstance(word, Path) else word) for word in command]
    print(f"\n=== {title}\n$ python {shlex.join(words)}", flush=True)
    status = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if status == CLOSED_PIPE_STATUS:
        raise StepFailed(status)
    if status:
        print(f"error: the step '{title}' failed; its message is above", file=sys.stderr)
        raise StepFailed(status)


def clear(folder: Path, *names: str) -> None:
    """Remove what an earlier run left in these subfolders.

    Raises:
        UserError: something cannot be removed.
    """
    for target in (folder / name for name in names):
        try:
            if target.is_dir():
                shutil.rmtree(target)
        except OSError as error:
            raise UserError(
                f"cannot remove {target} of an earlier run: {error.strerror or error}; remove it yourself, or choose "
                "another --output_dir"
            ) from error


def near(path: Path) -> Path:
    """The path for display: relative to the project's root if it is inside."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    run_cli(main)
