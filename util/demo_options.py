"""The options of ``demo.py``: its own, and those of ``Config`` that matter to a model and its masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from util.config import Config
from util.errors import UserError
from util.media_frames import Excerpt, parse_time
from util.options import home_expanded, option, read_flags, read_yaml, text_of
from util.preprocessing import normalise_sentence

DESCRIPTION = "Segment the objects that sentences name in a video, a GIF, a folder of frames or a picture."
# Options of training and of datasets are unknown here, lest somebody believe that they do something.
WITHOUT_GROUPS = frozenset({"matching and losses", "data", "training"})
BUT_WITH = frozenset({"eval_size", "max_size", "seed", "precision", "compile"})
WITHOUT = frozenset({"output_dir", "eval", "visualize", "wandb", "pretrained_weights", "keep_class_heads"})

Own = TypeVar("Own")

_demo = partial(option, "demo")


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """What ``demo.py`` is asked to do, beside ``Config``."""

    out: str = _demo("", "folder for everything that is written; empty is runs/demo/VIDEO", path=True, empty=True)
    force: bool = _demo(False, "replace what an earlier run of the demo wrote to --out")
    start: str = _demo("", "where to begin, in seconds or as hh:mm:ss", empty=True)
    end: str = _demo("", "where to stop, in seconds or as hh:mm:ss", empty=True)
    stride: int = _demo(1, "take every so manieth frame", minimum=1)
    fps: float = _demo(24.0, "frames per second of a folder of frames; a video has its own", above=0, maximum=1000)
    window: int = _demo(36, "frames that the model sees together", minimum=1)
    overlap: int | str = _demo(
        "auto",
        "frames that two windows share, by which an object is followed; auto is 6, or half of a short window",
        minimum=0,
        auto=True,
    )
    save_prob: bool = _demo(False, "also write the mask probabilities, as 8-bit PNGs (255 = 1)")

    def excerpt(self) -> Excerpt:
        """Which frames are wanted.

        Raises:
            UserError: a time is none, or the end comes before the start.
        """
        start = parse_time(self.start, "--start") if self.start else Fraction(0)
        return Excerpt(start, parse_time(self.end, "--end") if self.end else None, self.stride)

    def rate(self) -> Fraction:
        """Frames per second of pictures."""
        return Fraction(self.fps).limit_denominator(1001)

    def folder(self, video: Path) -> Path:
        """Where everything goes."""
        return Path(self.out or Path("runs") / "demo" / (video.stem or video.resolve().name))


def read_command(argv: Sequence[str] | None = None) -> tuple[Path, list[str], DemoOptions, dict[str, Any]]:
    """Read the command line.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The video, the sentences, the demo's options, and those of ``Config`` that the file of ``--config`` and the
        flags set.

    Raises:
        UserError: a flag is unknown (the message names the nearest known one) or wrong, or a sentence is empty.
    """
    flags = read_flags(every_option(DemoOptions), argv, DESCRIPTION, {"VIDEO": None, "SENTENCE": "+"})
    video = Path(home_expanded(text_of(flags.pop("VIDEO"), "the video's name")))
    sentences = flags.pop("SENTENCE")
    for number, sentence in enumerate(sentences, start=1):
        text_of(sentence, f"sentence {number}")
        if not normalise_sentence(sentence):
            raise UserError(f"sentence {number} is empty; say in words which object to segment")
    options, given = split_flags(DemoOptions, flags)
    return video, [" ".join(sentence.split()) for sentence in sentences], options, given


def split_flags(own: type[Own], flags: Mapping[str, Any]) -> tuple[Own, dict[str, Any]]:
    """A command's own options, and those of ``Config`` that the file of ``--config`` and the flags set.

    Args:
        own: the dataclass of its own ones.
        flags: what ``read_flags`` gave.

    Raises:
        UserError: the file cannot be read, or an option in it is wrong.
    """
    names = {field.name for field in dataclasses.fields(own)}  # type: ignore[arg-type]
    given = {name: value for name, value in flags.items() if name not in names}
    file = read_yaml(Config, given["config"]) if given.get("config") else {}
    return own(**{name: value for name, value in flags.items() if name in names}), {**file, **given}


def every_option(own: type) -> type:
    """A command's own options and those of ``Config`` that matter to masks in one dataclass, for ``read_flags``."""
    fields = [*dataclasses.fields(own), *(field for field in dataclasses.fields(Config) if _matters(field))]
    return dataclasses.make_dataclass(
        "EveryOption",
        [(f.name, f.type, dataclasses.field(default=f.default, metadata=f.metadata)) for f in fields],
        namespace={"__module__": __name__},
    )


def _matters(field: dataclasses.Field) -> bool:
    group = field.metadata["rule"].group
    return field.name in BUT_WITH or (group not in WITHOUT_GROUPS and field.name not in WITHOUT)
