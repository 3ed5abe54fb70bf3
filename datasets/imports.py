"""Imports videos with COCO, YouTube-VIS or mask files as a dataset in the layout of Ref-YouTube-VOS.

``import_annotations`` is ``scripts.prepare_data import``. Annotated frames of each video are decoded one by one and
written as JPEG files with a palette mask each; frames without annotations are left out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from datasets.expressions import require_mapping
from datasets.files import (
    ANNOTATIONS,
    IMAGES,
    Conversion,
    and_more,
    coco_entries,
    decode_segmentation,
    plain_name,
    read_text,
    require_folder,
    visible,
    write_frame,
)
from datasets.predictions import read_index_mask, write_index_mask
from util.errors import UserError
from util.files import atomic_folder, read_json, write_json
from util.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ImageFolder, Media, open_media

MAX_OBJECTS = 254  # of a palette mask
CATEGORY, ATTRIBUTE = "category", "attribute:"
TRACKS = ("track_id", "instance_id")  # what annotation tools call the number of an object that several frames show


@dataclass
class _Object:
    """An annotated object of a video.

    Attributes:
        category: its name; empty for masks, which have none.
        sentences: those of its annotations, in order, each once.
        masks: frame → parts, whose union is its mask: COCO segmentations, or a mask file and the object's value in it
            (None: every value but 0).
    """

    category: str
    sentences: list[str] = field(default_factory=list)
    masks: dict[str, list[Any]] = field(default_factory=dict)

    def add_sentence(self, sentence: Any) -> None:
        """Add a sentence unless it is empty, no text, or there already."""
        text = " ".join(sentence.split()) if isinstance(sentence, str) else ""
        if text and text not in self.sentences:
            self.sentences.append(text)


@dataclass
class _Clip:
    """A video, its annotated frames (file name without suffix → size of the image, if it is known) and its objects."""

    name: str
    source: Path
    frames: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    objects: dict[str, _Object] = field(default_factory=dict)


def import_annotations(
    kind: str, videos: Path, annotations: Path, sentences: str, output_dir: Path, valid: int = 0
) -> Conversion:
    """Write videos and annotations in the layout of Ref-YouTube-VOS.

    Args:
        kind: the format of the annotations, a key of ``READERS``.
        videos: a video or a folder of frames, or a folder of several.
        annotations: a JSON file, or a folder of one for each video; for masks, the folder of
            ``<video>/<frame>.png`` (value = object) or ``<video>/<object>/<frame>.png``.
        sentences: "category", "attribute:NAME", or a CSV file with the columns video, object and sentence.
        output_dir: a new or empty folder.
        valid: number of videos, the last by name, that become the split ``valid``; the others are ``train``.

    Raises:
        UserError: something is missing, malformed or does not belong together; nothing is written then.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir} is not empty; choose a new folder as --output_dir, or remove it")
    clips = _find_videos(videos)
    from_table = not (sentences == CATEGORY or sentences.startswith(ATTRIBUTE))
    if kind == "masks" and not from_table:
        raise UserError("masks have no categories or attributes; give a CSV file of sentences by --sentences FILE.csv")
    READERS[kind](annotations, clips, sentences)
    summary = Conversion()
    if from_table:
        summary.notes += _read_table(Path(sentences), clips)
    silent = [f"{clip.name}/{key}" for clip in clips.values() for key, obj in clip.objects.items() if not obj.sentences]
    if silent:
        summary.notes.append(f"{len(silent)} objects (first {silent[0]}) have no sentence; their masks are kept")
    used = [clip for clip in clips.values() if any(obj.sentences for obj in clip.objects.values())]
    if left_out := sorted(clips.keys() - {clip.name for clip in used}):
        summary.notes.append(f"no object of {len(left_out)} videos (first {left_out[0]}) has a sentence; left out")
    if not used:
        raise UserError(
            f"no annotated object has a sentence by --sentences {sentences}; name where the sentences are, see "
            "docs/finetune.md"
        )
    if not 0 <= valid < len(used):
        raise UserError(
            f"{len(used)} videos have annotations and sentences, so none would be left with --valid {valid}"
        )
    with atomic_folder(output_dir) as folder:
        for split, part in (("train", used[: len(used) - valid]), ("valid", used[len(used) - valid :])):
            if part:
                _write_split(folder, split, part, summary)
    return summary


