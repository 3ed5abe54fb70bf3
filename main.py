"""Train a model.

python main.py --config configs/vdit_ytvos.yaml --ytvos_path data/ref-youtube-vos --output_dir runs/vdit
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets import ClipBatch, ClipLoader, build_dataset, collate
from datasets.sampler import EpochBatches
from engine import Schedule, train
from models import build_criterion, build_model, has_lora, trained_parameters
from models.identity import frozen_identity
from models.loading import load_weights, open_checkpoint
from util.checkpoint import TRAINING_KEYS, save_checkpoint
from util.config import Config, config_dict, load_config
from util.device import resolve_device
from util.distributed import is_main, process_group, rank, world_size
from util.errors import UserError, run_cli
from util.io import write_json
from util.logging import RunLog

TRAIN_MULTIPLE = 32


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
    """Train as the command line says."""
    cfg = load_config(sys.argv[1:], "Train a referring video object segmentation model.")
    with process_group(resolve_device(cfg.device)) as device:
        run(cfg, device)


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
    if is_main():
        for note in notes:
            print(f"note: {note}")
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


if __name__ == "__main__":
    run_cli(main)
