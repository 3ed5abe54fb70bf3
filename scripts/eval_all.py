"""Every benchmark once, on small sets in the true formats (called by ``scripts/eval_all.sh``).

The sets are made and converted; ``check_data`` opens every file. From the carried toy weights the model is trained a
few steps wherever the recipe trains, and evaluated on everything: by ``main.py --eval``, and of whole videos by
inference and ``eval_jf``, too, which must find the same. The scores say that all parts work together, and nothing about
a model.

What is there from the same plan and weights is not made again, so that a stopped run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.quickstart import ROOT, clear, near, run
from util.command_line import Parser
from util.errors import RunError, UserError, run_cli
from util.inference_record import file_sha256
from util.io import read_json, write_json
from util.locking import sole_run

TOY = ROOT / "toy"
PARTS = ("data", "train", "eval", "inference")  # folders of an output folder
AGREEMENT = 1e-9
BATCH = 4


@dataclass(frozen=True)
class Plan:
    """How much of it is done."""

    train_videos: int
    eval_videos: int
    images: int
    frames: int
    steps: int


FULL = Plan(train_videos=12, eval_videos=4, images=8, frames=8, steps=20)
SHORT = Plan(train_videos=2, eval_videos=1, images=1, frames=4, steps=2)

TRAININGS = ("joint_coco", "ytvos", "a2d", "mevis", "joint", "ytvos_joint_davis")
"""By ``--dataset_file``. Ref-DAVIS17 and JHMDB-Sentences are evaluated with weights of others."""


@dataclass(frozen=True)
class Evaluation:
    """A run of ``main.py --eval``.

    Attributes:
        name: of its folder.
        weights: the training that they are of.
        dataset_file: a mixture is scored part by part.
        mevis: which of the two versions, where one is read.
    """

    name: str
    weights: str
    dataset_file: str
    mevis: str = "mevis_v2"


EVALUATIONS = (
    Evaluation("refcoco", "joint_coco", "joint_coco"),
    Evaluation("videos", "ytvos", "ytvos_joint_davis"),
    Evaluation("a2d", "a2d", "a2d"),
    Evaluation("jhmdb", "a2d", "jhmdb"),
    Evaluation("mevis_v1", "mevis", "mevis", mevis="mevis_v1"),
    Evaluation("mevis_v2", "mevis", "mevis"),
    Evaluation("joint", "joint", "ytvos"),
    Evaluation("davis", "ytvos_joint_davis", "davis"),
)


@dataclass(frozen=True)
class Inference:
    """Masks of a set of videos and their scores, which the evaluation ``evaluation`` has under ``part``."""

    name: str
    evaluation: str
    part: str
    script: str
    truth: str
    """below the folder of the data"""
    masks: str
    """below the output folder"""


INFERENCES = (
    Inference("ytvos", "videos", "ytvos", "inference_ytvos.py", "ytvos/valid/Annotations", "Annotations"),
    Inference("davis", "videos", "davis", "inference_davis.py", "davis/valid/Annotations", ""),
    Inference("mevis_v1", "mevis_v1", "mevis", "inference_ytvos.py", "mevis_v1/valid_u", "Annotations"),
    Inference("mevis_v2", "mevis_v2", "mevis", "inference_ytvos.py", "mevis_v2/valid_u", "Annotations"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all steps and print the table.

    Raises:
        UserError: ``--toy`` is not given, the carried weights are missing, or something cannot be written.
        RunError: ``main.py --eval`` and the scoring command differ.
    """
    parser = Parser(prog="scripts/eval_all.sh", description="Every benchmark once.")
    parser.add_argument("--toy", action="store_true", help="on small sets made here (there is no other mode)")
    parser.add_argument("--model", choices=("vdit", "hcd"), default="vdit")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/eval_all"))
    parser.add_argument("--short", action="store_true", help="the smallest sets, two steps: shows that it runs")
    parser.add_argument("--force", action="store_true", help="make again what an earlier run left there")
    args = parser.parse_args(argv)
    if not args.toy:
        raise UserError("add --toy; real sets are evaluated one by one by main.py --eval (see docs/data.md)")
    with sole_run(args.output_dir):
        eval_all(args.model, args.output_dir.absolute(), SHORT if args.short else FULL, args.force)


