"""Train a model, or score a checkpoint.

python main.py --config configs/vdit_ytvos.yaml --ytvos_path data/ref-youtube-vos --output_dir runs/vdit
python main.py --config configs/vdit_ytvos.yaml --ytvos_path data/ref-youtube-vos --output_dir runs/vdit/valid \\
    --eval --resume runs/vdit/checkpoint.pth
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from datasets import build_loader
from datasets.registry import load_config, resolve, scored_metric, scored_parts, validated_set
from util.config import Config, config_dict
from util.errors import UserError, help_asked, run_cli

if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(lambda: load_config(["--help"], __doc__.split("\n")[0]))

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.clip import denormalise
from datasets.transforms import swap_sides
from engine import VALIDATION_FOLDER, Run, Scoring, Validation, build_schedule, build_scoring, parameter_lines, train
from models import (
    SegmentationModel,
    build_criterion,
    build_model,
    build_parameter_groups,
    frozen_sources,
    has_lora,
    prepare_sentences,
    prepare_training,
    trained_parameters,
)
from models.checkpoints import (
    Checkpoint,
    Identity,
    frozen_identity,
    load_weights,
    open_checkpoint,
    open_resumed,
    save_checkpoint,
    save_loaded_parts,
)
from models.inference import build_for_inference
from models.precision import resolve_precision
from util.checkpoint import NEWEST, Keeper, begin_folder
from util.device import INFERENCE, TRAINING, device_name, memory_advice, resolve_device, use_expandable_segments
from util.distributed import is_main, print_notes, process_group, world_size
from util.drawing import LastClip
from util.files import file_sha256, sole_run
from util.guard import Guard
from util.options import AUTO
from util.run_log import RunLog, RunSummary, Wandb, write_results


def main() -> None:
    """Train or score as the command line says."""
    cfg = load_config(sys.argv[1:], __doc__.split("\n")[0])
    if not cfg.eval:
        use_expandable_segments()
    with process_group(resolve_device(cfg.device)) as device, sole_run(cfg.output_dir, is_main()):
        (evaluate if cfg.eval else train_from_config)(cfg, device)


def train_from_config(cfg: Config, device: torch.device) -> None:
    """Train in all processes, from the beginning or from the checkpoint that ``cfg.resume`` names.

    Raises:
        Stopped: a signal ended the run; its work is saved.
    """
    output = Path(cfg.output_dir)
    summary = RunSummary(output, active=is_main())
    with summary, Guard(output, 60 * cfg.patience_minutes, seed=cfg.seed) as guard, memory_advice(TRAINING):
        run = build_run(cfg, device, guard, summary)
        if run is None:
            return
        with run.log:
            guard.start(run.first_step)
            train(run)
        if is_main():
            print(f"wrote {output / NEWEST}")


def build_run(cfg: Config, device: torch.device, guard: Guard, summary: RunSummary) -> Run | None:
    """Build a training run; None, with a message, where nothing is left to train.

    Checks what the user can get wrong before it loads gigabytes of frozen parts: first the checkpoint, the data and the
    ground truth, then the output folder.

    Raises:
        UserError: a checkpoint, the data, a frozen part or the output folder cannot be used.
    """
    output = Path(cfg.output_dir)
    torch.manual_seed(cfg.seed)
    resumed, checkpoint = open_start(cfg)
    first_step = resumed.step if resumed else 0
    loader = build_loader(cfg, pin_memory=device.type == "cuda")
    schedule = build_schedule(cfg, loader.batches.steps_per_epoch)
    if resumed:
        resumed.require_steps_per_epoch(schedule.steps_per_epoch)
    validate_every = max(1, round(cfg.eval_every * schedule.steps_per_epoch)) if cfg.eval_every else 0
    scorings = build_validation_scorings(cfg, device, guard) if validate_every else {}
    if resumed and first_step >= schedule.total_steps:
        print_notes(
            [
                f"nothing is left to train: {resumed.path} is from step {first_step}, and this run has "
                f"{schedule.total_steps} steps; --epochs and --max_steps make it longer"
            ]
        )
        return None
    summary.begin(config_dict(cfg), device, first_step, total_steps=schedule.total_steps, clips=len(loader.dataset))
    writers = [Wandb(output, summary.run_id, config_dict(cfg))] if cfg.wandb and is_main() else []

    model = build_model(cfg)
    frozen, notes = load_start(cfg, model, checkpoint, new_run=resumed is None)
    if is_main():
        save_loaded_parts(output, model, cfg.model, frozen)  # before conversion to half precision
    scaler = prepare_training(model, cfg.precision, device, cfg.compile)
    seen = (text for caption in loader.dataset.captions() for text in (caption, swap_sides(caption)))
    prepare_sentences(model, chain(seen, *(scoring.captions() for scoring in scorings.values())))
    fused = device.type == "cuda" or None  # the fused optimiser needs no synchronisation for a scaled gradient
    optimizer = torch.optim.AdamW(build_parameter_groups(cfg, model), lr=schedule.rate, fused=fused)
    if resumed:
        resumed.load_optimizer(optimizer)
        if scaler and "scaler" in resumed.training:
            scaler.load_state_dict(resumed.training["scaler"])
    del resumed, checkpoint  # releases the memory map of a file that will be replaced
    if is_main():
        print_notes([*notes, *begin_folder(output, first_step)])
        print("\n".join(parameter_lines(model, optimizer)))
        print(
            f"{cfg.model}: {sum(trained_parameters(model).values()) / 1e6:.2f} M trained parameters; "
            f"{len(loader.dataset)} clips, {schedule.steps_per_epoch} steps per epoch, {schedule.total_steps} in total "
            f"on {world_size()} × {device}" + (f", from step {first_step}" if first_step else ""),
            flush=True,
        )

    def write(path: Path, step: int) -> None:
        state: dict[str, Any] = {"step": step, "steps_per_epoch": schedule.steps_per_epoch}
        state |= {"optimizer": optimizer.state_dict(), **({"scaler": scaler.state_dict()} if scaler else {})}
        save_checkpoint(path, model, cfg.model, config_dict(cfg), frozen=frozen, **state)

    keeper = Keeper(output, write, cfg.keep_checkpoints, cfg.save_minutes, active=is_main())
    log = RunLog(
        output,
        schedule.total_steps,
        first_step,
        is_main(),
        processes=world_size(),
        writers=writers,
        sample=LastClip(model, denormalise, cfg.threshold).draw,
        sample_every=cfg.sample_every,
    )
    summary.last_step = lambda: log.speed.step
    validation = None
    if scorings:
        metrics = {name: scored_metric(name, cfg.eval_metric, cfg.model) for name in scorings}
        validation = Validation(
            output, scorings, metrics, config_dict(cfg), keeper.keep_best, validate_every, first_step
        )
    return Run(
        model=model,
        network=distributed(cfg, model, device),
        criterion=build_criterion(cfg),
        loader=loader,
        optimizer=optimizer,
        schedule=schedule,
        log=log,
        keeper=keeper,
        device=device,
        guard=guard,
        scaler=scaler,
        validation=validation,
        seed=cfg.seed,
        first_step=first_step,
        max_norm=cfg.clip_max_norm,
        max_value=cfg.clip_grad_value,
        accumulate=cfg.accumulate,
        log_every=cfg.log_every,
        save_every=cfg.save_every,
        broken_clips=lambda: loader.dataset.broken,
    )


def open_start(cfg: Config) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Open the checkpoint from which a run resumes, and the one whose weights it begins with: the same, if it resumes.

    Raises:
        UserError: a checkpoint cannot be used, or has other options.
    """
    resumed = checkpoint = open_resumed(cfg.resume, Path(cfg.output_dir), cfg.model)
    if checkpoint is None and cfg.pretrained_weights:
        checkpoint = open_checkpoint(cfg.pretrained_weights, "--pretrained_weights", cfg.model)
    if checkpoint:
        print_notes(checkpoint.notes)
        checkpoint.require_options(config_dict(cfg), new_run=resumed is None)
    return resumed, checkpoint


