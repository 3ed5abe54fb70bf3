"""What the toy lab asks, and how it answers: variants, the papers' claims about them, verdicts, tables.

VD-IT is arXiv 2403.12042, HCD arXiv 2508.13584. Scores are J&F, 0–100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance
from typing import Any

CERTAIN = 2.0
"""Standard errors that a difference must have before anything is said about it."""
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told here"


@dataclass(frozen=True)
class Variant:
    """A model of the lab: VD-IT with one thing changed."""

    name: str
    """As the command line and folders call it."""
    title: str
    flags: tuple[str, ...] = ()
    """Options of ``main.py`` and ``inference_ytvos.py`` that make it."""
    random_stack: bool = False
    """Whether UNet, VAE and their text encoder have random weights, others for every seed."""


@dataclass(frozen=True)
class Claim:
    """Something a paper says, as a comparison of two variants."""

    text: str
    paper: str
    better: str
    """The variant that should score higher."""
    worse: str


VARIANTS = (
    Variant("base", "VD-IT: pre-trained features, predicted noise, image tokens, sentence in the UNet"),
    Variant("random_stack", "random text-to-video features", random_stack=True),
    Variant("gaussian_noise", "Gaussian noise", ("--noise", "gaussian")),
    Variant("no_noise", "no noise", ("--noise", "none")),
    Variant("no_image_tokens", "no image tokens", ("--no-image_tokens",)),
    Variant("empty_sentence", "the empty sentence in the UNet", ("--no-unet_text",)),
)

CLAIMS = (
    Claim("Pre-trained text-to-video features beat random ones", "VD-IT, abstract", "base", "random_stack"),
    Claim("Predicted noise beats Gaussian noise", "VD-IT, abstract and section 3.3", "base", "gaussian_noise"),
    Claim("Predicted noise beats none", "VD-IT, section 3.3", "base", "no_noise"),
    Claim("No noise beats predicted noise (the opposite)", "HCD, title and abstract", "no_noise", "base"),
    Claim("No noise beats Gaussian noise", "HCD, title and abstract", "no_noise", "gaussian_noise"),
    Claim("Image tokens beside the text help", "VD-IT, abstract and section 3.2", "base", "no_image_tokens"),
    Claim("The sentence in the UNet helps", "VD-IT, abstract", "base", "empty_sentence"),
)


@dataclass(frozen=True)
class Scores:
    """A variant's runs, one value per seed, in the seeds' order."""

    jf: tuple[float, ...]
    swapped: tuple[float, ...]
    """J&F when every sentence is another object's: that of a model which reads them is far lower."""
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """What the runs say of a claim."""

    claim: Claim
    difference: float
    """Mean J&F of the variant that should be better, less that of the other."""
    error: float | None
    """Standard error of the difference; None with one seed."""
    verdict: str


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """Standard deviation over seeds, pooled over groups of runs, and its degrees of freedom.

    One number for all variants: three seeds alone say little about a spread, and those of all variants say more.

    Returns:
        √(Σ (nᵢ − 1) sᵢ² / Σ (nᵢ − 1)), or None where every group has one run; and Σ (nᵢ − 1).
    """
    freedom = sum(len(group) - 1 for group in groups)
    if freedom == 0:
        return None, 0
    squares = sum((len(group) - 1) * variance(group) for group in groups if len(group) > 1)
    return math.sqrt(squares / freedom), freedom


def verdict(difference: float, error: float | None) -> str:
    """``HOLDS`` or ``FAILS`` (the opposite is seen), ``UNKNOWN`` below ``CERTAIN`` standard errors or without any."""
    if error is None or difference == 0 or abs(difference) < CERTAIN * error:
        return UNKNOWN
    return HOLDS if difference > 0 else FAILS


def answer(scores: Mapping[str, Scores], claims: Sequence[Claim] = CLAIMS) -> list[Answer]:
    """What the runs say of every claim whose two variants were run.

    Args:
        scores: by the variant's name.
        claims: what is asked.
    """
    deviation, _ = pooled_deviation([own.jf for own in scores.values()])
    answers = []
    for claim in claims:
        if claim.better in scores and claim.worse in scores:
            better, worse = scores[claim.better].jf, scores[claim.worse].jf
            difference = fmean(better) - fmean(worse)
            error = None if deviation is None else deviation * math.sqrt(1 / len(better) + 1 / len(worse))
            answers.append(Answer(claim, difference, error, verdict(difference, error)))
    return answers


def report(scores: Mapping[str, Scores], answers: Sequence[Answer]) -> dict[str, Any]:
    """All numbers, ready for JSON."""
    deviation, freedom = pooled_deviation([own.jf for own in scores.values()])
    return {
        "variants": {
            name: {
                "jf": list(own.jf),
                "jf_mean": fmean(own.jf),
                "jf_deviation": stdev(own.jf) if len(own.jf) > 1 else None,
                "swapped_jf": list(own.swapped),
                "swapped_jf_mean": fmean(own.swapped),
                "seconds": list(own.seconds),
            }
            for name, own in scores.items()
        },
        "pooled_deviation": deviation,
        "degrees_of_freedom": freedom,
        "claims": [
            {
                "claim": own.claim.text,
                "paper": own.claim.paper,
                "better": own.claim.better,
                "worse": own.claim.worse,
                "difference": own.difference,
                "standard_error": own.error,
                "verdict": own.verdict,
            }
            for own in answers
        ],
    }


def render(scores: Mapping[str, Scores], answers: Sequence[Answer], variants: Sequence[Variant] = VARIANTS) -> str:
    """The report as Markdown that is also legible as plain text: runs, claims, and the verdicts in sentences."""
    titles = {variant.name: variant.title for variant in variants}
    lines = table(
        ["variant", "what it is", "J&F", "J&F, swapped sentences", "seeds", "seconds a run"],
        [
            [name, titles[name], spread(own.jf), spread(own.swapped), str(len(own.jf)), f"{fmean(own.seconds):.0f}"]
            for name, own in scores.items()
        ],
        left=2,
    )
    deviation, freedom = pooled_deviation([own.jf for own in scores.values()])
    if deviation is None:
        lines += ["", "Mean J&F. One seed has no spread, so no claim can be told from chance."]
    else:
        lines += [
            "",
            "Mean J&F ± sample standard deviation over seeds. The deviation pooled over all variants is "
            f"{deviation:.2f} ({freedom} degrees of freedom); the standard errors below come from it.",
        ]
    if answers:
        lines += ["", *claims_table(answers), ""]
        for kind, title in ((HOLDS, "Holds here"), (FAILS, "Does not hold here"), (UNKNOWN, "Cannot be told here")):
            found = [own.claim.text for own in answers if own.verdict == kind]
            lines.append(f"- **{title}:** {'; '.join(found) or 'none'}.")
    return "\n".join(lines) + "\n"


def claims_table(answers: Sequence[Answer]) -> list[str]:
    """The lines of the claims' table."""
    return table(
        ["claim", "paper", "compared", "difference", "standard error", "here"],
        [
            [
                own.claim.text,
                own.claim.paper,
                f"{own.claim.better} − {own.claim.worse}",
                f"{own.difference:+.2f}",
                "–" if own.error is None else f"{own.error:.2f}",
                f"**{own.verdict}**",
            ]
            for own in answers
        ],
        left=3,
    )


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation with one decimal; a single value has none."""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """The lines of a Markdown table, columns aligned: the first ``left`` ones to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if number < left else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    return [line(header), line(rule), *map(line, rows)]
