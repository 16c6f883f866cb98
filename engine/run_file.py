"""What is known of a file: ``run.json``, or the like inside an ONNX file, found and checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from data import INTERPOLATIONS
from quant import QuantConfig, QuantError

from .errors import EngineError
from .files import read_json
from .printable import shown

RUN_FILE = "run.json"
FILE_ENDINGS = (".pdparams", ".safetensors", ".pdmodel", ".onnx")


class Known(NamedTuple):
    """What is known of a file.

    Attributes:
        source: what says so, to be named in errors: a file, or a part of one.
        values: an object with keys of ``run.json``, each of the right type; empty if nothing is
            known. Whether values fit each other and the flags is not checked yet.
    """

    source: str
    values: dict[str, Any]


class _Rule(NamedTuple):
    fits: Callable[[Any], bool]
    allowed: str


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item)
        for item in value
    )


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_COUNT = _Rule(_is_count, "an integer of 1 or more")
_NUMBERS = _Rule(_is_numbers, "a list of numbers, one per channel")
_TEXT = _Rule(lambda value: isinstance(value, str), "a string")
_OBJECT = _Rule(lambda value: isinstance(value, dict), "an object")
RULES = {
    "model": _TEXT,
    "num_classes": _COUNT,
    "input": _OBJECT,
    "data": _TEXT,
    "data_dir": _TEXT,
    "class_names": _Rule(_is_strings, "a list of strings, one per class"),
    "quantization": _OBJECT,
}
INPUT_RULES = {
    "image_size": _COUNT,
    "resize_size": _COUNT,
    "channels": _Rule(lambda value: _is_count(value) and value in (1, 3), "1 or 3"),
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "antialias": _Rule(lambda value: isinstance(value, bool), "true or false"),
    "interpolation": _Rule(
        lambda value: isinstance(value, str) and value in INTERPOLATIONS, ", ".join(INTERPOLATIONS)
    ),
}


def check_known(source: str, values: Any) -> Known:
    """Check what a JSON text says of a file. Every key may be missing or null.

    Raises:
        EngineError: names the source, the key, its value and what is allowed.
    """
    if not isinstance(values, dict):
        raise EngineError(f"{source}: holds no JSON object")
    _check(source, "", values, RULES)
    _check(source, "input.", values.get("input") or {}, INPUT_RULES)
    try:
        QuantConfig.from_dict(values.get("quantization"))
    except QuantError as error:
        raise EngineError(f"{source}: quantization: {error}") from error
    return Known(source, values)


def _check(source: str, prefix: str, values: dict[str, Any], rules: dict[str, _Rule]) -> None:
    for key, rule in rules.items():
        value = values.get(key)
        if value is not None and not rule.fits(value):
            raise EngineError(
                f"{source}: {prefix}{key} is {shown(repr(value))}, allowed: {rule.allowed}"
            )


def find_run(path: Path) -> Known:
    """What is known about a file; nothing if no ``run.json`` is there.

    That stands in ``NAME.run.json`` beside an exported file, or in ``run.json`` in the folder of
    the file or the one above.

    Raises:
        EngineError: it is no JSON object of the right keys and types.
    """
    name = path.name
    for ending in FILE_ENDINGS:
        if name.endswith(ending):
            name = name[: -len(ending)]
    own = path.with_name(f"{name}.{RUN_FILE}")
    for file in (own, path.parent / RUN_FILE, path.parent.parent / RUN_FILE):
        if file.is_file():
            return check_known(str(file), read_json(file))
    return Known(str(path), {})
