"""Mask layouts and submissions: files, zips, checks, and inference in clips."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import inference_davis
import inference_ytvos
from datasets import list_videos
from datasets.files import Video
from datasets.predictions import (
    CLIP_FRAMES,
    LAYOUTS,
    InferenceRecord,
    check_submission,
    frame_size,
    is_written,
    mask_path,
    require_frames,
    write_grey,
    write_index_mask,
    write_mask,
    write_submission,
)
from engine import build_record
from tests.inference_tools import StubModel, finish, run_inference, tree
from util.config import Config
from util.errors import RunError, UserError

# --- Submissions


HEIGHT, WIDTH = 24, 40


@dataclass
class FakeVideo:
    name: str
    frame_paths: list[Path]
    expressions: dict[str, str] = field(default_factory=lambda: {"0": "a dog", "1": "a cat"})


@pytest.fixture
def videos(tmp_path: Path) -> list[FakeVideo]:
    """Two videos of two frames and two expressions, their frames on disk."""
    result = []
    for name in ("a", "b"):
        paths = [tmp_path / "frames" / name / f"{i:05d}.jpg" for i in (0, 5)]
        paths[0].parent.mkdir(parents=True)
        for path in paths:
            Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path)
        result.append(FakeVideo(name, paths))
    return result


@pytest.fixture
def written(tmp_path: Path, videos: list[FakeVideo]) -> Path:
    """A folder with all masks."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:9, 5:20] = True
    for video in videos:
        for exp_id in video.expressions:
            for frame in video.frame_paths:
                write_mask(mask_path(tmp_path / "out", video.name, exp_id, frame.stem), mask)
    return tmp_path / "out"


FIRST = "Annotations/a/0/00000.png"


def save(image: Image.Image | np.ndarray, **options) -> Callable[[Path], object]:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return lambda path: picture.save(path, **options)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 1
    path.write_bytes(content)


GREY = np.zeros((HEIGHT, WIDTH), np.uint8)
SUBMISSION_FAULTS = {
    "missing": (Path.unlink, "is missing"),
    "empty file": (lambda path: path.write_bytes(b""), "is not a readable PNG"),
    "cut": (cut, "is not a readable PNG"),
    "flipped bit": (flip_a_bit, "is not a readable PNG"),
    "a JPEG": (save(GREY, format="JPEG"), "is not a readable PNG"),
    "other size": (save(GREY[:20]), "is 40×20, not 40×24"),
    "turned": (save(GREY.T.copy()), "is 24×40, not 40×24"),
    "colour": (save(np.zeros((HEIGHT, WIDTH, 3), np.uint8)), "is not 8-bit greyscale"),
    "palette": (save(Image.fromarray(GREY).convert("P")), "is not 8-bit greyscale"),
    "one bit": (save(Image.fromarray(GREY).convert("1")), "is not 8-bit greyscale"),
    "16 bits": (save(GREY.astype(np.uint16)), "is not 8-bit greyscale"),
    "zero and one": (save(GREY + 1), "holds the value 1, not only 0 and 255"),
}


def test_masks_are_8_bit_greyscale(written: Path):
    with Image.open(written / FIRST) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (WIDTH, HEIGHT))
        values = np.asarray(image)
    assert np.unique(values).tolist() == [0, 255] and (values == 255).sum() == 6 * 15


