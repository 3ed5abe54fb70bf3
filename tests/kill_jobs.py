"""Kills what writes files at each of its phases, and does it again: ``python -m tests.kill_jobs FOLDER``.

Every job runs in processes forked from this one, which has imported everything. They end as by SIGKILL before they give
a file its name, or by SIGXFSZ in the middle of writing one. ``FOLDER/found.json`` says what came of it.
"""

from __future__ import annotations

import gc
import gzip
import hashlib
import importlib
import json
import os
import pickletools
import resource
import signal
import sys
import traceback
import zipfile
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from util.errors import USER_ERROR_STATUS, UserError

JOBS = {
    "tests.kill_data": ("toy", "davis", "refcoco", "eval_all_sets", "largest", "swap", "scores"),
    "tests.kill_masks": ("inference", "inference_davis_masks", "evaluation", "validation", "demo", "page"),
    "tests.kill_models": ("checkpoints", "convert", "hub", "stack", "pretraining", "pretrained_stack"),
    "tests.kill_reports": (
        "animation",
        "operator",
        "speed",
        "toy_lab",
        "quickstart",
    ),
}
"""Module → its functions, each called with the folder of ``tests.kill_source`` and the folder that it writes."""
TEXTS = (".md", ".txt", ".csv", ".sha256")
UNEQUAL = ("inference.json",)
"""Files that say how long something took."""

Job = Callable[[Path, Path], object]


def kill_each(job: Job, source: Path, base: Path) -> list[dict[str, Any]]:
    """Run a job, and kill and repeat it at each point, in a new folder below ``base`` for each of them.

    Returns:
        for each run, the first of which is not killed: ``point``; ``status``, negative for a signal; ``broken``, the
        files that are not whole then; of a killed one also ``again``, the status when it is repeated, and ``other``,
        the files that the two runs do not have in common.
    """
    never = base / "never"
    status, renames, modules = run(job, source, never)
    for module in modules:  # once, and not in every process
        with suppress(Exception):
            importlib.import_module(module)
    wanted = contents(never)
    found: list[dict[str, Any]] = [{"point": "never", "status": status, "broken": broken_files(never)}]
    largest = max((path.lstat().st_size for path in shown_files(never).values()), default=0)
    points = [{"rename": number} for number in sorted({1, (renames + 1) // 2, renames})]
    points += [{"size": size} for size in sorted({64, largest // 2}) if size < largest]
    for number, point in enumerate(points):
        out = base / str(number)
        status, *_ = run(job, source, out, **point)
        broken = broken_files(out)
        again, *_ = run(job, source, out)
        other = sorted({name for name, _ in wanted.items() ^ contents(out).items()})
        found.append({"point": point, "status": status, "broken": broken, "again": again, "other": other})
    return found


def run(job: Job, source: Path, out: Path, rename: int = 0, size: int = 0) -> tuple[int, int, list[str]]:
    """Run a job in a forked process.

    Args:
        job: what is run.
        source: folder of what it reads.
        out: folder for what it writes.
        rename: it is killed before it gives this so manieth file its name; 0: not so.
        size: it is killed where a file grows beyond so many bytes; 0: not so.

    Returns:
        its status, negative for a signal; if that is 0, how many files it has given their names, and what it imported.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            before, named = set(sys.modules), _kill_before(rename)
            if size:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            job(source, out)
            os.write(writer, json.dumps([named(), sorted(set(sys.modules) - before)]).encode())
            status = 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            status = USER_ERROR_STATUS
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    renames, modules = (0, []) if status else json.loads(os.read(reader, 1 << 16))
    os.close(reader)
    os.close(writer)
    return status, renames, modules


def _kill_before(number: int) -> Callable[[], int]:
    """Let the calls that rename count, and the one of this number kill the process.

    Returns:
        a function that says how many there were.
    """
    numbers = count(1)  # next() is safe in threads

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def rename(*arguments: Any, **options: Any) -> Any:
            if next(numbers) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return rename

    for name in ("rename", "replace"):
        setattr(os, name, counted(getattr(os, name)))
    return lambda: next(numbers) - 1


def shown_files(folder: Path) -> dict[str, Path]:
    """The files that have their names, without those that a killed process has left under a hidden one."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    hidden = {name for name in files if any(part.startswith(".") for part in name.parts)}
    return {name.as_posix(): path for name, path in sorted(files.items()) if name not in hidden}


def contents(folder: Path) -> dict[str, str]:
    """The shown files, each with a check sum of what does not differ from one run to the next."""
    found = {}
    for name, path in shown_files(folder).items():
        data = path.read_bytes()
        if path.suffix == ".safetensors":  # its metadata stand in any order
            begin = 8 + int.from_bytes(data[:8], "little")
            data = json.dumps(json.loads(data[8:begin]), sort_keys=True).encode() + data[begin:]
        elif path.suffix == ".mat":  # begins with a date
            data = data[128:]
        elif path.suffix == ".json":
            data = data.replace(str(folder).encode(), b"")
        found[name] = "" if path.name in UNEQUAL else hashlib.sha256(data).hexdigest()
    return found


def broken_files(folder: Path) -> list[str]:
    """The shown files that cannot be read to their end, with the reason."""
    found = []
    for name, path in shown_files(folder).items():
        try:
            _read(path)
        except Exception as error:  # each kind has its own
            found.append(f"{name}: {error!r}")
    return found


def _read(path: Path) -> None:
    if path.suffix in (".png", ".jpg", ".webp"):
        from PIL import Image, ImageSequence

        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                frame.load()
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".svg":
        ElementTree.parse(path)
    elif path.suffix in TEXTS:
        assert path.read_bytes().endswith(b"\n")
    elif path.suffix == ".zip":
        assert zipfile.ZipFile(path).testzip() is None
    elif path.suffix == ".gz":
        assert gzip.decompress(path.read_bytes())
    elif path.suffix == ".p":
        assert [name for name, _, _ in pickletools.genops(path.read_bytes())][-1].name == "STOP"
    elif path.suffix in (".pth", ".safetensors"):
        from util.checkpoint import read_content

        read_content(path)
    elif path.suffix == ".h5":
        import h5py

        with h5py.File(path) as file:
            assert all(file[name][...].size for name in ("instance", "reMask"))
    elif path.suffix == ".mat":
        from scipy.io import loadmat

        assert loadmat(path)["part_mask"].size
    else:
        import av

        with av.open(str(path)) as movie:
            stream = movie.streams.video[0]
            assert len(list(movie.decode(stream))) == stream.frames > 0


def main(base: Path) -> None:
    """Kill and repeat all jobs."""
    source = base / "source"
    status, *_ = run(importlib.import_module("tests.kill_source").write_source, source, base)
    assert status == 0, "what the jobs read cannot be written; the reason is above"
    found = {}
    modules = {name: importlib.import_module(name) for name in JOBS}
    gc.freeze()  # else every process looks through all that is imported, and so gets a copy of it
    for name, module in modules.items():
        jobs = JOBS[name]
        own = {key for key, value in vars(module).items() if getattr(value, "__module__", "") == name}
        assert {key for key in own if not key.startswith("_")} == set(jobs), f"JOBS lacks some of {name}, or has others"
        found |= {job: kill_each(getattr(module, job), source, base / job) for job in jobs}
    (base / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
