"""A flat dataclass as command-line flags and help text at once.

The dataclass (``util.config.Config``) declares every option once, with ``option``; the functions here read it from
flags, and say in one sentence what is wrong with a value and where it stands. ``util.config_files`` reads it from YAML.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from util.command_line import Parser, nearest, unknown_flag
from util.errors import UserError

Options = dict[str, Any]

AUTO = "auto"
_LISTS: dict[Any, type] = {tuple[int, ...]: int, tuple[str, ...]: str}  # the types of list options, and of their items
_METAVARS: dict[Any, str] = {int: "INT", float: "NUMBER", str: "TEXT"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value of one option must be, beside its type.

    Attributes:
        group: heading under which ``--help`` shows the option.
        help: one line about it.
        choices: the allowed texts.
        prefix: texts that begin with it are allowed beside ``choices``.
        auto: the text "auto" is allowed beside a whole number; the option's type is then ``int | str``.
        minimum, maximum: inclusive bounds of a number, or of each number of a list.
        above, below: exclusive bounds.
        length: how many numbers a list holds; None is any number of them, including none.
        path: the text is a file or folder, in which a leading ``~`` is the home folder.
        empty: the text may be empty.
    """

    group: str
    help: str
    choices: Sequence[str] = ()
    prefix: str = ""
    auto: bool = False
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    length: int | None = None
    path: bool = False
    empty: bool = False


def option(group: str, default: Any, help: str, **rule: Any) -> Any:
    """Declare a dataclass field with its default, help text and ``Rule``."""
    return dataclasses.field(default=default, metadata={"rule": Rule(group, help, **rule)})


def checked(cls: type, name: str, value: Any, where: str) -> Any:
    """The value of option ``name`` in its declared type: lists as tuples, whole numbers as floats where floats go.

    Args:
        cls: the dataclass that declares the option.
        where: how the message calls the place of the value ("lr in configs/a.yaml, line 3" or "--lr").

    Raises:
        UserError: the value has another type, is out of range or is not among the choices.
    """
    kind, rule = _kind(cls, name), _rule(cls, name)
    if isinstance(value, (str, Path)):
        value = text_of(str(value), where)
    if rule.path and isinstance(value, str):
        value = home_expanded(value)
    if kind is float and isinstance(value, (str, int)) and not isinstance(value, bool):
        value = _number(float, value)  # text too: YAML 1.1 reads 1e-4, without a point, as text
    if kind in _LISTS:
        value = tuple(value) if isinstance(value, (list, tuple)) else value
        wrong = [item for item in value if not _within(rule, _LISTS[kind], item)] if type(value) is tuple else [value]
        good = not wrong and rule.length in (None, len(value))
    else:
        wrong = [value]
        good = (rule.auto and value == AUTO) or _within(rule, kind, value)
    if not good:
        near = nearest(wrong[0], rule.choices) if wrong and isinstance(wrong[0], str) else None
        hint = f"; did you mean {near!r}?" if near else ""
        raise UserError(f"{where} must be {expected(cls, name)}, not {shown(value)}{hint}")
    return value


def text_of(value: str, where: str) -> str:
    """Return ``value``.

    Raises:
        UserError: it holds bytes that are no UTF-8, as a file's name may, or a NUL; nothing could write it.
    """
    if "\0" in value or value != value.encode("utf-8", "replace").decode():
        raise UserError(f"{where} is {value!a:.80}, which is no text in UTF-8; write it anew, or rename the file")
    return value


def home_expanded(path: str) -> str:
    """A path with the home folder in place of a leading ``~``; those of other users stay as they are."""
    return str(Path(path).expanduser()) if path == "~" or path.startswith("~/") else path


def expected(cls: type, name: str) -> str:
    """What option ``name`` accepts, in words ("a whole number of at least 1")."""
    kind, rule = _kind(cls, name), _rule(cls, name)
    if rule.choices:
        names = ", ".join(_choices(rule))
        return f"a list of {names}" if kind in _LISTS else f"one of {names}"
    bounds = [
        f"{words} {bound}"
        for words, bound in (
            ("of at least", rule.minimum),
            ("above", rule.above),
            ("of at most", rule.maximum),
            ("below", rule.below),
        )
        if bound is not None
    ]
    limits = " " + " and ".join(bounds) if bounds else ""
    if rule.auto:
        return f"{AUTO} or a whole number{limits}"
    if kind in _LISTS:
        items = "whole numbers" if _LISTS[kind] is int else "texts"
        return f"a list of {'' if rule.length is None else f'{rule.length} '}{items}{limits}"
    if kind is str:
        return ("a path" if rule.path else "text") + (" or ''" if rule.empty else "")
    return {bool: "true or false", int: f"a whole number{limits}", float: f"a number{limits}"}[kind]


