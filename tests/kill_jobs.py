"""What is killed at each of its phases, in processes forked from this one: ``python -m tests.kill_jobs PLAN``.

A process ends as by SIGKILL before it gives a file its name, or by SIGXFSZ in the middle of writing one.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets import list_videos
from datasets.davis import convert_davis
from datasets.refcoco_prepare import convert_refcoco
from datasets.toy import make_toy
from inference_ytvos import finish, run_inference
from scripts import baselines
from tests.inference_tools import StubModel
from util.checkpoint import read_content, save_weights, write_pickle
from util.config import Config
from util.demo_results import new_folder
from util.inference_record import InferenceRecord, mask_options
from util.mask_pngs import write_mask

CPU = torch.device("cpu")


def toy(source: Path, out: Path) -> None:
    """Toy data."""
    make_toy(out / "toy", num_train=2, num_valid=1, num_test=1, frames=4, height=48, width=48, seed=3, negatives=1)


def davis(source: Path, out: Path) -> None:
    """Ref-DAVIS17 to its layout."""
    convert_davis(source / "davis_raw", out / "davis")


def refcoco(source: Path, out: Path) -> None:
    """RefCOCO to its layout, with copies of the images."""
    convert_refcoco("refcoco", source / "refer", out / "coco", source / "refer" / "train2014", copy=True)


def inference(source: Path, out: Path) -> None:
    """Masks, overlays, record, contact sheet and submission of a stub model."""
    cfg = Config(
        **{"ytvos_path": str(source / "halves"), "output_dir": str(out / "masks"), "eval_size": 36, "visualize": True},
        **{"train_scales": (64,), "expressions_per_batch": 1, "num_workers": 1},
    )
    videos = list_videos(cfg)
    identity = {"checkpoint_sha256": "abc", **mask_options(cfg)}
    record = InferenceRecord(out / "masks" / "inference.json", identity, {"device": "cpu"})
    run_inference(StubModel(), videos, cfg, record, CPU)  # type: ignore[arg-type]
    finish(videos, cfg, record)


def checkpoints(source: Path, out: Path) -> None:
    """A checkpoint of either kind."""
    weights = {"a": torch.arange(4000.0)}
    write_pickle(out / "checkpoint.pth", {"model": "vdit", "weights": weights})
    save_weights(out / "weights.safetensors", {"model": "vdit", "weights": weights})


def swap(source: Path, out: Path) -> None:
    """Swapped sentences."""
    baselines.run_swap(source / "toy" / "meta_expressions" / "valid" / "meta_expressions.json", out / "swapped.json")


def demo(source: Path, out: Path) -> None:
    """A folder that appears when it is full."""
    with new_folder(out / "demo", force=True) as folder:
        for number in range(3):
            write_mask(folder / "masks" / f"{number:05d}.png", np.eye(200, dtype=bool))
        (folder / "masks.json").write_text('{"info": {"maker": "demo.py"}}')


JOBS: dict[str, Callable[[Path, Path], None]] = {
    job.__name__: job for job in (toy, davis, refcoco, inference, checkpoints, swap, demo)
}


def shown_files(folder: Path) -> dict[str, Path]:
    """The files that have their names, without those that a killed process has left under a hidden one."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    hidden = {name for name in files if any(part.startswith(".") for part in name.parts)}
    return {name.as_posix(): path for name, path in sorted(files.items()) if name not in hidden}


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    try:
        _read(path)
    except Exception:  # each kind has its own
        return False
    return True


def _read(path: Path) -> None:
    if path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".zip":
        assert zipfile.ZipFile(path).testzip() is None
    elif path.suffix in (".pth", ".safetensors"):
        read_content(path)
    else:
        assert path.suffix == ".mp4" and path.stat().st_size > 1000, path


def run(job: str, source: str, out: str, rename: int = 0, size: int = 0) -> tuple[int, list[str]]:
    """Run a job in a forked process: its status, negative for a signal, and the files that are not whole then.

    Args:
        job: of ``JOBS``.
        source: folder of what it reads.
        out: folder for what it writes.
        rename: it is killed before it gives this so manieth file its name; 0: not so.
        size: it is killed where a file grows beyond so many bytes; 0: not so.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _kill_before(rename)
            if size:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            JOBS[job](Path(source), Path(out))
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, [name for name, path in shown_files(Path(out)).items() if not is_whole(path)]


def _kill_before(number: int) -> None:
    """Let the calls that rename count, and the one of this number kill the process."""
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def rename(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return rename

    for name in ("rename", "replace"):
        setattr(os, name, counted(getattr(os, name)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([run(**step) for step in json.loads(Path(sys.argv[1]).read_text())]))
