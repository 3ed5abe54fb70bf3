"""JHMDB-Sentences: PNG frames, MATLAB masks, list of sentences and truth in COCO's form, all in their true formats."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from datasets import build_dataset, build_evaluator
from datasets.clip import denormalise
from datasets.jhmdb import COCO_FILE, LIST_FILE, JhmdbClips, count_puppet_masks, read_puppet_mask
from datasets.transforms import EvalTransform
from tests.true_formats import write_puppet_masks, write_toy_jhmdb
from util.config import Config
from util.errors import UserError
from util.metrics import QueryPredictions

HEIGHT, WIDTH, FRAMES = 48, 80, 9
LEVEL = 25  # of grey, between two frames
PLACE = "catch/v"
FRAME, MASKS = f"Rename_Images/{PLACE}/00005.png", f"puppet_mask/{PLACE}/puppet_mask.mat"


def masks_of(count: int) -> np.ndarray:
    """One mask per frame, that of frame t (from 0) of t + 1 columns: bool ``[count, H, W]``."""
    masks = np.zeros((count, HEIGHT, WIDTH), bool)
    for t in range(count):
        masks[t, 4:20, 6 : 7 + t] = True
    return masks


def write_set(root: Path, *frames: int, masks: int = FRAMES) -> Path:
    """A set of one video ``v``, whose frame t (from 0) is of the grey t · LEVEL; some frames are annotated, from 1."""
    for t in range(FRAMES):
        path = root / "Rename_Images" / PLACE / f"{t + 1:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), LEVEL * t, np.uint8)).save(path)
    write_puppet_masks(root / MASKS, masks_of(masks))
    return write_list(root, *(["v", f"Rename_Images/{PLACE}/{n:05d}.png", MASKS, FRAMES, "A  Man "] for n in frames))


def write_list(root: Path, *entries: Any) -> Path:
    (root / LIST_FILE).write_text(json.dumps(entries))
    return root


def plain(root: Path, num_frames: int = 5) -> JhmdbClips:
    return JhmdbClips(root, EvalTransform(HEIGHT, WIDTH), num_frames)


def config(root: Path, **options: Any) -> Config:
    small = {"train_scales": (64,), "crop_scales": (), "max_size": 96, "eval_size": 64}
    return Config(dataset_file="jhmdb", jhmdb_path=str(root), **{**small, **options})


@pytest.mark.parametrize(
    ("frame", "num_frames", "window"),
    [(5, 5, [3, 4, 5, 6, 7]), (1, 5, [1, 1, 1, 2, 3]), (9, 5, [7, 8, 9, 9, 9]), (8, 4, [6, 7, 8, 9]), (7, 1, [7])],
)
def test_frames_count_from_1_and_masks_from_0(tmp_path: Path, frame: int, num_frames: int, window: list[int]):
    frames, target = plain(write_set(tmp_path, frame), num_frames)[0]
    grey = denormalise(frames).float().mean(dim=(1, 2, 3))
    assert (grey / LEVEL).round().int().tolist() == [number - 1 for number in window]
    assert target["frame_names"] == [f"{number:05d}" for number in window]
    assert target["annotated"] == num_frames // 2
    assert target["masks"].numpy().tolist() == masks_of(FRAMES)[frame - 1 : frame].tolist()
    assert (target["video"], target["exp_id"], target["caption"]) == ("v", f"v_v_f_{frame}", "a man")
    assert target["orig_size"].tolist() == [HEIGHT, WIDTH] and target["valid"].tolist() == [1]


def test_a_clip_with_fewer_masks_than_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = write_set(tmp_path, 2, 7, 8, 9, masks=7)
    with caplog.at_level(logging.WARNING):
        clips = plain(root)
    assert [item.frame for item in clips.items] == [2, 7]
    assert "2 of 4 items are left out: their frame has no mask" in caplog.text
    _, target = clips[1]
    assert target["frame_names"] == ["00005", "00006", "00007", "00008", "00009"]  # frames without masks are shown
    with pytest.raises(UserError, match="has 7 masks, and none for frame 8"):
        read_puppet_mask(root / MASKS, 8)


def test_a_single_mask_lacks_the_last_axis(tmp_path: Path):
    path = tmp_path / "puppet_mask.mat"
    savemat(path, {"part_mask": masks_of(1)[0].astype(np.uint8)})
    assert count_puppet_masks(path) == 1
    assert read_puppet_mask(path, 1).numpy().tolist() == masks_of(1)[0].tolist()


def test_the_toy_set_is_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = write_toy_jhmdb(tmp_path / "set", num_videos=2, frames=5, seed=1)
    clips = build_dataset(config(root), "test")
    lengths = [count_puppet_masks(path) for path in sorted(root.rglob("*.mat"))]
    assert sorted(lengths) == [4, 5]
    frames, target = clips[len(clips) - 1]
    assert frames.shape == (5, 3, 64, 96) and target["valid"].tolist() == [1]

    evaluator = build_evaluator(config(root))
    assert not caplog.records
    (root / COCO_FILE).unlink()
    assert build_evaluator(config(root)).ground_truth == evaluator.ground_truth
    for item in clips.items:
        mask = clips.read_mask(item).numpy()[None]
        evaluator.update([QueryPredictions(item.id, np.ones(1, np.float32), mask, np.zeros((1, 4), np.float32))])
    results = evaluator.results()
    assert results == dict.fromkeys(results, pytest.approx(100))


def test_nothing_is_trained_on_it(tmp_path: Path):
    with pytest.raises(UserError, match=r"jhmdb has no 'train' split: it only evaluates"):
        build_dataset(config(write_set(tmp_path, 5)), "train")


# --- bad inputs: one sentence that names the place


def fails(root: Path) -> str:
    with pytest.raises(UserError) as mistake:
        plain(root)[0]
    assert "\n" not in str(mistake.value)
    return str(mistake.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "entry 1 is {}; it should be [video, frame path, mask path, number of frames, sentence]"),
        (["v", FRAME, MASKS, FRAMES], "it should be [video, frame path, mask path, number of frames, sentence]"),
        (["v/..", FRAME, MASKS, FRAMES, "a man"], "is named 'v/..'"),
        (["v", f"{FRAME}/../../x", MASKS, FRAMES, "a man"], "should be of the form Rename_Images/…"),
        (
            ["v", FRAME, "/etc/passwd", FRAMES, "a man"],
            "lists the path '/etc/passwd'; it should be of the form puppet_",
        ),
        (["v", FRAME, None, FRAMES, "a man"], "entry 1 is ["),
        (["v", "Rename_Images/x.png", MASKS, FRAMES, "a man"], "entry 1 is ["),
        (["v", FRAME, MASKS, "many", "a man"], "entry 1 is ["),
        (["v", FRAME, MASKS, 4, "a man"], "lists frame 5 of video v, which has 4"),
        (["v", FRAME, MASKS, FRAMES, 3], "entry 1 is ["),
        (["v", FRAME, "puppet_mask/no.mat", FRAMES, "a man"], "no.mat are missing"),
        (["v", "Rename_Images/catch/w/00005.png", MASKS, FRAMES, "a man"], "catch/w is missing, but"),
        (["v", "Rename_Images/no/w/00005.png", MASKS, FRAMES, "a man"], "no/w is missing, but"),
    ],
)
def test_bad_lists(tmp_path: Path, entry: Any, message: str):
    assert message in fails(write_list(write_set(tmp_path, 5), entry))


def test_bad_files(tmp_path: Path):
    root = write_set(tmp_path, 5)
    path = root / MASKS
    good = path.read_bytes()
    for content in (b"", b"no mat", good[: len(good) // 2]):
        path.write_bytes(content)
        assert f"masks {path} are broken" in fails(root)
    savemat(path, {"other": np.ones((2, 2, 2))})
    assert f"{path} has no array 'part_mask'" in fails(root)
    savemat(path, {"part_mask": np.full((1, 1, FRAMES), "text", dtype=object)})
    assert f"{path} has no array 'part_mask'" in fails(root)
    write_puppet_masks(path, masks_of(FRAMES).transpose(0, 2, 1))
    assert "mask of v_v_f_5 is of 48×80 pixels, and frame 5 of its video v of 80×48" in fails(root)
    write_puppet_masks(path, masks_of(FRAMES))

    frame = root / "Rename_Images" / PLACE / "00004.png"
    frame.write_bytes(frame.read_bytes()[:60])
    assert f"frame {frame} is broken" in fails(root)
    frame.unlink()
    assert f"frame {frame} is missing" in fails(root)


def test_missing_parts_and_doubles(tmp_path: Path):
    assert "it should hold the folders Rename_Images and puppet_mask" in fails(tmp_path / "absent")
    root = write_set(tmp_path / "set", 5, 5)
    assert "lists v_v_f_5 twice" in fails(root)
    (root / LIST_FILE).write_text("[")
    assert "is not valid JSON" in fails(root)
    (root / LIST_FILE).unlink()
    assert f"{LIST_FILE} is missing; it should hold the sentences" in fails(root)
    (root / "Rename_Images").rename(root / "images")
    assert "Rename_Images is missing; it should hold a folder of PNG frames" in fails(root)
