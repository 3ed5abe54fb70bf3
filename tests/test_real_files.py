"""Forms in which datasets are found: layouts of ground truth, file names, hidden files, unfinished downloads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import main
from datasets import build_scorer, list_videos
from datasets.a2d import read_instance_mask
from datasets.checks import check
from datasets.davis import convert_davis, read_davis_sentences
from datasets.expressions import read_expressions
from datasets.files import decode_segmentation, read_frame
from datasets.jhmdb import JhmdbClips, read_puppet_mask
from datasets.mevis import MevisClips, read_ground_truth
from datasets.predictions import read_binary_mask, read_index_mask, write_mask
from datasets.refcoco import convert_refcoco
from datasets.scoring import OBJECTS_FILE, find_ground_truth, score_expressions, score_unions
from datasets.toy import make_toy
from datasets.transforms import EvalTransform
from scripts import eval_jf
from tests.commands import run_command
from tests.true_formats import as_released, write_toy_davis, write_toy_jhmdb, write_toy_mevis, write_toy_refcoco
from util.checkpoint import read_content
from util.config import Config
from util.errors import UserError
from util.files import read_json, read_plain_pickle, write_json
from util.video import open_media

SIZES = {"frames": 4, "height": 48, "width": 64}


# --- Ref-YouTube-VOS: three layouts of the ground truth


def write_predictions(root: Path, masks: Path) -> None:
    """Write masks for every expression: its object in every frame but the first, where nothing is predicted."""
    truth = find_ground_truth(root / "valid" / "Annotations")
    for name, video in truth.videos.items():
        for number, (frame, found) in enumerate(zip(video.frames, truth.read(name), strict=True)):
            for exp_id, target in truth.targets(name).items():
                write_mask(masks / name / exp_id / f"{frame}.png", found[target] & (number > 0))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same toy videos in each layout, with the masks of one model."""
    folder = tmp_path_factory.mktemp("layouts")
    roots = {name: folder / name for name in ("palette", "folders", "objects")}
    for name, root in roots.items():
        make_toy(root, num_train=1, num_valid=2, num_test=1, **SIZES)
        if name != "palette":
            as_released(root, objects_file=name == "objects")
    write_predictions(roots["folders"], folder / "pred")
    return {**roots, "pred": folder / "pred"}


def test_every_layout_gives_the_same_scores(layouts: dict[str, Path]) -> None:
    said, scores = {}, {}
    for name in ("folders", "objects"):
        truth = find_ground_truth(layouts[name] / "valid" / "Annotations")
        said[name], scores[name] = str(truth), score_expressions(truth, layouts["pred"])
    assert "a folder of masks per expression in " in said["folders"]
    assert "meta_expressions_challenge.json" in said["folders"]
    assert "palette masks in " in said["objects"] and f"object ids of {layouts['objects']}/valid/" in said["objects"]
    found = [{key: row["J"] for key, row in scores[name]["per_expression"].items()} for name in scores]
    assert found[0] == found[1]
    assert scores["folders"]["global"]["J"] == pytest.approx(0.75)  # three of four frames
    assert "palette masks in " in str(find_ground_truth(layouts["palette"] / "valid" / "Annotations"))


