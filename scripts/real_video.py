"""Convert a folder in DAVIS's layout, train the tiny model on it, score and draw (``scripts/real_video.sh``)."""

from __future__ import annotations

import json
import time
from pathlib import Path

from scripts.steps import clear, near, run
from util.errors import Parser, UserError, run_cli
from util.files import write_json

CONFIG = "configs/vdit_mini_davis.yaml"


def main() -> None:
    """Run all steps and name what was drawn."""
    parser = Parser(description="Train the tiny model on real video for a few minutes.")
    parser.add_argument("davis_root", type=Path, help="holds DAVIS/ and davis_text_annotations/")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/real_video"))
    parser.add_argument("--steps", type=int, default=500, help="training steps")
    parser.add_argument("--base", type=Path, default=Path(), help="folder that a relative DAVIS_ROOT starts from")
    args = parser.parse_args()
    if args.steps < 1:
        raise UserError(f"--steps must be at least 1, not {args.steps}")
    root, output = (args.base / args.davis_root).absolute(), args.output_dir.absolute()
    started = time.monotonic()

    data, stack = output / "data", output / "stack"
    clear(output, "train", "valid", "on_train")
    run(
        "Converting to the layout of Ref-YouTube-VOS",
        *("-m", "scripts.prepare_data", "davis", "--davis_root", root, "--output_dir", data),
    )
    run(
        "A tiny frozen text-to-video stack with random weights",
        *("-m", "scripts.make_tiny_stack", "--output_dir", stack, "--force"),
    )
    options = ("--config", CONFIG, "--pretrained", stack, "--ytvos_path", data)
    run("Training", "main.py", *options, "--output_dir", output / "train", "--max_steps", args.steps)

    scores = {}
    for split, folder in (("valid", "valid"), ("train", "on_train")):
        run(
            f"Inference on the {split} videos",
            *("inference_ytvos.py", *options, "--resume", output / "train" / "checkpoint.pth"),
            *("--split", split, "--output_dir", output / folder, "--visualize"),
        )
        report = output / folder / "scores.json"
        run(
            "Scores",
            *("-m", "scripts.eval_jf", "--gt", data / split / "Annotations", "--pred", output / folder / "Annotations"),
            *("--task", "expressions", "--json", report),
            *("--expressions", data / "meta_expressions" / split / "meta_expressions.json"),
        )
        scores[split] = round(100 * json.loads(report.read_text())["global"]["JF"], 2)
    seconds = round(time.monotonic() - started, 1)
    write_json(output / "results.json", {"jf": scores, "steps": args.steps, "seconds": seconds})
    print(f"\nJ&F after {args.steps} steps: videos trained on {scores['train']:.1f}, others {scores['valid']:.1f}")
    for folder in ("on_train", "valid"):
        print(f"pictures: {near(output / folder / 'visualize' / 'contact_sheet.png')} and the MP4 files beside it")


if __name__ == "__main__":
    run_cli(main)
