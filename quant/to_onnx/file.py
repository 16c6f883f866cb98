"""ONNX files on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ExportError
from ..whole_files import write_whole

LOWEST_OPSET, DEFAULT_OPSET, HIGHEST_OPSET = 13, 17, 21
_MAX_BYTES = 2**31 - 1  # of a protobuf message


def check_onnx_path(path: Any, opset: Any) -> None:
    """Refuses what cannot be written, before any work.

    Raises:
        ExportError: the path does not end in .onnx, the opset is none of ours, or the `onnx`
            package is missing.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).endswith(".onnx"):
        raise ExportError(f"path={path!r}: allowed is a file name that ends in .onnx")
    if type(opset) is not int or not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise ExportError(f"opset={opset!r}: allowed is {LOWEST_OPSET} to {HIGHEST_OPSET}")
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"ONNX export needs the package onnx: pip install onnx ({error})"
        ) from None


def save_onnx(model: Any, path: str) -> None:
    """Checks a ModelProto and writes it, whole or not at all.

    Raises:
        ExportError: it is larger than a file of this format can be.
        OSError: the file cannot be written.
    """
    import onnx

    if model.ByteSize() > _MAX_BYTES:
        raise ExportError(f"{path}: of {model.ByteSize()} bytes; an ONNX file has at most 2 GiB")
    onnx.checker.check_model(model, full_check=True)
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    write_whole({path: lambda name: Path(name).write_bytes(model.SerializeToString())})


def read_onnx_tensors(path: str) -> dict[str, np.ndarray]:
    """Every stored tensor by name."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
