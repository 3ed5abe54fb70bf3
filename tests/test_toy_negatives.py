"""Negatives of the toy benchmark: sentences that name nothing in their video."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets.toy import STAMP, ToyVideo, make_toy, make_video
from datasets.toy.scene import KINDS, SUBPIXELS
from datasets.toy.sentences import Description, Facts, near_misses
from scripts.make_toy_data import main
from tests.test_toy import PARAMETERS, digest, expressions_of, read, scene_of, shape_at
from tests.test_toy_videos import named, understand
from util.errors import UserError, run_cli

SMALL_SET = {"num_train": 2, "num_valid": 2, "num_test": 1}
COUNT = 3


@pytest.fixture(scope="module")
def videos() -> list[ToyVideo]:
    return [make_video(replace(PARAMETERS, negatives=COUNT), "train", index) for index in range(40)]


def negatives_of(video: ToyVideo) -> list:
    return [sentence for sentence in video.sentences if sentence.kind == "negative"]


def test_they_come_after_the_other_sentences_which_stay(videos: list[ToyVideo]) -> None:
    for index, video in enumerate(videos):
        plain = make_video(PARAMETERS, "train", index)
        assert np.array_equal(video.masks, plain.masks)
        assert video.sentences[:-COUNT] == plain.sentences
        assert [(s.kind, s.obj_id) for s in video.sentences[-COUNT:]] == [("negative", None)] * COUNT
        assert len({s.text for s in video.sentences}) == len(video.sentences)


def test_they_are_plainly_false_of_every_object(videos: list[ToyVideo]) -> None:
    for video in videos:
        facts = Facts(video.scene)
        for sentence in negatives_of(video):
            verdicts = [facts.judge(index, sentence.description) for index in range(len(facts.objects))]
            assert verdicts == [False] * len(verdicts), sentence
            assert named(video.scene, *understand(sentence.text)) == [], "a second, simpler reader finds none either"


def test_they_stay_false_in_a_mirrored_video(videos: list[ToyVideo]) -> None:
    swap = {"left": "right", "right": "left"}
    for video in videos:
        width = np.array((video.scene.width * SUBPIXELS, 0))
        objects = tuple(replace(obj, centres=abs(width - obj.centres)) for obj in video.scene.objects)
        for sentence in negatives_of(video):
            text = " ".join(swap.get(word, word) for word in sentence.text.split())
            assert named(replace(video.scene, objects=objects), *understand(text)) == []


def test_the_words_alone_do_not_give_them_away(videos: list[ToyVideo]) -> None:
    """What groups of words a sentence has says little about whether it is a negative."""

    def spoken(negative: bool) -> np.ndarray:
        said = [s.description for v in videos for s in v.sentences if (s.kind == "negative") == negative]
        groups = ("size", "colour", "shape", "motion", "relation")
        return np.mean([[getattr(d, group) is not None for group in groups] for d in said], axis=0)

    assert abs(spoken(True) - spoken(False)).max() < 0.15


def test_near_misses_recombine_what_is_there() -> None:
    square, circle = shape_at(1, 15, 24), shape_at(2, 45, 24, "circle", colour="blue")
    facts = Facts(scene_of(square, circle))
    assert near_misses(facts, Description(colour="red", shape="square")) == [
        Description(colour="blue", shape="square"),
        Description(colour="red", shape="circle"),
    ]
    left = Description(relation="left of", reference=Description(shape="circle"))
    misses = near_misses(facts, left)
    assert replace(left, relation="right of") in misses and all(d.reference == left.reference for d in misses)


def test_words_of_nothing_there_are_used_only_where_no_others_are_false() -> None:
    facts = Facts(scene_of(shape_at(1, 15, 24), shape_at(2, 45, 24, "circle")))
    misses = {description.shape for description in near_misses(facts, Description(shape="square"))}
    assert misses == {"triangle", "star", "cross", "ring"}


def test_in_doubt_it_is_no_negative() -> None:
    medium = shape_at(1, 15, 24, radius=8)
    assert near_misses(Facts(scene_of(medium)), Description(size="large")) == []


@pytest.mark.parametrize("kinds", [(kind,) for kind in KINDS])
def test_every_kind_offers_as_many_as_may_be_asked_for(kinds: tuple[str, ...]) -> None:
    parameters = replace(PARAMETERS, kinds=kinds, negatives=6, frames=4, height=48, width=48)
    assert [len(negatives_of(make_video(parameters, "train", index))) for index in range(3)] == [6, 6, 6]


# The files


def test_files(tmp_path: Path) -> None:
    summary = make_toy(tmp_path, **SMALL_SET, negatives=2)
    for split in ("train", "valid"):
        assert summary.kinds[split]["negative"] == 4
        for name, video in expressions_of(tmp_path, split).items():
            entries = list(video["expressions"].values())
            if name.startswith("test"):
                assert all(entry.keys() == {"exp"} for entry in entries)
                continue
            assert [(e["kind"], e["obj_id"]) for e in entries[-2:]] == [("negative", None)] * 2
            assert all(isinstance(e["obj_id"], str) and e["kind"] != "negative" for e in entries[:-2])
    assert summary.kinds["test"]["negative"] == 2
    assert not make_toy(tmp_path, **SMALL_SET, negatives=2).created
    for other in (0, 1):
        with pytest.raises(UserError, match="other parameters"):
            make_toy(tmp_path, **SMALL_SET, negatives=other)


def test_without_them_the_set_is_that_of_before(tmp_path: Path) -> None:
    """The stamp included: sets made before there were negatives stay finished sets."""
    make_toy(tmp_path / "without", **SMALL_SET)
    assert "negatives" not in read(tmp_path / "without" / STAMP)["parameters"]
    assert "negative" not in json.dumps(read(tmp_path / "without" / STAMP)["content"])
    make_toy(tmp_path / "with", **SMALL_SET, negatives=1)
    images = {name: value for name, value in digest(tmp_path / "without").items() if name.endswith(("jpg", "png"))}
    assert images.items() <= digest(tmp_path / "with").items()


def test_every_machine_makes_the_same_negatives(videos: list[ToyVideo]) -> None:
    """If this fails, other files come from the same parameters: raise GENERATOR_VERSION with the new digest."""
    content = hashlib.sha256(repr([s.text for video in videos for s in negatives_of(video)]).encode())
    assert content.hexdigest() == "01cdef2dd7b54192dc0abf7c8bf56c36d87fac2433fe57b549afb74442dbbe75"


@pytest.mark.parametrize("count", ["-1", "7"])
def test_bad_counts(count: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: main(["--output_dir", str(tmp_path), "--negatives", count]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"the number of negatives per video of the toy data is {count}; choose 0 to 6" in error


def test_the_script_reports_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    counts = {"--train_videos": 1, "--valid_videos": 1, "--test_videos": 0, "--negatives": 2}
    main(["--output_dir", str(tmp_path), *(str(word) for flag in counts.items() for word in flag)])
    assert "negative 2)" in capsys.readouterr().out
