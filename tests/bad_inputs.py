"""Attacks, bad files, bad values of options and possible silent wrongs: counts what does not end as it should.

    python -m tests.bad_inputs FOLDER

The web page gets the attacks of ``tests/attacks.py``, every reader of files that a user or a stranger can provide gets
every kind of bad content, the command line gets values that no option has, and ``tests/silent_wrongs.py`` has checks
of what could go wrong without a message. The exit status is 1 if any of them ends in another exception than
``UserError``, is accepted, reads or writes outside of FOLDER, or if the memory grows by 2 GB.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.a2d import read_instance_mask
from datasets.a2d import read_items as read_a2d
from datasets.davis import read_davis_sentences
from datasets.expressions import read_expressions
from datasets.files import read_clips, read_coco_masks, read_frame, read_names
from datasets.jhmdb import LIST_FILE, count_puppet_masks, read_puppet_mask
from datasets.jhmdb import read_items as read_jhmdb
from datasets.mevis import InstanceMasks
from datasets.mevis import list_split as read_mevis
from datasets.predictions import InferenceRecord, check_submission, frame_size, read_binary_mask, read_index_mask
from datasets.refcoco import read_items as read_refcoco
from datasets.registry import load_config
from datasets.scoring import find_ground_truth
from models.checkpoints import open_checkpoint
from models.diffusion.stack import load_stack
from tests.attacks import ATTACKS, HEAVY, SECRET, check, contents
from tests.page_tools import Visitor, serve, temporary_folder
from tests.silent_wrongs import SILENT_WRONGS
from util.drawing import read_picture
from util.errors import UserError
from util.files import read_plain_pickle
from util.video import open_media, read_video_frames

MEMORY = 2 << 20  # KiB
PATIENCE = 60  # seconds for one input


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "frame": ("a.jpg", read_frame),
    "clip": ("a.jpg", lambda path: next(read_clips([[path]]))),
    "frame's size": ("a.jpg", frame_size),
    "palette mask": ("a.png", read_index_mask),
    "mask": ("a.png", read_binary_mask),
    "picture": ("a.png", read_picture),
    "image": ("a.png", lambda path: list(open_media(path).frames())),
    "animation": ("a.gif", lambda path: list(open_media(path).frames())),
    "video": ("a.mp4", lambda path: list(open_media(path).frames())),
    "clip of A2D": ("a.mp4", lambda path: read_video_frames(path, [0])),
    "h5": ("a.h5", lambda path: read_instance_mask(path, 1)),
    "MATLAB": ("a.mat", lambda path: read_puppet_mask(path, 1)),
    "MATLAB header": ("a.mat", count_puppet_masks),
    "pickle": ("refs.p", lambda path: read_plain_pickle(path, "references")),
    "checkpoint": ("a.pth", lambda path: open_checkpoint(str(path), "--resume")),
    "safetensors": ("a.safetensors", lambda path: open_checkpoint(str(path), "--resume")),
    "configuration": ("a.yaml", lambda path: load_config(["--config", str(path)], "")),
    "expressions": ("a.json", lambda path: read_expressions(path, "valid")),
    "ground truth": ("a.json", lambda path: find_ground_truth(path.parent, path)),
    "instances": ("a.json", InstanceMasks),
    "COCO masks": ("a.json", lambda path: read_coco_masks(path, ["v_a_f_1"])),
    "record": ("inference.json", lambda path: InferenceRecord(path, {"seed": 1}, {})),
    "names": ("a.txt", read_names),
    "A2D": ("a2d_sentences_single_frame_test_annotations.json", lambda path: read_a2d(path.parent, "test")),
    "JHMDB": (LIST_FILE, lambda path: read_jhmdb(path.parent)),
    "RefCOCO": ("instances_refcoco_val.json", lambda path: read_refcoco(path.parent, "refcoco", "val")),
    "MeViS": ("valid/meta_expressions.json", lambda path: read_mevis(path.parents[1], "valid", images_needed=False)),
    "Ref-DAVIS17": ("Davis17_annot1.txt", lambda path: read_davis_sentences(path.parent)),
    "submission": ("a.zip", lambda path: _refused(check_submission(path, []))),
    "frozen parts": ("unet/config.json", lambda path: load_stack(str(path.parents[1]))),
}
"""What reads a file, the file's name, and the reader."""

CONTENTS: dict[str, Callable[[Path], object]] = {
    "pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"),
    "web page": lambda path: path.write_bytes(b"<!DOCTYPE html><title>Quota exceeded</title>"),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "deep lists": lambda path: path.write_bytes(b"[" * 100_000),
    "digits": lambda path: path.write_bytes(b"1" * 10_000),
    "half a surrogate": lambda path: path.write_bytes(b'{"videos": {"v": "\\ud83d"}}'),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path),
    **{name: partial(_write, content=content) for name, content in HEAVY.items()},
}
ACCEPTED = {
    *{("names", content) for content in ("web page", "pointer", "digits", "half a surrogate")},  # lines of any text
    ("record", "link to itself"),  # a link that leads nowhere is replaced
    ("submission", "folder"),  # is what an output folder without any video looks like
}
"""Inputs that are no faults."""


