"""The loaders read the small sets in the formats of Ref-DAVIS17 and MeViS, and find what the videos show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets import build_dataset, list_videos
from datasets.davis import convert_davis
from datasets.mevis import read_ground_truth
from datasets.toy import ToyParameters, make_video
from datasets.toy.scene import KINDS
from tests.true_formats import EVERYTHING, write_toy_davis, write_toy_mevis
from util.config import Config
from util.errors import UserError

SIZES = {"frames": 4, "height": 48, "width": 64}
SMALL = {"train_scales": (48,), "crop_scales": (), "max_size": 64, "eval_size": 48, "num_frames": 2}


def test_toy_davis(tmp_path: Path) -> None:
    write_toy_davis(tmp_path / "raw", num_train=1, num_valid=2, **SIZES)
    texts = (tmp_path / "raw" / "davis_text_annotations" / "Davis17_annot1.txt").read_text()
    assert "clasic-car 1 " in texts and "classic-car" not in texts
    summary = convert_davis(tmp_path / "raw", tmp_path / "davis")
    assert summary.videos == {"train": 1, "valid": 2} and summary.notes == []
    cfg = Config(dataset_file="davis", davis_path=str(tmp_path / "davis"), **SMALL)
    assert [video.name for video in list_videos(cfg)] == ["classic-car", "dogs-scale"]
    assert build_dataset(cfg, "train")[0][1]["masks"].any()


def test_toy_mevis(tmp_path: Path) -> None:
    write_toy_mevis(tmp_path / "mevis", num_train=1, num_valid_u=2, num_valid=1, no_target=1, **SIZES)
    videos, version = read_ground_truth(tmp_path / "mevis", "valid_u")
    parameters = ToyParameters(1, 3, 0, 4, 48, 64, 0, KINDS, 1)
    assert version == "v2" and len(videos) == 2
    for number, video in enumerate(videos):
        made = make_video(parameters, "valid", number)
        everything = max(video.targets.values(), key=len)
        for t in range(4):
            assert (video.ground_truth(t, (48, 64))[everything] == (made.masks[t] != 0)).all()
        assert () in video.targets.values()
    content = json.loads((tmp_path / "mevis" / "valid_u" / "meta_expressions.json").read_text())["videos"]
    texts = [expression["exp"] for expression in content["valid_u0000"]["expressions"].values()]
    assert EVERYTHING in texts and len(set(texts)) == len(texts) - 1, "one sentence should occur twice"
    cfg = Config(dataset_file="mevis", mevis_path=str(tmp_path / "mevis"), **SMALL)
    negatives = [build_dataset(cfg, "train")[i][1]["negative"] for i in range(len(build_dataset(cfg, "train")))]
    assert any(negatives) and not all(negatives)
    write_toy_mevis(tmp_path / "v1", num_train=0, num_valid_u=1, num_valid=0, **SIZES)
    assert read_ground_truth(tmp_path / "v1", "valid_u")[1] == "v1"


@pytest.mark.parametrize("write", [write_toy_davis, write_toy_mevis])
def test_existing_files_are_kept(tmp_path: Path, write) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists and is not empty"):
        write(tmp_path)
