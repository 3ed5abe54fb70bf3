"""The page without its page: what it takes, folders that go, runs that end, words that are escaped. Needs no Gradio."""

from __future__ import annotations

import importlib.util
import os
import time
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import DemoResult, Progress, SentenceRecord
from scripts import web_demo
from scripts.web_cards import error_card, picture, progress_card, score_cards, video_card
from scripts.web_server import POLICY, from_here_alone
from scripts.web_sessions import ORPHAN, PREFIX, Job, StopRun, Workspace
from scripts.web_video import (
    Limits,
    open_upload,
    overlay_frame,
    read_sentences,
    require_few,
    require_short,
    without_folder,
    zip_masks,
)
from tests.commands import run_command
from tests.media_tools import colour_number, write_film
from tests.test_demo import FOLDERS, run
from util.errors import RunError, UserError
from util.video import Excerpt


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def upload(folder: Path, name: str = "a.mp4", **options) -> Path:
    """A film where Gradio puts it: in a folder of its own."""
    return write_film(folder / "f00d" / name, **options)


def test_a_visitors_files_go_when_the_visitor_does(temporary: Path):
    with Workspace(60) as workspace:
        session = workspace.session("tab 1")
        kept = session.take(upload(workspace.folder))
        assert kept.is_file() and kept.name == "a.mp4" and session.video == kept
        assert [path.name for path in workspace.folder.iterdir()] == ["sessions"], "nothing is left of the upload"
        second = session.take(upload(workspace.folder, "b.mp4"))
        assert second.is_file() and not kept.exists(), "a later video replaces the earlier one"
        (session.new_result() / "masks").mkdir(parents=True)
        session.forget()
        assert not any(session.folder.iterdir()) and session.video is None
        other = workspace.session("tab 2")
        workspace.leave("tab 1")
        assert not session.folder.exists() and other.folder.is_dir()
        workspace.leave("nobody")
    assert not any(temporary.iterdir())


def test_what_nobody_uses_goes(temporary: Path, monkeypatch: pytest.MonkeyPatch):
    with Workspace(60) as workspace:
        idle, busy = workspace.session("idle"), workspace.session("busy")
        idle.used -= 61
        left, fresh = upload(workspace.folder), workspace.folder / "fresh"
        fresh.touch()
        os.utime(left.parent, (0, time.time() - ORPHAN - 1))
        workspace.sweep()
        assert not idle.folder.exists() and busy.folder.is_dir()
        assert not left.exists() and fresh.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, UserError("x"), OSError])
def test_the_temporary_folder_goes_after_errors(temporary: Path, error):
    with pytest.raises(BaseException), Workspace(60) as workspace:  # noqa: B017 - any of them
        workspace.session("tab").take(upload(workspace.folder))
        assert [path.name.startswith(PREFIX) for path in temporary.iterdir()] == [True]
        raise error
    assert not any(temporary.iterdir())


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it has not come true"
        time.sleep(0.01)


def working(folder: Path, seen: list[int], error: Exception | None = None) -> Callable:
    """Work that reports frames until it is told to end, or raises an error after three."""

    def work(report: Callable[[Progress], None]) -> DemoResult:
        folder.mkdir(parents=True)
        for i in range(1, 2000):
            if error is not None and i == 3:
                raise error
            report(Progress("segment", i, 2000, 10.0))
            seen.append(i)
            time.sleep(0.005)
        raise AssertionError("nobody has ended it")

    return work


def test_a_run_that_is_stopped(tmp_path: Path):
    seen: list[int] = []
    job = Job(working(tmp_path / "out", seen))
    updates = job.updates()
    first = next(updates)
    assert first.stage == "segment" and first.total == 2000
    job.stop()
    list(updates)
    with pytest.raises(StopRun):
        job.result()