def load_start(
    cfg: Config, model: SegmentationModel, checkpoint: Checkpoint | None, new_run: bool
) -> tuple[Identity, list[str]]:
    """Load the weights with which a run begins, if any; as ``load_weights``, return frozen parts and notes."""
    if checkpoint is None:
        return frozen_identity(model, frozen_sources(cfg)), []
    return load_weights(
        model,
        checkpoint,
        frozen_sources(cfg),
        new_run=new_run,
        keep_class_heads=cfg.keep_class_heads,
        ignore_identity=cfg.ignore_frozen_identity,
    )


def distributed(cfg: Config, model: SegmentationModel, device: torch.device) -> nn.Module:
    """The model, wrapped where several processes exchange gradients."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # no second copy of the gradients
        broadcast_buffers=False,  # all of them are constant
        # single frames bypass the temporal attentions, and with them their adapters
        find_unused_parameters=cfg.num_frames == 1 and has_lora(model),
    )


def build_validation_scorings(cfg: Config, device: torch.device, guard: Guard) -> dict[str, Scoring]:
    """Prepare to score the model during training on each part of the validated dataset.

    Raises:
        UserError: data or ground truth is missing or broken.
    """
    name = validated_set(cfg.dataset_file, cfg.eval_dataset)
    split = cfg.split if name == cfg.dataset_file else AUTO
    folder = Path(cfg.output_dir) / VALIDATION_FOLDER
    return {
        part: build_scoring(
            resolve(replace(cfg, dataset_file=part, split=split, output_dir=str(folder / part), visualize=False)),
            device,
            on_clip=guard.report_progress,
        )
        for part in scored_parts(name)
    }


def evaluate(cfg: Config, device: torch.device) -> None:
    """Score ``cfg.resume`` on ``cfg.dataset_file``, or on each part of a mixture, and write ``results.json``.

    Raises:
        UserError: data, ground truth or checkpoint is missing or broken; most of it before the model is built.
    """
    if not cfg.resume:
        raise UserError("no checkpoint is given; name the one to score with --resume")
    # Masks of two machines whose "auto" differs must never mix.
    cfg = replace(cfg, precision=resolve_precision(cfg.precision, device, training=False))
    output, names = Path(cfg.output_dir), scored_parts(cfg.dataset_file)
    folders = {name: output / name if len(names) > 1 else output for name in names}
    cfgs = {name: resolve(replace(cfg, dataset_file=name, output_dir=str(folders[name]))) for name in names}
    checkpoint = open_checkpoint(cfg.resume, "--resume", cfg.model)
    about = {"checkpoint": str(checkpoint.path.resolve()), "checkpoint_sha256": file_sha256(checkpoint.path)}
    scorings = {name: build_scoring(own, device, checkpoint.path) for name, own in cfgs.items()}
    with memory_advice(INFERENCE):
        model, notes = build_for_inference(cfg, checkpoint, device)
        del checkpoint  # releases the memory map of its file
        print_notes(notes)
        scores = {name: scoring.score(model) for name, scoring in scorings.items()}
    if not is_main():
        return
    metrics: dict[str, Any] = {name: values for name, (values, _) in scores.items()}
    counts: dict[str, Any] = {name: numbers for name, (_, numbers) in scores.items()}
    if len(names) == 1:  # not a mixture
        metrics, counts = metrics[names[0]], counts[names[0]]
    machine = {"device": device_name(device), "processes": world_size()}
    write_results(output / "results.json", metrics, counts, config_dict(cfg), {**about, **machine})
    for name, (values, _) in scores.items():
        for group, keys in groupby(values, lambda key: "" if "@" in key else key.rpartition(".")[0]):
            shown = ", ".join(f"{key.removeprefix(f'{group}.')} {values[key]:.2f}" for key in keys)
            print(f"{name}, {cfgs[name].split} split{group and ', '}{group}: {shown}")
    print(f"wrote {output / 'results.json'}")


if __name__ == "__main__":
    run_cli(main)
