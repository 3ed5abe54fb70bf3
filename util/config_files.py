"""The options of a dataclass from YAML files, one of which may build on another.

A file is one flat mapping of options. Its key ``base`` names another such file, relative to itself, whose options hold
where the file sets none; that file may have a base in turn.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from util.errors import UserError
from util.options import Options, checked, expected, home_expanded, nearest, shown, text_of

BASE = "base"


def read_yaml(cls: type, path: str | Path) -> Options:
    """Read the options that a YAML file and those it builds on set.

    Args:
        cls: the dataclass that declares the options.
        path: the file.

    Raises:
        UserError: a file is missing, unreadable, no YAML or no mapping, builds on itself, or one of its keys is
            unknown, given twice or has a wrong value.
    """
    path = Path(path)
    options, where = _read_file(cls, path, f"the config file {path} is missing; the project's own are in configs/")
    chain = [path]
    while BASE in options:
        named = chain[-1].parent / home_expanded(options.pop(BASE))
        if any(_same(named, file) for file in chain):
            raise UserError(f"{where} names {named}, which builds on this file in turn; remove one of the two")
        missing = f"the config file {named} is missing, which {where} names; the path is relative to {chain[-1].parent}"
        chain.append(named)
        below, where = _read_file(cls, named, missing)
        options = {**below, **options}
    return options


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are of one file, by whatever names."""
    return one.resolve() == other.resolve()


def _read_file(cls: type, path: Path, missing: str) -> tuple[Options, str]:
    """One file's own options, its ``base`` among them, and where that stands.

    Args:
        missing: what to say where there is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(missing) from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
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


def _mapping(cls: type, loader: yaml.SafeLoader, path: Path) -> tuple[Options, str]:
    """The options of a YAML document that is one flat mapping, with the line of each mistake."""
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path} should hold one `key: value` a line, and holds {_node_words(root)}")
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
            except (ValueError, LookupError) as error:  # what looks like a date, or is tagged as a number, and is none
                words = "a path" if key == BASE else expected(cls, key)
                raise UserError(f"{key} in {line} must be {words}: {error}") from error
            if key != BASE:
                options[key] = checked(cls, key, value, f"{key} in {line}")
                continue
            if not isinstance(value, str) or not value:
                raise UserError(f"{BASE} in {line} must be the path of another config file, not {shown(value)}")
            options[key], base_line = text_of(value, f"{BASE} in {line}"), f"{BASE} in {line}"
        return options, base_line
    finally:
        loader.dispose()


def _node_words(node: yaml.Node | None) -> str:
    if node is None:
        return "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