FLAGS = (
    *("--seed", "--seed nan", "--seed 1e400", f"--seed {'9' * 400}", "--seed -1", "--sed 1", "--seed 1 --seed x"),
    *(
        "--lr nan",
        "--lr inf",
        "--lr -1",
        "--lr 0x10",
        "--epochs 0",
        "--epochs 1.5",
        "--num_frames -3",
        "--batch_size 0",
    ),
    *("--model rem3", "--precision fp8", "--device tpu", "--dataset_file none", "--eval_metric IoU", "--max_size x"),
    *("--hidden_dim 33", "--nheads 0", "--config /dev/zero", "--config /", "--config nowhere.yaml", "--lr_drop 3 2"),
    *(
        "--train_scales",
        "--crop_range 1",
        "--mevis_version v3",
        "--threshold 2",
        "--score_threshold -1",
        "--eval maybe",
    ),
    *(f"--output_dir {'a' * 300}", "--lora_rank one", "--backbone vgg", "video.mp4", "-x", "--patience_minutes 0"),
)
"""Command lines that no configuration has."""


Input = tuple[str, Callable[[], object]]
"""A name, and a function that ends as it should if it returns or raises ``UserError``."""


class Late(BaseException):
    """An input that takes too long. No reader catches it."""


def _refused(faults: list[str]) -> None:
    if faults:
        raise UserError(faults[0])


def attacks(folder: Path) -> Iterator[Input]:
    """A: attacks on the web page, which a stub in place of the model makes cheap."""
    if find_spec("gradio") is None:
        print("no attacks on the page: it needs Gradio (bash scripts/setup.sh --web)")
        return
    with temporary_folder(folder / "temporary") as temporary, serve(max_sentences=3, max_megabytes=1.0) as address:
        visitor = Visitor(address)
        for kind, send_all in ATTACKS.items():
            place = folder / kind
            place.mkdir()
            for attack in send_all(visitor, place):
                yield f"{kind}: {attack[0]}", partial(check, visitor, folder, attack)
        yield "files that visitors got", partial(_holds_no_secret, temporary)


def _holds_no_secret(temporary: Path) -> None:
    assert SECRET.encode() not in contents(temporary), "a file of the server is copied to where the page serves it"


def bad_files(folder: Path) -> Iterator[Input]:
    """B: every reader gets every content."""
    for reader, (name, read) in READERS.items():
        for content, write in CONTENTS.items():
            path = folder / f"{reader} {content}".replace(" ", "_").replace("'", "") / "data" / name
            path.parent.mkdir(parents=True)
            write(path)
            accepted = (reader, content) in ACCEPTED
            yield f"{reader}, {content}", partial(_is_refused, partial(read, path), path.parents[1], accepted)


def _is_refused(read: Callable[[], object], place: Path, accepted: bool) -> None:
    listed = set(place.rglob("*"))
    try:
        read()
        assert accepted, "it is accepted"
    finally:
        assert set(place.rglob("*")) == listed, f"it writes {set(place.rglob('*')) - listed}"


def bad_values(folder: Path) -> Iterator[Input]:
    """B: command lines."""
    for line in FLAGS:
        yield f"{line:.60}", partial(_is_refused, partial(load_config, line.split(), ""), folder, False)


def silent_wrongs(folder: Path) -> Iterator[Input]:
    """C: what could go wrong without a message."""
    for kind, checks in SILENT_WRONGS.items():
        place = folder / kind
        place.mkdir()
        for name, function in checks(place):
            yield f"{kind}: {name}", function


KINDS = {"attacks": attacks, "bad files": bad_files, "bad values": bad_values, "silent wrongs": silent_wrongs}


def outcome(function: Callable[[], object]) -> str:
    """What is wrong with how an input ends; empty if it is as it should be."""

    def late(number: int, frame: object) -> None:
        raise Late

    earlier = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), torch.no_grad():
            function()
    except UserError as error:
        return "" if "\n" not in str(error) and str(error) else f"traceback: not one sentence: {error!r:.200}"
    except AssertionError as error:
        return f"silent wrong: {error!s:.400}"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {error!s:.200}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    return ""


class Watch:
    """Records files outside of a folder that Python code opens for writing, and secrets that it reads."""

    def __init__(self, folder: Path) -> None:
        self.own = (f"{folder.resolve()}/", "/dev/", "/proc/")
        self.found: list[str] = []
        self.active = True
        sys.addaudithook(self._hear)  # it cannot be removed

    def _hear(self, event: str, values: tuple[Any, ...]) -> None:
        if self.active and event == "open" and isinstance(values[0], str | bytes | os.PathLike):
            path = str(Path(os.fsdecode(values[0])).absolute())
            if values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                if ".." in path or not (path.startswith(self.own) or "__pycache__" in path):
                    self.found.append(f"{path} is written")
            elif path.endswith(("/etc/passwd", "/secret.txt")):
                self.found.append(f"{path} is read")


def main(folder: Path) -> int:
    """Try all, print what is wrong and a summary, and return the exit status."""
    counts, wrongs = Counter[str](), Counter[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch = Watch(folder)
    for kind, inputs in KINDS.items():
        place = folder / kind.replace(" ", "_")
        place.mkdir(parents=True)
        for name, function in inputs(place):
            found = [outcome(function), *(f"outside: {path}" for path in watch.found)]
            watch.found.clear()
            counts[kind] += 1
            for wrong in filter(None, found):
                wrongs[wrong.partition(":")[0]] += 1
                print(f"{name}: {wrong}")
    watch.active = False
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{counts.total()} inputs: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    print(
        f"{wrongs['traceback']} tracebacks, {wrongs['silent wrong']} silent wrongs, {wrongs['outside']} files outside; "
        f"memory grew by {grown / 2**20:.2f} GiB"
    )
    return int(wrongs.total() > 0 or grown > MEMORY)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
