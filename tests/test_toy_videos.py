"""Toy videos: objects can be seen, and every sentence names exactly one of them."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from datasets.toy import ToyVideo, make_video
from datasets.toy.scene import COLOURS, KINDS, SHAPES, SUBPIXELS, Scene, ToyObject, full_areas
from datasets.toy.sentences import Description, Facts, phrase
from tests.test_toy import PARAMETERS, scene_of, shape_at


@pytest.fixture(scope="module")
def videos() -> list[ToyVideo]:
    return [make_video(PARAMETERS, "train", index) for index in range(50)]


def test_objects_are_visible_in_most_frames(videos: list[ToyVideo]) -> None:
    for video in videos:
        assert 2 <= len(video.scene.objects) <= 5
        for obj in video.scene.objects:
            assert ((video.masks == obj.obj_id).sum(axis=(1, 2)) >= 12).mean() >= 0.75


def test_objects_overlap(videos: list[ToyVideo]) -> None:
    hidden = [
        1 - (video.masks == obj_id).sum() / (len(video.masks) * area)
        for video in videos
        for obj_id, area in full_areas(video.scene).items()
    ]
    assert 0.03 < np.mean(hidden) < 0.2


# The sentences, read by a second, simpler reader


def understand(text: str) -> tuple[dict[str, str], str | None, dict[str, str]]:
    """Words said of the object, relation, words said of the reference."""
    match = re.fullmatch(r"(.*?)(?: that is)?(?: to the| on the)? (left of|right of|above|below) the (.*)", text)
    head, relation, reference = match.groups() if match else (text, None, "")
    return words_of(head), relation, words_of(reference)


def words_of(text: str) -> dict[str, str]:
    said = {}
    for word in text.split():
        if word in COLOURS:
            said["colour"] = word
        elif word in SHAPES:
            said["shape"] = word
        elif word in ("small", "little", "smaller", "large", "big", "larger"):
            said["size"] = "small" if word in ("small", "little", "smaller") else "large"
        elif word.removesuffix("wards") in ("left", "right", "up", "down"):
            said["motion"] = word.removesuffix("wards")
        elif word in ("still", "not", "place"):
            said["motion"] = "still"
    return said


def looks_of(scene: Scene, obj: ToyObject) -> dict[str, str]:
    dx, dy = (obj.centres[-1] - obj.centres[0]).tolist()
    motion = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("up" if dy < 0 else "down")
    return {
        "colour": obj.colour,
        "shape": obj.shape,
        "size": "small" if obj.radius < 0.19 * SUBPIXELS * min(scene.height, scene.width) else "large",
        "motion": motion if dx or dy else "still",
    }


def frames_in_relation(obj: ToyObject, relation: str, reference: ToyObject) -> np.ndarray:
    dx, dy = (obj.centres - reference.centres).T
    return {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[relation]


def named(scene: Scene, said: dict[str, str], relation: str | None, said_of_other: dict[str, str]) -> list[int]:
    """Ids of all objects that the words could mean, taking a relation that holds in one frame as enough."""
    fits = [obj for obj in scene.objects if said.items() <= looks_of(scene, obj).items()]
    if relation is None:
        return [obj.obj_id for obj in fits]
    (other,) = [obj for obj in scene.objects if said_of_other.items() <= looks_of(scene, obj).items()]
    return [obj.obj_id for obj in fits if obj is not other and frames_in_relation(obj, relation, other).any()]


def test_every_sentence_names_exactly_its_object(videos: list[ToyVideo]) -> None:
    for video in videos:
        for sentence in video.sentences:
            said, relation, other = understand(sentence.text)
            assert named(video.scene, said, relation, other) == [sentence.obj_id], sentence
            if relation is not None:
                objects = {obj.obj_id: obj for obj in video.scene.objects}
                (reference,) = [o for o in objects.values() if other.items() <= looks_of(video.scene, o).items()]
                assert frames_in_relation(objects[sentence.obj_id], relation, reference).all()


def test_the_words_of_its_kind_decide(videos: list[ToyVideo]) -> None:
    for video in videos:
        for sentence in video.sentences:
            said, relation, _ = understand(sentence.text)
            assert (sentence.kind == "relation") == (relation is not None)
            assert sentence.kind == "relation" or sentence.kind in said
            rest = {what: word for what, word in said.items() if what != sentence.kind}
            assert len(named(video.scene, rest, None, {})) > 1, sentence
            if sentence.kind in ("colour", "shape"):
                only = {sentence.kind: said[sentence.kind]}
                assert said.keys() <= {"colour", "shape"} and len(named(video.scene, only, None, {})) == 1
            if sentence.kind == "size":
                assert said.keys() <= {"size", "colour", "shape"}


def test_videos_offer_all_kinds_and_name_several_objects(videos: list[ToyVideo]) -> None:
    counts = {kind: sum(s.kind == kind for v in videos for s in v.sentences) for kind in KINDS}
    assert all(count > 0.1 * sum(counts.values()) for count in counts.values()), counts
    for index, video in enumerate(videos):
        assert video.sentences[0].kind == KINDS[index % len(KINDS)]
        assert 2 <= len(video.sentences) <= 6 and len({s.text for s in video.sentences}) == len(video.sentences)
        assert len({s.obj_id for s in video.sentences}) >= 2


@pytest.mark.parametrize("kinds", [(kind,) for kind in KINDS] + [("size", "relation")])
@pytest.mark.parametrize("size", [(64, 96), (48, 48)])
def test_chosen_kinds(kinds: tuple[str, ...], size: tuple[int, int]) -> None:
    parameters = replace(PARAMETERS, kinds=kinds, frames=4, height=size[0], width=size[1])
    for index in range(3):
        assert {s.kind for s in make_video(parameters, "train", index).sentences} <= set(kinds)


def test_sentences_survive_a_horizontal_flip(videos: list[ToyVideo]) -> None:
    """A loader that mirrors frames swaps the words left and right: the sentence must name the same object."""
    swap = {"left": "right", "right": "left", "left of": "right of", "right of": "left of"}
    for video in videos:
        scene = video.scene
        width = np.array((scene.width * SUBPIXELS, 0))
        mirrored = replace(
            scene,
            objects=tuple(replace(obj, centres=abs(width - obj.centres)) for obj in scene.objects),
        )
        for sentence in video.sentences:
            text = " ".join(swap.get(word, word) for word in sentence.text.split())
            assert named(mirrored, *understand(text)) == [sentence.obj_id]


def test_doubtful_cases_are_not_named() -> None:
    near, far = shape_at(1, 10, 24), shape_at(2, 50, 24)
    barely = shape_at(3, 28, 24)  # left of the reference by less than the margin
    reference = shape_at(4, 31, 24, "star")
    left = Description(relation="left of", reference=Description(shape="star"))
    clear = Facts(scene_of(near, far, reference))
    assert clear.named(left) == 0 and clear.fitting(Description(shape="square")) == [0, 1]
    doubtful = Facts(scene_of(near, far, reference, barely))
    assert doubtful.judge(3, left) is None and doubtful.judge(1, left) is False and doubtful.named(left) is None
    passing = shape_at(5, 10, 24, centres=np.array([(10, 24), (30, 24), (45, 24), (60, 24)]) * SUBPIXELS)
    assert Facts(scene_of(passing, reference)).judge(0, left) is None
    assert Facts(scene_of(passing, reference)).judge(0, Description(motion="right")) is True
    slow = shape_at(6, 10, 24, centres=np.array([(10, 24), (11, 24), (12, 24), (13, 24)]) * SUBPIXELS)
    assert Facts(scene_of(slow, reference)).judge(0, Description(motion="right")) is None
    medium = shape_at(7, 10, 24, radius=8)
    assert Facts(scene_of(medium)).judge(0, Description(size="large")) is None
    assert clear.named(Description(colour="blue")) is None


@pytest.mark.parametrize(
    ("description", "patterns"),
    [
        (Description(colour="orange"), {"the orange object", "an orange thing", "the shape that is orange"}),
        (Description(shape="star"), {"the star", "a star", "the thing shaped like a star"}),
        (
            Description("small", "red", "square", motion="left"),
            {"the small red square moving left", "the little red square that moves to the left"},
        ),
        (
            Description(shape="circle", relation="left of", reference=Description(colour="green", shape="triangle")),
            {"the circle left of the green triangle", "a circle to the left of the green triangle"},
        ),
    ],
)
def test_phrases(description: Description, patterns: set[str]) -> None:
    rng = random.Random(0)
    assert patterns <= {phrase(rng, description) for _ in range(400)}


def test_comparatives() -> None:
    assert phrase(random.Random(0), Description(size="small", shape="circle"), comparative=True) == "the smaller circle"
