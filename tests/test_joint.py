"""Mixtures for training: which clips they hold, how often, and that a clip depends on seed, epoch and index alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets import build_dataset
from datasets.clip import ClipDataset, ClipLoader, EpochBatches, JointClips, Sample, collate, make_target
from datasets.refcoco import SPLITS, convert_refcoco
from datasets.registry import load_config
from datasets.toy import make_toy
from tests.true_formats import write_toy_refcoco
from util.config import Config
from util.errors import UserError


class Numbers(ClipDataset):
    """Clips that say which they are. Those of ``invisible`` show nothing."""

    def __init__(self, name: str, length: int, invisible: bool = False) -> None:
        super().__init__(seed=1234, replace_invisible=True)
        self.name, self.length, self.invisible = name, length, invisible

    def __len__(self) -> int:
        return self.length

    def captions(self) -> list[str]:
        return [self.name] * self.length

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        masks = torch.full((1, 4, 4), not self.invisible)
        target = make_target(
            masks, caption="x", orig_size=(4, 4), video=self.name, exp_id=str(index), frame_names=["0"]
        )
        return torch.full((1, 3, 4, 4), float(rng.random())), target


def names(clips: ClipDataset) -> list[str]:
    return [clips[index][1]["video"] + clips[index][1]["exp_id"] for index in range(len(clips))]


def values(clips: ClipDataset) -> list[float]:
    return [clips[index][0][0, 0, 0, 0].item() for index in range(len(clips))]


def test_one_part_after_the_other() -> None:
    part = Numbers("b", 1)
    joint = JointClips([Numbers("a", 2), part, Numbers("c", 3), part], seed=0)
    assert len(joint) == 7 and names(joint) == ["a0", "a1", "b0", "c0", "c1", "c2", "b0"]
    assert list(joint.captions()) == ["a", "a", "b", "c", "c", "c", "b"]
    for index in (7, -1):
        with pytest.raises(IndexError):
            joint.load(index, np.random.default_rng(0))


def test_a_clip_is_a_function_of_seed_epoch_and_index() -> None:
    part = Numbers("a", 3)
    joint, again = JointClips([part, part], seed=5), JointClips([part, part], seed=5)
    first = values(joint)
    assert len(set(first)) == 6  # a repeated part gives other clips
    part.set_epoch(7)  # the parts' own epoch has no effect
    assert first == values(again) != values(JointClips([part, part], seed=6))
    again.set_epoch(1)
    assert not set(first) & set(values(again))


def test_workers_do_not_change_the_clips() -> None:
    def frames(workers: int) -> list[float]:
        joint = JointClips([Numbers("a", 3), Numbers("b", 4)], seed=0)
        joint.set_epoch(3)
        loader = ClipLoader(joint, batch_size=1, num_workers=workers, collate_fn=collate)
        return [batch.frames[0, 0, 0, 0, 0].item() for batch in loader]

    assert frames(0) == frames(2)


def test_an_invisible_object_is_replaced_by_any_clip_of_the_whole() -> None:
    joint = JointClips([Numbers("a", 4, invisible=True), Numbers("b", 2), Numbers("c", 2)], seed=0)
    found = set()
    for epoch in range(8):
        joint.set_epoch(epoch)
        found |= set(names(joint)[:4])
    assert found == {"b0", "b1", "c0", "c1"}


def test_the_parts_are_shuffled_together() -> None:
    joint = JointClips([Numbers("a", 20), Numbers("b", 20)], seed=0)
    order = [index for batch in EpochBatches(len(joint), 1, seed=0) for index in batch]
    first = [joint[index][1]["video"] for index in order[:20]]
    assert sorted(order) == list(range(40)) and 4 < first.count("a") < 16


# --- the mixtures of --dataset_file


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Toy sets: the three RefCOCO sets, Ref-YouTube-VOS, and another in the layout of the converted Ref-DAVIS."""
    root = tmp_path_factory.mktemp("joint")
    write_toy_refcoco(root / "refer", num_train=2, num_eval=1)
    for name in SPLITS:
        convert_refcoco(name, root / "refer", root / "coco", root / "refer" / "train2014")
    make_toy(root / "ytvos", num_train=2, num_valid=1, num_test=0, frames=5, seed=1)
    make_toy(root / "davis", num_train=1, num_valid=1, num_test=0, frames=6, seed=2)
    return {f"{name}_path": str(root / name) for name in ("coco", "ytvos", "davis")}


