"""The page in a browser, with the carried toy weights: upload, type, see a result; see what is wrong with a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import web_demo
from scripts.web_sessions import Workspace
from tests.media_tools import write_film
from util.video import open_media, open_video

pytest.importorskip("gradio", reason="the page needs Gradio: bash scripts/setup.sh --web")
webdriver = pytest.importorskip("selenium.webdriver", reason="the test drives the browser by selenium")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="Chromium or its driver is absent (chromium, chromium-driver)"),
]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000"),
)
PATIENCE = 120  # seconds that anything on the page may take


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The page's address, served by a thread, and its temporary folder."""
    import uvicorn

    from models.pretrained import open_pretrained
    from scripts.web_server import page_app

    before = dict(os.environ), tempfile.tempdir
    tempfile.tempdir = str(tmp_path_factory.mktemp("temporary"))
    options = web_demo.PageOptions(max_megabytes=1.0, max_sentences=3)
    try:
        with web_demo.listen(options.host, 0) as socket, Workspace(600) as workspace:
            pretrained = open_pretrained(str(web_demo.TOY), "--resume", {"device": "cpu", "score_threshold": 0.05})
            app = page_app(pretrained, workspace, options, is_toy=True)
            socket.listen()
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
            thread = threading.Thread(target=server.run, args=([socket],))
            thread.start()
            yield f"http://127.0.0.1:{socket.getsockname()[1]}/", workspace.folder
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
        assert not any(Path(tempfile.tempdir).iterdir())
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        tempfile.tempdir = before[1]


class Visit:
    """A visitor with a browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def find(self, where: str) -> list[Any]:
        return self.browser.find_elements("css selector", where)

    def text(self, where: str) -> str:
        from selenium.common.exceptions import StaleElementReferenceException

        with contextlib.suppress(StaleElementReferenceException):  # it is just being replaced
            return " ".join(element.text for element in self.find(where))
        return ""

    def until(self, where: str, text: str = "") -> str:
        """Wait for an element that says something."""
        end = time.monotonic() + PATIENCE
        while not self.find(where) or text not in self.text(where):
            assert time.monotonic() < end, f"no {text!r} in {where}, which is {self.text(where)!r}"
            time.sleep(0.1)
        return self.text(where)

    def upload(self, path: Path) -> None:
        self.until("#upload")
        self.find("#upload input[type=file]")[0].send_keys(str(path))

    def click(self, where: str) -> None:
        self.until(where)
        self.find(where)[0].click()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def visit(address: tuple[str, Path], browser: Any) -> Visit:
    """A new visitor."""
    browser.get(address[0])
    visit = Visit(browser)
    visit.until("#go")
    return visit


@pytest.fixture
def toy_film(toy_data: Path, tmp_path: Path) -> Path:
    media = open_media(sorted((toy_data / "valid" / "JPEGImages").iterdir())[0])
    with open_video(tmp_path / "toy film.mp4", media.rate) as video:
        for frame in media.frames():
            video.write(frame.image, frame.time, frame.duration)
    return tmp_path / "toy film.mp4"


def test_upload_type_and_see(visit: Visit, address: tuple[str, Path], toy_film: Path, downloads: Path):
    visit.upload(toy_film)
    assert "96 × 64" in visit.until("#video", "toy film.mp4")
    visit.find("#sentences textarea")[0].send_keys("the red thing\nthe <b>big</b> one")
    visit.click("#go")
    scores = visit.until("#scores", "the <b>big</b> one")
    assert "the red thing" in scores and scores.count("score") == 2
    assert "5 frames" in visit.until("#status", "per second")
    assert visit.find("#overlay video")[0].get_attribute("src").startswith(address[0])
    script = "const video = document.querySelector('#overlay video'); return [video.videoWidth, video.videoHeight]"
    end = time.monotonic() + PATIENCE
    while visit.browser.execute_script(script) != [96, 64]:
        assert time.monotonic() < end, "the browser does not play the overlay"
        time.sleep(0.1)

    visit.find("button[role=tab]")[1].click()
    number = visit.find("#frame input[type=number]")[0]
    number.clear()
    number.send_keys("4\t")
    visit.until("#shown img[alt='frame 4']")

    visit.click("#masks")
    end = time.monotonic() + PATIENCE
    while not list(downloads.glob("*-masks.zip")):
        assert time.monotonic() < end, "no download"
        time.sleep(0.1)

    hosts = visit.browser.execute_script(
        "return [...new Set(performance.getEntriesByType('resource').map(entry => new URL(entry.name).host))]"
    )
    assert [f"http://{host}/" for host in hosts if host] == [address[0]], "nothing is fetched from elsewhere"


def test_nothing_found_is_said_plainly(visit: Visit):
    visit.click("#example")
    visit.until("#video", "moving shapes.mp4")
    visit.find("#options button, .label-wrap")[0].click()
    visit.until("#least input[type=number]")
    least, end = visit.find("#least input[type=number]")[0], visit.find("#end textarea, #end input")[0]
    least.clear()
    least.send_keys("1\t")
    end.send_keys("0.3")
    visit.click("#go")
    assert "below the threshold of 1, so all its masks are empty" in visit.until("#scores", "Not found")


def test_no_video_is_told_on_the_page(visit: Visit, address: tuple[str, Path], tmp_path: Path):
    visit.click("#go")
    visit.until("#status [role=alert]", "There is no video yet; drop one first.")
    (tmp_path / "notes.mp4").write_text("hello world\n" * 200)
    visit.upload(tmp_path / "notes.mp4")
    visit.until("#status [role=alert]", "Cannot read notes.mp4 as a video: it is no video, damaged or cut off.")
    (tmp_path / "large.mp4").write_bytes(bytes(2_000_000))
    visit.upload(tmp_path / "large.mp4")
    visit.until("body", "exceed the maximum allowed size")
    visit.upload(write_film(tmp_path / "good.mp4"))
    visit.until("#video", "good.mp4")
    assert visit.text("#status") == "", "the message goes with the next video"
    visit.find("#sentences textarea")[0].send_keys("a\nb\nc\nd")
    visit.click("#go")
    visit.until("#status [role=alert]", "takes 3; leave some out")
    visit.browser.get("about:blank")
    end = time.monotonic() + PATIENCE
    while list(address[1].rglob("good.mp4")):
        assert time.monotonic() < end, "files stay behind when the visitor has gone"
        time.sleep(0.1)
