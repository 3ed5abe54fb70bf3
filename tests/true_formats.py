"""Writes small sets of toy videos in the formats in which the datasets are distributed.

Each ``write_toy_…`` function writes what the download of a dataset contains, before ``scripts.prepare_data``.
For Ref-YouTube-VOS, use ``datasets.toy.make_toy``.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import struct
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from datasets.davis import ANNOTATIONS, MISSPELT
from datasets.evaluators import encode_masks
from datasets.files import write_frame
from datasets.predictions import read_index_mask, write_index_mask, write_mask
from datasets.refcoco import IMAGES, INSTANCES, REFERENCES, SPLITS
from datasets.scoring import MASK_FILE, OBJECTS_FILE
from datasets.toy import ToyParameters, ToyVideo, make_video
from datasets.toy.scene import KINDS, SHAPES, render_frames
from util.drawing import write_video
from util.errors import UserError
from util.files import atomic_path, write_json

IMAGE_KINDS = ("colour", "shape", "size", "relation")  # kinds of sentences; an image shows no motion
EVERYTHING = "all shapes"  # the sentence of MeViS that refers to all objects of a video
MISSED = "missedvideo"  # a video that A2D lists although it has no clip and no sentence
COPIED = "1 (copy)"  # the instance of a line in A2D that no list uses
JHMDB_ACTIONS = ("catch", "walk")


def write_toy_davis(
    root: str | Path, *, num_train: int = 3, num_valid: int = 3, frames: int = 8, height: int = 64, width: int = 96
) -> Path:
    """Write a small Ref-DAVIS17: the folder ``DAVIS`` and the four text files.

    The first validation videos have the names that the text files misspell.

    Args:
        root: a new or empty folder.
        num_train, num_valid: number of videos of each split.
        frames: frames per video, at least 4.
        height, width: in pixels.

    Returns:
        ``root``.

    Raises:
        UserError: a number is out of range, or ``root`` is not empty.
    """
    root = _empty_folder(root)
    davis = root / "DAVIS"
    parameters = ToyParameters(num_train, num_valid, 0, frames, height, width, 0, KINDS)
    misspelt = {right: wrong for wrong, right in MISSPELT.items()}
    lines: list[list[str]] = [[] for _ in ANNOTATIONS]
    categories = {}
    for split, list_name, number_of_videos in (("train", "train.txt", num_train), ("valid", "val.txt", num_valid)):
        names = [f"toy-{split}-{index}" for index in range(number_of_videos)]
        if split == "valid":
            names = [*misspelt, *names][:number_of_videos]
        _write_lines(davis / "ImageSets" / "2017" / list_name, names)
        for index, name in enumerate(names):
            video = make_video(parameters, split, index)
            _write_frames(davis / "JPEGImages" / "480p" / name, video)
            for number, ids in enumerate(video.masks):
                write_index_mask(davis / "Annotations_unsupervised" / "480p" / name / f"{number:05d}.png", ids)
            categories[name] = {str(obj.obj_id): obj.shape for obj in video.scene.objects}
            for obj, sentences in sorted(_sentences_by_object(video).items()):
                for number, file in enumerate(lines):
                    sentence = sentences[number % len(sentences)]
                    file.append(f'{misspelt.get(name, name)} {obj} "{sentence}"')
    for (name, encoding), file in zip(ANNOTATIONS, lines, strict=True):
        _write_lines(root / "davis_text_annotations" / name, file, encoding)
    write_json(davis / "davis_semantics.json", categories)
    return root


def as_released(root: Path, objects_file: bool = False) -> Path:
    """Give the valid split of a toy set the form in which the ground truth of Ref-YouTube-VOS was published.

    Args:
        root: a set that ``datasets.toy.make_toy`` wrote, without negatives.
        objects_file: keep the palette masks, and write the authors' file of objects and their sentences instead.

    Returns:
        ``root``.
    """
    listed = root / "meta_expressions" / "valid" / "meta_expressions.json"
    content = json.loads(listed.read_text(encoding="utf-8"))
    plain, objects = copy.deepcopy(content), {}
    tests = [name for name in content["videos"] if not (root / "valid" / "Annotations" / name).is_dir()]
    content["videos"] = {name: video for name, video in content["videos"].items() if name not in tests}
    for name, video in content["videos"].items():
        # The authors' file has the sentences of an object together, in the order of the expressions.
        ordered = sorted(video["expressions"].values(), key=lambda expression: int(expression["obj_id"]))
        video["expressions"] = {str(number): expression for number, expression in enumerate(ordered)}
        of_video = objects.setdefault(name, {"objects": {}})["objects"]
        for expression in ordered:
            entry = {"category": "shape", "expressions": [], "frames": video["frames"]}
            of_video.setdefault(str(expression["obj_id"]), entry)["expressions"].append(expression["exp"])
        plain["videos"][name]["expressions"] = {key: {"exp": e["exp"]} for key, e in video["expressions"].items()}
    write_json(listed, plain)
    if objects_file:
        write_json(root / "valid" / OBJECTS_FILE, {"videos": objects})
        return root
    write_json(root / "valid" / "meta_expressions.json", plain)
    write_json(root / "valid" / "meta_expressions_challenge.json", content)
    for name, video in content["videos"].items():
        folder = root / "valid" / "Annotations" / name
        for frame in video["frames"]:
            ids = read_index_mask(folder / f"{frame}.png")
            for exp_id, expression in video["expressions"].items():
                mask = ids == int(expression["obj_id"])
                if mask.any():  # some readers found no file where the object is not visible
                    write_mask(folder / exp_id / f"{frame}.png", mask)
            (folder / f"{frame}.png").unlink()
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
    no_target: int = 0,
) -> Path:
    """Write a small MeViS. Each video also has a sentence for all of its objects, and one sentence that occurs twice.

    Args:
        root: a new or empty folder.
        num_train, num_valid_u, num_valid: number of videos of each split; ``valid`` has neither masks nor instances.
        frames: frames per video, at least 4.
        height, width: in pixels.
        no_target: sentences per video that refer to nothing, as in version 2; 0 writes version 1.

    Returns:
        ``root``.

    Raises:
        UserError: a number is out of range, or ``root`` is not empty.
    """
    root = _empty_folder(root)
    parameters = ToyParameters(num_train, num_valid_u + num_valid, 0, frames, height, width, 0, KINDS, no_target)
    # The toy set has one validation split: its first videos become "valid_u", the others "valid".
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
            for obj, instance in instances.items():
                masks[str(instance)] = [compressed(mask) if mask.any() else None for mask in video.masks == obj]
            expressions = _mevis_expressions(video, instances, annotated=split != "valid")
            videos[name] = {"expressions": expressions, "vid_id": video_id, "frames": names}
        (root / split / "JPEGImages").mkdir(parents=True, exist_ok=True)
        write_json(root / split / "meta_expressions.json", {"videos": videos})
        if split != "valid":
            write_json(root / split / MASK_FILE, masks)
    return root


def _mevis_expressions(video: ToyVideo, instances: dict[int, int], annotated: bool) -> dict[str, dict[str, Any]]:
    """Expressions by id.

    Args:
        video: the toy video.
        instances: object id → instance id, which is unique in the split.
        annotated: add the objects and instances that each expression refers to.
    """
    named = [(sentence.text, [] if sentence.obj_id is None else [sentence.obj_id]) for sentence in video.sentences]
    named += [(EVERYTHING, sorted(instances)), named[0]]
    return {
        str(number): {"exp": text, **({"obj_id": ids, "anno_id": [instances[i] for i in ids]} if annotated else {})}
        for number, (text, ids) in enumerate(named)
    }


def write_toy_long_rvos(
    root: str | Path,
    *,
    num_train: int = 3,
    num_valid: int = 2,
    num_test: int = 1,
    frames: int = 8,
    height: int = 64,
    width: int = 96,
) -> Path:
    """Write a small Long-RVOS: a folder of binary masks per object, without the masks that are empty.

    Args:
        root: a new or empty folder.
        num_train, num_valid, num_test: number of videos of each split.
        frames: frames per video, at least 4.
        height, width: in pixels.

    Returns:
        ``root``.

    Raises:
        UserError: a number is out of range, or ``root`` is not empty.
    """
    root = _empty_folder(root)
    parameters = ToyParameters(num_train, num_valid + num_test, 0, frames, height, width, 0, KINDS)
    types = {kind: "dynamic" if kind == "motion" else "hybrid" if kind == "relation" else "static" for kind in KINDS}
    for split, source, numbers in (
        ("train", "train", range(num_train)),
        ("valid", "valid", range(num_valid)),
        ("test", "valid", range(num_valid, num_valid + num_test)),
    ):
        videos = {}
        for index in numbers:
            video, name = make_video(parameters, source, index), f"{split}{index:04d}"
            names = _write_frames(root / split / "JPEGImages" / name, video)
            for obj in video.scene.objects:
                for frame, mask in zip(names, video.masks == obj.obj_id, strict=True):
                    if mask.any():
                        write_mask(root / split / "Annotations" / name / str(obj.obj_id) / f"{frame}.png", mask)
            expressions = {
                str(number): {"exp": text.text, "obj_id": str(text.obj_id), "type": types[text.kind]}
                for number, text in enumerate(video.sentences)
            }
            videos[name] = {"frames": names, "expressions": expressions}
        write_json(root / split / "meta_expressions.json", {"videos": videos})
    return root


def write_toy_revos(
    root: str | Path, *, num_train: int = 3, num_valid: int = 2, frames: int = 8, height: int = 64, width: int = 96
) -> Path:
    """Write a small ReVOS: images and masks of both splits together. Each video has a sentence without target.

    Args:
        root: a new or empty folder.
        num_train, num_valid: number of videos of each split.
        frames: frames per video, at least 4.
        height, width: in pixels.

    Returns:
        ``root``.

    Raises:
        UserError: a number is out of range, or ``root`` is not empty.
    """
    root = _empty_folder(root)
    parameters = ToyParameters(num_train, num_valid, 0, frames, height, width, 0, KINDS, 1)
    masks: dict[str, Any] = {}
    foreground = {}
    for split, count_of_split in (("train", num_train), ("valid", num_valid)):
        videos = {}
        for index in range(count_of_split):
            video, name = make_video(parameters, split, index), f"{split}{index:04d}"
            names = _write_frames(root / "JPEGImages" / name, video)
            instances = {obj.obj_id: len(masks) + i for i, obj in enumerate(video.scene.objects)}
            for obj, instance in instances.items():
                masks[str(instance)] = [compressed(mask) if mask.any() else None for mask in video.masks == obj]
            foreground[name] = {
                "masks_rle": [compressed(mask) for mask in video.masks != 0],
                "foreground_ratio": [float(mask.mean()) for mask in video.masks != 0],
            }
            expressions = _mevis_expressions(video, instances, annotated=True)
            for number, expression in enumerate(expressions.values()):
                expression["type_id"] = number % 2 if expression["anno_id"] else 2
            about = {"vid_id": index, "height": height, "width": width, "frames": names}
            videos[name] = {"expressions": expressions, **about}
        write_json(root / f"meta_expressions_{split}_.json", {"videos": videos})
    write_json(root / MASK_FILE, masks)
    write_json(root / "mask_dict_foreground.json", foreground)
    return root


def write_own_clips(
    root: str | Path, *, num_videos: int = 10, frames: int = 8, height: int = 64, width: int = 96
) -> Path:
    """Write ``clips/<video>.mp4`` and ``annotations/<video>.json``, as an annotation tool exports them.

    The annotations are in COCO's format, of every second frame, with a track id and a sentence among the attributes.

    Returns:
        ``root``.
    """
    root = Path(root)
    parameters = ToyParameters(num_videos, 0, 0, frames, height, width, 3, KINDS)
    for index in range(num_videos):
        video, name = make_video(parameters, "train", index), f"clip{index:02d}"
        with atomic_path(root / "clips" / f"{name}.mp4") as path:
            write_video(path, render_frames(video.scene))
        sentences = _sentences_by_object(video)
        images, annotations = [], []
        for t in range(0, frames, 2):
            images.append({"id": t + 1, "file_name": f"frame_{t:06d}.PNG", "height": height, "width": width})
            for obj in video.scene.objects:
                mask = video.masks[t] == obj.obj_id
                if mask.any():
                    sentence = " ".join(sentences.get(obj.obj_id, [])[:1])
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": t + 1,
                            "category_id": SHAPES.index(obj.shape) + 1,
                            "segmentation": uncompressed(mask),
                            "iscrowd": 1,
                            "attributes": {"track_id": obj.obj_id, "occluded": False, "sentence": sentence},
                        }
                    )
        categories = [{"id": number, "name": shape} for number, shape in enumerate(SHAPES, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(root / "annotations" / f"{name}.json", content)
    return root


def write_toy_a2d(
    root: str | Path,
    *,
    num_train: int = 8,
    num_test: int = 4,
    frames: int = 8,
    height: int = 64,
    width: int = 96,
    seed: int = 0,
) -> Path:
    """Write a small A2D-Sentences: MP4 clips, h5 masks, tables, the lists of sentences and the COCO-style annotations.

    The first, a middle and the last frame of each video are annotated. Every second video has a single instance, whose
    ``reMask`` has no axis for instances. As in the release, one line of ``a2d_annotation.txt`` has the instance
    ``COPIED``, and is in no list.

    Args:
        root: a new or empty folder.
        num_train, num_test: number of videos of each split.
        frames: frames per video, at least 4.
        height, width: in pixels, even.
        seed: seed of the videos.

    Returns:
        ``root``.

    Raises:
        UserError: a number is out of range, or ``root`` is not empty.
    """
    root = _empty_folder(root)
    parameters = ToyParameters(num_train, num_test, 0, frames, height, width, seed, KINDS)
    texts = root / "text_annotations"
    rows: list[str] = []
    lines: list[list[Any]] = [["video_id", "instance_id", "query"]]
    annotated = sorted({0, frames // 2, frames - 1})
    for split, number_of_videos in (("train", num_train), ("test", num_test)):
        entries: list[list[Any]] = []
        truth: dict[str, np.ndarray] = {}
        for index in range(number_of_videos):
            video, name = make_video(parameters, split, index), f"{split}Toy{index:04d}"
            write_video(root / "Release" / "clips320H" / f"{name}.mp4", render_frames(video.scene))
            sentences = {obj: texts_of[0] for obj, texts_of in _sentences_by_object(video).items()}
            if index % 2:
                sentences = dict(list(sentences.items())[:1])
            for t in annotated:
                masks = {obj: video.masks[t] == obj for obj in sentences if (video.masks[t] == obj).any()}
                if masks:
                    file = texts / "a2d_annotation_with_instances" / name / f"{t + 1:05d}.h5"
                    write_instances(file, [obj - 1 for obj in masks], np.stack(list(masks.values())))
            for obj, sentence in sentences.items():
                lines.append([name, obj - 1, sentence.capitalize()])
                for t in annotated:
                    if (video.masks[t] == obj).any():
                        entries.append([sentence, name, t + 1, str(obj - 1)])  # some lists have text, others numbers
                        truth[f"v_{name}_f_{t + 1}_i_{obj - 1}"] = video.masks[t] == obj
            size = f"{height},{width},{frames},{len(annotated)}"
            rows.append(f"{name},11,0:00:00,0:00:01,{size},{int(split == 'test')}")
        write_json(root / f"a2d_sentences_single_frame_{split}_annotations.json", entries)
        if split == "test":
            write_json(root / "a2d_sentences_test_annotations_in_coco_format.json", coco_truth(truth))
    _write_lines(root / "Release" / "videoset.csv", [*rows, f"{MISSED},11,0:00:00,0:00:01,{height},{width},8,3,0"])
    lines += [[row.partition(",")[0], COPIED, "a copied line, which is in no list"] for row in rows[:1]]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(lines)
    _write_lines(texts / "a2d_annotation.txt", table.getvalue().splitlines())
    _write_lines(texts / "a2d_missed_videos.txt", [MISSED])
    return root


def write_instances(path: Path, ids: Sequence[int], masks: np.ndarray) -> None:
    """Write an annotated frame of A2D-Sentences.

    Args:
        path: the h5 file.
        ids: ids of its instances, at least one.
        masks: bool ``[instances, H, W]``. The file has them as (instances, W, H), or (W, H) for a single instance.
    """
    stored = masks.transpose(0, 2, 1).astype(np.uint8)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["instance"] = np.array(ids, dtype=np.uint8)
        file.create_dataset("reMask", data=stored[0] if len(ids) == 1 else stored, compression="gzip")


def write_toy_jhmdb(
    root: str | Path, *, num_videos: int = 4, frames: int = 8, height: int = 64, width: int = 96, seed: int = 0
) -> Path:
    """Write a small JHMDB-Sentences: PNG frames, MATLAB masks, the list of sentences and the COCO-style annotations.

    The first frame, a middle one and the last with a mask are annotated. The last video has one mask less than frames.

    Args:
        root: a new or empty folder.
        num_videos: number of videos; each has one sentence.
        frames: frames per video, at least 4.
        height, width: in pixels.
        seed: seed of the videos.

    Returns:
        ``root``.

    Raises:
        UserError: a number is out of range, or ``root`` is not empty.
    """
    root = _empty_folder(root)
    parameters = ToyParameters(0, num_videos, 0, frames, height, width, seed, KINDS)
    entries: list[list[Any]] = []
    truth: dict[str, np.ndarray] = {}
    for index in range(num_videos):
        video, name = make_video(parameters, "valid", index), f"Toy_person_{index:03d}"
        place = f"{JHMDB_ACTIONS[index % len(JHMDB_ACTIONS)]}/{name}"
        for number, picture in enumerate(render_frames(video.scene), start=1):
            with atomic_path(root / "Rename_Images" / place / f"{number:05d}.png") as path:
                Image.fromarray(picture).save(path)
        obj, sentences = next(iter(_sentences_by_object(video).items()))
        masks = video.masks == obj
        if index == num_videos - 1:
            masks = masks[:-1]
        write_puppet_masks(root / "puppet_mask" / place / "puppet_mask.mat", masks)
        for t in sorted({0, frames // 2, len(masks) - 1}):
            if masks[t].any():
                paths = [f"Rename_Images/{place}/{t + 1:05d}.png", f"puppet_mask/{place}/puppet_mask.mat"]
                entries.append([name, *paths, frames, sentences[0]])
                truth[f"v_{name}_f_{t + 1}"] = masks[t]
    write_json(root / "jhmdb_sentences_samples_metadata.json", entries)
    write_json(root / "jhmdb_sentences_gt_annotations_in_coco_format.json", coco_truth(truth))
    rows = dict.fromkeys(f"{name},{sentence}" for name, *_, sentence in entries)
    _write_lines(root / "jhmdb_annotation.txt", ["video_id,query", *rows])
    return root


def write_puppet_masks(path: Path, masks: np.ndarray) -> None:
    """Write a video's masks, bool ``[T, H, W]``, as JHMDB's MATLAB file."""
    with atomic_path(path) as temporary:
        savemat(temporary, {"part_mask": masks.transpose(1, 2, 0).astype(np.uint8)}, do_compression=True)


def coco_truth(truth: dict[str, np.ndarray]) -> dict[str, Any]:
    """COCO-style annotations of images with one mask each.

    Args:
        truth: image id → ground-truth mask, bool ``[H, W]``.
    """
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


def write_toy_refcoco(
    root: str | Path,
    *,
    num_train: int = 8,
    num_eval: int = 4,
    height: int = 64,
    width: int = 96,
    sets: Sequence[str] = tuple(SPLITS),
) -> Path:
    """Write small RefCOCO sets: ``train2014/``, and ``<set>/instances.json`` and ``<set>/refs(…).p`` for each set.

    An image is the middle frame of a toy video. The first object has its first sentence twice, as happens in the
    published sets. Outlines are polygons, uncompressed run lengths and compressed ones in turn.

    Args:
        root: a new or empty folder.
        num_train: number of images of the training split.
        num_eval: number of images of each other split.
        height, width: in pixels.
        sets: some of refcoco, refcoco+ and refcocog.

    Returns:
        ``root``.

    Raises:
        UserError: a number is out of range, or ``root`` is not empty.
    """
    root = _empty_folder(root)
    numbers = count(1)  # ids of images, objects and sentences alike
    for seed, name in enumerate(sets):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        references: list[dict[str, Any]] = []
        for split in SPLITS[name]:
            amount = num_train if split == "train" else num_eval
            parameters = ToyParameters(amount, 0, 0, 4, height, width, seed, IMAGE_KINDS)
            for index in range(amount):
                video = make_video(parameters, "train" if split == "train" else f"valid/{split}", index)
                image = next(numbers)
                file_name = f"COCO_train2014_{image:012d}.jpg"
                frames = render_frames(video.scene)
                write_frame(root / IMAGES / file_name, frames[len(frames) // 2])
                images.append({"id": image, "file_name": file_name, "height": height, "width": width})
                for annotation, sentences in _coco_objects(video, image, numbers):
                    annotations.append(annotation)
                    if sentences:
                        references.append(_reference(split, annotation, sentences, numbers))
        categories = [{"id": number, "name": shape, "supercategory": "shape"} for number, shape in enumerate(SHAPES, 1)]
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        write_json(root / name / INSTANCES, content)
        with atomic_path(root / name / REFERENCES[name]) as path:
            path.write_bytes(python2_pickle(references))
    return root


def _coco_objects(video: ToyVideo, image: int, numbers: Iterator[int]) -> list[tuple[dict[str, Any], list[str]]]:
    """Annotation and sentences of each object in the middle frame."""
    ids = video.masks[len(video.masks) // 2]
    by_object = _sentences_by_object(video)
    found: list[tuple[dict[str, Any], list[str]]] = []
    for obj in sorted(video.scene.objects, key=lambda obj: obj.obj_id):
        mask = ids == obj.obj_id
        if not mask.any():
            continue
        sentences = by_object.get(obj.obj_id, [])
        if not any(earlier for _, earlier in found):
            sentences = sentences + sentences[:1]
        annotation = {
            "id": next(numbers),
            "image_id": image,
            "category_id": SHAPES.index(obj.shape) + 1,
            "segmentation": (polygons, uncompressed, compressed)[len(found) % 3](mask),
            "bbox": coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, np.uint8))).tolist(),
            "area": int(mask.sum()),
            "iscrowd": 0,
        }
        found.append((annotation, sentences))
    return found


def _reference(split: str, annotation: dict[str, Any], sentences: list[str], numbers: Iterator[int]) -> dict[str, Any]:
    """An entry of the pickle of references."""
    entries = [
        {"sent_id": next(numbers), "sent": text, "raw": text.capitalize(), "tokens": text.split()} for text in sentences
    ]
    return {
        "ref_id": next(numbers),
        "ann_id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "file_name": f"COCO_train2014_{annotation['image_id']:012d}_{annotation['id']}.jpg",
        "split": split,
        "sent_ids": [entry["sent_id"] for entry in entries],
        "sentences": entries,
    }


def polygons(mask: np.ndarray) -> list[list[float]] | dict[str, Any]:
    """A mask, bool ``[H, W]``, as COCO polygons; as run lengths where a part is too thin for a polygon."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if any(len(contour) < 3 for contour in contours):
        return uncompressed(mask)
    return [(contour.reshape(-1) + 0.5).tolist() for contour in contours]


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool ``[H, W]``, as COCO's list of run lengths: column by column, starting with background."""
    values = mask.T.reshape(-1)
    ends = [*(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    runs = np.diff([0, *ends]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if values[0] else runs}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool ``[H, W]``, as COCO's string of run lengths."""
    runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}


def python2_pickle(value: Any, encoding: str = "utf-8") -> bytes:
    """Pickle lists, dictionaries, strings and integers as Python 2 does with protocol 2.

    Python 2 pickles its ``str`` as bytes. Python 3 never writes these, so its pickles cannot test how they are read.
    """
    return b"\x80\x02" + _pickled(value, encoding) + b"."


def _pickled(value: Any, encoding: str) -> bytes:
    if isinstance(value, list):
        return b"](" + b"".join(_pickled(item, encoding) for item in value) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(part, encoding) for pair in value.items() for part in pair) + b"u"
    if isinstance(value, str):
        text = value.encode(encoding)
        return (b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<i", len(text))) + text
    assert type(value) is int, value
    return b"J" + struct.pack("<i", value)


def _empty_folder(root: str | Path) -> Path:
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} already exists and is not empty; choose another folder for the toy set")
    return root


def _write_lines(path: Path, lines: Sequence[str], encoding: str = "utf-8") -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding=encoding)


def _sentences_by_object(video: ToyVideo) -> dict[int, list[str]]:
    """Object id → the sentences that refer to it."""
    sentences: dict[int, list[str]] = {}
    for sentence in video.sentences:
        if sentence.obj_id is not None:
            sentences.setdefault(sentence.obj_id, []).append(sentence.text)
    return sentences


def _write_frames(folder: Path, video: ToyVideo) -> list[str]:
    """Write the frames of a video as JPEG files; returns their names without suffix."""
    names = []
    for number, picture in enumerate(render_frames(video.scene)):
        names.append(f"{number:05d}")
        write_frame(folder / f"{names[-1]}.jpg", picture)
    return names
