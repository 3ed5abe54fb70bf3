"""The toy lab: its statistics and verdicts, its variants, what it says of mistakes, its pictures."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts.toy_lab_pictures import component_colours, heat, relative_change

from scripts.toy_lab import (
    CLAIMS,
    FAILS,
    HOLDS,
    UNKNOWN,
    VARIANTS,
    Claim,
    Lab,
    Scores,
    answer,
    check_args,
    choose_variants,
    parse_args,
    pooled_deviation,
    render,
    report,
    spread,
    verdict,
)
from util.errors import UserError

RANDOM = VARIANTS[1]


def scores(*jf: float) -> Scores:
    return Scores(jf, tuple(value / 2 for value in jf), tuple(10.0 for _ in jf))


def test_the_deviation_is_pooled_over_groups() -> None:
    # variances 1 and 9 with 2 degrees of freedom each, and 2 with 1: √((2 + 18 + 2) / 5)
    deviation, freedom = pooled_deviation([(1, 2, 3), (10, 13, 16), (5, 7)])
    assert (deviation, freedom) == (pytest.approx(math.sqrt(22 / 5), abs=1e-12), 5)
    assert pooled_deviation([(1, 2, 3), (8,)]) == (pytest.approx(1), 2)
    assert pooled_deviation([(1,), (8,)]) == (None, 0)


@pytest.mark.parametrize(
    ("difference", "error", "expected"),
    [
        (2.0, 1.0, HOLDS),
        (1.99, 1.0, UNKNOWN),
        (-1.99, 1.0, UNKNOWN),
        (-2.0, 1.0, FAILS),
        (0.0, 0.0, UNKNOWN),
        (0.1, 0.0, HOLDS),
        (50.0, None, UNKNOWN),
    ],
)
def test_verdicts(difference: float, error: float | None, expected: str) -> None:
    assert verdict(difference, error) == expected


def test_answers_and_their_report() -> None:
    own = {"base": scores(40, 42, 44), "random_stack": scores(30, 32, 34), "no_noise": scores(41, 42, 43)}
    answers = answer(own)
    assert [(given.claim.better, given.claim.worse) for given in answers] == [
        ("base", "random_stack"),
        ("base", "no_noise"),
        ("no_noise", "base"),
    ]
    # pooled: √((2·4 + 2·4 + 2·1) / 6) = √3, and its error for two means of three is √3 · √(2/3) = √2
    assert [given.error for given in answers] == [pytest.approx(math.sqrt(2))] * 3
    assert [given.difference for given in answers] == [pytest.approx(10), pytest.approx(0), pytest.approx(0)]
    assert [given.verdict for given in answers] == [HOLDS, UNKNOWN, UNKNOWN]

    numbers = json.loads(json.dumps(report(own, answers)))
    assert numbers["variants"]["base"] == {
        **{"jf": [40, 42, 44], "jf_mean": 42, "jf_deviation": 2},
        **{"swapped_jf": [20, 21, 22], "swapped_jf_mean": 21, "seconds": [10, 10, 10]},
    }
    assert numbers["pooled_deviation"] == pytest.approx(math.sqrt(3)) and numbers["degrees_of_freedom"] == 6
    assert numbers["claims"][0]["verdict"] == HOLDS and numbers["claims"][0]["standard_error"] == answers[0].error

    text = render(own, answers)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [rows[2][0], *rows[2][2:]] == ["base", "42.0 ± 2.0", "21.0 ± 1.0", "3", "10"]
    assert rows[7][2:] == ["base − random_stack", "+10.00", "1.41", "**holds**"]
    assert len({len(line) for line in text.splitlines()[:5]}) == 1, "columns are aligned"
    assert f"- **Holds here:** {CLAIMS[0].text}." in text
    assert "- **Does not hold here:** none." in text
    assert f"- **Cannot be told here:** {CLAIMS[2].text}; {CLAIMS[3].text}." in text


def test_the_opposite_of_a_claim_is_said_plainly() -> None:
    claim = Claim("Gaussian noise helps", "nobody", "gaussian_noise", "base")
    own = {"base": scores(40, 42, 44), "gaussian_noise": scores(20, 22, 24)}
    assert [given.verdict for given in answer(own, [claim])] == [FAILS]
    assert "- **Does not hold here:** Gaussian noise helps." in render(own, answer(own, [claim]))


def test_one_seed_has_no_spread() -> None:
    own = {"base": scores(40), "random_stack": scores(10)}
    (given,) = answer(own)
    assert (given.error, given.verdict) == (None, UNKNOWN)
    text = render(own, [given])
    assert "One seed has no spread" in text and "±" not in text and spread([40.04]) == "40.0"
    assert report(own, [given])["variants"]["base"]["jf_deviation"] is None


def test_claims_are_about_variants_and_variants_are_options(tmp_path: Path) -> None:
    names = {variant.name for variant in VARIANTS}
    assert {name for claim in CLAIMS for name in (claim.better, claim.worse)} == names
    lab = Lab(tmp_path / "stack", tmp_path / "out")
    parameters = {variant.name: lab.parameters(variant, 0) for variant in VARIANTS}
    changed = {
        name: {key: value for key, value in own.items() if value != parameters["base"][key]}
        for name, own in parameters.items()
    }
    assert changed == {
        "base": {},
        "random_stack": {"random_stack": True},
        "gaussian_noise": {"noise": "gaussian"},
        "no_noise": {"noise": "none"},
        "no_image_tokens": {"image_tokens": False},
        "empty_sentence": {"unet_text": False},
    }
    options = lab.options(RANDOM, 3)
    assert options[options.index("--pretrained") + 1] == str(lab.random_stack(3))
    assert options[options.index("--text_encoder") + 1] == str(lab.stack / "roberta")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--only base gausian_noise", "no variant 'gausian_noise', which --only names; did you mean gaussian_noise?"),
        ("--only xyz", "known are base, random_stack, gaussian_noise"),
        ("--steps 0", "--steps must be at least 1, not 0"),
        ("--seeds 1 1", r"--seeds must be different whole numbers of at least 0, not \[1, 1\]"),
        ("--stack absent", "absent is missing; bash scripts/train_toy.sh --stack-only makes"),
    ],
)
def test_mistakes_on_the_command_line(words: str, message: str) -> None:
    def check(args: argparse.Namespace) -> None:
        choose_variants(args.only)
        check_args(args)

    with pytest.raises(UserError, match=message):
        check(parse_args(words.split()))


def test_variants_keep_the_labs_order() -> None:
    assert [variant.name for variant in choose_variants(["no_noise", "base"])] == ["base", "no_noise"]


def test_pictures_of_features() -> None:
    own = torch.zeros(2, 4, 6, 8)
    own[:, 0] = torch.arange(8.0)  # the first component runs from left to right
    own[:, 1] = 0.1 * torch.arange(6.0)[:, None]
    colours = component_colours(own)
    assert colours.shape == (2, 6, 8, 3) and colours.dtype == np.uint8
    assert (np.diff(colours[..., 0].astype(int), axis=2) >= 0).all()
    assert colours[:, :, 0, 0].max() == 0 and colours[:, :, -1, 0].min() == 255

    own, other = torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    other[0, :, 0, 0] = 2
    assert relative_change(own, other).tolist() == [[[1.0, 0.0], [0.0, 0.0]]]
    warm = heat(relative_change(own, other), greatest=1.0).astype(int)
    assert warm.shape == (1, 2, 2, 3) and warm[0, 0, 0].sum() > 500 and warm[0, 1, 1].sum() < 50
