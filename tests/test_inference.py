"""Inference on whole videos: what it writes, going on after a stop, never mixing runs."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import engine
from datasets import files, list_videos
from datasets.files import Video
from datasets.predictions import InferenceRecord, write_mask
from datasets.registry import DATASETS
from engine import build_mask_identity
from models.inference import InferenceOptions, large_video_notes
from tests.inference_tools import FRAMES, HEIGHT, SENTENCES, WIDTH, StubModel, finish, run_inference, tree, write_halves
from util.config import Config
from util.device import resolve_device, use_expandable_segments
from util.distributed import process_group
from util.errors import RunError, UserError

EVAL_SIZE = 36  # frames of 36×64: the height needs padding to 48
CPU = torch.device("cpu")


class BrokenModel(StubModel):
    """Stops at its third sentence, as a killed run would."""

    def segment_pixels(self, *args: Any, **options: Any) -> SimpleNamespace:
        if len(self.sentences) == 2:
            raise KeyboardInterrupt
        return super().segment_pixels(*args, **options)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_halves(tmp_path / "data")


@pytest.fixture
def cfg(tmp_path: Path, data: Path) -> Config:
    return Config(
        **{"ytvos_path": str(data), "output_dir": str(tmp_path / "out"), "eval_size": EVAL_SIZE},
        train_scales=(64,),
        expressions_per_batch=1,  # the stub takes one
    )


def record_of(cfg: Config, checkpoint: str = "abc") -> InferenceRecord:
    identity = {"checkpoint_sha256": checkpoint, **build_mask_identity(cfg)}
    return InferenceRecord(Path(cfg.output_dir) / "inference.json", identity, {"device": "cpu"})


def run(cfg: Config, model: StubModel | None = None) -> tuple[StubModel, list[Video], InferenceRecord]:
    """One run as ``main`` does it, with a stub model."""
    model, videos, record = model or StubModel(), list_videos(cfg), record_of(cfg)
    run_inference(model, videos, cfg, record)
    finish(videos, cfg, record)
    return model, videos, record


def test_masks_at_the_original_size(cfg: Config):
    model, _, _ = run(cfg)
    assert model.sentences == list(SENTENCES.values()) * 2
    output = Path(cfg.output_dir)
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    masks = [f"Annotations/{v}/{e}/{f}.png" for v in "ab" for e in "01" for f in ("00000", "00005", "00010")]
    assert files == sorted([*masks, "inference.json", "submission.zip"])
    left = np.asarray(Image.open(output / "Annotations/a/0/00000.png"))
    right = np.asarray(Image.open(output / "Annotations/a/1/00000.png"))
    assert left.shape == (HEIGHT, WIDTH)
    assert (left[:, :45] == 255).all() and (left[:, 45:] == 0).all()
    assert (left == 255 - right).all()
    with zipfile.ZipFile(output / "submission.zip") as archive:
        assert sorted(archive.namelist()) == masks


@pytest.mark.parametrize(
    ("options", "padded"),
    [
        ({}, (48, 224)),  # 36×216
        ({"max_size": 0}, (48, 224)),
        ({"max_size": 100}, (32, 112)),  # 17×100
    ],
)
def test_the_longer_side_has_a_limit_only_where_one_is_set(
    cfg: Config, tmp_path: Path, options: dict[str, int], padded: tuple[int, int]
):
    root = write_halves(tmp_path / "wide", width=300)
    model, _, _ = run(dataclasses.replace(cfg, ytvos_path=str(root), **options))
    assert model.sizes == {padded}
    mask = np.asarray(Image.open(Path(cfg.output_dir) / "Annotations/a/0/00000.png"))
    assert mask.shape == (HEIGHT, 300) and (mask[:, :150] == 255).all() and not mask[:, 150:].any()


def test_very_large_frames_are_noted():
    sizes = {"a": (720, 1280), "b": (480, 1800), "c": (2000, 400), "d": (360, 1280)}
    options = InferenceOptions()
    assert large_video_notes(dict.fromkeys("ad", (360, 1280)), options) == []
    (note,) = large_video_notes({"b": sizes["b"]}, options)
    assert note == "the model sees 'b' at 1350×360 pixels; --max_size limits the longer side"
    (note,) = large_video_notes(sizes, options)
    assert note.startswith("the model sees 'c' at 360×1800 pixels, and 1 more with a longer side above 1280; ")
    assert large_video_notes(sizes, InferenceOptions(max_size=1280)) == []


def test_the_record(cfg: Config):
    run(cfg)
    content = json.loads((Path(cfg.output_dir) / "inference.json").read_text())
    result = content["expressions"]["b"]["1"]
    assert result.pop("seconds") >= 0
    assert result == {"sentence": "the right half", "score": 0.8808, "query": 3, "frames": FRAMES}
    assert content["identity"]["checkpoint_sha256"] == "abc" and content["identity"]["threshold"] == 0.5
    assert content["about"]["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert content["timing"]["frames"] == 4 * FRAMES


def test_threshold(cfg: Config):
    run(dataclasses.replace(cfg, threshold=0.999))
    assert not np.asarray(Image.open(Path(cfg.output_dir) / "Annotations/a/0/00000.png")).any()


@pytest.mark.parametrize(("least", "empty"), [(0.0, ""), (0.88, ""), (0.89, "01"), (1.0, "01")])
def test_score_threshold(cfg: Config, least: float, empty: str):
    """The stub's score is 0.8808 for every sentence."""
    run(dataclasses.replace(cfg, score_threshold=least))
    for exp_id in SENTENCES:
        for path in (Path(cfg.output_dir) / "Annotations" / "a" / exp_id).iterdir():
            assert np.asarray(Image.open(path)).any() == (exp_id not in empty)
    content = json.loads((Path(cfg.output_dir) / "inference.json").read_text())
    assert content["expressions"]["a"]["0"]["score"] == 0.8808, "the score is recorded all the same"


