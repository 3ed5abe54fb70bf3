"""Long-RVOS: training clips, scores by hand, bad input, and inference whose memory does not grow with the video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_dataset, list_videos
from datasets.predictions import InferenceRecord, mask_path, write_mask
from datasets.registry import resolve
from datasets.scoring import PER_OBJECT, find_ground_truth, score_expressions, video_metrics
from datasets.transforms import EvalTransform
from datasets.ytvos import YtvosClips
from scripts import eval_jf
from tests.inference_tools import StubModel, finish, run_inference
from tests.ytvos_tools import SMALL_CLIPS
from util.config import Config
from util.errors import UserError
from util.metrics import Shape, shape_scores

SIZE = HEIGHT, WIDTH = 24, 32
NAMES = [f"{number:05d}" for number in range(5)]
EXPRESSIONS = {
    "0": {"exp": "The red box", "obj_id": "1", "type": "static"},
    "1": {"exp": "the box that hides", "obj_id": "2", "type": "dynamic"},
    "2": {"exp": "the red box that moves", "obj_id": "1", "type": "hybrid"},
}
VISIBLE = 3  # frames with object 1; object 2 is never visible


def box(columns: slice = slice(6, 20)) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[4:14, columns] = True
    return mask


def write_frames(root: Path, split: str, video: str, names: list[str], size: tuple[int, int] = SIZE) -> None:
    folder = root / split / "JPEGImages" / video
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full((*size, 3), 40 + number % 200, np.uint8)).save(folder / f"{name}.jpg")


def write_expressions(root: Path, split: str, videos: dict[str, Any]) -> None:
    (root / split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set with one video in train and valid, and predictions for it in ``Annotations``."""
    for split in ("train", "valid"):
        write_frames(tmp_path, split, "street", NAMES)
        for name in NAMES[:VISIBLE]:
            write_mask(tmp_path / split / "Annotations" / "street" / "1" / f"{name}.png", box())
        write_expressions(tmp_path, split, {"street": {"frames": NAMES, "expressions": EXPRESSIONS}})
    empty, half = np.zeros(SIZE, bool), box(slice(6, 13))
    predictions = {
        "0": [empty, box(), half, box(), empty],  # missed, found, half, wrong, rightly empty
        "1": [empty] * 5,
        "2": [box()] * VISIBLE + [empty] * 2,
    }
    for exp_id, masks in predictions.items():
        for name, mask in zip(NAMES, masks, strict=True):
            write_mask(mask_path(tmp_path, "street", exp_id, name), mask)
    return tmp_path


def config(root: Path, **options: Any) -> Config:
    return resolve(Config(dataset_file="long_rvos", long_rvos_path=str(root), **{**SMALL_CLIPS, **options}))


def score(root: Path) -> dict[str, Any]:
    return score_expressions(find_ground_truth(root / "valid" / "Annotations"), root / "Annotations")


def test_numbers_of_objects_may_begin_with_0(root: Path) -> None:
    """The objects are folders; in a palette mask 0 is the background."""
    first = score(root)["per_kind"]
    for split in ("train", "valid"):
        folder = root / split / "Annotations" / "street"
        (folder / "1").rename(folder / "0")
        again = {key: {**value, "obj_id": str(int(value["obj_id"]) - 1)} for key, value in EXPRESSIONS.items()}
        write_expressions(root, split, {"street": {"frames": NAMES, "expressions": again}})
    assert score(root)["per_kind"] == first
    assert build_dataset(config(root), "train")[0][1]["valid"].any()


def test_scores_by_hand(root: Path) -> None:
    scores = score(root)
    f = (0 + 1 + shape_scores(Shape.of(box()), Shape.of(box(slice(6, 13))))[1] + 0 + 1) / 5
    j = (0 + 1 + 0.5 + 0 + 1) / 5
    temporal = {
        "tIoU": 2 / 4,
        "vIoU": (1 + 0.5) / 4,
        "IDSW": 0,
    }  # four frames with the object or a prediction, two with both
    missed = {"J": j, "F": f, "JF": (j + f) / 2, **temporal}
    right = {"J": 1, "F": 1, "JF": 1, "tIoU": 1, "vIoU": 1, "IDSW": 0}
    assert scores["per_kind"] == {
        "static": pytest.approx({**missed, "expressions": 1}),
        "dynamic": pytest.approx({**right, "expressions": 1}),
        "hybrid": pytest.approx({**right, "expressions": 1}),
    }
    assert scores["global"] == pytest.approx({name: (missed[name] + 2 * right[name]) / 3 for name in missed})
    metrics = video_metrics(scores)
    assert metrics["tIoU"] == pytest.approx(100 * 2.5 / 3) and metrics["vIoU"] == pytest.approx(100 * 2.375 / 3)
    assert metrics["kind.static.vIoU"] == pytest.approx(37.5)
    assert any("objects of 1 expressions (first street/1) are in no frame" in note for note in scores["notes"])


