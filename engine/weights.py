"""Read weights of unknown origin: by their ending, one reader for each format.

===================  ===========================================================================
``.pdparams``        what ``paddle.save`` and ``paddle.static.save`` write; `pickles`
``.safetensors``     the format of that name
a folder, ``.tar``   what ``save_vars`` of Paddle 1.x writes, and the tar of it; `save_vars`
===================  ===========================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from . import pickles, save_vars
from .errors import EngineError
from .printable import shown

SUFFIXES = (".pdparams", ".safetensors", ".tar")
# A file can have this size, take a few blocks on the disk and become this much memory. VGG19, the
# largest network here, has 575 MB.
MAX_BYTES = 1 << 30
# paddle.save adds this entry: a map from the keys to Paddle's internal parameter names.
NAME_TABLE = "StructuredToParameterName@@"

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


def load_weights(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Read tensors by name.

    Args:
        path: a file, whose ending may be left out, or a folder.
        max_bytes: its largest size.

    Returns:
        Arrays as they are stored; bfloat16 comes as float32.

    Raises:
        EngineError: if there is no such file, it is cut or of another kind, it holds anything but
            named tensors, or it is larger than ``max_bytes``.
    """
    file = weights_file(Path(path))
    size = weights_size(file)
    if size > max_bytes:
        raise EngineError(f"{file}: of {size} bytes; allowed are {max_bytes}")
    if file.is_dir():
        weights = save_vars.read_folder(file)
    elif file.suffix == ".tar":
        weights = save_vars.read_tar(file)
    elif file.suffix == ".safetensors":
        weights = _load_safetensors(file)
    else:
        weights = _load_pickle(file)
    return {name: _from_bfloat16(value) for name, value in weights.items()}


def weights_file(path: Path) -> Path:
    """The file or folder that `path` means; the ending of a file may be left out.

    Raises:
        EngineError: there is none, or it is of another kind.
    """
    if path.is_dir():
        save_vars.folder_files(path)
        return path
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise EngineError(
                f"{path}: a file of an unknown kind; allowed is {', '.join(SUFFIXES)} or a folder "
                "of variables"
            )
        return path
    if path.suffix not in SUFFIXES:
        for suffix in SUFFIXES:
            with_suffix = path.with_name(path.name + suffix)
            if with_suffix.is_file():
                return with_suffix
    raise EngineError(f"{path}: no such file")


def weights_size(path: Path) -> int:
    """Size in bytes of what `weights_file` takes ``path`` for.

    Raises:
        EngineError: there is no such file.
    """
    file = weights_file(path)
    if file.is_dir():
        return sum(entry.stat().st_size for entry in save_vars.folder_files(file))
    return file.stat().st_size


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror or error}") from error


def _load_pickle(path: Path) -> dict[str, np.ndarray]:
    weights = {}
    for name, value in _unpickle(path).items():
        # Tensors that are no parameters are stored with Paddle's internal name in front.
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]
        if not isinstance(value, np.ndarray):
            raise EngineError(f"{path}: {shown(name)} is no tensor but {type(value).__name__}")
        weights[str(name)] = value
    return weights


def _unpickle(path: Path) -> dict[Any, Any]:
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
                f"{path}: {shown(name)} has the type {entry['dtype']}, not supported here"
            )
        flat = np.frombuffer(entry["data"], SAFETENSORS_DTYPES[entry["dtype"]])
        weights[name] = flat.reshape(entry["shape"])
    return weights


def _from_bfloat16(array: np.ndarray) -> np.ndarray:
    """Widen bfloat16, which numpy lacks and files hold as uint16, to float32."""
    if array.dtype != np.uint16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)
