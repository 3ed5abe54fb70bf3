"""The whole path once, on data and a tiny stack that it makes itself (called by ``scripts/quickstart.sh``).

Toy data → tiny frozen stack → training, stopped and resumed → inference → scores → pictures. The scores of
swapped sentences and of the largest object stand beside those of the sentences, because a model that
ignores its sentence, or only finds what is large, would have the same.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.steps import clear, near, run
from util.errors import UserError, run_cli
from util.io import write_json

CONFIG = "configs/vdit_toy.yaml"


@dataclass(frozen=True)
class Plan:
    """How much of it is done."""

    train_videos: int
    valid_videos: int
    steps: int


FULL = Plan(train_videos=400, valid_videos=24, steps=400)
SHORT = Plan(train_videos=60, valid_videos=5, steps=60)


def main() -> None:
    """Run all steps and print the scores."""
    parser = argparse.ArgumentParser(description="Make toy data, train, resume, infer, score and draw.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--short", action="store_true", help="a few videos and steps: shows that it runs, not more")
    args = parser.parse_args()
    quickstart(args.output_dir.absolute(), SHORT if args.short else FULL)


def quickstart(output: Path, plan: Plan) -> None:
    """Run all steps into ``output``; what an earlier run trained and wrote there is replaced.

    Raises:
        UserError: something cannot be written.
        StepFailed: a step failed.
    """
    started = time.monotonic()
    data, stack = output / "data", output / "stack"
    clear(output, "train", "valid", "swapped", "largest")
    truth, sentences = data / "valid" / "Annotations", data / "meta_expressions" / "valid" / "meta_expressions.json"
    run(
        "Toy data: moving shapes, and sentences that name one of them",
        *("-m", "scripts.make_toy_data", "--output_dir", data, "--force"),
        *("--train_videos", plan.train_videos, "--valid_videos", plan.valid_videos),
    )
    run(
        "A tiny frozen text-to-video stack with random weights",
        *("-m", "scripts.make_tiny_stack", "--output_dir", stack, "--force"),
    )

    options = ("--config", CONFIG, "--pretrained", stack, "--ytvos_path", data)
    checkpoint = output / "train" / "checkpoint.pth"
    train = ("main.py", *options, "--output_dir", output / "train")
    run("Training, first half", *train, "--max_steps", plan.steps // 2)
    run("Training, resumed from its checkpoint", *train, "--max_steps", plan.steps, "--resume", checkpoint)

    infer = ("inference_ytvos.py", *options, "--resume", checkpoint)
    run("Inference on the validation videos", *infer, "--output_dir", output / "valid", "--visualize")
    swapped = output / "swapped" / "meta_expressions.json"
    run(
        "Swapping each sentence for another object's",
        *("-m", "scripts.baselines", "swap", "--expressions", sentences, "--output", swapped),
    )
    run("Inference with swapped sentences", *infer, "--output_dir", output / "swapped", "--expressions_file", swapped)
    run(
        "A baseline that ignores sentences: the largest object",
        *("-m", "scripts.baselines", "largest", "--gt", truth, "--expressions", sentences),
        *("--output_dir", output / "largest"),
    )

    scores = {}
    titles = {"valid": "Scores", "swapped": "Scores of swapped sentences", "largest": "Scores of the largest object"}
    for name, title in titles.items():
        scores[name] = score(title, truth, output / name, swapped if name == "swapped" else sentences)
    results = {
        "val_jf": scores["valid"],
        "swapped_jf": scores["swapped"],
        "baseline_jf": scores["largest"],
        "steps": plan.steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(output / "results.json", results)
    show(output, results)


def score(title: str, truth: Path, predicted: Path, sentences: Path) -> float:
    """J&F of a folder of predictions, 0–100."""
    report = predicted / "scores.json"
    run(
        title,
        *("-m", "scripts.eval_jf", "--gt", truth, "--pred", predicted / "Annotations", "--task", "expressions"),
        *("--expressions", sentences, "--json", report),
    )
    return round(100 * json.loads(report.read_text())["global"]["JF"], 2)


def show(output: Path, results: dict[str, Any]) -> None:
    """Print the scores and what was drawn.

    Raises:
        UserError: the pictures are not where they should be.
    """
    movies = sorted((output / "valid" / "visualize").glob("*.mp4"))
    sheet = output / "valid" / "visualize" / "contact_sheet.png"
    if not movies or not sheet.is_file():
        raise UserError(f"inference wrote no pictures to {sheet.parent}")
    print(f"\nJ&F on the validation videos after {results['steps']} steps, {results['seconds']:.0f} s in all")
    print(f"  sentences                 {results['val_jf']:5.1f}")
    print(f"  swapped sentences         {results['swapped_jf']:5.1f}")
    print(f"  largest object            {results['baseline_jf']:5.1f}")
    print(f"results: {near(output / 'results.json')}")
    print(f"pictures: {near(sheet)}, {near(movies[0])} and {len(movies) - 1} more")


if __name__ == "__main__":
    run_cli(main)
