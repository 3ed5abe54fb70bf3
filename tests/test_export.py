"""Every format of ``demo.py --export``, read back by the format's own library or by FFmpeg; a stub is the model."""

from __future__ import annotations

import errno
import json
import tracemalloc
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datasets import export
from datasets.export import FORMATS, check_formats
from demo import read_command, run_demo
from models.inference import FrameResult
from tests.media_tools import picture, write_film
from tests.test_docs import ROOT
from util.drawing import PALETTE
from util.errors import RunError, UserError
from util.video import WHOLE, Excerpt, MediaFrame, open_media

SENTENCES = ["the left part", "the «right» part", "nothing"]
NAMES = ["1_the-left-part", "2_the-right-part", "3_nothing"]
SIZE = (33, 47)  # odd
TIMES = [0, 900, 9000, 9900]  # in 1/90000 s


def masks(number: int) -> np.ndarray:
    """The masks of a frame: columns up to 30 + number; from 20, in all but the second frame; none (not found)."""
    found = np.zeros((3, *SIZE), bool)
    found[0, :, : 30 + number] = True
    found[1, :, 20:] = number != 1
    return found


def ids(number: int) -> np.ndarray:
    """Where both masks lie, the second one has the higher probability in the upper ten rows, and none below."""
    left, right, _ = masks(number)
    winner = np.where(left, 1, 2 * right).astype(np.uint8)
    winner[:10][right[:10]] = 2
    return winner


def segment(frames: Iterable[np.ndarray]) -> Iterator[FrameResult]:
    for number, frame in enumerate(frames):
        assert frame.shape[:2] == SIZE
        probabilities = np.where(masks(number), 0.75, 0.25).astype(np.float32)
        probabilities[1, :10, 20:] += 0.2 if number != 1 else 0
        probabilities[2] = 0.99
        yield FrameResult(probabilities, np.zeros((3, 4)), np.array([0.9, 0.8, 0.1], np.float32))


def export_film(folder: Path, *formats: str, video: Path | None = None, excerpt: Excerpt = WHOLE, **options) -> Path:
    """Run the demo on a film with a variable frame rate, and return its output folder."""
    video = video or write_film(folder / "a film.mkv", 4, SIZE, "ffv1", "bgr0", TIMES)
    media = open_media(video, excerpt)
    out, formats = folder / "out", ("png", *formats)
    run_demo(media, SENTENCES, segment, out, score_threshold=0.5, show=False, formats=formats, **options)
    assert media.notes == [] and not list(folder.rglob(".*"))
    return out


def source_frames(folder: Path) -> list[MediaFrame]:
    return list(open_media(folder / "a film.mkv").frames())


