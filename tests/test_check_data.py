"""scripts.check_data: counts, what is missing, what is broken, and that it changes nothing."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import build_dataset, build_evaluator, build_scorer, davis, list_videos, mevis
from datasets.checks import check, run_job, spread
from datasets.files import read_clips
from datasets.predictions import read_index_mask, require_frames
from datasets.refcoco import SPLITS, convert_refcoco
from datasets.registry import DATASETS
from datasets.scoring import find_ground_truth
from datasets.toy import make_toy
from scripts.check_data import main
from tests.true_formats import (
    as_released,
    write_puppet_masks,
    write_toy_a2d,
    write_toy_davis,
    write_toy_jhmdb,
    write_toy_long_rvos,
    write_toy_mevis,
    write_toy_refcoco,
    write_toy_revos,
)
from util.config import Config
from util.errors import UserError, run_cli

SIZES = {"frames": 4, "height": 48, "width": 64}
FOLDERS = {"davis_raw": "davis", "refcoco": "refcoco", "refcoco+": "refcoco+", "refcocog": "refcocog"}
ALL = ("ytvos", "davis_raw", "davis", "mevis", "long_rvos", "revos", "a2d", "jhmdb", "refcoco", "refcoco+", "refcocog")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of every kind; only to be read."""
    root = tmp_path_factory.mktemp("sets")
    make_toy(root / "ytvos", num_train=2, num_valid=2, num_test=1, **SIZES)
    for layout in ("released", "objects"):
        make_toy(root / layout, num_train=0, num_valid=2, num_test=1, **SIZES)
        as_released(root / layout, layout == "objects")
    write_toy_davis(root / "davis_raw", num_train=1, num_valid=2, **SIZES)
    davis.convert_davis(root / "davis_raw", root / "davis", copy=True)
    write_toy_mevis(root / "mevis", num_train=2, num_valid_u=1, num_valid=1, no_target=1, **SIZES)
    write_toy_long_rvos(root / "long_rvos", num_train=1, num_valid=2, **SIZES)
    write_toy_revos(root / "revos", num_train=1, num_valid=2, **SIZES)
    write_toy_a2d(root / "a2d", num_train=2, num_test=2, **SIZES)
    write_toy_jhmdb(root / "jhmdb", num_videos=2, **SIZES)
    write_toy_refcoco(root / "refer", num_train=2, num_eval=1, height=48, width=64)
    for name in SPLITS:
        convert_refcoco(name, root / "refer", root / name, root / "refer" / "train2014")
    return root


