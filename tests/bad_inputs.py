"""Gives bad files to every reader, and counts what does not end in one sentence.

    python -m tests.bad_inputs FOLDER

Every reader of files that a user or a stranger can provide gets every kind of bad content, and the command line gets
values that no option has. The exit status is 1 if any of them ends in another exception than ``UserError``, is
accepted, writes anywhere, or if the memory grows by 2 GB.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
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
from util.drawing import read_picture
from util.errors import UserError
from util.files import read_plain_pickle
from util.video import open_media, read_video_frames

MEMORY = 2 << 20  # KiB
PATIENCE = 60  # seconds for one input


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
    "picture of many pixels": lambda path: path.write_bytes(_png(60_000, 60_000)),
    "animation of many pixels": lambda path: path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)),
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
    *(
        f"--output_dir {'a' * 300}",
        "--lora_rank one",
        "--backbone vgg",
        "video.mp4",
        "--",
        "-x",
        "--patience_minutes 0",
    ),
)
"""Command lines that no configuration has."""


class Late(BaseException):
    """An input that takes too long. No reader catches it."""


def _png(width: int, height: int) -> bytes:
    """The header of a PNG, which is all that a reader should look at."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def _refused(faults: list[str]) -> None:
    if faults:
        raise UserError(faults[0])


def outcome(read: Callable[[Path], Any], path: Path) -> str:
    """``refused``, ``accepted``, or what went wrong."""

    def late(number: int, frame: object) -> None:
        raise Late

    earlier = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), torch.no_grad():
            read(path)
    except UserError as error:
        return "refused" if "\n" not in str(error) and str(error) else f"not one sentence: {error!r:.200}"
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.200}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    return "accepted"


def main(folder: Path) -> int:
    """Try all, print what is wrong and a summary, and return the exit status."""
    counts, wrong = Counter[str](), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for reader, (name, read) in READERS.items():
        for content, write in CONTENTS.items():
            place = folder / f"{reader} {content}".replace(" ", "_").replace("'", "")
            path = place / "data" / name
            path.parent.mkdir(parents=True)
            write(path)
            listed = sorted(place.rglob("*"))
            found = outcome(read, path)
            if sorted(place.rglob("*")) != listed:
                found = f"wrote {set(place.rglob('*')) - set(listed)}"
            if found == "accepted" and (reader, content) in ACCEPTED:
                found = "refused"
            counts[found if found == "refused" else "wrong"] += 1
            if found != "refused":
                wrong += 1
                print(f"{reader}, {content}: {found}")
    for line in FLAGS:
        found = outcome(lambda _, line=line: load_config(line.split(), ""), folder)
        counts[found if found == "refused" else "wrong"] += 1
        if found != "refused":
            wrong += 1
            print(f"{line:.60}: {found}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{counts.total()} inputs: {counts['refused']} refused, {wrong} not; memory grew by {grown / 2**20:.2f} GiB")
    return int(wrong > 0 or grown > MEMORY)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
