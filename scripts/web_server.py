"""The server of the page: Gradio behind a socket that is open already, and nothing from any other address."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.toy import ToyParameters, make_video
from datasets.toy.scene import KINDS, render_frames
from demo import segment_to_folder
from models.pretrained import Pretrained
from scripts.web_sessions import SESSIONS, Workspace
from scripts.web_video import Example, Limits
from util.video import open_video

if TYPE_CHECKING:
    from scripts.web_demo import PageOptions

TITLES = {"vdit": "VD-IT", "hcd": "HCD"}
TOY_NOTE = "These are the carried toy weights: they know coloured shapes that move, and nothing else."
EXAMPLE = ToyParameters(0, 1, 0, frames=24, height=320, width=480, seed=0, kinds=KINDS)
EXAMPLE_RATE = 8  # frames per second
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)
"""Content-Security-Policy: browsers fetch nothing from another address, whatever Gradio's pages name."""
UNUSED = ("vibe", "process_recording", "proxy=", "/mcp")
"""Parts of addresses of Gradio's that this page has no use for."""


def serve(server: socket.socket, app: Callable[..., Any]) -> None:
    """Serve the page until a signal comes.

    Args:
        server: bound to its address.
        app: of ``page_app``.
    """
    import uvicorn

    server.listen()
    host, port = server.getsockname()[:2]
    print(f"serving http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[server])


def page_app(pretrained: Pretrained, workspace: Workspace, options: PageOptions, is_toy: bool) -> Callable[..., Any]:
    """The page as an ASGI application.

    Args:
        pretrained: the model.
        workspace: for files.
        options: of the page.
        is_toy: the model is the carried one; an example suits it.
    """
    # Gradio reads these as it is imported, and at every upload
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(workspace.folder))
    from fastapi import FastAPI
    from gradio import mount_gradio_app

    from scripts.web_page import Page, build
    from scripts.web_style import CSS, theme

    segment = partial(
        segment_to_folder,
        pretrained,
        window=options.window,
        overlap=None if options.overlap == "auto" else int(options.overlap),
        show=False,
    )
    limits = Limits(
        options.max_megabytes, options.max_seconds, options.max_frames, options.max_side, options.max_sentences
    )
    page = Page(workspace, segment, limits, write_example(workspace.folder / SESSIONS) if is_toy else None)
    title = f"{TITLES[pretrained.name]} · {pretrained.checkpoint.name}"
    blocks = build(
        page, title, [TOY_NOTE] if is_toy else [], pretrained.options.threshold, pretrained.options.score_threshold
    )
    blocks.queue(max_size=options.queue, default_concurrency_limit=1)
    app = mount_gradio_app(
        FastAPI(),
        blocks,
        "/",
        footer_links=[],
        run_history=False,
        max_file_size=int(options.max_megabytes * 2**20),
        ssr_mode=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
    )
    return from_here_alone(app)


def from_here_alone(app: Callable[..., Any]) -> Callable[..., Any]:
    """The same ASGI application without what is not used, and with a header that forbids to fetch from elsewhere."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        if any(part in scope.get("path", "") for part in UNUSED):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await app(scope, receive, send_with_policy)

    return wrapped


def write_example(folder: Path) -> Example:
    """Make a toy video and sentences that name its objects, one for each."""
    folder.mkdir(parents=True, exist_ok=True)
    video = make_video(EXAMPLE, "valid", 0)
    named = {sentence.obj_id: sentence.text for sentence in reversed(video.sentences) if sentence.obj_id is not None}
    path = folder / "moving shapes.mp4"
    with open_video(path, Fraction(EXAMPLE_RATE)) as movie:
        for number, frame in enumerate(render_frames(video.scene)):
            movie.write(frame, Fraction(number, EXAMPLE_RATE), Fraction(1, EXAMPLE_RATE))
    return Example(path, tuple(named[number] for number in sorted(named)))
