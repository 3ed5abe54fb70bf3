"""Sentences of the toy benchmark: referring expressions, captions of whole scenes, and negatives.

A sentence is phrased from a ``Description``. ``Facts`` measures a finished scene and judges, for every object, whether
a description is true, false or ambiguous. A description becomes an expression only if it is true of exactly one object
and clearly false of all others. Its kind is the word group that decides: without that group the description fits at
least one more object. A negative is clearly false of every object.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from typing import Any

import numpy as np

from datasets.expressions import NEGATIVE
from datasets.toy.scene import COLOURS, MOTIONS, SHAPES, SIZES, SUBPIXELS, Scene, ToyObject

# Shares of the shorter side: radii below / above are small / large.
SMALL_BELOW, LARGE_ABOVE = 0.165, 0.210
# A moving object crosses at least this share of the frame's width or height, and drifts aside by at most this share
# of its way.
LEAST_TRAVEL, MOST_DRIFT = 0.2, 0.3
# "Left of" is true if in every frame the centres are this far apart (share of the shorter side) and the direction is
# more horizontal than vertical by STEEPNESS; it is false if the centres are never apart in that direction.
RELATION_MARGIN, STEEPNESS = 0.11, 1.2

MOST, MOST_OF_A_KIND = 6, 2  # sentences of a video; more of a kind where only a few kinds are made

RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}

NOUNS = ("object", "shape", "thing")
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
COMPARATIVES = {"small": "smaller", "large": "larger"}
MOTION_PHRASES = {
    "left": ("moving left", "moving to the left", "going left", "that moves to the left"),
    "right": ("moving right", "moving to the right", "going right", "that moves to the right"),
    "up": ("moving up", "going up", "that moves up", "moving upwards"),
    "down": ("moving down", "going down", "that moves down", "moving downwards"),
    "still": ("staying still", "standing still", "that does not move", "that stays in place"),
}
RELATION_PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "that is above"),
    "below": ("below", "that is below"),
}
SAID = 0.75  # probability that a caption mentions an attribute
TRIES = 20  # attempts per negative
WORDS: dict[str, Collection[Any]] = {
    "size": SIZES,
    "colour": COLOURS,
    "shape": SHAPES,
    "motion": MOTIONS,
    "relation": RELATIONS,
}


@dataclass(frozen=True)
class Description:
    """What a sentence says about an object; None: nothing. ``reference`` completes ``relation``."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    relation: str | None = None
    reference: Description | None = None

    def without(self, kind: str) -> Description:
        """The same without the words of one kind."""
        if kind == "relation":
            return replace(self, relation=None, reference=None)
        return replace(self, **{kind: None})


@dataclass(frozen=True)
class Sentence:
    """An expression and the description it was made from. ``obj_id`` is None if it refers to no object."""

    text: str
    kind: str
    obj_id: int | None
    description: Description


class Facts:
    """Measures a finished scene and judges descriptions of its objects, which are given by index."""

    def __init__(self, scene: Scene) -> None:
        self.objects = scene.objects
        side = SUBPIXELS * min(scene.height, scene.width)
        frame = np.array((scene.width, scene.height)) * SUBPIXELS
        self.sizes = [_size(obj, side) for obj in scene.objects]
        self.motions = [_motion(obj, frame) for obj in scene.objects]
        self.relations = {
            (relation, i, j): _relation(relation, a, b, RELATION_MARGIN * side)
            for relation, (i, a), (j, b) in product(RELATIONS, enumerate(scene.objects), enumerate(scene.objects))
        }

    def judge(self, index: int, description: Description) -> bool | None:
        """Whether the description is true of the object; None: ambiguous."""
        obj = self.objects[index]
        verdicts: list[bool | None] = []
        for said, seen in (
            (description.colour, obj.colour),
            (description.shape, obj.shape),
            (description.size, self.sizes[index]),
            (description.motion, self.motions[index]),
        ):
            if said is not None:
                verdicts.append(None if seen is None else said == seen)
        if description.relation is not None:
            assert description.reference is not None
            other = self.named(description.reference)
            verdicts.append(None if other is None else self.relations[description.relation, index, other])
        if False in verdicts:
            return False
        return None if None in verdicts else True

    def named(self, description: Description) -> int | None:
        """The only object that the description fits; None if there is none or the description is ambiguous."""
        verdicts = [self.judge(index, description) for index in range(len(self.objects))]
        return verdicts.index(True) if verdicts.count(True) == 1 and None not in verdicts else None

    def fitting(self, description: Description) -> list[int]:
        """All objects of which the description is true."""
        return [index for index in range(len(self.objects)) if self.judge(index, description)]


