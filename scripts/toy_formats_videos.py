"""Small sets in the true formats of Ref-DAVIS17 and MeViS, made of toy videos.

``write_toy_davis`` writes what Ref-DAVIS17 is distributed as, before ``scripts.prepare_data davis``, and
``write_toy_mevis`` writes MeViS, version 1 or 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.davis import ANNOTATIONS, MISSPELT
from datasets.toy import ToyParameters, ToyVideo, make_video
from datasets.toy.scene import KINDS, render_frames, write_frame
from scripts.toy_formats import empty_folder, write_lines
from scripts.toy_formats_coco import compressed
from util.io import write_json
from util.jf_unions import MASK_FILE
from util.mask_pngs import write_index_mask

EVERYTHING = "all shapes"


def write_toy_davis(
    root: str | Path,
    *,
    num_train: int = 3,
    num_valid: int = 3,
    frames: int = 8,
    height: int = 64,
    width: int = 96,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
) -> Path:
    """Write a small Ref-DAVIS17: ``DAVIS/`` and the four text files. The first validation videos have misspelt names.

    Args:
        root: a folder that is empty or does not exist.
        num_train, num_valid: videos.
        frames: of a video, at least 4.
        height, width: in pixels.
        seed: of the videos.
        kinds: of sentences (``datasets.toy.scene.KINDS``).

    Returns:
        ``root``.

    Raises:
        UserError: a parameter is out of range, or there is something in ``root``.
    """
    root = empty_folder(root)
    davis = root / "DAVIS"
    parameters = ToyParameters(num_train, num_valid, 0, frames, height, width, seed, tuple(kinds))
    misspelt = {right: wrong for wrong, right in MISSPELT.items()}
    lines: list[list[str]] = [[] for _ in ANNOTATIONS]
    categories = {}
    for split, list_name, count in (("train", "train.txt", num_train), ("valid", "val.txt", num_valid)):
        names = [f"toy-{split}-{index}" for index in range(count)]
        if split == "valid":
            names = [*misspelt, *names][:count]
        write_lines(davis / "ImageSets" / "2017" / list_name, names)
        for index, name in enumerate(names):
            video = make_video(parameters, split, index)
            _write_frames(davis / "JPEGImages" / "480p" / name, video)
            for number, ids in enumerate(video.masks):
                write_index_mask(davis / "Annotations_unsupervised" / "480p" / name / f"{number:05d}.png", ids)
            categories[name] = {str(obj.obj_id): obj.shape for obj in video.scene.objects}
            for obj, sentences in sorted(_by_object(video).items()):
                for number, file in enumerate(lines):
                    sentence = sentences[number % len(sentences)]
                    file.append(f'{misspelt.get(name, name)} {obj} "{sentence}"')
    for (name, encoding), file in zip(ANNOTATIONS, lines, strict=True):
        write_lines(root / "davis_text_annotations" / name, file, encoding)
    write_json(davis / "davis_semantics.json", categories)
    return root


def write_toy_mevis(
    root: str | Path,
    *,
    num_train: int = 6,
    num_valid_u: int = 3,
    num_valid: int = 1,
    frames: int = 8,
    height: int = 64,
    width: int = 96,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    no_target: int = 0,
) -> Path:
    """Write a small MeViS. Each video also has a sentence that names all its objects, and one that occurs twice.

    Args:
        root: a folder that is empty or does not exist.
        num_train, num_valid_u, num_valid: videos; ``valid`` has neither masks nor instances.
        frames: of a video, at least 4.
        height, width: in pixels.
        seed: of the videos.
        kinds: of sentences (``datasets.toy.scene.KINDS``).
        no_target: sentences of each video that name nothing, as in version 2; 0 makes version 1.

    Returns:
        ``root``.

    Raises:
        UserError: a parameter is out of range, or there is something in ``root``.
    """
    root = empty_folder(root)
    parameters = ToyParameters(
        num_train, num_valid_u + num_valid, 0, frames, height, width, seed, tuple(kinds), no_target
    )
    # The videos of "valid" follow those of "valid_u" in the toy's own validation split.
    for split, source, numbers in (
        ("train", "train", range(num_train)),
        ("valid_u", "valid", range(num_valid_u)),
        ("valid", "valid", range(num_valid_u, num_valid_u + num_valid)),
    ):
        videos: dict[str, Any] = {}
        masks: dict[str, Any] = {}
        for video_id, index in enumerate(numbers):
            video, name = make_video(parameters, source, index), f"{split}{index:04d}"
            names = _write_frames(root / split / "JPEGImages" / name, video)
            instances = {obj.obj_id: len(masks) + i for i, obj in enumerate(video.scene.objects)}
            masks |= {str(instance): _run_lengths(video.masks == obj) for obj, instance in instances.items()}
            expressions = _mevis_expressions(video, instances, answers=split != "valid")
            videos[name] = {"expressions": expressions, "vid_id": video_id, "frames": names}
        (root / split / "JPEGImages").mkdir(parents=True, exist_ok=True)
        write_json(root / split / "meta_expressions.json", {"videos": videos})
        if split != "valid":
            write_json(root / split / MASK_FILE, masks)
    return root


def _mevis_expressions(video: ToyVideo, instances: dict[int, int], answers: bool) -> dict[str, dict[str, Any]]:
    """Expressions by id; with the objects (of the video) and instances (of the split) that they name, or without."""
    named = [(sentence.text, [] if sentence.obj_id is None else [sentence.obj_id]) for sentence in video.sentences]
    named += [(EVERYTHING, sorted(instances)), named[0]]
    return {
        str(number): {"exp": text, **({"obj_id": ids, "anno_id": [instances[i] for i in ids]} if answers else {})}
        for number, (text, ids) in enumerate(named)
    }


def _run_lengths(masks: np.ndarray) -> list[dict[str, Any] | None]:
    """An instance's masks, bool ``[T, H, W]``, as the file has them: null where nothing is visible."""
    return [compressed(mask) if mask.any() else None for mask in masks]


def _by_object(video: ToyVideo) -> dict[int, list[str]]:
    """Object id → the sentences that name it."""
    sentences: dict[int, list[str]] = {}
    for sentence in video.sentences:
        if sentence.obj_id is not None:
            sentences.setdefault(sentence.obj_id, []).append(sentence.text)
    return sentences


def _write_frames(folder: Path, video: ToyVideo) -> list[str]:
    """Write a video's frames as JPEG, and return their names."""
    names = []
    for number, picture in enumerate(render_frames(video.scene)):
        names.append(f"{number:05d}")
        write_frame(folder / f"{names[-1]}.jpg", picture)
    return names
