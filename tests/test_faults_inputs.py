"""Odd inputs from end to end: names and sentences of any script and length, videos without frames, tiny objects."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_dataset, list_videos
from datasets.coco_masks import decode_segmentation
from datasets.expressions import read_expressions
from datasets.predictions import check_submission
from datasets.video_files import read_video_frames
from demo import main as demo_main
from inference_ytvos import finish, run_inference
from models import build_model
from models.diffusion.stack import load_stack
from tests.commands import run_command
from tests.inference_tools import StubModel, write_halves
from tests.test_faults_hostile import refused
from tests.tiny_models import backward, model_config
from tests.ytvos_tools import HEIGHT, NAMES, WIDTH, config, expressions_path, train_error, write_dataset, write_mask
from util.config import Config
from util.demo_results import sentence_records
from util.inference_record import InferenceRecord, mask_options
from util.io import read_json, write_json
from util.media_reader import open_media
from util.metrics import expression_scores

ODD = {
    "0": "红色的车 left",
    "1": "🚗💨👩‍👩‍👧 left",
    "2": "السيارة الحمراء left",
    "3": "left " + "very " * 2000 + "big",
    "4": "a\u0301\u200b\ufeff left\x07",
    "5": "left" + "x" * 3000,
}


def test_inference_with_odd_names_and_sentences(tmp_path: Path) -> None:
    root = write_halves(tmp_path / "数据 📁 ملف")
    name = "视频 🐕 'a\"b"
    path = root / "meta_expressions" / "valid" / "meta_expressions.json"
    video = json.loads(path.read_text())["videos"]["a"]
    video["expressions"] = {exp_id: {"exp": sentence} for exp_id, sentence in ODD.items()}
    (root / "valid" / "JPEGImages" / "a").rename(root / "valid" / "JPEGImages" / name)
    write_json(path, {"videos": {name: video}})
    out = tmp_path / "输出"
    cfg = Config(
        **{"ytvos_path": str(root), "output_dir": str(out), "eval_size": 36, "visualize": True, "num_workers": 1},
        **{"train_scales": (64,), "expressions_per_batch": 1},
    )
    videos = list_videos(cfg)
    record = InferenceRecord(out / "inference.json", {"checkpoint_sha256": "", **mask_options(cfg)}, {})
    run_inference(StubModel(), videos, cfg, record, torch.device("cpu"))  # type: ignore[arg-type]
    finish(videos, cfg, record)
    (out / "Annotations" / name / "0" / ".00000.123-0a1b2c3d.png").write_bytes(b"half a f")
    assert check_submission(out / "submission.zip", videos) == [] == check_submission(out, videos)
    assert read_json(out / "inference.json", "the record")["expressions"][name].keys() == ODD.keys()
    with Image.open(out / "visualize" / name / "3" / "00000.png") as picture:
        assert picture.height < 5000
    assert len(list((out / "visualize").glob("*.mp4"))) == len(ODD)


def test_sentences_are_cut_at_the_encoders_length(tiny_stack: Path) -> None:
    cfg = model_config(tiny_stack)
    model = build_model(cfg).eval()
    words, padding = model.sentence_encoder(list(ODD.values()))
    assert words.shape[:2] == padding.shape == (len(ODD), model.sentence_encoder.max_length)
    assert words.isfinite().all() and not padding.all(1).any()
    limit = load_stack(str(tiny_stack)).tokenizer.model_max_length
    found = model.encoder.encode_text(list(ODD.values()))
    assert found.shape[:2] == (len(ODD), limit) and found.isfinite().all()


def test_folders_of_sentences_are_short_and_differ() -> None:
    records = sentence_records([*ODD.values(), "🚗", "..", "/", "𝔞" * 300])
    folders = [record.folder for record in records]
    assert len(set(folders)) == len(folders)
    for folder in folders:
        assert len(folder.encode()) < 200 and "/" not in folder and folder not in (".", "..")


@pytest.mark.parametrize("words", [("a.mp4", "a dog \udcff"), ("\udcff.mp4", "a dog"), ("a.mp4", "a\0b")])
def test_words_that_are_no_text(words: tuple[str, str]) -> None:
    done = run_command(demo_main, *words, "--resume", "a.pth")
    assert done.returncode == 2 and "which is no text in UTF-8" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["x" * 300, "\udcff", "a\0b", "..", "a/b"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    video = {"frames": ["0"], "expressions": {"0": {"exp": "a dog"}}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"videos": {name: video}}))
    refused(read_expressions, path, "valid")
    path.write_text(json.dumps({"videos": {"v": {**video, "frames": [name]}}}))
    refused(read_expressions, path, "valid")


def test_videos_without_a_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(None))
    refused(open_media, path)
    refused(read_video_frames, path, [0])
    path.write_bytes(b"")
    refused(open_media, path, says="is empty")
    refused(read_video_frames, path, [0])
    (tmp_path / "frames").mkdir()
    refused(open_media, tmp_path / "frames", says="without a picture")
    write_json(tmp_path / "a.json", {"videos": {"v": {"frames": [], "expressions": {"0": {"exp": "a dog"}}}}})
    refused(read_expressions, tmp_path / "a.json", "valid", says="should have a list of frame names")


def test_an_object_of_one_pixel(tmp_path: Path, tiny_stack: Path) -> None:
    """It trains, it is scored, and a mask of it can be written in COCO's form."""
    root = write_dataset(tmp_path)
    for video in "ab":
        for frame in NAMES:
            ids = np.zeros((HEIGHT, WIDTH), np.uint8)
            ids[20, 40], ids[0, 0] = 1, 2
            write_mask(root / "train" / "Annotations" / video / f"{frame}.png", ids)
    clips = build_dataset(config(root, crop_scales=(), colour_distortion=False), "train")
    _, target = clips[0]
    assert target["masks"].any() and (target["boxes"] >= 0).all() and (target["boxes"][:, 2:] > 0).any()

    truth = np.zeros((2, 20, 30), bool)
    truth[:, 5, 5] = True
    assert expression_scores(truth, truth) == (1.0, 1.0)
    assert expression_scores(truth, np.zeros_like(truth)) == (0.0, 0.0)
    runs = {"size": [4, 5], "counts": [7, 1, 12]}
    assert decode_segmentation(runs, 4, 5, "it").sum() == 1
    assert decode_segmentation([[1, 1, 1.4, 1, 1.4, 1.4]], 4, 5, "it").sum() <= 1


