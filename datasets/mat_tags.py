"""MATLAB files, looked at before scipy reads them: a wrong byte in one's tags makes scipy end the process.

A file of version 5 (MATLAB's -v6 and -v7) has a header of 128 bytes and then elements: a tag of two numbers, the
content's type and its bytes, and the content, padded to 8 bytes. An array is an element whose content is elements:
flags, dimensions, name, values. A compressed element holds another one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

HEADER = 128  # bytes
MOST_BYTES = 1 << 28  # of an array
_ARRAY, _COMPRESSED = 14, 15  # types of elements
_NUMBERS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13)  # of contents that are numbers
_NUMERIC = range(6, 16)  # classes of arrays, from double to uint64
_COMPLEX = 0x0800


def has_array(path: Path, name: str) -> bool:
    """Whether a file has a numeric array of this name, whose tags are sound.

    Raises:
        ValueError: the file is no MATLAB file of version 5, ends too early, or a tag of the array is none.
        OSError, zlib.error: it cannot be read or unpacked.
    """
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("it is no MATLAB file of version 5")
    for kind, element in _elements(content[HEADER:], order):
        if kind == _COMPRESSED:
            inflated = zlib.decompressobj().decompress(element, MOST_BYTES)
            kind, element = next(_elements(inflated, order, cut=len(inflated) == MOST_BYTES), (0, b""))
        if kind == _ARRAY and _is_wanted(list(_elements(element, order)), name, order):
            return True
    return False


def _is_wanted(parts: list[tuple[int, bytes]], name: str, order: str) -> bool:
    """Whether an array, by its parts, is numeric and of this name; raises a ``ValueError`` where a tag is none."""
    if len(parts) < 3 or len(parts[0][1]) != 8:
        raise ValueError("an array lacks its flags, dimensions or name")
    if parts[2][1].rstrip(b"\0").decode("latin-1") != name:
        return False
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    if flags & 0xFF not in _NUMERIC:
        return False
    if len(parts) != (5 if flags & _COMPLEX else 4) or any(kind not in _NUMBERS for kind, _ in parts[3:]):
        raise ValueError(f"the values of {name} are no numbers")
    return True


def _elements(content: bytes, order: str, cut: bool = False) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element; ``cut``: the content may end in one.

    Raises:
        ValueError: an element is longer than what is left.
    """
    place = 0
    while place + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        start, room = place + 8, len(content) - place - 8
        if kind >> 16:  # up to four bytes stand in the tag itself
            kind, size, start, room = kind & 0xFFFF, kind >> 16, place + 4, 4
        if size > room and not cut:
            raise ValueError("it is cut off, or a length in it is wrong")
        yield kind, content[start : start + size]
        place = start + size + (0 if kind == _COMPRESSED else -(start + size) % 8)
