"""The web page with a stub in place of the model, and a visitor of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from demo import DemoResult, run_demo
from models.inference import InferenceOptions
from models.pretrained import Pretrained
from models.segmenter import Segmenter
from scripts import web_demo
from scripts.web_demo import PageOptions
from tests.test_demo import SENTENCES, segment

PAGE = [  # marks of all tests of the page
    # importing Gradio takes seconds, so it is not done here
    pytest.mark.skipif(find_spec("gradio") is None, reason="the page needs Gradio: bash scripts/setup.sh --web"),
    pytest.mark.filterwarnings("ignore:.*future.no_silent_downcasting"),  # Gradio's use of pandas
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]
# What the page reads of the model; the stub segments.
PRETRAINED = Pretrained(
    model=cast(Segmenter, None),
    name="vdit",
    checkpoint=web_demo.TOY_CHECKPOINT,
    options=InferenceOptions(),
    device=torch.device("cpu"),
)
OUTPUTS = (
    *(
        "result",
        "status",
        "results",
        "looks",
        "apply",
        "overlay",
        "frame",
        "picture",
        "sheet",
        "scores",
        "plot",
        "downloads",
    ),
    "tabs",
)


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Make a folder the one for temporary files; environment variables that the page sets are restored."""
    folder.mkdir()
    with mock.patch("tempfile.tempdir", str(folder)), mock.patch.dict(os.environ, GRADIO_TEMP_DIR="", no_proxy=""):
        yield folder


def stub(media: Any, sentences: list[str], folder: Path, **options: Any) -> DemoResult:
    return run_demo(media, sentences, segment, folder, show=False, **options)


@contextlib.contextmanager
def serve(segment: Callable[..., DemoResult] = stub, **options: Any) -> Iterator[str]:
    port = web_demo.free_port(web_demo.LOOPBACK, 0)
    with web_demo.serve(PRETRAINED, segment, PageOptions(port=port, **options)) as address:
        yield address


class Visitor:
    """A browser tab: uploads files, presses buttons and receives what changes."""

    def __init__(self, address: str) -> None:
        import httpx

        self.session = uuid.uuid4().hex
        self.http = httpx.Client(base_url=address, timeout=60)
        functions = self.http.get("config").json()["dependencies"]
        self.functions = {function["api_name"]: function["id"] for function in functions}

    def upload(self, path: Path) -> dict[str, Any]:
        answer = self.http.post("gradio_api/upload", files=[("files", (path.name, path.read_bytes()))])
        answer.raise_for_status()
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def press(self, name: str, *values: Any) -> str:
        """Start a function, and return the name of this event."""
        body = {"fn_index": self.functions[name], "data": values, "session_hash": self.session}
        answer = self.http.post("gradio_api/queue/join", json=body)
        answer.raise_for_status()
        return answer.json()["event_id"]

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the page says until all events have ended."""
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line.removeprefix("data:"))
                    if message["msg"] == "close_stream":
                        return
                    yield message

    def result(self, name: str, *values: Any) -> dict[str, Any]:
        """Call a function, and return the last message's output: "data" or "error"."""
        self.press(name, *values)
        return list(self.messages())[-1]["output"]

    def find(self, file: Any, text: str = "\n".join(SENTENCES), **options: Any) -> dict[str, Any]:
        """Press the button Find: the values of ``OUTPUTS``, or "error"."""
        output = self.result("run", *find_values(file, text, **options))
        return dict(zip(OUTPUTS, output["data"], strict=True)) if "data" in output else output

    def apply(
        self, threshold: float, score_threshold: float = 0.0, colours: str = "", frame: int = 1
    ) -> dict[str, Any]:
        """Press the button Apply: the values of ``OUTPUTS`` but the last, or "error"."""
        output = self.result("apply", threshold, score_threshold, colours, frame, None)
        return dict(zip(OUTPUTS[:-1], output["data"], strict=True)) if "data" in output else output

    def masks(self, found: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the masks of ``masks.zip`` by their names."""
        (file,) = [download for download in found["downloads"] if download["orig_name"] == "masks.zip"]
        with zipfile.ZipFile(io.BytesIO(self.get(file))) as archive:
            names = [name for name in archive.namelist() if name.startswith("masks/")]
            return {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names}

    def get(self, file: dict[str, Any]) -> bytes:
        answer = self.http.get(file["url"])
        answer.raise_for_status()
        return answer.content


def find_values(
    file: Any, text: str, start="", end="", stride=1, threshold=0.5, score_threshold=0.0, colours=""
) -> list[Any]:
    return [file, text, start, end, stride, threshold, score_threshold, colours, None]


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):  # a folder that is listed is being removed
            if true():
                return
        time.sleep(0.01)
    raise AssertionError("it did not happen")
