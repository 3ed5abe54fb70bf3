"""The parts of an evaluation: items and their predictions, shares of processes, results.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets.clip import ClipBatch, Sample, collate, make_target
from datasets.evaluators import QueryPredictions
from datasets.registry import DATASETS, MIXTURES, resolve, scored_parts
from engine import ItemScoring, build_record
from models.segmenter import LayerPrediction, SegmenterOutput, all_queries
from util.config import Config, config_dict
from util.distributed import balanced_share, gather_objects
from util.errors import UserError
from util.files import project_version
from util.run_log import write_results

CPU = torch.device("cpu")


class Stub(nn.Module):
    """Two queries: one of the left half, one of the frame's upper half; the second has the higher score."""

    def forward(
        self, frames: Tensor, padding: Tensor, captions: list[str], select: Any, annotated: Tensor | None
    ) -> SegmenterOutput:
        assert not self.training and not torch.is_grad_enabled() and select is all_queries
        assert annotated is not None and annotated.tolist() == [1]
        height, width = frames.shape[-2:]
        real_height, real_width = int((~padding[0, :, 0]).sum()), int((~padding[0, 0]).sum())
        masks = torch.full((1, 1, 2, height, width), -9.0)
        masks[:, :, 0, :, : real_width // 2] = 9
        masks[:, :, 1, : real_height // 2] = 9
        boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.5, 0.25, 1.0, 0.5]]).expand(1, 1, 2, 4)
        logits = torch.tensor([0.0, float(torch.randn(()))]).view(1, 1, 2, 1)
        return SegmenterOutput([LayerPrediction(logits, boxes, masks, None, masks)])


class Kept:
    """An evaluator that keeps everything."""

    def __init__(self) -> None:
        self.seen: list[QueryPredictions] = []
        self.merged: list[Any] = []

    def update(self, predictions: Sequence[QueryPredictions]) -> None:
        self.seen += predictions

    def state(self) -> Any:
        return [prediction.item for prediction in self.seen]

    def merge(self, states: Iterable[Any]) -> None:
        self.merged += states

    def counts(self) -> dict[str, int]:
        return {"items": len(self.seen)}

    def results(self) -> dict[str, float]:
        return {}


def item(name: str, size: tuple[int, int], orig_size: tuple[int, int]) -> Sample:
    """A clip of three frames whose second is annotated."""
    target = make_target(
        torch.ones(1, *size, dtype=torch.bool),
        caption="it",
        orig_size=orig_size,
        video="v",
        exp_id=name,
        frame_names=["a", "b", "c"],
    )
    target["annotated"] = 1
    return torch.randn(3, 3, *size), target


def test_all_queries_of_an_item_at_its_original_size() -> None:
    batches: list[ClipBatch] = [
        collate([item("x", (20, 32), (45, 70))], 16),
        collate([item("y", (16, 16), (8, 8))], 16),
    ]
    evaluator = Kept()
    ItemScoring(batches, lambda: evaluator, 0.5, seed=3, device=CPU).score(Stub().train())
    first, second = evaluator.seen
    assert (first.item, second.item) == ("x", "y") and evaluator.merged == [["x", "y"]]
    assert first.masks.shape == (2, 45, 70) and first.masks.dtype == bool
    assert first.masks[0, :, :34].all() and not first.masks[0, :, 36:].any(), "the padding is cut off"
    assert first.masks[1, :22].all() and not first.masks[1, 23:].any()
    np.testing.assert_allclose(first.boxes, [[0, 0, 35, 45], [0, 0, 70, 22.5]])
    assert first.scores[0] == 0.5 and first.scores.dtype == np.float32
    assert first.scores[1] == second.scores[1], "what is random for an item depends on the seed alone"


def test_shares_of_processes() -> None:
    costs = [5, 1, 4, 1, 1, 8]
    shares = [balanced_share(costs, process, 3) for process in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(6))
    assert sorted(sum(costs[i] for i in share) for share in shares) == [6, 6, 8]
    assert balanced_share(costs, 0, 1) == list(range(6))
    assert balanced_share([], 1, 2) == [] == balanced_share([3], 1, 2)
    assert gather_objects({"a": 1}) == [{"a": 1}]


def test_results_file(tmp_path: Path) -> None:
    cfg = resolve(Config(seed=7, dataset_file="a2d"))
    path = tmp_path / "new" / "results.json"
    metrics = {"a2d": {"mAP": 12.5, "mIoU": math.nan}, "x": math.inf}
    write_results(path, metrics, {"items": 3}, config_dict(cfg), {"device": "cpu"})
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["metrics"] == {"a2d": {"mAP": 12.5, "mIoU": None}, "x": None}
    assert content["counts"] == {"items": 3} and content["seed"] == 7 and content["about"] == {"device": "cpu"}
    assert content["config"] == json.loads(json.dumps(config_dict(cfg))) and content["config"]["split"] == "test"
    assert {"python", "torch", "diffusers", "transformers", "project"} <= content["versions"].keys()
    assert content["versions"]["torch"] == torch.__version__.split("+")[0]
    assert content["versions"]["project"] == project_version() != "unknown"


def test_what_is_scored_by_default() -> None:
    assert all(resolve(Config(dataset_file=name)).split == row.evaluated for name, row in DATASETS.items())
    assert all(resolve(Config(dataset_file=name)).split == "auto" for name in MIXTURES), "their parts have their own"
    assert resolve(Config(dataset_file="mevis", split="valid")).split == "valid"
    assert scored_parts("joint") == ("refcoco", "refcoco+", "refcocog", "ytvos") and scored_parts("a2d") == ("a2d",)
    assert {part for name in (*DATASETS, *MIXTURES) for part in scored_parts(name)} == set(DATASETS)


def test_what_another_process_has_done_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint.pth").write_text("weights")
    cfg = Config(output_dir=str(tmp_path / "out"))
    result = {"sentence": "it", "score": 0.5, "query": 0, "frames": 2, "seconds": 0.1}
    monkeypatch.setattr("engine.rank", lambda: 1)
    build_record(cfg, tmp_path / "checkpoint.pth", torch.device("cpu")).add("a", {"0": result})
    monkeypatch.setattr("engine.rank", lambda: 0)
    record = build_record(cfg, tmp_path / "checkpoint.pth", torch.device("cpu"))
    assert record.find("a", "0") == result and record.find("a", "1") is None and record.expressions == {}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"inference.json", "inference-1.json"}
    (tmp_path / "checkpoint.pth").write_text("other weights")
    with pytest.raises(UserError, match="holds masks made with a different checkpoint"):
        build_record(cfg, tmp_path / "checkpoint.pth", torch.device("cpu"))
