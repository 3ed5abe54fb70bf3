"""Segment the objects that sentences name in Ref-DAVIS17: inference_ytvos.py with --dataset_file davis.

python inference_davis.py --config configs/vdit_davis.yaml --resume runs/vdit/checkpoint.pth \\
    --davis_path data/ref-davis --output_dir runs/vdit/davis
"""

from __future__ import annotations

import sys

from datasets.registry import load_config
from util.errors import help_asked, run_cli

if __name__ == "__main__" and help_asked():  # before the imports below, which take seconds
    run_cli(lambda: load_config(["--help"], __doc__.split("\n")[0]))

import inference_ytvos


def main() -> None:
    """Segment the split that the command line names; a later ``--dataset_file`` overrides."""
    inference_ytvos.main(["--dataset_file", "davis", *sys.argv[1:]])


if __name__ == "__main__":
    run_cli(main)
