"""A2D-Sentences: clips around an annotated frame, lists of sentences, ground truth, conversion, and every bad input."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets import build_dataset, build_evaluator
from datasets.a2d import A2dClips, convert_a2d, read_instance_mask, read_items
from datasets.clip import collate, denormalise
from datasets.registry import load_config, resolve
from datasets.transforms import EvalTransform, TrainTransform
from engine import ItemScoring, build_scoring
from scripts import prepare_data
from tests.true_formats import COPIED, MISSED, coco_truth, write_instances, write_toy_a2d
from util.config import Config
from util.errors import UserError, run_cli
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
    clips = plain(root)
    assert list(clips.captions()) == ["a cat", "a dog"]
    _, target = clips[0]
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


def test_a_list_with_short_sentences(tmp_path: Path):
    """As LoSh passes on: [sentence, short sentence, video, frame, instance]."""
    root = write_set(tmp_path, [["a cat", "v", 5, 1]])
    list_file(root, "test").write_text(json.dumps([["A man  climbs up", "a man", "v", 5, "1"]]))
    (item,) = plain(root).items
    assert (item.id, item.caption, item.frame, item.instance) == ("v_v_f_5_i_1", "a man climbs up", 5, 1)


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


# --- lists and ground truth made from the release


COCO = "a2d_sentences_test_annotations_in_coco_format.json"
TABLE, SUBSETS = Path("text_annotations/a2d_annotation.txt"), Path("Release/videoset.csv")
MASKS = Path("text_annotations/a2d_annotation_with_instances")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release without lists: video ``t`` for training, ``v`` and ``w`` for testing, and ``gone``, which is missed."""
    root = tmp_path / "release"
    for video, frame, ids in (("t", 1, [0]), ("v", 3, [3, 1]), ("v", 12, [1]), ("v", 5, [1, 3]), ("w", 2, [0])):
        masks = np.stack([mask_of(number) for number in ids])
        write_instances(root / MASKS / video / f"{frame:05d}.h5", ids, masks)
    (root / "text_annotations" / "a2d_missed_videos.txt").write_text("gone\n")
    (root / "Release").mkdir()
    rows = [f"{video},34,0:00:01,0:00:05,320,570,136,3,{subset}\n" for video, subset in SPLITS_OF.items()]
    (root / SUBSETS).write_text("".join(rows))
    (root / TABLE).write_text("video_id,instance_id,query\nv,3,The BIG one \nt,0,a train\nw,0, one\nv,1,a small one\n")
    return root


