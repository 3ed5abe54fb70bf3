"""The web page under attack: requests as an attacker sends them, with a stub in place of the model."""

from __future__ import annotations

import json
import socket
import threading
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
from tests.media_tools import write_film
from tests.test_web_demo import Visitor, find_values, serve, until
from util.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*future.no_silent_downcasting"),  # Gradio's use of pandas
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]
INPUTS = ("file", "text", "start", "end", "stride", "threshold", "score_threshold", "colours")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; environment variables that the page sets are restored."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    for name in ("GRADIO_TEMP_DIR", "no_proxy"):
        monkeypatch.setenv(name, "")
    return folder


@pytest.fixture
def visitor(temporary: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Visitor]:
    """A visitor of a page that prints no traceback."""
    with serve(max_sentences=3, max_megabytes=1.0) as address:
        yield Visitor(address)
    assert "Traceback" not in capfd.readouterr().err


def forged(path: Path | str) -> dict[str, Any]:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def send(visitor: Visitor, body: dict[str, Any]) -> dict[str, Any]:
    """Call a function with a body that ``httpx`` would not write, and return the last message's output."""
    answer = visitor.http.post(
        "gradio_api/queue/join", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    answer.raise_for_status()
    return list(visitor.messages())[-1]["output"]


def contents(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_field_reads_a_file(visitor: Visitor, temporary: Path, tmp_path: Path):
    """A file of the server in place of each value: one error that does not name it, and nothing is copied."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    film = visitor.upload(write_film(tmp_path / "a.mp4"))
    for i, name in enumerate(INPUTS):
        for bad in (forged(secret), [forged(secret)], {"a": forged(secret)}, True):
            values = find_values(film, "a\nb")
            values[i] = bad
            error = visitor.result("run", *values)["error"]
            assert error and "\n" not in error and str(tmp_path) not in error, (name, bad)
    for i in range(6):
        for bad in (forged(secret), [forged(secret)], {"a": forged(secret)}, True):
            values = [film, "a\nb", "", 0.5, 0.0, ""]
            values[i] = bad
            error = visitor.result("run_preview", *values)["error"]
            assert error and "\n" not in error and str(tmp_path) not in error, (i, bad)
    for i in range(4):
        for bad in (forged(secret), [forged(secret)], {"a": forged(secret)}, True):
            looks: list[Any] = [0.5, 0.0, "", 1]
            looks[i] = bad
            assert "must be a " in visitor.result("apply", *looks, None)["error"]
    assert "there is no result" in visitor.result("apply", 0.5, 0.0, "", 1, forged(secret))["error"]
    for bad in (forged(secret), [forged(secret)], "coco", ["../coco"], ["png"], ["coco"] * 99, [[]], 1, None):
        assert "Further formats must be some of" in visitor.result("export", bad, None)["error"]
    values = [*find_values(film, "a\nb")[:-1], forged(secret)]
    assert visitor.result("run", *values)["data"], "the result of earlier runs is not taken from the visitor"
    for bad in (forged(secret), forged("/etc/passwd"), forged(film["path"] + "/../../../../../secret.txt"), "a", 7):
        assert "there is no such file" in visitor.result("inspect", bad)["error"]
    for bad in (forged("http://127.0.0.1:1/a.mp4"), forged("a\0b"), forged("a" * 5000), {"path": str(secret)}, [film]):
        assert "there is no such file" in visitor.result("inspect", bad)["error"]
    assert "Frame must be a number" in visitor.result("look", forged(secret), None)["error"]
    assert b"secret" not in contents(temporary)


@pytest.mark.parametrize("value", [float("nan"), 1e300, -1, "1", None, [1]])
def test_numbers_are_numbers_in_their_range(visitor: Visitor, tmp_path: Path, value: Any):
    film = visitor.upload(write_film(tmp_path / "a.mp4"))
    for name in ("stride", "threshold", "score_threshold"):
        values = find_values(film, "a\nb")
        values[INPUTS.index(name)] = value
        body = {"fn_index": visitor.functions["run"], "data": values, "session_hash": visitor.session}
        assert "must be a number from" in send(visitor, body)["error"]


def test_texts_that_cannot_be_written_or_are_too_long(visitor: Visitor, tmp_path: Path):
    film = visitor.upload(write_film(tmp_path / "a.mp4"))
    body = {
        "fn_index": visitor.functions["run"],
        "data": find_values(film, "half \ud800"),
        "session_hash": visitor.session,
    }
    assert "must be a text" in send(visitor, body)["error"]
    with pytest.raises(UserError, match="From has 400 characters; it must be a time"):
        read_excerpt("9" * 400, "", 1)


def test_only_the_cache_is_served(visitor: Visitor, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("secret")
    film = visitor.upload(write_film(tmp_path / "a.mp4"))["path"]
    paths = ["/etc/passwd", str(tmp_path / "secret.txt"), f"{film}/../../../../../secret.txt", web_demo.__file__]
    paths += ["../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc/passwd", "file:///etc/passwd"]
    paths += [str(Path(film).parents[2]), str(Path(film).parents[1]), "http://127.0.0.1:1/x", "//127.0.0.1:1/x"]
    for path in paths:
        for way in (f"gradio_api/file={path}", f"gradio_api/file/{path}", f"static/{path}", f"assets/{path}"):
            answer = visitor.http.get(way)
            assert answer.status_code in (400, 403, 404, 405), way
            assert "secret" not in answer.text.replace("secret.txt", "") and "root:" not in answer.text


def test_an_upload_cannot_choose_its_folder(visitor: Visitor, temporary: Path):
    for name in ("../../../evil.mp4", "/etc/evil.mp4", "..\\..\\evil.mp4", ".."):
        visitor.http.post("gradio_api/upload", files=[("files", (name, b"evil"))])
    evil = [path for path in temporary.parent.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]
    assert all(path.relative_to(temporary).parts[1] == "cache" for path in evil)


def test_functions_that_the_page_does_not_use(visitor: Visitor):
    """Some of Gradio's functions take uploads and calls without this page's limits."""
    for path in ("run/run", "api/run", "call/run", "component_server", "process_recording", "vibe-edit/", "stream/1"):
        assert visitor.http.post(f"gradio_api/{path}", json={"data": []}).status_code == 404
    for path in ("dev/reload", "deep_link?session_hash=a"):
        assert visitor.http.get(f"gradio_api/{path}").status_code == 404
    assert visitor.http.get("monitoring/summary").status_code == 403


def test_all_addresses_of_the_machine(temporary: Path):
    with serve(host="0.0.0.0") as address:
        assert Visitor(address).functions
        local = address.replace("0.0.0.0", "127.0.0.1")
        assert Visitor(local).http.get("config", headers={"Host": "gpu7"}).status_code == 421


def test_malformed_requests(visitor: Visitor):
    """They make Gradio fail; the fixture sees a traceback."""
    part = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nabc\r\n--x--\r\n'
    for query in ("", "?upload_id=a"):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = visitor.http.post(f"gradio_api/upload{query}", content=part, headers=headers)
        assert (answer.status_code, answer.text) == (400, "the page does not understand this request")
    for message in ({"fn_index": -1, "data": [], "session_hash": "a"}, {"fn_index": 0, "data": []}, [], 7):
        assert visitor.http.post("gradio_api/queue/join", json=message).status_code in (400, 422)
    deep = {"fn_index": visitor.functions["inspect"], "data": [json.loads("[" * 900 + "]" * 900)]}
    assert "there is no such file" in send(visitor, {**deep, "session_hash": visitor.session})["error"]
    assert visitor.http.get("gradio_api/proxy=%00").status_code == 400


def test_a_result_belongs_to_its_session(visitor: Visitor, tmp_path: Path):
    found = visitor.find(visitor.upload(write_film(tmp_path / "a.mp4")))
    other = Visitor(str(visitor.http.base_url))
    for value in (None, {"folder": str(Path(found["overlay"]["path"]).parent)}, forged(found["overlay"]["path"])):
        assert "there is no result" in other.result("look", 1, value)["error"]
    assert len(Path(found["overlay"]["path"]).parents[1].name) == 32, "the folder's name cannot be guessed"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "localhost.evil.example", "10.1.2.3", "", "[::"])
def test_foreign_names_are_not_served(visitor: Visitor, host: str):
    """A web site whose name leads to 127.0.0.1 (DNS rebinding)."""
    for path in ("", "config", "gradio_api/info"):
        answer = visitor.http.get(path, headers={"Host": host})
        assert answer.status_code in (400, 421) and "Objects" not in answer.text
    files = [("files", ("a.mp4", b"a"))]
    assert visitor.http.post("gradio_api/upload", files=files, headers={"Host": host}).status_code in (400, 421)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_sites_cannot_change_anything(visitor: Visitor, temporary: Path, headers: dict[str, str]):
    before = contents(temporary)
    answer = visitor.http.post("gradio_api/upload", files=[("files", ("a.mp4", b"evil"))], headers=headers)
    assert answer.status_code == 403 and contents(temporary) == before
    body = {"fn_index": visitor.functions["leave"], "data": [], "session_hash": "s"}
    for path in ("queue/join", "cancel", "reset"):
        assert visitor.http.post(f"gradio_api/{path}", json=body, headers=headers).status_code == 403
    assert visitor.http.get("config", headers=headers).status_code == (403 if "Origin" in headers else 200)


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


def test_all_uploads_together_are_bounded(temporary: Path):
    with serve(max_megabytes=1.0, max_total_megabytes=2.5) as address:
        visitor = Visitor(address)

        def upload(number: int) -> int:
            files = [("files", (f"{number}.mp4", bytes([number]) * 1_000_000))]
            return visitor.http.post("gradio_api/upload", files=files).status_code

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(upload, range(20)))
        assert set(answers) == {200, 507} and answers.count(200) <= 2
        assert web_demo.total_size(temporary) < 2.5 * 2**20
        text = visitor.http.post("gradio_api/upload", files=[("files", ("a", bytes(1_000_000)))]).text
        assert text == web_demo.FULL


def test_requests_are_bounded(visitor: Visitor):
    """Many files in one upload, a body without a length, and a message of many megabytes."""
    many = [("files", (f"{i}.mp4", bytes(900_000))) for i in range(4)]
    assert visitor.http.post("gradio_api/upload", files=many).status_code == 413

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        for _ in range(40):
            yield bytes(2**17)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert visitor.http.post("gradio_api/upload", content=endless(), headers=headers).status_code == 413
    body = {"fn_index": 0, "data": ["a" * 2_000_000], "session_hash": "s"}
    assert visitor.http.post("gradio_api/queue/join", json=body).status_code == 413
    deep = visitor.http.post("gradio_api/queue/join", content=b"[" * 500_000)
    assert deep.status_code in (400, 422)


def test_slow_uploads_and_idle_connections_end(temporary: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web_demo, "PATIENCE", 1.0)
    with serve() as address:
        place = ("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost:{place[1]}\r\nContent-Length: 1000000\r\n"
        head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        part = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        starts = {"silent": b"", "half a header": head[:50].encode(), "slow body": (head + part).encode()}
        for name, start in starts.items():
            with socket.create_connection(place, timeout=20) as connection:
                connection.sendall(start)
                begin, answer = time.monotonic(), b""
                trickle = threading.Event()

                def drip(connection: socket.socket = connection, trickle: threading.Event = trickle) -> None:
                    while not trickle.wait(0.2):
                        try:
                            connection.sendall(b"a")
                        except OSError:
                            return

                dripping = threading.Thread(target=drip)
                if name != "silent":
                    dripping.start()
                try:
                    while received := connection.recv(1000):
                        answer += received
                except ConnectionError:
                    pass
                finally:
                    trickle.set()
                assert time.monotonic() - begin < 15, name
                assert (b" 408 " in answer) == (name == "slow body"), name
            if name != "silent":
                dripping.join()
        until(lambda: not list(temporary.glob("*/cache/tmp*")))


def test_uploads_that_break_off_leave_nothing(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(web_demo, "PATIENCE", 1.0)
    with serve() as address:
        place = ("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost:{place[1]}\r\nContent-Length: 1000000\r\n"
        head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        part = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        with socket.create_connection(place) as connection:
            connection.sendall((head + part).encode() + bytes(100_000))
            until(lambda: bool(list(temporary.glob("*/cache/tmp*"))))
        until(lambda: not list(temporary.glob("*/cache/tmp*")))
    assert "Traceback" not in capfd.readouterr().err


def test_nothing_that_a_visitor_writes_becomes_code(visitor: Visitor, tmp_path: Path):
    """Messages, which Gradio shows as HTML, are escaped; uploads are never shown as a page."""
    evil = "<img src=x onerror=alert(1)>"
    film = write_film(tmp_path / "a.mp4")
    named = tmp_path / "<svg onload=alert(1)>.mp4"
    named.write_bytes(b"no video" * 99)
    for error in (visitor.result("inspect", visitor.upload(named))["error"], visitor.find(None, text=evil)["error"]):
        assert "<" not in error
    assert "&lt;b&gt;" in visitor.find(visitor.upload(film), start="<b>")["error"]
    found = visitor.find(visitor.upload(film), text=f"{evil}\nb")
    assert found["scores"]["data"][0][1] == evil and "<" not in found["status"] + found["picture"]["label"]
    kinds = {part["id"]: part for part in visitor.http.get("config").json()["components"]}
    table = next(part for part in kinds.values() if part["props"].get("elem_id") == "scores")
    assert set(table["props"]["datatype"]) <= {"str"} or table["props"]["datatype"] == "str", "the table shows texts"
    for name in ("page.html", "image.svg", "page.xhtml", "script.js"):
        (tmp_path / name).write_text(f"<html>{evil}</html>")
        answer = visitor.http.get(f"gradio_api/file={visitor.upload(tmp_path / name)['path']}")
        assert answer.headers["content-disposition"].startswith("attachment"), name


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
