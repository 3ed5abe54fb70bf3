"""Captions of whole toy scenes, for what learns from videos and their descriptions before any object is referred to."""

from __future__ import annotations

import random
from dataclasses import replace

from datasets.toy_scene import Scene
from datasets.toy_sentences import MOTION_PHRASES, RELATIONS, SIZE_WORDS, Description, Facts, phrase

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


def describe_object(rng: random.Random, scene: Scene) -> str:
    """Describe one object as a referring sentence would, but say nothing of whether others fit it too.

    Returns:
        such as "the small circle to the left of the green star".
    """
    facts = Facts(scene)
    index = rng.randrange(len(scene.objects))
    obj = scene.objects[index]
    said = Description(
        size=facts.sizes[index] if rng.random() < SAID / 2 else None,
        colour=obj.colour if rng.random() < SAID else None,
        shape=obj.shape if rng.random() < SAID else None,
    )
    if facts.motions[index] is not None and rng.random() < SAID / 2:
        return phrase(rng, replace(said, motion=facts.motions[index]))
    beside = [
        (relation, other)
        for relation in RELATIONS
        for other in range(len(scene.objects))
        if other != index and facts.relations[relation, index, other]
    ]
    if beside and rng.random() < SAID:
        relation, other = rng.choice(beside)
        reference = Description(colour=scene.objects[other].colour, shape=scene.objects[other].shape)
        return phrase(rng, replace(said, relation=relation, reference=reference))
    if said == Description():
        said = Description(colour=obj.colour, shape=obj.shape)
    return phrase(rng, said)
