"""Quantization-aware training for PaddlePaddle: fake-quant layers, int8 export, verification."""

# Paddle 2.6 brings a zlib of its own; imported after it, Python's zlib binds to that and crashes.
import zlib  # noqa: F401

from .config import QuantConfig
from .errors import ConfigError, ExportError, QuantError, VerifyError
from .export import Receipt, save_float_model, save_float_onnx
from .inspect_file import FileContent, inspect_file
from .layerwise import LayerRow
from .predictor import Predictor
from .qat import QAT
from .recompute import recomputing_inputs
from .report import format_report
from .verify import Verdict

__all__ = [
    "QAT",
    "ConfigError",
    "ExportError",
    "FileContent",
    "LayerRow",
    "Predictor",
    "QuantConfig",
    "QuantError",
    "Receipt",
    "Verdict",
    "VerifyError",
    "format_report",
    "inspect_file",
    "recomputing_inputs",
    "save_float_model",
    "save_float_onnx",
]
