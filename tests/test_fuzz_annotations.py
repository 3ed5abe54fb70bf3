"""Made-up expressions and annotations: every reader gives a valid value or one sentence, never another error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datasets import a2d, jhmdb
from datasets.annotation_files import read_coco_masks
from datasets.coco_masks import decode_segmentation
from datasets.expressions import read_expressions
from datasets.mevis_files import InstanceMasks, list_split
from datasets.refcoco_files import draw_mask, instances_name, read_items
from tests.fuzz_tools import few, leaves, reads, texts, values, write

SIZE = (4, 5)

objects = st.one_of(leaves, st.lists(leaves, max_size=2))
sentences = st.fixed_dictionaries({}, optional={"exp": leaves, "obj_id": leaves, "anno_id": objects, "kind": leaves})
listed = st.dictionaries(st.one_of(st.just("0"), texts), st.one_of(leaves, sentences), max_size=2)
videos = st.fixed_dictionaries({"frames": st.lists(st.one_of(texts, leaves), max_size=2), "expressions": listed})
documents = st.one_of(
    values(("videos", "frames", "expressions", "exp")),
    st.fixed_dictionaries({"videos": st.dictionaries(texts, st.one_of(leaves, videos), max_size=2)}),
)


@few
@given(documents)
def test_expressions(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path / "mevis" / "valid" / "meta_expressions.json", content)
    (path.parent / "JPEGImages").mkdir(exist_ok=True)
    for video in (reads(read_expressions, path, "valid") or {}).values():
        assert video.frames and all(isinstance(name, str) and name for name in video.frames)
        for expression in video.expressions.values():
            assert expression.caption == " ".join(expression.caption.split()).lower() and expression.caption.encode()
            assert expression.obj_id is None or 1 <= expression.obj_id <= 254
    for video in (reads(list_split, tmp_path / "mevis", "valid") or {}).values():
        assert all(isinstance(e.instances, tuple | None) and e.caption for e in video.expressions.values())


@few
@given(st.lists(st.one_of(leaves, st.lists(leaves, min_size=4, max_size=5)), max_size=3))
def test_lists_of_annotated_frames(tmp_path: Path, content: Any) -> None:
    write(tmp_path / "a2d_sentences_single_frame_test_annotations.json", content)
    for item in reads(a2d.read_items, tmp_path, "test") or []:
        assert item.caption and item.frame >= 1 and item.instance >= 0 and "/" not in item.video
    write(tmp_path / jhmdb.LIST_FILE, content)
    for item in reads(jhmdb.read_items, tmp_path) or []:
        assert item.caption and 1 <= item.frame <= item.length
        assert item.masks.is_relative_to(tmp_path) and ".." not in item.masks.parts


runs = st.one_of(texts, st.text("0123456789:;<=?@ABCOP_`aino", max_size=8), st.lists(st.integers(-1, 20), max_size=6))
corners = st.lists(st.one_of(st.floats(-12, 12), st.integers(-12, 12), leaves), max_size=8)
segmentations = st.one_of(
    values(("size", "counts")),
    st.fixed_dictionaries({"size": st.one_of(st.just(list(SIZE)), leaves), "counts": runs}),
    st.lists(corners, max_size=3),
)


@few
@given(segmentations)
def test_segmentations(content: Any) -> None:
    mask = reads(decode_segmentation, content, *SIZE, "entry 1")
    assert mask is None or (mask.shape == SIZE and mask.dtype == np.bool_)


numbers = st.one_of(st.integers(0, 3), leaves)
entries = st.fixed_dictionaries(
    {"id": numbers, "image_id": numbers, "height": st.one_of(st.just(SIZE[0]), leaves), "width": st.just(SIZE[1])},
    optional={
        **{"caption": leaves, "file_name": leaves, "segmentation": segmentations},
        "bbox": st.one_of(leaves, st.lists(numbers, min_size=3, max_size=4)),
    },
)


@few
@given(st.fixed_dictionaries({"images": st.lists(entries, max_size=2), "annotations": st.lists(entries, max_size=2)}))
def test_annotations_in_cocos_form(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path / instances_name("refcoco", "val"), content)
    for item in reads(read_items, tmp_path, "refcoco", "val") or []:
        assert item["caption"] and "/" not in item["file_name"]
        reads(draw_mask, item, "refcoco", "val")
    assert set(reads(read_coco_masks, path, ["0", "1"]) or ("0", "1")) == {"0", "1"}


@few
@given(st.dictionaries(texts, st.one_of(leaves, st.lists(st.one_of(st.none(), segmentations), max_size=2)), max_size=2))
def test_masks_of_instances(tmp_path: Path, content: Any) -> None:
    masks = reads(InstanceMasks, write(tmp_path / "mask_dict.json", content))
    for instance, frames in content.items() if masks else ():
        assert len(masks.segmentations(instance)) == len(frames)
        for frame in range(len(frames)):
            union = reads(masks.union, [instance], frame, SIZE)
            assert union is None or union.shape == SIZE