@pytest.fixture
def sets(sound: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(sound, tmp_path / "sets", symlinks=True)


def kind_of(folder: str) -> str:
    return FOLDERS.get(folder, folder)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("folder", ALL)
def test_a_sound_set(folder: str, every: bool, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (sound / folder).rglob("*")}
    arguments = [kind_of(folder), str(sound / folder), "--workers", "1", *(["--all"] if every else [])]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "nothing is missing or broken" in told
    assert ("a difference of -" in told) == (folder != "revos"), "which is no fault; ReVOS publishes no sizes of splits"
    assert {path: path.stat().st_mtime_ns for path in (sound / folder).rglob("*")} == before
    findings = check(kind_of(folder), sound / folder, every=every)
    opened = sum(job.files for job in findings.jobs)
    assert 0 < opened <= findings.files and (opened == findings.files or not every)
    jobs = pickle.loads(pickle.dumps(findings.jobs))  # as they go to other processes
    assert [run_job(job) for job in jobs] == [[] for _ in jobs]


COUNTS = {
    "ytvos": [("train: videos", 2, 3471), ("valid: videos in its file", 3, 507), ("valid: videos", 2, 202)],
    "davis_raw": [("train: videos", 1, 60), ("valid: videos", 2, 30), ("valid: frames", 8, 1999)],
    "davis": [("train: videos", 1, 60), ("valid: videos", 2, 30), ("train: frames", 4, 4209)],
    "mevis": [("train: videos", 2, 1662), ("valid_u: videos", 1, 50), ("valid: videos", 1, 140)],
    "long_rvos": [("train: videos", 1, 1855), ("valid: videos", 2, 112), ("test: videos", 1, 226)],
    "revos": [("train: videos", 1, None), ("valid: frames", 8, None)],
    "a2d": [("clips", 4, 3782), ("train: videos with sentences", 2, 3017), ("test: videos with sentences", 2, 737)],
    "jhmdb": [("videos", 2, 928)],
    "refcoco": [("train: images", 2, 16994), ("val: images", 1, 1500), ("testB: images", 1, 750)],
    "refcoco+": [("train: images", 2, 16992), ("testA: images", 1, 750)],
    "refcocog": [("train: images", 2, 21899), ("test: images", 1, 2600)],
}


@pytest.mark.parametrize("folder", ALL)
def test_counts(folder: str, sound: Path) -> None:
    counts = {count.what: (count.found, count.known) for count in check(kind_of(folder), sound / folder).counts}
    for what, found, known in COUNTS[folder]:
        assert counts[what] == (found, known)


def test_expressions_of_refcoco(sound: Path) -> None:
    known = {name: [size.expressions for size in DATASETS[name].splits.values()] for name in SPLITS}
    assert known["refcoco"] == [120624, 10834, 5657, 5095]
    assert known["refcoco+"] == [120191, 10758, 5726, 4889] and known["refcocog"] == [80512, 4896, 9602]
    count = next(c for c in check("refcoco", sound / "refcoco", ["val"]).counts if c.what == "val: expressions")
    listed = json.loads((sound / "refcoco" / "instances_refcoco_val.json").read_text())["images"]
    assert (count.found, count.known, count.difference) == (len(listed), 10834, len(listed) - 10834)


def test_ref_davis_without_a_video_is_not_scored(sets: Path) -> None:
    """Its expressions are its own: what they list and what is gone is no test video of the challenge."""
    shutil.rmtree(sets / "davis" / "valid" / "JPEGImages" / "dogs-scale")
    for build in (list_videos, build_scorer, lambda cfg: build_dataset(cfg, "valid")):
        with pytest.raises(UserError, match="JPEGImages/dogs-scale is missing"):
            build(Config(dataset_file="davis", davis_path=str(sets / "davis")))


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def shrink(path: Path) -> None:
    Image.open(path).resize((32, 32)).save(path)


def drop_anno_id(content: Any) -> None:
    next(iter(next(iter(content["videos"].values()))["expressions"].values())).pop("anno_id")


def drop_instance(content: Any) -> None:
    content.pop(next(iter(content)))


def break_runs(content: Any) -> None:
    next(mask for masks in content.values() for mask in masks if mask)["counts"] = "11"


def other_size(content: Any) -> None:
    for image in content["images"]:
        image["height"] += 1


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a frame": ("ytvos", lambda r: first(r / "train" / "JPEGImages", "*.jpg").unlink(), "00000.jpg is missing"),
    "a cut frame": ("ytvos", lambda r: cut(first(r / "valid" / "JPEGImages", "*.jpg")), "00000.jpg is broken"),
    "a mask": ("ytvos", lambda r: first(r / "valid" / "Annotations", "*.png").unlink(), "00000.png is missing"),
    "a cut mask": ("ytvos", lambda r: cut(first(r / "train" / "Annotations", "*.png")), "cannot read the mask"),
    "a small mask": ("ytvos", lambda r: shrink(first(r / "train" / "Annotations", "*.png")), "is 32×32 pixels"),
    "a video": (
        "ytvos",
        lambda r: shutil.rmtree(r / "train" / "JPEGImages" / "train_00001"),
        "train/JPEGImages/train_00001 is missing",
    ),
    "all masks": ("ytvos", lambda r: shutil.rmtree(r / "train" / "Annotations"), "train/Annotations is missing"),
    "expressions": (
        "ytvos",
        lambda r: (r / "meta_expressions" / "train" / "meta_expressions.json").write_text("{"),
        "is not valid JSON",
    ),
    "a sentence's video": (
        "davis",
        lambda r: shutil.rmtree(r / "valid" / "JPEGImages" / "dogs-scale"),
        "JPEGImages/dogs-scale is missing",
    ),
    "sentences": (
        "davis_raw",
        lambda r: (r / "davis_text_annotations" / "Davis17_annot2.txt").unlink(),
        "Davis17_annot2.txt is missing",
    ),
    "a raw mask": ("davis_raw", lambda r: first(r / "DAVIS", "*.png").unlink(), "00000.png is missing"),
    "neither form": ("davis", lambda r: shutil.rmtree(r / "meta_expressions"), "holds neither DAVIS/"),
    "anno_id": ("mevis", lambda r: edit(r / "train" / "meta_expressions.json", drop_anno_id), "has no 'anno_id'"),
    "an instance": ("mevis", lambda r: edit(r / "train" / "mask_dict.json", drop_instance), "has no masks of instance"),
    "run lengths": ("mevis", lambda r: edit(r / "valid_u" / "mask_dict.json", break_runs), "end before the last pixel"),
    "mask_dict": ("mevis", lambda r: (r / "valid_u" / "mask_dict.json").unlink(), "valid_u/mask_dict.json is missing"),
    "a folder of objects": (
        "long_rvos",
        lambda r: shutil.rmtree(r / "train" / "Annotations" / "train0000"),
        "has a folder in",
    ),
    "a small mask of an object": (
        "long_rvos",
        lambda r: shrink(first(r / "valid" / "Annotations", "*.png")),
        "is 32×32 pixels",
    ),
    "the foreground": (
        "revos",
        lambda r: (r / "mask_dict_foreground.json").unlink(),
        "mask_dict_foreground.json is missing",
    ),
    "a frame of the foreground": (
        "revos",
        lambda r: edit(r / "mask_dict_foreground.json", lambda c: c["valid0000"]["masks_rle"].pop()),
        "video 'valid0000' should have 4 run lengths",
    ),
    "runs of the foreground": (
        "revos",
        lambda r: edit(r / "mask_dict_foreground.json", lambda c: break_runs({"": c["valid0000"]["masks_rle"]})),
        "instance mask_dict_foreground.json has damaged run lengths",
    ),
    "expressions of ReVOS": (
        "revos",
        lambda r: (r / "meta_expressions_train_.json").unlink(),
        "meta_expressions_train_.json is missing",
    ),
    "a clip": ("a2d", lambda r: first(r, "*.mp4").unlink(), "testToy0000.mp4 is missing"),
    "a cut clip": ("a2d", lambda r: cut(first(r, "*.mp4")), "testToy0000.mp4 is broken"),
    "an h5": ("a2d", lambda r: first(r, "*.h5").unlink(), "00001.h5 is missing"),
    "a cut h5": ("a2d", lambda r: cut(first(r, "*.h5")), "00001.h5 is broken"),
    "h5 folders": (
        "a2d",
        lambda r: shutil.rmtree(r / "text_annotations" / "a2d_annotation_with_instances"),
        "a2d_annotation_with_instances is missing",
    ),
    "a PNG": ("jhmdb", lambda r: first(r, "00002.png").unlink(), "00002.png is missing"),
    "a cut PNG": ("jhmdb", lambda r: cut(first(r, "00001.png")), "00001.png is broken"),
    "puppet masks": ("jhmdb", lambda r: cut(first(r, "*.mat")), "puppet_mask.mat are broken"),
    "COCO truth": ("jhmdb", lambda r: edit(first(r, "*coco*.json"), lambda c: c["images"].pop()), "has no mask for"),
    "an image": ("refcoco", lambda r: first(r, "*.jpg").unlink(), ".jpg is missing"),
    "other image sizes": ("refcocog", lambda r: edit(r / "instances_refcocog_val.json", other_size), "49"),
    "a split": ("refcoco+", lambda r: (r / "instances_refcoco+_testA.json").unlink(), "prepare_data refcoco+"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_missing_or_broken(damage: str, sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, spoil, words = DAMAGES[damage]
    spoil(sets / folder)
    assert main([kind_of(folder), str(sets / folder), "--all", "--workers", "1"]) == 2
    told = capsys.readouterr().out
    assert words in told and "missing or broken: " in told and "what to do: " in told and "docs/data.md" in told
    assert "nothing is missing" not in told


def test_a_link_to_what_is_gone_is_missing(sets: Path) -> None:
    path = first(sets / "refcoco", "*.jpg")
    path.unlink()
    path.symlink_to(sets / "nowhere.jpg")
    assert [fault for fault in check("refcoco", sets / "refcoco").faults if f"{path} is missing" in fault]


def test_each_fault_once_and_the_list_is_bounded(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (sets / "ytvos" / "train" / "JPEGImages").rglob("*.jpg"):
        path.unlink()
    assert main(["ytvos", str(sets / "ytvos"), "--limit", "3", "--workers", "1"]) == 2
    told = capsys.readouterr().out
    assert "missing or broken: 8" in told and told.count("  - ") == 3 and "… and 5 more" in told


def test_a_split_alone(sets: Path) -> None:
    shutil.rmtree(sets / "ytvos" / "train")
    assert check("ytvos", sets / "ytvos").faults
    assert not check("ytvos", sets / "ytvos", ["valid", "test"]).faults


def test_what_evaluation_can_do_without_is_a_note(sets: Path) -> None:
    root = sets / "ytvos"
    shutil.rmtree(root / "valid" / "Annotations")
    (root / "meta_expressions" / "test" / "meta_expressions.json").unlink()
    findings = check("ytvos", root)
    assert not findings.faults
    assert any("cannot be scored without its masks" in note for note in findings.notes)
    assert any("valid is then taken to be the videos that have a folder" in note for note in findings.notes)


def test_frames_without_puppet_masks_are_a_note(sets: Path) -> None:
    import numpy as np

    path = first(sets / "jhmdb", "*.mat")
    write_puppet_masks(path, np.ones((1, 48, 64), bool))
    findings = check("jhmdb", sets / "jhmdb", every=True)
    assert not findings.faults and any("their frame has no mask" in note for note in findings.notes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ytvos", "{root}/nowhere"], "nowhere is not a folder"),
        (["ytvos", "{root}/ytvos", "--split", "val"], "unknown split 'val'"),
        (["ytvos", "{root}/ytvos", "--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_mistakes(arguments: list[str], words: str, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: main([word.format(root=sound) for word in arguments]))
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_a_spread_has_both_ends() -> None:
    assert spread(range(10), 3) == [0, 4, 9] and spread("abc", 1) == ["a"]


def test_every_row_of_the_registry_is_complete() -> None:
    for row in DATASETS.values():
        builders = ("build_videos", "build_scorer") if row.masks else ("build_evaluator",)
        assert all(row.function(name) for name in ("build_clips", "check", *builders)), row.name
        assert row.evaluated in row.splits and (not row.masks or row.layout)


# --- the check demands what the loaders demand


LAYOUTS = {
    "ytvos": ("ytvos", ("train", "valid")),
    "released": ("ytvos", ("valid",)),
    "objects": ("ytvos", ("valid",)),
    "davis": ("davis", ("train", "valid")),
    "mevis": ("mevis", ("train", "valid_u", "valid")),
    "long_rvos": ("long_rvos", ("train", "valid", "test")),
    "revos": ("revos", ("train", "valid")),
    "a2d": ("a2d", ("train", "test")),
    "jhmdb": ("jhmdb", ("test",)),
    "refcoco": ("refcoco", ("train", "val", "testA", "testB")),
}


def load_everything(name: str, root: Path, splits: Sequence[str], notes: str) -> None:
    """Read what training, inference and scoring read of some splits; ground truth only if no note says it is absent."""
    row = DATASETS[name]
    for split in splits:
        num_frames = 2 if row.module == "refcoco" else 2 * SIZES["frames"]  # enough to read every frame
        small = {"train_scales": (48,), "crop_scales": (), "max_size": 64, "eval_size": 48, row.root: str(root)}
        cfg = Config(dataset_file=name, split=split, num_frames=num_frames, **small)
        if split == "train" or not row.masks:
            clips = build_dataset(cfg, split)
            for index in range(len(clips)):
                clips.load(index, np.random.default_rng(0))
        if split == "train":
            continue
        if not row.masks:
            build_evaluator(cfg)
            continue
        videos = list_videos(cfg)
        require_frames(videos)
        for video in videos:
            next(read_clips([video.frame_paths]))
        if (name, split) in (("mevis", "valid_u"), ("revos", "valid")):
            for scored in mevis.read_ground_truth(root, split)[0]:
                for number in range(len(scored.frames)):
                    scored.ground_truth(number, (SIZES["height"], SIZES["width"]))
        if name == "davis":
            build_scorer(cfg)
            for video in videos:
                for path in video.frame_paths:
                    read_index_mask(root / split / "Annotations" / video.name / f"{path.stem}.png")
        if name == "long_rvos" or (name == "ytvos" and "cannot be" not in notes):
            build_scorer(cfg)
            truth = find_ground_truth(root / split / "Annotations")
            for video_name in truth.videos:
                list(truth.read(video_name))


def mutilations(root: Path) -> list[tuple[str, str]]:
    """Thirty changes, spread over the files and folders of a set: (path, what is done to it)."""
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    files = [path for path in paths if (root / path).is_file()]
    rare = [path for path in files if path.endswith((".json", ".txt", ".h5", ".mat", ".csv"))]
    folders = [path for path in paths if (root / path).is_dir()]
    chosen = [*spread(rare, 8), *spread(files, 14), *spread(folders, 8)]
    return [(path, ("remove", "rename", "empty")[number % 3]) for number, path in enumerate(chosen)]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_check_and_loaders_agree_on_damaged_copies(sound: Path, tmp_path: Path, layout: str) -> None:
    name, splits = LAYOUTS[layout]
    disagreements, refused = [], 0
    for number, (path, change) in enumerate(mutilations(sound / layout)):
        root = shutil.copytree(sound / layout, tmp_path / str(number))
        damaged = root / path
        if change == "rename":
            damaged.rename(damaged.with_name(f"{damaged.name}x"))
        elif damaged.is_dir():
            shutil.rmtree(damaged)
            if change == "empty":
                damaged.mkdir()
        elif change == "remove":
            damaged.unlink()
        else:
            damaged.write_bytes(b"")
        findings = check(name, root, splits, every=True)
        try:
            load_everything(name, root, splits, " ".join(findings.notes))
            error = ""
        except UserError as caught:
            error = str(caught)
            assert "\n" not in error
        refused += bool(error)
        if bool(findings.faults) != bool(error):
            disagreements.append(f"{change} {path}: check {findings.faults[:1]}, loader {error!r}")
        shutil.rmtree(root)
    assert not disagreements, "\n".join(disagreements)
    assert refused >= 8
