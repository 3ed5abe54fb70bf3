"""Pass a checkpoint on through the Hugging Face hub: its weights, and a model card that says what they are.

python -m scripts.push_to_hub IN org/repo [--results results.json] [--dtype float16] [--private]
python -m scripts.push_to_hub IN org/repo --folder FOLDER      # writes what would be pushed, and pushes nothing

Back comes it with ``--resume hf://org/repo``, or ``load_pretrained("org/repo")``.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.errors import Parser, UserError, help_asked, run_cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (``argv`` without the program's name; None takes the process's own)."""
    parser = Parser(prog="python -m scripts.push_to_hub", description=__doc__.split("\n")[0])
    parser.add_argument("input", metavar="IN", help="a file, a folder that holds one, or hf://org/repo[/file]")
    parser.add_argument("repo", help="org/name on the hub; it is made if it is missing")
    parser.add_argument("--folder", type=Path, help="write what would be pushed here, and push nothing")
    parser.add_argument("--results", type=Path, help="results.json of main.py --eval, for the model card")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="precision of the weights; default: as they are"
    )
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    return parser.parse_args(argv)


if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    parse_args()

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from models.checkpoints import Checkpoint, open_checkpoint
from scripts.convert_checkpoint import main as convert
from util.files import atomic_path, read_json

TITLES = {"vdit": "VD-IT (arXiv 2403.12042)", "hcd": "HCD (arXiv 2508.13584)"}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder that the command line asks for, and push it."""
    args = parse_args(argv)
    repo = args.repo.removeprefix("hf://")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"{args.repo} names no repository; write org/name")
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
        UserError: the checkpoint cannot be read, or a file not written.
    """
    weights = folder / "weights.safetensors"
    open_checkpoint(source, "IN")  # reports what is wrong with it before anything is written
    convert([source, str(weights), *(["--dtype", dtype] if dtype else [])])
    checkpoint = open_checkpoint(str(weights), "IN")
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(model_card(checkpoint, repo, results), encoding="utf-8")


def model_card(checkpoint: Checkpoint, repo: str, results: dict[str, Any] | None = None) -> str:
    """The text of a model card.

    Args:
        checkpoint: the file of weights.
        repo: org/name.
        results: of ``main.py --eval``, or None.
    """
    model, config = checkpoint.model, checkpoint.options
    count = sum(value.numel() for value in checkpoint.weights.values())
    frozen = [
        f"| {part} | {entry.get('source', '')} | `{entry['sha256'][:16]}` |"
        for part, entry in checkpoint.frozen.items()
    ]
    lines = [
        "---",
        "license: apache-2.0",
        "pipeline_tag: image-segmentation",
        "tags: [referring-video-object-segmentation, text-to-video]",
        "---",
        f"# {repo.partition('/')[2]}",
        "",
        f"Weights of {TITLES[model]} for referring video object segmentation: a video and a sentence in, the mask of "
        "the object that the sentence names in every frame out.",
        "",
        "```python",
        "from models import load_pretrained",
        "",
        f'result = load_pretrained("{repo}").segment("video.mp4", ["a red car"])',
        "```",
        "",
        f"The file holds the {count / 1e6:.1f} M parameters that were trained. The frozen parts come from elsewhere, "
        "and are verified when the weights are loaded:",
        "",
        *("| part | from | sha256 |", "|---|---|---|"),
        *frozen,
        "",
        f"Trained on {config.get('dataset_file', 'an unknown dataset')}; all options are in the file's metadata.",
        "",
    ]
    if results is not None:
        rows = [f"| {name} | {value:.2f} |" for name, value in _flat(results["metrics"]) if value is not None]
        split = results.get("config", {}).get("split", "")
        data = results.get("config", {}).get("dataset_file", "")
        lines += [f"## Scores: {data} {split}".rstrip(), "", "| metric | value |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder; the address of the repository.

    Raises:
        UserError: the hub cannot be reached, or does not let this user write there.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    except LocalTokenNotFoundError as error:
        raise UserError("the hub does not know you; log in with `hf auth login`") from error
    except (HFValidationError, HfHubHTTPError) as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise UserError(
                f"the hub does not let you write to {repo}; log in with `hf auth login` as its owner"
            ) from error
        raise UserError(f"the hub refuses {repo}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # no network: the HTTP library, the hub's and the system each have their own kinds
        raise UserError(
            f"the hub cannot be reached ({type(error).__name__}); connect to the network and repeat"
        ) from error
    return f"https://huggingface.co/{repo}"


def _flat(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, float | None]]:
    """Names and values; those of a mixture's parts with the part's name."""
    rows: list[tuple[str, float | None]] = []
    for name, value in metrics.items():
        rows += _flat(value, f"{prefix}{name} ") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


if __name__ == "__main__":
    run_cli(main)
