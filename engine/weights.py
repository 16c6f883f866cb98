"""Read weight files of unknown origin, and put them into a network without leaving anything out."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from paddle import nn

from . import pickles
from .errors import EngineError

SUFFIXES = (".pdparams", ".safetensors")
# paddle.save adds this entry: a map from the keys to Paddle's internal parameter names.
NAME_TABLE = "StructuredToParameterName@@"
SHOWN = 10

SAFETENSORS_DTYPES = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "u1",
    "BOOL": "?",
}


def load_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read the tensors of a ``.pdparams`` or ``.safetensors`` file by name.

    Args:
        path: the file; ``.pdparams`` may be left out.

    Returns:
        Arrays as they are stored; bfloat16 comes as float32.

    Raises:
        EngineError: if there is no such file, it is cut or of another kind, or it holds anything
            but named tensors.
    """
    file = weights_file(Path(path))
    if file.suffix == ".safetensors":
        return _load_safetensors(file)
    weights = {}
    for name, value in _load_pickle(file).items():
        # Tensors that are no parameters are stored with Paddle's internal name in front.
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]
        if not isinstance(value, np.ndarray):
            raise EngineError(f"{file}: {_shown(name)} is no tensor but {type(value).__name__}")
        weights[str(name)] = _from_bfloat16(value)
    return weights


def weights_file(path: Path) -> Path:
    """The file that `path` means; its ending ``.pdparams`` may be left out.

    Raises:
        EngineError: there is none, or it is of another kind.
    """
    if path.is_dir():
        raise EngineError(f"{path}: a folder; allowed is a file ({', '.join(SUFFIXES)})")
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise EngineError(
                f"{path}: a file of an unknown kind; allowed is {', '.join(SUFFIXES)}"
            )
        return path
    with_suffix = path.with_name(path.name + ".pdparams")
    if path.suffix not in SUFFIXES and with_suffix.is_file():
        return with_suffix
    raise EngineError(f"{path}: no such file")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror or error}") from error


def _load_pickle(path: Path) -> dict[Any, Any]:
    try:
        state = pickles.loads(_read(path))
    except pickles.UnsafePickle as error:
        raise EngineError(f"{path}: refused, {error}") from error
    except ValueError as error:
        reason = " ".join(str(error).split())[:120]
        raise EngineError(f"{path}: cut, or not written by paddle.save ({reason})") from error
    if not isinstance(state, dict):
        raise EngineError(f"{path}: holds {type(state).__name__}, not tensors by name")
    state.pop(NAME_TABLE, None)
    return state


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        entries = safetensors.deserialize(_read(path))
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"{path}: cut, or no safetensors file ({reason})") from error
    weights = {}
    for name, entry in entries:
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise EngineError(
                f"{path}: {_shown(name)} has the type {entry['dtype']}, not supported here"
            )
        flat = np.frombuffer(entry["data"], SAFETENSORS_DTYPES[entry["dtype"]])
        weights[name] = _from_bfloat16(flat.reshape(entry["shape"]))
    return weights


def _from_bfloat16(array: np.ndarray) -> np.ndarray:
    """Widen bfloat16, which numpy lacks and files hold as uint16, to float32."""
    if array.dtype != np.uint16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def load_into(
    net: nn.Layer,
    state: Mapping[str, np.ndarray],
    source: str | Path,
    allow_missing: Callable[[str], bool] | None = None,
) -> list[str]:
    """Set every parameter and buffer of a network from a state; all of them, or none.

    Args:
        net: the network, changed in place.
        state: arrays by the names of ``net.state_dict()``, of the same shapes. Floats of another
            width are converted.
        source: where the state came from, for error messages.
        allow_missing: says of a name if the network may keep its own value where the state lacks
            it; None allows that for no name.

    Returns:
        The names that were missing and allowed to be.

    Raises:
        EngineError: if names, shapes or types do not match, by name; the network is unchanged.
    """
    targets = net.state_dict()
    absent = [name for name in targets if name not in state]
    allowed = [name for name in absent if allow_missing is not None and allow_missing(name)]
    missing = [name for name in absent if name not in set(allowed)]
    unexpected = [name for name in state if name not in targets]
    foreign = [_shown(name) for name in unexpected]
    common = [name for name in targets if name in state]
    wrong = [name for name in common if _shape(state[name]) != _shape(targets[name])]
    if (missing or unexpected) and len(common) * 2 < min(len(targets) - len(allowed), len(state)):
        raise EngineError(
            f"{source}: a checkpoint of another model: {len(common)} of its {len(state)} tensors "
            f"have a name of the network (there: {_first(foreign, 3)}; "
            f"network: {_first(missing, 3)})"
        )
    if wrong and not missing and not unexpected:
        classes = _classes(targets, state, wrong)
        if classes is not None:
            raise EngineError(
                f"{source}: weights for {classes[0]} classes, but the network has {classes[1]} "
                f"({wrong[0]} is {_shape(state[wrong[0]])}, in the network "
                f"{_shape(targets[wrong[0]])}); set --num_classes or take other weights"
            )
    problems = [
        *(f"{name} {_shape(targets[name])} is missing" for name in missing),
        *(
            f"{name} is {_shape(state[name])}, in the network {_shape(targets[name])}"
            for name in wrong
        ),
        *(f"{_shown(name)} {_shape(state[name])} is not in the network" for name in unexpected),
    ]
    if problems:
        raise EngineError(
            f"{source}: {len(problems)} tensors do not match: {_first(problems, SHOWN)}"
        )
    values = {}
    for name in common:
        dtype = str(targets[name].dtype).rpartition(".")[2]
        value = state[name]
        if value.dtype.kind != np.dtype(dtype).kind:
            raise EngineError(f"{source}: {name} is {value.dtype}, in the network {dtype}")
        values[name] = value.astype(dtype)
    for name, value in values.items():
        targets[name].set_value(value)
    return allowed


def _shape(tensor: Any) -> list[int]:
    return [int(size) for size in tensor.shape]


def _first(items: list[str], count: int) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more


def _shown(name: Any) -> str:
    """Return a name from a file as it can be printed: cut if long, without control characters."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 100 else reprlib.repr(text)


def _classes(
    targets: Mapping[str, Any], state: Mapping[str, np.ndarray], wrong: list[str]
) -> tuple[int, int] | None:
    """Return the classes in the state and in the network if only the last layer differs in them."""
    weights = [name for name, tensor in targets.items() if len(tensor.shape) >= 2]
    last_layer = weights[-1].rpartition(".")[0] + "."
    pairs = set()
    for name in wrong:
        have, want = _shape(state[name]), _shape(targets[name])
        differing = [pair for pair in zip(have, want) if pair[0] != pair[1]]
        if not name.startswith(last_layer) or len(have) != len(want) or len(differing) != 1:
            return None
        pairs.add(differing[0])
    return pairs.pop() if len(pairs) == 1 else None
