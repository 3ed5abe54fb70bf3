"""Negatives of the toy benchmark: sentences that are plainly false of every object of their video."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from datasets.expressions import NEGATIVE
from datasets.toy_scene import COLOURS, MOTIONS, SHAPES, SIZES
from datasets.toy_sentences import RELATIONS, Description, Facts, Sentence, descriptions, phrase, pick_description

TRIES = 20  # for each sentence, before a scene is taken to offer no more
WORDS: dict[str, Collection[Any]] = {
    "size": SIZES,
    "colour": COLOURS,
    "shape": SHAPES,
    "motion": MOTIONS,
    "relation": RELATIONS,
}


def choose_negatives(
    rng: random.Random, facts: Facts, kinds: Sequence[str], count: int, others: Sequence[Sentence]
) -> list[Sentence]:
    """Sentences that name nothing in a scene, each made from one that names an object by changing one of its words.

    So they are phrased like the sentences of ``kinds``: the words alone do not give them away.

    Args:
        kinds: those of the sentences that they are made from, in turn.
        others: the video's other sentences, whose texts are in use.

    Returns:
        ``count`` sentences, no two with the same text; fewer where the scene offers no more.
    """
    sources: dict[str, list[Description]] = {}
    for target in range(len(facts.objects)):
        for kind, description in descriptions(facts, target, kinds):
            sources.setdefault(kind, []).append(description)
    taken = {sentence.text for sentence in others}
    chosen: dict[str, Sentence] = {}
    for kind in islice(cycle(rng.sample(sorted(sources), len(sources))), TRIES * count):
        misses = near_misses(facts, pick_description(rng, sources[kind]))
        if len(chosen) == count or not misses:
            continue
        description = rng.choice(misses)
        # "The smaller circle" would be in doubt where there is one circle.
        nothing_alike = kind == "size" and not facts.fitting(description.without("size"))
        text = phrase(rng, description, comparative=nothing_alike and rng.random() < 0.5)
        if text not in taken:
            chosen.setdefault(text, Sentence(text, NEGATIVE, None, description))
    return list(chosen.values())


def near_misses(facts: Facts, description: Description) -> list[Description]:
    """The description with one word changed, plainly false of every object.

    The new word is true of something in the scene ("the red circle" beside a red square and a blue circle); only
    where no such change is false of all, it is any word.
    """
    shown: dict[str, Collection[str | None]] = {
        "size": facts.sizes,
        "colour": [obj.colour for obj in facts.objects],
        "shape": [obj.shape for obj in facts.objects],
        "motion": facts.motions,
        "relation": RELATIONS,
    }
    false = [
        (word in shown[group], changed)
        for group, words in WORDS.items()
        if getattr(description, group) is not None
        for word in words
        if facts.denies(changed := replace(description, **{group: word}))
    ]
    return [changed for near, changed in false if near] or [changed for _, changed in false]
