"""Schedule, batches and the check for finite losses."""

from __future__ import annotations

import pytest
import torch

from datasets.clip import EpochBatches
from engine import Meter, Schedule
from util.errors import RunError


def test_rate_warms_up_and_drops_by_epochs() -> None:
    schedule = Schedule(rate=1.0, steps_per_epoch=10, epochs=9, drops=(6, 8), warmup_steps=4)
    assert [schedule.rate_at(step) for step in (0, 3, 59)] == [0.25, 1.0, 1.0]
    assert schedule.rate_at(60) == pytest.approx(0.1)
    assert schedule.rate_at(80) == pytest.approx(0.01)
    assert schedule.total_steps == 90
    assert Schedule(1.0, 10, 9, max_steps=25).total_steps == 25


def test_every_clip_once_per_epoch_over_all_processes() -> None:
    seen = []
    for rank in range(2):
        batches = EpochBatches(12, batch_size=3, seed=5, rank=rank, world_size=2)
        batches.set_position(1)
        assert len(batches) == 2
        seen += [index for batch in batches for index in batch]
    assert sorted(seen) == list(range(12))


def test_a_resumed_epoch_goes_on_where_it_stopped() -> None:
    whole, rest = EpochBatches(20, 2, seed=5), EpochBatches(20, 2, seed=5)
    whole.set_position(3)
    rest.set_position(3, first=4)
    assert list(whole)[4:] == list(rest)
    assert len(rest) == 6
    first = list(whole)
    whole.set_position(4)
    assert list(whole) != first


def test_a_small_dataset_fills_a_batch() -> None:
    assert [len(batch) for batch in EpochBatches(2, 5, seed=0)] == [5]


def test_meter_gives_means_and_names_what_is_not_finite() -> None:
    meter = Meter()
    meter.add(1, ["a/0"], {"loss": torch.tensor(1.0), "loss_ce": torch.tensor(3.0)})
    meter.add(2, ["b/1"], {"loss": torch.tensor(3.0), "loss_ce": torch.tensor(5.0)})
    assert meter.flush() == {"loss": 2.0, "loss_ce": 4.0}
    assert meter.flush() == {}
    meter.add(3, ["a/0"], {"loss": torch.tensor(1.0), "loss_ce": torch.tensor(3.0)})
    meter.add(4, ["b/1", "c/2"], {"loss": torch.tensor(float("nan")), "loss_ce": torch.tensor(3.0)})
    with pytest.raises(RunError, match=r"step 4, clips b/1; c/2: loss nan, loss_ce 3"):
        meter.flush()


def test_the_rate_falls_along_a_cosine() -> None:
    schedule = Schedule(rate=2.0, steps_per_epoch=10, epochs=4, drops=(1,), warmup_steps=4, cosine=True)
    assert schedule.total_steps == 40
    assert schedule.rate_at(0) == pytest.approx(0.5)
    assert schedule.rate_at(20) == pytest.approx(1.0)  # the drops have no effect
    assert 0 < schedule.rate_at(39) < 0.01
