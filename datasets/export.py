"""Exports the masks of a video to the formats of editors and annotation tools.

``FORMATS`` lists the formats of ``demo.py --export``. ``export_masks`` writes any of them in one pass over the masks on
disk, frame by frame, so memory does not grow with the video.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from datasets.predictions import read_binary_mask, read_grey, write_index_mask
from util.drawing import Colour, write_picture
from util.errors import UserError
from util.files import atomic_folder, atomic_path, project_version
from util.parallel import BackgroundTasks
from util.video import TICK, Encoding, ImageFolder, Media, MediaFrame, create_video

MASKS, PROBABILITIES = "masks", "probabilities"
MAX_IDS = 255  # objects of an 8-bit palette image
MOTS_CLASS = 1  # all objects are of one class; the id of an object is 1000 · class + its number
WRITERS = 2  # threads that compress PNGs
_FASTEST_CLOCK = 10**7  # ticks per second; a MOV stores durations of frames in 32 bits

# Editors open both in QuickTime's container. ProRes stores transparency without loss.
PRORES = partial(Encoding, "prores_ks", "yuva444p10le", {"profile": "4444", "vendor": "apl0"})
ANIMATION = partial(Encoding, "qtrle", "rgb24", {"g": "30"})

Rle = dict[str, Any]  # run lengths in COCO's format: {"size": [H, W], "counts": text}


@dataclass(frozen=True)
class MaskFiles:
    """The masks of a video on disk: ``FOLDER/masks/NAME/FRAME.png``, and probabilities beside them.

    Attributes:
        folder: holds the masks, and gets the exports.
        media: the video.
        frames: their names, times and durations; their images are not used.
        begin: the time at which exported videos begin, in seconds of the video.
        sentences: the text of each by its NAME.
        colours: one for each sentence.
    """

    folder: Path
    media: Media
    frames: Sequence[MediaFrame]
    begin: Fraction
    sentences: Mapping[str, str]
    colours: Sequence[Colour]

    def file_names(self) -> list[str]:
        """Return the file of every frame: the image itself in a folder of images, otherwise its index in the video."""
        files = self.media.files if isinstance(self.media, ImageFolder) else ()
        own = {file.stem: file.name for file in files}
        return [own.get(frame.name, f"{frame.index:05d}.png") for frame in self.frames]

    def tick(self) -> Fraction:
        """Return the longest unit in which all times are whole numbers, so that a constant rate stays constant."""
        times = chain.from_iterable((frame.time - self.begin, frame.duration) for frame in self.frames)
        clock = math.lcm(*{time.denominator for time in times})
        return Fraction(1, clock) if clock <= _FASTEST_CLOCK else TICK


class _Frame:
    """One frame with its masks, which are read and encoded once for all formats.

    Attributes:
        number: from 0.
        frame: its name, time and duration, and its image if a format needs it.
        masks: bool ``[H, W]`` of each sentence.
    """

    def __init__(self, files: MaskFiles, number: int, frame: MediaFrame) -> None:
        self.number, self.frame, self._files = number, frame, files
        self.masks = [read_binary_mask(self._png(MASKS, name), files.media.size) for name in files.sentences]

    def _png(self, kind: str, name: str) -> Path:
        return self._files.folder / kind / name / f"{self.frame.name}.png"

    @cached_property
    def rles(self) -> list[Rle | None]:
        """The run lengths of each mask; None if it is empty."""
        return [run_lengths(mask) if mask.any() else None for mask in self.masks]

    @cached_property
    def ids(self) -> np.ndarray:
        """uint8 ``[H, W]``: the number of the sentence, from 1, whose mask covers the pixel; 0 if none does.

        Of several the one with the highest probability wins, and the first of equal ones. Probabilities have 8 bits.
        """
        ids = np.zeros(self._files.media.size, np.uint8)
        highest = np.full(ids.shape, -1, np.int16)
        for number, (name, mask) in enumerate(zip(self._files.sentences, self.masks, strict=True), start=1):
            if mask.any():
                levels = read_grey(self._png(PROBABILITIES, name), ids.shape)
                wins = mask & (levels > highest)
                ids[wins], highest[wins] = number, levels[wins]
        return ids


Writer = Generator[None, "_Frame | None"]
"""Writes one format: takes the frames in order by ``send``, then None. Closing it earlier removes what it wrote."""


def run_lengths(mask: np.ndarray) -> Rle:
    """Encode a mask, bool ``[H, W]``."""
    from pycocotools import mask as coco  # slow to import

    counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode("ascii")
    return {"size": list(mask.shape), "counts": counts}


def mask_area(rle: Rle) -> int:
    """Return the number of pixels of a mask."""
    from pycocotools import mask as coco

    return int(coco.area(rle))


def mask_box(rle: Rle) -> list[int]:
    """Return the smallest box around a mask: x, y, width, height; all 0 if it is empty."""
    from pycocotools import mask as coco

    return coco.toBbox(rle).astype(int).tolist()


def _write_rgba(files: MaskFiles) -> Writer:
    with atomic_folder(files.folder / "rgba") as folder, BackgroundTasks(WRITERS) as tasks:
        while (item := (yield)) is not None:
            for name, mask in zip(files.sentences, item.masks, strict=True):
                tasks.submit(write_picture, folder / name / f"{item.frame.name}.png", _cut_out(item.frame.image, mask))


def _write_videos(
    kind: str, encoding: Callable[..., Encoding], draw: Callable[[MediaFrame, np.ndarray], np.ndarray], files: MaskFiles
) -> Writer:
    """Write one video for each sentence, with the times and durations of the frames.

    Args:
        kind: the folder.
        encoding: takes the unit of the times.
        draw: makes an image of a frame and a mask, bool ``[H, W]``.
    """
    with atomic_folder(files.folder / kind) as folder, ExitStack() as stack:
        stored = encoding(tick=files.tick())
        media = files.media
        opened = (
            create_video(folder / f"{n}.mov", media.rate, None, media.pixel_aspect, stored) for n in files.sentences
        )
        movies = [stack.enter_context(movie) for movie in opened]
        while (item := (yield)) is not None:
            for movie, mask in zip(movies, item.masks, strict=True):
                movie.write(draw(item.frame, mask), item.frame.time - files.begin, item.frame.duration)


def _cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an image as RGBA ``[H, W, 4]`` that is opaque inside the mask; its colours stay everywhere."""
    return np.dstack([image, mask.view(np.uint8) * 255])


