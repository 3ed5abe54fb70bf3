"""Trains and evaluates on a small set of every dataset, in the format in which it is distributed.

    python -m tests.all_evaluations [--model hcd] [--output_dir runs/all_evaluations] [--short]

The sets are written, converted and checked. The toy weights are trained for a few steps with every recipe that the
papers train, then evaluated on every dataset by ``main.py --eval``. Sets of whole videos are also segmented by the
inference scripts and scored by ``scripts.eval_jf``, which must give the same scores. The scores show that all parts
work together; they say nothing about a model. It takes minutes on two CPU cores.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import inference_davis
import inference_ytvos
import main as main_script
from datasets.refcoco import SPLITS as REFCOCO_SETS
from datasets.scoring import video_metrics
from scripts import check_data, eval_jf, make_toy_data, prepare_data
from tests.conftest import ROOT
from tests.true_formats import (
    write_toy_a2d,
    write_toy_davis,
    write_toy_jhmdb,
    write_toy_long_rvos,
    write_toy_mevis,
    write_toy_refcoco,
    write_toy_revos,
)
from util.config import MODELS
from util.errors import Parser, RunError, UserError, run_cli
from util.files import read_json, write_json

TOLERANCE = 1e-9  # between the scores of main.py --eval and of scripts.eval_jf


@dataclass(frozen=True)
class Plan:
    """Sizes of the sets and of the trainings."""

    train_videos: int
    eval_videos: int
    images: int
    frames: int
    steps: int


FULL = Plan(train_videos=12, eval_videos=4, images=8, frames=8, steps=20)
SHORT = Plan(train_videos=2, eval_videos=1, images=1, frames=4, steps=2)

CHECKS = (
    *(("ytvos", "ytvos"), ("a2d", "a2d"), ("jhmdb", "jhmdb"), ("davis", "davis_raw"), ("davis", "davis")),
    *(("mevis", "mevis_v1"), ("mevis", "mevis_v2"), *((name, "coco") for name in REFCOCO_SETS)),
    *(("long_rvos", "long_rvos"), ("revos", "revos")),
)
"""Datasets that ``scripts.check_data`` checks, and their folders."""

TRAININGS = ("joint_coco", "ytvos", "a2d", "mevis", "joint", "ytvos_joint_davis", "long_rvos", "revos")
"""Values of ``--dataset_file`` in training. The papers do not train on Ref-DAVIS17 alone or JHMDB-Sentences."""


@dataclass(frozen=True)
class Evaluation:
    """A run of ``main.py --eval``.

    Attributes:
        name: folder of its results.
        weights: the training whose checkpoint is evaluated.
        dataset_file: the dataset; a mixture is scored part by part.
        mevis: which version of MeViS is read.
    """

    name: str
    weights: str
    dataset_file: str
    mevis: str = "mevis_v2"


EVALUATIONS = {
    evaluation.name: evaluation
    for evaluation in (
        Evaluation("refcoco", "joint_coco", "joint_coco"),
        Evaluation("videos", "ytvos", "ytvos_joint_davis"),
        Evaluation("a2d", "a2d", "a2d"),
        Evaluation("jhmdb", "a2d", "jhmdb"),
        Evaluation("mevis_v1", "mevis", "mevis", mevis="mevis_v1"),
        Evaluation("mevis_v2", "mevis", "mevis"),
        Evaluation("long_rvos", "long_rvos", "long_rvos"),
        Evaluation("revos", "revos", "revos"),
        Evaluation("joint", "joint", "ytvos"),
        Evaluation("davis", "ytvos_joint_davis", "davis"),
    )
}


@dataclass(frozen=True)
class Inference:
    """Segmentation and scoring of a set of videos, to be compared with an evaluation.

    Attributes:
        name: folder of its masks.
        evaluation: name of the evaluation that must have the same scores.
        part: the dataset.
        program: ``main`` of the inference script.
        ground_truth: folder below that of the data.
    """

    name: str
    evaluation: str
    part: str
    program: Callable[[], None]
    ground_truth: str


INFERENCES = (
    Inference("ytvos", "videos", "ytvos", inference_ytvos.main, "ytvos/valid"),
    Inference("davis", "videos", "davis", inference_davis.main, "davis/valid"),
    Inference("mevis_v1", "mevis_v1", "mevis", inference_ytvos.main, "mevis_v1/valid_u"),
    Inference("mevis_v2", "mevis_v2", "mevis", inference_ytvos.main, "mevis_v2/valid_u"),
    Inference("long_rvos", "long_rvos", "long_rvos", inference_ytvos.main, "long_rvos/valid"),
    Inference("revos", "revos", "revos", inference_ytvos.main, "revos"),
)


def main() -> None:
    """Run all steps, print the scores and write ``results.json``."""
    parser = Parser(description="Train and evaluate on small sets of all data.")
    parser.add_argument("--model", choices=tuple(MODELS), default="vdit")
    parser.add_argument("--pretrained", default="toy/stack", help="other frozen parts; training then begins anew")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/all_evaluations"), help="new or empty folder")
    parser.add_argument("--short", action="store_true", help="the smallest sets and two training steps")
    args = parser.parse_args()
    output: Path = args.output_dir.absolute()
    plan = SHORT if args.short else FULL
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; remove it or choose another folder with --output_dir")
    make_data(output / "data", plan)
    parts = ("--pretrained", args.pretrained)
    weights = ROOT / "toy" / f"{args.model}.safetensors"
    heads = ("--keep_class_heads",) if MODELS[args.model].scored else ()
    begin: tuple[object, ...] = ("--pretrained_weights", weights, *heads)
    if args.pretrained != parser.get_default("pretrained"):
        parts, begin = (*parts, "--text_cache", str(output / "text")), ()
    for name in TRAININGS:
        options = [*flags(args.model, output / "data", name), *parts]
        run(
            main_script.main,
            *options,
            *begin,
            "--batch_size",
            4,
            "--max_steps",
            plan.steps,
            "--output_dir",
            output / "train" / name,
        )
    for evaluation in EVALUATIONS.values():
        options = [*evaluation_flags(args.model, output, evaluation), *parts]
        run(main_script.main, "--eval", *options, "--output_dir", output / "eval" / evaluation.name)
    for inference in INFERENCES:
        options = [*evaluation_flags(args.model, output, EVALUATIONS[inference.evaluation]), *parts]
        masks = output / "inference" / inference.name
        run(inference.program, *options, "--dataset_file", inference.part, "--output_dir", masks)
        ground_truth = output / "data" / inference.ground_truth
        run(eval_jf.main, "--gt", ground_truth, "--pred", masks, "--json", masks / "scores.json")
        compare(output, inference)
    report(output)


def run(program: Callable[[], int | None], *words: object) -> None:
    """Run ``main`` of one of the project's programs in this process, from the project's root.

    Raises:
        RunError: its status is not 0.
    """
    argv = [program.__module__, *map(str, words)]
    print(f"\n$ {shlex.join(argv)}", flush=True)
    with mock.patch.object(sys, "argv", argv), contextlib.chdir(ROOT):
        status = program()
    if status:
        raise RunError(f"{argv[0]} failed with status {status}; its message is above")


def make_data(data: Path, plan: Plan) -> None:
    """Write, convert and check all sets."""
    videos = {"num_train": plan.train_videos, "frames": plan.frames}
    sizes = ("--train_videos", plan.train_videos, "--valid_videos", plan.eval_videos, "--num_frames", plan.frames)
    run(make_toy_data.main, "--output_dir", data / "ytvos", *sizes, "--negatives", 1, "--test_videos", 1)
    write_toy_davis(data / "davis_raw", num_valid=plan.eval_videos, **videos)
    write_toy_mevis(data / "mevis_v1", num_valid_u=plan.eval_videos, **videos)
    write_toy_mevis(data / "mevis_v2", num_valid_u=plan.eval_videos, no_target=1, **videos)
    write_toy_long_rvos(data / "long_rvos", num_valid=plan.eval_videos, **videos)
    write_toy_revos(data / "revos", num_valid=plan.eval_videos, **videos)
    write_toy_a2d(data / "a2d", num_test=plan.eval_videos, **videos)
    write_toy_jhmdb(data / "jhmdb", num_videos=plan.eval_videos, frames=plan.frames)
    write_toy_refcoco(data / "refer", num_train=3 * plan.images, num_eval=plan.images)
    run(prepare_data.main, "davis", "--davis_root", data / "davis_raw", "--output_dir", data / "davis")
    for name in REFCOCO_SETS:
        folders = ("--refer_root", data / "refer", "--images", data / "refer/train2014", "--output_dir", data / "coco")
        run(prepare_data.main, name, *folders)
    for name, folder in CHECKS:
        run(check_data.main, name, data / folder, "--all", "--workers", 1)


def flags(model: str, data: Path, dataset_file: str, mevis: str = "mevis_v2") -> list[str]:
    """Flags of ``main.py`` and inference: the toy sizes, the dataset, and the folders of all datasets."""
    names = ("ytvos", "davis", "long_rvos", "revos", "a2d", "jhmdb", "coco")
    folders = {**{name: name for name in names}, "mevis": mevis}
    paths = [word for name, folder in folders.items() for word in (f"--{name}_path", str(data / folder))]
    return ["--config", f"configs/{model}_toy.yaml", "--dataset_file", dataset_file, *paths]


def evaluation_flags(model: str, output: Path, evaluation: Evaluation) -> list[str]:
    """Flags of an evaluation, without its output folder."""
    options = flags(model, output / "data", evaluation.dataset_file, evaluation.mevis)
    return [*options, "--resume", str(output / "train" / evaluation.weights / "checkpoint.pth")]


def compare(output: Path, inference: Inference) -> None:
    """Compare the scores of inference with those of ``main.py --eval``.

    Raises:
        RunError: they differ.
    """
    metrics = read_json(output / "eval" / inference.evaluation / "results.json", "results")["metrics"]
    evaluated = metrics.get(inference.part, metrics)
    scores = read_json(output / "inference" / inference.name / "scores.json", "scores")
    for name, value in video_metrics(scores).items():
        if abs((evaluated[name] or 0) - value) > TOLERANCE:
            raise RunError(
                f"{inference.name}: main.py --eval gives {name} {evaluated[name]}, and inference with "
                f"scripts.eval_jf {value}; they must agree"
            )


def report(output: Path) -> None:
    """Print the metrics of all evaluations, one line each, and write them to ``results.json``."""
    results = {}
    for evaluation in EVALUATIONS.values():
        found = read_json(output / "eval" / evaluation.name / "results.json", "results")
        metrics, counts = found["metrics"], found["counts"]
        if not all(isinstance(values, dict) for values in metrics.values()):  # not a mixture
            metrics, counts = {evaluation.dataset_file: metrics}, {evaluation.dataset_file: counts}
        for part in metrics:
            name = f"mevis {evaluation.mevis[-2:]}" if part == "mevis" else part
            label = f"{name}, trained on {evaluation.weights}"
            results[label] = {"metrics": metrics[part], "counts": counts[part]}
    print()
    for label, result in results.items():
        shown = {name: value for name, value in result["metrics"].items() if "." not in name.replace("@0.", "")}
        scores = "  ".join(f"{name} {'–' if value is None else f'{value:.1f}'}" for name, value in shown.items())
        print(f"{label:<38} {scores}")
    write_json(output / "results.json", results)
    print(f"inference and main.py --eval agree on {', '.join(inference.name for inference in INFERENCES)}")
    print(f"results: {output / 'results.json'}")


if __name__ == "__main__":
    run_cli(main)
