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

from PIL import Image

from demo import MASKS, MASKS_FILE, OVERLAY, SHEET, WINDOW, DemoResult, Progress, read_options
from util.config import MODELS
from util.drawing import colour_of
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
    open_container,
    open_media,
    parse_time,
    video_stream,
    write_video,
)

DESCRIPTION = "Serve a web page that segments the objects that sentences name in uploaded videos."
TOY_CHECKPOINT = ROOT / "toy" / "vdit.safetensors"
TITLES = {"vdit": "VD-IT", "hcd": "HCD", "rem": "REM"}
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
STAGES = {"segment": "Segmenting", "draw": "Drawing the overlay"}
STOPPED = "Stopped. Nothing of this run is kept."
UNKNOWN = "something went wrong on the server; the terminal where the page was started shows what"

_page = partial(option, "page")


@dataclasses.dataclass(frozen=True)
class PageOptions:
    """Options of the page, in addition to those of ``Config``."""

    host: str = _page(LOOPBACK, "address to serve; 0.0.0.0 admits everyone who can reach this machine")
    port: int = _page(7860, "port to serve; 0 picks a free one", minimum=0, maximum=65535)
    trusted_hosts: str = _page("", "further names by which visitors reach this page, separated by commas")
    max_megabytes: float = _page(200.0, "maximum size of an upload, in megabytes", above=0)
    max_total_megabytes: float = _page(2000.0, "refuse uploads while all files together exceed this size", above=0)
    max_seconds: float = _page(60.0, "maximum length of a part that is segmented at once, in seconds", above=0)
    max_frames: int = _page(900, "maximum number of frames segmented at once", minimum=1)
    max_side: int = _page(4096, "maximum of a video's longer side, in pixels", minimum=1)
    max_sentences: int = _page(8, "maximum number of sentences at once", minimum=1)
    queue: int = _page(8, "maximum number of visitors who wait while a video is segmented", minimum=1)
    keep_minutes: float = _page(30.0, "remove uploads and results that were not used for this many minutes", above=0)
    window: int = _page(WINDOW, "number of frames that the model sees together", minimum=1)
    overlap: int | str = _page(
        "auto",
        "number of frames that two windows share, by which an object is followed; auto is 6, or half of a short window",
        minimum=0,
        auto=True,
    )


class StopRun(Exception):
    """The visitor stopped the run or left, or the program ends."""


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
                    if await asyncio.to_thread(total_size, self.cache) + self.expected > (
                        self.options.max_total_megabytes * 2**20
                    ):
                        raise Refused(507, "the page holds too many files at the moment; upload yours in a few minutes")
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
                size += Path(place, name).lstat().st_size
    return size


