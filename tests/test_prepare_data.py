"""Ref-DAVIS17 to the layout of Ref-YouTube-VOS."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.davis import convert_davis, read_davis_sentences
from scripts.prepare_data import main
from util.errors import run_cli

# Video → object ids; the second is misspelt in the text files.
VIDEOS = {"train": {"bear": [1], "dogs-scale": [1, 2]}, "valid": {"motorbike": [1, 2]}}
SPELT = {"bear": "bear", "dogs-scale": "dog-scale", "motorbike": "motor-bike"}
FRAMES = ["00000", "00001", "00002"]
TEXTS = ("Davis17_annot1.txt", "Davis17_annot1_full_video.txt", "Davis17_annot2.txt", "Davis17_annot2_full_video.txt")


@pytest.fixture
def davis_root(tmp_path: Path) -> Path:
    """A small Ref-DAVIS17 in its true form. Object 2 appears in the second frame; a void stripe is in every mask."""
    root = tmp_path / "davis"
    davis, texts = root / "DAVIS", root / "davis_text_annotations"
    for folder in (davis / "ImageSets" / "2017", texts):
        folder.mkdir(parents=True)
    lines: list[list[str]] = [[], [], [], []]
    for split, name in (("train", "train.txt"), ("valid", "val.txt")):
        (davis / "ImageSets" / "2017" / name).write_text("\n".join(VIDEOS[split]) + "\n")
        for video, objects in VIDEOS[split].items():
            write_video(davis, video, objects)
            for number, file_lines in enumerate(lines):
                # é is one byte in latin-1, and that byte is no UTF-8.
                word = "café" if number >= 2 else "street"
                file_lines += [f'{SPELT[video]} {obj} "{video} {obj}.{number} at the {word}"' for obj in objects]
    for name, file_lines, encoding in zip(TEXTS, lines, ("utf-8", "utf-8", "latin-1", "latin-1"), strict=True):
        (texts / name).write_text("\n".join(file_lines) + "\n", encoding=encoding)
    categories = {"bear": {"1": "bear"}, "dogs-scale": {"1": "dog", "2": "dog"}}
    (davis / "davis_semantics.json").write_text(json.dumps(categories))
    return root


def write_video(davis: Path, video: str, objects: list[int]) -> None:
    images, masks = davis / "JPEGImages" / "480p" / video, davis / "Annotations_unsupervised" / "480p" / video
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for number, frame in enumerate(FRAMES):
        Image.fromarray(np.full((8, 12, 3), 40 * number, np.uint8)).save(images / f"{frame}.jpg")
        ids = np.zeros((8, 12), np.uint8)
        ids[7] = 255
        for obj in objects:
            if number >= obj - 1:
                ids[obj] = obj
        mask = Image.fromarray(ids).convert("P")
        mask.putpalette(list(range(256)) * 3)
        mask.save(masks / f"{frame}.png")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))["videos"]


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat(follow_symlinks=False).st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fails_with(capsys: pytest.CaptureFixture, root: Path, output: Path) -> str:
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: main(["davis", "--davis_root", str(root), "--output_dir", str(output)]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("copy", [False, True])
def test_layout(davis_root: Path, tmp_path: Path, copy: bool) -> None:
    before, out = state(davis_root), tmp_path / "out"
    summary = convert_davis(davis_root, out, copy)
    assert summary.videos == {"train": 2, "valid": 1} and summary.frames == {"train": 6, "valid": 3}
    assert summary.expressions == {"train": 12, "valid": 8} and summary.notes == []
    for split, videos in VIDEOS.items():
        for video in videos:
            for kind, origin, suffix in (
                ("JPEGImages", "JPEGImages", "jpg"),
                ("Annotations", "Annotations_unsupervised", "png"),
            ):
                target, source = out / split / kind / video, davis_root / "DAVIS" / origin / "480p" / video
                names = sorted(path.name for path in target.iterdir())
                assert names == [f"{frame}.{suffix}" for frame in FRAMES]
                assert all((target / name).read_bytes() == (source / name).read_bytes() for name in names)
                assert all((target / name).is_symlink() != copy for name in names)
    assert state(davis_root) == before


def test_expression_ids_objects_and_text(davis_root: Path, tmp_path: Path) -> None:
    convert_davis(davis_root, tmp_path)
    train = read(tmp_path / "meta_expressions" / "train" / "meta_expressions.json")
    valid = read(tmp_path / "meta_expressions" / "valid" / "meta_expressions.json")
    assert list(train) == ["bear", "dogs-scale"] and list(valid) == ["motorbike"]
    assert valid["motorbike"]["frames"] == FRAMES
    assert valid["motorbike"]["expressions"] == {
        str(4 * (obj - 1) + number): {
            "exp": f"motorbike {obj}.{number} at the {'café' if number >= 2 else 'street'}",
            "obj_id": str(obj),
        }
        for obj in (1, 2)
        for number in range(4)
    }
    assert read(tmp_path / "train" / "meta.json") == {
        "bear": {"objects": {"1": {"category": "bear", "frames": FRAMES}}},
        "dogs-scale": {
            "objects": {"1": {"category": "dog", "frames": FRAMES}, "2": {"category": "dog", "frames": FRAMES[1:]}}
        },
    }
    assert read(tmp_path / "valid" / "meta.json")["motorbike"]["objects"]["2"]["category"] == "unknown"


@pytest.mark.parametrize(
    ("spelt", "video"), [("clasic-car", "classic-car"), ("dog-scale", "dogs-scale"), ("motor-bike", "motorbike")]
)
def test_misspelt_videos_are_mended_and_equal_sentences_kept_apart(tmp_path: Path, spelt: str, video: str) -> None:
    for name in TEXTS:
        (tmp_path / name).write_text(f'{spelt} 1 "it"\n{spelt} 2 "it"\n')
    assert read_davis_sentences(tmp_path) == {video: {obj: dict.fromkeys(range(4), "it") for obj in (1, 2)}}


def test_repeating_changes_nothing_and_completes_what_is_missing(davis_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_davis(davis_root, out)
    before = {name: value for name, value in state(out).items() if not name.endswith(".json")}
    (out / "train" / "Annotations" / "bear" / "00001.png").unlink()
    dangling = out / "valid" / "JPEGImages" / "motorbike" / "00000.jpg"
    dangling.unlink()
    dangling.symlink_to(tmp_path / "nowhere.jpg")
    stump = out / "valid" / "Annotations" / "motorbike" / "00000.png"
    stump.unlink()
    stump.write_bytes(b"\x89PNG")
    convert_davis(davis_root, out)
    after = {name: value for name, value in state(out).items() if not name.endswith(".json")}
    assert {name: content for name, (content, _) in after.items()} == {n: content for n, (content, _) in before.items()}
    assert sum(after[name] != before[name] for name in before) == 3


def test_links_become_copies_when_asked(davis_root: Path, tmp_path: Path) -> None:
    convert_davis(davis_root, tmp_path / "out")
    convert_davis(davis_root, tmp_path / "out", copy=True)
    shutil.rmtree(davis_root)
    images = list((tmp_path / "out").rglob("*.jpg"))
    assert len(images) == 9 and all(path.is_file() and not path.is_symlink() for path in images)


def test_oddities_are_noted(davis_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    texts = davis_root / "davis_text_annotations"
    with (texts / TEXTS[0]).open("a") as file:
        file.write('bear 2 "nobody"\nlake 1 "a duck"\n\n')
    lines = (texts / TEXTS[3]).read_text(encoding="latin-1").splitlines()
    (texts / TEXTS[3]).write_text("\n".join(line for line in lines if "bear" not in line), encoding="latin-1")
    write_video(davis_root / "DAVIS", "silent", [1])
    with (davis_root / "DAVIS" / "ImageSets" / "2017" / "val.txt").open("a") as file:
        file.write("silent\n")
    main(["davis", "--davis_root", str(davis_root), "--output_dir", str(tmp_path / "out")])
    output = capsys.readouterr().out
    assert "valid: 2 videos, 6 frames, 8 expressions" in output
    for note in (
        "object 2 of bear has expressions but no mask",
        f"object 1 of bear has no expression in {TEXTS[3]}",
        "expressions of 1 videos of neither split left out (lake)",
        "valid: no expression for 1 videos (silent)",
    ):
        assert f"note: {note}" in output
    assert list(read(tmp_path / "out/meta_expressions/train/meta_expressions.json")["bear"]["expressions"]) == [*"012"]


def edit(path: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: change(root / path)


def add_line(line: bytes) -> Callable[[Path], object]:
    def append(path: Path) -> None:
        path.write_bytes(path.read_bytes() + line + b"\n")

    return append


FIRST_TEXT = f"davis_text_annotations/{TEXTS[0]}"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (edit("", shutil.rmtree), "davis is missing; it should hold the folders DAVIS"),
        (edit("DAVIS", shutil.rmtree), "DAVIS is missing; it should hold the DAVIS-2017 folders"),
        (edit("davis_text_annotations", shutil.rmtree), "davis_text_annotations is missing"),
        (edit(FIRST_TEXT, Path.unlink), f"{TEXTS[0]} is missing"),
        (edit(FIRST_TEXT, add_line(b"bear 1")), f"{TEXTS[0]}, line 6 is 'bear 1'; it should be"),
        (edit(FIRST_TEXT, add_line(b"bear 1 a bear")), "line 6 is"),
        (edit(FIRST_TEXT, add_line(b'bear one "a bear"')), "line 6 is"),
        (edit(FIRST_TEXT, add_line(b'bear 0 "a bear"')), "line 6 is"),
        (edit(FIRST_TEXT, add_line(b'bear 2 " "')), "line 6 is"),
        (edit(FIRST_TEXT, add_line(b'../bear 2 "a bear"')), "line 6 is"),
        (edit(FIRST_TEXT, add_line(b'bear 1 "again"')), "line 6 is a second expression for object 1 of bear"),
        (edit(FIRST_TEXT, add_line(b'bear 2 "caf\xe9"')), f"cannot read {{root}}/{FIRST_TEXT}"),
        (edit("DAVIS/ImageSets/2017/val.txt", Path.unlink), "val.txt is missing"),
        (edit("DAVIS/ImageSets/2017/val.txt", lambda path: path.write_text("")), "val.txt is empty"),
        (edit("DAVIS/ImageSets/2017/val.txt", add_line(b"../bear")), "val.txt: a video is named '../bear'"),
        (edit("DAVIS/davis_semantics.json", lambda path: path.write_text("[]")), "has a different structure"),
        (edit("DAVIS/JPEGImages/480p/bear", shutil.rmtree), "480p/bear is missing; it should hold the frames of bear"),
        (edit("DAVIS/Annotations_unsupervised/480p/bear", shutil.rmtree), "should hold the masks of bear"),
        (edit("DAVIS/Annotations_unsupervised/480p/bear/00001.png", Path.unlink), "bear/00001.png is missing"),
        (
            edit("DAVIS/Annotations_unsupervised/480p/bear/00001.png", lambda path: path.write_bytes(b"")),
            "bear/00001.png: it is empty",
        ),
        (
            edit("DAVIS/JPEGImages/480p/bear/00001.jpg", lambda path: Image.new("RGB", (6, 4)).save(path)),
            "00001.png is 12×8 pixels, but its frame is 6×4",
        ),
        (edit("DAVIS/JPEGImages/480p/bear/00001.jpg", lambda path: path.write_bytes(b"")), "00001.jpg is broken"),
    ],
)
def test_bad_input(
    spoil: Callable[[Path], object], sentence: str, davis_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    spoil(davis_root)
    assert sentence.replace("{root}", str(davis_root)) in fails_with(capsys, davis_root, tmp_path / "out")


def test_output_folder_that_is_a_file(davis_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out").touch()
    assert "choose another output folder" in fails_with(capsys, davis_root, tmp_path / "out")


def test_mini_davis(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "mini_davis"
    summary = convert_davis(root, tmp_path)
    assert summary.videos == {"train": 9, "valid": 3} and summary.frames == {"train": 162, "valid": 54}
    assert summary.expressions == {"train": 44, "valid": 16} and summary.notes == []
    sentences = read_davis_sentences(root / "davis_text_annotations")
    assert sentences["bmx-trees"][1][3] == "a small bike moving past a painted façade"
    valid = read(tmp_path / "meta_expressions" / "valid" / "meta_expressions.json")
    assert valid["motocross-jump"]["expressions"]["7"] == {"exp": "a dirt bike in the air", "obj_id": "2"}
