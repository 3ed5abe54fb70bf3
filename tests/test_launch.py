"""Starting runs: the dist scripts and what they name, usage and mistakes, the launcher's plan, Slurm's job."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import launch
from scripts.launch import plan_launch
from tests.conftest import ROOT
from util.config import load_config
from util.errors import REQUEUE_STATUS, UserError

TRAIN = [f"dist_train_{data}_{model}" for data in ("ytvos", "a2d", "refcoco", "joint") for model in ("vdit", "hcd")]
TEST = [
    f"dist_test_{data}_{model}" for data in ("ytvos", "davis", "a2d", "jhmdb", "mevis") for model in ("vdit", "hcd")
]
SHELL = sorted(path.name for path in [*(ROOT / "scripts").glob("*.sh"), *(ROOT / "scripts").glob("*.sbatch")])


def bash(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the caller's environment and some more, from another folder."""
    return subprocess.run(
        ["bash", *map(str, words)], cwd="/", capture_output=True, text=True, env={**os.environ, **env}
    )


@pytest.fixture
def dry_run(tmp_path: Path) -> Callable[..., list[str]]:
    """What a dist script hands to the launcher: the command line after ``python -m scripts.launch``.

    It runs in a copy whose set-up does nothing and whose Python prints its arguments.
    """
    copy = tmp_path / "a clone"
    (copy / "scripts").mkdir(parents=True)
    (copy / "configs").symlink_to(ROOT / "configs")
    for name in (*TRAIN, *TEST, "launch"):
        (copy / f"scripts/{name}.sh").write_text((ROOT / f"scripts/{name}.sh").read_text())
    (copy / "scripts/setup.sh").write_text("exit 0\n")
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/bin/python").write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    (copy / ".venv/bin/python").chmod(0o755)

    def run(script: str, *words: str) -> list[str]:
        result = bash(copy / f"scripts/{script}.sh", *words)
        assert result.returncode == 0, result.stderr
        start, *arguments = result.stdout.replace(str(copy), str(ROOT)).split("-m\nscripts.launch\n")[1].splitlines()
        assert start == str(ROOT / "main.py")
        return arguments

    return run


@pytest.mark.parametrize("name", SHELL)
def test_every_script_is_bash(name: str) -> None:
    checked = bash("-n", ROOT / "scripts" / name)
    assert checked.returncode == 0, checked.stderr
    assert name.endswith(".sbatch") or os.access(ROOT / "scripts" / name, os.X_OK)


def test_every_dist_script_is_there() -> None:
    assert sorted(path.stem for path in (ROOT / "scripts").glob("dist_*")) == sorted([*TRAIN, *TEST])


def test_what_the_dist_scripts_start(dry_run: Callable) -> None:
    for name in (*TRAIN, *TEST):
        _, task, data, model = name.split("_")
        given = ["out put", *(["c.pth"] if task == "test" else []), "--seed", "7"]
        arguments = dry_run(name, *given)
        assert arguments[:2] == ["--config", str(ROOT / f"configs/{model}_{data}.yaml")]
        cfg = load_config(arguments, "")  # every flag is known, and the values agree
        assert (cfg.model, cfg.output_dir, cfg.seed, cfg.eval) == (model, "out put", 7, task == "test")
        assert cfg.dataset_file == {"refcoco": "joint_coco"}.get(data, data)
        assert cfg.resume == ("c.pth" if task == "test" else "")
        begins = f"runs/{model}_refcoco/checkpoint.pth" if (task, data) == ("train", "a2d") else ""
        assert cfg.pretrained_weights == begins
        header = (ROOT / f"scripts/{name}.sh").read_text()
        assert f"configs/{model}_{data}.yaml" in header
        named = re.findall(r"--(\w+)", header)
        assert all(hasattr(cfg, flag) for flag in named), named
    other = dry_run("dist_train_a2d_vdit", "out", "--pretrained_weights", "other.pth")
    assert load_config(other, "").pretrained_weights == "other.pth"