def eval_all(model: str, output: Path, plan: Plan, force: bool = False) -> None:
    """Run all steps into ``output``, print the table and write ``results.json``."""
    started = time.monotonic()
    weights = TOY / f"{model}.safetensors"
    if not weights.is_file() or not (TOY / "stack").is_dir():
        raise UserError(f"{near(weights)} or {near(TOY / 'stack')} is missing; bash scripts/train_toy.sh makes them")
    _begin(output, {"model": model, "plan": asdict(plan), "weights": file_sha256(weights)}, force)
    data = output / "data"
    _make_data(data, plan)
    for name in TRAININGS:
        _train(output / "train" / name, _options(model, data, name), weights, plan.steps)
    for evaluation in EVALUATIONS:
        if not (output / "eval" / evaluation.name / "results.json").is_file():
            run(f"Evaluation: {evaluation.name}", "main.py", "--eval", *_checkpoint(model, output, evaluation, "eval"))
    for inference in INFERENCES:
        _infer(model, output, inference)
    _report(output, model, plan, weights, time.monotonic() - started)


def _begin(output: Path, stamp: dict[str, Any], force: bool) -> None:
    """Clear what an earlier run of another plan or other weights left."""
    path = output / "plan.json"
    if force or not path.is_file() or read_json(path, "the plan of an earlier run") != stamp:
        clear(output, *PARTS)
        write_json(path, stamp)


def _options(model: str, data: Path, dataset_file: str, mevis: str = "mevis_v2") -> tuple[str | Path, ...]:
    """Flags of ``main.py`` and inference: the model's toy sizes, and where every set is."""
    sets = {"ytvos": "ytvos", "davis": "davis", "mevis": mevis, "a2d": "a2d", "jhmdb": "jhmdb", "coco": "coco"}
    paths = [word for name, folder in sets.items() for word in (f"--{name}_path", data / folder)]
    config = ("--config", f"configs/{model}_toy.yaml", "--pretrained", TOY / "stack")
    return (*config, "--dataset_file", dataset_file, *paths)


def _checkpoint(model: str, output: Path, evaluation: Evaluation, folder: str) -> tuple[str | Path, ...]:
    """Flags of an evaluation."""
    return (
        *_options(model, output / "data", evaluation.dataset_file, evaluation.mevis),
        *("--resume", output / "train" / evaluation.weights / "checkpoint.pth"),
        *("--output_dir", output / folder / evaluation.name),
    )


def _here(title: str, module: str, main: Callable[[Sequence[str]], int | None], *arguments: str | int | Path) -> None:
    """Run a command of the project in this process, as if it were typed.

    Raises:
        RunError: its status is not 0.
    """
    words = [str(near(word) if isinstance(word, Path) else word) for word in arguments]
    print(f"\n=== {title}\n$ python -m {module} {' '.join(words)}", flush=True)
    if main([str(word) for word in arguments]):
        raise RunError(f"the step '{title}' failed, its message is above")


def _make_data(data: Path, plan: Plan) -> None:
    """Make, convert and check all sets, unless that is done."""
    if (data / "checked.json").is_file():
        return
    # Imported here: the readers and writers of all kinds of files take seconds.
    from scripts import check_data, make_toy_data, prepare_data
    from scripts.eval_all_sets import CHECKS, REFER_SETS, write_sets

    clear(data.parent, data.name)
    _here(
        *("Ref-YouTube-VOS: toy videos, with sentences that name nothing", "scripts.make_toy_data", make_toy_data.main),
        *("--output_dir", data / "ytvos", "--train_videos", plan.train_videos, "--valid_videos", plan.eval_videos),
        *("--num_frames", plan.frames, "--negatives", 1, "--test_videos", 1),
    )
    print("\n=== The other sets, as they are distributed", flush=True)
    write_sets(data, plan.train_videos, plan.eval_videos, plan.images, plan.frames)
    raw = ("davis", "--davis_root", data / "davis_raw", "--output_dir", data / "davis")
    _here("Ref-DAVIS17 to the layout of Ref-YouTube-VOS", "scripts.prepare_data", prepare_data.main, *raw)
    for name in REFER_SETS:
        _here(
            *(f"{name} to one COCO file per split", "scripts.prepare_data", prepare_data.main, name),
            *("--refer_root", data / "refer", "--images", data / "refer" / "train2014", "--output_dir", data / "coco"),
        )
    for name, folder in CHECKS:
        _here(
            *(f"Check of {folder}", "scripts.check_data", check_data.main),
            *(name, data / folder, "--all", "--workers", 1),
        )
    write_json(data / "checked.json", asdict(plan))


