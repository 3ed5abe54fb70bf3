"""Starting runs: the dist scripts and what they name, usage and mistakes, the launcher's plan, Slurm's job."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from datasets.registry import load_config
from scripts import launch
from scripts.launch import plan_launch
from tests.conftest import ROOT
from util.errors import REQUEUE_STATUS, UserError

TRAIN = ["dist_train_ytvos_vdit", "dist_train_ytvos_hcd"]
TEST = ["dist_test_ytvos_vdit", "dist_test_ytvos_hcd"]
GENERIC = ["dist_train", "dist_test"]
SHELL = sorted(path.name for path in [*(ROOT / "scripts").glob("*.sh"), *(ROOT / "scripts").glob("*.sbatch")])


SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]


def run_shell(*words: str | Path, shell: str = "sh", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script from another folder, with some more environment variables."""
    return subprocess.run([shell, *map(str, words)], cwd="/", capture_output=True, text=True, env={**os.environ, **env})


@pytest.fixture
def dry_run(tmp_path: Path) -> Callable[..., list[str]]:
    """What a dist script hands to the launcher: the command line after ``python -m scripts.launch``.

    It runs in a copy whose setup does nothing and whose Python prints its arguments.
    """
    copy = tmp_path / "a clone"
    (copy / "scripts").mkdir(parents=True)
    (copy / "configs").symlink_to(ROOT / "configs")
    for name in (*TRAIN, *TEST, *GENERIC, "launch"):
        (copy / f"scripts/{name}.sh").write_text((ROOT / f"scripts/{name}.sh").read_text())
    (copy / "scripts/setup.sh").write_text("exit 0\n")
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/bin/python").write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    (copy / ".venv/bin/python").chmod(0o755)

    def run(script: str, *words: str, shell: str = "sh") -> list[str]:
        result = run_shell(copy / f"scripts/{script}.sh", *words, shell=shell)
        assert result.returncode == 0, result.stderr
        start, *arguments = result.stdout.replace(str(copy), str(ROOT)).split("-m\nscripts.launch\n")[1].splitlines()
        assert start == str(ROOT / "main.py")
        return arguments

    return run


@pytest.mark.parametrize("name", SHELL)
def test_every_script_is_sound(name: str) -> None:
    path = ROOT / "scripts" / name
    for shell in SHELLS if path.read_text().startswith("#!/bin/sh\n") else ["bash"]:
        checked = run_shell("-n", path, shell=shell)
        assert checked.returncode == 0, checked.stderr
    assert name.endswith(".sbatch") or os.access(path, os.X_OK)


def test_every_dist_script_is_there() -> None:
    assert sorted(path.stem for path in (ROOT / "scripts").glob("dist_*")) == sorted([*TRAIN, *TEST, *GENERIC])


@pytest.mark.parametrize("shell", SHELLS)
def test_what_the_papers_scripts_start(dry_run: Callable, shell: str) -> None:
    for name in (*TRAIN, *TEST):
        _, task, data, model = name.split("_")
        test = task == "test"
        # As the papers' READMEs call them, with flags alone, and with all arguments.
        folder, checkpoint = (f"runs/{model}/valid", f"runs/{model}/checkpoint.pth") if test else (f"runs/{model}", "")
        own = ["out put", *(["c.pth"] if test else [])]
        for given, output, resume in (
            ([], folder, checkpoint),
            (["--seed", "7"], folder, checkpoint),
            ([*own, "--seed", "7"], "out put", "c.pth" if test else ""),
        ):
            arguments = dry_run(name, *given, shell=shell)
            assert arguments[:2] == ["--config", str(ROOT / f"configs/{model}_{data}.yaml")]
            cfg = load_config(arguments, "")  # every flag is known, and the values agree
            assert (cfg.model, cfg.dataset_file, cfg.eval) == (model, data, test)
            assert (cfg.output_dir, cfg.resume) == (output, resume)
            assert cfg.seed == 7 or not given
        header = (ROOT / f"scripts/{name}.sh").read_text()
        assert f"configs/{model}_{data}.yaml" in header
        named = re.findall(r"--(\w+)", header)
        assert all(hasattr(cfg, flag) for flag in named), named


@pytest.mark.parametrize("shell", SHELLS)
def test_what_the_generic_scripts_start(dry_run: Callable, shell: str) -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        cfg = load_config(dry_run("dist_train", path.stem, "out put", "--seed", "7", shell=shell), "")
        assert (cfg.output_dir, cfg.seed, cfg.eval, cfg.resume) == ("out put", 7, False, "")
        assert path.stem.startswith((cfg.model, "wan_"))
    cfg = load_config(dry_run("dist_test", "hcd_davis", "out put", "c.pth", "--seed", "7", shell=shell), "")
    assert (cfg.model, cfg.dataset_file, cfg.output_dir, cfg.seed) == ("hcd", "davis", "out put", 7)
    assert (cfg.eval, cfg.resume) == (True, "c.pth")