def test_score_threshold_asks_for_the_mean_over_the_clip(cfg: Config):
    class Unsure(StubModel):
        """Sure of the left half in the first frame only, of the right half in all frames but the first."""

        def segment_pixels(self, *args: Any, **options: Any) -> SimpleNamespace:
            output = super().segment_pixels(*args, **options)
            output.logits[:, :, 3] = 5.0 if "right" in self.sentences[-1] else -5.0
            output.logits[:, 0, 3] *= -1
            output.chosen[:] = 3
            return output

    run(dataclasses.replace(cfg, score_threshold=0.5), Unsure())
    shown = {
        exp_id: [
            np.asarray(Image.open(path)).any() for path in (Path(cfg.output_dir) / "Annotations/b" / exp_id).iterdir()
        ]
        for exp_id in SENTENCES
    }
    assert shown == {"0": [False] * FRAMES, "1": [True] * FRAMES}


def test_a_video_without_expressions_needs_nothing(cfg: Config, data: Path):
    path = data / "meta_expressions" / "valid" / "meta_expressions.json"
    content = json.loads(path.read_text())
    content["videos"]["a"]["expressions"] = {}
    path.write_text(json.dumps(content))
    model, _, record = run(cfg)
    assert len(model.sentences) == 2 and set(record.expressions) == {"b"}


def test_a_finished_run_computes_nothing_again(cfg: Config, capsys: pytest.CaptureFixture[str]):
    run(cfg)
    before = tree(Path(cfg.output_dir))
    model, _, _ = run(cfg)
    assert model.sentences == []
    assert "skipped 4 of 4 expressions" in capsys.readouterr().out
    assert tree(Path(cfg.output_dir)) == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half a f")])
def test_a_damaged_mask_is_made_again(cfg: Config, damage):
    run(cfg)
    before = tree(Path(cfg.output_dir))
    damage(Path(cfg.output_dir) / "Annotations" / "b" / "0" / "00005.png")
    model, _, _ = run(cfg)
    assert model.sentences == ["the left half"]
    assert tree(Path(cfg.output_dir)) == before


def test_a_stopped_run_goes_on(cfg: Config, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(cfg, BrokenModel())
    assert set(record_of(cfg).expressions) == {"a"}
    model, _, _ = run(cfg)
    assert len(model.sentences) == 2, "only the second video"
    whole = dataclasses.replace(cfg, output_dir=str(tmp_path / "whole"))
    run(whole)
    assert tree(Path(cfg.output_dir)) == tree(Path(whole.output_dir))


class WatchedModel(StubModel):
    """Calls a function before it segments a sentence, with the number of sentences before it."""

    def __init__(self, watch: Callable[[int], None]) -> None:
        super().__init__()
        self.watch = watch

    def segment_pixels(self, *args: Any, **options: Any) -> SimpleNamespace:
        self.watch(len(self.sentences))
        return super().segment_pixels(*args, **options)


def replace_writer(monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, np.ndarray], None]) -> None:
    monkeypatch.setattr(DATASETS["ytvos"].layout, "write", write)


