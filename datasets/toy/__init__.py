"""The toy benchmark: a generated data set in the layout of Ref-YouTube-VOS.

Videos show 2 to 5 moving, overlapping shapes. Sentences refer to one of them by colour, shape, size, motion or
relation; negatives, which are optional, refer to none. In addition to the layout, expressions of train and valid have a
``kind``, valid has masks and ``obj_id``, and ``meta.json`` describes the objects.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.expressions import NEGATIVE
from datasets.files import write_frame
from datasets.predictions import object_palette
from datasets.toy.scene import KINDS, MAX_OBJECTS, Scene, darken, full_areas, render_frames, render_masks, sample_scene
from datasets.toy.sentences import Facts, Sentence, choose_negatives, choose_sentences
from util.errors import UserError
from util.files import atomic_path, read_json, sole_run, write_json
from util.parallel import map_videos

GENERATOR_VERSION = 2  # raise it when the same parameters produce different files
STAMP = "toy_set.json"
SPLITS = ("train", "valid", "test")
# The files of a set, which are all that is ever removed. The stamp goes last, because nothing is removed without it.
OWN_ENTRIES = (*SPLITS, "meta_expressions", STAMP)

MAX_TRIES = 2000
MAX_NEGATIVES = 6  # per video
LOOKS = ("day", "night")
# An object is visible in a frame with at least this many pixels and this share of its area, and must be visible in this
# share of the frames.
VISIBLE_PIXELS, VISIBLE_AREA, VISIBLE_FRAMES = 12, 0.35, 0.75

FRAME_STEP = 5  # frames are numbered as in Ref-YouTube-VOS: 00000, 00005, …


@dataclass(frozen=True)
class ToyVideo:
    """A finished video: the scene, its masks (uint8 [T, H, W], value = object id) and its sentences."""

    scene: Scene
    masks: np.ndarray
    sentences: list[Sentence]


@dataclass
class ToySummary:
    """Counts of a set. ``created`` is False if the set existed already; ``size`` is in bytes."""

    created: bool
    size: int
    videos: dict[str, int]
    expressions: dict[str, int]
    kinds: dict[str, dict[str, int]]


@dataclass(frozen=True)
class ToyParameters:
    """The parameters that determine the content of a set.

    Args:
        num_train, num_valid, num_test: videos per split.
        frames: per video; height, width: in pixels.
        kinds: kinds of sentences, some of KINDS.
        negatives: sentences per video that refer to nothing in it. The other sentences do not depend on them.
        look: one of LOOKS. "night" changes only the frames: it darkens those of every third training video and of all
            validation and test videos. The bright training videos keep what a model knows.

    Raises:
        UserError: a parameter is out of range.
    """

    num_train: int = 400
    num_valid: int = 40
    num_test: int = 4
    frames: int = 8
    height: int = 64
    width: int = 96
    seed: int = 0
    kinds: tuple[str, ...] = KINDS
    negatives: int = 0
    look: str = "day"

    def __post_init__(self) -> None:
        for what, value, least, most in (
            *((f"number of {split} videos", count, 0, 99999) for split, count in self.counts.items()),
            ("number of frames", self.frames, 4, 1000),
            ("height", self.height, 48, 1080),
            ("width", self.width, 48, 1920),
            ("number of negatives per video", self.negatives, 0, MAX_NEGATIVES),
        ):
            if not least <= value <= most:
                raise UserError(f"the {what} of the toy data is {value}; choose {least} to {most}")
        if self.look not in LOOKS:
            raise UserError(f"the look of the toy data is {self.look!r}; choose {' or '.join(LOOKS)}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise UserError(f"toy data of the kinds {list(self.kinds)}; choose some of {', '.join(KINDS)}, each once")

    @property
    def counts(self) -> dict[str, int]:
        """Number of videos of each split."""
        return {"train": self.num_train, "valid": self.num_valid, "test": self.num_test}

    @property
    def identity(self) -> dict[str, Any]:
        """The parameters in the stamp. Sets from before ``negatives`` and ``look`` existed lack them."""
        values = {"generator_version": GENERATOR_VERSION, **asdict(self), "kinds": list(self.kinds)}
        return {key: value for key, value in values.items() if (key, value) not in (("negatives", 0), ("look", "day"))}


def make_toy(root: str | Path, *, workers: int = 1, force: bool = False, **options: Any) -> ToySummary:
    """Write the toy benchmark below ``root``.

    A video depends only on the seed, its split, its index and the parameters of a video, so a larger set begins with
    the smaller one. A finished set with the same parameters is kept; an unfinished one is made again.

    Args:
        root: folder of the set.
        workers: number of processes; 1 uses the calling one.
        force: replace a toy set with other parameters, and one whose files have another total size than when written.
        options: fields of ``ToyParameters``.

    Raises:
        UserError: a parameter is out of range, or ``root`` holds another set or other files.
    """
    root, parameters = Path(root), ToyParameters(**options)
    try:
        with sole_run(root):
            return _examine(root, parameters, force) or _write_set(root, parameters, workers)
    except OSError as error:
        raise UserError(f"cannot write the toy data below {root}: {error.strerror or error}") from error


def _write_set(root: Path, parameters: ToyParameters, workers: int) -> ToySummary:
    """Write everything, the complete stamp last."""
    write_json(root / STAMP, {"parameters": parameters.identity})
    jobs = [(split, index) for split, count in parameters.counts.items() for index in range(count)]
    results = map_videos(partial(_write_video, root, parameters), jobs, workers)
    documents: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    looks: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    for (split, index), (described, objects) in zip(jobs, results, strict=True):
        documents[split][_video_name(split, index)] = described
        looks[split][_video_name(split, index)] = {"objects": objects}
    for split in ("train", "valid"):
        write_json(root / split / "meta.json", {"videos": looks[split]})
    # As in the real challenge, the valid file also lists the test videos, and test sentences have no answers.
    test = {
        name: {**video, "expressions": {key: {"exp": entry["exp"]} for key, entry in video["expressions"].items()}}
        for name, video in documents["test"].items()
    }
    for split, videos in {**documents, "valid": documents["valid"] | test, "test": test}.items():
        write_json(root / "meta_expressions" / split / "meta_expressions.json", {"videos": videos})
    listed = (*parameters.kinds, NEGATIVE) if parameters.negatives else parameters.kinds
    kinds = {}
    for split, videos in documents.items():
        counts = Counter(item["kind"] for video in videos.values() for item in video["expressions"].values())
        kinds[split] = {kind: counts[kind] for kind in listed}
    sentences = {split: sum(counts.values()) for split, counts in kinds.items()}
    summary = ToySummary(True, _size(root), dict(parameters.counts), sentences, kinds)
    content = {key: value for key, value in asdict(summary).items() if key != "created"}
    write_json(root / STAMP, {"parameters": parameters.identity, "content": content})
    return summary


def make_video(parameters: ToyParameters, split: str, index: int) -> ToyVideo:
    """Make one video in memory: draw scenes until all objects are visible and the sentences exist."""
    rng = random.Random(f"{parameters.seed}/{split}/{index}")
    kinds = parameters.kinds
    focus = kinds[index % len(kinds)]
    for _ in range(MAX_TRIES):
        scene = sample_scene(rng, parameters.frames, parameters.height, parameters.width, focus, kinds)
        facts = Facts(scene)
        sentences = choose_sentences(rng, facts, kinds, focus)
        if not sentences:
            continue
        masks = render_masks(scene)
        if _all_visible(scene, masks):
            own_rng = random.Random(f"{parameters.seed}/{split}/{index}/negatives")
            sentences += choose_negatives(own_rng, facts, kinds, parameters.negatives, sentences)
            return ToyVideo(scene, masks, sentences)
    raise AssertionError(f"no scene for {parameters}, {split} video {index}")


def _all_visible(scene: Scene, masks: np.ndarray) -> bool:
    """Whether every object is visible in most frames."""
    pixels = np.stack([np.bincount(mask.ravel(), minlength=MAX_OBJECTS + 1) for mask in masks])
    return all(
        (pixels[:, obj_id] >= max(VISIBLE_PIXELS, VISIBLE_AREA * area)).mean() >= VISIBLE_FRAMES
        for obj_id, area in full_areas(scene).items()
    )


def _examine(root: Path, parameters: ToyParameters, force: bool) -> ToySummary | None:
    """The summary of a finished set that is kept; otherwise remove what may be replaced and return None."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; choose a folder for the toy data")
    if not root.is_dir() or all(path.name.startswith(f".{Path(STAMP).stem}.") for path in root.iterdir()):
        return None  # empty, except for the unfinished stamp of a killed process
    if not (root / STAMP).is_file():
        raise UserError(f"{root} is not empty and holds no toy data ({STAMP} is missing); choose another folder")
    stamp = read_json(root / STAMP, "the parameters of the toy data")
    if not isinstance(stamp, dict) or stamp.get("parameters") != parameters.identity:
        if not force:
            raise UserError(
                f"{root} holds toy data with other parameters or of an older generator (see {STAMP}); choose "
                "another folder, or replace it with --force"
            )
    elif (
        "content" in stamp
        and not (force and stamp["content"].get("size") != _size(root))  # without --force it may be edited on purpose
    ):
        return ToySummary(created=False, **stamp["content"])
    for entry in OWN_ENTRIES:
        path = root / entry
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return None


