"""Processes forked from one that has imported everything, as importing takes 7 s of CPU; a test may kill them.

The test's own process must not be forked: libraries have started threads in it. So this module is run as a process,
which forks for every line that it reads.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.conftest import ROOT


class Forks:
    """Starts functions of ``tests.survival_jobs`` in processes of their own."""

    def __enter__(self) -> Self:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.server.kill()
        self.server.wait()

    def start(self, output: Path, function: str, *arguments: Any, **env: str) -> int:
        """Start a function; what it prints goes to the end of ``output``.

        Returns:
            the process's id.
        """
        return self._ask({"output": str(output), "function": function, "arguments": arguments, "env": env})

    def start_together(self, outputs: list[Path], function: str, *arguments: Any) -> list[int]:
        """Start a function in several processes, one for each of ``outputs``, that torchrun could have started."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(len(outputs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            self.start(output, function, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
            for rank, output in enumerate(outputs)
        ]

    def run(self, said: Path, processes: int, program: str, *words: object, kill_when: Path | None = None) -> str:
        """Run a program by several processes, which must all succeed.

        Args:
            said: a new folder for what they print.
            processes: their number.
            program: a function of ``tests.survival_jobs`` such as ``run_main``.
            words: of the command line.
            kill_when: a file, at whose appearance all processes are killed instead, before any has ended.

        Returns:
            what all have printed, one after the other.
        """
        said.mkdir()
        outputs = [said / f"{rank}.txt" for rank in range(processes)]
        pids = self.start_together(outputs, program, *map(str, words))
        if kill_when:
            while not kill_when.exists():
                assert self.poll(pids[0]) is None, outputs[0].read_text()[-3000:]
                time.sleep(0.001)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        found, text = [self.wait(pid) for pid in pids], "".join(output.read_text() for output in outputs)
        assert found == [-signal.SIGKILL if kill_when else 0] * processes, text[-3000:]
        return text

    def warm(self, *flags: str) -> None:
        """Build the model of these flags once in the process that is forked: what that imports is there then."""
        self._ask({"warm": flags})

    def poll(self, pid: int) -> int | None:
        """A process's exit status, negative for a signal, or None while it runs; to be asked for once after its end."""
        return self._ask({"poll": pid})

    def wait(self, pid: int, seconds: float = 1800) -> int:
        """The same when it has ended."""
        end = time.monotonic() + seconds
        while (status := self.poll(pid)) is None:
            assert time.monotonic() < end, f"process {pid} has not ended"
            time.sleep(0.05)
        return status

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self.server.stdin and self.server.stdout
        print(json.dumps(request), file=self.server.stdin, flush=True)
        answer = self.server.stdout.readline()
        assert answer, "the process that forks has ended; its message is above"
        return json.loads(answer)


def serve() -> None:
    """Fork for every request on stdin; returns in the forked processes, to run what was asked for."""
    import torch

    torch.set_num_threads(1)
    jobs = importlib.import_module("tests.survival_jobs")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        if "warm" in request:
            jobs.warm(request["warm"])
            print("null", file=answers, flush=True)
            continue
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), file=answers, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            answers.close()
            _run(request)
            return
        print(pid, file=answers, flush=True)


def _run(request: dict[str, Any]) -> None:
    for name, descriptor in ((os.devnull, 0), (request["output"], 1), (request["output"], 2)):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
    os.environ.update(request["env"])
    jobs = importlib.import_module("tests.survival_jobs")
    getattr(jobs, request["function"])(*request["arguments"])


if __name__ == "__main__":
    serve()
