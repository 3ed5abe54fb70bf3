"""A page in the browser: drop a video, type sentences, look at the objects, download their masks.

python -m scripts.web_demo [--resume runs/vdit/checkpoint.pth] [--port 7860]

It serves this machine alone (127.0.0.1) unless ``--host`` says otherwise; ``docs/web_demo.md`` says more. Without
``--resume`` it shows the carried toy weights.
"""

from __future__ import annotations

import dataclasses
import socket
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from demo import every_option, split_flags
from util.errors import UserError, orderly_end, run_cli
from util.options import option, read_flags

DESCRIPTION = "Serve a page on which a video is dropped and sentences are typed, and masks come out."
TOY = Path(__file__).resolve().parents[1] / "toy" / "vdit.safetensors"
LOOPBACK = "127.0.0.1"

_page = partial(option, "page")


@dataclasses.dataclass(frozen=True)
class PageOptions:
    """What the page is asked to be, beside ``Config``."""

    host: str = _page(LOOPBACK, "address to serve; 0.0.0.0 lets everyone in who reaches this machine")
    port: int = _page(7860, "port to serve; 0 takes a free one", minimum=0, maximum=65535)
    max_megabytes: float = _page(200.0, "largest file", above=0)
    max_seconds: float = _page(60.0, "longest part of a video that is segmented at once", above=0)
    max_frames: int = _page(900, "frames that are segmented at once", minimum=1)
    max_side: int = _page(4096, "longer side of a video, in pixels", minimum=1)
    max_sentences: int = _page(8, "sentences at once", minimum=1)
    queue: int = _page(8, "visitors who may wait while another one's video is segmented", minimum=1)
    keep_minutes: float = _page(30.0, "after so long without a sign of a visitor, the visitor's files go", above=0)
    window: int = _page(36, "frames that the model sees together", minimum=1)
    overlap: int | str = _page("auto", "frames that two windows share (see demo.py)", minimum=0, auto=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until a signal ends it (``argv`` without the program's name; None: the process's own)."""
    options, given = read_command(argv)
    require_gradio()
    from models.pretrained import open_pretrained
    from scripts.web_server import page_app, serve
    from scripts.web_sessions import Workspace

    with orderly_end(), listen(options.host, options.port) as server, Workspace(60 * options.keep_minutes) as workspace:
        pretrained = open_pretrained(given.pop("resume", "") or str(TOY), "--resume", {"device": "auto", **given})
        for note in pretrained.notes:
            print(f"note: {note}")
        if options.host not in (LOOPBACK, "localhost", "::1"):
            print(f"note: everyone who reaches {options.host} can use this page", file=sys.stderr)
        is_toy = pretrained.checkpoint.resolve() == TOY
        serve(server, page_app(pretrained, workspace, options, is_toy))


def read_command(argv: Sequence[str] | None = None) -> tuple[PageOptions, dict[str, Any]]:
    """The page's options, and those of ``Config`` that are set.

    Raises:
        UserError: a flag is unknown or wrong.
    """
    return split_flags(PageOptions, read_flags(every_option(PageOptions), argv, DESCRIPTION))


def require_gradio() -> None:
    """Refuse to go on without Gradio.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio, which is not installed; run: bash scripts/setup.sh --web")


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        UserError: the address is none of this machine, or the port is taken or reserved.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.socket(family, kind, protocol)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot serve {host}:{port} ({reason}); choose another --port or --host") from error
    return server


if __name__ == "__main__":
    run_cli(main)
