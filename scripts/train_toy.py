"""Make the carried toy weights from nothing: the frozen stack, and a model trained on it (``scripts/train_toy.sh``).

The model is trained in phases, each from the weights of the one before: single frames, which are cheap, with sentences
that they can answer; then clips, which show motion, with all sentences; then the same at half the rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from datasets.toy.scene import KINDS
from scripts.steps import run
from util.command_line import Parser
from util.errors import UserError, run_cli

PROCESSES = 2
"""They decide the result together with the seeds, so their number does not follow the machine."""
VIDEOS, VALID_VIDEOS = 2500, 60


@dataclass(frozen=True)
class Phase:
    """A part of the training."""

    name: str
    title: str
    data: str
    """whose videos: phases with the same kinds of sentences share them"""
    frames: int
    batch: int
    """clips per process"""
    steps: int
    schedule: str
    kinds: tuple[str, ...]
    """of the sentences"""
    rate: float = 1e-3
    warmup: int = 100
    """steps"""


STILL = tuple(kind for kind in KINDS if kind != "motion")
FRAMES = Phase("frames", "single frames", "data_frames", frames=1, batch=16, steps=0, schedule="step", kinds=STILL)
CLIPS = Phase(
    "clips", "clips of three frames", "data_clips", frames=3, batch=8, steps=0, schedule="cosine", kinds=KINDS
)
POLISH = replace(CLIPS, name="polish", title="clips at half the rate", rate=5e-4, warmup=50)
PHASES = {
    "vdit": (replace(FRAMES, steps=3200), replace(CLIPS, steps=1200), replace(POLISH, steps=700)),
    "hcd": (replace(FRAMES, steps=1400), replace(CLIPS, steps=700), replace(POLISH, steps=400)),
}
"""How each model is trained. HCD learns faster, as its adapters change the frozen features."""


def main() -> None:
    """Make what the command line asks for."""
    parser = Parser(description="Make the toy weights again from nothing.")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--stack-only", action="store_true", help="the frozen stack alone")
    part.add_argument("--model-only", action="store_true", help="the model alone, on the stack that is there")
    parser.add_argument("--model", choices=tuple(PHASES), default="vdit")
    parser.add_argument("--output_dir", type=Path, default=Path("toy"), help="gets stack/ and MODEL.safetensors")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/toy"), help="data and states of stopped runs")
    parser.add_argument("--share", type=float, default=1.0, help="of all steps; less makes worse weights sooner")
    args = parser.parse_args()
    if args.share <= 0:
        raise UserError(f"--share must be above 0, not {args.share:g}")
    output, work = args.output_dir.absolute(), args.work_dir.absolute()
    if not args.model_only:
        make_stack(output / "stack", work / "stack", args.share)
    if not args.stack_only:
        make_model(args.model, output, work, args.share)


def make_stack(stack: Path, work: Path, share: float) -> None:
    """Pre-train the frozen stack."""
    run(
        "The frozen stack: VAE, text and image encoder, sentence encoder, UNet",
        *launched("-m", "scripts.pretrain_toy_stack"),
        *("--output_dir", stack, "--work_dir", work, "--share", str(share)),
    )


def make_model(model: str, output: Path, work: Path, share: float) -> None:
    """Train a model in its phases and write its weights, in half precision.

    Raises:
        UserError: there is no stack.
    """
    stack = output / "stack"
    if not stack.is_dir():
        raise UserError(f"{stack} is missing; make it with --stack-only first")
    weights: Path | None = None
    for phase in PHASES[model]:
        folder, data = work / model / phase.name, work / phase.data
        run(
            f"Toy data: {', '.join(phase.kinds)}",
            *("-m", "scripts.make_toy_data", "--output_dir", data, "--negatives", 1, "--kinds"),
            *phase.kinds,
            *("--train_videos", VIDEOS, "--valid_videos", VALID_VIDEOS),
        )
        checkpoint = folder / "checkpoint.pth"
        begin = ("--pretrained_weights", weights, "--keep_class_heads") if weights else ()
        steps = max(2, round(share * phase.steps))
        run(
            f"Training on {phase.title}",
            *launched("main.py", "--config", f"configs/{model}_toy.yaml"),
            *("--pretrained", stack, "--ytvos_path", data, "--output_dir", folder),
            *("--num_frames", phase.frames, "--batch_size", phase.batch, "--max_steps", steps, "--save_every", 100),
            *("--lr", str(phase.rate), "--lr_processes", PROCESSES, "--lr_schedule", phase.schedule),
            *("--warmup_steps", phase.warmup),
            *(("--resume", checkpoint) if checkpoint.is_file() else begin),
        )
        weights = checkpoint
    assert weights is not None
    run(
        "The weights alone, in half precision",
        *("-m", "scripts.convert_checkpoint", weights, output / f"{model}.safetensors", "--dtype", "float16"),
    )


def launched(*command: str) -> tuple[str, ...]:
    """A command's arguments, run by the fixed number of processes."""
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES), *command)


if __name__ == "__main__":
    run_cli(main)