def _white_on_black(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask.view(np.uint8)[..., None] * 255, 3, axis=-1)


def _write_index(files: MaskFiles) -> Writer:
    palette = [0, 0, 0, *chain.from_iterable(files.colours)]
    palette += [0] * (3 * (MAX_IDS + 1) - len(palette))  # a shorter palette would be stored with fewer bits
    with atomic_folder(files.folder / "index") as folder, BackgroundTasks(WRITERS) as tasks:
        while (item := (yield)) is not None:
            tasks.submit(write_index_mask, folder / f"{item.frame.name}.png", item.ids, palette)


def _write_coco(files: MaskFiles) -> Writer:
    height, width = files.media.size
    images = [
        {"id": number, "file_name": name, "width": width, "height": height}
        for number, name in enumerate(files.file_names(), start=1)
    ]
    with atomic_path(files.folder / "coco.json") as path, path.open("w", encoding="utf-8", errors="replace") as file:
        file.write(_head(files, "images", images) + ', "annotations": [')
        written = 0
        while (item := (yield)) is not None:
            for category, rle in enumerate(item.rles, start=1):
                if rle is not None:
                    written += 1
                    row = {
                        "id": written,
                        "image_id": item.number + 1,
                        "category_id": category,
                        "segmentation": rle,
                        "area": mask_area(rle),
                        "bbox": mask_box(rle),
                        "iscrowd": 0,
                    }
                    file.write((",\n" if written > 1 else "\n") + json.dumps(row))
        file.write("\n]}\n")


def _write_ytvis(files: MaskFiles) -> Writer:
    """The file lists the frames of one object after another, so run lengths wait in a temporary file."""
    height, width = files.media.size
    size = {"width": width, "height": height, "length": len(files.frames)}
    starts = [array("Q") for _ in files.sentences]  # of the run lengths of each sentence and frame
    with (
        atomic_path(files.folder / "ytvis.json") as path,
        path.open("w", encoding="utf-8", errors="replace") as file,
        TemporaryFile(dir=files.folder) as waiting,
    ):
        while (item := (yield)) is not None:
            for own, rle in zip(starts, item.rles, strict=True):
                own.append(waiting.tell())
                waiting.write(json.dumps(rle).encode() + b"\n")

        def rows(own: Iterable[int], value: Callable[[Rle], Any]) -> Iterator[str]:
            for start in own:
                waiting.seek(start)
                rle = json.loads(waiting.readline())
                yield json.dumps(rle and value(rle))

        file.write(_head(files, "videos", [{"id": 1, **size, "file_names": files.file_names()}]) + ', "annotations": [')
        written = 0
        for category, own in enumerate(starts, start=1):
            if any(row != "null" for row in rows(own, mask_area)):
                written += 1
                about = {"id": written, "video_id": 1, "category_id": category, "iscrowd": 0, **size}
                file.write((",\n" if written > 1 else "\n") + json.dumps(about)[:-1])
                for key, value in (("segmentations", dict), ("bboxes", mask_box), ("areas", mask_area)):
                    file.write(f',\n"{key}": [')
                    file.writelines(("," if i else "") + row for i, row in enumerate(rows(own, value)))
                    file.write("]")
                file.write("}")
        file.write("\n]}\n")


