"""A2D-Sentences: clips around an annotated frame, lists of sentences, ground truth, and every bad input."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets import build_dataset, build_evaluator
from datasets.a2d import A2dClips, read_instance_mask
from datasets.clip import collate, denormalise
from datasets.registry import load_config, resolve
from datasets.transforms import EvalTransform, TrainTransform
from engine import ItemScoring, build_scoring
from tests.true_formats import coco_truth, write_instances, write_toy_a2d
from util.config import Config
from util.errors import UserError
from util.metrics import QueryPredictions
from util.video import write_video

HEIGHT, WIDTH, FRAMES = 48, 80, 9
LEVEL = 25  # of grey, between two frames


def mask_of(instance: int) -> np.ndarray:
    """A mask that no transposition and no mirror leaves as it is."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[4 : 10 + 8 * instance, 6:30] = True
    return mask


def write_set(
    root: Path, entries: list[list[Any]], clips: str = "clips320H", size: tuple[int, int] | None = None
) -> Path:
    """A set of one video ``v``, whose frame t (from 0) is of the grey t · LEVEL. Instances 1 and 3 are annotated."""
    height, width = size or (HEIGHT, WIDTH)
    grey = (np.full((height, width, 3), LEVEL * t, np.uint8) for t in range(FRAMES))
    write_video(root / "Release" / clips / "v.mp4", grey)
    for frame in sorted({frame for _, _, frame, _ in entries}):
        masks = np.stack([mask_of(3), mask_of(1)])
        write_instances(h5_file(root, frame), [3, 1], masks)
    for split in ("train", "test"):
        list_file(root, split).write_text(json.dumps(entries))
    return root


def h5_file(root: Path, frame: int) -> Path:
    return root / "text_annotations" / "a2d_annotation_with_instances" / "v" / f"{frame:05d}.h5"


def list_file(root: Path, split: str) -> Path:
    return root / f"a2d_sentences_single_frame_{split}_annotations.json"


def plain(root: Path, split: str = "test", num_frames: int = 5) -> A2dClips:
    """Clips that are not augmented."""
    return A2dClips(root, split, EvalTransform(HEIGHT, WIDTH), num_frames)


def config(root: Path, **options: Any) -> Config:
    small = {"train_scales": (64,), "crop_scales": (), "max_size": 96, "eval_size": 64}
    return resolve(Config(dataset_file="a2d", a2d_path=str(root), **{**small, **options}))


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


def test_items_are_padded_as_published(toy: Path):
    """To a multiple of 32; whole videos are padded to one of 16."""
    scoring = build_scoring(config(toy, eval_size=36, num_workers=0), torch.device("cpu"))
    assert isinstance(scoring, ItemScoring)
    batch = next(iter(scoring.loader))
    assert batch.targets[0]["size"].tolist() == [36, 54] and batch.frames.shape == (1, 5, 3, 64, 64)


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


# --- lists and ground truth


def test_the_older_name_of_the_clips_folder(tmp_path: Path):
    assert len(plain(write_set(tmp_path, [["a cat", "v", 5, 1]], clips="CLIPS320"))[0][0]) == 5


def test_missed_videos_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = write_set(tmp_path, [["a cat", "v", 5, 1]])
    list_file(root, "test").write_text(json.dumps([["a cat", "v", 5, 1], ["a dog", "gone", 5, 1]]))
    with pytest.raises(UserError, match=r"gone\.mp4 is missing, but .*test_annotations\.json lists it"):
        plain(root)
    (root / "text_annotations" / "a2d_missed_videos.txt").write_text("other\ngone\n")
    with caplog.at_level(logging.WARNING):
        assert len(plain(root)) == 1
    assert "1 sentences of" in caplog.text and "a2d_missed_videos.txt" in caplog.text


def test_the_truth_is_the_same_from_cocos_form_and_from_the_masks(toy: Path, caplog: pytest.LogCaptureFixture):
    clips = build_dataset(config(toy), "test")
    listed = clips.ground_truth(toy / "a2d_sentences_test_annotations_in_coco_format.json")
    assert not caplog.records
    assert clips.ground_truth(toy / "absent.json") == listed and "absent.json is missing" in caplog.text


def test_the_truth_must_fit_the_list(tmp_path: Path):
    root = write_set(tmp_path / "set", [["a cat", "v", 5, 1], ["a dog", "v", 5, 3]])
    path = root / "a2d_sentences_test_annotations_in_coco_format.json"

    def fails(content: Any) -> str:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(UserError) as mistake:
            build_evaluator(config(root))
        return str(mistake.value)

    truth = coco_truth({"v_v_f_5_i_1": mask_of(1), "v_v_f_5_i_3": mask_of(3)})
    assert "no mask for v_v_f_5_i_3;" in fails({**truth, "annotations": truth["annotations"][:1]})
    assert "two masks for v_v_f_5_i_1" in fails({**truth, "annotations": truth["annotations"][:1] * 2})
    assert "under 'images'" in fails([1])
    assert "is not valid JSON" in fails("{")
    truth["annotations"][1]["segmentation"]["counts"] = "00"
    assert "the mask for v_v_f_5_i_3" in fails(truth)