def _find_videos(path: Path) -> dict[str, _Clip]:
    """Return the videos of ``path`` by name, sorted: the name of a folder of frames, or of a file without suffix."""
    if not path.exists():
        raise UserError(f"{path} is missing; it should hold one folder of frames or one video file for each video")
    entries = visible(path.iterdir()) if path.is_dir() else [path]
    if any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries):
        entries = [path]
    clips: dict[str, _Clip] = {}
    for entry in entries:
        if not entry.is_dir() and entry is not path and entry.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        name = plain_name(entry.absolute().name if entry.is_dir() else entry.stem, path, "a video")
        if name in clips:
            raise UserError(f"{path} holds {clips[name].source.name} and {entry.name}; give videos different names")
        clips[name] = _Clip(name, entry)
    if not clips:
        raise UserError(f"{path} holds neither a folder of frames nor a video; name the folder of your videos")
    return clips


# Annotations


def _json_files(path: Path) -> Iterator[tuple[Path, Mapping[str, Any], str]]:
    """Yield the JSON files of a folder, or the one file: path, content, and the video that its name suggests."""
    files = [file for file in visible(path.iterdir()) if file.suffix.lower() == ".json"] if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no JSON file; name the folder or file of your annotations")
    for file in files:
        yield file, require_mapping(read_json(file, "annotations"), file, "the file"), file.stem


