"""ONNX files, written with the helpers of the `onnx` package.

A converter per operator turns the lowered graph (the one that the Paddle file is written from) into
nodes of the standard operator set: `writer.py` has the table, and there is a file per theme.
"""

from .file import (
    DEFAULT_OPSET,
    HIGHEST_OPSET,
    LOWEST_OPSET,
    check_onnx_path,
    read_onnx_tensors,
    save_onnx,
)
from .model import build_model, check_operators

__all__ = [
    "DEFAULT_OPSET",
    "HIGHEST_OPSET",
    "LOWEST_OPSET",
    "build_model",
    "check_onnx_path",
    "check_operators",
    "read_onnx_tensors",
    "save_onnx",
]
