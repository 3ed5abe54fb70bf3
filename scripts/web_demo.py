"""Serve a web page that segments uploaded videos: upload a video, type sentences, download the masks.

python -m scripts.web_demo [--resume runs/vdit/checkpoint.pth] [--port 7860]

The page serves this machine only (127.0.0.1) unless ``--host`` says otherwise; see ``docs/web_demo.md``. Without
``--resume`` it uses the bundled toy weights.
"""

# Not `from __future__ import annotations`: Gradio recognises `gr.Request` by the annotation itself, and Gradio is
# imported inside functions because that takes seconds.

import asyncio
import dataclasses
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from fractions import Fraction
from functools import partial
from html import escape
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from datasets.export import FORMATS, check_formats
from demo import (
    MASKS,
    MASKS_FILE,
    OVERLAY,
    SHEET,
    STILL,
    DemoResult,
    Progress,
    WindowOptions,
    export_again,
    read_options,
    rethreshold,
)
from util.config import MODELS, WEIGHTS
from util.drawing import Colour, object_colours, write_picture
from util.errors import RunError, UserError, orderly_end, run_cli
from util.files import BROKEN_IMAGE, ROOT, atomic_path, open_image
from util.options import option
from util.text import normalise_sentence
from util.video import (
    ANIMATED_FORMATS,
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    WHOLE,
    Excerpt,
    Media,
    MediaFrame,
    open_container,
    open_media,
    parse_time,
    video_stream,
    write_video,
)

DESCRIPTION = "Serve a web page that segments the objects that sentences name in uploaded videos."
TOY_CHECKPOINT = ROOT / "toy" / "vdit.safetensors"
LOOPBACK = "127.0.0.1"
PREFIX = "rvos-page-"  # of the temporary folder that holds uploads and results
MAX_CHARACTERS = 300  # of a sentence
MAX_TIME_CHARACTERS = 20  # of From and To
MAX_STRIDE = 1000
MAX_HOURS = 2  # of an upload of which a part is chosen: finding the part can mean to decode everything before it
MAX_ANIMATED_PIXELS = 10**9  # of all frames of an animated picture: finding a part can mean to decode them all
API = "/gradio_api/"
CHANGES = {API + name for name in ("upload", "queue/join", "cancel", "reset")}  # the only changing requests
UPLOADS = 8  # received at once; others wait
MAX_MESSAGE = 2**20  # bytes of a request that is not an upload
PATIENCE = 30.0  # seconds that a request may take, and that a connection may be idle
SLOWEST = 100_000  # bytes per second of an upload that takes longer
FIRST_FRAME = "First frame"
PORTRAIT = "#overlay video, #picture img, #preview img {max-height: 70vh}"
CLOSE_ERRORS = "() => document.querySelectorAll('.toast-close').forEach(button => button.click())"
STAGES = {
    "check": "Checking",
    "segment": "Segmenting",
    "threshold": "Writing the masks",
    "export": "Making the downloads",
    "draw": "Drawing the overlay",
}
FULL = "the page holds too many files at the moment; try again in a few minutes, or with a smaller file"
STOPPED = "Stopped. Nothing of this run is kept."
UNKNOWN = "something went wrong on the server; the terminal where the page was started shows what"

_page = partial(option, "page")


@dataclasses.dataclass(frozen=True)
class PageOptions(WindowOptions):
    """Options of the page, in addition to those of ``Config``."""

    weights: str = _page(
        "toy", "bundled or published weights, where --resume names no checkpoint", choices=("toy", *WEIGHTS)
    )
    host: str = _page(LOOPBACK, "address to serve; 0.0.0.0 admits everyone who can reach this machine")
    port: int = _page(7860, "port to serve; 0 picks a free one", minimum=0, maximum=65535)
    trusted_hosts: str = _page("", "further names by which visitors reach this page, separated by commas", empty=True)
    max_megabytes: float = _page(200.0, "maximum size of an upload, in megabytes", above=0)
    max_total_megabytes: float = _page(2000.0, "refuse uploads while all files together exceed this size", above=0)
    max_seconds: float = _page(60.0, "maximum length of a part that is segmented at once, in seconds", above=0)
    max_frames: int = _page(900, "maximum number of frames segmented at once", minimum=1)
    max_side: int = _page(4096, "maximum of a video's longer side, in pixels", minimum=1)
    max_sentences: int = _page(8, "maximum number of sentences at once", minimum=1)
    queue: int = _page(8, "maximum number of visitors who wait while a video is segmented", minimum=1)
    keep_minutes: float = _page(30.0, "remove uploads and results that were not used for this many minutes", above=0)


class StopRun(Exception):
    """The visitor stopped the run or left, or the program ends."""


