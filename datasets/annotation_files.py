"""Files that list sentences and true masks of single frames, checked entry by entry."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.coco_masks import decode_segmentation
from datasets.evaluators import Rle, encode_masks
from datasets.reading import DATA_PAGE
from util.errors import UserError
from util.io import read_json
from util.sentences import normalise_sentence

logger = logging.getLogger(__name__)


def read_coco_masks(path: Path, ids: Sequence[str]) -> dict[str, Rle]:
    """Read the one mask of each of some images from annotations in COCO's form.

    Returns:
        image id → mask as run lengths, in the order of ``ids``.

    Raises:
        UserError: the file is malformed, or has no mask or several for one of the ids.
    """
    content = read_json(path, f"true masks in COCO's form, see {DATA_PAGE}")
    images, annotations = (_list(content, key, path) for key in ("images", "annotations"))
    of_id = {str(image.get("id")): image for image in images}
    found: dict[str, dict[str, Any]] = {}
    for annotation in annotations:
        image = str(annotation.get("image_id"))
        if image in found:
            raise UserError(f"{path} has two masks for {image}; it should have one for each image")
        found[image] = annotation
    absent = [item for item in ids if item not in found or item not in of_id]
    if absent:
        raise UserError(
            f"{path} has no mask for {absent[0]}{_more(absent)}; take it and the list of sentences from one release "
            f"of the dataset, or remove it and the masks are read one by one (see {DATA_PAGE})"
        )
    if len(found) > len(ids):
        logger.warning("%s has masks of %d images that are not evaluated", path, len(found) - len(ids))
    masks = {}
    for item in ids:
        height, width = (of_id[item].get(side, 0) for side in ("height", "width"))
        mask = decode_segmentation(found[item].get("segmentation"), height, width, f"{path}: the mask for {item}")
        masks[item] = encode_masks(mask[None])[0]
    return masks


def read_entries(path: Path, holds: str, form: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """Read a JSON list of lists.

    Args:
        path: the file.
        holds: what it should hold, for messages.
        form: the name of each value of an entry.

    Returns:
        where an entry stands, for messages, and its values.

    Raises:
        UserError: the file is missing, no JSON or of another form.
    """
    content = read_json(path, f"{holds} (see {DATA_PAGE})")
    if not isinstance(content, list):
        raise UserError(f"{path} should be a JSON list of [{', '.join(form)}] (see {DATA_PAGE})")
    entries = []
    for number, entry in enumerate(content, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, list) or len(entry) != len(form):
            raise UserError(f"{where} should be [{', '.join(form)}] (see {DATA_PAGE})")
        entries.append((where, entry))
    return entries


def sentence_of(value: Any, where: str) -> str:
    """The normalised sentence; a ``UserError`` if it is none."""
    caption = normalise_sentence(value) if isinstance(value, str) else ""
    if not caption:
        raise UserError(f"{where} has the sentence {value!r}; it should be text")
    return caption


def number_of(value: Any, least: int, what: str, where: str) -> int:
    """A whole number, which some releases write as text; a ``UserError`` if it is none or below ``least``."""
    text = str(value) if type(value) in (int, str) else ""
    if not (text.isascii() and text.isdecimal() and len(text) < 10) or int(text) < least:
        raise UserError(f"{where} has the {what} {value!r}; it should be a whole number from {least} on")
    return int(text)


def require_files(paths: Sequence[Path], lister: Path) -> None:
    """Raise a ``UserError`` that names the first of the files and folders that do not exist, and counts the others."""
    folders = {path.parent for path in paths}
    present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    missing = [path for path in dict.fromkeys(paths) if path not in present]
    if missing:
        raise UserError(f"{missing[0]} is missing{_more(missing)}, but {lister} lists it (see {DATA_PAGE})")


def _list(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    values = content.get(key) if isinstance(content, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise UserError(f"{path} should be annotations in COCO's form, with a list of {key!r} (see {DATA_PAGE})")
    return values


def _more(missing: Sequence[Any]) -> str:
    return f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
