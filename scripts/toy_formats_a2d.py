"""Small sets in the true formats of A2D-Sentences and JHMDB-Sentences, made of toy videos.

``write_toy_a2d`` and ``write_toy_jhmdb`` write what the datasets are distributed as: MP4 clips, h5 and MATLAB masks,
lists of sentences and annotations in COCO's form.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from datasets.toy import ToyParameters, ToyVideo, make_video
from datasets.toy.scene import KINDS, render_frames
from scripts.toy_formats import empty_folder, write_lines
from util.a2d_metrics import encode_masks
from util.io import atomic_path, write_json
from util.visualisation import write_video

MISSED = "missedvideo"  # listed by A2D, without sentences and clip
JHMDB_ACTIONS = ("catch", "walk")


def write_toy_a2d(
    root: str | Path,
    *,
    num_train: int = 8,
    num_test: int = 4,
    frames: int = 8,
    height: int = 64,
    width: int = 96,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
) -> Path:
    """Write a small A2D-Sentences: MP4 clips, h5 masks, the three lists of sentences and the truth in COCO's form.

    Three frames of a video are annotated: the first, one in the middle and the last. In every second video a single
    instance is, so that its ``reMask`` lacks an axis.

    Args:
        root: a folder that is empty or does not exist.
        num_train, num_test: videos.
        frames: of a video, at least 4.
        height, width: in pixels, even.
        seed: of the videos.
        kinds: of sentences (``datasets.toy.scene.KINDS``).

    Returns:
        ``root``.

    Raises:
        UserError: a parameter is out of range, or there is something in ``root``.
    """
    root = empty_folder(root)
    parameters = ToyParameters(num_train, num_test, 0, frames, height, width, seed, tuple(kinds))
    texts = root / "text_annotations"
    rows, sentence_rows = [], ["video_id,instance_id,query"]
    for split, number_of_videos in (("train", num_train), ("test", num_test)):
        entries: list[list[Any]] = []
        truth: dict[str, np.ndarray] = {}
        for index in range(number_of_videos):
            video, name = make_video(parameters, split, index), f"{split}Toy{index:04d}"
            write_video(root / "Release" / "clips320H" / f"{name}.mp4", render_frames(video.scene))
            sentences = _one_per_object(video)
            if index % 2:
                sentences = dict(list(sentences.items())[:1])
            annotated = sorted({0, frames // 2, frames - 1})
            for t in annotated:
                ids = [obj for obj in sentences if (video.masks[t] == obj).any()]
                masks = np.stack([video.masks[t] == obj for obj in ids]) if ids else np.zeros((0, height, width), bool)
                if ids:
                    file = texts / "a2d_annotation_with_instances" / name / f"{t + 1:05d}.h5"
                    write_instances(file, [obj - 1 for obj in ids], masks)
                for obj, mask in zip(ids, masks, strict=True):
                    entries.append([sentences[obj], name, t + 1, str(obj - 1)])  # the instance as text, as distributed
                    truth[f"v_{name}_f_{t + 1}_i_{obj - 1}"] = mask
            sentence_rows += [f"{name},{obj - 1},{sentence}" for obj, sentence in sentences.items()]
            size = f"{height},{width},{frames},{len(annotated)}"
            rows.append(f"{name},11,0:00:00,0:00:01,{size},{int(split == 'test')}")
        write_json(root / f"a2d_sentences_single_frame_{split}_annotations.json", entries)
        if split == "test":
            write_json(root / "a2d_sentences_test_annotations_in_coco_format.json", coco_truth(truth))
    write_lines(root / "Release" / "videoset.csv", [*rows, f"{MISSED},11,0:00:00,0:00:01,{height},{width},8,3,0"])
    write_lines(texts / "a2d_annotation.txt", sentence_rows)
    write_lines(texts / "a2d_missed_videos.txt", [MISSED])
    return root


def write_toy_jhmdb(
    root: str | Path,
    *,
    num_videos: int = 4,
    frames: int = 8,
    height: int = 64,
    width: int = 96,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
) -> Path:
    """Write a small JHMDB-Sentences: PNG frames, MATLAB masks, the list of sentences and the truth in COCO's form.

    Three frames of a video are annotated: the first, one in the middle and the last that has a mask. The last video
    has one mask fewer than frames.

    Args:
        root: a folder that is empty or does not exist.
        num_videos: number of videos, each with one sentence.
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
    parameters = ToyParameters(0, num_videos, 0, frames, height, width, seed, tuple(kinds))
    entries: list[list[Any]] = []
    truth: dict[str, np.ndarray] = {}
    for index in range(num_videos):
        video, name = make_video(parameters, "valid", index), f"Toy_person_{index:03d}"
        place = f"{JHMDB_ACTIONS[index % len(JHMDB_ACTIONS)]}/{name}"
        for number, picture in enumerate(render_frames(video.scene), start=1):
            with atomic_path(root / "Rename_Images" / place / f"{number:05d}.png") as path:
                Image.fromarray(picture).save(path)
        obj, sentence = next(iter(_one_per_object(video).items()))
        masks = video.masks == obj
        known = masks[: frames - 1] if index == num_videos - 1 else masks
        write_puppet_masks(root / "puppet_mask" / place / "puppet_mask.mat", known)
        annotated = [t for t in sorted({0, frames // 2, len(known) - 1}) if known[t].any()]
        for t in annotated:
            paths = [f"Rename_Images/{place}/{t + 1:05d}.png", f"puppet_mask/{place}/puppet_mask.mat"]
            entries.append([name, *paths, frames, sentence])
            truth[f"v_{name}_f_{t + 1}"] = known[t]
    write_json(root / "jhmdb_sentences_samples_metadata.json", entries)
    write_json(root / "jhmdb_sentences_gt_annotations_in_coco_format.json", coco_truth(truth))
    sentences = dict.fromkeys((name, sentence) for name, *_, sentence in entries)
    write_lines(root / "jhmdb_annotation.txt", ["video_id,query", *(f"{name},{text}" for name, text in sentences)])
    return root


def write_instances(path: Path, ids: Sequence[int], masks: np.ndarray) -> None:
    """Write an annotated frame of A2D-Sentences.

    Args:
        path: the h5 file.
        ids: of its instances, at least one.
        masks: bool ``[instances, H, W]``. They are stored as (instances, W, H), and a single one as (W, H).
    """
    stored = masks.transpose(0, 2, 1).astype(np.uint8)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["instance"] = np.array(ids, dtype=np.uint8)
        file.create_dataset("reMask", data=stored[0] if len(ids) == 1 else stored, compression="gzip")


def write_puppet_masks(path: Path, masks: np.ndarray) -> None:
    """Write a video's masks, bool ``[T, H, W]``, as JHMDB's MATLAB file."""
    with atomic_path(path) as temporary:
        savemat(temporary, {"part_mask": masks.transpose(1, 2, 0).astype(np.uint8)}, do_compression=True)


def coco_truth(truth: dict[str, np.ndarray]) -> dict[str, Any]:
    """Annotations in COCO's form of images with one mask each: image id → bool ``[H, W]``."""
    images, annotations = [], []
    for number, (image, mask) in enumerate(truth.items(), start=1):
        runs = encode_masks(mask[None])[0]
        images.append({"id": image, "height": mask.shape[0], "width": mask.shape[1]})
        annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": 1,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": coco_mask.toBbox(runs).tolist(),
                "segmentation": {"size": runs["size"], "counts": runs["counts"].decode("ascii")},
            }
        )
    return {"categories": [{"id": 1, "name": "dummy_class"}], "images": images, "annotations": annotations}


def _one_per_object(video: ToyVideo) -> dict[int, str]:
    """Object id → the first sentence that names it."""
    sentences: dict[int, str] = {}
    for sentence in video.sentences:
        if sentence.obj_id is not None:
            sentences.setdefault(sentence.obj_id, sentence.text)
    return sentences