def test_commands_report_the_layout(layouts: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = layouts["folders"]
    eval_jf.main(["--gt", str(root / "valid"), "--pred", str(layouts["pred"]), "--workers", "1"])
    line = str(find_ground_truth(root / "valid" / "Annotations"))
    assert line in capsys.readouterr().out.splitlines()
    build_scorer(Config(dataset_file="ytvos", ytvos_path=str(root), output_dir="none"))  # main.py, and in training
    assert f"note: {line}" in capsys.readouterr().out.splitlines()
    findings = check("ytvos", root, ["valid"])
    assert line in findings.notes and not findings.faults


def copy_of(root: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", root, tmp_path / "copy"], check=True)
    return tmp_path / "copy"


def test_folders_may_be_named_after_objects(layouts: dict[str, Path], tmp_path: Path) -> None:
    root = copy_of(layouts["folders"], tmp_path)
    before = find_ground_truth(root / "valid" / "Annotations")
    expected = score_expressions(before, layouts["pred"])
    for name, video in before.videos.items():
        folder = root / "valid" / "Annotations" / name
        first = {expression.obj_id: exp_id for exp_id, expression in reversed(video.expressions.items())}
        for obj_id, exp_id in first.items():
            (folder / exp_id).rename(folder / f"of {obj_id}")
        for exp_id in set(video.expressions) - set(first.values()):
            subprocess.run(["rm", "-r", folder / exp_id], check=True)
        for obj_id in first:
            (folder / f"of {obj_id}").rename(folder / str(obj_id))
    truth = find_ground_truth(root / "valid" / "Annotations")
    assert "a folder of masks per object" in str(truth)
    assert score_expressions(truth, layouts["pred"])["per_expression"] == expected["per_expression"]


def test_an_absent_mask_is_empty_and_an_absent_folder_is_an_error(layouts: dict[str, Path], tmp_path: Path) -> None:
    root = copy_of(layouts["folders"], tmp_path)
    gt = root / "valid" / "Annotations"
    name, video = next(iter(find_ground_truth(gt).videos.items()))
    (gt / name / "0" / f"{video.frames[1]}.png").unlink()
    scores = score_expressions(find_ground_truth(gt), layouts["pred"])["per_expression"]
    assert scores[f"{name}/0"]["J"] == pytest.approx(0.5)  # the second frame is wrong now
    subprocess.run(["rm", "-r", gt / name / "0"], check=True)
    with pytest.raises(UserError, match=rf"{name}/0, the masks of an expression, is missing"):
        find_ground_truth(gt)


def test_sentences_of_the_objects_file_must_be_those_of_the_expressions(
    layouts: dict[str, Path], tmp_path: Path
) -> None:
    root = copy_of(layouts["objects"], tmp_path)
    gt, path = root / "valid" / "Annotations", root / "valid" / OBJECTS_FILE
    elsewhere = path.rename(tmp_path / "objects.json")
    with pytest.raises(UserError, match=r"'0' of video .* has no 'obj_id'; set --expressions_file to"):
        find_ground_truth(gt)
    assert f"object ids of {elsewhere}" in str(find_ground_truth(gt, elsewhere))
    videos = list_videos(Config(dataset_file="ytvos", ytvos_path=str(root), expressions_file=str(elsewhere)))
    assert len(videos) == 2, "inference takes the sentences of the expressions file"
    content = json.loads(elsewhere.read_text())
    name = sorted(content["videos"])[0]
    objects = content["videos"][name]["objects"]
    last = list(objects)[-1]
    spare = objects[last]["expressions"].pop()
    write_json(elsewhere, content)
    with pytest.raises(UserError, match=rf"of video '{name}' is .*, and .*objects.json has no sentence in its place"):
        find_ground_truth(gt, elsewhere)
    objects[last]["expressions"] += [spare, "one more"]
    write_json(elsewhere, content)
    with pytest.raises(UserError, match=rf"sentences of video '{name}', and .* has"):
        find_ground_truth(gt, elsewhere)
    objects[last]["expressions"] = ["a different sentence"]
    write_json(elsewhere, content)
    with pytest.raises(UserError, match=r"has 'a different sentence' in its place; take both files from one release"):
        find_ground_truth(gt, elsewhere)


def test_the_published_cases(shared: Path, tmp_path: Path) -> None:
    """Two real videos' shapes in the published layout; sentences in the authors' file with one for object 2."""
    released = shared / "cases" / "data" / "ytvos_released"
    scores = score_expressions(find_ground_truth(released / "valid" / "Annotations"), released / "pred" / "Annotations")
    assert len(scores["per_expression"]) == 6 and scores["global"]["F"] == pytest.approx(1, abs=1e-9)
    subprocess.run([sys.executable, shared / "cases" / "data" / "ytvos_objects" / "make.py", tmp_path], check=True)
    truth = find_ground_truth(tmp_path / "valid" / "Annotations", tmp_path / "authors_objects.json")
    assert [e.obj_id for e in truth.videos["v1"].expressions.values()] == [1, 1, 2, 3, 3]
    assert score_expressions(truth, tmp_path / "pred")["global"] == {"J": 1, "F": 1, "JF": 1, "IDSW": 0}


# --- other sets


def test_mevis_v2_metrics_and_file_names(tmp_path: Path) -> None:
    """Of two sentences with a target, one has a mask; of two without, one has none: N-acc and T-acc are 1/2."""
    root = write_toy_mevis(tmp_path / "mevis", num_train=1, num_valid_u=1, num_valid=0, no_target=2, **SIZES)
    folder = root / "valid_u"
    (folder / "meta_expressions.json").rename(folder / "meta_expressions_v2.json")
    assert MevisClips(root, "valid_u", EvalTransform(), None).videos
    subprocess.run(["rm", "-r", folder / "JPEGImages"], check=True)  # scores need no images
    (video,), version = read_ground_truth(folder.parent, folder.name)
    assert version == "v2"
    empty, full = np.zeros((48, 64), bool), np.ones((48, 64), bool)
    predicted = {}
    for kind in (True, False):
        ids = [exp_id for exp_id, target in video.targets.items() if bool(target) == kind]
        predicted |= {exp_id: number == 0 for number, exp_id in enumerate(ids)}
        for exp_id in ids:
            for number, frame in enumerate(video.frames):  # one frame with a mask counts
                mask = full if predicted[exp_id] and number == 2 else empty
                write_mask(tmp_path / "pred" / video.name / exp_id / f"{frame}.png", mask)
    scores = score_unions([video], tmp_path / "pred", version)
    rows = {key.rpartition("/")[2]: row["predicted"] for key, row in scores["per_expression"].items()}
    assert rows == predicted, "results keep what N-acc and T-acc need"
    with_target = sum(map(bool, video.targets.values()))
    assert scores["with_target"]["accuracy"] == pytest.approx(1 / with_target)
    assert scores["without_target"]["accuracy"] == 0.5
    expected = (scores["global"]["JF"] + 0.5 + 1 / with_target) / 3
    assert scores["global"]["final"] == pytest.approx(expected)


def test_paths_of_the_jhmdb_list(tmp_path: Path) -> None:
    """The list's paths begin with the folder's own name, or with a folder of whoever made the copy."""
    root = write_toy_jhmdb(tmp_path / "sets" / "my_jhmdb", num_videos=2, **SIZES)
    path = root / "jhmdb_sentences_samples_metadata.json"
    items = json.loads(path.read_text())
    for prefix in ("", "./jhmdb_sentences/", "/mnt/data/rvos/jhmdb_sentences/", "./rvosdata/jhmdb_sentences/"):
        write_json(path, [[video, prefix + frame, prefix + mask, *rest] for video, frame, mask, *rest in items])
        assert JhmdbClips(root, EvalTransform(48, 64), 3)[0][1]["masks"].any()
        for folder in (root, root.parent):
            assert check("jhmdb", folder, every=True).faults == []


def test_ref_davis_as_others_leave_it(tmp_path: Path) -> None:
    raw = write_toy_davis(tmp_path / "raw", num_train=1, num_valid=1, **SIZES)
    (raw / "DAVIS" / "davis_semantics.json").unlink()
    for folder in raw.glob("DAVIS/*/480p/*/"):
        (folder / "._00000.jpg").write_bytes(b"Mac OS X")
        (folder / "._00000.png").write_bytes(b"Mac OS X")
        (folder / ".DS_Store").write_bytes(b"Mac OS X")
    for text in (raw / "davis_text_annotations").iterdir():
        sentences = read_davis_sentences(text.parent)
        encoding = "latin-1" if "annot2" in text.name else "utf-8"
        lines = text.read_text(encoding=encoding).replace("\n", "\r\n")
        text.write_bytes(b"\xef\xbb\xbf" + lines.encode())
        assert read_davis_sentences(text.parent) == sentences
    assert check("davis", raw, every=True).faults == []
    done = tmp_path / "done"
    summary = convert_davis(raw, done, copy=True)
    assert summary.frames == {"train": 4, "valid": 4} and not list(done.rglob("._*"))
    for split in ("train", "valid"):  # a converter that keeps DAVIS's own folder
        for kind in ("JPEGImages", "Annotations"):
            (done / split / kind).rename(done / split / "480p")
            (done / split / kind).mkdir()
            (done / split / "480p").rename(done / split / kind / "480p")
    assert check("davis", done, every=True).faults == []
    cfg = Config(dataset_file="davis", davis_path=str(done), output_dir=str(tmp_path / "out"))
    assert all(path.is_file() for video in list_videos(cfg) for path in video.frame_paths)
    build_scorer(cfg)


def test_frames_are_sorted_by_name(tmp_path: Path) -> None:
    path = tmp_path / "meta_expressions.json"
    write_json(
        path, {"videos": {"v": {"frames": ["00010", "00000", "00005"], "expressions": {"0": {"exp": "A  dog"}}}}}
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Windows editors save it
    video = read_expressions(path, "valid")["v"]
    assert video.frames == ["00000", "00005", "00010"]
    assert (video.expressions["0"].sentence, video.expressions["0"].caption) == ("A  dog", "a dog")


@pytest.mark.parametrize("palette", [False, True])
def test_one_bit_pngs_are_masks(tmp_path: Path, palette: bool) -> None:
    mask = np.zeros((6, 9), bool)
    mask[1:3, 4:8] = True
    image = Image.fromarray(mask)
    if palette:
        image = Image.fromarray(mask.astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(tmp_path / "m.png", bits=1)
    else:
        image.save(tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes()[24] == 1
    assert (read_binary_mask(tmp_path / "m.png") == mask).all()
    assert (read_index_mask(tmp_path / "m.png") == mask).all(), "object 1 in ground truth"


# --- outlines


def test_parts_without_area_draw_nothing() -> None:
    square, line = [1, 1, 9, 1, 9, 9, 1, 9], [1.0, 1.0, 3.0, 1.0]
    expected = decode_segmentation([square], 12, 12, "a")
    for outline in ([square, line], [line, square], [square, [2.0, 2.0]]):
        assert (decode_segmentation(outline, 12, 12, "a") == expected).all()
    with pytest.raises(UserError, match="an outline of fewer than three corners"):
        decode_segmentation([line], 12, 12, "a")


def test_conversion_and_check_find_outlines_without_area(tmp_path: Path) -> None:
    write_toy_refcoco(tmp_path / "refer", num_train=6, num_eval=1, height=48, width=64)
    path = tmp_path / "refer" / "refcoco" / "instances.json"
    content = json.loads(path.read_text())
    first, second = [a for a in content["annotations"] if isinstance(a["segmentation"], list)][:2]
    first["segmentation"].append([1.0, 1.0, 3.0, 1.0])
    second["segmentation"] = [[2.0, 2.0, 2.0, 2.0, 2.0, 2.0]]
    write_json(path, content)
    (note,) = convert_refcoco("refcoco", tmp_path / "refer", tmp_path / "coco", tmp_path / "refer" / "train2014").notes
    assert re.search(r"object \d+ in image \d+ has .* \(and 1 more\)$", note)
    findings = check("refcoco", tmp_path / "coco", every=True)
    assert findings.faults == []
    assert any("fewer than three corners" in note or "covers no pixel" in note for note in findings.notes)


# --- unfinished downloads


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
READERS = {
    "a.json": lambda path: read_json(path, "expressions"),
    "a.p": lambda path: read_plain_pickle(path, "expressions"),
    "a.jpg": read_frame,
    "a.png": read_index_mask,
    "a.h5": lambda path: read_instance_mask(path, 1),
    "a.mat": lambda path: read_puppet_mask(path, 1),
    "a.mp4": lambda path: list(open_media(path).frames()),
    "a.pth": read_content,
    "a.safetensors": read_content,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("content", "beside", "reason"),
    [
        (POINTER, "", "it is a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "", "it is a web page, which a failed download leaves"),
        (b"", "", "it is empty or begins with zeros, as an unfinished download does"),
        (bytes(5000), "", "it is empty or begins with zeros, as an unfinished download does"),
        (b"half", ".aria2", "its download is not finished, as {name}.aria2 beside it shows"),
    ],
    ids=["pointer", "web page", "empty", "zeros", "partial"],
)
def test_unfinished_downloads_are_named(tmp_path: Path, name: str, content: bytes, beside: str, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if beside:
        path.with_name(name + beside).touch()
    with pytest.raises(UserError) as caught:
        READERS[name](path)
    reasons = (reason.format(name=name), "is empty (0 bytes)")
    assert any(text in str(caught.value) for text in reasons) and "\n" not in str(caught.value)


def test_sound_files_are_not_suspected(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", "numbers") == [1]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["instance"], file["reMask"] = [1], np.ones((4, 3))
    assert read_instance_mask(tmp_path / "a.h5", 1).all()
    savemat(tmp_path / "a.mat", {"part_mask": np.ones((3, 4, 2), np.uint8)})
    assert read_puppet_mask(tmp_path / "a.mat", 2).all()
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((4, 4, 3), np.uint8))
    assert read_frame(tmp_path / "a.jpg").shape == (3, 4, 4)


# --- a broken item in training


@pytest.mark.slow
def test_a_broken_item_does_not_end_a_run_for_good(tmp_path: Path) -> None:
    write_toy_refcoco(tmp_path / "refer", num_train=4, num_eval=1, height=48, width=64)
    convert_refcoco("refcoco", tmp_path / "refer", tmp_path / "coco", tmp_path / "refer" / "train2014")
    path = tmp_path / "coco" / "instances_refcoco_train.json"
    content = json.loads(path.read_text())
    content["annotations"][3]["segmentation"] = [[1.0, 1.0, 9.0]]
    write_json(path, content)
    steps = len(content["images"])
    options = ("--config", "configs/vdit_toy.yaml", "--dataset_file", "refcoco", "--coco_path", tmp_path / "coco")
    options += ("--output_dir", tmp_path / "run", "--batch_size", 1, "--num_workers", 1, "--num_frames", 2)
    options += ("--max_steps", steps, "--save_every", 1, "--resume", "auto")
    failed = run_command(main.main, *options)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr, failed.stderr
    assert "image entry 3 of instances_refcoco_train.json has polygons" in failed.stderr
    assert "use --skip_broken" in failed.stderr
    done = run_command(main.main, *options, "--skip_broken", "--num_workers", 0)
    assert done.returncode == 0, done.stderr
    assert "is replaced with another one (--skip_broken): image entry 3" in done.stderr
    assert "broken_clips" in (tmp_path / "run" / "log.jsonl").read_text()
