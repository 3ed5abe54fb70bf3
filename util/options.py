"""A flat dataclass as command-line flags, help text and YAML keys.

The dataclass (``util.config.Config``) declares every option once, with ``option``. The functions here read it from
flags and from YAML files, and report a wrong value in one sentence that names its place. A YAML file is one flat
mapping of options; its key ``base`` names another file, relative to itself, whose options it overrides.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from util.errors import Parser, UserError, nearest, unknown_flag
from util.files import read_regular

Options = dict[str, Any]

BASE = "base"
MAX_FILE = 1 << 16  # bytes; a YAML file is read slowly
MAX_INT = 1 << 63

AUTO = "auto"
NAME_BYTES = 255  # of one name in a path, on all usual file systems
_LISTS: dict[Any, type] = {tuple[int, ...]: int, tuple[str, ...]: str}  # the types of list options, and of their items
_FLAG = re.compile(r"--?[^\s\d.-]\S*")  # neither a number nor a sentence
_METAVARS: dict[Any, str] = {int: "INT", float: "NUMBER", str: "TEXT"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """The values that an option accepts, beside its type.

    Attributes:
        group: heading of the option in ``--help``.
        help: one line of help.
        choices: the allowed texts.
        prefix: texts that begin with it are allowed too.
        auto: the text "auto" is allowed beside a whole number, or true and false; the type of the option is then
            ``int | str`` or ``bool | str``.
        minimum, maximum: inclusive bounds of a number, or of each number of a list.
        above, below: exclusive bounds.
        length: number of items in a list; None: any, including none.
        path: the text is a path; a leading ``~`` stands for the home folder.
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
    """Check the value of option ``name``, and convert it to the declared type: lists to tuples, integers to floats.

    Args:
        cls: the dataclass that declares the option.
        name: the option.
        value: as given.
        where: the place of the value, for the message ("lr in configs/a.yaml, line 3" or "--lr").

    Raises:
        UserError: the value has another type, is out of range or is not among the choices.
    """
    kind, rule = _kind(cls, name), _rule(cls, name)
    if isinstance(value, (str, Path)):
        value = text_of(str(value), where)
    if rule.path and isinstance(value, str):
        value = home_expanded(value)
        check_name_lengths(value, where)
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
        UserError: it holds a NUL, or bytes that are not UTF-8, as a file name may: nothing could write it.
    """
    if "\0" in value or value != value.encode("utf-8", "replace").decode():
        raise UserError(f"{where} is {value!a:.80}, which is not text in UTF-8; correct it, or rename the file")
    return value


def check_name_lengths(path: str, where: str) -> None:
    """Refuse a path that no file system can have; asking for it is an error of the system.

    Raises:
        UserError: one of its names is too long.
    """
    if any(len(name.encode("utf-8", "replace")) > NAME_BYTES for name in Path(path).parts):
        raise UserError(
            f"{where} has a name of more than {NAME_BYTES} bytes, which no file can have; give another path"
        )


def home_expanded(path: str) -> str:
    """Expand a leading ``~`` (of this user only)."""
    return str(Path(path).expanduser()) if path == "~" or path.startswith("~/") else path


def expected(cls: type, name: str) -> str:
    """Describe what option ``name`` accepts ("a whole number of at least 1")."""
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
    if rule.minimum is not None and rule.maximum is not None:
        bounds = [f"from {rule.minimum} to {rule.maximum}"]
    limits = " " + " and ".join(bounds) if bounds else ""
    if rule.auto:
        return f"{AUTO}, true or false" if kind is bool else f"{AUTO} or a whole number{limits}"
    if kind in _LISTS:
        items = "whole numbers" if _LISTS[kind] is int else "texts"
        return f"a list of {'' if rule.length is None else f'{rule.length} '}{items}{limits}"
    if kind is str:
        return ("a path" if rule.path else "text") + (" or ''" if rule.empty else "")
    return {bool: "true or false", int: f"a whole number{limits}", float: f"a number{limits}"}[kind]


def read_flags(
    cls: type, argv: Sequence[str] | None, description: str, arguments: Mapping[str, str | None] | None = None
) -> Options:
    """Read the options that the command line sets; ``--help`` prints all of them by group and exits.

    Args:
        cls: the dataclass that declares the options.
        argv: the arguments; None: those of the process.
        description: what the program does, for ``--help``.
        arguments: positional arguments: name → None for one text, "+" for one or more (the last only); the result
            holds them too. They may stand between flags; after ``--``, every word is one.

    Raises:
        UserError: a flag is unknown, lacks its value or has a wrong one, or a positional argument is missing.
    """
    arguments = arguments or {}
    usage = "".join(f"{name} {f'[{name} ...] ' if count else ''}" for name, count in arguments.items())
    parser = Parser(
        usage=f"%(prog)s {usage}[--config FILE] [--OPTION VALUE ...]",
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
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    for word in words[:end]:
        flag = word.split("=")[0]
        if flag not in parser._option_string_actions and _FLAG.fullmatch(word):
            message = unknown_flag(flag, names)
            if arguments and message.endswith("--help"):
                message += f", or write every {[*arguments][-1]} that begins with - at the end, after --"
            raise UserError(message)
    given, texts = parser.parse_known_args(words[:end])
    texts += words[end + 1 :]
    if len(texts) < len(arguments):
        raise UserError(f"{[*arguments][len(texts)]} is missing; give it before the options, see --help")
    if len(texts) > len(arguments) and "+" not in arguments.values():
        raise UserError(
            f"unexpected argument {texts[len(arguments)]!r}; every option is given as --name value, see --help"
        )
    positional = {name: texts[i:] if count else texts[i] for i, (name, count) in enumerate(arguments.items())}
    options = {name: checked(cls, name, _typed(cls, name, text), f"--{name}") for name, text in vars(given).items()}
    return {**options, **positional}


def read_yaml(cls: type, path: str | Path) -> Options:
    """Read the options that a YAML file and its bases set.

    Args:
        cls: the dataclass that declares the options.
        path: the file.

    Raises:
        UserError: a file is missing, unreadable or not a YAML mapping, is its own base, or one of its keys is unknown,
            given twice or has a wrong value.
    """
    path = Path(path)
    options, where = _read_file(cls, path, f"the config file {path} is missing; the project's own are in configs/")
    chain = [path]
    while BASE in options:
        named = chain[-1].parent / home_expanded(text_of(options.pop(BASE), where))
        missing = f"the config file {named} is missing, which {where} names; the path is relative to {chain[-1].parent}"
        below, below_where = _read_file(cls, named, missing)
        if named.resolve() in [file.resolve() for file in chain]:
            raise UserError(f"{where} names {named}, whose base is this file again; remove one of the two")
        chain.append(named)
        options, where = {**below, **options}, below_where
    return options


def _flag(cls: type, field: dataclasses.Field) -> Options:
    """The arguments of ``add_argument`` for one option. Values stay text, so that ``checked`` reports what is wrong."""
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
    """The type of an option, without "auto"."""
    kind = _kinds(cls)[name]
    return get_args(kind)[0] if _rule(cls, name).auto else kind


def _rule(cls: type, name: str) -> Rule:
    return cls.__dataclass_fields__[name].metadata["rule"]  # type: ignore[attr-defined]


def _within(rule: Rule, kind: Any, value: Any) -> bool:
    """Whether a single value has the type and the bounds."""
    if type(value) is not kind:  # exactly: True is not a whole number
        return False
    if isinstance(value, str):
        if not rule.choices:
            return bool(value) or rule.empty
        return value in rule.choices or (rule.prefix != "" and value.removeprefix(rule.prefix) not in (value, ""))
    return (
        abs(value) < (MAX_INT if kind is int else math.inf)  # NaN is not, either
        and (rule.minimum is None or value >= rule.minimum)
        and (rule.maximum is None or value <= rule.maximum)
        and (rule.above is None or value > rule.above)
        and (rule.below is None or value < rule.below)
    )


def _typed(cls: type, name: str, text: Any) -> Any:
    """The text of a flag as the type of the option; ``checked`` refuses text that cannot be converted."""
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
    """A value for a message, shortened if it is long."""
    return "null" if value is None else _short.repr(list(value) if isinstance(value, tuple) else value)


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return (
            "a number of many digits" if abs(x) >= MAX_INT else super().repr_int(x, level)
        )  # may be too long to print


_short = _Short()


class _Loader(yaml.SafeLoader):
    """Reads YAML without aliases, a few of which can stand for billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported; repeat the value", mark)
        return super().compose_node(parent, index)


