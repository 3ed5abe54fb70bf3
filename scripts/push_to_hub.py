"""Publish a checkpoint on the Hugging Face hub: its weights and a model card.

python -m scripts.push_to_hub IN org/repo [--results results.json] [--dtype float16] [--private]
python -m scripts.push_to_hub IN org/repo --folder FOLDER      # writes the files to a folder instead

Load it with ``--resume hf://org/repo`` or ``load_pretrained("org/repo")``.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from util.errors import Parser, UserError, first_line, help_asked, run_cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("input", metavar="IN", help="a file, a folder that holds one, or [hf://]org/repo")
    parser.add_argument("repo", help="org/name on the hub; it is created if it does not exist")
    parser.add_argument("--folder", type=Path, help="write the files to this folder instead of the hub")
    parser.add_argument("--results", type=Path, help="results.json of main.py --eval, for the model card")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="precision of the weights; default: as they are"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    return parser.parse_args(argv)


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(parse_args)

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from models.checkpoints import Checkpoint, held_parts, open_checkpoint, portable
from models.diffusion.stack import part_sources
from scripts.convert_checkpoint import main as convert
from util.checkpoint import save_weights
from util.config import MODELS, Config
from util.files import atomic_path, read_json
from util.hub import hub_id

SOURCES = ("pretrained", "image_encoder", "text_encoder")  # options that name repositories


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files and push them, as the command line says (``argv`` without the program's name)."""
    args = parse_args(argv)
    repo = args.repo.removeprefix("hf://")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"{args.repo} is not the name of a repository; write org/name")
    results = read_json(args.results, "the results of main.py --eval") if args.results else None
    if results is not None and not (isinstance(results, dict) and isinstance(results.get("metrics"), dict)):
        raise UserError(f"{args.results} has no 'metrics'; give the results.json that main.py --eval wrote")
    if args.folder:
        fill(args.folder, args.input, repo, results, args.dtype)
        print(f"wrote {args.folder}; nothing was pushed")
        return
    with tempfile.TemporaryDirectory() as temporary:
        fill(Path(temporary), args.input, repo, results, args.dtype)
        print(f"pushed: {push(Path(temporary), repo, args.private)}")


def fill(folder: Path, source: str, repo: str, results: dict[str, Any] | None, dtype: str | None) -> None:
    """Write ``weights.safetensors`` and ``README.md`` into a folder.

    Raises:
        UserError: the checkpoint cannot be read, or a file cannot be written.
    """
    weights = folder / "weights.safetensors"
    original = open_checkpoint(source, "IN", original=True)  # reports a broken one before anything is written
    convert([source, str(weights), *(["--dtype", dtype] if dtype else [])])
    checkpoint = open_checkpoint(str(weights), "IN")
    # Nobody else has this machine's folders: the repositories that are the defaults stand for them.
    local = {name for name in SOURCES if _is_local(original.options.get(name, ""), original.path.parent)}
    if local:
        options = {name: value for name, value in checkpoint.options.items() if name not in local}
        checkpoint = replace(checkpoint, options=options)
        save_weights(weights, portable(checkpoint, weights))
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(model_card(checkpoint, repo, results), encoding="utf-8")


def _is_local(source: str, folder: Path) -> bool:
    path = Path(source)
    return bool(source) and not hub_id(path) and (path.is_absolute() or path.exists() or (folder / path).exists())


def model_card(checkpoint: Checkpoint, repo: str, results: dict[str, Any] | None = None) -> str:
    """Return the text of a model card.

    Args:
        checkpoint: the file of weights.
        repo: org/name.
        results: of ``main.py --eval``, or None.
    """
    model, config = checkpoint.model, checkpoint.options
    count = sum(value.numel() for value in checkpoint.weights.values())
    names = (config.get(name) or getattr(Config, name) for name in SOURCES)
    sources, held = part_sources(*names), held_parts(checkpoint.weights)
    frozen = []
    for part, entry in checkpoint.frozen.items():
        own = entry.get("source", "")
        source = "this file" if part in held else sources.get(part, own)
        revision = f" at {entry['revision'][:8]}" if entry.get("revision") and own == source else ""
        frozen.append(f"| {part} | {source}{revision} | `{entry['sha256'][:16]}` |")
    lines = [
        "---",
        "pipeline_tag: image-segmentation",
        "tags: [referring-video-object-segmentation, text-to-video]",
        "---",
        f"# {repo.partition('/')[2]}",
        "",
        f"Weights of {MODELS[model].title} for referring video object segmentation: given a video and a sentence, the "
        "model segments the referred object in every frame.",
        "",
        "```python",
        "from models import load_pretrained",
        "",
        f'result = load_pretrained("{repo}").segment("video.mp4", ["a red car"])',
        "```",
        "",
        f"The file holds the {count / 1e6:.1f} M trained parameters. The frozen parts come from the places below; "
        'loading verifies their hashes, so equal copies will do (`pretrained="FOLDER"`):',
        "",
        *("| part | from | sha256 |", "|---|---|---|"),
        *frozen,
        "",
        f"Trained on {config.get('dataset_file', 'an unknown dataset')}; all options are in the file's metadata. The "
        "licences of the frozen parts and of the training data apply; ModelScope's text-to-video model is licensed "
        "CC BY-NC 4.0.",
        "",
    ]
    if results is not None:
        rows = [f"| {name} | {value:.2f} |" for name, value in _flat(results["metrics"]) if value is not None]
        split = results.get("config", {}).get("split", "")
        data = results.get("config", {}).get("dataset_file", "")
        lines += [f"## Scores: {data} {split}".rstrip(), "", "| metric | value |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder and return the address of the repository.

    Raises:
        UserError: the hub cannot be reached, or refuses the upload.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    except LocalTokenNotFoundError as error:
        raise UserError("you are not logged in to the hub; run `hf auth login`") from error
    except (HFValidationError, HfHubHTTPError) as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise UserError(f"you cannot write to {repo}; log in as its owner with `hf auth login`") from error
        raise UserError(
            f"the hub refuses {repo}: {first_line(error)}; choose another name, or try again later"
        ) from error
    except Exception as error:  # without a network, the libraries and the system raise many kinds
        raise UserError(f"the hub cannot be reached ({type(error).__name__}); check the network") from error
    return f"https://huggingface.co/{repo}"


def _flat(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, float | None]]:
    """List names and values; metrics of a mixture's part get the part's name in front."""
    rows: list[tuple[str, float | None]] = []
    for name, value in metrics.items():
        rows += _flat(value, f"{prefix}{name} ") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


if __name__ == "__main__":
    run_cli(main)