SPLITS_OF = {"v": 1, "t": 0, "w": 1, "gone": 0}
LISTS = {
    "train": [["a train", "t", 1, 0]],
    "test": [
        *(["the big one ", "v", frame, 3] for frame in (3, 5)),
        [" one", "w", 2, 0],
        *(["a small one", "v", frame, 1] for frame in (3, 5, 12)),
    ],
}


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def add(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def lists_of(root: Path) -> dict[str, Any]:
    return {split: read(list_file(root, split)) for split in LISTS}


def test_the_lists_made_from_the_release_are_those_that_are_passed_on(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prepare_data.main(["a2d", "--a2d_root", str(toy), "--output_dir", str(tmp_path), "--workers", "2"])
    output, clips = capsys.readouterr().out, {split: build_dataset(config(toy), split) for split in LISTS}
    for split, listed in clips.items():
        assert read_items(tmp_path, split) == listed.items
        assert read(list_file(tmp_path, split)) == [[*rest, int(i)] for *rest, i in read(list_file(toy, split))]
        frames = len({(item.video, item.frame) for item in listed.items})
        assert f"  {split}: 2 videos, {frames} frames, " in output and f" {len(listed.items)} items" in output
    assert read(tmp_path / COCO) == read(toy / COCO)
    assert clips["test"].ground_truth(tmp_path / COCO) == clips["test"].ground_truth(tmp_path / "absent.json")
    line = (toy / TABLE).read_text().splitlines().index(f'trainToy0000,{COPIED},"a copied line, which is in no list"')
    where = f"first: line {line + 1}, instance '{COPIED}' of trainToy0000"
    assert f"note: sentences left out because their instance is not a number: 1 ({where})" in output
    assert output.count("note: ") == 1 and MISSED not in output


def test_items_are_in_the_order_of_lines_and_frames(release: Path):
    summary = convert_a2d(release)
    assert lists_of(release) == LISTS and summary.notes == []
    assert summary.videos == {"train": 1, "test": 2} and summary.frames == {"train": 1, "test": 4}
    assert summary.expressions == {"train": 1, "test": 3} and summary.items == {"train": 1, "test": 6}
    masks = {f"v_{video}_f_{frame}_i_{obj}": mask_of(obj) for _, video, frame, obj in LISTS["test"]}
    assert read(release / COCO) == coco_truth(masks)
    files = {path: path.read_bytes() for path in release.rglob("*") if path.is_file()}
    assert convert_a2d(release).notes == []
    assert {path: path.read_bytes() for path in release.rglob("*") if path.is_file()} == files


def test_a_table_from_windows_with_more_columns_and_commas(release: Path):
    lines = [
        "\ufeffshort_query, instance_id,query,video_id",
        "one,3,The BIG one ,v",
        "",
        's, 0 ,"A ""big"", red train",t',
    ]
    lines += ["one,0, one,w", ",,,", ",1,a small one,v"]
    (release / TABLE).write_bytes("\r\n".join([*lines, ""]).encode())
    (release / SUBSETS).write_bytes(b"\xef\xbb\xbf" + (release / SUBSETS).read_bytes().replace(b"\n", b"\r\n"))
    assert convert_a2d(release).notes == []
    assert lists_of(release) == {**LISTS, "train": [['a "big", red train', "t", 1, 0]]}


def test_sentences_that_are_left_out_are_counted(release: Path):
    add(release / TABLE, f"v,{COPIED},copied\nv,,nothing\ngone,0,missed\nelse,0,unlisted\nt,0, \nt,7,absent\n")
    add(release / TABLE, "u,0,no folder\nv,3,again\nt,0,the same train\n")
    add(release / SUBSETS, "u,34,0:00:01,0:00:05,320,570,136,3,0\n")
    (release / MASKS / "t" / "._00001.h5").write_bytes(b"of macOS")
    summary = convert_a2d(release)
    assert lists_of(release) == {**LISTS, "train": [["a train", "t", 1, 0], ["the same train", "t", 1, 0]]}
    assert summary.notes == [
        f"sentences left out because {note}"
        for note in (
            f"their instance is not a number: 2 (first: line 6, instance '{COPIED}' of v)",
            "a2d_missed_videos.txt lists their video: 1 (first: line 8, instance '0' of gone)",
            "videoset.csv does not list their video: 1 (first: line 9, instance '0' of else)",
            "they are empty: 1 (first: line 10, instance '0' of t)",
            "an earlier line of the test split has the same instance: 1 (first: line 13, instance '3' of v)",
            "no h5 file has their instance: 1 (first: line 11, instance '7' of t)",
            "their video has no folder of h5 files: 1 (first: line 12, instance '0' of u)",
        )
    ]


def test_lists_that_are_there_are_compared(release: Path, tmp_path: Path):
    path = list_file(release, "test")
    path.write_text(json.dumps([[text, "short", *rest, str(obj)] for text, *rest, obj in LISTS["test"]]))
    assert convert_a2d(release).notes == [] and lists_of(release) == LISTS
    for content in (json.dumps(LISTS["test"][:-1]), "["):
        path.write_text(content)
        assert convert_a2d(release).notes == [f"{path} held other items, or could not be read, and is replaced"]
        assert lists_of(release) == LISTS
    shutil.rmtree(release / MASKS / "t")
    notes = convert_a2d(release, tmp_path / "out").notes
    assert notes[-1] == "no sentence of train can be used; its list is not written"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [path.name, COCO]


def replaced(path: Path, text: str) -> Callable[[Path], object]:
    return lambda root: (root / path).write_text(text)


def added(path: Path, text: str) -> Callable[[Path], object]:
    return lambda root: add(root / path, text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "release is missing; it should hold the folders Release and text_annotations"),
        (lambda root: shutil.rmtree(root / MASKS), "should hold a folder of h5 masks per video"),
        (lambda root: (root / TABLE).unlink(), "a2d_annotation.txt is missing; it should hold the columns video_id"),
        (replaced(TABLE, " \n\n"), "a2d_annotation.txt is empty; it should hold the columns video_id"),
        (replaced(TABLE, "video_id,query\nv,a\n"), "a2d_annotation.txt has no column 'instance_id'; its first line"),
        (
            replaced(TABLE, "v,1,a cat\n"),
            "has no column 'video_id'; its first line should be video_id,instance_id,query",
        ),
        (
            replaced(TABLE, "video_id,instance_id,query\n"),
            "no sentence of {root}/text_annotations/a2d_annotation.txt can",
        ),
        (added(TABLE, "v,1\n"), "line 6 has 2 values for 3 columns; it should be video_id,instance_id,query, with"),
        (added(TABLE, "v,1,a cat, and a dog\n"), "line 6 has 4 values for 3 columns"),
        (
            added(TABLE, 'v,1,"a cat\nv,0,a dog\n'),
            "line 6 is not a line of a CSV file (a quotation mark is not closed)",
        ),
        (added(TABLE, 'v,1,"a cat\n'), "line 6 is not a line of a CSV file (a quotation mark is not closed)"),
        (added(TABLE, f"v,1,{'a' * 200_000}\n"), "line 6 is not a line of a CSV file (field larger"),
        (added(TABLE, "../v,1,a cat\n"), "a2d_annotation.txt: a video is named '../v'"),
        (
            lambda root: (root / TABLE).write_bytes(b"\xff\xfe"),
            "cannot read {root}/text_annotations/a2d_annotation.txt",
        ),
        (lambda root: (root / SUBSETS).unlink(), "videoset.csv is missing; it should hold the columns video, label"),
        (replaced(SUBSETS, ""), "videoset.csv is empty"),
        (
            added(SUBSETS, "x,1,0,5,320,570,136,3,2\n"),
            "videoset.csv, line 5 is 'x,1,0,5,320,570,136,3,2'; it should be",
        ),
        (added(SUBSETS, "x,0\n"), "videoset.csv, line 5 is 'x,0'; it should be: video, label, start"),
        (added(SUBSETS, "..,1,0,5,320,570,136,3,1\n"), "videoset.csv: a video is named '..'"),
        (
            added(SUBSETS, "v,1,0,5,320,570,136,3,0\n"),
            "line 5 lists v as train, and an earlier line in the other split",
        ),
        (replaced(MASKS / "t" / "00001.h5", "no h5"), "00001.h5 is broken"),
        (
            lambda root: write_instances(root / MASKS / "w/00002.h5", [0, 2], mask_of(1)[None]),
            "for 2 instances; it should",
        ),
    ],
)
def test_a_bad_release(
    release: Path, spoil: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
):
    spoil(release)
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: prepare_data.main(["a2d", "--a2d_root", str(release)]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert message.replace("{root}", str(release)) in error
    assert not list(release.glob("*.json"))