def _read_file(cls: type, path: Path, missing: str) -> tuple[Options, str]:
    """The options of one file with its ``base``, and the place of ``base`` in it.

    Args:
        cls: the dataclass that declares the options.
        path: the file.
        missing: the message where it does not exist.
    """
    try:
        text = read_regular(path, MAX_FILE).decode()
    except FileNotFoundError as error:
        raise UserError(missing) from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the config file {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return _mapping(cls, _Loader(text), path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}{line} is not valid YAML: {reason}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; it should hold one `key: value` per line") from error


def _mapping(cls: type, loader: yaml.SafeLoader, path: Path) -> tuple[Options, str]:
    """The options of a YAML document that is one flat mapping; messages name the line."""
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path} should hold one `key: value` per line, not {_node_words(root)}")
        names = [BASE, *(field.name for field in dataclasses.fields(cls))]
        options: Options = {}
        base_line = ""
        for key_node, value_node in root.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else _node_words(key_node)
            line = f"{path}, line {key_node.start_mark.line + 1}"
            if key not in names:
                near = nearest(key, names)
                hint = f"; did you mean {near!r}?" if near else "; `python main.py --help` lists the known ones"
                raise UserError(f"unknown key {shown(key)} in {line}{hint}")
            if key in options:
                raise UserError(f"{key} in {line} is given a second time; remove one of the two")
            try:
                value = loader.construct_object(value_node, deep=True)
            except (ValueError, LookupError, ArithmeticError) as error:  # looks like a date, or is tagged as a number
                words = "a path" if key == BASE else expected(cls, key)
                raise UserError(f"{key} in {line} must be {words}: {error}") from error
            if key != BASE:
                options[key] = checked(cls, key, value, f"{key} in {line}")
                continue
            if not isinstance(value, str) or not value:
                raise UserError(f"{BASE} in {line} must be the path of another config file, not {shown(value)}")
            options[key], base_line = value, f"{BASE} in {line}"
        return options, base_line
    finally:
        loader.dispose()


def _node_words(node: yaml.Node | None) -> str:
    if node is None:
        return "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