@pytest.fixture
def config(roots: dict[str, str]) -> Callable[..., Config]:
    small: dict[str, Any] = {"train_scales": (48, 64), "crop_scales": (), "max_size": 96, "eval_size": 64}
    return lambda name, **options: Config(dataset_file=name, num_frames=3, **small, **roots, **options)


MIXTURES = {
    "joint": {"refcoco": 1, "refcoco+": 1, "refcocog": 1, "ytvos": 1},
    "joint_coco": {"refcoco": 1, "refcoco+": 1, "refcocog": 1},
    "ytvos_joint_davis": {"ytvos": 1, "davis": 5},
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_holds_its_parts(config: Callable[..., Config], name: str) -> None:
    joint = build_dataset(config(name), "train")
    lengths = {part: len(build_dataset(config(part), "train")) for part in MIXTURES[name]}
    assert len(joint) == sum(lengths[part] * times for part, times in MIXTURES[name].items())
    start = 0
    for part, times in MIXTURES[name].items():
        for _ in range(times):
            frames, target = joint.load(start, np.random.default_rng(0))  # type: ignore[attr-defined]
            _, alone = build_dataset(config(part), "train").load(0, np.random.default_rng(0))
            assert (target["video"], target["exp_id"]) == (alone["video"], alone["exp_id"])
            assert torch.equal(target["masks"], alone["masks"])
            assert frames.shape[:2] == (3, 3)
            start += lengths[part]
    assert start == len(joint)


def test_batches_mix_images_and_videos(config: Callable[..., Config]) -> None:
    joint = build_dataset(config("joint"), "train")
    batch = collate([joint[0], joint[len(joint) - 1]])
    assert batch.targets[0]["exp_id"].startswith("refcoco_train_") and batch.targets[1]["video"] == "train_00001"
    assert batch.annotated is None and batch.frames.shape[:3] == (2, 3, 3)


def test_davis_trains_and_is_read_from_its_own_root(config: Callable[..., Config], roots: dict[str, str]) -> None:
    clips = build_dataset(config("davis"), "train")
    assert {clip["video"] for _, clip in (clips[index] for index in range(len(clips)))} == {"train_00000"}
    assert Path(roots["davis_path"]) in clips.images.parents  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="nowhere is missing"):
        build_dataset(Config(dataset_file="davis", davis_path="nowhere"), "train")


def test_a_mixture_is_for_training(config: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match=r"joint is a mixture for training; name one of its parts \(refcoco, .*'valid'"):
        build_dataset(config("joint"), "valid")


@pytest.mark.parametrize(("model", "per_process"), [("vdit", 1), ("hcd", 2)])
@pytest.mark.parametrize("name", ["joint", "ytvos_joint_davis"])
def test_recipe(root: Path, model: str, per_process: int, name: str) -> None:
    recipe = load_config(["--config", str(root / f"configs/{model}_{name}.yaml")], "")
    assert (recipe.dataset_file, recipe.num_frames, recipe.batch_size) == (name, 5, per_process)
    assert (recipe.epochs, recipe.lr_drop, recipe.lr, recipe.lr_processes) == (12, (8, 10), 1e-4, 4)


def test_recipe_of_hcd_on_davis(root: Path) -> None:
    recipe = load_config(["--config", str(root / "configs/hcd_davis.yaml")], "")
    assert (recipe.model, recipe.dataset_file, recipe.epochs, recipe.lr_drop) == ("hcd", "davis", 3, ())
