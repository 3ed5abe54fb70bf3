"""inference_ytvos.py by several processes, and killed ones: the files of one process that was never stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.forks import Forks
from tests.inference_tools import tree

NAMES = ("whole", "shared", "killed", "killed shared")


@pytest.fixture(scope="module")
def folder(
    forks: Forks,
    tiny_config: list[str],
    tiny_checkpoint: Path,
    toy_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The output folders of all runs."""
    folder = tmp_path_factory.mktemp("masks")
    videos = sorted(path.name for path in (toy_data / "valid" / "JPEGImages").iterdir())
    for name in NAMES:
        flags = {"resume": tiny_checkpoint, "ytvos_path": toy_data, "output_dir": folder / name, "device": "cpu"}
        words = (*tiny_config, *(word for key, value in flags.items() for word in (f"--{key}", value)))
        processes = 2 if "shared" in name else 1
        if "killed" in name:
            first = folder / name / "Annotations" / videos[-1 if "shared" in name else 0]
            forks.run(folder / f"first said of {name}", processes, "run_inference", *words, kill_when=first)
        forks.run(folder / f"said of {name}", processes, "run_inference", *words)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_the_same_files(folder: Path, name: str):
    whole, other = (tree(folder / run / "Annotations") for run in ("whole", name))
    assert whole and other == whole, "bit for bit"
    assert (folder / name / "submission.zip").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_record(folder: Path, name: str):
    records = [json.loads((folder / run / "inference.json").read_text()) for run in ("whole", name)]
    expected, merged = ({v: sorted(e) for v, e in record["expressions"].items()} for record in records)
    assert merged == expected
    assert not list((folder / name).glob("inference-*.json"))