@pytest.mark.parametrize("error", [UserError("no video"), RunError("not finite"), KeyError("a bug")])
def test_a_run_that_fails_says_why(tmp_path: Path, error: Exception):
    job = Job(working(tmp_path / "out", [], error))
    list(job.updates())
    with pytest.raises(type(error)):
        job.result()


def test_a_run_ends_with_its_visitor_and_with_the_program(temporary: Path):
    with Workspace(60) as workspace:
        for name in ("leaves", "stays"):
            session = workspace.session(name)
            session.job = Job(working(session.folder / "result", []))
            next(session.job.updates())
        gone = workspace.session("leaves")
        job = workspace.leave("leaves")
        assert job is not None
        with pytest.raises(StopRun):
            job.future.result(timeout=5)
        until(lambda: not gone.folder.exists())
        last = workspace.session("stays").job
    assert last is not None and last.future.done()
    assert not any(temporary.iterdir())


def test_sentences():
    assert read_sentences("  The dog,  running \n\n the ball\n", Limits()) == ["The dog, running", "the ball"]
    for text, message in (
        (" \n ", "there is no sentence yet"),
        ("a\nb\nc", r"these are 3 sentences, and this page takes 2"),
        ("a\n" + "b" * 301, "sentence 2 has 301 letters; say it in 300"),
    ):
        with pytest.raises(UserError, match=message):
            read_sentences(text, Limits(sentences=2))


def test_size_and_length_limits(tmp_path: Path):
    video = write_film(tmp_path / "a.mp4", frames=60)  # 6 s
    require_short(open_upload(video, Limits()), Limits())
    with pytest.raises(UserError, match=r"^a\.mp4 has 0\.0 MB, and this page takes 0\.001 MB"):
        open_upload(video, Limits(megabytes=0.001))
    with pytest.raises(UserError, match=r"^a\.mp4 is 64×48, and this page takes 60 pixels a side"):
        open_upload(video, Limits(side=60))
    with pytest.raises(UserError, match=r"takes 6 s of the video, and the page takes 5 s at most; choose a part"):
        require_short(open_upload(video, Limits()), Limits(seconds=5))
    require_short(open_upload(video, Limits(), Excerpt(Fraction(2))), Limits(seconds=5))
    with pytest.raises(UserError, match=r"these are 60 frames or more, and this page takes 50"):
        require_short(open_upload(video, Limits()), Limits(frames=50))
    require_short(open_upload(video, Limits(), Excerpt(stride=2)), Limits(frames=50))
    require_few(50, Limits(frames=50))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    require_short(open_upload(tmp_path / "a.png", Limits()), Limits(seconds=0.01))


@pytest.mark.parametrize("content", [b"", b"hello world\n" * 99, bytes(range(256)) * 40])
def test_what_is_no_video(tmp_path: Path, content: bytes):
    (tmp_path / "notes.mp4").write_bytes(content)
    with pytest.raises(UserError) as told:
        open_upload(tmp_path / "notes.mp4", Limits())
    assert "notes.mp4" in str(told.value) and str(tmp_path) not in str(told.value)


def test_messages_name_no_folder(tmp_path: Path):
    with pytest.raises(RunError, match=r"^a\.mp4 was changed"), without_folder(tmp_path / "a.mp4"):
        raise RunError(f"{tmp_path / 'a.mp4'} was changed")


def test_what_can_be_downloaded_and_looked_at(tmp_path: Path):
    result = run(write_film(tmp_path / "a.mp4", times=[0, 900, 9000, 18000, 200000, 300000]), tmp_path / "result-1")
    with zipfile.ZipFile(zip_masks(result)) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
    assert names == {f"masks/{folder}/{i:05d}.png" for folder in FOLDERS for i in range(6)} | {
        "masks.json",
        "contact_sheet.png",
    }
    assert result.scores.shape == (6, 2) and result.frames == len(result.times) == 6
    for i in range(6):
        frame = overlay_frame(result, i)
        assert frame.shape == (48, 64, 3)
        bare = frame[36:42, 20:28].astype(float).mean((0, 1))  # inside the left half: tinted, not much
        assert colour_number(np.full((2, 2, 3), np.clip((bare - 0.18 * np.array([255, 45, 150])) / 0.82, 0, 255))) == i


