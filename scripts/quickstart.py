"""The whole path once, from the toy weights that the project carries (called by ``scripts/quickstart.sh``).

Toy data → scores of the carried checkpoint → further training, stopped and resumed → inference → scores →
pictures. The scores of swapped sentences and of the largest object stand beside those of the sentences, because a
model that ignores its sentence, or only finds what is large, would have the same.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.steps import ROOT, clear, near, run
from util.errors import Parser, UserError, run_cli
from util.files import sole_run, write_json

TOY = ROOT / "toy"


@dataclass(frozen=True)
class Plan:
    """How much of it is done."""

    train_videos: int
    valid_videos: int
    steps: int


FULL = Plan(train_videos=400, valid_videos=40, steps=200)
SHORT = Plan(train_videos=60, valid_videos=5, steps=20)


def main() -> None:
    """Run all steps and print the scores."""
    parser = Parser(description="Make toy data, train on, resume, infer, score and draw.")
    parser.add_argument("--model", choices=("vdit", "hcd"), default="vdit")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--short", action="store_true", help="a few videos and steps: shows that it runs, not more")
    args = parser.parse_args()
    with sole_run(args.output_dir):
        quickstart(args.model, args.output_dir.absolute(), SHORT if args.short else FULL)


def quickstart(model: str, output: Path, plan: Plan) -> None:
    """Run all steps into ``output``; what an earlier run trained and wrote there is replaced.

    Raises:
        UserError: the carried weights are missing, or something cannot be written.
        StepFailed: a step failed.
    """
    started = time.monotonic()
    data, carried = output / "data", TOY / f"{model}.safetensors"
    if not carried.is_file() or not (TOY / "stack").is_dir():
        raise UserError(f"{near(carried)} or {near(TOY / 'stack')} is missing; bash scripts/train_toy.sh makes them")
    clear(output, "train", "start", "valid", "swapped", "largest")
    truth, sentences = data / "valid" / "Annotations", data / "meta_expressions" / "valid" / "meta_expressions.json"
    run(
        "Toy data: moving shapes, and sentences that name one of them",
        *("-m", "scripts.make_toy_data", "--output_dir", data, "--force", "--negatives", 1),
        *("--train_videos", plan.train_videos, "--valid_videos", plan.valid_videos),
    )

    options = ("--config", f"configs/{model}_toy.yaml", "--pretrained", TOY / "stack", "--ytvos_path", data)
    checkpoint = output / "train" / "checkpoint.pth"
    infer = ("inference_ytvos.py", *options)
    run("Inference with the carried checkpoint", *infer, "--resume", carried, "--output_dir", output / "start")
    scores = {"start": score("Scores of the carried checkpoint", truth, output / "start", sentences)}

    train = ("main.py", *options, "--output_dir", output / "train")
    begin = ("--pretrained_weights", carried, "--keep_class_heads")
    run("Training on from it, first half", *train, *begin, "--max_steps", plan.steps // 2)
    run("Training, resumed from its checkpoint", *train, "--max_steps", plan.steps, "--resume", checkpoint)

    trained = ("inference_ytvos.py", *options, "--resume", checkpoint)
    run("Inference on the validation videos", *trained, "--output_dir", output / "valid", "--visualize")
    swapped = output / "swapped" / "meta_expressions.json"
    run(
        "Swapping each sentence for another object's",
        *("-m", "scripts.baselines", "swap", "--expressions", sentences, "--output", swapped),
    )
    run("Inference with swapped sentences", *trained, "--output_dir", output / "swapped", "--expressions_file", swapped)
    run(
        "A baseline that ignores sentences: the largest object",
        *("-m", "scripts.baselines", "largest", "--gt", truth, "--expressions", sentences),
        *("--output_dir", output / "largest"),
    )

    titles = {"valid": "Scores", "swapped": "Scores of swapped sentences", "largest": "Scores of the largest object"}
    for name, title in titles.items():
        scores[name] = score(title, truth, output / name, swapped if name == "swapped" else sentences)
    results = {
        "model": model,
        "start_jf": scores["start"]["jf"],
        "val_jf": scores["valid"]["jf"],
        "swapped_jf": scores["swapped"]["jf"],
        "baseline_jf": scores["largest"]["jf"],
        "kinds": scores["valid"]["kinds"],
        "steps": plan.steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(output / "results.json", results)
    show(output, results)


def score(title: str, truth: Path, predicted: Path, sentences: Path) -> dict[str, Any]:
    """J&F of a folder of predictions, 0–100: ``jf`` over all sentences that name an object, and ``kinds``."""
    report = predicted / "scores.json"
    run(
        title,
        *("-m", "scripts.eval_jf", "--gt", truth, "--pred", predicted / "Annotations", "--task", "expressions"),
        *("--expressions", sentences, "--json", report),
    )
    scores = json.loads(report.read_text())
    kinds = {kind: round(100 * row["JF"], 2) for kind, row in scores["per_kind"].items()}
    return {"jf": round(100 * scores["global"]["JF"], 2), "kinds": kinds}


def show(output: Path, results: dict[str, Any]) -> None:
    """Print the scores and what was drawn.

    Raises:
        UserError: the pictures are not where they should be.
    """
    movies = sorted((output / "valid" / "visualize").glob("*.mp4"))
    sheet = output / "valid" / "visualize" / "contact_sheet.png"
    if not movies or not sheet.is_file():
        raise UserError(f"inference wrote no pictures to {sheet.parent}")
    print(f"\nJ&F on the validation videos, {results['seconds']:.0f} s in all")
    print(f"  carried checkpoint        {results['start_jf']:5.1f}")
    print(f"  after {results['steps']:3d} more steps      {results['val_jf']:5.1f}")
    for kind, value in results["kinds"].items():
        name = "no mask where none is named" if kind == "negative" else kind
        print(f"    {name:<23} {value:5.1f}")
    print(f"  swapped sentences         {results['swapped_jf']:5.1f}")
    print(f"  largest object            {results['baseline_jf']:5.1f}")
    print(f"results: {near(output / 'results.json')}")
    print(f"pictures: {near(sheet)}, {near(movies[0])} and {len(movies) - 1} more")


if __name__ == "__main__":
    run_cli(main)