def test_equal_sentences_are_items_of_their_own_and_a_late_object_counts_where_it_is_annotated(tmp_path: Path):
    root = write_set(tmp_path, [["a cat", "v", 2, 1], ["a cat", "v", 5, 1], ["a cat", "v", 5, 3]])
    write_instances(h5_file(root, 2), [1], mask_of(1)[None])  # instance 3 is not there yet
    items = plain(root).items
    assert [item.id for item in items] == ["v_v_f_2_i_1", "v_v_f_5_i_1", "v_v_f_5_i_3"]
    evaluator = build_evaluator(config(root))
    for item in items:
        guess = mask_of(1)[None]
        evaluator.update([QueryPredictions(item.id, np.ones(1, np.float32), guess, np.zeros((1, 4), np.float32))])
    results, small, large = evaluator.results(), 14 * 24, 30 * 24  # pixels of instances 1 and 3, one within the other
    assert evaluator.counts() == {"items": 3, "items_without_prediction": 0}
    assert results["mIoU"] == pytest.approx(100 * (2 + small / large) / 3)
    assert results["oIoU"] == pytest.approx(100 * 3 * small / (2 * small + large))
    assert results["P@0.5"] == pytest.approx(200 / 3)


# --- bad inputs: one sentence that names the place


def test_bad_files(tmp_path: Path):
    root = write_set(tmp_path, [["a cat", "v", 5, 1]])
    clips, h5 = plain(root), h5_file(root, 5)

    def fails() -> str:
        with pytest.raises(UserError) as mistake:
            clips[0]
        assert "\n" not in str(mistake.value)
        return str(mistake.value)

    good = h5.read_bytes()
    for content in (b"", b"no h5", good[: len(good) // 2]):
        h5.write_bytes(content)
        assert f"mask {h5} is broken" in fails()
    write_instances(h5, [1, 2, 3], np.stack([mask_of(1)] * 2))
    assert "for 3 instances; it should be (instances, width, height)" in fails()
    write_instances(h5, [2, 4], np.stack([mask_of(1)] * 2))
    assert f"mask {h5} has no instance 1, which a sentence names; it has [2, 4]" in fails()
    h5.unlink()
    assert f"mask {h5} is missing" in fails()

    video = root / "Release" / "clips320H" / "v.mp4"
    good = video.read_bytes()
    for content in (b"", b"no video", good[: len(good) // 2]):
        video.write_bytes(content)
        assert str(video) in fails()
    video.unlink()
    assert f"video {video} is missing" in fails()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("{}", "should be a JSON list of [sentence, video, frame, instance]"),
        ("[]", "lists no sentence that can be used"),
        ('[["a cat", "v", 5]]', "entry 1 is ['a cat', 'v', 5]; it should be [sentence, video, frame, instance]"),
        ('[[" ", "v", 5, 1]]', "entry 1 is ['"),
        ('[["a cat", "../v", 5, 1]]', "is named '../v'"),
        ('[["a cat", "v", 0, 1]]', "entry 1 is ['"),
        ('[["a cat", "v", 5, "1 (copy)"]]', "entry 1 is ['"),
        ('[["a cat", "v", 5, 1], ["the cat", "v", 5, "1"]]', "lists v_v_f_5_i_1 twice"),
        ('[["a cat", "w", 5, 1], ["a cat", "x", 5, 1]]', "w.mp4 is missing (and 1 more), but"),
    ],
)
def test_bad_lists(tmp_path: Path, content: str, message: str):
    root = write_set(tmp_path, [["a cat", "v", 5, 1]])
    list_file(root, "test").write_text(content)
    with pytest.raises(UserError) as mistake:
        plain(root)
    assert message in str(mistake.value) and "\n" not in str(mistake.value)


def test_missing_parts(tmp_path: Path):
    with pytest.raises(UserError, match="is missing; it should hold the folders Release and text_annotations"):
        plain(tmp_path / "absent")
    root = write_set(tmp_path / "set", [["a cat", "v", 5, 1]])
    with pytest.raises(UserError, match="unknown split 'valid'; a2d has train, test"):
        build_dataset(config(root), "valid")
    with pytest.raises(UserError, match="scored on its test split, not on 'train'"):
        build_evaluator(config(root, split="train"))
    (root / "text_annotations").rename(root / "other")
    with pytest.raises(UserError, match=r"a2d_annotation_with_instances is missing; it should hold .*docs/data\.md"):
        plain(root)
    (root / "Release" / "clips320H").rename(root / "Release" / "clips")
    with pytest.raises(UserError, match=r"clips320H is missing; it should hold .*or CLIPS320"):
        plain(root)
    list_file(root, "test").unlink()
    with pytest.raises(UserError, match=r"test_annotations\.json is missing; it should hold the sentences of the test"):
        plain(root)
