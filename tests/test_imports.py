"""scripts.prepare_data import: every format, exact masks and sentences, round trips of the demo's exports, mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import build_dataset
from datasets.predictions import read_index_mask, write_index_mask, write_mask
from datasets.toy import ToyParameters, make_video
from datasets.toy.scene import KINDS
from scripts import check_data
from scripts.prepare_data import main
from tests.media_tools import write_film
from tests.test_export import NAMES, SENTENCES, export_film, ids, masks
from tests.true_formats import compressed, write_own_clips
from util.config import Config
from util.errors import run_cli

SIZE = HEIGHT, WIDTH = 12, 16
FRAMES = ["9", "10", "11"]  # in this order, which is not that of text


def square(left: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[2:8, left : left + 6] = True
    return mask


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Two videos, "cat" and "dog", as folders of three PNG frames."""
    for name in ("cat", "dog"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number, frame in enumerate(FRAMES):
            Image.fromarray(np.full((*SIZE, 3), 60 * number, np.uint8)).save(tmp_path / "clips" / name / f"{frame}.png")
    return tmp_path


def coco(video: str = "cat", **changes: Any) -> dict[str, Any]:
    """Object 4 moves right and is gone in the last frame; object 7 overlaps it in the first; frame 11 has no object."""

    def annotation(image: int, track: int, category: int, mask: np.ndarray) -> dict[str, Any]:
        about = {"track_id": track, "attributes": {"said": f"  the {track}th\nthing "}}
        return {"image_id": image, "category_id": category, "segmentation": compressed(mask), **about}

    return {
        "images": [
            {"id": n, "file_name": f"frames\\{video}\\{frame}.jpg", "height": HEIGHT, "width": WIDTH}
            for n, frame in enumerate(FRAMES)
        ],
        "categories": [{"id": 1, "name": "a red thing"}, {"id": 2, "name": "a blue thing"}],
        "annotations": [
            annotation(0, 4, 1, square(1)),
            annotation(0, 7, 2, square(5)),
            {**annotation(1, 4, 1, square(3)), "segmentation": [[3, 2, 9, 2, 9, 8, 3, 8]]},
        ],
        **changes,
    }


def run(root: Path, style: str, *words: object, annotations: str = "a.json") -> Path:
    paths = ["--videos", root / "clips", "--annotations", root / annotations, "--output_dir", root / "data"]
    main(["import", "--format", style, *map(str, paths), *map(str, words)])
    return root / "data"


def expressions(out: Path, split: str = "train") -> Any:
    return json.loads((out / "meta_expressions" / split / "meta_expressions.json").read_text())["videos"]


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def test_coco(frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(frames / "a.json", coco())
    out = run(frames, "coco", "--sentences", "attribute:said")
    names = ["00000", "00001", "00002"]
    said = {"0": {"exp": "the 4th thing", "obj_id": "1"}, "1": {"exp": "the 7th thing", "obj_id": "2"}}
    assert expressions(out) == {"cat": {"frames": names, "expressions": said}}
    overlapping = np.where(square(5), 2, square(1))
    for name, expected in zip(names, (overlapping, square(3) * 1, np.zeros(SIZE)), strict=True):
        assert (read_index_mask(out / "train" / "Annotations" / "cat" / f"{name}.png") == expected).all()
    with Image.open(out / "train" / "JPEGImages" / "cat" / "00002.jpg") as image:
        assert image.format == "JPEG" and np.asarray(image).max() == 120, "frame 11 is the third"
    assert json.loads((out / "train" / "meta.json").read_text())["videos"]["cat"]["objects"] == {
        "1": {"category": "a red thing", "frames": names[:2]},
        "2": {"category": "a blue thing", "frames": names[:1]},
    }
    told = capsys.readouterr().out
    assert "train: 1 videos, 3 frames, 2 objects, 2 expressions" in told
    assert "note: cat: objects overlap in 1 frames; there the one listed last has the pixels" in told
    assert "note: no object of 1 videos (first dog) has a sentence; left out" in told


def test_ytvis_with_a_table(frames: Path) -> None:
    annotation = {
        "video_id": 1,
        "category_id": 1,
        "segmentations": [compressed(square(1)), None, compressed(square(2))],
    }
    content = {
        "videos": [{"id": 1, "file_names": [f"dog/{frame}.png" for frame in FRAMES], "height": 12, "width": 16}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "ball"}],
        "annotations": [
            {"id": 30, **annotation},
            {"id": 31, **annotation, "category_id": 2, "segmentations": [None] * 3},
        ],
    }
    write(frames / "a.json", content)
    rows = ["\ufeffvideo;object;sentence", "dog;30;the dog; now", "dog;30;it", "dog;ball;the ball", "bird;1;x"]
    (frames / "s.csv").write_text("\n".join(rows))
    out = run(frames, "ytvis", "--sentences", frames / "s.csv")
    found = expressions(out)["dog"]["expressions"]
    assert [(e["exp"], e["obj_id"]) for e in found.values()] == [("the dog", "1"), ("it", "1"), ("the ball", "2")]
    shown = json.loads((out / "train" / "meta.json").read_text())["videos"]["dog"]["objects"]
    assert shown["1"]["frames"] == ["00000", "00002"] and shown["2"]["frames"] == []


def test_masks_of_values_and_of_folders(frames: Path) -> None:
    write_index_mask(frames / "m" / "cat" / "9.png", np.where(square(5), 9, square(1)).astype(np.uint8))
    write_mask(frames / "m" / "dog" / "the left one" / "10.png", square(2))
    (frames / "s.csv").write_text("video,object,sentence\ncat,9,nine\ncat,1,one\ndog,the left one,left\n")
    out = run(frames, "masks", "--sentences", frames / "s.csv", "--valid", 1, annotations="m")
    cat, dog = expressions(out)["cat"], expressions(out, "valid")["dog"]
    assert cat["frames"] == ["00000"] and dog["frames"] == ["00001"]
    assert {e["obj_id"]: e["exp"] for e in cat["expressions"].values()} == {"1": "one", "2": "nine"}
    ids_of_cat = read_index_mask(out / "train" / "Annotations" / "cat" / "00000.png")
    assert (ids_of_cat == np.where(square(5), 2, square(1))).all()
    assert (read_index_mask(out / "valid" / "Annotations" / "dog" / "00001.png") == square(2)).all()


@pytest.mark.parametrize("style", ["coco", "ytvis", "masks"])
def test_what_the_demo_exports_comes_back(style: str, tmp_path: Path) -> None:
    """The film has a variable frame rate; object 2 lies over object 1, but in ``index`` where 1 is more likely."""
    exported = export_film(tmp_path, "coco", "ytvis", "index")
    (tmp_path / "clips").mkdir()
    (tmp_path / "a film.mkv").rename(tmp_path / "clips" / "film.mkv")
    annotations, words = exported / f"{style}.json", []
    if style == "masks":
        annotations = exported / "m"
        annotations.mkdir()
        (exported / "index").rename(annotations / "film")
        (tmp_path / "s.csv").write_text(f"video,object,sentence\nfilm,1,{SENTENCES[0]}\nfilm,2,{SENTENCES[1]}\n")
        words = ["--sentences", tmp_path / "s.csv"]
    out = run(tmp_path, style, *words, annotations=str(annotations.relative_to(tmp_path)))
    found = expressions(out)["film"]["expressions"]
    assert [e["exp"] for e in found.values()] == SENTENCES[:2], "nothing was found for the third"
    for number in range(4):
        left, right, _ = masks(number)
        expected = ids(number) if style == "masks" else np.where(right, 2, left)
        assert (read_index_mask(out / "train" / "Annotations" / "film" / f"{number:05d}.png") == expected).all()


def test_masks_of_the_demo_come_back(tmp_path: Path) -> None:
    exported = export_film(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "a film.mkv").rename(tmp_path / "clips" / "masks.mkv")
    (tmp_path / "s.csv").write_text(f"video,object,sentence\nmasks,{NAMES[1]},right\n")
    out = run(tmp_path, "masks", "--sentences", tmp_path / "s.csv", annotations=exported.name)
    expected = np.where(masks(0)[1], 2, masks(0)[0])
    assert (read_index_mask(out / "train" / "Annotations" / "masks" / "00000.png") == expected).all()


def test_ten_clips_of_an_annotation_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What docs/finetune.md does: the result is sound, and its clips can be trained on."""
    write_own_clips(tmp_path, frames=6)
    out = run(tmp_path, "coco", "--sentences", "attribute:sentence", "--valid", 2, annotations="annotations")
    assert [len(expressions(out, split)) for split in ("train", "valid")] == [8, 2]
    video = make_video(ToyParameters(10, 0, 0, 6, 64, 96, 3, KINDS), "train", 0)
    entry = expressions(out)["clip00"]
    assert entry["frames"] == ["00000", "00002", "00004"]
    written = read_index_mask(out / "train" / "Annotations" / "clip00" / "00004.png")
    assert ((written != 0) == (video.masks[4] != 0)).all()
    sentences = {sentence.text for sentence in video.sentences}
    assert entry["expressions"] and {e["exp"] for e in entry["expressions"].values()} <= sentences
    capsys.readouterr()
    assert check_data.main(["ytvos", str(out), "--all", "--split", "train", "valid", "--workers", "1"]) == 0
    cfg = Config(ytvos_path=str(out), train_scales=(48,), crop_scales=(), max_size=96, eval_size=48, num_frames=2)
    clips = build_dataset(cfg, "train")
    assert all(clips[number][1]["masks"].any() for number in range(0, len(clips), 5))


# --- mistakes


def break_coco(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        content = coco()
        change(content)
        write(root / "a.json", content)

    return apply


def twice(content: dict[str, Any]) -> None:
    first = content["annotations"][0]
    first.pop("track_id")
    content["annotations"].append(dict(first))


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda root: None, "a.json is missing"),
    "no json": (lambda root: (root / "a.json").write_text("{"), "is not valid JSON"),
    "a list": (lambda root: write(root / "a.json", []), "the file should be a JSON object"),
    "no images": (break_coco(lambda c: c.pop("images")), "a list of JSON objects under 'images'"),
    "a foreign image": (
        break_coco(lambda c: c["images"][0].update(file_name="bird/1.png")),
        "image 'bird/1.png' belongs to none of the videos (cat, dog, …)",
    ),
    "no name": (break_coco(lambda c: c["images"][0].update(file_name=3)), "an image has the file name 3"),
    "a missing frame": (
        break_coco(lambda c: c["images"][0].update(file_name="cat/12.png")),
        "frame '12' of video 'cat' is not in",
    ),
    "a frame twice": (
        break_coco(lambda c: c["images"][0].update(file_name="cat/10.png")),
        "video 'cat' has two images for frame '10'",
    ),
    "another size": (
        break_coco(lambda c: c["images"][0].update(width=17)),
        "frame '9' of video 'cat' is 16×12 pixels, and its annotation 17×12",
    ),
    "another image": (
        break_coco(lambda c: c["annotations"][0].update(image_id=9)),
        "annotation of image 9, which is not",
    ),
    "damaged runs": (
        break_coco(lambda c: c["annotations"][0].update(segmentation={"size": [12, 16], "counts": "1"})),
        "frame '9' of video 'cat', object 1 has damaged run lengths",
    ),
    "no outline": (break_coco(lambda c: c["annotations"][0].pop("segmentation")), "has no COCO 'segmentation'"),
    "no track": (break_coco(twice), "has two annotations of category 'a red thing', and no track_id"),
    "no sentence": (
        break_coco(lambda c: [a.pop("attributes") for a in c["annotations"]]),
        "no annotated object has a sentence by --sentences attribute:said",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_annotations(mistake: str, frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words = MISTAKES[mistake]
    spoil(frames)
    assert words in error_of(capsys, lambda: run(frames, "coco", "--sentences", "attribute:said"))
    assert sorted(path.name for path in frames.iterdir()) in (["a.json", "clips"], ["clips"]), "nothing is written"


def error_of(capsys: pytest.CaptureFixture[str], act: Callable[[], object]) -> str:
    with pytest.raises(SystemExit) as stop:
        run_cli(act)  # type: ignore[arg-type]
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("video,object\ncat,4\n", "no column 'sentence'"),
        ("video,object,sentence\ncat,5,x\n", "line 2: '5' of video 'cat' is not annotated (objects: 4, 7)"),
        ("", "no column 'object'"),
        ('video,object,sentence\ncat,4,"' + "x" * 140000 + '"\n', "is not a table (field larger"),
    ],
)
def test_mistakes_in_the_table(table: str, words: str, frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(frames / "a.json", coco())
    (frames / "s.csv").write_text(table)
    assert words in error_of(capsys, lambda: run(frames, "coco", "--sentences", frames / "s.csv"))


def test_mistakes_on_the_command_line(frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(frames / "a.json", coco())
    assert "none would be left with --valid 1" in error_of(capsys, lambda: run(frames, "coco", "--valid", 1))
    assert "no annotated object has a sentence by --sentences attribute:x" in error_of(
        capsys, lambda: run(frames, "coco", "--sentences", "attribute:x")
    )
    assert "s.csv is missing; it should hold sentences" in error_of(
        capsys, lambda: run(frames, "coco", "--sentences", frames / "s.csv")
    )
    assert "masks have no categories" in error_of(capsys, lambda: run(frames, "masks", annotations="clips"))
    run(frames, "coco")
    assert "data is not empty; choose a new folder" in error_of(capsys, lambda: run(frames, "coco"))


def test_a_video_that_ends_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clips").mkdir()
    write_film(tmp_path / "clips" / "cat.mkv", 2, SIZE, "ffv1", "bgr0")
    content = coco()
    content["images"] = [{"id": n, "file_name": f"{n + 1:06d}.png", "height": 12, "width": 16} for n in range(2)]
    content["annotations"] = content["annotations"][:1]
    write(tmp_path / "a.json", content)
    error = error_of(capsys, lambda: run(tmp_path, "coco"))
    assert "frame '000002' of video 'cat' is annotated, and" in error and "numbered from 0" in error