def _head(files: MaskFiles, name: str, rows: Sequence[Any]) -> str:
    """Return the beginning of a JSON file in COCO's style: categories, and a further list."""
    categories = [
        {"id": number, "name": text, "supercategory": "object"}
        for number, text in enumerate(files.sentences.values(), start=1)
    ]
    info = {"description": files.media.path.name, "version": project_version()}
    content = {"info": info, "licenses": [], "categories": categories, name: rows}
    return json.dumps(content, ensure_ascii=False)[:-1]


def _write_mots(files: MaskFiles) -> Writer:
    height, width = files.media.size
    with atomic_path(files.folder / "mots.txt") as path, path.open("w", encoding="ascii") as file:
        while (item := (yield)) is not None:
            for number in np.unique(item.ids[item.ids > 0]).tolist():
                counts = run_lengths(item.ids == number)["counts"]
                file.write(f"{item.number} {1000 * MOTS_CLASS + number} {MOTS_CLASS} {height} {width} {counts}\n")


@dataclass(frozen=True)
class Format:
    """A format of masks.

    Attributes:
        path: what is written, below the output folder.
        help: one line.
        write: None: always there.
        source: whether it needs the images of the video.
        exclusive: whether objects do not overlap, which needs the probabilities.
    """

    path: str
    help: str
    write: Callable[[MaskFiles], Writer] | None
    source: bool = False
    exclusive: bool = False


FORMATS = {
    "png": Format("masks/NAME/FRAME.png", "masks of 0 and 255, which are always written", None),
    "rgba": Format("rgba/NAME/FRAME.png", "the video's frames, transparent outside of the mask", _write_rgba, True),
    "alpha": Format(
        "alpha/NAME.mov",
        "the same as video: ProRes 4444 with straight alpha",
        partial(_write_videos, "alpha", PRORES, lambda frame, mask: _cut_out(frame.image, mask)),
        source=True,
    ),
    "maskvideo": Format(
        "maskvideo/NAME.mov",
        "white on black as lossless video: QuickTime Animation",
        partial(_write_videos, "maskvideo", ANIMATION, lambda frame, mask: _white_on_black(mask)),
    ),
    "index": Format(
        "index/FRAME.png",
        "one palette PNG per frame, value = number of the sentence, 0 = none",
        _write_index,
        exclusive=True,
    ),
    "coco": Format("coco.json", "COCO: images, categories and annotations", _write_coco),
    "ytvis": Format("ytvis.json", "YouTube-VIS: one video, one annotation per object", _write_ytvis),
    "mots": Format(
        "mots.txt", "MOTS: one line per frame and object, whose id is 1000 + its number", _write_mots, exclusive=True
    ),
}
"""By the name of ``--export``."""


def check_formats(names: Iterable[str], sentences: int) -> None:
    """Raise ``UserError`` if a format cannot hold this number of sentences."""
    for name in names:
        if FORMATS[name].exclusive and sentences > MAX_IDS:
            raise UserError(f"--export {name} holds at most {MAX_IDS} sentences, and there are {sentences}; split them")


def need_probabilities(names: Iterable[str]) -> bool:
    """Whether a format needs the probabilities on disk."""
    return any(FORMATS[name].exclusive for name in names)


def need_images(names: Iterable[str]) -> bool:
    """Whether a format needs the images of the video."""
    return any(FORMATS[name].source for name in names)


def export_masks(names: Iterable[str], files: MaskFiles, frames: Iterable[MediaFrame]) -> dict[str, str]:
    """Write masks in further formats. One that fails leaves nothing and does not stop the others.

    Args:
        names: of ``FORMATS``.
        frames: those of ``files`` in order, with their images if ``need_images``.

    Returns:
        The names of the formats that failed, and why, in one sentence.
    """
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        writers: dict[str, Writer] = {}
        for name in dict.fromkeys(names):
            write = FORMATS[name].write
            if write is not None:
                writers[name] = stack.enter_context(closing(write(files)))
        if not writers:
            return {}
        try:
            items = (_Frame(files, number, frame) for number, frame in enumerate(frames))
            for item in chain([None], items, [None]):  # the first one starts a writer, the last one ends it
                for name in [name for name in writers if name not in failures]:
                    try:
                        writers[name].send(item)
                    except StopIteration:
                        pass
                    except UserError as error:
                        failures[name] = str(error)
        except UserError as error:  # a mask or the video cannot be read
            failures = {name: str(error) for name in writers} | failures
    return failures
