"""One process of ``scripts/launch.py``: runs a script as Python would, and tells a stop from a crash.

To torchrun every status but 0 is a crash, after which it ends the other processes. A process that was stopped by a
signal and has saved its work ends with status 0 here, and leaves a mark; the launcher gives the status of that.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from types import FrameType

from scripts.launch import MARKER
from util.errors import REQUEUE_STATUS

STOPPING = (signal.SIGTERM, signal.SIGUSR1)


def main() -> None:
    """Run the script that the command line names, with the arguments after it."""
    for number in STOPPING:  # until the script has handlers of its own: nothing is done yet, so nothing is lost
        signal.signal(number, _stop)
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code != REQUEUE_STATUS:
            raise
        Path(os.environ[MARKER]).touch()


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(REQUEUE_STATUS)


if __name__ == "__main__":
    main()
