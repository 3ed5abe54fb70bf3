"""The web page over HTTP, as a browser uses it, with a stub in place of the model; and its command line."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import demo
from datasets.export import FORMATS
from demo import DemoResult, Progress
from scripts import web_demo
from scripts.web_demo import PageOptions, check_length, open_upload, read_sentences
from tests.commands import run_command
from tests.media_tools import colour_number, write_film
from tests.page_tools import PAGE, Visitor, find_values, serve, stub, until
from tests.test_demo import FOLDERS, SENTENCES
from util.drawing import SHADE
from util.errors import UserError
from util.video import Excerpt, open_media

pytestmark = PAGE


@pytest.fixture
def address(temporary: Path) -> Iterator[str]:
    """A page whose folder is empty afterwards."""
    with serve(max_sentences=3, max_megabytes=1.0) as address:
        yield address
    assert not any(temporary.iterdir())


def test_upload_find_look_download(address: str, tmp_path: Path):
    visitor = Visitor(address)
    times = [0, 900, 9000, 18000, 200000, 300000]
    file = visitor.upload(write_film(tmp_path / "my film.mp4", times=times))
    preview = visitor.result("inspect", file)["data"][0]
    assert preview["value"] and preview["label"].startswith("64 × 48 · ")
    found = visitor.find(file, score_threshold=0.5)
    assert found["status"].startswith("6 frames, ") and found["results"]["visible"] and found["frame"]["maximum"] == 6
    lost = "not found: below the threshold of 0.5, so all its masks are empty"
    assert found["scores"]["data"] == [[1, SENTENCES[0], "0.90", "found"], [2, SENTENCES[1], "0.20", lost]]
    assert len(found["plot"]["value"]["data"]) == 6 * 2

    files = {download["orig_name"]: download for download in found["downloads"]}
    assert set(files) == {"masks.zip", "overlay.mp4", "contact_sheet.png"}
    (tmp_path / "masks.zip").write_bytes(visitor.get(files["masks.zip"]))
    with zipfile.ZipFile(tmp_path / "masks.zip") as archive:
        assert archive.testzip() is None
        masks = {f"masks/{folder}/{i:05d}.png" for folder in FOLDERS for i in range(6)}
        assert set(archive.namelist()) == masks | {"masks.json", "contact_sheet.png"}
    (tmp_path / "overlay.mp4").write_bytes(visitor.get(found["overlay"]))
    assert open_media(tmp_path / "overlay.mp4").size == (48, 64)

    for number in range(1, 7):
        shown = visitor.result("look", number, None)["data"][0]
        assert shown["label"] == f"Frame {number} · score 0.90, 0.20"
        with av.open(address + shown["value"]["url"].removeprefix(address)) as picture:
            image = next(picture.decode(video=0)).to_ndarray(format="rgb24")
        inside = image[36:42, 20:28].astype(float).mean((0, 1))  # of the left half, which is tinted
        bare = np.clip((inside - 0.18 * np.array([255, 45, 150])) / 0.82, 0, 255)
        assert colour_number(np.full((2, 2, 3), bare)) == number - 1


def test_one_frame_is_previewed(temporary: Path, tmp_path: Path):
    """The first one, or the first one from a time on; nothing but its picture is left."""
    counts = []

    def counting(media: Any, *args: Any, **options: Any) -> DemoResult:
        counts.append(media.count)
        return stub(media, *args, **options)

    with serve(counting) as address:
        visitor = Visitor(address)
        file = visitor.upload(write_film(tmp_path / "a.mp4"))
        for at, number in (("", 0), ("0.25", 3)):
            picture, tabs, _, status = visitor.result("run_preview", file, "a\nb", at, 1, 0.5, "")["data"]
            assert picture["label"] == f"Frame at {number / 10:.2f} s · score 0.90, 0.20"
            assert tabs["selected"] == "preview"
            lost = "below the score threshold of 0.5: not found, its masks are empty"
            assert status == f"1 “a”: score 0.90, its masks are empty\n2 “b”: score 0.20, {lost}"  # the threshold is 1
            with av.open(address + picture["value"]["url"].removeprefix(address)) as shown:
                image = next(shown.decode(video=0)).to_ndarray(format="rgb24")
            assert colour_number(image / SHADE) == number
        named = visitor.upload((tmp_path / "a.mp4").rename(tmp_path / "result"))
        assert visitor.result("run_preview", named, "a\nb", "", 0.5, 0, "")["data"], "a name that the page uses itself"
        assert counts == [1, 1, 1] and not list(temporary.rglob("*.png"))
        for at, sentence in (("9", "a.mp4 has no frame"), ("soon", "Time of the frame must be a time")):
            assert sentence in visitor.result("run_preview", file, "a\nb", at, 0.5, 0, "")["error"]
        assert "there is no video" in visitor.result("run_preview", None, "a", "", 0.5, 0, "")["error"]


def test_thresholds_are_changed_without_segmenting_again(temporary: Path, tmp_path: Path):
    runs = []

    def counting(*args: Any, **options: Any) -> DemoResult:
        runs.append(args)
        return stub(*args, **options)

    with serve(counting) as address:
        visitor = Visitor(address)
        assert "there is no result" in visitor.apply(0.5)["error"]
        first = visitor.find(visitor.upload(write_film(tmp_path / "a.mp4", sound="aac")))
        before = visitor.masks(first)
        (half, other) = (f"masks/{folder}/00003.png" for folder in FOLDERS)
        assert before[half][:, :32].all() and not before[half][:, 32:].any()

        low = visitor.apply(0.2, frame=4)
        after = visitor.masks(low)
        assert after.keys() == before.keys() and all(mask.all() for mask in after.values())
        assert low["picture"]["label"].startswith("Frame 4") and low["frame"]["value"] == 4
        assert low["overlay"]["path"] != first["overlay"]["path"], "the browser does not show what it has loaded before"
        assert not Path(first["overlay"]["path"]).exists() and visitor.get(low["overlay"])
        with av.open(low["overlay"]["path"]) as movie:
            assert movie.streams.audio

        lost = visitor.apply(0.5, 0.5)
        assert [row[3][:9] for row in lost["scores"]["data"]] == ["found", "not found"]
        assert not visitor.masks(lost)[other].any() and visitor.masks(lost)[half].any()
        assert {row[3] for row in visitor.apply(0.9)["scores"]["data"]} == {"all its masks are empty"}
        again = visitor.masks(visitor.apply(0.5))
        assert all(np.array_equal(again[name], before[name]) for name in before)
        assert len(runs) == 1 and "there is no result" in Visitor(address).apply(0.5)["error"]


def test_colours_of_objects(address: str, tmp_path: Path):
    visitor = Visitor(address)
    file = visitor.upload(write_film(tmp_path / "a.mp4"))
    preview = visitor.result("run_preview", file, "a\nb", "", 0.5, 0, "lime, blue")["data"][0]
    shown = visitor.find(file, text="a\nb", colours="lime, blue")["picture"]
    again = visitor.apply(0.5, colours="blue #00ff00")["picture"]
    for picture, (left, right) in ((preview, (1, 2)), (shown, (1, 2)), (again, (2, 1))):
        with av.open(address + picture["value"]["url"].removeprefix(address)) as opened:
            image = next(opened.decode(video=0)).to_ndarray(format="rgb24").astype(int)
        assert (image[40, 10, left], image[40, 60, right]) > (60, 60), "the tint inside of the outlines"
        assert image[40, 10, 3 - left] < 60 and image[40, 60, 3 - right] < 60
    for colours, sentence in (("red", "Colours has 1 for 2 sentences"), ("red blu", "did you mean &#x27;blue&#x27;")):
        assert sentence in visitor.apply(0.5, colours=colours)["error"]
        assert sentence in visitor.find(file, text="a\nb", colours=colours)["error"]
    assert "Colours has 400 characters" in visitor.apply(0.5, colours="r" * 400)["error"]


def test_downloads_in_further_formats(address: str, tmp_path: Path):
    """The same files as those of ``demo.py --export``; they follow the threshold."""

    def export(*names: str) -> dict[str, bytes]:
        status, downloads = visitor.result("export", names, None)["data"]
        assert status == "The downloads are complete."
        return {download["orig_name"]: visitor.get(download) for download in downloads}

    visitor = Visitor(address)
    assert "there is no result" in visitor.result("export", ["coco"], None)["error"]
    film = write_film(tmp_path / "a.mp4")
    visitor.find(visitor.upload(film))
    names = [name for name in FORMATS if name != "png"]
    files = export(*names)
    archives = {f"{name}.zip" for name in ("rgba", "alpha", "maskvideo", "index")}
    usual = {"masks.zip", "overlay.mp4", "contact_sheet.png"}
    assert set(files) == usual | archives | {"coco.json", "ytvis.json", "mots.txt"}
    stub(open_media(film), SENTENCES, tmp_path / "out", formats=names)
    for name in ("coco.json", "ytvis.json", "mots.txt"):
        assert files[name] == (tmp_path / "out" / name).read_bytes()
    for name in archives:
        with zipfile.ZipFile(io.BytesIO(files[name])) as archive:
            folder = tmp_path / "out" / name.removesuffix(".zip")
            assert set(archive.namelist()) == {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
            for member in archive.namelist():
                assert archive.read(member) == (folder / member).read_bytes(), member

    low = visitor.apply(0.2)
    assert {download["orig_name"] for download in low["downloads"]} == usual, "those of the earlier threshold are gone"
    assert export("coco")["coco.json"] != files["coco.json"] and set(export("mots")) == usual | {
        "coco.json",
        "mots.txt",
    }


def test_a_format_that_fails(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    visitor = Visitor(address)
    visitor.find(visitor.upload(write_film(tmp_path / "a.mp4")))
    monkeypatch.setattr(web_demo, "export_again", lambda result, names, *args, **options: {"coco": "there is no space"})
    status, downloads = visitor.result("export", ["coco"], None)["data"]
    assert status == "coco could not be made: there is no space" and len(downloads) == 3
    assert "no format is chosen" in visitor.result("export", [], None)["error"]


def test_a_failure_keeps_the_earlier_result(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    visitor = Visitor(address)
    found = visitor.find(visitor.upload(write_film(tmp_path / "a.mp4")))
    with monkeypatch.context() as patch:
        patch.setattr(web_demo, "is_full", lambda *args: True)
        assert visitor.apply(0.2)["error"] == web_demo.FULL
    assert visitor.get(found["overlay"]) and visitor.result("look", 2, None)["data"]


def test_an_overlay_that_fails_leaves_the_masks(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any) -> None:
        raise UserError("there is no space")

    monkeypatch.setattr(demo, "object_sheet", fail)
    visitor = Visitor(address)
    found = visitor.find(visitor.upload(write_film(tmp_path / "a.mp4")))
    assert found["status"].startswith("the masks are complete in result") and "there is no space" in found["status"]
    assert found["overlay"] is None and len(visitor.masks(found)) == 12


def test_pixels_that_are_not_square(address: str, tmp_path: Path):
    """Frames of 64×48 with pixels of 4:3 are shown as 64×36."""
    visitor = Visitor(address)
    file = visitor.upload(write_film(tmp_path / "a.mp4", aspect=Fraction(4, 3)))
    preview = visitor.result("run_preview", file, "a\nb", "", 0.5, 0, "")["data"][0]
    for picture in (visitor.result("inspect", file)["data"][0], preview, visitor.find(file)["picture"]):
        assert Image.open(io.BytesIO(visitor.get(picture["value"]))).size == (64, 36)


def test_an_excerpt(address: str, tmp_path: Path):
    visitor = Visitor(address)
    file = visitor.upload(write_film(tmp_path / "a.mp4", frames=20))
    assert visitor.find(file, start="0.5", end="0:01.3", stride=2)["status"].startswith("4 frames, ")


def test_visitors_do_not_see_each_others_results(address: str, tmp_path: Path):
    """They upload the same file; one result each, and a new one replaces the visitor's own earlier one only."""
    film = write_film(tmp_path / "a.mp4")
    first, second = Visitor(address), Visitor(address)
    one, two = first.find(first.upload(film)), second.find(second.upload(film))
    assert one["overlay"]["path"] != two["overlay"]["path"]
    again = second.find(second.upload(film), text="another\nand one more")
    assert again["scores"]["data"][0][1] == "another"
    assert not Path(two["overlay"]["path"]).exists(), "one result at a time"
    assert first.get(one["overlay"]) and second.get(again["overlay"])
    assert "removed" in Visitor(address).result("look", 1, None)["error"], "a third visitor has no result"


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no sentence": ({"text": " \n"}, "there is no sentence yet"),
    "time": ({"start": "soon"}, "From must be a time in seconds"),
    "backwards": ({"start": "0.5", "end": "0.2"}, "To must be later than From"),
    "late": ({"start": "9"}, "a.mp4 has no frame"),
    "many": ({"text": "a\nb\nc\nd"}, "there are 4 sentences, but this page takes at most 3; remove some"),
}


