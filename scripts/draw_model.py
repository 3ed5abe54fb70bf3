"""Draw both models from their code: a picture and tables of every part's shapes, at the published sizes.

    python -m scripts.draw_model                 # writes docs/models.svg, and the table in docs/models.md
    python -m scripts.draw_model --picture models.png --size 360 640 --frames 5

The models run on tensors that have a shape and no content, so no weights are needed, and it takes seconds.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.errors import Parser, UserError, help_asked, run_cli

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(prog="python -m scripts.draw_model", description="Draw both models.")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "models.svg", help="an .svg, .pdf or .png file")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "models.md", help="page whose table is replaced")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), help="height and width of the frames")
    parser.add_argument("--frames", type=int, default=5, help="of the clip")
    return parser.parse_args(argv)


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    parse_args()

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import build_model
from models.diffusion.stack import empty_stack
from models.frozen import Frozen
from scripts.count_parameters import FULL_SIZE
from scripts.memory_estimate import WORDS, Words, materialise
from scripts.model_picture import draw
from util.config import Config
from util.files import atomic_path
from util.preprocessing import pad_clips

MODELS = {"vdit": "VD-IT", "hcd": "HCD"}
MULTIPLE = 16  # to which frames are padded at inference
BEGIN, END = "<!-- made by scripts.draw_model: begin -->\n", "<!-- made by scripts.draw_model: end -->"

# Module of the network, what it is called, and what its output is.
PARTS = {
    "encoder.vae": ("VAE encoder", "mean and log variance of the latents; feature of stride 4"),
    "encoder.noise": ("noise prediction", "noise of the latents"),
    "encoder.image_encoder": ("CLIP image encoder", "image tokens"),
    "encoder.image_projection": ("image token projection", "image tokens in the text's width"),
    "encoder.text_encoder": ("CLIP text encoder", "tokens of the sentence"),
    "encoder.fusion": ("text-image fusion", "the UNet's condition, for every frame"),
    "encoder.unet": ("text-to-video UNet", "six taps: strides 8, 16, 32, 32, 16, 8"),
    "encoder.stride4": ("stride-4 feature", "level 0 of the pyramid"),
    "encoder": ("pyramid", "four levels: strides 4, 8, 16, 32"),
    "sentence_encoder.backbone": ("RoBERTa", "words"),
    "sentence_encoder": ("sentence encoder", "words in the decoder's width; their padding"),
    "language_queries": ("language as queries", "queries of the clip"),
    "transformer": ("deformable transformer", "of the last layer: states, boxes; memories of strides 8, 16, 32"),
    "mask_head": ("dynamic mask head", "low masks, 16 channels at stride 8"),
    "query_dot_head": ("query-dot mask head", "added to the low masks"),
    "refinement": ("mask refinement", "mask logits of the chosen query"),
    "": ("segmenter", "logits, boxes, low masks of all queries, masks of the chosen one"),
}


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        title: what it is called.
        output: what its output is, in words.
        shapes: of its output.
        code: class and file.
        trained: number of trained parameters.
        frozen: number of frozen ones.
    """

    title: str
    output: str
    shapes: tuple[tuple[int, ...], ...]
    code: str
    trained: int
    frozen: int


def read_parts(cfg: Config, size: tuple[int, int], frames: int) -> dict[str, Part]:
    """Run a model once, on tensors without content, and note what its parts give.

    Args:
        cfg: names the model.
        size: (H, W) of the frames, before they are padded.
        frames: of the clip.

    Returns:
        Name of the module → the part, in the order of ``PARTS``.
    """
    stack = empty_stack(FULL_SIZE)
    stack.tokenizer = Words(stack.text_encoder.config.max_position_embeddings)
    stack.sentence_tokenizer = Words(WORDS)
    with torch.device("meta"):
        model = build_model(cfg, stack)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def keep(name: str) -> Any:
        return lambda module, arguments, output: shapes.update({name: joined(shapes.get(name), shapes_of(output))})

    modules = {name: module for name, module in model.named_modules() if name in PARTS}
    for name, module in modules.items():
        module.register_forward_hook(keep(name))
    with FakeTensorMode(), torch.no_grad():
        materialise(model, torch.device("cpu"))
        clip, padding = pad_clips([torch.zeros(frames, 3, *size)], MULTIPLE)
        model.eval()(clip, padding, ["a sentence"])
    counts = {name: count_parameters(module) for name, module in modules.items()}
    return {
        name: Part(title, output, shapes[name], code_of(modules[name]), *counts[name])
        for name, (title, output) in PARTS.items()
        if name in shapes
    }


