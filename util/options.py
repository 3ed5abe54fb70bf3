"""A flat dataclass as YAML file, command-line flags and help text at once.

The dataclass (``util.config.Config``) declares every option once, with ``option``; the functions here read it from
YAML, then from flags that override the file, and say in one sentence what is wrong with a value and where it stands.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import reprlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml

from util.errors import UserError

Options = dict[str, Any]

_INTS = tuple[int, ...]  # the type of a list option
_METAVARS: dict[Any, str] = {int: "INT", float: "NUMBER", str: "TEXT", _INTS: "INT"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value of one option must be, beside its type.

    Attributes:
        group: heading under which ``--help`` shows the option.
        help: one line about it.
        choices: the allowed texts.
        minimum, maximum: inclusive bounds of a number, or of each number of a list.
        above, below: exclusive bounds.
        length: how many numbers a list holds; None is any number of them, including none.
        path: the text is a file or folder, in which a leading ``~`` is the home folder.
        empty: the text may be empty.
    """

    group: str
    help: str
    choices: tuple[str, ...] = ()
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
    if rule.path and isinstance(value, (str, Path)):
        text = str(value)
        value = str(Path(text).expanduser()) if text == "~" or text.startswith("~/") else text
    if kind is float and isinstance(value, (str, int)) and not isinstance(value, bool):
        value = _number(float, value)  # text too: YAML 1.1 reads 1e-4, without a point, as text
    if kind == _INTS and isinstance(value, (list, tuple)):
        value = tuple(value)
        good = all(_within(rule, int, item) for item in value) and rule.length in (None, len(value))
    else:
        good = _within(rule, kind, value)
    if not good:
        raise UserError(f"{where} must be {expected(cls, name)}, not {_shown(value)}")
    return value


def expected(cls: type, name: str) -> str:
    """What option ``name`` accepts, in words ("a whole number of at least 1")."""
    kind, rule = _kind(cls, name), _rule(cls, name)
    if rule.choices:
        return "one of " + ", ".join(rule.choices)
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
    if kind == _INTS:
        return f"a list of {'' if rule.length is None else f'{rule.length} '}whole numbers{limits}"
    if kind is str:
        return ("a path" if rule.path else "text") + (" or ''" if rule.empty else "")
    return {bool: "true or false", int: f"a whole number{limits}", float: f"a number{limits}"}[kind]


def read_yaml(cls: type, path: str | Path) -> Options:
    """Read the options that a YAML file sets.

    Raises:
        UserError: the file is missing, unreadable, no YAML or no mapping, or one of its keys is unknown, given twice
            or has a wrong value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"the config file {path} is missing; the project's own are in configs/") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config file {path}: {error}") from error
    try:
        return _mapping(cls, yaml.SafeLoader(text), path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}{line} is not valid YAML: {reason}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; it should hold one `key: value` a line") from error


def read_flags(cls: type, argv: Sequence[str] | None, description: str) -> Options:
    """Read the options that the command line sets; ``--help`` prints all of them by group and ends the program.

    Args:
        argv: the arguments; None takes those of the process.

    Raises:
        UserError: a flag is unknown, lacks its value or has a wrong one.
    """
    parser = _Parser(
        usage="%(prog)s [--config FILE] [--OPTION VALUE ...]",
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    names = [field.name for field in dataclasses.fields(cls)]
    for field in dataclasses.fields(cls):
        rule: Rule = field.metadata["rule"]
        if rule.group not in groups:
            groups[rule.group] = parser.add_argument_group(rule.group)
        groups[rule.group].add_argument(f"--{field.name}", **_flag(cls, field))
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise UserError(f"unexpected argument {flag!r}; every option is given as --name value, see --help")
        near = _nearest(flag.lstrip("-").replace("-", "_"), names)
        raise UserError(f"unknown flag {flag}" + (f"; did you mean --{near}?" if near else "; see --help"))
    return {name: checked(cls, name, _typed(cls, name, text), f"--{name}") for name, text in vars(given).items()}


class _Parser(argparse.ArgumentParser):
    """argparse that reports mistakes like the rest of the project."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


def _flag(cls: type, field: dataclasses.Field) -> Options:
    """The arguments of ``add_argument`` for one option. Values stay text: ``checked`` says what is wrong with them."""
    kind, rule = _kind(cls, field.name), _rule(cls, field.name)
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    text = f"{rule.help} (default: {'none' if default == '' else default})".replace("%", "%%")
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    metavar = "{" + ",".join(rule.choices) + "}" if rule.choices else "PATH" if rule.path else _METAVARS[kind]
    count = {"nargs": "*" if rule.length is None else "+"} if kind == _INTS else {}
    return {"metavar": metavar, "help": text, **count}


def _mapping(cls: type, loader: yaml.SafeLoader, path: Path) -> Options:
    """The options of a YAML document that is one flat mapping, with the line of each mistake."""
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path} should hold one `key: value` a line, and holds {_node_words(root)}")
        names = [field.name for field in dataclasses.fields(cls)]
        options: Options = {}
        for key_node, value_node in root.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else _node_words(key_node)
            line = f"{path}, line {key_node.start_mark.line + 1}"
            if key not in names:
                near = _nearest(key, names)
                hint = f"; did you mean {near!r}?" if near else "; `python main.py --help` lists the known ones"
                raise UserError(f"unknown key {_shown(key)} in {line}{hint}")
            if key in options:
                raise UserError(f"{key} in {line} is given a second time; remove one of the two")
            try:
                value = loader.construct_object(value_node, deep=True)
            except ValueError as error:  # what looks like a date and is none
                raise UserError(f"{key} in {line} must be {expected(cls, key)}: {error}") from error
            options[key] = checked(cls, key, value, f"{key} in {line}")
        return options
    finally:
        loader.dispose()


def _node_words(node: yaml.Node | None) -> str:
    if node is None:
        return "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


_kinds = cache(get_type_hints)


def _kind(cls: type, name: str) -> Any:
    return _kinds(cls)[name]


def _rule(cls: type, name: str) -> Rule:
    return cls.__dataclass_fields__[name].metadata["rule"]  # type: ignore[attr-defined]


def _within(rule: Rule, kind: Any, value: Any) -> bool:
    """Whether a single value has the type and the bounds."""
    if type(value) is not kind:  # exactly: True is no whole number
        return False
    if isinstance(value, str):
        return value in rule.choices if rule.choices else bool(value) or rule.empty
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
    if kind == _INTS:
        return [_number(int, item) for item in text]
    return _number(kind, text) if kind in (int, float) else text


def _number(kind: type[int] | type[float], value: str | int) -> int | float | str:
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return value


def _nearest(name: str, names: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.6)), None)


def _shown(value: Any) -> str:
    """The value in a message, cut where it is long."""
    return "null" if value is None else reprlib.repr(list(value) if isinstance(value, tuple) else value)