def _size(obj: ToyObject, side: int) -> str | None:
    if obj.radius < SMALL_BELOW * side:
        return "small"
    return "large" if obj.radius > LARGE_ABOVE * side else None


def _motion(obj: ToyObject, frame: np.ndarray) -> str | None:
    way = obj.centres[-1] - obj.centres[0]
    if not (obj.centres != obj.centres[0]).any():
        return "still"
    axis = int(np.argmax(np.abs(way) / frame))
    steps = np.diff(obj.centres[:, axis]) * np.sign(way[axis])
    if (
        abs(way[axis]) < LEAST_TRAVEL * frame[axis]
        or abs(way[1 - axis]) > MOST_DRIFT * abs(way[axis])
        or min(steps) < 0
    ):
        return None
    return (("left", "right"), ("up", "down"))[axis][int(way[axis] > 0)]


def _relation(relation: str, obj: ToyObject, other: ToyObject, margin: float) -> bool | None:
    """Whether the relation holds in every frame (True) or in none (False); None: neither."""
    axis, sign = RELATIONS[relation]
    offset = obj.centres - other.centres
    apart, across = sign * offset[:, axis], np.abs(offset[:, 1 - axis])
    if (apart <= 0).all():
        return False
    return True if ((apart >= margin) & (apart >= STEEPNESS * across)).all() else None


def descriptions(facts: Facts, target: int, kinds: Sequence[str]) -> Iterator[tuple[str, Description]]:
    """Every (kind, description) that refers to this object and to no other."""
    obj = facts.objects[target]
    for size, colour, shape in product((facts.sizes[target], None), (obj.colour, None), (obj.shape, None)):
        head = Description(size=size, colour=colour, shape=shape)
        for kind in kinds:
            for description in _complete(facts, target, head, kind):
                needed = len(facts.fitting(description.without(kind))) > 1
                if kind in ("colour", "shape"):  # which must also suffice on their own
                    needed &= facts.named(Description(**{kind: getattr(description, kind)})) is not None
                if needed and facts.named(description) == target:
                    yield kind, description


def _complete(facts: Facts, target: int, head: Description, kind: str) -> Iterator[Description]:
    """The head with the words of the kind. Sentences about colour and shape are kept free of size."""
    if kind == "motion":
        if facts.motions[target] is not None:
            yield replace(head, motion=facts.motions[target])
    elif kind == "relation":
        for relation, (index, other) in product(RELATIONS, enumerate(facts.objects)):
            if index == target or not facts.relations[relation, target, index]:
                continue
            for colour, shape in product((other.colour, None), (other.shape, None)):
                reference = Description(colour=colour, shape=shape)
                if reference != Description():
                    yield replace(head, relation=relation, reference=reference)
    elif getattr(head, kind) is not None and (kind == "size" or head.size is None):
        yield head


def phrase(rng: random.Random, description: Description, comparative: bool = False) -> str:
    """Put a description into words. Equal random states make equal choices for any description.

    Args:
        comparative: say "the smaller …", for a description that picks one of two objects.
    """
    article = rng.choice(("the", "the", "the", "a"))
    noun = rng.choice(NOUNS)
    size_word, style = rng.random(), rng.random()
    tail_word = rng.random()
    words = [description.shape or noun]
    if description == Description(shape=description.shape) and style < 0.3:
        words = [noun, "shaped like a", description.shape or noun]
    elif description.size is None and description.motion is None and description.relation is None and style < 0.3:
        words += ["that is", description.colour or ""]
    elif description.colour is not None:
        words.insert(0, description.colour)
    if description.size is not None and comparative:
        article = "the"
        words.insert(0, COMPARATIVES[description.size])
    elif description.size is not None:
        words.insert(0, _pick(SIZE_WORDS[description.size], size_word))
    if description.motion is not None:
        words.append(_pick(MOTION_PHRASES[description.motion], tail_word))
    if description.relation is not None:
        reference = description.reference or Description()
        words.append(_pick(RELATION_PHRASES[description.relation], tail_word))
        words += ["the", reference.colour or "", reference.shape or noun]
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return " ".join(word for word in (article, *words) if word)