def clean_up(server: Any, cache: Path, uploads: list[float], ended: threading.Event) -> None:
    """Close idle connections, and remove what broken uploads left in the cache, until the program ends.

    Args:
        server: the ``uvicorn.Server``. It closes a connection after an answer, but not one that never asks.
        uploads: the start of each upload that is being received.
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
    from models.pretrained import open_pretrained

    with orderly_end():
        checkpoint = given.pop("resume", "") or str(TOY_CHECKPOINT)
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

    running: dict[str, threading.Event] = {}
    uploads: list[float] = []
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        # At its start, Gradio sends requests to its own server, which must not go through a proxy.
        unproxied = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = ",".join(filter(None, (unproxied, options.host, "localhost")))
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
            )
        except OSError as error:  # taken since it was checked
            raise UserError(f"port {options.port} is in use; choose another --port") from error
        cleaner = threading.Thread(target=clean_up, args=(page.server, cache, uploads, ended), daemon=True)
        cleaner.start()
        try:
            yield address
        finally:
            ended.set()
            cleaner.join()
            for stop in list(running.values()):
                stop.set()
            page.close(verbose=False)


def build_page(
    pretrained: Any,
    segment: Callable[..., DemoResult],
    options: PageOptions,
    folder: Path,
    running: dict[str, threading.Event],
) -> Any:
    """Lay out the page and connect its parts.

    Args:
        folder: for the example, uploads and results.
        running: is filled with an event for each visitor whose video is being segmented; setting it stops the run.

    Returns:
        The ``gr.Blocks``.
    """
    cache = folder / "cache"  # the only folder whose files are served
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    import gradio as gr
    import pandas as pd

    scored = MODELS[pretrained.name].scored

    def inspect(path: str | None) -> Any:
        """Show the first frame of an upload."""
        if path is None:
            return gr.Image(None, visible=False)
        with _one_sentence():
            media = open_upload(Path(path), options)
            with closing(media.frames()) as frames:
                length = "picture" if media.still else f"{float((media.count or 0) / media.rate):.1f} s"
                label = f"{media.size[1]} × {media.size[0]} · {length}"
                return gr.Image(next(frames).image, label=label, visible=True)

    def run(
        path: str | None,
        text: str,
        start: str,
        end: str,
        stride: float,
        threshold: float,
        score_threshold: float,
        earlier: DemoResult | None,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008 - Gradio's way to pass it
    ) -> dict[Any, Any]:
        """Segment the visitor's video and show the result."""
        stop = running[str(request.session_hash)] = threading.Event()

        def report(now: Progress) -> None:
            if stop.is_set():
                raise StopRun(STOPPED)
            check_length(now.done, media.rate, options)
            total = max(now.done, now.total or 0)
            progress((now.done, total), f"{STAGES[now.stage]}, {now.rate:.1f} frames/s", unit="frames")

        own = cache / uuid.uuid4().hex
        with _one_sentence():
            try:
                if path is None or not Path(path).exists():
                    raise UserError("there is no video, or it was removed because it was not used; upload one first")
                sentences, excerpt = read_sentences(text, options), read_excerpt(start, end, stride)
                own.mkdir(parents=True)
                video = own / Path(path).name
                os.link(path, video)  # Gradio may remove its own copy before the run ends
                media = open_upload(video, options, excerpt)
                check_length(media.count or 0, media.rate, options)
                limits = {"threshold": threshold, "score_threshold": score_threshold}
                result = segment(media, sentences, own / "result", report=report, **limits)
                masks = zip_masks(result)
            except BaseException:
                shutil.rmtree(own, ignore_errors=True)
                raise
            finally:
                running.pop(str(request.session_hash), None)
        video.unlink()
        (result.folder / MASKS_FILE).unlink()
        for old in (result.folder / MASKS, *([earlier.folder.parent] if earlier else [])):
            shutil.rmtree(old, ignore_errors=True)
        count = len(result.times)
        notes = [f"{count} frame{'s'[: count > 1]}, {count / result.seconds:.1f} per second", *media.notes]
        names = [f"{i}  {sentence.text[:40]}" for i, sentence in enumerate(result.sentences, start=1)]
        values = result.scores
        rows = [] if values is None else [(t + 1, n, values[t, i]) for i, n in enumerate(names) for t in range(count)]
        colours = {name: "#{:02x}{:02x}{:02x}".format(*colour_of(i)) for i, name in enumerate(names)}
        below = "" if values is None else f" below the threshold of {score_threshold:g}, so"
        lost = f"not found:{below} all its masks are empty"
        return {
            shown: result,
            status: without_folders(". ".join(notes)) + ".",
            results: gr.Column(visible=True),
            overlay: str(result.folder / OVERLAY),
            frame: gr.Slider(value=1, maximum=max(2, count), visible=count > 1),
            picture: look(1, result),
            sheet: str(result.folder / SHEET),
            scores: [
                [s.number, s.text, "–" if s.score is None else f"{s.score:.2f}", "found" if s.found else lost]
                for s in result.sentences
            ],
            plot: gr.LinePlot(pd.DataFrame(rows, columns=["frame", "sentence", "score"]), color_map=colours),
            downloads: [str(file) for file in (masks, result.folder / OVERLAY, result.folder / SHEET)],
        }

    def look(number: float, result: DemoResult | None) -> Any:
        """Show one frame of the result, numbered from 1."""
        with _one_sentence():
            if result is None or not (result.folder / OVERLAY).exists():
                raise UserError("this result was removed because it was not used for a while; run it again")
            for file in result.folder.parent.rglob("*"):
                os.utime(file)  # it is in use: Gradio removes files by their age
            i = min(max(1, int(number)), len(result.times)) - 1
            # Start halfway after the previous frame, so that rounding of times does not matter.
            begin = (result.times[i] + result.times[i - 1]) / 2 if i else Fraction(0)
            image = next(open_media(result.folder / OVERLAY, Excerpt(begin)).frames()).image
            label = f"Frame {i + 1}"
            if result.scores is not None:
                label += " · score " + ", ".join(f"{s:.2f}" for s in result.scores[i])
            return gr.Image(image, label=label)

    def leave(request: gr.Request) -> None:
        """Stop the run of a visitor who closes the page."""
        if stop := running.get(str(request.session_hash)):
            stop.set()

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
                if isinstance(element, gr.File) and value is not None and not is_upload(value, cache):
                    raise UserError("there is no such file, or it was removed because it was not used; upload it again")

    age = max(1, round(60 * options.keep_minutes))  # seconds
    beside: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Blocks(title="Objects by sentences", analytics_enabled=False, delete_cache=(min(60, age), age)) as page:
        gr.Markdown(
            f"# Find objects by sentences\n{TITLES[pretrained.name]} · {pretrained.checkpoint.name}\n\nLimits: "
            f"{options.max_seconds:g} s, {options.max_frames} frames, {options.max_megabytes:g} MB and "
            f"{options.max_sentences} sentences at a time. Files are removed after {options.keep_minutes:g} minutes."
        )
        shown = gr.State(None)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                upload = gr.File(label="Video, GIF or picture", height=160, elem_id="upload")
                video = gr.Image(visible=False, interactive=False, height=160, buttons=[], elem_id="video")
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
                with gr.Accordion("Options", open=False, elem_id="options"):
                    with gr.Row():
                        start = gr.Textbox("", label="From", placeholder="0 or 1:02", min_width=90)
                        end = gr.Textbox("", label="To", placeholder="the end", min_width=90, elem_id="end")
                        stride = gr.Number(1, label="Stride", precision=0, minimum=1, maximum=MAX_STRIDE, min_width=90)
                    level = gr.Slider(0, 1, pretrained.options.threshold, step=0.01, label="Mask threshold")
                    least = gr.Slider(
                        *(0, 1, pretrained.options.score_threshold),
                        step=0.01,
                        label="Score threshold",
                        visible=scored,
                        elem_id="least",
                    )
                with gr.Row():
                    find = gr.Button("Find", variant="primary", elem_id="find")
                    stop = gr.Button("Stop", variant="stop", elem_id="stop")
                status = gr.Textbox(label="Progress", lines=3, interactive=False, elem_id="status")
            with gr.Column(scale=7, min_width=420, visible=False, elem_id="results") as results:
                with gr.Tab("Video"):
                    overlay = gr.Video(show_label=False, buttons=[], elem_id="overlay")
                with gr.Tab("Frame by frame"):
                    frame = gr.Slider(1, options.max_frames, 1, step=1, label="Frame", elem_id="frame")
                    picture = gr.Image(interactive=False, format="jpeg", elem_id="picture")
                with gr.Tab("Contact sheet"):
                    sheet = gr.Image(show_label=False, interactive=False, elem_id="sheet")
                scores = gr.Dataframe(headers=["", "Sentence", "Score", "Result"], wrap=True, elem_id="scores")
                plot = gr.LinePlot(x="frame", y="score", color="sentence", y_lim=[0, 1], height=200, visible=scored)
                downloads = gr.File(label="Downloads", interactive=False, elem_id="downloads")
        upload.change(inspect, upload, video, concurrency_limit=2, **beside)
        asked = [upload, text, start, end, stride, level, least, shown]
        found = [shown, status, results, overlay, frame, picture, sheet, scores, plot, downloads]
        event = find.click(run, asked, found, show_progress_on=status, api_visibility="private")
        stop.click(stop_run, None, status, cancels=event, queue=False, **beside)
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