def test_mistakes_are_one_sentence_without_a_path(address: str, temporary: Path, tmp_path: Path):
    visitor = Visitor(address)
    assert "there is no video" in visitor.find(None)["error"]
    file = visitor.upload(write_film(tmp_path / "a.mp4"))
    for options, sentence in MISTAKES.values():
        error = visitor.find(file, **options)["error"]
        assert sentence in error and str(temporary) not in error and "\n" not in error
    assert {path.suffix for path in temporary.rglob("*") if path.stat().st_size} <= {"", ".mp4", ".webp"}


@pytest.mark.parametrize("content", [b"", b"hello world\n" * 99, bytes(range(256)) * 40])
def test_an_upload_that_is_no_video(address: str, temporary: Path, tmp_path: Path, content: bytes):
    (tmp_path / "notes.mp4").write_bytes(content)
    visitor = Visitor(address)
    file = visitor.upload(tmp_path / "notes.mp4")
    for error in (visitor.result("inspect", file)["error"], visitor.find(file)["error"]):
        assert "notes.mp4" in error and str(temporary) not in error and file["path"].split("/")[-2] not in error


def test_an_upload_that_is_too_large(address: str, tmp_path: Path):
    import httpx

    (tmp_path / "large.mp4").write_bytes(bytes(2_000_000))
    with pytest.raises(httpx.HTTPStatusError, match="413"):
        Visitor(address).upload(tmp_path / "large.mp4")