def _pick(choices: Sequence[str], share: float) -> str:
    return choices[int(share * len(choices))]


def pick_description(rng: random.Random, options: Sequence[Description]) -> Description:
    """Draw one; descriptions with a shape are drawn more often, because they sound more natural."""
    return rng.choices(options, [3 if option.shape else 1 for option in options])[0]


def choose_sentences(rng: random.Random, facts: Facts, kinds: Sequence[str], focus: str) -> list[Sentence]:
    """Sentences for a scene, as even over kinds and objects as it allows; the first is of kind ``focus``.

    Returns:
        at most ``MOST`` sentences, no two with the same text. Empty if the scene offers none of kind ``focus`` or
        if they would all name the same object.
    """
    pool: dict[str, dict[int, list[Description]]] = {kind: {} for kind in kinds}
    for target in range(len(facts.objects)):
        for kind, description in descriptions(facts, target, kinds):
            pool[kind].setdefault(target, []).append(description)
    chosen: list[Sentence] = []
    texts: set[str] = set()
    times_named = [0] * len(facts.objects)
    order = [focus, *rng.sample([kind for kind in kinds if kind != focus], len(kinds) - 1)]
    for kind in order * max(MOST_OF_A_KIND, MOST // len(kinds)):
        if len(chosen) == MOST or not pool[focus]:
            break
        if not pool[kind]:
            continue
        fewest = min(times_named[target] for target in pool[kind])
        target = rng.choice([target for target in pool[kind] if times_named[target] == fewest])
        description = pick_description(rng, pool[kind][target])
        pair = kind == "size" and len(facts.fitting(description.without("size"))) == 2
        text = phrase(rng, description, comparative=pair and rng.random() < 0.5)
        if text not in texts:
            texts.add(text)
            times_named[target] += 1
            chosen.append(Sentence(text, kind, facts.objects[target].obj_id, description))
    return chosen if len({sentence.obj_id for sentence in chosen}) > 1 else []


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
    """Describe one object like a referring expression, which may fit other objects too.

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
        (relation, other) for (relation, i, other), holds in facts.relations.items() if i == index != other and holds
    ]
    if beside and rng.random() < SAID:
        relation, other = rng.choice(beside)
        reference = Description(colour=scene.objects[other].colour, shape=scene.objects[other].shape)
        return phrase(rng, replace(said, relation=relation, reference=reference))
    if said == Description():
        said = Description(colour=obj.colour, shape=obj.shape)
    return phrase(rng, said)


def choose_negatives(
    rng: random.Random, facts: Facts, kinds: Sequence[str], count: int, others: Sequence[Sentence]
) -> list[Sentence]:
    """Sentences that refer to nothing in a scene: expressions with one word changed.

    They are phrased like the expressions of ``kinds``, so that the wording does not give them away.

    Args:
        kinds: kinds of the expressions that they are made from, in turn.
        others: the video's other sentences, whose texts are not used again.

    Returns:
        at most ``count`` sentences with different texts.
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
        # "The smaller circle" is ambiguous where there is one circle.
        nothing_alike = kind == "size" and not facts.fitting(description.without("size"))
        text = phrase(rng, description, comparative=nothing_alike and rng.random() < 0.5)
        if text not in taken:
            chosen.setdefault(text, Sentence(text, NEGATIVE, None, description))
    return list(chosen.values())


def near_misses(facts: Facts, description: Description) -> list[Description]:
    """The description with one word changed so that it is clearly false of every object.

    The new word fits something in the scene ("the red circle" beside a red square and a blue circle). If no such change
    is false of every object, the new word may be any.
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
        for changed in [replace(description, **{group: word})]
        if all(facts.judge(index, changed) is False for index in range(len(facts.objects)))
    ]
    return [changed for near, changed in false if near] or [changed for _, changed in false]
