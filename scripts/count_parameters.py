"""Count parameters without allocating them: on the meta device, from configuration files.

python -m scripts.count_parameters [--config configs/vdit_ytvos.yaml] [--stack FOLDER]
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.registry import load_config
from util.command_line import Parser
from util.config import Config
from util.errors import UserError, run_cli

if TYPE_CHECKING:
    from models import Segmenter

FULL_SIZE = Path(__file__).resolve().parents[1] / "configs" / "full_size"
PARTS = ("unet", "vae", "text_encoder", "clip", "roberta", "scheduler")


def stack_of(cfg: Config) -> Path:
    """The folder with the sizes of a configuration's frozen parts: its own whole stack, or ``FULL_SIZE``."""
    own = Path(cfg.pretrained)
    return own if all((own / part).is_dir() for part in PARTS) else FULL_SIZE


def empty_model(cfg: Config, stack: Path = FULL_SIZE) -> Segmenter:
    """The model of a configuration on the meta device, its frozen parts sized by the files in ``stack``.

    Raises:
        UserError: the folder does not exist or lacks a file.
    """
    if not stack.is_dir():
        raise UserError(f"{stack} does not exist; it should hold a configuration file for every frozen part")
    import torch  # all only here: they take seconds

    from models import build_model
    from models.diffusion.stack import empty_stack

    try:
        frozen = empty_stack(stack)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{stack} should hold a configuration file for every frozen part: {reason}") from error
    with torch.device("meta"):
        return build_model(dataclasses.replace(cfg, backbone_weights=""), frozen)


def main() -> None:
    """Print trained parameters by part, and frozen ones."""
    parser = Parser(description="Count the model's parameters without allocating them.")
    parser.add_argument("--config", default="", help="a configuration; default: the published sizes")
    parser.add_argument(
        "--stack",
        type=Path,
        help="configuration files of the frozen parts; default: the configuration's own stack where that is a folder "
        "with all of them, as toy/stack is, or the published sizes",
    )
    args = parser.parse_args()
    cfg = load_config(["--config", args.config] if args.config else [], "")
    stack = args.stack or stack_of(cfg)
    model = empty_model(cfg, stack)
    from models import trained_parameters

    trained: Counter[str] = Counter()
    for name, count in trained_parameters(model).items():
        trained[".".join(name.split(".")[:2])] += count
    for name, count in trained.most_common():
        print(f"{name:<32} {count:>12,}")
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    total = sum(trained.values())
    print(f"{'trained':<32} {total:>12,}  = {total / 1e6:.2f} M")
    print(f"{'frozen':<32} {frozen:>12,}  = {frozen / 1e6:.2f} M, of the sizes in {os.path.relpath(stack)}")


if __name__ == "__main__":
    run_cli(main)
