"""The page in a browser, with the bundled toy weights: from the upload to every download; errors are shown."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.export import FORMATS
from scripts import web_demo
from tests.media_tools import write_film
from tests.page_tools import PAGE, temporary_folder
from util.video import create_video, open_media

webdriver = pytest.importorskip("selenium.webdriver", reason="the test drives the browser by selenium")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    *PAGE,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="Chromium or its driver is absent (chromium, chromium-driver)"),
]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000"),
)
PATIENCE = 120  # seconds that anything on the page may take


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page with the bundled toy weights."""
    from demo import segment_to_folder
    from models.pretrained import open_pretrained

    with temporary_folder(tmp_path_factory.mktemp("page") / "temporary"):
        port = web_demo.free_port(web_demo.LOOPBACK, 0)
        options = web_demo.PageOptions(port=port, max_megabytes=1.0, max_sentences=3)
        pretrained = open_pretrained(
            str(web_demo.TOY_CHECKPOINT), "--resume", {"device": "cpu", "score_threshold": 0.05}
        )
        with web_demo.serve(pretrained, partial(segment_to_folder, pretrained, show=False), options) as address:
            yield address


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

    def until_script(self, script: str) -> None:
        """Wait until a script returns true."""
        end = time.monotonic() + PATIENCE
        while not self.browser.execute_script(script):
            assert time.monotonic() < end, script
            time.sleep(0.1)

    def click(self, where: str) -> None:
        self.until(where)
        self.find(where)[0].click()

    def type(self, where: str, text: str) -> None:
        """Replace the text of a field."""
        self.until(where)
        field = self.find(where)[0]
        field.clear()
        field.send_keys(text)

    def download(self, name: str, folder: Path) -> Path:
        """Download a file from the page's list; return its path in the browser's folder for downloads."""
        known = set(folder.iterdir())
        self.click(f"#downloads a[download='{name}']")
        end = time.monotonic() + PATIENCE
        while not (new := [path for path in set(folder.iterdir()) - known if path.suffix == Path(name).suffix]):
            assert time.monotonic() < end, f"no download of {name}"
            time.sleep(0.1)
        return new[0]


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
def visit(address: str, browser: Any) -> Visit:
    """A new visitor."""
    browser.get(address)
    visit = Visit(browser)
    visit.until("#find")
    return visit


@pytest.fixture
def toy_film(toy_data: Path, tmp_path: Path) -> Path:
    media = open_media(sorted((toy_data / "valid" / "JPEGImages").iterdir())[0])
    with create_video(tmp_path / "toy film.mp4", media.rate) as video:
        for frame in media.frames():
            video.write(frame.image, frame.time, frame.duration)
    return tmp_path / "toy film.mp4"


def area(archive: Path) -> int:
    """The number of pixels of all masks in ``masks.zip``."""
    with zipfile.ZipFile(archive) as opened:
        masks = [Image.open(opened.open(name)) for name in opened.namelist() if name.startswith("masks/")]
        return sum(int(np.count_nonzero(np.asarray(mask))) for mask in masks)


def test_upload_preview_find_and_download(visit: Visit, address: str, toy_film: Path, downloads: Path):
    visit.upload(toy_film)
    visit.until("#preview", "96 × 64")
    visit.find("#sentences textarea")[0].send_keys("the red thing\nthe <b>big</b> one")
    visit.type("#at textarea, #at input", "0.1")
    visit.click("#try")
    visit.until("#preview", "score")
    visit.until_script("return document.querySelector('#status textarea').value.startsWith('1 “the red thing”: score')")

    visit.click("#find")
    scores = visit.until("#scores", "the <b>big</b> one")
    assert "the red thing" in scores
    visit.until_script("return document.querySelector('#status textarea').value.startsWith('5 frames, ')")
    assert visit.find("#overlay video")[0].get_attribute("src").startswith(address)
    visit.until_script("return document.querySelector('#overlay video').videoWidth == 96")

    visit.find("button[role=tab]")[2].click()
    visit.type("#frame input[type=number]", "4\t")
    visit.until("#picture", "Frame 4")

    before = visit.find("#overlay video")[0].get_attribute("src")
    high = area(visit.download("masks.zip", downloads))
    visit.type("#level input[type=number]", "0.01\t")
    visit.type("#colours textarea, #colours input", "orange, #3cc8ff")
    visit.click("#apply")
    visit.until_script(f"return document.querySelector('#overlay video').src != {before!r}")
    assert area(visit.download("masks.zip", downloads)) > high > 0

    visit.find("#formats input")[list(FORMATS).index("coco") - 1].click()  # png is always there
    visit.click("#export")
    visit.until("#downloads a[download='coco.json']")
    for box in visit.find("#formats input:not(:checked)"):
        box.click()
    visit.click("#export")
    visit.until("#downloads a[download='ytvis.json']")
    names = [link.get_attribute("download") for link in visit.find("#downloads a[download]")]
    assert len(names) == len(set(names)) == 3 + len(FORMATS) - 1
    files = {name: visit.download(name, downloads) for name in names}
    assert json.loads(files["coco.json"].read_text())["annotations"] and files["mots.txt"].read_text().count("\n") > 4
    for name, (kind, count) in {"rgba": (".png", 10), "alpha": (".mov", 2), "index": (".png", 5)}.items():
        with zipfile.ZipFile(files[f"{name}.zip"]) as archive:
            assert archive.testzip() is None
            assert [Path(member).suffix for member in archive.namelist()] == [kind] * count
    assert open_media(files["overlay.mp4"]).size == (64, 96) and open_media(files["contact_sheet.png"]).still

    hosts = visit.browser.execute_script(
        "return [...new Set(performance.getEntriesByType('resource').map(entry => new URL(entry.name).host))]"
    )
    assert [f"http://{host}/" for host in hosts if host] == [address], "nothing is fetched from elsewhere"


def test_nothing_found_is_said_plainly(visit: Visit):
    visit.click("#example")
    visit.until("#preview", "480 × 320 · 3.0 s")
    visit.click("#try")
    visit.type("#least input[type=number]", "1\t")
    visit.click("#options button, #options .label-wrap")
    visit.type("#end textarea, #end input", "0.3")
    visit.click("#find")
    assert "below the threshold of 1, so all its masks are empty" in visit.until("#scores", "not found")


def test_mistakes_are_shown_on_the_page(visit: Visit, tmp_path: Path):
    visit.click("#find")
    visit.until("body", "there is no video, or it was removed")
    (tmp_path / "notes.mp4").write_text("hello world\n" * 200)
    visit.upload(tmp_path / "notes.mp4")
    visit.until("body", "cannot read notes.mp4 as a video")
    visit.until_script("return !document.body.innerText.includes('there is no video')")
    visit.browser.refresh()
    (tmp_path / "large.mp4").write_bytes(bytes(2_000_000))
    visit.upload(tmp_path / "large.mp4")
    visit.until("body", "exceed the maximum allowed size")
    mark = "getComputedStyle(document.querySelector('#upload .error'), '::after').content"
    assert "was not uploaded. Files may have 1 MB" in visit.browser.execute_script(f"return {mark}")
    visit.upload(write_film(tmp_path / "good.mp4"))
    visit.until("#preview", "64 × 48")
    visit.find("#sentences textarea")[0].send_keys("a\nb\nc\nd")
    visit.click("#find")
    visit.until("body", "this page takes at most 3")