HOSTILE = '<script>alert(1)</script> & "x" ${1+1}'


def test_texts_are_escaped(tmp_path: Path):
    records = [SentenceRecord(1, HOSTILE, "1_x", 0.8), SentenceRecord(2, "b", "2_b", 0.123, found=False)]
    result = DemoResult(tmp_path, records, np.array([[0.8, 0.1], [0.9, 0.2]]), [Fraction(0), Fraction(1)], 1.0)
    media = open_upload(write_film(tmp_path / "a.mp4"), Limits())
    cards = [
        score_cards(result, 0.5, 1),
        error_card(HOSTILE),
        video_card(media, HOSTILE, np.zeros((2, 2, 3), np.uint8)),
        picture(np.zeros((2, 2, 3), np.uint8), HOSTILE),
    ]
    assert not any("<script" in card or 'alt="<' in card for card in cards)
    assert "64 × 48 · 0.6 s · 10 frames/s" in cards[2]
    assert cards[0].count("Not found") == 1
    assert "its best match scores 0.12, below the threshold of 0.5, so all its masks are empty" in cards[0]
    assert error_card("no video.").endswith(">No video.</div>") and ">a.mp4 is empty.<" in error_card("a.mp4 is empty")


def test_progress():
    half = progress_card(Progress("segment", 5, 10, 2.5))
    assert "5 of 10 frames · 2.5 frames/s" in half and "width:50.0%" in half
    assert "width:100.0%" in progress_card(Progress("draw", 12, 10, 1.0)), "headers are not always right"
    assert "3 frames" in progress_card(Progress("draw", 3, None, 1.0))


def test_it_listens_on_loopback_and_nowhere_else():
    assert web_demo.PageOptions().host == "127.0.0.1"
    with web_demo.listen(web_demo.PageOptions().host, 0) as server:
        host, port = server.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(UserError, match=rf"cannot serve 127\.0\.0\.1:{port} .*; choose another --port or --host"):
            server.listen()
            web_demo.listen("127.0.0.1", port)
    with web_demo.listen("0.0.0.0", 0) as server:
        assert server.getsockname()[0] == "0.0.0.0"
    with pytest.raises(UserError, match="cannot serve no such host"):
        web_demo.listen("no such host", 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--resume", "no.pth"], "no.pth does not exist"),
        (["--hots", "0.0.0.0"], "unknown flag --hots; did you mean --host?"),
        (["--port", "70000"], "--port must be a whole number of at least 0 and of at most 65535"),
        (["--max_frames", "0"], "--max_frames must be a whole number of at least 1"),
    ],
)
def test_mistakes_are_one_sentence(temporary: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str):
    monkeypatch.setattr(web_demo, "require_gradio", lambda: None)
    done = run_command(web_demo.main, "--port", 0, *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and sentence in done.stderr
    assert not any(temporary.iterdir())


def test_without_gradio(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(web_demo, "find_spec", lambda name: None)
    done = run_command(web_demo.main)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: the page needs Gradio, which is not installed; run: bash scripts/setup.sh --web\n")


def test_nothing_is_fetched_from_elsewhere():
    """The header of each answer, and the parts of Gradio that are closed."""
    import asyncio

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    def ask(path: str) -> list[dict]:
        sent: list[dict] = []

        async def send(message: dict) -> None:
            sent.append(message)

        asyncio.run(from_here_alone(app)({"type": "http", "path": path}, None, send))
        return sent

    assert ask("/")[0]["headers"] == [(b"a", b"b"), (b"content-security-policy", POLICY.encode())]
    assert "http" not in POLICY and "*" not in POLICY
    assert ask("/gradio_api/vibe-edit")[0]["status"] == ask("/gradio_api/proxy=http://x")[0]["status"] == 404