@dataclasses.dataclass
class Work:
    """What is being done for a visitor.

    Attributes:
        session: of the visitor.
        folder: into which it writes.
        stop: is set to stop it.
    """

    session: str
    folder: Path
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: one sentence for the visitor.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestFilter:
    """ASGI middleware that refuses requests from other sites, and too large, too slow and too many ones.

    Args:
        app: the page.
        cache: the folder of uploads and results.
        uploads: is filled with the start (``time.time()``) of each upload that is being received.
    """

    def __init__(self, app: Any, options: PageOptions, cache: Path, uploads: list[float]) -> None:
        self.app, self.options, self.cache, self.uploads = app, options, cache, uploads
        self.names = {name.strip().lower() for name in options.trusted_hosts.split(",") if name.strip()}
        self.slots = asyncio.Semaphore(UPLOADS)
        self.expected = 0  # bytes of the uploads that are being received

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        from starlette.requests import ClientDisconnect
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def answer(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            path = scope["path"].rstrip("/")
            self.check_sender(scope["method"], path, headers)
            if path != API + "upload":
                await self.app(scope, self.limited(receive, headers, MAX_MESSAGE), answer)
                return
            limit = int(self.options.max_megabytes * 2**20) + MAX_MESSAGE
            bounded = self.limited(receive, headers, limit)
            async with self.slots:
                size, start = int(headers.get("content-length", limit)), time.time()
                self.expected += size
                self.uploads.append(start)
                try:
                    if await asyncio.to_thread(is_full, self.cache, self.options, self.expected):
                        raise Refused(507, FULL)
                    await self.app(scope, bounded, answer)
                finally:
                    self.expected -= size
                    self.uploads.remove(start)
        except Refused as error:
            if not started:
                await PlainTextResponse(str(error), error.status)(scope, receive, send)
        except ClientDisconnect:
            pass
        except Exception as error:  # Gradio fails on some requests that the page itself does not send
            print(f"note: a request for {scope['path'][:80]!r} failed ({type(error).__name__})", file=sys.stderr)
            if not started:
                await PlainTextResponse("the page does not understand this request", 400)(scope, receive, send)

    def check_sender(self, method: str, path: str, headers: dict[str, str]) -> None:
        """Refuse foreign names (DNS rebinding), requests by other sites, and functions that the page does not use."""
        host = headers.get("host", "").lower()
        if not self.is_own(_host_name(host)):
            raise Refused(421, "the page does not serve this name; start it with --trusted_hosts to admit it")
        changes = method not in ("GET", "HEAD", "OPTIONS")
        origin = headers.get("origin", f"//{host}").lower()  # browsers leave it out of simple requests to the page
        own = origin.partition("//")[2] == host or _host_name(origin) in self.names
        if not own or (changes and headers.get("sec-fetch-site") == "cross-site"):
            raise Refused(403, "the request comes from another web site; use the page itself")
        if path not in CHANGES if changes else path.startswith((API + "dev/", API + "deep_link")):
            raise Refused(404, "the page does not have this function")

    def is_own(self, name: str) -> bool:
        """Return whether the page is reached by this name. Any address will do if it serves all of the machine's."""
        if name in {"localhost", LOOPBACK, "::1", self.options.host.lower(), *self.names}:
            return True
        try:
            return bool(ip_address(name)) and ip_address(self.options.host).is_unspecified
        except ValueError:
            return False

    def limited(self, receive: Any, headers: dict[str, str], limit: int) -> Any:
        """Return ``receive`` for a body of at most ``limit`` bytes that does not arrive too slowly."""
        too_large = Refused(413, f"the request is too large; files may have {self.options.max_megabytes:g} MB")
        if int(headers.get("content-length", 0)) > limit:
            raise too_large
        size, complete, start = 0, False, math.nan

        async def receive_some() -> Any:
            nonlocal size, complete, start
            if complete:  # a response waits for the visitor to leave
                return await receive()
            now = time.monotonic()
            start = now if math.isnan(start) else start
            try:
                message = await asyncio.wait_for(receive(), max(0.0, start + PATIENCE + size / SLOWEST - now))
            except TimeoutError:
                raise Refused(408, "the upload was too slow; try again with a smaller file") from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > limit:
                raise too_large
            return message

        return receive_some


def _host_name(address: str) -> str:
    """Return the name in ``name:port`` or in a whole address; empty if there is none."""
    try:
        return urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


def total_size(folder: Path) -> int:
    """Return the number of bytes of the files in a folder, some of which may be removed meanwhile."""
    size = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                about = Path(place, name).lstat()
                size += about.st_size // about.st_nlink  # an upload is linked to by its results
    return size


def is_full(cache: Path, options: PageOptions, more: int = 0) -> bool:
    """Return whether the files of the page, and further bytes, exceed their limit."""
    return total_size(cache) + more > options.max_total_megabytes * 2**20


def clean_up(
    server: Any, cache: Path, age: float, uploads: list[float], running: list[Work], ended: threading.Event
) -> None:
    """Close idle connections, and remove old results and what broken uploads left in the cache, until the program ends.

    Args:
        server: the ``uvicorn.Server``. It closes a connection after an answer, but not one that never asks.
        age: seconds after which a result is removed if it is not used; Gradio removes only files that it shows.
        uploads: the start of each upload that is being received.
        running: what is being done.
    """
    idle: dict[Any, float] = {}
    while not ended.wait(1.0):
        now = time.monotonic()
        cycles = [
            (connection, getattr(connection, "cycle", None)) for connection in list(server.server_state.connections)
        ]
        idle = {both: idle.get(both, now) for both in cycles if both[1] is None or both[1].response_complete}
        for (connection, _), since in idle.items():
            if now - since > PATIENCE:
                connection.loop.call_soon_threadsafe(connection.transport.close)
        oldest = min([time.time() - PATIENCE, *uploads])
        busy = {folder for work in list(running) for folder in (work.folder, work.folder.parent)}
        for own in cache.glob("?" * len(uuid.uuid4().hex)):
            with suppress(FileNotFoundError):
                if own not in busy and own.stat().st_mtime < time.time() - age:
                    shutil.rmtree(own, ignore_errors=True)
        for path in cache.glob("tmp*"):  # Gradio renames an upload's file when it is complete
            with suppress(FileNotFoundError):
                if path.is_file() and path.stat().st_mtime < oldest:
                    path.unlink()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until a signal ends it (``argv`` without the program's name; None: the process's own)."""
    options, given, _ = read_options(PageOptions, argv, DESCRIPTION)
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio, which is not installed; run: bash scripts/setup.sh --web")
    options = dataclasses.replace(options, port=free_port(options.host, options.port))
    from demo import segment_to_folder
    from models.inference import window_overlap
    from models.pretrained import open_pretrained

    window_overlap(options.window, options.overlap)  # not first when a visitor presses Find
    with orderly_end():
        published = WEIGHTS[options.weights].source if options.weights != "toy" else str(TOY_CHECKPOINT)
        checkpoint = given.pop("resume", "") or published
        pretrained = open_pretrained(checkpoint, "--resume", {"device": "auto", **given})
        for note in pretrained.notes:
            print(f"note: {note}")
        if options.host not in (LOOPBACK, "localhost", "::1"):
            print(f"note: everyone who can reach {options.host} can use this page", file=sys.stderr)
        segment = partial(segment_to_folder, pretrained, window=options.window, overlap=options.overlap, show=False)
        with serve(pretrained, segment, options) as address:
            print(f"serving {address} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one instead of 0, if it can be served.

    Raises:
        UserError: the address does not belong to this machine, or the port is in use or reserved.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
            return server.getsockname()[1]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot serve {host}:{port} ({reason}); choose another --port or --host") from error


@contextmanager
def serve(pretrained: Any, segment: Callable[..., DemoResult], options: PageOptions) -> Iterator[str]:
    """Serve the page while the block runs, and yield its address. Uploads and results are removed afterwards.

    ``segment`` is ``demo.segment_to_folder`` with its model.

    Raises:
        UserError: the port was taken in the meantime.
    """
    from starlette.middleware import Middleware

    running: list[Work] = []
    uploads: list[float] = []
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        # At its start, Gradio sends requests to its own server, which must not go through a proxy.
        unproxied = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = ",".join(filter(None, (unproxied, options.host, "localhost")))
        failed = (
            f": the file was not uploaded. Files may have {options.max_megabytes:g} MB; if yours has less, try again "
            "in a few minutes."
        )
        page = build_page(pretrained, segment, options, Path(folder), running)
        cache = Path(folder) / "cache"
        try:
            _, address, _ = page.launch(
                server_name=f"[{options.host}]" if ":" in options.host else options.host,
                server_port=options.port,
                app_kwargs={"middleware": [Middleware(RequestFilter, options=options, cache=cache, uploads=uploads)]},
                max_file_size=int(options.max_megabytes * 2**20),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                # Gradio's own message about a failed upload vanishes after ten seconds; this mark stays.
                css=f"#upload .error {{font-weight: normal}} #upload .error::after {{content: '{failed}'}}{PORTRAIT}",
            )
        except OSError as error:  # taken since it was checked
            raise UserError(f"port {options.port} is in use; choose another --port") from error
        arguments = (page.server, cache, 60 * options.keep_minutes, uploads, running, ended)
        cleaner = threading.Thread(target=clean_up, args=arguments, daemon=True)
        cleaner.start()
        try:
            yield address
        finally:
            ended.set()
            cleaner.join()
            for work in list(running):
                work.stop.set()
            page.close(verbose=False)


def build_page(
    pretrained: Any, segment: Callable[..., DemoResult], options: PageOptions, folder: Path, running: list[Work]
) -> Any:
    """Lay out the page and connect its parts.

    Args:
        folder: for the example, uploads and results.
        running: is filled with what is being done. A run that was stopped may still work on a frame when the same
            visitor's next one begins.

    Returns:
        The ``gr.Blocks``.
    """
    cache = folder / "cache"  # the only folder whose files are served
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    import gradio as gr
    import pandas as pd

    @contextmanager
    def working(folder: Path, request: gr.Request, progress: Any) -> Iterator[tuple[Path, Callable[[Progress], None]]]:
        """Yield the path of a new folder in a folder, and a function that reports the progress or stops the block.

        The new folder is removed if the block fails. A failure is shown to the visitor in one sentence.
        """
        work = Work(str(request.session_hash), folder / uuid.uuid4().hex)
        running.append(work)
        measured = 0.0

        def report(now: Progress) -> None:
            nonlocal measured
            if work.stop.is_set():
                raise StopRun(STOPPED)
            if time.monotonic() > measured + 1:
                if is_full(cache, options):
                    raise UserError(FULL)
                measured = time.monotonic()
            total = max(now.done, now.total or 0)
            progress((now.done, total), f"{STAGES[now.stage]}, {now.rate:.1f} frames/s", unit="frames")

        with _one_sentence():
            try:
                yield work.folder, report
            except BaseException:
                shutil.rmtree(work.folder, ignore_errors=True)
                raise
            finally:
                running.remove(work)

    def link_upload(path: str | None, folder: Path) -> Path:
        """Return a link to an upload in a new folder; Gradio may remove its own copy."""
        if path is None or not Path(path).exists():
            raise UserError("there is no video, or it was removed because it was not used; upload one first")
        video = folder / "video" / Path(path).name
        video.parent.mkdir(parents=True)
        os.link(path, video)
        return video

    def in_use(result: DemoResult | None) -> DemoResult:
        """Return a result after marking its files as used: files are removed by their age."""
        if result is None or not (result.folder / OVERLAY).exists():
            raise UserError("there is no result, or it was removed because it was not used; press Find")
        own = result.folder.parents[1]
        for file in (own, *own.glob("*"), *own.glob("*/*"), *own.glob("*/*/*")):
            os.utime(file)
        return result

    scored = MODELS[pretrained.name].scored

    def inspect(path: str | None) -> Any:
        """Show the first frame of an upload."""
        if path is None:
            return {preview: gr.Image(None, label=FIRST_FRAME)}
        with _one_sentence():
            media = open_upload(Path(path), options)
            length = "picture" if media.still else f"{float((media.count or 0) / media.rate):.1f} s"
            label = f"{media.size[1]} × {media.size[0]} · {length}"
            return {
                preview: gr.Image(undistorted(first_frame(media).image, media.pixel_aspect), label=label),
                tabs: gr.Tabs(selected="preview"),
            }

    def run_preview(
        path: str | None,
        text: str,
        at: str,
        threshold: float,
        score_threshold: float,
        colours: str,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008 - Gradio's way to pass it
    ) -> dict[Any, Any]:
        """Segment a single frame of the visitor's video and show it."""
        with working(cache, request, progress) as (own, report):
            video = link_upload(path, own)
            sentences, begin = read_sentences(text, options), read_time(at, "Time of the frame") or Fraction(0)
            media = open_upload(video, options, Excerpt(begin))
            chosen = first_frame(media)
            write_picture(own / "frame.png", chosen.image)
            result = segment(
                open_media(own / "frame.png"),
                sentences,
                own / "result",
                threshold=threshold,
                score_threshold=score_threshold,
                colours=read_colours(colours, len(sentences)),
                report=report,
            )
            overlaid = undistorted(first_frame(open_media(result.folder / STILL)).image, media.pixel_aspect)
            shutil.rmtree(own)
        return {
            preview: gr.Image(overlaid, label=frame_label(f"Frame at {float(chosen.time):.2f} s", result, 0)),
            tabs: gr.Tabs(selected="preview"),
            looks: gr.Column(visible=True),
            status: "\n".join(result.lines(score_threshold)[:-1]),
        }

    def run(
        path: str | None,
        text: str,
        start: str,
        end: str,
        stride: float,
        threshold: float,
        score_threshold: float,
        colours: str,
        earlier: DemoResult | None,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008 - Gradio's way to pass it
    ) -> dict[Any, Any]:
        """Segment the visitor's video and show the result."""
        with working(cache, request, progress) as (own, report):

            def check(now: Progress) -> None:
                check_length(now.done, media.rate, options)
                report(now)

            video = link_upload(path, own)
            sentences, excerpt = read_sentences(text, options), read_excerpt(start, end, stride)
            media = open_upload(video, options, excerpt)
            check_length(media.count or 0, media.rate, options)
            target = own / uuid.uuid4().hex / "result"
            try:
                result = segment(
                    media,
                    sentences,
                    target,
                    threshold=threshold,
                    score_threshold=score_threshold,
                    colours=read_colours(colours, len(sentences)),
                    save_prob=True,
                    report=check,
                )
            except (UserError, RunError) as error:
                if not (target / MASKS).is_dir():
                    raise
                os.utime(own)
                answer = dict.fromkeys((shown, overlay, picture, sheet, scores, plot))
                answer |= {status: without_folders(str(error)), results: gr.Column(visible=True)}
                answer[downloads] = [str(zip_masks(target))]
            else:
                answer = {**show(result, 1, score_threshold), tabs: gr.Tabs(selected="video")}
        if earlier:
            shutil.rmtree(earlier.folder.parents[1], ignore_errors=True)
        return answer

    def apply(
        threshold: float,
        score_threshold: float,
        colours: str,
        number: float,
        earlier: DemoResult | None,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008 - Gradio's way to pass it
    ) -> dict[Any, Any]:
        """Show the visitor's result with other thresholds and colours; it is not segmented again."""
        with _one_sentence():
            earlier = in_use(earlier)
        with working(earlier.folder.parents[1], request, progress) as (own, report):
            chosen = read_colours(colours, len(earlier.sentences))
            result = rethreshold(
                earlier, threshold, score_threshold, own / "result", colours=chosen, report=report, show=False
            )
            answer = show(result, number, score_threshold)
        shutil.rmtree(earlier.folder.parent, ignore_errors=True)
        return answer

    def export(
        names: list[str],
        result: DemoResult | None,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008 - Gradio's way to pass it
    ) -> dict[Any, Any]:
        """Add the masks of the visitor's result in further formats to the downloads."""
        with _one_sentence():
            result = in_use(result)
            if not names:
                raise UserError("no format is chosen; choose one or more")
            check_formats(names, len(result.sentences))
        with working(result.folder.parents[1], request, progress) as (_, report):
            failures = export_again(result, names, report=report, show=False)
            for name in set(names) - failures.keys():
                exported = result.folder / Path(FORMATS[name].path).parts[0]
                if exported.is_dir():
                    pack(result.folder.with_name(f"{name}.zip"), exported, sorted(exported.rglob("*.*")))
                    shutil.rmtree(exported)
                else:
                    exported.replace(result.folder.with_name(exported.name))
        notes = [f"{name} could not be made: {reason}" for name, reason in failures.items()]
        return {status: without_folders("\n".join(notes)) or "The downloads are complete.", downloads: files_of(result)}

    def files_of(result: DemoResult) -> list[str]:
        """Return the files to download."""
        files = [file for file in sorted(result.folder.parent.iterdir()) if file.is_file()]
        return [str(file) for file in (*files, result.folder / OVERLAY, result.folder / SHEET)]

    def show(result: DemoResult, number: float, score_threshold: float) -> dict[Any, Any]:
        """Show a result, and one frame of it."""
        count = len(result.times)
        notes = [f"{count} frame{'s'[: count > 1]}, {count / result.seconds:.1f} per second", *result.run.media.notes]
        names = [f"{i}  {sentence.text[:40]}" for i, sentence in enumerate(result.sentences, start=1)]
        values = result.scores
        rows = [] if values is None else [(t + 1, n, values[t, i]) for i, n in enumerate(names) for t in range(count)]
        colours = {
            name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in zip(names, result.run.colours, strict=True)
        }
        below = "" if values is None else f" below the threshold of {score_threshold:g}, so"
        empty = "all its masks are empty"
        verdicts = [
            f"not found:{below} {empty}" if not s.found else "found" if s.number in result.run.shown else empty
            for s in result.sentences
        ]
        zip_masks(result.folder)
        return {
            shown: result,
            status: without_folders(". ".join(notes)) + ".",
            results: gr.Column(visible=True),
            looks: gr.Column(visible=True),
            apply_button: gr.Button(visible=True),
            overlay: str(result.folder / OVERLAY),
            frame: gr.Slider(value=min(number, count), maximum=max(2, count), visible=count > 1),
            picture: look(number, result),
            sheet: str(result.folder / SHEET),
            scores: [
                [s.number, s.text, "–" if s.score is None else f"{s.score:.2f}", verdict]
                for s, verdict in zip(result.sentences, verdicts, strict=True)
            ],
            plot: gr.LinePlot(pd.DataFrame(rows, columns=["frame", "sentence", "score"]), color_map=colours),
            downloads: files_of(result),
        }

    def look(number: float, result: DemoResult | None) -> Any:
        """Show one frame of the result, numbered from 1."""
        with _one_sentence():
            result = in_use(result)
            i = min(max(1, int(number)), len(result.times)) - 1
            # Start halfway after the previous frame, so that rounding of times does not matter.
            begin = (result.times[i] + result.times[i - 1]) / 2 if i else Fraction(0)
            media = open_media(result.folder / OVERLAY, Excerpt(begin))
            image = undistorted(first_frame(media).image, media.pixel_aspect)
            return gr.Image(image, label=frame_label(f"Frame {i + 1}", result, i))

    def leave(request: gr.Request) -> None:
        """Stop the runs of a visitor who closes the page."""
        for work in list(running):
            if work.session == str(request.session_hash):
                work.stop.set()

    def stop_run(request: gr.Request) -> str:
        """Stop the run of a visitor who asked for it."""
        leave(request)
        return STOPPED

    def check_inputs(function: Any, values: list[Any]) -> None:
        """Refuse values that the page's own elements do not send, before Gradio looks for files in them."""
        with _one_sentence():
            if len(values) != len(function.inputs):
                raise UserError("the request is incomplete; reload the page")
            for element, value in zip(function.inputs, values, strict=True):
                name = str(element.label).partition(":")[0]
                if isinstance(element, gr.Textbox) and not is_text(value):
                    raise UserError(f"{name} must be a text; reload the page")
                if isinstance(element, gr.Slider | gr.Number):
                    low, high = element.minimum or 0, element.maximum or 0
                    if not is_number(value) or not low <= value <= high:
                        raise UserError(f"{name} must be a number from {low:g} to {high:g}; correct it")
                if isinstance(element, gr.CheckboxGroup) and not is_choice(
                    value, [name for _, name in element.choices]
                ):
                    raise UserError(f"{name} must be some of those that the page offers; reload the page")
                if isinstance(element, gr.File) and value is not None and not is_upload(value, cache):
                    raise UserError("there is no such file, or it was removed because it was not used; upload it again")

    age = max(1, round(60 * options.keep_minutes))  # seconds
    image: dict[str, Any] = {"interactive": False, "buttons": ["download", "fullscreen"]}  # not Gradio's "share"
    beside: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Blocks(title="Objects by sentences", analytics_enabled=False, delete_cache=(min(60, age), age)) as page:
        gr.Markdown(
            f"# Find objects by sentences\n{MODELS[pretrained.name].title} · {pretrained.checkpoint.name}\n\nLimits: "
            f"{options.max_seconds:g} s, {options.max_frames} frames, {options.max_megabytes:g} MB and "
            f"{options.max_sentences} sentences at a time. Files are removed after {options.keep_minutes:g} minutes."
        )
        shown = gr.State(None)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                upload = gr.File(label="Video, GIF or picture", height=160, elem_id="upload")
                text = gr.Textbox(
                    "",
                    label="Objects to find: one sentence per line",
                    placeholder="the dog chasing the ball\nthe ball",
                    lines=3,
                    max_lines=options.max_sentences,
                    elem_id="sentences",
                )
                if pretrained.checkpoint.resolve() == TOY_CHECKPOINT:
                    gr.Markdown("The bundled toy weights are trained on moving coloured shapes only.")
                    example = write_example(folder)
                    gr.Button("Use the example", size="sm", elem_id="example").click(
                        lambda: example, None, [upload, text], **beside
                    )
                with gr.Accordion("Options", open=False, elem_id="options"), gr.Row():
                    start = gr.Textbox("", label="From", placeholder="0 or 1:02", min_width=90)
                    end = gr.Textbox("", label="To", placeholder="the end", min_width=90, elem_id="end")
                    stride = gr.Number(1, label="Stride", precision=0, minimum=1, maximum=MAX_STRIDE, min_width=90)
                with gr.Row():
                    find = gr.Button("Find", variant="primary", elem_id="find")
                    stop = gr.Button("Stop", variant="stop", elem_id="stop")
                status = gr.Textbox(label="Progress", lines=3, interactive=False, elem_id="status")
            with gr.Column(scale=7, min_width=420):
                with gr.Tabs(elem_id="tabs") as tabs:
                    with gr.Tab("Preview", id="preview"):
                        preview = gr.Image(label=FIRST_FRAME, format="jpeg", elem_id="preview", **image)
                        with gr.Row(equal_height=True):
                            at = gr.Textbox(
                                "",
                                label="Time of the frame",
                                placeholder="Time of the frame: 0 or 1:02",
                                container=False,
                                scale=3,
                                elem_id="at",
                            )
                            try_out = gr.Button("Preview this frame", elem_id="try")
                    with gr.Tab("Video", id="video"):
                        overlay = gr.Video(show_label=False, buttons=[], elem_id="overlay")
                    with gr.Tab("Frame by frame"):
                        frame = gr.Slider(1, options.max_frames, 1, step=1, label="Frame", elem_id="frame")
                        picture = gr.Image(format="jpeg", elem_id="picture", **image)
                    with gr.Tab("Contact sheet"):
                        sheet = gr.Image(show_label=False, elem_id="sheet", **image)
                with gr.Column(visible=False) as looks:
                    with gr.Row():
                        slider = partial(gr.Slider, 0, 1, step=0.01)
                        level = slider(pretrained.options.threshold, label="Mask threshold", elem_id="level")
                        least = slider(
                            pretrained.options.score_threshold, label="Score threshold", visible=scored, elem_id="least"
                        )
                    with gr.Row(equal_height=True):
                        colours = gr.Textbox(
                            "",
                            label="Colours",
                            placeholder="Colours, one for each sentence: orange, #3cc8ff",
                            container=False,
                            scale=3,
                            elem_id="colours",
                        )
                        apply_button = gr.Button("Apply", visible=False, elem_id="apply")
                with gr.Column(visible=False, elem_id="results") as results:
                    scores = gr.Dataframe(headers=["", "Sentence", "Score", "Result"], wrap=True, elem_id="scores")
                    plot = gr.LinePlot(x="frame", y="score", color="sentence", y_lim=[0, 1], height=200, visible=scored)
                    formats = gr.CheckboxGroup(
                        [(f"{name}: {kind.help}", name) for name, kind in FORMATS.items() if kind.write],
                        label="Further formats",
                        elem_id="formats",
                    )
                    export_button = gr.Button("Make these downloads", elem_id="export")
                    downloads = gr.File(label="Downloads", interactive=False, elem_id="downloads")
        buttons = (try_out, find, apply_button, export_button)
        # Before the events below, or it would close their errors as well.
        gr.on([upload.change, *(button.click for button in buttons)], js=CLOSE_ERRORS)
        upload.change(inspect, upload, [preview, tabs], concurrency_limit=2, **beside)
        asked = [upload, text, start, end, stride, level, least, colours, shown]
        found = [shown, status, results, looks, apply_button, overlay, frame, picture, sheet, scores, plot, downloads]
        # One thing is segmented at a time, so a visitor has one run.
        work: dict[str, Any] = {"show_progress_on": status, "concurrency_id": "work", "api_visibility": "private"}
        seen = [preview, tabs, looks, status]
        events = [
            try_out.click(run_preview, [upload, text, at, level, least, colours], seen, **work),
            find.click(run, asked, [*found, tabs], **work),
            apply_button.click(apply, [level, least, colours, frame, shown], found, **work),
            export_button.click(export, [formats, shown], [status, downloads], **work),
        ]
        stop.click(stop_run, None, status, cancels=events, queue=False, **beside)
        frame.input(
            look, [frame, shown], picture, preprocess=False, trigger_mode="always_last", concurrency_limit=2, **beside
        )
        page.unload(leave)
    page.validate_inputs = check_inputs
    return page.queue(max_size=options.queue, default_concurrency_limit=1)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn every error into a ``gr.Error`` of one sentence that names no folder of the server."""
    import gradio as gr

    try:
        yield
        return
    except (StopRun, UserError, RunError) as error:
        message = without_folders(str(error))
    except Exception:  # a bug: the terminal gets the traceback, the visitor does not
        traceback.print_exc()
        message = UNKNOWN
    raise gr.Error(escape(message), duration=None, print_exception=False)


def without_folders(message: str) -> str:
    """Shorten the path of every upload or result in a message to its file name."""
    return re.sub(re.escape(os.environ["GRADIO_TEMP_DIR"]) + r"/\S*/", "", message)


def is_text(value: Any) -> bool:
    """Return whether a visitor's value is a text that can be written to a file."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def is_number(value: Any) -> bool:
    """Return whether a visitor's value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_choice(value: Any, choices: Sequence[Any]) -> bool:
    """Return whether a visitor's value is a list of choices."""
    return isinstance(value, list) and len(value) <= len(choices) and all(each in choices for each in value)


def is_upload(value: Any, cache: Path) -> bool:
    """Return whether a visitor's value is a file in the cache, in Gradio's form."""
    try:
        path = Path(value["path"]).resolve()
        return value["meta"] == {"_type": "gradio.FileData"} and path.is_file() and path.is_relative_to(cache.resolve())
    except (TypeError, KeyError, ValueError, OSError):
        return False


def read_sentences(text: str, options: PageOptions) -> list[str]:
    """Return the typed sentences, one per non-empty line; raise ``UserError`` if there are none or too many."""
    sentences = [" ".join(line.split()) for line in text.splitlines() if normalise_sentence(line)]
    if not sentences:
        raise UserError("there is no sentence yet; describe the objects, one per line")
    if len(sentences) > options.max_sentences:
        raise UserError(
            f"there are {len(sentences)} sentences, but this page takes at most {options.max_sentences}; remove some"
        )
    for number, sentence in enumerate(sentences, start=1):
        if len(sentence) > MAX_CHARACTERS:
            raise UserError(f"sentence {number} has {len(sentence)} characters; shorten it to {MAX_CHARACTERS}")
    return sentences


def read_time(text: str, name: str) -> Fraction | None:
    """Return a time that a visitor typed, or None for an empty text; raise ``UserError`` if it cannot be read."""
    if len(text) > MAX_TIME_CHARACTERS:
        raise UserError(f"{name} has {len(text)} characters; it must be a time such as 12.5 or 1:02")
    return parse_time(text, name) if text.strip() else None


def read_colours(text: str, count: int) -> list[Colour]:
    """Return the colours that a visitor typed, one per sentence; raise ``UserError`` if they cannot be read."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"Colours has {len(text)} characters; shorten it to {MAX_CHARACTERS}")
    return object_colours(count, text.replace(",", " ").split(), "Colours")


def read_excerpt(start: str, end: str, stride: float) -> Excerpt:
    """Return the part of a video that a visitor chose; raise ``UserError`` if a time cannot be read."""
    first, last = read_time(start, "From") or Fraction(0), read_time(end, "To")
    if last is not None and last <= first:
        raise UserError("To must be later than From")
    return Excerpt(first, last, max(1, int(stride or 1)))


def frame_label(name: str, result: DemoResult, number: int) -> str:
    """Return the label of a frame's picture, with the score of each sentence if the model predicts any."""
    if result.scores is None:
        return name
    return f"{name} · score " + ", ".join(f"{score:.2f}" for score in result.scores[number])


def open_upload(path: Path, options: PageOptions, excerpt: Excerpt = WHOLE) -> Media:
    """Open an uploaded video; raise ``UserError`` if it cannot be read or is too large.

    The size is compared before anything is decoded, and again afterwards, since headers can be wrong.
    """
    check_header(path, options)
    media = open_media(path, excerpt)
    check_side(path, media.size, options)
    return media


def first_frame(media: Media) -> MediaFrame:
    """Return the first frame of a video's excerpt, with its image."""
    with closing(media.frames()) as frames:
        return next(frames)


def undistorted(image: np.ndarray, aspect: Fraction) -> np.ndarray:
    """Shrink one side of an image so that its pixels, which are ``aspect`` times as wide as high, are square."""
    height, width = image.shape[:2]
    size = max(1, round(width * min(aspect, 1))), max(1, round(height / max(aspect, 1)))
    return np.asarray(Image.fromarray(image).resize(size))


def check_header(path: Path, options: PageOptions) -> None:
    """Raise ``UserError`` if a file says that it is too large to be decoded, by its content and whatever its name."""
    try:
        with open_image(path, IMAGE_FORMATS) as image:
            width, height = image.size
            animated = image.format in ANIMATED_FORMATS
            frames = getattr(image, "n_frames", 1) if animated else 1
    except Image.DecompressionBombError:
        raise UserError(f"{path} is a picture of far too many pixels; upload a smaller one") from None
    except BROKEN_IMAGE as error:
        if path.suffix.lower() in IMAGE_SUFFIXES and path.stat().st_size:
            raise UserError(f"cannot read {path}; it is damaged or not a picture of a usual kind") from error
    else:
        check_side(path, (height, width), options)
        if frames > 1 and frames * width * height > MAX_ANIMATED_PIXELS:
            raise UserError(f"{path} is animated and has {frames} frames of {width}×{height}; upload it as a video")
    if path.suffix.lower() not in IMAGE_SUFFIXES and path.stat().st_size:
        with open_container(path) as container:
            stream = video_stream(container, path)
            check_side(path, (stream.height or 0, stream.width or 0), options)
            if (container.duration or 0) > 3600 * MAX_HOURS * 1_000_000:
                raise UserError(f"{path} is longer than {MAX_HOURS} hours; upload a part of it")


def check_side(path: Path, size: tuple[int, int], options: PageOptions) -> None:
    """Raise ``UserError`` if frames of a size (H, W) are too large."""
    height, width = size
    if max(size) > options.max_side:
        raise UserError(
            f"{path} is {width}×{height}, but this page takes at most {options.max_side} pixels per side; upload a "
            "smaller video"
        )


def check_length(frames: int, rate: Fraction, options: PageOptions) -> None:
    """Raise ``UserError`` if a video is too long; headers can be wrong, so a run also checks the frames it has read."""
    if frames > options.max_frames or frames / rate > options.max_seconds + 0.5:
        raise UserError(
            f"this part lasts at least {float(frames / rate):.1f} s and has at least {frames} frames, but this page "
            f"takes at most {options.max_seconds:g} s and {options.max_frames} frames; choose a shorter part with From "
            "and To under Options, or a larger stride"
        )


def zip_masks(folder: Path) -> Path:
    """Pack masks, ``masks.json`` and contact sheet into ``masks.zip`` beside a result's folder; return its path."""
    paths = (*sorted((folder / MASKS).rglob("*.png")), folder / MASKS_FILE, folder / SHEET)
    return pack(folder.with_name("masks.zip"), folder, [path for path in paths if path.exists()])


def pack(target: Path, folder: Path, paths: Sequence[Path]) -> Path:
    """Pack files of a folder into an archive; return its path."""
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in paths:  # only JSON gets smaller
            kind = zipfile.ZIP_DEFLATED if path.suffix == ".json" else zipfile.ZIP_STORED
            archive.write(path, path.relative_to(folder), kind)
    return target


def write_example(folder: Path) -> tuple[str, str]:
    """Write a toy video; return its path and the sentences that name its objects, one per line."""
    from datasets.toy import ToyParameters, make_video
    from datasets.toy.scene import KINDS, render_frames

    toy = make_video(ToyParameters(0, 1, 0, frames=24, height=320, width=480, seed=0, kinds=KINDS), "valid", 0)
    named = {sentence.obj_id: sentence.text for sentence in reversed(toy.sentences) if sentence.obj_id is not None}
    path = folder / "moving shapes.mp4"
    write_video(path, render_frames(toy.scene), fps=8)
    return str(path), "\n".join(named[number] for number in sorted(named))


if __name__ == "__main__":
    run_cli(main)
