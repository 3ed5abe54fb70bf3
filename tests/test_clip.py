"""The contract of a clip: sampling, targets, batches, seeds, loader."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from datasets.clip import ClipDataset, ClipLoader, Sample, collate, denormalise, make_target, sample_frames
from scripts.memory_estimate import LiveMemory, without_gpu
from util.errors import UserError
from util.preprocessing import normalise
from util.text import normalise_sentence


def make_sample(height: int, width: int, frames: int = 2, caption: str = "the cat") -> Sample:
    masks = torch.zeros(frames, height, width, dtype=torch.bool)
    masks[:, 0, 0] = True
    target = make_target(
        masks, caption=caption, orig_size=(height, width), video="v", exp_id="0", frame_names=["0"] * frames
    )
    return torch.full((frames, 3, height, width), 7.0), target


class RandomClips(ClipDataset):
    """Clips whose one pixel is a random number; the clips at ``invisible`` have no object."""

    def __init__(
        self,
        length: int = 6,
        invisible: tuple[int, ...] = (),
        replace_invisible: bool = True,
        negative: tuple[int, ...] = (),
    ) -> None:
        super().__init__(seed=3, replace_invisible=replace_invisible)
        self.length, self.invisible, self.negative = length, invisible, negative

    def __len__(self) -> int:
        return self.length

    def captions(self) -> list[str]:
        return []

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        frames = torch.full((1, 3, 1, 1), float(rng.random()))
        target = make_target(
            torch.full((1, 1, 1), index not in self.invisible),
            caption=f"object {index}",
            orig_size=(1, 1),
            video=f"video {index}",
            exp_id="0",
            frame_names=["0"],
            negative=index in self.negative,
        )
        return frames, target


def pixel(clips: ClipDataset, index: int) -> float:
    return clips[index][0][0, 0, 0, 0].item()


class BrokenClips(RandomClips):
    def load(self, index: int, rng: np.random.Generator) -> Sample:
        raise UserError("frame a.jpg is missing")


# --- frame sampling


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 36])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 8])
def test_sampling_gives_sorted_frames_of_the_video_around_the_start(length: int, num_frames: int) -> None:
    rng = np.random.default_rng(0)
    for start in range(length):
        for _ in range(10):
            indices = sample_frames(length, start, num_frames, rng)
            assert len(indices) == num_frames
            assert start in indices
            assert set(indices) <= set(range(length))
            assert indices in (sorted(indices), sorted(indices)[::-1])
            assert all(type(index) is int for index in indices)


def test_sampling_has_neighbours_within_three_frames_and_the_rest_without_repetition() -> None:
    rng = np.random.default_rng(1)
    steps_before, steps_after, far = set(), set(), set()
    for _ in range(500):
        indices = sorted(sample_frames(40, 20, 5, rng))
        assert len(set(indices)) == 5
        assert {17, 18, 19} & set(indices) and {21, 22, 23} & set(indices)
        local = sorted(sample_frames(40, 20, 3, rng))
        steps_before.add(20 - local[0])
        steps_after.add(local[2] - 20)
        far |= set(indices)
    assert steps_before == steps_after == {1, 2, 3}
    assert far == set(range(40))  # the rest comes from the whole video


def test_sampling_two_frames_are_the_start_and_a_neighbour_on_either_side() -> None:
    rng = np.random.default_rng(2)
    others = {next(i for i in sample_frames(40, 20, 2, rng) if i != 20) for _ in range(300)}
    assert others == {17, 18, 19, 21, 22, 23}


def test_sampling_is_clamped_at_the_ends() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        first, last = sorted(sample_frames(10, 0, 3, rng)), sorted(sample_frames(10, 9, 3, rng))
        assert first[:2] == [0, 0] and first[2] in (1, 2, 3)
        assert last[1:] == [9, 9] and last[0] in (6, 7, 8)


def test_sampling_shows_every_frame_of_a_short_video() -> None:
    rng = np.random.default_rng(4)
    assert all(set(sample_frames(3, start, 6, rng)) == {0, 1, 2} for start in range(3) for _ in range(50))


def test_sampling_reverses_three_clips_in_ten() -> None:
    rng = np.random.default_rng(5)
    reversed_share = np.mean([np.diff(sample_frames(40, 20, 5, rng))[0] < 0 for _ in range(2000)])
    assert reversed_share == pytest.approx(0.3, abs=0.03)


# --- target


def test_target_boxes_enclose_the_pixels_and_are_zero_where_invisible() -> None:
    masks = torch.zeros(3, 10, 20, dtype=torch.bool)
    masks[0, 2:6, 5:15] = True
    masks[2, 9, 19] = True
    target = make_target(
        masks, caption="c", orig_size=(20, 40), video="v", exp_id="1", frame_names=["00000", "00005", "00010"]
    )
    expected = [[0.5, 0.4, 0.5, 0.4], [0, 0, 0, 0], [19.5 / 20, 9.5 / 10, 1 / 20, 1 / 10]]
    torch.testing.assert_close(target["boxes"], torch.tensor(expected))
    assert target["valid"].tolist() == [1, 0, 1] and target["valid"].dtype == torch.int64
    assert target["size"].tolist() == [10, 20] and target["orig_size"].tolist() == [20, 40]
    assert target["size"].dtype == target["orig_size"].dtype == torch.int64


# --- batch


@pytest.mark.parametrize(("multiple", "size"), [(32, (64, 64)), (16, (48, 64))])
def test_collate_pads_right_and_bottom(multiple: int, size: tuple[int, int]) -> None:
    batch = collate([make_sample(33, 20, caption="a"), make_sample(16, 64, caption="b")], multiple)
    assert batch.frames.shape == (2, 2, 3, *size)
    assert batch.padding.shape == (2, *size) and batch.padding.dtype == torch.bool
    for i, (h, w) in enumerate([(33, 20), (16, 64)]):
        assert (batch.frames[i, :, :, :h, :w] == 7).all() and not batch.padding[i, :h, :w].any()
        assert batch.frames[i].sum() == 7 * 2 * 3 * h * w
        assert batch.padding[i].sum() == size[0] * size[1] - h * w
        assert batch.targets[i]["masks"].shape == (2, h, w)
    assert batch.captions == ["a", "b"]


def test_collate_adds_nothing_to_a_multiple() -> None:
    batch = collate([make_sample(32, 64)], 32)
    assert batch.frames.shape[-2:] == (32, 64) and not batch.padding.any()


def test_batch_moves_every_tensor() -> None:
    batch = collate([make_sample(8, 8)], 8)
    moved = batch.to("meta", non_blocking=True)
    assert moved.frames.is_meta and moved.padding.is_meta
    assert all(v.is_meta for v in moved.targets[0].values() if isinstance(v, torch.Tensor))
    assert moved.targets[0]["video"] == "v" and moved.captions == batch.captions
    assert not batch.frames.is_meta and not batch.targets[0]["boxes"].is_meta


def test_annotated_is_known_only_where_every_clip_has_one_annotated_frame() -> None:
    samples = [make_sample(8, 8), make_sample(8, 8)]
    assert collate(samples, 8).annotated is None
    for index, (_, target) in enumerate(samples):
        target["annotated"] = index
    annotated = collate(samples, 8).annotated
    assert annotated is not None and annotated.tolist() == [0, 1]


def test_the_host_does_not_wait_for_annotated() -> None:
    with without_gpu():
        sample = make_sample(8, 8)
        sample[1]["annotated"] = 0
        batch = collate([sample], 8).to("cuda")
        with LiveMemory((), "cuda") as memory:
            annotated = batch.annotated
        assert annotated is not None and annotated.device.type == "cuda" and not memory.waits


# --- randomness and replacement


def test_a_clip_is_a_function_of_seed_epoch_and_index() -> None:
    clips, again = RandomClips(), RandomClips()
    values = [pixel(clips, i) for i in range(6)]
    assert values == [pixel(again, i) for i in reversed(range(6))][::-1]
    assert len(set(values)) == 6
    again.set_epoch(1)
    assert pixel(again, 0) not in values
    again.set_epoch(0)
    assert pixel(again, 0) == values[0]


def test_clips_do_not_touch_the_global_generators() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = RandomClips()[0][0]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, RandomClips()[0][0])


def test_workers_do_not_change_the_clips_and_see_a_new_epoch() -> None:
    def values(loader: ClipLoader) -> list[float]:
        return [batch.frames[0, 0, 0, 0, 0].item() for batch in loader]

    make: Callable[..., ClipLoader] = partial(ClipLoader, batch_size=1, collate_fn=partial(collate, multiple=1))
    alone, shared = RandomClips(), RandomClips()
    with_workers = make(shared, num_workers=2, persistent_workers=True)
    without = make(alone, num_workers=0)
    assert values(with_workers) == values(without)
    first = values(without)
    alone.set_epoch(1)
    shared.set_epoch(1)
    assert values(with_workers) == values(without) != first


def test_an_invisible_object_is_replaced_by_another_clip() -> None:
    clips = RandomClips(invisible=(0, 1, 2, 3, 4))
    assert all(clips[index][1]["caption"] == "object 5" for index in range(6))
    some = [RandomClips(20, invisible=(0,))[0][1]["caption"] for _ in range(2)]
    assert some[0] == some[1] != "object 0"


def test_an_invisible_object_stays_where_clips_are_not_replaced() -> None:
    _, target = RandomClips(invisible=(0,), replace_invisible=False)[0]
    assert target["caption"] == "object 0" and target["valid"].tolist() == [0]


def test_a_negative_stays() -> None:
    _, target = RandomClips(invisible=(0, 1), negative=(0,))[0]
    assert target["caption"] == "object 0" and target["negative"]
    assert not target["masks"].any() and not target["boxes"].any() and target["valid"].tolist() == [0]
    _, target = RandomClips(invisible=(0, 1), negative=(0,))[1]
    assert target["caption"] != "object 1" and target["negative"] == (target["caption"] == "object 0")


def test_no_visible_object_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match=r"no pixel of their object.*'video [01]'"):
        RandomClips(2, invisible=(0, 1))[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_hands_on_the_one_sentence(workers: int) -> None:
    loader = ClipLoader(BrokenClips(), batch_size=2, num_workers=workers, collate_fn=collate)
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert str(caught.value) == "frame a.jpg is missing; or use --skip_broken to train without such clips"


class PartlyBroken(RandomClips):
    """Clips of which some have broken files."""

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        if index in (0, 3):
            raise UserError(f"frame {index}.jpg is broken")
        return super().load(index, rng)


def test_broken_clips_are_replaced_reported_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def captions() -> list[str]:
        clips = PartlyBroken(6)
        clips.skip_broken = True
        found = [clips[index][1]["caption"] for index in range(6)]
        assert clips.broken == capsys.readouterr().err.count("is replaced with another one (--skip_broken): frame") >= 2
        return found

    first = captions()
    assert not {"object 0", "object 3"} & set(first) and first[1] == "object 1"
    assert first == captions(), "the replacement depends on seed, epoch and index only"


def test_nothing_but_broken_clips_is_an_error() -> None:
    clips = BrokenClips()
    clips.skip_broken = True
    with pytest.raises(UserError, match=r"100 clips drawn one after another are broken, the last one because frame a"):
        clips[0]


def test_evaluation_never_skips(capsys: pytest.CaptureFixture[str]) -> None:
    clips = PartlyBroken(6, replace_invisible=False)
    clips.skip_broken = True
    with pytest.raises(UserError, match=r"^frame 0.jpg is broken$"):
        clips[0]


# --- small parts


def test_sentences_are_lower_cased_with_single_spaces() -> None:
    assert normalise_sentence("  The\tBright  dog\n on the Left ") == "the bright dog on the left"
    assert normalise_sentence(" \n") == ""


def test_denormalise_undoes_normalise() -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(denormalise(normalise(pixels)), pixels)


def test_data_workers_never_import_the_model() -> None:
    code = (
        "import sys, datasets; sys.exit(any(m.split('.')[0] in ('models', 'engine', 'diffusers') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
