"""Wrong results without a message: options that are ignored, output that is lost, results in the wrong place."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import demo
import inference_ytvos
import main
from datasets.registry import load_config
from datasets.toy import make_toy
from engine import Run, build_record
from models import build_model
from scripts import baselines, check_data, convert_checkpoint, eval_jf, make_toy_data, prepare_data, push_to_hub
from tests import true_formats
from tests.conftest import ROOT
from util.config import Config
from util.device import memory_advice
from util.distributed import print_notes
from util.drawing import ObjectPainter, sentence_labels
from util.errors import RunError, UserError, run_cli
from util.files import atomic_folder
from util.guard import Guard
from util.run_log import RunLog, RunSummary

Check = tuple[str, Callable[[], object]]
"""A name, and a function that raises ``AssertionError`` if something goes wrong silently."""

# -------- Options of a resumed run ----------------------------------------------

TRAINING = {
    **{"epochs": 7, "lr_schedule": "cosine", "lr_drop": (3, 5), "lr": 3e-3, "lr_processes": 3, "weight_decay": 50.0},
    **{"clip_max_norm": 7.0, "batch_size": 4, "accumulate": 3, "precision": "fp16", "seed": 7, "max_steps": 70},
    **{"warmup_steps": 7, "log_every": 7, "sample_every": 7, "save_every": 7, "save_minutes": 7.0},
    **{"keep_checkpoints": 7, "eval_every": 0.5},
}
MODEL = {"hidden_dim": 64, "num_queries": 3, "noise": "none", "enc_layers": 1, "nheads": 2}


def resumed_options(folder: Path) -> Iterator[Check]:
    """Every option of training and losses that a resumed run changes, and some that would be another model."""
    make_toy(folder / "toy", num_train=4, num_valid=1, num_test=0, frames=5, seed=7)
    cfg = _training_config(folder, "run")
    model = build_model(cfg)
    with mock.patch.object(main, "build_model", lambda cfg: model):
        with redirect_stdout(StringIO()):
            _build_run(cfg).keeper.save(1, must=True)
            before = _options_of(_build_run(_resumed(folder, "unchanged")))
            assert _options_of(_build_run(_resumed(folder, "unchanged"))) == before
        losses = [field.name for field in fields(Config) if field.metadata["rule"].group == "matching and losses"]
        for name, value in {**TRAINING, **MODEL, **dict.fromkeys(losses, 0.125)}.items():
            yield f"--resume --{name} {value}", partial(_is_applied, _resumed(folder, name, **{name: value}), before)


def _training_config(folder: Path, output: str, **options: Any) -> Config:
    words = ["--config", str(ROOT / "configs" / "vdit_toy.yaml"), "--pretrained", str(ROOT / "toy" / "stack")]
    words += ["--device", "cpu", "--ytvos_path", str(folder / "toy"), "--output_dir", str(folder / output)]
    for name, value in {"batch_size": 2, **options}.items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return load_config(words, "")


def _resumed(folder: Path, output: str, **options: Any) -> Config:
    return _training_config(folder, output, resume=folder / "run" / "checkpoint.pth", **options)


def _build_run(cfg: Config) -> Run:
    output = Path(cfg.output_dir)
    run = main.build_run(cfg, torch.device("cpu"), Guard(output, 60, seed=cfg.seed), RunSummary(output))
    assert run is not None
    return run


def _options_of(run: Run) -> str:
    """All values that a run was built with."""
    (group,) = run.optimizer.param_groups
    criterion = {**vars(run.criterion), "matcher": vars(run.criterion.matcher)}
    values = [run.schedule, {**group, "params": None}, criterion, vars(run.loader.batches), run.scaler is None]
    values += [run.keeper.keep, run.keeper.seconds, run.log.sample_every, run.validation and run.validation.every]
    return repr([*values, run.seed, run.max_norm, run.accumulate, run.log_every, run.save_every])


def _is_applied(cfg: Config, before: str) -> None:
    assert _options_of(_build_run(cfg)) != before, "it is ignored"


# -------- The standard output ---------------------------------------------------

LOUD = """
import sys
from util.errors import RunError, UserError, run_cli
def main():
    for _ in range(20000):
        print("a line of the log")
    print("all work is done", file=sys.stderr)
    if sys.argv[1:]:
        raise UserError("a mistake")