def test_a_whole_submission_has_no_fault(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    write_submission(written, videos, tmp_path / "s.zip")
    assert check_submission(tmp_path / "s.zip", videos) == []
    assert check_submission(written, videos) == []
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        names = archive.namelist()
    assert len(names) == 8 and names[0] == FIRST
    assert {name.split("/")[0] for name in names} == {"Annotations"}


def test_only_masks_go_into_the_zip(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    (written / "Annotations" / "a" / "0" / ".DS_Store").write_text("stray")
    write_submission(written, videos, tmp_path / "s.zip")
    assert check_submission(tmp_path / "s.zip", videos) == []
    assert check_submission(written, videos) == ["Annotations/a/0/.DS_Store is not the mask of any expression's frame"]


def test_same_masks_same_zip(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    for name in ("s.zip", "t.zip"):
        write_submission(written, videos, tmp_path / name)
    assert (tmp_path / "s.zip").read_bytes() == (tmp_path / "t.zip").read_bytes()


@pytest.mark.parametrize("kind", SUBMISSION_FAULTS)
def test_each_fault_is_found(tmp_path: Path, written: Path, videos: list[FakeVideo], kind: str):
    damage, words = SUBMISSION_FAULTS[kind]
    write_submission(written, videos, tmp_path / "s.zip")
    assert is_written(written, videos[0], "Annotations/a/0")
    damage(written / FIRST)
    assert not is_written(written, videos[0], "Annotations/a/0")
    assert is_written(written, videos[0], "Annotations/a/1")

    (fault,) = check_submission(written, videos)
    assert fault.startswith(f"{FIRST} {words}")

    with zipfile.ZipFile(tmp_path / "s.zip") as good, zipfile.ZipFile(tmp_path / "t.zip", "w") as bad:
        for name in good.namelist():
            if name != FIRST:
                bad.writestr(name, good.read(name))
            elif (written / FIRST).exists():
                bad.write(written / FIRST, FIRST)
    (fault,) = check_submission(tmp_path / "t.zip", videos)
    assert fault.startswith(f"{FIRST} {words}")


def test_a_zip_with_other_things(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    write_submission(written, videos, tmp_path / "s.zip")
    with zipfile.ZipFile(tmp_path / "s.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("readme.txt", "hello")
        archive.writestr(FIRST, archive.read(FIRST))
    assert check_submission(tmp_path / "s.zip", videos) == [
        f"{FIRST} is there 2 times",
        "readme.txt is not the mask of any expression's frame",
    ]


def test_a_zip_without_annotations_at_its_root(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for path in sorted((written / "Annotations").rglob("*.png")):
            archive.write(path, path.relative_to(written / "Annotations").as_posix())
    faults = check_submission(tmp_path / "s.zip", videos)
    assert len(faults) == 16 and faults[0] == f"{FIRST} is missing"


def test_zips_that_cannot_be_read(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    with pytest.raises(UserError, match=r"nothing\.zip is missing"):
        check_submission(tmp_path / "nothing.zip", videos)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match="is not a sound zip"):
        check_submission(tmp_path / "text.zip", videos)
    write_submission(written, videos, tmp_path / "s.zip")
    content = bytearray((tmp_path / "s.zip").read_bytes())
    content[60] ^= 1
    (tmp_path / "s.zip").write_bytes(content)
    with pytest.raises(UserError, match="is not a sound zip"):
        check_submission(tmp_path / "s.zip", videos)


def test_a_missing_mask_makes_no_zip(tmp_path: Path, written: Path, videos: list[FakeVideo]):
    (written / FIRST).unlink()
    with pytest.raises(UserError, match=r"00000\.png is missing; run the inference again"):
        write_submission(written, videos, tmp_path / "s.zip")
    assert not (tmp_path / "s.zip").exists()


def test_a_mask_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "Annotations").write_text("in the way")
    with pytest.raises(UserError, match="a part of its folder is a file"):
        write_mask(mask_path(tmp_path, "a", "0", "00000"), np.zeros((2, 2), bool))


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (50, 3)])
@pytest.mark.parametrize("noise", [True, False])
def test_pixels_and_kind_of_every_written_png(tmp_path: Path, size: tuple[int, int], noise: bool):
    """8 bits per pixel, as the benchmarks take them: greyscale, or a palette for object ids."""
    draw = np.random.default_rng(0)
    levels = draw.integers(0, 256, size, np.uint8) if noise else np.full(size, 255, np.uint8)
    expected = {"mask": (levels > 99) * 255, "grey": levels, "ids": levels % 5}
    write_mask(tmp_path / "mask.png", levels > 99)
    write_grey(tmp_path / "grey.png", levels)
    write_index_mask(tmp_path / "ids.png", levels % 5)
    for name, plane in expected.items():
        content = (tmp_path / f"{name}.png").read_bytes()
        assert tuple(content[24:26]) == (8, 3 if name == "ids" else 0), "bit depth and colour type"
        Image.open(tmp_path / f"{name}.png").verify()  # the checksums
        with Image.open(tmp_path / f"{name}.png") as image:
            assert (np.asarray(image) == plane).all() and image.size == size[::-1]


def test_frames(tmp_path: Path, videos: list[FakeVideo]):
    path = videos[0].frame_paths[0]
    assert frame_size(path) == (HEIGHT, WIDTH)
    require_frames(videos)
    path.write_text("no picture")
    with pytest.raises(UserError, match=r"frame .*a/00000\.jpg is broken"):
        frame_size(path)
    path.unlink()
    with pytest.raises(UserError, match=r"frame .*a/00000\.jpg is missing"):
        frame_size(path)
    with pytest.raises(UserError, match=r"frame .*a/00000\.jpg is missing; "):
        require_frames(videos)
    videos[1].frame_paths[1].unlink()
    with pytest.raises(UserError, match=r"frame .*a/00000\.jpg is missing \(and 1 more\)"):
        require_frames(videos)


# --- Layouts of Ref-DAVIS17 and MeViS


CLIP_HEIGHT, CLIP_WIDTH = 32, 48
CPU = torch.device("cpu")
DAVIS = LAYOUTS["davis"]


# --- the merging of objects


def soft(values: list[float], threshold: float = 0.5) -> SimpleNamespace:
    """A prediction of one frame of one row."""
    probabilities = np.array(values, np.float32)[None, None]
    masks = probabilities >= threshold
    return SimpleNamespace(masks=masks, probabilities=probabilities * masks)


def test_objects_are_merged_by_the_greatest_probability() -> None:
    predictions = [
        ("0", soft([0.9, 0.6, 0.49, 0.5, 0.7, 0.05])),
        ("4", soft([0.6, 0.8, 0.49, 0.4, 0.7, 0.05])),
        ("12", soft([0.1, 0.7, 0.49, 0.4, 0.8, 0.05])),
    ]
    # Object 1, 2, background (all below 0.5), 1 (0.5 is not below), 4, background.
    assert DAVIS.merge(iter(predictions), (1, 1, 6)).tolist() == [[[1, 2, 0, 1, 4, 0]]]
    assert DAVIS.merge(iter([("4", soft([0.7])), ("8", soft([0.7]))]), (1, 1, 1)).tolist() == [[[2]]], "first of equals"


def test_merging_is_the_argmax_over_background_and_objects() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random((3, 2, 20, 30), dtype=np.float32)
    stack = np.where(probabilities < 0.5, 0, probabilities)
    expected = np.concatenate([np.full((1, 2, 20, 30), 0.1, np.float32), stack]).argmax(axis=0)
    items = [(str(4 * i + 2), SimpleNamespace(masks=p > 0, probabilities=p)) for i, p in enumerate(stack)]
    assert np.array_equal(DAVIS.merge(items, (2, 20, 30)), expected)


def test_the_background_wins_from_a_tenth_on() -> None:
    low = soft([0.1, 0.10001, 0.05], threshold=0.0)
    assert DAVIS.merge([("0", low)], (1, 1, 3)).tolist() == [[[0, 1, 0]]]


def test_nothing_is_said_in_an_annotation() -> None:
    assert not DAVIS.merge([], (2, 3, 4)).any()


def test_an_annotation_has_its_own_sentence_of_every_object() -> None:
    video = Video("cat", [Path("00000.jpg")], {str(i): "" for i in (9, 0, 1, 2, 3, 10, 4, 5, 11)})
    assert DAVIS.folders(video) == {
        "anno_0/cat": ["0", "4"],
        "anno_1/cat": ["1", "5", "9"],
        "anno_2/cat": ["2", "10"],
        "anno_3/cat": ["3", "11"],
    }


# --- whole runs with a stub


class Clips(StubModel):
    """Also notes the length of each clip, and how many frames are in its memory at once."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []
        self.encoder = SimpleNamespace(encode_pixels=self._encode)

    def _encode(self, frames: Tensor) -> Tensor:
        self.lengths.append(frames.shape[1])
        return frames


SENTENCES = {"0": "the left half", "1": "the right half", "4": "the right half", "5": "the left half"}
LENGTHS = {"long": 2 * CLIP_FRAMES + 3, "short": 4}
IDS = {"davis": SENTENCES | {"2": "left", "3": "left", "6": "left", "7": "left"}, "mevis": SENTENCES}


def make_set(root: Path, name: str, lengths: dict[str, int] = LENGTHS) -> Config:
    """Two videos of halves, one of them of three clips."""
    split = "valid" if name == "davis" else "valid_u"
    videos = {}
    for video, length in lengths.items():
        folder = root / "data" / split / "JPEGImages" / video
        folder.mkdir(parents=True)
        names = [f"{i:05d}" for i in range(length)]
        for frame in names:
            Image.fromarray(np.full((CLIP_HEIGHT, CLIP_WIDTH, 3), 90, np.uint8)).save(folder / f"{frame}.jpg")
        expressions = {i: {"exp": text, "obj_id": str(int(i) // 4 + 1)} for i, text in IDS[name].items()}
        videos[video] = {"frames": names, "expressions": expressions}
    file = root / "data" / ("meta_expressions/valid" if name == "davis" else split) / "meta_expressions.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"videos": videos}))
    options: dict[str, Any] = {"dataset_file": name, "expressions_per_batch": 1, f"{name}_path": str(root / "data")}
    return Config(output_dir=str(root / "out"), eval_size=32, max_size=64, train_scales=(32,), **options)


def record_of(cfg: Config) -> InferenceRecord:
    checkpoint = Path(cfg.output_dir).parent / "checkpoint.pth"
    checkpoint.write_text("weights")
    return build_record(cfg, checkpoint, torch.device("cpu"))


def run_set(cfg: Config, model: StubModel | None = None) -> tuple[Clips, list[Video]]:
    model, videos, record = model or Clips(), list_videos(cfg), record_of(cfg)
    run_inference(model, videos, cfg, record)  # type: ignore[arg-type]
    finish(videos, cfg, record)
    return model, videos  # type: ignore[return-value]


def read_plane(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("name", ["davis", "mevis"])
def test_a_video_is_segmented_in_clips_of_36_frames(tmp_path: Path, name: str) -> None:
    cfg = make_set(tmp_path, name)
    model, _ = run_set(cfg)
    assert model.lengths == [36, 36, 3, 4], "and never more, however long the video"
    assert len(model.sentences) == 4 * len(IDS[name])
    result = json.loads((tmp_path / "out" / "inference.json").read_text())["expressions"]["long"]["0"]
    assert result.pop("seconds") >= 0
    assert result == {"sentence": "the left half", "score": 0.8808, "queries": [3, 3, 3], "frames": 75}


def test_the_davis_layout(tmp_path: Path) -> None:
    cfg = make_set(tmp_path, "davis")
    _, videos = run_set(cfg)
    masks = {f"anno_{a}/{v}/{i:05d}.png" for a in range(4) for v, n in LENGTHS.items() for i in range(n)}
    assert tree(tmp_path / "out").keys() == {*masks, "submission.zip"}
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert set(archive.namelist()) == masks
        with Image.open(io.BytesIO(archive.read("anno_1/long/00074.png"))) as image:
            assert (image.mode, image.size) == ("P", (CLIP_WIDTH, CLIP_HEIGHT))
            assert image.getpalette()[3:6] == [128, 0, 0], "object 1 is red, as in DAVIS"
    first, second = (
        read_plane(tmp_path / "out/anno_0/long/00040.png"),
        read_plane(tmp_path / "out/anno_1/short/00003.png"),
    )
    half = CLIP_WIDTH // 2
    assert (first[:, :half] == 1).all() and (first[:, half:] == 2).all()
    assert (second[:, :half] == 2).all() and (second[:, half:] == 1).all()
    assert check_submission(tmp_path / "out" / "submission.zip", videos, DAVIS) == []


def test_the_mevis_layout(tmp_path: Path) -> None:
    cfg = make_set(tmp_path, "mevis")
    _, videos = run_set(cfg)
    masks = {f"{v}/{e}/{i:05d}.png" for e in SENTENCES for v, n in LENGTHS.items() for i in range(n)}
    assert tree(tmp_path / "out").keys() == {*(f"Annotations/{name}" for name in masks), "submission.zip"}
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert set(archive.namelist()) == masks, "the videos are at the zip's root"
    left = read_plane(tmp_path / "out/Annotations/long/5/00074.png")
    assert (left[:, : CLIP_WIDTH // 2] == 255).all() and not left[:, CLIP_WIDTH // 2 :].any()
    assert check_submission(tmp_path / "out" / "submission.zip", videos, LAYOUTS["mevis"]) == []


def palette(ids: np.ndarray, bits: int = 8) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(list(range(256)) * 3)
        image.save(path, bits=bits)

    return save


IMAGE = np.zeros((CLIP_HEIGHT, CLIP_WIDTH), np.uint8)
DAVIS_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (Path.unlink, "is missing"),
    "broken": (lambda path: path.write_bytes(path.read_bytes()[:60]), "is not a readable PNG"),
    "grey": (lambda path: Image.fromarray(IMAGE).save(path), "is not an 8-bit palette image (mode L)"),
    "four bits": (palette(IMAGE, bits=4), "is not an 8-bit palette image"),
    "size": (palette(IMAGE.T), "is 32×48, not 48×32"),
    "an id too high": (palette(IMAGE + 3), "holds the id 3, and the video's highest is 2"),
    "void": (palette(IMAGE + 255), "holds the id 255, and the video's highest is 2"),
}


@pytest.mark.parametrize("kind", DAVIS_FAULTS)
def test_faults_of_the_davis_layout(tmp_path: Path, kind: str) -> None:
    cfg = make_set(tmp_path, "davis", {"long": 3, "short": 2})
    model, videos = run_set(cfg)
    before = tree(tmp_path / "out")
    damage, words = DAVIS_FAULTS[kind]
    damage(tmp_path / "out" / "anno_2" / "short" / "00001.png")
    (tmp_path / "out" / "anno_3" / "notes.txt").write_text("stray")
    faults = check_submission(tmp_path / "out", videos, DAVIS)
    assert [fault for fault in faults if fault.startswith(f"anno_2/short/00001.png {words}")] == faults[:1]
    assert faults[1:] == ["anno_3/notes.txt is not the mask of any expression's frame"]
    model, _ = run_set(cfg)
    assert model.sentences == ["left"] * 2, "only the folder with the fault is made again"
    (tmp_path / "out" / "anno_3" / "notes.txt").unlink()
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["davis", "mevis"])
def test_a_stopped_run_goes_on(tmp_path: Path, name: str) -> None:
    class Stopped(Clips):
        def segment_pixels(self, *args: Any, **options: Any) -> SimpleNamespace:
            if len(self.sentences) == 3 * len(IDS[name]) + 1:  # in the first clip of the second video
                raise KeyboardInterrupt
            return super().segment_pixels(*args, **options)

    cfg = make_set(tmp_path, name)
    with pytest.raises(KeyboardInterrupt):
        run_set(cfg, Stopped())
    assert set(record_of(cfg).expressions) == {"long"}
    model, _ = run_set(cfg)
    assert model.lengths == [4]
    rest = tree(tmp_path / "out")
    whole = dataclasses.replace(cfg, output_dir=str(tmp_path / "whole"))
    run_set(whole)
    assert rest == tree(tmp_path / "whole")
    model, _ = run_set(cfg)
    assert model.lengths == []


def test_overlays_of_clips(tmp_path: Path) -> None:
    lengths = {"long": CLIP_FRAMES + 2, "short": 2}
    cfg = dataclasses.replace(make_set(tmp_path, "davis", lengths), visualize=True)
    run_set(cfg)
    folder = tmp_path / "out" / "visualize"
    assert len(list((folder / "long" / "5").iterdir())) == lengths["long"]
    assert {path.name for path in folder.glob("*.mp4")} == {f"{v}_{e}.mp4" for v in LENGTHS for e in IDS["davis"]}
    (folder / "short_4.mp4").unlink()
    model, _ = run_set(cfg)
    assert model.sentences == [SENTENCES["0"], SENTENCES["4"]], "an annotation's objects are made together"


def test_a_changed_size_between_clips(tmp_path: Path) -> None:
    cfg = make_set(tmp_path, "mevis")
    for frame in range(CLIP_FRAMES, LENGTHS["long"]):
        path = tmp_path / "data" / "valid_u" / "JPEGImages" / "long" / f"{frame:05d}.jpg"
        Image.new("RGB", (CLIP_WIDTH + 2, CLIP_HEIGHT)).save(path)
    with pytest.raises(UserError, match=r"00036\.jpg and .*00000\.jpg differ in size \(50×32 and 48×32\)"):
        run_set(cfg)


def test_expressions_that_are_not_numbered(tmp_path: Path) -> None:
    cfg = make_set(tmp_path, "davis")
    path = tmp_path / "data" / "meta_expressions" / "valid" / "meta_expressions.json"
    path.write_text(path.read_text().replace('"4":', '"04":'))
    with pytest.raises(UserError, match=r"expression '04' of video 'long' .* not numbered as in Ref-DAVIS17"):
        list_videos(cfg)


def test_not_finite_in_a_later_clip(tmp_path: Path) -> None:
    class Diverged(Clips):
        def segment_pixels(self, *args: Any, **options: Any) -> SimpleNamespace:
            output = super().segment_pixels(*args, **options)
            output.logits = output.logits * (float("nan") if len(self.lengths) == 2 else 1)
            return output

    with pytest.raises(RunError, match="video 'long', expression '0' are not finite"):
        run_set(make_set(tmp_path, "mevis"), Diverged())


def test_inference_davis_is_the_same_program(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(inference_ytvos, "main", seen.append)
    monkeypatch.setattr("sys.argv", ["inference_davis.py", "--split", "train"])
    inference_davis.main()
    assert seen == [["--dataset_file", "davis", "--split", "train"]]
