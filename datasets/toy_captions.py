"""Captions of whole toy scenes, for what learns from videos and their descriptions before any object is referred to."""

from __future__ import annotations

import random

from datasets.toy_scene import Scene
from datasets.toy_sentences import MOTION_PHRASES, SIZE_WORDS, Facts

SAID = 0.75
"""How often an attribute is said at all."""


def describe_scene(rng: random.Random, scene: Scene) -> str:
    """Name the objects of a scene in random order, each by its shape and some of colour, size and motion.

    Returns:
        such as "a small red circle moving left, a green star and a large square staying still".
    """
    facts = Facts(scene)
    parts = []
    for i in rng.sample(range(len(scene.objects)), len(scene.objects)):
        obj, size, motion = scene.objects[i], facts.sizes[i], facts.motions[i]
        words = [obj.shape]
        if rng.random() < SAID:
            words.insert(0, obj.colour)
        if size is not None and rng.random() < SAID:
            words.insert(0, rng.choice(SIZE_WORDS[size]))
        if motion is not None and rng.random() < SAID:
            words.append(rng.choice(MOTION_PHRASES[motion]))
        article = "an" if words[0][0] in "aeiou" else "a"
        parts.append(" ".join((article, *words)))
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