def _size(root: Path) -> int:
    """Total size of a set's files in bytes, without the stamp."""
    files = (file for entry in OWN_ENTRIES if entry != STAMP for file in (root / entry).rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())


def _write_video(root: Path, parameters: ToyParameters, job: tuple[str, int]) -> tuple[dict, dict]:
    """Write the images of a video; return its entries for the expressions file and ``meta.json``."""
    split, index = job
    video, name = make_video(parameters, split, index), _video_name(split, index)
    names = [f"{FRAME_STEP * number:05d}" for number in range(parameters.frames)]
    frames = render_frames(video.scene)
    if parameters.look == "night" and (split != "train" or index % 3 == 1):
        frames = darken(frames)
    for frame_name, frame, mask in zip(names, frames, video.masks, strict=True):
        write_frame(root / split / "JPEGImages" / name / f"{frame_name}.jpg", frame)
        if split != "test":
            image = Image.fromarray(mask).convert("P")
            image.putpalette(object_palette())
            with atomic_path(root / split / "Annotations" / name / f"{frame_name}.png") as path:
                image.save(path)
    expressions = {
        str(number): {
            "exp": sentence.text,
            "obj_id": None if sentence.obj_id is None else str(sentence.obj_id),
            "kind": sentence.kind,
        }
        for number, sentence in enumerate(video.sentences)
    }
    facts = Facts(video.scene)
    looks = {}
    for obj, size, motion in zip(video.scene.objects, facts.sizes, facts.motions, strict=True):
        visible = (video.masks == obj.obj_id).any(axis=(1, 2))
        looks[str(obj.obj_id)] = {
            "category": obj.shape,
            "colour": obj.colour,
            "size": size,
            "motion": motion,
            "frames": [name for name, seen in zip(names, visible, strict=True) if seen],
        }
    return {"frames": names, "expressions": expressions}, dict(sorted(looks.items()))


def _video_name(split: str, index: int) -> str:
    return f"{split}_{index:05d}"
