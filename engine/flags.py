"""Dataclass fields as command-line flags and as keys of a YAML file, with one set of checks.

A configuration is a dataclass whose fields are made by `flag`. `parse_flags` reads the command line
and the YAML file of ``--config`` (which loses against the command line) and returns the values by
field name; `check` holds one value against the type and the limits of its field. Both the command
line and YAML are read as text and converted here, so that ``1e-4``, ``yes`` or ``010`` mean the
same in both (YAML 1.1 by itself takes ``1e-4`` for a string and ``010`` for eight).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from .errors import EngineError

TRUE_WORDS = ("true", "1", "yes", "on")
FALSE_WORDS = ("false", "0", "no", "off")
NONE_WORDS = ("", "none", "null", "~")
KIND_NAMES = {"int": "an integer", "float": "a number", "str": "a string", "bool": "True or False"}
TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
}
METAVARS = {"int": "N", "float": "X", "str": "TEXT", "bool": "True|False"}
MAX_CONFIG_BYTES = 64 * 1024


def flag(
    default: Any,
    help: str,
    group: str,
    *,
    unset: str | None = None,
    choices: Sequence[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    bare: str | None = None,
    positional: bool = False,
) -> Any:
    """Make a dataclass field that is a flag.

    Args:
        default: the value where nothing is given; a list is copied for each instance.
        help: one sentence; ``--help`` adds the default and the choices.
        group: the heading under which ``--help`` shows it.
        unset: what a default of None means, for ``--help``.
        choices: the values allowed; for a list, of each element.
        low: smallest value allowed; for a list, of each element.
        high: largest value allowed.
        above: a limit that the value has to exceed.
        below: a limit that the value must not reach.
        bare: what the flag means when nothing follows it (a boolean means True).
        positional: an argument without dashes, which has to be given unless it may be None.
    """
    metadata = {
        "help": help,
        "group": group,
        "unset": unset,
        "choices": choices,
        "low": low,
        "high": high,
        "above": above,
        "below": below,
        "bare": bare,
        "positional": positional,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def kind_of(field: dataclasses.Field[Any]) -> tuple[str, bool, bool]:
    """Return the kind of a field ('int', 'float', 'str', 'bool'), if it is a list, if optional.

    Annotations are read as text, since ``int | None`` cannot be evaluated on Python 3.9.
    """
    text = str(field.type)
    optional = text.endswith(" | None")
    text = text[: -len(" | None")] if optional else text
    is_list = text.startswith("list[")
    kind = text[len("list[") : -1] if is_list else text
    if kind not in KIND_NAMES:
        raise TypeError(f"field {field.name} has the type {field.type}, which is no flag type")
    return kind, is_list, optional


def allowed(field: dataclasses.Field[Any]) -> str:
    """Say in words which values a field takes."""
    kind, is_list, _ = kind_of(field)
    meta = field.metadata
    if meta["choices"] is not None:
        text = "one of " + ", ".join(str(choice) for choice in meta["choices"])
    else:
        limits = [
            f"{word} {meta[key]}"
            for key, word in (
                ("low", "at least"),
                ("above", "above"),
                ("high", "at most"),
                ("below", "below"),
            )
            if meta[key] is not None
        ]
        text = " ".join([KIND_NAMES[kind], " and ".join(limits)]).strip()
    return f"a list, each element {text}" if is_list else text


def refuse(source: str, value: Any, expected: str) -> NoReturn:
    """Raise the error for one wrong value; long values are cut."""
    raise EngineError(f"{source} is {reprlib.repr(value)}; allowed is {expected}")


def check(field: dataclasses.Field[Any], value: Any, source: str) -> None:
    """Raise EngineError unless ``value`` has the type of the field and lies in its limits."""
    kind, is_list, optional = kind_of(field)
    if value is None and optional:
        return
    if is_list:
        fits = isinstance(value, list) and all(_fits(field, kind, item) for item in value)
    else:
        fits = _fits(field, kind, value)
    if not fits:
        refuse(source, value, allowed(field))


def _fits(field: dataclasses.Field[Any], kind: str, value: Any) -> bool:
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
        return False
    meta = field.metadata
    if meta["choices"] is not None and value not in meta["choices"]:
        return False
    if kind in ("int", "float"):
        return (
            not (isinstance(value, float) and not math.isfinite(value))
            and (meta["low"] is None or value >= meta["low"])
            and (meta["high"] is None or value <= meta["high"])
            and (meta["above"] is None or value > meta["above"])
            and (meta["below"] is None or value < meta["below"])
        )
    return True


def convert(field: dataclasses.Field[Any], text: str | list[str] | None, source: str) -> Any:
    """Turn the text of a flag or a YAML value into the value of its field, and check it."""
    kind, is_list, optional = kind_of(field)
    if is_list:
        words = _words(text)
        if words is None or words == ["none"]:
            value: Any = None if optional else []
        else:
            value = [_scalar(field, kind, word, source) for word in words]
    elif isinstance(text, list):
        refuse(source, text, allowed(field))
    elif text is None or (optional and kind != "str" and text.lower() in NONE_WORDS):
        value = None
    else:
        value = _scalar(field, kind, text, source)
    check(field, value, source)
    return value


def _words(text: str | list[str] | None) -> list[str] | None:
    """Split ``10,20 30`` and ``['10,20', '30']`` alike; None stays None."""
    if text is None:
        return None
    joined = text if isinstance(text, str) else " ".join(text)
    return joined.replace(",", " ").split()


def _scalar(field: dataclasses.Field[Any], kind: str, text: str, source: str) -> Any:
    try:
        if kind == "bool":
            lowered = text.lower()
            if lowered not in TRUE_WORDS + FALSE_WORDS:
                raise ValueError
            return lowered in TRUE_WORDS
        return {"int": int, "float": float, "str": str}[kind](text)
    except ValueError:
        refuse(source, text, allowed(field))


def nearest(word: str, words: Sequence[str]) -> str:
    """Return a hint that names the nearest word, or nothing where none is near."""
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def read_yaml(path: str, fields: dict[str, dataclasses.Field[Any]]) -> dict[str, Any]:
    """Read flags from a YAML file: a mapping from flag names to values or lists of values.

    The file is only parsed into text nodes; no object is ever made from a tag in it.

    Raises:
        EngineError: if the file cannot be read, is no YAML mapping, or holds an unknown or
            repeated key or a value that its flag does not take.
    """
    try:
        if Path(path).stat().st_size > MAX_CONFIG_BYTES:
            raise EngineError(f"--config {path}: larger than {MAX_CONFIG_BYTES} bytes")
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise EngineError(f"--config {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise EngineError(f"--config {path}: not a UTF-8 text file") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise EngineError(
            f"{path}{line}: not valid YAML: {error.problem or error.context}"
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"{path}: not valid YAML: {reason}") from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise EngineError(f"{path}: not a mapping of flag names to values")
    values: dict[str, Any] = {}
    for key_node, value_node in root.value:
        where = f"{path}:{key_node.start_mark.line + 1}"
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "(not a name)"
        if key not in fields:
            shown = reprlib.repr(key)
            raise EngineError(f"{where}: unknown key {shown}{nearest(key, list(fields))}")
        if key in values:
            raise EngineError(f"{where}: key {key!r} is given twice")
        source = f"{where}: {key}"
        values[key] = convert(fields[key], _node_text(value_node, source), source)
    return values


def _node_text(node: yaml.Node, source: str) -> str | list[str] | None:
    if isinstance(node, yaml.ScalarNode):
        is_null = node.tag == "tag:yaml.org,2002:null"
        return None if is_null else node.value
    if isinstance(node, yaml.SequenceNode) and all(
        isinstance(item, yaml.ScalarNode) for item in node.value
    ):
        return [item.value for item in node.value]
    raise EngineError(f"{source} is neither a value nor a list of values")


class _Parser(argparse.ArgumentParser):
    """argparse that reports a wrong command line as our exception."""

    def error(self, message: str) -> NoReturn:
        raise EngineError(message)


def _parser(cls: type, groups: Sequence[str], usage: str, examples: str) -> _Parser:
    parser = _Parser(
        usage=usage,
        description=(cls.__doc__ or "").strip().splitlines()[0],
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    by_title = {title: parser.add_argument_group(title) for title in groups}
    for field in dataclasses.fields(cls):
        meta = field.metadata
        group = by_title[meta["group"]]
        if meta["positional"]:
            words: dict[str, Any] = {"metavar": field.name.upper(), "help": _help(field)}
            if kind_of(field)[2]:
                words.update(nargs="?", default=argparse.SUPPRESS)
            group.add_argument(field.name, **words)
            continue
        kind, is_list, _ = kind_of(field)
        options: dict[str, Any] = {"help": _help(field), "default": argparse.SUPPRESS}
        options["metavar"] = METAVARS[kind]
        if meta["choices"] is not None:
            options["metavar"] = "{" + ",".join(str(choice) for choice in meta["choices"]) + "}"
        bare = "True" if kind == "bool" else meta["bare"]
        if is_list:
            options["nargs"] = "+"
        elif bare is not None:
            options.update(nargs="?", const=bare)
        group.add_argument(f"--{field.name}", **options)
    return parser


def _help(field: dataclasses.Field[Any]) -> str:
    default = default_of(field)
    if default is None:
        shown = field.metadata["unset"]
    else:
        shown = " ".join(str(item) for item in default) if isinstance(default, list) else default
    known = not field.metadata["positional"] and shown not in (None, "")
    text = field.metadata["help"] + (f" (default: {shown})" if known else "")
    return text.replace("%", "%%")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return a fresh copy of the default of a field."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def parse_flags(
    cls: type, argv: Sequence[str], groups: Sequence[str], usage: str, examples: str
) -> tuple[dict[str, Any], Sequence[str]]:
    """Read the command line and the file of ``--config``.

    Args:
        cls: a dataclass whose fields are made by `flag`.
        argv: the words after the script's name.
        groups: the headings of ``--help``, in order.
        usage: the first line of ``--help``.
        examples: the end of ``--help``.

    Returns:
        What was given, by field name; and the names of those that stand in the file only.

    Raises:
        EngineError: if a flag is unknown, or a value is not one that its flag takes.
        SystemExit: after ``--help`` was printed.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    options = {name: field for name, field in fields.items() if not field.metadata["positional"]}
    known, unknown = _parser(cls, groups, usage, examples).parse_known_args(list(argv))
    if unknown:
        word = unknown[0].split("=", 1)[0]
        hint = nearest(word, [f"--{name}" for name in options])
        raise EngineError(f"unknown argument {reprlib.repr(word)}{hint}")
    given = {
        name: convert(fields[name], text, f"--{name}" if name in options else name)
        for name, text in vars(known).items()
    }
    path = given.get("config")
    if path is None:
        return given, ()
    del options["config"]
    in_file = read_yaml(path, options)
    return {**in_file, **given}, [name for name in in_file if name not in given]