@pytest.mark.parametrize("shell", SHELLS)
def test_help_names_usage_and_environment(shell: str) -> None:
    for words, usage in (
        (["dist_train_ytvos_hcd", "--help"], "dist_train_ytvos_hcd.sh [OUTPUT_DIR] [FLAGS"),
        (["dist_test_ytvos_vdit", "out", "-h"], "dist_test_ytvos_vdit.sh [OUTPUT_DIR CHECKPOINT] [FLAGS"),
        (["dist_train", "--help"], "dist_train.sh CONFIG OUTPUT_DIR [FLAGS"),
        (["dist_test", "vdit_davis", "--help"], "dist_test.sh CONFIG OUTPUT_DIR CHECKPOINT [FLAGS"),
        (["launch", "--help"], "launch.sh train CONFIG OUTPUT_DIR [FLAGS"),
    ):
        result = run_shell(ROOT / f"scripts/{words[0]}.sh", *words[1:], shell=shell)
        assert result.returncode == 0 and result.stderr == ""
        assert usage in result.stdout and "RDZV_ENDPOINT" in result.stdout and "set -e" not in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dist_train", "vdit_a2d"), "OUTPUT_DIR is missing; the arguments after vdit_a2d are OUTPUT_DIR [FLAGS"),
        (("dist_train", "vdit_a2d", "--seed", "1"), "OUTPUT_DIR is missing"),
        (("dist_test", "hcd_davis", "out"), "CHECKPOINT is missing; the arguments after hcd_davis are OUTPUT_DIR CHEC"),
        (("dist_test", "hcd_davis", "out", "--split", "valid"), "CHECKPOINT is missing"),
        (("dist_test_ytvos_hcd", "out"), "CHECKPOINT is missing"),
        (("dist_train", "vdit_nothing", "out"), "there is no configs/vdit_nothing.yaml"),
        (("dist_train",), "there is no configs/.yaml; the arguments are CONFIG OUTPUT_DIR [FLAGS"),
        (("launch",), "nothing to do"),
    ],
)
def test_what_is_missing_is_one_sentence(words: tuple[str, ...], said: str) -> None:
    result = run_shell(ROOT / f"scripts/{words[0]}.sh", *words[1:])
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
    assert list(plan.torchrun) == [*head, "--module", "scripts.launch", "--as-rank", MAIN, "--seed", "1"]


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
    assert launch._report_failure({1: 3, 2: -15}) == 3
    assert "process 1 ended with status 3, process 2 was ended by SIGTERM" in capsys.readouterr().err
    assert launch._report_failure({0: -9, 1: 1}) == 137
    assert capsys.readouterr().err.count("\n") == 1
    assert launch._report_failure({0: 141}) == 141 and capsys.readouterr().err == ""  # | head


@pytest.mark.parametrize("statuses", [{0: 2, 1: 1}, {0: 1, 1: 2}])
def test_a_users_mistake_in_any_process_gives_the_status(statuses: dict, capsys: pytest.CaptureFixture[str]) -> None:
    """Processes that lost it may be noticed first."""
    assert launch._report_failure(statuses) == 2
    assert capsys.readouterr().err == "", "its sentence is there already"


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
    command = ["sh", str(ROOT / "scripts/launch.sh"), "--nproc", "2", script.name, str(tmp_path), "--device", "cpu"]
    run = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    try:
        while run.poll() is None and not all((tmp_path / name).exists() for name in "01"):
            time.sleep(0.05)
        run.send_signal(signal.SIGUSR1)
        error = run.communicate(timeout=600)[1]
    finally:
        run.kill()
    assert run.returncode == REQUEUE_STATUS, error
    assert (tmp_path / "0").read_text() == "21"
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


CRASH = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    time.sleep(1)
"""


def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text(CRASH)
    run = run_shell(ROOT / "scripts/launch.sh", "--nproc", "2", tmp_path / "crash.py", "--device", "cpu")
    assert run.returncode == 128 + signal.SIGKILL
    assert "error: the run failed: process 1 was ended by SIGKILL" in run.stderr


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
    result = run_shell(ROOT / "scripts/slurm_train.sbatch", script, "out dir", "--seed", "1", PATH=path, **slurm)
    assert result.returncode == status, result.stderr
    assert f"sh {script} out dir --seed 1 --resume auto @ 2 1234567 node7:24567" in result.stdout
    assert ("scontrol requeue 1234567" in result.stdout) == requeued
    assert run_shell(ROOT / "scripts/slurm_train.sbatch", script, **slurm).returncode == 2


def test_slurms_job_asks_for_a_signal_in_time() -> None:
    lines = (ROOT / "scripts/slurm_train.sbatch").read_text().splitlines()
    options = dict(shlex.split(line)[1].partition("=")[::2] for line in lines if line.startswith("#SBATCH "))
    assert options["--signal"].startswith("USR1@") and "--requeue" in options
    assert options["--ntasks-per-node"] == "1" and options["--open-mode"] == "append"