run_cli(main)
"""
FULL = "error: cannot write to the standard output: No space left on device\n"
OUTPUTS = {
    '"$0" -c "$1" | head -n 1 >/dev/null': (141, "all work is done\n"),
    '"$0" -u -c "$1" | head -n 1 >/dev/null': (141, "all work is done\n"),
    '"$0" -c "$1" >/dev/full': (1, f"all work is done\n{FULL}"),
    '"$0" -c "$1" wrong >/dev/full': (2, "all work is done\nerror: a mistake\n"),
    '"$0" -c "$1" >/dev/null 2>/dev/full': (0, ""),
    '"$0" -c "$1" >&-': (0, "all work is done\n"),
    '"$0" -c "$1" >/dev/null 2>&-': (0, ""),
}
"""A command of the shell → its exit status and what it says."""


def lost_output(folder: Path) -> Iterator[Check]:
    """A standard output that cannot be written."""
    for command in OUTPUTS:
        yield command, partial(check_output, command)


def check_output(command: str) -> None:
    """Run a command whose output cannot be written: the work is completed, and the status says what was lost."""
    words = ["bash", "-c", f"set -o pipefail; {command}", sys.executable, LOUD]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == OUTPUTS[command], f"status {done.returncode}, {done.stderr!r}"


# -------- Memory, labels and folders --------------------------------------------


def lacking_memory(folder: Path) -> Iterator[Check]:
    """What libraries raise where memory is lacking."""
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("could not create a primitive"),  # oneDNN
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ):
        yield repr(error), partial(_is_explained, error)


def _is_explained(error: Exception) -> None:
    try:
        with memory_advice("--window"):
            raise error
    except RunError as explained:
        assert "not enough memory" in str(explained) and "--window" in str(explained)


def many_labels(folder: Path) -> Iterator[Check]:
    """Hundreds of sentences at once, which took minutes."""
    for count in (25, 300):
        for where in ("one place", "places"):
            yield f"{count} sentences for {where}", partial(_draw, count, where == "one place")


def _draw(count: int, together: bool) -> None:
    masks = np.zeros((count, 240, 320), dtype=bool)
    for i, mask in enumerate(masks):
        top, left = (60, 60) if together else (i * 37 % 200, i * 53 % 280)
        mask[top : top + 40, left : left + 40] = True
    frame = np.zeros((240, 320, 3), np.uint8)
    labels = sentence_labels(["a dog"] * count)
    assert labels == [str(i) for i in range(1, count + 1)]
    assert ObjectPainter(labels, (240, 320)).draw(frame, masks).any()


def failing_renames(folder: Path) -> Iterator[Check]:
    """``--force`` of the demo where the new result cannot get its name."""
    for copied in (True, False):
        place = folder / f"copied {copied}"
        place.mkdir()
        yield f"the earlier result can be copied: {copied}", partial(check_renames, place, copied)


def check_renames(place: Path, copied: bool) -> None:
    """Replace a folder where renaming fails: the earlier content stays, or the message says where it is."""
    path, rename = place / "folder", os.rename
    path.mkdir()
    (path / "a.txt").write_text("old")

    def fail(source: Path, target: Path) -> None:
        if Path(target) == path:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(os, "rename", fail))
        if not copied:
            full = OSError(errno.ENOSPC, "No space left on device")
            patches.enter_context(mock.patch.object(shutil, "copytree", side_effect=full))
        try:
            with atomic_folder(path) as staging:
                (staging / "a.txt").write_text("new")
            said = "nothing"
        except UserError as error:
            said = str(error)
    (found,) = place.iterdir()
    assert (found / "a.txt").read_text() == "old" and (found == path) is copied, "the earlier result is hidden"
    expected = "Input/output error; choose" if copied else f"its earlier content is in {found}, so give that folder"
    assert expected in said, f"it says {said!r}"


def folders_of_datasets(folder: Path) -> Iterator[Check]:
    """Every folder of every dataset as the one for masks."""
    make_toy(folder / "ytvos", num_train=1, num_valid=1, num_test=1, frames=5, seed=7)
    true_formats.write_toy_davis(folder / "davis", num_train=1, num_valid=1)
    true_formats.write_toy_mevis(folder / "mevis", num_train=1, num_valid_u=1)
    true_formats.write_toy_a2d(folder / "a2d", num_train=1, num_test=1)
    true_formats.write_toy_jhmdb(folder / "jhmdb", num_videos=1)
    true_formats.write_toy_refcoco(folder / "coco", num_train=1, num_eval=1)
    for place in sorted(path for path in folder.rglob("*") if path.is_dir()):
        if place.name != "mevis":  # it holds the folders of the splits only
            yield f"inference into {place.relative_to(folder)}", partial(_is_refused, place)


def _is_refused(place: Path) -> None:
    for write in (
        lambda: build_record(Config(output_dir=str(place)), None, torch.device("cpu")),
        lambda: demo.require_free(place, force=True),
    ):
        try:
            write()
        except UserError:
            continue
        raise AssertionError("it is accepted")


# -------- Names that command the terminal ---------------------------------------

NAME = "a\x1b[31m\x1b]0;title\x07\r\x9b2J\u202eb 世界"


def names_on_the_terminal(folder: Path) -> Iterator[Check]:
    """A name with escapes in what commands print and refuse."""
    name = str(folder / NAME)

    def refuse() -> None:
        raise UserError(NAME)

    def log() -> None:
        with RunLog(folder / "log", 1, 0) as run_log:
            run_log.say(NAME)

    commands: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
        "a message": (refuse, ()),
        "a note": (lambda: print_notes([NAME]), ()),
        "a line": (lambda: print(NAME), ()),
        "the log": (log, ()),
        "demo": (demo.main, (f"{name}.mp4", NAME, "--resume", f"{name}.pth", "--out", name)),
        "training": (main.main, ("--config", f"{name}.yaml")),
        "a flag": (main.main, (f"--{NAME}", "1")),
        "inference": (inference_ytvos.main, ("--resume", f"{name}.pth", "--output_dir", name)),
        "check_data": (check_data.main, ("ytvos", name)),
        "prepare_data": (prepare_data.main, ("davis", "--davis_root", name, "--output_dir", name)),
        "make_toy_data": (
            make_toy_data.main,
            ("--output_dir", name, "--train_videos", "1", "--valid_videos", "1", "--num_frames", "4"),
        ),
        "eval_jf": (eval_jf.main, ("--gt", name, "--pred", name)),
        "baselines": (baselines.main, ("swap", "--expressions", name, "--output", name)),
        "convert_checkpoint": (convert_checkpoint.main, (f"{name}.pth", name)),
        "push_to_hub": (push_to_hub.main, (f"{name}.pth", "org/name", "--folder", name)),
    }
    for command, (function, words) in commands.items():
        yield command, partial(_is_escaped, folder / "terminal", function, *words)


def _is_escaped(terminal: Path, command: Callable[[], Any], *words: str) -> None:
    with (
        terminal.open("w", encoding="utf-8", newline="") as file,
        mock.patch.object(sys, "argv", ["command", *words]),
        redirect_stdout(file),
        redirect_stderr(file),
        suppress(SystemExit),
    ):
        run_cli(command)
    said = terminal.read_bytes().decode()
    assert not set(said) & set("\x1b\x07\r\x9b\u202e"), f"it is printed raw: {said[-300:]!r}"
    shown = "Traceback" not in said and r"\x1b[31m\x1b]0;title\x07" in said and "世界" in said
    assert shown, f"it is not printed: {said[-300:]!r}"


SILENT_WRONGS: dict[str, Callable[[Path], Iterator[Check]]] = {
    function.__name__.replace("_", " "): function
    for function in (
        *(resumed_options, lost_output, lacking_memory, many_labels, failing_renames, folders_of_datasets),
        names_on_the_terminal,
    )
}
"""Checks that write into a new folder."""
