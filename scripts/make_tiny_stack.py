"""Write a tiny frozen stack with random weights, for the quickstart and for trying things on a CPU.

    python -m scripts.make_tiny_stack --output_dir DIR [--sentences FILE] [--seed 0] [--force]

It has the layout of the published text-to-video stack, image encoder and sentence encoder, so ``--pretrained DIR``
works wherever theirs do. Its features are random: it shows that everything runs and learns, not how well.
"""

from __future__ import annotations

from pathlib import Path

from util.errors import Parser, UserError, run_cli
from util.files import read_json

FORMATS = "a JSON list of sentences, a Ref-YouTube-VOS meta_expressions.json, or text with one sentence per line"


def read_sentences(path: str | Path) -> list[str]:
    """Read the sentences that the tokenizers should know.

    Args:
        path: a ``.json`` file with a list of strings or in the layout of Ref-YouTube-VOS expressions, or any other
            file with one sentence per line.

    Raises:
        UserError: the file is missing, unreadable, of another layout, or without a sentence.
    """
    path = Path(path)
    if path.suffix == ".json":
        content = read_json(path, FORMATS)
        try:
            if isinstance(content, dict):
                videos = content["videos"].values()
                content = [entry["exp"] for video in videos for entry in video["expressions"].values()]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} has none of the known layouts; it should hold {FORMATS}") from error
        if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
            raise UserError(f"{path} holds other values than sentences; it should hold {FORMATS}")
    else:
        try:
            content = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing; it should hold {FORMATS}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}; it should hold {FORMATS}") from error
    if not any(text.strip() for text in content):
        raise UserError(f"{path} holds no sentence; it should hold {FORMATS}")
    return content


def main() -> None:
    """Parse the flags and write the stack."""
    parser = Parser(description="Write a tiny frozen stack with random weights.")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where the stack goes")
    parser.add_argument("--sentences", metavar="FILE", help=f"text that its tokenizers should know: {FORMATS}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (0)")
    parser.add_argument("--force", action="store_true", help="replace a tiny stack made with other parameters")
    args = parser.parse_args()

    sentences = read_sentences(args.sentences) if args.sentences else None
    from models.diffusion.tiny import PARTS, make_tiny_stack  # only here: it takes seconds

    folder = make_tiny_stack(args.output_dir, sentences, args.seed, force=args.force)
    print(f"tiny stack: {folder} ({', '.join(PARTS)})")


if __name__ == "__main__":
    run_cli(main)