def test_the_table_of_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eval_jf.main(["--gt", str(root / "valid"), "--pred", str(root), "--workers", "1"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "kind expressions J&F J F tIoU vIoU IDSW" in lines
    assert "dynamic 1 100.0 100.0 100.0 100.0 100.0 0.0" in lines
    assert any(line.startswith("static 1 ") and line.endswith(" 50.0 37.5 0.0") for line in lines)


def test_training_clips(root: Path) -> None:
    clips = YtvosClips(root, "train", EvalTransform(HEIGHT, WIDTH), None, challenge=False)
    assert clips.ground_truth.layout == PER_OBJECT
    expected = torch.from_numpy(np.stack([box()] * VISIBLE + [np.zeros(SIZE, bool)] * 2))
    for index in (0, 2):
        assert torch.equal(clips[index][1]["masks"], expected) and clips[index][1]["caption"].islower()
    assert not clips[1][1]["masks"].any()
    assert len(build_dataset(config(root), "train")) == 3 * 3, "per expression one for each start frame: 0, 2, 4"


def test_an_object_whose_number_is_also_that_of_an_expression(root: Path) -> None:
    """Folders named 0, 1 and 2 are still those of objects."""
    for number in (0, 2):
        (root / "valid" / "Annotations" / "street" / str(number)).mkdir()
    assert find_ground_truth(root / "valid" / "Annotations").layout == PER_OBJECT


def test_bad_input(root: Path) -> None:
    write_mask(root / "train" / "Annotations" / "street" / "1" / "00000.png", np.zeros((HEIGHT, WIDTH + 1), bool))
    clips = YtvosClips(root, "train", EvalTransform(HEIGHT, WIDTH), None, challenge=False)
    with pytest.raises(UserError, match=r"street/1/00000\.png is 33×24 pixels, but its frame is 32×24"):
        clips[0]
    with pytest.raises(UserError, match="unknown split 'val'; long_rvos has train, valid, test"):
        list_videos(config(root, split="val"))
    (root / "train" / "Annotations" / "street").rename(root / "train" / "Annotations" / "road")
    with pytest.raises(UserError, match=r"Annotations/street is missing, but the expressions file lists it"):
        build_dataset(config(root), "train")


def test_the_submission(root: Path, tmp_path: Path) -> None:
    cfg = config(root, output_dir=str(tmp_path / "out"), expressions_per_batch=1)
    videos = list_videos(cfg)
    record = InferenceRecord(tmp_path / "out" / "inference.json", {}, {})
    run_inference(StubModel(), videos, cfg, record)
    assert "wrote 15 masks of 3 expressions in 1 videos" in finish(videos, cfg, record)[0]
    assert (tmp_path / "out" / "Annotations" / "street" / "2" / "00004.png").is_file()


def peak_mib(root: Path, length: int) -> float:
    """Segment and score a video of this length; return how far the memory of this process rose meanwhile."""
    names = [f"{number:05d}" for number in range(length)]
    folder = root / str(length)
    write_frames(folder, "valid", "long", names, (120, 180))
    write_mask(folder / "valid" / "Annotations" / "long" / "1" / "00000.png", np.ones((120, 180), bool))
    entry = {"frames": names, "expressions": {"0": {"exp": "the left half", "obj_id": "1", "type": "static"}}}
    write_expressions(folder, "valid", {"long": entry})
    cfg = config(folder, eval_size=120, max_size=0, output_dir=str(folder / "out"))

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    except OSError:
        pytest.skip("this system does not let a process reset the peak of its memory")
    before = status("VmRSS")
    run_inference(StubModel(), list_videos(cfg), cfg, InferenceRecord(folder / "out" / "inference.json", {}, {}))
    score_expressions(find_ground_truth(folder / "valid" / "Annotations"), folder / "out" / "Annotations")
    return status("VmHWM") - before


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """The additional 576 frames of the longer video would need 142 MiB, and their masks as much again."""
    peak_mib(tmp_path, 36)  # the first use of every part
    short, long = peak_mib(tmp_path, 144), peak_mib(tmp_path, 720)  # both fill the queues of files
    assert long - short < 50, (short, long)
