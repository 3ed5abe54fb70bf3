"""Ref-DAVIS17 and MeViS at inference: clips of 36 frames, merged objects, layouts, zips, going on after a stop."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
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
from datasets.predictions import CLIP_FRAMES, LAYOUTS, check_submission
from datasets.video import Video
from inference_ytvos import finish, run_inference
from tests.inference_tools import StubModel, tree
from util.config import Config
from util.errors import RunError, UserError
from util.inference_record import InferenceRecord, open_record

HEIGHT, WIDTH = 32, 48
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
IDS = {
    "davis": SENTENCES | {"2": "left", "3": "left", "6": "left", "7": "left"},
    "mevis": SENTENCES,
}


def make_set(root: Path, name: str, lengths: dict[str, int] = LENGTHS) -> Config:
    """Two videos of halves, one of them of three clips."""
    split = "valid" if name == "davis" else "valid_u"
    videos = {}
    for video, length in lengths.items():
        folder = root / "data" / split / "JPEGImages" / video
        folder.mkdir(parents=True)
        names = [f"{i:05d}" for i in range(length)]
        for frame in names:
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(folder / f"{frame}.jpg")
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
    return open_record(cfg, checkpoint, "cpu")


def run(cfg: Config, model: StubModel | None = None) -> tuple[Clips, list[Video]]:
    model, videos, record = model or Clips(), list_videos(cfg), record_of(cfg)
    run_inference(model, videos, cfg, record, CPU)  # type: ignore[arg-type]
    finish(videos, cfg, record)
    return model, videos  # type: ignore[return-value]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("name", ["davis", "mevis"])
def test_a_video_is_segmented_in_clips_of_36_frames(tmp_path: Path, name: str) -> None:
    cfg = make_set(tmp_path, name)
    model, _ = run(cfg)
    assert model.lengths == [36, 36, 3, 4], "and never more, however long the video"
    assert len(model.sentences) == 4 * len(IDS[name])
    result = json.loads((tmp_path / "out" / "inference.json").read_text())["expressions"]["long"]["0"]
    assert result.pop("seconds") >= 0
    assert result == {"sentence": "the left half", "score": 0.8808, "queries": [3, 3, 3], "frames": 75}


def test_the_davis_layout(tmp_path: Path) -> None:
    cfg = make_set(tmp_path, "davis")
    _, videos = run(cfg)
    masks = {f"anno_{a}/{v}/{i:05d}.png" for a in range(4) for v, n in LENGTHS.items() for i in range(n)}
    assert tree(tmp_path / "out").keys() == {*masks, "submission.zip"}
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert set(archive.namelist()) == masks
        with Image.open(io.BytesIO(archive.read("anno_1/long/00074.png"))) as image:
            assert (image.mode, image.size) == ("P", (WIDTH, HEIGHT))
            assert image.getpalette()[3:6] == [128, 0, 0], "object 1 is red, as in DAVIS"
    first, second = read(tmp_path / "out/anno_0/long/00040.png"), read(tmp_path / "out/anno_1/short/00003.png")
    half = WIDTH // 2
    assert (first[:, :half] == 1).all() and (first[:, half:] == 2).all()
    assert (second[:, :half] == 2).all() and (second[:, half:] == 1).all()
    assert check_submission(tmp_path / "out" / "submission.zip", videos, DAVIS) == []


def test_the_mevis_layout(tmp_path: Path) -> None:
    cfg = make_set(tmp_path, "mevis")
    _, videos = run(cfg)
    masks = {f"{v}/{e}/{i:05d}.png" for e in SENTENCES for v, n in LENGTHS.items() for i in range(n)}
    assert tree(tmp_path / "out").keys() == {*(f"Annotations/{name}" for name in masks), "submission.zip"}
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert set(archive.namelist()) == masks, "the videos are at the zip's root"
    left = read(tmp_path / "out/Annotations/long/5/00074.png")
    assert (left[:, : WIDTH // 2] == 255).all() and not left[:, WIDTH // 2 :].any()
    assert check_submission(tmp_path / "out" / "submission.zip", videos, LAYOUTS["mevis"]) == []


def palette(ids: np.ndarray, bits: int = 8) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(list(range(256)) * 3)
        image.save(path, bits=bits)

    return save


IMAGE = np.zeros((HEIGHT, WIDTH), np.uint8)
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (Path.unlink, "is missing"),
    "broken": (lambda path: path.write_bytes(path.read_bytes()[:60]), "is not a readable PNG"),
    "grey": (lambda path: Image.fromarray(IMAGE).save(path), "is not an 8-bit palette image (mode L)"),
    "four bits": (palette(IMAGE, bits=4), "is not an 8-bit palette image"),
    "size": (palette(IMAGE.T), "is 32×48, not 48×32"),
    "an id too high": (palette(IMAGE + 3), "holds the id 3, and the video's highest is 2"),
    "void": (palette(IMAGE + 255), "holds the id 255, and the video's highest is 2"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_of_the_davis_layout(tmp_path: Path, kind: str) -> None:
    cfg = make_set(tmp_path, "davis", {"long": 3, "short": 2})
    model, videos = run(cfg)
    before = tree(tmp_path / "out")
    damage, words = FAULTS[kind]
    damage(tmp_path / "out" / "anno_2" / "short" / "00001.png")
    (tmp_path / "out" / "anno_3" / "notes.txt").write_text("stray")
    faults = check_submission(tmp_path / "out", videos, DAVIS)
    assert [fault for fault in faults if fault.startswith(f"anno_2/short/00001.png {words}")] == faults[:1]
    assert faults[1:] == ["anno_3/notes.txt is not the mask of any expression's frame"]
    model, _ = run(cfg)
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
        run(cfg, Stopped())
    assert set(record_of(cfg).expressions) == {"long"}
    model, _ = run(cfg)
    assert model.lengths == [4]
    rest = tree(tmp_path / "out")
    whole = dataclasses.replace(cfg, output_dir=str(tmp_path / "whole"))
    run(whole)
    assert rest == tree(tmp_path / "whole")
    model, _ = run(cfg)
    assert model.lengths == []


def test_overlays_of_clips(tmp_path: Path) -> None:
    lengths = {"long": CLIP_FRAMES + 2, "short": 2}
    cfg = dataclasses.replace(make_set(tmp_path, "davis", lengths), visualize=True)
    run(cfg)
    folder = tmp_path / "out" / "visualize"
    assert len(list((folder / "long" / "5").iterdir())) == lengths["long"]
    assert {path.name for path in folder.glob("*.mp4")} == {f"{v}_{e}.mp4" for v in LENGTHS for e in IDS["davis"]}
    (folder / "short_4.mp4").unlink()
    model, _ = run(cfg)
    assert model.sentences == [SENTENCES["0"], SENTENCES["4"]], "an annotation's objects are made together"


def test_a_changed_size_between_clips(tmp_path: Path) -> None:
    cfg = make_set(tmp_path, "mevis")
    for frame in range(CLIP_FRAMES, LENGTHS["long"]):
        path = tmp_path / "data" / "valid_u" / "JPEGImages" / "long" / f"{frame:05d}.jpg"
        Image.new("RGB", (WIDTH + 2, HEIGHT)).save(path)
    with pytest.raises(UserError, match=r"00036\.jpg and .*00000\.jpg differ in size \(50×32 and 48×32\)"):
        run(cfg)


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
        run(make_set(tmp_path, "mevis"), Diverged())


def test_inference_davis_is_the_same_program(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(inference_ytvos, "main", seen.append)
    monkeypatch.setattr("sys.argv", ["inference_davis.py", "--split", "train"])
    inference_davis.main()
    assert seen == [["--dataset_file", "davis", "--split", "train"]]
