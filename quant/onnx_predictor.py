"""Runs an ONNX file through ONNX Runtime or OpenVINO on the CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .errors import VerifyError

ONNX_ENGINES = ("onnx", "onnxruntime", "openvino")


class OnnxPredictor:
    """An ONNX file on the CPU.

    Args:
        path: the file.
        engine: 'onnx' runs the operators as they are stored (ONNX Runtime without optimizations),
            'onnxruntime' and 'openvino' make their integer kernels of them.
        threads: CPU threads.

    Raises:
        VerifyError: the file or the engine's package is missing, or the engine cannot load or run
            it.
    """

    def __init__(self, path: str, engine: str = "onnxruntime", threads: int = 1) -> None:
        if engine not in ONNX_ENGINES:
            raise VerifyError(f"engine={engine!r}: allowed is {', '.join(ONNX_ENGINES)}")
        self.path, self.engine = os.fspath(path), engine
        if not os.path.isfile(self.path):
            raise VerifyError(f"{self.path} does not exist")
        open_file = _openvino if engine == "openvino" else _onnxruntime
        try:
            self._run: Any = open_file(self.path, engine, threads)
        except ImportError as error:
            raise VerifyError(f"{engine} is not installed ({error})") from None
        except Exception as error:
            raise VerifyError(f"{path} does not load on {engine}: {_line(error)}") from None

    def __call__(self, inputs: Any) -> list[np.ndarray]:
        """Outputs for one array, or for a list with one array per input of the network."""
        arrays = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        try:
            return [np.asarray(value) for value in self._run(arrays)]
        except Exception as error:
            raise VerifyError(
                f"{self.path} does not run on {self.engine}: {_line(error)}"
            ) from None


def _onnxruntime(path: str, engine: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised as well
    if engine == "onnx":
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(arrays: list[np.ndarray]) -> Any:
        return session.run(None, dict(zip(names, arrays)))

    return run


def _openvino(path: str, engine: str, threads: int) -> Any:
    import openvino

    # Some CPUs would compute in bfloat16 what is left in float.
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", options)

    def run(arrays: list[np.ndarray]) -> Any:
        found = compiled(dict(enumerate(arrays)))
        return [found[i] for i in range(len(compiled.outputs))]

    return run


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__