def test_headers_are_not_believed(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file with more frames than its header says."""

    def open_lying(path: Path, excerpt: Excerpt) -> Any:
        media = open_media(path, excerpt)
        media.count = 1
        return media

    monkeypatch.setattr(web_demo, "open_media", open_lying)
    with serve(max_frames=4) as address:
        visitor = Visitor(address)
        assert "at least 5 frames" in visitor.find(visitor.upload(write_film(tmp_path / "a.mp4")))["error"]
        assert not list(temporary.rglob("*.png")), "nothing of the run is left"


class Slow:
    """A segmenter that, from the third frame on, waits until the test lets it go on or stops it."""

    def __init__(self) -> None:
        self.started, self.goes_on, self.stopped = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, media: Any, sentences: list[str], folder: Path, report: Any, **options: Any) -> DemoResult:
        def wait(progress: Any) -> None:
            try:
                while progress.done >= 3 and not self.goes_on.wait(0.01):
                    self.started.set()
                    report(progress)
                report(progress)
            except web_demo.StopRun:
                self.stopped.set()
                raise

        return stub(media, sentences, folder, report=wait, **options)


def test_progress(temporary: Path, tmp_path: Path):
    slow = Slow()
    with serve(slow) as address:
        visitor = Visitor(address)
        visitor.press("run", *find_values(visitor.upload(write_film(tmp_path / "a.mp4")), "a\nb"))
        messages = visitor.messages()
        news = next(m["progress_data"][0] for m in messages if m["msg"] == "progress")
        assert 1 <= news["index"] <= 3 and news["length"] == 6 and news["unit"] == "frames"
        assert news["desc"].startswith("Segmenting, ") and news["desc"].endswith(" frames/s")
        slow.goes_on.set()
        assert list(messages)[-1]["success"]


@pytest.mark.parametrize("how", ["stop_run", "leave"])
def test_a_run_ends_with_its_visitor(temporary: Path, tmp_path: Path, how: str):
    slow = Slow()
    with serve(slow) as address:
        visitor = Visitor(address)
        visitor.press("run", *find_values(visitor.upload(write_film(tmp_path / "a.mp4", frames=60)), "a\nb"))
        assert slow.started.wait(60)
        if how == "stop_run":
            visitor.press(how)
            outputs = [m["output"] for m in visitor.messages() if m["msg"] == "process_completed"]
            assert {web_demo.STOPPED} == {output.get("error", output.get("data", [None])[0]) for output in outputs}
        else:
            heartbeat = f"gradio_api/heartbeat/{visitor.session}"
            with visitor.http.stream("GET", heartbeat) as stream:
                next(stream.iter_lines())
        assert slow.stopped.wait(60)
        until(lambda: not list(temporary.rglob("*.png")))
        slow.goes_on.set()
        other = Visitor(address)
        assert "60 frames" in other.find(other.upload(tmp_path / "a.mp4"))["status"], "the page goes on"
    assert not any(temporary.iterdir())


def test_a_run_is_stopped_after_another_one(temporary: Path, tmp_path: Path):
    """A browser also cancels what it stops, so that the next run begins while the stopped one works on a frame."""
    begun, goes_on, ended, slow = threading.Event(), threading.Event(), threading.Event(), Slow()

    def busy(*args: Any, report: Callable[[Progress], None], **options: Any) -> Any:
        begun.set()
        assert goes_on.wait(60)
        try:
            report(Progress("segment", 1, 1, 1.0))
        finally:
            ended.set()

    segmenters = [busy, slow]
    with serve(lambda *args, **options: segmenters.pop(0)(*args, **options)) as address:
        visitor = Visitor(address)
        values = find_values(visitor.upload(write_film(tmp_path / "a.mp4")), "a\nb")
        body = {"session_hash": visitor.session, "fn_index": visitor.functions["run"]}
        body["event_id"] = visitor.press("run", *values)
        assert begun.wait(60)
        visitor.press("stop_run")
        visitor.http.post("gradio_api/cancel", json=body).raise_for_status()
        visitor.press("run", *values)
        assert slow.started.wait(60)
        goes_on.set()
        assert ended.wait(60)
        time.sleep(0.1)  # the first run ends
        visitor.press("stop_run")
        assert slow.stopped.wait(10)


@pytest.mark.parametrize("name", ["run_preview", "apply", "export"])
def test_everything_else_ends_with_its_visitor(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    started, stopped = threading.Event(), threading.Event()

    def endless(*args: Any, report: Callable[[Progress], None], **options: Any) -> Any:
        started.set()
        try:
            while True:
                report(Progress("draw", 1, 1, 1.0))
                time.sleep(0.01)
        except web_demo.StopRun:
            stopped.set()
            raise

    segmenters = [stub, endless]
    with serve(lambda *args, **options: segmenters.pop(0)(*args, **options)) as address:
        visitor = Visitor(address)
        file = visitor.upload(write_film(tmp_path / "a.mp4"))
        assert visitor.find(file)["overlay"]
        monkeypatch.setattr(web_demo, "rethreshold", endless)
        monkeypatch.setattr(web_demo, "export_again", endless)
        values = {
            "run_preview": [file, "a", "", 0.5, 0, ""],
            "apply": [0.2, 0, "", 1, None],
            "export": [["coco"], None],
        }
        visitor.press(name, *values[name])
        assert started.wait(60)
        visitor.press("stop_run")
        outputs = [m["output"] for m in visitor.messages() if m["msg"] == "process_completed"]
        assert {web_demo.STOPPED} == {output.get("error", output.get("data", [None])[0]) for output in outputs}
        assert stopped.wait(60)
        assert visitor.result("look", 1, None)["data"], "the earlier result stays"


def test_a_waiting_visitor_knows_the_place_and_can_cancel(temporary: Path, tmp_path: Path):
    slow = Slow()
    with serve(slow) as address:
        first, second = Visitor(address), Visitor(address)
        first.press("run", *find_values(first.upload(write_film(tmp_path / "a.mp4")), "a\nb"))
        assert slow.started.wait(60)
        event = second.press("run", *find_values(second.upload(tmp_path / "a.mp4"), "a\nb"))
        messages = second.messages()
        assert next(messages)["rank"] == 0
        body = {"session_hash": second.session, "fn_index": second.functions["run"], "event_id": event}
        second.http.post("gradio_api/cancel", json=body).raise_for_status()
        assert list(messages)[-1]["msg"] == "process_completed"
        slow.goes_on.set()
        assert list(first.messages())[-1]["success"]
        assert len(list(temporary.rglob("overlay.mp4"))) == 1, "the second one did not run"


def test_a_run_ends_with_the_program(temporary: Path, tmp_path: Path):
    slow = Slow()
    with serve(slow) as address:
        visitor = Visitor(address)
        visitor.press("run", *find_values(visitor.upload(write_film(tmp_path / "a.mp4")), "a\nb"))
        assert slow.started.wait(60)
    assert slow.stopped.wait(60)
    until(lambda: not any(temporary.iterdir()))


def test_files_are_removed_when_nobody_uses_them(temporary: Path, tmp_path: Path):
    with serve(keep_minutes=1 / 60) as address:
        visitor = Visitor(address)
        file = visitor.upload(write_film(tmp_path / "a.mp4"))
        visitor.press("run", *find_values(file, "a\nb"))
        list(visitor.messages())
        until(
            lambda: not [path for path in (*temporary.glob("*/cache/*/*"), *temporary.rglob("*.zip")) if path.is_file()]
        )
        until(lambda: not list(temporary.rglob("*.png")))
        assert "was removed" in visitor.result("look", 1, None)["error"]
        assert "was removed" in visitor.find(file)["error"]


def test_a_bug_does_not_leave_the_visitor_waiting(temporary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with serve(lambda *args, **options: {}["no such key"]) as address:
        visitor = Visitor(address)
        assert visitor.find(visitor.upload(write_film(tmp_path / "a.mp4")))["error"] == web_demo.UNKNOWN
    assert "KeyError" in capsys.readouterr().err


def test_sentences():
    assert read_sentences("  The dog,  running \n\n the ball\n", PageOptions()) == ["The dog, running", "the ball"]
    with pytest.raises(UserError, match="sentence 2 has 301 characters; shorten it to 300"):
        read_sentences("a\n" + "b" * 301, PageOptions())


def test_size_and_length_limits(tmp_path: Path):
    video = open_upload(write_film(tmp_path / "a.mp4", frames=60), PageOptions())  # 6 s
    with pytest.raises(UserError, match=r"a\.mp4 is 64×48, but this page takes at most 60 pixels per side; upload"):
        open_upload(video.path, PageOptions(max_side=60))
    assert video.count == 60
    read = r"lasts at least 6\.0 s and has at least 60 frames, but this page takes at most"
    with pytest.raises(UserError, match=f"{read} 5 s and 900 frames; choose a shorter part"):
        check_length(60, video.rate, PageOptions(max_seconds=5))
    with pytest.raises(UserError, match=f"{read} 60 s and 50 frames; choose a shorter part"):
        check_length(60, video.rate, PageOptions(max_frames=50))
    part = open_upload(video.path, PageOptions(), Excerpt(Fraction(2), stride=2))
    assert part.count is not None
    check_length(part.count, part.rate, PageOptions(max_seconds=4, max_frames=20))


def test_it_serves_this_machine_only():
    assert PageOptions().host == "127.0.0.1"
    assert demo.read_options(PageOptions, ["--trusted_hosts", ""], "")[0].trusted_hosts == "", "as outside of a Space"
    port = web_demo.free_port("127.0.0.1", 0)
    assert web_demo.free_port("127.0.0.1", port) == port > 0
    with pytest.raises(UserError, match="cannot serve no such host"):
        web_demo.free_port("no such host", 1)


def test_a_port_that_is_in_use(address: str):
    port = address.rstrip("/").rpartition(":")[2]
    done = run_command(partial(web_demo.main, ["--port", port]))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"cannot serve 127.0.0.1:{port} (" in done.stderr and "choose another --port or --host" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--resume", "no.pth"], "no.pth does not exist"),
        (["--hots", "0.0.0.0"], "unknown flag --hots; did you mean --host?"),
        (["--port", "70000"], "--port must be a whole number from 0 to 65535"),
        (["--max_frames", "0"], "--max_frames must be a whole number of at least 1"),
        (["--window", "8", "--overlap", "8"], "--overlap must be at least 1 and less than --window, not 8 of 8"),
    ],
)
def test_wrong_flags_are_one_sentence(temporary: Path, words: list[str], sentence: str):
    done = run_command(web_demo.main, "--port", 0, *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and sentence in done.stderr
    assert not list(temporary.glob(f"{web_demo.PREFIX}*"))


def test_without_gradio(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web_demo, "find_spec", lambda name: None)
    done = run_command(web_demo.main)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the page needs Gradio, which is not installed; run: bash scripts/setup.sh --web\n"


@pytest.mark.slow
def test_from_start_to_sigterm(temporary: Path):
    port, answers = web_demo.free_port(web_demo.LOOPBACK, 0), []

    def visit() -> None:
        until(lambda: "serving" in getattr(sys.stdout, "getvalue", str)())
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
            answers.append((page.status, page.read().decode()))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=visit, daemon=True).start()
    done = run_command(partial(web_demo.main, ["--port", str(port), "--device", "cpu"]))
    assert done.returncode == 143 and f"serving http://127.0.0.1:{port}/ (Ctrl-C" in done.stdout, done.stderr
    ((status, page),) = answers
    assert status == 200 and "Objects by sentences" in page and '"analytics_enabled":false' in page.replace(" ", "")
    assert not any(temporary.iterdir())
