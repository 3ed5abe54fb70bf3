"""Count parameters from configuration files, without allocating them.

python -m scripts.count_parameters [--config configs/vdit_ytvos.yaml] [--stack FOLDER]
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.config import Config, load_config
from util.errors import Parser, UserError, run_cli

if TYPE_CHECKING:
    from models import SegmentationModel

FULL_SIZE = Path(__file__).resolve().parents[1] / "configs" / "full_size"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the trained parameters by part, and the number of frozen ones."""
    parser = Parser(description="Count the model's parameters without allocating them.")
    parser.add_argument("--config", default="", help="a configuration; default: the published sizes")
    sizes = "configurations of the frozen parts; default: the configuration's stack if it is a folder with all of them"
    parser.add_argument("--stack", type=Path, help=f"{sizes}, else the published sizes")
    args = parser.parse_args(argv)
    cfg = load_config(["--config", args.config] if args.config else [], "")
    stack = args.stack or stack_of(cfg)
    model = empty_model(cfg, stack)
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        trained[".".join(name.split(".")[:2])] += parameter.numel() * parameter.requires_grad
    for name, count in trained.most_common():
        if count:
            print(f"{name:<32} {count:>12,}")
    total, frozen = trained.total(), sum(p.numel() for p in model.parameters() if not p.requires_grad)
    print(f"{'trained':<32} {total:>12,}  = {total / 1e6:.2f} M")
    print(f"{'frozen':<32} {frozen:>12,}  = {frozen / 1e6:.2f} M, of the sizes in {os.path.relpath(stack)}")


def stack_of(cfg: Config) -> Path:
    """The folder with the sizes of a configuration's frozen parts: its own, or the generator's published sizes."""
    from models.diffusion.generators import GENERATORS

    own, rows = Path(cfg.pretrained), GENERATORS
    parts = next((row.sizes for row in rows if (own / row.folder).is_dir()), FULL_SIZE)
    if own.is_dir() and all((own / part.name).is_dir() for part in parts.iterdir()):
        return own
    return next((row.sizes for row in rows if row.hub_id == cfg.pretrained), FULL_SIZE)


def empty_model(cfg: Config, stack: Path = FULL_SIZE) -> SegmentationModel:
    """The model of a configuration on the meta device, with frozen parts of the sizes in ``stack``.

    Raises:
        UserError: the folder does not exist or lacks a file.
    """
    import torch  # only here, like the other imports of this module's functions: they take seconds

    from models import build_model

    frozen = frozen_parts(stack, cfg.model)
    with torch.device("meta"):
        return build_model(replace(cfg, backbone_weights=""), frozen)


def frozen_parts(folder: Path, model: str) -> Any:
    """The frozen parts of the generator in a folder, on the meta device and without tokenizers.

    Raises:
        UserError: the folder does not exist or lacks a file.
    """
    advice = "name a folder that holds a configuration file for every frozen part with --stack"
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; {advice}")
    from models import KINDS

    try:
        return KINDS[model].empty(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} cannot be used ({reason}); {advice}") from error


if __name__ == "__main__":
    run_cli(main)