def test_help_names_usage_and_environment() -> None:
    for name, usage in (
        ("dist_train_joint_hcd", "dist_train_joint_hcd.sh OUTPUT_DIR [FLAGS"),
        ("dist_test_davis_vdit", "dist_test_davis_vdit.sh OUTPUT_DIR CHECKPOINT [FLAGS"),
        ("launch", "launch.sh train CONFIG OUTPUT_DIR [FLAGS"),
    ):
        result = bash(ROOT / f"scripts/{name}.sh", "--help")
        assert result.returncode == 0 and result.stderr == ""
        assert usage in result.stdout and "RDZV_ENDPOINT" in result.stdout and "set -e" not in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dist_train_ytvos_vdit",), "OUTPUT_DIR is missing; it is bash scripts/dist_train_ytvos_vdit.sh OUTPUT_DIR"),
        (("dist_train_a2d_hcd",), "OUTPUT_DIR is missing"),
        (("dist_train_ytvos_vdit", "--seed", "1"), "OUTPUT_DIR is missing"),
        (("dist_test_davis_hcd", "out"), "CHECKPOINT is missing; it is bash scripts/dist_test_davis_hcd.sh OUTPUT_DIR"),
        (("dist_test_davis_hcd", "out", "--split", "valid"), "CHECKPOINT is missing"),
        (("launch", "train", "vdit_nothing", "out"), "there is no configs/vdit_nothing.yaml"),
        (("launch",), "nothing to do"),
    ],
)
def test_what_is_missing_is_one_sentence(words: tuple[str, ...], said: str) -> None:
    result = bash(ROOT / f"scripts/{words[0]}.sh", *words[1:])
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and said in result.stderr


MAIN = str(ROOT / "main.py")
LOCAL = ["--standalone", "--local_addr", "127.0.0.1"]
MEET = {"NNODES": "2", "RDZV_ENDPOINT": "10.0.0.1:29400", "RDZV_ID": "7"}
NODES = ["--nnodes", "2", "--rdzv_endpoint", "10.0.0.1:29400"]


@pytest.mark.parametrize(
    ("words", "env", "gpus", "processes", "threads", "torchrun"),
    [
        ([], {}, 8, 8, "2", LOCAL),  # 16 cores are shared out
        ([], {}, 1, 1, "8", LOCAL),  # the loaders need some, too
        ([], {}, 0, 1, "16", LOCAL),
        ([], {"NPROC": "4", "OMP_NUM_THREADS": "3"}, 0, 4, "3", LOCAL),
        (["--nproc", "2"], {"NPROC": "4"}, 8, 2, "8", LOCAL),
        (["--nproc=2"], {}, 8, 2, "8", LOCAL),
        ([], {**MEET}, 4, 4, "4", [*NODES, "--rdzv_backend", "c10d", "--rdzv_id", "7"]),
        (
            [],
            {**MEET, "NODE_RANK": "1", "LOCAL_ADDR": "10.0.0.2"},
            4,
            4,
            "4",
            [*NODES, "--rdzv_backend", "static", "--node_rank", "1", "--rdzv_id", "7", "--local_addr", "10.0.0.2"],
        ),
    ],
)
def test_the_plan(words: list, env: dict, gpus: int, processes: int, threads: str, torchrun: list) -> None:
    plan = plan_launch([*words, "main.py", "--seed", "1"], env, gpus, cores=16)
    assert (plan.processes, plan.threads) == (processes, threads)
    head = ["--nproc_per_node", str(processes), *torchrun, "--signals_to_handle", "SIGQUIT"]
    assert list(plan.torchrun) == [*head, "--module", "scripts.launch", MAIN, "--seed", "1"]


