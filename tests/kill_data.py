"""What ``tests.kill_jobs`` kills: data that is made, converted and scored."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from datasets.davis import convert_davis
from datasets.refcoco import REFERENCES
from datasets.toy import make_toy
from scripts import baselines, check_data, eval_all, eval_jf, make_toy_data, prepare_data
from tests.kill_tools import step

_LAZY = (check_data, make_toy_data)
"""Which ``scripts.eval_all`` imports when it needs them."""


def toy(source: Path, out: Path) -> None:
    """Toy data."""
    make_toy(out / "toy", num_train=2, num_valid=1, num_test=1, frames=4, height=48, width=48, seed=3, negatives=1)


def davis(source: Path, out: Path) -> None:
    """Ref-DAVIS17 to its layout."""
    convert_davis(source / "davis_raw", out / "davis")


def refcoco(source: Path, out: Path) -> None:
    """RefCOCO, RefCOCO+ and RefCOCOg to their layout, with copies of the images."""
    folders = ("--refer_root", source / "refer", "--images", source / "refer" / "train2014", "--output_dir", out)
    for name in REFERENCES:
        prepare_data.main([name, *map(str, folders), "--copy"])


def eval_all_sets(source: Path, out: Path) -> None:
    """All sets in their true formats, converted, and the results of every benchmark."""
    with patch.multiple(eval_all, run=step, INFERENCES=(), SHORT=eval_all.Plan(1, 1, 1, 4, 1)):
        eval_all.main(["--toy", "--short", "--output_dir", str(out / "all")])


def largest(source: Path, out: Path) -> None:
    """Masks of the largest object."""
    valid = source / "toy" / "meta_expressions" / "valid" / "meta_expressions.json"
    baselines.run_largest(source / "toy" / "valid" / "Annotations", valid, out / "largest")


def swap(source: Path, out: Path) -> None:
    """Swapped sentences."""
    baselines.run_swap(source / "toy" / "meta_expressions" / "valid" / "meta_expressions.json", out / "swapped.json")


def scores(source: Path, out: Path) -> None:
    """Scores as JSON."""
    folders = ("--gt", source / "toy" / "valid" / "Annotations", "--pred", source / "largest")
    eval_jf.main([*map(str, folders), "--json", str(out / "scores.json"), "--workers", "1"])
