"""Train a model, or score a checkpoint.

python main.py --config configs/vdit_ytvos.yaml --ytvos_path data/ref-youtube-vos --output_dir runs/vdit
python main.py --config configs/vdit_ytvos.yaml --ytvos_path data/ref-youtube-vos --output_dir runs/vdit/valid \\
    --eval --resume runs/vdit/checkpoint.pth
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from util.config import Config, config_dict, load_config
from util.errors import UserError, help_asked, run_cli

if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    load_config(["--help"], __doc__.split("\n")[0])

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datasets import build_dataset, build_evaluator, build_scorer, is_video_set, list_videos
from datasets.clip import ClipLoader, collate, denormalise
from datasets.epoch_loader import EpochLoader
from datasets.evaluators import Score, Scores
from datasets.predictions import LAYOUTS, require_frames
from datasets.video import load_clip
from engine import build_schedule, is_due, train
from engine import evaluate as evaluate_items
from models import Segmenter, build_criterion, build_model, has_lora, trained_parameters
from models.identity import frozen_identity
from models.loading import check_options, load_weights, open_checkpoint, open_training
from models.postprocessors import query_predictions
from models.precision import prepare_training, with_named_precision
from models.prediction import MULTIPLE, load_for_inference, segment
from models.selection import all_queries
from util.benchmarks import AUTO_SPLIT, scored_parts, validated_set
from util.checkpoint import save_carried, save_checkpoint
from util.device import device_name, resolve_device
from util.distributed import is_main, process_group, rank, tell, world_size
from util.guard import Guard
from util.inference_record import file_sha256, open_record
from util.keeping import NEWEST, Keeper, begin_folder, check_epoch, resume_path
from util.locking import sole_run
from util.log_writers import further_writers
from util.logging import open_log
from util.memory import INFERENCE, TRAINING, memory_advice
from util.parameters import parameter_lines
from util.results import write_results
from util.run_summary import RunSummary
from util.samples import LastClip
from util.validation import FOLDER as VALIDATION
from util.validation import Validation
from util.video_scoring import video_score

PATIENCE = timedelta(hours=12)  # of a process that has scored its share, for the slowest one; a hang is noticed sooner


def main() -> None:
    """Train or score as the command line says."""
    cfg = load_config(sys.argv[1:], __doc__.split("\n")[0])
    with process_group(resolve_device(cfg.device), PATIENCE) as device, sole_run(cfg.output_dir, is_main()):
        (evaluate if cfg.eval else run)(cfg, device)


def run(cfg: Config, device: torch.device) -> None:
    """Train, from the beginning or from ``cfg.resume`` on, in this process and its peers.

    Raises:
        Stopped: a signal has ended the run; its work is saved.
    """
    output = Path(cfg.output_dir)
    summary = RunSummary(output, active=is_main())
    with summary, Guard(output, 60 * cfg.patience_minutes, seed=cfg.seed) as guard, memory_advice(TRAINING):
        train_guarded(cfg, device, output, guard, summary)


def train_guarded(cfg: Config, device: torch.device, output: Path, guard: Guard, summary: RunSummary) -> None:
    """Train, where signals and other processes are looked after."""
    torch.manual_seed(cfg.seed)
    resume, notes = resume_path(cfg.resume, output)
    tell(notes)
    state = open_training(resume, cfg.model) if resume else {}
    begin = cfg.pretrained_weights and not state
    weights = open_checkpoint(cfg.pretrained_weights, "--pretrained_weights", cfg.model) if begin else state
    if weights:
        check_options(weights, cfg, fresh=not state)
    first = state.get("step", 0)
    loader = EpochLoader(cfg, pin_memory=device.type == "cuda")
    schedule = build_schedule(cfg, loader.batches.steps_per_epoch)
    if state:
        check_epoch(state, schedule.steps_per_epoch)
    every = max(1, round(cfg.eval_every * schedule.steps_per_epoch)) if cfg.eval_every else 0
    parts = prepare_validation(cfg, device, guard) if every else {}
    if first >= schedule.total_steps:
        if is_main():
            print(
                f"nothing left to train: {resume} is from step {first}, and this run has {schedule.total_steps} "
                "steps; --epochs and --max_steps make it longer"
            )
        return
    # Before the frozen parts are loaded: a folder that cannot be written is told at once.
    summary.begin(config_dict(cfg), device, first, total_steps=schedule.total_steps, clips=len(loader.dataset))
    writers = further_writers(cfg, summary.run_id)

    model = build_model(cfg)
    if weights:
        loaded = load_weights(model, weights, cfg, fresh=not state)
        frozen, notes = loaded.frozen, loaded.notes
    else:
        frozen, notes = frozen_identity(model, cfg), []
    del weights
    if is_main():
        save_carried(output, model, cfg.model, frozen)  # while it has all of its digits
    scaler = prepare_training(model, cfg, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = device.type == "cuda" or None  # asks no GPU whether a scaled gradient has overflowed
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay, fused=fused)
    if state:
        optimizer.load_state_dict(deepcopy(state["optimizer"]))
        if scaler and "scaler" in state:
            scaler.load_state_dict(state["scaler"])
        state.clear()  # the file is memory-mapped, and will be replaced
    if is_main():
        tell([*notes, *begin_folder(output, first)])
        print("\n".join(parameter_lines(model, optimizer)))
        print(
            f"{cfg.model}: {sum(trained_parameters(model).values()) / 1e6:.2f} M trained parameters; "
            f"{len(loader.dataset)} clips, {schedule.steps_per_epoch} steps per epoch, {schedule.total_steps} in all, "
            f"on {world_size()} × {device}" + (f", from step {first}" if first else ""),
            flush=True,
        )

    def write(path: Path, step: int) -> None:
        state: dict[str, Any] = {"step": step, "steps_per_epoch": schedule.steps_per_epoch}
        state |= {"optimizer": optimizer.state_dict(), **({"scaler": scaler.state_dict()} if scaler else {})}
        save_checkpoint(path, model, cfg.model, config_dict(cfg), frozen=frozen, **state)

    keeper = Keeper(output, write, cfg.keep_checkpoints, cfg.save_minutes, active=is_main())
    validation = Validation(output, parts, cfg.eval_metric, config_dict(cfg), keeper.keep_best, first)
    network: nn.Module = model
    if world_size() > 1:
        network = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,  # no second copy of the gradients
            # single frames bypass the temporal attentions, and with them their adapters
            find_unused_parameters=cfg.num_frames == 1 and has_lora(model),
        )
    sample = LastClip(model, denormalise, cfg.threshold).draw
    with open_log(cfg, schedule.total_steps, first, writers, sample) as log:
        summary.last_step = lambda: log.step

        def validate(step: int) -> None:
            with guard.uncounted(f"validates step {step}"):
                metrics = validation.score(model, step)
            log.write(step, {f"valid.{name}": value for name, value in metrics.items()})

        guard.start(first)
        if parts and first and is_due(first, every) and validation.missed(first):
            validate(first)
        train(
            network,
            build_criterion(cfg),
            loader,
            optimizer,
            schedule,
            log,
            keeper.save,
            seed=cfg.seed,
            device=device,
            first_step=first,
            max_norm=cfg.clip_max_norm,
            log_every=cfg.log_every,
            save_every=cfg.save_every,
            save_due=keeper.due,
            validate=validate if parts else None,
            validate_every=every,
            guard=guard,
            accumulate=cfg.accumulate,
            scaler=scaler,
        )
    if is_main():
        print(f"wrote {output / NEWEST}")


def prepare_validation(cfg: Config, device: torch.device, guard: Guard) -> dict[str, Score]:
    """Get ready to score the model during training: each part of what is validated.

    Raises:
        UserError: data or truth is missing or broken.
    """
    name = validated_set(cfg.dataset_file, cfg.eval_dataset)
    split = cfg.split if name == cfg.dataset_file else AUTO_SPLIT
    folder = Path(cfg.output_dir) / VALIDATION
    parts = {
        part: replace(cfg, dataset_file=part, split=split, output_dir=str(folder / part), visualize=False)
        for part in scored_parts(name)
    }
    return {part: prepare(options, None, device, guard.pass_on) for part, options in parts.items()}


def evaluate(cfg: Config, device: torch.device) -> None:
    """Score ``cfg.resume`` on ``cfg.dataset_file``, or on every part of a mixture, and write ``results.json``.

    Raises:
        UserError: data, truth or checkpoint is missing or broken; found out before the model is built, where possible.
    """
    if not cfg.resume:
        raise UserError("no checkpoint is given; name the one to score by --resume")
    cfg = with_named_precision(cfg, device)
    output, names = Path(cfg.output_dir), scored_parts(cfg.dataset_file)
    folders = {name: output / name if len(names) > 1 else output for name in names}
    parts = {name: replace(cfg, dataset_file=name, output_dir=str(folders[name])) for name in names}
    checkpoint = open_checkpoint(cfg.resume, "--resume", cfg.model)
    about = {"checkpoint": str(checkpoint["path"].resolve()), "checkpoint_sha256": file_sha256(checkpoint["path"])}
    prepared = {name: prepare(part, checkpoint["path"], device) for name, part in parts.items()}
    with memory_advice(INFERENCE):
        model, notes = load_for_inference(cfg, checkpoint, device)
        del checkpoint  # and with it the memory map of its file
        tell(notes)
        scores = {name: score(model) for name, score in prepared.items()}
    if not is_main():
        return
    found = ({name: part[i] for name, part in scores.items()} for i in (0, 1))
    metrics, counts = (values if len(names) > 1 else values[names[0]] for values in found)
    machine = {"device": device_name(device), "processes": world_size()}
    write_results(output / "results.json", metrics, counts, config_dict(cfg), {**about, **machine})
    for name, (values, _) in scores.items():
        print(f"{name}, {parts[name].split} split: " + ", ".join(f"{key} {value:.2f}" for key, value in values.items()))
    print(f"wrote {output / 'results.json'}")


def prepare(
    cfg: Config, checkpoint: Path | None, device: torch.device, passing: Callable[[], None] = lambda: None
) -> Score:
    """Get ready to score a model on one dataset.

    Args:
        cfg: names the dataset, its split and the folder for masks.
        checkpoint: whose masks in that folder need not be made again; None: the model is in training.
        device: where it is.
        passing: called for every clip.
    """
    return (
        prepare_videos(cfg, checkpoint, device, passing) if is_video_set(cfg) else prepare_items(cfg, device, passing)
    )


def prepare_videos(cfg: Config, checkpoint: Path | None, device: torch.device, passing: Callable[[], None]) -> Score:
    """Get ready to segment this process's share of the videos and to score all masks, which stay in the output folder.

    Masks that are there from the same checkpoint and options are not made again.
    """

    def predict(model: Segmenter, frames: Tensor, orig_size: tuple[int, int], sentences: Mapping[str, str]) -> Any:
        passing()
        return segment(model, frames, orig_size, sentences, cfg, device, LAYOUTS[cfg.dataset_file].soft)

    videos = [video for video in list_videos(cfg) if video.expressions]
    require_frames(videos)
    scorer = build_scorer(cfg) if is_main() else None
    read = partial(load_clip, short_side=cfg.eval_size, long_side=cfg.max_size)
    records = partial(open_record, cfg, checkpoint, device_name(device))
    return video_score(videos, scorer, cfg, records, read, predict, keep=checkpoint is not None)


def prepare_items(cfg: Config, device: torch.device, passing: Callable[[], None]) -> Score:
    """Get ready to score this process's share of the frames or images, all queries of each."""
    dataset, first_evaluator = build_dataset(cfg, cfg.split), [build_evaluator(cfg)]
    loader = ClipLoader(
        dataset,
        sampler=range(rank(), len(dataset), world_size()),
        num_workers=cfg.num_workers,
        collate_fn=partial(collate, multiple=MULTIPLE),
        pin_memory=device.type == "cuda",
    )

    def score(model: Segmenter) -> Scores:
        def predictions(output: Any, targets: Any) -> Any:
            passing()
            return query_predictions(output, targets, cfg.threshold)

        evaluator = first_evaluator.pop() if first_evaluator else build_evaluator(cfg)
        evaluate_items(model, loader, evaluator, all_queries, predictions, seed=cfg.seed, device=device)
        return (evaluator.results(), evaluator.counts()) if is_main() else ({}, {})

    return score


if __name__ == "__main__":
    run_cli(main)