def test_the_cpu_can_be_asked_for_where_there_are_gpus() -> None:
    for flags in (["--device", "cpu"], ["--device=cpu"]):
        assert plan_launch(["main.py", *flags], {}, gpus=8, cores=16).processes == 1
        assert plan_launch(["--nproc", "12", "main.py", *flags], {}, gpus=8, cores=16).processes == 12


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["main.py"], {"NPROC": "two"}, "NPROC.* whole number .* not 'two'"),
        (["main.py"], {"NPROC": "9"}, "9 processes .* 8 GPUs"),
        (["main.py"], {"NNODES": "0"}, "NNODES"),
        (["main.py"], {"NNODES": "2"}, "RDZV_ENDPOINT"),
        (["main.py"], {**MEET, "NODE_RANK": "2"}, "NODE_RANK is 2.* 0 to 1"),
        (["main.py"], {**MEET, "NODE_RANK": "-1"}, "NODE_RANK"),
        (["--nproc"], {}, "--nproc"),
        (["--nprocs", "2", "main.py"], {}, "--nprocs"),
        (["--nproc", "2"], {}, "no script"),
        (["nothing.py"], {}, r"nothing\.py"),
    ],
)
def test_mistakes_in_the_plan(words: list, env: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_launch(words, env, gpus=8, cores=16)


def test_the_first_failure_gives_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    def status(*codes: int) -> int:
        failures = {rank: SimpleNamespace(exitcode=code) for rank, code in enumerate(codes) if code}
        return launch._tell_failure(SimpleNamespace(failures=failures))

    assert status(0, 3, -15) == 3
    assert "process 1 ended with status 3, process 2 was ended by SIGTERM" in capsys.readouterr().err
    assert status(-9, 1) == 137
    assert capsys.readouterr().err.count("\n") == 1
    assert status(2, 1) == 2 and capsys.readouterr().err == ""  # the sentence is there already


def test_a_signal_before_the_processes_are_there_ends_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[SimpleNamespace] = []
    monkeypatch.setattr(launch.psutil, "Process", lambda: SimpleNamespace(children=lambda: children))
    with pytest.raises(KeyboardInterrupt):
        launch._forward(signal.SIGINT, None)
    with pytest.raises(SystemExit) as end:
        launch._forward(signal.SIGUSR1, None)
    assert end.value.code == REQUEUE_STATUS
    sent: list[int] = []
    children.append(SimpleNamespace(send_signal=sent.append))
    launch._forward(signal.SIGUSR1, None)
    launch._forward(signal.SIGHUP, None)
    assert sent == [signal.SIGUSR1, signal.SIGTERM]


RANK = """
import os, signal, sys, time
from util.errors import REQUEUE_STATUS
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
rank, folder = int(os.environ["RANK"]), sys.argv[1]
open(f"{folder}/{rank}", "w").write(os.environ["WORLD_SIZE"] + os.environ["OMP_NUM_THREADS"])
while not got:
    time.sleep(0.05)
time.sleep(rank)  # one still saves when the other has left
open(f"{folder}/saved{rank}", "w").close()
sys.exit(REQUEUE_STATUS)
"""


def test_a_signal_reaches_every_process_and_the_status_comes_back(tmp_path: Path) -> None:
    script = tmp_path / "my script.py"
    script.write_text(RANK)
    command = ["bash", str(ROOT / "scripts/launch.sh"), "--nproc", "2", script.name, str(tmp_path), "--device", "cpu"]
    run = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    try:
        while run.poll() is None and not all((tmp_path / name).exists() for name in "01"):
            time.sleep(0.05)
        time.sleep(0.1)
        run.send_signal(signal.SIGUSR1)
        error = run.communicate(timeout=600)[1]
    finally:
        run.kill()
    assert run.returncode == REQUEUE_STATUS, error
    assert (tmp_path / "0").read_text() == "21"
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (0, False), (1, False)])
def test_slurms_job_is_queued_again_when_it_was_stopped(tmp_path: Path, status: int, requeued: bool) -> None:
    for name, code in (
        ("srun", f'echo "srun $* @ $NNODES $RDZV_ID $RDZV_ENDPOINT"; exit {status}'),
        ("scontrol", '[ "$1" = show ] && printf "node7\\nnode8\\n" || echo "scontrol $*"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    script = "scripts/dist_train_ytvos_vdit.sh"
    result = bash(ROOT / "scripts/slurm_train.sbatch", script, "out dir", "--seed", "1", PATH=path, **slurm)
    assert result.returncode == status, result.stderr
    assert f"bash {script} out dir --seed 1 --resume auto @ 2 1234567 node7:24567" in result.stdout
    assert ("scontrol requeue 1234567" in result.stdout) == requeued
    assert bash(ROOT / "scripts/slurm_train.sbatch", script, **slurm).returncode == 2


def test_slurms_job_asks_for_a_signal_in_time() -> None:
    lines = (ROOT / "scripts/slurm_train.sbatch").read_text().splitlines()
    options = dict(shlex.split(line)[1].partition("=")[::2] for line in lines if line.startswith("#SBATCH "))
    assert options["--signal"].startswith("USR1@") and "--requeue" in options
    assert options["--ntasks-per-node"] == "1" and options["--open-mode"] == "append"
