"""scripts.benchmark_data: every loader gives clips, at sizes that are small here."""

from __future__ import annotations

import pytest

from scripts.benchmark_data import SOURCES, main
from util.benchmarks import EVAL_SPLITS
from util.errors import UserError

SMALL = ["--seconds", "0.01", "--length", "6", "--size", "64", "96", "--num_frames", "2"]


def test_every_dataset_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(SOURCES) == set(EVAL_SPLITS)
    main(SMALL)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    splits = [(name, split) for name, source in SOURCES.items() for split in source.splits]
    assert [(name, split) for name, split, *_ in rows] == splits
    for _, _, size, rate, milliseconds in rows:
        assert size == "96×64" and float(rate) > 0 and float(milliseconds) > 0


def test_mistakes() -> None:
    with pytest.raises(UserError, match="unknown dataset 'coco'"):
        main(["coco"])
    with pytest.raises(UserError, match="--workers must be above 0"):
        main(["a2d", "--workers", "0"])
    with pytest.raises(UserError, match="--length must be above 0"):
        main(["a2d", "--length", "0"])