def joined(before: tuple[tuple[int, ...], ...] | None, now: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """The shapes of a part that is called for some frames after the other: all of them together."""
    return tuple((a[0] + b[0], *b[1:]) for a, b in zip(before, now, strict=True)) if before else now


def shapes_of(output: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes in an output of any of the project's or the libraries' modules; of lists of layers the last."""
    if isinstance(output, Tensor):
        return (tuple(output.shape),)
    if isinstance(output, tuple | list):
        return tuple(shape for value in output for shape in shapes_of(value))
    if hasattr(output, "last_hidden_state"):
        return shapes_of(output.last_hidden_state)
    if hasattr(output, "states"):
        return shapes_of([output.states[-1], output.boxes[-1], *output.memory])
    return shapes_of([output.logits, output.boxes, output.layers[-1].low_masks, output.masks])


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """(trained, frozen)."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in module.parameters()) - trained


def code_of(module: nn.Module) -> str:
    """Class, and its file or the library that it is from."""
    kind = type(module.module) if isinstance(module, Frozen) else type(module)
    path = Path(inspect.getfile(kind)).resolve()
    own = path.is_relative_to(ROOT) and ".venv" not in path.parts
    where = path.relative_to(ROOT).as_posix() if own else kind.__module__.partition(".")[0]
    return f"`{kind.__name__}`, {f'[{where}](../{where})' if own else where}"


def table(models: Mapping[str, Mapping[str, Part]]) -> str:
    """Markdown: a row for each part, which names the model where only one has it or where they differ."""
    rows = [
        "| part | code | its output | shapes | trained, M | frozen, M |",
        "|---|---|---|---|---|---|",
    ]
    for name in PARTS:
        having = {model: parts[name] for model, parts in models.items() if name in parts}
        groups: dict[Part, list[str]] = {}
        for model, part in having.items():
            groups.setdefault(part, []).append(MODELS[model])
        for part, names in groups.items():
            title = part.title + (f" ({', '.join(names)})" if len(names) < len(models) else "")
            shapes = ", ".join("×".join(map(str, shape)) for shape in part.shapes)
            counts = " | ".join(millions(count) for count in (part.trained, part.frozen))
            rows.append(f"| {title} | {part.code} | {part.output} | {shapes} | {counts} |")
    return "\n".join(rows) + "\n"


def millions(count: int) -> str:
    """Parameters in millions, with as many digits as say something."""
    if not count:
        return "–"
    return f"{count / 1e6:.2f}" if count >= 1e4 else f"{count / 1e6:.5f}"


def replace_table(page: Path, new: str) -> None:
    """Put the table between the two marks of a page.

    Raises:
        UserError: the page or the marks are missing.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{page} should hold the lines {BEGIN.strip()} and {END} once each; the table goes between")
    before, _, rest = text.partition(BEGIN)
    with atomic_path(page) as path:
        path.write_text(f"{before}{BEGIN}{new}{END}{rest.partition(END)[2]}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw as the command line says (``argv`` without the program's name; None: the process's own)."""
    args = parse_args(argv)
    if min(*args.size, args.frames) < 1:
        raise UserError("--size and --frames must be at least 1")
    if args.picture.suffix not in (".svg", ".pdf", ".png"):
        raise UserError(f"--picture must end in .svg, .pdf or .png, and is {args.picture}")
    models = {model: read_parts(Config(model=model), tuple(args.size), args.frames) for model in MODELS}
    replace_table(args.page, table(models))
    with atomic_path(args.picture) as path:
        draw({model: {name: part.shapes for name, part in parts.items()} for model, parts in models.items()}, path)
    print(f"wrote {args.picture} and the table in {args.page}")


if __name__ == "__main__":
    run_cli(main)
