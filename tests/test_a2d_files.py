"""A2D-Sentences: lists of sentences, truth in COCO's form, and every bad input."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import build_dataset, build_evaluator
from tests.a2d_tools import config, h5_file, list_file, mask_of, plain, write_set
from tests.true_formats import coco_truth, write_instances, write_toy_a2d
from util.errors import UserError
from util.metrics import QueryPredictions


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set in the whole layout; only to be read."""
    return write_toy_a2d(tmp_path_factory.mktemp("a2d") / "set", num_train=2, num_test=2, frames=5, seed=1)


# --- lists and truth


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
