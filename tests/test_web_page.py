"""The page's buttons, called as Gradio calls them, with a stub in place of the model; and the server as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from demo import run_demo
from scripts import web_demo
from scripts.web_sessions import Workspace
from scripts.web_video import Limits
from tests.commands import run_command
from tests.test_demo import segment
from tests.test_web_video import temporary, until, upload  # noqa: F401 - a fixture

pytest.importorskip("gradio", reason="the page needs Gradio: bash scripts/setup.sh --web")
VISITOR: Any = SimpleNamespace(session_hash="tab 1")
ASKED = {"start": "", "end": "", "stride": 1, "threshold": 0.5, "score_threshold": 0.0}


def stub(media, sentences, folder, **options):
    return run_demo(media, sentences, segment, folder, show=False, **options)


@pytest.fixture
def workspace(temporary: Path) -> Iterator[Workspace]:  # noqa: F811
    with Workspace(60) as workspace:
        yield workspace
    assert not any(temporary.iterdir())


def make_page(workspace: Workspace, **limits) -> Any:
    from scripts.web_page import Page

    return Page(workspace, stub, Limits(**limits), None)


def asked(page: Any, text: str = "the left half\nthe right half", **options) -> dict[str, Any]:
    """Press the button; all that has changed when it is done."""
    changes: dict[str, Any] = {}
    for change in page.run(text, request=VISITOR, **{**ASKED, **options}):
        changes |= change
    assert changes["stop"]["visible"] is False, "the page waits for nothing"
    return changes


def test_upload_find_look(workspace: Workspace):
    page = make_page(workspace)
    field, card, status = page.upload(str(upload(workspace.folder, "my film.mp4")), VISITOR)
    assert (field, status) == (None, "") and "my film.mp4" in card and "<img" in card
    changes = asked(page, score_threshold=0.5)
    assert "6 frames" in changes["status"] and changes["results"]["visible"] and changes["frame"]["maximum"] == 6
    assert Path(changes["overlay"]).is_file() and Path(changes["masks"]["value"]).is_file()
    assert changes["scores"].count("Not found") == 1 and "scores 0.20, below the threshold of 0.5" in changes["scores"]
    image, scores = page.look(4, 0.5, VISITOR)
    assert 'alt="frame 4"' in image and scores.count("<svg") == 2
    again = asked(page, text="another\nand one more")
    assert not Path(changes["overlay"]).exists() and Path(again["overlay"]).exists(), "one result at a time"
    page.leave(VISITOR)
    assert "was removed" in page.look(1, 0.5, VISITOR)[0]


def test_an_excerpt(workspace: Workspace):
    page = make_page(workspace)
    page.upload(str(upload(workspace.folder, frames=20)), VISITOR)
    assert "4 frames" in asked(page, start="0.5", end="0:01.3", stride=2)["status"]


MISTAKES = {
    "no video": ({}, "There is no video yet"),
    "no sentence": ({"text": " \n"}, "There is no sentence yet"),
    "time": ({"start": "soon"}, "From must be a time in seconds"),
    "backwards": ({"start": "0.5", "end": "0.2"}, "To must be later than From"),
    "late": ({"start": "9"}, "a.mp4 has no frame"),
    "long": ({"text": "a\nb\nc\nd"}, "these are 4 sentences, and this page takes 3"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes(workspace: Workspace, kind: str):
    page, (options, sentence) = make_page(workspace, sentences=3), MISTAKES[kind]
    if kind != "no video":
        page.upload(str(upload(workspace.folder)), VISITOR)
    status = asked(page, **options)["status"]
    assert 'role="alert"' in status and sentence.lower() in status.lower() and str(workspace.folder) not in status


@pytest.mark.parametrize("content", [b"", b"hello world\n" * 99])
def test_an_upload_that_is_no_video(workspace: Workspace, content: bytes):
    page = make_page(workspace)
    path = workspace.folder / "f00d" / "notes.mp4"
    path.parent.mkdir()
    path.write_bytes(content)
    _, card, status = page.upload(str(path), VISITOR)
    assert card == "" and 'role="alert"' in status and "notes.mp4" in status and str(workspace.folder) not in status
    assert not list(workspace.folder.rglob("notes.mp4"))
    assert "no video yet" in asked(page)["status"]


def test_headers_are_not_believed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    """More frames than the file tells: they are counted while it is read."""
    page = make_page(workspace, frames=4)
    page.upload(str(upload(workspace.folder)), VISITOR)
    monkeypatch.setattr("scripts.web_page.require_short", lambda media, limits: None)
    assert "5 frames or more, and this page takes 4" in asked(page)["status"]
    session = workspace.session("tab 1")
    assert [path.name for path in session.folder.iterdir()] == ["video"], "nothing of the run is left"


@pytest.mark.parametrize("how", ["stop", "leave"])
def test_a_run_that_is_broken_off(workspace: Workspace, how: str):
    page = make_page(workspace)
    page.upload(str(upload(workspace.folder, frames=60)), VISITOR)
    session = workspace.session("tab 1")
    seen: dict[str, Any] = {}

    def slow(media, sentences, folder, report, **options):
        def stop(progress) -> None:
            if progress.done == 3:
                getattr(page, how)(VISITOR)
            report(progress)

        return stub(media, sentences, folder, report=stop, **options)

    page.segment = slow
    for change in page.run("a\nb", request=VISITOR, **ASKED):
        seen |= change
    assert "Stopped; nothing of this run is kept" in seen["status"] and "overlay" not in seen
    sessions = session.folder.parent
    if how == "stop":
        assert [path.name for path in sessions.glob("*/*")] == ["video"]
    else:
        until(lambda: not any(sessions.iterdir()))


def test_a_bug_does_not_leave_the_visitor_waiting(workspace: Workspace, capsys: pytest.CaptureFixture[str]):
    page = make_page(workspace)
    page.upload(str(upload(workspace.folder)), VISITOR)
    page.segment = lambda *args, **options: {}["no such key"]
    assert "something went wrong that should not" in asked(page)["status"].lower()
    assert "KeyError" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_the_server_from_start_to_sigterm(temporary: Path):  # noqa: F811
    port, answers = free_port(), []

    def visit() -> None:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
                answers.append((page.status, page.headers["content-security-policy"], page.read().decode()))
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=visit, daemon=True).start()
    done = run_command(partial(web_demo.main, ["--port", str(port), "--device", "cpu"]))
    assert done.returncode == 143 and f"serving http://127.0.0.1:{port}" in done.stdout, done.stderr
    ((status, policy, page),) = answers
    assert status == 200 and policy.startswith("default-src 'self'") and "Objects by sentences" in page
    assert '"analytics_enabled":false' in page.replace(" ", "")
    assert not any(temporary.iterdir())