def _clip_of(file_name: Any, clips: Mapping[str, _Clip], path: Path, stem: str) -> tuple[_Clip, str]:
    """Return the video and the frame of an image: by the folders of its name, else by the name of the JSON file."""
    if not isinstance(file_name, str) or not file_name:
        raise UserError(f"{path}: an image has the file name {file_name!r:.40}; it should be text")
    image = PureWindowsPath(file_name)  # with either kind of slashes
    folders = image.parts[:-1]
    found = next((clips[folder] for folder in folders if folder in clips), clips.get(stem))
    if found is None and len(clips) == 1 and not folders:
        (found,) = clips.values()
    if found is None:
        raise UserError(
            f"{path}: image {file_name!r:.80} belongs to none of the videos ({', '.join(list(clips)[:3])}, …); begin "
            "its name with that of a video's folder, or name the JSON file after its video"
        )
    return found, image.stem


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) of an image or video; None if it is unknown."""
    size = entry.get("height"), entry.get("width")
    return size if all(type(side) is int for side in size) else None  # type: ignore[return-value]


def _sentence(annotation: Mapping[str, Any], category: str, source: str) -> Any:
    """Return what an annotation says about its object; None if its sentence is in a CSV file."""
    if source == CATEGORY:
        return category
    return _attribute(annotation, source.removeprefix(ATTRIBUTE)) if source.startswith(ATTRIBUTE) else None


def _attribute(annotation: Mapping[str, Any], name: str) -> Any:
    """Return an entry of an annotation or of its ``attributes``; None if there is none."""
    inner = annotation.get("attributes")
    return annotation.get(name, inner.get(name) if isinstance(inner, dict) else None)


def _categories(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the categories by id; those without a name are left out."""
    rows = content.get("categories")
    named = (row for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()
    return {str(row.get("id")): row["name"] for row in named if isinstance(row.get("name"), str)}


def _read_coco(path: Path, clips: Mapping[str, _Clip], source: str) -> None:
    """Read COCO annotations. An object is a track id of its video, or else a category."""
    for file, content, stem in _json_files(path):
        images: dict[str, tuple[_Clip, str]] = {}
        for image in coco_entries(content, "images", file):
            clip, frame = _clip_of(image.get("file_name"), clips, file, stem)
            if frame in clip.frames:
                raise UserError(f"{file}: video {clip.name!r} has two images for frame {frame!r}; keep one")
            clip.frames[frame] = _size(image)
            images[str(image.get("id"))] = clip, frame
        categories = _categories(content)
        for annotation in coco_entries(content, "annotations", file):
            if str(annotation.get("image_id")) not in images:
                raise UserError(
                    f"{file} has an annotation of image {annotation.get('image_id')!r:.40}, which is not listed"
                )
            clip, frame = images[str(annotation.get("image_id"))]
            category = categories.get(str(annotation.get("category_id")), "")
            track = next((t for name in TRACKS if (t := _attribute(annotation, name)) is not None), None)
            key = category if track is None else str(track)
            found = clip.objects.setdefault(key, _Object(category))
            if track is None and frame in found.masks:
                raise UserError(
                    f"{file}: frame {frame!r} of video {clip.name!r} has two annotations of category {category!r:.80}, "
                    "and no track_id tells which object they belong to; add one to every annotation"
                )
            found.masks.setdefault(frame, []).append(annotation.get("segmentation"))
            found.add_sentence(_sentence(annotation, category, source))


def _read_ytvis(path: Path, clips: Mapping[str, _Clip], source: str) -> None:
    """Read YouTube-VIS annotations. An object is an annotation, which has one mask or null for every frame."""
    for file, content, stem in _json_files(path):
        listed: dict[str, tuple[_Clip, list[str]]] = {}
        for video in coco_entries(content, "videos", file):
            names = video.get("file_names")
            if not isinstance(names, list) or not names:
                raise UserError(f"{file}: a video has no list of images, 'file_names'")
            places = [_clip_of(name, clips, file, stem) for name in names]
            frames = [frame for _, frame in places]
            clip = places[0][0]
            if any(other is not clip for other, _ in places) or clip.frames or len(set(frames)) < len(frames):
                raise UserError(
                    f"{file}: the images of video {clip.name!r} are listed twice or belong to several videos"
                )
            clip.frames.update(dict.fromkeys(frames, _size(video)))
            listed[str(video.get("id"))] = clip, frames
        categories = _categories(content)
        for annotation in coco_entries(content, "annotations", file):
            key, masks = str(annotation.get("id")), annotation.get("segmentations")
            if str(annotation.get("video_id")) not in listed:
                raise UserError(
                    f"{file} has an annotation of video {annotation.get('video_id')!r:.40}, which is not listed"
                )
            clip, frames = listed[str(annotation.get("video_id"))]
            if not isinstance(masks, list) or len(masks) != len(frames):
                raise UserError(
                    f"{file}: annotation {key} of video {clip.name!r} should have {len(frames)} segmentations"
                )
            found = clip.objects[key] = _Object(categories.get(str(annotation.get("category_id")), ""))
            found.masks = {frame: [mask] for frame, mask in zip(frames, masks, strict=True) if mask}
            found.add_sentence(_sentence(annotation, found.category, source))


def _read_masks(path: Path, clips: Mapping[str, _Clip], source: str) -> None:
    """Read palette masks, or binary masks in a folder for each object."""
    require_folder(path, "the masks, <video>/<frame>.png or <video>/<object>/<frame>.png")
    for clip in clips.values():
        folder = path / clip.name  # a video without one is left out
        for file in visible(folder.glob("*.png")):
            ids = read_index_mask(file)
            clip.frames[file.stem] = ids.shape  # type: ignore[assignment]
            for value in np.unique(ids).tolist():
                if 0 < value <= MAX_OBJECTS:
                    clip.objects.setdefault(str(value), _Object("")).masks[file.stem] = [(file, value)]
        for file in visible(folder.glob("*/*.png")):
            clip.frames.setdefault(file.stem, None)
            clip.objects.setdefault(file.parent.name, _Object("")).masks[file.stem] = [(file, None)]


READERS: dict[str, Callable[[Path, Mapping[str, _Clip], str], None]] = {
    "coco": _read_coco,
    "ytvis": _read_ytvis,
    "masks": _read_masks,
}


def _read_table(path: Path, clips: Mapping[str, _Clip]) -> list[str]:
    """Add the sentences of a CSV file to the objects; return notes.

    A row names an object by its key (track id, annotation id, value or folder of the mask) or by its category.
    """
    lines = read_text(path, "sentences, in the columns video, object and sentence").splitlines()
    separator = max(",;\t", key=lines[0].count) if lines else ","
    table = csv.DictReader(lines, delimiter=separator, skipinitialspace=True)
    try:
        rows = [(table.line_num, row) for row in table]
    except csv.Error as error:
        raise UserError(f"{path} is not a table ({error}); write it as CSV again") from error
    if missing := {"video", "object", "sentence"} - set(table.fieldnames or ()):
        raise UserError(f"{path} has no column {min(missing)!r}; its first line should name video, object and sentence")
    foreign: list[str] = []
    for line, row in rows:
        name, key = (row[column] or "" for column in ("video", "object"))
        if name not in clips:
            foreign.append(name)
            continue
        objects = clips[name].objects
        found = [objects[key]] if key in objects else [obj for obj in objects.values() if obj.category == key != ""]
        if len(found) != 1:
            known = ", ".join(list(objects)[:5]) or "none"
            fault = "is not annotated" if not found else "are several objects"
            raise UserError(f"{path}, line {line}: {key!r:.40} of video {name!r:.40} {fault} (objects: {known})")
        found[0].add_sentence(row["sentence"])
    return (
        [f"{path} has rows of {foreign[0]!r:.40}{and_more(foreign)}, which is not one of the videos; left out"]
        if foreign
        else []
    )


# Writing


def _write_split(folder: Path, split: str, clips: Sequence[_Clip], summary: Conversion) -> None:
    """Write the frames, masks and lists of a split, and count them."""
    meta, listed = {}, {}
    for clip in clips:
        if len(clip.objects) > MAX_OBJECTS:
            raise UserError(f"video {clip.name!r} has {len(clip.objects)} objects; a mask file holds {MAX_OBJECTS}")
        frames, shown, overlaps = _write_clip(folder / split, clip)
        if overlaps:
            summary.notes.append(
                f"{clip.name}: objects overlap in {overlaps} frames; there the one listed last has the pixels"
            )
        said = [(str(n), text) for n, obj in enumerate(clip.objects.values(), 1) for text in obj.sentences]
        expressions = {str(i): {"exp": text, "obj_id": n} for i, (n, text) in enumerate(said)}
        listed[clip.name] = {"frames": frames, "expressions": expressions}
        objects = enumerate(clip.objects.values(), 1)
        meta[clip.name] = {
            "objects": {str(n): {"category": obj.category or "unknown", "frames": shown[n]} for n, obj in objects}
        }
    write_json(folder / "meta_expressions" / split / "meta_expressions.json", {"videos": listed})
    write_json(folder / split / "meta.json", {"videos": meta})
    summary.videos[split] = len(listed)
    summary.frames[split] = sum(len(video["frames"]) for video in listed.values())
    summary.objects[split] = sum(len(clip.objects) for clip in clips)
    summary.expressions[split] = sum(len(video["expressions"]) for video in listed.values())


def _write_clip(folder: Path, clip: _Clip) -> tuple[list[str], dict[int, list[str]], int]:
    """Write the annotated frames of a video and their masks.

    Returns:
        the names of the frames, for each object those in which it is visible, and the number of frames with overlaps.
    """
    media = open_media(clip.source)
    wanted = _indices(clip, media)
    names: list[str] = []
    shown: dict[int, list[str]] = {number: [] for number in range(1, len(clip.objects) + 1)}
    overlaps = 0
    for frame in media.frames():
        if not wanted:  # nothing after it is annotated
            break
        source = wanted.pop(frame.index, None)
        if source is None:
            continue
        size = media.size
        where = f"frame {source!r} of video {clip.name!r}"
        if clip.frames[source] not in (None, size):
            (h, w), (height, width) = clip.frames[source], size  # type: ignore[misc]
            raise UserError(f"{where} is {width}×{height} pixels, and its annotation {w}×{h}; take both from one size")
        names.append(f"{frame.index:05d}")
        ids, overlap = np.zeros(size, np.uint8), False
        for number, obj in enumerate(clip.objects.values(), 1):
            mask = np.zeros(size, bool)
            for part in obj.masks.get(source, ()):
                mask |= _decode(part, size, f"{where}, object {number}")
            overlap |= bool(ids[mask].any())
            ids[mask] = number
            if mask.any():
                shown[number].append(names[-1])
        overlaps += overlap
        write_frame(folder / IMAGES / clip.name / f"{names[-1]}.jpg", frame.image)
        write_index_mask(folder / ANNOTATIONS / clip.name / f"{names[-1]}.png", ids)
    if wanted:
        last = wanted[max(wanted)]
        raise UserError(
            f"frame {last!r} of video {clip.name!r} is annotated, and {clip.source} ends before it; frames of a video "
            "are numbered from 0"
        )
    return names, shown, overlaps


def _decode(part: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Return a part of a mask, bool ``[H, W]``."""
    if isinstance(part, tuple):
        path, value = part
        ids = read_index_mask(path, size)
        return ids != 0 if value is None else ids == value
    return decode_segmentation(part, *size, where)


def _indices(clip: _Clip, media: Media) -> dict[int, str]:
    """Return the annotated frames of a video by their position: by name in a folder, by number in a video file."""
    places = {file.stem: number for number, file in enumerate(media.files)} if isinstance(media, ImageFolder) else None
    found: dict[int, str] = {}
    for frame in clip.frames:
        number = re.search(r"[0-9]{1,9}$", frame)
        index = places.get(frame) if places is not None else int(number[0]) if number else None
        if index is None or index in found:
            fault = "is annotated twice" if index in found else f"is not in {clip.source}"
            raise UserError(f"frame {frame!r} of video {clip.name!r} {fault}; name each image after its frame")
        found[index] = frame
    return found
