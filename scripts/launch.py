"""Run a script in several processes: one per GPU, or a given number on the CPU. ``scripts/launch.sh`` calls this.

This is torchrun with two additions: signals are forwarded to every process, which then ends in its own time, and the
exit status says how the run ended.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from util.errors import (
    CLOSED_PIPE_STATUS,
    REQUEUE_STATUS,
    SIGNAL_STATUS,
    USER_ERROR_STATUS,
    Parser,
    RunError,
    UserError,
    first_line,
    run_cli,
)
from util.files import ROOT
from util.parallel import available_cores

MARKER = "LAUNCH_STOPPED"  # environment variable: path of the file that a stopped process creates
FORWARDED = {  # what a signal is forwarded as: closing the terminal ends the run like SIGTERM
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,
}
LOCALHOST = "127.0.0.1"  # a single machine may be unable to resolve its own name
MAX_THREADS = 8  # per process with a GPU: the data workers need the other cores


@dataclass(frozen=True)
class Plan:
    """What to start on this machine."""

    processes: int
    threads: str
    """OMP_NUM_THREADS of each process."""
    nodes: int
    torchrun: tuple[str, ...]
    """Command line of torchrun."""


def plan_launch(arguments: Sequence[str], env: Mapping[str, str], gpus: int, cores: int) -> Plan:
    """Read the command line and the environment variables that ``scripts/launch.sh`` documents.

    Args:
        arguments: ``[--nproc N] SCRIPT [ARGUMENTS …]``.
        env: environment variables.
        gpus: number of visible GPUs.
        cores: number of available CPU cores.

    Raises:
        UserError: a value is not a positive integer, the script does not exist, or several nodes have no endpoint.
    """
    words = list(arguments)
    asked = env.get("NPROC", "")
    if words and words[0].startswith("--nproc"):
        name, equals, value = words.pop(0).partition("=")
        if name not in ("--nproc", "--nproc_per_node") or not (equals or words):
            raise UserError(f"unknown or incomplete option {name}; use --nproc NUMBER before the script")
        asked = value if equals else words.pop(0)
    if not words:
        raise UserError("no script is given; name main.py or another script, followed by its arguments")
    script, *rest = words
    path = Path(script) if Path(script).is_file() else ROOT / script
    if not path.is_file():
        raise UserError(f"the script {script} does not exist; name main.py or the path of another script")

    flags = Parser(add_help=False)
    flags.add_argument("--device", nargs="?")
    on_cpu = not gpus or flags.parse_known_args(rest)[0].device == "cpu"
    processes = _number("the number of processes (NPROC, --nproc)", asked or str(1 if on_cpu else gpus))
    if not on_cpu and processes > gpus:
        raise UserError(f"{processes} processes need a GPU each, but only {gpus} GPUs are visible")
    nodes = _number("NNODES", env.get("NNODES") or "1")
    share = max(1, cores // processes)
    threads = share if on_cpu else min(share, MAX_THREADS)
    return Plan(
        processes=processes,
        threads=env.get("OMP_NUM_THREADS") or str(threads),
        nodes=nodes,
        torchrun=(
            *("--nproc_per_node", str(processes), *_meeting(nodes, env)),
            *("--signals_to_handle", "SIGQUIT"),  # this module handles the others
            *("--module", "scripts.launch", "--as-rank", str(path.resolve()), *rest),
        ),
    )


def _meeting(nodes: int, env: Mapping[str, str]) -> list[str]:
    """torchrun's options for how the processes of all nodes find each other."""
    endpoint, rank, run = env.get("RDZV_ENDPOINT", ""), env.get("NODE_RANK", ""), env.get("RDZV_ID", "")
    if nodes == 1:
        return ["--standalone", "--local_addr", env.get("LOCAL_ADDR") or LOCALHOST]
    if not endpoint:
        raise UserError(
            f"NNODES is {nodes}, but RDZV_ENDPOINT is not set; set it to HOST:PORT on one of the nodes, the same on all"
        )
    options = ["--nnodes", str(nodes), "--rdzv_endpoint", endpoint]
    if rank:
        number = _number("NODE_RANK", rank, least=0)
        if number >= nodes:
            raise UserError(f"NODE_RANK is {number}, but must be from 0 to {nodes - 1} (NNODES is {nodes})")
        options += ["--rdzv_backend", "static", "--node_rank", rank]
    else:
        options += ["--rdzv_backend", "c10d"]
    options += ["--rdzv_id", run or "rvos"]
    return options + (["--local_addr", env["LOCAL_ADDR"]] if env.get("LOCAL_ADDR") else [])


def _number(name: str, text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {text!r}")
    return int(text)


def main() -> int:
    """Start the processes, wait for them, and return the exit status of the run."""
    if sys.argv[1:2] == ["--as-rank"]:
        run_rank(sys.argv[2:])
        return 0

    import torch
    from torch.distributed import DistError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    plan = plan_launch(sys.argv[1:], os.environ, torch.cuda.device_count(), available_cores())
    os.environ["OMP_NUM_THREADS"] = plan.threads
    if "LOGLEVEL" not in os.environ:  # torchrun's own logs; the report below replaces them
        logging.disable(logging.ERROR)
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup ignores SIGHUP
            signal.signal(number, _forward)
    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        marker = Path(folder) / "stopped"
        os.environ[MARKER] = str(marker)
        try:
            torchrun.run(torchrun.parse_args(list(plan.torchrun)))
        except ChildFailedError as error:
            return _report_failure({rank: failure.exitcode for rank, failure in error.failures.items()})
        except (RendezvousError, DistError) as error:
            raise RunError(
                f"the {plan.nodes} nodes did not find each other ({first_line(error)}); start each with the same "
                "NNODES, RDZV_ENDPOINT and RDZV_ID"
            ) from error
        return REQUEUE_STATUS if marker.exists() else 0


def run_rank(arguments: list[str]) -> None:
    """Run a script in this process, which torchrun has started.

    To torchrun every status but 0 is a crash, after which it ends the other processes. So a process that was stopped by
    a signal and has saved its work exits with 0 and creates the marker file, from which the launcher takes the status.

    Args:
        arguments: path of the script and its arguments.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(REQUEUE_STATUS)

    for number in (signal.SIGTERM, signal.SIGUSR1):  # until the script sets its own handlers there is nothing to lose
        signal.signal(number, stop)
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code != REQUEUE_STATUS:
            raise
        Path(os.environ[MARKER]).touch()


def _forward(number: int, frame: FrameType | None) -> None:
    """Send a signal on to the processes of this machine, each of which has a session of its own.

    Before they are started, while this machine waits for others, the signal ends the launcher.
    """
    processes = psutil.Process().children()
    if not processes:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(REQUEUE_STATUS)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(FORWARDED[signal.Signals(number)])


def _report_failure(statuses: Mapping[int, int]) -> int:
    """Print how the processes ended, and return the exit status of the run.

    Args:
        statuses: rank → status, negative for a signal, in the order in which the launcher noticed them.
    """
    if USER_ERROR_STATUS in statuses.values():  # its message is printed above, and the other failures follow from it
        return USER_ERROR_STATUS
    if set(statuses.values()) == {CLOSED_PIPE_STATUS}:  # all work is done
        return CLOSED_PIPE_STATUS
    ends = ", ".join(
        f"process {rank} "
        + (f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}")
        for rank, status in statuses.items()
    )
    print(f"error: the run failed: {ends}; their messages are above", file=sys.stderr)
    first = next(iter(statuses.values()))
    return first if first > 0 else SIGNAL_STATUS - first


if __name__ == "__main__":
    run_cli(main)
