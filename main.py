"""Train a model, or score a checkpoint.

python main.py --config configs/vdit_ytvos.yaml --ytvos_path data/ref-youtube-vos --output_dir runs/vdit
python main.py --config configs/vdit_ytvos.yaml --ytvos_path data/ref-youtube-vos --output_dir runs/vdit/valid \\
    --eval --resume runs/vdit/checkpoint.pth
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets import build_dataset, build_evaluator, build_scorer, is_video_set, list_videos
from datasets.clip import ClipBatch, ClipLoader, collate
from datasets.sampler import EpochBatches
from datasets.video import load_clip
from engine import Schedule, train
from engine import evaluate as evaluate_items
from models import Segmenter, build_criterion, build_model, has_lora, trained_parameters
from models.identity import frozen_identity
from models.loading import load_weights, open_checkpoint
from models.postprocessors import query_predictions
from models.prediction import MULTIPLE, load_for_inference, segment
from models.selection import all_queries
from util.benchmarks import scored_parts
from util.checkpoint import TRAINING_KEYS, save_checkpoint
from util.config import Config, config_dict, load_config
from util.device import device_name, resolve_device
from util.distributed import balanced_share, is_main, process_group, rank, wait_for_all, world_size
from util.errors import UserError, run_cli
from util.inference_record import file_sha256, open_record
from util.io import write_json
from util.logging import RunLog
from util.mask_layouts import LAYOUTS
from util.results import write_results
from util.submission import require_frames
from util.video_inference import run_inference
from util.video_scores import video_counts, video_metrics

TRAIN_MULTIPLE = 32
PATIENCE = timedelta(hours=12)  # of a process that has scored its share, for the slowest one

Scores = tuple[dict[str, float], dict[str, int]]  # metrics and counts


class Loader:
    """Batches of an epoch from any position in it.

    Args:
        cfg: reads ``batch_size``, ``num_workers`` and ``seed``.
        pin_memory: for copies to a GPU that overlap with its work.
    """

    def __init__(self, cfg: Config, pin_memory: bool) -> None:
        self.dataset = build_dataset(cfg, "train")
        self.batches = EpochBatches(len(self.dataset), cfg.batch_size, cfg.seed, rank(), world_size())
        self.loader = ClipLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=cfg.num_workers,
            collate_fn=partial(collate, multiple=TRAIN_MULTIPLE),
            pin_memory=pin_memory,
            persistent_workers=cfg.num_workers > 0,
        )

    def __call__(self, epoch: int, first: int) -> Iterator[ClipBatch]:
        """Batches of an epoch, from number ``first`` on."""
        self.dataset.set_epoch(epoch)
        self.batches.set_position(epoch, first)
        return iter(self.loader)


def main() -> None:
    """Train or score as the command line says."""
    cfg = load_config(sys.argv[1:], "Train a referring video object segmentation model, or score one.")
    with process_group(resolve_device(cfg.device), PATIENCE if cfg.eval else None) as device:
        (evaluate if cfg.eval else run)(cfg, device)


def run(cfg: Config, device: torch.device) -> None:
    """Train, from the beginning or from ``cfg.resume`` on, in this process and its peers."""
    torch.manual_seed(cfg.seed)
    output = Path(cfg.output_dir)
    state = open_checkpoint(cfg.resume, "--resume", cfg.model) if cfg.resume else {}
    if state and not state.keys() >= TRAINING_KEYS.keys():
        raise UserError(
            f"{state['path']} holds weights alone; --resume goes on with the checkpoint.pth of a training run, and "
            "--pretrained_weights begins a new run from weights"
        )
    begin = cfg.pretrained_weights and not state
    weights = open_checkpoint(cfg.pretrained_weights, "--pretrained_weights", cfg.model) if begin else state
    first = state.get("step", 0)
    loader = Loader(cfg, pin_memory=device.type == "cuda")
    schedule = build_schedule(cfg, loader.batches.batches_per_epoch)
    if state and state["steps_per_epoch"] != schedule.steps_per_epoch:
        raise UserError(
            f"{cfg.resume} was trained with {state['steps_per_epoch']} steps per epoch, and this run has "
            f"{schedule.steps_per_epoch}; resume with the same data, --batch_size and number of processes"
        )
    if first >= schedule.total_steps:
        if is_main():
            print(
                f"nothing left to train: {cfg.resume} is from step {first}, and this run has {schedule.total_steps} "
                "steps; --epochs and --max_steps make it longer"
            )
        return
    if is_main():  # before the frozen parts are loaded: a folder that cannot be written is told at once
        write_json(output / "config.json", config_dict(cfg))

    model = build_model(cfg)
    if weights:
        loaded = load_weights(model, weights, cfg, fresh=not state)
        frozen, notes = loaded.frozen, loaded.notes
    else:
        frozen, notes = frozen_identity(model, cfg), []
    del weights
    model.to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)
    if state:
        optimizer.load_state_dict(deepcopy(state["optimizer"]))
        state.clear()  # the file is memory-mapped, and will be replaced
    tell(notes)
    if is_main():
        print(
            f"{cfg.model}: {sum(trained_parameters(model).values()) / 1e6:.2f} M trained parameters; "
            f"{len(loader.dataset)} clips, {schedule.steps_per_epoch} steps per epoch, {schedule.total_steps} in all, "
            f"on {world_size()} × {device}" + (f", from step {first}" if cfg.resume else ""),
            flush=True,
        )

    def save(step: int) -> None:
        if is_main():
            save_checkpoint(
                output / "checkpoint.pth",
                model,
                cfg.model,
                config_dict(cfg),
                frozen=frozen,
                optimizer=optimizer.state_dict(),
                step=step,
                steps_per_epoch=schedule.steps_per_epoch,
            )

    network: nn.Module = model
    if world_size() > 1:
        network = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            # single frames bypass the temporal attentions, and with them their adapters
            find_unused_parameters=cfg.num_frames == 1 and has_lora(model),
        )
    with RunLog(output, schedule.total_steps, first, active=is_main()) as log:
        train(
            network,
            build_criterion(cfg),
            loader,
            optimizer,
            schedule,
            log,
            save,
            seed=cfg.seed,
            device=device,
            first_step=first,
            max_norm=cfg.clip_max_norm,
            log_every=cfg.log_every,
            save_every=cfg.save_every,
        )
    if is_main():
        print(f"wrote {output / 'checkpoint.pth'}")


def build_schedule(cfg: Config, steps_per_epoch: int) -> Schedule:
    """Length and learning rate of the run; the rate is scaled with the number of processes."""
    return Schedule(
        rate=cfg.lr * world_size() / cfg.lr_processes,
        steps_per_epoch=steps_per_epoch,
        epochs=cfg.epochs,
        drops=cfg.lr_drop,
        warmup_steps=cfg.warmup_steps,
        max_steps=cfg.max_steps,
        cosine=cfg.lr_schedule == "cosine",
    )


def evaluate(cfg: Config, device: torch.device) -> None:
    """Score ``cfg.resume`` on ``cfg.dataset_file``, or on every part of a mixture, and write ``results.json``.

    Raises:
        UserError: data, truth or checkpoint is missing or broken; found out before the model is built, where possible.
    """
    if not cfg.resume:
        raise UserError("no checkpoint is given; name the one to score by --resume")
    output, names = Path(cfg.output_dir), scored_parts(cfg.dataset_file)
    folders = {name: output / name if len(names) > 1 else output for name in names}
    parts = {name: replace(cfg, dataset_file=name, output_dir=str(folders[name])) for name in names}
    checkpoint = open_checkpoint(cfg.resume, "--resume", cfg.model)
    about = {"checkpoint": str(checkpoint["path"].resolve()), "checkpoint_sha256": file_sha256(checkpoint["path"])}
    prepared = {
        name: prepare_videos(part, checkpoint["path"], device) if is_video_set(part) else prepare_items(part, device)
        for name, part in parts.items()
    }
    model, notes = load_for_inference(cfg, checkpoint, device)
    del checkpoint  # and with it the memory map of its file
    tell(notes)
    scores = {name: score(model) for name, score in prepared.items()}
    if not is_main():
        return
    metrics, counts = ({name: part[i] for name, part in scores.items()} for i in (0, 1))
    mixed = len(names) > 1
    write_results(
        output / "results.json",
        metrics if mixed else metrics[names[0]],
        counts if mixed else counts[names[0]],
        config_dict(cfg),
        {**about, "device": device_name(device), "processes": world_size()},
    )
    for name, (values, _) in scores.items():
        print(f"{name}, {parts[name].split} split: " + ", ".join(f"{key} {value:.2f}" for key, value in values.items()))
    print(f"wrote {output / 'results.json'}")


def prepare_videos(cfg: Config, checkpoint: Path, device: torch.device) -> Callable[[Segmenter], Scores]:
    """Get ready to segment this process's share of the videos and to score all masks, which stay in the output folder.

    Masks that are there from the same checkpoint and options are not made again.
    """
    videos = [video for video in list_videos(cfg) if video.expressions]
    require_frames(videos)
    scorer = build_scorer(cfg) if is_main() else None
    record = open_record(cfg, checkpoint, device_name(device), rank())
    costs = [len(video.frame_paths) * len(video.expressions) for video in videos]
    share = [videos[i] for i in balanced_share(costs, rank(), world_size())]

    def score(model: Segmenter) -> Scores:
        read = partial(load_clip, short_side=cfg.eval_size, long_side=cfg.max_size)
        predict = partial(segment, model, cfg=cfg, device=device, soft=LAYOUTS[cfg.dataset_file].soft)
        run_inference(share, cfg, record, read, predict, show=is_main())
        wait_for_all()
        if scorer is None:
            return {}, {}
        scores = scorer(max(1, cfg.num_workers))
        write_json(Path(cfg.output_dir) / "scores.json", scores)
        tell(scores.get("notes", []))
        frames = sum(len(video.frame_paths) for video in videos)
        return video_metrics(scores), {**video_counts(scores), "frames": frames}

    return score


def prepare_items(cfg: Config, device: torch.device) -> Callable[[Segmenter], Scores]:
    """Get ready to score this process's share of the frames or images, all queries of each."""
    dataset, evaluator = build_dataset(cfg, cfg.split), build_evaluator(cfg)
    loader = ClipLoader(
        dataset,
        sampler=range(rank(), len(dataset), world_size()),
        num_workers=cfg.num_workers,
        collate_fn=partial(collate, multiple=MULTIPLE),
        pin_memory=device.type == "cuda",
    )

    def score(model: Segmenter) -> Scores:
        predictions: Any = partial(query_predictions, threshold=cfg.threshold)
        evaluate_items(model, loader, evaluator, all_queries, predictions, seed=cfg.seed, device=device)
        return (evaluator.results(), evaluator.counts()) if is_main() else ({}, {})

    return score


def tell(notes: Sequence[str]) -> None:
    """Print what the user should know, once."""
    if is_main():
        for note in notes:
            print(f"note: {note}", flush=True)


if __name__ == "__main__":
    run_cli(main)
