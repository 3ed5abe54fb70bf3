"""Start one of the project's scripts in several processes: one per GPU, or as many as asked for on the CPU.

``scripts/launch.sh`` calls this, and says how it is used. It is torchrun with what a run of days needs beside: signals
reach every process, which then ends in its own time, and the exit status says how the run ended.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from util.errors import REQUEUE_STATUS, USER_ERROR_STATUS, RunError, UserError, run_cli

ROOT = Path(__file__).resolve().parents[1]
RANK_SCRIPT = "scripts.launch_rank"
MARKER = "LAUNCH_STOPPED"  # environment: the file that a process makes which was stopped and has saved its work
FORWARDED = {  # what a signal is forwarded as: a terminal that is closed ends the run as politely as SIGTERM
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,
}
LOCALHOST = "127.0.0.1"  # on one machine, which may have no name that it can look up
MOST_THREADS = 8  # per process with a GPU: the loaders' processes need the rest


@dataclass(frozen=True)
class Plan:
    """What is started on this machine."""

    processes: int
    threads: str
    """OMP_NUM_THREADS of each process."""
    nodes: int
    torchrun: tuple[str, ...]
    """The whole command line of torchrun."""


def plan_launch(arguments: Sequence[str], env: Mapping[str, str], gpus: int, cores: int) -> Plan:
    """What to start, from the command line and the environment variables that ``scripts/launch.sh`` explains.

    Args:
        arguments: ``[--nproc N] SCRIPT [ARGUMENTS …]``.
        env: reads NPROC, NNODES, NODE_RANK, RDZV_ENDPOINT, RDZV_ID, LOCAL_ADDR and
            OMP_NUM_THREADS.
        gpus: number of visible GPUs.
        cores: number of CPU cores that this process may use.

    Raises:
        UserError: a value is no whole number of at least 1, the script is missing, or several nodes have no meeting
            point.
    """
    words = list(arguments)
    asked = env.get("NPROC", "")
    if words and words[0].startswith("--nproc"):
        name, equals, value = words.pop(0).partition("=")
        if name not in ("--nproc", "--nproc_per_node") or not (equals or words):
            raise UserError(f"unknown or unfinished option {name}; it is --nproc NUMBER, before the script")
        asked = value if equals else words.pop(0)
    if not words:
        raise UserError("no script is named; give main.py or another one of the project's, and its arguments")
    script, *rest = words
    path = Path(script) if Path(script).is_file() else ROOT / script
    if not path.is_file():
        raise UserError(f"the script {script} does not exist; give main.py or the path of another one")

    on_cpu = not gpus or _value_of("--device", rest) == "cpu"
    processes = _number("the number of processes (NPROC, --nproc)", asked or str(1 if on_cpu else gpus))
    if not on_cpu and processes > gpus:
        raise UserError(f"{processes} processes are asked for, and {gpus} GPUs are visible; each needs one of its own")
    nodes = _number("NNODES", env.get("NNODES") or "1")
    share = max(1, cores // processes)
    threads = share if on_cpu else min(share, MOST_THREADS)
    return Plan(
        processes=processes,
        threads=env.get("OMP_NUM_THREADS") or str(threads),
        nodes=nodes,
        torchrun=(
            *("--nproc_per_node", str(processes), *_meeting(nodes, env)),
            *("--signals_to_handle", "SIGQUIT"),  # of the others, this module knows better what to do
            *("--module", RANK_SCRIPT, str(path.resolve()), *rest),
        ),
    )


def _meeting(nodes: int, env: Mapping[str, str]) -> list[str]:
    """Where the processes of all nodes find each other, as torchrun's options."""
    endpoint, rank, run = env.get("RDZV_ENDPOINT", ""), env.get("NODE_RANK", ""), env.get("RDZV_ID", "")
    if nodes == 1:
        return ["--standalone", "--local_addr", env.get("LOCAL_ADDR") or LOCALHOST]
    if not endpoint:
        raise UserError(
            f"NNODES is {nodes}, and nothing says where the nodes meet; set RDZV_ENDPOINT=HOST:PORT, one of them, the "
            "same on all"
        )
    options = ["--nnodes", str(nodes), "--rdzv_endpoint", endpoint]
    if rank:
        number = _number("NODE_RANK", rank, least=0)
        if number >= nodes:
            raise UserError(f"NODE_RANK is {number}, and the nodes of NNODES={nodes} count from 0 to {nodes - 1}")
        options += ["--rdzv_backend", "static", "--node_rank", rank]
    else:
        options += ["--rdzv_backend", "c10d"]
    options += ["--rdzv_id", run or "rvos"]
    return options + (["--local_addr", env["LOCAL_ADDR"]] if env.get("LOCAL_ADDR") else [])


def _number(name: str, text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {text!r}")
    return int(text)


def _value_of(flag: str, words: Sequence[str]) -> str:
    """The last value that a flag has on a command line; empty where it has none."""
    value = ""
    for number, word in enumerate(words):
        name, equals, text = word.partition("=")
        if name == flag:
            value = text if equals else "".join(words[number + 1 : number + 2])
    return value


def main() -> int:
    """Start the processes, wait for them, and return the status of the run."""
    import torch
    from torch.distributed import DistError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    plan = plan_launch(sys.argv[1:], os.environ, torch.cuda.device_count(), cores)
    os.environ["OMP_NUM_THREADS"] = plan.threads
    if "LOGLEVEL" not in os.environ:  # torchrun's own: by default what ended is told below, in a sentence
        logging.disable(logging.ERROR)
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, _forward)
    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        marker = Path(folder) / "stopped"
        os.environ[MARKER] = str(marker)
        try:
            torchrun.run(torchrun.parse_args(list(plan.torchrun)))
        except ChildFailedError as error:
            return _tell_failure(error)
        except (RendezvousError, DistError) as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise RunError(
                f"the {plan.nodes} nodes have not met: {reason}; start each with the same NNODES, RDZV_ENDPOINT and "
                "RDZV_ID"
            ) from error
        return REQUEUE_STATUS if marker.exists() else 0


def _forward(number: int, frame: FrameType | None) -> None:
    """Send a signal on to the processes of this machine: each of them is in a session of its own.

    Before they are started, while this machine waits for others, it ends the launcher.
    """
    processes = psutil.Process().children()
    if not processes:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(REQUEUE_STATUS)
    for process in processes:
        try:
            process.send_signal(FORWARDED[signal.Signals(number)])
        except psutil.NoSuchProcess:
            continue


def _tell_failure(error: Any) -> int:
    """Say which processes ended how, unless it was a mistake of the user's; the first one's status, as a shell has it.

    Args:
        error: torchrun's ``ChildFailedError``; its failures stand in the order in which they were seen.
    """
    statuses = {rank: failure.exitcode for rank, failure in error.failures.items()}
    first = next(iter(statuses.values()))
    if first != USER_ERROR_STATUS:  # whose sentence stands above, and is enough
        ends = ", ".join(f"process {rank} {_how(status)}" for rank, status in statuses.items())
        print(f"error: the run has failed: {ends}; what they said is above", file=sys.stderr)
    return first if first > 0 else 128 - first


def _how(status: int) -> str:
    return f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"


if __name__ == "__main__":
    run_cli(main)
