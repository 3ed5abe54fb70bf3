"""The demo's two passes with a stub in place of the model: files, thresholds, refusals, memory."""

from __future__ import annotations

import json
import signal
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import demo
from datasets.predictions import read_binary_mask
from demo import DemoOptions, DemoResult, Progress, new_folder, read_command, require_free, rethreshold, run_demo, slug
from models import inference as windows
from models import pretrained
from models.inference import FrameResult, InferenceOptions
from tests.commands import run_command
from tests.media_tools import loudness, picture, write_film
from util.errors import SIGNALS, RunError, UserError, orderly_end
from util.video import WHOLE, Excerpt, Media, create_video, open_media

SENTENCES = ["the left half", "La señora «ß» 世界 / ../x"]
FOLDERS = ["1_the-left-half", "2_la-señora-ss-世界-x"]


def segment(frames: Iterable[np.ndarray]) -> Iterator[FrameResult]:
    """Find the left half for the first sentence (score 0.9), the right one for the second (score 0.2)."""
    for frame in frames:
        height, width = frame.shape[:2]
        found = np.full((2, height, width), 0.25, np.float32)
        found[0, :, : width // 2] = found[1, :, width // 2 :] = 0.75
        boxes = np.array([[0, 0, width / 2, height], [width / 2, 0, width, height]])
        yield FrameResult(found, boxes, np.array([0.9, 0.2], np.float32))


def fail(error: BaseException | type[BaseException]) -> Callable[..., Any]:
    """Return a function that raises an error."""

    def function(*_: object) -> NoReturn:
        raise error

    return function


def run(video: Path, out: Path, excerpt: Excerpt = WHOLE, sentences: list[str] = SENTENCES, **options) -> DemoResult:
    return run_demo(open_media(video, excerpt), sentences, segment, out, show=False, **options)


def test_what_is_written(tmp_path: Path):
    video = write_film(tmp_path / "fête 1.mp4", sound="aac")
    seen: list[Progress] = []
    result = run(video, tmp_path / "ré sultat", save_prob=True, report=seen.append)
    out = tmp_path / "ré sultat"
    assert len(result.times) == 6 and [s.folder for s in result.sentences] == FOLDERS
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    pngs = {
        f"{kind}/{folder}/{i:05d}.png" for kind in ("masks", "probabilities") for folder in FOLDERS for i in range(6)
    }
    assert names == pngs | {"overlay.mp4", "masks.json", "contact_sheet.png"}
    for i in range(6):
        mask = read_binary_mask(out / "masks" / FOLDERS[0] / f"{i:05d}.png", (48, 64))
        assert mask[:, :32].all() and not mask[:, 32:].any()
    levels = np.asarray(Image.open(out / "probabilities" / FOLDERS[1] / "00003.png"))
    assert set(levels[:, 32:].flat) == {191} and set(levels[:, :32].flat) == {64}
    overlay = open_media(out / "overlay.mp4")
    assert overlay.size == (48, 64) and [float(frame.time) for frame in overlay.frames()] == [i / 10 for i in range(6)]
    assert loudness(out / "overlay.mp4")[1] == "aac"
    assert [(p.stage, p.done) for p in seen] == [(stage, i) for stage in ("segment", "draw") for i in range(1, 7)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fête 1.mp4", "ré sultat"], "nothing beside it"
    lines = result.lines(0.0)
    assert lines[0] == "1 “the left half”: score 0.90"
    assert lines[2].startswith("wrote 6 frames with 2 sentences (") and lines[2].endswith(f": {out}")


def test_masks_json_is_read_by_tools_for_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(write_film(tmp_path / "a.mp4", times=[0, 900, 9000], frames=3), tmp_path / "out", about={"checkpoint": "x.pth"})
    coco = COCO(str(tmp_path / "out" / "masks.json"))
    assert [category["name"] for category in coco.loadCats([1, 2])] == SENTENCES
    assert len(coco.anns) == 6 and len(coco.imgs) == 3
    (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[1], catIds=[2]))
    mask = coco.annToMask(annotation)
    assert mask[:, 32:].all() and not mask[:, :32].any() and annotation["area"] == 48 * 32
    assert annotation["bbox"] == annotation["predicted_box"] == [32, 0, 32, 48] and annotation["score"] == 0.2
    assert [coco.imgs[i]["source_index"] for i in range(3)] == [0, 1, 2]
    assert [coco.imgs[i]["time"] for i in range(3)] == [0, 0.01, 0.1]
    content = json.loads((tmp_path / "out" / "masks.json").read_text(encoding="utf-8"))
    info = content["info"]
    assert (info["video"], info["threshold"], info["checkpoint"]) == ("a.mp4", 0.5, "x.pth")
    assert "torch" in info["versions"] and "project" in info["versions"]


def test_boxes_of_the_masks_and_predicted_boxes(tmp_path: Path):
    """The masks: a few pixels anywhere, one pixel in a corner, and none."""
    rng = np.random.default_rng(0)
    masks = rng.random((8, 48, 64)) > 0.999
    masks[6:] = False
    masks[6, 47, 63] = True

    def specks(frames: Iterable[np.ndarray]) -> Iterator[FrameResult]:
        for _, mask in zip(frames, masks, strict=True):
            boxes = np.array([[1.25, 2, 31.5, 44]])
            yield FrameResult(mask[None].astype(np.float32), boxes, np.array([0.9], np.float32))

    run_demo(open_media(write_film(tmp_path / "a.mp4", frames=8)), ["a"], specks, tmp_path / "out", show=False)
    annotations = json.loads((tmp_path / "out" / "masks.json").read_text(encoding="utf-8"))["annotations"]
    assert len(annotations) == 8
    for annotation, mask in zip(annotations, masks, strict=True):
        rows, columns = mask.nonzero()
        x, y = (min(columns, default=0), min(rows, default=0))
        size = [max(columns) - x + 1, max(rows) - y + 1] if mask.any() else [0, 0]
        assert annotation["bbox"] == [x, y, *size] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert annotation["area"] == mask.sum() and annotation["predicted_box"] == [1.25, 2, 30.25, 42]


def test_a_sentence_below_the_score_threshold_names_nothing(tmp_path: Path):
    result = run(write_film(tmp_path / "a.mp4", frames=3), tmp_path / "out", score_threshold=0.5)
    masks = [read_binary_mask(path) for path in sorted((tmp_path / "out" / "masks" / FOLDERS[1]).iterdir())]
    assert len(masks) == 3 and not np.any(masks)
    assert read_binary_mask(tmp_path / "out" / "masks" / FOLDERS[0] / "00000.png").any()
    content = json.loads((tmp_path / "out" / "masks.json").read_text(encoding="utf-8"))
    assert [category["found"] for category in content["categories"]] == [True, False]
    assert {entry["area"] for entry in content["annotations"] if entry["category_id"] == 2} == {0}
    (line,) = [line for line in result.lines(0.5) if "its masks are empty" in line]
    assert line.startswith("2 “La señora") and "score 0.20, below the score threshold of 0.5" in line


def test_a_sentence_that_is_found_without_a_pixel(tmp_path: Path):
    result = run(write_film(tmp_path / "a.mp4", frames=1), tmp_path / "out", threshold=0.9)
    first, second, last = result.lines(0.5)
    assert first == "1 “the left half”: score 0.90, its masks are empty"
    assert second.endswith("score 0.20, its masks are empty")
    assert last.startswith("wrote 1 frame with 2 sentences (")


def test_masks_are_complete_before_anything_is_drawn(tmp_path: Path):
    """So an overlay that fails cannot take the masks with it."""
    contents: list[dict] = []

    def look(progress: Progress) -> None:
        if (progress.stage, progress.done) == ("draw", 1):
            contents.extend(json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*/masks.json"))

    run(write_film(tmp_path / "a.mp4", frames=3), tmp_path / "out", report=look)
    (content,) = contents
    assert len(content["annotations"]) == 2 * 3


def uneven(frames: Iterable[np.ndarray]) -> Iterator[FrameResult]:
    """Return all float32 numbers near 0.5, and any others."""
    rng = np.random.default_rng(0)
    for frame in frames:
        found = rng.random((2, *frame.shape[:2]), np.float32)
        found[:, 0] = 0.5 + np.arange(-32, 32) * np.float32(2**-25)
        yield FrameResult(found, np.zeros((2, 4)), np.array([0.9, 0.2], np.float32))


def written(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_other_thresholds_without_segmenting_again(tmp_path: Path):
    media = open_media(write_film(tmp_path / "a.mp4", frames=4))
    first = run_demo(media, SENTENCES, uneven, tmp_path / "out", save_prob=True, show=False)
    before = written(tmp_path / "out")
    seen: list[Progress] = []
    lower = rethreshold(first, 0.3, 0.5, tmp_path / "lower", seen.append, show=False)
    assert written(tmp_path / "out") == before and before.keys() == written(tmp_path / "lower").keys()
    assert [sentence.found for sentence in lower.sentences] == [True, False]
    assert [(p.stage, p.done) for p in seen] == [(stage, i) for stage in ("threshold", "draw") for i in range(1, 5)]
    content = json.loads((tmp_path / "lower" / "masks.json").read_text(encoding="utf-8"))
    assert (content["info"]["threshold"], content["info"]["score_threshold"]) == (0.3, 0.5)
    for number, result in enumerate(uneven(frame.image for frame in media.frames())):
        name = f"{number:05d}.png"
        mask = read_binary_mask(tmp_path / "lower" / "masks" / FOLDERS[0] / name)
        assert np.abs(result.probabilities[0][mask != (result.probabilities[0] >= 0.3)] - 0.3).max(initial=0) < 1 / 255
        assert not read_binary_mask(tmp_path / "lower" / "masks" / FOLDERS[1] / name).any()
    assert rethreshold(lower, 0.5, 0.0, show=False).folder == tmp_path / "lower"
    assert written(tmp_path / "lower") == before, "the same bits as of the first run"


def test_thresholds_that_cannot_be_changed(tmp_path: Path):
    video = write_film(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="has no probabilities; segment the video again, with --save_prob"):
        rethreshold(run(video, tmp_path / "plain"), 0.3, 0.0, show=False)
    result = run(video, tmp_path / "out", save_prob=True)
    before = written(tmp_path / "out")
    with pytest.raises(UserError, match="holds an earlier result"):
        rethreshold(result, 0.3, 0.0, tmp_path / "plain", show=False)
    with pytest.raises(KeyboardInterrupt):
        rethreshold(result, 0.3, 0.0, report=stop_at("threshold", KeyboardInterrupt()), show=False)
    assert written(tmp_path / "out") == before
    video.unlink()
    with pytest.raises(UserError, match=r"masks are complete in .*, without overlay\.mp4, contact_sheet\.png: "):
        rethreshold(result, 0.2, 0.0, show=False)
    assert read_binary_mask(tmp_path / "out" / "masks" / FOLDERS[0] / "00000.png").all()
    assert not (tmp_path / "out" / "overlay.mp4").exists(), "it would show the earlier masks"


def test_the_pixel_threshold(tmp_path: Path):
    run(write_film(tmp_path / "a.mp4", frames=1), tmp_path / "out", threshold=0.2)
    assert read_binary_mask(tmp_path / "out" / "masks" / FOLDERS[0] / "00000.png").all()


def test_an_excerpt_with_its_sound(tmp_path: Path):
    video = write_film(tmp_path / "a.mov", frames=20, sound="pcm_s16le")
    run(video, tmp_path / "out", Excerpt(Fraction("0.3"), Fraction("1.3"), 2))
    overlay = open_media(tmp_path / "out" / "overlay.mp4")
    assert [float(frame.time) for frame in overlay.frames()] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    levels, _ = loudness(tmp_path / "out" / "overlay.mp4")
    assert int((levels > 0.1).argmax()) in (1, 2, 3) and 10 <= len(levels) <= 11
    content = json.loads((tmp_path / "out" / "masks.json").read_text(encoding="utf-8"))
    assert [image["time"] for image in content["images"]] == pytest.approx([0.3, 0.5, 0.7, 0.9, 1.1]), "of the source"
    assert [image["source_index"] for image in content["images"]] == [3, 5, 7, 9, 11]


def test_portrait_odd_and_still(tmp_path: Path):
    turned = write_film(tmp_path / "a.mov", frames=2, matrix=(0, 1, 0, -1, 0, 0, 0, 0, 1))
    run(turned, tmp_path / "turned")
    assert open_media(tmp_path / "turned" / "overlay.mp4").size == (64, 48)
    assert read_binary_mask(tmp_path / "turned" / "masks" / FOLDERS[0] / "00000.png").shape == (64, 48)
    Image.fromarray(picture(0, 33, 47)).save(tmp_path / "odd.png")
    run(tmp_path / "odd.png", tmp_path / "odd")
    assert open_media(tmp_path / "odd" / "overlay.mp4").size == (34, 48), "4:2:0 holds even sizes only"
    assert open_media(tmp_path / "odd" / "overlay.png").size == (33, 47)
    assert read_binary_mask(tmp_path / "odd" / "masks" / FOLDERS[0] / "00000.png").shape == (33, 47)


def test_the_overlay_of_joined_files_with_pixels_that_are_not_square(tmp_path: Path):
    video = write_film(tmp_path / "a.ts", frames=20, sound="aac", aspect=Fraction(4, 3))
    video.write_bytes(2 * video.read_bytes())
    run(video, tmp_path / "out")
    overlay = tmp_path / "out" / "overlay.mp4"
    assert len(loudness(overlay)[0]) in (40, 41)
    with av.open(str(overlay)) as container:
        (stream,) = container.streams.video
        assert stream.sample_aspect_ratio == Fraction(4, 3) and stream.frames == 40
        assert float(stream.duration * stream.time_base) == pytest.approx(4, abs=0.05)
    info = json.loads((tmp_path / "out" / "masks.json").read_text(encoding="utf-8"))["info"]
    assert info["pixel_aspect_ratio"] == 1.3333 and "jumps once" in info["notes"][0]


def write_gif(path: Path, frames: int = 6) -> Path:
    first, *others = [Image.fromarray(picture(i)) for i in range(frames)]
    first.save(path, save_all=True, append_images=others, duration=100)
    return path


KINDS = {
    "H.264": lambda folder: write_film(folder / "a.mp4"),
    "VP9": lambda folder: write_film(folder / "a.webm", codec="libvpx-vp9"),
    "GIF": lambda folder: write_gif(folder / "a.gif"),
    "one frame": lambda folder: write_film(folder / "a.mp4", frames=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_videos(tmp_path: Path, kind: str):
    if kind == "VP9" and "libvpx-vp9" not in av.codecs_available:
        pytest.skip("this FFmpeg has no libvpx-vp9")
    result = run(KINDS[kind](tmp_path), tmp_path / "out")
    frames = 1 if kind == "one frame" else 6
    assert len(result.times) == frames and len(list((tmp_path / "out" / "masks" / FOLDERS[0]).iterdir())) == frames
    overlay = list(open_media(tmp_path / "out" / "overlay.mp4").frames())
    assert [float(frame.time) for frame in overlay] == pytest.approx([i / 10 for i in range(frames)])
    assert read_binary_mask(tmp_path / "out" / "masks" / FOLDERS[0] / f"{frames - 1:05d}.png")[:, :32].all()


def test_frames_of_a_folder_keep_their_names(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for i in (5, 10):
        Image.fromarray(picture(i)).save(tmp_path / "in" / f"f{i}.jpg")
    run(tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "masks" / FOLDERS[0]).iterdir()) == ["f10.png", "f5.png"]


def test_earlier_results_and_other_folders(tmp_path: Path):
    video, out = write_film(tmp_path / "a.mp4", frames=2), tmp_path / "out"
    out.mkdir()
    run(video, out, sentences=["a", "b"])  # an empty folder is taken
    with pytest.raises(UserError, match="holds an earlier result; choose another --out, or replace it with --force"):
        run(video, out)
    run(video, out, force=True)
    assert sorted(path.name for path in (out / "masks").iterdir()) == FOLDERS, "nothing of the earlier result is left"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "masks.json").write_text("{}")
    with pytest.raises(UserError, match="holds no result of the demo"):
        run(video, tmp_path / "photos", force=True)
    with pytest.raises(UserError, match="it is a file"):
        run(video, video, force=True)
    with pytest.raises(UserError, match="a part of its folder is a file"):
        run(video, video / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "out", "photos"]


def test_an_output_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tests may run as root, who may do everything."""
    monkeypatch.setattr(demo.os, "access", lambda *_: False)
    with pytest.raises(UserError, match=f"a/b: permission denied in {tmp_path}; choose another --out"):
        require_free(tmp_path / "a" / "b", force=False)
    assert not list(tmp_path.iterdir())


def stop_at(stage: str, error: BaseException) -> Callable[[Progress], None]:
    """Return a report that raises an error at the third frame of a stage."""

    def stop(progress: Progress) -> None:
        if (progress.stage, progress.done) == (stage, 3):
            raise error

    return stop


def test_ctrl_c_leaves_nothing_and_keeps_the_earlier_result(tmp_path: Path):
    video, out = write_film(tmp_path / "a.mp4"), tmp_path / "out"
    run(video, out, about={"checkpoint": "earlier"})
    before = (out / "masks.json").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(video, out, force=True, report=stop_at("segment", KeyboardInterrupt()))
    assert (out / "masks.json").read_bytes() == before and (out / "overlay.mp4").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "out"]


def check_kept(out: Path, frames: int = 6) -> None:
    """Check a result whose masks are complete and whose overlay is missing."""
    assert sorted(path.name for path in out.iterdir()) == ["masks", "masks.json"]
    content = json.loads((out / "masks.json").read_text(encoding="utf-8"))
    assert len(content["annotations"]) == 2 * frames == len(list(out.glob("masks/*/*.png")))
    assert read_binary_mask(out / "masks" / FOLDERS[0] / f"{frames - 1:05d}.png")[:, :32].all()


def test_ctrl_c_while_drawing_keeps_the_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    video, out = write_film(tmp_path / "a.mp4"), tmp_path / "out"
    run(video, out, about={"checkpoint": "earlier"})
    report = stop_at("draw", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_demo(open_media(video), SENTENCES, segment, out, force=True, report=report)
    check_kept(out)  # without the earlier overlay
    assert "earlier" not in (out / "masks.json").read_text(encoding="utf-8")
    assert f"note: the masks are complete in {out}, without overlay.mp4, contact_sheet.png" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "out"]


FAILURES = {
    "disk": (OSError(28, "No space left on device"), 2, "cannot write {out}/overlay.mp4: No space left on device"),
    "encoder": (av.ArgumentError(22, "Invalid argument"), 2, "cannot write {out}/overlay.mp4"),
    "memory": (MemoryError(), 1, "memory ran out"),
    "video": (RunError("a.mp4 was changed"), 1, "a.mp4 was changed"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_an_overlay_that_fails_leaves_the_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    error, status, reason = FAILURES[kind]
    video, out = write_film(tmp_path / "a.mp4"), tmp_path / "out"
    run(video, out)
    monkeypatch.setattr(pretrained, "open_pretrained", lambda *_: SimpleNamespace(notes=(), options=InferenceOptions()))

    def stub(_: object, media: Media, sentences: list[str], folder: Path, force: bool, **__: object) -> DemoResult:
        report = stop_at("draw", error)
        return run_demo(media, sentences, segment, folder, force=force, report=report, show=False)

    monkeypatch.setattr(demo, "segment_to_folder", stub)
    done = run_command(demo.main, video, *SENTENCES, "--resume", WEIGHTS, "--out", out, "--force")
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(
        f"error: the masks are complete in {out}, without overlay.mp4, contact_sheet.png: " + reason.format(out=out)
    )
    assert done.stderr.count("\n") == 1 and "/.out" not in done.stderr
    check_kept(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "out"]


def test_masks_stay_when_their_json_cannot_be_written_and_after_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    video = write_film(tmp_path / "a.mp4")
    with monkeypatch.context() as patch:
        patch.setattr(demo, "_write_rows", fail(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match=r", without masks\.json, overlay\.mp4, contact_sheet\.png: cannot"):
            run(video, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["masks"]
    with pytest.raises(AssertionError) as bug:
        run(video, tmp_path / "bug", report=stop_at("draw", AssertionError("a bug")))
    assert f"the masks are complete in {tmp_path / 'bug'}" in bug.value.__notes__[0]
    check_kept(tmp_path / "bug")


def test_what_would_fail_at_the_end_is_found_before_the_first_frame(tmp_path: Path):
    Image.new("RGB", (16386, 16)).save(tmp_path / "wide.png")
    for name in ("sizes", "cut"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(picture(i)).save(tmp_path / name / f"{i}.jpg")
    Image.fromarray(picture(0, 32, 48)).save(tmp_path / "sizes" / "2.jpg")
    cut = tmp_path / "cut" / "2.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    messages = {
        "wide.png": "frames of 16386×16 cannot be written as a video, .* at most 16384 pixels; scale them down",
        "sizes": r"2\.jpg is 48×32 and the frames before it 64×48",
        "cut": r"cannot read the image .*2\.jpg",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            run_demo(open_media(tmp_path / name), SENTENCES, fail(AssertionError), tmp_path / "out", show=False)
    assert not (tmp_path / "out").exists()


def test_sigterm_ends_as_ctrl_c_does(tmp_path: Path):
    """In this process: the signal comes while a mask is written; a second one, while all is removed, is passed over."""
    video, removed = write_film(tmp_path / "a.mp4"), []

    def stop(progress: Progress) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as ended, orderly_end():
        try:
            run(video, tmp_path / "out", report=stop)
        finally:
            signal.raise_signal(signal.SIGINT)
            removed.append(True)
    assert ended.value.code == 143 and removed
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_nohup_ignores_stays_ignored():
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with orderly_end():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, earlier)


@pytest.mark.parametrize("change", ["another", "shorter", "longer"])
def test_a_video_that_changes_while_it_is_read(tmp_path: Path, change: str):
    """Between the two passes the file gets other times, fewer frames or more."""
    video = write_film(tmp_path / "a.mp4")
    other = {"another": {"times": [900 * i for i in range(6)]}, "shorter": {"frames": 4}, "longer": {"frames": 9}}

    def replace(progress: Progress) -> None:
        if (progress.stage, progress.done) == ("segment", 6):
            write_film(tmp_path / "new.mp4", **other[change]).replace(video)

    with pytest.raises(RunError, match=r"complete in .*: .*a\.mp4 was changed while it was read; start again"):
        run(video, tmp_path / "out", report=replace)
    check_kept(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "out"]


def test_a_cut_video_gives_what_can_be_read_and_says_so(tmp_path: Path):
    video = write_film(tmp_path / "a.mkv", frames=60)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    media = open_media(video)
    result = run_demo(media, SENTENCES, segment, tmp_path / "out", show=False)
    assert 5 < len(result.times) < 60
    (note,) = media.notes
    assert "damaged or cut off" in note
    assert json.loads((tmp_path / "out" / "masks.json").read_text())["info"]["notes"] == [note]


def test_characters_that_no_font_has_are_noted(tmp_path: Path):
    media = open_media(write_film(tmp_path / "a.mp4"))
    run_demo(media, ["白い犬", "\ue000"], segment, tmp_path / "out", show=False)
    (note,) = json.loads((tmp_path / "out" / "masks.json").read_text())["info"]["notes"]
    assert media.notes == [note] and note.startswith("no font has \ue000")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path: Path):
    """Five times the frames, which would be 9.6 MB more of masks and probabilities in memory if they were kept."""
    peaks = []
    for frames in (100, 500):
        video = write_film(tmp_path / f"{frames}.mp4", frames=frames, size=(60, 100))
        tracemalloc.start()
        run(video, tmp_path / f"out{frames}", sentences=SENTENCES)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2e6, peaks


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The dog, chasing the ball!", "the-dog-chasing-the-ball"),
        ("../../etc/passwd", "etc-passwd"),
        ("🐕", ""),
        ("हिन्दी", "हिन्दी"),
        ("a" * 99, "a" * 40),
    ],
)
def test_slugs(text: str, name: str):
    assert slug(text) == name


def test_a_folder_that_fails_is_not_made(tmp_path: Path):
    with pytest.raises(ValueError), new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("half")
        raise ValueError
    assert not (tmp_path / "deep" / "out").exists() and not list((tmp_path / "deep").iterdir())


# --- from the command line, with the bundled weights on a generated video


WEIGHTS = "toy/vdit.safetensors"


@pytest.fixture
def toy_video(toy_data: Path, tmp_path: Path) -> Path:
    """A generated video of moving shapes, as H.264."""
    media = open_media(sorted((toy_data / "valid" / "JPEGImages").iterdir())[0], fps=Fraction(6))
    with create_video(tmp_path / "toy vidéo.mp4", media.rate) as video:
        for frame in media.frames():
            video.write(frame.image, frame.time, frame.duration)
    return tmp_path / "toy vidéo.mp4"


@pytest.mark.slow
def test_from_end_to_end(toy_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A score that no sentence reaches: the second sentence's masks are empty; the first one's run has none."""
    words = [toy_video, "a blue ring", "the thing", "--resume", WEIGHTS, "--device", "cpu"]
    done = run_command(demo.main, *words, "--out", tmp_path / "out", "--window", "4", "--overlap", "2", "--save_prob")
    assert done.returncode == 0, done.stderr
    frames = open_media(toy_video).count
    assert frames == 5
    content = json.loads((tmp_path / "out" / "masks.json").read_text(encoding="utf-8"))
    assert [category["name"] for category in content["categories"]] == ["a blue ring", "the thing"]
    assert len(content["annotations"]) == 2 * frames and any(entry["area"] for entry in content["annotations"])
    assert len(list((tmp_path / "out" / "masks" / "2_the-thing").iterdir())) == frames
    assert len(list((tmp_path / "out" / "probabilities" / "1_a-blue-ring").iterdir())) == frames
    assert len(list(open_media(tmp_path / "out" / "overlay.mp4").frames())) == frames
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    assert f"wrote {frames} frames with 2 sentences" in done.stdout

    assert "note:" not in done.stdout
    monkeypatch.setattr(windows, "LARGE_SIDE", 90)
    none = run_command(demo.main, *words, "--out", tmp_path / "none", "--score_threshold", "1")
    assert none.returncode == 0, none.stderr
    assert f"note: the model sees {str(toy_video)!r} at 96×64 pixels; --max_size limits the longer side" in none.stdout
    assert none.stdout.count("below the score threshold of 1: not found, its masks are empty") == 2
    content = json.loads((tmp_path / "none" / "masks.json").read_text(encoding="utf-8"))
    assert not any(entry["area"] for entry in content["annotations"])


@pytest.mark.slow
def test_sigterm_leaves_nothing(toy_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(windows.VideoSegmenter, "_finish", lambda *_: signal.raise_signal(signal.SIGTERM))
    done = run_command(demo.main, toy_video, "a blue ring", "--resume", WEIGHTS, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (143, "")
    assert [path.name for path in tmp_path.iterdir()] == [toy_video.name]


MISTAKES = {
    "zero bytes": (["{tmp}/zero.mp4", "a dog"], "zero.mp4 is empty (0 bytes)"),
    "text": (["{tmp}/text.mp4", "a dog"], "cannot read"),
    "cut off": (["{tmp}/cut.mp4", "a dog"], "cut.mp4 has no images: it has only sound, is damaged or cut off"),
    "no such file": (["{tmp}/none.mp4", "a dog"], "none.mp4 does not exist"),
    "no sentence": (["{tmp}/good.mp4"], "SENTENCE"),
    "no quotes": (["{tmp}/good.mp4", "The", "dog"], "sentence 1 is only The; put each sentence in straight quotes"),
    "curly quotes": (["{tmp}/good.mp4", "“the", "dog”"], "sentence 1 is only “the; put"),
    "a dash for two hyphens": (["{tmp}/good.mp4", "a dog", "—resume", "x.pth"], "sentence 2 is —resume; begin flags"),
    "empty sentence": (["{tmp}/good.mp4", "a dog", "  "], "sentence 2 is empty"),
    "missing checkpoint": (["{tmp}/good.mp4", "a dog", "--resume", "{tmp}/no.pth"], "no.pth does not exist"),
    "mistyped flag": (["{tmp}/good.mp4", "a dog", "--treshold", "0.5"], "unknown flag --treshold; did you mean --thre"),
    "mistyped flag of the demo": (["{tmp}/good.mp4", "a dog", "--strid", "2"], "did you mean --stride?"),
    "a flag of training": (["{tmp}/good.mp4", "a dog", "--epochs", "2"], "unknown flag --epochs"),
    "wrong time": (["{tmp}/good.mp4", "a dog", "--start", "soon"], "--start must be a time in seconds"),
    "late start": (["{tmp}/good.mp4", "a dog", "--start", "1:00"], "no frame from 60 s on; it lasts"),
    "rate of nothing": (["{tmp}/good.mp4", "a dog", "--fps", "0.0004"], "--fps must be a number from 0.01 to 1000"),
    "rate of a video": (["{tmp}/good.mp4", "a dog", "--fps", "10"], "good.mp4 has its own times; use --stride"),
    "stride": (["{tmp}/good.mp4", "a dog", "--stride", "0"], "--stride must be a whole number of at least 1"),
    "overlap": (["{tmp}/good.mp4", "a dog", "--window", "4", "--overlap", "4"], "--overlap must be"),
    "taken folder": (["{tmp}/good.mp4", "a dog", "--out", "{tmp}"], "is not empty and holds no result of the demo"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_sentence_and_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """Before a checkpoint is opened or downloaded."""
    if kind != "missing checkpoint":
        monkeypatch.setattr(pretrained, "open_pretrained", fail(AssertionError))
    write_film(tmp_path / "good.mp4")
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello world\n" * 99)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:1200])
    words, sentence = MISTAKES[kind]
    defaults = ["--resume", WEIGHTS, "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = run_command(demo.main, *defaults, *(word.format(tmp=tmp_path) for word in words))
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()


def test_output_folders_that_are_links_or_contain_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    video = write_film(tmp_path / "a.mp4", frames=2)
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    run(video, tmp_path / "link")
    run(video, tmp_path / "other" / "x" / "..")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "out" / "masks.json").is_file()
    assert (tmp_path / "other" / "masks.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "disk", "link", "other"]
    monkeypatch.chdir(tmp_path / "disk")
    assert DemoOptions().folder(Path("..")) == Path("runs/demo") / tmp_path.name


def test_words_and_flags_in_any_order():
    video, sentences, options, given = read_command(
        ["--stride", "2", "a.mp4", " the dog  that ", "--resume", "x.pth", "b", "--save_prob", "--threshold", "0.4"]
    )
    assert (str(video), sentences) == ("a.mp4", ["the dog that", "b"])
    assert options.stride == 2 and options.save_prob and str(options.folder(video)) == "runs/demo/a"
    assert given == {"resume": "x.pth", "threshold": 0.4}


def test_options_of_a_file_and_of_the_command_line(root: Path):
    config = str(root / "configs" / "vdit_toy.yaml")
    _, _, _, given = read_command(["a.mp4", "b", "--config", config, "--eval_size", "32"])
    assert given["eval_size"] == 32 and given["hidden_dim"] == 96


def test_help_shows_what_matters(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        read_command(["--help"])
    text = capsys.readouterr().out
    assert all(
        f"--{name}" in text for name in ("out", "start", "save_prob", "threshold", "pretrained", "device", "seed")
    )
    assert "--epochs" not in text and "--set_cost_class" not in text and "VIDEO SENTENCE [SENTENCE ...]" in text


SENTENCES_WITH_HYPHENS = [
    (["a.mp4", "-the dog", "--the cat"], ["-the dog", "--the cat"]),
    (["a.mp4", "-house on a hill"], ["-house on a hill"]),  # not -h with a value
    (["a.mp4", "-5", "-2 dogs", "-", "-1.5e"], ["-5", "-2 dogs", "-", "-1.5e"]),
    (["a.mp4", "b", "--out", "x", "--", "-dog", "--out"], ["b", "-dog", "--out"]),
    (["--out", "x", "--", "a.mp4", "-dog", "--", "b"], ["-dog", "--", "b"]),
]


@pytest.mark.parametrize(("words", "sentences"), SENTENCES_WITH_HYPHENS)
def test_sentences_that_begin_with_a_hyphen(words: list[str], sentences: list[str]):
    video, read, _, _ = read_command(words)
    assert (str(video), read) == ("a.mp4", sentences)


@pytest.mark.parametrize("word", ["-dog", "--the", "-he"])
def test_a_sentence_that_looks_like_a_flag(word: str):
    expected = f"unknown flag {word}; see --help, or write every SENTENCE that begins with - at the end, after --"
    with pytest.raises(UserError) as error:
        read_command(["a.mp4", "b", word, "dog"])
    assert str(error.value) == expected
