"""Kills jobs that write files at several points, and runs them again: ``python -m tests.kill FOLDER``.

Every job of ``tests.kill_jobs`` runs in processes forked from this one, which has imported everything. They are killed
by SIGKILL before a file is renamed to its final name, or by SIGXFSZ while a file is written. The results are written
to ``FOLDER/found.json``.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
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

from util.errors import USER_ERROR_STATUS, UserError

JOBS = (
    *("toy", "davis", "refcoco", "largest", "swap", "scores"),
    *("inference", "inference_davis_masks", "evaluation", "validation", "demo", "page"),
    *("checkpoints", "convert", "hub", "stack", "pretraining", "pretrained_stack"),
    *("animation", "operator", "speed", "toy_lab", "quickstart"),
)
"""Functions of ``tests.kill_jobs``, each called with the input of ``write_source`` and its output folder."""
TEXTS = (".md", ".txt", ".csv")
UNEQUAL = ("inference.json",)
"""Files that contain durations."""

Job = Callable[[Path, Path], object]


def kill_each(job: Job, source: Path, base: Path) -> list[dict[str, Any]]:
    """Run a job, then kill and repeat it at several points, each in a new folder below ``base``.

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
        job: the job.
        source: folder of its input.
        out: its output folder.
        rename: kill it before its n-th rename; 0: do not.
        size: kill it when a file grows beyond so many bytes; 0: do not.

    Returns:
        its status, negative for a signal; if it is 0, the number of renames and the imported modules.
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
    """Count calls of ``os.rename`` and ``os.replace``, and kill the process before the call of this number.

    Returns:
        a function that returns the number of calls.
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
    """All files but hidden ones, which a killed process may leave, by relative path."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    hidden = {name for name in files if any(part.startswith(".") for part in name.parts)}
    return {name.as_posix(): path for name, path in sorted(files.items()) if name not in hidden}


def contents(folder: Path) -> dict[str, str]:
    """All files, each with a checksum of the content that is the same in every run."""
    found = {}
    for name, path in shown_files(folder).items():
        data = path.read_bytes()
        if path.suffix == ".safetensors":  # the order of its metadata varies
            begin = 8 + int.from_bytes(data[:8], "little")
            data = json.dumps(json.loads(data[8:begin]), sort_keys=True).encode() + data[begin:]
        elif path.suffix == ".json":
            data = data.replace(str(folder).encode(), b"")
        found[name] = "" if path.name in UNEQUAL else hashlib.sha256(data).hexdigest()
    return found


def broken_files(folder: Path) -> list[str]:
    """The files that cannot be read completely, with the reason."""
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
    elif path.suffix in TEXTS:
        assert path.read_bytes().endswith(b"\n")
    elif path.suffix == ".zip":
        assert zipfile.ZipFile(path).testzip() is None
    elif path.suffix in (".pth", ".safetensors"):
        from util.checkpoint import read_content

        read_content(path)
    else:
        import av

        with av.open(str(path)) as movie:
            stream = movie.streams.video[0]
            assert len(list(movie.decode(stream))) == stream.frames > 0


def main(base: Path) -> None:
    """Kill and repeat all jobs."""
    source = base / "source"
    jobs = importlib.import_module("tests.kill_jobs")
    status, *_ = run(jobs.write_source, source, base)
    assert status == 0, "the input of the jobs cannot be written; the reason is above"
    gc.freeze()  # otherwise garbage collection in each forked process copies the memory of all imported modules
    found = {job: kill_each(getattr(jobs, job), source, base / job) for job in JOBS}
    (base / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
