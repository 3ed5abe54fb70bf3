"""The text-to-video generators whose features can be read, one row each; the folder says which one it holds.

docs/generators.md describes what a generator must give, and how to add one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.diffusion import encoder, stack, wan
from util.config import MODELSCOPE
from util.errors import UserError
from util.files import ROOT, read_json
from util.hub import open_repository


@dataclass(frozen=True)
class Generator:
    """A row of the registry."""

    name: str
    folder: str
    """Subfolder of the denoising network."""
    class_name: str
    """Its class in diffusers, as its ``config.json`` names it."""
    build_encoder: Callable[..., Any]
    """(configuration, stack or None, values of "auto") → the ``PyramidEncoder``, and the stack."""
    stack: type
    """The frozen parts, with ``sentence_encoder`` and ``sentence_tokenizer``."""
    empty_stack: Callable[[Path], Any]
    """Folder of configuration files → the frozen parts on the meta device."""
    hub_id: str
    """The published weights."""
    sizes: Path
    """Configuration files of the published weights."""


GENERATORS = (
    Generator(
        "ModelScope",
        "unet",
        "UNet3DConditionModel",
        encoder.build_encoder,
        stack.FrozenStack,
        stack.empty_stack,
        MODELSCOPE,
        ROOT / "configs" / "full_size",
    ),
    Generator(
        "Wan 2.1",
        "transformer",
        "WanTransformer3DModel",
        wan.build_encoder,
        wan.WanStack,
        wan.empty_stack,
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        ROOT / "configs" / "full_size_wan",
    ),
)


def find_generator(pretrained: str) -> Generator:
    """The generator that a folder or a repository of the hub holds; nothing is loaded.

    A folder without any generator counts as ModelScope's: loading it reports what is missing.

    Args:
        pretrained: as the option of that name.

    Raises:
        UserError: it holds a generator that is not supported, or there is no folder or repository of that name.
    """
    found = _classes(pretrained)
    for folder, class_name in found.items():
        for row in GENERATORS:
            if (row.folder, row.class_name) == (folder, class_name):
                return row
        raise UserError(
            f"{pretrained}/{folder} holds a {class_name}, which is not supported; supported are "
            f"{', '.join(f'{row.class_name} ({row.name})' for row in GENERATORS)}; give another with --pretrained"
        )
    return GENERATORS[0]


def generator_of(parts: Any) -> Generator:
    """The row of frozen parts that are loaded already."""
    return next(row for row in GENERATORS if isinstance(parts, row.stack))


def _classes(name: str) -> dict[str, str]:
    """Subfolder → class of the denoising networks in a local folder or a repository of the hub."""
    files = {folder: f"{folder}/config.json" for folder in sorted({row.folder for row in GENERATORS})}
    if Path(name).is_dir():
        paths = {folder: Path(name) / file for folder, file in files.items()}
    else:
        repository = open_repository(name, "--pretrained")
        paths = {folder: repository.download(file) for folder, file in files.items() if file in repository.keys}
    classes = {folder: _read(path).get("_class_name") for folder, path in paths.items()}
    return {folder: value for folder, value in classes.items() if isinstance(value, str)}


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; empty if it cannot be read, which loading will report."""
    with suppress(UserError):
        content = read_json(path, "the configuration of a generator")
        return content if isinstance(content, dict) else {}
    return {}
