"""Train, infer, score and draw on toy data in minutes. ``scripts/quickstart.sh`` calls this.

It scores the bundled toy weights, trains them further, stops, resumes, segments, scores and draws. The scores of
swapped sentences and of the largest object are shown for comparison, because a model that ignores its sentence, or only
finds large objects, would score the same on them.
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
FULL = {"train_videos": 400, "valid_videos": 40, "steps": 200}
SHORT = {"train_videos": 60, "valid_videos": 5, "steps": 20}


def main(argv: Sequence[str] | None = None) -> None:
    """Run all steps and print the scores."""
    parser = Parser(description="Make toy data, train the bundled weights further, resume, infer, score and draw.")
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
    data, bundled = output / "data", TOY / f"{model}.safetensors"
    if not bundled.is_file() or not (TOY / "stack").is_dir():
        raise UserError(f"{near(bundled)} or {near(TOY / 'stack')} is missing; bash scripts/train_toy.sh makes them")
    clear(output, "train", "start", "valid", "swapped", "largest")
    masks, sentences = data / "valid" / "Annotations", data / "meta_expressions" / "valid" / "meta_expressions.json"
    run(
        "Toy data: moving shapes, and sentences that refer to one of them",
        *("-m", "scripts.make_toy_data", "--output_dir", data, "--force", "--negatives", 1),
        *("--train_videos", train_videos, "--valid_videos", valid_videos),
    )

    options = ("--config", f"configs/{model}_toy.yaml", "--pretrained", TOY / "stack", "--ytvos_path", data)
    checkpoint = output / "train" / "checkpoint.pth"
    infer = ("inference_ytvos.py", *options)
    run("Inference with the bundled checkpoint", *infer, "--resume", bundled, "--output_dir", output / "start")
    scores = {"start": score("Scores of the bundled checkpoint", masks, output / "start", sentences)}

    train = ("main.py", *options, "--output_dir", output / "train")
    begin = ("--pretrained_weights", bundled, *(("--keep_class_heads",) if MODELS[model].scored else ()))
    run("Further training, first half", *train, *begin, "--max_steps", steps // 2)
    run("Training, resumed from its checkpoint", *train, "--max_steps", steps, "--resume", checkpoint)

    trained = (*infer, "--resume", checkpoint)
    run("Inference on the validation videos", *trained, "--output_dir", output / "valid", "--visualize")
    swapped = output / "swapped" / "meta_expressions.json"
    run(
        "Swapping each sentence for another object's",
        *("-m", "scripts.baselines", "swap", "--expressions", sentences, "--output", swapped),
    )
    run("Inference with swapped sentences", *trained, "--output_dir", output / "swapped", "--expressions_file", swapped)
    run(
        "A baseline that ignores sentences: the largest object",
        *("-m", "scripts.baselines", "largest", "--gt", masks, "--expressions", sentences),
        *("--output_dir", output / "largest"),
    )

    titles = {"valid": "Scores", "swapped": "Scores of swapped sentences", "largest": "Scores of the largest object"}
    for name, title in titles.items():
        scores[name] = score(title, masks, output / name, swapped if name == "swapped" else sentences)
    results = {
        "model": model,
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
    movies = sorted((output / "valid" / "visualize").glob("*.mp4"))
    print(f"\nJ&F on the validation videos, {results['seconds']:.0f} s in all")
    print(f"  bundled checkpoint        {results['start_jf']:5.1f}")
    print(f"  after {results['steps']:3d} more steps      {results['val_jf']:5.1f}")
    for kind, value in results["kinds"].items():
        name = "no mask where none is named" if kind == "negative" else kind
        print(f"    {name:<23} {value:5.1f}")
    print(f"  swapped sentences         {results['swapped_jf']:5.1f}")
    print(f"  largest object            {results['baseline_jf']:5.1f}")
    print(f"results: {near(output / 'results.json')}")
    sheet = near(output / "valid" / "visualize" / "contact_sheet.png")
    print(f"pictures: {sheet}, {near(movies[0])} and {len(movies) - 1} more")


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