def decode(path: Path, pixels: str) -> tuple[list[Fraction], list[Fraction], list[np.ndarray]]:
    """Times and durations in seconds, and images."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        times = [frame.pts * frame.time_base for frame in frames]
        return times, [f.duration * f.time_base for f in frames], [f.to_ndarray(format=pixels) for f in frames]


def test_cut_out_pictures_are_the_source_with_the_mask_as_alpha(tmp_path: Path):
    out = export_film(tmp_path, "rgba")
    assert sorted(path.name for path in (out / "rgba").iterdir()) == NAMES
    for number, frame in enumerate(source_frames(tmp_path)):
        for name, mask in zip(NAMES, masks(number), strict=True):
            with Image.open(out / "rgba" / name / f"{number:05d}.png") as image:
                assert image.mode == "RGBA"
                pixels = np.asarray(image)
            assert (pixels[..., :3] == frame.image).all() and (pixels[..., 3] == 255 * mask).all()


def test_the_transparent_video_is_aligned_with_the_source(tmp_path: Path):
    out = export_film(tmp_path, "alpha")
    frames = source_frames(tmp_path)
    assert [frame.time for frame in frames] == [0, Fraction("0.01"), Fraction("0.1"), Fraction("0.11")]
    assert sorted(path.name for path in (out / "alpha").iterdir()) == [f"{name}.mov" for name in NAMES]
    for i, name in enumerate(NAMES):
        with av.open(str(out / "alpha" / f"{name}.mov")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.codec_tag, stream.codec_context.profile) == ("ap4h", "4444")
        times, durations, images = decode(out / "alpha" / f"{name}.mov", "rgba")
        assert times == [frame.time for frame in frames] and durations == [frame.duration for frame in frames]
        for number, (image, frame) in enumerate(zip(images, frames, strict=True)):
            assert (image[..., 3] == 255 * masks(number)[i]).all()
            assert np.abs(image[..., :3].astype(int) - frame.image).max() <= 3, "the colours are stored with a loss"


def test_the_video_of_masks_is_lossless(tmp_path: Path):
    out = export_film(tmp_path, "maskvideo")
    frames = source_frames(tmp_path)
    for i, name in enumerate(NAMES):
        times, durations, images = decode(out / "maskvideo" / f"{name}.mov", "rgb24")
        assert times == [frame.time for frame in frames] and durations == [frame.duration for frame in frames]
        for number, image in enumerate(images):
            assert (image == 255 * masks(number)[i][..., None]).all()


def test_a_constant_rate_stays_constant(tmp_path: Path):
    """Of 24000/1001 frames per second no time is a whole number of 1/90000 s."""
    video = tmp_path / "a.mov"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24000, 1001))
        stream.height, stream.width = SIZE[0] - 1, SIZE[1] - 1
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1001, 24000)
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(picture(i, SIZE[0] - 1, SIZE[1] - 1), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1001, 24000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

    def left(frames: Iterable[np.ndarray]) -> Iterator[FrameResult]:
        for frame in frames:
            yield FrameResult(np.ones((1, *frame.shape[:2]), np.float32), np.zeros((1, 4)), np.ones(1))

    media = open_media(video, Excerpt(Fraction("0.04"), None, 2))
    run_demo(media, ["a"], left, tmp_path / "out", show=False, formats=("alpha", "maskvideo"))
    for kind in ("alpha", "maskvideo"):
        times, durations, _ = decode(tmp_path / "out" / kind / "1_a.mov", "rgb24")
        assert times == [0, Fraction(2002, 24000)] and durations == [Fraction(2002, 24000)] * 2
        with av.open(str(tmp_path / "out" / kind / "1_a.mov")) as container:
            assert container.streams.video[0].average_rate == Fraction(12000, 1001)


def test_index_pictures_do_not_overlap(tmp_path: Path):
    out = export_film(tmp_path, "index", colours=[(1, 2, 3), (200, 0, 9), (9, 9, 9)])
    for number in range(4):
        with Image.open(out / "index" / f"{number:05d}.png") as image:
            assert image.mode == "P" and image.getpalette()[:12] == [0, 0, 0, 1, 2, 3, 200, 0, 9, 9, 9, 9]
            assert (np.asarray(image) == ids(number)).all()
        assert (out / "index" / f"{number:05d}.png").read_bytes()[24] == 8, "bits"
    assert (out / "probabilities" / NAMES[2] / "00000.png").is_file()


def test_coco(tmp_path: Path):
    out = export_film(tmp_path, "coco")
    coco = COCO(str(out / "coco.json"))
    assert [(c["id"], c["name"]) for c in coco.loadCats([1, 2, 3])] == list(enumerate(SENTENCES, start=1))
    assert coco.getImgIds() == [1, 2, 3, 4] and sorted(coco.anns) == list(range(1, 8)), "no empty ones"
    for number in range(4):
        assert coco.imgs[number + 1]["file_name"] == f"{number:05d}.png"
        for category, mask in enumerate(masks(number), start=1):
            rows = coco.loadAnns(coco.getAnnIds(imgIds=[number + 1], catIds=[category]))
            assert len(rows) == mask.any()
            for row in rows:
                assert (coco.annToMask(row) == mask).all() and row["area"] == mask.sum() and row["iscrowd"] == 0
                columns = np.flatnonzero(mask.any(axis=0))
                assert row["bbox"] == [columns[0], 0, len(columns), SIZE[0]]


def test_frames_of_an_excerpt_are_named_after_their_index_in_the_video(tmp_path: Path):
    content = json.loads(
        (export_film(tmp_path, "coco", excerpt=Excerpt(Fraction("0.01"), None, 2)) / "coco.json").read_text("utf-8")
    )
    assert [image["file_name"] for image in content["images"]] == ["00001.png", "00003.png"]


def test_youtube_vis(tmp_path: Path):
    content = json.loads((export_film(tmp_path, "ytvis") / "ytvis.json").read_text(encoding="utf-8"))
    assert content["videos"] == [
        {"id": 1, "width": 47, "height": 33, "length": 4, "file_names": [f"{i:05d}.png" for i in range(4)]}
    ]
    assert [(c["id"], c["name"]) for c in content["categories"]] == list(enumerate(SENTENCES, start=1))
    assert [(a["id"], a["video_id"], a["category_id"]) for a in content["annotations"]] == [(1, 1, 1), (2, 1, 2)]
    for i, row in enumerate(content["annotations"]):
        assert (row["width"], row["height"], row["length"], row["iscrowd"]) == (47, 33, 4, 0)
        for number in range(4):
            mask, rle = masks(number)[i], row["segmentations"][number]
            if not mask.any():
                assert (i, number) == (1, 1) and rle is row["bboxes"][number] is row["areas"][number] is None
                continue
            assert (coco_mask.decode(rle) == mask).all() and row["areas"][number] == mask.sum()
            assert row["bboxes"][number] == ([0, 0, 30 + number, 33], [20, 0, 27, 33])[i]


def test_mots(tmp_path: Path):
    seen = [np.zeros(SIZE, np.uint8) for _ in range(4)]
    for line in (export_film(tmp_path, "mots") / "mots.txt").read_text().splitlines():
        number, object_id, class_id, height, width, rle = line.split(" ")
        assert int(object_id) // 1000 == int(class_id) == 1 and (int(height), int(width)) == SIZE
        mask = coco_mask.decode({"size": SIZE, "counts": rle}).astype(bool)
        assert mask.any() and not seen[int(number)][mask].any(), "objects do not overlap"
        seen[int(number)][mask] = int(object_id) % 1000
    for number, plane in enumerate(seen):
        assert (plane == ids(number)).all()


def test_frames_of_a_folder_keep_their_file_names(tmp_path: Path):
    for i in (5, 10):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(picture(i, *SIZE)).save(tmp_path / "in" / f"f{i}.jpg")
    out = export_film(tmp_path, "coco", "ytvis", "rgba", video=tmp_path / "in")
    coco, ytvis = (json.loads((out / name).read_text(encoding="utf-8")) for name in ("coco.json", "ytvis.json"))
    assert [image["file_name"] for image in coco["images"]] == ["f5.jpg", "f10.jpg"]
    assert ytvis["videos"][0]["file_names"] == ["f5.jpg", "f10.jpg"]
    assert sorted(path.name for path in (out / "rgba" / NAMES[0]).iterdir()) == ["f10.png", "f5.png"]


def test_nothing_more_is_written_by_default(tmp_path: Path):
    out = export_film(tmp_path)
    assert sorted(path.name for path in out.iterdir()) == ["contact_sheet.png", "masks", "masks.json", "overlay.mp4"]


def test_all_formats_at_once_with_paths_as_documented(tmp_path: Path):
    out = export_film(tmp_path, *FORMATS)
    for kind in FORMATS.values():
        path = kind.path.replace("NAME", NAMES[1]).replace("FRAME", "00003")
        assert (out / path).is_file(), path


def test_a_format_that_fails_leaves_the_masks_and_the_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = export.write_picture

    def full(path: Path, image: np.ndarray) -> None:
        if path.name == "00002.png":
            raise UserError("cannot write 00002.png: no space left on device")
        write(path, image)

    monkeypatch.setattr(export, "write_picture", full)
    media = open_media(write_film(tmp_path / "a.mkv", 4, SIZE, "ffv1", "bgr0"))
    run_demo(media, SENTENCES, segment, tmp_path / "out", show=False, formats=("rgba", "coco"))
    assert media.notes == ["--export rgba is not written: cannot write 00002.png: no space left on device"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("coco.json", "contact_sheet.png", "masks", "masks.json", "overlay.mp4")
    ]
    assert len(COCO(str(tmp_path / "out" / "coco.json")).imgs) == 4


def test_a_note_names_the_file_in_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(rle: dict) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "mask_area", full)
    media = open_media(write_film(tmp_path / "a.mkv", 4, SIZE, "ffv1", "bgr0"))
    run_demo(media, SENTENCES, segment, tmp_path / "out", show=False, formats=("coco",))
    (note,) = media.notes
    assert note.startswith(f"--export coco is not written: cannot write {tmp_path}/out/coco.json: No space left")


def test_a_missing_mask_ends_all_formats(tmp_path: Path):
    out = export_film(tmp_path, "index")
    frames = source_frames(tmp_path)
    files = export.MaskFiles(
        *(out, open_media(tmp_path / "a film.mkv"), frames, Fraction(0)),
        *(dict(zip(NAMES, SENTENCES, strict=True)), PALETTE[:3]),
    )
    (out / "masks" / NAMES[1] / "00002.png").unlink()
    failures = export.export_masks(["mots", "alpha"], files, frames)
    assert sorted(failures) == ["alpha", "mots"] and "00002.png is missing" in failures["mots"]
    assert not (out / "alpha").exists() and not (out / "mots.txt").exists()
    assert not list(tmp_path.rglob(".*"))


def test_a_video_that_changes_before_it_is_exported(tmp_path: Path):
    video = write_film(tmp_path / "a.mkv", 4, SIZE, "ffv1", "bgr0")

    def swap(progress) -> None:
        if (progress.stage, progress.done) == ("segment", 4):
            write_film(tmp_path / "b.mkv", 3, SIZE, "ffv1", "bgr0").replace(video)

    with pytest.raises(RunError, match=r"a\.mkv was changed while it was read"):
        run_demo(open_media(video), SENTENCES, segment, tmp_path / "out", show=False, formats=["rgba"], report=swap)


MISTAKES = {
    "a format": (["--export", "coco", "rgab"], r"--export must be a list of png, .*did you mean 'rgba'\?"),
    "a colour": (["--colors", "orange", "bleu"], r"--colors has no colour 'bleu'; did you mean 'blue'\?"),
    "a number": (["--colors", "#12", "red"], r"--colors has no colour '#12'; give a name such as orange, or #rrggbb"),
    "a transparent colour": (["--colors", "#11223344", "red"], "--colors has no colour '#11223344'; give a name"),
    "too few colours": (["--colors", "red"], "--colors has 1 for 2 sentences; give one for each sentence"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_reported_before_anything_is_read(kind: str):
    words, message = MISTAKES[kind]
    with pytest.raises(UserError, match=message):
        read_command(["no.mp4", "a dog", "a cat", *words])


def test_options_of_formats_and_colours():
    _, _, options, _ = read_command(["a.mp4", "b", "c", "--export", "png", "alpha", "--colors", "Red", "#00fF7f"])
    assert options.export == ("png", "alpha") and options.colors == ("Red", "#00fF7f")
    assert read_command(["a.mp4", "b"])[2].export == ("png",)


def test_more_sentences_than_ids():
    check_formats(["index", "mots"], 255)
    check_formats(["coco"], 256)
    with pytest.raises(UserError, match="--export mots holds at most 255 sentences, and there are 256"):
        check_formats(["coco", "mots"], 256)


def test_the_page_lists_every_format():
    page = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    for name, kind in FORMATS.items():
        assert f"| `{name}` | `{kind.path}` | {kind.help} |" in page


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path: Path):
    """Run lengths of 160 more frames would take 0.8 MB, and their pixels several."""
    size, peaks = (64, 64), []
    noise = np.random.default_rng(0).random((2, *size), np.float32)

    def noisy(frames: Iterable[np.ndarray]) -> Iterator[FrameResult]:
        for number, _ in enumerate(frames):
            yield FrameResult(np.roll(noise, number, axis=1), np.zeros((2, 4)), np.ones(2))

    for count in (2, 40, 200):  # the first one imports libraries
        media = open_media(write_film(tmp_path / f"{count}.mp4", count, size))
        out = tmp_path / f"{count}"
        run_demo(media, ["a", "b"], noisy, out, save_prob=True, show=False)
        frames = [MediaFrame(frame.time, frame.duration, frame.name, None, frame.index) for frame in media.frames()]
        files = export.MaskFiles(out, media, frames, Fraction(0), {"1_a": "a", "2_b": "b"}, PALETTE[:2])
        tracemalloc.start()
        assert export.export_masks(FORMATS, files, media.frames()) == {}
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 3e5, peaks