@pytest.mark.parametrize("pixels", [0, 1])
def test_a_step_on_an_empty_or_tiny_object_is_finite(
    tiny_stack: Path, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[:, 30, 50] = bool(pixels)
    box = torch.tensor([[50.5 / 96, 30.5 / 64, 1 / 96, 1 / 64]]).repeat(2, 1) * pixels
    target = {"boxes": box, "masks": masks, "valid": torch.full((2,), pixels)}
    monkeypatch.setattr("tests.tiny_models.square_targets", lambda *_: [target])
    cfg = model_config(tiny_stack)
    model = build_model(cfg)
    _, terms = backward(model, cfg, 1, 2)
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_masks_that_are_all_empty(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    for path in (root / "train" / "Annotations").rglob("*.png"):
        write_mask(path, np.zeros((HEIGHT, WIDTH), np.uint8))
    clips = build_dataset(config(root), "train")
    refused(clips.__getitem__, 0, says="show no pixel of their object")
    empty: Any = np.zeros((2, 8, 8), bool)
    assert expression_scores(empty, empty) == (1.0, 1.0)
    shutil.rmtree(root / "train" / "Annotations" / "a")
    assert "Annotations" in train_error(root)
    assert expressions_path(root, "train").is_file()


@pytest.mark.parametrize("source", ["org/repo", "hf://org/repo"])
def test_frozen_parts_of_a_hub_that_is_away(source: str) -> None:
    """With an empty cache, as tests have no network."""
    refused(
        load_stack, source, says=r"org/repo is not in the cache, and the hub cannot be reached; .* with --pretrained"
    )


def test_frozen_parts_that_are_nowhere() -> None:
    refused(
        load_stack, "/nowhere/a/stack", says="there is no such folder here, and the hub has no repository /nowhere/a/"
    )
