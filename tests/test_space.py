"""The files of ``space/``: the web page as a Hugging Face Space."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.conftest import ROOT
from tests.page_tools import Visitor

NAME = "user-masks.hf.space"
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def test_header():
    """The keys and values that the hub accepts, and the tested version of Gradio."""
    header = yaml.safe_load((ROOT / "space" / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert (header["sdk"], header["sdk_version"], header["license"]) == ("gradio", pins["gradio"], "apache-2.0")
    assert header["python_version"] in ("3.11", "3.12", "3.13") and len(header["short_description"]) <= 60
    assert {header["colorFrom"], header["colorTo"]} <= COLOURS and len(header["emoji"]) == 1
    assert (ROOT / "space" / header["app_file"]).is_file()


@pytest.mark.slow
def test_serves_the_page(tmp_path: Path):
    """Start the page as the hub does, and request it under the name of the Space and under a different one."""
    httpx = pytest.importorskip("httpx", reason="the page needs Gradio: bash scripts/setup.sh --web")
    pytest.importorskip("gradio", reason="the page needs Gradio: bash scripts/setup.sh --web")
    Image.new("RGB", (64, 48), "red").save(picture := tmp_path / "picture.png")
    for path in ("datasets", "demo.py", "engine.py", "models", "scripts", "toy", "util"):
        (tmp_path / path).symlink_to(ROOT / path)
    shutil.copytree(ROOT / "space", tmp_path, dirs_exist_ok=True)
    (tmp_path / "packages" / "datasets-4.4.1.dist-info").mkdir(parents=True)  # the hub installs this library
    (tmp_path / "packages" / "datasets-4.4.1.dist-info" / "METADATA").write_text("Name: datasets\nVersion: 4.4.1\n")
    environment = {"SYSTEM": "spaces", "SPACE_ID": "user/masks", "SPACE_HOST": NAME, "GRADIO_ANALYTICS_ENABLED": "0"}
    environment |= {"PAGE_OPTIONS": "--port 0 --device cpu --max_sentences 3", "TMPDIR": str(tmp_path)}
    environment |= {"PYTHONPATH": str(tmp_path / "packages")}
    with subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    ) as page:
        try:
            assert page.stdout is not None
            address = next(found[1] for line in page.stdout if (found := re.match(r"serving (\S+) ", line)))
            http = httpx.Client(base_url=address.replace("0.0.0.0", "127.0.0.1"), timeout=60)
            answer = http.get("/config", headers={"host": NAME, "x-forwarded-proto": "https"})
            assert (answer.status_code, answer.json()["root"]) == (200, f"https://{NAME}")
            assert "Objects by sentences" in http.get("/", headers={"host": NAME}).text
            assert http.get("/", headers={"host": "other.hf.space"}).status_code == 421
            visitor = Visitor(str(http.base_url))
            visitor.http.headers.update({"host": NAME, "origin": f"https://{NAME}", "sec-fetch-site": "same-origin"})
            shown = visitor.result("inspect", visitor.upload(picture))["data"][0]
            assert shown["label"] == "64 × 48 · picture" and shown["value"]["url"].startswith(f"http://{NAME}/")
            page.send_signal(signal.SIGTERM)
            assert page.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            page.kill()
