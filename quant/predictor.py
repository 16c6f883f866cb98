"""Runs an exported file through Paddle Inference."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import compat
from .errors import ExportError, VerifyError
from .paddle_format import check_complete

ENGINES = ("paddle", "onednn")


class Predictor:
    """PREFIX.pdmodel and PREFIX.pdiparams on the CPU.

    Args:
        prefix: path without the endings.
        engine: 'paddle' runs the operators as they are stored; 'onednn' turns
            quantize/dequantize pairs into oneDNN's int8 kernels (of a float model: its float
            kernels).
        threads: CPU threads.

    Raises:
        VerifyError: a file is missing or damaged, or Paddle Inference cannot load or run it.
    """

    def __init__(self, prefix: str, engine: str = "paddle", threads: int = 1) -> None:
        from paddle import inference

        if engine not in ENGINES:
            raise VerifyError(f"engine={engine!r}: allowed is {', '.join(ENGINES)}")
        prefix = os.fspath(prefix)
        for suffix in (".pdmodel", ".pdiparams"):
            if not os.path.isfile(prefix + suffix):
                raise VerifyError(f"{prefix}{suffix} does not exist")
        try:
            check_complete(prefix)
        except ExportError as error:
            raise VerifyError(str(error)) from None
        self.prefix, self.engine = prefix, engine
        config = inference.Config(f"{prefix}.pdmodel", f"{prefix}.pdiparams")
        config.disable_gpu()
        config.disable_glog_info()
        config.set_cpu_math_library_num_threads(threads)
        if engine == "onednn":
            compat.enable_onednn_int8(config)
        else:
            compat.disable_onednn(config)
        try:
            with _quiet():
                self._predictor: Any = inference.create_predictor(config)
        except Exception as error:
            raise VerifyError(f"{prefix} does not load on {engine}: {_first_line(error)}") from None

    def __call__(self, inputs: Any) -> list[np.ndarray]:
        """Outputs for one array, or for a list with one array per input of the network."""
        arrays = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        names = self._predictor.get_input_names()
        if len(arrays) != len(names):
            raise VerifyError(f"{self.prefix} takes {len(names)} inputs, {len(arrays)} were given")
        for name, array in zip(names, arrays):
            array = np.ascontiguousarray(array)
            handle = self._predictor.get_input_handle(name)
            handle.reshape(list(array.shape))
            handle.copy_from_cpu(array)
        try:
            self._predictor.run()
        except Exception as error:
            raise VerifyError(
                f"{self.prefix} does not run on {self.engine}: {_first_line(error)}"
            ) from None
        return [
            self._predictor.get_output_handle(name).copy_to_cpu()
            for name in self._predictor.get_output_names()
        ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Paddle's passes print dozens of lines straight to the process's stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in kept:
            os.dup2(nothing, number)
        yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        os.close(nothing)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told: str | None = next((line for line in lines if "Error:" in line), None)
    return told or (lines[-1] if lines else type(error).__name__)
