"""The picture of both models: boxes, arrows, and the shapes that ``scripts.draw_model`` has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Shape = tuple[int, ...]
Shapes = Mapping[str, Mapping[str, Sequence[Shape]]]  # model → module of the network → shapes of its output

WIDTH, HEIGHT = 2.2, 0.62  # of a box, in columns and rows
FROZEN, TRAINED, VDIT, HCD, DATA = "#dbe4ee", "#fbe3c8", "#d5ecd4", "#ecd5ea", "#ffffff"
LEGEND = {"frozen": FROZEN, "trained": TRAINED, "VD-IT only": VDIT, "HCD only": HCD}


@dataclass(frozen=True)
class Box:
    """A part in the picture.

    Attributes:
        at: column and row of its middle.
        title: its first line.
        colour: says whether it is trained, and which model has it.
        shapes: model, module, and which of its output's shapes; empty: ``note`` stands there.
        note: text in the place of shapes.
    """

    at: tuple[float, float]
    title: str
    colour: str
    shapes: tuple[str, str, slice] | None = None
    note: str = ""


def _of(module: str, first: int = 0, count: int = 1, model: str = "vdit") -> tuple[str, str, slice]:
    return model, module, slice(first, first + count)


BOXES = {
    "frames": Box((0, 1.2), "frames", DATA, note="T×3×H×W, H and W padded"),
    "sentence": Box((0, 5), "sentence", DATA, note="text"),
    "stem": Box((5.2, 0.3), "temporal stem", HCD, _of("encoder.stride4", model="hcd")),
    "tap": Box((7.8, 0.6), "VAE's stride-4 tap", VDIT, _of("encoder.stride4")),
    "vae": Box((2.6, 1.8), "VAE encoder", FROZEN, _of("encoder.vae", 0, 2)),
    "noise": Box((5.2, 1.8), "noise prediction", VDIT, _of("encoder.noise")),
    "clip": Box((2.6, 2.8), "CLIP image encoder", FROZEN, _of("encoder.image_encoder")),
    "project": Box((2.6, 3.75), "image projection", TRAINED, _of("encoder.image_projection")),
    "text": Box((2.6, 4.7), "CLIP text encoder", FROZEN, _of("encoder.text_encoder")),
    "fusion": Box((5.2, 3.75), "text-image fusion", TRAINED, _of("encoder.fusion")),
    "unet": Box((5.2, 2.8), "text-to-video UNet", FROZEN, _of("encoder.unet", 0, 6)),
    "pyramid": Box((7.8, 2.8), "feature pyramid", TRAINED, _of("encoder", 0, 4)),
    "roberta": Box((2.6, 5.65), "RoBERTa", FROZEN, _of("sentence_encoder.backbone")),
    "words": Box((5.2, 5.65), "linear, norm", TRAINED, _of("sentence_encoder")),
    "queries": Box((7.8, 5.65), "language as queries", TRAINED, _of("language_queries")),
    "transformer": Box((10.4, 4.2), "deformable transformer", TRAINED, _of("transformer", 0, 5)),
    "heads": Box((13, 5.65), "class and box heads", TRAINED, _of("", 0, 2)),
    "dynamic": Box((13, 4.2), "dynamic mask head", TRAINED, _of("mask_head")),
    "dot": Box((13, 3.1), "query-dot mask head", HCD, _of("query_dot_head", model="hcd")),
    "refine": Box((13, 1.5), "mask refinement", TRAINED, _of("refinement")),
    "masks": Box((13, 0), "masks", DATA, note="T×H×W of the best query"),
}
ARROWS = (
    *(("frames", to) for to in ("stem", "vae", "clip")),
    *(("sentence", to) for to in ("text", "roberta")),
    *(("vae", "tap"), ("vae", "noise"), ("noise", "unet"), ("vae", "unet"), ("clip", "project")),
    *(("project", "fusion"), ("text", "fusion"), ("fusion", "unet"), ("unet", "pyramid"), ("tap", "pyramid")),
    *(("stem", "pyramid"), ("roberta", "words"), ("words", "queries"), ("queries", "transformer")),
    *(("pyramid", "transformer"), ("transformer", "heads"), ("transformer", "dynamic"), ("transformer", "dot")),
    *(("dynamic", "dot"), ("dot", "refine"), ("pyramid", "refine"), ("refine", "masks")),
)


def draw(shapes: Shapes, path: Path) -> None:
    """Draw the picture.

    Args:
        shapes: of both models' parts.
        path: a file whose suffix names the format.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, Patch

    with mpl.rc_context({"svg.hashsalt": "models", "font.size": 8}):
        figure = Figure(figsize=(13.5, 6), dpi=130)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-1.3, 14.3), ylim=(6.35, -0.75))
        axes.axis("off")
        for first, last in ARROWS:
            start, end = BOXES[first].at, BOXES[last].at
            axes.annotate(
                "",
                xy=_edge(end, start),
                xytext=_edge(start, end),
                arrowprops={"arrowstyle": "-|>", "color": "#666666", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0},
            )
        for box in BOXES.values():
            x, y = box.at
            corner = (x - WIDTH / 2, y - HEIGHT / 2)
            patch = FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.1", linewidth=0.8)
            patch.set(facecolor=box.colour, edgecolor="#444444")
            axes.add_patch(patch)
            lines = [box.note] if box.shapes is None else _lines(shapes, *box.shapes)
            axes.text(x, y - 0.15, box.title, ha="center", va="center", weight="bold")
            axes.text(x, y + 0.12, "\n".join(lines), ha="center", va="center", fontsize=5.5, linespacing=1.1)
        axes.legend(
            handles=[Patch(facecolor=colour, edgecolor="#444444", label=name) for name, colour in LEGEND.items()],
            loc="upper left",
            frameon=False,
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _lines(shapes: Shapes, model: str, module: str, which: slice) -> list[str]:
    """Shapes as text, at most three on a line."""
    texts = ["×".join(map(str, shape)) for shape in shapes[model][module][which]]
    size = 2 if len(texts) == 4 else 3
    return ["  ".join(texts[i : i + size]) for i in range(0, len(texts), size)]


def _edge(box: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """Where the line between two boxes leaves the first one."""
    dx, dy = towards[0] - box[0], towards[1] - box[1]
    shares = [half / abs(d) for d, half in ((dx, WIDTH / 2), (dy, HEIGHT / 2)) if d]
    return box[0] + dx * min(shares), box[1] + dy * min(shares)