def read_excerpt(start: str, end: str, stride: float) -> Excerpt:
    """Return the part of a video that a visitor chose; raise ``UserError`` if a time cannot be read."""
    for name, text in (("From", start), ("To", end)):
        if len(text) > MAX_TIME_CHARACTERS:
            raise UserError(f"{name} has {len(text)} characters; it must be a time such as 12.5 or 1:02")
    first = parse_time(start, "From") if start.strip() else Fraction(0)
    last = parse_time(end, "To") if end.strip() else None
    if last is not None and last <= first:
        raise UserError("To must be later than From")
    return Excerpt(first, last, max(1, int(stride or 1)))


def open_upload(path: Path, options: PageOptions, excerpt: Excerpt = WHOLE) -> Media:
    """Open an uploaded video; raise ``UserError`` if it cannot be read or is too large.

    The size is compared before anything is decoded, and again afterwards, since headers can be wrong.
    """
    check_header(path, options)
    media = open_media(path, excerpt)
    check_side(path, media.size, options)
    return media


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


def zip_masks(result: DemoResult) -> Path:
    """Pack masks, ``masks.json`` and contact sheet into ``masks.zip`` beside the result's folder; return its path."""
    target = result.folder.with_name("masks.zip")
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:  # PNGs do not get smaller
        for path in sorted((result.folder / MASKS).rglob("*.png")):
            archive.write(path, path.relative_to(result.folder))
        archive.write(result.folder / MASKS_FILE, MASKS_FILE, zipfile.ZIP_DEFLATED)
        archive.write(result.folder / SHEET, SHEET)
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
