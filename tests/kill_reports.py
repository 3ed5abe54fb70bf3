"""What ``tests.kill_jobs`` kills: pictures, pages and reports, of models and measurements that stand for true ones."""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import matplotlib.backends.backend_agg
import matplotlib.backends.backend_svg  # noqa: F401  imported here, as the forked processes would each do it
import numpy as np
import torch
from torch import Tensor, nn

from scripts import (
    baselines,
    bench_levers,
    bench_operator,
    benchmark,
    benchmark_report,
    draw_model,
    overfit,
    plot_run,
    readme_animation,
    toy_lab_pictures,
    toy_lab_runs,
)
from scripts import (
    quickstart as quickstart_script,
)
from scripts import (
    real_video as real_video_script,
)
from scripts import (
    toy_lab as lab_script,
)
from tests.kill_tools import CLOCK, SPEED, call, linked, step

MACHINE = {"cpu": "a processor", "bf16_instructions": [], "threads": 1}


def curves(source: Path, out: Path) -> None:
    """Curves of a training run."""
    call(plot_run.main, source / "run", "--out", out / "curves.png", "--keys", "loss")


def model_picture(source: Path, out: Path) -> None:
    """The picture of both models, and the table of their parts."""
    parts = {
        name: draw_model.Part(*about, shapes=((1, 2, 3),) * 6, code="code", trained=1, frozen=0)
        for name, about in draw_model.PARTS.items()
    }
    with patch.object(draw_model, "read_parts", lambda *of: parts):
        draw_model.main(["--page", str(linked(source / "models.md", out)), "--picture", str(out / "models.svg")])


def animation(source: Path, out: Path) -> None:
    """The README's animation."""

    def find(frames: np.ndarray, sentences: list[str]) -> SimpleNamespace:
        masks = np.ones(frames.shape[:3], bool)
        return SimpleNamespace(sentences=[SimpleNamespace(masks=masks) for _ in sentences])

    stubs = {"load_pretrained": lambda *of: SimpleNamespace(segment=find), "HEIGHT": 64, "WIDTH": 96}
    with patch.multiple(readme_animation, **stubs):
        readme_animation.main(["--output", str(out / "animation.webp"), "--videos", "1", "--frames", "4"])


def overfitting(source: Path, out: Path) -> None:
    """What is drawn and told of clips that a model knows."""

    def predict(model: nn.Module, clip: Any, device: torch.device) -> tuple[Tensor, Tensor, float]:
        masks = clip[1]["masks"] > 0
        return masks, torch.zeros(len(masks), 4), 1.0

    stubs: dict[str, Any] = {
        **{"build_model": lambda cfg: nn.Linear(1, 1), "train": lambda *of, **more: of[4].max_steps, "time": CLOCK},
        **{"predict": predict, "RunLog": lambda *of: nullcontext(SimpleNamespace(say=print))},
    }
    with patch.multiple(overfit, **stubs):
        words = ("--config", "configs/vdit_toy.yaml", "--ytvos_path", source / "toy", "--output_dir", out / "overfit")
        call(overfit.main, *words, "--clips", "train_00000/0", "--num_frames", 1, "--device", "cpu")


def operator(source: Path, out: Path) -> None:
    """The operator's times."""
    rows = [bench_operator.Row("encoder", 5, "cpp", 1.0, 2.0, None)]
    with patch.object(bench_operator, "measure", lambda *of: rows):
        words = ("--device", "cpu", "--frames", 5, "--layers", "encoder")
        call(bench_operator.main, *words, "--json", out / "operator.json")


def levers(source: Path, out: Path) -> None:
    """The times of single layers."""
    with patch.multiple(bench_levers, measure=lambda *of: {"layer": {"float32": 1e9}}, machine=lambda device: MACHINE):
        bench_levers.main(["--json", str(out / "levers.json")])


def speed(source: Path, out: Path) -> None:
    """The benchmark's numbers, its chart, and its tables in a page."""
    result = json.loads(SPEED.read_text(encoding="utf-8"))
    with patch.multiple(benchmark, run_part=lambda *of: {}, summarise=lambda found: result):
        words = ("--no-baseline", "--device", "cpu", "--json", out / SPEED.name, "--chart", out / "speed.png")
        benchmark.main([str(word) for word in words])
    page = linked(source / "speed.md", out)
    benchmark_report.main([str(out / SPEED.name), "--page", str(page)])


def toy_lab(source: Path, out: Path) -> None:
    """A toy lab: data, records, scores, the report, and its pictures."""

    def command(words: list[str], log: Path, stop: threading.Event) -> None:
        flags = dict(itertools.pairwise(words))
        if words[0] == "inference_ytvos.py":
            truth = Path(flags["--ytvos_path"]) / "valid" / "Annotations"
            baselines.run_largest(truth, Path(flags["--expressions_file"]), Path(flags["--output_dir"]))

    random = torch.Generator().manual_seed(0)
    taps = {stride: tuple(torch.rand(2, 2, 4, 8, 12, generator=random)) for stride in toy_lab_pictures.TAPS}
    stubs: dict[str, Any] = {"load_model": lambda *of: (None, None)}
    stubs["read_taps"] = lambda model, cfg, examples: {
        key: tuple(x[: len(examples)] for x in taps[key]) for key in taps
    }
    words = ("--seeds", 0, "--only", "base", "--train_videos", 1, "--valid_videos", 2, "--processes", 1)
    folders = ("--stack", source / "pretrained" / "stack", "--output_dir", out / "lab")
    with patch.multiple(toy_lab_runs, _call=command, time=CLOCK), patch.multiple(toy_lab_pictures, **stubs):
        lab_script.main([str(word) for word in (*words, *folders)])
        picture = ("--lab", out / "lab", "--picture", out / "lab.png", "--rows", 2)
        toy_lab_pictures.main([str(word) for word in picture])


def quickstart(source: Path, out: Path) -> None:
    """The quickstart's results."""
    with patch.multiple(quickstart_script, run=step, show=lambda *of: None, time=CLOCK):
        call(quickstart_script.main, "--output_dir", out / "quickstart")


def real_video(source: Path, out: Path) -> None:
    """The results on real video."""
    with patch.multiple(real_video_script, run=step, time=CLOCK):
        call(real_video_script.main, source / "davis_raw", "--output_dir", out / "real")
