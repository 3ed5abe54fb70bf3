"""``results.json``: what an evaluation found, and everything that it depends on."""

from __future__ import annotations

import math
import platform
import tomllib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from util.io import write_json

LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "numpy")
ROOT = Path(__file__).resolve().parents[1]


def write_results(
    path: str | Path,
    metrics: Mapping[str, Any],
    counts: Mapping[str, Any],
    cfg: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the results of an evaluation, beside and renamed.

    Args:
        path: the file.
        metrics: name → value, percentages 0…100; of a mixture, dataset → metrics. What is not a finite number is null.
        counts: name → number of what was scored; of a mixture, dataset → counts.
        cfg: all options, as plain values; ``seed`` among them.
        about: further facts worth knowing (checkpoint, device).

    Raises:
        UserError: the file cannot be written.
    """
    content = {
        "metrics": _finite(metrics),
        "counts": counts,
        "seed": cfg["seed"],
        "about": about or {},
        "versions": {"project": project_version(), **library_versions()},
        "config": cfg,
    }
    write_json(path, content)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def project_version() -> str:
    """The version of this project by its ``pyproject.toml``; "unknown" where the file is not beside the code."""
    file = ROOT / "pyproject.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"] if file.is_file() else "unknown"


def _finite(value: Any) -> Any:
    """The same with null in place of numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return value if math.isfinite(value) else None