def _train(folder: Path, options: Sequence[str | Path], weights: Path, steps: int) -> None:
    """Train a few steps from the carried weights, or on from where a stopped run was, unless that is done."""
    if (folder / "trained.json").is_file():
        return
    checkpoint = folder / "checkpoint.pth"
    begin = ("--pretrained_weights", weights, "--keep_class_heads")
    run(
        f"Training on {folder.name}",
        *("main.py", *options, *(("--resume", checkpoint) if checkpoint.is_file() else begin)),
        *("--max_steps", steps, "--batch_size", BATCH, "--output_dir", folder),
    )
    write_json(folder / "trained.json", {"steps": steps})


def _infer(model: str, output: Path, inference: Inference) -> None:
    """Segment and score a set of videos, and compare with ``main.py --eval``."""
    from scripts import eval_jf
    from util.video_scores import video_metrics

    evaluation = next(e for e in EVALUATIONS if e.name == inference.evaluation)
    folder = output / "inference" / inference.name
    scores = folder / "scores.json"
    if not scores.is_file():
        run(
            f"Inference: {inference.name}",
            *(inference.script, *_checkpoint(model, output, evaluation, "inference")),
            *("--dataset_file", inference.part, "--output_dir", folder),
        )
        _here(
            *(f"Scores of {inference.name}", "scripts.eval_jf", eval_jf.main),
            *("--gt", output / "data" / inference.truth, "--pred", folder / inference.masks, "--json", scores),
        )
    metrics = read_json(output / "eval" / evaluation.name / "results.json", "results")["metrics"]
    by_eval, by_command = metrics.get(inference.part, metrics), video_metrics(read_json(scores, "scores"))
    apart = [name for name, value in by_command.items() if abs((by_eval[name] or 0) - value) > AGREEMENT]
    if apart:
        raise RunError(
            f"{inference.name}: main.py --eval says {apart[0]} {by_eval[apart[0]]}, and inference with "
            f"scripts.eval_jf {by_command[apart[0]]}; they must agree"
        )


def _report(output: Path, model: str, plan: Plan, weights: Path, seconds: float) -> None:
    """Print the table of all evaluations and write ``results.json``."""
    from scripts.eval_all_table import print_table
    from util.results import write_results

    metrics: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    rows: list[Any] = []
    seed = 0
    for evaluation in EVALUATIONS:
        found = read_json(output / "eval" / evaluation.name / "results.json", "results")
        seed = found["seed"]
        mixed = all(isinstance(value, dict) for value in found["metrics"].values())
        parts = found["metrics"] if mixed else {evaluation.dataset_file: found["metrics"]}
        for part, values in parts.items():
            name = f"mevis {evaluation.mevis[-2:]}" if part == "mevis" else part
            number = found["counts"][part] if mixed else found["counts"]
            label = f"{name}, weights of {evaluation.weights}"
            metrics[label], counts[label] = values, number
            rows.append((name, evaluation.weights, values, number))
    print_table(rows)
    options = {"model": model, "seed": seed, **asdict(plan)}
    write_results(output / "results.json", metrics, counts, options, {"weights": str(near(weights))})
    print(f"inference and scripts.eval_jf find the same as main.py --eval on {', '.join(i.name for i in INFERENCES)}")
    print(f"results: {near(output / 'results.json')}, {seconds:.0f} s")


if __name__ == "__main__":
    run_cli(main)