def test_a_video_is_recorded_behind_the_model_and_a_kill_before_that_repeats_it(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No mask of the first video is written before the model has the second one, where a copy stands for a kill."""
    output, copy, begun = Path(cfg.output_dir), tmp_path / "killed", threading.Event()

    def write(path: Path, plane: np.ndarray) -> None:
        assert begun.wait(10)
        write_mask(path, plane)

    def watch(number: int) -> None:
        if number == 2:
            shutil.copytree(output, copy)
            begun.set()

    with monkeypatch.context() as patched:
        replace_writer(patched, write)
        _, _, record = run(cfg, WatchedModel(watch))
    assert list(record.expressions) == ["a", "b"]
    assert json.loads((copy / "inference.json").read_text())["expressions"] == {}
    again, _, _ = run(dataclasses.replace(cfg, output_dir=str(copy)))
    assert len(again.sentences) == 4
    assert tree(copy) == tree(output)


@pytest.mark.parametrize(("video", "recorded"), [("a", set()), ("b", {"a"})])
def test_a_full_disk_is_one_sentence_and_its_video_is_not_recorded(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: str, recorded: set[str]
):
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.match(f"{video}/1/.00010.*"):
            write_bytes(path, content[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=rf"cannot write .*{video}/1/00010\.png: No space left on device; choose"):
            run(cfg)
    assert set(record_of(cfg).expressions) == recorded
    assert not list(Path(cfg.output_dir).rglob(".*.png"))
    run(cfg)
    whole = dataclasses.replace(cfg, output_dir=str(tmp_path / "whole"))
    run(whole)
    assert tree(Path(cfg.output_dir)) == tree(Path(whole.output_dir))


def test_slow_writers_and_a_slow_model_bound_the_memory(cfg: Config, monkeypatch: pytest.MonkeyPatch):
    """At most so many masks wait to be written, and so many frames for the model, whatever the number of videos."""
    masks, ahead = 4, 2
    decode, read, written, waiting = files.read_frame, [], [], []

    def write(path: Path, plane: np.ndarray) -> None:
        time.sleep(0.02)
        write_mask(path, plane)
        written.append(path)

    def read_frame(path: Path) -> Tensor:
        read.append(path)
        return decode(path)

    def watch(number: int) -> None:
        time.sleep(0.02)
        waiting.append((FRAMES * number - len(written), len(read) - FRAMES * (number // 2 + 1)))

    replace_writer(monkeypatch, write)
    monkeypatch.setattr(files, "read_frame", read_frame)
    monkeypatch.setattr(files, "FRAMES_AHEAD", ahead)
    monkeypatch.setattr(engine, "PENDING_MASKS", masks)
    run(dataclasses.replace(cfg, num_workers=1), WatchedModel(watch))
    assert len(waiting) == 4 and len(written) == 4 * FRAMES
    assert max(unwritten for unwritten, _ in waiting) <= masks
    assert max(unused for _, unused in waiting) <= ahead


def test_a_changed_sentence_is_computed_again(cfg: Config, data: Path):
    run(cfg)
    path = data / "meta_expressions" / "valid" / "meta_expressions.json"
    path.write_text(path.read_text().replace("the left half", "only the left part"))
    model, _, _ = run(cfg)
    assert model.sentences == ["only the left part"] * 2


def test_random_noise_does_not_depend_on_what_was_skipped(cfg: Config):
    class Noisy(StubModel):
        def __init__(self) -> None:
            super().__init__()
            self.noise: list[Tensor] = []

        def segment_pixels(self, *args: Any, **options: Any) -> SimpleNamespace:
            self.noise.append(torch.randn(3))
            return super().segment_pixels(*args, **options)

    model = Noisy()
    run(cfg, model)
    assert all(torch.equal(noise, model.noise[0]) for noise in model.noise)


def test_pictures(cfg: Config):
    cfg = dataclasses.replace(cfg, visualize=True)
    run(cfg)
    folder = Path(cfg.output_dir) / "visualize"
    with Image.open(folder / "a" / "0" / "00005.png") as image:
        overlay = np.asarray(image)
    height, width = 266, 480
    assert overlay.shape[1] == width and len(overlay) > height, "the sentence's bar is below the frame"
    assert (overlay[100, 120] != overlay[100, 360]).any(), "the left half is tinted"
    with av.open(str(folder / "b_1.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [(frame.width, frame.height) for frame in frames] == [(width, len(overlay))] * FRAMES
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width == 6 + FRAMES * 326


def test_visualize_draws_what_an_earlier_run_did_not(cfg: Config):
    run(cfg)
    cfg = dataclasses.replace(cfg, visualize=True)
    model, _, _ = run(cfg)
    assert len(model.sentences) == 4
    (Path(cfg.output_dir) / "visualize" / "a_1.mp4").unlink()
    model, _, _ = run(cfg)
    assert model.sentences == ["the right half"]


def test_another_checkpoint_does_not_mix(cfg: Config):
    run(cfg)
    with pytest.raises(UserError, match="holds masks made with a different checkpoint; choose another"):
        record_of(cfg, "def")


CHANGES = [{"threshold": 0.4}, {"score_threshold": 0.1}, {"eval_size": 32}, {"noise": "none"}, {"split": "test"}]


@pytest.mark.parametrize("change", CHANGES)
def test_another_configuration_does_not_mix(cfg: Config, change: dict[str, Any]):
    run(cfg)
    with pytest.raises(UserError, match=f"made with {next(iter(change))} "):
        record_of(dataclasses.replace(cfg, **change))


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"num_workers": 1}, {"visualize": True}, {"lr": 1.0}])
def test_options_that_no_mask_depends_on(cfg: Config, change: dict[str, Any]):
    run(cfg)
    assert record_of(dataclasses.replace(cfg, **change)).find("a", "0")


def test_a_record_without_results_binds_nobody(cfg: Config):
    record_of(cfg)
    assert record_of(cfg, "def").expressions == {}


@pytest.mark.parametrize("content", ["[]", "{}", '{"expressions": {}}', "{"])
def test_a_file_that_is_no_record(cfg: Config, content: str):
    path = Path(cfg.output_dir) / "inference.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match=r"inference\.json"):
        record_of(cfg)


@pytest.mark.parametrize("part", ["logits", "masks"])
def test_predictions_that_are_not_finite(cfg: Config, part: str):
    class Diverged(StubModel):
        def segment_pixels(self, *args: Any, **options: Any) -> SimpleNamespace:
            output = super().segment_pixels(*args, **options)
            setattr(output, part, getattr(output, part) * float("nan"))
            return output

    with pytest.raises(RunError, match="video 'a', expression '0' are not finite"):
        run(cfg, Diverged())


def test_masks_that_cannot_be_written(cfg: Config):
    record = record_of(cfg)
    (Path(cfg.output_dir) / "Annotations").write_text("in the way")
    with pytest.raises(UserError, match="a part of its folder is a file"):
        run_inference(StubModel(), list_videos(cfg), cfg, record)


def test_a_broken_frame(cfg: Config, data: Path):
    path = data / "valid" / "JPEGImages" / "b" / "00010.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"b/00010\.jpg"):
        run(cfg)
    assert set(record_of(cfg).expressions) == {"a"}, "what came before is kept"


def test_one_process_on_mps(monkeypatch: pytest.MonkeyPatch):
    with process_group(torch.device("mps")) as device:
        assert device.type == "mps"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process on MPS"), process_group(torch.device("mps")):
        pass


@pytest.mark.parametrize("name", ["", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_users_allocator_is_kept(monkeypatch: pytest.MonkeyPatch, name: str):
    environment = {name: "max_split_size_mb:64"} if name else {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(sys, "platform", "linux")
    use_expandable_segments()
    assert environment == (
        {name: "max_split_size_mb:64"} if name else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    )


def test_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(UserError, match="--device mps, but PyTorch finds no MPS device"):
        resolve_device("mps")
    with pytest.raises(UserError, match="--device cuda, but PyTorch finds no CUDA device"):
        resolve_device("cuda")
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        resolve_device("tpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto").type == resolve_device("mps").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == resolve_device("cuda").type == "cuda"
    assert resolve_device("cpu") == CPU
