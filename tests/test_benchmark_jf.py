"""scripts.benchmark_jf: both ways of scoring agree, on masks that are the same every time."""

from __future__ import annotations

import re

import numpy as np
import pytest

from scripts import benchmark_jf
from scripts.benchmark_jf import Workload, draw_sequence, main, measure, plain_scores
from util.errors import RunError, UserError
from util.metrics import fixed_scores

TINY = Workload(sequences=3, frames=8, objects=7, height=60, width=90)


def test_both_ways_agree() -> None:
    ours, plain = measure(fixed_scores, TINY), measure(plain_scores, TINY)
    expected = 2 * sum(TINY.share(TINY.frames, n) * TINY.objects_of(n) for n in range(TINY.sequences))
    assert ours.scores.shape == plain.scores.shape == (expected,)
    assert np.abs(ours.scores - plain.scores).max() <= 1e-9
    assert 0.3 < ours.scores.mean() < 1 and ours.scores.std() > 0.01  # neither perfect nor hopeless
    assert ours.seconds > 0 and ours.megabytes > 10


def test_the_plain_form_by_hand() -> None:
    """A 2×2 square, and the same one pixel further; radius 1 in frames of this size."""
    truth, guess = np.zeros((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
    truth[2:4, 1:3] = guess[2:4, 2:4] = 1
    j, f = plain_scores([(truth, guess), (truth * 0, truth * 0), (truth, truth * 0)], 1)
    assert j.tolist() == [[2 / 6, 1.0, 0.0]] and f[0, 1:].tolist() == [1.0, 0.0]
    assert f[0, 0] == fixed_scores([(truth, guess)], 1)[1][0, 0] == 1.0


def test_the_sizes_are_the_workloads() -> None:
    whole = Workload()
    assert sum(whole.share(whole.frames, n) for n in range(30)) == 1999
    assert sum(whole.objects_of(n) for n in range(30)) == 61
    pairs = list(draw_sequence(TINY, 2))
    assert len(pairs) == 3 and all(ids.shape == (60, 90) for pair in pairs for ids in pair)
    assert set(np.unique(pairs[0][0])) <= {0, 1, 2, 3} and pairs[0][0].max() > 0
    again = draw_sequence(TINY, 2)
    assert all(np.array_equal(one, two) for one, two in zip(pairs, again, strict=True))


def test_boxes_are_as_large_as_in_davis() -> None:
    shares = []
    for number in range(30):
        truth, _ = next(draw_sequence(Workload(), number))
        for k in range(1, int(truth.max()) + 1):
            rows, columns = np.nonzero(truth == k)
            if len(rows):
                shares.append((np.ptp(rows) + 1) * (np.ptp(columns) + 1) / truth.size)
    assert 0.1 < np.mean(shares) < 0.3


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--sequences", "2", "--frames", "6", "--objects", "3", "--height", "60", "--width", "90", "--files"])
    told = capsys.readouterr().out
    assert re.search(r"this project +\d+\.\d\d s +\d+ MB", told) and re.search(r"plain OpenCV form +\d", told)
    assert re.search(r"ratio \d+\.\d \(at least 2\), greatest difference \d", told) and "with the PNG files" in told


def test_ways_that_do_not_agree_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(function, score, workload):
        measured = function(score, workload)
        return measured if score is fixed_scores else benchmark_jf.Measured(1.0, 1.0, measured.scores + 1e-6)

    monkeypatch.setattr(benchmark_jf, "apart", here)
    with pytest.raises(RunError, match="must agree to 1e-09"):
        main(["--sequences", "1", "--frames", "2", "--objects", "1", "--height", "60", "--width", "90"])


@pytest.mark.parametrize("values", [{"frames": 2}, {"objects": 1}, {"sequences": 0}, {"height": 8}])
def test_sizes_that_cannot_be(values: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least"):
        Workload(**values)
