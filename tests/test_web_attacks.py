"""The web page under attack: requests as an attacker sends them, with a stub in place of the model."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts import web_demo
from scripts.web_demo import PageOptions, Refused, RequestFilter, check_header, read_excerpt
from tests.attacks import ATTACKS, MARKUP, SECRET, check, contents, partial_upload
from tests.media_tools import write_film
from tests.page_tools import PAGE, Visitor, serve, until
from util.errors import UserError

pytestmark = PAGE


@pytest.fixture
def visitor(temporary: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Visitor]:
    """A visitor of a page that prints no traceback."""
    with serve(max_sentences=3, max_megabytes=1.0) as address:
        yield Visitor(address)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ATTACKS)
def test_attacks_fail(visitor: Visitor, temporary: Path, tmp_path: Path, kind: str):
    folder = tmp_path / "attacker"
    folder.mkdir()
    for attack in ATTACKS[kind](visitor, folder):
        check(visitor, tmp_path, attack)
    assert SECRET.encode() not in contents(temporary)
    written = {path for path in temporary.rglob("*") if path.is_file() and path.read_bytes() == b"evil"}
    assert all(path.relative_to(temporary).parts[1] == "cache" for path in written)


def test_texts_that_cannot_be_written_or_are_too_long():
    with pytest.raises(UserError, match="From has 400 characters; it must be a time"):
        read_excerpt("9" * 400, "", 1)


def test_markup_is_shown_as_text(visitor: Visitor, tmp_path: Path):
    found = visitor.find(visitor.upload(write_film(tmp_path / "a.mp4")), text=f"{MARKUP}\nb")
    assert found["scores"]["data"][0][1] == MARKUP and "<" not in found["status"] + found["picture"]["label"]
    parts = visitor.http.get("config").json()["components"]
    table = next(part for part in parts if part["props"].get("elem_id") == "scores")
    assert set(table["props"]["datatype"]) <= {"str"} or table["props"]["datatype"] == "str"


def test_all_addresses_of_the_machine(temporary: Path):
    with serve(host="0.0.0.0") as address:
        assert Visitor(address).functions
        local = address.replace("0.0.0.0", "127.0.0.1")
        assert Visitor(local).http.get("config", headers={"Host": "gpu7"}).status_code == 421


def test_the_page_itself_is_admitted(visitor: Visitor):
    address = str(visitor.http.base_url).rstrip("/")
    port = address.rpartition(":")[2]
    for origin in (address, f"http://localhost:{port}"):
        files, headers = [("files", ("a.mp4", b"a"))], {"Origin": origin, "Host": origin.removeprefix("http://")}
        visitor.http.post("gradio_api/upload", files=files, headers=headers).raise_for_status()


def test_names_and_addresses():
    def admits(name: str, **options: Any) -> bool:
        guard = RequestFilter(None, PageOptions(**options), Path(), [])
        try:
            guard.check_sender("POST", "/gradio_api/upload", {"host": f"{name}:80", "origin": f"https://{name}:80"})
        except Refused as error:
            assert error.status == 421
            return False
        return True

    assert all(admits(name) for name in ("localhost", "LOCALHOST", "127.0.0.1", "[::1]"))
    assert not admits("10.0.0.7") and not admits("gpu7") and admits("10.0.0.7", host="10.0.0.7")
    assert admits("10.0.0.7", host="0.0.0.0") and not admits("evil.example", host="0.0.0.0")
    assert admits("gpu7", trusted_hosts="page.example, GPU7")
    proxied = RequestFilter(None, PageOptions(trusted_hosts="page.example"), Path(), [])  # the proxy changes Host only
    headers = {"host": "127.0.0.1:7860", "origin": "https://page.example"}
    proxied.check_sender("POST", "/gradio_api/upload", headers)


def test_twenty_uploads_of_one_file_at_once(visitor: Visitor, tmp_path: Path):
    film = write_film(tmp_path / "a.mp4")
    address = str(visitor.http.base_url)

    def upload(number: int) -> tuple[Visitor, dict[str, Any]]:
        other = Visitor(address)
        return other, other.upload(film)

    def inspect(one: tuple[Visitor, dict[str, Any]]) -> str:
        other, file = one
        return other.result("inspect", file)["data"][0]["label"]

    with ThreadPoolExecutor(20) as pool:
        uploads = list(pool.map(upload, range(20)))
    with ThreadPoolExecutor(8) as pool:  # as many may wait
        assert set(pool.map(inspect, uploads)) == {"64 × 48 · 0.6 s"}


def test_two_visitors_segment_the_same_file_at_once(visitor: Visitor, tmp_path: Path):
    film = write_film(tmp_path / "a.mp4")
    visitors = [visitor, Visitor(str(visitor.http.base_url))]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda each: each.find(each.upload(film)), visitors))
    assert all(each["status"].startswith("6 frames") for each in found)


def test_uploads_that_break_off_leave_nothing(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(web_demo, "PATIENCE", 1.0)
    with serve() as address:
        place, start = partial_upload(address)
        with socket.create_connection(place) as connection:
            connection.sendall(start + bytes(100_000))
            until(lambda: bool(list(temporary.glob("*/cache/tmp*"))))
        until(lambda: not list(temporary.glob("*/cache/tmp*")))
    assert "Traceback" not in capfd.readouterr().err


def animated(path: Path, frames: int, side: int) -> Path:
    pictures = [Image.fromarray(np.full((side, side), 40 * i, np.uint8)) for i in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    return path


def test_sizes_are_compared_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the content: FFmpeg and Pillow decode a picture whatever its name."""
    Image.new("1", (5000, 100)).save(tmp_path / "wide.png")
    (tmp_path / "wide.mp4").write_bytes((tmp_path / "wide.png").read_bytes())
    Image.new("P", (100, 5000)).save(tmp_path / "tall.gif")
    sizes = {"wide.png": "5000×100", "wide.mp4": "5000×100", "tall.gif": "100×5000"}
    film = write_film(tmp_path / "film.mp4")
    animated(tmp_path / "many.png", 5, 50), animated(tmp_path / "many.webp", 5, 50)
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")

    def decoding(*args: Any, **options: Any) -> Any:
        raise AssertionError("it is being decoded")

    monkeypatch.setattr(web_demo, "open_media", decoding)
    monkeypatch.setattr(Image.Image, "load", decoding)
    for name, size in sizes.items():
        with pytest.raises(UserError, match=f"{name} is {size}, but this page takes at most 4096 pixels per side"):
            web_demo.open_upload(tmp_path / name, PageOptions())
    with pytest.raises(UserError, match="is 64×48, but this page takes at most 60"):
        web_demo.open_upload(film, PageOptions(max_side=60))
    with pytest.raises(UserError, match=r"cannot read .*script\.png"):
        web_demo.open_upload(tmp_path / "script.png", PageOptions())
    monkeypatch.setattr(web_demo, "MAX_ANIMATED_PIXELS", 10_000)
    for name in ("many.png", "many.webp"):
        with pytest.raises(UserError, match=f"{name} is animated and has 5 frames of 50×50; upload it as a video"):
            web_demo.open_upload(tmp_path / name, PageOptions())
    monkeypatch.setattr(web_demo, "MAX_HOURS", 0)
    with pytest.raises(UserError, match="is longer than 0 hours; upload a part of it"):
        web_demo.open_upload(film, PageOptions())


@pytest.mark.filterwarnings("ignore:Image size")
def test_hostile_pictures(shared: Path):
    for name in ("bomb_16000.gif", "bomb_800bytes.gif", "bomb_png_13300_rgba.png", "bomb_300frames.png"):
        start = time.monotonic()
        with pytest.raises(UserError, match=r"far too many pixels|at most 4096 pixels|300 frames of 4096×4096"):
            check_header(shared / "cases" / "hostile" / name, PageOptions())
        assert time.monotonic() - start < 2
