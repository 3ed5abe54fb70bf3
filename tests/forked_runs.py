"""Runs of main.py and inference_ytvos.py by one or more processes each, which are forked after one import:

    python -m tests.forked_runs FILE

FILE is JSON: a list of {"processes": 2, "arguments": [...]}; with "program": "inference_ytvos" of another than main.py,
and with "kill_when": a file, at whose appearance all processes are killed. Ends with the number of processes that
failed otherwise.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import torch

import inference_ytvos
import main

PROGRAMS = {"main": main.main, "inference_ytvos": inference_ytvos.main}


def run(processes: int, arguments: list[str], program: str = "main", kill_when: str = "") -> int:
    """Run a program in forked processes that torchrun could have started; how many of them failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in numbers.items()}, MASTER_ADDR="127.0.0.1")
        sys.argv = [program, *arguments]
        status = 1
        try:
            PROGRAMS[program]()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    if not kill_when:
        return sum(os.waitpid(child, 0)[1] != 0 for child in children)
    while not Path(kill_when).exists() and os.waitpid(children[0], os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with suppress(ChildProcessError):  # the first one has ended by itself, and too soon
        return sum(os.waitpid(child, 0)[1] != signal.SIGKILL for child in children)
    return len(children)


if __name__ == "__main__":
    torch.set_num_threads(1)  # before any work: threads do not survive a fork
    sys.exit(sum(run(**item) for item in json.loads(Path(sys.argv[1]).read_text())))