def read_flags(
    cls: type, argv: Sequence[str] | None, description: str, arguments: Mapping[str, str | None] | None = None
) -> Options:
    """Read the options that the command line sets; ``--help`` prints all of them by group and ends the program.

    Args:
        cls: the dataclass that declares the options.
        argv: the arguments; None takes those of the process.
        description: what the program does, for ``--help``.
        arguments: what stands without a flag: names, in order, each with None for one text or "+" for some; they are
            in the result by these names.

    Raises:
        UserError: a flag is unknown, lacks its value or has a wrong one.
    """
    arguments = arguments or {}
    words = "".join(f"{name} {f'[{name} ...] ' if count else ''}" for name, count in arguments.items())
    parser = Parser(
        usage=f"%(prog)s {words}[--config FILE] [--OPTION VALUE ...]",
        description=description,
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    names = [field.name for field in dataclasses.fields(cls)]
    for field in dataclasses.fields(cls):
        rule: Rule = field.metadata["rule"]
        if rule.group not in groups:
            groups[rule.group] = parser.add_argument_group(rule.group)
        groups[rule.group].add_argument(f"--{field.name}", **_flag(cls, field))
    for name, count in arguments.items():
        parser.add_argument(name, nargs=count)
    given, unknown = (parser.parse_known_intermixed_args if arguments else parser.parse_known_args)(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise UserError(f"unexpected argument {flag!r}; every option is given as --name value, see --help")
        raise UserError(unknown_flag(flag, names))
    return {
        name: text if name in arguments else checked(cls, name, _typed(cls, name, text), f"--{name}")
        for name, text in vars(given).items()
    }


def _flag(cls: type, field: dataclasses.Field) -> Options:
    """The arguments of ``add_argument`` for one option. Values stay text: ``checked`` says what is wrong with them."""
    kind, rule = _kind(cls, field.name), _rule(cls, field.name)
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    text = f"{rule.help} (default: {'none' if default == '' else default})".replace("%", "%%")
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    metavar = "{" + ",".join(_choices(rule)) + "}" if rule.choices else "PATH" if rule.path else ""
    count = {"nargs": "*" if rule.length is None else "+"} if kind in _LISTS else {}
    metavar = metavar or _METAVARS[_LISTS.get(kind, kind)] + ("|auto" if rule.auto else "")
    return {"metavar": metavar, "help": text, **count}


_kinds = cache(get_type_hints)


def _kind(cls: type, name: str) -> Any:
    """The type of an option; of one that may also be "auto", the type of its other values."""
    return int if _rule(cls, name).auto else _kinds(cls)[name]


def _rule(cls: type, name: str) -> Rule:
    return cls.__dataclass_fields__[name].metadata["rule"]  # type: ignore[attr-defined]


def _within(rule: Rule, kind: Any, value: Any) -> bool:
    """Whether a single value has the type and the bounds."""
    if type(value) is not kind:  # exactly: True is no whole number
        return False
    if isinstance(value, str):
        if not rule.choices:
            return bool(value) or rule.empty
        return value in rule.choices or (rule.prefix != "" and value.removeprefix(rule.prefix) not in (value, ""))
    return (
        math.isfinite(value)
        and (rule.minimum is None or value >= rule.minimum)
        and (rule.maximum is None or value <= rule.maximum)
        and (rule.above is None or value > rule.above)
        and (rule.below is None or value < rule.below)
    )


def _typed(cls: type, name: str, text: Any) -> Any:
    """A flag's text as the option's type; text that is no such number stays as it is, for ``checked`` to refuse."""
    kind = _kind(cls, name)
    if kind in _LISTS:
        return [_number(int, item) if _LISTS[kind] is int else item for item in text]
    return _number(kind, text) if kind in (int, float) else text


def _number(kind: type[int] | type[float], value: str | int) -> int | float | str:
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return value


def _choices(rule: Rule) -> list[str]:
    """The allowed texts, as help and messages name them."""
    return [*rule.choices, *([f"{rule.prefix}NAME"] if rule.prefix else [])]


def shown(value: Any) -> str:
    """The value in a message, cut where it is long."""
    return "null" if value is None else reprlib.repr(list(value) if isinstance(value, tuple) else value)
