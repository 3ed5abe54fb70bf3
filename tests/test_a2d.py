"""A2D-Sentences: clips around an annotated frame from MP4 files, masks from h5 files, both in their true formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import build_dataset, build_evaluator
from datasets.a2d import A2dClips, read_instance_mask
from datasets.clip import collate, denormalise
from datasets.registry import load_config
from datasets.transforms import TrainTransform
from tests.a2d_tools import HEIGHT, LEVEL, WIDTH, config, h5_file, mask_of, plain, write_set
from tests.true_formats import write_instances, write_toy_a2d
from util.errors import UserError
from util.metrics import QueryPredictions


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set in the whole layout; only to be read."""
    return write_toy_a2d(tmp_path_factory.mktemp("a2d") / "set", num_train=2, num_test=2, frames=5, seed=1)


# --- the window and its annotated frame


@pytest.mark.parametrize(
    ("frame", "num_frames", "window"),
    [
        (5, 5, [3, 4, 5, 6, 7]),
        (1, 5, [1, 1, 1, 2, 3]),
        (2, 5, [1, 1, 2, 3, 4]),
        (9, 5, [7, 8, 9, 9, 9]),
        (8, 4, [6, 7, 8, 9]),
        (9, 4, [7, 8, 9, 9]),
        (7, 1, [7]),
    ],
)
def test_a_clip_is_a_window_with_its_annotated_frame_in_the_middle(tmp_path: Path, frame: int, num_frames: int, window):
    frames, target = plain(write_set(tmp_path, [["a cat", "v", frame, 1]]), num_frames=num_frames)[0]
    grey = denormalise(frames).float().mean(dim=(1, 2, 3))
    assert (grey / LEVEL).round().int().tolist() == [number - 1 for number in window]  # the annotations count from 1
    assert target["frame_names"] == [f"{number:05d}" for number in window]
    assert target["annotated"] == num_frames // 2
    assert target["frame_names"][target["annotated"]] == f"{frame:05d}"
    assert [len(target[key]) for key in ("masks", "boxes", "valid")] == [1, 1, 1]
    batch = collate([(frames, target)])
    assert batch.annotated is not None and batch.annotated.tolist() == [num_frames // 2]


def test_a_frame_beyond_the_clips_end_is_never_another_frame(tmp_path: Path):
    root = write_set(tmp_path, [["a cat", "v", 10, 1]])
    with pytest.raises(UserError, match=r"v\.mp4 has 9 frames, and frame 10 of it is annotated"):
        plain(root)[0]


# --- masks


@pytest.mark.parametrize("instance", [1, 3])
def test_masks_are_those_of_the_instance_and_upright(tmp_path: Path, instance: int):
    _, target = plain(write_set(tmp_path, [["a cat", "v", 5, str(instance)]]))[0]
    assert target["masks"][0].numpy().tolist() == mask_of(instance).tolist()
    assert target["orig_size"].tolist() == [HEIGHT, WIDTH]
    assert target["exp_id"] == f"v_v_f_5_i_{instance}" and target["video"] == "v"


def test_a_single_instance_lacks_the_first_axis(tmp_path: Path):
    write_instances(tmp_path / "1.h5", [7], mask_of(1)[None])
    assert read_instance_mask(tmp_path / "1.h5", 7).numpy().tolist() == mask_of(1).tolist()


def test_a_clip_may_be_a_pixel_wider_than_its_masks_but_not_of_another_shape(tmp_path: Path):
    entries: list[list[Any]] = [["a cat", "v", 5, 1]]
    frames, target = plain(write_set(tmp_path / "a", entries, size=(HEIGHT, WIDTH + 1)))[0]
    assert frames.shape[-2:] == target["masks"].shape[-2:] and target["orig_size"].tolist() == [HEIGHT, WIDTH]
    with pytest.raises(UserError, match=r"mask of v_v_f_5_i_1 is of 80×48 pixels, and frame 5 of its video v of 48×80"):
        plain(write_set(tmp_path / "b", entries, size=(WIDTH, HEIGHT)))[0]


# --- training


def test_left_and_right_go_with_the_flip(tmp_path: Path):
    root = write_set(tmp_path, [["The CAT on the  left", "v", 5, 1]])
    clips = A2dClips(root, "train", TrainTransform((HEIGHT,), (), max_size=WIDTH), 5)
    seen = set()
    for epoch in range(8):
        clips.set_epoch(epoch)
        _, target = clips[0]
        flipped = target["caption"] == "the cat on the right"
        assert flipped or target["caption"] == "the cat on the left"
        expected = mask_of(1)[:, ::-1] if flipped else mask_of(1)
        assert target["masks"][0].numpy().tolist() == expected.tolist()
        seen.add(flipped)
    assert seen == {True, False}


def test_an_empty_mask_is_replaced_in_training_and_stays_in_evaluation(tmp_path: Path):
    root = write_set(tmp_path, [["a cat", "v", 2, 1], ["a dog", "v", 5, 1]])
    write_instances(h5_file(root, 2), [1], np.zeros((1, HEIGHT, WIDTH), bool))
    assert plain(root, "train")[0][1]["caption"] == "a dog"
    _, target = plain(root)[0]
    assert target["caption"] == "a cat" and target["valid"].tolist() == [0]


def test_the_toy_set_trains_and_is_scored(toy: Path):
    train, test = (build_dataset(config(toy), split) for split in ("train", "test"))
    for clips in (train, test):
        frames, target = clips[len(clips) - 1]
        assert frames.shape == (5, 3, 64, 96) and target["valid"].tolist() == [1]
    ids = [item.id for item in test.items]
    assert len(ids) == len(set(ids)) >= 6 and config(toy).split == "test"

    evaluator = build_evaluator(config(toy))
    for item in test.items:
        mask = test.read_mask(item).numpy()[None]
        evaluator.update([QueryPredictions(item.id, np.ones(1, np.float32), mask, np.zeros((1, 4), np.float32))])
    results = evaluator.results()
    assert results == dict.fromkeys(results, pytest.approx(100))


# --- recipes


@pytest.mark.parametrize("model", ["vdit", "hcd"])
def test_recipes(root: Path, model: str):
    a2d, jhmdb, main = (
        load_config(["--config", str(root / f"configs/{model}_{name}.yaml")], "") for name in ("a2d", "jhmdb", "ytvos")
    )
    assert (a2d.dataset_file, a2d.split, jhmdb.dataset_file, jhmdb.split) == ("a2d", "test", "jhmdb", "test")
    assert (a2d.num_frames, a2d.epochs, a2d.lr_drop, a2d.lr, a2d.lr_processes) == (5, 6, (3, 5), 1e-4, 8)
    for recipe in (a2d, jhmdb):
        assert (recipe.model, recipe.batch_size, recipe.eval_size) == (model, main.batch_size, 360)
